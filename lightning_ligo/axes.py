"""The names of a network's axes and stacks, and what every parameter does with them."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from lightning_ligo.factors import Dim, Factor, Flow, Item, Owner, ends, leaves, segments
from lightning_ligo.ledger import Ledger
from lightning_ligo.ledger import Use as Seen
from lightning_ligo.stacks import Stack, find_stacks, pattern_of


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


class Sum(NamedTuple):
    """Segments one after the other, each a product: what is concatenated or split."""

    segments: tuple[tuple[Use | Sum, ...], ...]


Product = tuple[Use | Sum, ...]  # the factors of a dimension, slowest first


def uses_of(product: Product) -> Iterator[Use]:
    """Every use in a dimension, also in the segments of its sums."""
    for node in product:
        if isinstance(node, Sum):
            for segment in node.segments:
                yield from uses_of(segment)
        else:
            yield node


@dataclass(frozen=True)
class Axes:
    """The axes of a network: ``dims[parameter][dim]`` are the uses of its factors, slowest first.

    Parameters of a stack stand under one pattern, ``blocks.*.attn.qkv.weight``.
    """

    axes: dict[str, Axis]
    dims: dict[str, tuple[Product, ...]]
    stacks: dict[str, Stack]
    chained: dict[str, str] = field(default_factory=dict)  # not a stack, and why
    post_norm: frozenset[str] = frozenset()  # axes on which norms stand in the stream itself
    tied: frozenset[str] = frozenset()  # axes of a table that writes and reads the same flow

    def length(self, product: Product) -> int:
        """The length of a dimension."""
        return math.prod(
            sum(map(self.length, node.segments))
            if isinstance(node, Sum)
            else self.axes[node.axis].length
            for node in product
        )

    def __str__(self) -> str:
        width = max(map(len, self.dims), default=0)
        return "\n".join(
            f"{pattern:<{width}}  {' '.join(map(self._dim, dims))}".rstrip()
            for pattern, dims in self.dims.items()
        )

    def _dim(self, product: Product) -> str:
        words = [self._word(node) for node in product] or ["1"]
        return words[0] if len(words) == 1 else f"({' '.join(words)})"

    def _word(self, node: Use | Sum) -> str:
        if isinstance(node, Sum):
            return f"({' + '.join(map(self._dim, node.segments))})"
        axis, word = self.axes[node.axis], short(node.axis)
        return str(axis.length) if word == "slot" else word


def short(name: str) -> str:
    """The last word of an axis's name: ``heads`` of ``blocks.*.attn.heads``.

    >>> short("blocks.*.attn.heads")
    'heads'
    """
    return name.rsplit(".", 1)[-1] if not name[-1].isdigit() else ".".join(name.split(".")[-2:])


# Names ------------------------------------------------------------------------------------------


class _Place(NamedTuple):
    """Where an axis stands: a factor of a dimension of the parameters under a pattern."""

    pattern: str
    dim: int
    position: int


class _Member(NamedTuple):
    place: _Place
    stack: str | None
    layer: int | None


_Places = dict[Factor, list[_Member]]


def name_axes(*ledgers: Ledger) -> list[Axes]:
    """Name what forwards have shown: the same names for the same places, whatever the lengths."""
    stacks = find_stacks(*(ledger.shapes for ledger in ledgers))
    chained: dict[str, str] = {}
    while True:
        places = [_places(*pair) for pair in zip(ledgers, stacks, strict=True)]
        broken = next((stack for these in places if (stack := _chained(these))), None)
        if broken is None:
            return [
                _named(ledger, mine, chained, these)
                for ledger, mine, these in zip(ledgers, stacks, places, strict=True)
            ]
        chained[broken] = (
            f"the modules of {broken} are chained, each with axes of its own towards the next, "
            "and not parallel to one stream that passes them all"
        )
        for mine in stacks:
            del mine[broken]


def _leaves(items: Dim) -> Iterator[Item]:
    """The factors that are axes: a sum that cannot grow is one axis, of which nobody cares."""
    for leaf in leaves(items):
        if leaf.factor.segments and not all(end.factor.pinned for end in ends([leaf])):
            for segment in segments(leaf):
                yield from _leaves([segment])
        else:
            yield leaf


def _places(ledger: Ledger, stacks: dict[str, Stack]) -> _Places:
    places: _Places = {}
    for name, dims in ledger.parameters.items():
        pattern, stack, layer = pattern_of(name, stacks)
        for dim, items in enumerate(dims):
            for position, item in enumerate(_leaves(items)):
                member = _Member(_Place(pattern, dim, position), stack, layer)
                places.setdefault(item.factor.root(), []).append(member)
    return places


def _local(members: list[_Member]) -> str | None:
    """The stack that an axis is inside one layer of, or None."""
    layers = {(member.stack, member.layer) for member in members}
    return next(iter(layers))[0] if len(layers) == 1 else None


def _chained(places: _Places) -> str | None:
    """A stack in which the same place is one axis in some layers and another in others."""
    seen: dict[_Place, Any] = {}
    for factor, members in places.items():
        local = _local(members)
        key: Any = tuple(member.place for member in members) if local else factor
        for member in members:
            if member.stack and seen.setdefault(member.place, key) != key:
                return member.stack
    return None


def _named(
    ledger: Ledger, stacks: dict[str, Stack], chained: dict[str, str], places: _Places
) -> Axes:
    roles: dict[Factor, set[str]] = {}
    for use in ledger.uses:
        for end in ends([Item(use.factor, None)]):
            roles.setdefault(end.factor, set()).add(use.role)
    axes: dict[str, Axis] = {}
    names: dict[Factor, str] = {}
    taken: dict[str, tuple[_Place, ...]] = {}
    for factor, members in places.items():
        where = tuple(member.place for member in members)
        played = {role for end in ends([Item(factor, None)]) for role in roles.get(end.factor, ())}
        local = _local(members)
        base = name = _name(factor, members, played, local)
        number = 2
        while taken.setdefault(name, where) != where:
            name, number = f"{base}.{number}", number + 1
        pinned = factor.pinned or next(
            (end.factor.pinned for end in ends([Item(factor, None)])), None
        )
        pinned = pinned or (None if played else "the forward does not use it")
        read = "consumes" in played or factor.inner
        pinned = pinned or (None if read else "it is the network's output")
        names[factor] = name
        axes[name] = Axis(name, factor.size, local, pinned, factor.normed, factor.inner)
    flows = _Flows(ledger, stacks)

    def build(items: Dim) -> Product:
        return tuple(
            flows.use(names[leaf.factor], leaf)
            if leaf.factor in names
            else Sum(tuple(build([segment]) for segment in segments(leaf)))
            for leaf in leaves(items)
        )

    dims: dict[str, tuple[Product, ...]] = {}
    for name, parameter in ledger.parameters.items():
        pattern = pattern_of(name, stacks)[0]
        if pattern not in dims:
            dims[pattern] = tuple(build(items) for items in parameter)
    own = [
        (flows.flow(leaf), names[leaf.factor])
        for parameter in ledger.parameters.values()
        for items in parameter
        for leaf in _leaves(items)
    ]
    post_norm, tied = (
        frozenset(name for flow, name in own if flow in these)
        for these in (flows.post_norm, flows.tied)
    )
    return Axes(axes, dims, stacks, chained, post_norm, tied)


def _name(factor: Factor, members: list[_Member], roles: set[str], local: str | None) -> str:
    modules = [member.place.pattern.split(".")[:-1] for member in members]
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
    elif any(member.stack for member in members) and not local:
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

    def __init__(self, ledger: Ledger, stacks: dict[str, Stack]) -> None:
        self._uses: dict[tuple[str, int], list[Seen]] = {}
        for use in ledger.uses:
            self._uses.setdefault((use.owner.name, use.owner.dim), []).append(use)
        own = [
            leaf for dims in ledger.parameters.values() for items in dims for leaf in _leaves(items)
        ]
        self._after_norm: set[Flow] = set()
        in_stacks = {self.flow(leaf) for leaf in own if pattern_of(_owner(leaf).name, stacks)[1]}
        uses = {leaf: self._of(leaf) for leaf in own}
        self._after_norm = {
            self.flow(leaf) for leaf in own if any(use.role == "gain" for use in uses[leaf])
        }
        self.post_norm = {flow for flow in self._after_norm if flow.normed_into}
        self.tied: set[Flow] = set()
        self._flipped: dict[Flow, int] = {}
        for leaf in own:
            if not any(use.role == "produces" for use in uses[leaf]):
                continue
            for use in uses[leaf]:
                if use.role == "consumes" and use.reads is not None:
                    read = use.reads.root()
                    if read is self.flow(leaf) or read in in_stacks:
                        self.tied.add(self.flow(leaf))
                    else:
                        self._flipped[read] = -self._power(self.flow(leaf))
        self._names = self._merge(own, stacks)

    def flow(self, leaf: Item) -> Flow:
        assert leaf.flow is not None
        return leaf.flow.root()

    def _of(self, leaf: Item) -> list[Seen]:
        """What was seen of a factor of a parameter's dimension."""
        owner = _owner(leaf)
        inside = {end.factor for end in ends([leaf])}
        return [
            use
            for use in self._uses.get((owner.name, owner.dim), [])
            if _overlap(use.owner, owner)
            and any(end.factor in inside for end in ends([Item(use.factor, None)]))
        ]

    def _power(self, flow: Flow) -> int:
        """1 where a norm reads a flow that no norm wrote: there the variance can be kept."""
        flow = flow.root()
        if flow in self._flipped:
            return self._flipped[flow]
        return int(bool(flow.normed_into) and flow not in self._after_norm)

    def _merge(self, own: list[Item], stacks: dict[str, Stack]) -> dict[Flow, str]:
        """The first writer of each flow, after joining what comes out of norms to what goes in."""
        joined: dict[Flow, Flow] = {}

        def top(flow: Flow) -> Flow:
            flow = flow.root()
            while joined.get(flow, flow) is not flow:
                flow = joined[flow]
            return flow

        for leaf in own:
            for written in self.flow(leaf).normed_into:
                if top(written) is not top(self.flow(leaf)):
                    joined[top(written)] = top(self.flow(leaf))
        names: dict[Flow, str] = {}
        for leaf in own:
            owner = _owner(leaf)
            segment = "" if owner.length is None else f":{owner.start}"
            name = f"{pattern_of(owner.name, stacks)[0]}:{owner.dim}{segment}"
            names.setdefault(top(self.flow(leaf)), name)
        return {self.flow(leaf): names[top(self.flow(leaf))] for leaf in own}

    def use(self, axis: str, leaf: Item) -> Use:
        uses = self._of(leaf)
        roles = [use.role for use in uses]
        if "consumes" in roles and "produces" not in roles:
            reads = next(use.reads for use in uses if use.role == "consumes")
            if reads is None:  # the network's input, which does not grow
                return Use(axis, "consumes", "consumes", 0, "input")
            form = "produces" if reads.root() in self._flipped else "consumes"
            name = self._names.get(reads.root(), "input")
            return Use(axis, "consumes", form, -self._power(reads), name)
        own = self.flow(leaf)
        role = roles[0] if roles else "produces"
        role = "produces" if "produces" in roles else role
        form = "consumes" if own in self._flipped else "produces"
        power = 0 if role == "scales" else self._power(own)
        if role == "gain" and uses[0].reads is not None:
            power -= self._power(uses[0].reads)
        return Use(axis, role, form, power, self._names[own])


def _owner(leaf: Item) -> Owner:
    assert leaf.owner is not None
    return leaf.owner


def _overlap(first: Owner, second: Owner) -> bool:
    if first.length is None or second.length is None:
        return True
    return first.start < second.start + second.length and second.start < first.start + first.length
