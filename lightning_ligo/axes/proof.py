"""Permute an axis and compare outputs: it may grow only if nothing depends on its order."""

from __future__ import annotations

import functools
import itertools
import math
import zlib
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lightning_ligo.axes.axes import Axes, Use
from lightning_ligo.axes.calls import (
    Call,
    Steady,
    copied,
    make_steadily,
    passed_on,
    with_tensors,
)
from lightning_ligo.axes.dims import change_along, uses_of
from lightning_ligo.axes.override import Override
from lightning_ligo.axes.stacks import pattern_of
from lightning_ligo.axes.trace import trace

TOLERANCE = 1e-6  # of a relative change: float64 rounds to 1e-9, float32 to 3e-7


def prove(
    network: nn.Module,
    *args: Any,
    axes: Iterable[str] | None = None,
    override: Override | None = None,
    **kwargs: Any,
) -> dict[str, float]:
    """Measure the relative change of the outputs when an axis is permuted, for every axis.

    An axis can grow only if its entries are exchangeable: permuting it in every parameter and
    buffer that carries it leaves the outputs equal, to rounding. Two orders are tried, a cycle
    through all entries and a swap of two, which together generate every other order.

    The proof runs in evaluation mode, in float64 where the device allows it, on a copy of
    ``network``. Noise on all weights, and random numbers for inputs that are zero, keep weights
    that start at zero or one from hiding a difference. Of several outputs the largest change
    counts. Outputs behind the first, those that a later call takes, and features that have an axis
    which can grow, may carry the axis: their entries are sorted first.

    Axes without a reason to stay are permuted all at once, each in its own order, and share the
    error. They are tested apart only if it is larger than rounding.

    Args:
        axes: the names to prove; by default all axes of parameters that are longer than 1.
        override: names axes that tracing cannot find, see `trace`; a wrong name fails here.

    Example:
        >>> network = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> errors = prove(network, torch.randn(3, 4))
        >>> {name: error < 1e-9 for name, error in errors.items()}
        {'hidden': True, '0.in': False, '2.out': False}
    """
    named = trace(network, *args, override=override, **kwargs)
    return prove_axes(network, [Call(args, kwargs)], named, axes)


def prove_axes(
    network: nn.Module,
    calls: Sequence[Call],
    named: Axes,
    axes: Iterable[str] | None = None,
    *,
    quick: bool = False,
) -> dict[str, float]:
    """Prove axes of a network that is traced already, see `prove`.

    ``quick`` uses float32, in half the memory and time, and float64 only for axes whose error is
    larger than rounding.
    """

    def run(dtype: torch.dtype, axes: Iterable[str] | None) -> dict[str, float]:
        return _errors(*prepared(network, calls, dtype), named, axes)

    errors: dict[str, float] = {}
    left = None if axes is None else list(axes)
    if quick:
        errors = run(torch.float32, left)
        left = [name for name, error in errors.items() if error > TOLERANCE]
    if left != []:
        try:
            errors |= run(torch.float64, left)
        except (RuntimeError, TypeError):  # an operation or a device without float64
            errors |= run(torch.float32, left)
    return errors


def _errors(
    network: nn.Module,
    calls: Sequence[Call],
    named: Axes,
    axes: Iterable[str] | None,
) -> dict[str, float]:
    tensors = {**dict(network.named_parameters()), **dict(network.named_buffers())}

    def length(use: Use) -> int:
        return named.axes[use.axis].length

    inner, growing = passed_on(calls), _with_free_axes(named)
    inputs = network, calls, Steady()

    def outputs() -> list[Tensor]:
        number, found = itertools.count(), list[Tensor]()
        for call, returned in enumerate(make_steadily(*inputs)):
            for leaf, out in enumerate(returned):
                carries = next(number) in growing or leaf or call in inner
                found.append(out.flatten().sort().values if carries else out)
        return found

    double = any(parameter.dtype == torch.float64 for parameter in network.parameters())
    before = _calmed(network, outputs) if double else outputs()

    def permute(group: list[str], swap: bool, back: bool = False) -> None:
        for name, tensor in tensors.items():
            pattern, _, layer = pattern_of(name, named.stacks)
            orders: dict[Use, Callable[[Tensor, int], Tensor]] = {}
            for use in named.uses(pattern):
                if use.axis in group:
                    axis = named.axes[use.axis]
                    order = _order(axis.name, axis.length, layer if axis.stack else None, swap)
                    order = (order.argsort() if back else order).to(tensor.device)
                    orders[use] = functools.partial(torch.index_select, index=order)
            permuted = tensor.detach()
            for dim, product in enumerate(named.dims.get(pattern, ()) if orders else ()):
                permuted = change_along(permuted, dim, product, length, orders)
            if orders:
                tensor.data.copy_(permuted)

    def error(group: list[str]) -> float:
        changes = []
        for swap in (False, True):
            permute(group, swap)
            changes.append(difference(before, outputs()))
            permute(group, swap, back=True)
        return max(changes)

    carried = {use.axis for pattern in named.dims for use in named.uses(pattern)}
    wanted = [name for name, axis in named.axes.items() if axis.length > 1 and name in carried]
    if axes is not None:
        wanted = [name for name in axes if name in wanted]
    free = [name for name in wanted if not named.axes[name].pinned]
    groups = [free] if free else []
    groups += [[name] for name in wanted if named.axes[name].pinned]
    errors = _bisected(groups, error)
    return {name: errors[name] for name in wanted}


def _with_free_axes(named: Axes) -> set[int]:
    """Return the numbers of the outputs that are permuted when an axis is, such as features."""
    return {
        number
        for number, (dims, _) in enumerate(named.outputs)
        for use in itertools.chain.from_iterable(uses_of(product) for product in dims if product)
        if not named.axes[use.axis].fixed
    }


def _bisected(groups: list[list[str]], error: Callable[[list[str]], float]) -> dict[str, float]:
    """Find the error of every axis; a group without an error is not told apart."""
    errors: dict[str, float] = {}
    while groups:
        group = groups.pop()
        change = error(group)
        if len(group) == 1 or change <= TOLERANCE:
            errors.update(dict.fromkeys(group, change))
        else:
            half = len(group) // 2
            groups += [group[:half], group[half:]]
    return errors


def prepared(
    network: nn.Module, calls: Sequence[Call], dtype: torch.dtype
) -> tuple[nn.Module, list[Call]]:
    """Copy a network in ``dtype`` with noise on its weights, and prepare the inputs of its calls.

    Inputs that are zero become random. All are moved to the device of the network.
    """

    def like(tensor: Tensor) -> torch.dtype:
        if tensor.is_complex():
            return dtype.to_complex()
        return dtype if tensor.is_floating_point() else tensor.dtype

    def cast(tensor: Tensor) -> Tensor:
        return tensor.to(like(tensor), copy=True)

    network = noisy(copied(network, cast))
    device = next(network.parameters()).device
    generator = torch.Generator().manual_seed(0)

    def given(tensor: Tensor) -> Tensor:
        if not tensor.is_floating_point():
            return tensor.detach().to(device, like(tensor))
        if not tensor.is_meta and not tensor.any():
            tensor = torch.randn(tensor.shape, generator=generator)
        return tensor.detach().to(device, dtype)

    return network, with_tensors(calls, given)


@torch.no_grad()
def _calmed(network: nn.Module, outputs: Callable[[], list[Tensor]]) -> list[Tensor]:
    """Scale the weights down until rounding does not change the outputs, and return these.

    In a deep network without norms on its stream every layer enlarges a difference, until rounding
    dominates the outputs.
    """
    for _ in range(20):
        before = outputs()
        for parameter in network.parameters():
            if parameter.is_floating_point():
                parameter.mul_(1 + 4 * torch.finfo(parameter.dtype).eps)
        after = outputs()
        if difference(before, after) <= TOLERANCE / 100:
            return after
        for parameter in network.parameters():
            if parameter.is_floating_point() and parameter.dim() > 1:
                parameter.mul_(0.85)
    return outputs()


def difference(before: Sequence[Tensor], after: Sequence[Tensor]) -> float:
    """Return the largest relative change of an output."""
    changes = list(map(relative, before, after))
    return math.inf if any(map(math.isnan, changes)) else max(changes, default=math.inf)


def relative(before: Tensor, after: Tensor) -> float:
    """Return the relative change of an output; NaN if none of its entries was finite before.

    Entries that were not finite, such as masked scores, must be the same.
    """
    if before.shape != after.shape or not before.numel():
        return 0.0 if before.shape == after.shape else math.inf
    if not before.is_floating_point() and not before.is_complex():
        return float((before != after).double().mean())
    before, after = before.detach(), after.detach().to(before.dtype)
    finite = before.isfinite()
    if not bool(finite.all()):
        one, other = before[~finite], after[~finite]
        if not bool(((one == other) | (one.isnan() & other.isnan())).all()):
            return math.inf
        if not bool(finite.any()):
            return math.nan
        before, after = before[finite], after[finite]
    norm = float(before.norm())
    change = float((after - before).norm()) / (norm or 1.0)
    return change if math.isfinite(change) else math.inf


@torch.no_grad()
def noisy(network: nn.Module, seed: int = 0) -> nn.Module:
    """Add noise to every parameter and to the statistics of norms, the same for one seed."""
    generator = torch.Generator().manual_seed(seed)
    kept = network.state_dict(keep_vars=True)
    buffers = [buffer for name, buffer in network.named_buffers() if name in kept]
    for tensor in [*network.parameters(), *buffers]:
        if tensor.is_complex():
            tensor = torch.view_as_real(tensor)
        if tensor.is_floating_point():
            noise = torch.rand(tensor.shape, generator=generator)
            if (tensor < 0).any():  # else it may be a variance, which noise must not make negative
                noise.mul_(2).sub_(1)
            finite = tensor[tensor.isfinite()]  # a mask may be minus infinity
            scale = 0.2 * (float(finite.std()) if finite.numel() > 1 else 1.0) + 0.02
            tensor += noise.mul_(scale).to(tensor)
    return network


def _order(axis: str, length: int, layer: int | None, swap: bool) -> Tensor:
    """Draw a cycle, or a swap, for an axis, or for an axis of one layer.

    An axis of two entries has only one order beside its own. The swap leaves half of these axes as
    they are, to detect two axes that are one in truth.
    """
    seed = zlib.crc32(f"{axis} {layer}".encode())
    entries = torch.randperm(length, generator=torch.Generator().manual_seed(seed))
    order = torch.arange(length)
    if swap and length == 2 and seed % 2:
        return order
    moved = entries[:2] if swap else entries
    order[moved] = moved.roll(1)
    return order
