"""Modules that are of another class in the large network, and read or write other axes."""

from __future__ import annotations

from collections.abc import Collection

from torch import nn

from lightning_ligo.axes.axes import Axes
from lightning_ligo.plan.correspondence import Counterparts, Shapes
from lightning_ligo.plan.refusals import mismatch

Replaced = dict[str, tuple[str, str]]  # the start of their patterns -> both classes


def replaced(
    small: nn.Module,
    large: nn.Module,
    ours: Axes,
    theirs: Axes,
    shapes: tuple[Shapes, Shapes],
    same: Counterparts,
    writes: Collection[str],
) -> Replaced:
    """The modules of a stack's layers that stay as the large network was built.

    Such as a feed-forward part with GELU that has become one with a gate (SwiGLU): no linear map
    makes one from the other, as the same parameter has other axes. It has to add to the stream that
    passes the layers, where it adds nothing at first, and to be of another class: two modules of
    one class with other axes are another architecture, see `problems`.

    Returns:
        By the start of their patterns, ``blocks.*.mlp.``, the classes in the small and the large
        network.
    """
    found: Replaced = {}
    for stack, (path, layers) in theirs.stacks.items():
        layer = f"{stack}.*."
        if stack not in ours.stacks:
            continue
        first = f"{ours.stacks[stack].path}.{ours.stacks[stack].layers[0]}", f"{path}.{layers[0]}"
        for pattern in shapes[0].keys() & shapes[1].keys():
            if not pattern.startswith(layer) or not mismatch(
                pattern, ours, theirs, shapes[0][pattern], shapes[1][pattern], same
            ):
                continue
            *inside, _ = pattern.removeprefix(layer).split(".")
            for depth in range(1, len(inside) + 1):
                name = ".".join(inside[:depth])
                kinds = [
                    type(network.get_submodule(f"{start}.{name}"))
                    for network, start in zip((small, large), first, strict=True)
                ]
                start = f"{layer}{name}."
                if kinds[0] is not kinds[1] and any(one.startswith(start) for one in writes):
                    found[start] = kinds[0].__name__, kinds[1].__name__
                    break
    return found
