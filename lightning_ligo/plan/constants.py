"""Find the constants by which two networks scale and shift their parameters."""

from __future__ import annotations

import math
from collections import defaultdict
from typing import NamedTuple

from torch import nn

from lightning_ligo.axes.axes import Axes
from lightning_ligo.axes.factors import ends
from lightning_ligo.axes.graph import Graph, Scaled
from lightning_ligo.axes.stacks import pattern_of


class Traced(NamedTuple):
    """A network, its trace and its axes."""

    network: nn.Module
    graph: Graph
    axes: Axes


def factors(small: Traced, large: Traced) -> dict[str, float]:
    """The factors on parameters, by pattern, where the networks scale what they write otherwise.

    A table times the root of the width, or a weight over the root of its inputs, is written larger
    or smaller by what the constant changes. A tied table reads what it writes: the norm before the
    head takes its factor out again, and where none does the table has none.
    """
    sides = [_scales(side) for side in (small, large)]
    found: dict[str, float] = {}
    for pattern in sides[0].keys() & sides[1].keys():
        pairs = zip(*(side[pattern] for side in sides), strict=False)
        changes = [before / after for before, after in pairs if after]
        different = [change for change in changes if not math.isclose(change, 1)]
        if different and math.isclose(min(different), max(different)):
            found[pattern] = different[0]
    roles = defaultdict(set)
    for use in large.graph.uses:
        roles[use.owner.name, use.owner.dim].add(use.role)
    for (name, dim), played in roles.items():
        if name in found and {"produces", "consumes"} <= played:
            axis = large.axes.uses(name)[dim].axis if len(large.axes.uses(name)) > dim else ""
            before = [
                pattern
                for pattern in large.axes.dims
                for use in large.axes.uses(pattern)
                if use.axis == axis and use.form == "consumes" and use.role != "consumes"
            ]
            found |= dict.fromkeys(before, 1 / found[name])
            if not before:
                del found[name]
    return found


def offsets(large: Traced) -> dict[str, float]:
    """The numbers that are added to parameters before they are used, by pattern."""
    stacks = large.axes.stacks
    return {pattern_of(name, stacks)[0]: number for name, number in large.graph.offsets.items()}


def _scales(side: Traced) -> dict[str, list[float]]:
    """By pattern, the constants that scale what the parameter of the first layer writes."""
    single = (pair for pair in side.network.named_buffers() if pair[1].numel() == 1)
    buffers = {name: float(buffer) for name, buffer in single if not buffer.is_meta}
    last: dict[int, Scaled] = {id(scaled.root): scaled for scaled in side.graph.scaled}
    scales = defaultdict(list)
    for scaled in last.values():
        contracted = any(end.factor.facts.contracted for dim in scaled.dims for end in ends(dim))
        known = [by for by, _ in scaled.by if not isinstance(by, str) or by in buffers]
        if contracted or len(known) < len(scaled.by):
            continue
        numbers = [(buffers[by] if isinstance(by, str) else by) ** power for by, power in scaled.by]
        for name in scaled.writers:
            pattern, _, layer = pattern_of(name, side.axes.stacks)
            if not layer:
                scales[pattern].append(math.prod(numbers))
    return scales
