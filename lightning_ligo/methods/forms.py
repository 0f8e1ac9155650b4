"""The forms of a map, which grow one dimension of a parameter: a matrix, or copies of entries.

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

    An entry of S, one past the last, stands for the mean of all entries. `Copier` applies such a
    form by indexing and scaling, and not as a matrix.
    """

    entry: Tensor  # (L), or (g, L) with one for each layer
    weight: Tensor  # of the same shape


def repeats(index: Tensor) -> Tensor:
    """(L): count for every entry how many before it copy the same entry.

    >>> repeats(torch.tensor([0, 1, 2, 0, 0, 1])).tolist()
    [0, 0, 0, 1, 2, 1]
    """
    order = index.argsort(stable=True)
    copied = index[order].contiguous()
    number = torch.empty_like(index)
    number[order] = torch.arange(len(index)) - torch.searchsorted(copied, copied)
    return number


def dense(form: Copies | Tensor, small: int) -> Tensor:
    """Write a form as a matrix, (L, S)."""
    if isinstance(form, Tensor):
        return form
    rows = torch.cat([torch.eye(small), torch.full((1, small), 1 / small)]).to(form.weight)
    return rows[form.entry] * form.weight.unsqueeze(-1)


def as_copies(form: Copies | Tensor) -> Copies | None:
    """Write a form as copies, if no entry of it is made of more than one."""
    if isinstance(form, Copies):
        return form
    if bool(((form != 0).sum(1) > 1).any()):
        return None
    return Copies(form.abs().argmax(1), form.sum(1))


class Copier(NamedTuple):
    """Applies `Copies`, in as few operations as it takes."""

    entry: Tensor  # (L) or (g, L)
    runs: tuple[tuple[int, int, int], ...]  # its stretches: (first, how many, step of 0 or 1)
    weight: Tensor | None  # (L) or (g, L); None where all are 1
    mean: bool  # whether the mean of all entries is copied, too

    @classmethod
    def of(cls, form: Copies, small: int, device: torch.device, dtype: torch.dtype) -> Copier:
        entry, weight = form
        entry = torch.where(weight == 0, torch.arange(entry.shape[-1]) % small, entry)
        mean = bool((entry == small).any())
        if entry.dim() == 2 and bool((entry == entry[:1]).all()):
            entry = entry[0]
        runs = _runs(entry) if entry.dim() == 1 else []
        scale = weight.to(device, dtype) if bool((weight != 1).any()) else None
        return cls(entry.to(device), tuple(runs) if len(runs) <= 16 else (), scale, mean)

    def grow(self, x: Tensor, dim: int) -> Tensor:
        """Grow a dimension of (g, ..., S, ...) to (g, ..., L, ...)."""
        small = x.shape[dim]
        if self.mean:
            x = torch.cat([x, x.mean(dim, keepdim=True)], dim)
        if set(self.runs) == {(0, small, 1)}:  # whole copies: expand, and copy nothing
            weight = self._over(x, dim)
            x = x.unsqueeze(dim)
            if weight is None:
                x = x.expand(*x.shape[:dim], len(self.runs), *x.shape[dim + 1 :])
            else:
                x = x * weight.unflatten(dim, (len(self.runs), small))
            return x.flatten(dim, dim + 1)
        if self.runs:
            x = torch.cat([_run(x, dim, *run) for run in self.runs], dim)
        elif self.entry.dim() == 1:
            x = x.index_select(dim, self.entry)
        else:
            layers = zip(x, self.entry, strict=True)
            x = torch.stack([layer.index_select(dim - 1, entry) for layer, entry in layers])
        weight = self._over(x, dim)
        if weight is None:
            return x
        in_place = not torch.is_grad_enabled() and x.dtype == weight.dtype  # x was made here
        return x.mul_(weight) if in_place else x * weight

    def at(self, layer: int | None) -> Copier:
        """The form of one layer of the large stack, or of all."""
        if layer is None:
            return self
        entry, weight = self.entry, self.weight
        entry = entry if entry.dim() == 1 else entry[layer : layer + 1]
        weight = weight if weight is None or weight.dim() == 1 else weight[layer : layer + 1]
        return self._replace(entry=entry, weight=weight)

    def squared(self, small: int) -> Copier:
        """Square the entries of the matrix, (L, ``small``)."""
        weight = self.weight
        if self.mean:
            one = torch.ones(self.entry.shape, device=self.entry.device)
            weight = one if weight is None else weight
            weight = torch.where(self.entry == small, weight / small**0.5, weight)
        return self._replace(weight=None if weight is None else weight.square())

    def _over(self, x: Tensor, dim: int) -> Tensor | None:
        """The weight, so that it multiplies a dimension of (g, ...)."""
        if self.weight is None:
            return None
        shape = [1] * x.dim()
        shape[0] = len(self.weight) if self.weight.dim() == 2 else 1
        shape[dim] = self.weight.shape[-1]
        return self.weight.view(shape)


def _runs(entry: Tensor) -> list[tuple[int, int, int]]:
    """Find stretches of entries that are equal or consecutive: (first, how many, step).

    >>> _runs(torch.tensor([0, 1, 2, 0, 1, 3, 3, 3]))
    [(0, 3, 1), (0, 2, 1), (3, 3, 0)]
    """
    runs: list[tuple[int, int, int]] = []
    for value in entry.tolist():
        first, many, step = runs[-1] if runs else (0, 0, 1)
        if many == 1 and value == first:
            runs[-1] = (first, 2, 0)
        elif many and value == first + many * step:
            runs[-1] = (first, many + 1, step)
        else:
            runs.append((value, 1, 1))
    return runs


def _run(x: Tensor, dim: int, first: int, many: int, step: int) -> Tensor:
    if step:
        return x.narrow(dim, first, many)
    return x.narrow(dim, first, 1).expand(*x.shape[:dim], many, *x.shape[dim + 1 :])


def project(right: Tensor, x: Tensor, dim: int) -> Tensor:
    """Multiply a dimension of (g, ..., S, ...) by V, which is (r, S) or (g, r, S)."""
    behind, right = math.prod(x.shape[dim + 1 :]), right.to(x.dtype)
    if behind == 1:
        few = x.reshape(len(x), -1, x.shape[dim]) @ right.mT
    elif dim == 1:
        few = right @ x.reshape(*x.shape[:2], behind)
    else:
        return along(right, x, dim)
    return few.reshape(*x.shape[:dim], right.shape[-2], *x.shape[dim + 1 :])


def along(matrix: Tensor, x: Tensor, dim: int) -> Tensor:
    """Multiply a dimension of (g, ...) by (L, S), or by (g, L, S) with a map for each layer."""
    shape, matrix = x.shape, matrix.to(x.dtype)
    x = x.reshape(shape[0], math.prod(shape[1:dim]), shape[dim], -1)
    x = torch.einsum("LS,goSi->goLi" if matrix.dim() == 2 else "gLS,goSi->goLi", matrix, x)
    return x.reshape(*shape[:dim], -1, *shape[dim + 1 :])
