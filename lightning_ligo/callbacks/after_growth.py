"""After a growth: the learning rate, and the ramp that unmasks new parts.

Both last for some optimizer steps, and are found again if a run resumes within them.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from lightning.pytorch import Trainer
from lightning_utilities.core.rank_zero import rank_zero_info
from torch import Tensor, nn
from torch.optim import Optimizer

from lightning_ligo.callbacks.record import GrowthRecord
from lightning_ligo.methods.method import Method
from lightning_ligo.operator.operator import Operator
from lightning_ligo.operator.ramp import Ramp
from lightning_ligo.schedule import Rate
from lightning_ligo.trainer.sharding import placed


class Rates:
    """Lets the optimizer step at another learning rate than its groups have.

    Schedulers read and multiply the learning rate of a group, and checkpoints hold it. It differs
    only while the optimizer steps, so that every schedule continues unchanged. Old and new entries
    share a parameter and its learning rate: the update of new entries is scaled after the step.
    """

    def __init__(self) -> None:
        self.factor = 1.0
        self._rate, self._since = Rate(), 0
        self._new: dict[nn.Parameter, Tensor] = {}  # masks of new entries

    def resume(self, rates: Sequence[Rate]) -> None:
        """Apply the rates of the growths so far, with no entries known to be new."""
        self.factor = math.prod(rate.factor for rate in rates)
        self._new = {}

    def begin(self, rate: Rate, since: int, network: nn.Module, operator: Operator) -> None:
        """Apply the rate of a growth at step ``since``, by this operator."""
        self.factor *= rate.factor
        self.rewarm(rate, since, network, operator)

    def rewarm(self, rate: Rate, since: int, network: nn.Module, operator: Operator) -> None:
        """Re-warm the new entries of a network that the operator has grown at step ``since``."""
        self._rate, self._since = rate, since
        new = operator.new_entries() if rate.steps else {}
        self._new = {
            parameter: placed(new[name], parameter)
            for name, parameter in network.named_parameters()
            if name in new and bool(new[name].any())
        }

    def is_lost(self, rate: Rate, since: int, step: int) -> bool:
        """Whether new entries of a growth at ``since`` should be re-warmed, and none are known.

        True right after resuming from a checkpoint.
        """
        return not self._new and step < since + rate.steps

    def step(
        self,
        original: Callable[..., Any],
        trainer: Trainer,
        optimizer: Optimizer,
        *args: Any,
        **kwargs: Any,
    ) -> Any:
        """Step the optimizer; wraps the strategy's method."""
        done = trainer.global_step - self._since
        if done >= self._rate.steps:
            self._new = {}
        before = {
            parameter: parameter.detach().clone()
            for group in optimizer.param_groups
            for parameter in group["params"]
            if parameter in self._new
        }
        with scaled(optimizer, self.factor):
            result = original(optimizer, *args, **kwargs)
        with torch.no_grad():
            for parameter, start in before.items():
                share = torch.where(self._new[parameter], self._rate.of_new(done), 1.0)
                parameter.copy_(torch.lerp(start, parameter, share.to(parameter)))
        return result


@contextmanager
def scaled(optimizer: Optimizer, factor: float) -> Iterator[None]:
    """Multiply the learning rates of an optimizer, except those that are set meanwhile."""
    if factor == 1:
        yield
        return
    rates = [group["lr"] for group in optimizer.param_groups]
    larger = [rate * factor for rate in rates]
    for group, rate in zip(optimizer.param_groups, larger, strict=True):
        group["lr"] = rate
    try:
        yield
    finally:
        for group, rate, scaled_rate in zip(optimizer.param_groups, rates, larger, strict=True):
            if group["lr"] is scaled_rate:
                group["lr"] = rate


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
    """Raise ValueError if a run resumes with another method while new parts are masked."""
    begun, ramp, now = record.step, record.ramp, (method.name, method.ramp)
    if step < begun + ramp and (record.method, ramp) != now:
        raise ValueError(
            f"the checkpoint was written at step {step}, while method {record.method!r} unmasked "
            f"the new parts of the growth at step {begun} over {ramp} steps, got method "
            f"{method.name!r} with a ramp of {method.ramp}; use the method of the run that wrote "
            f"the checkpoint until step {begun + ramp}"
        )


def check_room(steps: int, name: str, growths: Iterable[int | None], end: float) -> None:
    """Raise ValueError if the next growth, or the end, is due before new parts are unmasked."""
    for step, then in itertools.pairwise([*growths, end]):
        if step is not None and then is not None and then - step < steps:
            what = "the run ends" if then == end else "the next growth is due"
            raise ValueError(
                f"method {name!r} unmasks new parts over {steps} steps after the growth at step "
                f"{step}, and {what} at step {then}; leave more room, or give the method a shorter "
                "ramp"
            )
