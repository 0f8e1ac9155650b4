"""How long each axis of a large network is in the small one."""

from __future__ import annotations

from torch import Size

from lightning_ligo.axes.axes import Axes, Use
from lightning_ligo.axes.dims import uses_of
from lightning_ligo.plan.plan import Lengths, length

Shapes = dict[str, Size]  # by pattern


Counterparts = dict[str, tuple[str, ...]]  # the axes of the small network by one of the large


def counterparts(ours: Axes, theirs: Axes) -> Counterparts:
    """The axes that stand in the small network where one of the large stands, usually just one.

    A shortcut that only one of the networks has makes one axis there of what are two in the other.
    """
    found: dict[str, dict[str, None]] = {}
    for pattern in theirs.dims.keys() & ours.dims.keys():
        for dims in zip(ours.dims[pattern], theirs.dims[pattern], strict=False):
            mine, other = map(list, map(uses_of, dims))
            for one, use in zip(mine, other, strict=False) if len(mine) == len(other) else ():
                found.setdefault(use.axis, {})[one.axis] = None
    named = {name: (name,) for name in theirs.axes if name in ours.axes}
    return named | {name: tuple(sorted(those)) for name, those in found.items()}


def lengths_of(
    ours: Axes, theirs: Axes, small: Shapes, large: Shapes, same: Counterparts
) -> tuple[Lengths, dict[str, int]]:
    """The (small, large) length of every axis, and for how many heads one of the small stands.

    Where the small network has no axis of a name it is 1, as of a single head, unless all
    dimensions that carry it are as long there. An axis of buffers alone that are not saved, such
    as the windows of a mask, has the length that the large network was built with in both.

    Keys and values of grouped-query attention have fewer heads than queries. Where the large
    network groups fewer queries, the small one is first read as one whose shared heads are
    repeated, which computes the same (Ainslie et al., *GQA*, EMNLP 2023, in the other direction).
    """
    lengths = {
        name: (_length_in(name, ours, theirs, small, large, same), axis.length)
        for name, axis in theirs.axes.items()
    }
    shared: dict[str, int] = {}
    for name, axis in theirs.axes.items():
        group = f"{name.removesuffix('heads')}group"
        if not name.endswith("heads"):
            continue
        heads = _heads(name, group, theirs, small, lengths)
        if len(heads) != 2 or 0 in heads:  # no whole number of these heads, which is refused
            continue
        keys, queries = sorted(heads)
        grouped = theirs.axes[group].length if group in theirs.axes else 1
        for repeats in range(1, queries // keys + 1):
            if queries % (keys * repeats) == 0 and queries // (keys * repeats) <= grouped:
                lengths[name] = keys * repeats, axis.length
                if group in lengths:
                    lengths[group] = queries // (keys * repeats), grouped
                if repeats > 1:
                    shared[name] = repeats
                break
    return lengths, shared


def _length_in(
    name: str, ours: Axes, theirs: Axes, small: Shapes, large: Shapes, same: Counterparts
) -> int:
    if not any(
        use.axis == name for pattern in large for dim in theirs.dims.get(pattern, ())
        for use in uses_of(dim)
    ):  # fmt: skip
        return theirs.axes[name].length
    if name in same:
        return ours.axes[same[name][0]].length
    one = any(
        small[pattern][number : number + 1] != large[pattern][number : number + 1]
        for pattern, dims in theirs.dims.items()
        for number, dim in enumerate(dims)
        if pattern in small and any(use.axis == name for use in uses_of(dim))
    )
    return 1 if one else theirs.axes[name].length


def _heads(name: str, group: str, theirs: Axes, small: Shapes, lengths: Lengths) -> set[int]:
    """How many heads the parameters of the small network have that carry an axis of heads."""
    found = set()
    for pattern, dims in theirs.dims.items():
        for number, product in enumerate(dims):
            axes = [node.axis for node in product if isinstance(node, Use)]
            if name in axes and pattern in small:
                others = (n for n in product if getattr(n, "axis", None) not in (name, group))
                width = length(tuple(others), lengths)[0]
                found.add(small[pattern][number] // width)
    return found
