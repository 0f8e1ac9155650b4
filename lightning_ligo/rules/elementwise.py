"""Rules of operations that act entry by entry."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from lightning_ligo.factors import broadcast, ends
from lightning_ligo.ledger import Ledger
from lightning_ligo.rules.table import rule

LINEAR = {"add", "sub", "rsub", "mul", "div", "neg", "copy", "_to_copy", "where", "masked_fill"}


def pointwise(ledger: Ledger, func: Any, args: Sequence[Any], kwargs: Any, out: Tensor) -> Any:
    """Broadcast, unite position by position; adding writes a flow, multiplying scales it."""
    tensors = [arg for arg in [*args, *kwargs.values()] if isinstance(arg, Tensor)]
    name = func._schema.name.removeprefix("aten::").rstrip("_")
    if name not in LINEAR:
        for dim in ledger.dims(tensors[0]):
            for item in ends(dim):
                if item.flow is not None:
                    item.flow.root().bent = True
    moving = [tensor for tensor in tensors if not ledger.static(tensor)]
    numbers = [arg for arg in args[:2] if isinstance(arg, (int, float)) and arg]
    if name in ("mul", "div") and len(moving) == len(numbers) == 1:
        ledger.multiply(moving[0], numbers[0] if name == "mul" else 1 / numbers[0])
    if not all(ledger.static(tensor) for tensor in tensors):
        scaling = name in ("mul", "div")
        for tensor in tensors:
            ledger.record(tensor, "scales" if scaling else "produces")
    return broadcast([ledger.dims(tensor) for tensor in tensors])


@rule("_to_copy", "clone", "alias", "detach", "lift_fresh", "hardswish", "cumsum", "_softmax",
      "_log_softmax", "_safe_softmax", "native_dropout", "bernoulli")  # fmt: skip
def same(ledger: Ledger, func: Any, args: Sequence[Any], kwargs: Any, out: Any) -> Any:
    return ledger.dims(args[0])


@rule("copy_")
def copy_(ledger: Ledger, func: Any, args: Sequence[Any], kwargs: Any, out: Tensor) -> Any:
    return pointwise(ledger, func, args[:2], {}, out)
