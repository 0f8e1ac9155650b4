"""Find what holds a network, its parameters, copies of it, or tensors of its parameters' shapes.

Everything that the given objects hold is walked: attributes, items, closures, bound methods.
"""

from __future__ import annotations

import copy
import functools
import logging
import operator
import types
import weakref
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

from lightning_ligo.trainer.hooks import hooks, move_hooks
from lightning_ligo.trainer.optimizers import parameters_in
from lightning_ligo.trainer.slot import Slot, in_layers
from lightning_ligo.trainer.snapshot import refill
from lightning_ligo.trainer.whole import holds

_CLOSED = (
    type(None), bool, int, float, complex, str, bytes, type, types.ModuleType, torch.dtype,
    torch.device, torch.Size, torch.Generator, Trainer, Logger, logging.Logger, LRScheduler,
    DataLoader, Dataset, Sampler,
)  # fmt: skip
_TORCH_OWN = frozenset(vars(nn.Module()))
_OPTIMIZER_OWN = ("param_groups", "state", "defaults")
_MANY = 10_000  # items of a container that is data and is not walked
Put = Callable[[Any], object]


class Place(NamedTuple):
    """Where an object is held."""

    owner: str  # the type of the object at which the walk began
    path: str  # such as `copies[0].network`
    value: Any
    put: Put | None  # holds another value there, where that is possible
    start: str = ""  # the prefix of the network's parameters, if it is one of several


class Held(NamedTuple):
    """What holds a network that is about to grow."""

    references: list[Place]  # the network itself
    parts: list[Place]  # a module or a parameter of it
    copies: list[Place]  # a network of its type and shapes, with weights like its own
    named: list[
        tuple[Place, dict[Any, str]]
    ]  # `contents` that are of parameters, by key; the names


def held(
    roots: Sequence[object],
    slot: Slot,
    optimizers: Sequence[Optimizer] = (),
    closed: Sequence[object] = (),
) -> Held:
    """Walk objects and everything that they hold; the place of the network itself is left out.

    A copy that one of the ``optimizers`` trains is no copy but another network. What only the
    objects ``closed`` hold is left out too.
    """
    walk = _Walk(slot, optimizers)
    walk.seen |= {id(each): each for each in closed}
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


def copies_in(slot: Slot, network: nn.Module) -> dict[str, str]:
    """Return the submodules of the type and shapes of a network that is, or was, in the slot.

    Each has the prefix of the parameters of the one of several networks that it is like.
    """
    found: dict[str, str] = {}
    for start, (_, one) in zip(slot.starts, slot.split(network), strict=True):
        shapes = shapes_of(one)
        for name, part in slot.module.named_modules():
            if type(part) is type(one) and not slot.has(name) and shapes_of(part) == shapes:
                found.setdefault(name, start)
    return found


class _Walk:
    def __init__(self, slot: Slot, optimizers: Sequence[Optimizer]) -> None:
        network, module = slot.network, slot.module
        self.slot = slot
        self.networks = {
            start: one for start, (_, one) in zip(slot.starts, slot.split(network), strict=True)
        }
        self.places = [part.attribute for part in slot.parts]
        standing = map(module.get_submodule, self.places)
        self.starts = {  # of the networks, or torch.compile's wrappers
            id(each): start
            for some in (self.networks.values(), standing)
            for start, each in zip(self.networks, some, strict=True)
        }
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
            own = root is self.slot.module and place.path in self.places
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
        if id(value) in self.starts:
            self.found.references.append(place._replace(start=self.starts[id(value)]))
        elif self.is_part(value):
            self.found.parts.append(place)
        elif twins := self.twins_of(place):
            for start in [start for start in twins if self.is_copy(value, start)][:1]:
                self.found.copies.append(place._replace(start=start))
        elif isinstance(value, (dict, list, tuple, set, frozenset)) and (
            names := self.names_of(place)
        ):
            self.found.named.append((place, names))
        else:
            return False
        return True

    def is_part(self, value: Any) -> bool:
        module = isinstance(value, nn.Module) and value in self.modules
        return module or (isinstance(value, nn.Parameter) and value in self.parameters)

    def twins_of(self, place: Place) -> list[str]:
        """Return the networks of the type and shapes of one, first that of the same name."""
        twins = [
            start
            for start, network in self.networks.items()
            if type(place.value) is type(network) and shapes_of(place.value) == shapes_of(network)
        ]
        return sorted(twins, key=lambda start: not f"{place.path}.".endswith(start))

    def is_copy(self, network: nn.Module, start: str) -> bool:
        is_trained = any(parameter in self.trained for parameter in network.parameters())
        its = tensors_of(self.networks[start])
        return not is_trained and (self.is_average or is_like(tensors_of(network), its))

    def names_of(self, place: Place) -> dict[Any, str]:
        """Return the name, in the network, of every item that belongs to a parameter of it.

        Items are under the names of parameters, in the order of parameters, or are these names.
        """
        container = place.value
        if not 0 < len(container) < _MANY:
            return {}
        items = contents(container)
        tensors = {key: item for key, item in items.items() if isinstance(item, Tensor)}
        if isinstance(container, dict):
            return self.read(tensors, self.named_by)
        if holds_names(container):
            return self.read(items, self.words_by) if isinstance(container, (list, set)) else {}
        return self.ordered(tensors) if len(tensors) == len(items) else {}

    def read(self, items: dict[Any, Any], by: Callable[..., dict[Any, str]]) -> dict[Any, str]:
        """Read keys as names in the module, or in one of the networks: as fits most of them."""
        ways: list[Callable[[str], str]] = [self.slot.inner]
        ways += [functools.partial(operator.add, start) for start in self.networks]
        return max((by(way, items) for way in ways), key=len)

    def words_by(self, way: Callable[[str], str], words: dict[Any, Any]) -> dict[Any, str]:
        names = {word: way(word) for word in words}
        return names if self.shapes.keys() >= {*names.values()} else {}

    def named_by(self, way: Callable[[str], str], tensors: dict[Any, Tensor]) -> dict[Any, str]:
        names = {}
        for key, tensor in tensors.items():
            name = way(str(key))
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


def holds_names(container: Any) -> bool:
    """Whether a list, a tuple or a set has strings only."""
    return not isinstance(container, dict) and all(isinstance(item, str) for item in container)


def contents(container: Any) -> dict[Any, Any]:
    """Return what a container holds by its key, or by its position; strings by themselves."""
    if isinstance(container, dict):
        return dict(container)
    if holds_names(container):
        return {item: item for item in container}
    strong = (item() if isinstance(item, weakref.ref) else item for item in container)
    return dict(enumerate(strong))


def put_of(place: Place) -> Put | None:
    """Return what puts another value into a place, or other contents into this one, if possible."""
    is_open = isinstance(place.value, (dict, list, set))
    return functools.partial(refill, place.value) if is_open else place.put


def regrown(
    container: Any,
    names: Mapping[Any, str],
    tensors: Mapping[str, Tensor],
    starts: Collection[str] = ("",),
) -> Any:
    """Make a container of the same kind with other tensors of the network in it.

    Args:
        container: what holds parameters, or their names.
        names: of all of its `contents` that are of the network, by key.
        tensors: the other tensors, by the names of the network.
        starts: the prefixes of the parameters of several networks.
    """
    items = contents(container)
    prefixes: dict[str, str] = {}
    for key, name in names.items():
        start = next(start for start in starts if name.startswith(start))
        prefixes[start] = str(key).removesuffix(name.removeprefix(start))
    new = {
        prefix + name.removeprefix(start): tensor
        for start, prefix in prefixes.items()
        for name, tensor in tensors.items()
        if name.startswith(start)
    }
    at = next(number for number, key in enumerate(items) if key in names)
    rest = [item for item in items.items() if item[0] not in names]
    both = dict([*rest[:at], *new.items(), *rest[at:]])
    if isinstance(container, dict):
        return both
    if holds_names(container):
        return type(container)(both)
    weak = any(isinstance(item, weakref.ref) for item in container)
    return tuple(weakref.ref(item) if weak else item for item in both.values())


def _orders(
    slot: Slot, optimizers: Sequence[Optimizer]
) -> list[list[tuple[str, torch.Size | None]]]:
    """Return the orders in which lists hold tensors of parameters: (name, shape) of each.

    A parameter outside the network has an empty name.
    """
    name_of = {p: name for name, p in slot.network.named_parameters()}
    modules = [slot.network, slot.module, *(one for _, one in slot.split(slot.network))]
    lists = [list(each.parameters()) for each in modules]
    lists += [[p for p in each if p.requires_grad] for each in lists]
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
    _replace_parameters(found, before, network)


def _replace_parameters(found: Held, before: nn.Module, network: nn.Module) -> None:
    """Put the parameters of a network, or their names, where there are those of another one."""
    old, new = tensors_of(before), tensors_of(network)
    standing_for = in_layers({name: name for name in old})
    for place, names in found.named:
        items, inner = contents(place.value), {key: name for key, name in names.items() if name}
        is_own = all(items[key] is old[name] for key, name in inner.items())
        put = put_of(place)
        if put is not None and (is_own or holds_names(place.value)):
            wanted = {
                name: tensor
                for name, tensor in new.items()
                if any(each in inner.values() for each in standing_for(name))
            }
            put(regrown(place.value, inner, wanted))


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
    elif isinstance(value, weakref.ref):
        put = place.put
        if isinstance(value(), (nn.Module, Tensor)):
            yield "()", value(), put and (lambda item: put(weakref.ref(item)))
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
