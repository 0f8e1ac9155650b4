"""What a growth does to Lightning's callbacks that stop early, or fine-tune."""

from __future__ import annotations

from typing import Literal

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import BaseFinetuning, EarlyStopping
from lightning_utilities.core.rank_zero import rank_zero_info
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from lightning_ligo.trainer.lightning import callbacks_of, name_groups
from lightning_ligo.trainer.optimizers import finetunes

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


def remember_groups(trainer: Trainer) -> None:
    """Tell the callbacks the names of the large network's parameters in the groups.

    The callbacks write them into checkpoints, from which a resumed run makes its groups.
    """
    name_of = {parameter: name for name, parameter in trainer.lightning_module.named_parameters()}
    for callback in callbacks_of(trainer):
        if isinstance(callback, BaseFinetuning):
            name_groups(callback, trainer, name_of)


def freeze_statistics(trainer: Trainer, network: nn.Module) -> None:
    """Freeze the statistics of frozen batch norms of a network that was built again."""
    for module in network.modules() if finetunes(trainer) else ():
        if isinstance(module, _BatchNorm):
            own = list(module.parameters(recurse=False))
            if own and not any(parameter.requires_grad for parameter in own):
                BaseFinetuning.freeze_module(module)


def add_groups(trainer: Trainer, groups: list[list[list[str]]]) -> None:
    """Give the optimizers of a resumed run as many groups as the checkpoint has."""
    if finetunes(trainer):
        for optimizer, names in zip(trainer.optimizers, groups, strict=False):
            for _ in names[len(optimizer.param_groups) :]:
                optimizer.add_param_group({"params": []})
