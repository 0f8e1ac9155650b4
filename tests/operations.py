"""Operations for which tracing has no rule, and which it cannot try."""

from itertools import count

import torch
from torch import Tensor

_tickets, _used = count(), set()


def use(ticket: int) -> None:
    """Take part in an exchange, as of several processes, once."""
    if ticket in _used:
        raise RuntimeError("this operation cannot be called again")
    _used.add(ticket)


@torch.library.custom_op("ligo_tests::fourier", mutates_args=())
def _fourier(x: Tensor, dim: int, ticket: int) -> Tensor:
    use(ticket)
    return torch.fft.fft(x, dim=dim).real.clone()


@_fourier.register_fake
def _(x: Tensor, dim: int, ticket: int) -> Tensor:
    return torch.empty_like(x)


def fourier(x: Tensor, dim: int) -> Tensor:
    """The real part of a Fourier transform."""
    return _fourier(x, dim, next(_tickets))


_fourier.register_autograd(
    lambda context, grad: (fourier(grad, context.dim), None, None),  # its matrix is symmetric
    setup_context=lambda ctx, inputs, output: setattr(ctx, "dim", inputs[1]),
)


@torch.library.custom_op("ligo_tests::affine", mutates_args=())
def _affine(x: Tensor, weight: Tensor, bias: Tensor, ticket: int) -> Tensor:
    use(ticket)
    return torch.nn.functional.linear(x, weight, bias)


def affine(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """A linear that tracing knows nothing of."""
    return _affine(x, weight, bias, next(_tickets))
