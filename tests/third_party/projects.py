"""What every project of the tests has to go through: grow, train on, be saved, opened, tested."""

from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import nn

import lightning_ligo
from lightning_ligo import Growth, GrowthCallback


def growing(folder, growths: list[Growth], epochs: int = 4, **options: Any) -> pl.Trainer:
    """A Trainer of a few epochs, which saves the last of them."""
    return pl.Trainer(
        default_root_dir=folder, max_epochs=epochs, accelerator="cpu", logger=False,
        enable_progress_bar=False, enable_model_summary=False,
        callbacks=[GrowthCallback(growths, **options), ModelCheckpoint(folder)],
    )  # fmt: skip


def sizes(module: nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(each.shape) for name, each in module.named_parameters()}


def check(run: pl.Trainer, module: pl.LightningModule, large: dict[str, tuple[int, ...]]) -> dict:
    """Check that a module has grown to these shapes and has trained on; return its record."""
    assert sizes(module) == large
    (callback,) = (each for each in run.callbacks if isinstance(each, GrowthCallback))
    record = callback.state_dict()["records"][-1]
    assert record["step"] < run.global_step
    held = [id(p) for o in run.optimizers for group in o.param_groups for p in group["params"]]
    wanted = {id(parameter) for parameter in module.parameters() if parameter.requires_grad}
    assert len(held) == len(set(held)) and wanted <= set(held)
    assert all(torch.isfinite(parameter).all() for parameter in module.parameters())
    return record


def same(one: nn.Module, other: nn.Module) -> bool:
    mine, its = one.state_dict(), other.state_dict()
    return mine.keys() == its.keys() and all(torch.equal(mine[n], its[n]) for n in mine)


def opened(module: pl.LightningModule, run: pl.Trainer, **given: Any) -> pl.LightningModule:
    """Open the best checkpoint by `load`, and check that it is the module."""
    path = run.checkpoint_callback.best_model_path
    again = lightning_ligo.load(type(module), path, weights_only=False, **given)
    assert same(again, module)
    return again
