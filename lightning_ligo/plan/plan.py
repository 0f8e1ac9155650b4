"""A small and a large network side by side: what grows into what."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

from torch import Size

from lightning_ligo.axes.axes import Axis, Use
from lightning_ligo.axes.dims import Product, uses_of
from lightning_ligo.axes.dims import length as length_of
from lightning_ligo.axes.proof import TOLERANCE

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
    dims: tuple[Product[Use], ...]
    small_names: tuple[str, ...]  # of every layer
    large_names: tuple[str, ...]
    writes: bool = False  # zero where a layer is to add nothing to the stream that passes it
    passes: bool = False  # and one here, where it multiplies that stream


def length(product: Product[Use], lengths: Lengths) -> tuple[int, int]:
    """The (small, large) length of a dimension."""
    small = length_of(product, lambda use: lengths[use.axis][0])
    return small, length_of(product, lambda use: lengths[use.axis][1])


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
    scalars_read: tuple[Any, ...] = field(default=(), repr=False, compare=False)
    """What the large network has read of its tensors, in order, to decide how to go on."""

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

    def grows(self, product: Product[Use]) -> bool:
        return any(len(set(self.lengths[use.axis])) == 2 for use in uses_of(product))

    def length(self, product: Product[Use]) -> tuple[int, int]:
        """The (small, large) length of a dimension."""
        return length(product, self.lengths)

    @property
    def fixed(self) -> dict[str, str]:
        """The axes that stay as long as they are, and cannot grow: name -> why."""
        return {
            name: axis.pinned
            for name, axis in self.facts.items()
            if axis.pinned and name not in self.axes
        }

    def to_dict(self) -> dict[str, Any]:
        """What the plan says as plain data, for JSON; a proof that was not made is None."""
        small, large = self.parameters
        return {
            "axes": {name: list(pair) for name, pair in self.axes.items()},
            "stacks": {name: list(pair) for name, pair in self.stacks.items()},
            "parameters": {"small": small, "large": large},
            "shared": dict(self.shared),
            "proofs": {name: self.proofs.get(name) for name in self.axes},
            "fixed": {
                name: {"length": self.lengths[name][1], "reason": reason}
                for name, reason in self.fixed.items()
            },
            "inexact": list(self.inexact),
        }

    def __str__(self) -> str:
        grown = [(name, *pair, self._proof(name)) for name, pair in self.axes.items()]
        stacks = [(f"{name} (layers)", *pair, "") for name, pair in self.depths.items()]
        total = ("parameters", *self.parameters, "")
        width = max(len(row[0]) for row in (*grown, *stacks, total))
        lines = [
            f"{name:<{width}}  {small:>12,}  {large:>12,}  {proof}".rstrip()
            for name, small, large, proof in (*grown, *stacks, total)
        ]
        rule = "-" * max(map(len, lines))
        head = f"{'axis':<{width}}  {'small':>12}  {'large':>12}  proof"
        fixed = [
            f"{', '.join(names[:3])}{f' and {len(names) - 3} more' if names[3:] else ''}: {reason}"
            for reason, names in self._staying().items()
        ]
        shared = [
            f"{name}: one head of keys and values becomes {repeats}, which were shared"
            for name, repeats in self.shared.items()
        ]
        inexact = [f"not exact: {reason}" for reason in self.inexact]
        return "\n".join([head, rule, *lines[:-1], rule, lines[-1], *shared, *fixed, *inexact])

    def _staying(self) -> dict[str, list[str]]:
        """What stays, by its reason."""
        staying: dict[str, list[str]] = {}
        for name, reason in self.fixed.items():
            staying.setdefault(reason, []).append(f"{name} stays {self.lengths[name][1]}")
        return staying

    def _proof(self, name: str) -> str:
        if name in self.proofs:
            holds = "holds, to" if self.proofs[name] <= TOLERANCE else "fails, by"
            return f"{holds} {self.proofs[name]:.0e}"
        if self.facts[name].resize:
            return "not needed, its entries stay in order"
        if self.lengths[name][0] == 1:
            return "not needed, it is a single entry"
        return "not proved, the small network is on the meta device"
