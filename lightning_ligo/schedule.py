"""When to grow, and at which learning rate, as data.

A growth is due at a point that is known before the run (`step`, `epoch`, `fraction`), or that the
run decides (`plateau`, `slope`, `flops`, `file`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, Literal, NamedTuple


@dataclass(frozen=True)
class Rate:
    """The learning rate after a growth, in multiples of the schedule's.

    It holds while the optimizer steps; the rate in its groups, which schedulers, checkpoints and
    `LearningRateMonitor` see, stays the schedule's.

    Args:
        factor: of the learning rate of all parameters, from the growth to the end of the run; that
            of a further growth multiplies it. A wider network wants a lower rate, at about the
            inverse of how much wider it is.
        rewarm: over how many optimizer steps the rate of new entries, those that are not the small
            network's own, rises from zero; none by default.
        peak: what it rises to, in multiples of the rate of all others; above or below 1 it comes
            back to 1 over as many steps more (ours).

    Raises:
        ValueError: for a factor or a peak that is not above 0, fewer than 0 steps, and a peak
            without steps.

    Source: re-warming new parameters alone, with peak 1.3 and 250 steps: SPARKLING (ICML 2026).
    """

    factor: float = 1.0
    rewarm: int = 0
    peak: float = 1.0

    def __post_init__(self) -> None:
        if not (self.factor > 0 and self.peak > 0 and self.rewarm >= 0):
            raise ValueError(
                f"a learning rate of factor={self.factor}, rewarm={self.rewarm}, peak={self.peak} "
                "is none; give a factor and a peak above 0, and 0 or more steps"
            )
        if self.peak != 1 and not self.rewarm:
            raise ValueError(
                f"peak={self.peak} is what new entries are re-warmed to, over rewarm=0 steps; give "
                "rewarm, or leave peak out"
            )

    @property
    def steps(self) -> int:
        """For how many steps after the growth new entries have a rate of their own."""
        return self.rewarm if self.peak == 1 else 2 * self.rewarm

    def of_new(self, step: int) -> float:
        """The rate of new entries ``step`` steps after the growth, against that of all others.

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
    """A validation, as a decision sees it."""

    value: float  # of the metric that is monitored
    flops: float  # of training until then


class Verdict(NamedTuple):
    """Whether it is time to grow, and why or why not."""

    due: bool
    why: str


@dataclass(frozen=True)
class Plateau:
    """Grow when a metric of the validation has stopped to get better.

    It counts as Lightning's EarlyStopping does, from the start of the run or the growth before.

    Args:
        monitor: the metric.
        patience: grow after this many validations in a row without a better value.
        min_delta: a value is better if it is by more than this.
        mode: "min" if lower is better, "max" if higher is.

    Raises:
        ValueError: for a patience below 1, a difference below 0, and an unknown mode.
    """

    monitor: str
    patience: int = 3
    min_delta: float = 0.0
    mode: Literal["min", "max"] = "min"

    def __post_init__(self) -> None:
        if self.patience < 1 or not self.min_delta >= 0:
            raise ValueError(
                f"a plateau of patience={self.patience} and min_delta={self.min_delta} is none; "
                "give a patience of 1 or more validations and a difference of 0 or more"
            )
        if self.mode not in ("min", "max"):
            raise ValueError(
                f"a plateau of mode={self.mode!r} is unknown; give 'min' for a metric that is "
                "better the lower it is, or 'max'"
            )

    def verdict(self, validations: Sequence[Validation]) -> Verdict:
        """Judge the validations since the growth before.

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
    """Grow when training lowers the loss too little for its FLOPs, as Staged Training does.

    With the loss L of a validation and the FLOPs C of training until then, the slope is
    `d log L / d log C`. By the scaling laws of language models (Kaplan et al., 2020) the slope at
    which the larger network begins to pay is the same at every size:

        -0.0475  before a growth to twice the width
        -0.0575  before a growth to twice the depth

    and curves of GPT-2 in two sizes are said to agree. For other losses and other growths there is
    no published number: read yours off the curves of two runs. What multiplies all losses or all
    FLOPs, such as another base of the logarithm, changes nothing.

    It is for the first growth of a run that begins with untrained weights, as the slope belongs to
    a curve from the first step on.

    Args:
        monitor: the loss of the validation; values that are not above 0 are left out.
        threshold: the slope to rise above, below 0.
        window: over how many validations the slope is taken.

    Raises:
        ValueError: for a threshold that is not below 0, and fewer than 1 validations.

    Source: Shen et al., Staged Training for Transformer Language Models (ICML 2022), with the
    constants and the window of its code (`remove_oracle.ipynb` of allenai/staged-training). There
    curves are smoothed by a running mean over 5 validations, and searched from their steepest point
    on, in hindsight. Ours, so that a run can decide: the slope is that of the chord from the value
    5 validations ago, and it must have been at the threshold or below before it rises above. Theirs
    also moves the learning rate's schedule at the growth; here it goes on.
    """

    monitor: str
    threshold: float
    window: int = 5

    def __post_init__(self) -> None:
        if not self.threshold < 0 or self.window < 1:
            raise ValueError(
                f"a slope with threshold={self.threshold} and window={self.window} is none that a "
                "falling loss rises above; give a threshold below 0, such as -0.0475, and a window "
                "of 1 or more validations"
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
            return Verdict(
                False,
                f"{len(points)} of {self.window + 1} validations were made that a slope of "
                f"{self.monitor} takes",
            )
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
"""The ways to say when: known before the run, and decided by it."""


@dataclass(frozen=True)
class Growth:
    """One growth: to what and when.

    A growth waits for the one before it, and grows at the next optimizer step if its own moment has
    passed by then.

    Args:
        to: the description of the larger network (see `networks.py`), or changes to the description
            of the network before it, such as `{"init_args": {"embed_dim": 64, "depth": 4}}`.
        step: grow when this many optimizer steps are done, those of all optimizers together.
        epoch: grow at the first batch of this epoch; the first epoch is 0.
        fraction: grow after this part of all optimizer steps of the run, between 0 and 1.
        plateau: grow when a metric of the validation has stopped to get better.
        slope: grow when the loss of the validation falls too slowly for what training costs.
        flops: grow when the run has spent this many FLOPs, on all ranks: of training, of learning
            operators and of validations.
        file: grow when there is a file at this path, from the run's log folder, which is then
            removed.
        rate: the learning rate after it; the schedule's by default.
        data: attributes that the LightningDataModule has from then on, such as
            `{"image_size": 224, "batch_size": 64}`; with `epoch` only, as loaders are made at the
            start of one.

    Raises:
        ValueError: if not exactly one moment is given, or one that no run has; for `data` that
            would change within an epoch, or while new entries are re-warmed.
    """

    to: dict[str, Any]
    step: int | None = None
    epoch: int | None = None
    fraction: float | None = None
    plateau: Plateau | None = None
    slope: Slope | None = None
    flops: float | None = None
    file: str | None = None
    rate: Rate = field(default_factory=Rate)
    data: dict[str, Any] | None = None

    def __post_init__(self) -> None:
        given = {
            name: value for name in (*KNOWN, *DECIDED) if (value := getattr(self, name)) is not None
        }
        if len(given) != 1:
            found = ", ".join(f"{name}={value}" for name, value in given.items()) or "none of them"
            raise ValueError(
                f"a growth happens at one moment, found {found}; give exactly one of "
                f"{', '.join((*KNOWN, *DECIDED)[:-1])} and {DECIDED[-1]}"
            )
        if self.fraction is not None and not 0 < self.fraction < 1:
            raise ValueError(
                f"a growth at fraction={self.fraction} of the run is not within it; give a "
                "fraction between 0 and 1, without them"
            )
        if (self.step or self.epoch or 0) < 0:
            raise ValueError(f"a growth at {self.when} is before the run; give 0 or more")
        if self.flops is not None and not 0 < self.flops < math.inf:
            raise ValueError(
                f"a growth at flops={self.flops} is not within a run; give what it may have spent, "
                "such as 2e17"
            )
        if self.file is not None and not self.file.strip():
            raise ValueError("a growth at file='' has no file to wait for; give its name")

        if self.data and self.epoch is None:
            raise ValueError(
                f"a growth at {self.when} changes {', '.join(self.data)} of the data, and loaders "
                "can be made anew at the start of an epoch only; give the growth an epoch"
            )
        if self.data and self.rate.steps:
            raise ValueError(
                f"a growth changes {', '.join(self.data)} of the data and re-warms new entries, "
                "which a resumed run could not find again; leave out one of them"
            )

    @property
    def is_decided(self) -> bool:
        """Whether the run decides when."""
        return all(getattr(self, name) is None for name in KNOWN)

    @property
    def monitored(self) -> Plateau | Slope | None:
        """What decides after a validation, if that does."""
        return self.plateau or self.slope

    @property
    def when(self) -> str:
        """The moment as it was given: `step 100`, `epoch 2`, `fraction 0.4`, `2e+17 FLOPs`."""
        if self.step is not None:
            return f"step {self.step}"
        if self.epoch is not None:
            return f"epoch {self.epoch}"
        if self.fraction is not None:
            return f"fraction {self.fraction:g}"
        if self.flops is not None:
            return f"{self.flops:g} FLOPs"
        return f"the file {self.file}" if self.file is not None else str(self.monitored)


@dataclass(frozen=True)
class Run:
    """How long a run is; infinity where nothing limits it or where it cannot be known."""

    steps: float  # optimizer steps of the whole run
    epochs: float
    steps_per_epoch: float


def resolve(growths: Sequence[Growth], run: Run, done: int = 0) -> list[int | None]:
    """The optimizer step of every growth after the first `done`, where it is known.

    It is None in epochs of unknown length, and where the run decides. Where a growth changes the
    data no epoch has a length that is known, and neither has the run.

    Raises:
        ValueError: for a growth that is not within the run, a fraction of a run without end, two
            growths at one step, growths that are not in the order of their steps or FLOPs, and a
            slope for any but the first.
    """
    _check_decided(growths)
    if any(growth.data for growth in growths):
        run = Run(math.inf, run.epochs, math.inf)
    growths = growths[done:]
    steps = [_step(number, growth, run) for number, growth in enumerate(growths, done + 1)]
    known = [
        (step, number, growth)
        for number, (growth, step) in enumerate(zip(growths, steps, strict=True), done + 1)
        if step is not None
    ]
    for (step, number, growth), (later, next_number, next_growth) in pairwise(known):
        if step == later:
            raise ValueError(
                f"growth {number} ({growth.when}) and growth {next_number} ({next_growth.when}) "
                f"are both due at step {step}; give each a step of its own"
            )
        if step > later:
            raise ValueError(
                f"growth {number} ({growth.when}) is due at step {step}, after growth "
                f"{next_number} ({next_growth.when}) at step {later}; list growths in the order "
                "in which they happen"
            )
    epochs = [growth.epoch for growth in growths if growth.epoch is not None]
    if epochs != sorted(set(epochs)):
        raise ValueError(
            f"the growths are due in epochs {', '.join(map(str, epochs))}; give each a later "
            "epoch than the one before"
        )
    return steps


def _check_decided(growths: Sequence[Growth]) -> None:
    for number, growth in enumerate(growths[1:], 2):
        if growth.slope is not None:
            raise ValueError(
                f"growth {number} is due at {growth.when}, which is known of a network from its "
                "first step on, and this one has grown; give a slope to growth 1 only, and here a "
                "plateau"
            )
    spent = [growth.flops for growth in growths if growth.flops is not None]
    if any(later <= before for before, later in pairwise(spent)):
        raise ValueError(
            f"the growths are due at {', '.join(f'{flops:g}' for flops in spent)} FLOPs, of the "
            "whole run; give each more than the one before"
        )


def _step(number: int, growth: Growth, run: Run) -> int | None:
    if growth.is_decided:
        return None
    if growth.fraction is not None:
        if math.isinf(run.steps):
            raise ValueError(
                f"growth {number} is due at {growth.when} of the run, and this run has no known "
                "end; set max_steps of the Trainer (or max_epochs, for data of known length and "
                "automatic optimization), or give the growth a step or an epoch"
            )
        return int(growth.fraction * run.steps + 1e-9)
    if growth.epoch is not None:
        if growth.epoch >= run.epochs:
            raise ValueError(
                f"growth {number} is due at {growth.when}, and the run has only {run.epochs:g} "
                "epochs, counted from 0; give an earlier epoch or raise max_epochs"
            )
        if math.isinf(run.steps_per_epoch):
            return None
        step = growth.epoch * int(run.steps_per_epoch)
    else:
        assert growth.step is not None
        step = growth.step
    if step >= run.steps:
        raise ValueError(
            f"growth {number} is due at {growth.when}"
            + ("" if growth.step is not None else f", which is step {step}")
            + f", and the run has only {run.steps:g} optimizer steps; give an earlier "
            "moment or train longer"
        )
    return step
