"""The network and the optimizers of a run that goes on from a checkpoint."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from torch import nn

from lightning_ligo.callbacks.averaging import resize_averages
from lightning_ligo.callbacks.checks import check_searches
from lightning_ligo.callbacks.datamodule import DataStages
from lightning_ligo.callbacks.finetuning import add_groups, freeze_statistics
from lightning_ligo.callbacks.sharding import Sharding
from lightning_ligo.networks import build
from lightning_ligo.schedule import Growth
from lightning_ligo.trainer.checkpoint import (
    KEY,
    check_record,
    check_same_shapes,
    peek,
    rebuild,
    record_of,
    sizes,
)
from lightning_ligo.trainer.integrity import intact
from lightning_ligo.trainer.lightning import forget_optimizers, is_resuming
from lightning_ligo.trainer.optimizers import regroup
from lightning_ligo.trainer.sharding import is_sharded, shard
from lightning_ligo.trainer.slot import Slot
from lightning_ligo.trainer.snapshot import isolated_random


class Resume:
    """Gives a module the network of the size that a checkpoint holds, and its optimizers.

    Args:
        attribute: where the network is in the module.
        growths: those of the run.
        seed: of what is random in a network that is built.
        sharding: what the network is like where it is not sharded.
        stages: the data at every size.
    """

    def __init__(
        self,
        attribute: str,
        growths: Sequence[Growth],
        seed: int,
        sharding: Sharding,
        stages: DataStages,
    ) -> None:
        self._attribute = attribute
        self._growths = growths
        self._seed = seed
        self._sharding = sharding
        self._stages = stages
        self._groups: list[list[list[str]]] | None = None  # of the optimizers, by name
        self.kept: dict[LightningModule, nn.Module] = {}  # small networks that no one can build

    def load_checkpoint(
        self,
        original: Callable[..., dict[str, Any]],
        trainer: Trainer,
        path: str | Path,
        weights_only: bool | None = None,
    ) -> dict[str, Any]:
        """In place of the strategy's: the module is given the network of the checkpoint's size."""
        weights_only = weights_only is not False  # Lightning's None is False for an address
        if is_sharded(trainer):
            self._resize_sharded(trainer, path, weights_only)
            return original(path, weights_only=weights_only)
        with intact(path, weights_only):
            checkpoint = original(path, weights_only=weights_only)
        self._resize(trainer.lightning_module, checkpoint)
        network = Slot(trainer.lightning_module, self._attribute).network
        resize_averages(trainer, self._attribute, network)
        return checkpoint

    def _resize_sharded(self, trainer: Trainer, path: str | Path, weights_only: bool) -> None:
        """Before the strategy loads weights and optimizer state, which it does at once."""
        pl_module = trainer.lightning_module
        network = Slot(pl_module, self._attribute).network
        path = Path(trainer.strategy.broadcast(path))
        with intact(path, weights_only):
            checkpoint = peek(path, weights_only)
        self._resize(pl_module, checkpoint)
        resized = Slot(pl_module, self._attribute).network
        if resized is not network:
            self._sharding.see(pl_module, resized)
            plain = trainer.precision_plugin.convert_module(resized)
            plain.to(trainer.strategy.root_device)
            shard(trainer, Slot(pl_module, self._attribute))
        check_same_shapes(pl_module, checkpoint)
        if trainer.state.fn != "fit":
            if resized is not network:  # what an earlier fit has left would be loaded too
                forget_optimizers(trainer)
        elif resized is not network or self._groups is not None:
            trainer.strategy.setup_optimizers(trainer)

    def _resize(self, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Give the module the network that the checkpoint holds the weights of."""
        record = check_record(checkpoint, self._attribute, self._growths)
        network, standing = Slot(pl_module, self._attribute).network, record_of(pl_module)
        assert standing is not None
        if record is None:
            if standing["size"] == 0:
                self._stages.to(pl_module.trainer, 0)
                return
            record = {**standing, "size": 0, "networks": standing["networks"][:1], "frozen": []}
        base, all_sizes = standing["networks"][0], sizes(record["networks"][0], self._growths)
        if base not in all_sizes:
            raise ValueError(
                f"the network {self._attribute!r} of the module is {base}, which is no size of the "
                f"run that wrote the checkpoint: {all_sizes}; make the module as it was in that "
                "run"
            )
        if record["size"] == 0 and pl_module in self.kept:
            Slot(pl_module, self._attribute).set(self.kept.pop(pl_module))
        rebuild(pl_module, {**checkpoint, KEY: record})
        resized = Slot(pl_module, self._attribute).network
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
        """In place of the strategy's: a resumed run has the optimizers that it began with.

        They are made for the small network, as they were, and then hold the parameters of the
        large one in the groups and the order of the checkpoint, in which their state is loaded.
        """
        if is_resuming(trainer):
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
        large, small = Slot(pl_module, self._attribute).network, self.kept.get(pl_module)
        if small is None:
            record = record_of(pl_module)
            assert record is not None
            description = sizes(record["networks"][0], self._growths)[0]
            assert description is not None
            with isolated_random(self._seed):
                small = build(description)
        Slot(pl_module, self._attribute).set(small.to(pl_module.device))
        try:
            original(trainer)
        finally:
            Slot(pl_module, self._attribute).set(large)
            small.cpu()
        add_groups(trainer, groups)
        regroup(trainer, pl_module, groups)
