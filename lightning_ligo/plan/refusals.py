"""Why a large network cannot be grown from a small one, and what a reader should know if it can."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from lightning_ligo.axes.axes import UNUSED, Axis
from lightning_ligo.axes.dims import uses_of
from lightning_ligo.axes.factors import CONSTANT
from lightning_ligo.axes.graph import SELECTED
from lightning_ligo.axes.proof import TOLERANCE
from lightning_ligo.plan.correspondence import Correspondence, mismatch
from lightning_ligo.plan.plan import length as length_of
from lightning_ligo.plan.resize import grid

SHRINKS = "a network grows, it does not shrink"


def refusals(both: Correspondence) -> list[str]:
    """List all reasons why the large network cannot be grown from the small one."""
    small, large = (
        sum(parameter.numel() for parameter in side.network.parameters())
        for side in (both.small, both.large)
    )
    found = [*_of_parts(both), *_of_patterns(both), *_of_axes(both)]
    if small > large:
        found.append(f"it has {large} parameters and the small network {small}; {SHRINKS}")
    return found or list(_of_output(both))


def unproved(both: Correspondence, proofs: Mapping[str, float]) -> list[str]:
    """List the axes that the proof does not let grow."""
    return [
        f"axis {name} cannot grow: permuting its entries changes the output by {change:.1g} of "
        "itself, so they are not exchangeable; give both networks the same length"
        for name, change in proofs.items()
        if change > TOLERANCE
        and not both.large.axes.axes[name].named
        and both.large.axes.axes[name].pinned != CONSTANT
    ]


def _of_parts(both: Correspondence) -> Iterator[str]:
    small, large = both.small.shapes, both.large.shapes
    lost, added = _missing(small, large), _missing(large, {*small, *both.fresh})
    for where, lacking, names in (("large", "small", lost), ("small", "large", added)):
        if names:
            yield (
                f"the {where} network lacks {', '.join(names)} (or ties them to others), which the "
                f"{lacking} one has"
            )
    for stack, reason in {**both.small.axes.sequential, **both.large.axes.sequential}.items():
        if any(name.startswith(f"{stack}.") for name in [*lost, *added]):
            yield f"{stack} cannot change its depth: {reason}"


def _missing(names: Iterable[str], among: Iterable[str]) -> list[str]:
    there = set(among)
    missing = [name for name in names if name not in there]
    return missing if len(missing) <= 8 else [*missing[:8], f"and {len(missing) - 8} more"]


def _of_patterns(both: Correspondence) -> Iterator[str]:
    counterparts = {n: axes for n, axes in both.counterparts.items() if n not in both.shared}
    for pattern in both.large.shapes:
        if pattern in both.small.shapes and pattern not in both.fresh:
            found = mismatch(pattern, both.small, both.large, counterparts)
            yield from found or _misfit(pattern, both)


def _misfit(pattern: str, both: Correspondence) -> list[str]:
    """Say where the axes of a dimension do not multiply to its length in the small network."""
    dims = both.large.axes.dims.get(pattern, ())
    for dim, (product, found) in enumerate(zip(dims, both.small.shapes[pattern], strict=False)):
        expected = length_of(product, both.lengths)[0]
        names = dict.fromkeys(use.axis for use in uses_of(product))
        repeated = not both.shared.keys().isdisjoint(names) and expected % found == 0
        if expected != found and not repeated:
            axes = ", ".join(f"{name} {both.lengths[name][0]}" for name in names)
            return [
                f"dimension {dim} of {pattern} is {found} long in the small network, expected "
                f"{expected}, the product of the axes that it has in the large one ({axes})"
            ]
    return []


def _of_axes(both: Correspondence) -> Iterator[str]:
    for name, axis in both.large.axes.axes.items():
        length = both.lengths[name][0]
        if axis.pinned == UNUSED:
            continue
        if length > axis.length:
            yield (
                f"axis {name} is {length} long in the small network and only {axis.length} in the "
                f"large one; {SHRINKS}"
            )
        elif axis.named and not axis.resize:
            continue
        elif length < axis.length and axis.fixed and not _resizes(axis, length):
            yield (
                f"axis {name} is {length} long in the small network and {axis.length} in the large "
                f"one, and cannot grow: {axis.pinned}; give both networks the same length"
            )


def _resizes(axis: Axis, small: int) -> bool:
    """Whether an axis whose entries are not exchangeable can still become longer.

    Positions can if they are a grid, or tokens, one of which is selected.
    """
    if axis.resize is None or axis.name.endswith("heads"):
        return False
    return (
        axis.resize != "interpolate"
        or axis.pinned == SELECTED
        or grid(small, axis.length) is not None
    )


def _of_output(both: Correspondence) -> Iterator[str]:
    """Nothing reads outputs that all change their shape, other than by having more classes.

    Features that grow may stand beside an output that does not, such as the logits.
    """
    more = {
        (both.small.axes.axes[name].length, axis.length)
        for name, axis in both.large.axes.axes.items()
        if axis.resize == "append" and name in both.small.axes.axes
    }
    changed = list[str]()
    for before, after in zip(both.small.tracer.finals, both.large.tracer.finals, strict=False):
        for one, other in zip(before, after, strict=False):
            small, large = tuple(one.shape), tuple(other.shape)
            pairs = {pair for pair in zip(small, large, strict=False) if pair[0] != pair[1]}
            if len(small) != len(large) or not pairs <= more:
                changed.append(
                    f"its output would change from {small} to {large}; grow the module that also "
                    "holds the layer that reads this output"
                )
            elif small:
                return
    yield from changed[:1]


# Notes --------------------------------------------------------------------------------------------


def notes(both: Correspondence, proofs: Mapping[str, float]) -> Iterator[str]:
    """Yield the notes on a pair; ``proofs`` are the changes when an axis is permuted."""
    for start, (before, after) in both.replaced.items():
        yield (
            f"{start.removesuffix('.')} is a {before} in the small network and a {after} in the "
            "large one, with other axes: it starts as it was built, and what it writes is zero"
        )
    axes = both.large.axes
    for name, (small, large) in both.grown.items():
        axis = axes.axes[name]
        if axis.named and (against := _against(axis, proofs.get(name))):
            yield f"{name} grows as you named it, against this: {against}"
        if axis.pinned == CONSTANT and not axis.named:
            yield f"{name} grows although {CONSTANT}: the large network has its own"
        if not axis.resize and large % small and axis.normed:
            yield f"{name} grows from {small} to {large}, no multiple, under a norm"


def _against(axis: Axis, change: float | None) -> str | None:
    """The reason of the proof, or of tracing without one, against growing an axis by a map."""
    if axis.resize or (change is not None and change <= TOLERANCE):
        return None
    if change is None:
        return axis.pinned
    permuted = f"permuting its entries changes the output by {change:.1g} of itself"
    return f"{axis.pinned}, and {permuted}" if axis.pinned else permuted
