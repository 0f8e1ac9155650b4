"""The names of a network's axes and stacks, and what every parameter does with them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from lightning_ligo.axes.dims import Product, replaced, uses_of
from lightning_ligo.axes.factors import CONSTANT
from lightning_ligo.axes.notation import hole, labels, last_word, match, split, write
from lightning_ligo.axes.stacks import Stacks, inside, place_of

UNUSED = "the forward does not use it"
OUTPUT = "it is the network's output"
LOST = "nothing sums over it"
Resize = Literal["append", "interpolate", "copy", "join"]


class Use(NamedTuple):
    """The role of one axis in one dimension of a parameter."""

    axis: str
    role: str  # produces | consumes | gain | shift | scales
    form: str  # "produces" or "consumes": which form of the axis's map it grows by
    power: int  # of the factor that keeps the variance under a norm (see maps.py)
    flow: str  # which values it writes or reads, across norms: the paper ties their maps


class Output(NamedTuple):
    """How a tensor that the network returns is read."""

    dims: tuple[Product[Use] | None, ...] = ()  # None where parameters have no such axis
    layer: int = 0  # of a stack that its axes are inside of


@dataclass(frozen=True)
class Axis:
    """A length that means one thing across the network.

    Args:
        name: the path of the modules that share it, and a word: ``blocks.*.attn.heads``.
        length: how many entries it has.
        stack: the stack of which every layer has an axis of its own by this name, if any.
        pinned: why its entries are not exchangeable, if they are not. Constants on it are no
            reason not to grow, as the larger network has its own.
        normed: the norm, or the mean, that its map must keep: "layer", "rms" or "group", if any.
        contracted: whether a product of two activations (queries with keys) sums over it.
        scales: for every such product, the number that multiplies it, usually one over the root of
            the length.
        resize: how a pinned axis can still become longer, if it can; "join" of what new layers
            write and others read beside what they have read before.
        named: whether the user named it; it may then grow though it is pinned.
    """

    name: str
    length: int
    stack: str | None = None
    pinned: str | None = None
    normed: str | None = None
    contracted: bool = False
    scales: tuple[float, ...] = ()
    resize: Resize | None = None
    named: bool = False

    @property
    def fixed(self) -> str | None:
        """Why it cannot grow, if it cannot."""
        return None if self.pinned == CONSTANT else self.pinned

    @property
    def stays(self) -> bool:
        """Whether it can never become longer; notation shows its length in place of its name."""
        slot = self.resize is None or last_word(self.name).startswith("slot")
        return bool(self.fixed) and slot and self.pinned != UNUSED and not self.named


@dataclass(frozen=True)
class Axes:
    """The axes of a network.

    Parameters of a stack stand under one pattern, ``blocks.*.attn.qkv.weight``.

    Args:
        axes: every axis by its name.
        dims: for every pattern and dimension, the uses of its axes, slowest first.
        stacks: the runs of repeated modules by their names.
        sequential: lists of equal modules that are no stack, and why.
        outputs: for every tensor that the network returns, how it is read.
        closing: the parameters of the last norm of a stack, if a tied table alone reads what it
            writes.
        tried: the operations without a rule whose inputs were permuted to find one.
    """

    axes: dict[str, Axis]
    dims: dict[str, tuple[Product[Use], ...]]
    stacks: Stacks
    sequential: dict[str, str] = field(default_factory=dict)
    outputs: tuple[Output, ...] = ()
    closing: frozenset[str] = frozenset()
    tried: tuple[str, ...] = ()

    def uses(self, pattern: str) -> list[Use]:
        """The uses of axes in all dimensions of a parameter."""
        return [use for product in self.dims.get(pattern, ()) for use in uses_of(product)]

    @property
    def notation(self) -> dict[str, str]:
        """The axes of every parameter as they are printed, and as ``override`` reads them."""
        words = labels([name for name, axis in self.axes.items() if not axis.stays])

        def term(use: Use) -> str | int:
            return words.get(use.axis, self.axes[use.axis].length)

        return {
            self._shown(pattern): write(tuple(replaced(product, term) for product in dims))
            for pattern, dims in self.dims.items()
        }

    def __str__(self) -> str:
        lines = self.notation
        width = max(map(len, lines), default=0)
        return "\n".join(f"{name:<{width}}  {text}".rstrip() for name, text in lines.items())

    def _shown(self, pattern: str) -> str:
        """A pattern with the numbers of its layers, if others in the list are not of its stack."""
        title, rest = place_of(pattern, self.stacks)
        if title is None:
            return pattern
        stack = self.stacks[title]
        every = split(inside(stack.path, rest))
        others = [
            layer
            for other, each in self.stacks.items()
            if other != title and each.path == stack.path and f"{other}.{rest}" in self.dims
            for layer in each.layers
        ]
        others += [found[0] for name in self.dims if (found := match(every, name))]
        return inside(stack.path, rest.replace("*", hole(stack.layers, others), 1))
