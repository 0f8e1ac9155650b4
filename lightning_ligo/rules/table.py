"""The table of rules, by the name of the operation, and what stands in it for all others.

A rule is called as ``rule(ledger, func, args, kwargs, out)`` after the operation has run. It unites
the factors that the operation forces together, records which parameters are read or written, and
returns the dimensions of the output (or of each output).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor
from torch.utils._pytree import tree_leaves

from lightning_ligo.factors import owned
from lightning_ligo.ledger import Ledger

Rule = Callable[[Ledger, Any, Sequence[Any], dict[str, Any], Any], Any]
RULES: dict[str, Rule] = {}
SPACE = "it is a position in space"


def rule(*names: str) -> Callable[[Rule], Rule]:
    """Make a function the rule of these operations, named as in ``torch.ops.aten``."""

    def register(function: Rule) -> Rule:
        RULES.update(dict.fromkeys(names, function))
        return function

    return register


def position(dim: int, rank: int) -> int:
    """A dimension counted from the front."""
    return dim % rank if rank else 0


def untouched(ledger: Ledger, func: Any, args: Sequence[Any], kwargs: Any, out: Any) -> Any:
    """An operation without a rule is harmless only where no parameter's axis goes in."""
    tensors = [leaf for leaf in tree_leaves((args, kwargs))
               if isinstance(leaf, Tensor)]  # fmt: skip
    touched = [tensor for tensor in tensors if any(owned(dim) for dim in ledger.dims(tensor))]
    if touched:
        names = ledger.parameters_of(touched)
        raise ValueError(
            f"tracing met the operation {func} on shapes {[tuple(t.shape) for t in tensors]}, for "
            f"which there is no rule; it touches the axes of {', '.join(names)}. Leave those "
            "parameters out of the network that grows, or write the operation with others."
        )
    if isinstance(out, Tensor):
        return ledger.unknown(out)
    return [ledger.unknown(part) for part in out if isinstance(part, Tensor)]
