"""The names of a network's axes and stacks, and what every parameter does with them."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, NamedTuple

from lightning_ligo.axes.factors import Dim, Factor, Item, Misaligned, ends, leaves, segments, unite
from lightning_ligo.axes.flows import Flows, Use, axis_leaves
from lightning_ligo.axes.graph import RANKED, STAYS, TABLE, Graph
from lightning_ligo.axes.notation import Joined, Node, hole, labels, last_word, match, split, write
from lightning_ligo.axes.stacks import Stacks, divided, find_stacks, pattern_of, place_of

UNUSED = "the forward does not use it"
OUTPUT = "it is the network's output"
LOST = "nothing sums over it"
Resize = Literal["append", "interpolate", "copy"]


@dataclass(frozen=True)
class Axis:
    """A length that means one thing across the network."""

    name: str
    length: int
    stack: str | None = None  # each layer of this stack has an axis of its own by this name
    pinned: str | None = None  # why it cannot grow, if it cannot
    over: frozenset[str] = frozenset()  # what is taken over it, as in `Reduction`
    contracted: bool = False  # a product of two activations sums over it (queries with keys)
    scale: float = 1.0  # of that product: usually one over the root of the length
    unit: bool = False  # a weight is divided by its norm over it
    resize: Resize | None = None  # how a pinned axis can still become longer
    named: bool = False  # the user named it: it may grow though it is pinned
    unread: str | None = None  # an operation that it goes into and that tracing cannot follow

    @property
    def stays(self) -> bool:
        """Whether nothing makes it longer: a number says all that there is to say of it."""
        slot = self.resize is None or last_word(self.name).startswith("slot")
        return bool(self.pinned) and slot and self.pinned != UNUSED and not self.named

    @property
    def normed(self) -> str | None:
        """The norm, or the mean, that its map must keep: see `maps.py`."""
        if self.over & {"layer", "mean"}:
            return "layer"
        return next((norm for norm in ("rms", "group") if norm in self.over), None)


class Reduction(NamedTuple):
    """What is taken over axes: a norm, a mean, a softmax; or attention in each of its heads.

    ``terms`` are the axes of a sum of products: a norm over what was concatenated has several.
    """

    kind: str
    terms: tuple[tuple[str, ...], ...]


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
    stacks: Stacks
    sequential: dict[str, str] = field(default_factory=dict)  # not a stack, and why
    post_norm: frozenset[str] = frozenset()  # axes on which norms stand in the stream itself
    tied: frozenset[str] = frozenset()  # axes of a table that writes and reads the same flow
    nonlinear: frozenset[str] = frozenset()  # axes on which a norm stands behind an activation
    reductions: frozenset[Reduction] = frozenset()
    heterogeneous: frozenset[str] = (
        frozenset()
    )  # stacks whose layers use the same parameters in two ways

    def length(self, product: Product) -> int:
        """The length of a dimension."""
        return math.prod(
            sum(map(self.length, node.segments))
            if isinstance(node, Sum)
            else self.axes[node.axis].length
            for node in product
        )

    @property
    def notation(self) -> dict[str, str]:
        """The axes of every parameter as they are printed, and as ``override`` reads them."""
        words = labels([name for name, axis in self.axes.items() if not axis.stays])
        return {
            self._shown(pattern): write(tuple(self._nodes(product, words) for product in dims))
            for pattern, dims in self.dims.items()
        }

    def __str__(self) -> str:
        lines = self.notation
        width = max(map(len, lines), default=0)
        return "\n".join(f"{name:<{width}}  {text}".rstrip() for name, text in lines.items())

    def _nodes(self, product: Product, words: dict[str, str]) -> tuple[Node, ...]:
        return tuple(
            Joined(tuple(self._nodes(segment, words) for segment in node.segments))
            if isinstance(node, Sum)
            else words.get(node.axis, self.axes[node.axis].length)
            for node in product
        )

    def _shown(self, pattern: str) -> str:
        """A pattern with the numbers of its layers, if others in the list are not of its stack."""
        title, rest = place_of(pattern, self.stacks)
        if title is None:
            return pattern
        path, layers = self.stacks[title]
        every = split(f"{path}.*{rest}")
        others = [
            layer
            for other, stack in self.stacks.items()
            if other != title and stack.path == path and f"{other}.*{rest}" in self.dims
            for layer in stack.layers
        ]
        others += [
            found[0] for name in self.dims if name.endswith(rest) and (found := match(every, name))
        ]
        return f"{path}.{hole(layers, others)}{rest}"


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


def name_axes(*ledgers: Graph) -> list[Axes]:
    """Name what forwards have shown: the same names for the same places, whatever the lengths."""
    stacks = find_stacks(*(graph.shapes for graph in ledgers))
    sequential: dict[str, str] = {}
    while broken := _broken(ledgers, stacks):
        if all(mine[broken].depth > 1 for mine in stacks):
            cured = [divided(mine, broken) for mine in stacks]
            if not {broken, f"{broken}[0]"} & _all_broken(ledgers, cured):
                stacks = cured
                continue
        sequential[broken] = (
            f"the modules of {broken} are chained, each with axes of its own towards the next, "
            "and not parallel to one stream that passes them all"
        )
        same_depth = len({mine[broken].depth for mine in stacks}) == 1
        if same_depth or not all(map(_chain, ledgers, stacks, itertools.repeat(broken))):
            for mine in stacks:
                del mine[broken]
        else:
            _agree(ledgers, stacks, broken)
    heterogeneous = set().union(*map(_heterogeneous, ledgers, stacks))
    for stack in heterogeneous:
        if len({mine[stack].depth for mine in stacks}) == 1:
            for mine in stacks:
                del mine[stack]
    shared = set.intersection(*(_patterns(*pair) for pair in zip(ledgers, stacks, strict=True)))
    return [
        replace(
            _named(graph, mine, sequential, _places(graph, mine), shared),
            heterogeneous=frozenset(heterogeneous & mine.keys()),
        )
        for graph, mine in zip(ledgers, stacks, strict=True)
    ]


def _patterns(graph: Graph, stacks: Stacks) -> set[str]:
    return {pattern_of(name, stacks)[0] for name in graph.parameters}


def _broken(ledgers: Sequence[Graph], stacks: Sequence[Stacks]) -> str | None:
    """The first of them, in the order of the parameters: every process must choose the same."""
    broken = _all_broken(ledgers, stacks)
    return next((stack for stack in stacks[0] if stack in broken), None)


def _all_broken(ledgers: Sequence[Graph], stacks: Sequence[Stacks]) -> set[str]:
    """The stacks in which the same place is one axis in some layers and another in others."""
    return {
        stack
        for graph, mine in zip(ledgers, stacks, strict=True)
        for stack in _sequential(_places(graph, mine))
    }


def _heterogeneous(graph: Graph, stacks: Stacks) -> set[str]:
    """The stacks in which a parameter does something else in one layer than in another."""
    flows = Flows(graph, stacks)
    seen: dict[str, list[Any]] = {}
    heterogeneous: set[str] = set()
    for name, dims in graph.parameters.items():
        pattern, stack, _ = pattern_of(name, stacks)
        if stack is not None:
            uses = [flows.use("", leaf) for items in dims for leaf in axis_leaves(items)]
            done = [(use.role, use.form) for use in uses]
            if seen.setdefault(pattern, done) != done:
                heterogeneous.add(stack)
    return heterogeneous


def _chain(graph: Graph, stacks: Stacks, name: str) -> bool:
    """Make one axis of what modules that stand in a row hand on; whether that can be."""
    first: dict[tuple[str, int], Dim] = {}
    try:
        for parameter, dims in graph.parameters.items():
            pattern, stack, _ = pattern_of(parameter, stacks)
            for number, items in enumerate(dims):
                if stack == name:
                    unite(first.setdefault((pattern, number), items), items, flow=False)
    except Misaligned:
        return False
    return name not in _sequential(_places(graph, stacks))


def _agree(ledgers: Sequence[Graph], stacks: Sequence[Stacks], name: str) -> None:
    """Make one axis of what is one in another network: a single module hands on to no other."""
    places = [
        {
            (pattern_of(parameter, mine)[0], number): dim
            for parameter, dims in graph.parameters.items()
            if pattern_of(parameter, mine)[1] == name
            for number, dim in enumerate(dims)
        }
        for graph, mine in zip(ledgers, stacks, strict=True)
    ]
    for theirs in places:
        common = [place for place in theirs if all(place in mine for mine in places)]
        for first, second in itertools.combinations(common, 2):
            if [i.factor for i in leaves(theirs[first])] == [
                i.factor for i in leaves(theirs[second])
            ]:
                for mine in places:
                    unite(mine[first], mine[second], flow=False)


def _places(graph: Graph, stacks: Stacks) -> _Places:
    places: _Places = {}
    for name, dims in graph.parameters.items():
        pattern, stack, layer = pattern_of(name, stacks)
        for dim, items in enumerate(dims):
            for position, item in enumerate(axis_leaves(items)):
                member = _Member(_Place(pattern, dim, position), stack, layer)
                places.setdefault(item.factor.root(), []).append(member)
    return places


def _local(members: list[_Member]) -> str | None:
    """The stack that an axis is inside one layer of, or None."""
    layers = {(member.stack, member.layer) for member in members}
    return next(iter(layers))[0] if len(layers) == 1 else None


def _sequential(places: _Places) -> set[str]:
    """The stacks in which the same place is one axis in some layers and another in others."""
    seen: dict[_Place, Any] = {}
    sequential: set[str] = set()
    for factor, members in places.items():
        local = _local(members)
        key: Any = tuple(member.place for member in members) if local else factor
        for member in members:
            if member.stack and seen.setdefault(member.place, key) != key:
                sequential.add(member.stack)
    return sequential


def _named(
    graph: Graph, stacks: Stacks, sequential: dict[str, str], places: _Places, shared: set[str]
) -> Axes:
    names, axes = _axes(graph, places, shared)
    flows = Flows(graph, stacks)

    def build(items: Dim) -> Product:
        return tuple(
            flows.use(names[leaf.factor], leaf)
            if leaf.factor in names
            else Sum(tuple(build([segment]) for segment in segments(leaf)))
            for leaf in leaves(items)
        )

    dims: dict[str, tuple[Product, ...]] = {}
    uneven: set[str] = set()  # the first layer of a stack grows by another power than others
    for name, parameter in graph.parameters.items():
        pattern = pattern_of(name, stacks)[0]
        mine = tuple(build(items) for items in parameter)
        first = dims.setdefault(pattern, mine)
        for one, other in zip(map(uses_of, first), map(uses_of, mine), strict=True):
            uneven |= {a.axis for a, b in zip(one, other, strict=False) if a.power != b.power}
    post_norm, tied, nonlinear = (
        frozenset(names[leaf.factor] for leaf in flows.own if flows.flow(leaf) in these)
        for these in (flows.post_norm, flows.tied, flows.nonlinear)
    )
    post_norm |= uneven
    reductions = frozenset(
        Reduction(kind, _terms(items, names)) for kind, items in graph.reductions
    )
    return Axes(axes, dims, stacks, sequential, post_norm, tied, nonlinear, reductions)


def _terms(items: Dim, names: dict[Factor, str]) -> tuple[tuple[str, ...], ...]:
    """The names of the axes of a dimension, as a sum of products."""
    terms: tuple[tuple[str, ...], ...] = ((),)
    for leaf in leaves(items):
        if leaf.factor in names:
            parts: tuple[tuple[str, ...], ...] = ((names[leaf.factor],),)
        elif leaf.factor.segments:
            parts = tuple(term for part in segments(leaf) for term in _terms([part], names))
        else:
            continue
        terms = tuple((*term, *part) for term in terms for part in parts)
    return terms


def _axes(
    graph: Graph, places: _Places, shared: set[str]
) -> tuple[dict[Factor, str], dict[str, Axis]]:
    """The name of every factor that is an axis, and what is known of it.

    Names come from the ``shared`` places, those that the other network has, too; what stands in no
    such place is named last.
    """
    roles: dict[Factor, set[str]] = {}
    for use in graph.uses:
        for end in ends([Item(use.factor, None)]):
            roles.setdefault(end.factor, set()).add(use.role)
    over: dict[Factor, set[str]] = {}
    for kind, items in graph.reductions:
        for end in ends(items):
            over.setdefault(end.factor, set()).add(kind)
    outputs = {end.factor for dim in graph.outputs for end in ends(dim)}
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
        members = common[factor] or places[factor]
        inside = [end.factor for end in ends([Item(factor, None)])]
        played = {role for end in inside for role in roles.get(end, ())}
        pinned = factor.pinned or inside[0].pinned
        passed = next((unread[end] for end in inside if end in unread), None)
        if not pinned and not played and not passed:
            pinned = UNUSED
        elif not pinned and "consumes" not in played and not factor.contracted:
            pinned = OUTPUT if factor in outputs else LOST
            pinned = None if over.get(factor, set()) - {"attention"} and pinned == LOST else pinned
        where, local = tuple(member.place for member in members), _local(members)
        base = name = _name(factor, members, played, local, words.get(factor))
        number = 2
        while taken.setdefault(name, where) != where:
            name, number = f"{base}.{number}", number + 1
        names[factor] = name
        resize = _resize(factor, pinned, played) if pinned else None
        named = all(end in known for end in inside) and pinned != STAYS
        axes[name] = Axis(
            name, factor.size, local, pinned, frozenset(over.get(factor, ())), factor.contracted,
            factor.scale, factor.unit, resize, named, passed,
        )  # fmt: skip
    return names, axes


def _resize(factor: Factor, pinned: str, roles: set[str]) -> Resize | None:
    """Rows of a table and outputs get more entries, experts are copied, positions interpolated."""
    if pinned == STAYS:
        return None
    if factor.hint == "experts" or pinned == RANKED:
        return "copy"
    if factor.hint in ("entries", "classes") or pinned in (OUTPUT, LOST):
        return "append"
    return "interpolate" if pinned == TABLE or roles == {"produces"} else None


def _name(
    factor: Factor, members: list[_Member], roles: set[str], local: str | None, word: str | None
) -> str:
    """The modules that all members are in, and the user's word, the operation's or one of ours."""
    modules = [member.place.pattern.split(".")[:-1] for member in members]
    scope: list[str] = []
    for parts in zip(*modules, strict=False):
        if len(set(parts)) > 1 or (parts[0] == "*" and not local):
            break
        scope.append(parts[0])
    ours = "hidden"
    if factor.pinned and "consumes" in roles:
        ours = "in"
    elif factor.pinned:
        ours = "slot" if scope and factor.pinned != TABLE else "positions"
    elif "consumes" not in roles:
        ours = "out"
    elif any(member.stack for member in members) and not local:
        ours = "embed"
    return ".".join([*scope, word or factor.hint or ours])
