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

from lightning_ligo.axes import Use
from lightning_ligo.methods import Method, method_named
from lightning_ligo.plan import Plan, Row


class _Span(NamedTuple):
    """The part of a dimension that one map grows: ``before`` and ``after`` it in the dimension."""

    dim: int
    before: int
    small: int
    large: int
    after: int
    key: str
    form: str
    power: int


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
        for row in (*plan.rows, *plan.buffers):
            layers = [tensors[name].detach() for name in row.names(self._depth(row)[0])]
            self._small[row.pattern] = torch.stack(layers)
        floats = [t.dtype for t in self._small.values() if t.is_floating_point()]
        half = floats[0] in (torch.float16, torch.bfloat16)
        self._dtype = torch.float32 if half else floats[0]
        learned = self.method.learns != "nothing"
        self.maps = nn.ParameterDict()
        self.mixes = nn.ParameterDict()
        self._scales: dict[str, float] = {}
        for row in plan.rows:
            for span in self._spans(row):
                self._start_map(span, row, device, learned)
        for row in plan.rows:
            if self._mixed(row):
                mix = self.method.depth(*self._depth(row), _writes(plan, row), self._generator)
                self.mixes[_key(row.pattern)] = nn.Parameter(
                    mix.to(device, self._dtype), requires_grad=learned
                )

    @property
    def coefficients(self) -> int:
        """How many numbers are learned."""
        return sum(p.numel() for p in self.parameters() if p.requires_grad)

    def forward(self) -> dict[str, Tensor]:
        """All parameters of the large network by name, differentiable in the coefficients."""
        return {
            name: tensor
            for row in self.plan.rows
            for name, tensor in zip(
                row.names(self._depth(row)[1]), self._grow(row).unbind(), strict=True
            )
        }

    @torch.no_grad()
    def bake(self, large: nn.Module) -> None:
        """Write the grown parameters and buffers into ``large``, which stays a plain network."""
        tensors = _tensors(large)
        for name, tensor in self().items():
            tensors[name].copy_(tensor)
        for row in self.plan.buffers:
            grown = self._grow(row) if row.dims else self._small[row.pattern][self._sources(row)]
            for name, tensor in zip(row.names(self._depth(row)[1]), grown, strict=True):
                tensors[name].copy_(tensor)

    def parents(self) -> dict[str, str]:
        """The small parameter that each large one comes from, the first where it mixes several."""
        return {
            name: row.names(self._depth(row)[0])[source]
            for row in self.plan.rows
            for name, source in zip(
                row.names(self._depth(row)[1]), self._sources(row).tolist(), strict=True
            )
        }

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
        spans = self._spans(row)
        mix = self.mixes.get(_key(row.pattern))
        if mix is not None or spans:
            grown = grown.to(self._dtype)
        if mix is not None:
            grown = torch.tensordot(mix, grown, dims=1)
        elif row.stack and self._depth(row)[0] != self._depth(row)[1]:
            grown = grown[self._sources(row)]
        for span in spans:
            shape = list(grown.shape)
            before = math.prod(shape[1 : span.dim + 1]) * span.before
            matrix = self._matrix(span)  # (L, S), or (g, L, S) where each layer has its own
            grown = grown.reshape(len(grown), before, span.small, -1)
            grown = torch.einsum("...LS,goSi->goLi" if matrix.dim() == 2 else "gLS,goSi->goLi",
                                 matrix, grown)  # fmt: skip
            shape[span.dim + 1] = shape[span.dim + 1] // span.small * span.large
            grown = grown.reshape(shape)
        return grown

    # Maps ----------------------------------------------------------------------------------

    def _spans(self, row: Row) -> list[_Span]:
        if self.method.learns == "lower":
            return list(self._flow_spans(row))
        return list(self._axis_spans(row))

    def _axis_spans(self, row: Row) -> Iterator[_Span]:
        """A map for every axis."""
        for dim, uses in enumerate(row.dims):
            lengths = [self.plan.lengths[use.axis] for use in uses]
            for position, (use, (small, large)) in enumerate(zip(uses, lengths, strict=True)):
                if small != large:
                    before = math.prod(pair[1] for pair in lengths[:position])
                    after = math.prod(pair[0] for pair in lengths[position + 1 :])
                    yield _Span(dim, before, small, large, after, use.axis, use.form, use.power)

    def _flow_spans(self, row: Row) -> Iterator[_Span]:
        """A map for every flow, over all of a dimension from its first axis that grows."""
        for dim, uses in enumerate(row.dims):
            first = next((i for i, use in enumerate(uses) if self.plan.grows(use)), None)
            if first is not None:
                lengths = [self.plan.lengths[use.axis] for use in uses]
                small, large = (
                    math.prod(pair[side] for pair in lengths[first:]) for side in (0, 1)
                )
                before = math.prod(pair[0] for pair in lengths[:first])
                yield _Span(dim, before, small, large, 1, uses[first].flow, "produces", 0)

    def _start_map(self, span: _Span, row: Row, device: torch.device, learned: bool) -> None:
        key = _key(span.key)
        if f"{key}:produces" in self.maps:
            return
        use = next(use for use in row.dims[span.dim] if self.plan.grows(use))
        axis = self.plan.facts[span.key if span.key in self.plan.facts else use.axis]
        layers = self.plan.depths[axis.stack][1] if axis.stack else 0
        starts = [
            self.method.width(span.small, span.large, axis.normed, silent, self._generator)
            for silent in (self._silent(axis.stack) if axis.stack else [False])
        ]
        forms = ("produces",) if self.method.learns == "lower" else ("produces", "consumes")
        for form in forms:
            matrices = [getattr(start, form).to(device, self._dtype) for start in starts]
            if self.method.learns == "lower":
                matrices = [matrix[span.small :] for matrix in matrices]
            start = torch.stack(matrices) if layers else matrices[0]
            self.maps[f"{key}:{form}"] = nn.Parameter(start, requires_grad=learned)
        self._scales[key] = starts[0].scale

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


def _tensors(network: nn.Module) -> dict[str, Tensor]:
    return {**dict(network.named_parameters()), **dict(network.named_buffers())}


def _key(name: str) -> str:
    """A parameter's name may hold no dot."""
    return name.replace(".", "/")


def _writes(plan: Plan, row: Row) -> bool:
    """Whether a module of a stack writes into a stream that passes the whole stack."""
    return any(_into_stream(plan, use) for dim in row.dims for use in dim)


def _into_stream(plan: Plan, use: Use) -> bool:
    axis = plan.facts[use.axis]
    return use.role == "produces" and axis.stack is None and not axis.pinned
