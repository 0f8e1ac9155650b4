"""Whatever holds the network, its parameters or tensors of their shapes grows with it."""

import copy
import functools

import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.data import DataLoader

from lightning_ligo import Growth, GrowthCallback
from runs import (
    BATCH,
    LARGE,
    MIDDLE,
    EpochOrder,
    Net,
    Plain,
    fit,
    items,
    plain,
    trainer,
    val_loader,
)

pytestmark = pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`:UserWarning")
X = items(3).tensors[0]


def growing(to=MIDDLE, method="lemon", **settings):
    return GrowthCallback([Growth(to, step=8)], method=method, **settings)


class Outputs(Callback):
    """What a network computes on fixed inputs when the batch of the growth begins."""

    def __init__(self, find):
        self.find = find

    @torch.no_grad()
    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if trainer.global_step == 8:
            self.value = self.find(pl_module)(X).clone()


class OutputsAfter(Outputs):
    """Stands behind the growth."""


def assert_kept(tmp_path, module, find, *others, **options):
    """The network that `find` returns computes the same before and after the growth."""
    before, after = Outputs(find), OutputsAfter(find)
    fit(module, tmp_path, before, growing(), after, *others, **options)
    torch.testing.assert_close(after.value, before.value, rtol=0, atol=1e-5)
    assert find(module).head.in_features == module.network.head.in_features == 16


class Teacher(Plain):
    """Has a copy that is moved towards the network after every batch."""

    def __init__(self):
        super().__init__()
        self.teacher = copy.deepcopy(self.network).requires_grad_(False)

    def training_step(self, batch, batch_idx):
        with torch.no_grad():
            aim = self.teacher(self.stem(batch[0]))
        loss = super().training_step(batch, batch_idx)
        return loss + 0.1 * (self.network(self.stem(batch[0])) - aim).square().mean()

    @torch.no_grad()
    def on_train_batch_end(self, outputs, batch, batch_idx):
        for slow, fast in zip(self.teacher.parameters(), self.network.parameters(), strict=True):
            slow.lerp_(fast, 0.1)


class ListedTeacher(Teacher):
    """Hides its copy from the module in a list."""

    def __init__(self):
        super().__init__()
        self.hidden = [self._modules.pop("teacher")]

    teacher = property(lambda self: self.hidden[0])


class TrainedTeacher(Teacher):
    """Gives the frozen copy to the optimizer too."""

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), lr=1e-2)


class Averaged(Teacher):
    """Has torch's AveragedModel of the network, the head of which is its copy."""

    def __init__(self):
        super().__init__()
        average = AveragedModel(self.network, multi_avg_fn=get_ema_multi_avg_fn(0.9))
        self.teacher = average.requires_grad_(False)

    def on_train_batch_end(self, outputs, batch, batch_idx):
        self.teacher.update_parameters(self.network)


@pytest.mark.parametrize("kind", [Teacher, TrainedTeacher])
def test_a_teacher_grows_by_the_operator_of_the_network(tmp_path, kind):
    torch.manual_seed(0)
    module = kind()
    assert_kept(tmp_path, module, lambda m: m.teacher)
    assert not any(p.requires_grad for p in module.teacher.parameters())
    assert all(p.requires_grad for p in module.network.parameters())
    expected = {name.replace("network", "teacher") for name, _ in module.named_parameters()}
    assert expected >= {n for n, _ in module.named_parameters() if n.startswith("teacher")}


def test_a_teacher_in_a_list_grows(tmp_path):
    torch.manual_seed(0)
    assert_kept(tmp_path, ListedTeacher(), lambda m: m.hidden[0])


def test_an_averaged_model_of_torch_grows(tmp_path):
    torch.manual_seed(0)
    module = Averaged()
    assert_kept(tmp_path, module, lambda m: m.teacher.module)
    assert int(module.teacher.n_averaged) == 18


def test_another_network_of_the_same_shapes_stays(tmp_path):
    class Distilled(Teacher):
        def __init__(self):
            super().__init__()
            self.teacher = Net().requires_grad_(False)

        def on_train_batch_end(self, *_):
            pass

    torch.manual_seed(0)
    module = Distilled()
    before = copy.deepcopy(module.teacher.state_dict())
    fit(module, tmp_path, growing())
    torch.testing.assert_close(module.teacher.state_dict(), before, rtol=0, atol=0)
    assert module.network.head.in_features == 16


def test_a_twin_that_is_trained_stays(tmp_path):
    class Twins(Plain):
        def __init__(self):
            super().__init__()
            self.twin = copy.deepcopy(self.network)

        def training_step(self, batch, batch_idx):
            loss = super().training_step(batch, batch_idx)
            return loss + nn.functional.cross_entropy(self.twin(batch[0]), batch[1])

    torch.manual_seed(0)
    module = Twins()
    fit(module, tmp_path, growing())
    assert (module.network.head.in_features, module.twin.head.in_features) == (16, 8)


class Shadow(Callback):
    """An average by the names of parameters, made at the first batch."""

    shadow = None

    @torch.no_grad()
    def on_train_batch_end(self, trainer, pl_module, *_):
        named = dict(pl_module.named_parameters())
        if self.shadow is None:
            self.shadow = {name: p.clone() for name, p in named.items()}
        assert self.shadow.keys() == named.keys()
        for name, p in named.items():
            self.shadow[name].lerp_(p, 0.1)


class Copying(Callback):
    """An average of the whole module, made when training starts."""

    def on_train_start(self, trainer, pl_module):
        self.copies = [copy.deepcopy(pl_module)]

    @torch.no_grad()
    def on_before_zero_grad(self, trainer, pl_module, optimizer):
        (average,) = self.copies
        for slow, fast in zip(average.parameters(), pl_module.parameters(), strict=True):
            slow.lerp_(fast, 0.1)


def shadowed(shadow):
    """Return the network with the weights of a dict by name."""
    width = shadow["network.head.weight"].shape[1]
    network = Net(width, 1 if width == 8 else 2)
    weights = {name: shadow[f"network.{name}"] for name in network.state_dict()}
    return lambda x: torch.func.functional_call(network, weights, x)


@pytest.mark.parametrize("first", [True, False], ids=["before", "behind"])
def test_an_average_by_name_grows_wherever_it_was_made(tmp_path, first):
    shadow = Shadow()
    before, after = (kind(lambda _: shadowed(shadow.shadow)) for kind in (Outputs, OutputsAfter))
    others = [before, growing(), after]
    fit(plain(), tmp_path, *([shadow, *others] if first else [*others, shadow]))
    torch.testing.assert_close(after.value, before.value, rtol=0, atol=1e-5)


def test_a_callbacks_copy_of_the_module_grows(tmp_path):
    copying = Copying()
    module = plain()
    assert_kept(tmp_path, module, lambda _: copying.copies[0].network, copying)


class Anchored(Plain):
    """Elastic weight consolidation: a penalty for moving away from anchors, by importance."""

    def __init__(self, kind=dict):
        super().__init__()
        named = dict(self.network.named_parameters())
        self.anchors = {name: p.detach().clone() for name, p in named.items()}
        self.fisher = {name: torch.rand_like(p) for name, p in named.items()}
        self.start = [p.detach().clone() for p in self.network.parameters()]

    def penalty(self):
        named = self.network.named_parameters()
        moved = {name: p - self.anchors[name] for name, p in named}
        pairs = zip(self.start, self.network.parameters(), strict=True)
        return (
            sum((self.fisher[name] * move.square()).sum() for name, move in moved.items()),
            sum((start - p).abs().sum() for start, p in pairs),
        )

    def training_step(self, batch, batch_idx):
        return super().training_step(batch, batch_idx) + 0.01 * sum(self.penalty())


def test_anchors_by_name_and_in_order_grow_as_the_weights(tmp_path):
    class Seen(Callback):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            if trainer.global_step == 8:
                network = Net(pl_module.network.head.in_features, len(pl_module.network.blocks))
                listed = dict(zip(network.state_dict(), pl_module.start, strict=True))
                for weights in (pl_module.anchors, listed):
                    network.load_state_dict(weights)
                    with torch.no_grad():
                        outputs.append(network(X))

    class SeenAfter(Seen):
        pass

    outputs: list[torch.Tensor] = []
    torch.manual_seed(0)
    module = Anchored()
    fit(module, tmp_path, Seen(), growing(), SeenAfter())
    assert len(outputs) == 4
    torch.testing.assert_close(outputs[2:], outputs[:2], rtol=0, atol=1e-5)
    shapes = {name: p.shape for name, p in module.network.named_parameters()}
    assert {name: f.shape for name, f in module.fisher.items()} == shapes
    assert all((f >= 0).all() for f in module.fisher.values())


def test_masks_by_name_are_refused(tmp_path):
    class Masked(Plain):
        def __init__(self):
            super().__init__()
            named = self.network.named_parameters()
            self.masks = {name: (torch.rand_like(p) > 0.5).float() for name, p in named}

    module = Masked()
    with pytest.raises(ValueError, match=r"Masked keeps zeros and ones .* attribute 'masks'"):
        fit(module, tmp_path, growing())
    assert module.calls == 0


def test_lists_and_dicts_of_parameters_hold_those_of_the_large_network(tmp_path):
    class Held(Plain):
        def on_fit_start(self):
            self.listed = list(self.network.parameters())
            self.named = dict(self.network.named_parameters())
            self.whole = [self.network]
            self.pair = (1, self.network)

        def training_step(self, batch, batch_idx):
            held = sum(p.square().sum() for p in (*self.listed, *self.named.values()))
            return super().training_step(batch, batch_idx) + 1e-3 * held

    module = Held()
    fit(module, tmp_path, growing(LARGE))
    for held in (module.listed, list(module.named.values())):
        assert [id(p) for p in held] == [id(p) for p in module.network.parameters()]
    assert module.whole[0] is module.pair[1] is module.network


def test_what_cannot_be_replaced_is_refused(tmp_path):
    class Partial(Callback):
        def setup(self, trainer, pl_module, stage):
            self.call = functools.partial(print, pl_module.network)

    module = plain()
    with pytest.raises(ValueError, match=r"Partial holds a part of 'network' in its attribute 'ca"):
        fit(module, tmp_path, growing(), Partial())
    assert module.calls == 0


class Lookahead(torch.optim.Optimizer):
    """Holds another optimizer, and moves slow weights towards its weights every third step."""

    def __init__(self, inner, keeps):
        self.inner, self.keeps, self.count = inner, keeps, 0
        super().__init__(inner.param_groups, {})
        self.param_groups, self.state = inner.param_groups, inner.state
        self.slow_weights = [
            [p.detach().clone() for p in group["params"]] for group in self.param_groups
        ]

    def zero_grad(self, set_to_none=True):
        self.inner.zero_grad(set_to_none)

    @torch.no_grad()
    def step(self, closure=None):
        loss = self.inner.step(closure)
        self.count += 1
        for group, slows in zip(self.param_groups, self.slow_weights, strict=True):
            for fast, listed in zip(group["params"], slows, strict=True):
                slow = listed
                if self.keeps == "state":
                    slow = self.state[fast].setdefault("slow", fast.clone())
                if self.count % 3 == 0:
                    slow.lerp_(fast, 0.5)
                    fast.copy_(slow)
        return loss


@pytest.mark.parametrize("keeps", ["lists", "state"])
def test_slow_weights_of_an_optimizer_around_another_grow(tmp_path, keeps):
    class Slow(Plain):
        def configure_optimizers(self):
            weights = list(self.parameters())
            groups = [{"params": weights[:5]}, {"params": weights[5:], "weight_decay": 0.0}]
            return Lookahead(torch.optim.AdamW(groups, lr=1e-2), keeps)

    module = Slow()
    run = fit(module, tmp_path, growing())
    (optimizer,) = run.optimizers
    assert optimizer.inner.param_groups is optimizer.param_groups
    held = [p for group in optimizer.param_groups for p in group["params"]]
    assert set(held) == set(module.parameters())
    slow = [slow for slows in optimizer.slow_weights for slow in slows]
    if keeps == "state":
        slow = [optimizer.state[p]["slow"] for p in held]
    # 18 steps: the last one has moved the slow weights onto the fast ones, in step with them
    torch.testing.assert_close(slow, [p.detach() for p in held])
    assert all("exp_avg" in optimizer.state[p] for p in held)


def test_hooks_move_to_the_modules_and_parameters_of_the_same_name(tmp_path):
    class Hooked(Plain):
        def __init__(self):
            super().__init__()
            self.widths = []
            self.handle = self.network.norm.register_forward_hook(self.keep)
            self.network.norm.register_forward_pre_hook(self.keep_before, with_kwargs=True)
            self.network.blocks[0].fc1.register_forward_hook(self.keep)
            self.network.head.weight.register_hook(lambda g: g * torch.tensor([0.0, 1, 1])[:, None])
            self.network.head.bias.register_post_accumulate_grad_hook(self.fill)

        def keep(self, module, args, output):
            if module.training:
                self.widths.append(output.shape[-1])

        def keep_before(self, module, args, kwargs):
            assert not kwargs

        def fill(self, parameter):
            parameter.grad.zero_()

    class Rows(Callback):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            if trainer.global_step == 8:
                head = pl_module.network.head
                rows.append((head.weight[0].detach().clone(), head.bias.detach().clone()))

    rows = []
    module = Hooked()
    torch.manual_seed(0)
    run = trainer(tmp_path, growing(LARGE), Rows(), epochs=3)
    module.configure_optimizers = lambda: torch.optim.SGD(module.parameters(), lr=1e-2)
    run.fit(module, DataLoader(items(), BATCH), val_loader())
    assert torch.equal(module.network.head.weight[0], rows[0][0])
    assert torch.equal(module.network.head.bias, rows[0][1])
    # the first block, of one, had the hook: all four have it after the growth
    assert module.widths[:16] == [16, 8] * 8 and module.widths[16:21] == [48] * 4 + [24]
    module.handle.remove()
    assert not module.network.norm._forward_hooks


def test_a_hook_on_some_layers_only_stays_on_these(tmp_path):
    class Some(Plain):
        def __init__(self):
            super().__init__()
            self.network = Net(8, 2)
            self.count = 0
            self.network.blocks[1].register_forward_hook(self.keep)

        def keep(self, module, *_):
            self.count += module.training

    module = Some()
    run = trainer(tmp_path, growing(LARGE), epochs=3)
    run.fit(module, DataLoader(items(), BATCH), val_loader())
    assert module.count == 18
    assert [len(block._forward_hooks) for block in module.network.blocks] == [0, 1, 0, 0]


class Recurrent(nn.Module):
    def __init__(self, width: int = 8, depth: int = 2) -> None:
        super().__init__()
        self.rnn, self.head = nn.GRU(3, width, depth, batch_first=True), nn.Linear(width, 3)

    def forward(self, x, state=None):
        out, state = self.rnn(x.unflatten(1, (2, 3)), state)
        return self.head(out[:, -1]), state


class Truncated(Plain):
    """Keeps the state of the network between batches, and what does not depend on its width."""

    def __init__(self):
        super().__init__()
        self.network = Recurrent()
        self.states = {"last": None}
        self.last_loss = None

    def training_step(self, batch, batch_idx):
        if self.last_loss is not None and self.states["last"] is None:
            self.dropped = self.calls
        logits, state = self.network(batch[0], self.states["last"])
        self.states["last"] = state.detach()
        self.calls += 1
        self.last_loss = nn.functional.cross_entropy(logits, batch[1])
        return self.last_loss

    def validation_step(self, batch, batch_idx):
        self.log("val_loss", nn.functional.cross_entropy(self.network(batch[0])[0], batch[1]))


@pytest.mark.filterwarnings("ignore:method 'lemon' promises .* at rnn:UserWarning")  # deeper
@pytest.mark.parametrize("sizes", [{"width": 16}, {"depth": 3}], ids=str)
def test_a_state_between_batches_is_dropped_and_told(tmp_path, caplog, sizes):
    caplog.set_level("INFO")
    module = Truncated()
    large = {"class_path": "test_followers.Recurrent", "init_args": sizes}
    fit(module, tmp_path, growing(large))
    assert module.dropped == 8  # and only then: what it holds of other shapes is kept
    assert module.states["last"].shape[::2] == (sizes.get("depth", 2), sizes.get("width", 8))
    assert "Dropped states of Truncated, which the steps keep between batches" in caplog.text


def resumable(folder, module, *others, **options):
    saves = ModelCheckpoint(folder, "{epoch}", save_top_k=-1)
    run = trainer(folder, growing(), saves, *others, epochs=3, enable_checkpointing=True)
    loader = DataLoader(items(), BATCH, sampler=EpochOrder())
    run.fit(module, loader, val_loader(), **options)
    return module


@pytest.mark.parametrize("epoch", [0, 1])
def test_a_run_with_a_teacher_resumes(tmp_path, epoch):
    torch.manual_seed(0)
    whole = resumable(tmp_path, Teacher())
    path = tmp_path / f"epoch={epoch}.ckpt"
    resumed = resumable(tmp_path / "again", Teacher(), ckpt_path=path, weights_only=True)
    for name, weight in whole.state_dict().items():
        torch.testing.assert_close(resumed.state_dict()[name], weight, rtol=0, atol=0)
    assert not any(p.requires_grad for p in resumed.teacher.parameters())


def test_hooks_are_there_after_a_resume(tmp_path):
    class Counts(Plain):
        def __init__(self):
            super().__init__()
            self.count = 0
            self.network.norm.register_forward_hook(self.add)

        def add(self, *_):
            self.count += self.trainer.training

    resumable(tmp_path, Counts())
    again = resumable(tmp_path / "again", Counts(), ckpt_path=tmp_path / "epoch=1.ckpt")
    assert again.count == 6
