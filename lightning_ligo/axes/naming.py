"""Find the names of axes: equal modules are stacks, and an axis is named after its modules."""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from lightning_ligo.axes.axes import LOST, OUTPUT, UNUSED, Axes, Axis, Output, Resize, Use
from lightning_ligo.axes.dims import Product, replaced, uses_of
from lightning_ligo.axes.factors import (
    CONSTANT,
    Dim,
    Factor,
    Facts,
    Item,
    Misaligned,
    end_factors,
    leaves,
    unite,
)
from lightning_ligo.axes.flows import Flows, axes_of
from lightning_ligo.axes.graph import RANKED, STAYS, TABLE, Graph
from lightning_ligo.axes.stacks import Stacks, divided, find_stacks, pattern_of, split_kinds


class _Place(NamedTuple):
    """Where an axis stands: a factor of a dimension of the parameters under a pattern."""

    pattern: str
    dim: int
    position: int


class _Member(NamedTuple):
    """A parameter's factor that is an axis."""

    place: _Place
    stack: str | None
    layer: int | None


_Places = dict[Factor, list[_Member]]


def name_axes(*graphs: Graph) -> list[Axes]:
    """Name the axes of one traced network, or of several by the same names.

    1. Equal modules in one list are a stack. All layers of ``blocks`` below add to the stream
       ``embed``, and each has an axis ``hidden`` of its own.
    2. A list of modules that are chained, each with an axis of its own towards the next, is no
       stack. The modules of ``chain`` are named one by one.
    3. The name of an axis is the path of the modules that contain all its parameters, and a word:
       the user's, or that of an operation (``heads``), or that of its role (``hidden``, ``out``).

    >>> from torch import nn, zeros
    >>> from lightning_ligo.axes.trace import trace
    >>> class Network(nn.Module):
    ...     def __init__(self):
    ...         super().__init__()
    ...         self.stem = nn.Linear(2, 4)
    ...         self.blocks = nn.ModuleList(
    ...             nn.Sequential(nn.Linear(4, 8, False), nn.Linear(8, 4, False)) for _ in range(3))
    ...         self.chain = nn.Sequential(*(nn.Linear(4, 4, False) for _ in range(3)))
    ...     def forward(self, x):
    ...         x = self.stem(x)
    ...         for block in self.blocks:
    ...             x = x + block(x)
    ...         return self.chain(x)
    >>> axes = trace(Network(), zeros(3, 2))
    >>> print(axes)
    stem.weight        embed 2
    stem.bias          embed
    blocks.*.0.weight  blocks.*.hidden embed
    blocks.*.1.weight  embed blocks.*.hidden
    chain.0.weight     chain.hidden embed
    chain.1.weight     hidden.2 chain.hidden
    chain.2.weight     out hidden.2
    >>> axes.axes["embed"].stack, axes.axes["blocks.*.hidden"].stack
    (None, 'blocks')
    >>> list(axes.stacks), list(axes.sequential)
    (['blocks'], ['chain'])
    """
    stacks, sequential = _stacks(graphs)
    sides = list(zip(graphs, stacks, strict=True))
    shared = set.intersection(
        *({pattern_of(name, each)[0] for name in graph.parameters} for graph, each in sides)
    )
    return [replace(_named(graph, each, shared), sequential=sequential) for graph, each in sides]


# Stacks -----------------------------------------------------------------------------------------


def _stacks(graphs: Sequence[Graph]) -> tuple[list[Stacks], dict[str, str]]:
    """Find the stacks of every network.

    Layers that use the same parameters in different ways are no stack, unless its depth changes.

    Returns:
        the stacks of each network, and the reason why a stack of chained modules cannot change its
        depth.
    """
    stacks = find_stacks(*(graph.shapes for graph in graphs))
    stacks = split_kinds(stacks, [graph.traits for graph in graphs])
    sequential: dict[str, str] = {}
    while broken := _broken(graphs, stacks):
        if all(each[broken].depth > 1 for each in stacks):
            cured = [divided(each, broken) for each in stacks]
            if not {broken, f"{broken}[0]"} & _all_broken(graphs, cured):
                stacks = cured
                continue
        sequential[broken] = (
            f"the modules of {broken} are chained, each with axes of its own towards the next, "
            "and not parallel to one stream that passes them all"
        )
        if _same_depth(stacks, broken) or not all(
            map(_chain, graphs, stacks, itertools.repeat(broken))
        ):
            stacks = [_without(each, broken) for each in stacks]
        else:
            _agree(graphs, stacks, broken)
    for stack in frozenset().union(*map(_heterogeneous, graphs, stacks)):
        if _same_depth(stacks, stack):
            stacks = [_without(each, stack) for each in stacks]
    return stacks, sequential


def _same_depth(stacks: Sequence[Stacks], name: str) -> bool:
    return len({each[name].depth for each in stacks}) == 1


def _without(stacks: Stacks, name: str) -> Stacks:
    return {other: stack for other, stack in stacks.items() if other != name}


def _broken(graphs: Sequence[Graph], stacks: Sequence[Stacks]) -> str | None:
    """The first broken stack, in the order of the parameters: every process chooses the same."""
    broken = _all_broken(graphs, stacks)
    return next((stack for stack in stacks[0] if stack in broken), None)


def _all_broken(graphs: Sequence[Graph], stacks: Sequence[Stacks]) -> set[str]:
    return set().union(*map(_sequential, map(_places, graphs, stacks)))


def _sequential(places: _Places) -> set[str]:
    """The stacks in which the same place is one axis in some layers and another in others.

    Rows that an index picks are another axis than a hidden one.
    """
    seen: dict[_Place, Any] = {}
    sequential: set[str] = set()
    for factor, members in places.items():
        own = tuple(member.place for member in members), factor.facts.pinned == TABLE
        key: Any = own if _local(members) else factor
        for member in members:
            if member.stack and seen.setdefault(member.place, key) != key:
                sequential.add(member.stack)
    return sequential


def _heterogeneous(graph: Graph, stacks: Stacks) -> set[str]:
    """The stacks in which a parameter has other roles in one layer than in another."""
    flows = Flows(graph, stacks)
    seen: dict[str, list[Any]] = {}
    heterogeneous: set[str] = set()
    for name, dims in graph.parameters.items():
        pattern, stack, _ = pattern_of(name, stacks)
        if stack is not None:
            uses = [flows.use("", leaf) for items in dims for leaf in uses_of(axes_of(items))]
            roles = [(use.role, use.form) for use in uses]
            if seen.setdefault(pattern, roles) != roles:
                heterogeneous.add(stack)
    return heterogeneous


def _dims_of(graph: Graph, stacks: Stacks, name: str) -> list[tuple[tuple[str, int], Dim]]:
    """The dimensions of all parameters of a stack, with the pattern and the position of each."""
    return [
        ((pattern, number), items)
        for parameter, dims in graph.parameters.items()
        for pattern, stack, _ in [pattern_of(parameter, stacks)]
        if stack == name
        for number, items in enumerate(dims)
    ]


def _chain(graph: Graph, stacks: Stacks, name: str) -> bool:
    """Make one axis of what chained modules pass on; return whether that is possible."""
    first: dict[tuple[str, int], Dim] = {}
    try:
        for place, items in _dims_of(graph, stacks, name):
            unite(first.setdefault(place, items), items, flow=False)
    except Misaligned:
        return False
    return name not in _sequential(_places(graph, stacks))


def _agree(graphs: Sequence[Graph], stacks: Sequence[Stacks], name: str) -> None:
    """Unite axes that are one axis in another network: a single module passes on to no other."""
    sides = [dict(_dims_of(graph, each, name)) for graph, each in zip(graphs, stacks, strict=True)]
    common = [place for place in sides[0] if all(place in side for side in sides)]
    for side in sides:
        for first, second in itertools.combinations(common, 2):
            factors = [[leaf.factor for leaf in leaves(side[place])] for place in (first, second)]
            if factors[0] == factors[1]:
                for other in sides:
                    unite(other[first], other[second], flow=False)


def _places(graph: Graph, stacks: Stacks) -> _Places:
    places: _Places = {}
    for name, dims in graph.parameters.items():
        pattern, stack, layer = pattern_of(name, stacks)
        for dim, items in enumerate(dims):
            for position, leaf in enumerate(uses_of(axes_of(items))):
                member = _Member(_Place(pattern, dim, position), stack, layer)
                places.setdefault(leaf.factor, []).append(member)
    return places


def _local(members: list[_Member]) -> str | None:
    """The stack that an axis is inside one layer of, or None."""
    layers = {(member.stack, member.layer) for member in members}
    return next(iter(layers))[0] if len(layers) == 1 else None


# Names ------------------------------------------------------------------------------------------


def _named(graph: Graph, stacks: Stacks, shared: set[str]) -> Axes:
    places = _places(graph, stacks)
    names, axes = _axes(graph, places, shared)
    flows = Flows(graph, stacks)

    def use(leaf: Item) -> Use:
        return flows.use(names[leaf.factor], leaf)

    def read(items: Dim) -> Product[Use] | None:
        product = axes_of(items)
        if any(leaf.factor not in names for leaf in uses_of(product)):
            return None
        return replaced(product, lambda leaf: flows.reading(names[leaf.factor], leaf, leaf.flow))

    dims: dict[str, tuple[Product[Use], ...]] = {}
    for name, parameter in graph.parameters.items():
        layer = tuple(replaced(axes_of(items), use) for items in parameter)
        dims.setdefault(pattern_of(name, stacks)[0], layer)
    outputs = tuple(Output(tuple(map(read, out)), _layer(out, places)) for out in graph.outputs)
    return Axes(
        axes, dims, stacks, outputs=outputs, closing=flows.closing, tried=tuple(graph.tried)
    )


def _layer(dims: Sequence[Dim], places: _Places) -> int:
    """The layer that an output comes from, as the keys and values of one do."""
    found = (places.get(leaf.factor, []) for items in dims for leaf in uses_of(axes_of(items)))
    return next((members[0].layer or 0 for members in found if _local(members)), 0)


def _by_factor(words: Iterable[tuple[str, Dim]]) -> dict[Factor, set[str]]:
    """The words that are said of every factor."""
    said: dict[Factor, set[str]] = defaultdict(set)
    for word, items in words:
        for factor in end_factors(items):
            said[factor].add(word)
    return said


def _axes(
    graph: Graph, places: _Places, shared: set[str]
) -> tuple[dict[Factor, str], dict[str, Axis]]:
    """Name every factor that is an axis, and collect its facts.

    Names come from the ``shared`` places, which are also in the other network; an axis that stands
    in no such place is named last.
    """
    roles = _by_factor((use.role, [Item(use.factor, None)]) for use in graph.uses)
    over = _by_factor(graph.reductions)
    outputs = {*end_factors(*itertools.chain(*graph.outputs))}
    names: dict[Factor, str] = {}
    axes: dict[str, Axis] = {}
    taken: dict[str, tuple[_Place, ...]] = {}
    known, unread = graph.named_factors(), graph.unread_factors()
    words = {factor.root(): word for factor, word in graph.words[::-1]}
    common = {
        factor: [member for member in members if member.place.pattern in shared]
        for factor, members in places.items()
    }
    for factor in sorted(places, key=lambda factor: not common[factor]):
        members, facts = common[factor] or places[factor], factor.facts
        inside = end_factors([Item(factor, None)])
        played = set().union(*(roles[end] for end in inside))
        passed = not unread.isdisjoint(inside)
        pinned = facts.pinned or inside[0].facts.pinned
        if not pinned and not played and not passed:
            pinned = UNUSED
        elif not pinned and "consumes" not in played and not facts.contracted:
            pinned = OUTPUT if factor in outputs else LOST
            pinned = None if over[factor] and pinned == LOST else pinned
        where, local = tuple(member.place for member in members), _local(members)
        base = name = _name(factor, members, played, local, words.get(factor))
        number = 2
        while taken.setdefault(name, where) != where:
            name, number = f"{base}.{number}", number + 1
        names[factor] = name
        resize = _resize(facts.hint, pinned, played) if pinned else None
        named = known.issuperset(inside) and pinned != STAYS
        axes[name] = Axis(
            name, factor.size, local, pinned, _normed(over[factor]), bool(facts.contracted),
            _scales(facts), resize, named,
        )  # fmt: skip
    return names, axes


def _normed(over: set[str]) -> str | None:
    """The norm, or the mean, that a map must keep."""
    if over & {"layer", "mean"}:
        return "layer"
    return next((norm for norm in ("rms", "group") if norm in over), None)


def _scales(facts: Facts) -> tuple[float, ...]:
    """The numbers that multiply the contractions: an attention may be called several times."""
    calls = max(len(facts.contracted), 1)
    operands = facts.scale ** (1 / calls) if facts.scale > 0 else 1.0
    return tuple(scale * operands for (scale,) in facts.contracted)


def _resize(hint: str | None, pinned: str, roles: set[str]) -> Resize | None:
    """Rows of a table and outputs get more entries, experts are copied, positions interpolated."""
    if pinned == STAYS:
        return None
    if hint == "experts" or pinned == RANKED:
        return "copy"
    if hint in ("entries", "classes") or pinned in (OUTPUT, LOST):
        return "append"
    return "interpolate" if pinned == TABLE or roles == {"produces"} else None


def _name(
    factor: Factor, members: list[_Member], roles: set[str], local: str | None, word: str | None
) -> str:
    """The path of the modules that contain all members, and a word."""
    modules = [member.place.pattern.split(".")[:-1] for member in members]
    scope: list[str] = []
    for parts in zip(*modules, strict=False):
        if len(set(parts)) > 1 or ("*" in parts[0] and not local):
            break
        scope.append(parts[0])
    pinned, role = factor.facts.pinned, "hidden"
    pinned = None if pinned == CONSTANT else pinned
    if pinned and "consumes" in roles:
        role = "in"
    elif pinned:
        role = "slot" if scope and pinned != TABLE else "positions"
    elif "consumes" not in roles:
        role = "out"
    elif any(member.stack for member in members) and not local:
        role = "embed"
    return ".".join([*scope, word or factor.facts.hint or role])
