"""The rule that a trial has found of an operation that has none."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from torch import Tensor
from torch.utils._pytree import tree_leaves

from lightning_ligo.axes.factors import Dim, Item, joined, owned, pin, unite
from lightning_ligo.axes.graph import Graph, mark_nonlinear
from lightning_ligo.axes.rules.table import unread
from lightning_ligo.axes.trial import Found, Place, Together, Trial, Untried

APART = "tells its entries apart"


def tried(graph: Graph, func: Any, args: Sequence[Any], kwargs: Any, out: Any) -> Any:
    """Follow an operation by what it does with permuted inputs, see `trial.py`."""
    tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
    static = [graph.static(tensor) for tensor in tensors]
    trial = Trial(func, args, kwargs, [graph.dims(tensor) for tensor in tensors], static)
    try:
        found = graph.trials.get(trial.key) or trial.ask()
    except Untried as why:
        problem = f"for which there is no rule, and which cannot be tried ({why})"
        return unread(graph, func, args, kwargs, out, problem)
    graph.trials[trial.key] = found
    places = list(trial.places.values())
    if any(owned([place.item]) for each in places for place in each):
        graph.tried[str(func)] = None
    for number in found.apart:
        pin([place.item for place in places[number]], f"{func} {APART}")
    for number, tensor in enumerate(tree_leaves(out)):
        unlike = [each for each in found.together if number in each.unlike]
        items = [places[factor][0].item for each in unlike for factor in each.factors]
        if items:
            graph.tell_apart(tensor, items, f"{func} {APART}")
    along = [
        _united(graph, each, [p for n in each.factors for p in places[n]], static)
        for each in found.together
    ]
    results = _outputs(graph, func, found, along, out)
    return results[0] if isinstance(out, Tensor) else results


def _united(
    graph: Graph, together: Together, places: Sequence[Place], static: Sequence[bool]
) -> Item:
    """Unite factors that are permuted together, note their roles, and return one for all."""
    items = [place.item for place in places]
    moving = [place.item for place in places if not static[place.tensor]]
    fixed = [place.item for place in places if static[place.tensor]]
    if together.along:
        for item in items[1:]:
            unite([items[0]], [item])
        mark_nonlinear([moving])
        if not all(static):
            for item in fixed:
                graph.observe(item, "scales" if moving else "produces")
        shared = [*moving, *fixed][:1]
        for item in items:
            shared = joined(shared, [item])
        return shared[0]
    for item in items[1:]:
        unite([items[0]], [item], flow=False)
    if together.consumed:
        for item in fixed:
            graph.consume([item], moving)
        return items[0]
    for item in fixed:
        graph.observe(item, "produces")
    if not moving and together.contracted:
        graph.opposed.append((fixed[:1], fixed[1:]))
    if not together.contracted:
        graph.reduce("sum", [items[:1]])
    return items[0]


def _outputs(
    graph: Graph, func: Any, found: Found, along: Sequence[Item], out: Any
) -> list[list[Dim]]:
    """The dimensions of the outputs, of the factors that were found in them."""
    tensors = [leaf for leaf in tree_leaves(out) if isinstance(leaf, Tensor)]
    summed = [
        along[n] for n, each in enumerate(found.together) if each.contracted and not each.consumed
    ]
    results = []
    for tensor, layout in zip(tensors, found.layout, strict=True):
        results.append([
            _dimension(graph, length, inside, along, f"it comes out of {func}")
            for length, inside in zip(tensor.shape, layout, strict=True)
        ])  # fmt: skip
        if summed:
            graph.contracted(tensor, summed)
    return results


def _dimension(
    graph: Graph, length: int, inside: Sequence[int | str], along: Sequence[Item], reason: str
) -> Dim:
    """The factors of one dimension; how long it is may depend on the values."""
    known = math.prod(along[n].factor.size for n in inside if isinstance(n, int))
    if length % known or (length != known and not any(isinstance(n, str) for n in inside)):
        return graph.new(length, pinned=reason)
    dims: list[Dim] = [
        [along[n]]
        if isinstance(n, int)
        else graph.new(length // known, pinned=reason if n == "own" else None)
        for n in inside
    ]
    return [item for dim in dims for item in dim]
