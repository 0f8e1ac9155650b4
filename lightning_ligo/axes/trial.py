"""Ask an operation without a rule: permute its inputs, and see what its outputs do.

The operation is called alone, on random numbers. For each factor of its inputs the entries are
permuted: alone, or else together with those of other factors of the same length. Then an output
may be permuted alike along some of its dimensions (they are this factor too), or not change (the
factor is summed over), or change otherwise (its entries are told apart by their position).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import _disable_current_modes
from torch.utils._pytree import tree_flatten, tree_leaves, tree_unflatten

from lightning_ligo.axes.dims import Product, change_along, length, uses_of
from lightning_ligo.axes.factors import Dim, Factor, Item, product_of

ENOUGH = 1 << 18  # numbers in the inputs of a trial; longer dimensions are shortened
TOGETHER = 4  # factors that are permuted together, at most

Change = Callable[[Tensor, int], Tensor]


class Untried(Exception):
    """An operation cannot be called alone, or does not do the same twice."""


class Place(NamedTuple):
    """A factor of a dimension of an input."""

    tensor: int
    dim: int
    item: Item


class Along(NamedTuple):
    """Where a factor is in an output: its dimension, and the length of what is inside of it."""

    output: int
    dim: int
    inner: int


@dataclass(frozen=True)
class Together:
    """Factors that only leave an operation as it is if they are permuted together.

    If every entry is there twice, outputs stay where two inputs are divided by the root of two
    (``contracted``), or the inputs made of parameters by two (``consumed``).
    """

    factors: tuple[int, ...]  # their numbers among the factors of the inputs
    along: tuple[Along, ...]  # where they are in the outputs; nowhere if they are summed over
    unlike: tuple[int, ...]  # the numbers of the outputs that change otherwise
    contracted: bool
    consumed: bool


@dataclass(frozen=True)
class Found:
    """What a trial has found.

    In the layout, "own" is a factor of the output alone, "equal" one whose entries are equal.
    """

    together: tuple[Together, ...]  # the factors that are exchangeable
    apart: tuple[int, ...]  # the numbers of the others
    layout: tuple[tuple[tuple[int | str, ...], ...], ...]  # those in each dimension of each output


class Trial:
    """One operation with random inputs, which can be changed along their factors."""

    def __init__(
        self, func: Any, args: Any, kwargs: Any, dims: Sequence[list[Dim]], static: Sequence[bool]
    ) -> None:
        self._func = func
        self._static = static
        self._leaves, self._spec = tree_flatten((args, kwargs))
        self._tensors = [n for n, leaf in enumerate(self._leaves) if isinstance(leaf, Tensor)]
        self.products: list[list[Product[Item]]] = [
            [product_of(items, lambda leaf: False) for items in each] for each in dims
        ]
        self.places: dict[Factor, list[Place]] = {}
        for number, each in enumerate(self.products):
            if _dense(self._leaves[self._tensors[number]]):
                for dim, product in enumerate(each):
                    for item in uses_of(product):
                        place = Place(number, dim, item)
                        self.places.setdefault(item.factor.root(), []).append(place)
        self._short = {size: size for size in sorted({factor.size for factor in self.places})}
        self._shorten()

    @property
    def key(self) -> Any:
        """Identify trials with the same answer; functions and masks are not compared."""
        numbers = {factor: n for n, factor in enumerate(self.places)}
        inputs = [
            (tensor.dtype, [[(numbers.get(i.factor.root()), i.factor.size) for i in uses_of(p)]
                            for p in self.products[n]])
            for n, tensor in enumerate(self._inputs())
        ]  # fmt: skip
        others = [leaf for leaf in self._leaves if not isinstance(leaf, Tensor)]
        return str(
            (self._func, self._static, id(self) if any(map(callable, others)) else others, inputs)
        )

    def _shorten(self) -> None:
        """Choose other lengths for factors, where the inputs are large."""
        if sum(math.prod(self._shape(n)) for n in range(len(self._tensors))) > ENOUGH:
            long = [size for size in self._short if size > 8]
            free = itertools.count(9 if 8 in self._short else 8)
            self._short.update(zip(long, free, strict=False))

    def _shape(self, number: int) -> list[int]:
        return [length(product, self._size) for product in self.products[number]]

    def _size(self, item: Item) -> int:
        return self._short.get(item.factor.size, item.factor.size)

    def ask(self) -> Found:
        """Find which factors are exchangeable, and where they are in the outputs.

        Raises:
            Untried: if the operation cannot be called on random numbers, or answers at random.
        """
        error: Exception | None = None
        for draw in (_normal, _fractions):
            try:
                return self._ask(draw)
            except Exception as raised:  # whatever an operation raises for numbers it does not take
                error = raised
        raise Untried(str(error)) from error

    def _ask(self, draw: Callable[..., Tensor]) -> Found:
        self._values = self._drawn(draw)
        self._before = self._call(self._values)
        self._valued = [n for n, out in enumerate(self._before) if out.is_floating_point()
                        or out.is_complex()] or [*range(len(self._before))]  # fmt: skip
        again = self._call(self._values)
        if not all(map(_same, self._before, again)) or not self._before:
            raise Untried("it does not return the same twice")
        if not all(out.isfinite().any() for out in self._before if out.numel()):
            raise Untried("it returns no finite number")
        numbers = list(self.places)
        together, left = list[Together](), list(range(len(numbers)))
        for wanted in (all, any):  # of the outputs
            for count in range(1, TOGETHER + 1):
                for chosen in itertools.combinations(left, count):
                    if len({numbers[n].size for n in chosen}) == 1 and {*chosen} <= {*left}:
                        found = self._found([numbers[n] for n in chosen])
                        if wanted(found[n] is not None for n in self._valued):
                            together.append(self._described(chosen, found))
                            left = [n for n in left if n not in chosen]
        return Found(tuple(together), tuple(left), tuple(self._layout(together)))

    def _layout(self, together: Sequence[Together]) -> Iterator[tuple[tuple[int | str, ...], ...]]:
        numbers = list(self.places)
        inside: dict[tuple[int, int], list[tuple[int, int, int]]] = {}
        for number, each in enumerate(together):
            for output, dim, inner in each.along:
                size = self._short[numbers[each.factors[0]].size]
                inside.setdefault((output, dim), []).append((inner, size, number))
        for output, out in enumerate(self._before):
            yield tuple(
                _in_order(length, inside.get((output, dim), []), out, dim)
                for dim, length in enumerate(out.shape)
            )

    # Calls -------------------------------------------------------------------------------------

    def _drawn(self, draw: Callable[..., Tensor]) -> list[Tensor]:
        """Draw random numbers for tensors, and keep whole numbers and masks that have values."""
        generator = torch.Generator().manual_seed(0)
        device = next((t.device for t in self._inputs() if not t.is_meta), torch.device("cpu"))
        drawn = []
        for number, tensor in enumerate(self._inputs()):
            shape = self._shape(number)
            kept = not (tensor.is_meta or tensor.is_floating_point() or tensor.is_complex())
            if not _dense(tensor) or (kept and [*tensor.shape] == shape):
                drawn.append(tensor.detach())
            else:
                drawn.append(draw(tensor.dtype, shape, generator).to(device))
        return drawn

    def _inputs(self) -> list[Tensor]:
        return [self._leaves[n] for n in self._tensors]

    def _call(self, values: Sequence[Tensor]) -> list[Tensor]:
        here: dict[Any, Any] = dict(self._short)
        here[torch.device("meta")] = values[0].device
        leaves = [here.get(x, x) if type(x) in (int, torch.device) else x for x in self._leaves]
        for number, value in zip(self._tensors, values, strict=True):
            leaves[number] = value.clone()
        args, kwargs = tree_unflatten(leaves, self._spec)
        with _disable_current_modes(), torch.no_grad(), torch.random.fork_rng():
            torch.manual_seed(0)
            out = self._func(*args, **kwargs)
        return [
            leaf.to_dense() if leaf.layout != torch.strided else leaf
            for leaf in tree_leaves(out)
            if isinstance(leaf, Tensor)
        ]

    def _changed(self, factors: Sequence[Factor], change: Change) -> list[Tensor]:
        """Change all inputs along these factors."""
        values = list(self._values)
        places = [place for factor in factors for place in self.places[factor]]
        for number, dim in dict.fromkeys((place.tensor, place.dim) for place in places):
            here = {p.item: change for p in places if (p.tensor, p.dim) == (number, dim)}
            values[number] = change_along(
                values[number], dim, self.products[number][dim], self._size, here
            )
        return values

    # Answers -----------------------------------------------------------------------------------

    def _found(self, factors: Sequence[Factor]) -> list[tuple[Along, ...] | None]:
        """Where factors are in each output; None if it tells their entries apart."""
        size = self._short[factors[0].size]
        changes = [partial(torch.index_select, index=order) for order in _orders(size)]
        after = [self._call(self._changed(factors, change)) for change in changes]
        return [
            self._along(number, size, changes, [each[number] for each in after])
            for number in range(len(self._before))
        ]

    def _along(
        self, number: int, size: int, changes: Sequence[Change], after: Sequence[Tensor]
    ) -> tuple[Along, ...] | None:
        """Find the dimensions of an output along which it is permuted by the same changes."""
        for dims in _guesses(self._before[number].shape, size):
            tried = [self._before[number] for _ in changes]
            for dim, inner in dims:
                tried = [
                    _along_part(out, dim, size, inner, change)
                    for out, change in zip(tried, changes, strict=True)
                ]
            if all(map(_same, tried, after)):
                return tuple(Along(number, dim, inner) for dim, inner in dims)
        return None

    def _described(
        self, chosen: Sequence[int], found: Sequence[tuple[Along, ...] | None]
    ) -> Together:
        factors = [list(self.places)[n] for n in chosen]
        along = tuple(each for output in found for each in output or ())
        unlike = tuple(n for n, output in enumerate(found) if output is None)
        inside = {place.tensor for factor in factors for place in self.places[factor]}
        fixed = {number for number in inside if self._static[number]}

        def stays(divided: set[int], by: float) -> bool:
            values = self._changed(factors, lambda tensor, dim: tensor.repeat_interleave(2, dim))
            try:
                out = self._call([v / by if n in divided else v for n, v in enumerate(values)])
            except Exception:  # an operation that is told the length
                return False
            kept = (n for n in range(len(out)) if n not in unlike)
            return all(_same(out[n], self._before[n]) for n in kept)

        return Together(
            tuple(chosen), along, unlike,
            contracted=not along and len(inside) == 2 and stays(inside, math.sqrt(2)),
            consumed=not along and 0 < len(fixed) < len(inside) and stays(fixed, 2),
        )  # fmt: skip


def _dense(tensor: Tensor) -> bool:
    return tensor.layout == torch.strided


def _normal(dtype: torch.dtype, shape: Sequence[int], generator: torch.Generator) -> Tensor:
    """Draw floats of any sign, or whole numbers that name one of two."""
    if dtype.is_complex:
        return torch.randn(shape, dtype=torch.complex128, generator=generator)
    if dtype.is_floating_point:
        return torch.randn(shape, dtype=torch.float64, generator=generator)
    return torch.randint(2, shape, generator=generator).to(dtype)


def _fractions(dtype: torch.dtype, shape: Sequence[int], generator: torch.Generator) -> Tensor:
    """Draw floats between 0 and 1 in the operation's own precision, or zeros."""
    if dtype.is_floating_point:
        return torch.rand(shape, generator=generator).mul_(0.8).add_(0.1).to(dtype)
    return torch.zeros(shape, dtype=dtype)


def _orders(size: int) -> Iterator[Tensor]:
    """A cycle through all entries in random order, and a swap: they generate all orders."""
    entries = torch.randperm(size, generator=torch.Generator().manual_seed(size))
    for moved in (entries, entries[:2]):
        order = torch.arange(size)
        order[moved] = moved.roll(1)
        yield order


def _guesses(shape: Sequence[int], size: int) -> list[tuple[tuple[int, int], ...]]:
    """Where a factor may be: dimensions, and the length inside of it; few dimensions first."""
    choices = [
        [None, *((dim, inner) for inner in range(1, whole // size + 1)
                 if whole % size == 0 and (whole // size) % inner == 0)]
        for dim, whole in enumerate(shape)
    ]  # fmt: skip
    picked = (tuple(filter(None, choice)) for choice in itertools.product(*choices))
    return sorted(itertools.islice(picked, 256), key=len)


def _along_part(out: Tensor, dim: int, size: int, inner: int, change: Change) -> Tensor:
    parts = out.unflatten(dim, (-1, size, inner))
    return change(parts, dim + 1).flatten(dim, dim + 2)


def _same(one: Tensor, other: Tensor) -> bool:
    close = 1e-9 if one.dtype in (torch.float64, torch.complex128) else 1e-4
    return one.shape == other.shape and torch.allclose(
        one, other.to(one.dtype), rtol=close, atol=close, equal_nan=True
    )


def _in_order(
    whole: int, inside: list[tuple[int, int, int]], out: Tensor, dim: int
) -> tuple[int | str, ...]:
    """Order factors of a dimension, each with what is inside of it, and fill the gap."""
    equal = "equal" if whole and bool((out == out.narrow(dim, 0, 1)).all()) else "own"
    layout: list[int | str] = []
    for inner, size, number in sorted(inside, reverse=True):
        if whole < inner * size or whole % (inner * size):
            raise Untried("its factors overlap")
        layout += [equal] if whole > inner * size else []
        layout.append(number)
        whole = inner
    layout += [equal] if whole != 1 else []
    if sum(type(each) is str for each in layout) > 1:
        raise Untried("its output has several factors of its own")
    return tuple(layout)
