"""Learn an operator on a loss."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from lightning_ligo.operator.operator import Operator

Loss = Callable[[nn.Module, Any], Tensor]


@dataclass(frozen=True)
class Fit:
    """The record of learning an operator.

    Args:
        losses: the loss before each step.
    """

    losses: tuple[float, ...]

    @property
    def steps(self) -> int:
        return len(self.losses)


class _Lossy(nn.Module):
    """The loss and its gradients as a module over the network, called with generated parameters.

    The backward pass runs inside too, as it may compute activations again.
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


def loss_and_gradients(
    operator: Operator, large: nn.Module, loss: Loss, batch: Any, coefficients: list[nn.Parameter]
) -> tuple[Tensor, tuple[Tensor | None, ...]]:
    """Compute ``loss(large, batch)`` with generated weights, and gradients for ``coefficients``.

    The generated weights are freed with the rest of the forward.
    """
    with torch.enable_grad():
        # cuDNN takes only dense weights of a recurrent network
        generated = {f"network.{name}": w.contiguous() for name, w in operator(large).items()}
        for name, buffer in operator.buffers_of(large):  # which batch norms write
            own = torch.empty_like(large.get_buffer(name))
            generated[f"network.{name}"] = own.copy_(buffer.detach())
        found: tuple[Tensor, tuple[Tensor | None, ...]] = functional_call(
            _Lossy(large, loss, coefficients), generated, (batch,)
        )
        return found


@contextmanager
def _uncompacted() -> Iterator[None]:
    """Silence cuDNN's advice to compact recurrent weights, which are generated here."""
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

    The loss is computed with generated parameters; both networks stay as they are. The optimizer is
    AdamW (0.9, 0.95) without decay. Gradients are clipped to norm 1. The rate rises over ``warmup``
    steps and then falls linearly to zero. ``on_step(step, loss)`` is called after every step, from
    1. Where several processes learn one operator, each on its own batches, ``average`` takes a
    tensor to its mean over them; if one process fails, all others get a loss of nan.

    Raises:
        FloatingPointError: if the loss or its gradient is not finite; the operator is then useless,
            and everything else is unchanged.
        ValueError: if there is nothing to learn, or too few batches.
    """
    coefficients = [p for p in operator.parameters() if p.requires_grad]
    name = operator.method.name
    if not coefficients:
        raise ValueError(f"method {name!r} has nothing to learn for this plan; bake it as it is")
    optimizer = torch.optim.AdamW(coefficients, learning_rate, betas=(0.9, 0.95), weight_decay=0.0)
    losses: list[float] = []
    for step, batch in zip(range(steps), batches, strict=False):
        rate = min((step + 1) / (warmup + 1), (steps - step) / max(1, steps - warmup))
        optimizer.param_groups[0]["lr"] = learning_rate * rate
        where = (
            f"at step {step + 1} of {steps} of learning the {name!r} operator at rate "
            f"{learning_rate:g}; use a lower learning rate, or a method that learns nothing"
        )
        losses.append(_set_gradients(operator, large, loss, batch, coefficients, average, where))
        norm = float(torch.nn.utils.clip_grad_norm_(coefficients, 1.0))
        if not math.isfinite(norm):
            raise FloatingPointError(f"the gradient's norm is {norm} {where}")
        optimizer.step()
        optimizer.zero_grad()
        if on_step is not None:
            on_step(step + 1, losses[-1])
    if len(losses) < steps:
        raise ValueError(
            f"the batches ended after {len(losses)} of {steps} steps; use an endless iterator"
        )
    return Fit(tuple(losses))


def _set_gradients(
    operator: Operator,
    large: nn.Module,
    loss: Loss,
    batch: Any,
    coefficients: list[nn.Parameter],
    average: Callable[[Tensor], Tensor] | None,
    where: str,
) -> float:
    """Set the gradients of the coefficients and return the loss, both averaged over processes."""
    try:
        value, found = loss_and_gradients(operator, large, loss, batch, coefficients)
    except Exception:
        if average is not None:  # the others wait for this
            average(torch.tensor(math.nan, device=coefficients[0].device))
        raise
    mean = float(value if average is None else average(value.float()))
    if not math.isfinite(mean):
        raise FloatingPointError(f"the loss is {mean} {where}")
    for coefficient, gradient in zip(coefficients, found, strict=True):
        coefficient.grad = gradient if gradient is None or average is None else average(gradient)
    return mean
