"""The operator: every map of a plan and the depth mix of every stack; it grows parameters.

Shapes: g layers of the large stack, l of the small one.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from lightning_ligo.methods.catalog import DEFAULT, method_named
from lightning_ligo.methods.method import Method, Width
from lightning_ligo.operator.depths import Depths
from lightning_ligo.operator.limits import changes, refuse
from lightning_ligo.operator.widths import Widths
from lightning_ligo.plan.plan import Plan, Row


class Operator(nn.Module):
    """A linear map from the small network's parameters to the large one's.

    Its parameters are the coefficients; the small weights are held fixed. For one parameter of
    layer g: ``W[g] = B (Σ_l w[g, l] W_small[l]) Aᵀ``, with the depth mix ``w`` first, in the small
    space, and a producing or consuming form of a map on every dimension (LiGO, equation 5). Forms
    and mixes that copy, and are not learned, are applied by indexing.

    ``inexact`` says why the large network does not compute what the small one does, before anything
    is learned: what the plan knows, which holds for every method, and what this method's maps and
    mixes change.

    Args:
        plan: what grows into what.
        small: the network whose weights are grown; they are read once, here.
        method: a name of `METHODS`, two with a plus between, or a `Method`.
        seed: of the random part of the start.

    Raises:
        ValueError: for an unknown method, and for one that cannot grow by this plan.
    """

    def __init__(
        self, plan: Plan, small: nn.Module, method: str | Method = DEFAULT, seed: int = 0
    ) -> None:
        super().__init__()
        self.plan = plan
        self.method = method_named(method) if isinstance(method, str) else method
        refuse(plan, self.method)
        self._seed = seed
        device = next(iter(_tensors(small).values())).device
        self._grown = [row for row in plan.rows if row.small_names]
        self._moved = [row for row in plan.buffers if row.small_names]
        self._small = self._read(small)
        floats = [t.dtype for t in self._small.values() if t.is_floating_point()]
        half = floats[0] in (torch.float16, torch.bfloat16)
        self.dtype = torch.float32 if half else floats[0]
        generator = torch.Generator().manual_seed(seed)
        depth, width = self.method.depth, self.method.width
        self.depths = Depths(plan, depth, generator, device, self.dtype)
        self.widths = Widths(plan, width, self.depths.silent, generator, device, self.dtype)
        self.inexact = (*plan.inexact, *changes(plan, self.method, self.widths, self.depths))
        self.widths.forget()
        self._thin = {row.pattern for row in self._grown if self._is_thin(row)}
        self._copies: dict[str, Tensor] = {}  # (g, *shape), of what is not made anew at every step

    def _read(self, small: nn.Module) -> dict[str, Tensor]:
        """(l, *shape): the small parameter of every layer."""
        tensors = _tensors(small)
        return {
            row.pattern: torch.stack([tensors[name].detach() for name in row.small_names])
            for row in (*self._grown, *self._moved)
        }

    def of(self, small: nn.Module) -> Operator:
        """This operator, with the same coefficients, for the weights of another small network.

        Such as an average of the network it was learned on; it may be on another device.
        """
        other = copy.copy(self)
        other._small = {
            pattern: tensor.to(self._small[pattern].device)
            for pattern, tensor in self._read(small).items()
        }
        other._copies = {}
        return other

    @property
    def coefficients(self) -> int:
        """How many numbers are learned."""
        return sum(p.numel() for p in self.parameters() if p.requires_grad)

    def forward(self, large: nn.Module | None = None) -> dict[str, Tensor]:
        """The parameters of the large network by name, differentiable in the coefficients.

        They are computed in the coefficients' precision, float32 or more, and have the dtype of the
        small ones. Those of layers that the small network has nothing like are left out, but where
        they write. ``large`` is asked for what the method leaves as it was built, if anything.
        """
        if self.method.takes_nothing:
            return {}
        built = _tensors(large) if large is not None else {}
        grown = {
            name: tensor
            for row in self._grown
            for name, tensor in zip(row.large_names, self._layers(row, built), strict=True)
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
        """Write the grown parameters and buffers into ``large``, which stays a plain network.

        Raises:
            ValueError: if ``large`` is on the meta device.
        """
        tensors = _tensors(large)
        if any(tensor.is_meta for tensor in tensors.values()):
            raise ValueError(
                f"{type(large).__name__} is on the meta device and cannot hold grown weights; "
                "build it on a real device first"
            )
        for name, tensor in self(large).items():
            tensors[name].copy_(tensor)
        for row in self._moved if not self.method.takes_nothing else ():
            for name, tensor in zip(row.large_names, self._grow(row, tensors), strict=True):
                tensors[name].copy_(tensor)

    def parents(self) -> dict[str, list[str]]:
        """The small parameters that each large one comes from, the one it takes after first.

        One that takes after a parameter without being made of it has that one twice.
        """
        parents = {}
        for row in self.plan.rows:
            if not row.small_names:
                parents.update({name: [self._alike(name)] for name in row.large_names})
                continue
            layers = self.depths.sources(row).tolist()
            for name, source in zip(row.large_names, layers, strict=True):
                first = row.small_names[source]
                mixed = [other for other in row.small_names if other != first]
                parents[name] = [first, *(mixed if self.depths.mixed(row) else [])]
                if self.method.takes_nothing:
                    parents[name] = [first, first]
        return parents

    def new_entries(self) -> dict[str, Tensor]:
        """For every large parameter, whether an entry is not one of the small network's own."""
        new: dict[str, Tensor] = {}
        for row in self.plan.rows:
            if not row.small_names or self.method.takes_nothing:
                new |= {name: torch.ones(row.large, dtype=torch.bool) for name in row.large_names}
                continue
            entries = self.widths.anew(row).expand(row.large)
            layers = zip(row.large_names, self.depths.new(row), strict=True)
            new |= {name: entries | layer for name, layer in layers}
        return new

    def _alike(self, name: str) -> str:
        """The small parameter whose name has most in common with that of a new layer."""
        words = name.split(".")

        def likeness(other: str) -> tuple[int, int]:
            theirs = other.split(".")
            same = [one == two for one, two in zip(words[::-1], theirs[::-1], strict=False)]
            return (*same, False).index(False), sum(map(str.__eq__, words, theirs))

        return max((other for row in self._grown for other in row.small_names), key=likeness)

    def _layers(self, row: Row, built: Mapping[str, Tensor]) -> Sequence[Tensor]:
        """(*large shape) for every layer, in the dtype of the small parameter."""
        small = self._small[row.pattern]
        if row.pattern not in self._thin:
            return self._grow(row, built).to(small.dtype).unbind()
        mixed = self.depths.grow(small.to(self.dtype), row)
        copies = self._copies.get(row.pattern)
        if copies is None:
            copies = self.widths.copy(mixed, row)
            if torch.is_grad_enabled() and not self.depths.learns(row):
                self._copies[row.pattern] = copies
        return [layer.to(small.dtype) for layer in self.widths.add_thin(copies, mixed, row)]

    def _is_thin(self, row: Row) -> bool:
        """Whether a parameter is copies plus thin products, and nothing else comes to it."""
        width = self.method.width
        if width is None or width.ahead or width.diagonal or width.noise:
            return False
        like = torch.empty(len(row.large_names), *[1] * len(row.large))
        return (
            self.widths.is_thin(row)
            and self._kept(row) is None
            and self.depths.neutral(row, like) is None
        )

    def _grow(self, row: Row, built: Mapping[str, Tensor]) -> Tensor:
        """(g, *large shape): the parameter of every layer."""
        small, width = self._small[row.pattern], self.method.width
        if self.widths.grows(row) or self.depths.multiplies(row):
            small = small.to(self.dtype)
        grown = self.widths.grow(self.depths.grow(small, row), row)
        if width is not None and self.widths.grows(row):
            grown = self._arranged(row, width, small, grown)
        if (neutral := self.depths.neutral(row, grown)) is not None:
            grown = grown + neutral
        kept = self._kept(row)
        if kept is None:
            return grown
        if not all(name in built for name in row.large_names):
            raise ValueError(
                f"method {self.method.name!r} leaves parts of the large network as it was built; "
                "give it, as operator(large)"
            )
        theirs = torch.stack([built[name].detach() for name in row.large_names])
        return torch.where(kept.to(grown.device), theirs.to(grown), grown)

    def _arranged(self, row: Row, width: Width, small: Tensor, grown: Tensor) -> Tensor:
        """What is more than a product of maps: other layers, masks and noise."""
        if width.ahead and row.stack is not None:
            following = torch.cat([small[1:], small[-1:]])
            following = self.widths.grow(self.depths.grow(following, row), row)
            grown = torch.where(self.widths.ahead(row).to(grown.device), following, grown)
        if width.diagonal and (mask := self.widths.diagonal(row)) is not None:
            grown = grown * mask.to(grown)
        if width.noise and (noise := self.widths.noise(row, grown, self._seed)) is not None:
            size = grown.detach().square().flatten(1).mean(1).sqrt()
            grown = grown + width.noise * size.view(-1, *[1] * (grown.dim() - 1)) * noise
        return grown

    def _kept(self, row: Row) -> Tensor | None:
        """Whether an entry stays as the large network was built; None if none does."""
        layers = self.depths.built(row)
        width = self.method.width
        entries = None
        if width is not None and width.rest == "built" and self.widths.grows(row):
            entries = ~self.widths.reached(row)
        if layers is None:
            return entries
        layers = layers.view(-1, *[1] * len(row.large))
        return layers if entries is None else layers | entries


def _tensors(network: nn.Module) -> dict[str, Tensor]:
    return {**dict(network.named_parameters()), **dict(network.named_buffers())}
