"""The names of a network's axes and stacks, and what every parameter does with them."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

from torch import Size

from lightning_ligo.factors import Factor, Flow, leaves

if TYPE_CHECKING:
    from lightning_ligo.trace import Tracer


@dataclass(frozen=True)
class Axis:
    """A length that means one thing across the network."""

    name: str
    length: int
    stack: str | None = None  # each layer of this stack has an axis of its own by this name
    pinned: str | None = None  # why it cannot grow, if it cannot
    normed: str | None = None  # "layer" or "rms": a norm averages over it
    inner: bool = False  # a product of two activations sums over it (queries with keys)


class Use(NamedTuple):
    """What one dimension of a parameter does with one of its axes."""

    axis: str
    role: str  # produces | consumes | gain | shift | scales
    form: str  # "produces" or "consumes": which form of the axis's map it grows by
    power: int  # of the factor that keeps the variance under a norm (see maps.py)
    flow: str  # what it writes or reads, norms seen through: the tie of the paper's maps


@dataclass(frozen=True)
class Axes:
    """The axes of a network: ``dims[parameter][dim]`` are the uses of its factors, slowest first.

    Parameters of a stack stand under one pattern, ``blocks.*.attn.qkv.weight``.
    """

    axes: dict[str, Axis]
    dims: dict[str, tuple[tuple[Use, ...], ...]]
    stacks: dict[str, int]
    chained: dict[str, str] = field(default_factory=dict)  # not a stack, and why
    post_norm: frozenset[str] = frozenset()  # axes on which norms stand in the stream itself
    tied: frozenset[str] = frozenset()  # axes of a table that writes and reads the same flow

    def __str__(self) -> str:
        width = max(map(len, self.dims), default=0)
        return "\n".join(
            f"{pattern:<{width}}  {' '.join(map(self._dim, dims))}".rstrip()
            for pattern, dims in self.dims.items()
        )

    def _dim(self, uses: tuple[Use, ...]) -> str:
        words = [self._word(use.axis) for use in uses] or ["1"]
        return words[0] if len(words) == 1 else f"({' '.join(words)})"

    def _word(self, name: str) -> str:
        axis, word = self.axes[name], short(name)
        return str(axis.length) if word == "slot" else word


def short(name: str) -> str:
    """The last word of an axis's name: ``heads`` of ``blocks.*.attn.heads``.

    >>> short("blocks.*.attn.heads")
    'heads'
    """
    return name.rsplit(".", 1)[-1] if not name[-1].isdigit() else ".".join(name.split(".")[-2:])


# Stacks -----------------------------------------------------------------------------------------


def find_stacks(shapes: dict[str, Size]) -> dict[str, int]:
    """Runs of equal modules, found from parameter names: ``{"blocks": 12}``.

    A stack is a module whose children are numbered from 0 and hold the same parameters of the same
    shapes; within a stack no further stack is looked for.
    """
    tree: dict[str, Any] = {}
    for name, shape in shapes.items():
        *path, last = name.split(".")
        node = tree
        for part in path:
            node = node.setdefault(part, {})
        node[last] = tuple(shape)
    stacks: dict[str, int] = {}

    def visit(node: dict[str, Any], path: list[str]) -> None:
        children = list(node.values())
        numbered = set(node) == set(map(str, range(len(node))))
        if path and numbered and all(c == children[0] and isinstance(c, dict) for c in children):
            stacks[".".join(path)] = len(children)
            return
        for name, child in node.items():
            if isinstance(child, dict):
                visit(child, [*path, name])

    visit(tree, [])
    return stacks


def pattern_of(name: str, stacks: Iterable[str]) -> tuple[str, str | None, int | None]:
    """A parameter's pattern, its stack and its layer.

    >>> pattern_of("blocks.3.mlp.fc1.bias", ["blocks"])
    ('blocks.*.mlp.fc1.bias', 'blocks', 3)
    """
    for stack in stacks:
        if match := re.match(rf"{re.escape(stack)}\.(\d+)\.(.+)", name):
            return f"{stack}.*.{match[2]}", stack, int(match[1])
    return name, None, None


# Names ------------------------------------------------------------------------------------------


class _Place(NamedTuple):
    """Where an axis stands: a factor of a dimension of the parameters under a pattern."""

    pattern: str
    dim: int
    position: int


def name_axes(tracer: Tracer) -> Axes:
    """Name what a tracer has seen."""
    shapes = {name: tensor.shape for name, tensor in tracer.network.named_parameters()}
    stacks = find_stacks(shapes)
    chained: dict[str, str] = {}
    while True:
        places = _places(tracer, stacks)
        broken = _chained(places, stacks)
        if broken is None:
            return _named(tracer, stacks, chained, places)
        chained[broken] = (
            f"the modules of {broken} are chained, each with axes of its own towards the next, "
            "and not parallel to one stream that passes them all"
        )
        del stacks[broken]


def _places(
    tracer: Tracer, stacks: dict[str, int]
) -> dict[Factor, list[tuple[_Place, str | None, int | None]]]:
    places: dict[Factor, list[tuple[_Place, str | None, int | None]]] = {}
    for name, dims in tracer.parameters.items():
        pattern, stack, layer = pattern_of(name, stacks)
        for dim, items in enumerate(dims):
            for position, item in enumerate(leaves(items)):
                place = (_Place(pattern, dim, position), stack, layer)
                places.setdefault(item.factor, []).append(place)
    return places


def _local(members: list[tuple[_Place, str | None, int | None]]) -> str | None:
    """The stack that an axis is inside one layer of, or None."""
    layers = {(stack, layer) for _, stack, layer in members}
    return next(iter(layers))[0] if len(layers) == 1 else None


def _chained(places: dict[Factor, Any], stacks: dict[str, int]) -> str | None:
    """A stack in which the same place is one axis in some layers and another in others."""
    seen: dict[_Place, tuple[Any, str]] = {}
    for factor, members in places.items():
        if local := _local(members):
            key: Any = tuple(place for place, _, _ in members)
        else:
            key = factor
        for place, stack, _ in members:
            if stack is None:
                continue
            if seen.setdefault(place, (key, stack))[0] != key:
                return local or stack
    return None


def _named(
    tracer: Tracer, stacks: dict[str, int], chained: dict[str, str], places: dict[Factor, Any]
) -> Axes:
    axes: dict[str, Axis] = {}
    names: dict[Factor, str] = {}
    taken: dict[str, tuple[_Place, ...]] = {}
    for factor, members in places.items():
        where = tuple(place for place, _, _ in members)
        roles = {
            use.role
            for name, dims in tracer.parameters.items()
            for dim in range(len(dims))
            for use in tracer.uses.get((name, dim), [])
            if factor in use.factor.leaves()
        }
        local = _local(members)
        base = name = _name(factor, members, roles, local)
        number = 2
        while taken.setdefault(name, where) != where:
            name, number = f"{base}.{number}", number + 1
        pinned = factor.pinned or (None if roles else "the forward does not use it")
        read = "consumes" in roles or factor.inner
        pinned = pinned or (None if read else "it is the network's output")
        names[factor] = name
        axes[name] = Axis(name, factor.size, local, pinned, factor.normed, factor.inner)
    flows = _Flows(tracer, stacks)
    dims = {
        pattern_of(name, stacks)[0]: tuple(
            tuple(flows.use(names[item.factor], (name, dim), item.factor) for item in leaves(items))
            for dim, items in enumerate(parameter)
        )
        for name, parameter in reversed(tracer.parameters.items())
    }
    post_norm, tied = (
        frozenset(
            names[item.factor]
            for name, parameter in tracer.parameters.items()
            for dim, items in enumerate(parameter)
            for item in leaves(items)
            if (name, dim) in owners
        )
        for owners in (flows.post_norm, flows.tied)
    )
    return Axes(axes, dict(reversed(dims.items())), stacks, chained, post_norm, tied)


def _name(factor: Factor, members: Any, roles: set[str], local: str | None) -> str:
    modules = [place.pattern.split(".")[:-1] for place, _, _ in members]
    scope: list[str] = []
    for parts in zip(*modules, strict=False):
        if len(set(parts)) > 1 or (parts[0] == "*" and not local):
            break
        scope.append(parts[0])
    if factor.hint:
        word = factor.hint
    elif factor.pinned:
        word = "in" if "consumes" in roles else "slot" if scope else "positions"
    elif "consumes" not in roles:
        word = "out"
    elif any(stack for _, stack, _ in members) and not local:
        word = "embed"
    else:
        word = "hidden"
    return ".".join([*scope, word])


# Flows ------------------------------------------------------------------------------------------


class _Flows:
    """Which form of an axis's map each use takes, so that what is written is what is read.

    Writers of a flow grow by the producing form and readers by the consuming one. A table that is
    written and read (an embedding tied to the head) grows by one of them only, the producing one;
    so what it reads must be written in the consuming form: that flow is *flipped*, and the norm
    before the head carries the shares.
    """

    def __init__(self, tracer: Tracer, stacks: dict[str, int]) -> None:
        self._uses = tracer.uses
        self._own: dict[tuple[str, int], Flow] = {}
        for name, dims in tracer.parameters.items():
            for dim, items in enumerate(dims):
                for item in items:
                    assert item.flow is not None
                    self._own[name, dim] = item.flow
        self._flipped: dict[Flow, int] = {}
        uses = [(owner, use) for owner, all_uses in tracer.uses.items() for use in all_uses]
        self._after_norm = {self._own[owner].root() for owner, use in uses if use.role == "gain"}
        in_stacks = {
            flow.root() for (name, _), flow in self._own.items() if pattern_of(name, stacks)[1]
        }
        self.post_norm = {
            owner
            for owner, flow in self._own.items()
            if flow.root() in self._after_norm and flow.root().normed_into
        }
        self.tied: set[tuple[str, int]] = set()
        written = {owner for owner, use in uses if use.role == "produces"}
        for owner, use in uses:
            if use.role == "consumes" and use.reads is not None and owner in written:
                own, read = self._own[owner].root(), use.reads.root()
                if read is own or read in in_stacks:
                    self.tied.add(owner)
                else:
                    self._flipped[read] = -self._power(own)
        self._names = self._merge(stacks)

    def _power(self, flow: Flow) -> int:
        """1 where a norm reads a flow that no norm wrote: there the variance can be kept."""
        flow = flow.root()
        if flow in self._flipped:
            return self._flipped[flow]
        return int(bool(flow.normed_into) and flow not in self._after_norm)

    def _merge(self, stacks: dict[str, int]) -> dict[Flow, str]:
        """The first writer of each flow, after joining what comes out of norms to what goes in."""
        joined: dict[Flow, Flow] = {}

        def top(flow: Flow) -> Flow:
            flow = flow.root()
            while joined.get(flow, flow) is not flow:
                flow = joined[flow]
            return flow

        every = [flow.root() for flow in self._own.values()]
        for flow in every:
            for written in flow.normed_into:
                if top(written) is not top(flow):
                    joined[top(written)] = top(flow)
        names: dict[Flow, str] = {}
        for (name, dim), flow in self._own.items():
            names.setdefault(top(flow), f"{pattern_of(name, stacks)[0]}:{dim}")
        return {flow: names[top(flow)] for flow in every}

    def use(self, axis: str, owner: tuple[str, int], factor: Factor) -> Use:
        uses = [use for use in self._uses.get(owner, []) if factor in use.factor.leaves()]
        roles = [use.role for use in uses]
        if "consumes" in roles and "produces" not in roles:
            reads = next(use.reads for use in uses if use.role == "consumes")
            if reads is None:  # the network's input, which does not grow
                return Use(axis, "consumes", "consumes", 0, "input")
            flipped = reads.root() in self._flipped
            form = "produces" if flipped else "consumes"
            name = self._names.get(reads.root(), "input")
            return Use(axis, "consumes", form, -self._power(reads), name)
        own = self._own[owner].root()
        role = roles[0] if roles else "produces"
        role = "produces" if "produces" in roles else role
        form = "consumes" if own in self._flipped else "produces"
        power = 0 if role == "scales" else self._power(own)
        if role == "gain" and uses[0].reads is not None:
            power -= self._power(uses[0].reads)
        return Use(axis, role, form, power, self._names[own])
