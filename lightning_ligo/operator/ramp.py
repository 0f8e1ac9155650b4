"""Mask the new parts of a grown network, and let them in gradually while it trains."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from lightning_ligo.axes.dims import uses_of
from lightning_ligo.operator.masks import is_new
from lightning_ligo.operator.operator import Operator
from lightning_ligo.plan.plan import Plan, Row


class Ramp:
    """Masks new parts: readers see ``c x`` of new entries, and a new layer adds ``c F(x)``.

    At ``c = 0`` the network computes what the small one does, whatever its new weights are, and at
    ``c = 1`` nothing is masked. A norm weighs entries by their masks: with ``m`` 1 for old entries
    and c for new ones it takes ``mean = Σ m x / Σ m`` and ``var = Σ m (x - mean)² / Σ m``.

    Parameters keep their names and are trained; they are masked only while the network runs. `end`
    leaves nothing on the network.

    Example:
        >>> from lightning_ligo.plan.pair import pair
        >>> small, large = (
        ...     nn.Sequential(nn.Linear(4, n), nn.ReLU(), nn.Linear(n, 2)) for n in (8, 20)
        ... )
        >>> x = torch.randn(3, 4)
        >>> operator = Operator(pair(small, large, x), small, "msg")
        >>> operator.bake(large)
        >>> ramp = Ramp(operator, large)
        >>> torch.allclose(small(x), large(x), atol=1e-6)
        True
        >>> ramp.to(0.5)  # some steps later
        >>> ramp.end()

    Args:
        operator: the operator that has grown ``large``.
        large: the network.

    Raises:
        ValueError: see `check_ramp`.

    Source: MSG (ICLR 2024), for post-norm transformers.
    """

    def __init__(self, operator: Operator, large: nn.Module) -> None:
        check_ramp(operator.plan, large)
        self.c = 0.0
        self._masked = list(_masked(operator, large))
        self._norms = []
        for row, module, kind in _norms(operator.plan, large):
            new = is_new(operator.widths, row)
            vars(module)["forward"] = functools.partial(self._normed, module, kind, new)
            self._norms.append(module)
        self._hooks = [
            large.register_forward_pre_hook(self._show),
            large.register_forward_hook(self._hide, always_call=True),
        ]

    def to(self, c: float) -> None:
        """Let ``c`` of the new parts in."""
        self.c = min(max(c, 0.0), 1.0)

    def end(self) -> None:
        """Let all new parts in, and remove every hook."""
        for hook in self._hooks:
            hook.remove()
        for module in self._norms:
            vars(module).pop("forward", None)
        self._hooks, self._norms = [], []

    def _show(self, *_: Any) -> None:
        """Hide each parameter behind an attribute of its module, before the network runs."""
        for module, name, new, of_layer in self._masked:
            parameter = module._parameters[name]
            assert parameter is not None
            seen = parameter * (1 - (1 - self.c) * new.to(parameter))
            if of_layer is not None:  # it adds c F(x), or multiplies by 1 + c (P - 1)
                seen = of_layer + self.c * (seen - of_layer)
            vars(module)[name] = seen

    def _hide(self, *_: Any) -> None:
        for module, name, *_masks in self._masked:
            vars(module).pop(name, None)

    def _normed(self, module: nn.Module, kind: str, new: Tensor, x: Tensor) -> Tensor:
        mask = 1 - (1 - self.c) * new.to(x.device, torch.promote_types(x.dtype, torch.float32))
        return masked_norm(module, kind, x, mask)


def check_ramp(plan: Plan, network: nn.Module) -> None:
    """Refuse networks whose new parts cannot be masked.

    Raises:
        ValueError: if a norm is of an unknown kind, or activations are computed again in the
            backward pass, which would not see the masks.
    """
    for name, module in network.named_modules():
        for switch in ("grad_checkpointing", "gradient_checkpointing"):
            if getattr(module, switch, False) is True:
                raise ValueError(
                    f"{name or type(module).__name__} computes activations again in the backward "
                    f"pass ({switch}), which would not see the masks of 'msg'; switch it off"
                )
    if not any(p.is_meta for p in network.parameters()):
        list(_norms(plan, network))


def _masked(
    operator: Operator, large: nn.Module
) -> Iterator[tuple[nn.Module, str, Tensor, float | None]]:
    """List every masked parameter: its module and name, and which of its entries read new ones.

    The last is the value by which a new layer does nothing, 0 or 1, for a parameter that adds or
    multiplies the output of a new layer.
    """
    owners: dict[nn.Parameter, list[tuple[nn.Module, str]]] = {}
    for module in large.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                owners.setdefault(parameter, []).append((module, name))
    parameters = dict(large.named_parameters())
    for row in operator.plan.rows:
        entries = is_new(operator.widths, row, form="consumes").float()
        acts = row.writes or row.passes
        layers = operator.depths.new(row.stack).tolist() if acts else [False] * len(row.large_names)
        for name, new in zip(row.large_names, layers, strict=True):
            if new or bool(entries.any()):
                parameter = parameters[name]
                for module, attribute in owners[parameter]:
                    of_layer = float(row.passes) if new else None
                    yield module, attribute, entries.to(parameter.device), of_layer


def _norms(plan: Plan, network: nn.Module) -> Iterator[tuple[Row, nn.Module, str]]:
    """List every norm over an axis that grows, with its kind."""
    parameters = dict(network.named_parameters())
    for row in plan.rows:
        uses = [use for product in row.dims for use in uses_of(product) if use.role == "gain"]
        if not any(plan.all_axes[use.axis].normed and use.axis in plan.axes for use in uses):
            continue
        for name in row.large_names:
            if name in parameters:
                module = network.get_submodule(name.rpartition(".")[0])
                yield row, module, norm_kind(name, module, parameters[name])


def norm_kind(name: str, module: nn.Module, weight: Tensor) -> str:
    """Find the kind of a norm by comparing outputs: "layer", "rms" or "rms, 1 + w".

    Raises:
        ValueError: if it is none of these.
    """
    x = torch.linspace(-9, 9, 3 * len(weight), device=weight.device, dtype=weight.dtype)
    x, one = 1 + x.sin().view(1, 3, -1), torch.ones_like(weight)  # a mean tells norms apart
    for kind in ("layer", "rms", "rms, 1 + w"):
        try:
            with torch.no_grad():
                masked, plain = masked_norm(module, kind, x, one), module(x)
        except (RuntimeError, TypeError, AttributeError):
            continue
        if masked.shape == plain.shape and torch.allclose(masked, plain, rtol=1e-3, atol=1e-3):
            return kind
    raise ValueError(
        f"{name} belongs to {type(module).__name__}, which is neither a layer norm nor an RMS norm "
        "over its last dimension, the only norms that 'msg' can mask; use another method"
    )


def masked_norm(module: nn.Module, kind: str, x: Tensor, mask: Tensor) -> Tensor:
    """Apply a norm over the last dimension that weighs entries by ``mask``."""
    eps = getattr(module, "eps", None)
    eps = getattr(module, "variance_epsilon", None) if eps is None else eps
    eps = torch.finfo(x.dtype).eps if eps is None else eps
    z, total = x.to(mask.dtype), mask.sum()
    if kind == "layer":
        z = z - (z * mask).sum(-1, keepdim=True) / total
    z = z * torch.rsqrt((z.square() * mask).sum(-1, keepdim=True) / total + eps)
    weight, bias = getattr(module, "weight"), getattr(module, "bias", None)  # noqa: B009
    z = z * (1 + weight if kind == "rms, 1 + w" else weight)
    return (z if bias is None else z + bias).to(x.dtype)
