"""Bits per byte: how well a language model predicts text, whatever its tokens are."""

import math

import torch
from torch import Tensor
from torchmetrics import Metric


class BitsPerByte(Metric):
    """Negative log-likelihood in bits per byte of text, over everything seen since the last reset.

    `bits per byte = nats / (ln 2 * bytes)`, both sums over all updates.

    >>> metric = BitsPerByte()
    >>> metric.update(nats=torch.tensor(16 * math.log(2)), bytes=2)
    >>> metric.compute()
    tensor(8.)
    """

    full_state_update = False
    higher_is_better = False
    nats: Tensor
    bytes: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_state("nats", torch.zeros(()), dist_reduce_fx="sum")
        self.add_state("bytes", torch.zeros(()), dist_reduce_fx="sum")

    def update(self, nats: Tensor, bytes: Tensor | float) -> None:
        """Add text of `bytes` bytes whose summed negative log-likelihood is `nats`."""
        self.nats += nats.detach()
        self.bytes += bytes

    def compute(self) -> Tensor:
        """The bits per byte so far, a scalar."""
        return self.nats / self.bytes / math.log(2)
