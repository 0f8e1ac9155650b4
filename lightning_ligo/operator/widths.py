"""The maps of a plan: start them, and grow parameters by them, dimension by dimension.

Shapes: g layers of the large stack, L and S the lengths of one axis in the large and the small
network, o and i whatever stands before and behind that axis.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from lightning_ligo.axes.axes import Use
from lightning_ligo.axes.dims import Product, Sum, change_along, length, uses_of
from lightning_ligo.methods.forms import Copier, Copies, along, as_copies, dense, project
from lightning_ligo.methods.maps import Map
from lightning_ligo.methods.method import Width
from lightning_ligo.operator.depths import key_of, one_of
from lightning_ligo.plan.plan import Plan, Row
from lightning_ligo.plan.resize import append, copy, interpolate, join

Widen = Callable[[Tensor, int, "Span"], Tensor]  # one dimension of (g, ..., S, ...)


class Span(NamedTuple):
    """Neighbouring factors of a dimension that one map grows together."""

    small: int
    large: int
    key: str  # of the map
    form: str
    power: int
    axis: str  # the first that grows
    role: str
    flow: str = ""

    @property
    def name(self) -> str:
        """The name of the form among the parameters."""
        return f"{key_of(self.key)}:{self.form}"


class Started(NamedTuple):
    """The map of an axis, or of a flow, as it starts."""

    axis: str
    small: int
    large: int
    layers: list[Map]  # one, or one for each layer of the stack that the axis is inside of
    zero_output: list[bool]  # for each of these layers
    scale: float  # of what writes the axis, see `Map`


class Widths(nn.Module):
    """The forms of every map, learned or fixed; they grow the dimensions of a parameter.

    Args:
        plan: what grows into what.
        width: how axes become longer, if the method says so.
        zero_output: tells for every layer of a large stack whether its output starts as zero.
        generator: of the random part of the start.
        device, dtype: of the forms.
    """

    def __init__(
        self,
        plan: Plan,
        width: Width | None,
        zero_output: Callable[[str], list[bool]],
        generator: torch.Generator,
        device: torch.device,
        dtype: torch.dtype,
    ) -> None:
        super().__init__()
        self.plan = plan
        self.width = width
        self.maps = nn.ParameterDict()
        self.starts: dict[str, Started] = {}
        self.fixed: dict[str, Copier] = {}  # by form: the part that is not learned
        self._place = device, dtype
        spans = [
            span
            for row in plan.rows
            for product in row.dims
            for span in self.spans(product)
            if row.small_names and width is not None
        ]
        for span in spans:
            if span.key not in self.starts:
                self._start(span, zero_output, generator)
        for span in {span.name: span for span in spans}.values():
            self._start_form(span, generator)

    def forget(self) -> None:
        """Free the starts that are matrices, which are as large as the learned forms."""
        for key, started in self.starts.items():
            if any(isinstance(form, Tensor) for layer in started.layers for form in layer[:2]):
                self.starts[key] = started._replace(layers=[])

    # Growing a parameter -----------------------------------------------------------------------

    def grows(self, row: Row) -> bool:
        return any(self.plan.grows(product) for product in row.dims)

    def grow(
        self, x: Tensor, row: Row, widen: Widen | None = None, layer: int | None = None
    ) -> Tensor:
        """(g, *small shape) to (g, *large shape), by the maps unless ``widen`` is given.

        With ``layer`` only this one of the large stack is in ``x``.
        """
        widen = widen or functools.partial(self.widen, layer=layer)
        for dim, product in enumerate(row.dims, start=1):
            if x.shape[dim] != (small := self.plan.length(product)[0]):
                x = self._repeat(x, dim, product, small // x.shape[dim])
            spans = self.factors(product)
            changes = {
                span: functools.partial(self._change, span=span, widen=widen)
                for span in uses_of(spans)
                if span.small != span.large
            }
            x = change_along(x, dim, spans, _small, changes)
        return x

    def _change(self, x: Tensor, dim: int, span: Span, widen: Widen) -> Tensor:
        """Grow one dimension of (g, ..., S, ...) by a map, or by what its axis is resized by."""
        resize = self.plan.all_axes[span.axis].resize
        if resize is None:
            return widen(x, dim, span)
        by = {"append": append, "copy": copy, "interpolate": interpolate, "join": join}[resize]
        return by(x, dim, span.large)

    def _repeat(self, x: Tensor, dim: int, product: Product[Use], repeats: int) -> Tensor:
        """Give every query its own of the heads that keys and values share."""
        lengths = [
            self.plan.length((node,))[0] // self.plan.shared.get(getattr(node, "axis", ""), 1)
            for node in product
        ]
        heads = next(i for i, n in enumerate(product) if getattr(n, "axis", "") in self.plan.shared)
        x = x.unflatten(dim, lengths).repeat_interleave(repeats, dim + heads)
        return x.flatten(dim, dim + len(lengths) - 1)

    def widen(self, x: Tensor, dim: int, span: Span, layer: int | None = None) -> Tensor:
        """Grow one dimension of (g, ..., S, ...) by a form, fixed and learned part."""
        x, learned = self._scaled(x, span), self._map(span.name, layer)
        if span.name not in self.fixed:
            return along(learned, x, dim)
        grown = self.fixed[span.name].at(layer).grow(x, dim)
        if learned is not None:  # the part C of [start; C]
            return torch.cat([grown, along(learned, x, dim)], dim)
        if (left := self._map(f"{span.name}:U", layer)) is not None:
            return grown + along(left, project(self._map(f"{span.name}:V", layer), x, dim), dim)
        return grown

    def _map(self, name: str, layer: int | None) -> Any:
        """A learned form, (L, S) or (g, L, S) with one for each layer, or that of one layer."""
        form = self.maps.get(name)
        return form if form is None or form.dim() == 2 else one_of(form, layer)

    def widen_fixed(self, x: Tensor, dim: int, span: Span) -> Tensor:
        """Grow one dimension of (g, ..., S, ...) by the fixed part of a form alone."""
        return self.fixed[span.name].grow(self._scaled(x, span), dim)

    def _scaled(self, x: Tensor, span: Span) -> Tensor:
        scale = self.starts[span.key].scale ** span.power
        return x if scale == 1 else x * scale

    # The maps of a dimension --------------------------------------------------------------------

    def factors(self, product: Product[Use]) -> Product[Span]:
        """The maps and sums that grow a dimension, slowest first."""
        tied = self.width is not None and self.width.ties == "flow"
        if tied and not any(isinstance(node, Sum) for node in product):
            return tuple(self._tied(product))
        return tuple(
            Sum(tuple(map(self.factors, node.segments)))
            if isinstance(node, Sum)
            else self._span(node)
            for node in product
        )

    def _span(self, use: Use) -> Span:
        """The map of an axis. Beside fresh parts a norm keeps its old gains and shifts alone."""
        form, power = use.form, use.power
        if self.width is not None and self.width.rest == "one-sided":
            form = "consumes" if use.role in ("gain", "shift") else form
            if use.axis in self._post_norm:
                power = -1 if use.role == "gain" else 0
        lengths = self.plan.lengths[use.axis]
        return Span(*lengths, use.axis, form, power, use.axis, use.role, use.flow)

    @functools.cached_property
    def _uses(self) -> list[tuple[Use, str | None]]:
        """Every use of an axis, with the stack that it is in."""
        rows = self.plan.rows
        return [(use, row.stack) for row in rows for dim in row.dims for use in uses_of(dim)]

    @functools.cached_property
    def _post_norm(self) -> set[str]:
        """The streams with norms in themselves: gains alone make up for their new lengths."""
        gains = {use.axis: use.power for use, _ in self._uses if use.role == "gain"}
        raw = {axis for axis, power in gains.items() if power == 0}
        raw |= {u.axis for u, stack in self._uses if stack and u.role == "consumes" and u.power < 0}
        return {axis for axis in gains.keys() & raw if not self.plan.all_axes[axis].contracted}

    @functools.cached_property
    def queries(self) -> dict[str, str]:
        """By axis, the first flow that is written on it: of heads, that of the queries."""
        writers = [use for use, _ in self._uses if use.role != "consumes"]
        return {use.axis: use.flow for use in reversed(writers)}

    def _tied(self, product: Product[Use]) -> Iterator[Span]:
        """One map for a flow, over all of a dimension from its first axis that grows.

        Where a flow is read by a part of it alone, as attention weights are by their heads, every
        axis has its own map.
        """
        uses = uses_of(product)
        first = self._first_that_grows(product)
        lengths = self.plan.length(product[first:])
        whole = first < len(uses) and self._written.get(uses[first].flow, lengths) == lengths
        for use in uses[:first] if whole else uses:
            form = "produces" if self.plan.grows((use,)) else use.form
            yield Span(*self.plan.lengths[use.axis], use.axis, form, 0, use.axis, use.role)
        if whole:
            use = uses[first]
            yield Span(*lengths, use.flow, "produces", 0, use.axis, use.role)

    def _first_that_grows(self, product: Product[Use]) -> int:
        uses = uses_of(product)
        return next((i for i, use in enumerate(uses) if self.plan.grows((use,))), len(uses))

    @functools.cached_property
    def _written(self) -> dict[str, tuple[int, int]]:
        """By flow, the lengths over which it is written."""
        found: dict[str, tuple[int, int]] = {}
        for product in (dim for row in self.plan.rows for dim in row.dims):
            uses, first = uses_of(product), self._first_that_grows(product)
            if first < len(uses) and uses[first].role != "consumes":
                found.setdefault(uses[first].flow, self.plan.length(product[first:]))
        return found

    def lengths(self, span: Span | Sum[Span]) -> tuple[int, int]:
        return length((span,), _small), length((span,), _large)

    def has_map(self, span: Span | Sum[Span]) -> bool:
        """Whether a map grows the span."""
        return (
            isinstance(span, Span)
            and span.small != span.large
            and not self.plan.all_axes[span.axis].resize
        )

    def spans(self, product: Product[Use]) -> Iterator[Span]:
        """The maps of a dimension, also those inside its sums."""
        yield from filter(self.has_map, uses_of(self.factors(product)))

    def factor(self, row: Row) -> Tensor | None:
        """(g): what multiplies a parameter beside its maps, if anything does.

        A tied table reads by the form that writes it, and so sums up the copies of an entry. What
        it alone reads is written smaller by their number.
        """
        if self.width is not None and not self.width.rescales:
            return None
        factor = torch.full((len(row.large_names),), row.factor, dtype=torch.float64)
        for span in () if row.tied is None or self.width is None else self.spans(row.dims[0]):
            form = dense(self.starts[span.key].layers[0].produces, span.small).double()
            copies = form.T @ form
            if torch.allclose(copies, copies[0, 0] * torch.eye(span.small).to(copies)):
                factor[row.tied] /= copies[0, 0]
        return factor if bool((factor != 1).any()) else None

    # Starting a map -----------------------------------------------------------------------------

    def _start(
        self, span: Span, zero_output: Callable[[str], list[bool]], generator: torch.Generator
    ) -> None:
        assert self.width is not None
        axis = self.plan.all_axes[span.axis]
        start = self.width.inner if axis.contracted else self.width.start
        zero = zero_output(axis.stack) if axis.stack else [False]
        layers = [start(span.small, span.large, axis.normed, layer, generator) for layer in zero]
        scale = layers[0].scale * self.plan.scales.get(span.axis, 1.0)
        scale = scale if self.width.rescales else 1.0
        self.starts[span.key] = Started(span.axis, span.small, span.large, layers, zero, scale)

    def _start_form(self, span: Span, generator: torch.Generator) -> None:
        """Make the parameters and the fixed part of a form."""
        assert self.width is not None
        learns, small = self.width.learns, span.small
        forms = [getattr(layer, span.form) for layer in self.starts[span.key].layers]
        copies = [as_copies(form if learns != "lower" else _upper(form, small)) for form in forms]
        if learns == "both" or (learns == "nothing" and None in copies):
            matrices = [dense(form, small) for form in forms]
            self._add_map(span.name, span, matrices, learns == "both")
            return
        if None in copies:
            raise ValueError(
                f"got learns={learns!r}, which adds a learned part to copies, but the map of "
                f"{span.axis} does not start from copies; use such a start, or learns='both'"
            )
        parts = zip(*(form for form in copies if form is not None), strict=True)
        index, weight = (self._by_layer(span, list(part)) for part in parts)
        self.fixed[span.name] = Copier.of(Copies(index, weight), small, *self._place)
        if learns == "lower":
            self._add_map(span.name, span, [dense(form, small)[small:] for form in forms])
        elif learns == "low-rank":
            rank = self.width.rank
            self._add_map(f"{span.name}:U", span, [torch.zeros(span.large, rank) for _ in forms])
            random = [torch.randn(rank, small, generator=generator) / small**0.5 for _ in forms]
            self._add_map(f"{span.name}:V", span, random)

    def _add_map(self, name: str, span: Span, layers: list[Tensor], learns: bool = True) -> None:
        start = self._by_layer(span, layers).to(*self._place)
        self.maps[name] = nn.Parameter(start, requires_grad=learns)

    def _by_layer(self, span: Span, layers: list[Tensor]) -> Tensor:
        """(g, ...) for an axis inside of a stack, and (...) for any other."""
        return torch.stack(layers) if self.plan.all_axes[span.axis].stack else layers[0]


def _small(span: Span) -> int:
    return span.small


def _large(span: Span) -> int:
    return span.large


def _upper(form: Copies | Tensor, small: int) -> Copies | Tensor:
    """The rows of the entries that the small network has."""
    return Copies(*(part[:small] for part in form)) if isinstance(form, Copies) else form[:small]
