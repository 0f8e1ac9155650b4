"""Rules of operations that act entry by entry."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from lightning_ligo.axes.factors import CONSTANT, Dim, broadcast, ends, pin, take
from lightning_ligo.axes.graph import Graph, Mark, mark_nonlinear
from lightning_ligo.axes.rules.norms import norm
from lightning_ligo.axes.rules.table import position, rule

LINEAR = {"add", "sub", "rsub", "mul", "div", "neg", "copy", "_to_copy", "where", "masked_fill"}


@rule("masked_fill_", "hardswish",  # not tagged pointwise in older versions of torch
      "celu", "elu", "hardsigmoid", "hardtanh", "leaky_relu", "selu")  # fmt: skip
def pointwise(graph: Graph, func: Any, args: Sequence[Any], kwargs: Any, out: Tensor) -> Any:
    """Broadcast and unite position by position: a sum writes a flow, a product scales it.

    A parameter that multiplies a single entry, such as frequencies a time, also writes.
    """
    tensors = [arg for arg in [*args, *kwargs.values()] if isinstance(arg, Tensor)]
    name = func._schema.name.removeprefix("aten::").rstrip("_")
    if (normed := _norm(graph, name, args, out)) is not None:
        return normed
    if name not in LINEAR and not graph.marked(out, "square"):
        mark_nonlinear(graph.dims(tensors[0]))
    before = args[0] if isinstance(args[0], Tensor) else tensors[0]
    if name in ("mul", "div"):
        _scale(graph, name, args, out)
    else:
        graph.apply(out)
    if name in ("add", "sub", "rsub") and graph.static(before):
        _shift(graph, name, args)
    moving = [tensor for tensor in tensors if not graph.static(tensor)]
    if name in ("mul", "div") and len(moving) > 1:
        for first, second in zip(*(graph.dims(tensor)[::-1] for tensor in moving), strict=False):
            mark_nonlinear([first if any(item.flow for item in second) else []])
    numbers = [number for arg in args[:2] if (number := _number(graph, arg))]
    if name in ("mul", "div") and len(moving) == len(numbers) == 1:
        graph.multiply(moving[0], numbers[0] if name == "mul" else 1 / numbers[0], out)
    flowing = [graph.dims(tensor)[::-1] for tensor in moving]
    for tensor in filter(graph.static, tensors) if moving else ():
        for number, items in enumerate(graph.dims(tensor)[::-1]):
            along = any(number < len(dims) and dims[number] for dims in flowing)
            divides = name == "div" and tensor is tensors[-1]
            scales = name in ("mul", "div") and (along or divides)
            constant = any(end.factor.facts.pinned == CONSTANT for end in ends(items))
            if along and scales and constant and not graph.writers(tensor):
                pin(items, "a constant of the network multiplies it")
            graph.record(tensor, "scales" if scales else "produces", items)
    return broadcast([graph.dims(tensor) for tensor in tensors])


def _scale(graph: Graph, name: str, args: Sequence[Any], out: Tensor) -> None:
    """Note a product with a constant: a number, or a buffer of one."""
    x, by = args[:2] if isinstance(args[0], Tensor) and args[0].dim() else args[1::-1]
    number = _number(graph, by)
    single = isinstance(by, Tensor) and by.numel() == 1 and len(graph.writers(by)) == 1
    source = graph.source(x) if isinstance(x, Tensor) and x is not by else None
    graph.apply(out)
    if source is not None and (number or single) and (name == "mul" or x is args[0]):
        graph.factor(source, out, number or by, 1 if name == "mul" else -1)


def _shift(graph: Graph, name: str, args: Sequence[Any]) -> None:
    """Note a number that is added to a parameter."""
    x, number = args[:2] if isinstance(args[0], Tensor) else args[1::-1]
    if isinstance(number, (int, float)) and len(written := graph.writers(x)) == 1:
        graph.offsets[min(written)] = float(number if name == "add" else -number)


def _number(graph: Graph, x: Any) -> float | None:
    """A number, or a constant tensor that holds a single one."""
    if isinstance(x, Tensor):
        known = graph.static(x) and not graph.writers(x) and x.numel() == 1 and not x.is_meta
        return float(x) if known and x.is_floating_point() else None
    return x if isinstance(x, (int, float)) else None


def _norm(graph: Graph, name: str, args: Sequence[Any], out: Tensor) -> list[Dim] | None:
    """``x * rsqrt(mean(x²) + eps) * gain`` in steps: None except for its products.

    In a layer norm ``x`` is centered: it is another x, less its mean. The gain may come first.
    """
    first, second = (*args, None)[:2]
    if (name == "pow" and isinstance(second, (int, float)) and second == 2) or (
        name == "mul" and first is second
    ):
        graph.mark(out, "square", first)
    elif name == "sub" and (mean := graph.marked(second, "mean")):
        if isinstance(first, Tensor) and graph.values(first) == graph.values(mean.of):
            graph.mark(out, "centered", first)
        else:
            mark_nonlinear(graph.dims(mean.of)[-1:])
    elif mark := graph.marked(first, "mean square"):
        step = {"rsqrt": "inverse", "sqrt": "root", "add": "mean square"}.get(name)
        if step:
            graph.mark(out, step, mark.of)
        else:
            mark_nonlinear(graph.dims(mark.of))
    for x, other in ((first, second), (second, first)):
        root = graph.marked(other, "inverse" if name == "mul" else "root")
        gained = graph.marked(x, "gained")
        of = gained.of if gained else x
        if name in ("mul", "div") and root and _values(graph, root.of) == _values(graph, of):
            dims = list(graph.dims(of))
            read = norm(graph, dims, (-1,), {}, "layer" if graph.marked(of, "centered") else "rms")
            normed = Mark("normed", of, read)
            if gained:
                return _gain(graph, graph.gain_of(x), dims, normed, out)
            graph.mark(out, *normed)
            return dims
        if name != "mul" or not isinstance(x, Tensor) or not graph.static(x):
            continue
        if (mark := graph.marked(other, "normed")) is not None:
            return _gain(graph, x, graph.dims(other), mark, out)
        moving = isinstance(other, Tensor) and not graph.static(other)
        if moving and other.shape[-1:] == x.shape and x.numel() > 1 and graph.writers(x):
            graph.wait(x, other, out)
            return graph.dims(other)
    return None


def _gain(graph: Graph, gain: Tensor, dims: list[Dim], normed: Mark, out: Tensor) -> list[Dim]:
    """Multiply what is normed by a gain."""
    dims = broadcast([dims, graph.dims(gain)])
    graph.record(gain, "gain", reads=normed.reads)
    graph.norm(out, normed.of, [gain])
    return dims


def _values(graph: Graph, x: Any) -> tuple[int, bool] | None:
    """Identify the values of a tensor, or those that it is centered from."""
    if (centered := graph.marked(x, "centered")) is not None:
        return graph.values(centered.of), True
    return (graph.values(x), False) if isinstance(x, Tensor) else None


@rule("_to_copy", "to")
def cast(graph: Graph, func: Any, args: Sequence[Any], kwargs: Any, out: Tensor) -> Any:
    graph.cast(out, args[0])
    return graph.dims(args[0])


@rule("clone", "alias", "detach", "lift_fresh", "native_dropout", "bernoulli")
def same(graph: Graph, func: Any, args: Sequence[Any], kwargs: Any, out: Any) -> Any:
    return graph.dims(args[0])


@rule("_prelu_kernel")
def prelu(graph: Graph, func: Any, args: Sequence[Any], kwargs: Any, out: Tensor) -> Any:
    dims = list(map(graph.dims, args))
    mark_nonlinear(dims[0])
    graph.apply(out)
    graph.record(args[1], "scales")
    return broadcast(dims)


@rule("glu")
def glu(graph: Graph, func: Any, args: Sequence[Any], kwargs: Any, out: Tensor) -> Any:
    """``a * sigmoid(b)`` of the two halves of a dimension."""
    axis = position(args[1] if len(args) > 1 else -1, out.dim())
    half = out.shape[axis]
    halves = [list(graph.dims(args[0])) for _ in range(2)]
    for number, dims in enumerate(halves):
        dims[axis] = take(dims[axis], number * half, half)
    mark_nonlinear(halves[1])
    return broadcast(halves)


@rule("copy_")
def copy_(graph: Graph, func: Any, args: Sequence[Any], kwargs: Any, out: Tensor) -> Any:
    return pointwise(graph, func, args[:2], {}, out)
