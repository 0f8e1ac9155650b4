"""The flows of values, the other partition that tracing builds.

A **flow** is narrower than an axis: the values that one set of parameters writes and another reads.
Queries and keys share an axis (their product contracts it) but are two flows.
"""

from __future__ import annotations

from typing import Any, TypeVar

N = TypeVar("N", bound="Node")


class Node:
    """A node of a union-find."""

    __slots__ = ("_parent",)

    def __init__(self) -> None:
        self._parent: Any = None  # a node of the same class

    def root(self: N) -> N:
        node = self
        while node._parent is not None:
            node = node._parent
        if node is not self:
            self._parent = node
        return node


class Flow(Node):
    """Values that some parameters write and others read.

    The flow along a sum has a flow for each segment, by its start and length.
    """

    __slots__ = ("_segments", "nonlinear", "normed_into", "reduced")

    def __init__(self) -> None:
        super().__init__()
        self.nonlinear = False  # an activation, a mean, a softmax or a maximum was taken
        self.normed_into: list[Flow] = []  # the flows that come out of norms over this one
        self._segments: dict[tuple[int, int], Flow] = {}

    def union(self, other: Flow) -> None:
        root, other = self.root(), other.root()
        if root is other:
            return
        other._parent = root
        root.normed_into += other.normed_into
        root.nonlinear = root.nonlinear or other.nonlinear
        for (start, length), flow in other._segments.items():
            root.segment(start, length, flow)

    def segment(self, start: int, length: int, flow: Flow | None = None) -> Flow:
        """Return the flow along part of this one, united with ``flow``."""
        whole, passed = self.root(), set[Flow]()
        while (around := whole._around(start, length)) is not None and whole not in passed:
            passed.add(whole)  # shuffles can make a segment of a flow one with the flow
            start, whole = start - around[0], around[1].root()
        if whole in passed:
            return whole
        inside = whole._segments.get((start, length))
        if inside is None:
            inside = whole._segments[start, length] = flow or Flow()
            inside.root().normed_into += whole.normed_into
            inside.root().nonlinear = inside.root().nonlinear or whole.nonlinear
        if flow is not None:
            inside.union(flow)
        return inside

    def _around(self, start: int, length: int) -> tuple[int, Flow] | None:
        """Find a longer segment that this one lies in: where it begins, and its flow."""
        for (begin, extent), inside in self._segments.items():
            within = begin <= start and start + length <= begin + extent
            if within and extent > length and (start, length) not in self._segments:
                return begin, inside
        return None
