"""Call a module's own steps in the middle of `fit`, without side effects on the run."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers.logger import DummyLogger

from lightning_ligo.axes.calls import uncompiled_flex
from lightning_ligo.trainer.lightning import callbacks_of, datamodule_of, loaders, separate_results
from lightning_ligo.trainer.sharding import at_rest
from lightning_ligo.trainer.snapshot import Snapshot, isolated_random


@contextmanager
def sandboxed(trainer: Trainer, pl_module: LightningModule, seed: int) -> Iterator[None]:
    """Allow calls of the module's steps inside the context, and restore the run afterwards.

    The following is restored, also after an error: logged values and metrics (torchmetrics objects
    too), loggers and callbacks (which do nothing inside), all random states, parameters, buffers,
    submodules, plain attributes of the module and its submodules (numbers, lists, dicts, tensors,
    and objects that hold only such), numbers and random generators of the datamodule, samplers and
    datasets, and the state of the validation loop. Inside, random numbers depend on `seed` alone,
    and compiled code runs eagerly. Not restored are files that the user's code writes, and the
    position of an iterable dataset's own iterator.
    """
    with ExitStack() as stack:
        stack.enter_context(isolated_random(seed))
        stack.enter_context(torch.compiler.set_stance("force_eager"))
        stack.enter_context(uncompiled_flex())
        snapshot = Snapshot()
        stack.callback(snapshot.restore)
        stack.enter_context(at_rest(pl_module))
        snapshot.keep_module(pl_module)
        for owner in (datamodule_of(trainer), *loaders(trainer)):
            snapshot.keep_data(owner)
        stack.enter_context(separate_results(trainer))
        trainer.loggers = [_Silent(trainer.log_dir) for _ in trainer.loggers]
        vars(trainer)["callbacks"] = [_mute(each) for each in callbacks_of(trainer)]
        snapshot.seed(seed)
        yield


def _mute(callback: Callback) -> Callback:
    """Copy a callback with empty hooks; a progress bar's thread still reads its attributes."""

    def nothing(*args: Any, **kwargs: Any) -> None:
        return None

    kind = type(callback)
    hooks = {name: nothing for name in vars(Callback) if name.startswith("on_")}
    local = f"_mute.<locals>.{kind.__name__}"  # else LightningCLI knows two of the name
    muted: Callback = object.__new__(type(kind.__name__, (kind,), hooks | {"__qualname__": local}))
    held = {name: value for name, value in vars(callback).items() if name not in hooks}
    vars(muted).update(held)  # without the hooks of a LambdaCallback
    return muted


class _Silent(DummyLogger):
    """Drops all logged values; stands in for another logger."""

    def __init__(self, folder: str | None) -> None:
        super().__init__()
        self._folder = folder

    @property
    def save_dir(self) -> str | None:
        return self._folder

    @property
    def log_dir(self) -> str | None:
        return self._folder
