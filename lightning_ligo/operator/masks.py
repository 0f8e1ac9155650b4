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


def is_fresh(widths: Widths, row: Row) -> Tensor:
    """Whether a large entry stays as the large network was built.

    If fresh parts are one-sided, a new entry stays if what reads it is zero, or if it reads what is
    zero: a stream behind its norm, or values that grow with their queries. Gains may be any.
    """
    assert widths.width is not None
    if widths.width.rest != "one-sided":
        return is_new(widths, row) & (widths.width.rest == "fresh")

    def unread(span: Span) -> bool:
        return span.role == "gain" or (span.role != "consumes" and _is_hidden(widths, span))

    def reads_fresh(span: Span) -> bool:
        return span.role == "consumes" and _is_hidden(widths, span)

    def reads_zero(span: Span) -> bool:
        raw = span.power < 0 and widths.plan.all_axes[span.axis].normed == "layer"
        return span.role == "consumes" and not _is_hidden(widths, span) and not raw

    kept = _outer(widths, row, _new_if(reads_zero)) | _queries(widths, row)
    return _outer(widths, row, _new_if(unread)) | (
        kept & ~_outer(widths, row, _new_if(reads_fresh))
    )


def _is_hidden(widths: Widths, span: Span) -> bool:
    """Whether fresh values may stand on an axis: neither a norm nor a product sums over it."""
    axis = widths.plan.all_axes[span.axis]
    return not (axis.normed or axis.contracted)


def _queries(widths: Widths, row: Row) -> Tensor:
    """Whether an entry is new in the queries, the first that write what is contracted with keys."""
    axes, total = widths.plan.all_axes, torch.tensor(False)

    def first(span: Span) -> bool:
        asks = axes[span.axis].contracted and span.flow == widths.queries[span.axis]
        return asks and span.role != "consumes"

    def slot(span: Span) -> Tensor:  # the first of queries, keys and values in one projection
        return torch.arange(span.large) < (1 if axes[span.axis].pinned else span.large)

    for dim in row.dims:
        new = _over(widths, dim, _new_if(first), False, torch.logical_or)
        total = total.unsqueeze(-1) | (new & _over(widths, dim, slot, None, torch.logical_and))
    return total


def is_joined(widths: Widths, row: Row) -> Tensor:
    """Whether an entry multiplies what only new layers write, such as a gain."""

    def joined(span: Span) -> Tensor:
        return torch.full((span.large,), span.small == 0 and span.role != "consumes")

    total = torch.tensor(False)
    for dim in row.dims:
        new = _over(widths, dim, joined, None, torch.logical_or) if dim else torch.tensor([False])
        total = total.unsqueeze(-1) | new
    return total


def _new_if(counts: Callable[[Span], bool]) -> Callable[[Span], Tensor]:
    return lambda span: (torch.arange(span.large) >= span.small) & counts(span)


def is_new(widths: Widths, row: Row, form: str | None = None, role: str | None = None) -> Tensor:
    """Whether a large entry is new on any axis, or on one with this form or this role."""
    return _outer(widths, row, _new_if(lambda s: form in (None, s.form) and role in (None, s.role)))


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
    other: bool | int | None,
    combine: Combine,
) -> Tensor:
    """The values along a large dimension; ``other``, if given, where no map grows it."""

    def along(span: Span) -> Tensor:
        if other is None or widths.has_map(span):
            return of(span)
        return torch.full((span.large,), other)

    def outer(vectors: list[Tensor]) -> Tensor:
        return functools.reduce(
            lambda total, vector: combine(total.unsqueeze(-1), vector).flatten(),
            vectors or [torch.tensor([True if other is None else other])],
        )

    return fold(widths.factors(product), along, outer, torch.cat)
