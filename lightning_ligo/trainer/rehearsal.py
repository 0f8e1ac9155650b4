"""Train, validate, save and load on copies before the first step, as if the run had begun."""

from __future__ import annotations

import copy
import functools
import os
import sysconfig
import traceback
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import lightning
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.strategies import DDPStrategy
from torch import Tensor, nn

import lightning_ligo
from lightning_ligo.trainer.checkpoint import rebuild
from lightning_ligo.trainer.lightning import (
    limit_batches,
    load_hook,
    loaders,
    separate_progress,
    validation_loop,
    wrap_in_ddp,
)
from lightning_ligo.trainer.sandbox import sandboxed
from lightning_ligo.trainer.slot import Slot
from lightning_ligo.trainer.snapshot import Snapshot, isolated_random
from lightning_ligo.trainer.steps import evaluate

_NOT_OF_USERS = tuple(
    f"{Path(str(package.__file__)).parent}{os.sep}"
    for package in (torch, lightning, lightning_ligo)
)
_STANDARD = sysconfig.get_path("stdlib") + os.sep
_INSTALLED = sysconfig.get_path("purelib") + os.sep
_OWN = frozenset(vars(nn.Module()))
ABSENT = object()
_ATTRIBUTES = 1000  # in a container; one with more is data


@contextmanager
def rehearsing(
    trainer: Trainer, pl_module: LightningModule, seed: int, callbacks: Iterable[Callback]
) -> Iterator[None]:
    """Allow steps of the optimizers inside the context, and restore the run afterwards.

    Beside what `sandboxed` restores: optimizers and their state, schedulers, gradients, the scaler
    of float16, all counts of batches and steps, loaders, the wrapper of DDP, and what these
    callbacks hold, as hooks on modules and optimizers may write to it.
    """
    strategy = trainer.strategy
    with ExitStack() as stack:
        snapshot = Snapshot()
        if isinstance(strategy, DDPStrategy):  # its wrapper has counted the steps
            stack.callback(wrap_in_ddp, strategy, pl_module)
        stack.callback(snapshot.restore)
        snapshot.keep_training(trainer, callbacks)
        stack.enter_context(separate_progress(trainer))
        with isolated_random(seed):
            validation_loop(trainer)  # its loaders are restored too
        stack.enter_context(sandboxed(trainer, pl_module, seed))
        if isinstance(strategy, DDPStrategy):
            wrap_in_ddp(strategy, pl_module)
        yield


def validate_one_batch(trainer: Trainer) -> None:
    """Validate one batch inside `rehearsing`, unless the data can be read only once."""
    if trainer.enable_validation and not any(
        isinstance(each, Iterator) for each in loaders(trainer)
    ):
        limit_batches(trainer, 1)
        evaluate(trainer)


def resume(trainer: Trainer, slot: Slot, small: nn.Module, checkpoint: dict[str, Any]) -> None:
    """Load a checkpoint into the module as it is before a resume, with the small network."""
    slot.set(small)
    rebuild(slot.module, checkpoint)
    load_hook(trainer, checkpoint)
    slot.module.load_state_dict(checkpoint["state_dict"], strict=slot.module.strict_loading)


def own_copy(batch: Any) -> Any:
    """Copy a batch, which steps may change; return it as it is if it cannot be copied."""
    try:
        return copy.deepcopy(batch)
    except Exception:
        return batch


def line_of_user(error: BaseException) -> str | None:
    """Return the last line outside of torch, Lightning and this package that an error passed."""
    frames = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if not frame.filename.startswith((*_NOT_OF_USERS, "<"))
        and (frame.filename.startswith(_INSTALLED) or not frame.filename.startswith(_STANDARD))
    ]
    if not frames:
        return None
    last = frames[-1]
    return f"{last.filename}, line {last.lineno}, in {last.name}: {last.line}"


class State(NamedTuple):
    """What a plain attribute, or a buffer, of a module held before a step."""

    attributes: dict[str, Any]
    name: str
    owner: str  # the type of the module
    value: Any  # or ABSENT
    shapes: list[torch.Size]  # of the tensors in it

    def put(self) -> Callable[[], object]:
        """Let the module hold it again; return what undoes this."""
        attributes, name = self.attributes, self.name
        held = {name: attributes.pop(name)} if name in attributes else {}
        if self.value is not ABSENT:
            attributes[name] = copy.copy(self.value)
        return functools.partial(attributes.update, held)


States = dict[tuple[int, str], State]


def states_of(pl_module: LightningModule, network: nn.Module) -> States:
    """Return what the modules outside of a network hold in plain attributes and buffers."""
    inner, found = set(network.modules()), States()
    for module in pl_module.modules():
        for attributes in () if module in inner else (vars(module), vars(module)["_buffers"]):
            for name, value in attributes.items():
                if name not in _OWN:
                    kept = copy.copy(value) if isinstance(value, (list, dict)) else value
                    state = State(attributes, name, type(module).__name__, kept, _shapes(value))
                    found[id(attributes), name] = state
    return found


def new_states(before: States, after: States) -> States:
    """Return, as they were before, the states that hold tensors after a step and held none."""
    was = {key: before.get(key, after[key]._replace(value=ABSENT, shapes=[])) for key in after}
    return {key: was[key] for key in after if after[key].shapes and not was[key].shapes}


def _shapes(value: Any) -> list[torch.Size]:
    if isinstance(value, Tensor):
        return [value.shape]
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, (list, tuple)) and len(value) < _ATTRIBUTES:
        return [shape for item in value for shape in _shapes(item)]
    return []
