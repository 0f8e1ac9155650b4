"""The factors of dimensions, one of the two partitions that tracing builds; see `flow.py` too.

A **factor** is a length that divides a dimension: the output of a fused qkv of width 1152 has the
factors 3, 6 and 64. Factors that an operation forces to have the same length and order are united.
United factors are one axis. A factor can also be a **sum**: a dimension that is concatenated or
split has segments one after the other.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, groupby, pairwise
from typing import NamedTuple

from lightning_ligo.axes.dims import Product, Sum
from lightning_ligo.axes.flow import Flow, Node

SINGLE = "it is a single entry"
CONSTANT = "a constant of the network lies on it"


class Misaligned(ValueError):
    """Two lists of factors have no common refinement."""


@dataclass(slots=True)
class Facts:
    """Hold what the forward has shown of a factor."""

    owned: bool = False  # by a parameter
    pinned: str | None = None  # why its entries cannot be exchanged, if they cannot
    hint: str | None = None  # the word of an operation for it: "heads", "kernel", ...
    contracted: tuple[list[float], ...] = ()  # of every product that sums over it, [its scale]
    scale: float = 1.0  # the product of the numbers that multiply it
    # Of an operation that cannot be followed: whether the user named all axes that went in.
    named: bool | None = None

    def merge(self, other: Facts) -> Facts:
        """Combine what is known of two factors that are united."""
        return Facts(
            self.owned or other.owned,
            _stronger(self.pinned, other.pinned),
            self.hint or other.hint,
            self.contracted + other.contracted,
            self.scale * other.scale,
            other.named if self.named is None else self.named,
        )


def _stronger(first: str | None, second: str | None) -> str | None:
    """The stronger reason to stay: a constant is computed anew where the axis is longer."""
    return (first if first != CONSTANT else second) or first or second


class Factor(Node):
    """A length of unknown name. A root is a leaf, a product of parts, or a sum of segments."""

    __slots__ = ("facts", "parts", "segments", "size")

    def __init__(self, size: int, facts: Facts | None = None) -> None:
        super().__init__()
        self.size = size
        self.facts = facts or Facts()
        self.parts: tuple[Factor, ...] = ()
        self.segments: tuple[Factor, ...] = ()

    def split(self, first: int) -> None:
        """Split a root without parts into ``first`` times the rest."""
        rest = self.size // first
        if self.size % first:
            raise Misaligned(self.size, first)
        if not self.segments:
            self.parts = (self._piece(first), self._piece(rest))
            return
        sizes = [segment.root().size for segment in self.segments]
        if all(size == rest for size in sizes):  # equal segments: told apart by their number
            for segment in self.segments[1:]:
                unite([Item(self.segments[0], None)], [Item(segment, None)])
            slot = Factor(first, Facts(self.facts.owned, "its entries are concatenated"))
            self.parts = (slot, self.segments[0])
        elif all(size % rest == 0 for size in sizes):  # a sum of heads, each as wide
            outer, inner = [], []
            for segment in self.segments:
                head, tail = regroup([[Item(segment, None)]], (segment.size // rest, rest))
                outer += [head[0].factor if head else self._piece(1)]
                inner += [tail]
            for tail in inner[1:]:
                unite(inner[0], tail)
            total = self._piece(first)
            total.segments = tuple(outer)
            self.parts = (total, *(item.factor for item in inner[0]))
        else:
            raise Misaligned(self.size, first)
        self.segments = ()

    def cut(self, boundaries: Iterable[int]) -> None:
        """Make a root without parts a sum whose segments end at these positions, and others."""
        if self.parts:
            raise Misaligned(self.size)
        inside = {b for b in boundaries if 0 < b < self.size}
        if not inside:
            return
        if not self.segments:
            ends = [0, *sorted(inside), self.size]
            self.segments = tuple(self._piece(b - a) for a, b in pairwise(ends))
            return
        segments: list[Factor] = []
        for segment, start in zip(self.segments, self.starts(), strict=True):
            root = segment.root()
            within = {b - start for b in inside if start < b < start + root.size}
            if within:
                root.cut(within)
            segments += root.segments or (root,)
        self.segments = tuple(segments)

    def starts(self) -> list[int]:
        """Where each segment begins."""
        return [0, *accumulate(segment.root().size for segment in self.segments)][:-1]

    def _piece(self, size: int) -> Factor:
        return Factor(size, replace(self.facts))

    def join(self, other: Factor) -> None:
        """Make another root of the same size this one."""
        assert self.size == other.size and not self.parts and not other.parts
        if self is not other:
            other._parent = self
            self.facts = self.facts.merge(other.facts)


class Owner(NamedTuple):
    """The entries of a parameter's dimension that an item stands for: all, or one segment."""

    name: str
    dim: int
    start: int = 0
    length: int | None = None


class Item(NamedTuple):
    """One factor of a tensor's dimension, the flow of values along it, and its owners.

    A tensor that is computed from several parameters has several owners.
    """

    factor: Factor
    flow: Flow | None
    owners: tuple[Owner, ...] = ()


Dim = list[Item]


def new(length: int, *, pinned: str | None = None) -> Dim:
    """Make a dimension of a factor that no parameter carries; of length 1 it has none."""
    return [Item(Factor(length, Facts(pinned=pinned)), None)] if length != 1 else []


def leaves(items: Iterable[Item]) -> Dim:
    """List the items with every product replaced by its parts; sums stay whole."""
    result: Dim = []
    for item in items:
        root = item.factor.root()
        if root.parts:
            result += leaves(item._replace(factor=part) for part in root.parts)
        else:
            result.append(item._replace(factor=root))
    return result


def segments(item: Item) -> Dim:
    """List the segments of a sum, each with its own flow."""
    root = item.factor.root()
    result: Dim = []
    for segment, start in zip(root.segments, root.starts(), strict=True):
        length = segment.root().size
        flow = item.flow and item.flow.segment(start, length)
        owners = (
            owner._replace(start=start, length=length) if owner.length is None else owner
            for owner in item.owners
        )
        result.append(Item(segment, flow, tuple(owners)))
    return result


def ends(items: Iterable[Item]) -> Iterator[Item]:
    """Yield the factors that are neither products nor sums, in order."""
    for leaf in leaves(items):
        if leaf.factor.segments:
            yield from ends(segments(leaf))
        else:
            yield leaf


def end_factors(*dims: Iterable[Item]) -> list[Factor]:
    """List the factors of dimensions that are neither products nor sums, in order."""
    return [end.factor for items in dims for end in ends(items)]


def product_of(items: Iterable[Item], whole: Callable[[Item], bool]) -> Product[Item]:
    """Write a dimension as a product; a sum for which ``whole`` is true is a leaf."""
    return tuple(
        Sum(tuple(product_of([segment], whole) for segment in segments(leaf)))
        if leaf.factor.segments and not whole(leaf)
        else leaf
        for leaf in leaves(items)
    )


def size(items: Iterable[Item]) -> int:
    return math.prod(item.factor.size for item in items)


def owned(items: Iterable[Item]) -> bool:
    return any(factor.facts.owned for factor in end_factors(items))


def fixed(items: Iterable[Item]) -> bool:
    """Whether nothing of a dimension can grow; a parameter's axis can, under a constant."""
    return all(
        factor.facts.pinned and not (factor.facts.owned and factor.facts.pinned == CONSTANT)
        for factor in end_factors(items)
    )


def pin(items: Iterable[Item], reason: str) -> None:
    """Record why the entries of these factors are distinguished by their position."""
    for leaf in leaves(items):
        for factor in (leaf.factor, *end_factors([leaf])):
            factor.facts.pinned = _stronger(factor.facts.pinned, reason)


def hint(items: Iterable[Item], word: str) -> None:
    """Record an operation's word for these factors."""
    for leaf in leaves(items):
        for factor in (leaf.factor, *end_factors([leaf])):
            factor.facts.hint = factor.facts.hint or word


def unite(first: Dim, second: Dim, *, flow: bool = True) -> None:
    """Make two dimensions the same axes, splitting factors where the other side is finer.

    ``flow=False`` leaves the flows apart: a contraction compares values, it does not pass them.
    Two dimensions that cannot grow are not split.
    """
    if fixed(first) and fixed(second) and _sizes(first) != _sizes(second):
        return
    done = 0
    while True:
        lefts, rights = leaves(first), leaves(second)
        if done == len(lefts) or done == len(rights):
            break
        left, right = lefts[done], rights[done]
        small, large = sorted((left.factor, right.factor), key=lambda factor: factor.size)
        if small.size != large.size:
            large.split(small.size)
            continue
        _unite_roots(left, right, flow)
        done += 1
    if len(lefts) != len(rights):
        raise Misaligned([item.factor.size for item in lefts + rights])


def _sizes(items: Iterable[Item]) -> list[int]:
    return [leaf.factor.size for leaf in leaves(items)]


def _unite_roots(left: Item, right: Item, flow: bool) -> None:
    first, second = left.factor, right.factor
    if first is not second and (first.segments or second.segments):
        while first.starts() != second.starts():  # cutting a nested sum may add boundaries
            boundaries = {*first.starts(), *second.starts()}
            first.cut(boundaries)
            second.cut(boundaries)
        for one, other in zip(segments(left), segments(right), strict=True):
            unite([one], [other], flow=flow)
        second.segments = ()
    first.join(second)
    if flow and left.flow is not None and right.flow is not None:
        left.flow.union(right.flow)


def broadcast(tensors: Sequence[list[Dim]]) -> list[Dim]:
    """Unite dimensions of several tensors, aligned at the last, and keep their flows."""
    rank = max(map(len, tensors))
    dims: list[Dim] = [[] for _ in range(rank)]
    for tensor in tensors:
        for position, dim in enumerate(tensor, start=rank - len(tensor)):
            if dims[position] and dim:
                unite(dims[position], dim)
            dims[position] = joined(dims[position], dim)
    return dims


def joined(first: Dim, second: Dim) -> Dim:
    """Combine two united dimensions: one flow, and the owners of both."""
    if not first or not second or len(leaves(first)) != len(leaves(second)):
        return first or second
    return [
        Item(left.factor, left.flow or right.flow, tuple({*left.owners, *right.owners}))
        for left, right in zip(leaves(first), leaves(second), strict=True)
    ]


def regroup(dims: Sequence[Dim], sizes: Iterable[int]) -> list[Dim]:
    """Group the factors of a tensor, in row-major order, into new dimensions.

    Neighbouring factors that cannot grow may be grouped in any way; new factors replace them.

    Raises:
        Misaligned: if a new dimension ends in the middle of a factor that it does not divide.
    """
    sizes = list(sizes)
    items = [item for dim in dims for item in dim]
    try:
        return _grouped(list(items), sizes)
    except Misaligned:
        fluid: Dim = []
        for stuck, group in groupby(leaves(items), lambda leaf: fixed([leaf])):
            run = list(group)
            fluid += new(size(run), pinned="it is a position") if stuck else run
        return _grouped(fluid, sizes)


def _grouped(queue: Dim, sizes: list[int]) -> list[Dim]:
    result: list[Dim] = []
    for wanted in sizes:
        dim: Dim = []
        have = 1
        while have < wanted:
            queue[:1] = leaves(queue[:1])
            if not queue or wanted % have:
                raise Misaligned(wanted)
            head, missing = queue[0].factor, wanted // have
            if head.size > missing:
                head.split(missing)
                continue
            dim.append(queue.pop(0))
            have *= head.size
        if have != wanted:
            raise Misaligned(wanted, have)
        result.append(dim)
    return result


def take(dim: Dim, start: int, length: int) -> Dim:
    """Take the entries ``start`` to ``start + length`` of a dimension, which becomes a sum.

    Raises:
        Misaligned: if the cut goes through a factor behind the first, and something could grow.
    """
    if length == size(dim):
        return dim
    if length == 0 or fixed(dim):
        return new(length, pinned="it is cut by position" if length else "it is empty")
    head, *rest = leaves(dim)
    inner = size(rest)
    if start % inner or length % inner:
        raise Misaligned(start, length, inner)
    start, length = start // inner, length // inner
    head.factor.cut((start, start + length))
    whole = segments(head)
    inside = [
        segment
        for segment, begin in zip(whole, head.factor.starts(), strict=True)
        if start <= begin < start + length
    ]
    return [*concatenate([[segment] for segment in inside]), *rest]


def concatenate(pieces: Sequence[Dim]) -> Dim:
    """Make one dimension whose segments are these, in order."""
    if len(pieces) == 1:
        return [item for item in pieces[0] if item.factor.size > 1]
    total, flow = Factor(0), Flow()
    joined: list[Factor] = []
    for piece in pieces:
        whole = leaves(piece)
        if len(whole) == 1:
            joined.append(whole[0].factor)
        else:
            single = None if whole else SINGLE
            joined.append(Factor(size(whole), Facts(owned(whole), single)))
            joined[-1].parts = tuple(item.factor for item in whole)
        flow.segment(total.size, joined[-1].size, _passing(whole))
        total.size += joined[-1].size
    total.segments = tuple(joined)
    total.facts.owned = any(segment.facts.owned for segment in joined)
    pinned = [factor.facts.pinned for factor in end_factors([Item(total, None)])]
    if all(pinned):
        strong = (reason for reason in pinned if reason not in (SINGLE, CONSTANT))
        total.facts.pinned = next(strong, CONSTANT if CONSTANT in pinned else SINGLE)
    return [Item(total, flow)]


def _passing(items: Dim) -> Flow | None:
    """Choose one flow for all factors of a product.

    It is the flow of the last factor, which is united with the others, except where a norm over the
    last factor made it of another.
    """
    flows = [item.flow.root() for item in items if item.flow is not None]
    for other in flows[:-1]:
        if flows[-1] in map(Flow.root, other.normed_into):
            flows[-1].nonlinear = True  # each of the others was normed by itself
        else:
            flows[-1].union(other)
    return flows[-1] if flows else None
