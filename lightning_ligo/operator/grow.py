"""Grow a network in one call: trace, pair, operator, fit, bake."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from torch import nn

from lightning_ligo.axes.override import Override
from lightning_ligo.methods.catalog import DEFAULT
from lightning_ligo.methods.method import Method
from lightning_ligo.operator.fit import Loss, fit
from lightning_ligo.operator.operator import Operator
from lightning_ligo.plan.pair import pair


def grow(
    small: nn.Module,
    large: nn.Module,
    *args: Any,
    method: str | Method = DEFAULT,
    loss: Loss | None = None,
    batches: Iterable[Any] | None = None,
    steps: int | None = None,
    learning_rate: float | None = None,
    seed: int = 0,
    large_inputs: Mapping[str, Any] | None = None,
    override: Override | None = None,
    **kwargs: Any,
) -> nn.Module:
    """Fill ``large`` with weights grown from ``small`` and return it.

    The networks are called with ``args`` and ``kwargs`` to find their axes, the large one with
    ``large_inputs``, by name, if it needs others (larger images). ``override`` names axes that
    tracing cannot find, see `trace`. A method that learns calls ``loss(network, batch)`` on
    ``batches``; ``steps`` and ``learning_rate`` are the method's own unless given.

    A method with a ramp (msg) masks nothing here: give the operator and ``large`` to `Ramp`.

    Raises:
        ValueError: see `pair` and `fit`; also if the method learns and has no loss or batches, or
            learns nothing and has any of them.
        FloatingPointError: if the loss is not finite; ``large`` is then as it was.

    Example:
        >>> import torch
        >>> small = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> large = nn.Sequential(nn.Linear(4, 20), nn.ReLU(), nn.Linear(20, 2))
        >>> x = torch.randn(3, 4)
        >>> large = grow(small, large, x, method="lemon")
        >>> torch.allclose(small(x), large(x), atol=1e-6)
        True
    """
    plan = pair(small, large, *args, large_inputs=large_inputs, override=override, **kwargs)
    operator = Operator(plan, small, method, seed)
    method = operator.method
    given = {"loss": loss, "batches": batches, "steps": steps, "learning_rate": learning_rate}
    _check_given(method, given)
    steps = method.steps if steps is None else steps
    if steps and operator.coefficients:
        if loss is None or batches is None:
            raise ValueError(
                f"method {method.name!r} learns its operator for {steps} steps and needs "
                "loss= and batches=; give both, or steps=0, or a method that learns nothing"
            )
        rate = method.learning_rate if learning_rate is None else learning_rate
        warmup = min(method.warmup, steps // 2)
        fit(operator, large, loss, batches, steps=steps, learning_rate=rate, warmup=warmup)
    operator.bake(large)
    return large


def _check_given(method: Method, options: Mapping[str, Any]) -> None:
    """Refuse options of learning for a method that learns nothing, except for ``steps=0``."""
    given = [name for name, option in options.items() if option is not None]
    if options["steps"] == 0:
        given.remove("steps")
    if given and not method.learns:
        raise ValueError(
            f"method {method.name!r} learns nothing, and was given {', '.join(given)}; "
            "leave them out, or use a method that learns, such as 'ligo'"
        )
