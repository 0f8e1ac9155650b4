"""The learning rate after the growths of a run, applied while the optimizer steps and not else."""

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
    """Has the optimizer step at another rate than its groups say.

    Schedulers read, and some multiply, the rate that stands in a group, and checkpoints hold it;
    it is another one only while the optimizer steps, so that every scheduler goes on as it would
    have. New entries are among old ones in one parameter, which has one rate: what the optimizer
    has changed of them is scaled after its step.
    """

    def __init__(self) -> None:
        self.factor = 1.0
        self._rate, self._since = Rate(), 0
        self._new: dict[nn.Parameter, Tensor] = {}  # whether an entry is new

    def resume(self, rates: Sequence[Rate]) -> None:
        """These are the rates of the growths so far; no entries are known to be new."""
        self.factor = math.prod(rate.factor for rate in rates)
        self._new = {}

    def begin(self, rate: Rate, since: int, network: nn.Module, operator: Operator) -> None:
        """The operator has grown the network at step ``since``; this is the rate from then on."""
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
        """Whether new entries of a growth at ``since`` are to be re-warmed, and none are known.

        So it is where a run goes on from a checkpoint.
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
        """In place of the strategy's step of the optimizer."""
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
    """Multiply the rates of an optimizer, but for those that are set in the meantime."""
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
        for group, rate, ours in zip(optimizer.param_groups, rates, larger, strict=True):
            if group["lr"] is ours:
                group["lr"] = rate
