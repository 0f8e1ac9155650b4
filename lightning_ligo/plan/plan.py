"""A small and a large network side by side: what grows into what."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

from torch import Size

from lightning_ligo.axes.axes import UNUSED, Axis, Output, Use
from lightning_ligo.axes.calls import Call
from lightning_ligo.axes.dims import Product, uses_of
from lightning_ligo.axes.dims import length as length_of
from lightning_ligo.axes.proof import TOLERANCE
from lightning_ligo.axes.stacks import Stacks

Lengths = dict[str, tuple[int, int]]  # of every axis: (small, large)


@dataclass(frozen=True)
class Row:
    """The parameters (or buffers) under one pattern.

    A row without ``small_names`` stays as the large network was built: the small network has no
    such layer, or the forward does not use it.
    """

    pattern: str  # the name, with ``*`` for the layer: ``blocks.*.mlp.fc1.weight``
    stack: str | None  # that it is in
    small: Size  # the shape in one layer of the small network
    large: Size
    dims: tuple[Product[Use], ...]  # for every dimension, the uses of its axes
    small_names: tuple[str, ...]  # in every layer of the small network
    large_names: tuple[str, ...]
    writes: bool = False  # into the residual stream, so zero makes a layer add nothing
    passes: bool = False  # multiplies the residual stream, so one makes a layer pass it on
    moves: bool = False  # of the norm that ends a layer, to the last new layer behind it
    tied: int | None = None  # the layer of which a tied table alone reads what it writes
    factor: float = 1.0  # multiplies it, as the large network scales what it writes otherwise
    offset: float = 0.0  # is added to it before it is used, as to a gain of ``1 + weight``

    @property
    def norms_stream(self) -> bool:
        """Whether it is the gain of a norm in the residual stream itself."""
        gains = any(use.role == "gain" for product in self.dims for use in uses_of(product))
        return self.passes and gains


def length(product: Product[Use], lengths: Lengths) -> tuple[int, int]:
    """The (small, large) length of a dimension."""
    small = length_of(product, lambda use: lengths[use.axis][0])
    return small, length_of(product, lambda use: lengths[use.axis][1])


@dataclass(frozen=True)
class Plan:
    """A small and a large network side by side; ``print(plan)`` shows what grows into what.

    Args:
        lengths: the (small, large) length of every axis.
        stacks: the (small, large) depth of every stack.
        rows: the parameters of the large network, by pattern.
        buffers: its persistent buffers, by pattern.
        all_axes: every axis of the large network; ``axes`` are those that grow.
        layers: where the layers of the stacks stand in the large network.
        notes: what a reader should know who finds the function changed.
        proofs: for every axis that grows, the change of the output when it is permuted.
        scales: the factors on what writes contracted axes, so that their product keeps its scale.
        shared: axes of heads -> how many heads of the large network one of the small one becomes.
        tried: operations without a rule, of which permuting their inputs has told one.
        scalars_read: the values that the large network read from its tensors, in order.
        outputs: how its outputs are read.
        lazy: calls that give the large network its shapes, if it has lazy modules.
    """

    lengths: Lengths
    stacks: dict[str, tuple[int, int]]
    rows: tuple[Row, ...]
    buffers: tuple[Row, ...]
    all_axes: dict[str, Axis] = field(repr=False)
    layers: Stacks = field(default_factory=dict, repr=False)
    notes: tuple[str, ...] = ()
    proofs: dict[str, float] = field(default_factory=dict, compare=False)
    scales: dict[str, float] = field(default_factory=dict, repr=False)
    shared: dict[str, int] = field(default_factory=dict)
    tried: tuple[str, ...] = ()
    scalars_read: tuple[Any, ...] = field(default=(), repr=False, compare=False)
    outputs: tuple[Output, ...] = field(default=(), repr=False, compare=False)
    lazy: tuple[Call, ...] = field(default=(), repr=False, compare=False)

    @property
    def axes(self) -> Lengths:
        """The axes that grow: name -> (small, large) length."""
        return {name: pair for name, pair in self.lengths.items() if pair[0] != pair[1]}

    @property
    def unused(self) -> tuple[Row, ...]:
        """The parameters that grow and that no call uses: they stay as they were built."""
        return tuple(
            row
            for row in self.rows
            if not row.small_names
            and row.small != row.large
            and all(
                self.all_axes[u.axis].pinned == UNUSED for dim in row.dims for u in uses_of(dim)
            )
        )

    @property
    def parameters(self) -> tuple[int, int]:
        """How many parameters the small and the large network have."""
        small = large = 0
        for row in self.rows:
            small += len(row.small_names) * math.prod(row.small)
            large += len(row.large_names) * math.prod(row.large)
        return small, large

    def grows(self, product: Product[Use]) -> bool:
        """Whether a dimension becomes longer."""
        return any(len(set(self.lengths[use.axis])) == 2 for use in uses_of(product))

    def length(self, product: Product[Use]) -> tuple[int, int]:
        """The (small, large) length of a dimension."""
        return length(product, self.lengths)

    @property
    def fixed(self) -> dict[str, str]:
        """The axes that keep their length because they cannot grow: name -> why."""
        return {
            name: axis.fixed
            for name, axis in self.all_axes.items()
            if axis.fixed and name not in self.axes
        }

    def to_dict(self) -> dict[str, Any]:
        """The plan as plain data, for JSON; an axis that was not proved has None for its proof."""
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
            "tried": list(self.tried),
            "notes": list(self.notes),
        }

    def __str__(self) -> str:
        grown = [(name, *pair, self._proof(name)) for name, pair in self.axes.items()]
        stacks = [(f"{name} (layers)", *pair, "") for name, pair in self.stacks.items()]
        total = ("parameters", *self.parameters, "")
        width = max(len(row[0]) for row in (*grown, *stacks, total))
        lines = [
            f"{name:<{width}}  {small:>12,}  {large:>12,}  {proof}".rstrip()
            for name, small, large, proof in (*grown, *stacks, total)
        ]
        rule = "-" * max(map(len, lines))
        head = f"{'axis':<{width}}  {'small':>12}  {'large':>12}  proof"
        staying: dict[str, list[str]] = {}
        for name, reason in self.fixed.items():
            staying.setdefault(reason, []).append(f"{name} stays {self.lengths[name][1]}")
        fixed = [
            f"{', '.join(names[:3])}{f' and {len(names) - 3} more' if names[3:] else ''}: {reason}"
            for reason, names in staying.items()
        ]
        shared = [
            f"{name}: one head of keys and values becomes {repeats}, which were shared"
            for name, repeats in self.shared.items()
        ]
        tried = [f"found by trial, not by a rule: {', '.join(self.tried)}"] if self.tried else []
        notes = [f"note: {note}" for note in self.notes]
        return "\n".join([
            head, rule, *lines[:-1], rule, lines[-1], *shared, *fixed, *tried, *notes
        ])  # fmt: skip

    def _proof(self, name: str) -> str:
        if name in self.proofs:
            holds = "holds, to" if self.proofs[name] <= TOLERANCE else "fails, by"
            return f"{holds} {self.proofs[name]:.0e}"
        if self.all_axes[name].resize == "join":
            return "not needed, only new layers write it"
        if self.all_axes[name].resize:
            return "not needed, its entries stay in order"
        if self.lengths[name][0] == 1:
            return "not needed, it is a single entry"
        return "not proved, the small network is on the meta device"
