"""A dimension as a product of factors: read from notation, found by tracing, grown by a plan.

A **product** is a tuple of nodes, slowest first. A node is a leaf or a `Sum` of products that stand
one after the other. Leaves are words and numbers in the notation, uses of axes in a network.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from itertools import chain
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor

Leaf = TypeVar("Leaf")
Value = TypeVar("Value")


@dataclass(frozen=True)
class Sum(Generic[Leaf]):
    """Segments one after the other, each a product: a dimension that is concatenated or split."""

    segments: tuple[tuple[Leaf | Sum[Leaf], ...], ...]


Product = tuple[Leaf | Sum[Leaf], ...]


def fold(
    product: Product[Any],
    value: Callable[[Any], Any],
    times: Callable[[list[Any]], Value],
    plus: Callable[[list[Value]], Any],
) -> Value:
    """Compute a value of a product from the values of its leaves.

    >>> fold((3, Sum(((4,), (2, 5)))), str, " x ".join, " + ".join)
    '3 x 4 + 2 x 5'
    """
    return times([
        plus([fold(segment, value, times, plus) for segment in node.segments])
        if isinstance(node, Sum)
        else value(node)
        for node in product
    ])  # fmt: skip


def length(product: Product[Any], of: Callable[[Any], int]) -> int:
    """Compute the length of a dimension from the lengths of its leaves.

    >>> length(("heads", Sum((("query",), ("key",)))), {"heads": 6, "query": 64, "key": 32}.get)
    576
    """
    return fold(product, of, lambda factors: math.prod(factors), lambda segments: sum(segments))


def uses_of(product: Product[Leaf]) -> list[Leaf]:
    """List the leaves of a dimension in order, also those in the segments of its sums.

    >>> uses_of((3, Sum((("query",), ("key",)))))
    [3, 'query', 'key']
    """
    return fold(product, lambda leaf: [leaf], _joined, _joined)


def _joined(lists: Iterable[list[Leaf]]) -> list[Leaf]:
    return list(chain.from_iterable(lists))


def replaced(product: Product[Any], by: Callable[[Any], Value]) -> Product[Value]:
    """Replace every leaf of a dimension.

    >>> replaced((3, Sum((("query",), ("key",)))), str)
    ('3', Sum(segments=(('query',), ('key',))))
    """
    return fold(product, by, tuple, lambda segments: Sum(tuple(segments)))


def change_along(
    tensor: Tensor,
    dim: int,
    product: Product[Leaf],
    of: Callable[[Leaf], int],
    changes: Mapping[Leaf, Callable[[Tensor, int], Tensor]],
) -> Tensor:
    """Change a tensor along factors of one of its dimensions.

    Args:
        of: the length of a leaf.
        changes: what to do along a leaf, as a function of a tensor and a position in its shape.

    >>> change_along(torch.arange(6), 0, (2, 3), int, {3: lambda x, position: x.flip(position)})
    tensor([2, 1, 0, 5, 4, 3])
    """
    if changes.keys().isdisjoint(uses_of(product)):
        return tensor
    tensor = tensor.unflatten(dim, [length((node,), of) for node in product])
    for position, node in enumerate(product, start=dim):
        if isinstance(node, Sum):
            pieces = tensor.split([length(segment, of) for segment in node.segments], position)
            tensor = torch.cat([
                change_along(piece, position, segment, of, changes)
                for piece, segment in zip(pieces, node.segments, strict=True)
            ], position)  # fmt: skip
        elif node in changes:
            tensor = changes[node](tensor, position)
    return tensor.flatten(dim, dim + len(product) - 1)
