"""The ramp of a run's last growth: new parts are unmasked while training continues."""

from __future__ import annotations

import itertools
from collections.abc import Iterable

from lightning_utilities.core.rank_zero import rank_zero_info

from lightning_ligo.callbacks.record import GrowthRecord
from lightning_ligo.methods.method import Method
from lightning_ligo.operator.ramp import Ramp


class Ramping:
    """Unmasks new parts, linearly over ``steps`` optimizer steps after a growth."""

    def __init__(self, steps: int) -> None:
        self.steps = steps
        self._ramp: Ramp | None = None
        self._since = 0

    def begin(self, ramp: Ramp, since: int) -> None:
        """Start to unmask the parts that a growth at step ``since`` has masked."""
        self._ramp, self._since = ramp, since

    def is_lost(self, since: int | None, step: int) -> bool:
        """Whether parts of a growth at ``since`` should be masked at ``step``, and none are.

        True right after resuming from a checkpoint, which holds the plain weights.
        """
        return self._ramp is None and since is not None and step < since + self.steps

    def is_running(self, step: int) -> bool:
        """Whether parts are still masked at this step."""
        return self._ramp is not None and step < self._since + self.steps

    def advance(self, step: int) -> None:
        """Unmask the share that is due at this step."""
        if self._ramp is not None and self.is_running(step):
            self._ramp.to((step - self._since) / self.steps)
        elif self._ramp is not None:
            self._ramp.end()
            self._ramp = None

    def end(self) -> None:
        """Unmask everything, as the run ends or grows again."""
        if self._ramp is not None:
            rank_zero_info(
                f"New parts were unmasked to {self._ramp.c:.0%}, and are now unmasked to 100%"
            )
            self._ramp.end()
            self._ramp = None


def check_ramp_goes_on(record: GrowthRecord, method: Method, step: int) -> None:
    """Check that a run resumes with the same method while new parts are still masked.

    Raises:
        ValueError: naming both methods.
    """
    begun, ramp, now = record.step, record.ramp, (method.name, method.ramp)
    if step < begun + ramp and (record.method, ramp) != now:
        raise ValueError(
            f"the checkpoint was written at step {step}, while method {record.method!r} unmasked "
            f"the new parts of the growth at step {begun} over {ramp} steps, got method "
            f"{method.name!r} with a ramp of {method.ramp}; use the method of the run that wrote "
            f"the checkpoint until step {begun + ramp}"
        )


def check_room(steps: int, name: str, growths: Iterable[int | None], end: float) -> None:
    """Check that the new parts of a growth are unmasked before the next growth or the end.

    Raises:
        ValueError: naming the steps.
    """
    for step, then in itertools.pairwise([*growths, end]):
        if step is not None and then is not None and then - step < steps:
            what = "the run ends" if then == end else "the next growth is due"
            raise ValueError(
                f"method {name!r} unmasks new parts over {steps} steps after the growth at step "
                f"{step}, and {what} at step {then}; leave more room, or give the method a shorter "
                "ramp"
            )
