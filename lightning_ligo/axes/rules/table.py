"""The table of rules by the name of the operation, and the rule for all others.

A rule is called as ``rule(graph, func, args, kwargs, out)`` after the operation has run. It unites
the factors that the operation forces together, records which parameters are read or written, and
returns the dimensions of the output (or of each output).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor
from torch.utils._pytree import tree_leaves

from lightning_ligo.axes.factors import CONSTANT, Dim, Item, end_factors, ends, size
from lightning_ligo.axes.flow import Flow
from lightning_ligo.axes.graph import Graph, Unread

Rule = Callable[[Graph, Any, Sequence[Any], dict[str, Any], Any], Any]
RULES: dict[str, Rule] = {}
SPACE = "it is a position in space"


def rule(*names: str) -> Callable[[Rule], Rule]:
    """Make a function the rule of these operations, named as in ``torch.ops.aten``."""

    def register(function: Rule) -> Rule:
        RULES.update(dict.fromkeys(names, function))
        return function

    return register


def position(dim: int, rank: int) -> int:
    """Count a dimension from the front."""
    return dim % rank if rank else 0


def unread(
    graph: Graph, func: Any, args: Sequence[Any], kwargs: Any, out: Any, problem: str
) -> Any:
    """Give the output of an operation that cannot be followed dimensions of its own.

    This is enough if the user has named the axes of its inputs, and of the readers of its output.
    Its weights are then taken to produce their first dimension and to consume the others. If names
    are missing, the forward continues as if every dimension kept its place, to find which names to
    ask for.
    """
    tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
    outputs = [leaf for leaf in tree_leaves(out) if isinstance(leaf, Tensor)]
    touched = [
        tensor
        for tensor in tensors
        if any(f.facts.owned or f.facts.named is not None for f in end_factors(*graph.dims(tensor)))
    ]
    fixed = CONSTANT if all(map(graph.static, tensors)) else f"it comes out of {func}, {problem}"
    results = [graph.unknown(out, pinned=None if touched else fixed) for out in outputs]
    if touched:
        results = [[[i._replace(flow=Flow()) for i in items] for items in dims] for dims in results]
        inputs = [items for tensor in touched for items in graph.dims(tensor)]
        known = graph.named_factors()
        named = all(
            factor in known if factor.facts.owned else factor.facts.named is not False
            for factor in end_factors(*inputs)
        )
        owned = any(factor.facts.owned for factor in end_factors(*inputs))
        for factor in end_factors(*(items for dims in results for items in dims)):
            factor.facts.named = named
            factor.facts.pinned = fixed if named and not owned else None
        weights = _weights(graph, touched)
        if not named:
            results = [
                _unmoved(graph, touched, tensor, dims)
                for tensor, dims in zip(outputs, results, strict=True)
            ]
        shapes = [tuple(tensor.shape) for tensor in tensors]
        problem = f"the operation {func} on shapes {shapes}, {problem}"
        made = [items for dims in results for items in dims]
        graph.unread.append(Unread(problem, inputs, weights, made, named))
    return results[0] if isinstance(out, Tensor) else results


def _weights(graph: Graph, tensors: Sequence[Tensor]) -> list[Dim]:
    """Note the roles of an unknown operation's parameters; return the dimensions they produce."""
    fixed = [dim for tensor in tensors if graph.static(tensor) for dim in graph.dims(tensor)]
    moving = [dim for tensor in tensors if not graph.static(tensor) for dim in graph.dims(tensor)]
    flows = {end.factor: end.flow for items in moving for end in ends(items)}
    produced: list[Item] = []
    for end in [end for items in fixed for end in ends(items)]:
        for owner in end.owners:
            item = end._replace(owners=(owner,))
            if owner.dim > 0:
                graph.observe(item, "consumes", flows.get(end.factor))
            else:
                graph.observe(item, "produces")
                produced.append(end)
    owners = [owner for end in produced for owner in end.owners]
    matrices = any(len(graph.parameters[owner.name]) > 1 for owner in owners)
    return [produced] if matrices else []


def _unmoved(graph: Graph, tensors: Sequence[Tensor], out: Tensor, dims: list[Dim]) -> list[Dim]:
    """Take the dimensions of an input where they are as long as those of the output."""
    like = next((tensor for tensor in tensors if tensor.dim() == out.dim()), None)
    if like is None:
        return dims
    return [
        into if size(into) == size(own) else own
        for own, into in zip(dims, graph.dims(like), strict=True)
    ]
