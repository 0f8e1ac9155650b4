"""Maps of one axis: how they start.

A map is a pair of (large x small) matrices: the producing form ``B`` and the consuming form ``A``.
A linear's weight grows as ``B_out W A_inᵀ``; the function is kept when ``Aᵀ B = I``.
"""

from __future__ import annotations

import math
from typing import NamedTuple, Protocol

import torch
from torch import Tensor


class Map(NamedTuple):
    """The two forms of a map, each (large x small), and the root mean square gain of a norm.

    ``scale`` multiplies what writes a stream that a norm reads, and divides what reads it, so that
    the norm sees the variance that it saw in the small network.
    """

    produces: Tensor
    consumes: Tensor
    scale: float = 1.0


class Start(Protocol):
    """How a method starts the map of an axis that grows from ``small`` to ``large``."""

    def __call__(
        self, small: int, large: int, normed: str | None, silent: bool, generator: torch.Generator
    ) -> Map: ...


def uneven_copies(
    small: int, large: int, normed: str | None, silent: bool, generator: torch.Generator
) -> Map:
    """Every new entry copies an old one; readers weigh the copies by unequal shares.

    ``B`` has one 1 a row, ``A`` has the shares of entry j in column j, and they sum to 1, so
    ``Aᵀ B = I``. The shares of c copies are drawn around 1/c, for two copies from [1/3, 2/3]:
    equal shares would give copies equal gradients, and they would never part. Inside a ``silent``
    layer, whose output is multiplied by zero, shares come to nothing; there the copies are
    themselves made unequal, scaled by the shares times their number.

    Under a layer norm the lengths that are left when ``large`` is no multiple of ``small`` hold the
    mean of all entries, and under an RMS norm zero; both keep what the norm divides by once the
    stream is multiplied by ``sqrt(large / copied)``.

    Source: Net2Net (ICLR 2016) for the copies; LEMON (ICLR 2024) for unequal shares and average
    expansion.
    """
    copied = large - large % small if normed else large
    entry = torch.arange(copied) % small
    produces = torch.zeros(large, small, dtype=torch.float64)
    produces[torch.arange(copied), entry] = 1
    if normed == "layer":
        produces[copied:] = 1 / small
    weight = torch.zeros(large, small, dtype=torch.float64)
    drawn = 1 + torch.rand(copied, dtype=torch.float64, generator=generator)
    weight[torch.arange(copied), entry] = drawn
    shares = weight / weight.sum(0)
    if silent:
        produces[:copied] = shares[:copied] * (weight > 0).sum(0)
    return Map(produces, shares, math.sqrt(large / copied))


def isometric_copies(
    small: int, large: int, normed: str | None, silent: bool, generator: torch.Generator
) -> Map:
    """Copies for an axis that queries and keys are contracted over: ``B = A``, ``Bᵀ B = I``.

    Both sides of the contraction are written, so both grow by ``B``; its entries are the roots of
    unequal shares that sum to 1, and what the product is divided by is made up for by the operator.
    """
    entry = torch.arange(large) % small
    weight = torch.zeros(large, small, dtype=torch.float64)
    drawn = 1 + torch.rand(large, dtype=torch.float64, generator=generator)
    weight[torch.arange(large), entry] = drawn
    both = (weight / weight.sum(0)).sqrt()
    return Map(both, both)


def random_rows(
    small: int, large: int, normed: str | None, silent: bool, generator: torch.Generator
) -> Map:
    """``B = A = [I; C]``, each row of ``C`` uniform and normalised to sum 1.

    Source: LiGO (ICLR 2023), the start ``rand`` of its released code.
    """
    rows = torch.rand(large - small, small, dtype=torch.float64, generator=generator)
    lower = rows / rows.sum(1, keepdim=True)
    both = torch.cat([torch.eye(small, dtype=torch.float64), lower])
    return Map(both, both)


class Mix(Protocol):
    """How a method starts the (large x small) depth mix of one module of a stack.

    ``writes`` tells that the module writes into the stream that passes the whole stack.
    """

    def __call__(
        self, small: int, large: int, writes: bool, generator: torch.Generator
    ) -> Tensor: ...


def interleaved_silent(small: int, large: int, writes: bool, generator: torch.Generator) -> Tensor:
    """Layer i copies layer ``i * small // large``; of each run of copies only the first writes.

    A new layer of a pre-norm network adds exactly nothing, so the function is kept; its inner
    weights are there, and the mix of what it writes can be learned away from zero.
    """
    layer = torch.arange(large)
    source = layer * small // large
    mix = torch.zeros(large, small, dtype=torch.float64)
    mix[layer, source] = 1
    if writes:
        mix[1:][source[1:] == source[:-1]] = 0
    return mix


def noisy_stack(small: int, large: int, writes: bool, generator: torch.Generator) -> Tensor:
    """Layer i copies layer ``i mod small``, with noise from [0, 0.03) and rows that sum to 1.

    Source: LiGO (ICLR 2023), the start ``stackbert_noisy`` of its released code.
    """
    mix = 0.03 * torch.rand(large, small, dtype=torch.float64, generator=generator)
    layer = torch.arange(large)
    mix[layer, layer % small] = 1
    return mix / mix.sum(1, keepdim=True)


# Axes whose entries are told apart ------------------------------------------------------------


def append(x: Tensor, dim: int, length: int) -> Tensor:
    """More entries of a table, or more classes: each new one is the mean of those there are."""
    new = x.mean(dim, keepdim=True).repeat_interleave(length - x.shape[dim], dim)
    return torch.cat([x, new], dim)


def copy(x: Tensor, dim: int, length: int) -> Tensor:
    """More experts: each is a copy of an old one, in the order in which layers are copied."""
    entry = torch.arange(length, device=x.device) * x.shape[dim] // length
    return x.index_select(dim, entry)


def grid(small: int, large: int) -> tuple[int, int, int] | None:
    """(entries before the grid, its side in the small network, in the large one) of positions.

    Absolute positions are a square behind class and register tokens; relative ones are a square of
    odd side, in BEiT before three more entries. None where there is no such square.
    """
    for extra in range(min(small, 17)):
        sides = math.isqrt(small - extra), math.isqrt(large - extra)
        if sides[0] > 1 and sides[0] ** 2 == small - extra and sides[1] ** 2 == large - extra:
            return extra, *sides
    return None


def interpolate(x: Tensor, dim: int, length: int) -> Tensor:
    """Positions of a larger grid, bicubic as timm's ``resample_abs_pos_embed``.

    Class and register tokens, which come first, stay as they are; BEiT's three further relations
    come last.
    """
    small = x.shape[dim]
    found = grid(small, length)
    assert found is not None, (small, length)
    extra, before, after = found
    last = extra if before % 2 and after % 2 and extra == 3 else 0
    kept = x.narrow(dim, small - last, last) if last else x.narrow(dim, 0, extra)
    image = x.narrow(dim, 0 if last else extra, before**2).movedim(dim, -1)
    shape = image.shape[:-1]
    image = torch.nn.functional.interpolate(
        image.reshape(1, -1, before, before), size=(after, after), mode="bicubic", antialias=True
    )
    image = image.reshape(*shape, after**2).movedim(-1, dim)
    return torch.cat([image, kept] if last else [kept, image], dim)
