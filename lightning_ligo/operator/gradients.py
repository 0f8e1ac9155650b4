"""Grow gradients, and means of their squares, by the maps of a plan."""

from __future__ import annotations

import functools
import math

import torch
from torch import Tensor

from lightning_ligo.axes.axes import uses_of
from lightning_ligo.methods.forms import along
from lightning_ligo.operator.masks import diagonal
from lightning_ligo.operator.widths import Span, Widths
from lightning_ligo.plan.plan import Plan, Row


def is_resized(plan: Plan, row: Row) -> bool:
    """Whether a dimension grows that is resized, such as positions, and has no map."""
    uses = [use for product in row.dims for use in uses_of(product)]
    return any(plan.facts[use.axis].resize and plan.grows((use,)) for use in uses)


def grow_gradient(widths: Widths, x: Tensor, row: Row, power: int = 1) -> Tensor:
    """(g, *small shape) to (g, *large shape), for a gradient or a mean of its squares.

    A parameter that is written with ``B`` is read with ``A``, and its gradient comes back through
    the reader: the forms change roles. For ``W_large = B_out W A_inᵀ`` it is ``A_out G B_inᵀ``.
    For squares, ``power`` 2, the entries of both forms are squared.
    """
    grown = widths.grow(x, row, functools.partial(_widen, widths, power))
    repeats = math.prod(widths.plan.length(dim)[0] for dim in row.dims) // math.prod(row.small)
    if repeats > 1:  # each copy of a shared head has a share of its gradient
        grown = grown / repeats**power
    if widths.width is not None and widths.width.diagonal:
        mask = diagonal(widths, row)
        grown = grown if mask is None else grown * (mask > 0).to(grown)
    return grown


def pad_zeros(widths: Widths, x: Tensor, row: Row) -> Tensor:
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
    layers = len(x) if widths.plan.facts[span.axis].stack else 1
    form = widths.widen(torch.eye(span.small).to(x).expand(layers, -1, -1), 1, span)
    return along(form.square() if layers > 1 else form[0].square(), x, dim)


def _reader(widths: Widths, span: Span) -> Span:
    """The span by which a gradient grows.

    Queries and keys read one another as they write, by ``B``. The maps of the paper have one form.
    """
    contracted = widths.plan.facts[span.axis].contracted and span.form == "produces"
    form = "produces" if contracted or span.form == "consumes" else "consumes"
    reader = span._replace(form=form, power=-span.power)
    return reader if reader.name in widths.reached else reader._replace(form=span.form)
