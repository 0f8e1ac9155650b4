"""Find the parameters that write into the residual stream, and the layers that are new."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Iterator

from lightning_ligo.axes.axes import Axes
from lightning_ligo.axes.stacks import pattern_of

Sums = list[list[frozenset[str]]]  # for every addition of activations, the writers of each term


def writing(axes: Axes, sums: Sums) -> set[str]:
    """Find the patterns in stacks that write into the residual stream."""
    layers: dict[tuple[str, int | None], set[str]] = {}
    for name in {name for terms in sums for written in terms for name in written}:
        _, stack, layer = pattern_of(name, axes.stacks)
        if stack is not None and stack not in axes.sequential:
            layers.setdefault((stack, layer), set()).add(name)
    return {
        pattern_of(name, axes.stacks)[0]
        for inside in layers.values()
        for name in _added(inside, sums)
    }


def passing(axes: Axes, scalings: list[tuple[frozenset[str], frozenset[str]]]) -> set[str]:
    """Find the patterns in stacks that multiply the residual stream."""
    return {
        pattern_of(name, axes.stacks)[0]
        for scaled, written in scalings
        for name in scaled
        if {pattern_of(name, axes.stacks)[1:]} != {pattern_of(w, axes.stacks)[1:] for w in written}
    }


def passed(stack: str, axes: Axes, sums: Sums) -> bool:
    """Whether all layers of a stack add to one residual stream."""
    for written in itertools.chain.from_iterable(sums):
        sources = {pattern_of(name, axes.stacks)[1:] for name in written}
        if len(sources) > 1 and any(source == stack for source, _ in sources):
            return True
    return False


def added_layers(
    names: Iterable[str], small: Iterable[str], large: Iterable[str], sums: Sums
) -> dict[str, bool]:
    """Find the parameters and buffers of new layers in lists of the small network.

    A layer that adds to no residual stream cannot be new, as it would change the function.

    Returns:
        For each name, whether it writes into the stream.
    """
    lists = {path for name in names for path, _ in children(name)}
    layers: dict[str, set[str]] = {}
    for name in {*large} - {*small}:
        for path, child in children(name):
            if path in lists and not any(other.startswith(child) for other in small):
                layers.setdefault(child, set()).add(name)
                break
    return {
        name: name in added
        for inside in layers.values()
        if (added := _added(inside, sums))
        for name in inside
    }


def _added(inside: set[str], sums: Sums) -> set[str]:
    """The parameters of a layer that write a term of a sum with terms from outside the layer."""
    return {
        name
        for terms in sums
        for written in terms
        if written <= inside and not set().union(*terms) <= inside
        for name in written
    }


def children(name: str) -> Iterator[tuple[str, str]]:
    """Yield the lists that a parameter is in, each with the start of the names in its child."""
    for match in re.finditer(r"\.\d+(?=\.)", name):
        yield name[: match.start()], f"{name[: match.end()]}."
