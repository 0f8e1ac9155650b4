"""The calls of a network, and of its parts, that a step makes, and how to make them again."""

from __future__ import annotations

import copy
import functools
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from types import FunctionType, MethodType, ModuleType
from typing import Any, NamedTuple
from unittest.mock import patch

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

FLEX, UNCOMPILED = "torch.nn.attention.flex_attention", "_FLEX_ATTENTION_DISABLE_COMPILE_DEBUG"


@dataclass(frozen=True)
class Call:
    """A call of a network, of one of its parts, or of a function on what these returned.

    Args:
        args, kwargs: the arguments. A `Result` stands for a tensor that an earlier call returned,
            and a `Held` for one of the network itself.
        path: the name of the part, empty for the network itself.
        method: the name of the method; ``__call__`` runs the hooks and ``forward``. Or a function,
            which is not the network's.
        training: whether the network was in training mode.
    """

    args: tuple[Any, ...] = ()
    kwargs: dict[str, Any] = field(default_factory=dict)
    path: str = ""
    method: str | Callable[..., Any] = "__call__"
    training: bool = False

    @property
    def is_function(self) -> bool:
        """Whether it is of a function that is not the network's."""
        return not isinstance(self.method, str)


class Result(NamedTuple):
    """The place of a tensor among all that the calls before returned."""

    call: int
    leaf: int


class Held(NamedTuple):
    """The name of a parameter or buffer of the network."""

    name: str


def make(network: nn.Module, calls: Sequence[Call]) -> list[list[Tensor]]:
    """Make calls in turn, each in its own mode; return the tensors that each returned.

    The network is left in the mode of the last call.
    """
    results: list[list[Tensor]] = []
    for call in calls:
        results.append(make_one(network, call, results))
    return results


def make_one(network: nn.Module, call: Call, results: Sequence[list[Tensor]]) -> list[Tensor]:
    """Make a call behind others that returned ``results``."""

    def filled(leaf: Any) -> Any:
        if isinstance(leaf, Held):
            return functools.reduce(getattr, leaf.name.split("."), network)
        return results[leaf.call][leaf.leaf] if isinstance(leaf, Result) else leaf

    args, kwargs = mapped((call.args, call.kwargs), (Held, Result, Tensor), filled)
    method = call.method
    if isinstance(method, str):
        network.train().train(call.training)  # clears what some modules cache of their parameters
        method = getattr(network.get_submodule(call.path), method)
    with plain_attention():
        made = outputs_of(method(*args, **kwargs))
    # a forward that differentiates enables gradients itself
    return made if torch.is_grad_enabled() else [tensor.detach() for tensor in made]


@contextmanager
def plain_attention() -> Iterator[None]:
    """Let attention run step by step: encoder layers without nested tensors, flex uncompiled."""
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with uncompiled_flex():
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)


def uncompiled_flex() -> AbstractContextManager[Any]:
    """Let flex_attention, which otherwise compiles a part of itself, run where nothing compiles."""
    flex = sys.modules.get(FLEX)
    return patch.object(flex, UNCOMPILED, True, create=True) if flex else nullcontext()


def without_gradients(run: Callable[[], list[list[Tensor]]]) -> list[list[Tensor]]:
    """Run calls without gradients, unless the network differentiates in its forward."""
    try:
        with torch.no_grad():
            results = run()
    except RuntimeError as error:
        if "does not require grad" not in str(error):
            raise
        with torch.enable_grad():
            results = run()
    return [[out.detach() for out in returned] for returned in results]


def make_steadily(network: nn.Module, calls: Sequence[Call], steady: Steady) -> list[list[Tensor]]:
    """Make calls without gradients, and with the random numbers of ``steady`` from its start."""

    def run() -> list[list[Tensor]]:
        steady.restart()
        with steady:
            return make(network, calls)

    return without_gradients(run)


def passed_on(calls: Sequence[Call]) -> set[int]:
    """Return the numbers of the calls whose results are arguments of others."""
    return {result.call for call in calls for result in found((call.args, call.kwargs), Result)}


def with_tensors(calls: Sequence[Call], of: Callable[[Tensor], Tensor]) -> list[Call]:
    """Return the calls with ``of(tensor)`` for each tensor in their arguments."""
    changed = []
    for call in calls:
        args, kwargs = mapped((call.args, call.kwargs), Tensor, of)
        changed.append(replace(call, args=args, kwargs=kwargs))
    return changed


def tensors_in(calls: Sequence[Call]) -> list[Tensor]:
    """List the tensors in the arguments of calls."""
    return [tensor for call in calls for tensor in found((call.args, call.kwargs), Tensor)]


def found(value: Any, kind: Any) -> list[Any]:
    """List what is of a kind in nested containers and objects, such as batches of graphs."""
    items: list[Any] = []
    _collect(value, kind, items, set())
    return items


def _collect(value: Any, kind: Any, items: list[Any], seen: set[int]) -> None:
    for leaf in tree_leaves(value, is_leaf=lambda leaf: isinstance(leaf, kind)):
        if isinstance(leaf, kind):
            items.append(leaf)
        elif id(leaf) not in seen:
            seen.add(id(leaf))
            for attribute in _attributes(leaf).values():
                _collect(attribute, kind, items, seen)


def mapped(value: Any, kind: Any, of: Callable[[Any], Any]) -> Any:
    """Copy nested containers and objects with ``of(item)`` for all that is of a kind."""
    copies: dict[int, Any] = {}

    def changed(leaf: Any) -> Any:
        if isinstance(leaf, kind):
            return of(leaf)
        if id(leaf) in copies or not found(attributes := _attributes(leaf), kind):
            return copies.get(id(leaf), leaf)
        new = copies[id(leaf)] = copy.copy(leaf)
        for name, attribute in attributes.items():
            object.__setattr__(new, name, walk(attribute))  # of a frozen dataclass too
        return new

    def walk(value: Any) -> Any:
        return tree_map(changed, value, is_leaf=lambda leaf: isinstance(leaf, kind))

    return walk(value)


def _attributes(leaf: Any) -> dict[str, Any]:
    """Return the attributes of an object that may hold tensors; of others none."""
    if isinstance(leaf, (nn.Module, Tensor, type, ModuleType, FunctionType, MethodType)):
        return {}
    names = [*getattr(leaf, "__dict__", ()), *getattr(type(leaf), "__slots__", ())]
    return {name: getattr(leaf, name) for name in names if hasattr(leaf, name)}


class Steady(TorchDispatchMode):
    """Let networks of any size draw the same random numbers.

    Every draw is filled with one number, the same in each network that runs within this mode; the
    draws of a network are counted from `restart`. Dropout keeps everything. Whole numbers, such as
    the time steps of a diffusion, are the same where their shape is.
    """

    supports_higher_order_operators = True

    def __init__(self) -> None:
        super().__init__()
        self._drawn: dict[int, Tensor] = {}
        self._count = 0

    def restart(self) -> None:
        self._count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if torch.Tag.nondeterministic_seeded not in getattr(func, "tags", ()):
            return func(*args, **kwargs)
        name = func._schema.name.removeprefix("aten::")
        if name == "native_dropout":
            return args[0].clone(), torch.ones_like(args[0], dtype=torch.bool)
        if "scaled_dot_product" in name:
            return func(*args, **kwargs)  # without dropout it draws nothing
        out = func(*args, **kwargs)
        for tensor in tree_leaves(out):
            self._fill(tensor, keeps="bernoulli" in name)
        return out

    def _fill(self, out: Tensor, keeps: bool) -> None:
        self._count += 1
        if out.is_meta or not out.numel():
            return
        if keeps:
            out.fill_(1)
            return
        drawn = out.flatten()[0] if out.is_floating_point() else out
        drawn = self._drawn.setdefault(self._count, drawn.clone())
        if drawn.dim() == 0 or drawn.shape == out.shape:
            out.copy_(drawn)


def copied(network: nn.Module, of: Callable[[Tensor], Tensor]) -> nn.Module:
    """Copy a network with ``of(tensor)`` for each of its tensors; tied ones stay tied.

    Hooks are shared, as one that is a method of something else would have it copied too.
    """
    memo: dict[int, Any] = {id(hook): hook for hook in _hooks_from_outside(network)}
    for tensor in (*network.parameters(), *network.buffers()):
        new = of(tensor.detach())
        if isinstance(tensor, nn.Parameter):
            new = nn.Parameter(new, tensor.requires_grad)
        memo[id(tensor)] = new
    for module in network.modules():
        for value in tree_leaves(list(vars(module).values())):  # such as weights of old
            if isinstance(value, Tensor) and not value.is_leaf:  # parametrizations, and metrics
                memo[id(value)] = of(value.detach())
    result = copy.deepcopy(network, memo)
    for module, original in zip(result.modules(), network.modules(), strict=True):
        if isinstance(module, torch.jit.ScriptModule):  # its copy takes nothing from a memo
            for name, tensor in (
                *original.named_parameters(recurse=False),
                *original.named_buffers(recurse=False),
            ):
                setattr(module, name, memo[id(tensor)])
            continue
        held, left = vars(module), vars(original).items()  # a copy has no Trainer
        lost = {name: item for name, item in left if held.get(name) is None}
        held.update(lost | {"_compiled_call_impl": None})
        if isinstance(module, nn.RNNBase):
            module.flatten_parameters()  # as cuDNN requires
    return result


def materialize(network: nn.Module, calls: Sequence[Call]) -> nn.Module:
    """Make calls of a network with lazy modules, which give these their shapes."""
    parameters = [*network.parameters(), *network.buffers()]
    if any(map(is_lazy, parameters)):
        device, training = parameters[0].device, network.training
        with torch.no_grad():
            make(network, with_tensors(calls, lambda tensor: tensor.to(device)))
        network.train(training)
    return network


def _hooks_from_outside(network: nn.Module) -> list[Any]:
    parts = set(network.modules())
    return [
        hook
        for module in parts
        for name, hooks in vars(module).items()
        if name.endswith("_hooks") and isinstance(hooks, dict)
        for hook in hooks.values()
        if not any(getattr(hook, "__self__", None) is part for part in parts)
    ]


def without_values(tensor: Tensor) -> Tensor:
    """Make a tensor of the same shape on the meta device."""
    return torch.empty_like(tensor, device="meta")


def outputs_of(out: Any) -> list[Tensor]:
    """List the tensors that a network returned; of a Hugging Face output in its own order."""
    return found(out.to_tuple() if hasattr(out, "to_tuple") else out, Tensor)


@contextmanager
def evaluating(network: nn.Module) -> Iterator[None]:
    """Put a network into evaluation mode, and restore the mode of every module after it."""
    modes = [(module, module.training) for module in network.modules()]
    network.train().eval()  # clears what some modules cache of their parameters
    try:
        yield
    finally:
        network.train()
        for module, training in modes:
            module.training = training
