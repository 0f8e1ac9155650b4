"""Pair a small with a large network."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

from torch import Size, nn

from lightning_ligo.axes.axes import UNUSED, Axes
from lightning_ligo.axes.dims import uses_of
from lightning_ligo.axes.naming import name_axes
from lightning_ligo.axes.override import Override, check
from lightning_ligo.axes.proof import TOLERANCE, prove_axes
from lightning_ligo.axes.stacks import pattern_of, place_of
from lightning_ligo.axes.trace import watch
from lightning_ligo.plan.correspondence import counterparts, lengths_of
from lightning_ligo.plan.exactness import conditions, differences
from lightning_ligo.plan.identity import disturbing
from lightning_ligo.plan.plan import Plan, Row
from lightning_ligo.plan.refusals import changed_output, problems
from lightning_ligo.plan.replaced import replaced
from lightning_ligo.plan.residual import new_layers, passing, writing

SHOWN = 12  # problems in one error


def pair(
    small: nn.Module,
    large: nn.Module,
    *args: Any,
    large_inputs: Mapping[str, Any] | None = None,
    override: Override | None = None,
    scalars_read: Sequence[Any] = (),
    **kwargs: Any,
) -> Plan:
    """Plan how ``large`` grows from ``small``, by tracing ``network(*args, **kwargs)`` of both.

    The networks may be on different devices; a large one on the meta device costs no memory.

    Besides axes whose entries are exchangeable, which grow by maps, tables and outputs can get more
    entries (vocabulary, classes), each new one the mean of the old; and positions that are added
    are interpolated, as when images become larger. The large network is then called with
    ``large_inputs``, by the names of its forward's arguments.

    ``answers`` are what a network of the same architecture has read of its tensors to decide how to
    go on (`Plan.scalars_read`), for a pair that is on the meta device, where tensors hold nothing.

    ``override`` names axes of both networks, see `trace`. What it names by a word may grow whatever
    stands against it, and the plan says so; what it gives as a number stays.

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
    check(override, small, large)
    inputs = (args, kwargs) if large_inputs is None else ((), dict(large_inputs))
    if _is_meta(small) and not _is_meta(large):
        scalars_read = watch(large, *inputs, override=override).scalars_read
    first = watch(small, args, kwargs, scalars_read, override)
    try:
        second = watch(large, *inputs, first.scalars_read, override)
    except (RuntimeError, TypeError, ValueError, AssertionError, IndexError) as error:
        raise ValueError(
            f"{type(large).__name__} cannot be grown from {type(small).__name__}: called with "
            f"{'the same inputs' if large_inputs is None else 'large_inputs'} it fails with "
            f"{type(error).__name__}: {error}"
        ) from error
    ours, theirs = name_axes(first.graph, second.graph)
    shapes = _shapes(first.graph.shapes, ours), _shapes(second.graph.shapes, theirs)
    same = counterparts(ours, theirs)
    writes = writing(theirs, second.graph.sums)
    others = replaced(small, large, ours, theirs, shapes, same, writes)
    alike = _without(shapes[0], others), _without(shapes[1], others)
    lengths, shared = lengths_of(ours, theirs, *alike, same)
    shapes = alike[0], shapes[1]
    fresh = new_layers(first.graph.shapes, *shapes, second.graph.sums)
    fresh.update({name: name in writes for name in shapes[1] if name not in alike[1]})
    fresh.update(dict.fromkeys(_unused(theirs, *shapes), False))
    writes.update(name for name in fresh if fresh[name])
    found = problems(ours, theirs, *shapes, lengths, shared, same, fresh)
    sizes = [sum(p.numel() for p in network.parameters()) for network in (small, large)]
    if sizes[0] > sizes[1]:
        found.append(
            f"it has {sizes[1]} parameters and the small network {sizes[0]}; a network grows, it "
            "does not shrink"
        )
    if not found and first.outputs and second.outputs:
        found = changed_output(first.outputs[0], second.outputs[0], ours, theirs)
    proofs: dict[str, float] = {}
    if not found and not _is_meta(small):
        grown = [
            name
            for name, (length, longer) in lengths.items()
            if length != longer and not theirs.axes[name].resize
        ]
        small_axes = {axis for name in grown for axis in same.get(name, ())}
        changed = prove_axes(small, args, kwargs, ours, sorted(small_axes), quick=True)
        proofs = {
            name: max(proved)
            for name in grown
            if (proved := [changed[axis] for axis in same.get(name, ()) if axis in changed])
        }
        found = [
            f"axis {name} cannot grow: permuting its entries changes the output by {change:.1g} of "
            "itself, so something tells them apart; give both networks the same length"
            for name, change in proofs.items()
            if change > TOLERANCE and not theirs.axes[name].named
        ]
    if found:
        more = [f"and {len(found) - SHOWN} more problems"] if len(found) > SHOWN else []
        raise ValueError(
            f"{type(large).__name__} cannot be grown from {type(small).__name__}:\n  "
            + "\n  ".join([*found[:SHOWN], *more])
        )
    passes = passing(theirs, second.graph.scalings)
    rows, buffers = _rows(large, ours, theirs, shapes, fresh, writes, passes)
    depths = {name: (ours.stacks[name].depth, stack.depth) for name, stack in theirs.stacks.items()}
    scales = {
        name: math.sqrt(ours.axes[same[name][0]].scale / axis.scale)
        for name, axis in theirs.axes.items()
        if axis.contracted and name in same and ours.axes[same[name][0]].scale * axis.scale > 0
    }
    plan = Plan(
        lengths, depths, rows, buffers, theirs.axes, proofs=proofs, scales=scales, shared=shared,
        scalars_read=tuple(second.scalars_read),
    )  # fmt: skip
    disturbed = {} if _is_meta(small) else disturbing(plan, small, args, kwargs, ours)
    same_inputs = large_inputs is None
    inexact = [
        *(
            f"{start.removesuffix('.')} is a {one} in the small network and a {other} in the large "
            "one, with other axes: it starts as it was built, and what it writes is zero"
            for start, (one, other) in others.items()
        ),
        *conditions(plan, ours, theirs, (first, second), small, large, disturbed, same_inputs),
        *differences(plan, ours, same),
    ]
    return dataclasses.replace(plan, inexact=tuple(inexact))


def _is_meta(network: nn.Module) -> bool:
    return any(parameter.is_meta for parameter in network.parameters())


def _rows(
    large: nn.Module,
    ours: Axes,
    theirs: Axes,
    shapes: tuple[dict[str, Size], dict[str, Size]],
    fresh: Collection[str],
    writes: Collection[str],
    passes: Collection[str],
) -> tuple[tuple[Row, ...], tuple[Row, ...]]:
    """A row for every pattern of parameters, and for every one of persistent buffers."""
    parameters = {pattern_of(name, theirs.stacks)[0] for name, _ in large.named_parameters()}
    rows: list[Row] = []
    buffers: list[Row] = []
    for pattern, shape in shapes[1].items():
        stack, rest = place_of(pattern, theirs.stacks)
        row = Row(
            pattern,
            stack,
            shapes[0].get(pattern, shape),
            shape,
            theirs.dims.get(pattern, ()),
            () if pattern in fresh else _names(stack, rest, ours),
            _names(stack, rest, theirs),
            pattern in writes,
            pattern in passes,
        )
        (rows if pattern in parameters else buffers).append(row)
    return tuple(rows), tuple(buffers)


def _names(stack: str | None, rest: str, axes: Axes) -> tuple[str, ...]:
    """The parameters of every layer of a stack, or the one that is in none."""
    if stack is None:
        return (rest,)
    path, layers = axes.stacks[stack]
    return tuple(f"{path}.{layer}{rest}" for layer in layers)


def _unused(axes: Axes, small: dict[str, Size], large: dict[str, Size]) -> list[str]:
    """The patterns that are longer in the large network, and that its forward does not use."""
    return [
        pattern
        for pattern, dims in axes.dims.items()
        if pattern in large
        and small.get(pattern, large[pattern]) != large[pattern]
        and all(axes.axes[use.axis].pinned == UNUSED for dim in dims for use in uses_of(dim))
    ]


def _without(shapes: Mapping[str, Size], starts: Iterable[str]) -> dict[str, Size]:
    """The shapes under patterns that begin with none of these."""
    return {name: shape for name, shape in shapes.items() if not name.startswith(tuple(starts))}


def _shapes(shapes: Mapping[str, Size], axes: Axes) -> dict[str, Size]:
    """The shape under every pattern."""
    return {pattern_of(name, axes.stacks)[0]: shape for name, shape in shapes.items()}
