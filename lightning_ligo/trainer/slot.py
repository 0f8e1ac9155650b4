"""The place of the network in a LightningModule.

A new network is compiled, and recomputes its activations, as the one before:

    self.network = torch.compile(network)    its parameters are named network._orig_mod.*
    self.network.compile()                   of the whole, or of some of its modules
    self.network.set_grad_checkpointing()    of timm; Hugging Face has its own names for it

A growth works on the network without the wrapper of torch.compile. Several networks are taken for
one.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from lightning.pytorch import LightningModule, Trainer
from torch import nn
from torch._dynamo import OptimizedModule

from lightning_ligo.axes.stacks import numbered
from lightning_ligo.trainer.lightning import is_compiled
from lightning_ligo.trainer.several import SEPARATOR, Networks
from lightning_ligo.trainer.whole import ROOT, fill, shell

T = TypeVar("T")
SWITCHES = ("grad_checkpointing", "gradient_checkpointing", "_gradient_checkpointing_func")
"""Attributes by which modules of timm and Hugging Face recompute activations."""


@dataclass(frozen=True)
class Slot:
    """Holds the place of a network in a LightningModule."""

    module: Any  # the LightningModule, or another module that holds a copy of the network
    attribute: str  # where the network is in it; may be dotted; empty if the module is the network;
    # the names of several networks are separated by commas

    @property
    def network(self) -> nn.Module:
        """The network, without the wrapper of torch.compile.

        Raises:
            ValueError: if there is no module, or one that cannot be replaced.
        """
        if self.is_whole:
            return shell(self.module)
        if self.is_several:
            return Networks({part.attribute: part.network for part in self.parts})
        network = self.find()
        if network is not None:
            return network
        owner = type(self.module).__name__
        children = ", ".join(name for name, _ in self.module.named_children()) or "none"
        found: object = self.module
        for name in self.attribute.split("."):
            if not hasattr(found, name):
                raise ValueError(
                    f"{owner} has no attribute {self.attribute!r} to grow; its modules are: "
                    f"{children}"
                )
            found = getattr(found, name)
        raise ValueError(
            f"the attribute {self.attribute!r} of {owner} is {type(found).__name__} and not a "
            f"submodule of its own; its modules are: {children}"
        )

    def find(self) -> nn.Module | None:
        """Return the network, or None if there is no module in the place."""
        if self.is_several:
            return None if None in [part.find() for part in self.parts] else self.network
        modules = dict(self.module.named_modules(remove_duplicate=False))
        is_there = self.attribute in modules and self.attribute
        return _unwrapped(modules[self.attribute]) if is_there else None

    @property
    def is_whole(self) -> bool:
        """Whether the module is the network itself."""
        return self.attribute == ROOT

    @property
    def parts(self) -> list[Slot]:
        """The places of several networks; of one network, this place."""
        return [replace(self, attribute=name) for name in self.attribute.split(SEPARATOR)]

    @property
    def is_several(self) -> bool:
        """Whether several networks are taken for one."""
        return SEPARATOR in self.attribute

    def split(self, network: nn.Module) -> list[tuple[Slot, nn.Module]]:
        """Return the places with what a network, that is or was in this place, has for each."""
        if not self.is_several:
            return [(self, network)]
        return [(part, network.get_submodule(part.attribute)) for part in self.parts]

    @property
    def called(self) -> nn.Module:
        """The module that steps call to call the network."""
        called: nn.Module = self.module if self.is_whole else self.network
        return called

    @property
    def words(self) -> str:
        """The network in a message: `self.model`."""
        return SEPARATOR.join(f"self.{part.attribute}".removesuffix(".") for part in self.parts)

    @property
    def starts(self) -> dict[str, str]:
        """The prefix, with its dot, of parameters in a state dict of the module, by that in here.

        One entry for each of several networks; prefixes are empty where there are none.
        """
        found = {}
        for part in self.parts:
            wrapped = isinstance(self.module.get_submodule(part.attribute), OptimizedModule)
            start = f"{part.attribute}.{'_orig_mod.' if wrapped else ''}".removeprefix(".")
            found[f"{part.attribute}." if self.is_several else ""] = start
        return found

    def outer(self, name: str) -> str:
        """Return the name, in a state dict of the module, of a parameter of the network."""
        start, there = next(each for each in self.starts.items() if name.startswith(each[0]))
        return there + name.removeprefix(start)

    def inner(self, name: str) -> str:
        """Return the name in the network of a parameter in a state dict of the module, if any."""
        for start, there in self.starts.items():
            if name.startswith(there):
                return start + name.removeprefix(there)
        return name

    def has(self, name: str) -> bool:
        """Whether a module of this name in the LightningModule is a network, or a part of one."""
        return any(f"{name}.".startswith(f"{part.attribute}.") for part in self.parts)

    @property
    def is_compiled(self) -> bool:
        """Whether torch.compile has compiled the module or any part."""
        return is_compiled(self.module) or any(
            isinstance(part, OptimizedModule) or part._compiled_call_impl is not None
            for part in self.module.modules()
        )

    def set(self, network: nn.Module) -> None:
        """Put a network into the place, and run it as the network that is there is run.

        A module is compiled in place, or recomputes its activations, if the module of its name
        does so, or for a new one that of any other layer.
        """
        if self.is_several:
            for part, one in self.split(network):
                if one is not part.network:
                    part.set(one)
            return
        standing = self.network if self.is_whole else self.module.get_submodule(self.attribute)
        standing_for = in_layers(dict(_unwrapped(standing).named_modules()))
        for each, part in network.named_modules():
            for old in standing_for(each):
                on = {switch: value for switch in SWITCHES if (value := vars(old).get(switch))}
                vars(part).update(on)
                if old._compiled_call_impl is not None and part._compiled_call_impl is None:
                    part._compiled_call_impl = _context(old._compiled_call_impl)(part._call_impl)
        parent, _, name = self.attribute.rpartition(".")
        if isinstance(standing, OptimizedModule):
            network = standing.dynamo_ctx(network)
        if self.is_whole:
            fill(self.module, network)
        else:
            setattr(self.module.get_submodule(parent), name, network)
        with suppress(RuntimeError, AttributeError):  # outside a run, or of a plain module
            attached(network, self.module.trainer)


def attached(network: nn.Module, trainer: Trainer) -> nn.Module:
    """Tell the parts of a network that are LightningModules their Trainer."""
    for part in network.modules():
        if isinstance(part, LightningModule):
            part.trainer = trainer
    return network


def listed(words: Sequence[str], most: int = 6) -> str:
    """Join the first few of many words for an error message."""
    more = [f"and {len(words) - most} more"] if len(words) > most else []
    return ", ".join([*words[:most], *more])


def _unwrapped(network: nn.Module) -> nn.Module:
    """Return the module that torch.compile was called with, or the network itself."""
    inner = network._orig_mod if isinstance(network, OptimizedModule) else network
    assert isinstance(inner, nn.Module)
    return inner


def in_layers(olds: Mapping[str, T]) -> Callable[[str], list[T]]:
    """Return what finds the item under a name, or for a new layer those in the others.

    >>> found = in_layers({"unit0.conv": 0, "unit1.conv": 1, "unit1.norm": 2})
    >>> found("unit1.conv"), found("unit2.conv"), found("head")
    ([1], [0, 1], [])
    """
    alike: dict[str, list[T]] = {}
    for name, old in olds.items():
        for key in _layerless(name):
            alike.setdefault(key, []).append(old)

    def found(name: str) -> list[T]:
        others = (alike[key] for key in _layerless(name) if key in alike)
        return [olds[name]] if name in olds else next(others, [])

    return found


def _layerless(name: str) -> list[str]:
    """Write a star for one number in a name, the last one first, and then for those of lists."""
    parts = name.split(".")
    stems = [numbered(part)[0] for part in parts]
    one = [
        ".".join([*parts[:place], stem, *parts[place + 1 :]])
        for place, stem in reversed([*enumerate(stems)])
        if stem != parts[place]
    ]
    lists = ("*" if stem == "*" else part for stem, part in zip(stems, parts, strict=True))
    return [*dict.fromkeys([*one, ".".join(lists)])]


def _context(compiled: Any) -> Callable[[Any], Any]:
    """Return the context of a compiled call, which compiles another function in the same way."""
    context = inspect.getclosurevars(compiled.get_compiler_config).nonlocals["self"]
    assert callable(context)
    return context
