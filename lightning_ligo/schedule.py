"""When to grow, and at which learning rate, as data.

The trigger of a growth is known before the run (`step`, `epoch`, `fraction`), or the run decides
(`plateau`, `slope`, `flops`, `file`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, Literal, NamedTuple


@dataclass(frozen=True)
class Rate:
    """The learning rate after a growth, in multiples of the schedule's.

    It is applied only while the optimizer steps. The learning rate in the optimizer's groups, which
    schedulers, checkpoints and `LearningRateMonitor` read, stays the schedule's.

    Args:
        factor: factor of the learning rate of all parameters, from the growth to the end of the
            run; factors of several growths multiply. A wider network needs a lower learning rate,
            lower by about the factor of the width.
        rewarm: number of optimizer steps over which the learning rate of new entries rises from
            zero; new entries are those that are not the small network's own.
        peak: value to which it rises, in multiples of the learning rate of all others; it returns
            to 1 over as many steps more (ours).

    Raises:
        ValueError: for a factor or a peak that is not above 0, negative steps, and a peak without
            steps.

    Source: re-warming new parameters alone, with peak 1.3 and 250 steps: SPARKLING (ICML 2026).
    """

    factor: float = 1.0
    rewarm: int = 0
    peak: float = 1.0

    def __post_init__(self) -> None:
        if not (self.factor > 0 and self.peak > 0 and self.rewarm >= 0):
            raise ValueError(
                "factor and peak must be > 0 and rewarm >= 0, got "
                f"factor={self.factor}, rewarm={self.rewarm}, peak={self.peak}"
            )
        if self.peak != 1 and not self.rewarm:
            raise ValueError(f"peak={self.peak} needs rewarm > 0, got rewarm=0; set rewarm")

    @property
    def steps(self) -> int:
        """The number of steps after a growth with another learning rate for new entries."""
        return self.rewarm if self.peak == 1 else 2 * self.rewarm

    def of_new(self, step: int) -> float:
        """Return the rate of new entries ``step`` steps after the growth, in units of the others'.

        >>> rate = Rate(rewarm=4, peak=2.0)
        >>> [rate.of_new(step) for step in range(9)]
        [0.5, 1.0, 1.5, 2.0, 1.75, 1.5, 1.25, 1.0, 1.0]
        """
        if step >= self.steps:
            return 1.0
        if step < self.rewarm:
            return self.peak * (step + 1) / self.rewarm
        return self.peak + (1 - self.peak) * (step + 1 - self.rewarm) / self.rewarm

    def __str__(self) -> str:
        """
        >>> print(Rate(0.5, rewarm=250, peak=1.3))
        0.5 times the schedule's, new entries re-warmed to 1.3 over 250 steps
        """
        factor = "the schedule's" if self.factor == 1 else f"{self.factor:g} times the schedule's"
        if not self.rewarm:
            return factor
        return f"{factor}, new entries re-warmed to {self.peak:g} over {self.rewarm} steps"


class Validation(NamedTuple):
    """A monitored metric, and the training FLOPs spent until its validation."""

    value: float
    flops: float


class Verdict(NamedTuple):
    """Whether a growth is due, and the reason."""

    due: bool
    why: str


@dataclass(frozen=True)
class Plateau:
    """Grow when a validation metric has stopped improving.

    Counts like Lightning's EarlyStopping, from the start of the run or from the last growth.

    Args:
        monitor: name of the metric.
        patience: grow after this many validations in a row without an improvement.
        min_delta: an improvement is a change by more than this.
        mode: "min" if lower is better, "max" if higher is.

    Raises:
        ValueError: for a patience below 1, a negative difference, and an unknown mode.
    """

    monitor: str
    patience: int = 3
    min_delta: float = 0.0
    mode: Literal["min", "max"] = "min"

    def __post_init__(self) -> None:
        if self.patience < 1 or not self.min_delta >= 0:
            raise ValueError(
                "patience must be >= 1 and min_delta >= 0, got "
                f"patience={self.patience}, min_delta={self.min_delta}"
            )
        if self.mode not in ("min", "max"):
            raise ValueError(f"mode must be 'min' or 'max', got mode={self.mode!r}")

    def verdict(self, validations: Sequence[Validation]) -> Verdict:
        """Judge the validations since the last growth.

        >>> losses = [Validation(value, 0) for value in (0.9, 0.7, 0.8, 0.7)]
        >>> Plateau("val_loss", patience=2).verdict(losses)
        Verdict(due=True, why='val_loss has not been below 0.7 for 2 of 2 validations')
        """
        if not validations:
            return Verdict(False, f"no validation has logged {self.monitor}")
        sign = 1 if self.mode == "min" else -1
        best, waited = math.inf, 0
        for value in (sign * seen.value for seen in validations):
            if value + self.min_delta < best:
                best, waited = value, 0
            else:
                waited += 1
        side = "below" if self.mode == "min" else "above"
        by = f" by more than {self.min_delta:g}" if self.min_delta else ""
        return Verdict(
            waited >= self.patience,
            f"{self.monitor} has not been {side} {sign * best:.4g}{by} for {waited} of "
            f"{self.patience} validations",
        )

    def __str__(self) -> str:
        return f"a plateau of {self.monitor} (patience {self.patience})"


@dataclass(frozen=True)
class Slope:
    """Grow when training lowers the loss too little for its FLOPs, as in Staged Training.

    With the loss L of a validation and the training FLOPs C until then, the slope is
    `d log L / d log C`. By the scaling laws of language models (Kaplan et al., 2020), the slope at
    which a larger network begins to pay is the same at every size:

        -0.0475  before a growth to twice the width
        -0.0575  before a growth to twice the depth

    Curves of GPT-2 in two sizes are said to agree. No number is published for other losses and
    other growths: compute yours from the curves of two runs. The base of the logarithms and the
    unit of FLOPs do not matter.

    Only for the first growth of a run that starts with untrained weights, as the slope belongs to
    a curve from the first step on.

    Args:
        monitor: name of the validation loss; values that are not above 0 are skipped.
        threshold: slope to rise above, below 0.
        window: number of validations over which the slope is computed.

    Raises:
        ValueError: for a threshold that is not below 0, and a window below 1.

    Source: Shen et al., Staged Training for Transformer Language Models (ICML 2022), with the
    constants and the window of its code (`remove_oracle.ipynb` of allenai/staged-training). The
    code smooths curves by a running mean over 5 validations and searches from their steepest point
    on, in hindsight. Ours, so that a run can decide: the slope of the chord from the value 5
    validations ago, which must have been at or below the threshold before it rises above. The paper
    also moves the schedule of the learning rate at the growth; ours continues it.
    """

    monitor: str
    threshold: float
    window: int = 5

    def __post_init__(self) -> None:
        if not self.threshold < 0 or self.window < 1:
            raise ValueError(
                "threshold must be < 0, such as -0.0475, and window >= 1, got "
                f"threshold={self.threshold}, window={self.window}"
            )

    def verdict(self, validations: Sequence[Validation]) -> Verdict:
        """Judge the validations of the run.

        >>> halves = [Validation(loss, flops) for loss, flops in ((8, 1), (4, 2), (2, 4), (1.9, 8))]
        >>> print(Slope("val_loss", -0.1, window=1).verdict(halves).why)
        val_loss falls with a slope of -0.074 over training FLOPs, against -0.1
        """
        curve = {
            math.log(seen.flops): math.log(seen.value)
            for seen in validations
            if seen.flops > 0 and 0 < seen.value < math.inf
        }
        points = list(curve.items())
        slopes = [
            (log_loss - before) / (log_flops - since)
            for (since, before), (log_flops, log_loss) in zip(
                points, points[self.window :], strict=False
            )
        ]
        if not slopes:
            needed = f"{self.window + 1} validations for a slope of {self.monitor}"
            return Verdict(False, f"there were {len(points)} of {needed}")
        rose = [before <= self.threshold < after for before, after in pairwise(slopes)]
        steep = min(slopes) <= self.threshold
        return Verdict(
            any(rose),
            f"{self.monitor} falls with a slope of {slopes[-1]:.3g} over training FLOPs, against "
            f"{self.threshold:g}" + ("" if steep else ", and has never fallen so fast"),
        )

    def __str__(self) -> str:
        return f"a slope of {self.monitor} above {self.threshold:g}"


KNOWN = ("step", "epoch", "fraction")
DECIDED = ("plateau", "slope", "flops", "file")
"""The triggers that are known before a run, and those that the run decides."""


@dataclass(frozen=True)
class Growth:
    """One growth: its trigger and its network.

    Growths run in order. One that is due while another is pending runs at the next optimizer step.

    Args:
        to: description of the larger network (see `describe`), or changes to the description of
            the network before it, such as `{"init_args": {"embed_dim": 64, "depth": 4}}`.
        hparams: instead of `to`, changes to the hyperparameters of the LightningModule, such as
            `{"hidden_size": 64, "num_layers": 4}`. The module's own class makes the larger network
            from them and its other hyperparameters. The network is found: the one submodule whose
            parameters change, or else the module itself. All that does not change stays the
            module's. `hparams` of the module and of its checkpoints are those of the larger one.
        step: grow after this many optimizer steps, counted over all optimizers.
        epoch: grow at the first batch of this epoch, counted from 0.
        fraction: grow after this fraction of all optimizer steps of the run, between 0 and 1.
        plateau: grow when a validation metric has stopped improving; a Plateau, or a dict of its
            arguments, as for `slope` and `rate`.
        slope: grow when the validation loss falls too slowly for the FLOPs of training.
        flops: grow when the run has spent this many FLOPs, on all ranks: for training, learning
            operators and validations.
        file: grow when this file exists, relative to the log folder; the file is then removed.
        rate: learning rate after the growth; default: the schedule's.
        attribute: name of the network in the LightningModule; default: that of the callback.
            Growths of several networks that follow one another in the list, with the same trigger,
            are one growth: an axis that the networks share grows in all of them.
        data: new values of attributes of the LightningDataModule, such as
            `{"image_size": 224, "batch_size": 64}`; needs `epoch`, as loaders are rebuilt only at
            the start of an epoch.

    Raises:
        ValueError: for no trigger or several, a trigger outside any run, both or none of `to` and
            `hparams`, and `data` without `epoch` or while new entries are re-warmed.
    """

    to: dict | None = None
    step: int | None = None
    epoch: int | None = None
    fraction: float | None = None
    plateau: Plateau | None = None
    slope: Slope | None = None
    flops: float | None = None
    file: str | None = None
    rate: Rate = field(default_factory=Rate)
    data: dict[str, Any] | None = None
    hparams: dict[str, Any] | None = None
    attribute: str | None = None

    @staticmethod
    def of(growth: Growth | Mapping[str, Any]) -> Growth:
        """Return a growth from its arguments by name; a growth is returned as it is.

        >>> Growth.of({"to": {"init_args": {"depth": 4}}, "plateau": {"monitor": "val_loss"}}).when
        'a plateau of val_loss (patience 3)'
        """
        return growth if isinstance(growth, Growth) else Growth(**growth)

    def __post_init__(self) -> None:
        for name, kind in (("plateau", Plateau), ("slope", Slope), ("rate", Rate)):
            value = getattr(self, name)
            if isinstance(value, Mapping):
                object.__setattr__(self, name, kind(**value))
        if (self.to is None) == (self.hparams is None):
            raise ValueError(
                f"a growth has the network it grows to, got to={self.to} and "
                f"hparams={self.hparams}; give one of them: a description, or changes to the "
                "hyperparameters of the LightningModule"
            )
        triggers = {name: getattr(self, name) for name in (*KNOWN, *DECIDED)}
        given = [f"{name}={value}" for name, value in triggers.items() if value is not None]
        if len(given) != 1:
            raise ValueError(
                f"a growth has one trigger, got {', '.join(given) or 'none'}; give exactly one of "
                f"{', '.join((*KNOWN, *DECIDED))}"
            )
        if self.fraction is not None and not 0 < self.fraction < 1:
            raise ValueError(f"fraction must be between 0 and 1, exclusive, got {self.fraction}")
        if (self.step or self.epoch or 0) < 0:
            raise ValueError(f"step and epoch must be >= 0, got {self.when}")
        if self.flops is not None and not 0 < self.flops < math.inf:
            raise ValueError(f"flops must be > 0 and finite, such as 2e17, got {self.flops}")
        if self.file is not None and not self.file.strip():
            raise ValueError(f"file must be a path, got {self.file!r}")
        changed = ", ".join(self.data or ())
        if self.data and self.epoch is None:
            raise ValueError(
                f"a growth at {self.when} changes {changed} of the data, and loaders are rebuilt "
                "only at the start of an epoch; give the growth an epoch"
            )
        if self.data and self.rate.steps:
            raise ValueError(
                f"a growth changes {changed} of the data and re-warms new entries, which a resumed "
                "run could not find again; leave out one of them"
            )

    @property
    def changes(self) -> dict[str, Any]:
        """The description of the network, or the changes to the one before it."""
        return {"hparams": self.hparams} if self.to is None else self.to

    @property
    def is_decided(self) -> bool:
        """Whether the run decides when to grow."""
        return all(getattr(self, name) is None for name in KNOWN)

    @property
    def monitored(self) -> Plateau | Slope | None:
        """The rule that decides after a validation, if there is one."""
        return self.plateau or self.slope

    @property
    def when(self) -> str:
        """The trigger in words: `step 100`, `epoch 2`, `fraction 0.4`, `2e+17 FLOPs`."""
        if self.fraction is not None:
            return f"fraction {self.fraction:g}"
        if self.flops is not None:
            return f"{self.flops:g} FLOPs"
        for name, value in (("step", self.step), ("epoch", self.epoch), ("the file", self.file)):
            if value is not None:
                return f"{name} {value}"
        return str(self.monitored)


@dataclass(frozen=True)
class Run:
    """The length of a run; infinity where there is no limit or where it is unknown."""

    steps: float  # of the optimizer
    epochs: float
    steps_per_epoch: float


def resolve(growths: Sequence[Growth], run: Run, done: int = 0) -> list[int | None]:
    """Return the optimizer step of every growth after the first `done`, where it is known.

    It is None in epochs of unknown length, and where the run decides. If a growth changes the data,
    the lengths of epochs and of the run are unknown.

    Raises:
        ValueError: for a growth outside the run, a fraction of a run without an end, two growths at
            one step, growths that are not in order, and a slope for any growth but the first.
    """
    for number, each in enumerate(growths[1:], 2):
        if each.slope is not None:
            raise ValueError(
                f"growth {number} is due at {each.when}, which needs a curve from the first step "
                "on; give a slope to growth 1 only, and here a plateau"
            )
    _check_ascending("at FLOPs", [each.flops for each in growths])
    if any(growth.data for growth in growths):
        run = Run(math.inf, run.epochs, math.inf)
    growths = growths[done:]
    steps = [_step(number, growth, run) for number, growth in enumerate(growths, done + 1)]
    known = [
        (step, f"growth {number} ({growth.when})")
        for number, (growth, step) in enumerate(zip(growths, steps, strict=True), done + 1)
        if step is not None
    ]
    for (step, growth), (next_step, next_growth) in pairwise(known):
        if step == next_step:
            raise ValueError(
                f"{growth} and {next_growth} are both due at step {step}; give each its own step, "
                "and two networks that grow at one the same trigger"
            )
        if step > next_step:
            raise ValueError(
                f"{growth} is due at step {step}, after {next_growth} at step {next_step}; list "
                "growths in the order in which they happen"
            )
    _check_ascending("in epochs", [growth.epoch for growth in growths])
    return steps


def _check_ascending(where: str, values: Sequence[float | None]) -> None:
    given = [value for value in values if value is not None]
    if any(later <= before for before, later in pairwise(given)):
        raise ValueError(
            f"the growths are due {where} {', '.join(f'{value:g}' for value in given)}; give each "
            "more than the one before"
        )


def _step(number: int, growth: Growth, run: Run) -> int | None:
    due = f"growth {number} is due at {growth.when}"
    if growth.is_decided:
        return None
    if growth.fraction is not None:
        if math.isinf(run.steps):
            raise ValueError(
                f"{due} of the run, and this run has no known end; set max_steps of the Trainer "
                "(or max_epochs, for data of known length and automatic optimization), or give the "
                "growth a step or an epoch"
            )
        return int(growth.fraction * run.steps + 1e-9)
    step = growth.step
    if growth.epoch is not None:
        if growth.epoch >= run.epochs:
            raise ValueError(
                f"{due}, and the run has only {run.epochs:g} epochs, counted from 0; give an "
                "earlier epoch or raise max_epochs"
            )
        if math.isinf(run.steps_per_epoch):
            return None
        step = growth.epoch * int(run.steps_per_epoch)
        due += f", which is step {step}"
    assert step is not None
    if step >= run.steps:
        raise ValueError(
            f"{due}, and the run has only {run.steps:g} optimizer steps; give an earlier trigger "
            "or train longer"
        )
    return step
