"""Grow what a checkpoint holds, between two runs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from lightning_ligo.callbacks.growth import GrowthCallback
from lightning_ligo.callbacks.report import write_whole
from lightning_ligo.schedule import DECIDED, KNOWN
from lightning_ligo.trainer.checkpoint import KEY
from lightning_ligo.trainer.integrity import intact
from lightning_ligo.trainer.lightning import LeaveFit, callbacks_of, dump_checkpoint


def grow_checkpoint(
    trainer: Trainer,
    model: LightningModule,
    ckpt_path: str | Path,
    out: str | Path,
    weights_only: bool | None = None,
    **options: Any,
) -> dict[str, Any]:
    """Write a checkpoint in which the network has grown once, by the next growth of the Trainer's
    GrowthCallback, and all else is as it was.

    For runs under strategies in which a network cannot be replaced (FSDP1, DeepSpeed), and for
    networks that are trained to their end. It does what the callback would do at the next batch of
    a run that is resumed from the checkpoint: optimizers, averages and the schedulers' state go
    along, and a run that is resumed from ``out`` goes on where the checkpoint was. Nothing is
    trained but the operator of a method that learns.

    Args:
        trainer: on one device; its moment for the growth does not matter.
        model: as at the start of the run that wrote the checkpoint, or of the checkpoint's size.
        ckpt_path: a file.
        out: a file that does not exist.
        weights_only: False for a checkpoint with more than tensors and plain data, if you trust it.
        options: the data, as for `Trainer.fit`.

    Returns:
        The record of the growth, as in the report of a run.

    Raises:
        ValueError: for a Trainer without a GrowthCallback or with several devices, a checkpoint
            without a growth to come or of weights alone, a growth that changes the data, a method
            that lets new parts in while a run goes on (msg), and whatever the run would refuse.
        FileExistsError: if there is something at ``out``.
        GrowthFailedError: when the growth fails.
    """
    callbacks = callbacks_of(trainer)
    growing = next((each for each in callbacks if isinstance(each, GrowthCallback)), None)
    if growing is None:
        raise ValueError("the run has no GrowthCallback among its callbacks, so nothing grows")
    if trainer.world_size > 1:
        raise ValueError(
            f"the Trainer has {trainer.world_size} devices, and a checkpoint is grown on one: "
            "Trainer(devices=1)"
        )
    path, out = Path(ckpt_path), Path(out)
    if out.exists():
        raise FileExistsError(f"there is something at {out}; give another name for the checkpoint")
    if not out.parent.is_dir():
        raise ValueError(f"the folder {out.parent} of the checkpoint that is to be is not there")
    safely = weights_only is not False
    checkpoint = _read(path, safely)
    size = checkpoint.get(KEY, {"size": 0})["size"]
    _check(growing, size, path)
    step, epoch = checkpoint["global_step"], checkpoint["epoch"]
    growths, moments = list(growing.growths), dict.fromkeys((*KNOWN, *DECIDED))
    now = replace(growths[size], **{**moments, "step": step})
    on_failure, growing.on_failure = growing.on_failure, "stop"
    growing.growths[size:] = [now]
    saver = _Saver(growing, size, path)
    callbacks.insert(callbacks.index(growing) + 1, saver)
    loop = trainer.fit_loop
    limits = loop.max_epochs, loop.epoch_loop.max_steps
    try:  # a run that has ended has one batch more
        loop.max_epochs = None if limits[0] is None else _raised(limits[0], epoch + 2)
        loop.epoch_loop.max_steps = _raised(limits[1], step + 1)
        trainer.fit(model, ckpt_path=path, weights_only=safely, **options)
    finally:
        callbacks.remove(saver)
        growing.growths[:], growing.on_failure = growths, on_failure
        loop.max_epochs, loop.epoch_loop.max_steps = limits
    if saver.checkpoint is None:
        raise ValueError("the run ends before its first batch, so nothing grows")
    grown = {**checkpoint, **saver.checkpoint}
    grown |= {name: checkpoint[name] for name in ("loops", "epoch", "global_step")}
    grown["callbacks"] = checkpoint["callbacks"] | grown["callbacks"]
    write_whole(out, lambda part: torch.save(grown, part))
    record: dict[str, Any] = growing.state_dict()["records"][-1]
    return record


class _Saver(Callback):
    """Stands behind the GrowthCallback, and leaves `fit` with what it would save."""

    def __init__(self, growing: GrowthCallback, size: int, path: Path) -> None:
        self.growing, self.size, self.path = growing, size, path
        self.checkpoint: dict[str, Any] | None = None

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        if self.growing.size(pl_module) == self.size:
            raise ValueError(
                f"the checkpoint {self.path} was written while gradients were accumulated; take "
                "one from the end of an epoch"
            )
        self.checkpoint = dump_checkpoint(trainer)
        raise LeaveFit


def _read(path: Path, weights_only: bool) -> dict[str, Any]:
    """A checkpoint from which a run can go on."""
    if path.is_dir():
        raise ValueError(
            f"the checkpoint {path} is a folder of shares; make one file of it, with "
            f"python -m lightning.pytorch.utilities.consolidate_checkpoint {path}"
        )
    if not path.is_file():
        raise ValueError(f"there is no checkpoint {path}")
    with intact(path, weights_only):
        checkpoint: dict[str, Any] = torch.load(path, weights_only=weights_only, map_location="cpu")
    needed = "state_dict", "optimizer_states", "loops"
    if lacking := [name for name in needed if name not in checkpoint]:
        raise ValueError(
            f"the checkpoint {path} has no {', '.join(lacking)}, and no run can go on from it; "
            "take one that is not of weights alone, or grow its weights with lightning_ligo.grow"
        )
    return checkpoint


def _check(growing: GrowthCallback, size: int, path: Path) -> None:
    if size >= len(growing.growths):
        raise ValueError(
            f"the checkpoint {path} holds a network after {size} growths, and the GrowthCallback "
            f"has {len(growing.growths)}; give it one more"
        )
    if data := growing.growths[size].data:
        raise ValueError(
            f"growth {size + 1} changes {', '.join(data)} of the data, which "
            "only a run can; grow while it goes on"
        )
    if growing.method.ramp:
        raise ValueError(
            f"method {growing.method.name!r} lets new parts in while a run goes on; grow in the "
            "run, or by another method"
        )


def _raised(limit: int, least: int) -> int:
    """A limit of the Trainer, which has -1 for none."""
    return limit if limit == -1 else max(limit, least)
