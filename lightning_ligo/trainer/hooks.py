"""Hooks that users have set on the modules and parameters of a network."""

from __future__ import annotations

import types
from collections.abc import Mapping
from typing import Any

from torch import nn

from lightning_ligo.trainer.slot import in_layers

_HOOKS = (
    "_forward_hooks", "_forward_hooks_with_kwargs", "_forward_hooks_always_called",
    "_forward_pre_hooks", "_forward_pre_hooks_with_kwargs", "_backward_hooks",
    "_backward_pre_hooks",
)  # fmt: skip
_TENSOR_HOOKS = ("_backward_hooks", "_post_accumulate_grad_hooks")


def hooks(network: nn.Module) -> list[Any]:
    """Return the hooks on the modules and parameters of a network, without those of torch."""
    items = (*network.modules(), *network.parameters())
    return [hook for item in items for _, hook in _of_users(item, {})]


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
