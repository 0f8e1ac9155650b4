"""Run a module's own training step and validation loop, and read its training data again."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Collection, Generator, Iterable, Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager, suppress
from typing import Any, NamedTuple
from unittest.mock import patch

from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor
from torch.utils.data import DataLoader

from lightning_ligo.axes.calls import Call
from lightning_ligo.trainer.exchange import of_all_ranks
from lightning_ligo.trainer.lightning import (
    at_device,
    callbacks_of,
    set_epoch,
    stop_workers,
    training_loader,
    training_output,
    unwrapped,
    validation_names,
)
from lightning_ligo.trainer.slot import Slot
from lightning_ligo.trainer.watch import Recorder

MOST = 8  # batches that are watched


class Watched(NamedTuple):
    """What the module's own steps do with a network."""

    calls: list[Call]  # of the network and its parts, those that differ, alike on all ranks
    output: Any  # of the training step on the first batch


def watch_steps(
    trainer: Trainer,
    slot: Slot,
    batches: Iterable[Any],
    batch_idx: int,
    wanted: Collection[str],
    validates: bool,
) -> Watched:
    """Watch training steps until they have used the parameters ``wanted``, and a validation step.

    Use it inside `sandboxed`. The steps of optimizers and schedulers do nothing, and gradients are
    left as they are.
    """
    recorder, outputs, validated = Recorder(slot.network, slot.called), list[Any](), _FirstBatch()
    with _not_training(trainer), unwrapped(trainer):
        for number, batch in enumerate(itertools.islice(batches, MOST)):
            with recorder.recording():
                outputs.append(training_output(trainer, batch, batch_idx + number))
            used = set().union(*(each.parameters for each in recorder.seen))
            if trainer.strategy.reduce_boolean_decision(bool(used) and used.issuperset(wanted)):
                break
        if validates and trainer.enable_validation:
            with recorder.recording(), suppress(_Called):
                evaluate(trainer, validated)
            trainer.training = True
    seen = of_all_ranks(trainer, recorder.settled())
    return Watched([each.call for each in seen], outputs[0])


class _Called(BaseException):
    """Ends a validation, and passes any `except Exception` in it."""


class _FirstBatch(Callback):
    """Ends a validation after its first batch."""

    def on_validation_batch_end(self, *_: Any, **__: Any) -> None:
        raise _Called


@contextmanager
def _not_training(trainer: Trainer) -> Iterator[None]:
    """Let the steps of optimizers and schedulers do nothing but call their closure."""

    def step(*args: Any, closure: Callable[[], Any] | None = None, **_: Any) -> Any:
        closure = next(filter(callable, args), closure)
        return None if closure is None else closure()

    schedulers = [config.scheduler for config in trainer.lr_scheduler_configs]
    owners: list[tuple[Any, str]] = [(trainer.strategy, "optimizer_step")]
    owners += [(owner, "step") for owner in (*trainer.optimizers, *schedulers)]
    gradients = [(p, p.grad) for p in trainer.lightning_module.parameters()]
    with ExitStack() as stack:
        for owner, name in owners:
            stack.enter_context(patch.object(owner, name, step))
        for parameter, _ in gradients:
            parameter.grad = None
        try:
            yield
        finally:
            for parameter, gradient in gradients:
                parameter.grad = gradient


def batches_ahead(trainer: Trainer, pl_module: LightningModule, batch: Any) -> Iterator[Any]:
    """Yield a batch, and those behind the first of the epoch, if the data can be read again."""
    yield batch
    with suppress(ValueError), closing(own_batches(trainer, pl_module)) as again:
        yield from itertools.islice(again, 1, None)


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
