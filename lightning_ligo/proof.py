"""Permute an axis, compare outputs: an axis may grow only if nothing depends on its order."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from lightning_ligo.axes import Axes, Product, Sum, name_axes, uses_of
from lightning_ligo.flows import Use
from lightning_ligo.stacks import pattern_of
from lightning_ligo.trace import watch


def prove(
    network: nn.Module, *args: Any, axes: Iterable[str] | None = None, **kwargs: Any
) -> dict[str, float]:
    """The relative change of the first output when one axis is permuted, for every axis.

    Permuting an axis in every parameter and buffer that carries it leaves the output as it is, to
    rounding, exactly where its entries are exchangeable; only then can the axis grow. The proof
    runs in evaluation mode and in float64, on a copy of ``network`` with noise on all weights (so
    that what starts at zero or one hides nothing). It needs no knowledge of the network but its
    axes, and is the test of every tracing rule.

    Args:
        axes: the names to prove; all that are longer than 1 if None.

    Example:
        >>> network = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> errors = prove(network, torch.randn(3, 4))
        >>> {name: error < 1e-9 for name, error in errors.items()}
        {'hidden': True, '0.in': False, '2.out': False}
    """
    network = _noisy(copy.deepcopy(network).double())
    args, kwargs = tree_map_only(
        Tensor, lambda t: t.double() if t.is_floating_point() else t, (args, kwargs)
    )
    tracer = watch(network, args, kwargs)
    named = name_axes(tracer.ledger)[0]
    wanted = [name for name, axis in named.axes.items() if axis.length > 1]
    before, errors = tracer.outputs[0], {}
    tensors = {**dict(network.named_parameters()), **dict(network.named_buffers())}
    network.eval()
    for name in wanted if axes is None else axes:
        order = _order(named.axes[name].length).to(before.device)
        carried = {}
        for tensor_name, tensor in tensors.items():
            dims = named.dims.get(pattern_of(tensor_name, named.stacks)[0], ())
            if any(use.axis == name for dim in dims for use in uses_of(dim)):
                carried[tensor_name] = tensor.detach().clone()
                tensor.data.copy_(_permuted(carried[tensor_name], dims, named, name, order))
        after = watch(network, args, kwargs).outputs[0]
        for tensor_name, tensor in carried.items():
            tensors[tensor_name].data.copy_(tensor)
        errors[name] = float((after - before).norm() / before.norm())
    return errors


@torch.no_grad()
def _noisy(network: nn.Module) -> nn.Module:
    """Noise on every parameter and on the statistics of norms, the same at every call."""
    generator = torch.Generator().manual_seed(0)
    for tensor in [*network.parameters(), *network.buffers()]:
        if tensor.is_floating_point():
            noise = torch.rand(tensor.shape, generator=generator, dtype=tensor.dtype)
            scale = 0.2 * (float(tensor.std()) if tensor.numel() > 1 else 1.0) + 0.02
            tensor += scale * noise.to(tensor.device)
    return network


def _order(length: int) -> Tensor:
    order = torch.randperm(length, generator=torch.Generator().manual_seed(length))
    return order if not torch.equal(order, torch.arange(length)) else order.roll(1)


def _permuted(
    tensor: Tensor, dims: tuple[Product, ...], axes: Axes, name: str, order: Tensor
) -> Tensor:
    for dim, product in enumerate(dims):
        tensor = _permuted_dim(tensor, dim, product, axes, name, order)
    return tensor


def _permuted_dim(
    tensor: Tensor, dim: int, product: Product, axes: Axes, name: str, order: Tensor
) -> Tensor:
    if not any(use.axis == name for use in uses_of(product)):
        return tensor
    tensor = tensor.unflatten(dim, [axes.length((node,)) for node in product])
    for position, node in enumerate(product, start=dim):
        if isinstance(node, Use):
            if node.axis == name:
                tensor = tensor.index_select(position, order)
            continue
        assert isinstance(node, Sum)
        pieces = tensor.split([axes.length(segment) for segment in node.segments], position)
        tensor = torch.cat(
            [
                _permuted_dim(piece, position, segment, axes, name, order)
                for piece, segment in zip(pieces, node.segments, strict=True)
            ],
            position,
        )
    return tensor.flatten(dim, dim + len(product) - 1)
