"""A trial: one run of a comparison, in a folder and a process of its own."""

from __future__ import annotations

import copy
import functools
import hashlib
import json
import math
import multiprocessing
import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import torch
import yaml
from lightning.pytorch.callbacks import (
    Checkpoint,
    DeviceStatsMonitor,
    EarlyStopping,
    LearningRateMonitor,
    ModelSummary,
    ProgressBar,
)

from lightning_ligo.callbacks.accounting import Point
from lightning_ligo.callbacks.curve import CurveCallback
from lightning_ligo.callbacks.growth import GrowthCallback
from lightning_ligo.callbacks.report import write_whole
from lightning_ligo.cli.base import QUIET, GrowthCLI, is_kind
from lightning_ligo.methods.catalog import method_named
from lightning_ligo.networks import is_description
from lightning_ligo.schedule import Growth
from lightning_ligo.trainer.checkpoint import sizes
from lightning_ligo.trainer.lightning import callbacks_of

SCRATCH, SMALL_ONLY = "scratch", "small-only"
"""The large network from the start, and the small one to the end: runs that do not grow."""

LEFT_OUT = (
    Checkpoint,
    DeviceStatsMonitor,
    EarlyStopping,
    LearningRateMonitor,
    ModelSummary,
    ProgressBar,
)
"""Callbacks that write, that need a logger, or that end a run before its schedule is complete."""


@dataclass(frozen=True, eq=False)
class Trial:
    """One run: what it is of, and its whole configuration, as `lightning-ligo fit` reads it."""

    method: str
    share: float  # of the budget; 0 for a rehearsal, which measures what steps cost
    rate: float | None  # the learning rate, where it is not the configuration's own
    seed: int
    steps: int
    config: dict[str, Any]

    @property
    def name(self) -> str:
        """Of its folder; another configuration has another name."""
        share = "rehearsal" if not self.share else f"budget-{self.share:g}"
        rate = f"-rate-{self.rate:g}" if self.rate is not None else ""
        text = json.dumps(self.config, sort_keys=True)
        digest = hashlib.sha256(text.encode()).hexdigest()[:10]
        return f"{self.method}-{share}{rate}-seed-{self.seed}-{digest}"

    @property
    def label(self) -> str:
        """Of this run among all, for people."""
        share = "rehearsal" if not self.share else f"{self.share:g} of the budget"
        rate = f", rate {self.rate:g}" if self.rate is not None else ""
        return f"{self.method}, {share}{rate}, seed {self.seed}"


@dataclass(frozen=True)
class Result:
    """What a trial did."""

    steps: int  # of the optimizer
    grew_at: list[int]  # the steps
    training: list[int]  # FLOPs at every size of the network
    evaluation: list[int]
    operator: int  # FLOPs of learning
    curve: list[Point]
    batches_per_epoch: int | None
    device: str

    @property
    def flops(self) -> int:
        """All that was spent."""
        return sum(self.training) + sum(self.evaluation) + self.operator

    @property
    def flops_after_small(self) -> int:
        """The same with all networks but the largest for free."""
        return self.training[-1] + self.evaluation[-1] + self.operator

    @property
    def loss(self) -> float | None:
        """The metric after the last step."""
        return self.curve[-1].metric

    @property
    def seconds(self) -> float:
        """From the first step to the last validation."""
        return self.curve[-1].seconds


# Configurations -----------------------------------------------------------------------------------


class Recipe:
    """The configuration of a run that grows, taken apart, and the runs that are made of it.

    Raises:
        ValueError: for one without exactly one GrowthCallback, or whose network is not described.
    """

    def __init__(self, config: Mapping[str, Any]) -> None:
        self.config = dict(config)
        callbacks = config["trainer"]["callbacks"] or []
        callbacks = callbacks if isinstance(callbacks, list) else [callbacks]
        growing = [each for each in callbacks if is_kind(each["class_path"], GrowthCallback)]
        if len(growing) != 1:
            raise ValueError(
                f"the configuration has {len(growing)} callbacks of type GrowthCallback; give one, "
                "with all growths in its list"
            )
        self.growing: dict[str, Any] = growing[0]
        self.others = [each for each in callbacks if not is_kind(each["class_path"],
                       GrowthCallback, *LEFT_OUT)]  # fmt: skip
        options = self.growing["init_args"]
        self.growths = [Growth(**growth) for growth in options["growths"]]
        for number, growth in enumerate(self.growths, 1):
            if growth.is_decided:
                raise ValueError(
                    f"growth {number} is due when the run decides it, and what every run of a "
                    "comparison may spend is shared out before it begins; give the growth a step, "
                    "an epoch or a fraction, such as one at which a run has decided it"
                )
            if growth.data:
                raise ValueError(
                    f"growth {number} changes the data, and with it what the steps of a run cost; "
                    "leave its data out to compare methods"
                )
        self.method: str = options["method"]
        self.attribute: str = options["attribute"]
        self.monitor = _monitor(options["monitor"], callbacks)
        small = config["model"]["init_args"].get(self.attribute)
        if not is_description(small):
            raise ValueError(
                f"the model has no description of its network in its argument {self.attribute!r}, "
                f"found {small!r}; the large network cannot be trained from scratch by this "
                "configuration: take a module that is given its network, as those of this package"
            )
        self.networks = sizes(small, self.growths)
        if config.get("ckpt_path") is not None:
            raise ValueError(
                f"ckpt_path is {config['ckpt_path']!r}, and every run of a comparison begins with "
                "its first step; leave it out"
            )

    def learning_steps(self, method: str) -> int:
        """Of an operator; the configuration may give another number for its own method."""
        given = self.growing["init_args"]["steps"] if method == self.method else None
        return method_named(method).steps if given is None else int(given)

    def steps_per_epoch(self, result: Result) -> float:
        """Optimizer steps, as a run has found them; infinite for data of unknown length."""
        accumulate = self.config["trainer"].get("accumulate_grad_batches") or 1
        batches = result.batches_per_epoch
        return math.inf if batches is None else math.ceil(batches / accumulate)

    def steps(self, steps_per_epoch: float) -> int:
        """The optimizer steps of the run of the configuration itself.

        Raises:
            ValueError: if nothing ends it.
        """
        options = self.config["trainer"]
        epochs, steps = options["max_epochs"], options["max_steps"]
        limits = [
            math.inf if steps in (None, -1) else steps,
            math.inf if epochs in (None, -1) else epochs * steps_per_epoch,
        ]
        if math.isinf(min(limits)):
            raise ValueError(
                "the run of the configuration has no known end, and what it spends is the budget; "
                "set trainer.max_steps, or max_epochs for data of known length"
            )
        return int(min(limits))

    def grown(
        self,
        method: str,
        grows_at: Sequence[int],
        steps: int,
        every: int,
        learning_steps: int | None = None,
    ) -> dict[str, Any]:
        """Grow by a method at these steps.

        Args:
            method: its name.
            grows_at: the steps of the optimizer at which the run grows.
            steps: of the optimizer, in all.
            every: the steps from one validation to the next.
            learning_steps: of the operator; those of the method by default.
        """
        growing = copy.deepcopy(self.growing)
        options = growing["init_args"]
        for growth, step in zip(options["growths"], grows_at, strict=True):
            growth.update(step=step, epoch=None, fraction=None)
        if method != self.method:  # these are of the configuration's own method
            options.update(method=method, steps=None, learning_rate=None)
        if learning_steps is not None:
            options["steps"] = learning_steps
        options.update(monitor=self.monitor, on_failure="stop")  # one that has not grown is none
        return self._with([growing], steps, every)

    def plain(self, size: int, steps: int, every: int) -> dict[str, Any]:
        """Train the network of that size from the first step to the last, and validate it."""
        kind = f"{CurveCallback.__module__}.{CurveCallback.__qualname__}"
        noting = {"class_path": kind, "init_args": {"monitor": self.monitor}}
        config = self._with([noting], steps, every)
        config["model"]["init_args"][self.attribute] = self.networks[size]
        return config

    def _with(self, callbacks: list[dict[str, Any]], steps: int, every: int) -> dict[str, Any]:
        config = copy.deepcopy(self.config)
        accumulate = config["trainer"].get("accumulate_grad_batches") or 1
        config["trainer"] |= QUIET | {
            "callbacks": [*self.others, *callbacks],
            "max_steps": steps,
            "max_epochs": -1,
            "min_steps": None,
            "min_epochs": None,
            "max_time": None,
            "fast_dev_run": False,
            "check_val_every_n_epoch": None,
            "val_check_interval": every * accumulate,
        }
        return config


def seeded(config: dict[str, Any], number: int, rate: float | None) -> dict[str, Any]:
    """The same run with another seed: its own plus a number, also of growth and data.

    Raises:
        ValueError: for a rate, if the model has no argument `learning_rate`.
    """
    config = copy.deepcopy(config)
    first = config.get("seed_everything")
    config["seed_everything"] = number + (first if type(first) is int else 0)
    parts = [*config["trainer"]["callbacks"], config.get("data") or {}]
    for options in (part.get("init_args") or {} for part in parts):
        if type(options.get("seed")) is int:
            options["seed"] += number
    options = config["model"]["init_args"]
    if rate is not None:
        if "learning_rate" not in options:
            raise ValueError(
                "the model has no argument learning_rate to be set to one of --learning_rates; "
                f"it has: {', '.join(options)}; leave --learning_rates out"
            )
        options["learning_rate"] = rate
    return config


def _monitor(given: str | None, callbacks: Iterable[Mapping[str, Any]]) -> str:
    """The metric of the comparison: lower must be better, and every run must know it."""
    watching = [each.get("init_args") or {} for each in callbacks
                if is_kind(each["class_path"], Checkpoint, EarlyStopping)]  # fmt: skip
    names = [options.get("monitor") for options in watching]
    name = given or next((name for name in names if name), None)
    if name is None:
        raise ValueError(
            "no metric is monitored, so that there is nothing to compare by; give GrowthCallback "
            "a monitor: --trainer.callbacks.monitor val_loss"
        )
    if any(each.get("mode") == "max" and each.get("monitor") == name for each in watching):
        raise ValueError(
            f"the metric {name!r} is better the higher it is, and a comparison is by a loss; give "
            "GrowthCallback another: --trainer.callbacks.monitor val_loss"
        )
    return name


# Processes ----------------------------------------------------------------------------------------


def finished(trial: Trial, out: Path) -> Result | None:
    """What the trial did, if it has been run to its end."""
    path = out / trial.name / "result.json"
    if not path.exists():
        return None
    facts = json.loads(path.read_text())
    return Result(**facts | {"curve": [Point(*point) for point in facts["curve"]]})


def start(trial: Trial, out: Path, device: int | None) -> BaseProcess:
    """Run the trial in a process of its own, on one CUDA device or on what it is configured for."""
    folder = out / trial.name
    folder.mkdir(parents=True, exist_ok=True)
    config = copy.deepcopy(trial.config)
    config["trainer"]["default_root_dir"] = str(folder)
    (folder / "fit.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    process = _processes().Process(target=_run_alone, args=(folder, device))
    process.start()
    return process


@functools.cache
def _processes() -> Any:
    """Processes that begin with all imports done, where the system can do that."""
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    return context


def _run_alone(folder: Path, device: int | None) -> None:
    """In the new process: all that is printed goes to a file."""
    with open(folder / "log.txt", "wb") as log:
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
    sys.argv = sys.argv[:1]  # the words of the comparison are none of the run
    if device is not None:
        seen = os.environ.get("CUDA_VISIBLE_DEVICES")
        os.environ["CUDA_VISIBLE_DEVICES"] = seen.split(",")[device] if seen else str(device)
    run(folder)


def failure(trial: Trial, out: Path, status: int | None) -> str:
    """The last line that a trial which failed has printed."""
    log = out / trial.name / "log.txt"
    text = log.read_text(errors="replace") if log.exists() else ""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return f"{lines[-1] if lines else 'it printed nothing'} (exit status {status}, {log})"


def run(folder: Path) -> Result:
    """Run the trial of a folder, and write what it did into it.

    Raises:
        RuntimeError: for a run that something has ended before its last step.
    """
    trainer = GrowthCLI(["fit", "--config", str(folder / "fit.yaml")]).trainer
    if trainer.global_step != trainer.max_steps:
        raise RuntimeError(
            f"the run ended after {trainer.global_step} of {trainer.max_steps} optimizer steps, "
            "and its schedule is not complete; leave out what stops it"
        )
    callbacks = callbacks_of(trainer)
    (noting,) = (each for each in callbacks if isinstance(each, (GrowthCallback, CurveCallback)))
    spending, device = noting.spending, trainer.strategy.root_device
    batches = trainer.num_training_batches
    result = Result(
        steps=trainer.global_step,
        grew_at=spending.grew_at,
        training=spending.training.totals,
        evaluation=spending.evaluation.totals,
        operator=spending.operator,
        curve=[_plain(point) for point in spending.curve],
        batches_per_epoch=batches if isinstance(batches, int) else None,
        device=torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
    )
    text = json.dumps(asdict(result))
    write_whole(folder / "result.json", lambda path: path.write_text(text))
    return result


def _plain(point: Point) -> Point:
    """JSON has no infinity: a metric that is no number has no value."""
    known = point.metric is not None and math.isfinite(point.metric)
    return point if known else point._replace(metric=None)
