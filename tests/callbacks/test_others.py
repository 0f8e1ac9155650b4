"""Callbacks that need nothing of a growth go on after it."""

import math
from types import SimpleNamespace

import lightning.pytorch.callbacks.timer
import pytest
import torch
from lightning.pytorch import LightningDataModule
from lightning.pytorch.callbacks import (
    BatchSizeFinder,
    DeviceStatsMonitor,
    GradientAccumulationScheduler,
    LambdaCallback,
    LearningRateFinder,
    LearningRateMonitor,
    ModelCheckpoint,
    ModelSummary,
    RichModelSummary,
    RichProgressBar,
    ThroughputMonitor,
    Timer,
    TQDMProgressBar,
)
from lightning.pytorch.loggers.logger import Logger
from torch.utils.data import DataLoader

from lightning_ligo import Growth, GrowthCallback
from runs import (
    BATCH,
    CLASSES,
    LARGE,
    EpochOrder,
    Net,
    Plain,
    fit,
    items,
    plain,
    trainer,
    val_loader,
)


class Lines(Logger):
    """Every name that was logged, and the steps and values of it."""

    name = version = "lines"

    def __init__(self):
        super().__init__()
        self.values = {}

    def log_metrics(self, metrics, step=None):
        for name, value in metrics.items():
            self.values.setdefault(name, {})[step] = value

    def log_hyperparams(self, *args, **kwargs):
        pass


class Measured(Plain):
    """Says what a batch costs, at the size that the network has."""

    @property
    def flops_per_batch(self):
        return 6 * BATCH * sum(p.numel() for p in self.network.parameters())


def growth(**when):
    return GrowthCallback([Growth(LARGE, **(when or {"step": 8}))], method="lemon")


@pytest.mark.parametrize(
    ("bar", "summary"), [(TQDMProgressBar, ModelSummary), (RichProgressBar, RichModelSummary)]
)
def test_they_go_on_together(tmp_path, capsys, caplog, bar, summary):
    caplog.set_level("INFO")
    torch.manual_seed(0)
    module, logger, seen = Measured(), Lines(), []
    rates, progress = LearningRateMonitor(), bar()
    throughput = ThroughputMonitor(lambda batch: len(batch[0]), window_size=5)
    watch = LambdaCallback(
        on_train_batch_end=lambda run, lit, *_: seen.append(
            (run.global_step, lit.network.head.in_features, progress.train_progress_bar.total)
        )
    )
    accumulation = GradientAccumulationScheduler({0: 1, 2: 2})
    saves = ModelCheckpoint(tmp_path, "{step}", monitor="val_loss", save_top_k=2)
    run = fit(
        module, tmp_path, growth(step=13), rates, throughput, watch, accumulation, saves,
        DeviceStatsMonitor(), progress, summary(), logger=logger, log_every_n_steps=1, epochs=4,
        enable_progress_bar=True, enable_model_summary=True, enable_checkpointing=True,
    )  # fmt: skip
    # six steps in each of two epochs, then three
    assert run.global_step == 18 and len(seen) == 24
    assert [width for step, width, _ in seen if step == 13] == [8, 24]  # one batch, then the growth
    assert {total for *_, total in seen} == {6}
    for rate in ("lr-AdamW/pg1", "lr-AdamW/pg2"):
        assert logger.values[rate] == {step: pytest.approx(1e-2 * 0.95**step) for step in range(18)}
    flops = [module.flops_per_batch, 6 * BATCH * sum(p.numel() for p in Net().parameters())]
    assert set(throughput._throughputs["train"]._flops) == {flops[0]} and flops[0] > flops[1]
    assert max(logger.values["train/batches"].values()) == 24
    assert max(logger.values["train/device/flops_per_sec"].values()) > 0
    assert max(logger.values["DeviceStatsMonitor.on_train_batch_start/cpu_percent"]) == 17
    assert len(saves.best_k_models) == 2
    whole = sum(p.numel() for p in module.parameters())
    shown = caplog.text if summary is ModelSummary else capsys.readouterr().out
    assert math.isclose(whole, 1e4, rel_tol=1e-3) and "10.0 K" in shown


def test_a_timer_ends_a_run_that_has_grown(tmp_path):
    module, timer = plain(), Timer({"hours": 1})
    expire = LambdaCallback(
        on_train_batch_end=lambda run, *_: setattr(timer, "_offset", 3600 * (run.global_step == 10))
    )
    run = fit(module, tmp_path, growth(), expire, timer)
    assert run.global_step == 10 and module.network.head.in_features == 24


@pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`:UserWarning")
def test_a_timer_goes_on_over_a_growth_and_a_resume(tmp_path, monkeypatch):
    seconds = [100]  # one more at every batch
    monkeypatch.setattr(
        lightning.pytorch.callbacks.timer, "time", SimpleNamespace(monotonic=lambda: seconds[0])
    )
    tick = LambdaCallback(on_train_batch_start=lambda *_: seconds.append(seconds.pop() + 1))

    def timed(folder, duration, ckpt_path=None):
        timer = Timer({"seconds": duration})
        saves = ModelCheckpoint(folder, "{epoch}", save_top_k=-1)
        run = fit(
            plain(), folder, growth(), tick, timer, saves, enable_checkpointing=True,
            ckpt_path=ckpt_path,
        )  # fmt: skip
        return timer.time_elapsed(), run.global_step

    assert timed(tmp_path, 60) == (18, 18)
    for epoch in (0, 1):
        path = tmp_path / f"epoch={epoch}.ckpt"
        assert timed(tmp_path / f"from {epoch}", 15, path) == (15, 15)


@pytest.mark.parametrize("better", [8, 24])
def test_the_best_of_several_sizes_is_tested_from_either(tmp_path, better):
    class Widths(Plain):
        def validation_step(self, batch, batch_idx):
            self.log("val_loss", abs(self.network.head.in_features - better))

    module, loader = Widths(), DataLoader(items(2), BATCH)
    saves = ModelCheckpoint(tmp_path, "{epoch}", monitor="val_loss", save_top_k=3)
    run = fit(module, tmp_path, growth(), saves, enable_checkpointing=True)
    assert len(saves.best_k_models) == 3
    results = []
    for either in (module, Widths()):  # the large one, and a small one
        results.append(run.test(either, loader, ckpt_path="best", weights_only=True))
        assert either.network.head.weight.shape == (CLASSES, better)
    assert results[0] == results[1]


class Tuned(Plain):
    lr = 1e-3

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), lr=self.lr)


def test_a_learning_rate_is_found_before_a_growth(tmp_path):
    module = Tuned()
    fit(module, tmp_path, LearningRateFinder(num_training_steps=20), growth(), seed=1)
    assert module.lr != 1e-3 and module.network.head.in_features == 24


class Batches(LightningDataModule):
    def __init__(self, batch_size=6):
        super().__init__()
        self.batch_size = batch_size

    def train_dataloader(self):
        return DataLoader(items(), self.batch_size, sampler=EpochOrder())

    def val_dataloader(self):
        return val_loader()


def fit_batches(folder, *callbacks, data=None, ckpt_path=None):
    torch.manual_seed(0)
    module, saves = Tuned(), ModelCheckpoint(folder, "{epoch}", save_top_k=-1)
    run = trainer(folder, *callbacks, saves, epochs=2, enable_checkpointing=True)
    run.fit(module, datamodule=data or Batches(), ckpt_path=ckpt_path, weights_only=True)
    return module


def assert_equal(module, other):
    for name, weight in other.state_dict().items():
        assert torch.equal(module.state_dict()[name], weight), name


def batch_sizes():
    return BatchSizeFinder(init_val=4, max_trials=2, steps_per_trial=1)


@pytest.mark.parametrize("callbacks", [(growth, batch_sizes), (batch_sizes, growth)])
def test_a_batch_size_is_found_before_a_growth(tmp_path, callbacks):
    data = Batches()
    found = fit_batches(tmp_path / "found", *(make() for make in callbacks), data=data)
    assert data.batch_size == 8
    given = fit_batches(tmp_path / "given", growth(), data=Batches(8))
    assert_equal(found, given)


@pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`:UserWarning")
@pytest.mark.parametrize(
    "search", [batch_sizes, lambda: LearningRateFinder(num_training_steps=20)], ids=["size", "rate"]
)
def test_a_search_at_the_start_of_a_run_that_is_resumed_is_refused(tmp_path, search):
    starts = []
    watch = LambdaCallback(on_train_start=lambda run, lit: starts.append(run.global_step))
    fit_batches(tmp_path, growth())
    before, after = tmp_path / "epoch=0.ckpt", tmp_path / "epoch=1.ckpt"
    for path, callbacks in (before, [search(), growth()]), (after, [growth(), search()]):
        with pytest.raises(ValueError, match="searches at the start of fit, after which Lightning"):
            fit_batches(tmp_path / "again", watch, *callbacks, ckpt_path=path)
    assert starts == []
    fit_batches(tmp_path / "alone", watch, search(), ckpt_path=before)
    assert starts == [0]  # and not 8: Lightning has forgotten it; if it has not, refuse no more


@pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`:UserWarning")
def test_a_search_at_another_time_is_none_of_them(tmp_path):
    class Later(LearningRateFinder):
        def on_fit_start(self, trainer, pl_module):
            pass

    whole = fit_batches(tmp_path, growth())
    path = tmp_path / "epoch=0.ckpt"
    assert_equal(fit_batches(tmp_path / "again", growth(), Later(), ckpt_path=path), whole)
