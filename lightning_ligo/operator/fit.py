"""Learn an operator on a loss."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from lightning_ligo.axes.override import Override
from lightning_ligo.methods.catalog import DEFAULT
from lightning_ligo.methods.method import Method
from lightning_ligo.operator.operator import Operator
from lightning_ligo.plan.pair import pair

Loss = Callable[[nn.Module, Any], Tensor]


@dataclass(frozen=True)
class Fit:
    """What happened: the loss before each step, in the loss's own unit."""

    losses: tuple[float, ...]

    @property
    def steps(self) -> int:
        return len(self.losses)


class _Lossy(nn.Module):
    """The loss and its gradients as a module over the network, called with its parameters.

    They hold for the gradients too: a backward pass may compute activations again.
    """

    def __init__(
        self, network: nn.Module, loss: Loss, coefficients: Sequence[nn.Parameter]
    ) -> None:
        super().__init__()
        self.network = network
        self.loss = loss
        self.coefficients = tuple(coefficients)  # no parameters of this module

    def forward(self, batch: Any) -> tuple[Tensor, tuple[Tensor | None, ...]]:
        value = self.loss(self.network, batch)
        return value.detach(), torch.autograd.grad(value, self.coefficients, allow_unused=True)


def gradients(
    operator: Operator, large: nn.Module, loss: Loss, batch: Any, coefficients: list[nn.Parameter]
) -> tuple[Tensor, tuple[Tensor | None, ...]]:
    """``loss(large, batch)`` with the operator's weights, and its gradients for ``coefficients``.

    Nothing else is left of the forward, such as the generated weights.
    """
    with torch.enable_grad():
        # cuDNN takes only dense weights of a recurrent network
        generated = {f"network.{name}": w.contiguous() for name, w in operator(large).items()}
        found: tuple[Tensor, tuple[Tensor | None, ...]] = functional_call(
            _Lossy(large, loss, coefficients), generated, (batch,)
        )
        return found


@contextmanager
def _uncompacted() -> Iterator[None]:
    """Without cuDNN's advice to compact the weights of recurrent networks: they are generated."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "RNN module weights are not part of single contiguous")
        yield


@_uncompacted()
def fit(
    operator: Operator,
    large: nn.Module,
    loss: Loss,
    batches: Iterable[Any],
    *,
    steps: int,
    learning_rate: float,
    warmup: int = 0,
    on_step: Callable[[int, float], None] | None = None,
    average: Callable[[Tensor], Tensor] | None = None,
) -> Fit:
    """Minimise ``loss(large, batch)`` over the operator's coefficients.

    The parameters of ``large`` are replaced by the generated ones while the loss is computed, and
    are themselves never changed; the small weights are fixed. AdamW (0.9, 0.95) without decay,
    gradients clipped to norm 1, the rate rising over ``warmup`` steps and then falling linearly to
    zero. ``on_step(step, loss)`` is called after every step, from 1. Where several processes learn
    one operator, each on batches of its own, ``average`` takes a tensor to its mean over them; if
    the step of one raises an error, the loss is not a number for all others, and none waits for it.

    Raises:
        FloatingPointError: if the loss or its gradient is not finite; the operator is then of no
            use, all else is as it was.
        ValueError: if there is nothing to learn, or too few batches.
    """
    coefficients = [p for p in operator.parameters() if p.requires_grad]
    if not coefficients:
        raise ValueError(
            f"method {operator.method.name!r} has nothing to learn for this plan; bake it as it is"
        )
    optimizer = torch.optim.AdamW(
        coefficients, lr=learning_rate, betas=(0.9, 0.95), weight_decay=0.0
    )
    batch, losses = iter(batches), []
    for step in range(steps):
        rate = min((step + 1) / (warmup + 1), (steps - step) / max(1, steps - warmup))
        optimizer.param_groups[0]["lr"] = learning_rate * rate
        try:
            data = next(batch)
        except StopIteration:
            raise ValueError(
                f"the batches ended after {step} of {steps} steps; give an iterator that goes on"
            ) from None
        try:
            value, found = gradients(operator, large, loss, data, coefficients)
        except Exception:
            if average is not None:  # the others wait for this
                average(torch.tensor(math.nan, device=coefficients[0].device))
            raise
        value = value if average is None else average(value.float())
        losses.append(float(value))
        where = (
            f"at step {step + 1} of {steps} of learning the {operator.method.name!r} operator at "
            f"rate {learning_rate:g}; use a lower learning rate, or a method that learns nothing"
        )
        if not math.isfinite(losses[-1]):
            raise FloatingPointError(f"the loss is {losses[-1]} {where}")
        if average is not None:
            found = tuple(gradient if gradient is None else average(gradient) for gradient in found)
        for coefficient, gradient in zip(coefficients, found, strict=True):
            coefficient.grad = gradient
        del found, gradient  # held by the coefficients alone, until they are used
        norm = float(torch.nn.utils.clip_grad_norm_(coefficients, 1.0))
        if not math.isfinite(norm):
            raise FloatingPointError(f"the gradient's norm is {norm} {where}")
        optimizer.step()
        optimizer.zero_grad()
        if on_step is not None:
            on_step(step + 1, losses[-1])
    return Fit(tuple(losses))


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

    ``args`` and ``kwargs`` are what the networks are called with, to find their axes; the large one
    with ``large_inputs``, by name, where it takes others (larger images). ``override`` names axes
    that tracing cannot find, see `trace`. ``loss`` is called as ``loss(network, batch)`` for
    batches from ``batches``; ``steps`` and ``learning_rate`` are the method's own unless given.

    A method with a ramp (msg) masks nothing here: hand the operator and ``large`` to `Ramp`.

    Raises:
        ValueError: see `pair` and `fit`; also if the method learns and no loss or batches are
            given, or learns nothing and is told what to learn from.
        FloatingPointError: if the loss is not finite; ``large`` is then as it was.

    Example:
        >>> small = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> large = nn.Sequential(nn.Linear(4, 20), nn.ReLU(), nn.Linear(20, 2))
        >>> x = torch.randn(3, 4)
        >>> large = grow(small, large, x, method="lemon")
        >>> torch.allclose(small(x), large(x), atol=1e-6)
        True
    """
    plan = pair(small, large, *args, large_inputs=large_inputs, override=override, **kwargs)
    operator = Operator(plan, small, method, seed)
    options = {
        "loss": loss,
        "batches": batches,
        "steps": steps or None,
        "learning_rate": learning_rate,
    }
    given = [name for name, option in options.items() if option is not None]
    if given and not operator.method.learns:
        raise ValueError(
            f"method {operator.method.name!r} learns nothing, and was given {', '.join(given)}; "
            "leave them out, or take a method that learns, such as 'ligo'"
        )
    steps = operator.method.steps if steps is None else steps
    if steps and operator.coefficients:
        if loss is None or batches is None:
            raise ValueError(
                f"method {operator.method.name!r} learns its operator for {steps} steps and needs "
                "loss= and batches=; give both, or steps=0, or a method that learns nothing"
            )
        rate = operator.method.learning_rate if learning_rate is None else learning_rate
        fit(operator, large, loss, batches, steps=steps, learning_rate=rate,
            warmup=min(operator.method.warmup, steps // 2))  # fmt: skip
    operator.bake(large)
    return large
