"""A network in the place of another: compiled as that was, and saving memory as it did.

    self.network = torch.compile(network)    its parameters are named network._orig_mod.*
    self.network.compile()                   of the whole, or of some of its modules
    self.network.set_grad_checkpointing()    of timm; Hugging Face has its own names for it

A growth works on the network without what torch.compile has wrapped around it.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from typing import Any

from torch import nn
from torch._dynamo import OptimizedModule

SWITCHES = ("grad_checkpointing", "gradient_checkpointing", "_gradient_checkpointing_func")
"""Attributes of modules that compute activations again in the backward pass, if they are told to:
of timm's, and of Hugging Face's with the function that does it."""


def network_at(module: nn.Module, attribute: str) -> nn.Module:
    """The network at a dotted name, without what torch.compile has wrapped around it."""
    return unwrapped(module.get_submodule(attribute))


def unwrapped(network: nn.Module) -> nn.Module:
    """What torch.compile was called with; a network that it has not wrapped as it is."""
    inner = network._orig_mod if isinstance(network, OptimizedModule) else network
    assert isinstance(inner, nn.Module)
    return inner


def name_at(module: nn.Module, attribute: str) -> str:
    """What the names of the network's parameters begin with in a state dict of `module`."""
    wrapped = isinstance(module.get_submodule(attribute), OptimizedModule)
    return f"{attribute}._orig_mod" if wrapped else attribute


def set_network(module: nn.Module, attribute: str, network: nn.Module) -> None:
    """Set the network at a dotted name, to be run as the one that is there.

    A module is compiled in place, or computes activations again, where one of the same name does,
    in any layer.
    """
    parent, _, name = attribute.rpartition(".")
    owner = module.get_submodule(parent)
    standing = owner.get_submodule(name)
    in_place: dict[str, Callable[[Any], Any]] = {}
    switched: dict[str, dict[str, Any]] = {}
    for each, part in unwrapped(standing).named_modules():
        if part._compiled_call_impl is not None:
            in_place[_pattern(each)] = _context(part._compiled_call_impl)
        on = {switch: value for switch in SWITCHES if (value := vars(part).get(switch))}
        switched.setdefault(_pattern(each), {}).update(on)
    for each, part in network.named_modules():
        vars(part).update(switched.get(_pattern(each), {}))
        if _pattern(each) in in_place and part._compiled_call_impl is None:
            part._compiled_call_impl = in_place[_pattern(each)](part._call_impl)
    if isinstance(standing, OptimizedModule):
        network = standing.dynamo_ctx(network)
    setattr(owner, name, network)


def is_compiled(module: nn.Module) -> bool:
    """Whether torch.compile has compiled a module in it."""
    return any(
        isinstance(part, OptimizedModule) or part._compiled_call_impl is not None
        for part in module.modules()
    )


def _pattern(name: str) -> str:
    return re.sub(r"\b\d+\b", "*", name)


def _context(compiled: Any) -> Callable[[Any], Any]:
    """What torch.compile made of its options: it compiles another function in the same way."""
    context = inspect.getclosurevars(compiled.get_compiler_config).nonlocals["self"]
    assert callable(context)
    return context
