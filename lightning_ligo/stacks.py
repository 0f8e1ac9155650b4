"""Runs of equal modules, found from the names and shapes of parameters."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from torch import Size


class Stack(NamedTuple):
    """A run of equal modules, ``{path}.{start}`` and the ``depth - 1`` that follow."""

    path: str
    start: int
    depth: int

    @property
    def stop(self) -> int:
        return self.start + self.depth


_Tree = dict[str, Any]


def find_stacks(*networks: dict[str, Size]) -> list[dict[str, Stack]]:
    """The runs of equal modules of one network, or those that several have in common.

    A run are children of a module, numbered one after the other, that hold the same parameters of
    the same shapes. A module whose children are one run gives its name to the stack, ``blocks``;
    where the first child differs from the rest, as at the transitions of stages, there are
    several, ``blocks[0]`` and ``blocks[1]``. Within a run no further one is looked for.

    Args:
        networks: the shapes of each network's parameters by name.
    """
    stacks: list[dict[str, Stack]] = [{} for _ in networks]

    def visit(nodes: Sequence[_Tree], path: str) -> None:
        if path and all(set(node) == set(map(str, range(len(node)))) for node in nodes):
            runs = [_runs(node) for node in nodes]
            if len({tuple(kind for kind, _, _ in found) for found in runs}) == 1:
                for number, run in enumerate(zip(*runs, strict=True)):
                    starts, depths = {start for _, start, _ in run}, {depth for _, _, depth in run}
                    if depths == {1} and len(starts) == 1 and len(runs[0]) > 1:
                        start = str(starts.pop())
                        visit([node[start] for node in nodes], f"{path}.{start}")
                        continue
                    name = path if len(runs[0]) == 1 else f"{path}[{number}]"
                    for mine, (_, start, depth) in zip(stacks, run, strict=True):
                        mine[name] = Stack(path, start, depth)
                return
        for name, child in nodes[0].items():
            children = [node.get(name) for node in nodes]
            if isinstance(child, dict) and all(isinstance(other, dict) for other in children):
                visit([other for other in children if other], f"{path}.{name}".lstrip("."))

    visit([_tree(shapes) for shapes in networks], "")
    return stacks


def _tree(shapes: dict[str, Size]) -> _Tree:
    tree: _Tree = {}
    for name, shape in shapes.items():
        *path, last = name.split(".")
        node = tree
        for part in path:
            node = node.setdefault(part, {})
        node[last] = tuple(shape)
    return tree


def _runs(node: _Tree) -> list[tuple[str, int, int]]:
    """(what it holds, start, depth) of each run of equal children."""
    runs: list[tuple[str, int, int]] = []
    for number in range(len(node)):
        child = node[str(number)]
        if runs and isinstance(child, dict) and child == node[str(runs[-1][1])]:
            runs[-1] = (*runs[-1][:2], runs[-1][2] + 1)
        else:
            runs.append((_kind(child), number, 1))
    return runs


def _kind(node: Any) -> str:
    """The names of what a module holds, whatever their shapes."""
    if not isinstance(node, dict):
        return ""
    return f"({' '.join(f'{name}{_kind(child)}' for name, child in node.items())})"


def pattern_of(name: str, stacks: dict[str, Stack]) -> tuple[str, str | None, int | None]:
    """A parameter's pattern, its stack and its layer in the stack.

    >>> pattern_of("blocks.3.mlp.fc1.bias", {"blocks": Stack("blocks", 0, 12)})
    ('blocks.*.mlp.fc1.bias', 'blocks', 3)
    """
    for title, stack in stacks.items():
        if name.startswith(f"{stack.path}."):
            number, _, rest = name.removeprefix(f"{stack.path}.").partition(".")
            if number.isdigit() and stack.start <= int(number) < stack.stop:
                return f"{title}.*.{rest}", title, int(number) - stack.start
    return name, None, None
