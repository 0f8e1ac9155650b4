"""The operator: every map of a plan and the depth mix of every stack; it grows parameters.

Shapes: g layers of the large stack, l of the small one, L and S the lengths of one axis in the
large and the small network, o and i whatever stands before and behind that axis.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor, nn

from lightning_ligo.axes import Product, Sum, uses_of
from lightning_ligo.maps import append, copy, interpolate
from lightning_ligo.methods import Method, method_named
from lightning_ligo.plan import Plan, Row


class _Span(NamedTuple):
    """Neighbouring factors of a dimension that one map grows together."""

    factors: int  # how many
    small: int
    large: int
    key: str
    form: str
    power: int
    axis: str  # the first that grows


class Operator(nn.Module):
    """A linear map from the small network's parameters to the large one's.

    Its parameters are the coefficients; the small weights are held fixed. For one parameter of
    layer g: ``W[g] = B (Σ_l w[g, l] W_small[l]) Aᵀ``, with the depth mix ``w`` first, in the small
    space, and a producing or consuming form of a map on every dimension (LiGO, equation 5).

    Args:
        plan: what grows into what.
        small: the network whose weights are grown; they are read once, here.
        method: a name of `METHODS`, or a `Method`.
        seed: of the random part of the start.

    Raises:
        ValueError: for an unknown method.
    """

    def __init__(
        self, plan: Plan, small: nn.Module, method: str | Method = "ligo", seed: int = 0
    ) -> None:
        super().__init__()
        self.plan = plan
        self.method = method_named(method) if isinstance(method, str) else method
        self._generator = torch.Generator().manual_seed(seed)
        tensors = _tensors(small)
        device = next(iter(tensors.values())).device
        self._small: dict[str, Tensor] = {}  # (l, *shape): the small parameter of every layer
        self._grown = [row for row in plan.rows if row.small_names]
        self._moved = [row for row in plan.buffers if row.small_names]
        for row in (*self._grown, *self._moved):
            layers = [tensors[name].detach() for name in row.small_names]
            self._small[row.pattern] = torch.stack(layers)
        floats = [t.dtype for t in self._small.values() if t.is_floating_point()]
        half = floats[0] in (torch.float16, torch.bfloat16)
        self._dtype = torch.float32 if half else floats[0]
        learned = self.method.learns != "nothing"
        self.maps = nn.ParameterDict()
        self.mixes = nn.ParameterDict()
        self._scales: dict[str, float] = {}
        self._neutral: dict[str, Tensor] = {}  # (g): 1 for layers that let the stream pass
        for row in self._grown:
            for product in row.dims:
                for span in self._spans(product):
                    self._start_map(span, device, learned)
        for row in self._grown:
            if self._mixed(row):
                writes = row.writes or row.passes
                mix = self.method.depth(*self._depth(row), writes, self._generator)
                if row.passes:
                    self._neutral[row.pattern] = (~mix.any(1)).to(device, self._dtype)
                self.mixes[_key(row.pattern)] = nn.Parameter(
                    mix.to(device, self._dtype), requires_grad=learned
                )

    @property
    def coefficients(self) -> int:
        """How many numbers are learned."""
        return sum(p.numel() for p in self.parameters() if p.requires_grad)

    def forward(self) -> dict[str, Tensor]:
        """The parameters of the large network by name, differentiable in the coefficients.

        Those of layers that the small network has nothing like are left out, but where they write.

        They are computed in the coefficients' precision, float32 or more, and have the dtype of the
        small ones.
        """
        grown = {
            name: tensor
            for row in self._grown
            for name, tensor in zip(
                row.large_names,
                self._grow(row).to(self._small[row.pattern].dtype).unbind(),
                strict=True,
            )
        }
        like = next(iter(grown.values()))
        silent = {
            name: like.new_zeros(row.large)
            for row in self.plan.rows
            if row.writes and not row.small_names
            for name in row.large_names
        }
        return grown | silent

    @torch.no_grad()
    def bake(self, large: nn.Module) -> None:
        """Write the grown parameters and buffers into ``large``, which stays a plain network."""
        tensors = _tensors(large)
        for name, tensor in self().items():
            tensors[name].copy_(tensor)
        for row in self._moved:
            grown = self._grow(row) if row.dims else self._small[row.pattern][self._sources(row)]
            for name, tensor in zip(row.large_names, grown, strict=True):
                tensors[name].copy_(tensor)

    def parents(self) -> dict[str, list[str]]:
        """The small parameters that each large one comes from, the one it takes after first."""
        parents = {}
        for row in self.plan.rows:
            if not row.small_names:
                parents.update({name: [self._alike(name)] for name in row.large_names})
                continue
            for name, source in zip(row.large_names, self._sources(row).tolist(), strict=True):
                first = row.small_names[source]
                mixed = [other for other in row.small_names if other != first]
                parents[name] = [first, *(mixed if self._mixed(row) else [])]
        return parents

    def _alike(self, name: str) -> str:
        """The small parameter whose name has most in common with that of a new layer."""
        words = name.split(".")

        def likeness(other: str) -> tuple[int, int]:
            theirs = other.split(".")
            same = [one == two for one, two in zip(words[::-1], theirs[::-1], strict=False)]
            return (*same, False).index(False), sum(map(str.__eq__, words, theirs))

        return max((other for row in self._grown for other in row.small_names), key=likeness)

    # Rows ----------------------------------------------------------------------------------

    def _depth(self, row: Row) -> tuple[int, int]:
        return self.plan.depths[row.stack] if row.stack else (1, 1)

    def _mixed(self, row: Row) -> bool:
        small, large = self._depth(row)
        return row.stack is not None and (small != large or self.method.mixes_equal_depth)

    def _sources(self, row: Row) -> Tensor:
        """(g): the layer of the small stack that each layer of the large one mostly comes from."""
        small, large = self._depth(row)
        if small == large:
            return torch.arange(large)
        generator = torch.Generator().manual_seed(0)
        return self.method.depth(small, large, False, generator).argmax(1)

    def _grow(self, row: Row) -> Tensor:
        """(g, *large shape): the parameter of every layer."""
        grown = self._small[row.pattern]
        grows = any(self.plan.grows(product) for product in row.dims)
        mix = self.mixes.get(_key(row.pattern))
        if mix is not None or grows:
            grown = grown.to(self._dtype)
        if mix is not None:
            grown = torch.tensordot(mix, grown, dims=1)
            if row.pattern in self._neutral:
                grown = grown + self._neutral[row.pattern].view(-1, *[1] * (grown.dim() - 1))
        elif row.stack and self._depth(row)[0] != self._depth(row)[1]:
            grown = grown[self._sources(row)]
        for dim, product in enumerate(row.dims, start=1):
            grown = self._expand(grown, dim, product)
        return grown

    def _expand(self, x: Tensor, dim: int, product: Product) -> Tensor:
        """Grow one dimension of (g, ...), factor by factor and segment by segment."""
        if x.shape[dim] != (length := self.plan.length(product)[0]):
            x = self._repeat(x, dim, product, length // x.shape[dim])
        if not self.plan.grows(product):
            return x
        spans = list(self._factors(product))
        x = x.unflatten(dim, [self._length(span) for span in spans])
        for position, span in enumerate(spans, start=dim):
            if isinstance(span, Sum):
                lengths = [self.plan.length(segment)[0] for segment in span.segments]
                pieces = zip(x.split(lengths, position), span.segments, strict=True)
                x = torch.cat(
                    [self._expand(x, position, segment) for x, segment in pieces], position
                )
            elif span.small != span.large and (stretch := self.plan.facts[span.axis].stretch):
                stretched = {"append": append, "copy": copy, "interpolate": interpolate}[stretch]
                x = stretched(x, position, span.large)
            elif span.small != span.large:
                x = _along(self._matrix(span), x, position)
        return x.flatten(dim, dim + len(spans) - 1)

    def _repeat(self, x: Tensor, dim: int, product: Product, repeats: int) -> Tensor:
        """Give every query its own of the heads that keys and values share."""
        lengths = [
            self.plan.length((node,))[0] // self.plan.shared.get(getattr(node, "axis", ""), 1)
            for node in product
        ]
        heads = next(i for i, n in enumerate(product) if getattr(n, "axis", "") in self.plan.shared)
        x = x.unflatten(dim, lengths).repeat_interleave(repeats, dim + heads)
        return x.flatten(dim, dim + len(lengths) - 1)

    def _length(self, span: _Span | Sum) -> int:
        return self.plan.length((span,))[0] if isinstance(span, Sum) else span.small

    # Maps ----------------------------------------------------------------------------------

    def _factors(self, product: Product) -> Iterator[_Span | Sum]:
        """The maps and sums that a dimension is grown by, slowest first."""
        if self.method.learns == "lower" and not any(isinstance(n, Sum) for n in product):
            yield from self._whole(product)
            return
        for node in product:
            if isinstance(node, Sum):
                yield node
            else:
                small, large = self.plan.lengths[node.axis]
                yield _Span(1, small, large, node.axis, node.form, node.power, node.axis)

    def _whole(self, product: Product) -> Iterator[_Span]:
        """A map for a flow, over all of a dimension from its first axis that grows."""
        uses = list(uses_of(product))
        first = next((i for i, use in enumerate(uses) if self.plan.grows((use,))), len(uses))
        for use in uses[:first]:
            length = self.plan.lengths[use.axis][0]
            yield _Span(1, length, length, use.axis, use.form, 0, use.axis)
        if first < len(uses):
            small, large = self.plan.length(product[first:])
            key, axis = uses[first].flow, uses[first].axis
            yield _Span(len(uses) - first, small, large, key, "produces", 0, axis)

    def _spans(self, product: Product) -> Iterator[_Span]:
        """The maps of a dimension, also those inside its sums."""
        for factor in self._factors(product):
            if isinstance(factor, Sum):
                for segment in factor.segments:
                    yield from self._spans(segment)
            elif factor.small != factor.large and not self.plan.facts[factor.axis].stretch:
                yield factor

    def _start_map(self, span: _Span, device: torch.device, learned: bool) -> None:
        key = _key(span.key)
        if f"{key}:produces" in self.maps:
            return
        axis = self.plan.facts[span.axis]
        start_map = self.method.inner if axis.inner else self.method.width
        starts = [
            start_map(span.small, span.large, axis.normed, silent, self._generator)
            for silent in (self._silent(axis.stack) if axis.stack else [False])
        ]
        forms = ("produces",) if self.method.learns == "lower" else ("produces", "consumes")
        for form in forms:
            matrices = [getattr(start, form).to(device, self._dtype) for start in starts]
            if self.method.learns == "lower":
                matrices = [matrix[span.small :] for matrix in matrices]
            start = torch.stack(matrices) if axis.stack else matrices[0]
            self.maps[f"{key}:{form}"] = nn.Parameter(start, requires_grad=learned)
        self._scales[key] = starts[0].scale * self.plan.scales.get(span.axis, 1.0)

    def _silent(self, stack: str) -> list[bool]:
        """For every layer of the large stack, whether it writes nothing at the start."""
        small, large = self.plan.depths[stack]
        if small == large and not self.method.mixes_equal_depth:
            return [False] * large
        mix = self.method.depth(small, large, True, torch.Generator().manual_seed(0))
        return (~mix.any(1)).tolist()

    def _matrix(self, span: _Span) -> Tensor:
        matrix = self.maps[f"{_key(span.key)}:{span.form}"]
        if self.method.learns == "lower":
            eye = torch.eye(span.small, dtype=matrix.dtype, device=matrix.device)
            return torch.cat([eye.expand(*matrix.shape[:-2], -1, -1), matrix], dim=-2)
        scale = self._scales[_key(span.key)] ** span.power
        return matrix if scale == 1 else matrix * scale


def _along(matrix: Tensor, x: Tensor, dim: int) -> Tensor:
    """Multiply a dimension of (g, ...) by (L, S), or by (g, L, S) with a map for each layer."""
    shape = x.shape
    x = x.reshape(shape[0], math.prod(shape[1:dim]), shape[dim], -1)
    x = torch.einsum("LS,goSi->goLi" if matrix.dim() == 2 else "gLS,goSi->goLi", matrix, x)
    return x.reshape(*shape[:dim], -1, *shape[dim + 1 :])


def _tensors(network: nn.Module) -> dict[str, Tensor]:
    return {**dict(network.named_parameters()), **dict(network.named_buffers())}


def _key(name: str) -> str:
    """A parameter's name may hold no dot."""
    return name.replace(".", "/")
