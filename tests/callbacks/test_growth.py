import csv
import functools
import json
import re

import pytest
import torch
from lightning.pytorch import Callback, LightningModule
from lightning.pytorch.callbacks import EarlyStopping, LambdaCallback, ModelCheckpoint, Timer
from lightning.pytorch.loggers import CSVLogger
from torch.nn import functional as F

import lightning_ligo.callbacks.grower
from lightning_ligo import GrowthCallback
from lightning_ligo.networks.description import describe
from lightning_ligo.schedule import Growth
from runs import (
    ITEMS,
    LARGE,
    MIDDLE,
    Described,
    Fourier,
    Plain,
    fit,
    items,
    plain,
    train_loader,
    trainer,
    val_loader,
)


def growth(**settings):
    return GrowthCallback([Growth(LARGE, step=8)], **{"method": "ligo", "steps": 3, **settings})


def report(folder, number=0):
    return json.loads((folder / "growth_report.json").read_text())["growths"][number]


class Losses(Callback):
    """The validation loss of the network as it stands before a growth and after it."""

    def __init__(self):
        self.values: dict[int, float] = {}

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        pl_module.eval()
        x, y = items(1).tensors
        with torch.no_grad():
            value = F.cross_entropy(pl_module.network(pl_module.stem(x)), y)
        pl_module.train()
        self.values[trainer.global_step] = float(value)


def test_an_override_grows_what_tracing_cannot_follow_in_every_growth(tmp_path):
    sizes = [describe(Fourier, width=width, depth=depth) for width, depth in ((8, 1), (16, 2))]
    growths = [Growth(sizes[1], step=4), Growth({"init_args": {"width": 32}}, step=9)]

    def run(**override):
        losses = Losses(), Losses()
        callback = GrowthCallback(growths, method="lemon", **override)
        fit(Described(sizes[0]), tmp_path, losses[0], callback, losses[1])
        return [[seen.values[step] for seen in losses] for step in (4, 9)]

    with pytest.raises(ValueError, match=r'(?s)growth 1 .*no rule.*"embed.weight": "hidden 6"'):
        run()
    for before, after in run(override={"embed.weight": "stream 6", "norm.weight": "stream"}):
        assert after == pytest.approx(before, rel=1e-5)
    assert report(tmp_path, 1)["axes"]["stream"] == [16, 32]


def test_the_metric_is_measured_before_after_and_at_the_end(tmp_path):
    before, after, module = Losses(), Losses(), plain()
    run = fit(module, tmp_path, before, growth(), after)
    metric = report(tmp_path)["metric"]
    assert metric == {
        "name": "val_loss",
        "before": pytest.approx(before.values[8], rel=1e-5),
        "after": pytest.approx(after.values[8], rel=1e-5),
        "final": pytest.approx(float(run.callback_metrics["val_loss"]), rel=1e-6),
    }


def test_the_metric_of_a_growth_ends_where_the_next_growth_begins(tmp_path):
    growths = [Growth(MIDDLE, step=5), Growth(LARGE, step=12)]
    fit(plain(), tmp_path, GrowthCallback(growths, method="ligo", steps=2))
    first, second = report(tmp_path, 0), report(tmp_path, 1)
    assert first["metric"]["final"] == second["metric"]["before"]
    assert first["flops"]["large"] == second["flops"]["small"]


@pytest.mark.parametrize(
    ("callbacks", "settings", "name"),
    [
        ([], {}, "val_loss"),
        ([ModelCheckpoint(), EarlyStopping("val_accuracy", mode="max")], {}, "val_accuracy"),
        ([EarlyStopping("train_loss_epoch")], {}, "val_loss"),
        ([EarlyStopping("val_loss")], {"monitor": "val_accuracy"}, "val_accuracy"),
    ],
)
def test_the_metric_is_the_one_that_is_monitored(tmp_path, callbacks, settings, name):
    options = {"enable_checkpointing": True} if len(callbacks) > 1 else {}
    fit(plain(), tmp_path, growth(**settings), *callbacks, **options)
    assert report(tmp_path)["metric"]["name"] == name


def test_a_run_without_validation_has_no_metric(tmp_path):
    class Blind(Plain):
        validation_step = LightningModule.validation_step

    run = trainer(tmp_path, growth())
    run.fit(Blind(), train_loader())
    assert report(tmp_path)["metric"] == {
        "name": None, "before": None, "after": None, "final": None,
    }  # fmt: skip


def test_validations_that_just_were_are_not_repeated(tmp_path):
    class Counts(Plain):
        validations = 0

        def on_validation_epoch_end(self):
            Counts.validations += 1

    fit(Counts(), tmp_path, GrowthCallback([Growth(LARGE, epoch=1)], method="ligo", steps=2))
    assert Counts.validations == 3 + 1  # at the end of every epoch, and right after the growth


def test_a_growth_without_steps_is_the_start_of_the_method(tmp_path):
    first, second = plain(), plain()
    fit(first, tmp_path, growth(steps=0), precision="64-true")
    assert report(tmp_path)["operator"]["steps"] == 0
    assert report(tmp_path)["operator"]["learning_rate"] is None
    fixed = GrowthCallback([Growth(LARGE, step=8)], method="stack+fresh")
    fit(second, tmp_path, fixed, precision="64-true")
    for one, other in zip(first.parameters(), second.parameters(), strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize(
    ("moments", "carried", "words"),
    [
        ("map", 18, "mapped for 18 of 30 parameters, fresh for the others"),
        ("keep-old-zero-new", 12, "kept for old entries, zero for new ones, for 12 of 30 param"),
        ("reset", 1, "kept for 1 of 30 parameters, fresh for the others"),
    ],
)
def test_what_became_of_the_optimizer_state_is_told(tmp_path, caplog, moments, carried, words):
    with caplog.at_level("INFO"):
        fit(plain(), tmp_path, growth(method="ligo-low-rank", optimizer_state=moments), epochs=2)
    assert f"; optimizer state: {words}" in caplog.text
    assert report(tmp_path)["moments"] == {
        "policy": moments, "carried": carried, "parameters": 30,
    }  # fmt: skip


def test_the_progress_bar_shows_step_loss_and_time_left(tmp_path, capsys, monkeypatch):
    at_once = functools.partial(lightning_ligo.callbacks.grower.tqdm, mininterval=0)
    monkeypatch.setattr(lightning_ligo.callbacks.grower, "tqdm", at_once)
    fit(plain(), tmp_path, growth(), enable_progress_bar=True)
    shown = capsys.readouterr().err
    assert re.search(r"Growing: +\d+%.*\| \d/3 \[\d+:\d+<[\d:?]+.*loss=\d", shown)
    fit(plain(), tmp_path, growth())
    assert "Growing" not in capsys.readouterr().err


def test_the_loss_of_the_operator_is_the_training_step_on_the_runs_own_batches(tmp_path):
    class Sees(Plain):
        def __init__(self):
            super().__init__()
            self.rows = set()

        def training_step(self, batch, batch_idx):
            if self.network.head.in_features == 24 and self.global_step == 8:
                seen.append((batch_idx, [tuple(row) for row in batch[0].tolist()]))
            return super().training_step(batch, batch_idx)

    seen: list = []
    fit(Sees(), tmp_path, growth(steps=7))
    rows = {tuple(row) for row in items().tensors[0].tolist()}
    aside, own = seen[:7], seen[7:]
    assert [step for step, _ in aside] == list(range(7)) and len(own) == 1
    assert {row for _, batch in aside[:6] for row in batch} == rows and len(rows) == ITEMS


def test_a_batch_index_and_dicts_are_as_lightning_allows(tmp_path):
    class Short(Plain):
        def training_step(self, batch):
            return {"loss": super().training_step(batch, 0), "more": 1}

        def validation_step(self, batch):
            super().validation_step(batch, 0)

    module = Short()
    fit(module, tmp_path, growth())
    assert module.network.head.in_features == 24


def test_what_is_logged_is_logged_at_the_steps_of_the_run(tmp_path):
    logs = []
    for folder, callbacks in (("without", []), ("with", [growth()])):
        logger = CSVLogger(tmp_path / folder, name=None, version="")
        fit(plain(), tmp_path / folder, *callbacks, logger=logger, log_every_n_steps=1)
        with open(tmp_path / folder / "metrics.csv") as file:
            lines = list(csv.DictReader(file))
        growths = [line.pop("growth/parameters", "") for line in lines]
        logs.append([line for line, count in zip(lines, growths, strict=True) if not count])
    assert [line["step"] for line in logs[0]] == [line["step"] for line in logs[1]]
    until = [line for line in logs[0] if int(line["step"]) < 8]
    assert until == logs[1][: len(until)] != []
    assert (tmp_path / "with" / "growth_report.json").exists()


def test_validation_within_epochs_and_a_time_limit_do_not_trouble_it(tmp_path):
    module, steps = plain(), []
    watch = LambdaCallback(on_validation_end=lambda run, lit: steps.append(run.global_step))
    often = {"val_check_interval": 2, "limit_val_batches": 1}
    run = trainer(tmp_path, growth(), watch, max_time={"hours": 1}, **often)
    run.fit(module, train_loader(), val_loader())
    assert module.network.head.in_features == 24 and run.global_step == 18
    assert steps == list(range(2, 19, 2))
    (timer,) = (each for each in run.callbacks if isinstance(each, Timer))
    assert 3600 - timer.time_elapsed() == timer.time_remaining() > 0


def test_no_growth_no_report(tmp_path):
    class Stop(Callback):
        def on_train_batch_end(self, trainer, *_):
            trainer.should_stop = trainer.global_step == 4

    fit(plain(), tmp_path, growth(), Stop())
    assert not list(tmp_path.iterdir())
