"""The limits of a method: which plans it cannot grow, and why its start is not exact."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from lightning_ligo.methods.forms import applied, transposed
from lightning_ligo.methods.method import Method, Width
from lightning_ligo.methods.mixes import added_layers
from lightning_ligo.operator.depths import Depths
from lightning_ligo.operator.widths import Started, Widths
from lightning_ligo.plan.plan import Plan

ROUNDING = 1e-9  # of float64 numbers of size 1


def refuse(plan: Plan, method: Method) -> None:
    """Refuse a plan that the method cannot grow.

    Raises:
        ValueError: if it lacks a width or depth, or grows by whole multiples only, or has a ramp
            and a new part cannot be masked.
    """
    if method.takes_nothing:
        return
    axes = {name: pair for name, pair in plan.axes.items() if not plan.all_axes[name].resize}
    stacks = {name: pair for name, pair in plan.stacks.items() if pair[0] != pair[1]}
    for what, part, grown in (("width", method.width, axes), ("depth", method.depth, stacks)):
        if grown and part is None:
            raise ValueError(
                f"method {method.name!r} has no {what}, and {_grows(grown)}; give it the {what} of "
                f"another method, such as METHODS['lemon'].{what}"
            )
        if part is not None and part.whole:
            odd = {name: pair for name, pair in grown.items() if pair[1] % pair[0]}
            if odd:
                raise ValueError(
                    f"method {method.name!r} makes whole copies, and {_grows(odd)}, no multiple; "
                    "use a multiple, or a method that grows to any length, such as 'lemon'"
                )
    if method.width is not None and method.width.diagonal:
        inner = {name: pair for name, pair in axes.items() if plan.all_axes[name].contracted}
        if inner or len({large // small for small, large in axes.values()}) > 1:
            raise ValueError(
                f"method {method.name!r} puts whole networks side by side, and {_grows(axes)}; "
                "grow all axes but the size of heads by one multiple"
            )
    for name, (small, large) in axes.items() if method.ramp else ():
        if plan.all_axes[name].contracted or plan.all_axes[name].normed == "group":
            raise ValueError(
                f"method {method.name!r} masks new parts, and {name} grows from {small} to "
                f"{large}; the product of queries and keys, or a group norm, sums over it and "
                "cannot be masked; do not grow it, or use another method"
            )


def changes(plan: Plan, method: Method, widths: Widths, depths: Depths) -> Iterator[str]:
    """List the reasons why the start of a method does not compute what the small network does.

    The maps are applied to random vectors, and the mixes are compared with the identity.
    """
    if method.takes_nothing:
        yield "nothing is taken from the small network"
        return
    if method.width is not None:
        grown = [name for name in plan.axes if not plan.all_axes[name].resize]
        for started in widths.starts.values():
            yield from _of_map(plan, method.width, started, bool(method.ramp))
        if method.width.from_next_layer and grown and plan.stacks:
            yield f"new entries of layers come from the next layer ({', '.join(plan.stacks)})"
    for stack, (small, large) in plan.stacks.items():
        if method.depth is not None and (small != large or method.depth.always):
            yield from _of_stack(stack, small, large, method, depths)


def _of_map(plan: Plan, width: Width, started: Started, ramp: bool) -> Iterator[str]:
    """List the changes by the map of an axis."""
    axis, small = plan.all_axes[started.axis], started.small
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(small, 4, dtype=torch.float64, generator=generator)
    problems = set()
    for layer, zero_output in zip(started.layers, started.zero_output, strict=True):
        if zero_output:
            continue
        if ramp:
            forms = (layer.produces, layer.consumes)
            if any(_differ(applied(form, x)[:small], x) for form in forms):
                problems.add("only new entries are masked, and old ones change")
            continue
        written = applied(layer.produces, x)
        if axis.contracted:
            scale = started.scale / plan.scales.get(started.axis, 1.0)
            if _differ(scale**2 * transposed(layer.produces, written, small), x):
                problems.add("queries and keys over it do not keep their product: BᵀB is not I")
            continue
        reader = layer.produces if width.ties == "flow" else layer.consumes
        if _differ(transposed(reader, written, small), x):
            problems.add("what is read is not what was written: AᵀB is not I")
        seen, was = started.scale * written, x
        if axis.normed and axis.normed != "rms":
            if _differ(seen.mean(0) / started.scale, was.mean(0)):
                problems.add("the mean that a norm takes over it changes")
            seen, was = seen - seen.mean(0), was - was.mean(0)
        if axis.normed and _differ(seen.square().mean(0), was.square().mean(0)):
            problems.add("the variance that a norm takes over it changes")
        if width.rest == "fresh" and bool((written == 0).all(1).any()):
            problems.add("its new entries are fresh")
    for problem in sorted(problems):
        yield f"{started.axis} grows from {small} to {started.large}: {problem}"


def _of_stack(stack: str, small: int, large: int, method: Method, depths: Depths) -> Iterator[str]:
    """List the changes by the new layers of a stack, beside those that the plan lists."""
    assert method.depth is not None
    mix = method.depth.mix(small, large, torch.Generator().manual_seed(0))
    added = added_layers(mix)
    old, new = mix[~added], int(added.sum())
    if old.shape[0] != small or _differ(old, torch.eye(small, dtype=old.dtype)):
        yield f"{stack} grows from {small} to {large} layers: its layers are mixed"
    elif new and not method.ramp and (kind := depths.new_kind(stack)) in ("copied", "fresh"):
        yield (
            f"{stack} grows from {small} to {large} layers: "
            f"{'1 new layer is' if new == 1 else f'{new} new layers are'} {kind}"
        )


def _grows(lengths: dict[str, tuple[int, int]]) -> str:
    return ", ".join(f"{name} grows from {s} to {large}" for name, (s, large) in lengths.items())


def _differ(one: Tensor, other: Tensor) -> bool:
    return bool((one - other).abs().max() > ROUNDING)
