"""The depth mixes of a plan: they make the layers of a large stack of those of a small one.

Shapes: g layers of the large stack, l of the small one.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from lightning_ligo.axes.axes import Use
from lightning_ligo.axes.dims import Product, Sum, uses_of
from lightning_ligo.methods.method import Depth, New
from lightning_ligo.methods.mixes import added_layers, sources
from lightning_ligo.plan.plan import Plan, Row


class Depths(nn.Module):
    """The depth mix of every parameter in a stack, learned or fixed.

    Args:
        plan: what grows into what.
        depth: how stacks become deeper, if the method says so.
        generator: of the random part of the start.
        device, dtype: of the mixes.
    """

    def __init__(
        self,
        plan: Plan,
        depth: Depth | None,
        generator: torch.Generator,
        device: torch.device,
        dtype: torch.dtype,
    ) -> None:
        super().__init__()
        self.plan = plan
        self.depth = depth
        self.mixes = nn.ParameterDict()
        self._fixed: dict[str, Tensor] = {}  # (g) sources, or (g, l) where layers are mixed
        self._zero: dict[str, Tensor] = {}  # (g): layers without a source, if any
        self._rows: dict[str, list[Row]] = {}  # of every stack
        for row in plan.rows:
            self._rows.setdefault(row.stack or "", []).append(row)
        self._bare = {row.stack for row in plan.rows} - {row.stack for row in plan.buffers}
        for row in plan.rows:
            if depth is None or not row.small_names or not self.mixed(row.stack):
                continue
            mix = self._start_of(row, generator)
            if not bool(mix.any(1).all()):
                self._zero[row.pattern] = (~mix.any(1)).to(device)
            if depth.learned:
                self.mixes[key_of(row.pattern)] = nn.Parameter(mix.to(device, dtype))
            elif bool(((mix == 0) | (mix == 1)).all() and (mix.sum(1) <= 1).all()):
                self._fixed[row.pattern] = sources(mix).to(device)
            else:
                self._fixed[row.pattern] = mix.to(device, dtype)

    def mixed(self, stack: str | None) -> bool:
        """Whether the layers of a stack are mixed, or picked from others."""
        small, large = self._lengths(stack)
        always = self.depth is not None and self.depth.always
        return stack is not None and (small != large or always)

    def sources(self, stack: str | None) -> Tensor:
        """(g): the small layer that each large layer mostly comes from."""
        small, large = self._lengths(stack)
        cycle = torch.arange(large) % small
        if self.depth is None or small == large:
            return cycle
        source = sources(self._start(stack))
        return torch.where(source < 0, cycle, source)

    def new_in(self, row: Row) -> Tensor:
        """(g): whether a parameter of a layer is new."""
        return ~self.old(row).any(1) if self._moves(row) else self.new(row.stack)

    def new(self, stack: str | None) -> Tensor:
        """(g): whether a layer is new, see `Depth`."""
        if self.depth is None or not self.mixed(stack):
            return torch.zeros(self._lengths(stack)[1], dtype=torch.bool)
        return added_layers(self._start(stack))

    def multiplies(self, row: Row) -> bool:
        """Whether a matrix mixes the layers; otherwise they are picked."""
        mix = self._mix(row)
        return mix is not None and mix.dim() == 2

    def zero_output(self, stack: str) -> list[bool]:
        """For every layer of a large stack, whether its output starts as zero."""
        new = self.new(stack).tolist()
        return new if any(new) and self.new_kind(stack) == "zero_output" else [False] * len(new)

    def new_kind(self, stack: str) -> New:
        """The kind of a new layer of a stack, see `Depth`."""
        assert self.depth is not None
        rows, kind = self._rows[stack], self.depth.new
        if kind == "identity" and any(row.norms_stream for row in rows):
            return "zero_output"  # what it adds is zero only if its output projection is
        if kind not in ("zero_output", "identity") or any(row.writes or row.moves for row in rows):
            return kind
        recurrent = any("weight_hh" in row.pattern for row in rows)  # of all of torch's
        vectors = sum(len(row.large) < 2 for row in rows)
        plain = kind == "identity" or (stack in self._bare and 2 * vectors <= len(rows))
        return "identity" if plain and not recurrent else "copied"  # no norm is the identity

    def grow(self, x: Tensor, row: Row, layer: int | None = None) -> Tensor:
        """Mix the layers of a parameter, still in the small space: (l, ...) to (g, ...).

        With ``layer`` only this one is made, (1, ...), of those that are `used` for it.
        """
        mix = self._mix(row)
        if mix is None:  # a buffer, or a parameter in no stack that grows
            layers = self.sources(row.stack).to(x.device)
            return x if layer is not None or len(layers) == len(x) else x.index_select(0, layers)
        if mix.dim() == 2:
            mix = mix if layer is None else mix[layer : layer + 1, self.used(row, layer)]
            return torch.tensordot(mix.to(x.dtype), x, dims=1)
        x = x if layer is not None else x.index_select(0, mix.clamp(min=0))
        zero = one_of(self._zero.get(row.pattern), layer)
        return x if zero is None else x * self._over_layers(~zero, x)

    def used(self, row: Row, layer: int) -> Tensor:
        """The small layers of which a parameter of one large layer is made."""
        mix = self._mix(row)
        if mix is None:
            return self.sources(row.stack)[layer : layer + 1]
        if mix.dim() == 2:
            return mix[layer].nonzero().flatten()
        return mix[layer : layer + 1].clamp(min=0)

    def gradients(self, row: Row) -> Tensor:
        """(g, l): the mix of the gradients of the small layers that each large layer starts with.

        Old layers keep theirs, and new ones have those of their sources. In a new layer of zero
        output only the output projection has a gradient: that of its source, which writes into the
        same stream one layer before. A layer that is the identity, or fresh, has none.
        """
        mix, small = self._mix(row), len(row.small_names)
        if mix is None or row.stack is None:
            return torch.eye(small)
        mix = mix.detach().cpu() if mix.dim() == 2 else _picked(mix.cpu(), small)
        kind = self.new_kind(row.stack)
        if kind != "copied" and not self._moves(row):
            source = _picked(sources(self._start(row.stack)), small)
            source = source * float(kind == "zero_output" and row.writes)
            mix = mix.where(~self.new(row.stack)[:, None], source)
        return mix

    def old(self, row: Row) -> Tensor:
        """(g, l): the small layer that each old layer is, one-hot; zero for new layers."""
        if self._moves(row):
            return self._handed_on(row.stack, self._start(row.stack)).float()
        small = _picked(self.sources(row.stack), len(row.small_names))
        return small * ~self.new(row.stack)[:, None]

    def neutral(self, row: Row, like: Tensor, layer: int | None = None) -> Tensor | None:
        """The weights by which a new layer changes nothing, where these are not zero.

        One for a factor of the residual stream, and the identity for a matrix of an identity layer.
        """
        zero = one_of(self._zero.get(row.pattern), layer)
        if zero is None or row.stack is None or (kind := self.new_kind(row.stack)) == "fresh":
            return None
        if row.passes:
            return self._over_layers(zero, like).to(like).expand_as(like)
        if kind == "identity" and len(row.large) > 1:
            eye = self._identity(row.dims, row.large).to(like)
            return self._over_layers(zero, like) * eye
        return None

    # The start ---------------------------------------------------------------------------------

    def _lengths(self, stack: str | None) -> tuple[int, int]:
        return self.plan.stacks[stack] if stack else (1, 1)

    def _mix(self, row: Row) -> Tensor | None:
        """The mix of a parameter, (g, l), or (g) if layers are picked; None if neither."""
        return self.mixes.get(key_of(row.pattern), self._fixed.get(row.pattern))

    def _start(self, stack: str | None, generator: torch.Generator | None = None) -> Tensor:
        """Start the mix of one module of a stack."""
        assert self.depth is not None
        generator = generator or torch.Generator().manual_seed(0)
        small, large = self._lengths(stack)
        layers = self.plan.layers.get(stack or "")
        period, rest = (layers.period, layers.rest) if layers and small != large else (1, 0)
        mix = self.depth.mix((small - rest) // period, (large - rest) // period, generator)
        return torch.block_diag(torch.kron(mix, torch.eye(period)), torch.eye(rest)).to(mix)

    def _start_of(self, row: Row, generator: torch.Generator) -> Tensor:
        """Start the mix of one parameter, without sources where a new layer has other weights."""
        assert row.stack is not None
        mix = self._start(row.stack, generator)
        if self._moves(row):
            return self._handed_on(row.stack, mix)
        scales = any(use.role == "scales" for product in row.dims for use in uses_of(product))
        zero = {
            "copied": False,
            "zero_output": row.writes or row.passes,
            "identity": row.passes or not scales,
            "fresh": True,
        }
        if zero[self.new_kind(row.stack)]:
            mix[added_layers(mix)] = 0
        return mix

    def _moves(self, row: Row) -> bool:
        """Whether the last new layer behind an old one has the weights of this one."""
        new = row.moves and row.stack is not None and self.mixed(row.stack)
        return new and self.new_kind(row.stack or "") == "zero_output"

    def _handed_on(self, stack: str | None, mix: Tensor) -> Tensor:
        """(g, l): the mix in which the last new layer behind an old one has the weights of this.

        In one list with other stacks the layer behind it may be one of these.
        """
        own = self.plan.layers[stack or ""]
        new = {
            number: bool(new)
            for name, other in self.plan.layers.items()
            for number, new in zip(other.layers, self.new(name), strict=True)
            if (other.path, other.stems) == (own.path, own.stems)
        }
        following = dict(pairwise(sorted(new)))
        result, old = torch.zeros_like(mix), torch.zeros_like(mix[0])
        for layer, number in enumerate(own.layers):
            old = old if new[number] else mix[layer]
            if not new.get(following.get(number, -1)):
                result[layer] = old
        return result

    @staticmethod
    def _over_layers(which: Tensor, like: Tensor) -> Tensor:
        return which.view(-1, *[1] * (like.dim() - 1))

    def _identity(self, dims: Sequence[Product[Use]], shape: Sequence[int]) -> Tensor:
        """The identity as a matrix or kernel, once each for queries, keys and values."""
        slots = [self._slots(product) for product in dims[:2]]
        eye = torch.eye(*(length // slot for length, slot in zip(shape, slots, strict=False)))
        matrix = torch.zeros(tuple(shape))
        middle = matrix
        for length in shape[2:]:
            middle = middle.select(2, length // 2)
        middle.copy_(eye.repeat(*slots))
        return matrix

    def _slots(self, product: Product[Use]) -> int:
        """Count the equal parts of a dimension: a fused projection has three."""
        first = product[0] if product else None
        if isinstance(first, Sum):
            equal = len({self.plan.length(segment) for segment in first.segments}) == 1
            return len(first.segments) if equal else 1
        if first is None or len(product) == 1:
            return 1
        return self.plan.lengths[first.axis][0] if self.plan.all_axes[first.axis].pinned else 1


def _picked(source: Tensor, small: int) -> Tensor:
    """(g, small): the mix that picks these layers; a row of zeros for -1."""
    return (source[:, None] == torch.arange(small)).float()


def one_of(layers: Tensor | None, layer: int | None) -> Tensor | None:
    """Take one layer of (g, ...), as (1, ...); all of them if none is named."""
    return layers if layers is None or layer is None else layers[layer : layer + 1]


def key_of(name: str) -> str:
    """Write a name without dots, which the name of a parameter may not contain."""
    return name.replace(".", "/")
