"""Rules of operations that act entry by entry."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from lightning_ligo.factors import Dim, broadcast, take
from lightning_ligo.ledger import Ledger, bend, reduced
from lightning_ligo.rules.norms import norm
from lightning_ligo.rules.table import position, rule
from lightning_ligo.rules.writers import values

LINEAR = {"add", "sub", "rsub", "mul", "div", "neg", "copy", "_to_copy", "where", "masked_fill"}
IDEMPOTENT = {"relu", "clamp", "clamp_min", "clamp_max", "hardtanh", "abs"}  # twice is once


@rule("masked_fill_", "hardswish",  # and what older versions of torch do not call pointwise
      "celu", "elu", "hardsigmoid", "hardtanh", "leaky_relu", "selu")  # fmt: skip
def pointwise(ledger: Ledger, func: Any, args: Sequence[Any], kwargs: Any, out: Tensor) -> Any:
    """Broadcast, unite position by position; adding writes a flow, multiplying scales it.

    What multiplies a single entry, as frequencies do a time, writes as well.
    """
    tensors = [arg for arg in [*args, *kwargs.values()] if isinstance(arg, Tensor)]
    name = func._schema.name.removeprefix("aten::").rstrip("_")
    if (normed := _rms_norm(ledger, name, args, out)) is not None:
        return normed
    if name not in LINEAR and not ledger.marked(out, "square"):
        bend(ledger.dims(tensors[0]))
    moving = [tensor for tensor in tensors if not ledger.static(tensor)]
    bends = name not in LINEAR and len(moving) == 1 and values(moving) == moving
    gates = name in ("mul", "div") and len(moving) > 1
    curves = bends and name not in IDEMPOTENT
    ledger.curve(out, "a product of activations" if gates else name if curves else None)
    if bends:
        ledger.compute((), [name])
    if gates:
        for first, second in zip(*(ledger.dims(tensor)[::-1] for tensor in moving), strict=False):
            bend([first if any(item.flow for item in second) else []])
    numbers = [number for arg in args[:2] if (number := _number(ledger, arg))]
    if name in ("mul", "div") and len(moving) == len(numbers) == 1:
        ledger.multiply(moving[0], numbers[0] if name == "mul" else 1 / numbers[0])
    flowing = [ledger.dims(tensor)[::-1] for tensor in moving]
    for tensor in filter(ledger.static, tensors) if moving else ():
        for number, items in enumerate(ledger.dims(tensor)[::-1]):
            along = any(number < len(dims) and dims[number] for dims in flowing)
            divides = name == "div" and tensor is tensors[-1]
            scales = name in ("mul", "div") and (along or divides)
            ledger.record(tensor, "scales" if scales else "produces", items)
    return broadcast([ledger.dims(tensor) for tensor in tensors])


def _number(ledger: Ledger, x: Any) -> float | None:
    """A number, or a constant tensor that holds a single one."""
    if isinstance(x, Tensor):
        known = ledger.static(x) and not ledger.writers(x) and x.numel() == 1 and not x.is_meta
        return float(x) if known and x.is_floating_point() else None
    return x if isinstance(x, (int, float)) else None


def _rms_norm(ledger: Ledger, name: str, args: Sequence[Any], out: Tensor) -> list[Dim] | None:
    """``x * rsqrt(mean(x²) + eps) * gain``, step by step; None but for the last two products."""
    first, second = (*args, None)[:2]
    if (name == "pow" and isinstance(second, (int, float)) and second == 2) or (
        name == "mul" and first is second
    ):
        ledger.mark(out, "square", first)
    elif mark := ledger.marked(first, "mean square"):
        step = {"rsqrt": "inverse", "sqrt": "root", "add": "mean square"}.get(name)
        if step:
            ledger.mark(out, step, mark.of)
        else:
            reduced([item for dim in ledger.dims(mark.of) for item in dim])
    for x, other in ((first, second), (second, first)):
        root = ledger.marked(other, "inverse" if name == "mul" else "root")
        if name in ("mul", "div") and root and ledger.values(root.of) == ledger.values(x):
            dims = list(ledger.dims(x))
            read = norm(ledger, dims, (-1,), {}, "rms")
            ledger.mark(out, "normed", x, read)
            return dims
        normed = ledger.marked(other, "normed")
        if name == "mul" and normed and isinstance(x, Tensor) and ledger.static(x):
            dims = broadcast([ledger.dims(other), ledger.dims(x)])
            ledger.record(x, "gain", reads=normed.reads)
            return dims
    return None


@rule("_to_copy")
def cast(ledger: Ledger, func: Any, args: Sequence[Any], kwargs: Any, out: Tensor) -> Any:
    ledger.cast(out, args[0])
    return ledger.dims(args[0])


@rule("clone", "alias", "detach", "lift_fresh", "native_dropout", "bernoulli")
def same(ledger: Ledger, func: Any, args: Sequence[Any], kwargs: Any, out: Any) -> Any:
    return ledger.dims(args[0])


@rule("_prelu_kernel")
def prelu(ledger: Ledger, func: Any, args: Sequence[Any], kwargs: Any, out: Tensor) -> Any:
    dims = list(map(ledger.dims, args))
    bend(dims[0])
    ledger.curve(out, "prelu")
    ledger.record(args[1], "scales")
    return broadcast(dims)


@rule("glu")
def glu(ledger: Ledger, func: Any, args: Sequence[Any], kwargs: Any, out: Tensor) -> Any:
    """``a * sigmoid(b)`` of the two halves of a dimension."""
    axis = position(args[1] if len(args) > 1 else -1, out.dim())
    half = out.shape[axis]
    halves = [list(ledger.dims(args[0])) for _ in range(2)]
    for number, dims in enumerate(halves):
        dims[axis] = take(dims[axis], number * half, half)
    bend(halves[1])
    return broadcast(halves)


@rule("copy_")
def copy_(ledger: Ledger, func: Any, args: Sequence[Any], kwargs: Any, out: Tensor) -> Any:
    return pointwise(ledger, func, args[:2], {}, out)
