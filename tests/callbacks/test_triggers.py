"""Growths that the run decides: at which step, for which reason, and what is refused."""

import json
import logging
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import EarlyStopping
from lightning.pytorch.loggers import CSVLogger

from lightning_ligo import GrowthCallback
from lightning_ligo.methods.catalog import METHODS
from lightning_ligo.schedule import Growth, Plateau, Slope
from runs import BATCH, CLASSES, FEATURES, ITEMS, LARGE, MIDDLE, Plain, plain
from runs import fit as train

EVERY = 2
"""Steps from one validation to the next in a scripted run; it has nine."""


class Scripted(Plain):
    """Its validations log these values, one after the other."""

    def __init__(self, *values):
        super().__init__()
        self.values = list(values)

    def validation_step(self, batch, batch_idx):
        super().validation_step(batch, batch_idx)
        self.log("script", self.values.pop(0) if len(self.values) > 1 else self.values[0])


class Touch(Callback):
    """Makes a file after some batches."""

    def __init__(self, path, *batches):
        self.path, self.batches, self.done = Path(path), batches, 0

    def on_train_batch_end(self, *_):
        self.done += 1
        if self.done in self.batches:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self.path.touch()


def scripted(*values):
    torch.manual_seed(0)
    return Scripted(*values)


def fit(module, folder, growths, *callbacks, method="lemon", **options):
    growing = GrowthCallback(growths, method=method)
    if isinstance(module, Scripted):
        options = {"val_check_interval": EVERY, **options}
    return train(module, folder, growing, *callbacks, **options)


def grew(folder, key="step"):
    report = json.loads((folder / "growth_report.json").read_text())
    return [growth[key] for growth in report["growths"]]


WORSE = Plateau("script", patience=2)
BEST_AT_THE_THIRD = (5.0, 4.0, 3.0, 3.5, 3.0, 2.0)


def test_a_run_grows_at_the_step_after_a_plateau_and_says_why(tmp_path, caplog):
    why = "script has not been below 3 for 2 of 2 validations"
    with caplog.at_level(logging.INFO):
        fit(scripted(*BEST_AT_THE_THIRD), tmp_path, [Growth(LARGE, plateau=WORSE)])
    assert grew(tmp_path) == [5 * EVERY] and grew(tmp_path, "reason") == [why]
    assert caplog.text.count(f"A growth is decided at step {5 * EVERY}: {why}") == 1
    assert f"| reason | {why} |" in (tmp_path / "growth_report.md").read_text()


def test_a_run_grows_where_the_loss_falls_too_slowly_for_its_flops(tmp_path):
    losses = [1 / validations for validations in (1, 2, 3, 4)]  # a slope of -1, then of 0
    growth = Growth(LARGE, slope=Slope("script", -0.5, window=1))
    fit(scripted(*losses, losses[-1]), tmp_path, [growth])
    assert grew(tmp_path) == [5 * EVERY]
    assert grew(tmp_path, "reason")[0].startswith("script falls with a slope of ")


WEIGHTS = FEATURES * 8 + 2 * 8 * 16 + 8 * CLASSES
STEP, VALIDATION = 3 * 2 * WEIGHTS * BATCH, 2 * WEIGHTS * ITEMS
"""FLOPs of the small network: two for a weight and an item, and twice as much backward."""


@pytest.mark.parametrize(("more", "step"), [(0, 8), (1, 9)])
def test_a_run_grows_once_it_has_spent_so_many_flops(tmp_path, more, step):
    fit(plain(), tmp_path, [Growth(LARGE, flops=8 * STEP + VALIDATION + more)])  # every 6 steps
    assert grew(tmp_path) == [step]
    spent = step * STEP + VALIDATION
    (reason,) = grew(tmp_path, "reason")
    assert reason == f"{spent:.4g} of {8 * STEP + VALIDATION + more:g} FLOPs were spent"


def test_a_run_grows_when_a_file_is_touched_in_its_log_folder(tmp_path, caplog):
    logger = CSVLogger(tmp_path)
    path = Path(logger.log_dir, "grow.now")
    with caplog.at_level(logging.INFO):
        growths = [Growth(to, file="grow.now") for to in (MIDDLE, LARGE)]
        fit(plain(), tmp_path, growths, Touch(path, 5, 11), logger=logger, log_every_n_steps=1)
    assert grew(path.parent) == [5, 11]
    assert grew(path.parent, "reason") == [f"there was a file {path}"] * 2
    assert not path.exists()
    assert caplog.text.count(f"A growth waits for the file {path}: touch it to grow") == 2


def test_a_file_may_be_anywhere_and_waits_for_the_end_of_the_accumulation(tmp_path):
    path = tmp_path / "elsewhere" / "now"
    growth = Growth(LARGE, file=str(path))
    fit(plain(), tmp_path, [growth], Touch(path, 4), accumulate_grad_batches=3)
    assert grew(tmp_path) == [2] and not path.exists()


# Order --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("second", "steps"),
    [
        ({"step": 3}, [10, 11]),  # has passed
        ({"epoch": 1}, [10, 11]),
        ({"step": 14}, [10, 14]),
        ({"flops": 1.0}, [10, 11]),
        ({"plateau": replace(WORSE, patience=1)}, [10, 14]),  # is counted from 3.0, not before
    ],
)
def test_a_growth_waits_for_the_one_before_it(tmp_path, second, steps):
    module = scripted(*BEST_AT_THE_THIRD[:5], 9.0, 9.0)
    fit(module, tmp_path, [Growth(MIDDLE, plateau=WORSE), Growth(LARGE, **second)])
    assert grew(tmp_path) == steps


def test_a_growth_waits_until_the_parts_of_the_one_before_it_are_let_in(tmp_path):
    growths = [Growth(MIDDLE, plateau=WORSE), Growth(LARGE, step=3)]
    msg = replace(METHODS["msg"], ramp=5)
    fit(scripted(*BEST_AT_THE_THIRD), tmp_path, growths, method=msg, epochs=4)
    assert grew(tmp_path) == [10, 15]


@pytest.mark.parametrize(
    ("when", "why"),
    [
        ({"plateau": replace(WORSE, patience=9)}, r"at a plateau of script .*below 3 for 6 of 9"),
        ({"slope": Slope("script", -9.0)}, "at a slope of script .*, and has never fallen so fast"),
        ({"flops": 1e15}, r"at 1e\+15 FLOPs: .* of 1e\+15 FLOPs were spent"),
        ({"file": "now"}, "at the file now: there was no file .*now"),
        ({"plateau": replace(WORSE, patience=6)}, ".* for 6 of 6 validations, after which no"),
    ],
)
def test_a_run_that_ends_undecided_warns_and_says_why(tmp_path, when, why):
    growths = [Growth(MIDDLE, **when), Growth(LARGE, step=3)]
    with pytest.warns(UserWarning, match=f"has ended before growth 1 of 2, {why}"):
        fit(scripted(*BEST_AT_THE_THIRD[:3], 3.0), tmp_path, growths)
    assert not (tmp_path / "growth_report.json").exists()


def test_nothing_is_waited_for_in_a_fast_run(tmp_path):
    module = plain()
    fit(module, tmp_path, [Growth(LARGE, flops=1.0)], fast_dev_run=True)
    assert module.network.head.in_features == 8


# Refused ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("stopping", "is_refused"),
    [
        ({"patience": 1}, True),
        ({"patience": 2}, True),
        ({"patience": 4}, False),
        ({"patience": 1, "monitor": "val_loss"}, False),
        ({"patience": 9, "min_delta": 0.5}, False),
    ],
)
def test_an_early_stopping_that_ends_the_run_before_the_plateau(tmp_path, stopping, is_refused):
    module, growth = scripted(*BEST_AT_THE_THIRD), Growth(LARGE, plateau=WORSE)
    stop = EarlyStopping(**{"monitor": "script", **stopping}, check_finite=False)
    if not is_refused:
        fit(module, tmp_path, [growth], stop)
        assert grew(tmp_path) == [10]
        return
    with pytest.raises(ValueError, match=r"growth 1 waits for a plateau .*; give EarlyStopping mo"):
        fit(module, tmp_path, [growth], stop)
    assert module.calls == 0


@pytest.mark.parametrize(
    "when", [{"plateau": Plateau("val_los")}, {"slope": Slope("val_los", -0.0475)}]
)
def test_a_metric_that_no_validation_logs(tmp_path, when):
    module = plain()
    with pytest.raises(ValueError, match=r"metric 'val_los' .*; it logged: val_loss, val_accuracy"):
        fit(module, tmp_path, [Growth(LARGE, **when)], num_sanity_val_steps=1)
    assert module.calls == 0


def test_a_plateau_of_a_run_without_validation(tmp_path):
    module = plain()
    with pytest.raises(ValueError, match=r"growth 1 .* this run has no validation; give it a val"):
        fit(module, tmp_path, [Growth(LARGE, plateau=WORSE)], limit_val_batches=0)
    assert module.calls == 0
