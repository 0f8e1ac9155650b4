"""Measure whether a new layer that writes nothing passes on its input unchanged."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_unflatten
from torch.utils.hooks import RemovableHandle

from lightning_ligo.axes.calls import Call, make
from lightning_ligo.axes.proof import difference, prepared
from lightning_ligo.plan.correspondence import Correspondence

EXACT = 1e-7  # of a relative change in float32; what passes unchanged is the same to the last bit


def identity_errors(both: Correspondence, calls: Sequence[Call]) -> dict[str, float]:
    """Measure by how much new layers that write nothing differ from the identity.

    For every stack that becomes deeper, the last layer of the small network is run once more behind
    itself. The parameters that write into the residual stream are zero then, and those that
    multiply it are one, as in a new layer. A layer that returns only zeros may be added by the
    module that calls it, which the gradient tells. Stacks whose layers are not called as modules,
    or return something of another shape, cannot be tried.

    Returns:
        For every stack whose layers differ, the change relative to their input.
    """
    deeper = {}
    for name, (small, large) in both.stacks.items():
        if small < large:
            path, layers = both.small.axes.stacks[name]
            deeper[f"{path}.{layers[-1]}"] = name
    if not deeper:
        return {}
    network, calls = prepared(both.small.network, calls, torch.float32)
    modules = {module: path for path, module in network.named_modules() if path in deeper}
    seen = _seen(network, modules, calls)
    carried = {name: row for row in both.rows for name in row.small_names}
    for module, path in modules.items():
        for name, parameter in module.named_parameters():
            row = carried.get(f"{path}.{name}")
            if row is None or row.writes or row.passes:  # what is left out is in no new layer
                parameter.data.fill_(float(row is not None and row.passes))
    errors: dict[nn.Module, float] = {}
    zero_output = []
    for module, (inputs, x) in seen.items():
        if (out := _run(module, inputs)) is None or not x.isfinite().all():
            continue
        if out.any():
            errors[module] = difference([x], [out])
        else:
            zero_output.append(module)
    errors.update(dict.fromkeys(_blocking(network, zero_output, calls), 1.0))
    return {deeper[modules[module]]: error for module, error in errors.items() if error > EXACT}


@torch.no_grad()
def _seen(
    network: nn.Module, modules: Iterable[nn.Module], calls: Sequence[Call]
) -> dict[nn.Module, tuple[Any, Tensor]]:
    """Record the inputs that a next layer behind each module gets, and the first value of them."""
    came: dict[nn.Module, Any] = {}
    seen: dict[nn.Module, tuple[Any, Tensor]] = {}

    def before(module: nn.Module, args: Any, kwargs: Any) -> None:
        try:
            came[module] = copy.deepcopy((args, kwargs))  # a layer may write into what it gets
        except Exception:  # what has no copy is not run twice
            came[module] = None

    def after(module: nn.Module, args: Any, output: Any) -> None:
        inputs, out = came.pop(module), _first(output)
        x = _first(inputs)
        if x is not None and out is not None and x.shape == out.shape:
            seen[module] = _with_first(inputs, out), out.clone()

    handles: list[RemovableHandle] = []
    for module in modules:
        handles.append(module.register_forward_pre_hook(before, with_kwargs=True))
        handles.append(module.register_forward_hook(after))
    make(network, calls)
    for handle in handles:
        handle.remove()
    return seen


def _blocking(
    network: nn.Module, modules: Sequence[nn.Module], calls: Sequence[Call]
) -> list[nn.Module]:
    """Find the modules that return zeros and that nothing bypasses, so their input is lost.

    Then the output has no gradient for any parameter that their input depends on.
    """
    if not modules:
        return []
    came: dict[nn.Module, Tensor] = {}

    def before(module: nn.Module, args: Any, kwargs: Any) -> None:
        if (x := _first((args, kwargs))) is not None and x.requires_grad:
            came[module] = x

    for module in modules:
        module.register_forward_pre_hook(before, with_kwargs=True)
    parameters = [p for p in network.parameters() if p.is_floating_point()]
    try:
        with torch.enable_grad():
            out = make(network.requires_grad_(), calls)[-1][0]
            weighed = out * torch.arange(1, out.numel() + 1).to(out).cos().view_as(out)
            read, *made = (
                torch.autograd.grad(x.sum(), parameters, retain_graph=True, allow_unused=True)
                for x in (weighed, *came.values())
            )
    except RuntimeError:  # an operation without a gradient
        return []
    lost = [gradient is None or not gradient.any() for gradient in read]
    return [
        module
        for module, found in zip(came, made, strict=True)
        if all(gone for gone, gradient in zip(lost, found, strict=True) if gradient is not None)
    ]


@torch.no_grad()
def _run(module: nn.Module, inputs: Any) -> Tensor | None:
    """Return the first value that a module returns, or None if it fails."""
    args, kwargs = inputs
    try:
        return _first(module(*args, **kwargs))
    except Exception:  # outside its network it may
        return None


def _with_first(inputs: Any, x: Tensor) -> Any:
    """Return the inputs with another first value."""
    leaves, spec = tree_flatten(inputs)
    leaves[next(place for place, leaf in enumerate(leaves) if _is_value(leaf))] = x.clone()
    return tree_unflatten(leaves, spec)


def _is_value(x: Any) -> bool:
    return isinstance(x, Tensor) and x.is_floating_point()


def _first(values: Any) -> Tensor | None:
    return next(filter(_is_value, tree_flatten(values)[0]), None)
