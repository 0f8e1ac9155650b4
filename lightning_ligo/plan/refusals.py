"""Why a large network cannot be grown from a small one."""

from __future__ import annotations

import itertools
from collections.abc import Collection, Iterable

from torch import Size, Tensor

from lightning_ligo.axes.axes import UNUSED, Axes, Axis, Use
from lightning_ligo.axes.dims import Product, uses_of
from lightning_ligo.axes.graph import SELECTED
from lightning_ligo.plan.correspondence import Counterparts, Shapes
from lightning_ligo.plan.plan import Lengths
from lightning_ligo.plan.plan import length as length_of
from lightning_ligo.plan.resize import grid


def problems(
    ours: Axes,
    theirs: Axes,
    small: Shapes,
    large: Shapes,
    lengths: Lengths,
    shared: Collection[str],
    same: Counterparts,
    fresh: Collection[str],
) -> list[str]:
    """What the two networks have that does not fit, all of it; ``fresh`` needs no counterpart."""
    sequential = {**ours.sequential, **theirs.sequential}
    lost, added = _missing(small, large), _missing(large, {*small, *fresh})
    found = [
        f"the {where} network lacks {', '.join(names)} (or ties them to others), "
        f"which the {other} one has"
        for where, other, names in (("large", "small", lost), ("small", "large", added))
        if names
    ]
    found += [
        f"{stack} cannot change its depth: {reason}"
        for stack, reason in sequential.items()
        if found and any(name.startswith(f"{stack}.") for name in [*lost, *added])
    ]
    apart = {name: those for name, those in same.items() if name not in shared}
    for pattern in [name for name in large if name in small and name not in fresh]:
        sizes = small[pattern], large[pattern]
        found += mismatch(pattern, ours, theirs, *sizes, apart) or _misfit(
            pattern, theirs.dims.get(pattern, ()), small[pattern], lengths, shared
        )
    for name, axis in theirs.axes.items():
        length = lengths[name][0]
        if axis.pinned == UNUSED:
            continue
        if length > axis.length:
            found.append(
                f"axis {name} is {length} long in the small network and only {axis.length} in "
                "the large one; a network grows, it does not shrink"
            )
        elif axis.named and not axis.resize:
            continue
        elif length < axis.length and axis.pinned and not _resizes(axis, length):
            found.append(
                f"axis {name} is {length} long in the small network and {axis.length} in the "
                f"large one, and cannot grow: {axis.pinned}; give both networks the same"
            )
    return found


def changed_output(small: Tensor, large: Tensor, ours: Axes, theirs: Axes) -> list[str]:
    """An output may change its shape only where it has more classes."""
    more = {
        (ours.axes[name].length, axis.length)
        for name, axis in theirs.axes.items()
        if axis.resize == "append" and name in ours.axes
    }
    changed = {pair for pair in zip(small.shape, large.shape, strict=False) if pair[0] != pair[1]}
    if small.dim() == large.dim() and changed <= more:
        return []
    return [
        f"its output would change from {tuple(small.shape)} to {tuple(large.shape)}; grow the "
        "module that holds what reads this output as well"
    ]


def _resizes(axis: Axis, small: int) -> bool:
    """Whether an axis whose entries are told apart can still become longer.

    Positions can if they are a grid, or tokens, one of which is selected.
    """
    if axis.resize is None or axis.name.endswith("heads"):
        return False
    return (
        axis.resize != "interpolate"
        or axis.pinned == SELECTED
        or grid(small, axis.length) is not None
    )


def _missing(of: Iterable[str], among: Iterable[str]) -> list[str]:
    there = set(among)
    missing = [name for name in of if name not in there]
    return missing if len(missing) <= 8 else [*missing[:8], f"and {len(missing) - 8} more"]


def mismatch(
    pattern: str,
    ours: Axes,
    theirs: Axes,
    small: Size,
    large: Size,
    same: Counterparts,
) -> list[str]:
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
    known = set(itertools.chain.from_iterable(same.values()))
    for dim, (mine, other) in enumerate(
        zip(ours.dims[pattern], theirs.dims[pattern], strict=False)
    ):
        here = [use.axis for use in uses_of(mine) if use.axis in known]
        there = [use.axis for use in uses_of(other) if use.axis in same]
        alike = len(here) == len(there) and all(
            axis in same[name] for axis, name in zip(here, there, strict=True)
        )
        if not alike and not (
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


def _misfit(
    pattern: str,
    dims: tuple[Product[Use], ...],
    small: Size,
    lengths: Lengths,
    shared: Collection[str],
) -> list[str]:
    """Where the lengths of a dimension's axes do not multiply to what the small network has."""
    for dim, (product, found) in enumerate(zip(dims, small, strict=False)):
        wanted = length_of(product, lengths)[0]
        repeated = any(use.axis in shared for use in uses_of(product)) and wanted % found == 0
        if wanted != found and not repeated:
            axes = ", ".join({f"{use.axis} {lengths[use.axis][0]}": 0 for use in uses_of(product)})
            return [
                f"dimension {dim} of {pattern} is {found} long in the small network and not the "
                f"{wanted} of the axes that it has in the large one ({axes}): it is made of others"
            ]
    return []


def _fixed(ours: Axes, mine: Product[Use], theirs: Axes, other: Product[Use]) -> bool:
    """Whether nothing of a dimension could grow in either network, however it is told apart."""
    return all(
        axes.axes[use.axis].pinned
        for axes, product in ((ours, mine), (theirs, other))
        for use in uses_of(product)
    )


def _words(axes: Axes, pattern: str) -> str:
    words = (" ".join(use.axis for use in uses_of(dim)) or "1" for dim in axes.dims[pattern])
    return f"({', '.join(words)})"
