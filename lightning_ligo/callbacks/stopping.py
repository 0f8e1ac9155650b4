"""Restart EarlyStopping at a growth."""

from __future__ import annotations

from typing import Literal

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import EarlyStopping
from lightning_utilities.core.rank_zero import rank_zero_info

from lightning_ligo.trainer.lightning import callbacks_of

Stopping = Literal["patience", "anew", "keep"]


def restart_stopping(trainer: Trainer, what: Stopping) -> None:
    """Restart every EarlyStopping, and log it.

    "patience" restarts the count, "anew" also forgets the best value, "keep" does neither.
    """
    for callback in callbacks_of(trainer):
        if not isinstance(callback, EarlyStopping):
            continue
        waited = f"has waited for {callback.wait_count} of {callback.patience} checks"
        best = f"the best is {float(callback.best_score):.4g}"
        if what != "keep":
            callback.wait_count = 0
            waited = f"{waited} and restarts"
        if what == "anew":
            worst = torch.tensor(torch.inf)
            callback.best_score = worst if callback.monitor_op is torch.lt else -worst
            best = f"{best.replace(' is ', ' was ')} and is forgotten"
        rank_zero_info(f"EarlyStopping of {callback.monitor} {waited}; {best}")
