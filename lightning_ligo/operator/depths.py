"""Every depth mix of a plan: it makes the layers of a large stack out of those of a small one.

Shapes: g layers of the large stack, l of the small one.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from lightning_ligo.axes.axes import Product, Sum, uses_of
from lightning_ligo.methods.method import Depth
from lightning_ligo.methods.mixes import new_layers, sources
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
        self._zero: dict[str, Tensor] = {}  # (g): layers with nothing of the small network, if any
        self._rows: dict[str, list[Row]] = {}  # of every stack
        for row in plan.rows:
            self._rows.setdefault(row.stack or "", []).append(row)
        self._bare = {row.stack for row in plan.rows} - {row.stack for row in plan.buffers}
        for row in plan.rows:
            if depth is None or not row.small_names or not self.mixed(row):
                continue
            mix = self._start(row, depth, generator)
            if not bool(mix.any(1).all()):
                self._zero[row.pattern] = (~mix.any(1)).to(device)
            if depth.learned:
                self.mixes[key_of(row.pattern)] = nn.Parameter(mix.to(device, dtype))
            elif bool(((mix == 0) | (mix == 1)).all() and (mix.sum(1) <= 1).all()):
                self._fixed[row.pattern] = sources(mix).to(device)
            else:
                self._fixed[row.pattern] = mix.to(device, dtype)

    def mixed(self, row: Row) -> bool:
        """Whether a parameter's layers are made of more layers than their own."""
        if row.stack is None:
            return False
        small, large = self.plan.stacks[row.stack]
        return small != large or (self.depth is not None and self.depth.always)

    def sources(self, row: Row) -> Tensor:
        """(g): the layer of the small stack that each layer of the large one takes after."""
        small, large = self.plan.stacks[row.stack] if row.stack else (1, 1)
        if self.depth is None or small == large:
            return torch.arange(large) % small
        source = sources(self._mix(self.depth, small, large))
        return torch.where(source < 0, torch.arange(large) % small, source)

    def multiplies(self, row: Row) -> bool:
        """Whether layers are mixed by a matrix, and not picked."""
        mix = self.mixes.get(key_of(row.pattern), self._fixed.get(row.pattern))
        return mix is not None and mix.dim() == 2

    def learns(self, row: Row) -> bool:
        """Whether the mix of a parameter's layers is learned."""
        return key_of(row.pattern) in self.mixes

    def silent(self, stack: str) -> list[bool]:
        """For every layer of a large stack, whether it writes nothing at the start."""
        small, large = self.plan.stacks[stack]
        if self.depth is None or (small == large and not self.depth.always):
            return [False] * large
        new = new_layers(self._mix(self.depth, small, large)).tolist()
        return new if self.new_are(stack) == "silent" else [False] * large

    def new_are(self, stack: str) -> str:
        """What new layers of a stack get, see `Depth`."""
        assert self.depth is not None
        rows = self._rows[stack]
        if self.depth.new != "silent" or any(row.writes for row in rows):
            return self.depth.new
        vectors = sum(len(row.large) < 2 for row in rows)
        plain = stack in self._bare and 2 * vectors <= len(rows)
        return "identity" if plain else "works"  # a norm in a chain has no neutral weights

    def grow(self, x: Tensor, row: Row) -> Tensor:
        """(l, ...) to (g, ...): mix the layers of a parameter, still in the small space."""
        mix = self.mixes.get(key_of(row.pattern), self._fixed.get(row.pattern))
        if mix is None:  # a buffer, or a parameter in no stack that grows
            layers = self.sources(row).to(x.device)
            return x if len(layers) == len(x) else x.index_select(0, layers)
        if mix.dim() == 2:
            return torch.tensordot(mix, x, dims=1)
        x = x.index_select(0, mix.clamp(min=0))
        zero = self._zero.get(row.pattern)
        return x if zero is None else x * self._over_layers(~zero, x)

    def gradients(self, row: Row) -> Tensor:
        """(g, l): what a layer's gradient is made of, in the gradients of the small layers.

        Old layers keep theirs, new ones have that of the layers they are made of. A new layer that
        is silent has no gradient but in what writes, which is zero itself: there it is that of its
        source, which writes into the same stream one layer before. Of one that is the identity, or
        stays as it was built, nothing is known.
        """
        if row.stack is None or not self.mixed(row):
            return torch.eye(len(row.small_names))
        assert self.depth is not None
        small, large = self.plan.stacks[row.stack]
        mix = self.mixes.get(key_of(row.pattern), self._fixed.get(row.pattern))
        assert mix is not None
        mix = mix.detach().cpu() if mix.dim() == 2 else _picked(mix.cpu(), small)
        if (get := self.new_are(row.stack)) != "works":
            source = _picked(sources(self._mix(self.depth, small, large)), small)
            mix = mix.where(~self.new(row)[:, None], source * float(get == "silent" and row.writes))
        return mix

    def kept(self, row: Row) -> Tensor:
        """(g, l): the layers that are the small network's own, one-hot; zero for new ones."""
        small = _picked(self.sources(row), len(row.small_names))
        return small * ~self.new(row)[:, None]

    def neutral(self, row: Row, like: Tensor) -> Tensor | None:
        """What a new layer has so that it changes nothing, where that is not zero.

        One for what multiplies the stream, and the identity matrix for new layers that are that.
        """
        zero = self._zero.get(row.pattern)
        if zero is None or row.stack is None:
            return None
        new = self.new_are(row.stack)
        if new == "built":
            return None
        if row.passes:
            return self._over_layers(zero, like).to(like).expand_as(like)
        if new == "identity" and len(row.large) > 1:
            eye = self._identity(row.dims, row.large).to(like)
            return self._over_layers(zero, like) * eye
        return None

    def built(self, row: Row) -> Tensor | None:
        """(g): the layers of a parameter that stay as the large network was built, if any do."""
        if self.depth is None or self.depth.new != "built" or not self.mixed(row):
            return None
        return self.new(row)

    def new(self, row: Row) -> Tensor:
        """(g): whether a layer's source is that of a layer before it, too."""
        small, large = self.plan.stacks[row.stack] if row.stack else (1, 1)
        if self.depth is None or not self.mixed(row):
            return torch.zeros(large, dtype=torch.bool)
        return new_layers(self._mix(self.depth, small, large))

    # The start ---------------------------------------------------------------------------------

    def _mix(
        self, depth: Depth, small: int, large: int, generator: torch.Generator | None = None
    ) -> Tensor:
        return depth.mix(small, large, generator or torch.Generator().manual_seed(0))

    def _start(self, row: Row, depth: Depth, generator: torch.Generator) -> Tensor:
        assert row.stack is not None
        mix = self._mix(depth, *self.plan.stacks[row.stack], generator)
        new, get = new_layers(mix), self.new_are(row.stack)
        scales = any(use.role == "scales" for product in row.dims for use in uses_of(product))
        if (
            (get == "silent" and (row.writes or row.passes))
            or (get == "identity" and (row.passes or not scales))
            or get == "built"
        ):
            mix[new] = 0
        return mix

    @staticmethod
    def _over_layers(which: Tensor, like: Tensor) -> Tensor:
        return which.view(-1, *[1] * (like.dim() - 1))

    def _identity(self, dims: Sequence[Product], shape: Sequence[int]) -> Tensor:
        """The matrix, or the kernel, that is the identity, once each for queries, keys, values."""
        slots = [self._slots(product) for product in dims[:2]]
        eye = torch.eye(*(length // slot for length, slot in zip(shape, slots, strict=False)))
        matrix = torch.zeros(tuple(shape))
        middle = matrix
        for length in shape[2:]:
            middle = middle.select(2, length // 2)
        middle.copy_(eye.repeat(*slots))
        return matrix

    def _slots(self, product: Product) -> int:
        """How many equal parts a dimension has side by side, as a fused projection has three."""
        first = product[0] if product else None
        if isinstance(first, Sum):
            equal = len({self.plan.length(segment) for segment in first.segments}) == 1
            return len(first.segments) if equal else 1
        if first is None or len(product) == 1:
            return 1
        return self.plan.lengths[first.axis][0] if self.plan.all_axes[first.axis].pinned else 1


def _picked(source: Tensor, small: int) -> Tensor:
    """(g, small): the mix that picks these layers, and nothing for -1."""
    return (source[:, None] == torch.arange(small)).float()


def key_of(name: str) -> str:
    """A parameter's name may hold no dot."""
    return name.replace(".", "/")
