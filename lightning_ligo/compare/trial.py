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
from dataclasses import asdict, dataclass, replace
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

from lightning_ligo.callbacks.accounting import CurveCallback, Point
from lightning_ligo.callbacks.document import write_whole
from lightning_ligo.callbacks.growth import GrowthCallback
from lightning_ligo.cli.base import QUIET, GrowthCLI, is_kind
from lightning_ligo.methods.catalog import method_named
from lightning_ligo.networks.description import build, is_description
from lightning_ligo.networks.pretrained import loads_weights, resolved, untrained
from lightning_ligo.networks.weights import Source, sha256_of
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
    """One run and its whole configuration."""

    method: str  # name of the method
    share: float  # share of the budget; 0 for a rehearsal, which measures costs
    rate: float | None  # learning rate; None for that of the configuration
    seed: int  # number of the seed, from 0
    steps: int  # number of optimizer steps
    config: dict[str, Any]  # configuration as `lightning-ligo fit` reads it
    digest: str = ""  # hash of the trained weights that it reads, if it does

    @property
    def name(self) -> str:
        """The name of its folder, different for every configuration and for other weights."""
        share = "rehearsal" if not self.share else f"budget-{self.share:g}"
        rate = f"-rate-{self.rate:g}" if self.rate is not None else ""
        text = json.dumps(self.config, sort_keys=True) + self.digest
        digest = hashlib.sha256(text.encode()).hexdigest()[:10]
        return f"{self.method}-{share}{rate}-seed-{self.seed}-{digest}"

    @property
    def label(self) -> str:
        """A readable name."""
        share = "rehearsal" if not self.share else f"{self.share:g} of the budget"
        rate = f", rate {self.rate:g}" if self.rate is not None else ""
        return f"{self.method}, {share}{rate}, seed {self.seed}"


@dataclass(frozen=True)
class Result:
    """The result of a trial."""

    steps: int  # number of optimizer steps
    grew_at: list[int]  # steps of the growths
    training: list[int]  # FLOPs of training at each size of the network
    evaluation: list[int]  # FLOPs of validation at each size of the network
    operator: int  # FLOPs of learning the operators
    curve: list[Point]  # the validations
    batches_per_epoch: int | None  # batches in an epoch, if known
    device: str  # name of the device

    @property
    def flops(self) -> int:
        """All FLOPs."""
        return sum(self.training) + sum(self.evaluation) + self.operator

    @property
    def flops_after_small(self) -> int:
        """All FLOPs without those of the networks before the largest."""
        return self.training[-1] + self.evaluation[-1] + self.operator

    @property
    def loss(self) -> float | None:
        """Metric after the last step."""
        return self.curve[-1].metric

    @property
    def seconds(self) -> float:
        """Seconds from the first step to the last validation."""
        return self.curve[-1].seconds


# Configurations -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Start:
    """The trained network that every run grows before its first step."""

    name: str  # path of its weights, or the class that brings them
    digest: str  # hash of its files; empty if a library loads them

    @classmethod
    def of(cls, description: Mapping[str, Any]) -> Start:
        """Read the trained weights of a network; raise ValueError if they do not fit it."""
        build(description)
        weights = resolved(description).get("weights")
        if weights is None:
            return cls(description["class_path"], "")
        source = Source.of(weights)
        return cls(str(source.path), sha256_of(source.files))


class Recipe:
    """The parsed configuration of a run that grows, and the runs that are derived from it.

    Args:
        config: the configuration.
        start: trained weights of the small network, which then grows at step 0.

    Raises:
        ValueError: for a number of GrowthCallbacks other than one, for a network without a
            description, and for a start that does not fit it or with several growths.
    """

    def __init__(self, config: Mapping[str, Any], start: str | None = None) -> None:
        self.config = copy.deepcopy(dict(config))
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
                    f"growth {number} is due when the run decides it, and a comparison fixes the "
                    "FLOPs of every run before it starts; give the growth a step, an epoch or a "
                    "fraction, such as the one at which a run has grown"
                )
            if growth.attribute not in (None, options["attribute"]):
                raise ValueError(
                    f"growth {number} is of the network {growth.attribute!r}, and a comparison "
                    f"trains one network, {options['attribute']!r}; compare methods on one of them"
                )
            if growth.data:
                raise ValueError(
                    f"growth {number} changes the data, and so the cost of a step; leave its data "
                    "out to compare methods"
                )
        self.method: str = options["method"]
        self.attribute: str = options["attribute"]
        self.monitor = _monitor(options["monitor"], callbacks)
        small = self.config["model"]["init_args"].get(self.attribute)
        if not is_description(small):
            raise ValueError(
                f"the model has no description of its network in its argument {self.attribute!r}, "
                f"got {small!r}; so the large network cannot be trained from scratch: use a module "
                "that takes a description of its network, as those of this package do"
            )
        if start is not None:
            small = untrained(small) | {"weights": start}
            self.config["model"]["init_args"][self.attribute] = small
        self.networks = [small, *sizes(small, self.growths)[1:]]
        given = start is not None or self._grows_at_once(small)
        self.start = self._start(small) if given else None
        if config.get("ckpt_path") is not None:
            raise ValueError(
                f"ckpt_path is {config['ckpt_path']!r}, and every run of a comparison starts at "
                "step 0; leave it out"
            )

    def _grows_at_once(self, small: Mapping[str, Any]) -> bool:
        """Return whether a trained network has its one growth before the first step."""
        begins = [0 in (growth.step, growth.epoch) for growth in self.growths]
        return begins == [True] and bool(loads_weights(small))

    def _start(self, small: Mapping[str, Any]) -> Start:
        """Have the trained network grow at step 0, and no more."""
        if len(self.growths) > 1:
            raise ValueError(
                f"the configuration has {len(self.growths)} growths, and a comparison from one "
                "trained network has one, at step 0; leave the others out, with the largest "
                "network in its `to`"
            )
        self.growths = [replace(self.growths[0], step=0, epoch=None, fraction=None)]
        return Start.of(small)

    def learning_steps(self, method: str) -> int:
        """Return the steps of learning an operator, those of the configuration for its method."""
        given = self.growing["init_args"]["steps"] if method == self.method else None
        return method_named(method).steps if given is None else int(given)

    def steps_per_epoch(self, result: Result) -> float:
        """Return the optimizer steps in an epoch; infinite for data of unknown length."""
        accumulate = self.config["trainer"].get("accumulate_grad_batches") or 1
        batches = result.batches_per_epoch
        return math.inf if batches is None else math.ceil(batches / accumulate)

    def steps(self, steps_per_epoch: float) -> int:
        """Return the optimizer steps of the configured run; raise ValueError if nothing ends it."""
        options = self.config["trainer"]
        epochs, steps = options["max_epochs"], options["max_steps"]
        limits = [
            math.inf if steps in (None, -1) else steps,
            math.inf if epochs in (None, -1) else epochs * steps_per_epoch,
        ]
        if math.isinf(min(limits)):
            raise ValueError(
                "the run of the configuration has no known end, and its FLOPs are the budget; set "
                "trainer.max_steps, or max_epochs for data of known length"
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
        """Return the configuration of a run that grows by a method at these steps.

        It is validated `every` so many steps. The learning steps are the method's by default.
        """
        growing = copy.deepcopy(self.growing)
        options = growing["init_args"]
        for growth, step in zip(options["growths"], grows_at, strict=True):
            growth.update(step=step, epoch=None, fraction=None)
        if method != self.method:  # these are for the method of the configuration
            options.update(method=method, steps=None, learning_rate=None)
        if learning_steps is not None:
            options["steps"] = learning_steps
        options.update(monitor=self.monitor, on_failure="stop")  # else it did not grow
        return self._with([growing], steps, every)

    def plain(self, size: int, steps: int, every: int) -> dict[str, Any]:
        """Return the configuration of a run with the network of this size from start to end."""
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
    """Return the same run with a number added to all seeds, and with another learning rate."""
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
                "the model has no argument learning_rate for --learning_rates; "
                f"it has: {', '.join(options)}; leave --learning_rates out"
            )
        options["learning_rate"] = rate
    return config


def _monitor(given: str | None, callbacks: Iterable[Mapping[str, Any]]) -> str:
    """Return the metric of the comparison; lower must be better."""
    watching = [each.get("init_args") or {} for each in callbacks
                if is_kind(each["class_path"], Checkpoint, EarlyStopping)]  # fmt: skip
    names = [options.get("monitor") for options in watching]
    name = given or next((name for name in names if name), None)
    if name is None:
        raise ValueError(
            "no metric is monitored, so there is nothing to compare by; give GrowthCallback a "
            "monitor: --trainer.callbacks.monitor val_loss"
        )
    if any(each.get("mode") == "max" and each.get("monitor") == name for each in watching):
        raise ValueError(
            f"higher is better for the metric {name!r}, and a comparison needs a loss; give "
            "GrowthCallback another: --trainer.callbacks.monitor val_loss"
        )
    return name


# Processes ----------------------------------------------------------------------------------------


def finished(trial: Trial, out: Path) -> Result | None:
    """Return the result of the trial, if it is finished."""
    path = out / trial.name / "result.json"
    if not path.exists():
        return None
    facts = json.loads(path.read_text())
    return Result(**facts | {"curve": [Point(*point) for point in facts["curve"]]})


def start(trial: Trial, out: Path, device: int | None) -> BaseProcess:
    """Run the trial in its own process, on this CUDA device or on its configured device."""
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
    """Return a context whose processes start with all imports done, if the system can do so."""
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    return context


def _run_alone(folder: Path, device: int | None) -> None:
    """Run in the new process, and print into a file."""
    with open(folder / "log.txt", "wb") as log:
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
    sys.argv = sys.argv[:1]  # the arguments are those of the comparison
    if device is not None:
        seen = os.environ.get("CUDA_VISIBLE_DEVICES")
        os.environ["CUDA_VISIBLE_DEVICES"] = seen.split(",")[device] if seen else str(device)
    run(folder)


def failure(trial: Trial, out: Path, status: int | None) -> str:
    """Return the last line that a failed trial has printed."""
    log = out / trial.name / "log.txt"
    text = log.read_text(errors="replace") if log.exists() else ""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return f"{lines[-1] if lines else 'it printed nothing'} (exit status {status}, {log})"


def run(folder: Path) -> Result:
    """Run the trial of a folder to its last step, and write its result there."""
    trainer = GrowthCLI(["fit", "--config", str(folder / "fit.yaml")]).trainer
    if trainer.global_step != trainer.max_steps:
        raise RuntimeError(
            f"the run ended after {trainer.global_step} of {trainer.max_steps} optimizer steps, "
            "so its schedule is not complete; leave out what stops it"
        )
    callbacks = callbacks_of(trainer)
    (noting,) = (each for each in callbacks if isinstance(each, (GrowthCallback, CurveCallback)))
    accounting, device = noting.accounting, trainer.strategy.root_device
    batches = trainer.num_training_batches
    result = Result(
        steps=trainer.global_step,
        grew_at=accounting.grew_at,
        training=accounting.training.totals,
        evaluation=accounting.evaluation.totals,
        operator=accounting.operator,
        curve=[_plain(point) for point in accounting.curve],
        batches_per_epoch=batches if isinstance(batches, int) else None,
        device=torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
    )
    text = json.dumps(asdict(result))
    write_whole(folder / "result.json", lambda path: path.write_text(text))
    return result


def _plain(point: Point) -> Point:
    """Return the point with None for a metric that is not finite, which JSON cannot hold."""
    known = point.metric is not None and math.isfinite(point.metric)
    return point if known else point._replace(metric=None)
