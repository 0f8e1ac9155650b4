"""Why a large network cannot be grown from a small one."""

from __future__ import annotations

from collections.abc import Collection, Iterable

from torch import Size, Tensor

from lightning_ligo.axes import UNUSED, Axes, Axis, Product, uses_of
from lightning_ligo.maps import grid

Shapes = dict[str, Size]  # by pattern


def problems(
    ours: Axes,
    theirs: Axes,
    small: Shapes,
    large: Shapes,
    fresh: Collection[str],
) -> list[str]:
    """What the two networks have that does not fit, all of it; ``fresh`` needs no counterpart."""
    chained = {**ours.chained, **theirs.chained}
    lost, added = _missing(small, large), _missing(large, {*small, *fresh})
    found = [
        f"the {where} network lacks {', '.join(names)} (or ties them to others), "
        f"which the {other} one has"
        for where, other, names in (("large", "small", lost), ("small", "large", added))
        if names
    ]
    found += [
        f"{stack} cannot change its depth: {reason}"
        for stack, reason in chained.items()
        if found and any(name.startswith(f"{stack}.") for name in [*lost, *added])
    ]
    for pattern in (small.keys() & large.keys()) - {*fresh}:
        found += _mismatch(pattern, ours, theirs, small[pattern], large[pattern])
    for name, axis in theirs.axes.items():
        length = length_in(name, ours, theirs, small, large)
        if axis.pinned == UNUSED:
            continue
        if length > axis.length:
            found.append(
                f"axis {name} is {length} long in the small network and only {axis.length} in "
                "the large one; a network grows, it does not shrink"
            )
        elif length < axis.length and axis.pinned and not _stretches(axis, length):
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
        if axis.stretch == "append" and name in ours.axes
    }
    changed = {pair for pair in zip(small.shape, large.shape, strict=False) if pair[0] != pair[1]}
    if small.dim() == large.dim() and changed <= more:
        return []
    return [
        f"its output would change from {tuple(small.shape)} to {tuple(large.shape)}; grow the "
        "module that holds what reads this output as well"
    ]


def length_in(name: str, ours: Axes, theirs: Axes, small: Shapes, large: Shapes) -> int:
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
