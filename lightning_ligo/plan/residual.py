"""Find the parameters that write into the residual stream, and the layers that are new."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Iterator
from itertools import chain
from typing import NamedTuple

from lightning_ligo.axes.axes import Axes
from lightning_ligo.axes.graph import Graph, Term
from lightning_ligo.axes.stacks import inside, numbered, pattern_of

Place = Callable[[str], Hashable]  # the layer that a parameter is in, or None


class Stream(NamedTuple):
    """What the layers of stacks do to the residual stream, as patterns of parameters.

    A post-norm layer has norms in the stream itself, and the last of them writes its output. Where
    a new layer follows, the old one leaves this norm to it: all norms between have the gain 1 and
    the shift 0, and what is normed once stays as it is.
    """

    writes: set[str]  # add to it, so zero makes a layer add nothing
    passes: set[str]  # multiply it, so one makes a layer pass it on unchanged
    moves: set[str]  # are of the last norm of a post-norm layer


def stream_of(axes: Axes, graph: Graph) -> Stream:
    """Find what the layers of stacks do to the residual stream."""
    places = {name: pattern_of(name, axes.stacks) for name in graph.parameters}

    def place(name: str) -> Hashable:
        _, stack, layer = places[name]
        return None if stack is None or stack in axes.sequential else (stack, layer)

    def patterns(names: Iterable[str]) -> set[str]:
        return {places[name][0] for name in names}

    inside: set[str] = set()
    moves: set[str] = set()
    for terms, added in _sums(graph, place):
        for term in terms:
            layer = next(map(place, term.norm), None)
            if layer is not None and layer not in added and added:
                moves |= patterns(term.norm)
            elif layer in added and not _closed(term, place, graph):
                inside |= patterns(term.norm)
    norms = inside | moves
    gains = {name for name in norms if any(use.role == "gain" for use in axes.uses(name))}
    scales = {
        name
        for scaled, written in graph.scalings
        for name in scaled
        if places[name][1] and {places[name][1:]} != {places[other][1:] for other in written}
    }
    writes = patterns(
        name for terms, added in _sums(graph, place) for names in added.values() for name in names
    )
    return Stream((writes - norms) | (norms - gains), patterns(scales) | gains, moves)


def _sums(graph: Graph, place: Place) -> Iterator[tuple[list[Term], dict[Hashable, set[str]]]]:
    """Yield every sum in which a layer adds to what comes from outside, with its writers there."""
    for terms in graph.sums:
        written = [term for term in terms if term.writers]
        layers = [_closed(term, place, graph) for term in written]
        if len({*layers}) > 1:
            added: dict[Hashable, set[str]] = {}
            for term, layer in zip(written, layers, strict=True):
                if layer is not None:
                    added.setdefault(layer, set()).update(term.writers)
            yield written, added


def _closed(term: Term, place: Place, graph: Graph) -> Hashable:
    """The layer that all of a term comes from, through the norms of its own; None if of more."""
    seen = list(term.writers)
    layer = place(seen[0])
    for name in seen:  # which grows
        if layer is None or place(name) != layer:
            return None
        seen += graph.normed.get(name, frozenset()) - {*seen}
    return layer


def added_layers(
    names: Iterable[str], small: Iterable[str], large: Iterable[str], graph: Graph
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
    child_of = {name: child for child, inside in layers.items() for name in inside}
    added = [each for _, each in _sums(graph, child_of.get)]
    writes = set(chain(*(chain(*layer.values()) for layer in added)))
    adding = set().union(*added)
    return {name: name in writes for name, child in child_of.items() if child in adding}


def children(name: str) -> Iterator[tuple[str, str]]:
    """Yield the lists that a parameter is in, each with the start of the names in its child."""
    path = ""
    for part in name.split(".")[:-1]:
        stem, number = numbered(part)
        if number is not None:
            yield inside(path, stem), f"{inside(path, part)}."
        path = inside(path, part)
