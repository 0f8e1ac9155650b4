"""Maps of one axis: how they start.

A map is a pair of (large x small) matrices: the producing form ``B`` and the consuming form ``A``.
A linear's weight grows as ``B_out W A_inᵀ``; the function is kept when ``Aᵀ B = I``.

L and S are the lengths of the axis in the large and the small network.
"""

from __future__ import annotations

import math
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from lightning_ligo.methods.forms import Copies


class Map(NamedTuple):
    """The two forms of a map, and the root mean square gain of a norm.

    ``scale`` multiplies what writes a stream that a norm reads, and divides what reads it, so that
    the norm sees the variance that it saw in the small network.
    """

    produces: Copies | Tensor
    consumes: Copies | Tensor
    scale: float = 1.0


class Start(Protocol):
    """How a method starts the map of an axis that grows from ``small`` to ``large``.

    ``normed`` is "layer" or "rms" where a norm averages over the axis; ``zero_output`` is true
    inside a layer whose output is multiplied by zero.
    """

    def __call__(
        self,
        small: int,
        large: int,
        normed: str | None,
        zero_output: bool,
        generator: torch.Generator,
        /,
    ) -> Map: ...


# Copies -----------------------------------------------------------------------------------


def _cycle(small: int, large: int) -> Tensor:
    return torch.arange(large) % small


def _random(small: int, large: int, generator: torch.Generator) -> Tensor:
    """Every entry once, then entries drawn at random."""
    drawn = torch.randint(small, (large - small,), generator=generator)
    return torch.cat([torch.arange(small), drawn])


def _even_random(small: int, large: int, generator: torch.Generator) -> Tensor:
    """Every entry once, then all entries again in random order, as often as they fit whole."""
    cycles = [torch.randperm(small, generator=generator) for _ in range(large // small - 1)]
    return torch.cat([torch.arange(small), *cycles])


def _uneven(length: int, generator: torch.Generator) -> Tensor:
    return 1 + torch.rand(length, dtype=torch.float64, generator=generator)


def _shares(small: int, index: Tensor, drawn: Tensor) -> Tensor:
    """``drawn`` normalised so that the shares of all copies of an entry sum to 1."""
    return drawn / torch.zeros(small, dtype=drawn.dtype).index_add(0, index, drawn)[index]


def _averaged(
    small: int, large: int, normed: str | None, index: Tensor, shares: Tensor, uneven: Tensor | None
) -> Map:
    """The map of these copies; the remaining entries keep the statistics of a norm.

    They hold the mean of all entries under a layer norm, and zero under an RMS norm; readers ignore
    them. Both keep the divisor of the norm once the stream is multiplied by ``sqrt(L / copied)``.
    ``uneven`` shares make the copies themselves unequal.
    """
    produces = torch.ones_like(shares)
    if uneven is not None:
        produces = uneven * torch.bincount(index, minlength=small)[index]
    left = large - len(index)
    held = float(normed == "layer")
    index = torch.cat([index, torch.full((left,), small)])
    filled = torch.cat([produces, torch.full((left,), held, dtype=produces.dtype)])
    passed = torch.cat([shares, torch.zeros(left, dtype=shares.dtype)])
    return Map(Copies(index, filled), Copies(index, passed), math.sqrt(large / (large - left)))


# Starts ---------------------------------------------------------------------------------------


def uneven_copies(
    small: int, large: int, normed: str | None, zero_output: bool, generator: torch.Generator
) -> Map:
    """Entry i copies entry ``i mod S``; readers weigh the copies by unequal shares.

    ``B`` has one 1 a row, ``A`` has the shares of entry j in column j, and they sum to 1, so
    ``Aᵀ B = I``. The shares of c copies are drawn around 1/c, for two copies from [1/3, 2/3]:
    equal shares would give copies equal gradients, and they would stay equal. In a layer with
    ``zero_output`` shares make no difference; there the copies themselves are made unequal, scaled
    by the shares times their number.

    Where a norm averages over the axis and L is no multiple of S, see `_averaged`.

    Source: LEMON (ICLR 2024), equal shares: Net2Net (ICLR 2016).
    """
    index = _cycle(small, large - large % small if normed else large)
    shares = _shares(small, index, _uneven(len(index), generator))
    return _averaged(small, large, normed, index, shares, shares if zero_output else None)


def random_copies(
    small: int, large: int, normed: str | None, zero_output: bool, generator: torch.Generator
) -> Map:
    """Every entry once, then copies of random ones; readers divide by the number of copies.

    ``B[i, g(i)] = 1`` with ``g(i) = i`` for i < S and random beyond, ``A = B / count``. Where a
    norm averages over the axis every entry is copied equally often, in random order, and the rest
    is as in `_averaged`; the paper has no such norm. In a layer with ``zero_output`` the copies are
    made unequal, as in `uneven_copies`.

    Source: Net2Net (ICLR 2016), Net2WiderNet.
    """
    index = (_even_random if normed else _random)(small, large, generator)
    shares = _shares(small, index, torch.ones(len(index), dtype=torch.float64))
    uneven = _shares(small, index, _uneven(len(index), generator)) if zero_output else None
    return _averaged(small, large, normed, index, shares, uneven)


def fpi_copies(
    small: int, large: int, normed: str | None, zero_output: bool, generator: torch.Generator
) -> Map:
    """`random_copies` that ignore norms.

    Source: bert2BERT (ACL 2022), function-preserving initialization.
    """
    return random_copies(small, large, None, False, generator)


def tiles(small: int, large: int, *_: object) -> Map:
    """Whole copies one after the other; readers divide by their number n: ``A = B / n``.

    Source: HyperCloning (2024); Staged Training (ICML 2022).
    """
    index = _cycle(small, large)
    one = torch.ones(large, dtype=torch.float64)
    return Map(Copies(index, one), Copies(index, one * small / large))


def rms_copies(small: int, large: int, *_: object) -> Map:
    """Entry i copies entry ``i mod S``; readers are scaled so that what they write keeps its RMS.

    ``A = a B`` with ``a = sqrt(S / (3 L - 2 S))`` for L up to 2 S, and ``S / L`` beyond: the
    variance of a sum in which c S of S independent terms come twice.

    Source: SPARKLING (ICML 2026), equation 17.
    """
    index = _cycle(small, large)
    one = torch.ones(large, dtype=torch.float64)
    factor = math.sqrt(small / (3 * large - 2 * small)) if large <= 2 * small else small / large
    return Map(Copies(index, one), Copies(index, factor * one))


def upper_left(small: int, large: int, *_: object) -> Map:
    """``B = A = [I; 0]``: old entries stay, new ones have no source."""
    index = torch.arange(large).clamp(max=small)
    both = Copies(index, (index < small).double())
    return Map(both, both)


def old_and_mean(small: int, large: int, normed: str | None, *_: object) -> Map:
    """``B = A = [I; 0]``; under a layer norm new entries hold the mean, see `_averaged`."""
    index, one = torch.arange(small), torch.ones(small, dtype=torch.float64)
    return _averaged(small, large, normed, index, one, None)


def random_rows(
    small: int, large: int, normed: str | None, zero_output: bool, generator: torch.Generator
) -> Map:
    """``B = A = [I; C]``, each row of ``C`` uniform and normalised to sum 1.

    Source: LiGO (ICLR 2023), the start ``rand`` of its released code.
    """
    rows = torch.rand(large - small, small, dtype=torch.float64, generator=generator)
    lower = rows / rows.sum(1, keepdim=True)
    both = torch.cat([torch.eye(small, dtype=torch.float64), lower])
    return Map(both, both)


# An axis that queries and keys are contracted over ------------------------------------------------
# Both sides of the contraction are written, so both grow by ``B``, and the product is kept when
# ``Bᵀ B = I``; the operator corrects for the number that it is divided by.


def uneven_isometry(
    small: int, large: int, normed: str | None, zero_output: bool, generator: torch.Generator
) -> Map:
    """Copies whose weights are the roots of unequal shares that sum to 1."""
    return _isometry(small, large, _uneven(large, generator))


def even_isometry(small: int, large: int, *_: object) -> Map:
    """Copies whose weights are the roots of equal shares."""
    return _isometry(small, large, torch.ones(large, dtype=torch.float64))


def _isometry(small: int, large: int, drawn: Tensor) -> Map:
    index = _cycle(small, large)
    both = Copies(index, _shares(small, index, drawn).sqrt())
    return Map(both, both)
