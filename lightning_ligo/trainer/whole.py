"""A LightningModule that is the network itself.

The module of a run stays one object, and the small and the large network are two. So the network
of a module is a shell: an object of the same class that holds the same parameters and submodules.
A growth gives the module those of another shell.
"""

from __future__ import annotations

import copy
from typing import Any

from lightning.pytorch import LightningModule
from torch import nn
from torch.utils._pytree import tree_leaves

ROOT = ""
"""The place of a network that is its module."""

_SHELL, _CHANGED = "_lightning_ligo_shell", "_lightning_ligo_changed"
_HELD = ("_parameters", "_buffers", "_modules", "_non_persistent_buffers_set")
_LIGHTNING_OWN = {*vars(LightningModule()), "_hparams", "_hparams_name", "_hparams_initial"}
_PLAIN = (type(None), bool, int, float, str)


def shell(module: LightningModule) -> LightningModule:
    """Return the network that a module is; the same object until `fill` gives it another."""
    held = vars(module)
    if _SHELL not in held:
        held[_SHELL] = _shell_of(module)
    network: LightningModule = held[_SHELL]
    return network


def fill(module: LightningModule, network: nn.Module) -> None:
    """Give a module the parameters and submodules of a network, and the attributes it changes."""
    changed = {name for each in (shell(module), network) for name in vars(each)[_CHANGED]}
    for name in (*_HELD, *changed):
        vars(module)[name] = vars(network)[name]
    vars(module)[_SHELL] = network


def holds(module: LightningModule) -> list[object]:
    """Return the module and its network, with the dicts in which they hold everything."""
    both = [module, shell(module)]
    dicts = [vars(each) for each in both]
    return [*both, *dicts, *(held[name] for held in dicts for name in _HELD)]


def forget(module: LightningModule) -> None:
    """Remove what `shell` has left on a module."""
    vars(module).pop(_SHELL, None)


def joined(
    module: LightningModule, small: LightningModule, large: LightningModule, on_meta: bool
) -> LightningModule:
    """Return a large network with all of a module that its hyperparameters do not change.

    Args:
        module: of the run.
        small, large: made from the present hyperparameters of the module, and from others. What is
            alike in both, such as counters, metrics and losses, stays the module's.
        on_meta: whether the large network is only to be traced, with its own tensors.
    """
    network = _shell_of(module)
    held = vars(network)
    held |= {name: vars(large)[name] for name in (*_HELD, "_hparams") if name in vars(large)}
    held[_CHANGED] = [
        name
        for name, value in vars(large).items()
        if name not in _LIGHTNING_OWN and _facts(vars(small).get(name)) != _facts(value)
    ]
    held |= {name: vars(large)[name] for name in held[_CHANGED]}
    if on_meta:
        return network
    for name, part in module.named_children():
        parts = [getattr(each, name, None) for each in (module, small, large)]
        alike = all(isinstance(each, nn.Module) and not [*each.parameters()] for each in parts)
        if alike and _facts(parts[1]) == _facts(parts[2]):
            held["_modules"][name] = part
    for name, buffer in module.named_buffers(recurse=False):
        there = held["_buffers"].get(name)
        if there is not None and there.shape == buffer.shape:
            held["_buffers"][name] = buffer
    return network


def _shell_of(module: LightningModule) -> LightningModule:
    network: LightningModule = object.__new__(type(module))
    for name, value in vars(module).items():
        if name != _SHELL and not callable(getattr(type(module), name, None)):  # a wrapped method
            vars(network)[name] = value
    vars(network)[_CHANGED] = ()
    if "_hparams" in vars(module):
        vars(network)["_hparams"] = copy.copy(module.hparams)
    return network


def _facts(value: Any) -> Any:
    """Return what can be compared of an attribute or a submodule."""
    if not isinstance(value, nn.Module):
        return value if all(isinstance(leaf, _PLAIN) for leaf in tree_leaves(value)) else None
    return [
        (
            name,
            type(part),
            {name: buffer.shape for name, buffer in part.named_buffers(recurse=False)},
            {name: _facts(item) for name, item in vars(part).items() if name[0] != "_"},
        )
        for name, part in value.named_modules()
    ]
