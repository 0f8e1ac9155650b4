"""What a reader should know of a pair of networks whose function is found to be changed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from lightning_ligo.axes.axes import Axis
from lightning_ligo.axes.factors import CONSTANT
from lightning_ligo.axes.proof import TOLERANCE
from lightning_ligo.plan.correspondence import Correspondence


def notes(both: Correspondence, proofs: Mapping[str, float]) -> Iterator[str]:
    """Yield the notes on a pair; ``proofs`` are the changes when an axis is permuted."""
    for start, (before, after) in both.replaced.items():
        yield (
            f"{start.removesuffix('.')} is a {before} in the small network and a {after} in the "
            "large one, with other axes: it starts as it was built, and what it writes is zero"
        )
    axes = both.large.axes
    for name, (small, large) in both.grown.items():
        axis = axes.axes[name]
        if axis.named and (against := _against(axis, proofs.get(name))):
            yield f"{name} grows as you named it, against this: {against}"
        if axis.pinned == CONSTANT and not axis.named:
            yield f"{name} grows although {CONSTANT}: the large network has its own"
        if large % small and axis.normed and not axis.resize:
            yield f"{name} grows from {small} to {large}, no multiple, under a norm"


def _against(axis: Axis, change: float | None) -> str | None:
    """The reason of the proof, or of tracing without one, against growing an axis by a map."""
    if axis.resize or (change is not None and change <= TOLERANCE):
        return None
    if change is None:
        return axis.pinned
    permuted = f"permuting its entries changes the output by {change:.1g} of itself"
    return f"{axis.pinned}, and {permuted}" if axis.pinned else permuted
