"""Private parts of Lightning, under names of their own.

Lightning may rename these in any release, so no other file of the package touches them.
"""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import TYPE_CHECKING, Any, TypeVar
from unittest.mock import patch

from lightning.fabric.utilities.data import _set_sampler_epoch
from lightning.fabric.utilities.seed import _collect_rng_states, _set_rng_states
from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from lightning.pytorch.callbacks import BaseFinetuning, StochasticWeightAveraging, WeightAveraging
from lightning.pytorch.core.saving import _load_state
from lightning.pytorch.strategies import DDPStrategy
from lightning.pytorch.trainer import call
from lightning.pytorch.trainer.connectors.logger_connector.result import _ResultCollection
from lightning.pytorch.utilities.combined_loader import (
    CombinedLoader,
    _shutdown_workers_and_reset_iterator,
)
from lightning.pytorch.utilities.exceptions import _TunerExitException
from torch import nn
from torch.nn.modules.module import _IncompatibleKeys

if TYPE_CHECKING:
    from lightning.pytorch.cli import LightningCLI

M = TypeVar("M", bound=LightningModule)

LeaveFit = _TunerExitException
"""Raised in a callback, it ends `fit` without an error and without checkpoints."""

random_states, set_random_states = _collect_rng_states, _set_rng_states
set_epoch = _set_sampler_epoch
stop_workers = _shutdown_workers_and_reset_iterator


def callbacks_of(trainer: Trainer) -> list[Callback]:
    """Return the list of the Trainer's callbacks, which Lightning declares nowhere."""
    callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]
    return callbacks


def datamodule_of(trainer: Trainer) -> LightningDataModule | None:
    """Return the datamodule, or None if `fit` was given loaders."""
    datamodule: LightningDataModule | None = trainer.datamodule  # type: ignore[attr-defined]
    return datamodule


def is_fast_dev_run(trainer: Trainer) -> bool:
    """Return whether the Trainer only tries out a few batches."""
    return bool(trainer.fast_dev_run)  # type: ignore[attr-defined]


def is_averaging_epoch(trainer: Trainer) -> bool:
    """Return whether the batches of this epoch only update batch norms and train nothing."""
    return trainer.fit_loop._skip_backward


def logged_step(trainer: Trainer) -> int:
    """Return the step under which Lightning logs the next batch."""
    return trainer.fit_loop.epoch_loop._batches_that_stepped


def is_resuming(trainer: Trainer) -> bool:
    """Return whether a checkpoint is being loaded."""
    return bool(trainer._checkpoint_connector._loaded_checkpoint)


def dump_checkpoint(trainer: Trainer) -> dict[str, Any]:
    """Return the checkpoint that the Trainer would save now."""
    return trainer._checkpoint_connector.dump_checkpoint()


def saved_hparams(module: LightningModule) -> dict[str, Any]:
    """Return what a checkpoint of a module says of how to make it, with an empty state dict."""
    kind = type(module)
    saved: dict[str, Any] = {kind.CHECKPOINT_HYPER_PARAMS_KEY: dict(module.hparams)}
    if hasattr(module, "_hparams_name"):
        saved[kind.CHECKPOINT_HYPER_PARAMS_NAME] = module._hparams_name
    if not isinstance(module.hparams, dict):
        saved[kind.CHECKPOINT_HYPER_PARAMS_TYPE] = type(module.hparams)
    names, saved["state_dict"] = [*saved], module.state_dict()
    with suppress(Exception):  # it may add to the hyperparameters, and may need a run
        kind.on_save_checkpoint(module, saved)
    return {**{name: saved[name] for name in names}, "state_dict": {}}


def made_again(kind: type[M], saved: dict[str, Any]) -> M:
    """Make a module as `load_from_checkpoint` does, without weights."""
    nothing = _IncompatibleKeys([], [])
    with (
        patch.object(kind, "on_load_checkpoint", lambda *_: None),
        patch.object(kind, "load_state_dict", lambda *_, **__: nothing),
    ):
        made = _load_state(kind, saved)
    assert isinstance(made, kind)
    return made


def default_config(cli: LightningCLI) -> str:
    """Return the YAML text of the configuration of `fit`, with every default."""
    return str(cli._parser("fit").dump(cli.config.fit, skip_none=False))


def training_loader(trainer: Trainer) -> CombinedLoader:
    """Return the loader of the training data, which must have been made."""
    loader = trainer.fit_loop._combined_loader
    assert loader is not None
    return loader


def loaders(trainer: Trainer) -> list[Any]:
    """Return all loaders of training and validation that have been made."""
    loops = (trainer.fit_loop, trainer.fit_loop.epoch_loop.val_loop)
    made = [loop._combined_loader for loop in loops if loop._combined_loader is not None]
    return [loader for combined in made for loader in combined.flattened]


def forget_loaders(trainer: Trainer) -> None:
    """Have the loaders of training and validation made again when they are next needed."""
    trainer.fit_loop._combined_loader = None
    trainer.fit_loop.epoch_loop.val_loop._combined_loader = None


def new_training_loader(trainer: Trainer) -> Any:
    """Return a new loader from the datamodule."""
    return call._call_lightning_datamodule_hook(trainer, "train_dataloader")


def at_device(trainer: Trainer, pl_module: LightningModule, batch: Any) -> Any:
    """Return a batch as the fit loop hands it to the training step."""
    batch = trainer.precision_plugin.convert_input(batch)
    batch = pl_module._on_before_batch_transfer(batch, dataloader_idx=0)
    return call._call_strategy_hook(trainer, "batch_to_device", batch, dataloader_idx=0)


def training_output(trainer: Trainer, batch: Any, batch_idx: int) -> Any:
    """Run the module's own training step as the fit loop runs it; return its output."""
    trainer._logger_connector.on_batch_start(batch)
    arguments = trainer.fit_loop.epoch_loop._build_kwargs(OrderedDict(), batch, batch_idx)
    return call._call_strategy_hook(trainer, "training_step", *arguments.values())


def training_iteration(trainer: Trainer, batch: Any, batch_idx: int) -> None:
    """Train on a batch as the fit loop does, with the hooks of the module and of the callbacks."""
    loop, module = trainer.fit_loop.epoch_loop, trainer.lightning_module
    trainer._logger_connector.on_batch_start(batch)
    call._call_callback_hooks(trainer, "on_train_batch_start", batch, batch_idx)
    response = call._call_lightning_module_hook(trainer, "on_train_batch_start", batch, batch_idx)
    call._call_strategy_hook(trainer, "on_train_batch_start", batch, batch_idx)
    if response == -1:
        return
    arguments = loop._build_kwargs(OrderedDict(), batch, batch_idx)
    output: Any
    if module.automatic_optimization:
        output = loop.automatic_optimization.run(trainer.optimizers[0], batch_idx, arguments)
    else:
        output = loop.manual_optimization.run(arguments)
    loop.update_lr_schedulers("step", update_plateau_schedulers=False)
    call._call_callback_hooks(trainer, "on_train_batch_end", output, batch, batch_idx)
    call._call_lightning_module_hook(trainer, "on_train_batch_end", output, batch, batch_idx)
    trainer._logger_connector.on_batch_end()


def load_hook(trainer: Trainer, checkpoint: dict[str, Any]) -> None:
    """Run the module's own `on_load_checkpoint`."""
    call._call_lightning_module_hook(trainer, "on_load_checkpoint", checkpoint)


def validation_loop(trainer: Trainer) -> Any:
    """Return the validation loop of `fit`, with its loaders made."""
    loop = trainer.fit_loop.epoch_loop.val_loop
    loop.setup_data()
    return loop


def limit_batches(trainer: Trainer, most: int) -> None:
    """Limit the next validation to a few batches of the first loader."""
    loop = validation_loop(trainer)
    first, *others = loop.max_batches
    loop._max_batches = [min(most, first), *(0 for _ in others)]


@contextmanager
def separate_progress(trainer: Trainer) -> Iterator[None]:
    """Have steps count for nothing inside the context, and be steps of the optimizer each."""
    epoch_loop = trainer.fit_loop.epoch_loop
    loops = (epoch_loop, epoch_loop.automatic_optimization, epoch_loop.manual_optimization)
    kinds = ("batch_progress", "scheduler_progress", "optim_progress", "optim_step_progress")
    with ExitStack() as stack:
        for owner in (*loops, epoch_loop.val_loop, trainer.fit_loop, trainer):
            values = vars(owner)
            stack.callback(values.update, dict(values))
            values |= {kind: copy.deepcopy(values[kind]) for kind in kinds if kind in values}
        trainer.accumulate_grad_batches = 1
        yield


def scaler_of(trainer: Trainer) -> Any:
    """Return the scaler of gradients in float16, or None."""
    return getattr(trainer.precision_plugin, "scaler", None)


def configure_model(trainer: Trainer) -> None:
    """Run the module's own `configure_model`."""
    call._call_configure_model(trainer)


def validation_names(trainer: Trainer) -> list[str]:
    """Return the names that a validation that is just ending has logged, in their order."""
    results = trainer.fit_loop.epoch_loop.val_loop._results
    return [
        results._forked_name(metric, on_step=False)[0]
        for metric in results.result_metrics
        if metric.meta.on_epoch and not metric.has_reset
    ]


@contextmanager
def separate_results(trainer: Trainer) -> Iterator[None]:
    """Give the Trainer empty results inside the context, and restore its own afterwards.

    The model runs without DDP's wrapper, which counts its backward passes.
    """
    epoch_loop = trainer.fit_loop.epoch_loop
    val_loop, connector = epoch_loop.val_loop, trainer._logger_connector
    names = ("_progress_bar_metrics", "_logged_metrics", "_callback_metrics")
    with ExitStack() as stack:
        for owner, values in (
            (epoch_loop, {"_results": _ResultCollection(training=True)}),
            (val_loop, {
                "_results": _ResultCollection(training=False),
                "batch_progress": copy.deepcopy(val_loop.batch_progress),
                "_seen_batches_per_dataloader": val_loop._seen_batches_per_dataloader.copy(),
            }),
            (connector, {"_first_loop_iter": None, "_current_fx": None}),
            (connector, {name: dict(getattr(connector, name)) for name in names}),
            (trainer.state, {}),
            (trainer.strategy, {"_model": trainer.lightning_module}),
            (trainer, {}),
        ):  # fmt: skip
            stack.callback(vars(owner).update, dict(vars(owner)))
            vars(owner).update(values)
        yield


def start_method(strategy: DDPStrategy) -> str:
    """Return how the processes of the ranks are started."""
    return strategy._start_method


def averaging_period(strategy: DDPStrategy) -> int | None:
    """Return after how many steps the ranks average their weights, or None for every step."""
    return strategy._model_averaging_period


def wrap_in_ddp(strategy: DDPStrategy, pl_module: LightningModule) -> None:
    """Replace DDP's wrapper; rank 0's parameters and buffers are sent to all ranks."""
    strategy.model = pl_module  # frees the old wrapper and its buckets
    strategy._pl_static_graph_delay_done = False
    strategy.configure_ddp()


@contextmanager
def unwrapped(trainer: Trainer) -> Iterator[None]:
    """Run the module without DDP's wrapper inside the context.

    A rank that fails there leaves no other waiting.
    """
    strategy = trainer.strategy
    wrapper, strategy._model = strategy._model, trainer.lightning_module
    try:
        yield
    finally:
        strategy._model = wrapper


def communication_state(trainer: Trainer) -> object:
    """Return the state of DDP's communication hook, or None."""
    return getattr(trainer.strategy, "_ddp_comm_state", None)


def with_synced_norms(trainer: Trainer, network: nn.Module) -> nn.Module:
    """Return the network with synchronized batch norms, if the Trainer has `sync_batchnorm`."""
    layer_sync = getattr(trainer.strategy, "_layer_sync", None)
    return network if layer_sync is None else layer_sync.apply(network)


def forget_optimizers(trainer: Trainer) -> None:
    """Drop the optimizers and schedulers that an earlier `fit` has left."""
    trainer.strategy._reset_optimizers_and_schedulers()


def is_compiled(pl_module: LightningModule) -> bool:
    """Return whether torch.compile has compiled the LightningModule as a whole."""
    return pl_module._compiler_ctx is not None


def forget_metric_names(pl_module: LightningModule) -> None:
    """Have Lightning look for the torchmetrics of the module again."""
    pl_module._metric_attributes = None


def average_of(callback: Callback) -> LightningModule | None:
    """Return the averaged copy of the module that a callback keeps, if it keeps one."""
    if not isinstance(callback, (WeightAveraging, StochasticWeightAveraging)):
        return None
    average: Any = callback._average_model
    if average is None or isinstance(average, LightningModule):
        return average
    module: LightningModule = average.module
    return module


def adds_epoch(callback: Callback) -> bool:
    """Return whether a callback ends the run with an epoch for the batch norms of an average."""
    if not isinstance(callback, StochasticWeightAveraging):
        return False
    return bool(callback._model_contains_batch_norm) and callback._max_epochs != -1


def name_groups(callback: BaseFinetuning, trainer: Trainer, name_of: dict[Any, str]) -> None:
    """Tell a finetuning callback the names of the parameters in the optimizer groups."""
    groups = callback._internal_optimizer_metadata
    for position in groups:
        groups[position] = callback._apply_mapping_to_param_groups(
            trainer.optimizers[position].param_groups, name_of
        )
