"""Grow the state of an optimizer: the moments of the large network from those of the small one.

Shapes: g layers of the large stack, l of the small one.
"""

from __future__ import annotations

import functools
import math
import warnings
from collections.abc import Mapping, Sequence
from typing import Any, Literal, get_args

import torch
from torch import Size, Tensor

from lightning_ligo.axes.dims import uses_of
from lightning_ligo.methods.forms import along
from lightning_ligo.operator.masks import diagonal, is_new
from lightning_ligo.operator.operator import Operator
from lightning_ligo.operator.widths import Span, Widths
from lightning_ligo.plan.plan import Plan, Row

Policy = Literal["map", "keep-old-zero-new", "reset"]
States = Mapping[str, Mapping[str, Any]]
"""The optimizer state of every parameter that has any, by the parameter's name."""

POWERS = dict.fromkeys(("exp_avg", "momentum_buffer", "grad_avg"), 1)
POWERS |= dict.fromkeys(("exp_avg_sq", "max_exp_avg_sq", "square_avg"), 2)
"""The tensors of torch's optimizers that are means of this power of the gradient."""


@torch.no_grad()
def grow_states(operator: Operator, states: States, policy: Policy = "map") -> dict[str, Any]:
    """Grow the optimizer state, by parameter name; a parameter without any starts fresh.

    Parameters that do not grow keep their state, the same tensors, under every policy. The others:

    - ``map``: a gradient of ``W_large = B_out W A_inᵀ`` is ``A_out G B_inᵀ``, as ``A`` reads what
      ``B`` writes. First moments grow like this. Second moments grow with every entry of the forms
      squared, like the variance of a sum of independent terms. For the maps of Staged Training
      (ICML 2022) these are its halves and quarters.
    - ``keep-old-zero-new``: old entries keep their moments, new ones have zero (SPARKLING, ICML
      2026). A parameter has one step count, so Adam treats the first moments of new entries as
      unbiased: their first steps are up to ``(1 - beta1) / sqrt(1 - beta2)`` learning rates long,
      3.2 by default.
    - ``reset``: no state.

    These have no state under any policy: new zero-output layers, except their output projection;
    new layers that are the identity or fresh; resized tables; all parameters, if the method takes
    nothing from the small network. Fresh entries of other parameters have zero. Single numbers,
    such as the step, come from the source of a layer. Tensors are recognised by the names in
    `POWERS`; a parameter with any other tensor starts fresh, with a warning.

    Args:
        operator: the operator that has grown the network.
        states: of the small network's parameters; tensors are not changed.
        policy: the state of parameters that grow.

    Raises:
        ValueError: for an unknown policy.
    """
    if policy not in get_args(Policy):
        known = ", ".join(map(repr, get_args(Policy)))
        raise ValueError(f"got policy {policy!r}, expected one of {known}")
    grown: dict[str, Any] = {}
    unknown: set[str] = set()
    for row in operator.plan.rows if not operator.method.takes_nothing else ():
        layers = [states.get(name) or {} for name in row.small_names]
        if not any(layers):
            continue
        if not (
            operator.widths.grows(row) or operator.depths.mixed(row.stack) or row.small != row.large
        ):
            pairs = zip(row.large_names, layers, strict=True)
            grown |= {name: state for name, state in pairs if state}
        elif policy != "reset" and not _is_resized(operator.plan, row):
            strange = {key for state in layers for key in state if _strange(key, state, row.small)}
            unknown |= strange
            grown |= {} if strange else _grown(operator, row, layers, policy)
    if unknown:
        warnings.warn(
            f"the optimizer keeps {', '.join(sorted(unknown))}, which is not a known moment of the "
            f"gradient ({', '.join(POWERS)}); grown parameters with it start with fresh state",
            stacklevel=2,
        )
    return grown


def _strange(key: str, state: Mapping[str, Any], shape: Size) -> bool:
    """Whether a part of a state is neither a known moment nor a single number."""
    value = state[key]
    if key in POWERS:
        return value is not None and value.shape != shape
    number = isinstance(value, Tensor) and value.dim() == 0
    return not (value is None or isinstance(value, (int, float)) or number)


def _grown(
    operator: Operator, row: Row, layers: Sequence[Mapping[str, Any]], policy: Policy
) -> dict[str, dict[str, Any]]:
    """Grow the state of a parameter in every large layer, where it has any."""
    mapped = policy == "map"
    mix = operator.depths.gradients(row) if mapped else operator.depths.old(row)
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
        small = operator.precise(small)
        small = torch.tensordot(mix.to(small) ** POWERS[key], small, dims=1)
        if mapped:
            large = _grow_gradient(operator.widths, small, row, POWERS[key])
        else:
            large = _pad_zeros(operator.widths, small, row)
        for state, value in zip(states, large.to(first.dtype), strict=True):
            state[key] = value.clone(memory_format=torch.contiguous_format)
    names = zip(row.large_names, states, has, strict=True)
    return {name: state for name, state, any_ in names if any_}


# Growing a gradient -----------------------------------------------------------------------------


def _is_resized(plan: Plan, row: Row) -> bool:
    """Whether a dimension grows that is resized, such as positions, and has no map."""
    uses = [use for product in row.dims for use in uses_of(product)]
    return any(
        plan.all_axes[use.axis].resize not in (None, "join") and plan.grows((use,)) for use in uses
    )


def _grow_gradient(widths: Widths, x: Tensor, row: Row, power: int = 1) -> Tensor:
    """(g, *small shape) to (g, *large shape), for a gradient or a mean of its squares.

    A parameter that is written with ``B`` is read with ``A``, and its gradient comes back through
    the reader: the forms change roles. For ``W_large = B_out W A_inᵀ`` it is ``A_out G B_inᵀ``.
    For squares, ``power`` 2, the entries of both forms are squared.
    """
    grown = widths.grow(x, row, functools.partial(_widen, widths, power))
    repeats = math.prod(widths.plan.length(dim)[0] for dim in row.dims) // math.prod(row.small)
    if repeats > 1:  # each copy of a shared head has a share of its gradient
        grown = grown / repeats**power
    if (factor := widths.factor(row)) is not None:
        grown = grown / factor.view(-1, *[1] * len(row.large)).to(grown) ** power
    if widths.width is not None and widths.width.rest != "zero":
        grown = grown.masked_fill(is_new(widths, row).to(grown.device), 0)
    if widths.width is not None and widths.width.diagonal:
        mask = diagonal(widths, row)
        grown = grown if mask is None else grown * (mask > 0).to(grown)
    return grown


def _pad_zeros(widths: Widths, x: Tensor, row: Row) -> Tensor:
    """(g, *small shape) to (g, *large shape), with zeros for new entries."""

    def widen(x: Tensor, dim: int, span: Span) -> Tensor:
        new = x.new_zeros(*x.shape[:dim], span.large - span.small, *x.shape[dim + 1 :])
        return torch.cat([x, new], dim)

    return widths.grow(x, row, widen)


def _widen(widths: Widths, power: int, x: Tensor, dim: int, span: Span) -> Tensor:
    span = _reader(widths, span)
    if power == 1:
        return widths.widen(x, dim, span)
    fixed = widths.fixed.get(span.name)
    if fixed is not None and not {span.name, f"{span.name}:U"} & widths.maps.keys():
        scale = widths.starts[span.key].scale ** (2 * span.power)
        return fixed.squared(span.small).grow(x * scale, dim)
    layers = len(x) if widths.plan.all_axes[span.axis].stack else 1
    form = widths.widen(torch.eye(span.small).to(x).expand(layers, -1, -1), 1, span)
    return along(form.square() if layers > 1 else form[0].square(), x, dim)


def _reader(widths: Widths, span: Span) -> Span:
    """The span by which a gradient grows.

    Queries and keys read one another as they write, by ``B``. The maps of the paper have one form.
    """
    contracted = widths.plan.all_axes[span.axis].contracted and span.form == "produces"
    form = "produces" if contracted or span.form == "consumes" else "consumes"
    reader = span._replace(form=form, power=-span.power)
    known = reader.name in widths.fixed or reader.name in widths.maps
    return reader if known else reader._replace(form=span.form)
