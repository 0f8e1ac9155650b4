"""Call a network: on a copy of it, in evaluation mode, for the tensors that it returns."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves


def copied(network: nn.Module, of: Callable[[Tensor], Tensor]) -> nn.Module:
    """Copy a network with ``of(tensor)`` for each of its tensors; tied ones stay tied."""
    memo: dict[int, Tensor] = {}
    for tensor in (*network.parameters(), *network.buffers()):
        new = of(tensor.detach())
        if isinstance(tensor, nn.Parameter):
            new = nn.Parameter(new, tensor.requires_grad)
        memo[id(tensor)] = new
    network = copy.deepcopy(network, memo)
    for module in network.modules():
        if isinstance(module, nn.RNNBase):
            module.flatten_parameters()  # as cuDNN requires
    return network


def without_values(tensor: Tensor) -> Tensor:
    """Make a tensor of the same shape on the meta device."""
    return torch.empty_like(tensor, device="meta")


def outputs_of(out: Any) -> list[Tensor]:
    """List the tensors that a network returned; of a Hugging Face output in its own order."""
    plain = out.to_tuple() if hasattr(out, "to_tuple") else out
    return [leaf for leaf in tree_leaves(plain) if isinstance(leaf, Tensor)]


@contextmanager
def evaluating(network: nn.Module) -> Iterator[None]:
    """Put a network into evaluation mode, and restore the mode of every module after it."""
    modes = [(module, module.training) for module in network.modules()]
    network.train().eval()  # clears what some modules cache of their parameters
    try:
        yield
    finally:
        network.train()
        for module, training in modes:
            module.training = training
