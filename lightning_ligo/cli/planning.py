"""Plan growths without training: of two networks, or all those of a run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from torch import nn

from lightning_ligo.axes.override import Override
from lightning_ligo.callbacks.growth import GrowthCallback
from lightning_ligo.callbacks.planner import of_growth
from lightning_ligo.methods.catalog import DEFAULT, method_named
from lightning_ligo.methods.method import Method
from lightning_ligo.networks import build, inputs_of
from lightning_ligo.operator.cost import Cost, Uncounted, estimate
from lightning_ligo.operator.flops import kind_of
from lightning_ligo.plan.pair import pair
from lightning_ligo.plan.plan import Plan
from lightning_ligo.trainer.checkpoint import described
from lightning_ligo.trainer.lightning import LeaveFit, callbacks_of
from lightning_ligo.trainer.sandbox import sandboxed
from lightning_ligo.trainer.slot import Slot
from lightning_ligo.trainer.snapshot import isolated_random

REAL = 100_000_000
"""Parameters; a network that has more is planned on the meta device, where nothing is proved."""


@dataclass(frozen=True)
class Planned:
    """A growth as it would be."""

    small: dict[str, Any] | None  # the description, if there is one
    large: dict[str, Any]
    plan: Plan
    cost: Cost | None
    uncounted: str | None = None  # why there is no cost
    number: int | None = None  # which growth of a run it is, from 1
    when: str | None = None  # `fraction 0.4`
    step: int | None = None  # the optimizer step at which that is, if it is known

    @property
    def inexact(self) -> tuple[str, ...]:
        """Why the large network does not begin as what the small one computes.

        Without a cost, what holds for every method.
        """
        return self.cost.inexact if self.cost else self.plan.inexact

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain data, for JSON."""
        return {
            "small": self.small,
            "large": self.large,
            "number": self.number,
            "when": self.when,
            "step": self.step,
            **self.plan.to_dict(),
            "inexact": list(self.inexact),
            "cost": self.cost.to_dict() if self.cost else None,
            "uncounted": self.uncounted,
        }

    def __str__(self) -> str:
        own = [f"not exact: {why}" for why in self.inexact if why not in self.plan.inexact]
        return "\n".join([str(self.plan), *own, "", str(self.cost or self.uncounted)])


def plan_pair(
    small: dict[str, Any],
    large: dict[str, Any],
    method: str | Method = DEFAULT,
    override: Override | None = None,
) -> Planned:
    """Plan the growth between two networks that `named` has described.

    Raises:
        ValueError: if one cannot be built or called, or the large one not grown from the small one.
    """
    method = method_named(method) if isinstance(method, str) else method
    one, other = sized(small), sized(large)
    inputs: dict[str, Any] = inputs_of(small, one)
    others: dict[str, Any] | None = inputs_of(large, other, inputs)
    if kind_of(inputs) == kind_of(others):
        others = None
    plan = pair(one, other, large_inputs=others, override=override, **inputs)
    cost = _cost(plan, one, other, method, None, (), inputs, others)
    return Planned(small, large, plan, *cost)


def plan_run(trainer: Trainer, model: LightningModule, **options: Any) -> list[Planned]:
    """Plan all growths of the run that `trainer.fit(model, **options)` would be.

    The fit is begun and left before its first optimizer step: all that it refuses at its start is
    refused here too, and the networks are called with what its first batch calls them with.

    Raises:
        ValueError: for a Trainer without a GrowthCallback, a run without a batch, and whatever the
            fit would refuse.
    """
    callbacks = callbacks_of(trainer)
    growing = [callback for callback in callbacks if isinstance(callback, GrowthCallback)]
    if not growing:
        raise ValueError("the run has no GrowthCallback among its callbacks, so nothing grows")
    planner = _Planner(growing[0])
    callbacks.insert(0, planner)
    try:
        trainer.fit(model, **options)
    finally:
        callbacks.remove(planner)
    if planner.planned is None:
        raise ValueError("the run ends before its first batch, so nothing grows")
    return planner.planned


class _Planner(Callback):
    """Stands before the GrowthCallback and leaves `fit` at the first batch with plans of it all."""

    def __init__(self, growing: GrowthCallback) -> None:
        self.growing = growing
        self.planned: list[Planned] | None = None

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        growing, examining, self.planned = self.growing, self.growing.examining, []
        small = Slot(pl_module, growing.attribute).network
        description = described(Slot(pl_module, growing.attribute))
        with sandboxed(trainer, pl_module, growing.seed):
            batches = examining.batches(trainer, pl_module, batch)
            first = batches[growing.size(pl_module)]
            args, kwargs = examining.called_with(trainer, pl_module, first, batch_idx)
            scalars_read: Sequence[Any] = ()
            for number, larger in examining.coming(pl_module):
                growth = growing.growths[number - 1]
                with of_growth(number, growth):
                    large = sized(larger)
                    inputs = None
                    if number in batches:
                        changed = trainer, pl_module, number, batches[number]
                        inputs = examining.large_inputs(*changed)
                    plan = examining.paired(small, large, args, kwargs, inputs, scalars_read)
                    settings = growing.method, growing.steps
                    cost = _cost(plan, small, large, *settings, args, kwargs, inputs)
                args, kwargs = (args, kwargs) if inputs is None else ((), inputs)
                due = growing.due.get(number - 1)
                self.planned.append(
                    Planned(description, larger, plan, *cost, number, growth.when, due)
                )
                small, description, scalars_read = large, larger, plan.scalars_read
        raise LeaveFit


def sized(description: Mapping[str, Any]) -> nn.Module:
    """The network of a description, on the meta device if it is large."""
    network = build(description, "meta")
    if sum(parameter.numel() for parameter in network.parameters()) > REAL:
        return network
    with isolated_random(0):
        return build(description)


def _cost(
    plan: Plan,
    small: nn.Module,
    large: nn.Module,
    method: Method,
    steps: int | None,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    large_inputs: Mapping[str, Any] | None = None,
) -> tuple[Cost | None, str | None]:
    """What `estimate` says, or why it cannot."""
    try:
        return estimate(
            plan, small, large, *args, method=method, steps=steps, large_inputs=large_inputs,
            **kwargs,
        ), None  # fmt: skip
    except Uncounted as error:
        return None, str(error)
