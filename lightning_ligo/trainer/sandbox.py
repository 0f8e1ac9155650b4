"""Run a LightningModule's own steps aside: nothing that the user logs, counts or draws changes."""

from __future__ import annotations

import copy
import enum
import random
import types
from collections import OrderedDict, deque
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from typing import Any

import numpy as np
import torch
from lightning.fabric.utilities.data import _set_sampler_epoch
from lightning.fabric.utilities.seed import _collect_rng_states, _set_rng_states
from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from lightning.pytorch.loggers.logger import DummyLogger
from lightning.pytorch.trainer import call
from lightning.pytorch.trainer.connectors.logger_connector.result import _ResultCollection
from lightning.pytorch.utilities.combined_loader import _shutdown_workers_and_reset_iterator
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only
from torch.utils.data import DataLoader, Dataset, Sampler
from torchmetrics import Metric

from lightning_ligo.trainer.sharding import at_rest
from lightning_ligo.trainer.slot import Slot


@contextmanager
def sandboxed(trainer: Trainer, pl_module: LightningModule, seed: int) -> Iterator[None]:
    """Within it the module's steps may be called; after it the run is as it was before.

    Put back, also when an error passes: what was logged and the metrics (torchmetrics objects too),
    the loggers and callbacks (which do nothing meanwhile), all random states, parameters, buffers,
    submodules, the plain attributes of the module and its submodules (numbers, lists, dicts,
    tensors, and objects that hold only such), the numbers and random generators of the datamodule,
    samplers and datasets, and the state of the validation loop. Within it, random numbers depend
    on `seed` alone, and what is compiled runs as it was written. Not put back: files that the
    user's code writes, and what an iterable dataset has read from an iterator of its own.
    """
    with ExitStack() as stack:
        stack.enter_context(isolated_random(seed))
        stack.enter_context(torch.compiler.set_stance("force_eager"))
        keeper = _Keeper()
        stack.callback(keeper.restore)
        stack.enter_context(at_rest(pl_module))
        keeper.keep_module(pl_module)
        if trainer.datamodule is not None:  # type: ignore[attr-defined]
            keeper.keep_data(trainer.datamodule)  # type: ignore[attr-defined]
        loops = (trainer.fit_loop, trainer.fit_loop.epoch_loop.val_loop)
        for loader in [loop._combined_loader for loop in loops]:
            for dataloader in loader.flattened if loader is not None else []:
                keeper.keep_data(dataloader)
        _silence(trainer, stack)
        keeper.seed(seed)
        yield


@contextmanager
def isolated_random(seed: int) -> Iterator[None]:
    """Random numbers of Python, NumPy and torch depend on `seed` within, and go on after it."""
    before = _collect_rng_states()
    try:
        random.seed(seed)
        np.random.seed(seed % 2**32)
        torch.manual_seed(seed)
        yield
    finally:
        _set_rng_states(before)


def _silence(trainer: Trainer, stack: ExitStack) -> None:
    """Give the trainer empty results, and callbacks and loggers that do nothing."""
    epoch_loop = trainer.fit_loop.epoch_loop
    val_loop, connector = epoch_loop.val_loop, trainer._logger_connector

    def hold(owner: Any, **values: Any) -> None:
        before = dict(vars(owner))
        stack.callback(vars(owner).update, before)
        vars(owner).update(values)

    hold(epoch_loop, _results=_ResultCollection(training=True))
    hold(
        val_loop,
        _results=_ResultCollection(training=False),
        batch_progress=copy.deepcopy(val_loop.batch_progress),
        _seen_batches_per_dataloader=val_loop._seen_batches_per_dataloader.copy(),
    )
    hold(
        connector,
        _first_loop_iter=None,
        _current_fx=None,
        **{name: dict(getattr(connector, name)) for name in
           ("_progress_bar_metrics", "_logged_metrics", "_callback_metrics")},
    )  # fmt: skip
    hold(trainer.state)
    hold(trainer.strategy, _model=trainer.lightning_module)  # no DDP, which counts its backwards
    hold(trainer)
    trainer.loggers = [_Silent(trainer.log_dir) for _ in trainer.loggers]
    trainer.callbacks = [_mute(each) for each in trainer.callbacks]  # type: ignore[attr-defined]


def _mute(callback: Callback) -> Callback:
    """The callback, for those who read it (a progress bar's thread does), with idle hooks."""

    def nothing(*args: Any, **kwargs: Any) -> None:
        return None

    kind = type(callback)
    hooks = {name: nothing for name in vars(Callback) if name.startswith("on_")}
    muted: Callback = object.__new__(type(f"Muted{kind.__name__}", (kind,), hooks))
    held = {name: value for name, value in vars(callback).items() if name not in hooks}
    vars(muted).update(held)  # but not the hooks of a LambdaCallback
    return muted


class _Silent(DummyLogger):
    """Takes whatever is logged and keeps nothing, at the place of another logger."""

    def __init__(self, folder: str | None) -> None:
        super().__init__()
        self._folder = folder

    @property
    def save_dir(self) -> str | None:
        return self._folder

    @property
    def log_dir(self) -> str | None:
        return self._folder


# Steps --------------------------------------------------------------------------------------------


def training_output(trainer: Trainer, batch: Any, batch_idx: int) -> Any:
    """What the module's own training step returns, called as the fit loop calls it."""
    trainer._logger_connector.on_batch_start(batch)
    arguments = trainer.fit_loop.epoch_loop._build_kwargs(OrderedDict(), batch, batch_idx)
    return call._call_strategy_hook(trainer, "training_step", *arguments.values())


def called_with(
    trainer: Trainer, slot: Slot, batch: Any, batch_idx: int
) -> tuple[tuple[Any, ...], dict[str, Any], Any]:
    """What the training step first calls the network with, and what the step returns.

    To be used within `sandboxed`. Tensors are copies, in the precision of the network's parameters.
    A step that optimizes by itself is ended there, and so returns nothing.

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
        pl_module.zero_grad()  # of what the step has begun with; no step was before it
    if not calls:
        raise ValueError(
            f"training_step never calls self.{slot.attribute}(...), so the inputs of the network "
            "cannot be seen; call the network itself, not its forward or its parts"
        )
    return *calls[0], output


class _Called(BaseException):
    """Ends a training step; no `except Exception` of the step's holds it up."""


def training_loss(output: Any) -> Tensor:
    """The loss in what a training step returned.

    Raises:
        ValueError: if there is none.
    """
    loss = output.get("loss") if isinstance(output, Mapping) else output
    if not isinstance(loss, Tensor):
        raise ValueError(
            f"training_step returned {type(output).__name__} without a loss, and an operator is "
            "learned on it; return a tensor, or a dict with the key 'loss', for every batch"
        )
    return loss


def evaluate(trainer: Trainer, *watching: Callback) -> dict[str, float]:
    """Run the validation loop within `sandboxed`; the metrics it ends with, none without data.

    Callbacks that are ``watching`` are called as by a validation of the run.
    """
    reader = _Reader()
    callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]
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


def validation_names(trainer: Trainer) -> list[str]:
    """The names under which a validation that is just ending has logged, in their order."""
    results = trainer.fit_loop.epoch_loop.val_loop._results
    return [
        results._forked_name(metric, on_step=False)[0]
        for metric in results.result_metrics
        if metric.meta.on_epoch and not metric.has_reset
    ]


def validation_metrics(trainer: Trainer) -> dict[str, float]:
    """What a validation that is just ending has logged; nothing in a sanity check."""
    found = trainer.callback_metrics
    return {name: float(found[name]) for name in validation_names(trainer) if name in found}


def own_batches(trainer: Trainer, pl_module: LightningModule) -> Generator[Any, None, None]:
    """The run's training batches, from the start of the epoch, on the device, without end.

    Independent of the running epoch's iterator; to be used within `sandboxed`. Every further pass
    over the data tells samplers a further epoch.

    Raises:
        ValueError: if the training data is empty or can be read only once.
    """
    running = trainer.fit_loop._combined_loader
    assert running is not None
    combined = copy.copy(running)
    combined.flattened = [read_again(loader) for loader in running.flattened]
    limit, epoch = trainer.num_training_batches, trainer.current_epoch
    try:
        while True:
            for loader in combined.flattened:
                _set_sampler_epoch(loader, epoch)
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
                _shutdown_workers_and_reset_iterator(loader)


def at_device(trainer: Trainer, pl_module: LightningModule, batch: Any) -> Any:
    """A batch as the fit loop hands it to the training step."""
    batch = trainer.precision_plugin.convert_input(batch)
    batch = pl_module._on_before_batch_transfer(batch, dataloader_idx=0)
    return call._call_strategy_hook(trainer, "batch_to_device", batch, dataloader_idx=0)


def read_again(loader: Any) -> Any:
    """Something that reads the same data while `loader` is being read.

    Raises:
        ValueError: if there is no such thing.
    """
    if isinstance(loader, DataLoader):
        again = copy.copy(loader)
        again._iterator = None  # persistent workers would restart the running epoch
        return again
    if isinstance(loader, Iterator):
        raise ValueError(
            f"the training data is an iterator ({type(loader).__name__}) that can be read only "
            "once, and an operator is learned on it besides; give a DataLoader, or an object "
            "whose __iter__ starts anew"
        )
    return loader


# State --------------------------------------------------------------------------------------------

_LIGHTNING_OWN = frozenset(vars(LightningModule()))
_TORCH_OWN = frozenset(vars(nn.Module()))
_SCALARS = (
    type(None), bool, int, float, complex, str, bytes, enum.Enum, type, types.FunctionType,
    types.BuiltinFunctionType, types.MethodType, torch.dtype, torch.device, torch.Size, np.generic,
)  # fmt: skip
_CONTAINERS = (list, tuple, set, deque)
_GENERATORS = (torch.Generator, random.Random, np.random.Generator, np.random.RandomState)
_DATA = (Dataset, DataLoader, Sampler, LightningDataModule)


class _Keeper:
    """Remembers what objects hold and puts it back into the same objects, on all who share them."""

    def __init__(self) -> None:
        self._undo: list[Callable[[], object]] = []
        self._seen: dict[int, object] = {}
        self._generators: list[torch.Generator | random.Random] = []

    def restore(self) -> None:
        with torch.no_grad():
            for undo in reversed(self._undo):
                undo()

    def seed(self, seed: int) -> None:
        for generator in self._generators:
            if isinstance(generator, torch.Generator):
                generator.manual_seed(seed)
            else:
                generator.seed(seed)

    def keep_module(self, root: LightningModule) -> None:
        """All that modules hold: parameters and buffers, submodules, metrics, plain attributes."""
        for module in root.modules():
            attributes = vars(module)
            own = _LIGHTNING_OWN if module is root else _TORCH_OWN
            self._keep_items(attributes)
            for name in ("_parameters", "_buffers", "_modules"):
                self._keep_items(attributes[name])
            for tensor in (*attributes["_parameters"].values(), *attributes["_buffers"].values()):
                self._keep_tensor(tensor)
            for name, value in attributes.items():
                if name not in own:
                    self._keep(value)
        if hasattr(root, "_hparams"):
            self._keep(root._hparams)

    def keep_data(self, owner: Any) -> None:
        """Numbers and random generators of loaders, samplers and datasets, but not their data."""
        if id(owner) in self._seen or not hasattr(owner, "__dict__"):
            return
        self._seen[id(owner)] = owner
        attributes = vars(owner)
        scalars = {name: value for name, value in attributes.items() if isinstance(value, _SCALARS)}
        self._undo.append(lambda: attributes.update(scalars))
        for name, value in attributes.items():
            for item in value if isinstance(value, (list, tuple)) and len(value) < 100 else [value]:
                if isinstance(item, _DATA) or name == "dataset":
                    self.keep_data(item)
                elif isinstance(item, _GENERATORS):
                    self._keep(item)

    def _keep_items(self, items: dict[Any, Any]) -> None:
        if id(items) not in self._seen:
            self._seen[id(items)] = items
            before = dict(items)
            self._undo.append(lambda: _refill(items, items.update, before))

    def _keep_tensor(self, tensor: Tensor | None) -> None:
        if tensor is None or id(tensor) in self._seen or tensor.is_inference():
            return
        self._seen[id(tensor)] = tensor
        before, trained = tensor.detach().clone(), tensor.requires_grad

        def undo() -> None:
            if not torch.equal(tensor, before):
                tensor.copy_(before)
            if tensor.is_leaf:
                tensor.requires_grad_(trained)

        self._undo.append(undo)

    def _keep(self, value: Any) -> None:
        if isinstance(value, _SCALARS) or id(value) in self._seen:
            return
        if isinstance(value, Tensor):
            self._keep_tensor(value)
        elif isinstance(value, torch.Generator):
            self._keep_state(value, value.get_state, value.set_state)
        elif isinstance(value, random.Random):
            self._keep_state(value, value.getstate, value.setstate)
        elif isinstance(value, np.random.Generator):
            bits = value.bit_generator
            self._keep_state(value, lambda: bits.state, lambda state: setattr(bits, "state", state))
        elif isinstance(value, np.random.RandomState):
            self._keep_state(value, value.get_state, value.set_state)
        elif isinstance(value, np.ndarray):
            self._keep_state(value, value.copy, lambda before: np.copyto(value, before))
        elif isinstance(value, dict):
            self._keep_items(value)
            for item in (*value.keys(), *value.values()):
                self._keep(item)
        elif isinstance(value, (list, set, deque)):
            self._seen[id(value)] = value
            before = list(value)
            fill = value.update if isinstance(value, set) else value.extend
            self._undo.append(lambda: _refill(value, fill, before))
            for item in before:
                self._keep(item)
        elif isinstance(value, tuple):
            for item in value:
                self._keep(item)
        elif isinstance(value, _DATA):
            self.keep_data(value)
        elif isinstance(value, Metric) or _is_plain(value, set()):
            self._keep(vars(value))

    def _keep_state(
        self, owner: Any, read: Callable[[], Any], write: Callable[[Any], object]
    ) -> None:
        self._seen[id(owner)] = owner
        before = read()
        self._undo.append(lambda: write(before))
        if isinstance(owner, (torch.Generator, random.Random)):
            self._generators.append(owner)


def _refill(container: Any, fill: Callable[[Any], None], content: Any) -> None:
    container.clear()
    fill(content)


def _is_plain(value: Any, seen: set[int]) -> bool:
    """Whether a value and all that it holds is data, so that it may be put back piece by piece."""
    known = (*_SCALARS, *_GENERATORS, *_DATA, Tensor, np.ndarray, Metric)
    if isinstance(value, known) or id(value) in seen:
        return True
    seen.add(id(value))
    if isinstance(value, dict):
        return all(_is_plain(item, seen) for item in (*value.keys(), *value.values()))
    if isinstance(value, _CONTAINERS):
        return all(_is_plain(item, seen) for item in value)
    if isinstance(value, (nn.Module, Trainer, types.ModuleType)) or not hasattr(value, "__dict__"):
        return False
    return _is_plain(vars(value), seen)
