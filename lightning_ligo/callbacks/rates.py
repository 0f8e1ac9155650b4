"""The learning rate after growths, applied only while the optimizer steps."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from lightning.pytorch import Trainer
from torch import Tensor, nn
from torch.optim import Optimizer

from lightning_ligo.operator.operator import Operator
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
