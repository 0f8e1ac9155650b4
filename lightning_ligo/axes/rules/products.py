"""Rules of matrix products, attention and convolution."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from lightning_ligo.axes.factors import Dim, broadcast, ends, hint, pin, regroup, size, unite
from lightning_ligo.axes.graph import Graph
from lightning_ligo.axes.rules.table import SPACE, rule


def contract(graph: Graph, left: Tensor, lefts: Dim, right: Tensor, rights: Dim) -> None:
    """Sum products over one dimension: the parameter's side consumes the activation."""
    unite(lefts, rights, flow=False)
    if graph.static(left) and graph.static(right):
        graph.opposed.append((lefts, rights))
    elif graph.static(right):
        graph.consume(rights, lefts)
    elif graph.static(left):
        graph.consume(lefts, rights)


@rule("_grouped_mm")
def grouped_product(graph: Graph, func: Any, args: Sequence[Any], kwargs: Any, out: Any) -> Any:
    """Rows go to the matrix of their expert: ``(rows, in) x (experts, in, out)``."""
    rows, inner = graph.dims(args[0])
    experts, inputs, outputs = graph.dims(args[1])
    pin(experts, "rows are sent to them by number")
    hint(experts, "experts")
    contract(graph, args[0], inner, args[1], inputs)
    graph.record(args[1], "produces", outputs)
    return [rows, outputs]


@rule("_trilinear")
def bilinear(graph: Graph, func: Any, args: Sequence[Any], kwargs: Any, out: Tensor) -> Any:
    """``out[o] = Σ_ij x[i] weight[o, i, j] y[j]``, as of `torch.nn.Bilinear`."""
    (batch, first), (outputs, *inner), (_, second) = map(graph.dims, args[:3])
    for x, inputs, weights in ((args[0], first, inner[0]), (args[2], second, inner[1])):
        contract(graph, x, inputs, args[1], weights)
        graph.release(x)
    graph.record(args[1], "produces", outputs)
    return [batch, outputs]


@rule("mm", "bmm", "mv", "dot")
def product(graph: Graph, func: Any, args: Sequence[Any], kwargs: Any, out: Tensor) -> Any:
    return _product(graph, args[0], args[1], out)


@rule("addmm", "baddbmm", "addbmm")
def add_product(graph: Graph, func: Any, args: Sequence[Any], kwargs: Any, out: Tensor) -> Any:
    bias, left, right = args[:3]
    dims = _product(graph, left, right, out)
    if len(dims) > out.dim():  # of addbmm
        pin(dims.pop(0), "its matrices are multiplied one by one and summed")
    if not graph.static(left) and not graph.static(right):
        graph.multiply(out, kwargs.get("alpha", 1))
    if not graph.static(left) or not graph.static(right):
        graph.record(bias, "produces")
    return broadcast([dims, graph.dims(bias)])


def _product(graph: Graph, left: Tensor, right: Tensor, out: Tensor) -> list[Dim]:
    lefts, rights = list(graph.dims(left)), list(graph.dims(right))
    inner_left = lefts.pop(-1)
    inner_right = rights.pop(-2 if right.dim() > 1 else -1)
    contract(graph, left, inner_left, right, inner_right)
    static = graph.static(left) or graph.static(right)
    for tensor, dims in ((left, lefts), (right, rights)):
        if not (graph.static(left) and graph.static(right)):
            graph.record(tensor, "produces", [item for dim in dims for item in dim])
    batch: list[Dim] = []
    if left.dim() == 3:
        if lefts[0] and rights[0]:
            unite(lefts[0], rights[0], flow=static)
        batch.append(rights[0] or lefts[0])
        lefts, rights = lefts[1:], rights[1:]
    if not static:
        graph.contracted(out, inner_left)
        if batch:
            _hint_attention(batch[0], inner_left, rights)
    return batch + lefts + rights


def _hint_attention(batch: Dim, contracted: Dim, columns: list[Dim]) -> None:
    """A product of two activations is attention: over head_dim, or of weights with values."""
    hint(batch, "heads")
    over_positions = all(item.factor.facts.pinned for item in ends(contracted))
    hint(columns[0] if over_positions and columns else contracted, "head_dim")


@rule("scaled_dot_product_attention")
def attention(graph: Graph, func: Any, args: Sequence[Any], kwargs: Any, out: Tensor) -> Any:
    """``softmax(q kᵀ + mask) v`` over (..., heads, positions, head_dim)."""
    query, key, value = (list(graph.dims(tensor)) for tensor in args[:3])
    mask = args[3] if len(args) > 3 else kwargs.get("attn_mask")
    for other in (key, value):
        for first, second in zip(query[:-3], other[:-3], strict=True):
            unite(first, second, flow=False)
    if len(query) > 3:
        shared, group = regroup([query[-3]], (size(key[-3]), size(query[-3]) // size(key[-3])))
        hint(shared, "heads")
        hint(group, "group")
        for other in (key, value):
            unite(shared, other[-3], flow=False)
        value[-3] = [*value[-3], *group]  # the output is made of values
    unite(query[-1], key[-1], flow=False)
    unite(key[-2], value[-2], flow=False)
    hint(query[-1], "head_dim")
    hint(value[-1], "head_dim")
    graph.contracted(out, query[-1])
    graph.reduce("softmax", [key[-2]])
    scale = kwargs.get("scale")
    graph.multiply(out, size(query[-1]) ** -0.5 if scale is None else scale)
    if mask is not None:
        graph.record(mask, "produces")
        broadcast([[*query[:-1], key[-2]], graph.dims(mask)])
    return [*value[:-2], query[-2], value[-1]]


@rule("flex_attention")
def flex_attention(graph: Graph, func: Any, args: Sequence[Any], kwargs: Any, out: Any) -> Any:
    """The same with a mask and a bias that are functions; more outputs are sums of weights."""
    dims = attention(graph, func, args[:3], {"scale": args[5]}, out[0])
    return [dims, *(dims[: tensor.dim()] if tensor.numel() else graph.unknown(tensor)
                    for tensor in out[1:])]  # fmt: skip


@rule("convolution")
def convolution(graph: Graph, func: Any, args: Sequence[Any], kwargs: Any, out: Tensor) -> Any:
    """``out[g·O] += weight[g·O, I] * x[g·I]``: channels are axes, kernel positions are fixed."""
    x, weight, bias, groups, transposed = args[0], args[1], args[2], args[8], args[6]
    dims, kernel = graph.dims(x), list(graph.dims(weight))
    inputs, outputs = (kernel[0], kernel[1]) if transposed else (kernel[1], kernel[0])
    for items in kernel[2:]:
        pin(items, "it is a position of a convolution's kernel")
        hint(items, "kernel")
    channels = dims[1]
    if groups > 1:
        grouped = inputs if transposed else outputs
        group, rest = regroup([grouped], (groups, size(grouped) // groups))
        x_group, channels = regroup([channels], (groups, size(channels) // groups))
        inputs, outputs = (rest, [*group, *outputs]) if transposed else (inputs, outputs)
        unite(x_group, group)
        graph.record(weight, "scales", group)
        graph.record(weight, "produces", kernel[1] if transposed else rest)
    else:
        graph.record(weight, "produces", outputs)
    contract(graph, x, channels, weight, inputs)
    if bias is not None:
        graph.record(bias, "produces")
        unite(outputs, graph.dims(bias)[0])
    return [dims[0], outputs, *_moved(graph, args, dims[2:], out.shape[2:])]


def _moved(
    graph: Graph, args: Sequence[Any], space: list[Dim], lengths: Sequence[int]
) -> list[Dim]:
    """The positions that a kernel slides over; a kernel of one leaves each where it is."""
    moved = []
    for number, (items, length) in enumerate(zip(space, lengths, strict=True)):
        stride, padding = (values[number % len(values)] for values in args[3:5])
        if args[1].shape[number + 2] == stride == 1 and padding == 0:
            moved.append(items)
        else:
            pin(items, SPACE)
            moved.append(graph.new(length, pinned=SPACE))
    return moved
