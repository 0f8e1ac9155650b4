"""When to grow: at a moment that is known before the run, or that the run decides; and how."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

from lightning_ligo.decision import Plateau, Slope
from lightning_ligo.rate import Rate

KNOWN = ("step", "epoch", "fraction")
DECIDED = ("plateau", "slope", "flops", "file")
"""The ways to say when: known before the run, and decided by it."""


@dataclass(frozen=True)
class Growth:
    """One growth: to what and when.

    A growth waits for the one before it, and grows at the next optimizer step if its own moment has
    passed by then.

    Args:
        to: the description of the larger network (see `nets.py`), or changes to the description
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
