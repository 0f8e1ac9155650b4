"""Plan the growth of one network into another, without Lightning."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lightning_ligo.axes.calls import Call, copied
from lightning_ligo.axes.override import Override
from lightning_ligo.methods.catalog import DEFAULT, method_named
from lightning_ligo.methods.method import Method
from lightning_ligo.networks.description import build
from lightning_ligo.networks.inputs import inputs_of
from lightning_ligo.networks.pretrained import loads_weights, untrained
from lightning_ligo.operator.cost import Cost, Uncounted, estimate_calls
from lightning_ligo.operator.flops import kind_of
from lightning_ligo.operator.measure import Change, compare, measure
from lightning_ligo.operator.operator import Operator
from lightning_ligo.plan.pair import pair_calls
from lightning_ligo.plan.plan import Plan

REAL = 100_000_000
"""Networks with more parameters are planned on the meta device, where no axis is proved."""


@dataclass(frozen=True)
class Planned:
    """One growth that has not happened yet."""

    small: dict[str, Any] | None  # the description of the small network, if there is one
    large: dict[str, Any]  # the description of the large network
    plan: Plan  # the two networks side by side
    change: Change  # how much the method changes the function
    cost: Cost | None  # the cost of learning the operator, if it can be counted
    uncounted: str | None = None  # the reason why there is no cost
    number: int | None = None  # which growth of a run it is, counted from 1
    when: str | None = None  # what triggers it, such as `fraction 0.4`
    step: int | None = None  # the optimizer step of the growth, if it is known

    def to_dict(self) -> dict[str, Any]:
        """Return all fields as plain data, for JSON."""
        return {
            "small": self.small,
            "large": self.large,
            "number": self.number,
            "when": self.when,
            "step": self.step,
            **self.plan.to_dict(),
            "change": self.change.to_dict(),
            "cost": self.cost.to_dict() if self.cost else None,
            "uncounted": self.uncounted,
        }

    def __str__(self) -> str:
        lines = [str(self.plan), f"function: {self.change}", "", str(self.cost or self.uncounted)]
        return "\n".join(lines)


@dataclass(frozen=True)
class Pair:
    """A small and a large network, built from their descriptions and paired."""

    small: nn.Module
    large: nn.Module
    plan: Plan
    calls: list[Call]  # of the small network
    large_calls: list[Call] | None  # of the large network, if it is called otherwise


def paired(
    small: dict[str, Any],
    large: dict[str, Any],
    override: Override | None = None,
    calls: list[Call] | None = None,
) -> Pair:
    """Build and pair two networks, on these calls of both or else on a small random batch.

    Raises:
        ValueError: if a network cannot be built or called, or if the small one cannot grow into
            the large one.
    """
    networks = sized(small), sized(large)
    if calls is not None:
        return Pair(*networks, pair_calls(*networks, calls, None, override), calls, None)
    inputs: dict[str, Any] = inputs_of(small, networks[0])
    large_inputs: dict[str, Any] | None = inputs_of(large, networks[1], inputs)
    if kind_of(inputs) == kind_of(large_inputs):
        large_inputs = None
    calls = [Call(kwargs=inputs)]
    large_calls = None if large_inputs is None else [Call(kwargs=large_inputs)]
    return Pair(*networks, pair_calls(*networks, calls, large_calls, override), calls, large_calls)


def plan_pair(
    small: dict[str, Any],
    large: dict[str, Any],
    method: str | Method = DEFAULT,
    override: Override | None = None,
) -> Planned:
    """Plan the growth between two networks, see `paired`.

    If the small one has trained weights, its change is measured with those.
    """
    method = method_named(method) if isinstance(method, str) else method
    pair = paired(small, large, override)
    networks = pair.small, pair.large
    change = measure(pair.plan, *networks, pair.calls, pair.large_calls, method)
    if loads_weights(small) and change.is_finite and pair.large_calls is None:
        change = _of_trained(pair, method) or change
    cost = cost_of(pair.plan, *networks, pair.large_calls or pair.calls, method)
    return Planned(untrained(small), large, pair.plan, change, *cost)


def _of_trained(pair: Pair, method: Method) -> Change | None:
    """Measure the growth of the weights themselves, without noise."""
    if any(tensor.is_meta for tensor in (*pair.small.parameters(), *pair.large.parameters())):
        return None
    large = copied(pair.large, Tensor.clone)
    operator = Operator(pair.plan, pair.small, method)
    operator.bake(large)
    return compare(operator, pair.small, large, pair.calls)


def sized(description: Mapping[str, Any], build: Callable[..., nn.Module] = build) -> nn.Module:
    """Build the network of a description; a large one is built on the meta device."""
    network = build(description, "meta")
    if sum(parameter.numel() for parameter in network.parameters()) > REAL:
        return network
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        return build(description)


def cost_of(*args: Any) -> tuple[Cost | None, str | None]:
    """Return what `estimate_calls` counts and None, or None and why it cannot count."""
    try:
        return estimate_calls(*args), None
    except Uncounted as error:
        return None, str(error)
