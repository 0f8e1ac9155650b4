"""Rules of operations that select by index."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from typing import Any

import torch
from torch import Tensor

from lightning_ligo.axes.factors import Dim, broadcast, hint, joined, leaves, pin, size, take
from lightning_ligo.axes.graph import RANKED, TABLE, Graph, mark_nonlinear
from lightning_ligo.axes.rules.table import position, rule

MASKED = "it is what a mask selects"


@rule("embedding")
def embedding(graph: Graph, func: Any, args: Sequence[Any], kwargs: Any, out: Tensor) -> Any:
    rows, columns = graph.dims(args[0])
    pin(rows, TABLE)
    hint(rows, "entries")
    graph.record(args[0], "produces", columns)
    return [*graph.dims(args[1]), columns]


@rule("_embedding_bag", "_embedding_bag_forward_only")
def embedding_bag(graph: Graph, func: Any, args: Sequence[Any], kwargs: Any, out: Any) -> Any:
    """Sums or means of rows."""
    _, columns = embedding(graph, func, [args[0], args[2]], kwargs, out[0])
    return [[*graph.unknown(out[0])[:-1], columns], *map(graph.unknown, out[1:])]


@rule("index", "_unsafe_index")
def index(graph: Graph, func: Any, args: Sequence[Any], kwargs: Any, out: Tensor) -> Any:
    """``x[:, i, j]``: the indexed dimensions are replaced by those of the indices."""
    return _indexed(graph, args[0], args[1], out.shape[0])


@rule("index_put", "_index_put_impl_")
def index_put(graph: Graph, func: Any, args: Sequence[Any], kwargs: Any, out: Tensor) -> Any:
    """``x[:, i, j] = values``: the values have the dimensions of ``x[:, i, j]``."""
    into, indices, values = args[:3]
    masked = any(entries is not None and entries.dtype == torch.bool for entries in indices)
    length = values.shape[0] if masked and values.dim() else 1
    graph.write([into, values])
    united = broadcast([_indexed(graph, into, indices, length), graph.dims(values)])
    found = {leaf.factor: [leaf] for items in united for leaf in leaves(items)}
    return [
        [*chain(*(joined([leaf], found.get(leaf.factor, [])) for leaf in leaves(items)))]
        for items in graph.dims(into)
    ]


@rule("index_add", "index_copy", "scatter", "scatter_add", "scatter_reduce")
def write_at(graph: Graph, func: Any, args: Sequence[Any], kwargs: Any, out: Tensor) -> Any:
    """Entries are written at an index along one dimension, and to their own place elsewhere."""
    dims, axis = list(graph.dims(args[0])), position(args[1], out.dim())
    pin(dims[axis], TABLE)
    if len(args) < 4 or not isinstance(args[3], Tensor):
        return dims
    written = list(graph.dims(args[3]))
    graph.write([args[0], args[3]])
    for number, (into, values) in enumerate(zip(dims, written, strict=True)):
        if number == axis or size(into) != size(values):
            pin([*into, *values], TABLE)
            written[number] = []
    if func._schema.name == "aten::scatter_reduce":
        mark_nonlinear([*dims, *written])
    return broadcast([dims, written])


@rule("nonzero")
def nonzero(graph: Graph, func: Any, args: Sequence[Any], kwargs: Any, out: Tensor) -> Any:
    """The positions at which a mask is true: all its dimensions are pinned."""
    for items in graph.dims(args[0]):
        pin(items, TABLE)
    return graph.unknown(out, pinned=MASKED)


def _indexed(graph: Graph, x: Tensor, indices: Sequence[Any], selected: int) -> list[Dim]:
    """The dimensions of ``x[indices]``, of which masks select ``selected`` entries."""
    dims = list(graph.dims(x))
    indexed = [axis for axis, entries in enumerate(indices) if entries is not None]
    if len(indexed) == 1 and (start := _first(indices[indexed[0]])) is not None:
        axis, length = indexed[0], len(indices[indexed[0]])
        start = position(start, x.shape[axis])
        return [*dims[:axis], take(dims[axis], start, length), *dims[axis + 1 :]]
    for axis in indexed:
        pin(dims[axis], TABLE)
    shapes = [list(graph.dims(indices[axis])) for axis in indexed]
    if any(indices[axis].dtype == torch.bool for axis in indexed):
        masked = graph.new(selected, pinned=MASKED)
        return [masked, *dims[len(shapes[0]) :]]
    looked_up = broadcast(shapes)
    kept = [dim for axis, dim in enumerate(dims) if axis not in indexed]
    together = indexed == list(range(indexed[0], indexed[-1] + 1))
    start = indexed[0] if together else 0
    return [*kept[:start], *looked_up, *kept[start:]]


def _first(index: Tensor) -> int | None:
    """The start of a constant index that selects neighbours, as a slice would."""
    if index.is_meta or index.dtype != torch.long or index.dim() != 1 or not 0 < len(index) <= 4:
        return None
    entries = index.tolist()
    return entries[0] if entries == list(range(entries[0], entries[0] + len(entries))) else None


@rule("index_select")
def index_select(graph: Graph, func: Any, args: Sequence[Any], kwargs: Any, out: Tensor) -> Any:
    dims, axis = list(graph.dims(args[0])), position(args[1], out.dim())
    pin(dims[axis], TABLE)
    return [*dims[:axis], *graph.dims(args[2]), *dims[axis + 1 :]]


@rule("gather")
def gather(graph: Graph, func: Any, args: Sequence[Any], kwargs: Any, out: Tensor) -> Any:
    dims, axis = list(graph.dims(args[0])), position(args[1], out.dim())
    pin(dims[axis], TABLE)
    return [
        dim if size(dim) == length and i != axis else graph.new(length, pinned="it is looked up")
        for i, (dim, length) in enumerate(zip(dims, out.shape, strict=True))
    ]


@rule("topk", "sort")
def topk(graph: Graph, func: Any, args: Sequence[Any], kwargs: Any, out: Any) -> Any:
    dims = list(graph.dims(args[0]))
    axis = position(args[2] if len(args) > 2 else kwargs.get("dim", -1), len(dims))
    mark_nonlinear(dims)
    pin(dims[axis], RANKED)
    dims[axis] = graph.new(out[0].shape[axis], pinned=RANKED)
    return [dims, dims]


@rule("nll_loss_forward", "nll_loss2d_forward")
def nll_loss(graph: Graph, func: Any, args: Sequence[Any], kwargs: Any, out: Any) -> Any:
    pin(graph.dims(args[0])[1], "it is the classes that labels name")
    hint(graph.dims(args[0])[1], "classes")
    return [graph.unknown(loss) for loss in out]
