"""Resume a run: the network and the optimizers of the size that a checkpoint holds."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from torch import nn

from lightning_ligo.axes.calls import copied
from lightning_ligo.callbacks.checks import check_searches
from lightning_ligo.callbacks.companions import add_groups, freeze_statistics
from lightning_ligo.callbacks.datamodule import DataStages
from lightning_ligo.callbacks.followers import others_of
from lightning_ligo.callbacks.settings import Settings
from lightning_ligo.trainer.checkpoint import (
    KEY,
    check_record,
    check_same_shapes,
    peek,
    rebuild,
    record_of,
    size_of,
    sizes,
    sizes_of,
)
from lightning_ligo.trainer.holders import copies_in, replace_everywhere
from lightning_ligo.trainer.hparams import HPARAMS, built, described, note, of_parts
from lightning_ligo.trainer.integrity import intact
from lightning_ligo.trainer.lightning import forget_optimizers, is_resuming
from lightning_ligo.trainer.optimizers import regroup
from lightning_ligo.trainer.sharding import Sharding, is_sharded, shard
from lightning_ligo.trainer.slot import Slot, attached
from lightning_ligo.trainer.snapshot import isolated_random


class Resume:
    """Gives a module the network of the size that a checkpoint holds, and its optimizers."""

    def __init__(self, settings: Settings, sharding: Sharding, stages: DataStages) -> None:
        self._settings = settings
        self._sharding = sharding
        self._stages = stages
        self._groups: list[list[list[str]]] | None = None  # of the optimizers, by name
        self.kept: dict[LightningModule, dict[str, nn.Module]] = {}
        """Networks without a description that have grown, by attribute."""

    def keep(
        self, module: LightningModule, small: nn.Module, sizes: Sequence[dict[str, Any] | None]
    ) -> None:
        """Keep the small networks, of these sizes before and after, that cannot be built again."""
        slot = self._settings.slot(module)
        before, after = (of_parts(slot, each) for each in sizes)
        for (part, network), (_, old), (_, new) in zip(
            slot.split(small), before, after, strict=True
        ):
            if old is None and new is not None:
                network.zero_grad()
                self.kept.setdefault(module, {})[part.attribute] = network.cpu()

    def before(self, module: LightningModule) -> nn.Module:
        """Build the network before the last growth, whole on every rank."""
        slot, trainer = self._settings.slot(module), module.trainer
        device = trainer.strategy.root_device
        description = sizes_of(module, self._settings.growths)[size_of(module) - 1]
        plain, kept = self._sharding.plain(module, slot.network), self.kept.get(module, {})
        standing = {}
        for (part, one), (_, own) in zip(
            slot.split(plain), of_parts(slot, description), strict=True
        ):
            if own is None:
                small = kept.get(part.attribute, one)
                standing[part.attribute] = copied(small, lambda t: t.to(device, copy=True))
        with isolated_random(self._settings.seed):
            network = built(slot, description, device, standing)
        return attached(trainer.precision_plugin.convert_module(network), trainer)

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
        if KEY in checkpoint:
            self._settings.found(checkpoint[KEY]["attribute"])
        slot = self._settings.slot(trainer.lightning_module)
        self._resize(slot, checkpoint)
        return checkpoint

    def _resize_sharded(self, trainer: Trainer, path: str | Path, weights_only: bool) -> None:
        """Resize before the strategy loads weights and optimizer state, which it does at once."""
        slot = self._settings.slot(trainer.lightning_module)
        network, path = slot.network, Path(trainer.strategy.broadcast(path))
        with intact(path, weights_only):
            checkpoint = peek(path, weights_only)
        self._resize(slot, checkpoint)
        is_resized = any(part.network is not one for part, one in slot.split(network))
        if is_resized:
            self._sharding.see(slot.module, slot.network)
            plain = trainer.precision_plugin.convert_module(slot.network)
            plain.to(trainer.strategy.root_device)
            shard(trainer, slot)
        check_same_shapes(slot.module, checkpoint)
        if trainer.state.fn != "fit":
            if is_resized:  # the optimizers of an earlier fit would be loaded too
                forget_optimizers(trainer)
        elif is_resized or self._groups is not None:
            trainer.strategy.setup_optimizers(trainer)

    def _resize(self, slot: Slot, checkpoint: dict[str, Any]) -> None:
        """Give the module the network that the checkpoint holds the weights of."""
        module, growths = slot.module, self._settings.growths
        record, current = check_record(checkpoint, slot, growths), record_of(module)
        assert current is not None
        if record is None:
            if current["size"] == 0:
                self._stages.to(module.trainer, 0)
                return
            record = {**current, "size": 0, "networks": current["networks"][:1], "frozen": []}
        first, all_sizes = record["networks"][0], sizes(record["networks"][0], growths)
        by_hparams = first is not None and HPARAMS in first
        base = described(slot, first) if by_hparams else current["networks"][0]
        if base not in all_sizes:
            raise ValueError(
                f"the network {slot.attribute!r} of the module is {base}, which is no size of the "
                f"run that wrote the checkpoint: {all_sizes}; make the module as in that run"
            )
        others, kept = others_of(module.trainer), self.kept.get(module, {})
        network = slot.network
        for part, own in of_parts(slot, record["networks"][record["size"]]):
            if own is None and part.attribute in kept:
                names = [n for n in copies_in(part, part.network) if not slot.has(n)]
                replace_everywhere(part, kept.pop(part.attribute), others, names)
        rebuild(module, {**checkpoint, KEY: record}, others)
        if any(part.network is not one for part, one in slot.split(network)):
            present = current["networks"][current["size"]], record["networks"][record["size"]]
            self.keep(module, self._sharding.plain(module, network), present)
            freeze_statistics(module.trainer, slot.network)
        self._groups = record.get("groups")
        self._stages.to(module.trainer, record["size"])

    def setup_optimizers(
        self, original: Callable[[Trainer], None], trainer: Trainer, *_: Any
    ) -> None:
        """Make the optimizers of a resumed run; wraps the strategy's method.

        They are made for the small network, as at the start of the run. Then they get the
        parameters of the large one, in the groups and the order in which their state is loaded.
        """
        if is_resuming(trainer):
            check_searches(trainer)
        groups, self._groups = self._groups, None
        with self._stages.of_size(trainer, 0):  # whose batches a schedule may have counted
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
        slot = self._settings.slot(pl_module)
        large, kept = slot.network, self.kept.get(pl_module, {})
        networks = sizes_of(pl_module, self._settings.growths)
        with isolated_random(self._settings.seed):
            small = built(slot, networks[0], standing=kept)
        slot.set(small.to(pl_module.device))
        note(slot, networks[0])
        try:
            original(trainer)
        finally:
            slot.set(large)
            note(slot, networks[size_of(pl_module)])
            for each in kept.values():
                each.cpu()
        add_groups(trainer, groups)
        regroup(trainer, pl_module, groups)
