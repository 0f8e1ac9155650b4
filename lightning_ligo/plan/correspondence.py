"""Which axes of a small network stand where in a large one, and how long they are in both."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from functools import cached_property

from torch import Size, nn

from lightning_ligo.axes.axes import UNUSED, Axes, Use
from lightning_ligo.axes.dims import Sum, uses_of
from lightning_ligo.axes.graph import Graph
from lightning_ligo.axes.stacks import pattern_of, place_of
from lightning_ligo.axes.trace import Tracer
from lightning_ligo.plan.constants import Traced, factors, offsets
from lightning_ligo.plan.plan import Lengths, Row, length
from lightning_ligo.plan.residual import Stream, added_layers, stream_of

Counterparts = dict[str, tuple[str, ...]]  # axis of the large network -> those of the small one


@dataclass(frozen=True)
class Side:
    """One network of a pair, and what tracing has found of it."""

    network: nn.Module
    tracer: Tracer
    axes: Axes
    shapes: dict[str, Size]  # by pattern: of the parameter or buffer of one layer

    @property
    def graph(self) -> Graph:
        return self.tracer.graph

    def joining(self, names: Iterable[str]) -> Side:
        """The same network, with axes that only new layers write and that others read beside."""
        joined = {name: dataclasses.replace(self.axes.axes[name], resize="join") for name in names}
        axes = dataclasses.replace(self.axes, axes=self.axes.axes | joined)
        return dataclasses.replace(self, axes=axes)

    def without(self, starts: Iterable[str]) -> Side:
        """The same network, less the patterns with one of these starts."""
        starts = tuple(starts)
        shapes = {name: size for name, size in self.shapes.items() if not name.startswith(starts)}
        return dataclasses.replace(self, shapes=shapes)

    def names(self, pattern: str) -> tuple[str, ...]:
        """The tensors under a pattern: one for every layer of its stack, or a single one."""
        stack, rest = place_of(pattern, self.axes.stacks)
        if stack is None:
            return (rest,)
        return self.axes.stacks[stack].names(rest)


@dataclass(frozen=True)
class Correspondence:
    """A small and a large network, and how the parts of one correspond to those of the other."""

    small: Side  # without the patterns of modules that the large network replaces
    large: Side
    counterparts: Counterparts
    lengths: Lengths
    shared: dict[str, int]  # axes of heads -> how many of the large network one becomes
    fresh: frozenset[str]  # the patterns without a counterpart, which stay as they were built
    stream: Stream  # what the layers of stacks do to the residual stream
    replaced: dict[str, tuple[str, str]]  # the starts of patterns -> the (small, large) class

    @cached_property
    def grown(self) -> Lengths:
        """The axes that grow."""
        return {name: pair for name, pair in self.lengths.items() if pair[0] != pair[1]}

    @property
    def stacks(self) -> dict[str, tuple[int, int]]:
        """The (small, large) depth of every stack."""
        small = self.small.axes.stacks
        return {name: (small[name].depth, s.depth) for name, s in self.large.axes.stacks.items()}

    @property
    def scales(self) -> dict[str, float]:
        """The factor on what writes a contracted axis, so that the product keeps its scale."""
        scales: dict[str, float] = {}
        for name, axis in self.large.axes.axes.items():
            if axis.contracted and name in self.counterparts:
                small = self.small.axes.axes[self.counterparts[name][0]]
                pairs = zip(small.scales, axis.scales, strict=False)
                changes = [math.sqrt(s / large) for s, large in pairs if s * large > 0]
                scales[name] = next((change for change in changes if change != 1), 1.0)
        return scales

    @cached_property
    def rows(self) -> tuple[Row, ...]:
        """A row for every pattern of parameters."""
        return self._rows(buffers=False)

    @cached_property
    def buffers(self) -> tuple[Row, ...]:
        """A row for every pattern of persistent buffers."""
        return self._rows(buffers=True)

    def _rows(self, buffers: bool) -> tuple[Row, ...]:
        axes = self.large.axes
        names = [name for name, _ in self.large.network.named_parameters()]
        parameters = {pattern_of(name, axes.stacks)[0] for name in names}
        small, large = (Traced(s.network, s.graph, s.axes) for s in (self.small, self.large))
        scaled, shifted = factors(small, large), offsets(large)

        def tied(pattern: str) -> int | None:
            names = enumerate(self.large.names(pattern))
            return next((layer for layer, name in names if name in axes.closing), None)

        return tuple(
            Row(
                pattern,
                stack=place_of(pattern, axes.stacks)[0],
                small=self.small.shapes.get(pattern, shape),
                large=shape,
                dims=axes.dims.get(pattern, ()),
                small_names=() if pattern in self.fresh else self.small.names(pattern),
                large_names=self.large.names(pattern),
                writes=pattern in self.stream.writes,
                passes=pattern in self.stream.passes,
                moves=pattern in self.stream.moves,
                tied=tied(pattern),
                factor=scaled.get(pattern, 1.0),
                offset=shifted.get(pattern, 0.0),
            )
            for pattern, shape in self.large.shapes.items()
            if (pattern in parameters) != buffers
        )


def correspond(small: Side, large: Side) -> Correspondence:
    """Find the part of the small network that stands in the place of each of the large one."""
    counterparts = _counterparts(small.axes, large.axes)
    stream = stream_of(large.axes, large.graph)
    replaced = _replaced(small, large, counterparts, stream.writes)
    small, kept = small.without(replaced), large.without(replaced)
    lengths, shared = _lengths(small, kept, counterparts)
    joined = {name for name, pair in lengths.items() if pair[0] == 0}
    large = large.joining(joined)
    fresh = added_layers(small.graph.shapes, small.shapes, large.shapes, large.graph)
    fresh.update({name: name in stream.writes for name in large.shapes if name not in kept.shapes})
    fresh.update(dict.fromkeys(_unused(small, large), False))
    joins = {
        name for name in fresh for use in large.axes.uses(name)
        if use.axis in joined and use.role != "consumes"
    }  # fmt: skip
    stream.writes.update(name for name in fresh if fresh[name] and name not in joins)
    return Correspondence(
        small, large, counterparts, lengths, shared, frozenset(fresh), stream, replaced
    )


def _counterparts(small: Axes, large: Axes) -> Counterparts:
    """The axes of the small network in the place of each of the large one, usually just one.

    A shortcut in only one of the networks makes one axis of two that are apart in the other.
    """
    found: dict[str, dict[str, None]] = {}
    for pattern in large.dims.keys() & small.dims.keys():
        for dims in zip(small.dims[pattern], large.dims[pattern], strict=False):
            before, after = map(list, map(uses_of, dims))
            if len(before) == len(after):
                for one, use in zip(before, after, strict=True):
                    found.setdefault(use.axis, {})[one.axis] = None
    named = {name: (name,) for name in large.axes if name in small.axes}
    return named | {name: tuple(sorted(those)) for name, those in found.items()}


def _unused(small: Side, large: Side) -> list[str]:
    """The patterns that are longer in the large network, and that its forward does not use."""
    return [
        pattern
        for pattern, dims in large.axes.dims.items()
        if pattern in large.shapes
        and small.shapes.get(pattern, large.shapes[pattern]) != large.shapes[pattern]
        and all(large.axes.axes[use.axis].pinned == UNUSED for dim in dims for use in uses_of(dim))
    ]


# Lengths ----------------------------------------------------------------------------------------


def _lengths(
    small: Side, large: Side, counterparts: Counterparts
) -> tuple[Lengths, dict[str, int]]:
    """Find the (small, large) length of every axis, and which heads of the small one are shared.

    An axis that the small network lacks has the length 1 there, as of a single head, or 0 if it is
    joined to others, unless all dimensions that carry it are as long as in the large one. An axis
    that only unsaved buffers carry, such as the windows of a mask, has the length of the large
    network in both.

    Keys and values of grouped-query attention have fewer heads than queries. Where the large
    network groups fewer queries, the small one is first read as one whose shared heads are
    repeated, which computes the same (Ainslie et al., *GQA*, EMNLP 2023, in the other direction).
    """
    axes = large.axes.axes
    lengths = {
        name: (_length_in_small(name, small, large, counterparts), axis.length)
        for name, axis in axes.items()
    }
    shared: dict[str, int] = {}
    for name in axes:
        group = f"{name.removesuffix('heads')}group"
        if not name.endswith("heads"):
            continue
        heads = _heads(name, group, small, large, lengths)
        if len(heads) != 2 or 0 in heads:  # no whole number of these heads, which is refused
            continue
        keys, queries = sorted(heads)
        grouped = axes[group].length if group in axes else 1
        for repeats in range(1, queries // keys + 1):
            if queries % (keys * repeats) == 0 and queries // (keys * repeats) <= grouped:
                lengths[name] = keys * repeats, axes[name].length
                if group in lengths:
                    lengths[group] = queries // (keys * repeats), grouped
                if repeats > 1:
                    shared[name] = repeats
                break
    return lengths, shared


def _length_in_small(name: str, small: Side, large: Side, counterparts: Counterparts) -> int:
    places = [
        (pattern, number)
        for pattern, dims in large.axes.dims.items()
        for number, dim in enumerate(dims)
        if any(use.axis == name for use in uses_of(dim))
    ]
    if not any(pattern in large.shapes for pattern, _ in places):
        return large.axes.axes[name].length
    if name in counterparts:
        return small.axes.axes[counterparts[name][0]].length
    differs = any(
        small.shapes[pattern][dim : dim + 1] != large.shapes[pattern][dim : dim + 1]
        for pattern, dim in places
        if pattern in small.shapes
    )
    joined = any(
        isinstance(node, Sum)
        and any([use.axis for use in uses_of(segment)] == [name] for segment in node.segments)
        for pattern, dim in places
        for node in large.axes.dims[pattern][dim]
    )
    return int(not joined) if differs else large.axes.axes[name].length


def _heads(name: str, group: str, small: Side, large: Side, lengths: Lengths) -> set[int]:
    """How many heads the parameters of the small network have that carry an axis of heads."""
    found = set()
    for pattern, dims in large.axes.dims.items():
        for number, product in enumerate(dims):
            axes = [node.axis for node in product if isinstance(node, Use)]
            if name in axes and pattern in small.shapes:
                rest = (n for n in product if getattr(n, "axis", None) not in (name, group))
                width = length(tuple(rest), lengths)[0]
                found.add(small.shapes[pattern][number] // width)
    return found


# Other architectures ----------------------------------------------------------------------------


def _replaced(
    small: Side, large: Side, counterparts: Counterparts, writes: Collection[str]
) -> dict[str, tuple[str, str]]:
    """Find the modules in layers that are of another class in the large network.

    They stay as the large network was built, such as a feed-forward part with GELU that becomes one
    with a gate (SwiGLU): no linear map makes one from the other, as the same parameter has other
    axes. A replaced module has to add to the residual stream, where it adds nothing at first. Two
    modules of one class with other axes are another architecture, see `mismatch`.

    Returns:
        By the start of their patterns, ``blocks.*.mlp.``, the classes in the small and the large
        network.
    """
    found: dict[str, tuple[str, str]] = {}
    for stack in filter(small.axes.stacks.__contains__, large.axes.stacks):
        for pattern in filter(small.shapes.__contains__, large.shapes):
            inside, rest = place_of(pattern, large.axes.stacks)
            if inside != stack or not mismatch(pattern, small, large, counterparts):
                continue
            for name in itertools.accumulate(rest.split(".")[:-1], "{}.{}".format):
                before, after = (
                    type(side.network.get_submodule(side.axes.stacks[stack].names(name)[0]))
                    for side in (small, large)
                )
                start = f"{stack}.{name}."
                if "." in name and before is not after and any(w.startswith(start) for w in writes):
                    found[start] = before.__name__, after.__name__
                    break
    return found


def mismatch(pattern: str, small: Side, large: Side, counterparts: Counterparts) -> list[str]:
    """Say where one pattern has other axes in the small network than in the large one."""
    sizes = small.shapes[pattern], large.shapes[pattern]
    shapes = f"{tuple(sizes[0])} in the small network and {tuple(sizes[1])} in the large one"
    if pattern not in small.axes.dims or pattern not in large.axes.dims:
        return (
            [f"{pattern} is {shapes}, and has no axes to grow by"] if sizes[0] != sizes[1] else []
        )
    if any(after == 1 < before for before, after in zip(*sizes, strict=False)):
        return [f"{pattern} is {shapes}; a network grows, it does not shrink"]
    known = set(itertools.chain.from_iterable(counterparts.values()))
    dims = zip(small.axes.dims[pattern], large.axes.dims[pattern], strict=False)
    for dim, (before, after) in enumerate(dims):
        here = [use.axis for use in uses_of(before) if use.axis in known]
        there = [use.axis for use in uses_of(after) if use.axis in counterparts]
        alike = len(here) == len(there) and all(
            axis in counterparts[name] for axis, name in zip(here, there, strict=True)
        )
        same_length = sizes[0][dim : dim + 1] == sizes[1][dim : dim + 1]
        fixed = all(
            side.axes.axes[use.axis].pinned
            for side, product in ((small, before), (large, after))
            for use in uses_of(product)
        )
        if not alike and not (same_length and fixed):
            break
    else:
        if len(sizes[0]) == len(sizes[1]):
            return []
    return [
        f"{pattern} has the axes {_words(small.axes, pattern)} in the small network and "
        f"{_words(large.axes, pattern)} in the large one: another architecture"
    ]


def _words(axes: Axes, pattern: str) -> str:
    words = (" ".join(use.axis for use in uses_of(dim)) or "1" for dim in axes.dims[pattern])
    return f"({', '.join(words)})"
