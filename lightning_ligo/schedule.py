"""When to grow: at a step, at an epoch, or at a fraction of the run; and how to go on."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

from lightning_ligo.rate import Rate


@dataclass(frozen=True)
class Growth:
    """One growth: to what and when.

    Args:
        to: the description of the larger network (see `nets.py`), or changes to the description
            of the network before it, such as `{"init_args": {"embed_dim": 64, "depth": 4}}`.
        step: grow when this many optimizer steps are done.
        epoch: grow at the first batch of this epoch; the first epoch is 0.
        fraction: grow after this part of all optimizer steps of the run, between 0 and 1.
        rate: the learning rate after it; the schedule's by default.

    Raises:
        ValueError: if not exactly one of `step`, `epoch` and `fraction` is given, or one that no
            run has.
    """

    to: dict[str, Any]
    step: int | None = None
    epoch: int | None = None
    fraction: float | None = None
    rate: Rate = field(default_factory=Rate)

    def __post_init__(self) -> None:
        given = {
            name: value
            for name in ("step", "epoch", "fraction")
            if (value := getattr(self, name)) is not None
        }
        if len(given) != 1:
            found = ", ".join(f"{name}={value}" for name, value in given.items()) or "none of them"
            raise ValueError(
                f"a growth happens at one step, one epoch or one fraction of the run, found "
                f"{found}; give exactly one of step, epoch and fraction"
            )
        if self.fraction is not None and not 0 < self.fraction < 1:
            raise ValueError(
                f"a growth at fraction={self.fraction} of the run is not within it; give a "
                "fraction between 0 and 1, without them"
            )
        if (self.step or self.epoch or 0) < 0:
            raise ValueError(f"a growth at {self.when} is before the run; give 0 or more")

    @property
    def when(self) -> str:
        """The moment as it was given: `step 100`, `epoch 2`, `fraction 0.4`."""
        if self.step is not None:
            return f"step {self.step}"
        if self.epoch is not None:
            return f"epoch {self.epoch}"
        return f"fraction {self.fraction:g}"


@dataclass(frozen=True)
class Run:
    """How long a run is; infinity where nothing limits it or where it cannot be known."""

    steps: float  # optimizer steps of the whole run
    epochs: float
    steps_per_epoch: float


def resolve(growths: Sequence[Growth], run: Run, done: int = 0) -> list[int | None]:
    """The optimizer step of every growth after the first `done`; None in epochs of unknown length.

    Raises:
        ValueError: for a growth that is not within the run, a fraction of a run without end, two
            growths at one step, and growths that are not in the order of their steps.
    """
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


def _step(number: int, growth: Growth, run: Run) -> int | None:
    if growth.fraction is not None:
        if math.isinf(run.steps):
            raise ValueError(
                f"growth {number} is due at {growth.when} of the run, and this run has no known "
                "end; set max_steps (or max_epochs, for data of known length) of the Trainer, or "
                "give the growth a step or an epoch"
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
