"""The calls of a network, and of its parts, that a step makes, and how to make them again."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map, tree_map_only


@dataclass(frozen=True)
class Call:
    """A call of a network, or of one of its parts.

    Args:
        args, kwargs: the arguments. A `Result` stands for a tensor that an earlier call returned.
        path: the name of the part, empty for the network itself.
        method: the name of the method; ``__call__`` runs the hooks and ``forward``.
        training: whether the network was in training mode.
    """

    args: tuple[Any, ...] = ()
    kwargs: dict[str, Any] = field(default_factory=dict)
    path: str = ""
    method: str = "__call__"
    training: bool = False


class Result(NamedTuple):
    """The place of a tensor among all that the calls before returned."""

    call: int
    leaf: int


def make(network: nn.Module, calls: Sequence[Call]) -> list[list[Tensor]]:
    """Make calls in turn, each in its own mode; return the tensors that each returned.

    The network is left in the mode of the last call.
    """
    results: list[list[Tensor]] = []

    def filled(leaf: Any) -> Any:
        return results[leaf.call][leaf.leaf] if isinstance(leaf, Result) else leaf

    for call in calls:
        network.train().train(call.training)  # clears what some modules cache of their parameters
        method = getattr(network.get_submodule(call.path), call.method)
        args, kwargs = tree_map(
            filled, (call.args, call.kwargs), is_leaf=lambda leaf: isinstance(leaf, Result)
        )
        results.append(outputs_of(method(*args, **kwargs)))
    return results


def passed_on(calls: Sequence[Call]) -> set[int]:
    """Return the numbers of the calls whose results are arguments of others."""
    leaves = tree_leaves(
        [(call.args, call.kwargs) for call in calls], is_leaf=lambda leaf: isinstance(leaf, Result)
    )
    return {leaf.call for leaf in leaves if isinstance(leaf, Result)}


def with_tensors(calls: Sequence[Call], of: Callable[[Tensor], Tensor]) -> list[Call]:
    """Return the calls with ``of(tensor)`` for each tensor in their arguments."""
    changed = []
    for call in calls:
        args, kwargs = tree_map_only(Tensor, of, (call.args, call.kwargs))
        changed.append(replace(call, args=args, kwargs=kwargs))
    return changed


def tensors_of(calls: Sequence[Call]) -> list[Tensor]:
    """List the tensors in the arguments of calls."""
    leaves = tree_leaves([(call.args, call.kwargs) for call in calls])
    return [leaf for leaf in leaves if isinstance(leaf, Tensor)]


class Steady(TorchDispatchMode):
    """Let networks of any size draw the same random numbers.

    Every draw is filled with one number, the same in each network that runs within this mode; the
    draws of a network are counted from `restart`. Dropout keeps everything. Whole numbers, such as
    the time steps of a diffusion, are the same where their shape is.
    """

    def __init__(self) -> None:
        super().__init__()
        self._drawn: dict[int, Tensor] = {}
        self._count = 0

    def restart(self) -> None:
        self._count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if torch.Tag.nondeterministic_seeded not in func.tags:
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
    network = copy.deepcopy(network, memo)
    for module in network.modules():
        if isinstance(module, nn.RNNBase):
            module.flatten_parameters()  # as cuDNN requires
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
    plain = out.to_tuple() if hasattr(out, "to_tuple") else out
    return [leaf for leaf in tree_leaves(plain) if isinstance(leaf, Tensor)]


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
