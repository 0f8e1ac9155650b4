"""FLOPs: the cost of a run, the steps that a budget pays for, and savings against scratch."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from lightning_ligo.schedule import Growth, Run, resolve


@dataclass(frozen=True)
class Costs:
    """FLOPs of the parts of a run."""

    training: tuple[float, ...]  # FLOPs of one step, by size of the network
    evaluation: tuple[float, ...]  # FLOPs of one validation, likewise
    operator: float = 0.0  # FLOPs of learning the operators of all growths

    def of(self, size: int) -> Costs:
        """Return the costs of a run that has this size from start to end."""
        return Costs((self.training[size],), (self.evaluation[size],))


def validated_at(steps: int, every: int) -> list[int]:
    """Return the optimizer steps after which a run is validated; the last one is among them.

    >>> validated_at(44, every=10)
    [10, 20, 30, 40, 44]
    """
    return [*range(every, steps, every), steps]


def triggers(steps: int, growths: Sequence[Growth], steps_per_epoch: float) -> list[int]:
    """Return the optimizer steps at which a run grows; raise ValueError if one is not known."""
    run = Run(steps=steps, epochs=math.inf, steps_per_epoch=steps_per_epoch)
    found = []
    for growth, step in zip(growths, resolve(growths, run), strict=True):
        if step is None:
            raise ValueError(
                f"a growth is due at {growth.when}, after an unknown number of steps; give it a "
                "fraction or a step"
            )
        found.append(step)
    return found


def passes(steps: int, grows_at: Sequence[int], every: int) -> list[int]:
    """Return how often a run of so many steps validates each size of its network.

    A growth validates the small network, unless that was just done, and the large one.

    >>> passes(44, [17], every=10)  # after steps 10 and 17; at once, and after 20, 30, 40 and 44
    [2, 5]
    """
    validated, bounds = validated_at(steps, every), [0, *grows_at, steps]
    return [
        sum(first < step <= last for step in validated)
        + (size > 0)
        + (size < len(grows_at) and last not in validated)
        for size, (first, last) in enumerate(pairwise(bounds))
    ]


def cost(steps: int, grows_at: Sequence[int], costs: Costs, every: int) -> float:
    """Return the FLOPs of a run: training, learning the operators, and validations."""
    trained = [last - first for first, last in pairwise([0, *grows_at, steps])]
    validated = passes(steps, grows_at, every)
    return (
        costs.operator
        + sum(count * each for count, each in zip(trained, costs.training, strict=True))
        + sum(count * each for count, each in zip(validated, costs.evaluation, strict=True))
    )


def steps_within(
    budget: float,
    costs: Costs,
    every: int,
    growths: Sequence[Growth] = (),
    steps_per_epoch: float = math.inf,
) -> int:
    """Return the most steps that a budget pays for; raise ValueError if it is too small."""

    def exceeds(steps: int) -> bool:
        try:
            return cost(steps, triggers(steps, growths, steps_per_epoch), costs, every) > budget
        except ValueError:  # the growths do not fit into so many steps
            return steps * min(costs.training) > budget

    high = 1
    while not exceeds(high):
        high *= 2
    low = high // 2
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if exceeds(middle) else (middle, high)
    if low == 0:
        raise ValueError(
            f"a budget of {budget:.3g} FLOPs does not pay for a step of training, "
            f"{costs.training[-1]:.3g}, its validation, {costs.evaluation[-1]:.3g}, and learning "
            f"operators, {costs.operator:.3g}; train longer"
        )
    triggers(low, growths, steps_per_epoch)  # raises where the growths have no room
    return low


# Savings ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Saving:
    """The share of the FLOPs from scratch that a run did not need for its loss."""

    share: float  # 1 for all FLOPs
    bound: str = ""  # > (at least): scratch never reaches the loss, < (at most): it starts lower

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

    `scratch` are finished runs (FLOPs, loss), at least two of different budgets. Raises ValueError
    for a loss of 0 or less.
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
