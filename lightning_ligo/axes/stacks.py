"""Stacks of equal modules, found from the names and shapes of parameters."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from torch import Size, nn

PLAIN = (bool, int, float, str, type(None))


class Stack(NamedTuple):
    """Equal children of one module, which differ by a number in their names.

    Each of ``stems`` is such a name with ``*`` for the number: ``*`` of a list of modules,
    ``encoder_layer_*``, or all of ``conv*`` and ``norm*``, or ``weight_ih_l*`` and the others of a
    recurrent layer. Where layers of several kinds take turns, ``period`` of them stand in every
    turn, and ``rest`` behind the last whole one.
    """

    path: str  # of the module
    layers: tuple[int, ...]
    period: int = 1
    rest: int = 0
    stems: tuple[str, ...] = ("*",)

    @property
    def depth(self) -> int:
        return len(self.layers)

    def names(self, rest: str) -> tuple[str, ...]:
        """The names of something in every layer, by its name with ``*`` for the number."""
        return tuple(inside(self.path, rest.replace("*", f"{layer}")) for layer in self.layers)

    def find(self, name: str) -> tuple[int, str] | None:
        """Find the layer of a name, and the name in it with ``*`` for the number."""
        if self.path and not name.startswith(f"{self.path}."):
            return None
        child, dot, rest = name.removeprefix(f"{self.path}.").partition(".")
        stem, number = numbered(child)
        if stem not in self.stems or number not in self.layers:
            return None
        return self.layers.index(number), f"{stem}{dot}{rest}"


Stacks = dict[str, Stack]
Traits = dict[str, dict[str, str]]  # of every module
_Tree = dict[str, Any]
_List = dict[int, _Tree]  # by number and stem
_Class = tuple[int, ...]  # the children of one list that are equal, by their numbers


def numbered(name: str) -> tuple[str, int | None]:
    """Split the last number off a name without dots.

    >>> numbered("encoder_layer_0"), numbered("weight_ih_l1_reverse"), numbered("3"), numbered("fc")
    (('encoder_layer_*', 0), ('weight_ih_l*_reverse', 1), ('*', 3), ('fc', None))
    """
    found = re.fullmatch(r"(.*\D|)(0|[1-9]\d*)(\D*)", name)
    return (f"{found[1]}*{found[3]}", int(found[2])) if found else (name, None)


def inside(path: str, name: str) -> str:
    """The name of something inside of a module, which may be the network itself."""
    return f"{path}.{name}".removeprefix(".")


def find_stacks(*networks: dict[str, Size]) -> list[Stacks]:
    """Find the stacks of one network, or the stacks that two have in common, by the same names.

    A stack is the numbered children of one module that hold the same parameters of the same shapes.

    >>> from itertools import pairwise
    >>> def blocks(*widths):
    ...     return {f"blocks.{i}.weight": shape for i, shape in enumerate(pairwise(widths))}
    >>> def layers(*networks):
    ...     found = find_stacks(*networks)
    ...     return [{name: stack.layers for name, stack in stacks.items()} for stacks in found]
    >>> layers(blocks(4, 4, 4, 4))
    [{'blocks': (0, 1, 2)}]

    Children of several kinds are several stacks. They need not be next to each other.

    >>> layers({f"blocks.{i}.{kind}": (4, 4) for i, kind in enumerate(["conv", "attn"] * 2)})
    [{'blocks[0]': (0, 2), 'blocks[1]': (1, 3)}]

    The stacks of two networks are matched in order. Where one network has more of them, because a
    first or last child differs there, this child stands alone in the other network too.

    >>> layers(blocks(4, 4, 4), blocks(8, 8, 8, 8))
    [{'blocks': (0, 1)}, {'blocks': (0, 1, 2)}]
    >>> layers(blocks(3, 4, 4, 4), blocks(8, 8, 8, 8, 8))
    [{'blocks[1]': (1, 2)}, {'blocks[1]': (1, 2, 3)}]

    No stack is looked for inside a stack. If lists inside of its children become longer, and it
    does not, each child stands alone.

    >>> def stages(*depths):
    ...     places = [(i, j) for i, depth in enumerate(depths) for j in range(depth)]
    ...     return {f"stages.{i}.{j}.weight": (4, 4) for i, j in places}
    >>> layers(stages(2, 2), stages(2, 2, 2))
    [{'stages': (0, 1)}, {'stages': (0, 1, 2)}]
    >>> layers(stages(2, 2), stages(2, 3))[1]
    {'stages.0': (0, 1), 'stages.1': (0, 1, 2)}
    """
    stacks: list[Stacks] = [{} for _ in networks]

    _visit([_tree(shapes) for shapes in networks], "", stacks)
    return stacks


def _visit(nodes: Sequence[_Tree], path: str, stacks: Sequence[Stacks]) -> None:
    """Add the stacks below one module of all networks."""
    if not all(isinstance(node, dict) for node in nodes):
        return
    lists = list(_lists(nodes))
    matched = [(stems, sides, classes) for stems, sides in lists for classes in _matched(sides)]
    listed = {*itertools.chain(*(stems for stems, _ in lists))}
    for number, (stems, sides, classes) in enumerate(matched):
        first = classes[0][0]
        if len({*classes}) == 1 and (
            len(classes[0]) == 1 or len({_names(side[first]) for side in sides}) > 1
        ):
            for layer, stem in itertools.product(classes[0], stems):
                below = [side[layer][stem] for side in sides]
                _visit(below, inside(path, stem.replace("*", f"{layer}")), stacks)
            continue
        name = path if path and len(matched) == 1 else f"{path}[{number}]"
        for found, layers in zip(stacks, classes, strict=True):
            found[name] = Stack(path, layers, stems=stems)
    for name in nodes[0]:
        if numbered(name)[0] not in listed and all(name in node for node in nodes):
            _visit([node[name] for node in nodes], inside(path, name), stacks)


def _lists(nodes: Sequence[_Tree]) -> Iterator[tuple[tuple[str, ...], list[_List]]]:
    """Yield the lists among the children of a module of all networks, each with its stems.

    Names with the same numbers in every network are of one list. Where the numbers agree, names
    with a word are a list if they are three equal modules or more: ``norm1`` and ``norm2`` are not,
    nor are parameters, such as those of recurrent layers.
    """
    found: dict[str, list[dict[int, Any]]] = {}
    for side, node in enumerate(nodes):
        for name, child in node.items():
            stem, number = numbered(name)
            if number is not None:
                found.setdefault(stem, [{} for _ in nodes])[side][number] = child
    lists: dict[Any, list[str]] = {}
    for stem, sides in found.items():
        numbers = tuple(map(frozenset, sides))
        equal = all(
            isinstance(child, dict) and str(child) == str(next(iter(side.values())))
            for side in sides for child in side.values()
        )  # fmt: skip
        several = len({*numbers}) > 1 or (len(sides[0]) > 2 and equal)
        if all(sides) and (several or stem == "*"):
            lists.setdefault(numbers, []).append(stem)
    for stems in lists.values():
        yield (
            tuple(stems),
            [
                {number: {stem: found[stem][side][number] for stem in stems} for number in numbers}
                for side, numbers in enumerate(found[stems[0]])
            ],
        )


def traits(network: nn.Module) -> Traits:
    """List the class and the plain attributes of every module with parameters or buffers."""
    found = {}
    for path, module in network.named_modules():
        if any(True for _ in module.parameters()) or any(True for _ in module.buffers()):
            plain = {k: repr(v) for k, v in vars(module).items() if k[0] != "_" and _is_plain(v)}
            found[path] = {**plain, "class": type(module).__qualname__}
    return found


def _is_plain(x: Any) -> bool:
    return isinstance(x, PLAIN) or (isinstance(x, (tuple, list)) and all(map(_is_plain, x)))


def split_kinds(stacks: Sequence[Stacks], networks: Sequence[Traits]) -> list[Stacks]:
    """Split the stacks that become deeper by the kinds of their layers.

    Layers are of one kind if they agree in all traits that take turns in the deepest network, such
    as a window of local attention. A trait that no two layers there share, such as their number,
    tells no kinds. Networks that do not have the same kinds are left as they are.

    >>> layers = [{f"blocks.{i}": {"window": "8" if i % 3 else "None", "number": str(i)}
    ...            for i in range(depth)} for depth in (3, 6)]
    >>> stacks = [{"blocks": Stack("blocks", tuple(range(depth)))} for depth in (3, 6)]
    >>> split_kinds(stacks, layers)[1]["blocks[1]"]
    Stack(path='blocks', layers=(1, 2, 4, 5), period=2, rest=0, stems=('*',))
    """
    split: list[Stacks] = [{} for _ in stacks]
    for name in stacks[0]:
        sides = [each[name] for each in stacks]
        kinds = _kinds(sides, networks)
        order = list(dict.fromkeys(kinds[0]))
        alone = len(order) == 1 or any({*order} != {*each} for each in kinds)
        for found, stack, each in zip(split, sides, kinds, strict=True):
            for number, kind in enumerate(order[: 1 if alone else None]):
                layers = [layer for layer, k in zip(stack.layers, each, strict=True) if k == kind]
                title = name if alone else f"{name}[{number}]"
                found[title] = stack if alone else stack._replace(layers=tuple(layers))
    for path, stems in {(stack.path, stack.stems) for stack in split[0].values()}:
        _take_turns(split, [
            name for name, stack in split[0].items() if (stack.path, stack.stems) == (path, stems)
        ])  # fmt: skip
    return split


def _kinds(stacks: Sequence[Stack], networks: Sequence[Traits]) -> list[list[tuple[str, ...]]]:
    """The kind of every layer of a stack, in every network."""
    kinds: list[list[tuple[str, ...]]] = [[()] * stack.depth for stack in stacks]
    if len({stack.depth for stack in stacks}) == 1:
        return kinds
    seen: list[list[dict[tuple[str, str], str]]] = []  # of every network and layer
    for stack, known in zip(stacks, networks, strict=True):
        seen.append([{} for _ in stack.layers])
        for name, of_module in known.items():
            if found := stack.find(name):
                layer, rest = found
                seen[-1][layer].update({(rest, key): value for key, value in of_module.items()})
    deepest = max(seen, key=len)
    for trait in sorted({trait for layer in deepest for trait in layer}):
        values = [[layer.get(trait, "") for layer in layers] for layers in seen]
        if 1 < len({layer.get(trait, "") for layer in deepest}) < len(deepest) and (
            len({frozenset(each) for each in values}) == 1
        ):
            kinds = [
                [(*kind, value) for kind, value in zip(*each, strict=True)]
                for each in zip(kinds, values, strict=True)
            ]
    return kinds


def _take_turns(networks: Sequence[Stacks], names: Sequence[str]) -> None:
    """Find the period of the stacks in one list, which then grow by whole periods."""
    if len(names) == 1:
        return
    lists = [
        [name for _, name in sorted((n, name) for name in names for n in stacks[name].layers)]
        for stacks in networks
    ]
    for period in range(2, min(map(len, lists)) + 1):
        turn, rest = lists[0][:period], len(lists[0]) % period
        if {*turn} == {*names} and all(
            len(each) % period == rest
            and all(name == turn[place % period] for place, name in enumerate(each))
            for each in lists
        ):
            for stacks in networks:
                for name in names:
                    stacks[name] = stacks[name]._replace(
                        period=turn.count(name), rest=turn[:rest].count(name)
                    )
            return


def divided(stacks: Stacks, name: str) -> Stacks:
    """Split the first layer off a stack: it only happens to be equal to the others."""
    stack = stacks[name]
    first, others = stack.layers[:1], stack.layers[1:]
    parts = {f"{name}[0]": stack._replace(layers=first), name: stack._replace(layers=others)}
    result: Stacks = {}
    for other, stack in stacks.items():
        result.update(parts if other == name else {other: stack})
    return result


def pattern_of(name: str, stacks: Stacks) -> tuple[str, str | None, int | None]:
    """Find a parameter's pattern, its stack and its layer in the stack.

    >>> pattern_of("blocks.3.mlp.fc1.bias", {"blocks": Stack("blocks", tuple(range(12)))})
    ('blocks.*.mlp.fc1.bias', 'blocks', 3)
    """
    for title, stack in stacks.items():
        if found := stack.find(name):
            return f"{title}.{found[1]}", title, found[0]
    return name, None, None


def place_of(pattern: str, stacks: Stacks) -> tuple[str | None, str]:
    """Split a pattern into its stack and the name in its layers, with ``*`` for their number.

    >>> place_of("blocks.*.mlp.fc1.bias", {"blocks": Stack("blocks", tuple(range(12)))})
    ('blocks', '*.mlp.fc1.bias')
    """
    for title, stack in stacks.items():
        rest = pattern.removeprefix(f"{title}.")
        if rest != pattern and rest.split(".")[0] in stack.stems:
            return title, rest
    return None, pattern


def _tree(shapes: dict[str, Size]) -> _Tree:
    tree: _Tree = {}
    for name, shape in shapes.items():
        *path, last = name.split(".")
        node = tree
        for part in path:
            node = node.setdefault(part, {})
        node[last] = tuple(shape)
    return tree


def _kind(node: Any) -> str:
    """The names inside a module, regardless of shapes and of the lengths of lists."""
    if not isinstance(node, dict):
        return ""
    if all(name.isdigit() for name in node):
        return f"[{' '.join(sorted({_kind(child) for child in node.values()}))}]"
    return f"({' '.join(f'{name}{_kind(child)}' for name, child in node.items())})"


def _names(node: Any, prefix: str = "") -> tuple[str, ...]:
    """The names of all parameters in a module."""
    if not isinstance(node, dict):
        return (prefix,)
    return tuple(name for child in node for name in _names(node[child], f"{prefix}.{child}"))


def _matched(nodes: Sequence[_List]) -> list[tuple[_Class, ...]]:
    """The classes of equal children that all networks have, in order of their first child."""
    if len({*map(frozenset, nodes)}) == 1 and all(
        _grows_into(small[number], large[number])
        for small, large in itertools.pairwise(nodes)
        for number in small
    ):
        equal: dict[str, list[int]] = {}
        for number in sorted(nodes[0]):
            equal.setdefault(str([node[number] for node in nodes]), []).append(number)
        return [(tuple(numbers),) * len(nodes) for numbers in equal.values()]
    kinds = [_classes(node) for node in nodes]
    matched: list[tuple[_Class, ...]] = []
    for kind, classes in kinds[0].items():
        others = [other.get(kind, []) for other in kinds[1:]]
        if all(others):
            even = list(zip(*_even([classes, *others]), strict=False))
            if len(nodes) == 2 and not all(_fits(nodes, pair) for pair in even):
                alike = _alike(nodes, classes, *others)
                even = alike if len(alike) == len(classes) else even
            matched += even
    seen = [{number for classes in matched for number in classes[i]} for i in range(len(nodes))]
    left = [{*node} - those for node, those in zip(nodes, seen, strict=True)]
    matched += [((number,),) * len(nodes) for number in set.intersection(*left)]
    return sorted(matched, key=lambda classes: classes[0][0])


def _grows_into(small: Any, large: Any) -> bool:
    """Whether a module holds the same names as another one, of shapes that are nowhere shorter.

    Lists may be longer in one of them.
    """
    if isinstance(small, dict) and isinstance(large, dict):
        lists = all(name.isdigit() for name in (*small, *large))
        return (lists or small.keys() == large.keys()) and all(
            _grows_into(small[name], large[name]) for name in small.keys() & large.keys()
        )
    if isinstance(small, dict) or isinstance(large, dict) or len(small) != len(large):
        return False
    return all(one <= other for one, other in zip(small, large, strict=True))


def _classes(node: _List) -> dict[str, list[_Class]]:
    """The classes of equal children of every kind."""
    kinds: dict[str, dict[str, list[int]]] = {}
    for number in sorted(node):
        child = node[number]
        kinds.setdefault(_kind(child), {}).setdefault(str(child), []).append(number)
    return {kind: list(map(tuple, equal.values())) for kind, equal in kinds.items()}


def _fits(nodes: Sequence[_List], classes: tuple[_Class, ...]) -> bool:
    """Whether the children of the first network grow into those of the second."""
    small, large = (node[layers[0]] for node, layers in zip(nodes, classes, strict=True))
    return _grows_into(small, large)


def _alike(
    nodes: Sequence[_List], small: list[_Class], large: list[_Class]
) -> list[tuple[_Class, ...]]:
    """The classes of the small network, each with the last one of the large that it fits."""
    found: list[tuple[_Class, ...]] = []
    left = list(large)
    for layers in reversed(small):
        while left and not (_fits(nodes, (layers, left[-1])) and len(left[-1]) >= len(layers)):
            left.pop()
        if left:
            found.append((layers, left.pop()))
    return found


def _even(sides: Sequence[list[_Class]]) -> list[list[_Class]]:
    """Split the first or the last child off a class where another network has more classes."""
    sides = [list(classes) for classes in sides]
    most = max(map(len, sides))
    longest = next(classes for classes in sides if len(classes) == most)
    for classes in sides:
        for position in range(most):
            if len(classes) < most and position < len(classes) and len(classes[position]) > 1:
                layers = classes[position]
                cut = -1 if len(longest[position]) > 1 else 1
                classes[position : position + 1] = layers[:cut], layers[cut:]
    return sides
