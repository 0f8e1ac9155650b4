"""The averages of weights that Lightning's callbacks keep, taken through the growths of a run."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import StochasticWeightAveraging, WeightAveraging
from torch import nn

from lightning_ligo.operator.operator import Operator
from lightning_ligo.trainer.lightning import adds_epoch, average_of, callbacks_of
from lightning_ligo.trainer.slot import Slot, listed

AVERAGING = (WeightAveraging, StochasticWeightAveraging)


def averages(trainer: Trainer) -> list[LightningModule]:
    """The averaged copies of the module, of all callbacks that keep one."""
    found = map(average_of, callbacks_of(trainer))
    return [average for average in found if average is not None]


def grown_averages(
    trainer: Trainer, attribute: str, operator: Operator, large: nn.Module
) -> list[nn.Module]:
    """The network of every average, grown by the operator that has grown the run's to `large`.

    Operators are linear, but for what they write whatever the small weights are, and the weights of
    an average have a sum of 1: the map of an average is the average of the maps. What no small
    parameter goes into is as in `large`.
    """
    grown = []
    for average in averages(trainer):
        small, network = Slot(average, attribute).network, copy.deepcopy(large)
        operator.of(small).bake(network)
        grown.append(network)
    return grown


def set_averages(trainer: Trainer, attribute: str, networks: Sequence[nn.Module]) -> None:
    """Put a network into every average, on the device of the one that was there."""
    for average, network in zip(averages(trainer), networks, strict=True):
        small = Slot(average, attribute).network
        device = next((parameter.device for parameter in small.parameters()), None)
        Slot(average, attribute).set(network.to(device))


@contextmanager
def averages_of(trainer: Trainer, attribute: str, networks: Sequence[nn.Module]) -> Iterator[None]:
    """Put a network into every average, and back what was there afterwards."""
    before = [Slot(average, attribute).network for average in averages(trainer)]
    set_averages(trainer, attribute, networks)
    try:
        yield
    finally:
        set_averages(trainer, attribute, before)


def resize_averages(trainer: Trainer, attribute: str, network: nn.Module) -> None:
    """Have every average hold a network like this one, before its weights are loaded."""
    set_averages(trainer, attribute, [copy.deepcopy(network) for _ in averages(trainer)])


def check_averages(trainer: Trainer, pl_module: LightningModule) -> None:
    """Assert that every average has the parameters and buffers of the module, one for one.

    Lightning pairs them by position, and leaves off the end of the longer list.

    Raises:
        RuntimeError: naming those that differ.
    """
    ours = _shapes(pl_module)
    for average in averages(trainer):
        theirs = _shapes(average)
        differ = [name for name, _ in sorted(set(ours) ^ set(theirs))]
        if ours != theirs:
            raise RuntimeError(
                f"an average of {type(pl_module).__name__} has other weights than the module "
                f"itself: {listed(list(dict.fromkeys(differ))) or 'their order'}; let the callback "
                "average the whole module, as it is when fit begins"
            )


def _shapes(module: nn.Module) -> list[tuple[str, tuple[int, ...]]]:
    tensors = (*module.named_parameters(), *module.named_buffers())
    return [(name, tuple(tensor.shape)) for name, tensor in tensors]


def averaged_validation(trainer: Trainer) -> list[Callback]:
    """What has a validation see the averages that the run's own validations see."""
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
    """How many epochs at the end only pass batches for the batch norms of an average."""
    return sum(map(adds_epoch, callbacks_of(trainer)))
