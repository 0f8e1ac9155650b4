"""The two partitions that a traced forward builds: factors of dimensions, and the flows they carry.

A **factor** is a length that divides a dimension: the output of a fused qkv of width 1152 has the
factors 3, 6 and 64. Factors that an operation forces to be the same length in the same order are
united; united factors are one axis. A factor can also be a **sum**: what is concatenated or split
has segments one after the other. A **flow** is narrower than an axis: the values that one set of
parameters writes and another reads. Queries and keys share an axis (their product contracts it)
but are two flows.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from itertools import accumulate, groupby, pairwise
from typing import NamedTuple

SINGLE = "it is a single entry"


class Misaligned(ValueError):
    """Two lists of factors have no common refinement."""


class Factor:
    """A length of unknown name: a node of a union-find.

    A root is a leaf, a product of ``parts``, or a sum of ``segments``.
    """

    __slots__ = (
        "_parent",
        "contracted",
        "hint",
        "owned",
        "parts",
        "pinned",
        "scale",
        "segments",
        "size",
        "unit",
    )

    def __init__(self, size: int, *, owned: bool = False, pinned: str | None = None) -> None:
        self.size = size
        self.owned = owned  # some parameter carries it
        self.pinned = pinned  # why its entries cannot be exchanged, if they cannot
        self.hint: str | None = None  # what an operation knows it by: "heads", "kernel", ...
        self.contracted = False  # two activations are contracted over it
        self.scale = 1.0  # the numbers by which what lies on it, or its contraction, is multiplied
        self.unit = False  # a weight is divided by its norm over it
        self.parts: tuple[Factor, ...] = ()
        self.segments: tuple[Factor, ...] = ()
        self._parent: Factor | None = None

    def root(self) -> Factor:
        node = self
        while node._parent is not None:
            node = node._parent
        if node is not self:
            self._parent = node
        return node

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
            slot = Factor(first, owned=self.owned, pinned="its entries are concatenated")
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
        piece = Factor(size, owned=self.owned, pinned=self.pinned)
        piece.hint, piece.contracted = self.hint, self.contracted
        piece.scale, piece.unit = self.scale, self.unit
        return piece

    def join(self, other: Factor) -> None:
        """Make another root of the same size this one."""
        assert self.size == other.size and not self.parts and not other.parts
        if self is other:
            return
        other._parent = self
        self.owned = self.owned or other.owned
        self.pinned = self.pinned or other.pinned
        self.hint = self.hint or other.hint
        self.contracted = self.contracted or other.contracted
        self.scale *= other.scale
        self.unit = self.unit or other.unit


class Flow:
    """Values that parameters write and parameters read: a node of a union-find.

    The flow along a sum has a flow for each segment, by its start and length.
    """

    __slots__ = ("_parent", "_segments", "nonlinear", "normed_into", "reduced")

    def __init__(self) -> None:
        self.nonlinear = False  # an activation, or another function that is not linear, was applied
        self.reduced = False  # a mean, a softmax, a maximum of it was taken
        self.normed_into: list[Flow] = []  # the flows that come out of norms over this one
        self._segments: dict[tuple[int, int], Flow] = {}
        self._parent: Flow | None = None

    def root(self) -> Flow:
        node = self
        while node._parent is not None:
            node = node._parent
        if node is not self:
            self._parent = node
        return node

    def union(self, other: Flow) -> None:
        mine, theirs = self.root(), other.root()
        if mine is theirs:
            return
        theirs._parent = mine
        mine.normed_into += theirs.normed_into
        mine.nonlinear = mine.nonlinear or theirs.nonlinear
        mine.reduced = mine.reduced or theirs.reduced
        for (start, length), flow in theirs._segments.items():
            mine.segment(start, length, flow)

    def segment(self, start: int, length: int, flow: Flow | None = None) -> Flow:
        """The flow along part of this one; ``flow`` is united with it."""
        segments = self.root()._segments
        for (begin, extent), inside in segments.items():
            if (begin, extent) == (start, length):
                break
            if begin <= start and start + length <= begin + extent:
                return inside.segment(start - begin, length, flow)
        else:
            inside = segments[start, length] = flow or Flow()
            inside.root().normed_into += self.root().normed_into
            inside.root().nonlinear = inside.root().nonlinear or self.root().nonlinear
        if flow is not None:
            inside.union(flow)
        return inside


class Owner(NamedTuple):
    """The entries of a parameter's dimension that an item stands for: all, or one segment."""

    name: str
    dim: int
    start: int = 0
    length: int | None = None


class Item(NamedTuple):
    """One factor of a tensor's dimension, the flow of values along it, and whose it is.

    What is computed from several parameters has several owners.
    """

    factor: Factor
    flow: Flow | None
    owners: tuple[Owner, ...] = ()


Dim = list[Item]


def leaves(items: Iterable[Item]) -> Dim:
    """The items with every product replaced by its parts; sums stay whole."""
    result: Dim = []
    for item in items:
        root = item.factor.root()
        if root.parts:
            result += leaves(item._replace(factor=part) for part in root.parts)
        else:
            result.append(item._replace(factor=root))
    return result


def segments(item: Item) -> Dim:
    """The segments of a sum, each with its own flow."""
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
    """The factors that are neither products nor sums, in order."""
    for leaf in leaves(items):
        if leaf.factor.segments:
            yield from ends(segments(leaf))
        else:
            yield leaf


def size(items: Iterable[Item]) -> int:
    return math.prod(item.factor.size for item in items)


def owned(items: Iterable[Item]) -> bool:
    return any(end.factor.owned for end in ends(items))


def fixed(items: Iterable[Item]) -> bool:
    """Whether nothing of a dimension can grow."""
    return all(end.factor.pinned for end in ends(items))


def pin(items: Iterable[Item], reason: str) -> None:
    """Say why the entries of these factors are told apart by their position."""
    for leaf in leaves(items):
        leaf.factor.pinned = leaf.factor.pinned or reason
        for end in ends([leaf]):
            end.factor.pinned = end.factor.pinned or reason


def hint(items: Iterable[Item], word: str) -> None:
    """Say what an operation knows these factors by."""
    for leaf in leaves(items):
        for factor in (leaf.factor, *(end.factor for end in ends([leaf]))):
            factor.hint = factor.hint or word


def unite(first: Dim, second: Dim, *, flow: bool = True) -> None:
    """Make two dimensions the same axes, splitting factors where the other side is finer.

    ``flow=False`` leaves the flows apart (a contraction compares values, it does not pass them).
    Where nothing can grow on either side nothing needs to be finer.
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
    mine, theirs = left.factor, right.factor
    if mine is not theirs and (mine.segments or theirs.segments):
        while mine.starts() != theirs.starts():  # cutting a nested sum may add boundaries
            boundaries = {*mine.starts(), *theirs.starts()}
            mine.cut(boundaries)
            theirs.cut(boundaries)
        for one, other in zip(segments(left), segments(right), strict=True):
            unite([one], [other], flow=flow)
        theirs.segments = ()
    mine.join(theirs)
    if flow and left.flow is not None and right.flow is not None:
        left.flow.union(right.flow)


def broadcast(tensors: Sequence[list[Dim]]) -> list[Dim]:
    """Unite dimensions of several tensors, aligned at the last, and keep their flows."""
    rank = max(map(len, tensors))
    dims: list[Dim] = [[] for _ in range(rank)]
    for theirs in tensors:
        for position, dim in enumerate(theirs, start=rank - len(theirs)):
            if dims[position] and dim:
                unite(dims[position], dim)
            dims[position] = joined(dims[position], dim)
    return dims


def joined(first: Dim, second: Dim) -> Dim:
    """The same factors, with the flow of whichever side has one and the owners of both."""
    if not first or not second or len(leaves(first)) != len(leaves(second)):
        return first or second
    return [
        Item(left.factor, left.flow or right.flow, tuple({*left.owners, *right.owners}))
        for left, right in zip(leaves(first), leaves(second), strict=True)
    ]


def regroup(dims: Sequence[Dim], sizes: Iterable[int]) -> list[Dim]:
    """The factors of a tensor read in row-major order and grouped into new dimensions.

    Neighbouring factors that cannot grow may be grouped in any way; the result then has new ones.

    Raises:
        Misaligned: if a new dimension ends in the middle of a factor that it does not divide.
    """
    sizes = list(sizes)
    items = [item for dim in dims for item in dim]
    try:
        return _grouped(list(items), sizes)
    except Misaligned:
        fluid = [
            [Item(Factor(size(run), pinned="it is a position"), None)] if stuck else list(run)
            for stuck, group in groupby(leaves(items), lambda leaf: fixed([leaf]))
            for run in [list(group)]
        ]
        return _grouped([item for run in fluid for item in run], sizes)


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
    """The entries ``start`` to ``start + length`` of a dimension, which becomes a sum there.

    Raises:
        Misaligned: if the cut goes through a factor behind the first, and something could grow.
    """
    if length == size(dim):
        return dim
    if length == 0:
        return [Item(Factor(0, pinned="it is empty"), None)]
    if fixed(dim):
        return [Item(Factor(length, pinned="it is cut by position"), None)] if length > 1 else []
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
    """One dimension whose segments are these, in order."""
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
            joined.append(Factor(size(whole), owned=owned(whole), pinned=single))
            joined[-1].parts = tuple(item.factor for item in whole)
        flow.segment(total.size, joined[-1].size, _passing(whole))
        total.size += joined[-1].size
    total.segments = tuple(joined)
    total.owned = any(segment.owned for segment in joined)
    pinned = [end.factor.pinned for end in ends([Item(total, None)])]
    if all(pinned):
        total.pinned = next((reason for reason in pinned if reason != SINGLE), SINGLE)
    return [Item(total, flow)]


def _passing(items: Dim) -> Flow | None:
    """One flow for all factors of a product: what a norm over the last made of that of others."""
    flows = [item.flow.root() for item in items if item.flow is not None]
    for other in flows[:-1]:
        if flows[-1] in map(Flow.root, other.normed_into):
            flows[-1].nonlinear = True  # each of the others was normed by itself
        else:
            flows[-1].union(other)
    return flows[-1] if flows else None
