"""Growths in the loggers of a run."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lightning.pytorch import Trainer

from lightning_ligo.trainer.lightning import logged_step

PARAMETERS = "growth/parameters"


def log_parameters(trainer: Trainer, count: int) -> None:
    """Log how many parameters the network has, at the step that the batch to come is logged at."""
    step = logged_step(trainer)
    for logger in trainer.loggers:
        logger.log_metrics({PARAMETERS: count}, step=step)


def log_growths(
    trainer: Trainer, records: Sequence[dict[str, Any]], networks: Sequence[dict[str, Any] | None]
) -> None:
    """Log every growth as a hyperparameter of its own, with the description of the large network.

    No hyperparameter is changed, which some trackers refuse.

    Args:
        trainer: whose loggers are told.
        records: of the growths, as GrowthCallback writes them.
        networks: the descriptions of the small network and of what it has grown to.
    """
    growths = {
        f"growth_{number}": {
            "step": record["step"],
            "reason": record["reason"],
            "method": record["method"],
            "parameters": dict(record["parameters"]),
            "network": networks[number],
        }
        for number, record in enumerate(records, 1)
    }
    for logger in trainer.loggers if growths else ():
        logger.log_hyperparams(growths)
        logger.save()
