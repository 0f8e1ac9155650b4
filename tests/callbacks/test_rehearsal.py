"""The next growth is rehearsed before the first step: what crashes is refused, all is undone."""

import copy

import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import EMAWeightAveraging, ModelCheckpoint
from torch.utils.checkpoint import checkpoint
from torch.utils.data import DataLoader, TensorDataset
from torch.utils.flop_counter import FlopCounterMode

from lightning_ligo import Growth, GrowthCallback
from lightning_ligo.callbacks.rehearsal import Rehearsal
from runs import LARGE, MIDDLE, Net, Plain, fit, plain, trainer

WIDTH = 8  # of the small network
NEVER = [Growth(LARGE, file="grow.now")]


def growing(method="lemon", **settings):
    growths = settings.pop("growths", [Growth(LARGE, step=8)])
    return GrowthCallback(growths, method=method, **settings)


class Drawn(Callback):
    """What every step ended with: weights, optimizer state, rates, random numbers, counts."""

    def __init__(self):
        self.seen = []

    def on_train_batch_end(self, trainer, pl_module, *_):
        (optimizer,) = trainer.optimizers
        self.seen.append(
            (
                copy.deepcopy(pl_module.state_dict()),
                copy.deepcopy(optimizer.state_dict()),
                torch.get_rng_state(),
                trainer.global_step,
                trainer.fit_loop.epoch_loop.batch_progress.current.ready,
                dict(trainer.callback_metrics),
                pl_module.calls,
            )
        )


def assert_equal(one, other):
    torch.testing.assert_close(one, other, rtol=0, atol=0)


@pytest.mark.parametrize("method", ["lemon", "ligo"])
@pytest.mark.parametrize("averaging", [False, True])
def test_a_run_is_the_same_with_a_rehearsal_and_without(tmp_path, method, averaging):
    runs = []
    for rehearse in (True, False):
        watch, folder = Drawn(), tmp_path / str(rehearse)
        steps = {"steps": 2} if method == "ligo" else {}
        others = [EMAWeightAveraging(decay=0.5)] if averaging else []
        saves = ModelCheckpoint(folder, "{step}", save_top_k=-1)
        module = plain()
        fit(
            module, folder, growing(method, rehearse=rehearse, **steps), watch, saves, *others,
            num_sanity_val_steps=2, enable_checkpointing=True,
        )  # fmt: skip
        files = sorted(path.name for path in folder.iterdir() if path.suffix == ".ckpt")
        runs.append((watch.seen, module.outputs, files, module.seen))
    (seen, outputs, *rest), (others, other_outputs, *other_rest) = runs
    assert len(seen) == len(others) == 18
    for one, other in zip(seen, others, strict=True):
        assert_equal(one, other)
    assert_equal(outputs, other_outputs)
    assert rest == other_rest


def test_what_a_module_counts_and_logs_is_as_before(tmp_path):
    class Stop(Callback):
        def on_before_zero_grad(self, trainer, pl_module, optimizer):
            assert pl_module.calls == 1 and len(pl_module.outputs) == 1
            assert trainer.global_step == 0 and not optimizer.state
            assert pl_module.accuracy.update_count == 1
            seen.append(pl_module.network.head.in_features)

    seen: list[int] = []
    with pytest.warns(UserWarning, match="ended before growth 1 of 1"):
        fit(plain(), tmp_path, growing(growths=NEVER), Stop(), epochs=1, limit_train_batches=1)
    assert seen == [WIDTH]


class Broken(Plain):
    """Has code that only works at the first width."""

    def on_before_optimizer_step(self, optimizer):
        assert self.network.head.weight.grad.shape[1] == WIDTH, "a mask of eight"


class BrokenValidation(Plain):
    def validation_step(self, batch, batch_idx):
        super().validation_step(batch, batch_idx)
        torch.zeros(WIDTH) + self.network.norm.weight


class BrokenSave(Plain):
    def on_save_checkpoint(self, checkpoint):
        checkpoint["first"] = self.network.head.weight[0].detach().view(WIDTH)


class BrokenLoad(Plain):
    def on_load_checkpoint(self, checkpoint):
        checkpoint["state_dict"]["network.head.weight"].view(3, WIDTH)


class BrokenStep(Plain):
    def training_step(self, batch, batch_idx):
        gains = self.network.norm.weight * torch.ones(WIDTH)
        return super().training_step(batch, batch_idx) + gains.mean()


@pytest.mark.parametrize(
    ("kind", "stage", "line"),
    [
        (Broken, "a training step", 'assert self.network.head.weight.grad.shape[1] == WIDTH'),
        (BrokenValidation, "a validation batch", "torch.zeros(WIDTH) + self.network.norm.weight"),
        (BrokenSave, "a checkpoint", 'checkpoint["first"] = self.network.head.weight[0]'),
        (BrokenLoad, "a checkpoint", 'checkpoint["state_dict"]["network.head.weight"].view'),
        (BrokenStep, "a training step", "gains = self.network.norm.weight * torch.ones(WIDTH)"),
    ],
)  # fmt: skip
def test_what_crashes_is_refused_with_the_line_of_the_user(tmp_path, kind, stage, line):
    module, steps = kind(), []

    class Steps(Callback):
        def on_before_zero_grad(self, *_):
            steps.append(1)

    with pytest.raises(ValueError, match=f"and {stage} of the large network.* fails") as error:
        fit(module, tmp_path, growing(), Steps())
    assert line in str(error.value) and "test_rehearsal.py, line" in str(error.value)
    assert "GrowthCallback(rehearse=False)" in str(error.value)
    assert module.network.head.in_features == WIDTH and not steps


def test_it_is_switched_off_by_name(tmp_path):
    with pytest.raises(AssertionError, match="a mask of eight"):
        fit(Broken(), tmp_path, growing(rehearse=False))


def test_a_step_that_fails_by_itself_is_no_fault_of_the_growth(tmp_path, caplog):
    class Fails(Plain):
        def on_before_optimizer_step(self, optimizer):
            raise RuntimeError("always")

    caplog.set_level("INFO")
    with pytest.raises(RuntimeError, match=r"^always$"):
        fit(Fails(), tmp_path, growing())
    assert "did not come to its end: a training step of the small network fails" in caplog.text


def test_a_lack_of_memory_is_a_line_in_the_log(tmp_path, caplog, monkeypatch):
    def missing(*_):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")

    monkeypatch.setattr("lightning_ligo.callbacks.rehearsal.training_iteration", missing)
    caplog.set_level("INFO")
    module = plain()
    fit(module, tmp_path, growing())
    assert "did not come to its end: there was not enough memory" in caplog.text
    assert module.network.head.in_features == 24


@pytest.mark.parametrize(
    ("method", "settings"), [("lemon", {}), ("ligo", {"steps": 50}), ("ligo-paper", {"steps": 50})]
)
def test_it_costs_at_most_three_steps_of_the_large_network(tmp_path, monkeypatch, method, settings):
    counted = []

    def count(self, *args, run=Rehearsal.run):
        with FlopCounterMode(display=False) as counter:
            run(self, *args)
        counted.append(counter.get_total_flops())

    monkeypatch.setattr(Rehearsal, "run", count)
    x, y = torch.randn(256, 6), torch.randint(3, (256,))
    loader = DataLoader(TensorDataset(x, y), 256)
    run = trainer(tmp_path, growing(method, growths=NEVER, **settings), epochs=1)
    with pytest.warns(UserWarning, match="ended before growth 1 of 1"):
        run.fit(plain(), loader, loader)
    with FlopCounterMode(display=False) as counter:
        torch.nn.functional.cross_entropy(Net(24, 4)(torch.nn.BatchNorm1d(6)(x)), y).backward()
    assert 0 < counted[0] <= 3 * counter.get_total_flops()


@pytest.mark.parametrize("again", [True, False])
def test_reentrant_checkpointing_is_refused_for_a_method_that_learns(tmp_path, again):
    large = {"class_path": "test_rehearsal.Reentrant", "init_args": {"width": 16, "again": again}}
    module = plain()
    module.network = Reentrant(again=again)
    callback = growing("ligo", growths=[Growth(large, step=8)], steps=2)
    if again:
        with pytest.raises(ValueError, match="use use_reentrant=False, as torch recommends"):
            fit(module, tmp_path, callback)
        assert module.calls == 0
    else:
        fit(module, tmp_path, callback)
        assert module.network.head.in_features == 16


class Reentrant(Net):
    def __init__(self, width: int = 8, again: bool = True) -> None:
        super().__init__(width)
        self.again = again

    def forward(self, x):
        x = self.embed(x)
        if self.training:
            x = checkpoint(self.blocks, x, use_reentrant=self.again)
        else:
            x = self.blocks(x)
        return self.head(self.norm(x))


def test_only_the_next_growth_is_rehearsed(tmp_path, monkeypatch):
    sizes = []

    def note(self, trainer, *args, run=Rehearsal.run):
        sizes.append(trainer.lightning_module.network.head.in_features)
        run(self, trainer, *args)

    monkeypatch.setattr(Rehearsal, "run", note)
    growths = [Growth(MIDDLE, step=5), Growth(LARGE, step=11)]
    fit(plain(), tmp_path, growing(growths=growths))
    assert sizes == [WIDTH]
