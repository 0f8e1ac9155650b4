"""Find what holds a network, its parameters, copies of it, or tensors of its parameters' shapes.

Everything that the given objects hold is walked: attributes, items, closures, bound methods.
"""

from __future__ import annotations

import copy
import functools
import logging
import types
from collections import deque
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any, NamedTuple

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import StochasticWeightAveraging, WeightAveraging
from lightning.pytorch.loggers import Logger
from torch import Tensor, nn
from torch._dynamo import OptimizedModule
from torch.distributed.tensor import DTensor
from torch.nn.parameter import is_lazy
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from torch.utils.data import DataLoader, Dataset, Sampler

from lightning_ligo.trainer.optimizers import parameters_in
from lightning_ligo.trainer.slot import Slot, in_layers
from lightning_ligo.trainer.whole import holds

_CLOSED = (
    type(None), bool, int, float, complex, str, bytes, type, types.ModuleType, torch.dtype,
    torch.device, torch.Size, torch.Generator, Trainer, Logger, logging.Logger, LRScheduler,
    DataLoader, Dataset, Sampler,
)  # fmt: skip
_TORCH_OWN = frozenset(vars(nn.Module()))
_OPTIMIZER_OWN = ("param_groups", "state", "defaults")
_MANY = 10_000  # items of a container that is data and is not walked
_HOOKS = (
    "_forward_hooks", "_forward_hooks_with_kwargs", "_forward_hooks_always_called",
    "_forward_pre_hooks", "_forward_pre_hooks_with_kwargs", "_backward_hooks",
    "_backward_pre_hooks",
)  # fmt: skip
_TENSOR_HOOKS = ("_backward_hooks", "_post_accumulate_grad_hooks")
Put = Callable[[Any], object]


class Place(NamedTuple):
    """Where an object is held."""

    owner: str  # the type of the object at which the walk began
    path: str  # such as `copies[0].network`
    value: Any
    put: Put | None  # holds another value there, where that is possible


class Held(NamedTuple):
    """What holds a network that is about to grow."""

    references: list[Place]  # the network itself
    parts: list[Place]  # a module or a parameter of it
    copies: list[Place]  # a network of its type and shapes, with weights like its own
    named: list[tuple[Place, dict[Any, str]]]  # tensors, or parameters, by key; and the names


def held(roots: Sequence[object], slot: Slot, optimizers: Sequence[Optimizer] = ()) -> Held:
    """Walk objects and everything that they hold; the place of the network itself is left out.

    A copy that one of the ``optimizers`` trains is no copy but another network.
    """
    walk = _Walk(slot, optimizers)
    for root in (*roots, *hooks(slot.network)):
        walk.over(root)
    return walk.found


def is_like(tensors: Mapping[str, Tensor], weights: Mapping[str, Tensor]) -> bool:
    """Whether tensors are weights, or an average of what these once were: their angle is small.

    Compares matrices, if there are any, as all gains of new norms are 1 and all biases 0.
    """
    names = [name for name in tensors if name in weights and weights[name].is_floating_point()]
    names = [name for name in names if weights[name].dim() > 1] or names
    if any(isinstance(tensors[n], DTensor) != isinstance(weights[n], DTensor) for n in names):
        return False
    product = one = other = 0.0
    for name in names:
        mine, its = tensors[name].detach(), weights[name].detach()
        mine, its = mine.to(its.device, torch.float32), its.float()
        product += float((mine * its).sum())
        one, other = one + float(mine.square().sum()), other + float(its.square().sum())
    return product > 0.5 * (one * other) ** 0.5


def tensors_of(network: nn.Module) -> dict[str, Tensor]:
    """Return the parameters and buffers of a network by name."""
    return {**dict(network.named_parameters()), **dict(network.named_buffers())}


def shapes_of(network: nn.Module) -> dict[str, torch.Size | None]:
    """Return the shapes of the parameters and buffers of a network by name."""
    return {name: _shape(tensor) for name, tensor in tensors_of(network).items()}


def _shape(tensor: Tensor) -> torch.Size | None:
    """Return the shape of a tensor, None for one that a lazy module has not made yet."""
    return None if is_lazy(tensor) else tensor.shape


def copies_in(slot: Slot, network: nn.Module) -> list[str]:
    """Return the submodules of the type and shapes of a network that is, or was, in the slot."""
    shapes = shapes_of(network)
    return [
        name
        for name, part in slot.module.named_modules()
        if type(part) is type(network)
        and not f"{name}.".startswith(f"{slot.attribute}.")
        and shapes_of(part) == shapes
    ]


def hooks(network: nn.Module) -> list[Any]:
    """Return the hooks on the modules and parameters of a network, without those of torch."""
    items = (*network.modules(), *network.parameters())
    return [hook for item in items for _, hook in _of_users(item, {})]


class _Walk:
    def __init__(self, slot: Slot, optimizers: Sequence[Optimizer]) -> None:
        network, module = slot.network, slot.module
        self.slot, self.network = slot, network
        self.standing = module.get_submodule(slot.attribute)  # or torch.compile's wrapper
        self.modules, self.tensors = set(network.modules()), tensors_of(network)
        self.parameters: dict[Tensor, str] = {p: n for n, p in network.named_parameters()}
        self.shapes = shapes_of(network)
        self.trained = {p for p in parameters_in(optimizers) if p.requires_grad}
        self.orders = _orders(slot, optimizers)
        own = holds(module) if slot.is_whole else []
        self.seen: dict[int, object] = {id(each): each for each in own}
        self.is_average = False  # whether the walk is in a callback of Lightning that averages
        self.found = Held([], [], [], [])

    def over(self, root: object) -> None:
        self.is_average = isinstance(root, (WeightAveraging, StochasticWeightAveraging))
        owner = getattr(root, "__qualname__", type(root).__name__)  # the name of a hook
        places = [Place(owner, "", root, None)]
        while places:
            place = places.pop()
            own = root is self.slot.module and place.path == self.slot.attribute
            if not own and not self.is_found(place):
                self.seen[id(place.value)] = place.value
                held = [
                    Place(owner, f"{place.path}{suffix}".removeprefix("."), value, put)
                    for suffix, value, put in _content(place)
                ]
                places += reversed(held)

    def is_found(self, place: Place) -> bool:
        """Note what an object holds of the network; return whether it need not be opened."""
        value = place.value
        if isinstance(value, _CLOSED) or id(value) in self.seen:
            return True
        if value is self.network or value is self.standing:
            self.found.references.append(place)
        elif self.is_part(value):
            self.found.parts.append(place)
        elif type(value) is type(self.network) and shapes_of(value) == self.shapes:
            if self.is_copy(value):
                self.found.copies.append(place)
        elif isinstance(value, (dict, list, tuple)) and (names := self.names_of(value)):
            self.found.named.append((place, names))
        else:
            return False
        return True

    def is_part(self, value: Any) -> bool:
        module = isinstance(value, nn.Module) and value in self.modules
        return module or (isinstance(value, nn.Parameter) and value in self.parameters)

    def is_copy(self, network: nn.Module) -> bool:
        is_trained = any(parameter in self.trained for parameter in network.parameters())
        return not is_trained and (self.is_average or is_like(tensors_of(network), self.tensors))

    def names_of(self, container: Any) -> dict[Any, str]:
        """Return the name, in the network, of every item that belongs to a parameter of it.

        Items are under the names of parameters, or in the order of parameters.
        """
        if not 0 < len(container) < _MANY:
            return {}
        keyed = isinstance(container, dict)
        items = dict(container if keyed else enumerate(container))
        tensors = {key: item for key, item in items.items() if isinstance(item, Tensor)}
        if keyed:
            return self.named(tensors)
        return self.ordered(tensors) if len(tensors) == len(items) else {}

    def named(self, tensors: dict[Any, Tensor]) -> dict[Any, str]:
        names = {}
        for key, tensor in tensors.items():
            name = str(key).removeprefix(f"{self.slot.prefix}.")
            if self.shapes.get(name) == _shape(tensor):
                if isinstance(tensor, nn.Parameter) and self.parameters.get(tensor, name) != name:
                    return {}
                names[key] = name
        return names

    def ordered(self, tensors: dict[Any, Tensor]) -> dict[Any, str]:
        if any(tensor in self.parameters for tensor in tensors.values()):
            return {key: self.parameters.get(tensor, "") for key, tensor in tensors.items()}
        found = [_shape(tensor) for tensor in tensors.values()]
        for order in self.orders if len(found) > 1 else ():
            if [shape for _, shape in order] == found:
                return dict(enumerate(name for name, _ in order))
        return {}


def _orders(
    slot: Slot, optimizers: Sequence[Optimizer]
) -> list[list[tuple[str, torch.Size | None]]]:
    """Return the orders in which lists hold tensors of parameters: (name, shape) of each.

    A parameter outside the network has an empty name.
    """
    name_of = {p: name for name, p in slot.network.named_parameters()}
    whole, inner = list(slot.module.parameters()), list(slot.network.parameters())
    lists = [inner, [p for p in inner if p.requires_grad], whole]
    lists.append([p for p in whole if p.requires_grad])
    for optimizer in optimizers:
        lists += [group["params"] for group in optimizer.param_groups]
        lists.append(parameters_in([optimizer]))
    orders = [[(name_of.get(p, ""), _shape(p)) for p in each] for each in lists]
    return [order for order in orders if any(name for name, _ in order)]


def replace_everywhere(
    slot: Slot, network: nn.Module, others: Sequence[object], names: Sequence[str] = ()
) -> None:
    """Put a network of another size into a slot, and copies of it where copies of the first are.

    Their weights are loaded later. The hooks on the first are moved. Beside the module, ``others``
    may hold copies; the submodules ``names`` are copies.
    """
    before, found = slot.network, held([slot.module, *others], slot)
    registered = set(slot.module.modules())
    places = [place for place in found.copies if place.value not in registered]
    puts: list[tuple[Put, Any]] = [
        (Slot(slot.module, name).set, slot.module.get_submodule(name)) for name in names
    ]
    puts += [(place.put, place.value) for place in places if place.put is not None]
    for put, value in puts:
        trained = any(parameter.requires_grad for parameter in value.parameters())
        device = next((parameter.device for parameter in value.parameters()), None)
        twin = copy.deepcopy(network).requires_grad_(trained).train(value.training)
        put(twin.to(device))
    slot.set(network)
    move_hooks(before, network)
    for place in found.references:
        if place.put is not None:
            place.put(network)


# What objects hold --------------------------------------------------------------------------------


def _content(place: Place) -> Iterator[tuple[str, Any, Put | None]]:
    """Yield what an object holds: how it is read, the value, and what holds another there."""
    value = place.value
    if isinstance(value, (dict, list, tuple, set, frozenset, deque)):
        if len(value) < _MANY:
            yield from _entries(value) if isinstance(value, dict) else _items(value, place.put)
    elif isinstance(value, functools.partial):
        for item in (value.func, *value.args, value.keywords):
            yield "", item, None
    elif isinstance(value, types.MethodType):
        yield "", value.__self__, None
    elif isinstance(value, types.FunctionType):
        names = value.__code__.co_freevars
        for name, cell in zip(names, value.__closure__ or (), strict=True):
            with suppress(ValueError):  # not yet filled
                item = cell.cell_contents
                yield f".{name}", item, functools.partial(setattr, cell, "cell_contents")
        for item in value.__defaults__ or ():
            yield "", item, None
    elif not isinstance(value, Tensor) and hasattr(value, "__dict__"):
        yield from _attributes(value)


def _entries(value: dict[Any, Any]) -> Iterator[tuple[str, Any, Put | None]]:
    for key, item in list(value.items()):
        if isinstance(key, (nn.Module, Tensor)):
            yield ".keys()", key, None
        yield f"[{key!r}]", item, functools.partial(value.__setitem__, key)


def _items(value: Any, put_value: Put | None) -> Iterator[tuple[str, Any, Put | None]]:
    items = list(value)

    def put(position: int, item: Any) -> None:
        before, items[position] = items[position], item
        if isinstance(value, set):
            value.discard(before)
            value.add(item)
        elif isinstance(value, (list, deque)):
            value[position] = item
        elif put_value is not None:  # a tuple is held anew
            put_value(type(value)(*items) if hasattr(value, "_fields") else type(value)(items))

    fixed = isinstance(value, (tuple, frozenset)) and put_value is None
    for position, item in enumerate(items):
        yield f"[{position}]", item, None if fixed else functools.partial(put, position)


def _attributes(value: Any) -> Iterator[tuple[str, Any, Put | None]]:
    value = _plain(value)
    attributes, modules = dict(vars(value)), dict[str, Any]()
    own: Collection[str] = _OPTIMIZER_OWN if isinstance(value, Optimizer) else ()
    if isinstance(value, nn.Module):
        own = _TORCH_OWN
        modules = {name: _plain(part) for name, part in attributes["_modules"].items()}
        held = {**attributes["_parameters"], **attributes["_buffers"], **modules}
        attributes = held | attributes
    for name, item in attributes.items():
        if name not in own:
            put = functools.partial(setattr, value, name)
            yield f".{name}", item, Slot(value, name).set if name in modules else put


def _plain(module: Any) -> Any:
    """Return the module that torch.compile has wrapped, or what it was given."""
    return module._orig_mod if isinstance(module, OptimizedModule) else module


# Hooks --------------------------------------------------------------------------------------------


def move_hooks(small: nn.Module, large: nn.Module) -> list[str]:
    """Give a large network the hooks that users have set on a small one; return where they are.

    They go to the modules and parameters of the same name, and to a new layer if all old layers
    have the same. What the network's own constructor has set is there already.
    """
    moved = []
    for kind in (nn.Module.named_modules, nn.Module.named_parameters):
        standing_for = in_layers(dict(kind(small)))
        for name, new in kind(large):
            sources: list[Any] = standing_for(name)
            own = {each: len(kept) for each, kept in _kept(new).items()}
            users = [_of_users(source, own) for source in sources]
            if users and users[0] and all(list(u) == list(users[0]) for u in users[1:]):
                _give(sources[0], new, own)
                moved.append(name)
    return moved


def _kept(item: Any) -> dict[str, dict[int, Any]]:
    """Return the dicts that hold the hooks of a module or a parameter."""
    names = _HOOKS if isinstance(item, nn.Module) else _TENSOR_HOOKS
    found = {name: getattr(item, name) for name in names}
    return {name: kept for name, kept in found.items() if kept}


def _of_users(item: Any, own: Mapping[str, int]) -> list[tuple[str, Any]]:
    return [
        (name, hook)
        for name, kept in _kept(item).items()
        for hook in list(kept.values())[own.get(name, 0) :]
        if callable(hook) and not _is_of_torch(hook)
    ]


def _give(source: Any, new: Any, own: Mapping[str, int]) -> None:
    for name, kept in _kept(source).items():
        if name not in own and not any(map(_is_of_torch, kept.values())):
            setattr(new, name, kept)  # the same dict, so that handles can still remove them
            continue
        for key, hook in list(kept.items())[own.get(name, 0) :]:
            if not _is_of_torch(hook):
                getattr(new, name)[key] = hook


def _is_of_torch(hook: Any) -> bool:
    kind = hook if isinstance(hook, (types.FunctionType, types.MethodType)) else type(hook)
    return callable(hook) and str(kind.__module__).split(".")[0] == "torch"
