"""Optimizer state through an operator: moments of the large network from those of the small one.

Shapes: g layers of the large stack, l of the small one.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any, Literal, get_args

import torch
from torch import Size, Tensor

from lightning_ligo.operator.choice import check_choice
from lightning_ligo.operator.operator import Operator
from lightning_ligo.plan.plan import Row

Policy = Literal["map", "keep-old-zero-new", "reset"]
States = Mapping[str, Mapping[str, Any]]
"""The optimizer state of every parameter that has any, by the parameter's name."""

POWERS = {
    "exp_avg": 1,
    "momentum_buffer": 1,
    "grad_avg": 1,
    "exp_avg_sq": 2,
    "max_exp_avg_sq": 2,
    "square_avg": 2,
}
"""The tensors of torch's optimizers that are means of this power of the gradient."""


@torch.no_grad()
def grow_states(operator: Operator, states: States, policy: Policy = "map") -> dict[str, Any]:
    """The optimizer state of the large network, by name; a parameter without any starts fresh.

    What does not grow keeps its state as it is, the same tensors, under every policy. For the rest:

    - ``map``: a gradient of ``W_large = B_out W A_inᵀ`` is ``A_out G B_inᵀ``, for what is written
      with ``B`` is read with ``A``. First moments grow by that, second moments by the same with
      every entry of the forms squared, as the variance of a sum of independent terms does. For the
      maps of Staged Training (ICML 2022) these are its halves and quarters.
    - ``keep-old-zero-new``: the entries that are the small network's own keep their moments, all
      others have zero (SPARKLING, ICML 2026). A parameter has one count of steps, so Adam takes the
      first moments of new entries for unbiased: their first steps are up to
      ``(1 - beta1) / sqrt(1 - beta2)`` learning rates long, 3.2 by its defaults.
    - ``reset``: no state.

    Where a map cannot say, there is no state either: in new layers that are silent, but for what
    they write with; in new layers that are the identity, or stay as they were built; of tables that
    are stretched; and of all, for a method that takes nothing. Entries that stay as they were built
    have zero. Single numbers, such as the step, are those of the layer that a layer takes after.
    State is known by the names of `POWERS`; a parameter with another tensor starts fresh, with a
    warning.

    Args:
        operator: which has grown the network.
        states: of the small network's parameters; tensors are not changed.
        policy: what grown parameters get.

    Raises:
        ValueError: for an unknown policy.
    """
    check_policy(policy)
    grown: dict[str, Any] = {}
    unknown: set[str] = set()
    for row in operator.plan.rows if not operator.method.takes_nothing else ():
        layers = [states.get(name) or {} for name in row.small_names]
        if not any(layers):
            continue
        if not (operator.widths.grows(row) or operator.depths.mixed(row) or row.small != row.large):
            pairs = zip(row.large_names, layers, strict=True)
            grown |= {name: state for name, state in pairs if state}
        elif policy != "reset" and not operator.widths.stretches(row):
            strange = {key for state in layers for key in state if _strange(key, state, row.small)}
            unknown |= strange
            grown |= {} if strange else _grown(operator, row, layers, policy)
    if unknown:
        warnings.warn(
            f"the optimizer keeps {', '.join(sorted(unknown))}, which is not known to be a moment "
            f"of the gradient (these are: {', '.join(POWERS)}); its grown parameters start with "
            "fresh state",
            stacklevel=2,
        )
    return grown


def check_policy(policy: str) -> None:
    """Refuse an unknown policy.

    Raises:
        ValueError: listing those there are.
    """
    check_choice("optimizer_state", policy, get_args(Policy), "optimizer state can be grown by")


def _strange(key: str, state: Mapping[str, Any], shape: Size) -> bool:
    """Whether a part of a state is neither a known moment nor a single number."""
    value = state[key]
    if key in POWERS:
        return value is not None and value.shape != shape
    return not (value is None or isinstance(value, (int, float)) or _is_number(value))


def _is_number(value: object) -> bool:
    return isinstance(value, Tensor) and value.dim() == 0


def _grown(
    operator: Operator, row: Row, layers: Sequence[Mapping[str, Any]], policy: Policy
) -> dict[str, dict[str, Any]]:
    """The state of every large layer of a parameter, for those that have any."""
    mapped = policy == "map"
    mix = operator.depths.gradients(row) if mapped else operator.depths.kept(row)
    mix = mix * torch.tensor([bool(state) for state in layers])
    has = mix.any(1).tolist()
    states: list[dict[str, Any]] = [{} for _ in has]
    for key in dict.fromkeys(key for state in layers for key in state):
        values = [state.get(key) for state in layers]
        if key not in POWERS or all(value is None for value in values):
            for state, source in zip(states, mix.abs().argmax(1).tolist(), strict=True):
                value = values[source]
                state[key] = value.clone() if isinstance(value, Tensor) else value
            continue
        first = next(value for value in values if value is not None)
        small = torch.stack([torch.zeros_like(first) if v is None else v for v in values])
        small = small.to(operator.dtype)
        small = torch.tensordot(mix.to(small) ** POWERS[key], small, dims=1)
        if mapped:
            large = operator.widths.grow_gradient(small, row, POWERS[key])
        else:
            large = operator.widths.pad(small, row)
        for state, value in zip(states, large.to(first.dtype), strict=True):
            state[key] = value.clone(memory_format=torch.contiguous_format)
    names = zip(row.large_names, states, has, strict=True)
    return {name: state for name, state, any_ in names if any_}
