"""Log growths to the loggers of a run."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lightning.pytorch import Trainer

from lightning_ligo.callbacks.record import GrowthRecord

PARAMETERS = "growth/parameters"


def log_parameters(trainer: Trainer, count: int) -> None:
    """Log the parameter count of the network, at the step at which the next batch is logged."""
    step = trainer.fit_loop.epoch_loop._batches_that_stepped
    for logger in trainer.loggers:
        logger.log_metrics({PARAMETERS: count}, step=step)


def log_growths(
    trainer: Trainer, records: Sequence[GrowthRecord], networks: Sequence[dict[str, Any] | None]
) -> None:
    """Log every growth as a new hyperparameter, with the description of the large network.

    Existing hyperparameters do not change, as some trackers refuse that.

    Args:
        trainer: Trainer of the run.
        records: records of the growths.
        networks: descriptions of the small network and of the larger ones.
    """
    growths = {
        f"growth_{number}": {
            "step": record.step,
            "reason": record.reason,
            "method": record.method,
            "parameters": dict(record.parameters),
            "network": networks[number],
        }
        for number, record in enumerate(records, 1)
    }
    for logger in trainer.loggers if growths else ():
        logger.log_hyperparams(growths)
        logger.save()
