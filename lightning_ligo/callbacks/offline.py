"""Grow the network of a checkpoint between two runs."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import LambdaCallback

from lightning_ligo.callbacks.document import write_whole
from lightning_ligo.callbacks.growth import GrowthCallback
from lightning_ligo.schedule import DECIDED, KNOWN
from lightning_ligo.trainer.checkpoint import KEY, size_of
from lightning_ligo.trainer.integrity import intact
from lightning_ligo.trainer.lightning import LeaveFit, callbacks_of, dump_checkpoint

T = TypeVar("T")


def grow_checkpoint(
    trainer: Trainer,
    model: LightningModule,
    ckpt_path: str | Path,
    out: str | Path,
    weights_only: bool | None = None,
    **options: Any,
) -> dict[str, Any]:
    """Write a checkpoint grown by the next growth of the Trainer's GrowthCallback.

    For networks that are trained to their end, and for strategies under which a network cannot be
    replaced (FSDP1, DeepSpeed). Does what the callback would do at the next batch of a run that is
    resumed from the checkpoint: optimizers, averages and the state of schedulers are carried over,
    and a run that is resumed from ``out`` continues where the checkpoint was. Nothing is trained
    except the operator of a method that learns.

    Args:
        trainer: Trainer of one device; the trigger of the growth does not matter.
        model: as at the start of the run that wrote the checkpoint, or of the checkpoint's size.
        ckpt_path: path of a file.
        out: path of the new checkpoint; must not exist yet.
        weights_only: False for a checkpoint with more than tensors and plain data, if you trust it.
        options: the data, as for `Trainer.fit`.

    Returns:
        The record of the growth, as in the report of a run.

    Raises:
        ValueError: for a Trainer without a GrowthCallback or with several devices, a checkpoint
            without a growth to come or with weights only, a growth that changes the data, a method
            that unmasks new parts during the run (msg), and whatever the run would refuse.
        FileExistsError: if ``out`` exists.
        GrowthFailedError: if the growth fails.
    """
    callback = growing(trainer)
    if trainer.world_size > 1:
        raise ValueError(
            f"the Trainer has {trainer.world_size} devices, and a checkpoint is grown on one; use "
            "Trainer(devices=1)"
        )
    path, out, safely = Path(ckpt_path), Path(out), weights_only is not False
    if out.exists():
        raise FileExistsError(f"there is something at {out}; give another name for the checkpoint")
    if not out.parent.is_dir():
        raise ValueError(f"the folder {out.parent} for the new checkpoint does not exist")
    checkpoint = _read(path, safely)
    size = checkpoint.get(KEY, {"size": 0})["size"]
    _check(callback, size, path)

    save = functools.partial(_saved, size, path)
    with _grown_at(trainer, callback, size, checkpoint):
        after = callbacks_of(trainer).index(callback) + 1
        options |= {"ckpt_path": path, "weights_only": safely}
        saved = at_first_batch(trainer, model, after, save, **options)
    grown = {**checkpoint, **saved}
    grown |= {name: checkpoint[name] for name in ("loops", "epoch", "global_step")}
    grown["callbacks"] = checkpoint["callbacks"] | grown["callbacks"]
    write_whole(out, lambda part: torch.save(grown, part))
    record: dict[str, Any] = callback.state_dict()["records"][-1]
    return record


def _saved(
    size: int, path: Path, trainer: Trainer, module: LightningModule, *_: Any
) -> dict[str, Any]:
    """Return the checkpoint of the grown run."""
    if size_of(module) == size:
        raise ValueError(
            f"the checkpoint {path} was written while gradients were accumulated; use one from "
            "the end of an epoch"
        )
    return dump_checkpoint(trainer)


def growing(trainer: Trainer) -> GrowthCallback:
    """Return the GrowthCallback of a Trainer, or raise ValueError if it has none."""
    for callback in callbacks_of(trainer):
        if isinstance(callback, GrowthCallback):
            return callback
    raise ValueError("the run has no GrowthCallback among its callbacks, so nothing grows")


def at_first_batch(
    trainer: Trainer, model: LightningModule, position: int, act: Callable[..., T], **options: Any
) -> T:
    """Start `trainer.fit(model, **options)`, and leave it at its first batch.

    What `act` returns for the arguments of `on_train_batch_start` is returned. It is called before
    the callback that is at this position. Raises ValueError for a run without a batch.
    """
    results: list[T] = []

    def leave(*args: Any) -> None:
        results.append(act(*args))
        raise LeaveFit

    callback, callbacks = LambdaCallback(on_train_batch_start=leave), callbacks_of(trainer)
    callbacks.insert(position, callback)
    try:
        trainer.fit(model, **options)
    finally:
        callbacks.remove(callback)
    if not results:
        raise ValueError("the run ends before its first batch, so nothing grows")
    return results[0]


@contextmanager
def _grown_at(
    trainer: Trainer, callback: GrowthCallback, size: int, checkpoint: dict[str, Any]
) -> Iterator[None]:
    """Make the next growth due at the step of the checkpoint, and the run one batch longer."""
    step, epoch, loop = checkpoint["global_step"], checkpoint["epoch"], trainer.fit_loop
    growths, on_failure = callback.settings.growths, callback.on_failure
    before, limits = list(growths), (loop.max_epochs, loop.epoch_loop.max_steps)
    trigger: dict[str, Any] = dict.fromkeys((*KNOWN, *DECIDED))
    growths[size:] = [replace(growths[size], **trigger | {"step": step})]
    callback.on_failure = "stop"
    try:
        loop.max_epochs = None if limits[0] is None else _raised(limits[0], epoch + 2)
        loop.epoch_loop.max_steps = _raised(limits[1], step + 1)
        yield
    finally:
        growths[:], callback.on_failure = before, on_failure
        loop.max_epochs, loop.epoch_loop.max_steps = limits


def _read(path: Path, weights_only: bool) -> dict[str, Any]:
    """Read a checkpoint from which a run can be resumed."""
    if path.is_dir():
        raise ValueError(
            f"the checkpoint {path} is a folder of shards; make one file with "
            f"python -m lightning.pytorch.utilities.consolidate_checkpoint {path}"
        )
    if not path.is_file():
        raise ValueError(f"there is no checkpoint {path}")
    with intact(path, weights_only):
        checkpoint: dict[str, Any] = torch.load(path, weights_only=weights_only, map_location="cpu")
    needed = "state_dict", "optimizer_states", "loops"
    if lacking := [name for name in needed if name not in checkpoint]:
        raise ValueError(
            f"the checkpoint {path} has no {', '.join(lacking)}, and no run can resume from it; "
            "use one with more than weights, or grow its weights with lightning_ligo.grow"
        )
    return checkpoint


def _check(callback: GrowthCallback, size: int, path: Path) -> None:
    settings = callback.settings
    if size >= len(settings.growths):
        raise ValueError(
            f"the checkpoint {path} holds a network after {size} growths, and the GrowthCallback "
            f"has {len(settings.growths)}; give it one more"
        )
    if data := settings.growths[size].data:
        raise ValueError(
            f"growth {size + 1} changes {', '.join(data)} of the data, which "
            "only a run can do; grow during the run"
        )
    if settings.method.ramp:
        raise ValueError(
            f"method {settings.method.name!r} unmasks new parts while a run continues; grow "
            "during the run, or use another method"
        )


def _raised(limit: int, least: int) -> int:
    """Raise a limit of the Trainer, where -1 means no limit."""
    return limit if limit == -1 else max(limit, least)
