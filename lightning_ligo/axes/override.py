"""Axes that the user names, where tracing cannot find them or finds others."""

from __future__ import annotations

import difflib
import itertools
import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from torch import nn

from lightning_ligo.axes.dims import Product, Sum, fold, replaced
from lightning_ligo.axes.factors import (
    Dim,
    Factor,
    Facts,
    Item,
    Misaligned,
    concatenate,
    ends,
    leaves,
    size,
    unite,
)
from lightning_ligo.axes.graph import STAYS, Graph, carriers
from lightning_ligo.axes.notation import (
    Term,
    Unreadable,
    is_hole,
    last_word,
    match,
    measure,
    parse,
    solve,
    split,
    words,
)

# The name of a parameter, or a pattern of names -> its notation; None if nothing uses it.
Override = Mapping[str, str | None]


class _Line(NamedTuple):
    """One entry of an override."""

    pattern: str
    text: str
    parts: tuple[str, ...]
    dims: tuple[Product[Term], ...]

    def __str__(self) -> str:
        return f"override {self.pattern!r}: {self.text!r}"


class _Dimension(NamedTuple):
    """A dimension of a parameter that a line names.

    A word ends in the layer's number where every layer has an axis of its own by this word.
    """

    line: _Line
    name: str
    dim: int
    size: int
    product: Product[Term]

    def __str__(self) -> str:
        return f"{self.line}: dimension {self.dim} of {self.name} is {self.size} long"


def read(override: Override | None) -> list[_Line]:
    """Read the lines of an override.

    Raises:
        ValueError: showing where a line cannot be read.
    """
    if not isinstance(override or {}, Mapping):
        raise ValueError(
            f"override is {override!r}; give a dict from parameters to the names of their axes, "
            "such as {'blocks.*.mlp.fc1.weight': 'hidden embed'}"
        )
    lines = []
    for pattern, text in (override or {}).items():
        if text is None:
            continue
        if not isinstance(text, str):
            raise ValueError(
                f"override {pattern!r}: {text!r} is {type(text).__name__}; write the axes of the "
                "dimensions as text, such as 'hidden embed'"
            )
        shown = pattern
        try:
            parts = split(pattern)
            shown = text
            lines.append(_Line(pattern, text, parts, parse(text)))
        except Unreadable as error:
            raise ValueError(
                f"override {pattern!r}: {text!r} cannot be read: {error}\n"
                f"  {shown}\n  {' ' * error.position}^"
            ) from error
    return lines


def check(override: Override | None, *networks: nn.Module) -> None:
    """Check that an override fits networks, and that each of its lines matches in one of them.

    Raises:
        ValueError: naming the line, the cause and the remedy.
    """
    lines = read(override)
    shapes = [{name: tuple(t.shape) for name, t in carriers(network)} for network in networks]
    for each in shapes:
        _solve(_dimensions(lines, each), {}, {})
    names = list(dict.fromkeys(name for each in shapes for name in each))
    for line in lines:
        if all(match(line.parts, name) is None for name in names):
            raise ValueError(
                f"{line} matches no parameter of {type(networks[0]).__name__}; "
                f"{_instead(line, names, networks)}"
            )


def _instead(line: _Line, names: Sequence[str], networks: Sequence[nn.Module]) -> str:
    """Suggest parameters for a line that matches none."""
    for network in networks:
        first = {id(tensor): name for name, tensor in carriers(network)}
        for name, parameter in network.named_parameters(remove_duplicate=False):
            if match(line.parts, name) is not None:
                return f"{name} is tied to {first[id(parameter)]}, name that"
    holes = any(map(is_hole, line.parts))
    patterns = [re.sub(r"\.\d+(?=\.)", ".*", name) if holes else name for name in names]
    near = difflib.get_close_matches(line.pattern, dict.fromkeys(patterns), 3)
    return f"near are {', '.join(near)}" if near else f"it has {', '.join(names[:8])}, ..."


class Naming:
    """Name axes by an override: most before the forward, the rest after it."""

    def __init__(self, override: Override | None, graph: Graph) -> None:
        self._graph = graph
        self._axes: dict[str, Factor] = {}
        self._numbers: list[Dim] = []
        self._lengths: dict[str, int] = {}
        self._told: dict[str, _Dimension] = {}
        shapes = {name: tuple(map(size, dims)) for name, dims in graph.parameters.items()}
        self._left = _dimensions(read(override), shapes)
        graph.named += [self._items(dimension) for dimension in self._left]
        self._unite()

    def finish(self) -> None:
        """Name axes whose length is known from the forward only, such as the heads of a fused qkv.

        Raises:
            ValueError: if the forward does not show their length.
        """
        while self._left:
            for dimension in self._left:
                items = self._items(dimension)
                for key, found in _measured(dimension.product, items, self._lengths).items():
                    self._lengths.setdefault(key, found)
                    self._told.setdefault(key, dimension)
            before = len(self._left)
            self._unite()
            if len(self._left) == before:
                unknown = {*words(self._left[0].product)} - self._lengths.keys()
                raise ValueError(
                    f"{self._left[0]}, and neither the shapes nor the forward, which reads "
                    f"it as {_sizes(self._items(self._left[0]))}, tell how long "
                    f"{' and '.join(sorted(map(_word, unknown)))} are in it; write a number in "
                    "place of one, or name it where it stands alone"
                )
        for number in self._numbers:
            for item in (*leaves(number), *ends(number)):
                item.factor.facts.pinned = STAYS
        self._graph.words += [(factor, _word(key)) for key, factor in self._axes.items()]

    def _items(self, dimension: _Dimension) -> Dim:
        return self._graph.parameters[dimension.name][dimension.dim]

    def _unite(self) -> None:
        """Unite the dimensions of which all lengths are known."""
        _solve(self._left, self._lengths, self._told)
        left = []
        for dimension in self._left:
            items = self._items(dimension)
            if not self._lengths.keys() >= {*words(dimension.product)}:
                left.append(dimension)
                continue
            try:
                unite(items, self._built(dimension.product), flow=False)
            except Misaligned as error:
                raise ValueError(
                    f"{dimension}, and the forward reads it as {_sizes(items)}, which does not fit"
                ) from error
        self._left = left

    def _built(self, product: Product[Term]) -> Dim:
        """Make a dimension of the named axes."""
        return fold(product, self._item, lambda dims: [*itertools.chain(*dims)], concatenate)

    def _item(self, node: Term) -> Dim:
        if isinstance(node, int):
            self._numbers.append(self._graph.new(node, pinned=STAYS))
            return self._numbers[-1]
        if self._lengths[node] == 1:
            return []
        facts = Facts(owned=True)
        return [Item(self._axes.setdefault(node, Factor(self._lengths[node], facts)), None)]


def _dimensions(lines: Sequence[_Line], shapes: Mapping[str, tuple[int, ...]]) -> list[_Dimension]:
    """List every dimension that the lines name in a network."""
    holes = {
        word: _holes([line.parts for line in lines if word in _all_words(line)])
        for line in lines
        for word in _all_words(line)
    }
    found: dict[str, list[_Dimension]] = {}
    for line in lines:
        for name, shape in shapes.items():
            layers = match(line.parts, name)
            if layers is None:
                continue
            if name in found:
                raise ValueError(
                    f"override names {name} twice, as {found[name][0].line.pattern!r} and as "
                    f"{line.pattern!r}; leave one of them out"
                )
            if len(shape) != len(line.dims):
                raise ValueError(
                    f"{line} names {len(line.dims)} dimensions, and {name} has {len(shape)}: "
                    f"{shape}"
                )
            found[name] = [
                _Dimension(line, name, dim, shape[dim], _keyed(product, layers, holes))
                for dim, product in enumerate(line.dims)
            ]
    return list(itertools.chain(*found.values()))


def _all_words(line: _Line) -> list[str]:
    return [word for product in line.dims for word in words(product)]


def _holes(patterns: Sequence[tuple[str, ...]]) -> int:
    """Count the layer numbers that tell apart the axes of a word under these patterns.

    A word in a single list of layers is an axis of its own in every layer, unless the forward
    unites them. A word in several places is the same axis everywhere.
    """
    number = 0
    for parts in zip(*(pattern[:-1] for pattern in patterns), strict=False):
        if len({re.sub(r"\{.*\}", "*", part) for part in parts}) > 1:
            break
        number += is_hole(parts[0])
    return number


def _keyed(
    product: Product[Term], layers: tuple[int, ...], holes: Mapping[str, int]
) -> Product[Term]:
    def keyed(node: Term) -> Term:
        return node if isinstance(node, int) else " ".join([node, *map(str, layers[: holes[node]])])

    return replaced(product, keyed)


def _word(key: str) -> str:
    return last_word(key.split()[0])


def _solve(
    dimensions: Sequence[_Dimension], lengths: dict[str, int], told: dict[str, _Dimension]
) -> None:
    """Add the lengths of words that follow from shapes, each with the dimension that tells."""
    before = -1
    while len(lengths) > before:
        before = len(lengths)
        for dimension in dimensions:
            unknown = [*{*words(dimension.product)} - lengths.keys()]
            if len(unknown) > 1:
                continue
            product, wanted = dimension.product, dimension.size
            if unknown and (found := solve(product, wanted, unknown[0], lengths)):
                lengths[unknown[0]], told[unknown[0]] = found, dimension
            elif unknown or measure(product, lengths) != wanted:
                raise ValueError(f"{dimension}, and {_contradiction(dimension, lengths, told)}")


def _contradiction(
    dimension: _Dimension, lengths: Mapping[str, int], told: Mapping[str, _Dimension]
) -> str:
    known = [
        f"{key.split()[0]} is {lengths[key]} in dimension {told[key].dim} of {told[key].name}"
        for key in dict.fromkeys(words(dimension.product))
        if key in told
    ]
    unknown = [key.split()[0] for key in words(dimension.product) if key not in lengths]
    if not known and not unknown:
        return f"you said that it stays {measure(dimension.product, {})}"
    parts = [f"no length of {unknown[0]} fits"] if unknown else []
    if known:
        parts.append(f"{', '.join(known)}; a word is one axis, of one length")
    return ", as ".join(parts)


def _sizes(items: Dim) -> str:
    return " x ".join(str(leaf.factor.size) for leaf in leaves(items))


def _measured(product: Product[Term], items: Dim, lengths: Mapping[str, int]) -> dict[str, int]:
    """Measure words in the factors of a dimension, if the forward splits it like the product."""
    nodes = [node for node in product if node != 1 and lengths.get(str(node)) != 1]
    found = leaves(items)
    if len(nodes) != len(found):
        return {}
    measured: dict[str, int] = {}
    for node, leaf in zip(nodes, found, strict=True):
        known = node if isinstance(node, int) else lengths.get(str(node), leaf.factor.size)
        if known != leaf.factor.size:
            return {}
        if isinstance(node, Sum):
            for segment, factor in zip(node.segments, leaf.factor.segments, strict=False):
                measured |= _measured(segment, [Item(factor, None)], lengths)
        elif isinstance(node, str):
            measured[node] = leaf.factor.size
    return measured
