"""The operator: all maps and depth mixes of a plan; it grows parameters.

Shapes: g layers of the large stack, l of the small one.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor, nn

from lightning_ligo.methods.catalog import DEFAULT, method_named
from lightning_ligo.methods.method import Method, Width
from lightning_ligo.operator.depths import Depths
from lightning_ligo.operator.limits import refuse
from lightning_ligo.operator.low_rank import add_low_rank, is_low_rank
from lightning_ligo.operator.masks import diagonal, is_fresh, is_joined, is_new, noise
from lightning_ligo.operator.widths import Widths
from lightning_ligo.plan.plan import Plan, Row

PARTS = 16  # in which a table that may be large is filled, without a second one in memory


class Operator(nn.Module):
    """A linear map from the small network's parameters to the large one's.

    Its parameters are the coefficients; the small weights are held fixed. For one parameter of
    layer g: ``W[g] = B (Σ_l w[g, l] W_small[l]) Aᵀ``, with the depth mix ``w`` first, in the small
    space, and a producing or consuming form of a map on every dimension (LiGO, equation 5). Forms
    and mixes that copy, and are not learned, are applied by indexing.

    Args:
        plan: what grows into what.
        small: the network whose weights are grown, which are read once, here; or its weights by
            name, which are read whenever they are grown.
        method: a name of `METHODS`, two joined by a plus, or a `Method`.
        seed: of the random part of the start.

    Raises:
        ValueError: for an unknown method, and for one that cannot grow this plan.
    """

    def __init__(
        self,
        plan: Plan,
        small: nn.Module | Mapping[str, Tensor],
        method: str | Method = DEFAULT,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.plan = plan
        self.method = method_named(method) if isinstance(method, str) else method
        refuse(plan, self.method)
        self._seed = seed
        self._grown = [row for row in plan.rows if row.small_names]
        self._moved = [row for row in plan.buffers if row.small_names]
        self._weights: Mapping[str, Tensor] = {} if isinstance(small, nn.Module) else small
        self._small = self._read(small) if isinstance(small, nn.Module) else {}
        some = (self._stacked(row) for row in (*self._grown, *self._moved))
        first = next(t for t in some if t.is_floating_point() or t.is_complex())
        self._like = first.new_empty(0)
        device, real = first.device, first.dtype.to_real()
        self.dtype = torch.float32 if real in (torch.float16, torch.bfloat16) else real
        generator = torch.Generator().manual_seed(seed)
        depth, width = self.method.depth, self.method.width
        self.depths = Depths(plan, depth, generator, device, self.dtype)
        self.widths = Widths(plan, width, self.depths.zero_output, generator, device, self.dtype)
        self.widths.forget()
        self._fresh: dict[str, Tensor | None] = {}  # (g, *shape): entries that stay as built
        self._fixed: dict[str, Tensor] = {}  # (g, *shape): fixed parts, the same at every step
        self._low_rank = {row.pattern for row in self._grown if self._is_low_rank(row)}

    def _read(self, small: nn.Module) -> dict[str, Tensor]:
        """(l, *shape): the small parameter of every layer."""
        tensors = _tensors(small)
        return {
            row.pattern: torch.stack([tensors[name].detach() for name in row.small_names])
            for row in (*self._grown, *self._moved)
        }

    def _stacked(self, row: Row) -> Tensor:
        """(l, *shape): the small parameter of every layer, of weights by name read anew."""
        if row.pattern in self._small:
            return self._small[row.pattern]
        first, *others = row.small_names
        tensor = self._weights[first]
        if not others:
            return tensor[None]
        stacked = tensor.new_empty(len(row.small_names), *tensor.shape)
        stacked[0] = tensor
        for number, name in enumerate(others, start=1):
            stacked[number] = self._weights[name]
        return stacked

    def of(self, small: nn.Module) -> Operator:
        """Apply the same coefficients to another small network, such as an average of weights.

        It may be on another device.
        """
        other = copy.copy(self)
        other._small = {
            pattern: tensor.to(self._small[pattern].device)
            for pattern, tensor in self._read(small).items()
        }
        other._fixed = {}
        return other

    @property
    def coefficients(self) -> int:
        """Count the numbers that are learned."""
        return sum(p.numel() for p in self.parameters() if p.requires_grad)

    @property
    def _adds(self) -> bool:
        """Whether maps are learned beside fresh parts."""
        width, depth = self.method.width, self.method.depth
        whole = depth is not None and depth.new == "fresh"
        return width is not None and width.learns != "nothing" and not whole

    @property
    def uses_built(self) -> bool:
        """Whether some weights stay as the large network was built."""
        width, depth, rows = self.method.width, self.method.depth, (*self._grown, *self._moved)
        new = (
            depth is not None
            and depth.new == "fresh"
            and any(self.depths.mixed(r.stack) for r in rows)
        )
        wider = width is not None and width.rest != "zero" and any(map(self.widths.grows, rows))
        lacking = any(
            not row.small_names and not row.writes for row in (*self.plan.rows, *self.plan.buffers)
        )
        return self.method.takes_nothing or new or wider or lacking

    def forward(self, large: nn.Module | None = None) -> dict[str, Tensor]:
        """Grow the parameters of the large network, differentiable in the coefficients.

        They are computed in the coefficients' precision, float32 or more, and have the dtype of the
        small ones. Layers without a match in the small network are left out, except for the
        parameters that write the residual stream, which are zero. ``large`` gives the fresh
        weights, if the method keeps any.
        """
        fresh = _tensors(large) if large is not None else {}
        grown = {
            name: layer
            for row in (self._grown if not self.method.takes_nothing else ())
            for name, layer in zip(row.large_names, self._layers(row, fresh), strict=True)
        }
        return grown | dict(self._silent())

    def _silent(self) -> Iterator[tuple[str, Tensor]]:
        """Make what writes the residual stream in layers without a match: zeros."""
        for row in self.plan.rows if not self.method.takes_nothing else ():
            if row.writes and not row.small_names:
                yield from ((name, self._like.new_zeros(row.large)) for name in row.large_names)

    @torch.no_grad()
    def tensors(self, large: nn.Module | None = None) -> Iterator[tuple[str, Tensor]]:
        """Grow parameters and persistent buffers one layer at a time, by the names in ``large``.

        Peak memory is about the small parameters of one row, and one layer of the large network.
        """
        fresh, width = _tensors(large) if large is not None else {}, self.method.width
        whole = width is not None and (width.noise or width.from_next_layer)
        for row in (*self._grown, *self._moved) if not self.method.takes_nothing else ():
            if whole or row.pattern in self._low_rank:
                yield from zip(row.large_names, self._layers(row, fresh), strict=True)
                continue
            small = self._stacked(row)
            for layer, name in enumerate(row.large_names):
                yield name, self._grow(row, fresh, small, layer)[0].to(small.dtype)
            del small  # before the next row is read
        yield from self._silent()

    def buffers_of(self, large: nn.Module) -> Iterator[tuple[str, Tensor]]:
        """Grow the persistent buffers, such as the statistics of batch norms."""
        fresh = _tensors(large)
        for row in self._moved if not self.method.takes_nothing else ():
            yield from zip(row.large_names, self._layers(row, fresh), strict=True)

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
        for name, tensor in self.tensors(large):
            tensors[name].copy_(tensor)

    def parents(self) -> dict[str, list[str]]:
        """List the small parameters that each large one comes from, the most similar one first.

        One that is listed twice is similar, but no part of the large one.
        """
        parents = {}
        for row in self.plan.rows:
            if not row.small_names:
                parents.update({name: [self._alike(name)] for name in row.large_names})
                continue
            layers = self.depths.sources(row.stack).tolist()
            for name, source in zip(row.large_names, layers, strict=True):
                first = row.small_names[source]
                mixed = [other for other in row.small_names if other != first]
                parents[name] = [first, *(mixed if self.depths.mixed(row.stack) else [])]
                if self.method.takes_nothing:
                    parents[name] = [first, first]
        return parents

    def new_entries(self) -> dict[str, Tensor]:
        """Mark the entries of every large parameter that are not in the small network."""
        new: dict[str, Tensor] = {}
        for row in self.plan.rows:
            if not row.small_names or self.method.takes_nothing:
                new |= {name: torch.ones(row.large, dtype=torch.bool) for name in row.large_names}
                continue
            entries = is_new(self.widths, row).expand(row.large)
            layers = zip(row.large_names, self.depths.new_in(row), strict=True)
            new |= {name: entries | layer for name, layer in layers}
        return new

    def _alike(self, name: str) -> str:
        """Find the small parameter whose name is most similar."""
        words = name.split(".")

        def likeness(other: str) -> tuple[int, int]:
            others = other.split(".")
            same = [one == two for one, two in zip(words[::-1], others[::-1], strict=False)]
            return (*same, False).index(False), sum(map(str.__eq__, words, others))

        return max((other for row in self._grown for other in row.small_names), key=likeness)

    def _layers(self, row: Row, fresh: Mapping[str, Tensor]) -> Sequence[Tensor]:
        """(*large shape) for every layer, in the dtype of the small parameter."""
        small = self._stacked(row)
        if row.pattern not in self._low_rank:
            return self._grow(row, fresh, small).to(small.dtype).unbind()
        mixed = self.depths.grow(self.precise(small), row)
        fixed = self._fixed.get(row.pattern)
        if fixed is None:
            fixed = self.widths.grow(mixed, row, self.widths.widen_fixed)
            if torch.is_grad_enabled() and not mixed.requires_grad:
                self._fixed[row.pattern] = fixed
        return [layer.to(small.dtype) for layer in add_low_rank(self.widths, fixed, mixed, row)]

    def precise(self, small: Tensor) -> Tensor:
        """Convert a tensor to the precision of the coefficients, complex numbers to complex."""
        return small.to(torch.promote_types(self.dtype, small.dtype))

    def _is_low_rank(self, row: Row) -> bool:
        """Whether a parameter is a sum of copies and low-rank products, and of nothing else."""
        width = self.method.width
        if width is None or width.from_next_layer or width.diagonal or width.noise:
            return False
        like = torch.empty(len(row.large_names), *[1] * len(row.large))
        return (
            is_low_rank(self.widths, row)
            and (row.factor, row.offset, row.tied) == (1, 0, None)
            and self._is_fresh(row) is None
            and self.depths.neutral(row, like) is None
        )

    def _grow(
        self, row: Row, fresh: Mapping[str, Tensor], small: Tensor, layer: int | None = None
    ) -> Tensor:
        """(g, *large shape): the parameter of every layer, or (1, *large shape) of one.

        ``small`` is (l, *small shape).
        """
        width = self.method.width
        if layer is not None and len(small) > 1:
            small = small.index_select(0, self.depths.used(row, layer).to(small.device))
        if self.widths.grows(row) or self.depths.multiplies(row):
            small = self.precise(small)
        grows = self.widths.grows(row) or self.depths.mixed(row.stack)
        offset = row.offset if grows else 0.0
        small = self.precise(small) + offset if offset else small
        grown = self.widths.grow(self.depths.grow(small, row, layer), row, layer=layer)
        if width is not None and self.widths.grows(row):
            grown = self._arranged(row, width, small, grown)
        del small  # it may be large
        if (neutral := self.depths.neutral(row, grown, layer)) is not None:
            grown = grown + neutral
        if (factor := self.widths.factor(row)) is not None:
            factor = factor if layer is None else factor[layer : layer + 1]
            grown = grown * factor.view(-1, *[1] * len(row.large)).to(grown)
        grown = grown - offset if offset else grown
        return self._beside_fresh(row, fresh, grown, layer)

    def _beside_fresh(
        self, row: Row, fresh: Mapping[str, Tensor], grown: Tensor, layer: int | None
    ) -> Tensor:
        """Keep the entries of (g, *large shape) that stay as the large network was built.

        A learned map adds to them: it starts from zero there.
        """
        is_fresh = self._is_fresh(row, layer)
        if is_fresh is None:
            return grown
        if not all(name in fresh for name in row.large_names):
            raise ValueError(
                f"method {self.method.name!r} leaves parts of the large network as it was built; "
                "call operator(large)"
            )
        names = row.large_names if layer is None else row.large_names[layer : layer + 1]
        built = [fresh[name].detach() for name in names]
        if self._adds:
            return grown + is_fresh * torch.stack(built).to(grown)
        if torch.is_grad_enabled() or len(names) > 1:
            return torch.where(is_fresh, torch.stack(built).to(grown), grown)
        parts = (
            tensor.chunk(PARTS, 1) for tensor in (grown, is_fresh.expand_as(grown), built[0][None])
        )
        for part, mask, own in zip(*parts, strict=True):
            part.copy_(torch.where(mask, own.to(part), part))
        return grown

    def _arranged(self, row: Row, width: Width, small: Tensor, grown: Tensor) -> Tensor:
        """Apply the options of a width that are no product of maps: next layer, mask and noise."""
        if width.from_next_layer and row.stack is not None:
            following = torch.cat([small[1:], small[-1:]])
            following = self.widths.grow(self.depths.grow(following, row), row)
            new = is_new(self.widths, row, role="produces").to(grown.device)
            grown = torch.where(new, following, grown)
        if width.diagonal and (mask := diagonal(self.widths, row)) is not None:
            grown = grown * mask.to(grown)
        if width.noise and (drawn := noise(self.widths, row, grown, self._seed)) is not None:
            size = grown.detach().abs().square().flatten(1).mean(1).sqrt()
            grown = grown + width.noise * size.view(-1, *[1] * (grown.dim() - 1)) * drawn
        return grown

    def _is_fresh(self, row: Row, layer: int | None = None) -> Tensor | None:
        """Whether an entry stays as the large network was built; None if none does."""
        if layer is None and row.pattern in self._fresh:
            return self._fresh[row.pattern]
        width, depth = self.method.width, self.method.depth
        fresh = torch.tensor(False)
        if depth is not None and depth.new == "fresh":
            new = self.depths.new(row.stack)
            fresh = (new if layer is None else new[layer]).view(-1, *[1] * len(row.large))
        if width is not None and width.rest != "zero" and self.widths.grows(row):
            fresh = fresh | is_fresh(self.widths, row)
        if self.widths.grows(row):
            fresh = fresh | is_joined(self.widths, row)
        found = fresh.to(self._like.device) if bool(fresh.any()) else None
        if layer is None:
            self._fresh[row.pattern] = found
        return found


def _tensors(network: nn.Module) -> dict[str, Tensor]:
    return {**dict(network.named_parameters()), **dict(network.named_buffers())}
