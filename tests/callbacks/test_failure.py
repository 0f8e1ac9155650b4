"""A growth that fails leaves the run as it was, which stops or goes on with the small network."""

import copy
import json
import math
import re

import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import ModelCheckpoint
from torch.utils._pytree import tree_flatten
from torch.utils.data import DataLoader

import lightning_ligo.callbacks.grower
import lightning_ligo.trainer.swap
from lightning_ligo import GrowthCallback
from lightning_ligo.callbacks.failure import GrowthFailedError
from lightning_ligo.schedule import Growth
from runs import (
    BATCH,
    LARGE,
    SMALL,
    Described,
    EpochOrder,
    Plain,
    items,
    net,
    plain,
    trainer,
    val_loader,
)

pytestmark = [
    pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`:UserWarning"),
    pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists:UserWarning"),
]

NO_MEMORY = "[enforce fail at alloc_cpu.cpp:1] DefaultCPUAllocator: can't allocate memory: 9 bytes"


def out_of_memory(*_, **__):
    raise RuntimeError(NO_MEMORY)


class NotANumber(Plain):
    """Its loss is not a number in the large network, where an operator is learned."""

    def training_step(self, batch, batch_idx):
        loss = super().training_step(batch, batch_idx)
        return loss * math.nan if self.network.head.in_features > 8 else loss


class Worse(Plain):
    """Validation finds infinity in the large network."""

    def validation_step(self, batch, batch_idx):
        self.log("val_loss", math.inf if self.network.head.in_features > 8 else 1.0)


GROWING, SURGERY = lightning_ligo.callbacks.grower, lightning_ligo.trainer.swap
FAILURES = {
    "building": (Plain, (GROWING, "built"), "can't allocate memory: 9 bytes"),
    "learning": (Plain, (GROWING, "fit"), "can't allocate memory: 9 bytes"),
    "baking": (Plain, (GROWING.Operator, "bake"), "not enough memory .* use smaller batches"),
    "moments": (Plain, (GROWING.ByName, "states"), "can't allocate memory: 9 bytes"),
    "swapping": (Plain, (SURGERY, "check_every_parameter_once"), "can't allocate memory: 9"),
    "loss": (NotANumber, None, "the loss is nan at step 1 of 3 of learning the 'ligo' operator"),
    "metric": (Worse, None, "val_loss is inf for the grown network, and was 1 for the small one"),
}


@pytest.fixture
def breaking(monkeypatch):
    """Has a function fail that growths call, while they grow."""

    def breaking(place, error=out_of_memory):
        if place is None:
            return
        (owner, name), begin = place, GrowthCallback._grow

        def begin_and_break(self, *args):
            with monkeypatch.context() as patch:
                patch.setattr(owner, name, error)
                begin(self, *args)

        monkeypatch.setattr(GrowthCallback, "_grow", begin_and_break)

    return breaking


class Watch(Callback):
    """What the run is made of at the growth: before it or after it, by its place, or on failure."""

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if trainer.global_step == 8:
            self.seen = self.everything(trainer, pl_module)

    def on_exception(self, trainer, pl_module, exception):
        self.left = self.everything(trainer, pl_module)

    def everything(self, trainer, pl_module):
        (optimizer,) = trainer.optimizers
        objects = [pl_module.network, *pl_module.parameters(), *optimizer.state]
        objects += [each for group in optimizer.param_groups for each in group["params"]]
        held = [pl_module.state_dict(), optimizer.state_dict(), dict(pl_module.hparams)]
        return copy.deepcopy(held), [id(each) for each in objects]


def assert_same(mine, other):
    leaves, structure = tree_flatten(mine)
    others, others_structure = tree_flatten(other)
    assert structure == others_structure
    for leaf, its in zip(leaves, others, strict=True):
        assert torch.equal(leaf, its) if isinstance(leaf, torch.Tensor) else leaf == its


def fit(module, folder, *callbacks, checkpoint=None, **options):
    run = trainer(folder, *callbacks, **options)
    loader = DataLoader(items(), BATCH, sampler=EpochOrder())
    run.fit(module, loader, val_loader(), ckpt_path=checkpoint, weights_only=True)
    return run


def growing(*growths, **settings):
    return GrowthCallback(
        list(growths) or [Growth(LARGE, step=8)], **{"method": "ligo", "steps": 3, **settings}
    )


def made(kind):
    torch.manual_seed(0)
    return kind()


def size_of(path):
    held = torch.load(path, weights_only=True)
    return held["state_dict"]["network.head.weight"].shape[1], held["lightning_ligo"]["size"]


def reported(folder):
    return json.loads((folder / "growth_report.json").read_text())


@pytest.fixture(scope="module")
def without(tmp_path_factory):
    """The weights of the same run without a growth."""
    module = plain()
    fit(module, tmp_path_factory.mktemp("without"))
    return module.state_dict()


@pytest.mark.parametrize("name", FAILURES)
def test_a_run_stops_with_all_as_it_was(tmp_path, breaking, name):
    kind, place, message = FAILURES[name]
    module, watch = made(kind), Watch()
    breaking(place)
    with pytest.raises(GrowthFailedError, match=rf"growth 1 \(at step 8, .*{message}") as error:
        fit(module, tmp_path, watch, growing())
    assert "resume the run from its last checkpoint" in str(error.value)
    assert_same(watch.left, watch.seen)
    assert not (tmp_path / "growth_report.json").exists()


@pytest.mark.parametrize("name", FAILURES)
def test_a_run_goes_on_as_if_it_had_not_tried_to_grow(tmp_path, breaking, without, name):
    kind, place, message = FAILURES[name]
    module, before, after = made(kind), Watch(), Watch()
    breaking(place)
    with pytest.warns(UserWarning, match=rf"Growth 1 of 1 failed at step 8: .*{message}"):
        fit(module, tmp_path, before, growing(on_failure="continue"), after)
    assert_same(after.seen, before.seen)
    assert_same(module.state_dict(), without)
    assert reported(tmp_path)["growths"] == []
    assert re.search(message, reported(tmp_path)["failed"]["why"])


def test_a_growth_that_failed_is_grown_when_its_run_is_resumed(tmp_path, breaking, monkeypatch):
    saves = ModelCheckpoint(tmp_path, "{step}", save_on_exception=True, save_top_k=-1)
    breaking(FAILURES["swapping"][1])
    with pytest.raises(GrowthFailedError):
        fit(plain(), tmp_path, growing(), saves, enable_checkpointing=True)
    assert {path.name for path in tmp_path.glob("*.ckpt")} == {"step=6.ckpt", "step=8.ckpt"}
    assert {size_of(path) for path in tmp_path.glob("*.ckpt")} == {(8, 0)}
    monkeypatch.undo()
    whole, resumed = plain(), plain(1)
    fit(whole, tmp_path / "whole", growing())
    fit(resumed, tmp_path / "again", growing(), checkpoint=tmp_path / "step=6.ckpt")
    assert_same(resumed.state_dict(), whole.state_dict())


def test_an_interrupt_in_the_middle_of_a_swap_leaves_the_small_network(tmp_path, breaking):
    def interrupt(*_):
        raise KeyboardInterrupt

    saves = ModelCheckpoint(tmp_path, "{step}", save_on_exception=True, save_top_k=-1)
    breaking((SURGERY, "check_every_parameter_once"), interrupt)
    module, watch = Described(SMALL), Watch()
    with pytest.raises(SystemExit):
        fit(module, tmp_path, watch, growing(), saves, enable_checkpointing=True)
    assert_same(watch.left, watch.seen)
    assert module.hparams.network == SMALL
    assert size_of(tmp_path / "step=8.ckpt") == (8, 0)


def test_the_growths_that_were_to_come_are_left_out(tmp_path):
    class Third(Plain):
        def training_step(self, batch, batch_idx):
            loss = super().training_step(batch, batch_idx)
            return loss * math.nan if self.network.head.in_features > 16 else loss

    growths = [Growth(net(width, 2), step=3 * width // 8) for width in (16, 24, 32)]
    with pytest.warns(UserWarning, match="Growth 2 of 3 failed at step 9"):
        module = made(Third)
        fit(module, tmp_path, growing(*growths, on_failure="continue"))
    assert module.network.head.in_features == 16
    report = reported(tmp_path)
    assert [growth["step"] for growth in report["growths"]] == [6]
    assert {key: report["failed"][key] for key in ("growth", "step", "reason", "method")} == {
        "growth": 2, "step": 9, "reason": "step 9", "method": "ligo",
    }  # fmt: skip
    text = (tmp_path / "growth_report.md").read_text()
    assert "Growth 2 by ligo, due at step 9, failed at step 9: the loss is nan" in text


def test_a_resumed_run_does_not_try_again_what_its_checkpoint_has_given_up(tmp_path):
    saves = ModelCheckpoint(tmp_path, "{epoch}", save_top_k=-1)
    whole, resumed = made(NotANumber), made(NotANumber)
    with pytest.warns(UserWarning, match="failed at step 8"):
        callback = growing(on_failure="continue")
        fit(whole, tmp_path, callback, saves, enable_checkpointing=True)
    fit(resumed, tmp_path / "again", growing(), checkpoint=tmp_path / "epoch=1.ckpt")
    assert_same(resumed.state_dict(), whole.state_dict())
    assert reported(tmp_path / "again")["failed"] == reported(tmp_path)["failed"]


def test_steps_of_learning_that_came_to_nothing_were_spent(tmp_path):
    class Late(Plain):
        def training_step(self, batch, batch_idx):
            loss = super().training_step(batch, batch_idx)
            return loss * math.nan if self.network.head.in_features > 8 and batch_idx else loss

    callbacks = [growing(on_failure="continue"), growing(steps=1)]
    with pytest.warns(UserWarning, match="the loss is nan at step 2 of 3"):
        fit(made(Late), tmp_path, callbacks[0])
    fit(plain(), tmp_path, callbacks[1])
    assert callbacks[0].accounting.operator == callbacks[1].accounting.operator > 0


def test_a_metric_that_was_not_finite_before_says_nothing_of_the_growth(tmp_path):
    class Blind(Plain):
        def validation_step(self, batch, batch_idx):
            self.log("val_loss", math.nan)

    module = made(Blind)
    fit(module, tmp_path, growing())
    assert module.network.head.in_features == 24


def test_a_growth_for_which_memory_is_missing_on_a_device(tmp_path, breaking):
    def missing(*_, **__):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")

    breaking((GROWING, "fit"), missing)
    with pytest.raises(GrowthFailedError, match=r"memory .CUDA out of memory. Tried"):
        fit(plain(), tmp_path, growing())


def test_an_error_of_another_kind_is_no_failure_to_go_on_after(tmp_path, breaking):
    def wrong(*_, **__):
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    breaking((GROWING, "fit"), wrong)
    watch = Watch()
    with pytest.raises(RuntimeError, match="mat1 and mat2 shapes") as error:
        fit(plain(), tmp_path, watch, growing(on_failure="continue"))
    assert type(error.value) is RuntimeError
    assert_same(watch.left, watch.seen)
