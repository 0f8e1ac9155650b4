"""What a method cannot grow, and what its growth changes of what the small network computes."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from lightning_ligo.methods.forms import applied, transposed
from lightning_ligo.methods.method import Method, Width
from lightning_ligo.methods.mixes import new_layers
from lightning_ligo.operator.depths import Depths
from lightning_ligo.operator.widths import Started, Widths
from lightning_ligo.plan.plan import Plan

ROUNDING = 1e-9  # of float64 numbers of size 1


def refuse(plan: Plan, method: Method) -> None:
    """Refuse a plan that the method does not say how to grow by.

    Raises:
        ValueError: naming what grows and what the method lacks.
    """
    if method.takes_nothing:
        return
    axes = {name: pair for name, pair in plan.axes.items() if not plan.all_axes[name].resize}
    stacks = {name: pair for name, pair in plan.stacks.items() if pair[0] != pair[1]}
    for what, part, grown in (("width", method.width, axes), ("depth", method.depth, stacks)):
        if grown and part is None:
            raise ValueError(
                f"method {method.name!r} has no {what}, and {_grows(grown)}; give it the {what} of "
                f"a method that has one, such as METHODS['lemon'].{what}"
            )
        if part is not None and part.whole:
            odd = {name: pair for name, pair in grown.items() if pair[1] % pair[0]}
            if odd:
                raise ValueError(
                    f"method {method.name!r} makes whole copies, and {_grows(odd)}, no multiple; "
                    "choose a multiple, or a method that grows to any length, such as 'lemon'"
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
                f"{large}, which queries and keys are multiplied over, or a norm of more than "
                "itself; keep it as it is, or take another method"
            )


def changes(plan: Plan, method: Method, widths: Widths, depths: Depths) -> Iterator[str]:
    """A line for everything by which the method keeps the network from computing the same.

    Found by applying the maps to random vectors, and by comparing the mixes with what a stream
    passes unchanged.
    """
    if method.takes_nothing:
        yield "nothing is taken from the small network"
        return
    if method.width is not None:
        grown = [name for name in plan.axes if not plan.all_axes[name].resize]
        for started in widths.starts.values():
            yield from _of_map(plan, method.width, started, bool(method.ramp))
        if method.width.ahead and grown and plan.stacks:
            yield f"new entries of layers come from the next layer ({', '.join(plan.stacks)})"
    for stack, (small, large) in plan.stacks.items():
        if method.depth is not None and (small != large or method.depth.always):
            yield from _of_stack(stack, small, large, method, depths)


def _of_map(plan: Plan, width: Width, started: Started, ramp: bool) -> Iterator[str]:
    """What the map of an axis changes."""
    axis, small = plan.all_axes[started.axis], started.small
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(small, 4, dtype=torch.float64, generator=generator)
    problems = set()
    for layer, silent in zip(started.layers, started.silent, strict=True):
        if silent:
            continue
        if ramp:
            forms = (layer.produces, layer.consumes)
            if any(_differ(applied(form, x)[:small], x) for form in forms):
                problems.add("only new entries are masked, and old ones do not stay")
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
        if width.rest == "built" and bool((written == 0).all(1).any()):
            problems.add("its new entries are as the large network was built")
    for problem in sorted(problems):
        yield f"{started.axis} grows from {small} to {started.large}: {problem}"


def _of_stack(stack: str, small: int, large: int, method: Method, depths: Depths) -> Iterator[str]:
    """What new layers of a stack change, where a stream passes them: a plan knows of the others."""
    assert method.depth is not None
    mix = method.depth.mix(small, large, torch.Generator().manual_seed(0))
    kept = mix[~new_layers(mix)]
    new = int(new_layers(mix).sum())
    if kept.shape[0] != small or _differ(kept, torch.eye(small, dtype=kept.dtype)):
        yield f"{stack} grows from {small} to {large} layers: its layers are mixed"
    elif new and not method.ramp and depths.new_are(stack) in ("works", "built"):
        how = "as they were built" if method.depth.new == "built" else "copies"
        yield f"{stack} grows from {small} to {large} layers: {new} new layers work, {how}"


def _grows(lengths: dict[str, tuple[int, int]]) -> str:
    return ", ".join(f"{name} grows from {s} to {large}" for name, (s, large) in lengths.items())


def _differ(ours: Tensor, theirs: Tensor) -> bool:
    return bool((ours - theirs).abs().max() > ROUNDING)
