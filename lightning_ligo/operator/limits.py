"""The limits of a method: which plans it cannot grow."""

from __future__ import annotations

from lightning_ligo.methods.method import Method
from lightning_ligo.plan.plan import Plan


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


def _grows(lengths: dict[str, tuple[int, int]]) -> str:
    return ", ".join(f"{name} grows from {s} to {large}" for name, (s, large) in lengths.items())
