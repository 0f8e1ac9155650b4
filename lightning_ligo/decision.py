"""What in a run's own validations says that it is time to grow: a plateau, or a slope."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal, NamedTuple


class Seen(NamedTuple):
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

    def verdict(self, validations: Sequence[Seen]) -> Verdict:
        """Judge the validations since the growth before.

        >>> losses = [Seen(value, 0) for value in (0.9, 0.7, 0.8, 0.7)]
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

    def verdict(self, validations: Sequence[Seen]) -> Verdict:
        """Judge the validations of the run.

        >>> halves = [Seen(loss, flops) for loss, flops in ((8, 1), (4, 2), (2, 4), (1.9, 8))]
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
