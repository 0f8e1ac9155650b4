"""How fast a grown network learns, against what the schedule of the run says."""

from __future__ import annotations

from dataclasses import dataclass


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
