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

from lightning_ligo.factors import Dim, Flow, Item, hint, leaves, owned, pin, regroup, unite

if TYPE_CHECKING:
    from lightning_ligo.trace import Tracer

Rule = Callable[["Tracer", Any, Sequence[Any], dict[str, Any], Any], Any]
RULES: dict[str, Rule] = {}


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
    dims: list[Dim] = [[] for _ in out.shape]
    for tensor in tensors:
        for position, dim in enumerate(tracer.dims(tensor), start=out.dim() - tensor.dim()):
            if not dim:
                continue
            if dims[position]:
                unite(dims[position], dim)
            dims[position] = _with_flow(dims[position], dim)
    return dims


def _with_flow(first: Dim, second: Dim) -> Dim:
    """The same factors, with the flow of whichever side has one."""
    if not first:
        return second
    return [
        Item(left.factor, left.flow or right.flow)
        for left, right in zip(leaves(first), leaves(second), strict=True)
    ]


@rule("_to_copy", "clone", "alias", "detach", "detach_", "lift_fresh", "contiguous", "cumsum",
      "_softmax", "_log_softmax", "_safe_softmax", "native_dropout", "bernoulli")  # fmt: skip
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


@rule("split", "chunk", "split_with_sizes")
def split(tracer: Tracer, func: Any, args: Sequence[Any], kwargs: Any, out: Any) -> Any:
    """Equal pieces are a factor (piece, rest); unequal pieces are told apart by position."""
    dims = list(tracer.dims(args[0]))
    axis = _position(args[2] if len(args) > 2 else kwargs.get("dim", 0), len(dims))
    lengths = [piece.shape[axis] for piece in out]
    if len(set(lengths)) == 1 and len(lengths) > 1:
        piece, rest = regroup([dims[axis]], (len(lengths), lengths[0]))
        pin(piece, "its entries are taken apart by position")
        return [[*dims[:axis], rest, *dims[axis + 1 :]] for _ in out]
    if len(lengths) == 1:
        return [dims]
    return [_cut(tracer, dims, axis, piece.shape[axis]) for piece in out]


@rule("slice")
def slice_(tracer: Tracer, func: Any, args: Sequence[Any], kwargs: Any, out: Tensor) -> Any:
    dims = list(tracer.dims(args[0]))
    axis = _position(args[1] if len(args) > 1 else kwargs.get("dim", 0), len(dims))
    if out.shape[axis] == args[0].shape[axis]:
        return dims
    return _cut(tracer, dims, axis, out.shape[axis])


def _cut(tracer: Tracer, dims: list[Dim], axis: int, length: int) -> list[Dim]:
    """Part of a dimension: its entries are told apart, so both the whole and the part are fixed."""
    pin(dims[axis], "it is cut by position")
    return [*dims[:axis], tracer.new(length, pinned="it is cut by position"), *dims[axis + 1 :]]


@rule("constant_pad_nd")
def pad(tracer: Tracer, func: Any, args: Sequence[Any], kwargs: Any, out: Tensor) -> Any:
    dims = list(tracer.dims(args[0]))
    for axis, length in enumerate(out.shape):
        if length != args[0].shape[axis] or args[1][2 * (out.dim() - axis) - 2 :][:1] not in (
            [],
            [0],
        ):
            dims = _cut(tracer, dims, axis, length)
    return dims


@rule("cat", "stack")
def cat(tracer: Tracer, func: Any, args: Sequence[Any], kwargs: Any, out: Tensor) -> Any:
    axis = _position(args[1] if len(args) > 1 else kwargs.get("dim", 0), out.dim())
    parts = [part for part in args[0] if part.numel()]
    stacked = func._schema.name == "aten::stack"
    if not all(tracer.static(part) for part in parts):
        for part in parts:
            tracer.record(part, "produces")
    if len(parts) == 1 and not stacked:
        return tracer.dims(parts[0])
    dims: list[Dim] = []
    for part in parts:
        theirs = list(tracer.dims(part))
        if not stacked:
            pin(theirs[axis], "it is concatenated")
            theirs[axis] = []
        else:
            theirs.insert(axis, [])
        for mine, other in zip(dims, theirs, strict=False):
            if mine and other:
                unite(mine, other)
        dims = dims or theirs
    dims[axis] = tracer.new(out.shape[axis], pinned="it is concatenated")
    return dims


# Products ---------------------------------------------------------------------------------------


def contract(tracer: Tracer, left: Tensor, lefts: Dim, right: Tensor, rights: Dim) -> None:
    """A sum of products over one dimension: the parameter's side consumes what flows in."""
    unite(lefts, rights, flow=False)
    if tracer.static(right):
        tracer.consume(rights, lefts)
    elif tracer.static(left):
        tracer.consume(lefts, rights)
    else:
        for item in leaves(lefts):
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
    over_positions = all(item.factor.pinned for item in leaves(contracted))
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
    for item in leaves(query[3]):
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
        group, rest = regroup([grouped], (groups, tracer.length(grouped) // groups))
        x_group, channels = regroup([channels], (groups, tracer.length(channels) // groups))
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
    space = [tracer.new(length, pinned="it is a position in space") for length in out.shape[2:]]
    for items in dims[2:]:
        pin(items, "it is a position in space")
    return [dims[0], outputs, *space]


@rule("embedding")
def embedding(tracer: Tracer, func: Any, args: Sequence[Any], kwargs: Any, out: Tensor) -> Any:
    rows, columns = tracer.dims(args[0])
    pin(rows, "it is the rows of a table that indices look up")
    hint(rows, "entries")
    tracer.record(args[0], "produces", columns)
    return [*tracer.dims(args[1]), columns]


# Norms and reductions ---------------------------------------------------------------------------


@rule("native_layer_norm")
def layer_norm(tracer: Tracer, func: Any, args: Sequence[Any], kwargs: Any, out: Any) -> Any:
    """A norm ends the flow that it reads and begins one that its gain and bias write."""
    x, shape, gain, bias = args[:4]
    dims = list(tracer.dims(x))
    written, read = Flow(), None
    for axis in range(-len(shape), 0):
        for item in leaves(dims[axis]):
            item.factor.normed = "layer"
            if item.flow is not None:
                read = item.flow
                read.root().normed_into.append(written)
        dims[axis] = [Item(item.factor, written) for item in leaves(dims[axis])]
    for parameter, role in ((gain, "gain"), (bias, "shift")):
        if parameter is None:
            continue
        for mine, other in zip(dims[-len(shape) :], tracer.dims(parameter), strict=True):
            unite(mine, other)
        tracer.record(parameter, role, reads=read)
    return [dims, tracer.unknown(out[1]), tracer.unknown(out[2])]


@rule("mean", "sum", "amax", "amin", "any", "all", "logsumexp", "argmax", "argmin")
def reduction(tracer: Tracer, func: Any, args: Sequence[Any], kwargs: Any, out: Tensor) -> Any:
    dims = list(tracer.dims(args[0]))
    over = args[1] if len(args) > 1 else kwargs.get("dim")
    over = [over] if isinstance(over, int) else over or range(len(dims))
    gone = {_position(axis, len(dims)) for axis in over}
    if out.dim() == len(dims):
        return [[] if axis in gone else dim for axis, dim in enumerate(dims)]
    return [dim for axis, dim in enumerate(dims) if axis not in gone]


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
