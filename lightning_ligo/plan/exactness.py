"""Why even a function-preserving growth of a pair of networks is only approximate."""

from __future__ import annotations

import itertools
import math
from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping
from fractions import Fraction
from typing import Any

from torch import Tensor

from lightning_ligo.axes.axes import UNUSED, Axes, Axis
from lightning_ligo.axes.dims import uses_of
from lightning_ligo.axes.proof import TOLERANCE
from lightning_ligo.axes.stacks import pattern_of
from lightning_ligo.axes.trace import Tracer
from lightning_ligo.plan.correspondence import Correspondence, Side
from lightning_ligo.plan.plan import Row
from lightning_ligo.plan.residual import passed
from lightning_ligo.plan.resize import grid

TAKEN = {
    "attention": "an attention",
    "extreme": "a maximum or minimum",
    "group": "a norm over positions",
    "layer": "a layer norm",
    "length": "the length of a vector",
    "mean": "a mean",
    "mean square": "a mean of squares",
    "rms": "an RMS norm",
    "softmax": "a softmax",
    "spread": "a variance",
    "sum": "a sum",
}
NORMED = {"group", "layer", "mean", "mean square", "rms", "spread"}  # averages over an axis


def inexactness(
    both: Correspondence,
    proofs: Mapping[str, float],
    errors: Mapping[str, float],
    same_inputs: bool,
) -> Iterator[str]:
    """Yield a line for everything that keeps the function from being exactly the same.

    Args:
        both: the pair.
        proofs: the change of the output when an axis that grows is permuted.
        errors: how far new layers of stacks are from the identity, see `identity_errors`.
        same_inputs: whether both networks were called with the same inputs.
    """
    for start, (before, after) in both.replaced.items():
        yield (
            f"{start.removesuffix('.')} is a {before} in the small network and a {after} in the "
            "large one, with other axes: it starts as it was built, and what it writes is zero"
        )
    yield from _of_axes(both, proofs)
    yield from _of_reductions(both)
    for row in both.rows:
        pinned = {both.large.axes.axes[use.axis].pinned for dim in row.dims for use in uses_of(dim)}
        if not row.small_names and pinned <= {UNUSED}:
            yield f"{row.pattern} is not used by the forward and stays as it was built"
    for stack, (small, large) in both.stacks.items():
        normed = any(row.stack == stack and row.norms_stream for row in both.rows)
        if normed and small < large and stack not in both.large.axes.heterogeneous:
            continue
        if small != large and (reason := _of_stack(stack, small, large, both.large, errors)):
            yield reason
    yield from _disordered(both)
    if same_inputs:
        yield from _of_constants(both)
    yield from _of_buffers(both)
    yield from _of_counterparts(both)


def _of_axes(both: Correspondence, proofs: Mapping[str, float]) -> Iterator[str]:
    axes = both.large.axes
    roles: defaultdict[str, set[str]] = defaultdict(set)
    for row in (*both.rows, *both.buffers):
        for use in itertools.chain.from_iterable(map(uses_of, row.dims)):
            roles[use.axis].add(use.role)
    for name, (small, large) in both.grown.items():
        axis = axes.axes[name]
        if axis.named and (against := _against(axis, proofs.get(name))):
            yield f"{name} grows as you named it, against this: {against}"
        if axis.unread:
            yield (
                f"{name} goes into {axis.unread}, which tracing cannot follow: copies that go in "
                "need not come out as copies"
            )
        if axis.unit:
            yield f"{name} is what a weight is normed over, and copies make it longer"
        yield from _of_products(axis, axes, roles[name], both.scales.get(name, 1.0))
        if axis.resize == "interpolate":
            how = "interpolated" if grid(small, large) else "the mean of all where they are new"
            yield f"{name} grows from {small} to {large} positions, which are {how}"
        if axis.resize == "copy":
            yield f"{name} grows from {small} to {large} by copies, which are ranked together"
        if name in axes.tied:
            yield f"{name} is written and read by one tied table without a norm between"
        if large % small and (norm := _uneven_norm(axis, axes, roles[name])):
            yield f"{name} grows from {small} to {large}, no multiple, under {norm}"


def _against(axis: Axis, change: float | None) -> str | None:
    """The reason of the proof, or of tracing without one, against growing an axis by a map."""
    if axis.resize or (change is not None and change <= TOLERANCE):
        return None
    if change is None:
        return axis.pinned
    permuted = f"permuting its entries changes the output by {change:.1g} of itself"
    return f"{axis.pinned}, and {permuted}" if axis.pinned else permuted


def _of_products(axis: Axis, axes: Axes, roles: set[str], scale: float) -> Iterator[str]:
    """Yield the functions over an axis that count every copy, or stand before a contraction."""
    if not axis.contracted:
        for kind in sorted(axis.over & {"length", "softmax", "sum"}):
            yield f"{axis.name} grows under {TAKEN[kind]}, which counts every copy"
        return
    rescaled = not math.isclose(scale, 1.0)
    taken = [TAKEN[kind] for kind in sorted(axis.over) if kind != "length" or rescaled]
    taken += ["a function that is not linear"] if axis.name in axes.nonlinear else []
    taken += ["a product with parameters"] if roles & {"gain", "scales"} else []
    if taken:
        yield (
            f"{axis.name} is what activations are contracted over, as queries with keys, and "
            f"{taken[0]} is applied to it"
        )


def _uneven_norm(axis: Axis, axes: Axes, roles: set[str]) -> str | None:
    """Name the norm that changes where an axis does not grow to a multiple."""
    uneven = {"group", "spread"} if "rms" in axis.over else {"group", "spread", "mean square"}
    if axis.over & uneven:
        return TAKEN[min(axis.over & uneven)]
    if len(axis.over & {"layer", "rms", "mean"}) > 1:
        return "norms of more than one kind"
    if not axis.normed:
        return None
    if "extreme" in axis.over:
        return "an extreme"
    if axis.name in axes.nonlinear or "attention" in axis.over:
        return "a norm of activations"
    return "norms in the stream" if "scales" in roles or axis.name in axes.post_norm else None


def _of_reductions(both: Correspondence) -> Iterator[str]:
    """Yield the norms over several axes that do not grow alike."""
    for kind, terms in sorted(both.large.axes.reductions):
        names = {name: both.grown.get(name, (1, 1)) for term in terms for name in term}
        rates = {math.prod(Fraction(names[n][1], names[n][0]) for n in term) for term in terms}
        joined = len(terms) > 1 and kind in ("layer", "rms")
        joined |= len(names) > 1 and kind == "layer"
        if len(rates) > 1 and kind in NORMED:
            yield f"{TAKEN[kind]} is taken over {', '.join(names)}, which grow unequally"
        elif joined and any(large % small for small, large in names.values()):
            yield f"{TAKEN[kind]} is taken over {', '.join(names)}, which grow by no multiples"


def _of_stack(
    stack: str, small: int, large: int, side: Side, errors: Mapping[str, float]
) -> str | None:
    """Say why a new layer of a stack changes the function, if it does."""
    if stack in side.axes.sequential:
        return f"{stack} grows from {small} to {large} layers: {side.axes.sequential[stack]}"
    if stack in side.axes.heterogeneous:
        return f"{stack} grows from {small} to {large} layers, which do not all compute the same"
    if small > large:
        return f"{stack} loses {small - large} of its {small} layers"
    if not passed(stack, side.axes, side.graph):
        return f"{stack} has norms in the stream itself: a new layer cannot pass it unchanged"
    for function, written in side.graph.nonlinear_terms:
        layers = {pattern_of(name, side.axes.stacks)[1:] for name in written}
        if len(layers) > 1 and any(place == stack for place, _ in layers):
            return f"{stack} has {function} in the stream itself: a new layer applies it once more"
    if stack in errors:
        return (
            f"a new layer of {stack} writes nothing, but changes the stream by {errors[stack]:.1g} "
            "of itself"
        )
    return None


def _disordered(both: Correspondence) -> Iterator[str]:
    """Yield the stacks that alternate in one list, and whose layers would change their order."""
    small, large = both.small.axes.stacks, both.large.axes.stacks
    lists: defaultdict[str, list[str]] = defaultdict(list)
    for name, (path, _) in large.items():
        lists[path].append(name)
    for path, names in lists.items():
        order = [
            (small[name].layers[source], large[name].layers[number])
            for name in names
            for source, number in _kept(*both.stacks[name])
        ]
        places = [place for _, place in sorted(order)]
        if places != sorted(places):
            yield (
                f"{' and '.join(names)} alternate in {path}, and do not grow alike: their layers "
                "come in another order"
            )


def _of_constants(both: Correspondence) -> Iterator[str]:
    """Yield the layers behind which the two networks compute with different constants."""
    small, large = both.small, both.large
    last = {pattern_of(name, small.axes.stacks)[1:]: name for name in small.graph.order}
    for row in both.rows:
        names = _differing(row, small.tracer, large.tracer, last.values())
        if names:
            before, after = _constants(small.tracer, names[0]), _constants(large.tracer, names[1])
            yield (
                f"behind {names[0]} the small network computes with {before}, behind {names[1]} "
                f"the large one with {after}"
            )


def _differing(
    row: Row, small: Tracer, large: Tracer, last: Collection[str]
) -> tuple[str, str] | None:
    """Find the first kept layer behind which the networks compute with different constants.

    ``last`` are the last parameters of all layers that something is computed with.
    """
    if not row.small_names:
        return None
    once = small.scalars_read != large.scalars_read  # then the data decides how often
    there = [_constants(large, name, once) for name in row.large_names]
    alike = all(numbers == there[0] for numbers in there[:-1])
    for source, number in _kept(len(row.small_names), len(there)):
        name, places = row.small_names[source], [number]
        if source + 1 == len(row.small_names) and name in last:
            places = [-1] if alike else [number, -1]  # the part behind all layers comes after it
        for place in places:
            if _constants(small, name, once) != there[place]:
                return name, row.large_names[place]
    return None


def _kept(small: int, large: int) -> Iterator[tuple[int, int]]:
    """Yield the layers of a small stack and their places in the large one, new ones behind each."""
    sources = [number * small // large for number in range(large)]
    for number, source in enumerate(sources):
        if number == 0 or source != sources[number - 1]:
            yield source, number


def _constants(tracer: Tracer, name: str, once: bool = False) -> list[Any]:
    """The constants in the computation behind a parameter, each of them ``once`` if asked."""
    numbers = tracer.graph.numbers(name)
    if once:
        numbers = [number for place, number in enumerate(numbers) if number not in numbers[:place]]
    return numbers


def _of_buffers(both: Correspondence) -> Iterator[str]:
    axes = both.large.axes
    saved = both.large.network.state_dict(keep_vars=True)
    small = dict(both.small.network.named_buffers())
    for name, buffer in both.large.network.named_buffers():
        if name in small and _different(small[name], buffer):
            before, after = float(small[name]), float(buffer)
            yield f"{name} is {before:.4g} in the small network and {after:.4g} in the large one"
        dims = axes.dims.get(pattern_of(name, axes.stacks)[0], ())
        if name not in saved and not all(
            both.grown.keys().isdisjoint(use.axis for use in uses_of(dim))
            or _uniform(buffer, number)
            for number, dim in enumerate(dims)
        ):
            yield f"{name} is not saved with the network and stays as it was built"


def _different(small: Tensor, large: Tensor) -> bool:
    """Whether two buffers of one number, such as the root of a width, are different."""
    single = small.numel() == large.numel() == 1 and small.is_floating_point()
    return single and not small.is_meta and not large.is_meta and bool(small != large)


def _uniform(buffer: Tensor, dim: int) -> bool:
    """Whether all entries along a dimension are equal."""
    return not buffer.is_meta and bool((buffer == buffer.narrow(dim, 0, 1)).all())


def _of_counterparts(both: Correspondence) -> Iterator[str]:
    """Yield the norms and shortcuts that only one of the networks has."""
    axes = both.large.axes.axes
    free = {name: small for name, small in both.counterparts.items() if not axes[name].pinned}
    for name, counterparts in free.items():
        small = {kind for axis in counterparts for kind in both.small.axes.axes[axis].over}
        for kind in sorted(NORMED & (small ^ axes[name].over), key=lambda k: (k not in small, k)):
            where = "small" if kind in small else "large"
            yield f"{TAKEN[kind]} is taken over {name} only in the {where} network"
    large: defaultdict[str, list[str]] = defaultdict(list)
    for name, counterparts in free.items():
        for axis in counterparts:
            large[axis].append(name)
        if len(counterparts) > 1:
            yield f"{' and '.join(counterparts)} are one axis, {name}, only in the large network"
    for axis, names in large.items():
        if len(names) > 1:
            yield f"{' and '.join(names)} are one axis, {axis}, only in the small network"
