"""The two partitions that a traced forward builds: factors of dimensions, and the flows they carry.

A **factor** is a length that divides a dimension: the output of a fused qkv of width 1152 has the
factors 3, 6 and 64. Factors that an operation forces to be the same length with the same order
are united; united factors are one axis. A **flow** is narrower: the values that one set of
parameters writes and another reads. Queries and keys share an axis (their product contracts it)
but are two flows.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from typing import NamedTuple


class Factor:
    """A length of unknown name: a node of a union-find whose roots may be split into parts."""

    __slots__ = ("_parent", "hint", "inner", "normed", "owned", "parts", "pinned", "size")

    def __init__(self, size: int, *, owned: bool = False, pinned: str | None = None) -> None:
        self.size = size
        self.owned = owned  # some parameter carries it
        self.pinned = pinned  # why its entries cannot be exchanged, if they cannot
        self.hint: str | None = None  # what an operation knows it by: "heads", "vocab", ...
        self.normed: str | None = None  # "layer" or "rms": a norm averages over it
        self.inner = False  # two activations are contracted over it
        self.parts: tuple[Factor, ...] = ()
        self._parent: Factor | None = None

    def root(self) -> Factor:
        node = self
        while node._parent is not None:
            node = node._parent
        if node is not self:
            self._parent = node
        return node

    def leaves(self) -> Iterator[Factor]:
        """The unsplit roots that make up this factor, slowest first."""
        root = self.root()
        if not root.parts:
            yield root
        for part in root.parts:
            yield from part.leaves()

    def split(self, first: int) -> None:
        """Split a leaf into ``first`` times the rest."""
        assert not self.parts and self.size % first == 0, (self.size, first)
        self.parts = tuple(self._part(size) for size in (first, self.size // first))

    def _part(self, size: int) -> Factor:
        part = Factor(size, owned=self.owned, pinned=self.pinned)
        part.hint, part.normed, part.inner = self.hint, self.normed, self.inner
        return part

    def union(self, other: Factor) -> None:
        """Make two leaves of equal size one."""
        assert self.size == other.size and not self.parts and not other.parts
        if self is other:
            return
        other._parent = self
        self.owned = self.owned or other.owned
        self.pinned = self.pinned or other.pinned
        self.hint = self.hint or other.hint
        self.normed = self.normed or other.normed
        self.inner = self.inner or other.inner


class Flow:
    """Values that parameters write and parameters read: a node of a union-find."""

    __slots__ = ("_parent", "normed_into", "owner")

    def __init__(self, owner: tuple[str, int] | None = None) -> None:
        self.owner = owner  # the (parameter, dim) that this node stands for; never changes
        self.normed_into: list[Flow] = []  # the flows that come out of norms over this one
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
        if mine is not theirs:
            theirs._parent = mine
            mine.normed_into += theirs.normed_into


class Item(NamedTuple):
    """One factor of a tensor's dimension, and the flow of values along it."""

    factor: Factor
    flow: Flow | None


Dim = list[Item]


def leaves(items: Iterable[Item]) -> Dim:
    """The items with every split factor replaced by its parts."""
    return [Item(leaf, item.flow) for item in items for leaf in item.factor.leaves()]


def size(items: Iterable[Item]) -> int:
    return math.prod(item.factor.size for item in items)


def owned(items: Iterable[Item]) -> bool:
    return any(leaf.factor.owned for leaf in leaves(items))


def pin(items: Iterable[Item], reason: str) -> None:
    """Say why the entries of these factors are told apart by their position."""
    for leaf in leaves(items):
        leaf.factor.pinned = leaf.factor.pinned or reason


def hint(items: Iterable[Item], word: str) -> None:
    """Say what an operation knows these factors by."""
    for leaf in leaves(items):
        leaf.factor.hint = leaf.factor.hint or word


class Misaligned(ValueError):
    """Two lists of factors have no common refinement."""


def unite(first: Dim, second: Dim, *, flow: bool = True) -> None:
    """Make two dimensions the same axes, splitting factors where the other side is finer.

    ``flow=False`` leaves the flows apart (a contraction compares values, it does not pass them).
    """
    i = j = 0
    while True:
        lefts, rights = leaves(first), leaves(second)
        if i == len(lefts) or j == len(rights):
            break
        left, right = lefts[i], rights[j]
        small, large = sorted((left.factor, right.factor), key=lambda factor: factor.size)
        if small.size != large.size:
            if large.size % small.size:
                raise Misaligned([item.factor.size for item in lefts + rights])
            large.split(small.size)
            continue
        left.factor.union(right.factor)
        if flow and left.flow is not None and right.flow is not None:
            left.flow.union(right.flow)
        i, j = i + 1, j + 1
    if i != len(lefts) or j != len(rights):
        raise Misaligned([item.factor.size for item in lefts + rights])


def regroup(dims: list[Dim], sizes: Iterable[int]) -> list[Dim]:
    """The factors of a tensor read in row-major order and grouped into new dimensions.

    Raises:
        Misaligned: if a new dimension ends in the middle of a factor that it does not divide.
    """
    queue = [item for dim in dims for item in dim]
    result: list[Dim] = []
    for wanted in sizes:
        dim: Dim = []
        have = 1
        while have < wanted:
            queue[:1] = leaves(queue[:1])
            if not queue:
                raise Misaligned(wanted)
            head, missing = queue[0].factor, wanted // have
            if wanted % have:
                raise Misaligned(wanted)
            if head.size > missing:
                if head.size % missing:
                    raise Misaligned(wanted, head.size)
                head.split(missing)
                continue
            dim.append(queue.pop(0))
            have *= head.size
        if have != wanted:
            raise Misaligned(wanted, have)
        result.append(dim)
    return result
