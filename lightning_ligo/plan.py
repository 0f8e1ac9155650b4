"""Pair a small with a large network: what grows into what."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Size, Tensor, nn

from lightning_ligo.axes import Axes, Axis, Product, name_axes, uses_of
from lightning_ligo.flows import Use
from lightning_ligo.maps import grid
from lightning_ligo.proof import TOLERANCE, changes
from lightning_ligo.stacks import pattern_of
from lightning_ligo.trace import Tracer, watch


@dataclass(frozen=True)
class Row:
    """The parameters (or buffers) under one pattern: ``dims`` are what each dimension does.

    A row without ``small_names`` is of a layer that the small network has nothing like: it stays as
    the large network was built, and where it writes it is zero.
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


@dataclass(frozen=True)
class Plan:
    """A small and a large network side by side; ``print(plan)`` shows what grows into what."""

    lengths: dict[str, tuple[int, int]]  # every axis: (small, large)
    depths: dict[str, tuple[int, int]]  # every stack: (small, large)
    rows: tuple[Row, ...]
    buffers: tuple[Row, ...]
    facts: dict[str, Axis] = field(repr=False)  # of the large network's axes
    inexact: tuple[str, ...] = ()  # why no growth can keep the function exactly, if so
    proofs: dict[str, float] = field(default_factory=dict, compare=False)  # of the axes that grow
    scales: dict[str, float] = field(default_factory=dict, repr=False)  # of what writes inner axes

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
        pairs = [
            self.lengths[node.axis]
            if isinstance(node, Use)
            else tuple(map(sum, zip(*map(self.length, node.segments), strict=True)))
            for node in product
        ]
        return math.prod(pair[0] for pair in pairs), math.prod(pair[1] for pair in pairs)

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
        return "\n".join([*lines, *pinned, *self.inexact])


def pair(
    small: nn.Module,
    large: nn.Module,
    *args: Any,
    large_inputs: Mapping[str, Any] | None = None,
    **kwargs: Any,
) -> Plan:
    """Plan how ``large`` grows from ``small``, by tracing ``network(*args, **kwargs)`` of both.

    The networks may be on different devices; a large one on the meta device costs no memory.

    Besides axes whose entries are exchangeable, which grow by maps, tables and outputs can get more
    entries (vocabulary, classes), each new one the mean of the old; and positions that are added
    are interpolated, as when images become larger. The large network is then called with
    ``large_inputs``, by the names of its forward's arguments.

    Raises:
        ValueError: if the large network cannot be grown from the small one: shorter on some axis,
            another architecture, longer on an axis whose entries cannot be exchanged (classes,
            positions), parameters without a counterpart. All problems are listed at once.

    What the plan lets grow is proved (see `prove`) on a copy of the small network, unless that is
    on the meta device.

    Example:
        >>> import torch
        >>> small = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> large = nn.Sequential(nn.Linear(4, 20), nn.ReLU(), nn.Linear(20, 2))
        >>> pair(small, large, torch.randn(3, 4)).axes
        {'hidden': (8, 20)}
    """
    first = watch(small, args, kwargs)
    try:
        if large_inputs is None:
            second = watch(large, args, kwargs, first.answers)
        else:
            second = watch(large, (), dict(large_inputs), first.answers)
    except (RuntimeError, TypeError, ValueError, AssertionError, IndexError) as error:
        raise ValueError(
            f"{type(large).__name__} cannot be grown from {type(small).__name__}: called with "
            f"{'the same inputs' if large_inputs is None else 'large_inputs'} it fails with "
            f"{type(error).__name__}: {error}"
        ) from error
    ours, theirs = name_axes(first.ledger, second.ledger)
    small_shapes, large_shapes = _shapes(small, ours), _shapes(large, theirs)
    fresh = _fresh(first.ledger.shapes, small_shapes, large_shapes, second.ledger.sums)
    problems = _problems(ours, theirs, small_shapes, large_shapes, fresh)
    sizes = [sum(p.numel() for p in network.parameters()) for network in (small, large)]
    if sizes[0] > sizes[1]:
        problems.append(
            f"it has {sizes[1]} parameters and the small network {sizes[0]}; a network grows, it "
            "does not shrink"
        )
    if not problems and first.outputs and second.outputs:
        problems = _outputs(first.outputs[0], second.outputs[0], ours, theirs)
    lengths = {
        name: (_length(name, ours, theirs, small_shapes, large_shapes), axis.length)
        for name, axis in theirs.axes.items()
    }
    proofs: dict[str, float] = {}
    if not problems and not any(p.is_meta for p in small.parameters()):
        grown = [
            name
            for name, (length, longer) in lengths.items()
            if length != longer and not theirs.axes[name].stretch
        ]
        proofs = changes(small, args, kwargs, ours, grown)
        problems = [
            f"axis {name} cannot grow: permuting its entries changes the output by {change:.1g} of "
            "itself, so something tells them apart; give both networks the same length"
            for name, change in proofs.items()
            if change > TOLERANCE
        ]
    if problems:
        raise ValueError(
            f"{type(large).__name__} cannot be grown from {type(small).__name__}:\n  "
            + "\n  ".join(problems)
        )
    parameters = {pattern_of(name, theirs.stacks)[0] for name, _ in large.named_parameters()}
    writing = _writing(theirs, second.ledger.sums) | {name for name in fresh if fresh[name]}
    passing = _passing(theirs, second.ledger.scalings)
    rows: list[Row] = []
    buffers: list[Row] = []
    for pattern, shape in large_shapes.items():
        stack = next((s for s in theirs.stacks if pattern.startswith(f"{s}.*.")), None)
        dims = theirs.dims.get(pattern, ())
        sources = () if pattern in fresh else _names(pattern, stack, ours)
        names = sources, _names(pattern, stack, theirs)
        row = Row(pattern, stack, small_shapes.get(pattern, shape), shape, dims, *names,
                  writes=pattern in writing, passes=pattern in passing)  # fmt: skip
        (rows if pattern in parameters else buffers).append(row)
    depths = {name: (ours.stacks[name].depth, stack.depth) for name, stack in theirs.stacks.items()}
    scales = {
        name: math.sqrt(ours.axes[name].scale / axis.scale)
        for name, axis in theirs.axes.items()
        if axis.inner and name in ours.axes and ours.axes[name].scale * axis.scale > 0
    }
    plan = Plan(lengths, depths, tuple(rows), tuple(buffers), theirs.axes)
    inexact = tuple(_inexact(plan, theirs, (first, second), large, large_inputs is None))
    return Plan(lengths, depths, plan.rows, plan.buffers, theirs.axes, inexact, proofs, scales)


def _names(pattern: str, stack: str | None, axes: Axes) -> tuple[str, ...]:
    """The parameters of every layer under a pattern."""
    if stack is None:
        return (pattern,)
    path, layers = axes.stacks[stack]
    rest = pattern.removeprefix(f"{stack}.*.")
    return tuple(f"{path}.{layer}.{rest}" for layer in layers)


def _length(
    name: str, ours: Axes, theirs: Axes, small: dict[str, Size], large: dict[str, Size]
) -> int:
    """How long an axis of the large network is in the small one.

    Where it has no axis of that name it is 1, as of a single head, unless all dimensions that carry
    it are as long there.
    """
    if name in ours.axes:
        return ours.axes[name].length
    one = any(
        small[pattern][number : number + 1] != large[pattern][number : number + 1]
        for pattern, dims in theirs.dims.items()
        for number, dim in enumerate(dims)
        if pattern in small and any(use.axis == name for use in uses_of(dim))
    )
    return 1 if one else theirs.axes[name].length


def _writing(axes: Axes, sums: list[list[frozenset[str]]]) -> set[str]:
    """The patterns in a stack that write into the stream that passes it."""
    layers: dict[tuple[str, int | None], set[str]] = {}
    for name in {name for terms in sums for written in terms for name in written}:
        _, stack, layer = pattern_of(name, axes.stacks)
        if stack is not None and stack not in axes.chained:
            layers.setdefault((stack, layer), set()).add(name)
    return {
        pattern_of(name, axes.stacks)[0]
        for inside in layers.values()
        for name in _added(inside, sums)
    }


def _passing(axes: Axes, scalings: list[tuple[frozenset[str], frozenset[str]]]) -> set[str]:
    """The patterns in a stack that multiply the stream that passes it."""
    return {
        pattern_of(name, axes.stacks)[0]
        for scaled, written in scalings
        for name in scaled
        if {pattern_of(name, axes.stacks)[1:]} != {pattern_of(w, axes.stacks)[1:] for w in written}
    }


def _added(inside: set[str], sums: list[list[frozenset[str]]]) -> set[str]:
    """Those parameters of a layer that write what is added to what others wrote."""
    return {
        name
        for terms in sums
        for written in terms
        if written <= inside and not set().union(*terms) <= inside
        for name in written
    }


def _fresh(
    names: Iterable[str],
    small: Iterable[str],
    large: Iterable[str],
    sums: list[list[frozenset[str]]],
) -> dict[str, bool]:
    """The parameters and buffers of new layers in a list of the small network: which ones write.

    A layer that adds to nothing cannot be new: the network would no longer be what it was.
    """
    lists = {path for name in names for path, _ in _children(name)}
    layers: dict[str, set[str]] = {}
    for name in {*large} - {*small}:
        for path, child in _children(name):
            if path in lists and not any(other.startswith(child) for other in small):
                layers.setdefault(child, set()).add(name)
                break
    return {
        name: name in added
        for inside in layers.values()
        if (added := _added(inside, sums))
        for name in inside
    }


def _children(name: str) -> Iterator[tuple[str, str]]:
    """The lists that a parameter is in, and the start of all names in its child of each."""
    for match in re.finditer(r"\.\d+\.", name):
        yield name[: match.start()], name[: match.end()]


def _shapes(network: nn.Module, axes: Axes) -> dict[str, Size]:
    """The shape under every pattern: parameters (tied ones once), then persistent buffers."""
    kept = network.state_dict(keep_vars=True)
    tensors: dict[str, Tensor] = dict(network.named_parameters())
    tensors.update((n, b) for n, b in network.named_buffers() if n in kept)
    return {pattern_of(name, axes.stacks)[0]: t.shape for name, t in tensors.items()}


def _problems(
    ours: Axes,
    theirs: Axes,
    small: dict[str, Size],
    large: dict[str, Size],
    fresh: Collection[str],
) -> list[str]:
    chained = {**ours.chained, **theirs.chained}
    lost, added = _missing(small, large), _missing(large, {*small, *fresh})
    problems = [
        f"the {where} network lacks {', '.join(names)} (or ties them to others), "
        f"which the {other} one has"
        for where, other, names in (("large", "small", lost), ("small", "large", added))
        if names
    ]
    problems += [
        f"{stack} cannot change its depth: {reason}"
        for stack, reason in chained.items()
        if problems and any(name.startswith(f"{stack}.") for name in [*lost, *added])
    ]
    for pattern in small.keys() & large.keys():
        problems += _mismatch(pattern, ours, theirs, small[pattern], large[pattern])
    for name, axis in theirs.axes.items():
        length = _length(name, ours, theirs, small, large)
        if length > axis.length:
            problems.append(
                f"axis {name} is {length} long in the small network and only {axis.length} in "
                "the large one; a network grows, it does not shrink"
            )
        elif length < axis.length and axis.pinned and not _stretches(axis, length):
            problems.append(
                f"axis {name} is {length} long in the small network and {axis.length} in the "
                f"large one, and cannot grow: {axis.pinned}; give both networks the same"
            )
    return problems


def _stretches(axis: Axis, small: int) -> bool:
    """Whether an axis whose entries are told apart can still become longer."""
    found = axis.stretch == "append" or (axis.stretch and grid(small, axis.length))
    return bool(found) and not axis.name.endswith("heads")


def _missing(of: Iterable[str], among: Iterable[str]) -> list[str]:
    there = set(among)
    missing = [name for name in of if name not in there]
    return missing if len(missing) <= 8 else [*missing[:8], f"and {len(missing) - 8} more"]


def _mismatch(pattern: str, ours: Axes, theirs: Axes, small: Size, large: Size) -> list[str]:
    """Where one pattern has other axes in the small network than in the large one."""
    if pattern not in ours.dims or pattern not in theirs.dims:
        if small != large:
            return [f"{pattern} is {tuple(small)} and {tuple(large)} and has no axes to grow by"]
        return []
    if any(length == 1 < shorter for shorter, length in zip(small, large, strict=False)):
        return [
            f"{pattern} is {tuple(small)} in the small network and {tuple(large)} in the large "
            "one; a network grows, it does not shrink"
        ]
    for dim, (mine, other) in enumerate(
        zip(ours.dims[pattern], theirs.dims[pattern], strict=False)
    ):
        known = [use.axis for use in uses_of(other) if use.axis in ours.axes]
        if [use.axis for use in uses_of(mine) if use.axis in theirs.axes] != known and not (
            small[dim : dim + 1] == large[dim : dim + 1] and _fixed(ours, mine, theirs, other)
        ):
            break
    else:
        if len(small) == len(large):
            return []
    return [
        f"{pattern} has the axes {_words(ours, pattern)} in the small network and "
        f"{_words(theirs, pattern)} in the large one: another architecture"
    ]


def _fixed(ours: Axes, mine: Product, theirs: Axes, other: Product) -> bool:
    """Whether nothing of a dimension could grow in either network, however it is told apart."""
    return all(
        axes.axes[use.axis].pinned
        for axes, product in ((ours, mine), (theirs, other))
        for use in uses_of(product)
    )


def _words(axes: Axes, pattern: str) -> str:
    words = (" ".join(use.axis for use in uses_of(dim)) or "1" for dim in axes.dims[pattern])
    return f"({', '.join(words)})"


def _outputs(small: Tensor, large: Tensor, ours: Axes, theirs: Axes) -> list[str]:
    """An output may change its shape only where it has more classes."""
    more = {
        (ours.axes[name].length, axis.length)
        for name, axis in theirs.axes.items()
        if axis.stretch == "append" and name in ours.axes
    }
    changed = {pair for pair in zip(small.shape, large.shape, strict=False) if pair[0] != pair[1]}
    if small.dim() == large.dim() and changed <= more:
        return []
    return [
        f"its output would change from {tuple(small.shape)} to {tuple(large.shape)}; grow the "
        "module that holds what reads this output as well"
    ]


def _inexact(
    plan: Plan, axes: Axes, traced: Sequence[Tracer], large: nn.Module, same_inputs: bool
) -> Iterator[str]:
    """Why even a function-preserving growth of this pair is only approximate."""
    for name, (small, length) in plan.axes.items():
        axis = plan.facts[name]
        if axis.inner and axis.normed in ("layer", "rms"):
            yield f"{name} is what queries and keys are multiplied over, and they are normed on it"
        if axis.stretch == "interpolate":
            yield f"{name} grows from {small} to {length} positions, which are interpolated"
        if name in axes.tied:
            yield f"{name} is written and read by one tied table without a norm between"
        if not axis.normed or length % small == 0:
            continue
        scaled = any(use.axis == name and use.role == "scales"
                     for row in plan.rows for dim in row.dims for use in uses_of(dim))  # fmt: skip
        if axis.normed == "group":
            yield f"{name} grows from {small} to {length}, no multiple, under a norm over positions"
        elif name in axes.bent:
            yield f"{name} grows from {small} to {length}, no multiple, under a norm of activations"
        elif scaled or name in axes.post_norm:
            yield f"{name} grows from {small} to {length}, no multiple, under norms in the stream"
    for stack, (small, depth) in plan.depths.items():
        if small != depth and stack in axes.chained:
            yield f"{stack} grows from {small} to {depth} layers: {axes.chained[stack]}"
        elif small > depth:
            yield f"{stack} loses {small - depth} of its {small} layers"
        elif small != depth and not _passed(stack, axes, traced[1].ledger.sums):
            yield f"{stack} has norms in the stream itself: a new layer cannot pass it unchanged"
    for row in plan.rows:
        if same_inputs and row.small_names and (names := _differing(row, traced)):
            first, second = map(_constants, traced, names)
            yield (
                f"behind {names[0]} the small network computes with {first}, behind {names[1]} the "
                f"large one with {second}"
            )
    kept = large.state_dict(keep_vars=True)
    for name, buffer in large.named_buffers():
        dims = axes.dims.get(pattern_of(name, axes.stacks)[0], ())
        grown = [number for number, dim in enumerate(dims) if plan.grows(dim)]
        if name not in kept and not all(_uniform(buffer, number) for number in grown):
            yield f"{name} is not saved with the network and stays as it was built"


def _differing(row: Row, traced: Sequence[Tracer]) -> tuple[str, str] | None:
    """The first layer behind which the networks compute with other numbers, where it is kept."""
    small, large = len(row.small_names), len(row.large_names)
    for number, name in enumerate(row.large_names):
        source = number * small // large
        if number and source == (number - 1) * small // large:
            continue  # a new layer
        names = row.small_names[source], name
        if _constants(traced[0], names[0]) != _constants(traced[1], names[1]):
            return names
    return None


def _constants(tracer: Tracer, name: str) -> list[Any] | None:
    return tracer.ledger.constants.get(name)


def _passed(stack: str, axes: Axes, sums: list[list[frozenset[str]]]) -> bool:
    """Whether a stream passes all layers of a stack, each adding to it."""
    for written in itertools.chain.from_iterable(sums):
        sources = {pattern_of(name, axes.stacks)[1:] for name in written}
        if len(sources) > 1 and any(source == stack for source, _ in sources):
            return True
    return False


def _uniform(buffer: Tensor, dim: int) -> bool:
    """Whether all entries along a dimension are equal."""
    return not buffer.is_meta and bool((buffer == buffer.narrow(dim, 0, 1)).all())
