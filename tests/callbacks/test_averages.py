"""Averages of other packages, and helpers that hold the network, grow along.

The classes of ema-pytorch 0.8 and torch-ema 0.3 are written down here as far as they hold and move
an average: neither package is installed.
"""

import copy
import functools
import weakref

import pytest
import torch
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from timm.utils import ModelEmaV3
from torch import nn
from torch.nn import functional as F
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from lightning_ligo import Growth, GrowthCallback
from runs import FEATURES, MIDDLE, Plain, train_loader, trainer, val_loader


def _copy(target, source, auto_move_device=False):
    target.copy_(source)


class EMA(nn.Module):
    """ema-pytorch: a list hides the model from the module, and sets hold names of parameters."""

    def __init__(self, model, beta=0.8, include_online_model=True):
        super().__init__()
        self.beta, self.include_online_model = beta, include_online_model
        self.online_model = model if include_online_model else [model]
        self.parameter_names = {name for name, _ in model.named_parameters()}
        self.buffer_names = {name for name, _ in model.named_buffers()}
        self.inplace_copy = functools.partial(_copy, auto_move_device=False)
        self.ema_model = copy.deepcopy(model)
        for parameter in self.ema_model.parameters():
            parameter.detach_()
        self.register_buffer("initted", torch.tensor(False))
        self.register_buffer("step", torch.tensor(0))

    @property
    def model(self):
        return self.online_model if self.include_online_model else self.online_model[0]

    def update(self):
        self.step += 1
        if not self.initted.item():
            for _, mine, its in self.pairs():
                self.inplace_copy(mine, its)
            self.initted.copy_(torch.tensor(True))
        for _, mine, its in self.pairs():
            mine.lerp_(its, 1 - self.beta)

    def pairs(self):
        its = dict(self.model.named_parameters())
        for name, mine in self.ema_model.named_parameters():
            if name in self.parameter_names:
                yield name, mine.data, its[name].data

    def forward(self, *args):
        return self.ema_model(*args)


class ExponentialMovingAverage:
    """torch-ema: clones in the order of the parameters, and weak references to these."""

    def __init__(self, parameters, decay=0.8):
        parameters = list(parameters)
        self.decay, self.num_updates = decay, 0
        self.shadow_params = [p.clone().detach() for p in parameters]
        self.collected_params = None
        self._params_refs = [weakref.ref(p) for p in parameters]

    def _get_parameters(self, parameters):
        if parameters is None:
            parameters = [p() for p in self._params_refs]
            if any(p is None for p in parameters):
                raise ValueError("(One of) the parameters have been garbage collected")
            return parameters
        parameters = list(parameters)
        if len(parameters) != len(self.shadow_params):
            raise ValueError("Number of parameters is different from that of the shadow parameters")
        return parameters

    def update(self, parameters=None):
        parameters = self._get_parameters(parameters)
        self.num_updates += 1
        with torch.no_grad():
            for mine, its in zip(self.shadow_params, parameters):  # noqa: B905
                mine.sub_((1 - self.decay) * (mine - its))

    def copy_to(self, network):
        network = copy.deepcopy(network)
        with torch.no_grad():
            for mine, its in zip(self.shadow_params, network.parameters(), strict=True):
                its.copy_(mine)
        return network


class Own(Plain):
    """Trains the network alone, and moves its average after every batch."""

    def __init__(self):
        super().__init__()
        self.stem = nn.BatchNorm1d(FEATURES, affine=False)
        torch.manual_seed(0)
        self.make()

    def configure_optimizers(self):
        return torch.optim.AdamW(self.network.parameters(), lr=1e-2)

    def on_train_batch_end(self, *_):
        self.move()


class WithEMA(Own):
    include = False

    def make(self):
        self.ema = EMA(self.network, include_online_model=self.include)

    def move(self):
        self.ema.update()

    def average(self):
        return self.ema.ema_model


class Wrapped(Own):
    """timm's."""

    def make(self):
        self.ema = ModelEmaV3(self.network, decay=0.8)
        self.ema.train()

    def move(self):
        self.ema.update(self.network)

    def average(self):
        return self.ema.module


class Averaging(Own):
    """torch's."""

    def make(self):
        self.ema = AveragedModel(self.network, multi_avg_fn=get_ema_multi_avg_fn(0.8))

    def move(self):
        self.ema.update_parameters(self.network)

    def average(self):
        return self.ema.module


class TorchEMA(Own):
    given = True

    def make(self):
        self.ema = ExponentialMovingAverage(self.network.parameters())

    def move(self):
        self.ema.update(self.network.parameters() if self.given else None)

    def average(self):
        return self.ema.copy_to(self.network)


class TorchEMAByReference(TorchEMA):
    given = False


class Zipped(Own):
    """By hand, of the state dict."""

    def make(self):
        self.shadow = {name: t.clone() for name, t in self.network.state_dict().items()}

    def move(self):
        for mine, its in zip(self.shadow.values(), self.network.state_dict().values()):  # noqa: B905
            mine.lerp_(its, 0.2)

    def average(self):
        network = copy.deepcopy(self.network)
        network.load_state_dict(self.shadow)
        return network


class Momentum(Own):
    """The two networks of BYOL and DINO: a teacher, with zip."""

    def make(self):
        self.teacher = copy.deepcopy(self.network).requires_grad_(False)

    def training_step(self, batch, batch_idx):
        loss = super().training_step(batch, batch_idx)
        return loss + F.mse_loss(self.network(batch[0]), self.teacher(batch[0].flip(0)))

    def move(self):
        own = self.network.parameters()
        torch._foreach_lerp_([p.data for p in self.teacher.parameters()], list(own), 0.2)

    def average(self):
        return self.teacher


def grown(module, folder):
    """Train with a growth in width and depth; the outputs of the average before and after it."""
    x = torch.randn(5, FEATURES, generator=torch.Generator().manual_seed(1))

    class Look(Callback):
        def __init__(self):
            self.seen = []

        def on_train_batch_start(self, trainer, pl_module, *_):
            with torch.no_grad():
                self.seen.append(pl_module.average().eval()(x))

    before, after = Look(), Look()
    callback = GrowthCallback([Growth(MIDDLE, step=8)], method="lemon")
    trainer(folder, before, callback, after).fit(module, train_loader(shuffle=False), val_loader())
    return before.seen, after.seen


@pytest.mark.parametrize(
    "kind", [WithEMA, Wrapped, Averaging, TorchEMA, TorchEMAByReference, Zipped, Momentum]
)
def test_an_average_grows_by_the_operator_and_goes_on(tmp_path, kind):
    module = kind()
    before, after = grown(module, tmp_path)
    torch.testing.assert_close(after[8], before[8], rtol=1e-5, atol=1e-5)
    assert not torch.equal(after[8], after[9])
    for _ in range(60):  # it is moved towards the network, in every layer
        module.move()
    for name, weight in module.average().named_parameters():
        wanted = module.network.get_parameter(name)
        torch.testing.assert_close(weight.data, wanted.data, rtol=1e-3, atol=1e-3, msg=name)


class Diffusion:
    """A helper that is no module, and calls the network that it was given."""

    def __init__(self, network):
        self.network = network

    def loss(self, x):
        return self.network(x).square().mean()


HOLDERS = {
    "object": (Diffusion, lambda helper: helper.network),
    "list": (lambda network: [network], lambda helper: helper[0]),
    "dict": (lambda network: {"net": network}, lambda helper: helper["net"]),
    "method": (lambda network: [network.forward], lambda helper: helper[0].__self__),
    "reference": (lambda network: [weakref.ref(network)], lambda helper: helper[0]()),
    "attribute": (weakref.ref, lambda helper: helper()),
}


@pytest.mark.parametrize("holder", HOLDERS)
def test_a_helper_that_holds_the_network_calls_the_large_one_or_is_refused(tmp_path, holder):
    make, find = HOLDERS[holder]

    class Helped(Plain):
        def __init__(self):
            super().__init__()
            self.helper = make(self.network)

        def loss(self, batch):
            logits = find(self.helper)(self.stem(batch[0]))
            return logits, F.cross_entropy(logits, batch[1])

    module = Helped()
    callback = GrowthCallback([Growth(MIDDLE, step=8)], method="lemon")
    run = trainer(tmp_path, callback)
    loaders = train_loader(shuffle=False), val_loader()
    if holder == "method":
        with pytest.raises(ValueError, match="holds a part of 'network' in its attribute 'helper'"):
            run.fit(module, *loaders)
        return
    run.fit(module, *loaders)
    assert find(module.helper) is module.network and module.network.embed.out_features == 16
    assert all(parameter in run.optimizers[0].state for parameter in module.parameters())


class Saved(TorchEMAByReference):
    """Saves the average with the run, as torch-ema does: a list, checked against its references."""

    def on_save_checkpoint(self, checkpoint):
        checkpoint["ema"] = self.ema.shadow_params

    def on_load_checkpoint(self, checkpoint):
        self.ema.shadow_params = checkpoint["ema"]
        assert [p.shape for p in checkpoint["ema"]] == [p().shape for p in self.ema._params_refs]


@pytest.mark.parametrize("kind", [WithEMA, Saved])
def test_a_resumed_run_moves_the_average_of_every_layer(tmp_path, kind):
    whole, resumed = kind(), kind()
    for module, path in ((whole, None), (resumed, tmp_path / "epoch=1.ckpt")):
        saves = ModelCheckpoint(tmp_path if path is None else None, "{epoch}", save_top_k=-1)
        callback = GrowthCallback([Growth(MIDDLE, step=8)], method="lemon")
        run = trainer(tmp_path, callback, saves, enable_checkpointing=True)
        run.fit(module, train_loader(shuffle=False), val_loader(), ckpt_path=path)
    if kind is WithEMA:
        assert resumed.ema.parameter_names == {n for n, _ in resumed.network.named_parameters()}
    torch.testing.assert_close(
        resumed.average().state_dict(), whole.average().state_dict(), rtol=0, atol=0
    )
