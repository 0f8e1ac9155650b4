"""A small and a large network side by side: what grows into what."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from torch import Size

from lightning_ligo.axes import Axis, Product, uses_of
from lightning_ligo.flows import Use

Lengths = dict[str, tuple[int, int]]  # of every axis: (small, large)


@dataclass(frozen=True)
class Row:
    """The parameters (or buffers) under one pattern: ``dims`` are what each dimension does.

    A row without ``small_names`` is of a layer that the small network has nothing like, or unused
    by the forward: it stays as the large network was built, and where it writes it is zero.
    """

    pattern: str
    stack: str | None
    small: Size  # of one layer
    large: Size
    dims: tuple[Product, ...]
    small_names: tuple[str, ...]  # of every layer
    large_names: tuple[str, ...]
    writes: bool = False  # zero where a layer is to add nothing to the stream that passes it
    passes: bool = False  # and one here, where it multiplies that stream


def length(product: Product, lengths: Lengths) -> tuple[int, int]:
    """The (small, large) length of a dimension."""
    pairs = [
        lengths[node.axis]
        if isinstance(node, Use)
        else tuple(map(sum, zip(*(length(s, lengths) for s in node.segments), strict=True)))
        for node in product
    ]
    return math.prod(pair[0] for pair in pairs), math.prod(pair[1] for pair in pairs)


@dataclass(frozen=True)
class Plan:
    """A small and a large network side by side; ``print(plan)`` shows what grows into what."""

    lengths: Lengths
    depths: dict[str, tuple[int, int]]  # every stack: (small, large)
    rows: tuple[Row, ...]
    buffers: tuple[Row, ...]
    facts: dict[str, Axis] = field(repr=False)  # of the large network's axes
    inexact: tuple[str, ...] = ()  # why no growth can keep the function exactly, if so
    proofs: dict[str, float] = field(default_factory=dict, compare=False)  # of the axes that grow
    scales: dict[str, float] = field(default_factory=dict, repr=False)  # of what writes inner axes
    shared: dict[str, int] = field(default_factory=dict)  # heads: for how many queries one stands

    @property
    def axes(self) -> dict[str, tuple[int, int]]:
        """The axes that grow: name -> (small, large) length."""
        return {name: pair for name, pair in self.lengths.items() if pair[0] != pair[1]}

    @property
    def stacks(self) -> dict[str, tuple[int, int]]:
        """Every stack: name -> (small, large) depth."""
        return dict(self.depths)

    @property
    def parameters(self) -> tuple[int, int]:
        """How many parameters the small and the large network have."""
        small = large = 0
        for row in self.rows:
            small += len(row.small_names) * math.prod(row.small)
            large += len(row.large_names) * math.prod(row.large)
        return small, large

    def grows(self, product: Product) -> bool:
        return any(len(set(self.lengths[use.axis])) == 2 for use in uses_of(product))

    def length(self, product: Product) -> tuple[int, int]:
        """The (small, large) length of a dimension."""
        return length(product, self.lengths)

    def __str__(self) -> str:
        grown = [(name, *pair) for name, pair in self.axes.items()]
        stacks = [(f"{name} (layers)", *pair) for name, pair in self.depths.items()]
        table = [("axis", "small", "large"), *grown, *stacks, ("parameters", *self.parameters)]
        width = max(len(row[0]) for row in table)
        lines = [f"{name:<{width}}  {small:>12}  {large:>12}" for name, small, large in table]
        lines[1:1] = lines[-1:-1] = ["-" * len(lines[0])]
        pinned = [
            f"{name} stays {self.lengths[name][0]}: {axis.pinned}"
            for name, axis in self.facts.items()
            if axis.pinned
        ]
        shared = [
            f"{name}: one head of keys and values becomes {repeats}, which were shared"
            for name, repeats in self.shared.items()
        ]
        return "\n".join([*lines, *shared, *pinned, *self.inexact])
