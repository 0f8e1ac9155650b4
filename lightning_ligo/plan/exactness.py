"""Why even a function-preserving growth of a pair of networks is only approximate."""

from __future__ import annotations

import itertools
import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from fractions import Fraction
from typing import Any

from torch import Tensor, nn

from lightning_ligo.axes.axes import UNUSED, Axes, Axis
from lightning_ligo.axes.dims import uses_of
from lightning_ligo.axes.proof import TOLERANCE
from lightning_ligo.axes.stacks import pattern_of
from lightning_ligo.axes.trace import Tracer
from lightning_ligo.plan.correspondence import Counterparts
from lightning_ligo.plan.plan import Plan, Row
from lightning_ligo.plan.residual import passed
from lightning_ligo.plan.resize import grid

TAKEN = {
    "attention": "an attention",
    "extreme": "a maximum or minimum",
    "group": "a norm over positions",
    "layer": "a layer norm",
    "length": "the length of a vector",
    "mean": "a mean",
    "mean square": "a mean of squares",
    "rms": "an RMS norm",
    "softmax": "a softmax",
    "spread": "a variance",
    "sum": "a sum",
}
NORMED = {"group", "layer", "mean", "mean square", "rms", "spread"}  # what averages over an axis


def conditions(
    plan: Plan,
    ours: Axes,
    axes: Axes,
    traced: Sequence[Tracer],
    small: nn.Module,
    large: nn.Module,
    disturbed: Mapping[str, float],
    same_inputs: bool,
) -> Iterator[str]:
    """A line for everything that keeps the function from being exactly the same.

    Args:
        ours: the axes of the small network.
        axes: those of the large network.
        traced: the forward of the small and of the large network.
        disturbed: the stacks of which a new layer does not pass on what it gets, see `disturbing`.
        same_inputs: whether both were called with the same.
    """
    yield from _of_axes(plan, axes)
    yield from _of_reductions(plan, axes)
    for row in plan.rows:
        if not row.small_names and all(
            axes.axes[use.axis].pinned == UNUSED for dim in row.dims for use in uses_of(dim)
        ):
            yield f"{row.pattern} is not used by the forward and stays as it was built"
    for stack, (layers, depth) in plan.depths.items():
        if layers != depth and stack in axes.sequential:
            yield f"{stack} grows from {layers} to {depth} layers: {axes.sequential[stack]}"
        elif layers != depth and stack in axes.heterogeneous:
            yield f"{stack} grows from {layers} to {depth} layers, which do unlike things"
        elif layers > depth:
            yield f"{stack} loses {layers - depth} of its {layers} layers"
        elif layers != depth and not passed(stack, axes, traced[1].graph.sums):
            yield f"{stack} has norms in the stream itself: a new layer cannot pass it unchanged"
        elif layers != depth and (function := _nonlinear(stack, axes, traced[1])):
            yield f"{stack} has {function} in the stream itself: a new layer applies it once more"
        elif layers != depth and stack in disturbed:
            yield (
                f"a new layer of {stack} adds nothing, and yet changes what passes it by "
                f"{disturbed[stack]:.1g} of itself"
            )
    yield from _disordered(ours, axes)
    ends = {pattern_of(name, ours.stacks)[1:]: name for name in traced[0].graph.order}
    for row in plan.rows:
        if same_inputs and row.small_names and (names := _differing(row, traced, ends.values())):
            first, second = map(_constants, traced, names)
            yield (
                f"behind {names[0]} the small network computes with {first}, behind {names[1]} the "
                f"large one with {second}"
            )
    yield from _of_buffers(plan, axes, small, large)


def differences(plan: Plan, ours: Axes, same: Counterparts) -> Iterator[str]:
    """Where one of the networks has a shortcut or a norm, and the other none.

    Args:
        ours: the axes of the small network.
        same: for every axis of the large network those of the small one that it is.
    """
    free = {name: axes for name, axes in same.items() if not plan.facts[name].pinned}
    for name, axes in free.items():
        over = {kind for axis in axes for kind in ours.axes[axis].over}
        for kind in sorted(NORMED & over - plan.facts[name].over):
            yield f"{TAKEN[kind]} is taken over {name} only in the small network"
        for kind in sorted(NORMED & plan.facts[name].over - over):
            yield f"{TAKEN[kind]} is taken over {name} only in the large network"
    those: dict[str, list[str]] = {}
    for name, axes in free.items():
        for axis in axes:
            those.setdefault(axis, []).append(name)
        if len(axes) > 1:
            yield f"{' and '.join(axes)} are one axis, {name}, only in the large network"
    for axis, names in those.items():
        if len(names) > 1:
            yield f"{' and '.join(names)} are one axis, {axis}, only in the small network"


def _of_axes(plan: Plan, axes: Axes) -> Iterator[str]:
    played: dict[str, set[str]] = {}
    for row in (*plan.rows, *plan.buffers):
        for use in itertools.chain.from_iterable(map(uses_of, row.dims)):
            played.setdefault(use.axis, set()).add(use.role)
    for name, (length, longer) in plan.axes.items():
        axis, roles = plan.facts[name], played.get(name, set())
        if axis.named and (against := _against(axis, plan.proofs.get(name))):
            yield f"{name} grows as you named it, against this: {against}"
        if axis.unread:
            yield (
                f"{name} goes into {axis.unread}, which tracing cannot follow, and which need not "
                "turn copies into copies"
            )
        if axis.unit:
            yield f"{name} is what a weight is normed over, and copies make it longer"
        same = math.isclose(plan.scales.get(name, 1.0), 1.0)  # if the product is scaled as before
        taken = [TAKEN[kind] for kind in sorted(axis.over - ({"length"} if same else set()))]
        taken += ["a function that is not linear"] if name in axes.nonlinear else []
        taken += ["a product with parameters"] if roles & {"gain", "scales"} else []
        if axis.contracted and taken:
            yield (
                f"{name} is what activations are contracted over, as queries with keys, and "
                f"{taken[0]} stands on it"
            )
        for kind in sorted(axis.over & {"length", "softmax", "sum"} if not axis.contracted else ()):
            yield f"{name} grows under {TAKEN[kind]}, which counts every copy"
        if axis.resize == "interpolate":
            how = "interpolated" if grid(length, longer) else "the mean of all where they are new"
            yield f"{name} grows from {length} to {longer} positions, which are {how}"
        if axis.resize == "copy":
            yield f"{name} grows from {length} to {longer} by copies, which are ranked together"
        if name in axes.tied:
            yield f"{name} is written and read by one tied table without a norm between"
        if longer % length == 0:
            continue
        uneven = {"group", "spread", *(() if "rms" in axis.over else ("mean square",))}
        under = (
            TAKEN[min(axis.over & uneven)] if axis.over & uneven
            else "norms of more than one kind" if len(axis.over & {"layer", "rms", "mean"}) > 1
            else "an extreme" if axis.normed and "extreme" in axis.over
            else "a norm of activations"
            if axis.normed and (name in axes.nonlinear or "attention" in axis.over)
            else "norms in the stream"
            if axis.normed and ("scales" in roles or name in axes.post_norm)
            else None
        )  # fmt: skip
        if under:
            yield f"{name} grows from {length} to {longer}, no multiple, under {under}"


def _of_reductions(plan: Plan, axes: Axes) -> Iterator[str]:
    """What is taken over several axes needs them to grow alike."""
    for kind, terms in sorted(axes.reductions):
        names = {name: plan.axes.get(name, (1, 1)) for term in terms for name in term}
        rates = {
            Fraction(
                math.prod(names[name][1] for name in term),
                math.prod(names[name][0] for name in term),
            )
            for term in terms
        }
        if len(rates) > 1 and kind in NORMED:
            yield f"{TAKEN[kind]} is taken over {', '.join(names)}, which grow unequally"
        elif (
            (len(terms) > 1 and kind in ("layer", "rms")) or (len(names) > 1 and kind == "layer")
        ) and any(b % a for a, b in names.values()):
            yield f"{TAKEN[kind]} is taken over {', '.join(names)}, which grow by no multiples"


def _disordered(ours: Axes, axes: Axes) -> Iterator[str]:
    """Stacks that alternate in one list, whose layers would come in another order."""
    lists: dict[str, list[str]] = {}
    for name, (path, _) in axes.stacks.items():
        lists.setdefault(path, []).append(name)
    for path, names in lists.items():
        order = [
            (ours.stacks[name].layers[source], axes.stacks[name].layers[number])
            for name in names
            for source, number in _old(ours.stacks[name].depth, axes.stacks[name].depth)
        ]
        kept = [large for _, large in sorted(order)]
        if kept != sorted(kept):
            yield (
                f"{' and '.join(names)} alternate in {path}, and do not grow alike: their layers "
                "come in another order"
            )


def _nonlinear(stack: str, axes: Axes, tracer: Tracer) -> str | None:
    """The function that layers of a stack apply to what passes them."""
    return next(
        (
            function
            for function, written in tracer.graph.nonlinear_terms
            if any(pattern_of(name, axes.stacks)[1] == stack for name in written)
            and len({pattern_of(name, axes.stacks)[1:] for name in written}) > 1
        ),
        None,
    )


def _against(axis: Axis, change: float | None) -> str | None:
    """What the proof says, or tracing where there is none, against growing an axis by a map."""
    if axis.resize or (change is not None and change <= TOLERANCE):
        return None
    if change is None:
        return axis.pinned
    permuted = f"permuting its entries changes the output by {change:.1g} of itself"
    return f"{axis.pinned}, and {permuted}" if axis.pinned else permuted


def _of_buffers(plan: Plan, axes: Axes, small: nn.Module, large: nn.Module) -> Iterator[str]:
    kept, numbers = large.state_dict(keep_vars=True), dict(small.named_buffers())
    for name, buffer in large.named_buffers():
        if name in numbers and _differ(numbers[name], buffer):
            here, there = float(numbers[name]), float(buffer)
            yield f"{name} is {here:.4g} in the small network and {there:.4g} in the large one"
        dims = axes.dims.get(pattern_of(name, axes.stacks)[0], ())
        grown = [number for number, dim in enumerate(dims) if plan.grows(dim)]
        if name not in kept and not all(_uniform(buffer, number) for number in grown):
            yield f"{name} is not saved with the network and stays as it was built"


def _differing(row: Row, traced: Sequence[Tracer], ends: Collection[str]) -> tuple[str, str] | None:
    """The first layer behind which the networks compute with other numbers, where it is kept.

    ``ends`` are the last parameters of all layers that something is computed with.
    """
    once = traced[0].scalars_read != traced[1].scalars_read  # then the data decides how often
    there = [_constants(traced[1], name, once) for name in row.large_names]
    alike = all(numbers == there[0] for numbers in there[:-1])
    for source, number in _old(len(row.small_names), len(there)):
        name, others = row.small_names[source], [number]
        if source + 1 == len(row.small_names) and name in ends:
            others = [-1] if alike else [number, -1]  # behind which is what follows all layers
        for other in others:
            if _constants(traced[0], name, once) != there[other]:
                return name, row.large_names[other]
    return None


def _old(small: int, large: int) -> Iterator[tuple[int, int]]:
    """The layers of a small stack and where they stand in the large one, new ones behind each."""
    sources = [number * small // large for number in range(large)]
    for number, source in enumerate(sources):
        if number == 0 or source != sources[number - 1]:
            yield source, number


def _constants(tracer: Tracer, name: str, once: bool = False) -> list[Any]:
    """The numbers that are computed with behind a parameter, each of them ``once`` if asked."""
    numbers = tracer.graph.numbers(name)
    if once:
        numbers = [number for place, number in enumerate(numbers) if number not in numbers[:place]]
    return numbers


def _differ(small: Tensor, large: Tensor) -> bool:
    """Whether two constants, such as the root of a width, are different numbers."""
    known = not small.is_meta and not large.is_meta
    return (
        known
        and small.numel() == large.numel() == 1
        and small.is_floating_point()
        and bool(small != large)
    )


def _uniform(buffer: Tensor, dim: int) -> bool:
    """Whether all entries along a dimension are equal."""
    return not buffer.is_meta and bool((buffer == buffer.narrow(dim, 0, 1)).all())
