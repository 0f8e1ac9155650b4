"""Copy the state of Python objects and restore it: modules, datasets, random generators."""

from __future__ import annotations

import enum
import functools
import random
import types
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from torch import Tensor, nn
from torch.nn.modules.lazy import LazyModuleMixin
from torch.nn.parameter import is_lazy
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from torch.utils.data import DataLoader, Dataset, Sampler
from torchmetrics import Metric

from lightning_ligo.trainer.lightning import random_states, scaler_of, set_random_states

_LIGHTNING_OWN = frozenset(vars(LightningModule()))
_TORCH_OWN = frozenset(vars(nn.Module()))
_SCALARS = (
    type(None), bool, int, float, complex, str, bytes, enum.Enum, type, types.FunctionType,
    types.BuiltinFunctionType, types.MethodType, torch.dtype, torch.device, torch.Size, np.generic,
)  # fmt: skip
_CONTAINERS = (list, tuple, set, deque)
_GENERATORS = (torch.Generator, random.Random, np.random.Generator, np.random.RandomState)
_DATA = (Dataset, DataLoader, Sampler, LightningDataModule)


class Snapshot:
    """Remembers the content of objects and restores it in place, for all who share them."""

    def __init__(self) -> None:
        self._undo: list[Callable[[], object]] = []
        self._seen: dict[int, object] = {}
        self._generators: list[torch.Generator | random.Random] = []

    def restore(self) -> None:
        """Restore everything that was kept, the last first."""
        with torch.no_grad():
            for undo in reversed(self._undo):
                undo()

    def seed(self, seed: int) -> None:
        """Seed the random generators that were kept."""
        for generator in self._generators:
            if isinstance(generator, torch.Generator):
                generator.manual_seed(seed)
            else:
                generator.seed(seed)

    def keep_module(self, root: LightningModule) -> None:
        """Keep parameters, buffers, submodules, metrics and plain attributes of all modules."""
        for module in root.modules():
            attributes = vars(module)
            if isinstance(module, LazyModuleMixin):
                self._keep_lazy(module)
            own = _LIGHTNING_OWN if module is root else _TORCH_OWN
            self._keep_items(attributes)
            for name in ("_parameters", "_buffers", "_modules"):
                if isinstance(attributes[name], dict):  # else it is of a scripted part
                    self._keep_items(attributes[name])
            for tensor in (*attributes["_parameters"].values(), *attributes["_buffers"].values()):
                self._keep_tensor(tensor)
            for name, value in attributes.items():
                if name not in own:
                    self._keep(value)
        self._keep(root.hparams)

    def keep_training(self, trainer: Trainer, callbacks: Iterable[Callback]) -> None:
        """Keep optimizers, schedulers, scaler, callbacks, gradients, and counts of classes."""
        schedulers = [config.scheduler for config in trainer.lr_scheduler_configs]
        for owner in (*trainer.optimizers, *schedulers, scaler_of(trainer), *callbacks):
            self._keep(vars(owner) if owner is not None else None)
        for parameter in trainer.lightning_module.parameters():
            self._undo.append(functools.partial(setattr, parameter, "grad", parameter.grad))
            parameter.grad = None
        for kind in type(trainer.lightning_module).__mro__:
            if kind not in LightningModule.__mro__:
                for name, value in vars(kind).items():
                    if isinstance(value, (bool, int, float)):
                        self._undo.append(functools.partial(setattr, kind, name, value))

    def keep_data(self, owner: Any) -> None:
        """Keep numbers and random generators of loaders, samplers and datasets, not their data."""
        if id(owner) in self._seen or not hasattr(owner, "__dict__"):
            return
        self._seen[id(owner)] = owner
        attributes = vars(owner)
        scalars = {name: value for name, value in attributes.items() if isinstance(value, _SCALARS)}
        self._undo.append(lambda: attributes.update(scalars))
        for name, value in attributes.items():
            for item in value if isinstance(value, (list, tuple)) and len(value) < 100 else [value]:
                if isinstance(item, _DATA) or name == "dataset":
                    self.keep_data(item)
                elif isinstance(item, _GENERATORS):
                    self._keep(item)

    def _keep_items(self, items: dict[Any, Any]) -> None:
        if id(items) not in self._seen:
            self._seen[id(items)] = items
            before = dict(items)
            self._undo.append(lambda: refill(items, before))

    def _keep_lazy(self, module: Any) -> None:
        """Keep a module that has no shapes before its first call."""
        held = vars(module)
        tensors = (*held["_parameters"].values(), *held["_buffers"].values())
        for item in (module, *filter(is_lazy, tensors)):
            self._undo.append(functools.partial(setattr, item, "__class__", type(item)))
        for name in ("_forward_pre_hooks", "_load_state_dict_pre_hooks"):
            self._keep_items(held[name])

    def _keep_tensor(self, tensor: Tensor | None) -> None:
        if tensor is None or is_lazy(tensor) or id(tensor) in self._seen or tensor.is_inference():
            return
        self._seen[id(tensor)] = tensor
        before, trained = tensor.detach().clone(), tensor.requires_grad

        def undo() -> None:
            if not torch.equal(tensor, before):
                tensor.copy_(before)
            if tensor.is_leaf:
                tensor.requires_grad_(trained)

        self._undo.append(undo)

    def _keep(self, value: Any) -> None:
        if isinstance(value, _SCALARS) or id(value) in self._seen:
            return
        if isinstance(value, Tensor):
            self._keep_tensor(value)
        elif isinstance(value, torch.Generator):
            self._keep_state(value, value.get_state, value.set_state)
        elif isinstance(value, random.Random):
            self._keep_state(value, value.getstate, value.setstate)
        elif isinstance(value, np.random.Generator):
            bits = value.bit_generator
            self._keep_state(value, lambda: bits.state, lambda state: setattr(bits, "state", state))
        elif isinstance(value, np.random.RandomState):
            self._keep_state(value, value.get_state, value.set_state)
        elif isinstance(value, np.ndarray):
            self._keep_state(value, value.copy, lambda before: np.copyto(value, before))
        elif isinstance(value, dict):
            self._keep_items(value)
            for item in (*value.keys(), *value.values()):
                self._keep(item)
        elif isinstance(value, (list, set, deque)):
            self._seen[id(value)] = value
            before = list(value)
            self._undo.append(lambda: refill(value, before))
            for item in before:
                self._keep(item)
        elif isinstance(value, tuple):
            for item in value:
                self._keep(item)
        elif isinstance(value, _DATA):
            self.keep_data(value)
        elif isinstance(value, (Metric, Optimizer, LRScheduler)) or _is_plain(value, set()):
            self._keep(vars(value))

    def _keep_state(
        self, owner: Any, read: Callable[[], Any], write: Callable[[Any], object]
    ) -> None:
        self._seen[id(owner)] = owner
        before = read()
        self._undo.append(lambda: write(before))
        if isinstance(owner, (torch.Generator, random.Random)):
            self._generators.append(owner)


def refill(container: Any, content: Any) -> None:
    """Give a dict, a set, a list or a deque another content."""
    container.clear()
    (container.update if isinstance(container, (dict, set)) else container.extend)(content)


def _is_plain(value: Any, seen: set[int]) -> bool:
    """Return whether a value holds only data, so that it can be restored piece by piece."""
    known = (*_SCALARS, *_GENERATORS, *_DATA, Tensor, np.ndarray, Metric)
    if isinstance(value, known) or id(value) in seen:
        return True
    seen.add(id(value))
    if isinstance(value, dict):
        return all(_is_plain(item, seen) for item in (*value.keys(), *value.values()))
    if isinstance(value, _CONTAINERS):
        return all(_is_plain(item, seen) for item in value)
    if isinstance(value, (nn.Module, Trainer, types.ModuleType)) or not hasattr(value, "__dict__"):
        return False
    return _is_plain(vars(value), seen)


@contextmanager
def isolated_random(seed: int) -> Iterator[None]:
    """Seed Python, NumPy and torch inside the context, and restore their states afterwards."""
    before = random_states()
    try:
        random.seed(seed)
        np.random.seed(seed % 2**32)
        torch.manual_seed(seed)
        yield
    finally:
        set_random_states(before)
