"""Savings against training from scratch, interpolated on the scratch frontier."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise


@dataclass(frozen=True)
class Saving:
    """The share of the FLOPs from scratch that a run did not need for its loss.

    Args:
        share: the saving, 1 for all FLOPs.
        bound: ``>`` (at least) if scratch does not reach the loss at its largest budget, ``<`` (at
            most) if it is below the loss at its smallest.
    """

    share: float
    bound: str = ""

    def __str__(self) -> str:
        """
        >>> print(Saving(0.254), Saving(-0.1), Saving(0.5, ">"))
        25 % -10 % > 50 %
        """
        return f"{self.bound} {round(100 * self.share)} %".strip()


def frontier(runs: Iterable[tuple[float, float]]) -> list[tuple[float, float]]:
    """Return the runs (FLOPs, loss) that are better than all cheaper ones, the cheapest first.

    >>> frontier([(4.0, 2.0), (1.0, 3.0), (2.0, 3.5)])
    [(1.0, 3.0), (4.0, 2.0)]
    """
    kept: list[tuple[float, float]] = []
    for flops, loss in sorted(runs):
        if not kept or loss < kept[-1][1]:
            kept.append((flops, loss))
    return kept


def saving(flops: float, loss: float, scratch: Sequence[tuple[float, float]]) -> Saving:
    """Return ``1 - flops / flops_scratch(loss)``, by log-log interpolation between two runs.

    Args:
        flops: FLOPs of the run.
        loss: final loss of the run, above 0.
        scratch: finished runs from scratch (FLOPs, loss), at least two of different budgets.

    Raises:
        ValueError: for a loss of 0 or less.
    """
    points = frontier(scratch)
    if min(loss, *(scratch_loss for _, scratch_loss in points)) <= 0:
        raise ValueError(
            f"losses are compared by their logarithms, got {loss} against "
            f"{[scratch_loss for _, scratch_loss in points]}; monitor a loss, which is above 0"
        )
    (least, worst), (most, best) = points[0], points[-1]
    if loss > worst:
        return Saving(1 - flops / least, "<")
    if loss < best:
        return Saving(1 - flops / most, ">")
    for (cheap, above), (dear, below) in pairwise(points):
        if below <= loss <= above:
            part = math.log(above / loss) / math.log(above / below)
            return Saving(1 - flops / (cheap * (dear / cheap) ** part))
    return Saving(1 - flops / least)  # the frontier is one run, of this very loss
