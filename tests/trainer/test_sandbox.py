"""A run in which steps were run aside is the run without them, to the last bit."""

import copy
import random
from collections import Counter, defaultdict, deque
from pathlib import Path

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from jsonargparse import ArgumentParser
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import (
    LambdaCallback,
    ModelCheckpoint,
    RichProgressBar,
    TQDMProgressBar,
)
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.utilities.combined_loader import CombinedLoader
from torch import nn
from torch.utils.data import DataLoader, IterableDataset, RandomSampler
from torchmetrics import MeanMetric, MetricCollection
from torchmetrics.classification import MulticlassAccuracy, MulticlassF1Score

from lightning_ligo.trainer.lightning import training_output
from lightning_ligo.trainer.sandbox import sandboxed
from lightning_ligo.trainer.steps import evaluate, own_batches, read_again, training_loss
from runs import BATCH, ITEMS, Plain, items, train_loader, trainer, val_loader

AT, STEPS = 8, 10


class Aside(Callback):
    """Trains and validates aside, before the batch at `AT`."""

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if trainer.global_step != AT:
            return
        before = snapshot(trainer, pl_module)
        with sandboxed(trainer, pl_module, 3):
            batches = own_batches(trainer, pl_module)
            self.losses = [
                training_loss(training_output(trainer, next(batches), step)).item()
                for step in range(STEPS)
            ]
            self.metrics = evaluate(trainer)
        assert snapshot(trainer, pl_module) == before


def snapshot(trainer, pl_module):
    """Some of what must be as it was, as comparable values."""
    loop = trainer.fit_loop
    return repr((
        loop.epoch_loop.state_dict(),
        loop.epoch_loop.val_loop._seen_batches_per_dataloader,
        trainer.state,
        [id(callback) for callback in trainer.callbacks],
        [id(logger) for logger in trainer.loggers],
        dict(trainer.callback_metrics),
        dict(trainer.progress_bar_metrics),
        dict(trainer.logged_metrics),
        dict(loop.epoch_loop._results),
        pl_module._current_fx_name,
        trainer._last_val_time,
        torch.get_rng_state().tolist(),
        random.getstate(),
        np.random.get_state()[1].tolist(),
        [module.training for module in pl_module.modules()],
        [weight.requires_grad for weight in pl_module.parameters()],
    ))  # fmt: skip


class Meter:
    """A counter of the kind that training scripts have."""

    def __init__(self):
        self.sum, self.history = 0.0, []

    def add(self, value):
        self.sum += value
        self.history.append(value)


class Busy(Plain):
    """Draws, counts and keeps whatever a user's module may."""

    def __init__(self):
        super().__init__()
        self.dropout = nn.Dropout(0.2)
        self.teacher = copy.deepcopy(self.network).requires_grad_(False)
        self.metrics = MetricCollection([
            MulticlassAccuracy(3, average="macro"), MulticlassF1Score(3, average="macro"),
        ])  # fmt: skip
        self.loose = [MeanMetric()]
        self.meter = Meter()
        self.running = torch.zeros(())
        self.generator = torch.Generator().manual_seed(5)
        self.python, self.numpy = random.Random(0), np.random.default_rng(0)
        self.counts, self.lists = Counter(), defaultdict(list)
        self.last, self.pairs, self.array = deque(maxlen=3), (["a"], {"b": 1}), np.zeros(2)
        self.register_buffer("queue", torch.zeros(4))
        self.pointer = 0

    def training_step(self, batch, batch_idx):
        x, y = batch
        noise = torch.randn(x.shape, generator=self.generator) + torch.randn(x.shape)
        draw = self.python.random() + random.random() + self.numpy.random() + np.random.rand()
        loss = super().training_step((x + 0.1 * noise + 0.01 * self.dropout(x), y), batch_idx)
        loss = loss * (1 + 0.01 * draw)
        with torch.no_grad():
            for slow, fast in zip(
                self.teacher.parameters(), self.network.parameters(), strict=True
            ):
                slow.data = slow.data * 0.9 + fast.data * 0.1
            logits = self.teacher(x)
        self.metrics.update(logits, y)
        self.log_dict(self.metrics, on_epoch=True)
        self.loose[0].update(loss.detach())
        self.meter.add(loss.item())
        self.running += loss.detach()
        self.counts[int(y[0])] += 1
        self.lists["loss"].append(loss.item())
        self.last.append(loss.item())
        self.pairs[0].append("c")
        self.pairs[1]["b"] += 1
        self.array += 1
        self.queue[self.pointer] = loss.detach()
        self.pointer = (self.pointer + 1) % 4
        self.best = min(getattr(self, "best", 1e9), loss.item())
        self.logger.log_metrics({"mine": loss.item()}, step=self.calls)
        return {"loss": loss, "y": y}

    def state(self):
        kept = (
            "calls", "outputs", "seen", "batches", "running", "counts", "lists", "last", "pairs",
            "array", "pointer", "best",
        )  # fmt: skip
        return repr((
            [getattr(self, name) for name in kept],
            vars(self.meter),
            self.generator.get_state().tolist(),
            self.python.getstate(),
            self.numpy.bit_generator.state,
            [metric.compute() for metric in (self.loose[0],)],
            {name: value.tolist() for name, value in self.state_dict().items()},
            torch.get_rng_state().tolist(),
        ))  # fmt: skip


def run(folder, *callbacks, module=Busy, loader=train_loader, **options):
    pl.seed_everything(0, verbose=False)
    logger = CSVLogger(folder, name=None, version="", flush_logs_every_n_steps=1)
    model = module()
    fit = trainer(folder, *callbacks, logger=logger, log_every_n_steps=1, **options)
    fit.fit(model, loader(), val_loader())
    return model, fit, (folder / "metrics.csv").read_text()


def test_whatever_a_module_keeps_draws_and_logs_is_as_without_steps_aside(tmp_path):
    aside = Aside()
    first, first_run, first_log = run(tmp_path / "plain")
    second, second_run, second_log = run(tmp_path / "aside", aside)
    assert second.state() == first.state()
    assert second_log == first_log
    assert repr(second_run.callback_metrics) == repr(first_run.callback_metrics)
    assert second_run.global_step == first_run.global_step == 18
    assert len(set(aside.losses)) == STEPS
    assert set(aside.metrics) == {"val_loss", "val_accuracy"}


class Stream(IterableDataset):
    def __iter__(self):
        order = torch.randperm(ITEMS)
        return (items()[index] for index in order)


def with_generator():
    return train_loader(generator=torch.Generator().manual_seed(7))


def with_replacement():
    sampler = RandomSampler(
        items(), replacement=True, num_samples=ITEMS, generator=torch.Generator().manual_seed(3)
    )
    return train_loader(shuffle=False, sampler=sampler)


def with_workers():
    return train_loader(num_workers=1, persistent_workers=True)


def of_a_stream():
    return DataLoader(Stream(), BATCH)


def in_pairs():
    return CombinedLoader([train_loader(), DataLoader(items(2), BATCH)], "min_size")


class Paired(Plain):
    def training_step(self, batch, batch_idx):
        return sum(super(Paired, self).training_step(part, batch_idx) for part in batch)


@pytest.mark.parametrize(
    "loader", [with_generator, with_replacement, with_workers, of_a_stream, in_pairs]
)
def test_the_order_of_the_data_is_as_without_steps_aside(tmp_path, loader):
    module = Paired if loader is in_pairs else Plain
    first, _, _ = run(tmp_path / "plain", module=module, loader=loader)
    second, _, _ = run(tmp_path / "aside", Aside(), module=module, loader=loader)
    assert second.batches == first.batches and len(first.batches) >= 18
    assert torch.equal(second.network.head.weight, first.network.head.weight)


def test_steps_aside_depend_on_the_seed_alone(tmp_path):
    def loader():
        return train_loader(generator=torch.Generator().manual_seed(torch.initial_seed() % 100))

    class Draw(Callback):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            torch.rand(1), random.random(), np.random.rand()
            next(iter(trainer.train_dataloader.sampler))

    class Read(Callback):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            if trainer.global_step == AT:
                with sandboxed(trainer, pl_module, 3):
                    batches = own_batches(trainer, pl_module)
                    self.batches = [next(batches)[0].tolist() for _ in range(STEPS)]
                    self.drawn = torch.rand(3).tolist(), random.random(), np.random.rand()

    first, second = Read(), Read()
    run(tmp_path / "first", first, module=Plain, loader=loader)
    run(tmp_path / "second", Draw(), second, module=Plain, loader=loader)
    assert (first.batches, first.drawn) == (second.batches, second.drawn)


def test_own_batches_go_on_over_the_data_in_the_limits_of_the_run(tmp_path):
    class Read(Callback):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            if trainer.global_step == 0:
                with sandboxed(trainer, pl_module, 0):
                    batches = own_batches(trainer, pl_module)
                    self.seen = [next(batches)[0][:, 0].tolist() for _ in range(6)]

    read = Read()
    run(tmp_path, read, module=Plain, loader=lambda: train_loader(shuffle=False),
        limit_train_batches=2)  # fmt: skip
    assert read.seen == read.seen[:2] * 3 and read.seen[0] != read.seen[1]


def test_everything_is_put_back_when_a_step_fails(tmp_path):
    class Fail(Callback):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            if trainer.global_step == AT:
                before = snapshot(trainer, pl_module), pl_module.state()
                network = pl_module.network
                with pytest.raises(RuntimeError, match="on purpose"):
                    self.fail(trainer, pl_module, batch)
                assert (snapshot(trainer, pl_module), pl_module.state()) == before
                assert pl_module.network is network

        def fail(self, trainer, pl_module, batch):
            with sandboxed(trainer, pl_module, 0):
                training_output(trainer, batch, 0)
                evaluate(trainer)
                trainer.validating = True
                pl_module.network.requires_grad_(False)
                pl_module.network = nn.Identity()
                pl_module._current_fx_name = None
                raise RuntimeError("on purpose")

    run(tmp_path, Fail())


@pytest.mark.parametrize("bar", [TQDMProgressBar, RichProgressBar])
def test_progress_bars_and_checkpoints_see_nothing(tmp_path, bar):
    class Watch(Callback):
        def __init__(self):
            self.validations = 0

        def on_validation_end(self, trainer, pl_module):
            self.validations += 1

    watch, best = Watch(), ModelCheckpoint(tmp_path, monitor="val_loss", save_top_k=-1)
    callbacks = Aside(), watch, best, bar()
    run(tmp_path, *callbacks, enable_progress_bar=True, enable_checkpointing=True)
    assert watch.validations == 3 and len(best.best_k_models) == 3


def test_a_callback_of_functions_sees_nothing(tmp_path):
    """Its hooks are attributes of its own."""
    steps = []
    watch = LambdaCallback(on_validation_end=lambda trainer, _: steps.append(trainer.global_step))
    run(tmp_path, Aside(), watch)
    assert steps == [6, 12, 18]


def test_a_command_line_finds_a_callback_by_its_name_as_ever(tmp_path):
    class Asks(Callback):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            with sandboxed(trainer, pl_module, 0):
                parser = ArgumentParser(exit_on_error=False)
                parser.add_argument("--callback", type=Callback)
                found.append(parser.parse_args(["--callback=ModelCheckpoint"]).callback.class_path)
                names.add(type(trainer.checkpoint_callback).__name__)

    found, names = [], set()
    run(tmp_path, Asks(), ModelCheckpoint(tmp_path), enable_checkpointing=True, max_steps=2)
    assert set(found) == {"lightning.pytorch.callbacks.ModelCheckpoint"}
    assert names == {"ModelCheckpoint"}


def test_a_user_reads_the_trainer_as_ever(tmp_path):
    class Reads(Plain):
        def training_step(self, batch, batch_idx):
            assert self.trainer.checkpoint_callback.monitor == "val_loss"
            assert Path(self.trainer.log_dir) == tmp_path
            assert Path(self.logger.log_dir) == tmp_path
            self.logger.experiment.log_metrics({"x": 1.0}, 0)
            assert self.trainer.global_step == self.global_step
            return super().training_step(batch, batch_idx)

        def on_validation_epoch_end(self):
            assert "val_loss" in self.trainer.callback_metrics

    best = ModelCheckpoint(tmp_path, monitor="val_loss")
    run(tmp_path, Aside(), best, module=Reads, enable_checkpointing=True)


def test_a_training_step_without_a_loss_is_refused():
    assert training_loss({"loss": torch.ones(())}) == 1
    for output in (None, {"losses": torch.ones(())}, 0.5):
        with pytest.raises(
            ValueError, match="without a loss, and an operator is learned on the loss"
        ):
            training_loss(output)


def test_data_that_can_be_read_once_is_refused():
    assert read_again([1, 2]) == [1, 2]
    with pytest.raises(ValueError, match=r"an iterator \(generator\) that can be read only once"):
        read_again(x for x in [1, 2])
