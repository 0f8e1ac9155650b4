"""Every map of a plan: it widens parameters, dimension by dimension.

Shapes: g layers of the large stack, L and S the lengths of one axis in the large and the small
network, o and i whatever stands before and behind that axis.
"""

from __future__ import annotations

import functools
import math
import zlib
from collections.abc import Callable, Iterator
from operator import attrgetter
from typing import NamedTuple

import torch
from torch import Tensor, nn

from lightning_ligo.axes.axes import Use
from lightning_ligo.axes.dims import Product, Sum, change_along, fold, length, uses_of
from lightning_ligo.methods.forms import (
    Copies,
    Copying,
    along,
    copies_of,
    copying,
    dense,
    plus_thin,
    repeats,
    thinned,
)
from lightning_ligo.methods.maps import Map
from lightning_ligo.methods.method import Width
from lightning_ligo.operator.depths import key_of
from lightning_ligo.plan.plan import Plan, Row
from lightning_ligo.plan.resize import append, copy, interpolate

Combine = Callable[[Tensor, Tensor], Tensor]
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

    @property
    def name(self) -> str:
        """Of the form, among the parameters."""
        return f"{key_of(self.key)}:{self.form}"


class Started(NamedTuple):
    """The map of an axis, or of a flow, as it starts."""

    axis: str
    small: int
    large: int
    layers: list[Map]  # one, or one for each layer of the stack that the axis is inside of
    silent: list[bool]  # of each, whether the layer writes nothing
    scale: float  # of what writes it, see `Map`


class Widths(nn.Module):
    """The forms of every map, learned or fixed, and what they do to a parameter.

    Args:
        plan: what grows into what.
        width: how axes become longer, if the method says so.
        silent: for every layer of a large stack, whether it writes nothing at the start.
        generator: of the random part of the start.
        device, dtype: of the forms.
    """

    def __init__(
        self,
        plan: Plan,
        width: Width | None,
        silent: Callable[[str], list[bool]],
        generator: torch.Generator,
        device: torch.device,
        dtype: torch.dtype,
    ) -> None:
        super().__init__()
        self.plan = plan
        self.width = width
        self.maps = nn.ParameterDict()
        self.starts: dict[str, Started] = {}
        self._fixed: dict[str, Copying] = {}  # the parts of forms that are not learned
        self._reached: dict[str, Tensor] = {}  # by form, (L): whether an entry is of any old one
        self._place = device, dtype
        spans = [
            span
            for row in plan.rows
            for product in row.dims
            for span in self._spans(product)
            if row.small_names and width is not None
        ]
        for span in spans:
            if span.key not in self.starts:
                self._start(span, silent, generator)
        for span in {span.name: span for span in spans}.values():
            self._start_form(span, generator)

    def forget(self) -> None:
        """Let go of starts that are matrices, as large as what is learned of them."""
        for key, started in self.starts.items():
            if any(isinstance(form, Tensor) for layer in started.layers for form in layer[:2]):
                self.starts[key] = started._replace(layers=[])

    # Growing a parameter -----------------------------------------------------------------------

    def grows(self, row: Row) -> bool:
        return any(self.plan.grows(product) for product in row.dims)

    def grow(self, x: Tensor, row: Row) -> Tensor:
        """(g, *small shape) to (g, *large shape)."""
        return self._grow(x, row, self._widen)

    def _grow(self, x: Tensor, row: Row, widen: Widen) -> Tensor:
        for dim, product in enumerate(row.dims, start=1):
            if x.shape[dim] != (small := self.plan.length(product)[0]):
                x = self._repeat(x, dim, product, small // x.shape[dim])
            spans = self._factors(product)
            changes = {
                span: functools.partial(self._change, span=span, widen=widen)
                for span in uses_of(spans)
                if span.small != span.large
            }
            x = change_along(x, dim, spans, attrgetter("small"), changes)
        return x

    def _change(self, x: Tensor, dim: int, span: Span, widen: Widen) -> Tensor:
        if resize := self.plan.facts[span.axis].resize:
            return {"append": append, "copy": copy, "interpolate": interpolate}[resize](
                x, dim, span.large
            )
        return widen(x, dim, span)

    def _repeat(self, x: Tensor, dim: int, product: Product[Use], repeats: int) -> Tensor:
        """Give every query its own of the heads that keys and values share."""
        lengths = [
            self.plan.length((node,))[0] // self.plan.shared.get(getattr(node, "axis", ""), 1)
            for node in product
        ]
        heads = next(i for i, n in enumerate(product) if getattr(n, "axis", "") in self.plan.shared)
        x = x.unflatten(dim, lengths).repeat_interleave(repeats, dim + heads)
        return x.flatten(dim, dim + len(lengths) - 1)

    def _widen(self, x: Tensor, dim: int, span: Span) -> Tensor:
        """Grow one dimension of (g, ..., S, ...) by a form, fixed and learned part."""
        scale = self.starts[span.key].scale ** span.power
        x = x if scale == 1 else x * scale
        fixed, whole = self._fixed.get(span.name), self.maps.get(span.name)
        if fixed is None:
            return along(whole, x, dim)
        copy = fixed.grow(x, dim)
        if whole is not None:  # the part C of [start; C]
            return torch.cat([copy, along(whole, x, dim)], dim)
        if (left := self.maps.get(f"{span.name}:U")) is not None:
            return copy + along(left, thinned(self.maps[f"{span.name}:V"], x, dim), dim)
        return copy

    def _widen_fixed(self, x: Tensor, dim: int, span: Span) -> Tensor:
        """The same by the fixed part alone."""
        scale = self.starts[span.key].scale ** span.power
        return self._fixed[span.name].grow(x if scale == 1 else x * scale, dim)

    # Growing a matrix by thin maps ----------------------------------------------------------------

    def is_thin(self, row: Row) -> bool:
        """Whether a matrix, or more, grows by copies and thin products alone."""
        factors = [factor for product in row.dims for factor in self._factors(product)]
        growing = [factor for factor in factors if len(set(self._lengths(factor))) == 2]
        whole = [self.plan.length(product)[0] for product in row.dims] == list(row.small)
        return (
            len(row.dims) > 1
            and whole  # no head is repeated
            and bool(growing)
            and all(isinstance(f, Span) and f"{f.name}:U" in self.maps for f in growing)
        )

    def copy(self, x: Tensor, row: Row) -> Tensor:
        """(g, *small shape) to (g, *large shape), by what is not learned."""
        return self._grow(x, row, self._widen_fixed)

    def add_thin(self, copies: Tensor, x: Tensor, row: Row) -> list[Tensor]:
        """What `grow` makes of x, a tensor for each layer, given what `copy` makes of it.

        With ``T = F + U V`` along every dimension,
        ``T_1 T_2 = F_1 F_2 + U_1 V_1 T_2 + F_1 U_2 V_2``: what is learned goes through few entries,
        so that a weight of full size is written once, and no gradient of that size is needed but
        its own.
        """
        spans = [factor for product in row.dims for factor in self._factors(product)]
        lengths = [self._lengths(span) for span in spans]
        x = x.reshape(len(x), *(small for small, _ in lengths))
        growing = [(place, span) for place, span in enumerate(spans)
                   if isinstance(span, Span) and self._maps(span)]  # fmt: skip
        growing.sort(key=lambda each: -each[1].small)  # the shortest, least thin, by copies alone
        terms = []
        for number, (place, span) in enumerate(growing):
            thin = thinned(self.maps[f"{span.name}:V"], x, place + 1)
            thin = thin * self.starts[span.key].scale ** span.power
            for other, (along_it, theirs) in enumerate(growing):
                if other != number:
                    widen = self._widen if other > number else self._widen_fixed
                    thin = widen(thin, along_it + 1, theirs)
            left = self.maps[f"{span.name}:U"].expand(len(x), -1, -1)
            terms.append([(place, *each) for each in zip(left, thin, strict=True)])
        shape = [large for _, large in lengths]
        layers = zip(copies, *terms, strict=True)
        return [plus_thin(layer.reshape(shape), of).reshape(row.large) for layer, *of in layers]

    # Growing a gradient ---------------------------------------------------------------------------

    def stretches(self, row: Row) -> bool:
        """Whether a dimension grows whose entries are told apart."""
        uses = [use for product in row.dims for use in uses_of(product)]
        return any(self.plan.facts[use.axis].resize and self.plan.grows((use,)) for use in uses)

    def grow_gradient(self, x: Tensor, row: Row, power: int = 1) -> Tensor:
        """(g, *small shape) to (g, *large shape), for a gradient or a mean of its squares.

        What a parameter writes with ``B`` is read with ``A``, and the gradient comes back through
        the reader: the forms change roles. For ``W_large = B_out W A_inᵀ`` it is
        ``A_out G B_inᵀ``; for squares, ``power`` 2, the entries of both forms are squared.
        """
        grown = self._grow(x, row, functools.partial(self._widen_gradient, power=power))
        repeats = math.prod(self.plan.length(dim)[0] for dim in row.dims) // math.prod(row.small)
        if repeats > 1:  # each copy of a shared head has a share of its gradient
            grown = grown / repeats**power
        if self.width is not None and self.width.diagonal:
            mask = self.diagonal(row)
            grown = grown if mask is None else grown * (mask > 0).to(grown)
        return grown

    def pad(self, x: Tensor, row: Row) -> Tensor:
        """(g, *small shape) to (g, *large shape), with zeros for new entries."""

        def widen(x: Tensor, dim: int, span: Span) -> Tensor:
            new = x.new_zeros(*x.shape[:dim], span.large - span.small, *x.shape[dim + 1 :])
            return torch.cat([x, new], dim)

        return self._grow(x, row, widen)

    def _widen_gradient(self, x: Tensor, dim: int, span: Span, power: int) -> Tensor:
        span = self._turned(span)
        if power == 1:
            return self._widen(x, dim, span)
        fixed = self._fixed.get(span.name)
        if fixed is not None and not {span.name, f"{span.name}:U"} & self.maps.keys():
            scale = self.starts[span.key].scale ** (2 * span.power)
            return fixed.squared(span.small).grow(x * scale, dim)
        layers = len(x) if self.plan.facts[span.axis].stack else 1
        form = self._widen(torch.eye(span.small).to(x).expand(layers, -1, -1), 1, span)
        return along(form.square() if layers > 1 else form[0].square(), x, dim)

    def _turned(self, span: Span) -> Span:
        """What a gradient grows by.

        Queries and keys read one another as they write, by ``B``; and the paper's maps have one
        form only.
        """
        inner = self.plan.facts[span.axis].contracted and span.form == "produces"
        form = "produces" if inner or span.form == "consumes" else "consumes"
        turned = span._replace(form=form, power=-span.power)
        return turned if turned.name in self._reached else turned._replace(form=span.form)

    # Where the entries of a large parameter come from ---------------------------------------------

    def reached(self, row: Row) -> Tensor:
        """Whether a large entry has anything of the small network."""
        return self._outer(row, lambda span: self._reached[span.name], True, torch.logical_and)

    def ahead(self, row: Row) -> Tensor:
        """Whether a large entry is a new one of what is written."""

        def of(span: Span) -> Tensor:
            return (torch.arange(span.large) >= span.small) & (span.role == "produces")

        return self._outer(row, of, False, torch.logical_or)

    def anew(self, row: Row, form: str | None = None) -> Tensor:
        """Whether a large entry is of a new entry of an axis, in this form or any."""

        def of(span: Span) -> Tensor:
            return (torch.arange(span.large) >= span.small) & (form in (None, span.form))

        return self._outer(row, of, False, torch.logical_or)

    def diagonal(self, row: Row) -> Tensor | None:
        """What makes copies read copies of their own number only; None where nothing reads copies.

        A reader takes the whole of one copy in place of a share of each.
        """
        reads = [self._grows_as(dim, reading=True) for dim in row.dims]
        writes = [self._grows_as(dim, reading=False) for dim in row.dims]
        if not any(reads) or not any(writes):
            return None

        def number(span: Span) -> Tensor:
            return torch.arange(span.large) // span.small

        numbers = [
            self._over(dim, number, 0, torch.maximum).view(-1, *[1] * (len(row.dims) - 1 - place))
            for place, dim in enumerate(row.dims)
            if reads[place] or writes[place]
        ]
        same = torch.stack(torch.broadcast_tensors(*(n == numbers[0] for n in numbers))).all(0)
        return same * (int(numbers[0].max()) + 1) ** sum(reads)

    def noise(self, row: Row, like: Tensor, seed: int) -> Tensor | None:
        """Noise on what reads copies, of mean square 1, that cancels between two of one entry."""
        for dim, product in enumerate(row.dims, start=1):
            spans = list(self._factors(product))
            for position, span in enumerate(spans, start=dim):
                if isinstance(span, Span) and span.role == "consumes" and self._maps(span):
                    key = zlib.crc32(f"{seed} {row.pattern}".encode())
                    generator = torch.Generator().manual_seed(key)
                    noise = torch.randn(like.shape, generator=generator, dtype=torch.float64)
                    noise = noise.unflatten(dim, [self._lengths(span)[1] for span in spans])
                    noise = self._paired(span).grow(noise, position)
                    return noise.flatten(dim, dim + len(spans) - 1).to(like)
        return None

    def _paired(self, span: Span) -> Copying:
        """Gives the second copy of every two the noise of the first with the other sign."""
        index, sign = [], []
        for layer in self.starts[span.key].layers:
            form = layer.consumes
            assert isinstance(form, Copies)
            number, order = repeats(form.entry), form.entry.argsort(stable=True)
            place = order.argsort()  # of an entry, among copies of one entry after the other
            first = order[place - number % 2]
            paired = torch.zeros(span.large, dtype=torch.float64)
            second = (number % 2 == 1) & (form.entry < span.small)
            paired[second], paired[first[second]] = -1, 1
            index.append(first)
            sign.append(paired)
        pairs = [torch.stack(part) if len(part) > 1 else part[0] for part in (index, sign)]
        return copying(Copies(*pairs), span.large, torch.device("cpu"), torch.float64)

    def _outer(
        self, row: Row, of: Callable[[Span], Tensor], other: bool, combine: Combine
    ) -> Tensor:
        """What holds of the entries of a large parameter, from what holds along its dimensions."""
        total = torch.tensor(other)
        for dim in row.dims:
            total = combine(total.unsqueeze(-1), self._over(dim, of, other, combine))
        return total

    def _over(
        self,
        product: Product[Use],
        of: Callable[[Span], Tensor],
        other: bool | int,
        combine: Combine,
    ) -> Tensor:
        """What holds along a large dimension; ``other`` of what grows by no map."""

        def along_span(span: Span) -> Tensor:
            return of(span) if self._maps(span) else torch.full((span.large,), other)

        def outer(vectors: list[Tensor]) -> Tensor:
            return functools.reduce(
                lambda total, vector: combine(total.unsqueeze(-1), vector).flatten(),
                vectors or [torch.tensor([other])],
            )

        return fold(self._factors(product), along_span, outer, torch.cat)

    def _grows_as(self, product: Product[Use], reading: bool) -> bool:
        return any((span.role == "consumes") == reading for span in self._spans(product))

    # Maps ---------------------------------------------------------------------------------------

    def _factors(self, product: Product[Use]) -> Product[Span]:
        """The maps and sums that a dimension is grown by, slowest first."""
        tied = self.width is not None and self.width.ties == "flow"
        if tied and not any(isinstance(node, Sum) for node in product):
            return tuple(self._whole(product))
        return tuple(
            Sum(tuple(map(self._factors, node.segments)))
            if isinstance(node, Sum)
            else self._span(node)
            for node in product
        )

    def _span(self, use: Use) -> Span:
        lengths = self.plan.lengths[use.axis]
        return Span(*lengths, use.axis, use.form, use.power, use.axis, use.role)

    def _whole(self, product: Product[Use]) -> Iterator[Span]:
        """A map for a flow, over all of a dimension from its first axis that grows."""
        uses = uses_of(product)
        first = next((i for i, use in enumerate(uses) if self.plan.grows((use,))), len(uses))
        for use in uses[:first]:
            yield Span(*self.plan.lengths[use.axis], use.axis, use.form, 0, use.axis, use.role)
        if first < len(uses):
            use, lengths = uses[first], self.plan.length(product[first:])
            yield Span(*lengths, use.flow, "produces", 0, use.axis, use.role)

    def _lengths(self, span: Span | Sum[Span]) -> tuple[int, int]:
        return length((span,), attrgetter("small")), length((span,), attrgetter("large"))

    def _maps(self, span: Span) -> bool:
        """Whether a span grows by a map."""
        return span.small != span.large and not self.plan.facts[span.axis].resize

    def _spans(self, product: Product[Use]) -> Iterator[Span]:
        """The maps of a dimension, also those inside its sums."""
        yield from filter(self._maps, uses_of(self._factors(product)))

    def _start(
        self, span: Span, silent: Callable[[str], list[bool]], generator: torch.Generator
    ) -> None:
        assert self.width is not None
        axis = self.plan.facts[span.axis]
        start = self.width.inner if axis.contracted else self.width.start
        quiet = silent(axis.stack) if axis.stack else [False]
        layers = [start(span.small, span.large, axis.normed, layer, generator) for layer in quiet]
        scale = layers[0].scale * self.plan.scales.get(span.axis, 1.0)
        scale = scale if self.width.rescales else 1.0
        self.starts[span.key] = Started(span.axis, span.small, span.large, layers, quiet, scale)

    def _start_form(self, span: Span, generator: torch.Generator) -> None:
        """The parameters and the fixed part of a form."""
        assert self.width is not None
        learns, (device, dtype) = self.width.learns, self._place
        small, in_layers = span.small, self.plan.facts[span.axis].stack is not None
        forms = [getattr(layer, span.form) for layer in self.starts[span.key].layers]
        first = forms[0]
        self._reached[span.name] = first.weight != 0 if isinstance(first, Copies) else first.any(1)

        def learned(tensors: list[Tensor], learns: bool = True) -> nn.Parameter:
            start = torch.stack(tensors) if in_layers else tensors[0]
            return nn.Parameter(start.to(device, dtype), requires_grad=learns)

        def fixed(copies: list[Copies]) -> Copying:
            index, weight = (torch.stack(part) for part in zip(*copies, strict=True))
            form = Copies(index, weight) if in_layers else Copies(index[0], weight[0])
            return copying(form, small, device, dtype)

        copies = [copies_of(form if learns != "lower" else _upper(form, small)) for form in forms]
        if learns == "both" or (learns == "nothing" and None in copies):
            self.maps[span.name] = learned([dense(form, small) for form in forms], learns == "both")
            return
        if None in copies:
            raise ValueError(
                f"what is learned of {span.axis} is {learns!r}, which is added to copies, and its "
                "map starts as something else; start from copies, or learn 'both'"
            )
        self._fixed[span.name] = fixed([form for form in copies if form is not None])
        if learns == "lower":
            self.maps[span.name] = learned([dense(form, small)[small:] for form in forms])
        elif learns == "low-rank":
            rank = self.width.rank
            zero = torch.zeros(span.large, rank)
            self.maps[f"{span.name}:U"] = learned([zero for _ in forms])
            self.maps[f"{span.name}:V"] = learned(
                [torch.randn(rank, small, generator=generator) / small**0.5 for _ in forms]
            )


def _upper(form: Copies | Tensor, small: int) -> Copies | Tensor:
    """The rows of the entries that the small network has."""
    return Copies(*(part[:small] for part in form)) if isinstance(form, Copies) else form[:small]
