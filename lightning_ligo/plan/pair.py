"""Pair a small with a large network."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn
from torch.nn.parameter import is_lazy

from lightning_ligo.axes.calls import Call, materialize
from lightning_ligo.axes.naming import name_axes
from lightning_ligo.axes.override import Override, check
from lightning_ligo.axes.proof import prove_axes
from lightning_ligo.axes.stacks import pattern_of
from lightning_ligo.axes.trace import watch
from lightning_ligo.plan.correspondence import Correspondence, Side, correspond
from lightning_ligo.plan.plan import Plan
from lightning_ligo.plan.refusals import notes, refusals, unproved

SHOWN = 12  # reasons in one error
_MADE_OUTSIDE = (
    "; a tensor that the step makes itself, between its calls of the network's parts, may have a "
    "length of the small network: make it like another one, as with torch.randn_like(features), or "
    "inside of the network"
)


class CallFailed(ValueError):
    """A large network fails when it is called; on the meta device, for which it may need values."""


def pair(
    small: nn.Module,
    large: nn.Module,
    *args: Any,
    large_inputs: Mapping[str, Any] | None = None,
    override: Override | None = None,
    scalars_read: Sequence[Any] = (),
    **kwargs: Any,
) -> Plan:
    """Plan how ``large`` grows from ``small``, by tracing ``network(*args, **kwargs)`` of both.

    The networks may be on different devices; a large one on the meta device costs no memory. The
    plan lets axes grow whose entries are exchangeable, which `prove` shows on a copy of the small
    network, unless that is on the meta device. Tables and outputs can also get more entries
    (vocabulary, classes), each the mean of the old ones, and added positions are interpolated.

    Args:
        large_inputs: the inputs of the large network by the names of its forward's arguments, if
            it needs others, such as larger images.
        override: names axes of both networks, see `trace`. An axis named by a word may grow
            whatever the trace and the proof say, and the plan warns; one given as a number stays.
        scalars_read: the values that a network of this architecture read from its tensors (see
            `Plan.scalars_read`), for a pair on the meta device.

    Raises:
        ValueError: if the large network cannot be grown from the small one. All reasons are listed
            at once.

    Example:
        >>> import torch
        >>> small = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> large = nn.Sequential(nn.Linear(4, 20), nn.ReLU(), nn.Linear(20, 2))
        >>> pair(small, large, torch.randn(3, 4)).axes
        {'hidden': (8, 20)}
    """
    calls = [Call(args, kwargs)]
    large_calls = None if large_inputs is None else [Call((), dict(large_inputs))]
    return pair_calls(small, large, calls, large_calls, override, scalars_read)


def pair_calls(
    small: nn.Module,
    large: nn.Module,
    calls: Sequence[Call],
    large_calls: Sequence[Call] | None = None,
    override: Override | None = None,
    scalars_read: Sequence[Any] = (),
) -> Plan:
    """Plan how ``large`` grows from ``small``, by tracing all of these calls, see `pair`.

    ``large_calls`` are those of the large network, if it is called otherwise. Lazy modules get
    their shapes from the calls.
    """
    others = calls if large_calls is None else large_calls
    lazy = any(map(is_lazy, large.parameters()))
    materialize(small, calls), materialize(large, others)
    check(override, small, large)
    both = _traced(small, large, calls, large_calls, override, scalars_read)
    proofs = _checked(both, calls)
    return Plan(
        both.lengths, both.stacks, both.rows, both.buffers, both.large.axes.axes,
        layers=both.large.axes.stacks, notes=tuple(notes(both, proofs)), proofs=proofs,
        scales=both.scales, shared=both.shared, tried=both.large.axes.tried,
        scalars_read=tuple(both.large.tracer.scalars_read), outputs=both.large.axes.outputs,
        lazy=tuple(others) if lazy else (),
    )  # fmt: skip


def _traced(
    small: nn.Module,
    large: nn.Module,
    calls: Sequence[Call],
    large_calls: Sequence[Call] | None,
    override: Override | None,
    scalars_read: Sequence[Any],
) -> Correspondence:
    """Trace both networks and find what corresponds."""
    others = calls if large_calls is None else large_calls
    if _is_meta(small) and not _is_meta(large):
        scalars_read = watch(large, others, override=override).scalars_read
    first = watch(small, calls, scalars_read, override)
    try:
        second = watch(large, others, first.scalars_read, override)
    except (RuntimeError, TypeError, ValueError, AssertionError, IndexError) as error:
        raise CallFailed(
            f"{type(large).__name__} cannot be grown from {type(small).__name__}: called with "
            f"{'the same inputs' if large_calls is None else 'large_inputs'} it fails with "
            f"{type(error).__name__}: {error}"
            f"{_MADE_OUTSIDE if any(call.path for call in calls) and large_calls is None else ''}"
        ) from error
    sides = [
        Side(network, tracer, axes, {
            pattern_of(name, axes.stacks)[0]: shape for name, shape in tracer.graph.shapes.items()
        })
        for network, tracer, axes in zip(
            (small, large), (first, second), name_axes(first.graph, second.graph), strict=True
        )
    ]  # fmt: skip
    return correspond(*sides)


def _checked(both: Correspondence, calls: Sequence[Call]) -> dict[str, float]:
    """Refuse a pair that cannot grow, and prove the axes that do."""
    proofs: dict[str, float] = {}
    found = refusals(both)
    if not found and not _is_meta(both.small.network):
        proofs = _proved(both, calls)
        found = unproved(both, proofs)
    if found:
        more = [f"and {len(found) - SHOWN} more problems"] if len(found) > SHOWN else []
        small, large = (type(side.network).__name__ for side in (both.small, both.large))
        listed = "\n  ".join([*found[:SHOWN], *more])
        raise ValueError(f"{large} cannot be grown from {small}:\n  {listed}")
    return proofs


def _proved(both: Correspondence, calls: Sequence[Call]) -> dict[str, float]:
    """The change of the small network's output when an axis that grows is permuted."""
    grown = {
        name: both.counterparts.get(name, ())
        for name in both.grown
        if not both.large.axes.axes[name].resize
    }
    axes = sorted({axis for found in grown.values() for axis in found})
    changed = prove_axes(both.small.network, calls, both.small.axes, axes, quick=True)
    return {
        name: max(proved)
        for name, found in grown.items()
        if (proved := [changed[axis] for axis in found if axis in changed])
    }


def _is_meta(network: nn.Module) -> bool:
    return any(parameter.is_meta for parameter in network.parameters())
