"""The ramp of a run's last growth: new parts are let in while training goes on."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from typing import Any

from lightning_utilities.core.rank_zero import rank_zero_info

from lightning_ligo.methods.method import Method
from lightning_ligo.operator.ramp import Ramp


class Ramping:
    """Lets new parts in, linearly over ``steps`` optimizer steps after a growth."""

    def __init__(self, steps: int) -> None:
        self.steps = steps
        self._ramp: Ramp | None = None
        self._since = 0

    def begin(self, ramp: Ramp, since: int) -> None:
        """A growth at step ``since`` has left these parts masked."""
        self._ramp, self._since = ramp, since

    def is_lost(self, since: int | None, step: int) -> bool:
        """Whether at ``step`` parts of a growth at ``since`` are to be masked, and none are.

        So it is where a run goes on from a checkpoint, which holds the plain weights.
        """
        return self._ramp is None and since is not None and step < since + self.steps

    def is_running(self, step: int) -> bool:
        """Whether parts are still to be let in at this step."""
        return self._ramp is not None and step < self._since + self.steps

    def advance(self, step: int) -> None:
        """Let in as much as is due at this step."""
        if self._ramp is not None and self.is_running(step):
            self._ramp.to((step - self._since) / self.steps)
        elif self._ramp is not None:
            self._ramp.end()
            self._ramp = None

    def end(self) -> None:
        """Let in what is left, as the run ends or grows again."""
        if self._ramp is not None:
            rank_zero_info(f"New parts were let in to {self._ramp.c:.0%}, and are now to 100%")
            self._ramp.end()
            self._ramp = None


def check_ramp_goes_on(record: dict[str, Any], method: Method, step: int) -> None:
    """Refuse to go on, by another method, while a growth still lets its new parts in.

    Raises:
        ValueError: naming both methods.
    """
    begun, ramp, now = record["step"], record["ramp"], (method.name, method.ramp)
    if step < begun + ramp and (record["method"], ramp) != now:
        raise ValueError(
            f"the checkpoint was written at step {step}, while method {record['method']!r} let the "
            f"new parts of the growth at step {begun} in over {ramp} steps, and this "
            f"GrowthCallback has method {method.name!r} with a ramp of {method.ramp}; give it the "
            f"method of the run that wrote the checkpoint until step {begun + ramp}"
        )


def check_room(steps: int, name: str, growths: Iterable[int | None], end: float) -> None:
    """Refuse a growth, or an end of the run, before the new parts of a growth are let in.

    Raises:
        ValueError: naming the steps.
    """
    for step, then in itertools.pairwise([*growths, end]):
        if step is not None and then is not None and then - step < steps:
            what = "the run ends" if then == end else "the next growth is due"
            raise ValueError(
                f"method {name!r} lets new parts in over {steps} steps after the growth at step "
                f"{step}, and {what} at step {then}; leave more room, or give the method a shorter "
                "ramp"
            )
