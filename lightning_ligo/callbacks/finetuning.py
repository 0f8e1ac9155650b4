"""Parameter groups that Lightning's finetuning callbacks add to optimizers during a run."""

from __future__ import annotations

from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import BaseFinetuning
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from lightning_ligo.trainer.lightning import callbacks_of, name_groups
from lightning_ligo.trainer.optimizers import finetunes


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
