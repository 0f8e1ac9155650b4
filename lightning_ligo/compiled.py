"""Networks that torch.compile has compiled: wrapped in a module of its own, or in place.

    self.network = torch.compile(network)    its parameters are named network._orig_mod.*
    self.network.compile()                   of the whole, or of some of its modules

A growth works on the network itself, and the large one is compiled as the small one was.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from typing import Any

from torch import nn
from torch._dynamo import OptimizedModule


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
    """Set the network at a dotted name, compiled as the one that is there.

    A module is compiled in place where one of the same name is, in any layer.
    """
    parent, _, name = attribute.rpartition(".")
    owner = module.get_submodule(parent)
    standing = owner.get_submodule(name)
    in_place = {
        _pattern(each): _context(part._compiled_call_impl)
        for each, part in unwrapped(standing).named_modules()
        if part._compiled_call_impl is not None
    }
    for each, part in network.named_modules():
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
