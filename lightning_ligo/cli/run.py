"""Plan all growths of a run, on one device and without training."""

from __future__ import annotations

import functools
from typing import Any

from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import BaseFinetuning, EarlyStopping
from lightning.pytorch.loggers.logger import DummyLogger

from lightning_ligo.callbacks.averaging import AVERAGING
from lightning_ligo.callbacks.failure import GrowthFailedError
from lightning_ligo.callbacks.growth import GrowthCallback
from lightning_ligo.callbacks.offline import at_first_batch, grow_checkpoint, growing
from lightning_ligo.cli.base import QUIET, GrowthCLI, is_kind
from lightning_ligo.cli.planned import Planned, cost_of, sized
from lightning_ligo.operator.measure import measure
from lightning_ligo.trainer.checkpoint import size_of, sizes_of
from lightning_ligo.trainer.hparams import built
from lightning_ligo.trainer.sandbox import sandboxed


def plan_run(trainer: Trainer, model: LightningModule, **options: Any) -> list[Planned]:
    """Plan all growths of the run that `trainer.fit(model, **options)` would be.

    The fit starts and is left before its first optimizer step. So everything that it refuses at
    its start is refused here too, and the networks are called with its first batch.

    Raises:
        ValueError: for a Trainer without a GrowthCallback, a run without a batch, and whatever the
            fit would refuse.
    """
    callback = growing(trainer)
    settings, planner = callback.settings, callback.planner

    def plan(trainer: Trainer, pl_module: LightningModule, *batch: Any) -> list[Planned]:
        planned, coming = [], planner.coming(pl_module)
        slot = settings.slot(pl_module)
        small = sizes_of(pl_module, settings.growths)[size_of(pl_module)]
        build = functools.partial(built, slot)
        larger = {number: functools.partial(sized, to, build) for number, to in coming.items()}
        with sandboxed(trainer, pl_module, settings.seed):
            batches, calls = planner.first_batch(trainer, pl_module, *batch)
            for each in planner.pairings(trainer, pl_module, larger, batches, calls):
                large, when = coming[each.number], settings.growths[each.number - 1].when
                due = callback.triggers.due.get(each.number - 1)
                calls, method = each.large_calls or each.calls, settings.method
                cost = cost_of(each.plan, each.small, each.large, calls, method)
                change = measure(
                    each.plan, each.small, each.large, each.calls, each.large_calls, method,
                    settings.seed,
                )  # fmt: skip
                planned.append(
                    Planned(small, large, each.plan, change, *cost, each.number, when, due)
                )
                small = large
        return planned

    return at_first_batch(trainer, model, 0, plan, **options)


class PlanCLI(GrowthCLI):
    """Builds a run on one device, without loggers and other callbacks, and plans its growths."""

    planned: list[Planned]
    kept: tuple[type, ...] = (GrowthCallback,)
    """The classes of callbacks that are built."""

    def before_instantiate_classes(self) -> None:
        self.save_config_callback = None
        trainer = self.config.fit.trainer
        callbacks = trainer.callbacks or []
        callbacks = callbacks if isinstance(callbacks, list) else [callbacks]
        trainer.callbacks = [
            callback for callback in callbacks if is_kind(callback.class_path, *self.kept)
        ]
        trainer.accelerator = "cpu" if trainer.accelerator == "cpu" else "auto"
        for name, value in QUIET.items():
            trainer[name] = value

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        return super().instantiate_trainer(logger=DummyLogger(), **kwargs)

    def fit(self, model: LightningModule, **options: Any) -> None:
        """Plan instead of training."""
        self.planned = plan_run(self.trainer, model, **options)


class GrowCLI(PlanCLI):
    """Builds a run on one device, without loggers and most callbacks, and grows its checkpoint."""

    kept = (GrowthCallback, *AVERAGING, EarlyStopping, BaseFinetuning)

    def __init__(self, args: list[str], out: str) -> None:
        self.out = out
        super().__init__(args)

    def fit(self, model: LightningModule, **options: Any) -> None:
        """Grow instead of training."""
        path = options.pop("ckpt_path")
        self.record = grow_checkpoint(self.trainer, model, path, self.out, **options)


def plan_configuration(words: list[str]) -> list[Planned]:
    """Plan all growths of `lightning-ligo WORDS`; raise ValueError for what it would refuse."""
    try:
        return PlanCLI(words).planned
    except MisconfigurationException as error:
        raise ValueError(str(error)) from error


def grow_configuration(words: list[str], out: str) -> dict[str, Any]:
    """Grow the checkpoint of `lightning-ligo WORDS`; raise ValueError if that is not possible."""
    try:
        return GrowCLI(words, out).record
    except (MisconfigurationException, GrowthFailedError) as error:
        raise ValueError(str(error)) from error
