"""An operation for which tracing has no rule."""

import torch
from torch import Tensor


@torch.library.custom_op("ligo_tests::fourier", mutates_args=())
def fourier(x: Tensor, dim: int) -> Tensor:
    """The real part of a Fourier transform, for which tracing has no rule."""
    return torch.fft.fft(x, dim=dim).real.clone()


@fourier.register_fake
def _(x: Tensor, dim: int) -> Tensor:
    return torch.empty_like(x)


fourier.register_autograd(
    lambda context, grad: (fourier(grad, context.dim), None),  # its matrix is symmetric
    setup_context=lambda ctx, inputs, output: setattr(ctx, "dim", inputs[1]),
)
