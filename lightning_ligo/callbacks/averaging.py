"""The weight averages that callbacks of Lightning keep."""

from __future__ import annotations

from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import StochasticWeightAveraging, WeightAveraging

from lightning_ligo.trainer.holders import shapes_of
from lightning_ligo.trainer.lightning import adds_epoch, average_of, callbacks_of
from lightning_ligo.trainer.slot import listed

AVERAGING = (WeightAveraging, StochasticWeightAveraging)


def averages(trainer: Trainer) -> list[LightningModule]:
    """Return the averaged copies of the module, of all callbacks that keep one."""
    found = map(average_of, callbacks_of(trainer))
    return [average for average in found if average is not None]


def check_averages(trainer: Trainer) -> None:
    """Check that every average has the parameters and buffers of the module, in their order.

    Lightning pairs them by position, and drops the end of the longer list.

    Raises:
        RuntimeError: naming those that differ.
    """
    pl_module = trainer.lightning_module
    expected = list(shapes_of(pl_module).items())
    for average in averages(trainer):
        found = list(shapes_of(average).items())
        differ = [name for name, _ in sorted(set(expected) ^ set(found))]
        if expected != found:
            raise RuntimeError(
                f"an average of {type(pl_module).__name__} has other weights than the module "
                f"itself: {listed(list(dict.fromkeys(differ))) or 'their order'}; let the callback "
                "average the whole module, from the start of fit"
            )


def averaged_validation(trainer: Trainer) -> list[Callback]:
    """Return callbacks that let a validation use the averages, as the run's own do."""
    callbacks = callbacks_of(trainer)
    return [_Swapping(callback) for callback in callbacks if isinstance(callback, WeightAveraging)]


class _Swapping(Callback):
    def __init__(self, averaging: WeightAveraging) -> None:
        self.averaging = averaging

    def on_validation_epoch_start(self, *args: Any) -> None:
        self.averaging.on_validation_epoch_start(*args)

    def on_validation_epoch_end(self, *args: Any) -> None:
        self.averaging.on_validation_epoch_end(*args)


def extra_epochs(trainer: Trainer) -> int:
    """Return how many epochs at the end only update the batch norms of an average."""
    return sum(map(adds_epoch, callbacks_of(trainer)))
