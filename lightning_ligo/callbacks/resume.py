"""Resume a run: the network and the optimizers of the size that a checkpoint holds."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from torch import nn

from lightning_ligo.callbacks.averaging import resize_averages
from lightning_ligo.callbacks.checks import check_searches, find_network
from lightning_ligo.callbacks.datamodule import DataStages
from lightning_ligo.callbacks.finetuning import add_groups, freeze_statistics
from lightning_ligo.callbacks.settings import Settings
from lightning_ligo.callbacks.sharding import Sharding
from lightning_ligo.networks import build
from lightning_ligo.trainer.checkpoint import KEY, check_record, rebuild, record_of, sizes
from lightning_ligo.trainer.integrity import intact
from lightning_ligo.trainer.sandbox import isolated_random
from lightning_ligo.trainer.sharding import check_same_shapes, is_sharded, peek, shard
from lightning_ligo.trainer.slot import set_network
from lightning_ligo.trainer.swap import regroup


class Resume:
    """Gives a module the network of the size that a checkpoint holds, and its optimizers.

    Args:
        settings: settings of the growths.
        sharding: plain forms of sharded networks.
        stages: the data at every size.
    """

    def __init__(self, settings: Settings, sharding: Sharding, stages: DataStages) -> None:
        self._settings = settings
        self._sharding = sharding
        self._stages = stages
        self._groups: list[list[list[str]]] | None = None  # of the optimizers, by name
        self.kept: dict[LightningModule, nn.Module] = {}  # small networks without a description

    def load_checkpoint(
        self,
        original: Callable[..., dict[str, Any]],
        trainer: Trainer,
        path: str | Path,
        weights_only: bool | None = None,
    ) -> dict[str, Any]:
        """Give the module a network of the checkpoint's size, then call the strategy's method."""
        weights_only = weights_only is not False  # Lightning's None is False for an address
        if is_sharded(trainer):
            self._resize_sharded(trainer, path, weights_only)
            return original(path, weights_only=weights_only)
        with intact(path, weights_only):
            checkpoint = original(path, weights_only=weights_only)
        self._resize(trainer.lightning_module, checkpoint)
        network = find_network(trainer.lightning_module, self._settings.attribute)
        resize_averages(trainer, self._settings.attribute, network)
        return checkpoint

    def _resize_sharded(self, trainer: Trainer, path: str | Path, weights_only: bool) -> None:
        """Resize before the strategy loads weights and optimizer state, which it does at once."""
        pl_module = trainer.lightning_module
        network = find_network(pl_module, self._settings.attribute)
        path = Path(trainer.strategy.broadcast(path))
        with intact(path, weights_only):
            checkpoint = peek(path, weights_only)
        self._resize(pl_module, checkpoint)
        resized = find_network(pl_module, self._settings.attribute)
        if resized is not network:
            self._sharding.see(pl_module, resized)
            plain = trainer.precision_plugin.convert_module(resized)
            plain.to(trainer.strategy.root_device)
            shard(trainer, pl_module, self._settings.attribute)
        check_same_shapes(pl_module, checkpoint)
        if trainer.state.fn != "fit":
            if resized is not network:  # what an earlier fit has left would be loaded too
                trainer.strategy._reset_optimizers_and_schedulers()
        elif resized is not network or self._groups is not None:
            trainer.strategy.setup_optimizers(trainer)

    def _resize(self, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Give the module the network that the checkpoint holds the weights of."""
        record = check_record(checkpoint, self._settings.attribute, self._settings.growths)
        network, standing = find_network(pl_module, self._settings.attribute), record_of(pl_module)
        assert standing is not None
        if record is None:
            if standing["size"] == 0:
                self._stages.to(pl_module.trainer, 0)
                return
            record = {**standing, "size": 0, "networks": standing["networks"][:1], "frozen": []}
        base, all_sizes = (
            standing["networks"][0],
            sizes(record["networks"][0], self._settings.growths),
        )
        if base not in all_sizes:
            raise ValueError(
                f"the network {self._settings.attribute!r} of the module is {base}, which is no "
                f"size of the run that wrote the checkpoint: {all_sizes}; make the module as in "
                "that run"
            )
        if record["size"] == 0 and pl_module in self.kept:
            set_network(pl_module, self._settings.attribute, self.kept.pop(pl_module))
        rebuild(pl_module, {**checkpoint, KEY: record})
        resized = find_network(pl_module, self._settings.attribute)
        replaced = resized is not network
        if replaced and standing["size"] == 0 and record["networks"][0] is None:
            self.kept[pl_module] = self._sharding.plain(pl_module, network)
        if replaced:
            freeze_statistics(pl_module.trainer, resized)
        self._groups = record.get("groups")
        self._stages.to(pl_module.trainer, record["size"])

    def setup_optimizers(
        self, original: Callable[[Trainer], None], trainer: Trainer, *_: Any
    ) -> None:
        """Make the optimizers of a resumed run; wraps the strategy's method.

        They are made for the small network, as at the start of the run. Then they get the
        parameters of the large one, in the groups and the order in which their state is loaded.
        """
        if trainer._checkpoint_connector._loaded_checkpoint:
            check_searches(trainer)
        groups, self._groups = self._groups, None
        with self._stages.of_small(trainer):  # whose batches a schedule may have counted
            self._setup_optimizers(original, trainer, groups)

    def _setup_optimizers(
        self,
        original: Callable[[Trainer], None],
        trainer: Trainer,
        groups: list[list[list[str]]] | None,
    ) -> None:
        pl_module = trainer.lightning_module
        if groups is None:
            return original(trainer)
        large, small = find_network(pl_module, self._settings.attribute), self.kept.get(pl_module)
        if small is None:
            record = record_of(pl_module)
            assert record is not None
            description = sizes(record["networks"][0], self._settings.growths)[0]
            assert description is not None
            with isolated_random(self._settings.seed):
                small = build(description)
        set_network(pl_module, self._settings.attribute, small.to(pl_module.device))
        try:
            original(trainer)
        finally:
            set_network(pl_module, self._settings.attribute, large)
            small.cpu()
        add_groups(trainer, groups)
        regroup(trainer, pl_module, groups)
