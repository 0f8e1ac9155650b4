"""Rules of pooling, interpolation and other operations that move pixels."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from torch import Tensor

from lightning_ligo.axes.factors import pin, regroup, size
from lightning_ligo.axes.graph import Graph, mark_nonlinear
from lightning_ligo.axes.rules.table import SPACE, rule


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
