"""A growth is seen in the loggers of a run."""

import csv

import pytest
import yaml
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from lightning.pytorch.loggers.logger import Logger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from lightning_ligo import Growth, GrowthCallback
from lightning_ligo.networks.description import build
from runs import LARGE, MIDDLE, SMALL, Described, fit, plain


class Tracker(Logger):
    """Keeps what it is told, and refuses to change a hyperparameter, as MLflow does."""

    def __init__(self):
        super().__init__()
        self.metrics, self.hparams = [], {}

    name = version = "tracker"

    def log_metrics(self, metrics, step=None):
        self.metrics.append((step, metrics))

    def log_hyperparams(self, params):
        for key, value in dict(params).items():
            assert self.hparams.setdefault(key, value) == value, key


def twice():
    growths = [Growth(MIDDLE, step=5), Growth(LARGE, step=14)]
    return GrowthCallback(growths, method="lemon")


def parameters(tracker):
    found = [(s, m["growth/parameters"]) for s, m in tracker.metrics if "growth/parameters" in m]
    return found


COUNTS = [sum(p.numel() for p in build(size).parameters()) for size in (SMALL, MIDDLE, LARGE)]


def test_the_number_of_parameters_is_logged_at_every_growth(tmp_path):
    tracker = Tracker()
    fit(plain(), tmp_path, twice(), logger=tracker, log_every_n_steps=1)
    assert parameters(tracker) == list(zip((0, 5, 14), COUNTS, strict=True))
    steps = [step for step, metrics in tracker.metrics if "train_loss_step" in metrics]
    assert steps == list(range(18))  # the batch of the growth is logged at the same step


def test_a_growth_is_a_hyperparameter_with_the_description_of_the_network(tmp_path):
    tracker = Tracker()
    fit(Described(SMALL), tmp_path, twice(), logger=tracker)
    assert tracker.hparams["network"] == SMALL
    assert tracker.hparams["growth_2"] == {
        "step": 14,
        "reason": "step 14",
        "method": "lemon",
        "parameters": {"small": COUNTS[1], "large": COUNTS[2]},
        "network": LARGE,
    }
    assert tracker.hparams["growth_1"]["network"] == MIDDLE


def test_the_csv_logger_has_both(tmp_path):
    logger = CSVLogger(tmp_path, name=None, version="")
    fit(Described(SMALL), tmp_path, twice(), logger=logger, log_every_n_steps=1)
    with open(tmp_path / "metrics.csv") as file:
        lines = [line for line in csv.DictReader(file) if line["growth/parameters"]]
    assert [(int(line["step"]), int(line["growth/parameters"])) for line in lines] == list(
        zip((0, 5, 14), COUNTS, strict=True)
    )
    hparams = yaml.safe_load((tmp_path / "hparams.yaml").read_text())
    assert hparams["network"] == SMALL and hparams["growth_2"]["network"] == LARGE


@pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`:UserWarning")
def test_a_resumed_run_tells_its_own_loggers_of_the_growths_before(tmp_path):
    tracker, saves = Tracker(), ModelCheckpoint(tmp_path, "{epoch}", save_top_k=-1)
    fit(plain(), tmp_path, twice(), saves, enable_checkpointing=True)
    fit(plain(), tmp_path, twice(), ckpt_path=tmp_path / "epoch=1.ckpt", logger=tracker)
    assert parameters(tracker) == [(12, COUNTS[1]), (14, COUNTS[2])]
    assert tracker.hparams["growth_1"]["step"] == 5 and tracker.hparams["growth_2"]["step"] == 14


def test_tensorboard_has_both(tmp_path):
    logger = TensorBoardLogger(tmp_path, name=None, version="")
    fit(Described(SMALL), tmp_path, twice(), logger=logger, log_every_n_steps=1)
    events = EventAccumulator(str(tmp_path)).Reload()
    found = [(event.step, int(event.value)) for event in events.Scalars("growth/parameters")]
    assert found == list(zip((0, 5, 14), COUNTS, strict=True))
    assert logger.hparams["growth_2"]["network"] == LARGE
    (file,) = tmp_path.glob("events.*")
    assert b"growth_2/network/init_args/width" in file.read_bytes()
