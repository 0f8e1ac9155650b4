"""Depth mixes of a stack: the small layers that each large layer starts from.

A mix is a (large x small) matrix ``w``: ``W[g] = Σ_l w[g, l] W_small[l]``. A row of zeros is a
layer without a source.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor


class Mix(Protocol):
    """How a method starts the mix of one module of a stack of ``small`` to ``large`` layers."""

    def __call__(self, small: int, large: int, generator: torch.Generator) -> Tensor: ...


def sources(mix: Tensor) -> Tensor:
    """(g): the small layer that each large one mostly comes from, or -1 for none."""
    return torch.where(mix.any(1), mix.argmax(1), -1)


def added_layers(mix: Tensor) -> Tensor:
    """(g): whether a layer is new: it has no source, or that of a layer before it.

    >>> added_layers(interpolated(2, 4, torch.Generator())).tolist()
    [False, True, False, True]
    """
    seen: set[int] = {-1}
    new = []
    for source in sources(mix).tolist():
        new.append(source in seen)
        seen.add(source)
    return torch.tensor(new)


def _one_hot(source: Tensor, small: int) -> Tensor:
    return torch.nn.functional.one_hot(source, small).double()


def stacked(small: int, large: int, generator: torch.Generator) -> Tensor:
    """Layer i copies layer ``i mod small``.

    Source: StackBERT (ICML 2019); as G_stack (NeurIPS 2024) for whole multiples.
    """
    return _one_hot(torch.arange(large) % small, small)


def interpolated(small: int, large: int, generator: torch.Generator) -> Tensor:
    """Layer i copies layer ``i * small // large``: every layer is followed by its copies.

    Source: interpolation in Chang et al. (ICLR 2018), as LiGO (ICLR 2023) states it, ``i // k``.
    """
    return _one_hot(torch.arange(large) * small // large, small)


def after_groups(small: int, large: int, generator: torch.Generator) -> Tensor:
    """The layers in equal groups, each followed by copies of its last layer.

    There are as many groups as layers are added, or as there are layers if more are.

    Source: LLaMA-Pro (ACL 2024), block expansion.
    """
    if not small < large < 2 * small:
        return interpolated(small, large, generator)
    added = large - small
    ends = (torch.arange(1, added + 1) * small / added).ceil().long() - 1
    source = torch.cat([torch.arange(small), ends]).sort().values
    return _one_hot(source, small)


def first_layers(small: int, large: int, generator: torch.Generator) -> Tensor:
    """``[I; 0]``: the small layers, then layers without a source."""
    return torch.eye(large, small, dtype=torch.float64)


def noisy_stack(small: int, large: int, generator: torch.Generator) -> Tensor:
    """Layer i copies layer ``i mod small``, with noise from [0, 0.03) and rows that sum to 1.

    Source: LiGO (ICLR 2023), the start ``stackbert_noisy`` of its released code.
    """
    mix = 0.03 * torch.rand(large, small, dtype=torch.float64, generator=generator)
    layer = torch.arange(large)
    mix[layer, layer % small] = 1
    return mix / mix.sum(1, keepdim=True)
