"""Run a module's own training step and validation loop, and read its training data again."""

from __future__ import annotations

import copy
from collections.abc import Generator, Iterator, Mapping
from contextlib import ExitStack, suppress
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only
from torch.utils.data import DataLoader

from lightning_ligo.trainer.lightning import (
    at_device,
    callbacks_of,
    set_epoch,
    stop_workers,
    training_loader,
    training_output,
    validation_names,
)
from lightning_ligo.trainer.slot import Slot


def called_with(
    trainer: Trainer, slot: Slot, batch: Any, batch_idx: int
) -> tuple[tuple[Any, ...], dict[str, Any], Any]:
    """Return the arguments of a training step's first call of the network, and the step's output.

    Use it inside `sandboxed`. Tensors are copied, in the precision of the network's parameters. A
    step with manual optimization ends at the call, and its output is None.

    Raises:
        ValueError: if the step does not call the network, or steps an optimizer before it does.
    """
    pl_module, network = trainer.lightning_module, slot.network
    dtype = next((p.dtype for p in network.parameters() if p.is_floating_point()), None)
    calls: list[Any] = []

    def copy_of(tensor: Tensor) -> Tensor:
        tensor = tensor.detach().clone()
        return tensor.to(dtype) if tensor.is_floating_point() else tensor

    def remember(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if not calls:
            calls.append(tree_map_only(Tensor, copy_of, (args, kwargs)))
        if not pl_module.automatic_optimization:
            raise _Called

    def refuse(*_: Any) -> None:
        raise ValueError(
            f"training_step steps an optimizer before it calls self.{slot.attribute}(...), "
            "so the inputs of the network cannot be seen without training; call the network first"
        )

    output = None
    with ExitStack() as stack:
        hooks = [network.register_forward_pre_hook(remember, with_kwargs=True)]
        hooks += [optimizer.register_step_pre_hook(refuse) for optimizer in trainer.optimizers]
        for hook in hooks:
            stack.callback(hook.remove)
        with suppress(_Called):
            output = training_output(trainer, batch, batch_idx)
    if not pl_module.automatic_optimization:
        pl_module.zero_grad()  # gradients from before the call
    if not calls:
        raise ValueError(
            f"training_step never calls self.{slot.attribute}(...), so the inputs of the network "
            "cannot be seen; call the network itself, not its forward or its parts"
        )
    return *calls[0], output


class _Called(BaseException):
    """Ends a training step, and passes any `except Exception` in it."""


def training_loss(output: Any) -> Tensor:
    """Return the loss in the output of a training step.

    Raises:
        ValueError: if there is none.
    """
    loss = output.get("loss") if isinstance(output, Mapping) else output
    if not isinstance(loss, Tensor):
        raise ValueError(
            f"training_step returned {type(output).__name__} without a loss, "
            "and an operator is learned on the loss; return a tensor, or a dict with "
            "the key 'loss', for every batch"
        )
    return loss


def evaluate(trainer: Trainer, *watching: Callback) -> dict[str, float]:
    """Run the validation loop inside `sandboxed`; return its metrics, none without data.

    The callbacks ``watching`` are called as in a validation of the run.
    """
    reader = _Reader()
    callbacks = callbacks_of(trainer)
    callbacks += [*watching, reader]
    trainer.validating = True
    trainer.fit_loop.epoch_loop.val_loop.run()
    trainer.training = True
    del callbacks[-len(watching) - 1 :]
    return reader.metrics


class _Reader(Callback):
    def __init__(self) -> None:
        self.metrics: dict[str, float] = {}

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.metrics = validation_metrics(trainer)


def validation_metrics(trainer: Trainer) -> dict[str, float]:
    """Return the metrics of a validation that is just ending; none in a sanity check."""
    found = trainer.callback_metrics
    return {name: float(found[name]) for name in validation_names(trainer) if name in found}


def own_batches(trainer: Trainer, pl_module: LightningModule) -> Generator[Any, None, None]:
    """Yield the run's training batches without end, on the device, from the start of the epoch.

    Use it inside `sandboxed`. The running epoch's iterator is left alone. Samplers are told a new
    epoch for every pass over the data.

    Raises:
        ValueError: if the training data is empty or can be read only once.
    """
    running = training_loader(trainer)
    combined = copy.copy(running)
    combined.flattened = [read_again(loader) for loader in running.flattened]
    limit, epoch = trainer.num_training_batches, trainer.current_epoch
    try:
        while True:
            for loader in combined.flattened:
                set_epoch(loader, epoch)
            count = 0
            for batch, _, _ in combined:
                count += 1
                yield at_device(trainer, pl_module, batch)
                if count == limit:
                    break
            if count == 0:
                raise ValueError("the training data has no batch to learn an operator on")
            epoch += 1
    finally:
        for loader in combined.flattened:
            if isinstance(loader, DataLoader):
                stop_workers(loader)


def read_again(loader: Any) -> Any:
    """Return a loader of the same data that can be read while `loader` is being read.

    Raises:
        ValueError: if the data is an iterator.
    """
    if isinstance(loader, DataLoader):
        again = copy.copy(loader)
        again._iterator = None  # persistent workers would restart the running epoch
        return again
    if isinstance(loader, Iterator):
        raise ValueError(
            f"the training data is an iterator ({type(loader).__name__}) that can be read only "
            "once, and learning an operator reads it too; give a DataLoader, or an object whose "
            "__iter__ starts from the beginning"
        )
    return loader
