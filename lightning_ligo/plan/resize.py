"""Make axes longer whose entries are not exchangeable."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def append(x: Tensor, dim: int, length: int) -> Tensor:
    """Append entries of a table, or classes: each new one is the mean of the old ones."""
    new = x.mean(dim, keepdim=True).repeat_interleave(length - x.shape[dim], dim)
    return torch.cat([x, new], dim)


def join(x: Tensor, dim: int, length: int) -> Tensor:
    """Read what new layers write by zeros."""
    return x.new_zeros(*x.shape[:dim], length, *x.shape[dim + 1 :])


def copy(x: Tensor, dim: int, length: int) -> Tensor:
    """Copy experts: each new one is a copy, in the order in which layers are copied."""
    entry = torch.arange(length, device=x.device) * x.shape[dim] // length
    return x.index_select(dim, entry)


def grid(small: int, large: int) -> tuple[int, int, int] | None:
    """Find (entries before the grid, side of the small grid, side of the large one) of positions.

    Absolute positions are a square behind class and register tokens; relative ones are a square of
    odd side, in BEiT before three more entries. None where there is no such square.
    """
    for extra in range(min(small, 17)):
        sides = math.isqrt(small - extra), math.isqrt(large - extra)
        if sides[0] > 1 and sides[0] ** 2 == small - extra and sides[1] ** 2 == large - extra:
            return extra, *sides
    return None


def interpolate(x: Tensor, dim: int, length: int) -> Tensor:
    """Interpolate positions of a larger grid, bicubic as timm's ``resample_abs_pos_embed``.

    Class and register tokens, which come first, stay as they are; BEiT's three further relations
    come last. Where there is no grid, they are tokens, and more are appended.
    """
    small = x.shape[dim]
    found = grid(small, length)
    if found is None:
        return append(x, dim, length)
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
