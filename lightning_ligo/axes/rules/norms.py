"""Rules of norms and reductions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from lightning_ligo.axes.factors import Dim, Item, ends, leaves, pin, regroup, size, unite
from lightning_ligo.axes.flow import Flow
from lightning_ligo.axes.graph import Graph, mark_nonlinear
from lightning_ligo.axes.rules.table import position, rule


@rule("native_layer_norm", "_fused_rms_norm", "rms_norm")
def layer_norm(graph: Graph, func: Any, args: Sequence[Any], kwargs: Any, out: Any) -> Any:
    dims, axes = list(graph.dims(args[0])), range(-len(args[1]), 0)
    kind, affine = ("layer", args[2:4]) if "layer" in func.__name__ else ("rms", args[2:3])
    norm(graph, dims, axes, dict(zip(("gain", "shift"), affine, strict=False)), kind)
    graph.norm(out if isinstance(out, Tensor) else out[0], args[0], affine)
    return dims if isinstance(out, Tensor) else [dims, *map(graph.unknown, out[1:])]


@rule("native_group_norm")
def group_norm(graph: Graph, func: Any, args: Sequence[Any], kwargs: Any, out: Any) -> Any:
    """Groups stay; the channels of a group are normed as a layer, over all positions."""
    dims, groups = list(graph.dims(args[0])), args[6]
    group, rest = regroup([dims[1]], (groups, size(dims[1]) // groups))
    parts = [group, rest]
    positions = any(size(items) > 1 for items in dims[2:])
    norm(graph, parts, (1,), {}, "group" if positions else "layer")
    graph.norm(out[0], args[0], args[1:3])
    dims[1] = [*group, *parts[1]]
    for parameter, role in ((args[1], "gain"), (args[2], "shift")):
        if parameter is not None:
            unite(dims[1], graph.dims(parameter)[0])
            graph.record(parameter, role, reads=next((i.flow for i in ends(rest)), None))
    return [dims, *map(graph.unknown, out[1:])]


def norm(
    graph: Graph,
    dims: list[Dim],
    axes: Sequence[int],
    parameters: dict[str, Tensor | None],
    kind: str,
) -> Flow | None:
    """End the flow that a norm reads and begin the flow that its gain and shift write."""
    written, read = Flow(), None
    graph.reduce(kind, [dims[axis] for axis in axes])
    normed = [axis % len(dims) for axis in axes]
    mark_nonlinear(dim for axis, dim in enumerate(dims) if axis not in normed)
    for axis in axes:
        for end in ends(dims[axis]):
            if end.flow is not None:
                read = end.flow
                read.root().normed_into.append(written)
        dims[axis] = [Item(leaf.factor, written) for leaf in leaves(dims[axis])]
    for role, parameter in parameters.items():
        if parameter is not None:
            for axis, own in zip(axes, graph.dims(parameter), strict=True):
                unite(dims[axis], own)
            graph.record(parameter, role, reads=read)
    return read


@rule("_weight_norm_interface")
def weight_norm(graph: Graph, func: Any, args: Sequence[Any], kwargs: Any, out: Any) -> Any:
    """``g * v / |v|`` over all dimensions of v but one."""
    dims, axis = graph.dims(args[0]), position(args[2] if len(args) > 2 else 0, args[0].dim())
    unite(dims[axis], graph.dims(args[1])[axis])
    graph.record(args[1], "scales")
    return [dims, *map(graph.unknown, out[1:])]


@rule("native_batch_norm", "_native_batch_norm_legit_no_training", "_native_batch_norm_legit",
      "_batch_norm_no_update", "cudnn_batch_norm", "miopen_batch_norm")  # fmt: skip
def batch_norm(graph: Graph, func: Any, args: Sequence[Any], kwargs: Any, out: Any) -> Any:
    """Every channel is normed on its own: it scales one flow, and gain and shift write another.

    An instance norm has no statistics of its own: it is a nonlinear function.
    """
    dims = list(graph.dims(args[0]))
    for parameter in args[3:5]:
        if isinstance(parameter, Tensor):
            graph.record(parameter, "scales")
            unite(dims[1], graph.dims(parameter)[0])
    if graph.static(args[0]) or isinstance(args[3], Tensor):
        written = Flow()
        dims[1] = [Item(leaf.factor, written) for leaf in leaves(dims[1])]
    else:
        mark_nonlinear([dims[1]])
    for parameter in args[1:3]:
        if isinstance(parameter, Tensor):
            graph.record(parameter, "produces")
            unite(dims[1], graph.dims(parameter)[0])
    return [dims, *map(graph.unknown, out[1:])]


@rule("_softmax", "_log_softmax", "_safe_softmax")
def softmax(graph: Graph, func: Any, args: Sequence[Any], kwargs: Any, out: Tensor) -> Any:
    dims = graph.dims(args[0])
    graph.reduce("softmax", [dims[position(args[1], len(dims))]])
    return dims


@rule("cumsum", "cumprod", "logcumsumexp", "cummax", "cummin")
def cumulative(graph: Graph, func: Any, args: Sequence[Any], kwargs: Any, out: Any) -> Any:
    dims = graph.dims(args[0])
    if func._schema.name != "aten::cumsum":
        mark_nonlinear(dims)
    pin(dims[position(args[1], len(dims))], "it is summed up in order")
    return dims if isinstance(out, Tensor) else [dims, dims]


REDUCTIONS = {"mean": "mean", "var": "spread", "std": "spread", "var_mean": "spread",
              "std_mean": "spread",
              "linalg_vector_norm": "length", "norm": "length",
              "amax": "extreme", "amin": "extreme", "max": "extreme", "min": "extreme",
              "argmax": "extreme", "argmin": "extreme", "any": "extreme", "all": "extreme",
              "sum": "sum", "prod": "sum", "logsumexp": "sum"}  # fmt: skip


@rule(*REDUCTIONS)
def reduction(graph: Graph, func: Any, args: Sequence[Any], kwargs: Any, out: Any) -> Any:
    """Drop the reduced dimensions; if they are kept, they have length 1."""
    dims = list(graph.dims(args[0]))
    name = func._schema.name.removeprefix("aten::")
    kind = REDUCTIONS[name]
    number = 2 if kind == "length" else 1
    over = kwargs.get("dim", args[number] if len(args) > number else None)
    over = [over] if isinstance(over, int) and not isinstance(over, bool) else over
    gone = {position(axis, len(dims)) for axis in over or range(len(dims))}
    square = graph.marked(args[0], "square")
    if name == "mean" and square:
        graph.mark(out, "mean square", square.of)
        kind = "mean square"
    if kind == "length" and not {*args[1:2]} <= {2, None}:
        kind = "sum"
    if kind == "mean" and gone == {len(dims) - 1} and out.dim() == len(dims):
        graph.mark(out, "mean", args[0])
    graph.reduce(kind, [dims[axis] for axis in gone], centers=bool(graph.marked(out, "mean")))
    if name not in ("mean", "sum") and kind != "mean square":
        mark_nonlinear(dim for axis, dim in enumerate(dims) if axis not in gone)
    tensors = [out] if isinstance(out, Tensor) else list(out)
    if name.startswith("arg") or (kind == "extreme" and len(tensors) > 1):
        for axis in gone:
            graph.tell_apart(tensors[-1], dims[axis], "the position of an extreme is asked for")
    kept = [
        [[] if axis in gone else dim for axis, dim in enumerate(dims)]
        if tensor.dim() == len(dims)
        else [dim for axis, dim in enumerate(dims) if axis not in gone]
        for tensor in tensors
    ]
    return kept[0] if isinstance(out, Tensor) else kept
