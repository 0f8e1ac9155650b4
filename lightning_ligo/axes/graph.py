"""The dimension graph of one forward: the dimensions of every tensor, the roles of parameters."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import chain, repeat
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from lightning_ligo.axes.factors import (
    CONSTANT,
    Dim,
    Factor,
    Facts,
    Item,
    Owner,
    end_factors,
    ends,
    new,
    pin,
    size,
    unite,
)
from lightning_ligo.axes.flow import Flow
from lightning_ligo.axes.stacks import traits

TABLE = "it is the rows of a table that indices look up"
SELECTED = "its entries are selected by position"
RANKED = "it is ranked"
STAYS = "you said that it stays"


class Observed(NamedTuple):
    """One role of a factor of a parameter's dimension, observed in the forward."""

    owner: Owner
    factor: Factor
    role: str  # produces | consumes | gain | shift | scales
    reads: Flow | None = None  # the flow into a consuming dimension, or into a norm with gain


class Mark(NamedTuple):
    """A step of a norm that is written as single operations."""

    step: str  # mean | centered | gained | square | mean square | inverse | root | normed
    of: Tensor  # the tensor that is normed
    reads: Flow | None = None


class Term(NamedTuple):
    """One term of a sum of activations."""

    writers: frozenset[str]  # the parameters that wrote it last
    norm: frozenset[str]  # gain and shift of the norm that it is the output of, if it is one


class Scaled(NamedTuple):
    """A parameter, or what it writes, times constants."""

    root: Any  # the same for all steps of one product
    writers: frozenset[str]
    dims: list[Dim]  # of an activation
    by: tuple[tuple[float | str, int], ...]  # numbers, or buffers of one, each with a power


class Unread(NamedTuple):
    """An operation on parameters' axes that tracing cannot follow."""

    problem: str  # the operation, its shapes, and why it cannot be followed
    inputs: list[Dim]  # including those of parameters
    weights: list[Dim]  # the dimensions that are taken to produce the output
    outputs: list[Dim]
    named: bool  # the user has named all axes of the inputs


class _Traced(NamedTuple):
    tensor: Tensor  # held, so that its storage is not handed to another tensor
    dims: list[Dim]
    static: bool  # it does not depend on the network's inputs
    writers: frozenset[str]  # the parameters that wrote it last


class Graph:
    """The dimensions of the tensors of one forward, and the uses of its parameters."""

    new = staticmethod(new)

    def __init__(self, network: nn.Module) -> None:
        kept = network.state_dict(keep_vars=True)
        # The shapes of parameters (tied ones once), then of persistent buffers.
        self.shapes = {name: tensor.shape for name, tensor in network.named_parameters()}
        self.shapes |= {name: b.shape for name, b in network.named_buffers() if name in kept}
        self.traits = traits(network)
        # The dimensions of every tensor, of parameters and floating point buffers, of the outputs.
        self._traced: dict[tuple[Any, ...], _Traced] = {}
        self.parameters: dict[str, list[Dim]] = {}
        self.outputs: list[list[Dim]] = []
        # The roles of parameters; and products of parameters, whose roles follow from other uses.
        self.uses: list[Observed] = []
        self.opposed: list[tuple[Dim, Dim]] = []
        # The kind and the dimension of every reduction, see `Reduction`.
        self.reductions: list[tuple[str, Dim]] = []
        # The terms of every sum of activations; (parameters that scale a term, its writers).
        self.sums: list[list[Term]] = []
        self.scalings: list[tuple[frozenset[str], frozenset[str]]] = []
        # By gain and shift, the writers of what a norm reads; and both by the output of the norm.
        self.normed: dict[str, frozenset[str]] = {}
        self._norms: dict[int, frozenset[str]] = {}
        # What is multiplied by constants, also by its values; outputs of products and norms; and
        # the numbers that are added to parameters.
        self.scaled: list[Scaled] = []
        self._factors: dict[int, Scaled] = {}
        self._written: set[int] = set()
        self.offsets: dict[str, float] = {}
        # By storage: the parameters that were applied last.
        self._scaled: dict[int, frozenset[str]] = {}
        # By storage: steps of norms, the same values in another dtype, contracted dimensions
        # with their scale.
        self.marks: dict[int, Mark] = {}
        # Gains by their products with what may yet be normed, and those that no norm has followed.
        self._gains: dict[int, Tensor] = {}
        self._waiting: set[int] = set()
        self._cast: dict[int, int] = {}
        self._contracted: dict[int, tuple[Dim, list[float]]] = {}
        # Dimensions to pin once a tensor is used, with the reason.
        self._told_apart: dict[tuple[Any, ...], tuple[Dim, str]] = {}
        # Dimensions of parameters that the user named, the words for their factors, and the
        # operations that cannot be followed.
        self.named: list[Dim] = []
        self.words: list[tuple[Factor, str]] = []
        self.unread: list[Unread] = []
        # What trials have found, and the operations of which they have found the rule.
        self.trials: dict[Any, Any] = {}
        self.tried: dict[str, None] = {}
        for name, tensor in carriers(network):
            dims: list[Dim] = [[] for _ in tensor.shape]
            for dim, length in enumerate(tensor.shape):
                if length != 1:
                    dims[dim] = [Item(Factor(length, Facts(True)), Flow(), (Owner(name, dim),))]
            self.parameters[name] = dims
            self.keep(tensor, dims, static=True, writers=frozenset([name]))

    # The tensors ---------------------------------------------------------------------------

    def keep(
        self,
        tensor: Tensor,
        dims: list[Dim],
        static: bool = False,
        writers: frozenset[str] = frozenset(),
    ) -> None:
        assert [size(dim) for dim in dims] == list(tensor.shape), (dims, tensor.shape)
        self._traced[_key(tensor)] = _Traced(tensor, dims, static, writers)

    def dims(self, tensor: Tensor) -> list[Dim]:
        if _key(tensor) not in self._traced:
            self.keep(tensor, self.unknown(tensor, pinned=CONSTANT), static=True)
        return self._traced[_key(tensor)].dims

    def static(self, tensor: Tensor) -> bool:
        """Whether a tensor is made of parameters and constants only."""
        return _key(tensor) not in self._traced or self._traced[_key(tensor)].static

    def writers(self, tensor: Tensor) -> frozenset[str]:
        """The parameters that wrote a tensor last: where they are zero, it is zero."""
        traced = self._traced.get(_key(tensor))
        return traced.writers if traced else frozenset()

    def tell_apart(self, out: Tensor, items: Dim, reason: str) -> None:
        """Pin ``items`` once ``out`` is used: some networks only look at its shape."""
        self._told_apart[_key(out)] = items, reason

    def use(self, tensors: Iterable[Tensor]) -> None:
        """Note that an operation reads these tensors, or that they are the network's output."""
        for tensor in tensors:
            if (told := self._told_apart.pop(_key(tensor), None)) is not None:
                pin(*told)

    def unknown(self, tensor: Tensor, *, pinned: str | None = None) -> list[Dim]:
        return [self.new(length, pinned=pinned) for length in tensor.shape]

    # The roles of parameters -----------------------------------------------------------------

    def observe(self, item: Item, role: str, reads: Flow | None = None) -> None:
        """Note that the owners of an item are used in ``role``."""
        self.uses += [Observed(owner, item.factor, role, reads) for owner in item.owners]

    def record(
        self, tensor: Tensor, role: str, items: Dim | None = None, reads: Flow | None = None
    ) -> None:
        """Note that the dimensions of a parameter (or only ``items``) are used in ``role``."""
        if self.static(tensor):
            for item in ends(chain(*self.dims(tensor)) if items is None else items):
                self.observe(item, role, reads)

    def write(self, tensors: Sequence[Tensor]) -> None:
        """Note that parameters are joined with activations, or written into them."""
        if not all(map(self.static, tensors)):
            for tensor in tensors:
                self.record(tensor, "produces")

    def consume(self, weights: Dim, inputs: Dim) -> None:
        """Contract a weight's dimension with an input."""
        unite(weights, inputs, flow=False)
        reads = chain((end.flow for end in ends(inputs)), repeat(None))
        for item, read in zip(ends(weights), reads, strict=False):
            self.observe(item, "consumes", read)

    def release(self, tensor: Tensor) -> None:
        """Take a tensor that is made of parameters, such as learned queries, for an activation."""
        if (traced := self._traced.get(_key(tensor))) is not None and traced.static:
            self.record(tensor, "produces")
            self._traced[_key(tensor)] = traced._replace(static=False)

    def wait(self, gain: Tensor, x: Tensor, out: Tensor) -> None:
        """Note that ``out = gain * x``: it scales ``x``, unless a norm follows."""
        unite(self.dims(x)[-1], self.dims(gain)[0], flow=False)
        self.mark(out, "gained", x)
        self._gains[self.values(out)] = gain
        self._waiting.add(self.values(out))

    def gain_of(self, product: Tensor) -> Tensor:
        """Return the gain of a product that is normed."""
        self._waiting.discard(self.values(product))
        return self._gains[self.values(product)]

    def settle(self) -> None:
        """Let one side consume and the other produce where parameters are multiplied."""
        for product in self._waiting:
            gain = self._gains[product]
            unite(self.dims(self.marks[product].of)[-1], self.dims(gain)[0])
            self.record(gain, "scales")
        for left, right in self.opposed:
            lefts, rights = self._roles(left), self._roles(right)
            first = "consumes" in lefts or "produces" in rights
            if first and "consumes" not in rights and "produces" not in lefts:
                left, right = right, left
            self.consume(right, left)
            for item in ends(left):
                self.observe(item, "produces")

    def _roles(self, side: Dim) -> set[str]:
        owners = {owner for item in ends(side) for owner in item.owners}
        return {use.role for use in self.uses if use.owner in owners}

    def reduce(self, kind: str, dims: Iterable[Dim], centers: bool = False) -> None:
        """Note that something, such as a norm, is taken over all of these dimensions at once.

        A mean that ``centers`` is subtracted from what it is taken of, or noted when it is not.
        """
        items = [item for dim in dims for item in dim]
        self.reductions.append((kind, items))
        if kind not in ("layer", "rms", "group", "mean square") and not centers:
            mark_nonlinear([items])

    def contracted(self, out: Tensor, over: Dim) -> None:
        """Note that ``out`` is a contraction of two activations over ``over``."""
        scale = [1.0]
        for item in ends(over):
            if not item.factor.facts.pinned:
                item.factor.facts.contracted += (scale,)
        self._contracted[storage(out)] = over, scale

    def multiply(self, tensor: Tensor, number: float, out: Tensor | None = None) -> None:
        """Note that an activation is multiplied by a number, which a next norm takes out."""
        if out is not None and (norm := self._norms.get(self.values(tensor))):
            self._norms[self.values(out)] = norm
        items = [item for dim in self.dims(tensor) for item in dim]
        if storage(tensor) in self._contracted:
            items, scale = self._contracted[storage(tensor)]
            scale[0] *= number
        else:
            for item in ends(items):
                item.factor.facts.scale *= number

    def scale(self, out: Tensor, inputs: Sequence[Tensor]) -> None:
        """Note that ``out`` is a product with parameters, if some of ``inputs`` are."""
        names = (self.writers(tensor) for tensor in inputs if self.static(tensor))
        self._scaled[storage(out)] = frozenset().union(*names)

    def add(self, tensors: Sequence[Tensor]) -> None:
        """Note that activations are added, or joined."""
        self.sums.append([
            Term(self.writers(tensor), self._norms.get(self.values(tensor), frozenset()))
            for tensor in tensors
        ])  # fmt: skip
        for tensor in tensors:
            if scaled := self._scaled.get(storage(tensor)):
                self.scalings.append((scaled, self.writers(tensor)))

    def apply(self, out: Tensor) -> None:
        """Note that ``out`` is the output of a function, and no longer of a norm."""
        self._norms.pop(storage(out), None)
        self._factors.pop(storage(out), None)
        self._written.discard(storage(out))

    def write_by(self, out: Tensor) -> None:
        """Note that ``out`` comes out of a product with parameters, or of a norm."""
        self._written.add(storage(out))

    def source(self, x: Tensor) -> Scaled | None:
        """What is known of constants in a parameter, or in what one writes."""
        if (known := self._factors.get(self.values(x))) is not None:
            return known
        of = self.writers(x)
        if of and (self.static(x) or self.values(x) in self._written):
            return Scaled(object(), of, [] if self.static(x) else self.dims(x), ())
        return None

    def factor(self, source: Scaled, out: Tensor, by: float | Tensor, power: int) -> None:
        """Note that ``out`` is what is known of ``source`` times a constant."""
        step = min(self.writers(by)) if isinstance(by, Tensor) else by
        scaled = source._replace(by=(*source.by, (step, power)))
        self._factors[self.values(out)] = scaled
        self.scaled.append(scaled)

    def norm(self, out: Tensor, of: Tensor, affine: Sequence[Tensor | None]) -> None:
        """Note that ``out`` is the output of a norm with this gain and shift."""
        own = [self.writers(tensor) for tensor in affine if tensor is not None]
        self._norms[self.values(out)] = frozenset().union(*own)
        self.normed |= dict.fromkeys(self._norms[self.values(out)], self.writers(of))

    def mark(self, out: Tensor, step: str, of: Tensor, reads: Flow | None = None) -> None:
        self.marks[self.values(out)] = Mark(step, of, reads)

    def marked(self, tensor: Any, *steps: str) -> Mark | None:
        """The step of a norm that a tensor is, if it is one of these."""
        found = self.marks.get(self.values(tensor)) if isinstance(tensor, Tensor) else None
        return found if found and found.step in steps else None

    def cast(self, out: Tensor, of: Tensor) -> None:
        """Note that ``out`` holds the values of another tensor, in another dtype."""
        self._cast[storage(out)] = self.values(of)

    def values(self, tensor: Tensor) -> int:
        """Identify the values that a tensor, its views and its casts to other dtypes share."""
        return self._cast.get(storage(tensor), storage(tensor))

    def parameters_of(self, dims: Iterable[Dim]) -> list[str]:
        """The parameters and buffers that carry axes of these dimensions."""
        touched = {*end_factors(*dims)}
        return [name for name, own in self.parameters.items() if touched & {*end_factors(*own)}]

    def named_factors(self) -> set[Factor]:
        """The factors that the user has named."""
        return {*end_factors(*self.named)}

    def join_flows(self) -> None:
        """Unite the flow out of an unread operation with that of its weights, or its inputs."""
        for unread in self.unread:
            mark_nonlinear(unread.outputs)
            for end in ends(item for items in unread.outputs for item in items):
                for dims in (unread.weights, unread.inputs):
                    along = [i for dim in dims for i in ends(dim) if i.factor is end.factor]
                    for item in along:
                        if item.flow is not None and end.flow is not None:
                            end.flow.union(item.flow)
                    if along:
                        break

    def unread_factors(self) -> set[Factor]:
        """The factors that enter operations that tracing cannot follow."""
        return {factor for unread in self.unread for factor in end_factors(*unread.inputs)}


def carriers(network: nn.Module) -> list[tuple[str, Tensor]]:
    """The tensors of a network that have axes: its parameters and its floating point buffers."""
    buffers = [(name, b) for name, b in network.named_buffers() if b.is_floating_point()]
    return [*network.named_parameters(), *buffers]


def mark_nonlinear(dims: Iterable[Dim]) -> None:
    """Note that a nonlinear function, or no norm's reduction, is taken of these dimensions."""
    for dim in dims:
        for item in ends(dim):
            if item.flow is not None:
                item.flow.root().nonlinear = True


def storage(tensor: Tensor) -> int:
    """Identify the storage that a tensor and its views share; a sparse tensor stands alone."""
    return tensor.untyped_storage()._cdata if tensor.layout == torch.strided else tensor._cdata


def _key(tensor: Tensor) -> tuple[Any, ...]:
    """Identify a tensor: views may come back as new objects, their storage does not change."""
    strided = tensor.layout == torch.strided
    places = (tensor.storage_offset(), tensor.stride()) if strided else ()
    return storage(tensor), tuple(tensor.shape), tensor.dtype, *places
