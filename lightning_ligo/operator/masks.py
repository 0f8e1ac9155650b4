"""Masks over the entries of a large parameter, and noise on its copies.

A mask is an outer product of vectors along the dimensions, and has their shape, without layers.
"""

from __future__ import annotations

import functools
import zlib
from collections.abc import Callable

import torch
from torch import Tensor

from lightning_ligo.axes.axes import Use
from lightning_ligo.axes.dims import Product, fold
from lightning_ligo.methods.forms import Copier, Copies, repeats
from lightning_ligo.operator.widths import Span, Widths
from lightning_ligo.plan.plan import Row

Combine = Callable[[Tensor, Tensor], Tensor]


def is_unreached(widths: Widths, row: Row) -> Tensor:
    """Whether a large entry is made of no small one."""
    return _outer(widths, row, lambda span: ~widths.reached[span.name])


def is_new(widths: Widths, row: Row, form: str | None = None, role: str | None = None) -> Tensor:
    """Whether a large entry is new on any axis, or on one with this form or this role."""

    def of(span: Span) -> Tensor:
        counts = form in (None, span.form) and role in (None, span.role)
        return (torch.arange(span.large) >= span.small) & counts

    return _outer(widths, row, of)


def diagonal(widths: Widths, row: Row) -> Tensor | None:
    """The factors that make copies read copies of their own number only; None without readers.

    A reader takes the whole of one copy in place of a share of each.
    """
    roles = [{span.role == "consumes" for span in widths.spans(dim)} for dim in row.dims]
    reads = sum(True in reading for reading in roles)
    if not reads or not any(False in reading for reading in roles):
        return None

    def number(span: Span) -> Tensor:
        return torch.arange(span.large) // span.small

    numbers = [
        _over(widths, dim, number, 0, torch.maximum).view(-1, *[1] * (len(row.dims) - 1 - place))
        for place, dim in enumerate(row.dims)
        if roles[place]
    ]
    same = torch.stack(torch.broadcast_tensors(*(n == numbers[0] for n in numbers))).all(0)
    return same * (int(numbers[0].max()) + 1) ** reads


def noise(widths: Widths, row: Row, like: Tensor, seed: int) -> Tensor | None:
    """Noise of mean square 1 on the readers of copies; it cancels between two of one entry."""
    for dim, product in enumerate(row.dims, start=1):
        spans = list(widths.factors(product))
        for position, span in enumerate(spans, start=dim):
            if isinstance(span, Span) and span.role == "consumes" and widths.has_map(span):
                key = zlib.crc32(f"{seed} {row.pattern}".encode())
                generator = torch.Generator().manual_seed(key)
                drawn = torch.randn(like.shape, generator=generator, dtype=torch.float64)
                drawn = drawn.unflatten(dim, [widths.lengths(span)[1] for span in spans])
                drawn = _paired(widths, span).grow(drawn, position)
                return drawn.flatten(dim, dim + len(spans) - 1).to(like)
    return None


def _paired(widths: Widths, span: Span) -> Copier:
    """Gives the second copy of every two the noise of the first with the other sign."""
    index, sign = [], []
    for layer in widths.starts[span.key].layers:
        form = layer.consumes
        assert isinstance(form, Copies)
        number, order = repeats(form.entry), form.entry.argsort(stable=True)
        place = order.argsort()  # of an entry, among copies of one entry after the other
        first = order[place - number % 2]
        paired = torch.zeros(span.large, dtype=torch.float64)
        second = (number % 2 == 1) & (form.entry < span.small)
        paired[second], paired[first[second]] = -1, 1
        index.append(first)
        sign.append(paired)
    pairs = [torch.stack(part) if len(part) > 1 else part[0] for part in (index, sign)]
    return Copier.of(Copies(*pairs), span.large, torch.device("cpu"), torch.float64)


def _outer(widths: Widths, row: Row, of: Callable[[Span], Tensor]) -> Tensor:
    """Whether something is true of a large entry along any dimension."""
    total = torch.tensor(False)
    for dim in row.dims:
        total = total.unsqueeze(-1) | _over(widths, dim, of, False, torch.logical_or)
    return total


def _over(
    widths: Widths,
    product: Product[Use],
    of: Callable[[Span], Tensor],
    other: bool | int,
    combine: Combine,
) -> Tensor:
    """The values along a large dimension; ``other`` where no map grows it."""

    def along(span: Span) -> Tensor:
        return of(span) if widths.has_map(span) else torch.full((span.large,), other)

    def outer(vectors: list[Tensor]) -> Tensor:
        return functools.reduce(
            lambda total, vector: combine(total.unsqueeze(-1), vector).flatten(),
            vectors or [torch.tensor([other])],
        )

    return fold(widths.factors(product), along, outer, torch.cat)
