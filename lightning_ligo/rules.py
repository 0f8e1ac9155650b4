"""What each tensor operation does to the factors of its dimensions: one rule per operation.

A rule is called as ``rule(tracer, func, args, kwargs, out)`` after the operation has run. It unites
the factors that the operation forces together, records which parameters are read or written, and
returns the dimensions of the output (or of each output).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from lightning_ligo.factors import (
    Dim,
    Flow,
    Item,
    concatenate,
    ends,
    hint,
    leaves,
    owned,
    pin,
    regroup,
    size,
    take,
    unite,
)

if TYPE_CHECKING:
    from lightning_ligo.trace import Tracer

Rule = Callable[["Tracer", Any, Sequence[Any], dict[str, Any], Any], Any]
RULES: dict[str, Rule] = {}
SPACE = "it is a position in space"


def rule(*names: str) -> Callable[[Rule], Rule]:
    def register(function: Rule) -> Rule:
        RULES.update(dict.fromkeys(names, function))
        return function

    return register


def _position(dim: int, rank: int) -> int:
    return dim % rank if rank else 0


# Elementwise ------------------------------------------------------------------------------------


def pointwise(tracer: Tracer, func: Any, args: Sequence[Any], kwargs: Any, out: Tensor) -> Any:
    """Broadcast, unite position by position; adding writes a flow, multiplying scales it."""
    tensors = [arg for arg in [*args, *kwargs.values()] if isinstance(arg, Tensor)]
    if not all(tracer.static(tensor) for tensor in tensors):
        scaling = func._schema.name.removeprefix("aten::").rstrip("_") in ("mul", "div")
        for tensor in tensors:
            tracer.record(tensor, "scales" if scaling else "produces")
    return _broadcast([tracer.dims(tensor) for tensor in tensors])


@rule("_to_copy", "clone", "alias", "detach", "lift_fresh", "hardswish", "cumsum", "_softmax",
      "_log_softmax", "_safe_softmax", "native_dropout", "bernoulli")  # fmt: skip
def same(tracer: Tracer, func: Any, args: Sequence[Any], kwargs: Any, out: Any) -> Any:
    return tracer.dims(args[0])


@rule("copy_")
def copy_(tracer: Tracer, func: Any, args: Sequence[Any], kwargs: Any, out: Tensor) -> Any:
    return pointwise(tracer, func, args[:2], {}, out)


# Shape ------------------------------------------------------------------------------------------


@rule("view", "_unsafe_view", "reshape", "unsqueeze", "squeeze", "unflatten")
def view(tracer: Tracer, func: Any, args: Sequence[Any], kwargs: Any, out: Tensor) -> Any:
    return regroup(tracer.dims(args[0]), out.shape)


@rule("permute")
def permute(tracer: Tracer, func: Any, args: Sequence[Any], kwargs: Any, out: Tensor) -> Any:
    dims = tracer.dims(args[0])
    return [dims[position] for position in args[1]]


@rule("transpose", "t")
def transpose(tracer: Tracer, func: Any, args: Sequence[Any], kwargs: Any, out: Tensor) -> Any:
    dims = list(tracer.dims(args[0]))
    if len(dims) > 1:
        i, j = (_position(dim, len(dims)) for dim in args[1:] or (0, 1))
        dims[i], dims[j] = dims[j], dims[i]
    return dims


@rule("expand")
def expand(tracer: Tracer, func: Any, args: Sequence[Any], kwargs: Any, out: Tensor) -> Any:
    added: list[Dim] = [[] for _ in range(out.dim() - args[0].dim())]
    dims = added + tracer.dims(args[0])
    return [dim if dim else tracer.new(length) for dim, length in zip(dims, out.shape, strict=True)]


@rule("select")
def select(tracer: Tracer, func: Any, args: Sequence[Any], kwargs: Any, out: Tensor) -> Any:
    dims = list(tracer.dims(args[0]))
    pin(dims.pop(_position(args[1], len(dims))), "its entries are selected by position")
    return dims


@rule("unbind")
def unbind(tracer: Tracer, func: Any, args: Sequence[Any], kwargs: Any, out: Any) -> Any:
    dims = list(tracer.dims(args[0]))
    axis = args[1] if len(args) > 1 else kwargs.get("dim", 0)
    pin(dims.pop(_position(axis, len(dims))), "its entries are taken apart by position")
    return [dims for _ in out]


@rule("split", "split_with_sizes", "chunk", "unsafe_split", "unsafe_split_with_sizes")
def split(tracer: Tracer, func: Any, args: Sequence[Any], kwargs: Any, out: Any) -> Any:
    dims = list(tracer.dims(args[0]))
    axis = _position(args[2] if len(args) > 2 else kwargs.get("dim", 0), len(dims))
    lengths = [piece.shape[axis] for piece in out]
    starts = [sum(lengths[:number]) for number in range(len(lengths))]
    return [
        [*dims[:axis], take(dims[axis], start, length), *dims[axis + 1 :]]
        for start, length in zip(starts, lengths, strict=True)
    ]


@rule("slice")
def slice_(tracer: Tracer, func: Any, args: Sequence[Any], kwargs: Any, out: Tensor) -> Any:
    dims = list(tracer.dims(args[0]))
    defaults = [args[0], 0, None, None, 1]
    _, axis, start, end, step = [*args, *defaults[len(args) :]]
    axis, length = _position(axis, len(dims)), out.shape[axis]
    first, _, _ = slice(start, end, step).indices(args[0].shape[axis])
    if step == 1:
        dims[axis] = take(dims[axis], first, length)
        return dims
    pin(dims[axis], "it is taken in steps")
    return [*dims[:axis], tracer.new(length, pinned="it is taken in steps"), *dims[axis + 1 :]]


@rule("constant_pad_nd")
def pad(tracer: Tracer, func: Any, args: Sequence[Any], kwargs: Any, out: Tensor) -> Any:
    dims = list(tracer.dims(args[0]))
    for number in range(len(args[1]) // 2):
        before, after = args[1][2 * number : 2 * number + 2]
        axis = out.dim() - 1 - number
        if before < 0 or after < 0:
            pin(dims[axis], "it is cropped")
            dims[axis] = tracer.new(out.shape[axis], pinned="it is cropped")
        elif before or after:
            edges = [tracer.new(length, pinned="it is padding") for length in (before, after)]
            pieces = [*edges[: before > 0], dims[axis], *edges[2 - (after > 0) :]]
            dims[axis] = concatenate(pieces)
    return dims


@rule("cat")
def cat(tracer: Tracer, func: Any, args: Sequence[Any], kwargs: Any, out: Tensor) -> Any:
    axis = _position(args[1] if len(args) > 1 else kwargs.get("dim", 0), out.dim())
    parts = [part for part in args[0] if part.numel()]
    _write(tracer, parts)
    dims = [list(tracer.dims(part)) for part in parts]
    joined = concatenate([theirs[axis] for theirs in dims])
    for theirs in dims:
        theirs[axis] = []
    return [joined if i == axis else dim for i, dim in enumerate(_broadcast(dims))]


@rule("stack")
def stack(tracer: Tracer, func: Any, args: Sequence[Any], kwargs: Any, out: Tensor) -> Any:
    axis = _position(args[1] if len(args) > 1 else kwargs.get("dim", 0), out.dim())
    _write(tracer, args[0])
    dims = _broadcast([list(tracer.dims(part)) for part in args[0]])
    return [*dims[:axis], tracer.new(out.shape[axis], pinned="it is stacked"), *dims[axis:]]


def _write(tracer: Tracer, parts: Sequence[Tensor]) -> None:
    """Parameters that are concatenated with activations are written there."""
    if not all(tracer.static(part) for part in parts):
        for part in parts:
            tracer.record(part, "produces")


def _broadcast(tensors: Sequence[list[Dim]]) -> list[Dim]:
    """Unite dimensions of several tensors, aligned at the last, and keep their flows."""
    rank = max(map(len, tensors))
    dims: list[Dim] = [[] for _ in range(rank)]
    for theirs in tensors:
        for position, dim in enumerate(theirs, start=rank - len(theirs)):
            if dims[position] and dim:
                unite(dims[position], dim)
            dims[position] = _with_flow(dims[position], dim)
    return dims


def _with_flow(first: Dim, second: Dim) -> Dim:
    """The same factors, with the flow of whichever side has one."""
    if not first or not second or len(leaves(first)) != len(leaves(second)):
        return first or second
    return [
        Item(left.factor, left.flow or right.flow, left.owner or right.owner)
        for left, right in zip(leaves(first), leaves(second), strict=True)
    ]


@rule("repeat")
def repeat(tracer: Tracer, func: Any, args: Sequence[Any], kwargs: Any, out: Tensor) -> Any:
    added: list[Dim] = [[] for _ in range(out.dim() - args[0].dim())]
    return [
        [*tracer.new(times), *dim]
        for times, dim in zip(args[1], added + tracer.dims(args[0]), strict=True)
    ]


@rule("roll", "flip")
def roll(tracer: Tracer, func: Any, args: Sequence[Any], kwargs: Any, out: Tensor) -> Any:
    dims = tracer.dims(args[0])
    for axis in args[-1] if isinstance(args[-1], (list, tuple)) else [args[-1]]:
        pin(dims[axis], "it is shifted or mirrored")
    return dims


@rule("view_as_complex")
def view_as_complex(tracer: Tracer, func: Any, args: Sequence[Any], kwargs: Any, out: Any) -> Any:
    *dims, pair = tracer.dims(args[0])
    pin(pair, "it is the real and the imaginary part")
    return dims


@rule("view_as_real")
def view_as_real(tracer: Tracer, func: Any, args: Sequence[Any], kwargs: Any, out: Any) -> Any:
    return [*tracer.dims(args[0]), tracer.new(2, pinned="it is the real and the imaginary part")]


# Lookups ----------------------------------------------------------------------------------------


@rule("embedding")
def embedding(tracer: Tracer, func: Any, args: Sequence[Any], kwargs: Any, out: Tensor) -> Any:
    rows, columns = tracer.dims(args[0])
    pin(rows, "it is the rows of a table that indices look up")
    hint(rows, "entries")
    tracer.record(args[0], "produces", columns)
    return [*tracer.dims(args[1]), columns]


@rule("index", "_unsafe_index")
def index(tracer: Tracer, func: Any, args: Sequence[Any], kwargs: Any, out: Tensor) -> Any:
    """``x[:, i, j]``: what is indexed is told apart; the indices' dimensions stand in its place."""
    dims, indices = list(tracer.dims(args[0])), args[1]
    indexed = [axis for axis, entries in enumerate(indices) if entries is not None]
    for axis in indexed:
        pin(dims[axis], "it is the rows of a table that indices look up")
    shapes = [list(tracer.dims(indices[axis])) for axis in indexed]
    if any(indices[axis].dtype == torch.bool for axis in indexed):
        selected = tracer.new(out.shape[0], pinned="it is what a mask selects")
        return [selected, *dims[len(shapes[0]) :]]
    looked_up = _broadcast(shapes)
    kept = [dim for axis, dim in enumerate(dims) if axis not in indexed]
    together = indexed == list(range(indexed[0], indexed[-1] + 1))
    start = indexed[0] if together else 0
    return [*kept[:start], *looked_up, *kept[start:]]


@rule("index_select")
def index_select(tracer: Tracer, func: Any, args: Sequence[Any], kwargs: Any, out: Tensor) -> Any:
    dims, axis = list(tracer.dims(args[0])), _position(args[1], out.dim())
    pin(dims[axis], "it is the rows of a table that indices look up")
    return [*dims[:axis], *tracer.dims(args[2]), *dims[axis + 1 :]]


@rule("gather")
def gather(tracer: Tracer, func: Any, args: Sequence[Any], kwargs: Any, out: Tensor) -> Any:
    dims, axis = list(tracer.dims(args[0])), _position(args[1], out.dim())
    pin(dims[axis], "it is the rows of a table that indices look up")
    return [
        dim if size(dim) == length and i != axis else tracer.new(length, pinned="it is looked up")
        for i, (dim, length) in enumerate(zip(dims, out.shape, strict=True))
    ]


@rule("topk", "sort")
def topk(tracer: Tracer, func: Any, args: Sequence[Any], kwargs: Any, out: Any) -> Any:
    dims = list(tracer.dims(args[0]))
    axis = _position(args[2] if len(args) > 2 else kwargs.get("dim", -1), len(dims))
    pin(dims[axis], "it is ranked")
    dims[axis] = tracer.new(out[0].shape[axis], pinned="it is ranked")
    return [dims, dims]


# Products ---------------------------------------------------------------------------------------


def contract(tracer: Tracer, left: Tensor, lefts: Dim, right: Tensor, rights: Dim) -> None:
    """A sum of products over one dimension: the parameter's side consumes what flows in."""
    unite(lefts, rights, flow=False)
    if tracer.static(right):
        tracer.consume(rights, lefts)
    elif tracer.static(left):
        tracer.consume(lefts, rights)
    else:
        for item in ends(lefts):
            item.factor.inner = not item.factor.pinned


@rule("mm", "bmm", "mv", "dot")
def product(tracer: Tracer, func: Any, args: Sequence[Any], kwargs: Any, out: Tensor) -> Any:
    return _product(tracer, args[0], args[1])


@rule("addmm", "baddbmm", "addbmm")
def add_product(tracer: Tracer, func: Any, args: Sequence[Any], kwargs: Any, out: Tensor) -> Any:
    bias, left, right = args[:3]
    dims = _product(tracer, left, right)
    tracer.record(bias, "produces")
    for mine, other in zip(dims[::-1], tracer.dims(bias)[::-1], strict=False):
        if mine and other:
            unite(mine, other)
    return dims


def _product(tracer: Tracer, left: Tensor, right: Tensor) -> list[Dim]:
    lefts, rights = list(tracer.dims(left)), list(tracer.dims(right))
    inner_left = lefts.pop(-1)
    inner_right = rights.pop(-2 if right.dim() > 1 else -1)
    contract(tracer, left, inner_left, right, inner_right)
    static = tracer.static(left) or tracer.static(right)
    for tensor, dims in ((left, lefts), (right, rights)):
        tracer.record(tensor, "produces", [item for dim in dims for item in dim])
    batch: list[Dim] = []
    if left.dim() == 3:
        for mine, other in zip(lefts[:1], rights[:1], strict=True):
            if mine and other:
                unite(mine, other, flow=static)
            batch.append(other or mine)
        lefts, rights = lefts[1:], rights[1:]
        if not static:
            _hint_attention(batch[0], inner_left, rights)
    return batch + lefts + rights


def _hint_attention(batch: Dim, contracted: Dim, columns: list[Dim]) -> None:
    """A product of two activations is attention: over head_dim, or of weights with values."""
    hint(batch, "heads")
    over_positions = all(item.factor.pinned for item in ends(contracted))
    hint(columns[0] if over_positions and columns else contracted, "head_dim")


@rule("_scaled_dot_product_flash_attention_for_cpu", "_scaled_dot_product_flash_attention",
      "_scaled_dot_product_efficient_attention", "_scaled_dot_product_cudnn_attention",
      "_scaled_dot_product_attention_math", "_scaled_dot_product_fused_attention_overrideable",
      )  # fmt: skip
def attention(tracer: Tracer, func: Any, args: Sequence[Any], kwargs: Any, out: Any) -> Any:
    query, key, value = (tracer.dims(tensor) for tensor in args[:3])
    for other in (key, value):
        for mine, theirs in zip(query[:2], other[:2], strict=True):
            unite(mine, theirs, flow=False)
    unite(query[3], key[3], flow=False)
    unite(key[2], value[2], flow=False)
    hint(query[1], "heads")
    hint(query[3], "head_dim")
    hint(value[3], "head_dim")
    for item in ends(query[3]):
        item.factor.inner = True
    result = [value[0], value[1], query[2], value[3]]
    return [result] + [tracer.unknown(extra) for extra in out[1:]]


@rule("convolution")
def convolution(tracer: Tracer, func: Any, args: Sequence[Any], kwargs: Any, out: Tensor) -> Any:
    """``out[g·O] += weight[g·O, I] * x[g·I]``: channels are axes, kernel positions are fixed."""
    x, weight, bias, groups, transposed = args[0], args[1], args[2], args[8], args[6]
    dims, kernel = tracer.dims(x), list(tracer.dims(weight))
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
        tracer.record(weight, "scales", group)
        tracer.record(weight, "produces", kernel[1] if transposed else rest)
    else:
        tracer.record(weight, "produces", outputs)
    contract(tracer, x, channels, weight, inputs)
    if bias is not None:
        tracer.record(bias, "produces")
        unite(outputs, tracer.dims(bias)[0])
    space = [tracer.new(length, pinned=SPACE) for length in out.shape[2:]]
    for items in dims[2:]:
        pin(items, SPACE)
    return [dims[0], outputs, *space]


@rule("max_pool2d_with_indices", "max_pool3d_with_indices", "avg_pool1d", "avg_pool2d",
      "avg_pool3d", "_adaptive_avg_pool2d", "_adaptive_avg_pool3d", "adaptive_max_pool2d",
      "max_pool1d", "reflection_pad1d", "reflection_pad2d", "replication_pad2d",
      "upsample_nearest1d", "upsample_nearest2d", "upsample_bilinear2d", "upsample_bicubic2d",
      "_upsample_bicubic2d_aa", "_upsample_bilinear2d_aa", "upsample_linear1d",
      "_upsample_nearest_exact2d")  # fmt: skip
def resample(tracer: Tracer, func: Any, args: Sequence[Any], kwargs: Any, out: Any) -> Any:
    """Pooling, padding, interpolation: all but batch and channels are positions in space."""
    dims = list(tracer.dims(args[0]))
    tensors = [out] if isinstance(out, Tensor) else list(out)
    lead = max(1, min(2, len(dims) - 1)) if len(dims) < 4 else len(dims) - 2
    for items in dims[lead:]:
        pin(items, SPACE)
    results = [
        [*dims[:lead], *(tracer.new(length, pinned=SPACE) for length in tensor.shape[lead:])]
        for tensor in tensors
    ]
    return results[0] if isinstance(out, Tensor) else results


@rule("pixel_shuffle")
def pixel_shuffle(tracer: Tracer, func: Any, args: Sequence[Any], kwargs: Any, out: Any) -> Any:
    *batch, channels, _, _ = tracer.dims(args[0])
    kept, square = regroup([channels], (out.shape[-3], args[1] ** 2))
    pin(square, SPACE)
    return [*batch, kept, *(tracer.new(length, pinned=SPACE) for length in out.shape[-2:])]


@rule("pixel_unshuffle")
def pixel_unshuffle(tracer: Tracer, func: Any, args: Sequence[Any], kwargs: Any, out: Any) -> Any:
    *batch, channels, _, _ = tracer.dims(args[0])
    square = tracer.new(args[1] ** 2, pinned=SPACE)
    space = [tracer.new(length, pinned=SPACE) for length in out.shape[-2:]]
    return [*batch, [*channels, *square], *space]


@rule("im2col")
def im2col(tracer: Tracer, func: Any, args: Sequence[Any], kwargs: Any, out: Tensor) -> Any:
    *batch, channels, _, _ = tracer.dims(args[0])
    kernel = tracer.new(args[1][0] * args[1][1], pinned=SPACE)
    return [*batch, [*channels, *kernel], tracer.new(out.shape[-1], pinned=SPACE)]


@rule("col2im")
def col2im(tracer: Tracer, func: Any, args: Sequence[Any], kwargs: Any, out: Tensor) -> Any:
    *batch, columns, _ = tracer.dims(args[0])
    channels, kernel = regroup([columns], (out.shape[-3], args[2][0] * args[2][1]))
    pin(kernel, SPACE)
    return [*batch, channels, *(tracer.new(length, pinned=SPACE) for length in out.shape[-2:])]


# Norms and reductions ---------------------------------------------------------------------------


@rule("native_layer_norm")
def layer_norm(tracer: Tracer, func: Any, args: Sequence[Any], kwargs: Any, out: Any) -> Any:
    dims, axes = list(tracer.dims(args[0])), range(-len(args[1]), 0)
    _norm(tracer, dims, axes, {"gain": args[2], "shift": args[3]}, "layer")
    return [dims, *map(tracer.unknown, out[1:])]


@rule("_fused_rms_norm", "rms_norm")
def rms_norm(tracer: Tracer, func: Any, args: Sequence[Any], kwargs: Any, out: Any) -> Any:
    dims, axes = list(tracer.dims(args[0])), range(-len(args[1]), 0)
    _norm(tracer, dims, axes, {"gain": args[2]}, "rms")
    return dims if isinstance(out, Tensor) else [dims, *map(tracer.unknown, out[1:])]


@rule("native_group_norm")
def group_norm(tracer: Tracer, func: Any, args: Sequence[Any], kwargs: Any, out: Any) -> Any:
    """The groups stay; what is in a group is normed like a layer."""
    dims, groups = list(tracer.dims(args[0])), args[6]
    group, rest = regroup([dims[1]], (groups, size(dims[1]) // groups))
    whole = [rest]
    _norm(tracer, whole, (0,), {}, "layer")
    dims[1] = [*group, *whole[0]]
    for parameter, role in ((args[1], "gain"), (args[2], "shift")):
        if parameter is not None:
            unite(dims[1], tracer.dims(parameter)[0])
            tracer.record(parameter, role, reads=next((i.flow for i in ends(rest)), None))
    return [dims, *map(tracer.unknown, out[1:])]


def _norm(
    tracer: Tracer,
    dims: list[Dim],
    axes: Sequence[int],
    parameters: dict[str, Tensor | None],
    kind: str,
) -> None:
    """A norm ends the flow that it reads and begins one that its gain and bias write."""
    written, read = Flow(), None
    for axis in axes:
        for end in ends(dims[axis]):
            end.factor.normed = kind
            if end.flow is not None:
                read = end.flow
                read.root().normed_into.append(written)
        dims[axis] = [Item(leaf.factor, written) for leaf in leaves(dims[axis])]
    for role, parameter in parameters.items():
        if parameter is not None:
            for mine, other in zip(
                [dims[axis] for axis in axes], tracer.dims(parameter), strict=True
            ):
                unite(mine, other)
            tracer.record(parameter, role, reads=read)


@rule("native_batch_norm", "_native_batch_norm_legit_no_training", "_native_batch_norm_legit",
      "_batch_norm_no_update", "cudnn_batch_norm", "miopen_batch_norm")  # fmt: skip
def batch_norm(tracer: Tracer, func: Any, args: Sequence[Any], kwargs: Any, out: Any) -> Any:
    """Each channel on its own: gain and bias, and the statistics, carry the channels' axis."""
    dims = tracer.dims(args[0])
    for number, parameter in enumerate(args[1:5]):
        if isinstance(parameter, Tensor):
            tracer.record(parameter, "produces" if number == 1 else "scales")
            unite(dims[1], tracer.dims(parameter)[0])
    return [dims, *map(tracer.unknown, out[1:])]


@rule("mean", "sum", "amax", "amin", "any", "all", "logsumexp", "argmax", "argmin", "max", "min",
      "var", "std", "var_mean", "linalg_vector_norm", "norm", "prod")  # fmt: skip
def reduction(tracer: Tracer, func: Any, args: Sequence[Any], kwargs: Any, out: Any) -> Any:
    """The dimensions that are reduced go; what was averaged no longer has its own length."""
    dims = list(tracer.dims(args[0]))
    name = func._schema.name.removeprefix("aten::")
    over = kwargs.get("dim", args[1] if len(args) > 1 else None)
    if name in ("linalg_vector_norm", "norm"):
        over = kwargs.get("dim", args[2] if len(args) > 2 else None)
    over = [over] if isinstance(over, int) and not isinstance(over, bool) else over
    gone = {_position(axis, len(dims)) for axis in over or range(len(dims))}
    for axis in gone:
        for end in ends(dims[axis]):
            end.factor.normed = end.factor.normed or ("mean" if name == "mean" else "sum")
    tensors = [out] if isinstance(out, Tensor) else list(out)
    kept = [
        [[] if axis in gone else dim for axis, dim in enumerate(dims)]
        if tensor.dim() == len(dims)
        else [dim for axis, dim in enumerate(dims) if axis not in gone]
        for tensor in tensors
    ]
    return kept[0] if isinstance(out, Tensor) else kept


@rule("nll_loss_forward", "nll_loss2d_forward")
def nll_loss(tracer: Tracer, func: Any, args: Sequence[Any], kwargs: Any, out: Any) -> Any:
    pin(tracer.dims(args[0])[1], "it is the classes that labels name")
    hint(tracer.dims(args[0])[1], "classes")
    return [tracer.unknown(loss) for loss in out]


# Everything else --------------------------------------------------------------------------------


def untouched(tracer: Tracer, func: Any, args: Sequence[Any], kwargs: Any, out: Any) -> Any:
    """An operation without a rule is harmless only where no parameter's axis goes in."""
    tensors = [leaf for leaf in torch.utils._pytree.tree_leaves((args, kwargs))
               if isinstance(leaf, Tensor)]  # fmt: skip
    touched = [tensor for tensor in tensors if any(owned(dim) for dim in tracer.dims(tensor))]
    if touched:
        names = tracer.parameters_of(touched)
        raise ValueError(
            f"tracing met the operation {func} on shapes {[tuple(t.shape) for t in tensors]}, for "
            f"which there is no rule; it touches the axes of {', '.join(names)}. Leave those "
            "parameters out of the network that grows, or write the operation with others."
        )
    if isinstance(out, Tensor):
        return tracer.unknown(out)
    return [tracer.unknown(part) for part in out if isinstance(part, Tensor)]
