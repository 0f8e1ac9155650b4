"""Read what a large network computes in the terms of the small one, and find where they differ."""

from __future__ import annotations

import functools
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Size, Tensor, nn
from torch._C._functorch import is_functorch_wrapped_tensor

from lightning_ligo.axes.axes import Output, Use
from lightning_ligo.axes.calls import outputs_of
from lightning_ligo.axes.dims import Product, change_along, replaced, uses_of
from lightning_ligo.axes.proof import relative
from lightning_ligo.methods.forms import dense
from lightning_ligo.operator.operator import Operator
from lightning_ligo.operator.widths import Span
from lightning_ligo.plan.plan import Row

ROWS = 8  # of every output that are compared


class Place(NamedTuple):
    """A module of the large network that also stands in the small one."""

    small: str  # its name there
    row: Row  # of one of its parameters
    layer: int  # of the row


Places = dict[str, Place]  # by the name of the module
Outputs = dict[str, list[tuple[Tensor, Size]]]  # of every call of a module: rows, of how many


class Unreadable(ValueError):
    """A tensor of the large network has no counterpart in the small one."""


def read_output(operator: Operator, small: Tensor, large: Tensor, output: Output) -> Tensor:
    """Read an output of the large network in the shape of the small one's.

    Raises:
        Unreadable: if it has another shape for another reason than a grown axis.
    """
    for dim in range(large.dim() if small.dim() == large.dim() else 0):
        if small.shape[dim] != large.shape[dim] and dim < len(output.dims):
            product = output.dims[dim]
            if product and operator.plan.length(product) == (small.shape[dim], large.shape[dim]):
                large = _read(operator, large, dim, product, output.layer)
    if small.shape != large.shape:
        raise Unreadable(f"got {tuple(small.shape)} and {tuple(large.shape)}")
    return large


def first_change(
    operator: Operator, places: Places, before: Outputs, after: Outputs, tolerance: float
) -> tuple[str, float] | None:
    """Find the first module of the large network whose output differs, and by how much.

    ``before`` and ``after`` are what the modules of both returned, see `places_of`, `recording`.
    """
    for name, outputs in after.items():
        other, row, layer = places[name]
        if len(before.get(other, ())) != len(outputs):
            continue
        for (one, length), (out, larger) in zip(before[other], outputs, strict=True):
            read = _readings(operator, one, out, row, layer) if length == larger else []
            change = min((relative(one, each) for each in read), default=0.0)
            if change > tolerance:
                return name, change
    return None


@contextmanager
def recording(network: nn.Module, names: Collection[str]) -> Iterator[Outputs]:
    """Record the first output of modules, each time they are called, in the order of the calls."""
    outputs: Outputs = {}

    def record(_: nn.Module, __: Any, out: Any, name: str) -> None:
        tensors = outputs_of(out)
        if tensors and not is_functorch_wrapped_tensor(tensors[0]):  # as inside of vmap
            out, length = tensors[0].detach(), tensors[0].shape[:1]
            outputs.setdefault(name, []).append(((out[:ROWS] if length else out).clone(), length))

    handles = [
        module.register_forward_hook(functools.partial(record, name=name))
        for name, module in network.named_modules()
        if name in names and not isinstance(module, torch.jit.ScriptModule)  # it takes no hooks
    ]
    try:
        yield outputs
    finally:
        for handle in handles:
            handle.remove()


def places_of(operator: Operator, large: nn.Module) -> Places:
    """Find the modules with parameters that stand in both networks: the parameters tell their axes.

    The row is of the bias if there is one, which shows the axes of the output as they are. New
    layers are left out.
    """
    places: Places = {}
    rows = {
        name: (row, layer) for row in operator.plan.rows for layer, name in
        enumerate(row.large_names) if row.small_names
    }  # fmt: skip
    names = {parameter: name for name, parameter in large.named_parameters()}
    for path, module in large.named_modules():
        own = [names[parameter] for parameter in module.parameters(recurse=False)]
        known = sorted((name for name in own if name in rows), key=lambda n: len(rows[n][0].large))
        if not path or not known:
            continue
        row, layer = rows[known[0]]
        old = operator.depths.old(row)[layer]
        if not known[0].startswith(f"{path}."):  # it is tied to that of another module
            places[path] = Place(path, row, layer)
        elif bool(old.any()):
            source, last = row.small_names[int(old.argmax())], known[0].removeprefix(f"{path}.")
            places[path] = Place(source.removesuffix(f".{last}"), row, layer)
    return places


def _readings(
    operator: Operator, small: Tensor, large: Tensor, row: Row, layer: int
) -> list[Tensor]:
    """Read an output of a module that holds the parameter of a row.

    A gain alone does not tell the scale of what comes out of its norm, nor a table whether the
    module takes out the factor that it has: these are read in two ways.
    """
    factors = operator.widths.factor(row)
    scales = {1.0, 1.0 if factors is None else float(factors[layer])}
    if small.shape == large.shape:
        return [large / scale for scale in scales]
    if small.dim() != large.dim():
        return []
    differing = [dim for dim in range(small.dim()) if small.shape[dim] != large.shape[dim]]
    lengths = (small.shape[differing[0]], large.shape[differing[0]])
    for product in row.dims if len(differing) == 1 else ():
        roles = {use.role for use in uses_of(product)}
        if "consumes" not in roles and operator.plan.length(product) == lengths:
            try:
                return [
                    _read(operator, large, differing[0], _reader(product, more), layer) / scale
                    for more in ((0, 1) if "gain" in roles else (0,))
                    for scale in scales
                ]
            except Unreadable:
                return []
    return []


def _reader(product: Product[Use], more: int) -> Product[Use]:
    """How what a parameter writes is read: by the other form, without the factor."""

    def reading(use: Use) -> Use:
        form = "produces" if use.form == "consumes" else "consumes"
        return use._replace(role="consumes", form=form, power=-use.power - more)

    return replaced(product, reading)


def _read(operator: Operator, x: Tensor, dim: int, product: Product[Use], layer: int) -> Tensor:
    """Read a dimension of a tensor of the large network, in a layer of a stack."""
    spans = operator.widths.factors(product)
    changes = {
        span: functools.partial(_narrowed, operator=operator, span=span, layer=layer)
        for span in uses_of(spans)
        if span.small != span.large
    }
    return change_along(x, dim, spans, lambda span: span.large, changes)


def _narrowed(x: Tensor, dim: int, operator: Operator, span: Span, layer: int) -> Tensor:
    """Read an axis of a large tensor by the transpose of the form that reads it."""
    axis, widths = operator.plan.all_axes[span.axis], operator.widths
    if axis.resize == "append":
        return x.narrow(dim, 0, span.small)
    scale = 1.0
    if axis.contracted:  # the same form writes queries and keys, and keeps their product
        span = span._replace(form="produces", power=1)
        scale = operator.plan.scales.get(span.axis, 1.0)
    if widths.width is not None and widths.width.ties == "flow":
        span = span._replace(form="produces", power=0)
    started, known = widths.starts.get(span.key), {*widths.fixed, *widths.maps}
    if axis.resize or started is None or not (started.layers or span.name in known):
        raise Unreadable(f"{span.axis} grows from {span.small} to {span.large}")
    number, x = layer if axis.stack else 0, x.movedim(dim, -1)
    if span.name in known:
        with torch.enable_grad():  # the gradient of what a linear map writes is its transpose
            zeros = x.new_zeros(1, x[..., 0].numel(), span.small, dtype=operator.dtype)
            grown = widths.widen(zeros.requires_grad_(), 2, span, number if axis.stack else None)
            (read,) = torch.autograd.grad(grown, zeros, x.reshape(grown.shape).to(grown))
        read = read.reshape(*x.shape[:-1], span.small).to(x)
    else:  # no parameter reads it so
        form = getattr(started.layers[number], span.form)
        read = x @ (dense(form, span.small) * started.scale**span.power).to(x)
    return (read / scale**2).movedim(-1, dim)
