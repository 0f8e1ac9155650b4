"""Modules that optimize by themselves, with several optimizers, grow by methods that learn nothing.

The oracle of the gradients is a plain loop over the same batches.
"""

import pytest
import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from torch import nn
from torch.nn import functional as F

from lightning_ligo import Growth, GrowthCallback, grow
from lightning_ligo.networks.description import build
from runs import FEATURES, STEPS_PER_EPOCH, Net, net, train_loader, trainer

BIGGER = net(24, 4, classes=FEATURES)


class Adversarial(LightningModule):
    """A generator that grows and a discriminator that does not, each with its own optimizer."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.automatic_optimization = False
        self.network = Net(classes=FEATURES)
        self.discriminator = nn.Sequential(nn.Linear(FEATURES, 8), nn.ReLU(), nn.Linear(8, 1))

    def training_step(self, batch, batch_idx):
        first, second = self.optimizers()
        real, _ = batch
        fake = self.network(real.flip(0))
        judged = self.discriminator(torch.cat([real, fake.detach()]))[:, 0]
        truth = torch.cat([torch.ones(len(real)), torch.zeros(len(real))])
        second.zero_grad()
        self.manual_backward(F.binary_cross_entropy_with_logits(judged, truth))
        second.step()
        first.zero_grad()
        fooled = self.discriminator(fake)[:, 0]
        self.manual_backward(F.binary_cross_entropy_with_logits(fooled, truth[: len(real)]))
        first.step()
        for schedule in self.lr_schedulers():
            schedule.step()

    def configure_optimizers(self):
        optimizers = [
            torch.optim.AdamW(self.network.parameters(), lr=1e-2),
            torch.optim.SGD(self.discriminator.parameters(), lr=1e-2, momentum=0.9),
        ]
        return optimizers, [
            torch.optim.lr_scheduler.LambdaLR(each, lambda step: 0.9**step) for each in optimizers
        ]


class Watch(Callback):
    """The generator's width and the learning rates of every batch."""

    def __init__(self):
        self.widths, self.rates = [], []

    def on_train_batch_end(self, trainer, pl_module, *_):
        self.widths.append(pl_module.network.head.in_features)
        self.rates.append([o.param_groups[0]["lr"] for o in trainer.optimizers])


def growth(method="lemon", to=BIGGER, **when):
    return GrowthCallback([Growth(to, **(when or {"step": 16}))], method=method)


def fit(folder, *callbacks, module=None, ckpt_path=None, **options):
    module = module or Adversarial()
    run = trainer(folder, *callbacks, **options)
    run.fit(module, train_loader(shuffle=False), ckpt_path=ckpt_path)
    return module, run


def by_hand(epochs=3, until=8):
    """The same training, grown between two of its batches; what grows has fresh moments."""
    module, count = Adversarial(), 0
    (first, second), schedules = module.configure_optimizers()
    module.optimizers = lambda: (first, second)
    module.lr_schedulers = lambda: schedules
    module.manual_backward = lambda loss: loss.backward()
    for _ in range(epochs):
        for index, batch in enumerate(train_loader(shuffle=False)):
            if count == until:
                small, large = module.network, build(BIGGER)
                module.network = grow(small, large, batch[0], method="lemon")
                first.param_groups[0]["params"] = list(large.parameters())
                kept = first.state[small.head.bias]  # the one that does not grow
                first.state.clear()
                first.state[large.head.bias] = kept
            module.training_step(batch, index)
            count += 1
    return module


def test_it_is_a_loop_in_which_the_network_is_replaced(tmp_path):
    callback = GrowthCallback([Growth(BIGGER, step=16)], method="lemon", optimizer_state="reset")
    watch = Watch()
    module, run = fit(tmp_path, callback, watch)
    mine = module.state_dict()
    for name, weight in by_hand().state_dict().items():
        torch.testing.assert_close(mine[name], weight, rtol=1e-4, atol=1e-5, msg=name)
    # two optimizers: two steps in a batch, so that 16 are done after eight
    assert watch.widths == [8] * 8 + [24] * 10 and run.global_step == 36


def test_finding_the_axes_trains_nothing_and_the_rates_are_the_schedules(tmp_path):
    runs = []
    for callbacks in ([], [growth(step=30)]):
        watch = Watch()
        module, run = fit(tmp_path, *callbacks, watch, epochs=2)
        optimizers = [o.state_dict()["state"] for o in run.optimizers]
        runs.append((module.state_dict(), optimizers, watch.rates))
    for weight, other in zip(runs[0][0].values(), runs[1][0].values(), strict=True):
        assert torch.equal(weight, other)
    torch.testing.assert_close(runs[0][1], runs[1][1], rtol=0, atol=0)
    _, run = fit(tmp_path, growth(), watch := Watch(), epochs=2)
    assert watch.rates == runs[0][2] and watch.widths[-1] == 24


@pytest.mark.parametrize("epoch", [0, 1])  # before the growth and after it
def test_a_resumed_run_ends_as_one_that_was_not_cut_off(tmp_path, epoch):
    def run(name, **options):
        saved = ModelCheckpoint(tmp_path / name, filename="{epoch}", save_top_k=-1)
        return fit(tmp_path, growth(), saved, enable_checkpointing=True, **options)[0]

    whole = run("whole")
    resumed = run("resumed", ckpt_path=tmp_path / "whole" / f"epoch={epoch}.ckpt")
    for name, weight in whole.state_dict().items():
        assert torch.equal(resumed.state_dict()[name], weight), name


def test_flops_are_those_of_the_whole_step(tmp_path):
    callback = growth(epoch=1)
    fit(tmp_path, callback, epochs=2)
    small, large = callback.accounting.training.totals

    # products of one item: forward, and twice as much backward, less what leads to the data
    def generator(width, depth):
        inner = depth * 4 * width**2 + FEATURES * width
        return 2 * (3 * (inner + FEATURES * width) - FEATURES * width)

    judge = FEATURES * 8 + 8
    judged = 2 * 2 * (3 * judge - FEATURES * 8) + 2 * 3 * judge
    assert small == STEPS_PER_EPOCH * 8 * (generator(8, 1) + judged)
    assert large == STEPS_PER_EPOCH * 8 * (generator(24, 4) + judged)


def test_an_epoch_is_known_and_a_fraction_is_not(tmp_path):
    watch = Watch()
    fit(tmp_path, growth(epoch=2), watch)
    assert watch.widths.index(24) == 2 * STEPS_PER_EPOCH
    with pytest.raises(ValueError, match=r"growth 1 is due at fraction 0.5 of .* automatic optimi"):
        fit(tmp_path, growth(fraction=0.5))


def test_learning_on_a_step_that_trains_is_refused(tmp_path):
    for method in ("ligo", "ligo-paper"):
        with pytest.raises(ValueError, match=rf'(?s)the operator of method {method!r}.*"lemon"'):
            fit(tmp_path, growth(method))
    module, _ = fit(tmp_path, GrowthCallback([Growth(BIGGER, step=16)], method="ligo", steps=0))
    assert module.network.head.in_features == 24


def test_a_step_that_optimizes_before_it_calls_the_network_is_watched_without_training(tmp_path):
    class Late(Adversarial):
        def training_step(self, batch, batch_idx):
            _, second = self.optimizers()
            self.manual_backward(self.discriminator(batch[0]).mean())
            second.step()
            super().training_step(batch, batch_idx)

    grown, _ = fit(tmp_path, growth(), module=Late())
    assert grown.network.head.in_features == 24
    runs = [fit(tmp_path, *callbacks, module=Late(), epochs=1)[0] for callbacks in ([], [growth()])]
    for weight, other in zip(*(run.state_dict().values() for run in runs), strict=True):
        assert torch.equal(weight, other)


class Halves(Adversarial):
    """The first half of the network has one optimizer, the second half another."""

    def __init__(self):
        super().__init__()
        self.network = Net(depth=2, classes=FEATURES)

    def training_step(self, batch, batch_idx):
        for optimizer in self.optimizers():
            optimizer.zero_grad()
        self.manual_backward(self.discriminator(self.network(batch[0])).square().mean())
        for optimizer in self.optimizers():
            optimizer.step()

    def configure_optimizers(self):
        first = [*self.network.embed.parameters(), *self.network.blocks[0].parameters()]
        second = [weight for weight in self.parameters() if weight not in set(first)]
        return [torch.optim.AdamW(each, lr=1e-2) for each in (first, second)], []


@pytest.mark.parametrize("method", ["stack+lemon", "interpolate+lemon"])
def test_a_layer_joins_the_optimizer_of_the_layer_that_it_comes_from(tmp_path, method):
    module, run = fit(tmp_path, growth(method), module=Halves())
    names = {weight: name for name, weight in module.named_parameters()}
    layers = []
    for optimizer in run.optimizers:
        held = [names[weight] for weight in optimizer.param_groups[0]["params"]]
        assert set(optimizer.state) == set(optimizer.param_groups[0]["params"])
        layers.append(
            sorted({int(n.split(".")[2]) for n in held if n.startswith("network.blocks")})
        )
    assert layers == ([[0, 2], [1, 3]] if method == "stack+lemon" else [[0, 1], [2, 3]])
