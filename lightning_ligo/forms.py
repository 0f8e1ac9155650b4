"""Forms of a map, which grow one dimension of a parameter: matrices, and those that copy.

Shapes: L and S are the lengths of the axis in the large and the small network, g the layers of the
large stack, o and i whatever stands before and behind the axis.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor


class Copies(NamedTuple):
    """A form that copies: its entry i is ``weight[i]`` times entry ``entry[i]`` of the small axis.

    An entry of S, one past the last, stands for the mean of all entries. A form of this kind is
    applied by indexing and scaling, see `Copying`, and not as a matrix.
    """

    entry: Tensor  # (L), or (g, L) with one for each layer
    weight: Tensor  # of the same shape


def repeats(index: Tensor) -> Tensor:
    """(L): for every entry, how many before it copy the same entry.

    >>> repeats(torch.tensor([0, 1, 2, 0, 0, 1])).tolist()
    [0, 0, 0, 1, 2, 1]
    """
    order = index.argsort(stable=True)
    copied = index[order].contiguous()
    number = torch.empty_like(index)
    number[order] = torch.arange(len(index)) - torch.searchsorted(copied, copied)
    return number


def dense(form: Copies | Tensor, small: int) -> Tensor:
    """A form as a matrix, (L, S)."""
    if isinstance(form, Tensor):
        return form
    rows = torch.cat([torch.eye(small), torch.full((1, small), 1 / small)]).to(form.weight)
    return rows[form.entry] * form.weight.unsqueeze(-1)


def applied(form: Copies | Tensor, x: Tensor) -> Tensor:
    """A form times (S, ...)."""
    if isinstance(form, Tensor):
        return form @ x
    return torch.cat([x, x.mean(0, keepdim=True)])[form.entry] * form.weight.unsqueeze(-1)


def transposed(form: Copies | Tensor, x: Tensor, small: int) -> Tensor:
    """The transpose of a form times (L, ...)."""
    if isinstance(form, Tensor):
        return form.T @ x
    weighed = x * form.weight.unsqueeze(-1)
    sums = torch.zeros(small + 1, x.shape[1], dtype=x.dtype).index_add(0, form.entry, weighed)
    return sums[:small] + sums[small] / small


def copies_of(form: Copies | Tensor) -> Copies | None:
    """A form as one that copies, if it is."""
    if isinstance(form, Copies):
        return form
    if bool(((form != 0).sum(1) > 1).any()):
        return None
    return Copies(form.abs().argmax(1), form.sum(1))


class Copying(NamedTuple):
    """A form that copies, in as few operations as it takes."""

    entry: Tensor | None  # (L) or (g, L); None where no entry moves
    weight: Tensor | None  # (L) or (g, L); None where all are 1
    mean: bool  # whether the mean of all entries is copied, too

    def grow(self, x: Tensor, dim: int) -> Tensor:
        """A dimension of (g, ..., S, ...) to (g, ..., L, ...)."""
        if self.mean:
            x = torch.cat([x, x.mean(dim, keepdim=True)], dim)
        if self.entry is not None and self.entry.dim() == 1:
            x = x.index_select(dim, self.entry)
        elif self.entry is not None:
            layers = zip(x, self.entry, strict=True)
            x = torch.stack([layer.index_select(dim - 1, entry) for layer, entry in layers])
        if self.weight is None:
            return x
        shape = [1] * x.dim()
        shape[0] = len(self.weight) if self.weight.dim() == 2 else 1
        shape[dim] = self.weight.shape[-1]
        return x * self.weight.view(shape)


def copying(form: Copies, small: int, device: torch.device, dtype: torch.dtype) -> Copying:
    """Prepare a form that copies."""
    entry, weight = form
    entry = torch.where(weight == 0, 0, entry)
    mean = bool((entry == small).any())
    if entry.dim() == 2 and bool((entry == entry[:1]).all()):
        entry = entry[0]
    moves = not torch.equal(entry, torch.arange(small))
    scales = bool((weight != 1).any())
    return Copying(
        entry.to(device) if moves else None, weight.to(device, dtype) if scales else None, mean
    )


def along(matrix: Tensor, x: Tensor, dim: int) -> Tensor:
    """Multiply a dimension of (g, ...) by (L, S), or by (g, L, S) with a map for each layer."""
    shape = x.shape
    x = x.reshape(shape[0], math.prod(shape[1:dim]), shape[dim], -1)
    x = torch.einsum("LS,goSi->goLi" if matrix.dim() == 2 else "gLS,goSi->goLi", matrix, x)
    return x.reshape(*shape[:dim], -1, *shape[dim + 1 :])
