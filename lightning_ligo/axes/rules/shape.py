"""Rules of operations that move, group, cut and join dimensions, and of those that move pixels."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from torch import Tensor

from lightning_ligo.axes.factors import Dim, broadcast, concatenate, pin, regroup, size, take
from lightning_ligo.axes.graph import SELECTED, Graph, mark_nonlinear
from lightning_ligo.axes.rules.table import SPACE, position, rule
from lightning_ligo.axes.rules.tried import tried


@rule("view", "_unsafe_view", "reshape", "unsqueeze", "squeeze", "unflatten")
def view(graph: Graph, func: Any, args: Sequence[Any], kwargs: Any, out: Tensor) -> Any:
    return regroup(graph.dims(args[0]), out.shape)


@rule("as_strided")
def as_strided(graph: Graph, func: Any, args: Sequence[Any], kwargs: Any, out: Tensor) -> Any:
    """The same shape and strides, such as of another memory format, are the same tensor."""
    if out.shape == args[0].shape and [
        step for step, length in zip(out.stride(), out.shape, strict=True) if length > 1
    ] == [step for step, length in zip(args[0].stride(), out.shape, strict=True) if length > 1]:
        return graph.dims(args[0])
    return tried(graph, func, args, kwargs, out)


@rule("permute")
def permute(graph: Graph, func: Any, args: Sequence[Any], kwargs: Any, out: Tensor) -> Any:
    dims = graph.dims(args[0])
    return [dims[position] for position in args[1]]


@rule("transpose", "t")
def transpose(graph: Graph, func: Any, args: Sequence[Any], kwargs: Any, out: Tensor) -> Any:
    dims = list(graph.dims(args[0]))
    if len(dims) > 1:
        i, j = (position(dim, len(dims)) for dim in args[1:] or (0, 1))
        dims[i], dims[j] = dims[j], dims[i]
    return dims


@rule("expand")
def expand(graph: Graph, func: Any, args: Sequence[Any], kwargs: Any, out: Tensor) -> Any:
    added: list[Dim] = [[] for _ in range(out.dim() - args[0].dim())]
    dims = added + graph.dims(args[0])
    return [dim if dim else graph.new(length) for dim, length in zip(dims, out.shape, strict=True)]


@rule("select")
def select(graph: Graph, func: Any, args: Sequence[Any], kwargs: Any, out: Tensor) -> Any:
    dims = list(graph.dims(args[0]))
    selected = dims.pop(position(args[1], len(dims)))
    graph.tell_apart(out, selected, SELECTED)
    return dims


@rule("unbind")
def unbind(graph: Graph, func: Any, args: Sequence[Any], kwargs: Any, out: Any) -> Any:
    dims = list(graph.dims(args[0]))
    axis = args[1] if len(args) > 1 else kwargs.get("dim", 0)
    pin(dims.pop(position(axis, len(dims))), "its entries are taken apart by position")
    return [dims for _ in out]


@rule("split", "split_with_sizes", "chunk", "unsafe_split", "unsafe_split_with_sizes")
def split(graph: Graph, func: Any, args: Sequence[Any], kwargs: Any, out: Any) -> Any:
    dims = list(graph.dims(args[0]))
    axis = position(args[2] if len(args) > 2 else kwargs.get("dim", 0), len(dims))
    lengths = [piece.shape[axis] for piece in out]
    starts = [sum(lengths[:number]) for number in range(len(lengths))]
    return [
        [*dims[:axis], take(dims[axis], start, length), *dims[axis + 1 :]]
        for start, length in zip(starts, lengths, strict=True)
    ]


@rule("slice")
def slice_(graph: Graph, func: Any, args: Sequence[Any], kwargs: Any, out: Tensor) -> Any:
    dims = list(graph.dims(args[0]))
    defaults = [args[0], 0, None, None, 1]
    _, axis, start, end, step = [*args, *defaults[len(args) :]]
    axis, length = position(axis, len(dims)), out.shape[axis]
    first, _, _ = slice(start, end, step).indices(args[0].shape[axis])
    if step == 1:
        dims[axis] = take(dims[axis], first, length)
        return dims
    pin(dims[axis], "it is taken in steps")
    return [*dims[:axis], graph.new(length, pinned="it is taken in steps"), *dims[axis + 1 :]]


@rule("constant_pad_nd")
def pad(graph: Graph, func: Any, args: Sequence[Any], kwargs: Any, out: Tensor) -> Any:
    dims = list(graph.dims(args[0]))
    for number in range(len(args[1]) // 2):
        before, after = args[1][2 * number : 2 * number + 2]
        axis = out.dim() - 1 - number
        if before < 0 or after < 0:
            pin(dims[axis], "it is cropped")
            dims[axis] = graph.new(out.shape[axis], pinned="it is cropped")
        elif before or after:
            edges = [graph.new(length, pinned="it is padding") for length in (before, after)]
            pieces = [*edges[: before > 0], dims[axis], *edges[2 - (after > 0) :]]
            dims[axis] = concatenate(pieces)
    return dims


@rule("cat")
def cat(graph: Graph, func: Any, args: Sequence[Any], kwargs: Any, out: Tensor) -> Any:
    axis = position(args[1] if len(args) > 1 else kwargs.get("dim", 0), out.dim())
    parts = [part for part in args[0] if part.numel()]
    parts = parts or [part for part in args[0] if part.dim() == out.dim()]
    graph.write(parts)
    dims = [list(graph.dims(part)) for part in parts]
    joined = concatenate([part[axis] for part in dims])
    for part in dims:
        part[axis] = []
    return [joined if i == axis else dim for i, dim in enumerate(broadcast(dims))]


@rule("stack")
def stack(graph: Graph, func: Any, args: Sequence[Any], kwargs: Any, out: Tensor) -> Any:
    axis = position(args[1] if len(args) > 1 else kwargs.get("dim", 0), out.dim())
    graph.write(args[0])
    dims = broadcast([list(graph.dims(part)) for part in args[0]])
    return [*dims[:axis], graph.new(out.shape[axis], pinned="it is stacked"), *dims[axis:]]


@rule("repeat")
def repeat(graph: Graph, func: Any, args: Sequence[Any], kwargs: Any, out: Tensor) -> Any:
    added: list[Dim] = [[] for _ in range(out.dim() - args[0].dim())]
    return [
        [*graph.new(times), *dim]
        for times, dim in zip(args[1], added + graph.dims(args[0]), strict=True)
    ]


@rule("roll", "flip")
def roll(graph: Graph, func: Any, args: Sequence[Any], kwargs: Any, out: Tensor) -> Any:
    dims = graph.dims(args[0])
    for axis in args[-1] if isinstance(args[-1], (list, tuple)) else [args[-1]]:
        pin(dims[axis], "it is shifted or mirrored")
    return dims


# Pixels -------------------------------------------------------------------------------------------


@rule("max_pool2d_with_indices", "max_pool3d_with_indices", "avg_pool1d", "avg_pool2d",
      "avg_pool3d", "_adaptive_avg_pool2d", "_adaptive_avg_pool3d", "adaptive_max_pool2d",
      "adaptive_max_pool3d", "max_pool1d", "reflection_pad1d", "reflection_pad2d",
      "reflection_pad3d", "replication_pad1d", "replication_pad2d", "replication_pad3d",
      "upsample_nearest1d", "upsample_nearest2d", "upsample_bilinear2d", "upsample_bicubic2d",
      "_upsample_bicubic2d_aa", "_upsample_bilinear2d_aa", "upsample_linear1d",
      "_upsample_nearest_exact1d", "_upsample_nearest_exact2d", "_upsample_nearest_exact3d",
      "upsample_nearest3d", "upsample_trilinear3d", "max_unpool2d", "max_unpool3d",
      "grid_sampler_2d", "grid_sampler_3d")  # fmt: skip
def resample(graph: Graph, func: Any, args: Sequence[Any], kwargs: Any, out: Any) -> Any:
    """Pooling, padding, interpolation: dimensions behind the channels are positions in space."""
    dims = list(graph.dims(args[0]))
    tensors = [out] if isinstance(out, Tensor) else list(out)
    spatial = re.search(r"([123])_?d", func.__name__)
    assert spatial is not None
    lead = len(dims) - int(spatial[1])
    for items in dims[lead:]:
        pin(items, SPACE)
    if "max" in func.__name__:
        mark_nonlinear(dims[:lead])
    results = [
        [*dims[:lead], *(graph.new(length, pinned=SPACE) for length in tensor.shape[lead:])]
        for tensor in tensors
    ]
    return results[0] if isinstance(out, Tensor) else results


@rule("pixel_shuffle")
def pixel_shuffle(graph: Graph, func: Any, args: Sequence[Any], kwargs: Any, out: Any) -> Any:
    *batch, channels, height, width = graph.dims(args[0])
    kept, square = regroup([channels], (out.shape[-3], args[1] ** 2))
    pin([*square, *height, *width], SPACE)
    return [*batch, kept, *(graph.new(length, pinned=SPACE) for length in out.shape[-2:])]


@rule("pixel_unshuffle")
def pixel_unshuffle(graph: Graph, func: Any, args: Sequence[Any], kwargs: Any, out: Any) -> Any:
    *batch, channels, height, width = graph.dims(args[0])
    pin([*height, *width], SPACE)
    square = graph.new(args[1] ** 2, pinned=SPACE)
    space = [graph.new(length, pinned=SPACE) for length in out.shape[-2:]]
    return [*batch, [*channels, *square], *space]


@rule("im2col")
def im2col(graph: Graph, func: Any, args: Sequence[Any], kwargs: Any, out: Tensor) -> Any:
    *batch, channels, height, width = graph.dims(args[0])
    pin([*height, *width], SPACE)
    kernel = graph.new(args[1][0] * args[1][1], pinned=SPACE)
    return [*batch, [*channels, *kernel], graph.new(out.shape[-1], pinned=SPACE)]


@rule("col2im")
def col2im(graph: Graph, func: Any, args: Sequence[Any], kwargs: Any, out: Tensor) -> Any:
    *batch, columns, positions = graph.dims(args[0])
    channels, kernel = regroup([columns], (out.shape[-3], args[2][0] * args[2][1]))
    pin([*kernel, *positions], SPACE)
    return [*batch, channels, *(graph.new(length, pinned=SPACE) for length in out.shape[-2:])]


@rule("channel_shuffle", "native_channel_shuffle")
def channel_shuffle(graph: Graph, func: Any, args: Sequence[Any], kwargs: Any, out: Any) -> Any:
    """Groups of channels become channels of groups."""
    batch, channels, *space = graph.dims(args[0])
    group, rest = regroup([channels], (args[1], size(channels) // args[1]))
    return [batch, [*rest, *group], *space]
