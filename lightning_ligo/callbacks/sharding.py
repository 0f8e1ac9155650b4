"""Plain copies of sharded networks."""

from __future__ import annotations

from typing import Any

from lightning.pytorch import LightningModule, Trainer
from torch import nn
from torch.distributed.tensor import DTensor

from lightning_ligo.networks import build
from lightning_ligo.trainer.sharding import blank, check_sharded, gathered, shard
from lightning_ligo.trainer.slot import Slot


class Sharding:
    """Keeps the plain form of a module's network.

    The form is seen before `configure_model`, or built from the description.
    """

    def __init__(self) -> None:
        self._forms: dict[LightningModule, nn.Module] = {}

    def see(self, pl_module: LightningModule, network: nn.Module | None) -> None:
        """Remember the form of the network, if it exists and is not yet sharded."""
        if network is not None and not any(isinstance(p, DTensor) for p in network.parameters()):
            self._forms[pl_module] = blank(network)

    def check(self, slot: Slot, description: dict[str, Any] | None) -> None:
        """Check that the network is sharded, not wrapped, and has a plain form.

        Raises:
            ValueError: naming what was found.
        """
        attribute, owner = slot.attribute, type(slot.module).__name__
        if slot.prefix != attribute:
            raise ValueError(
                f"torch.compile has wrapped {attribute!r}, and ModelParallelStrategy writes "
                "checkpoints without the wrapper's name, which cannot be loaded; compile it in "
                f"place, with self.{attribute}.compile()"
            )
        check_sharded(slot)
        if slot.module in self._forms:
            return
        if description is None:
            raise ValueError(
                f"self.{attribute} was sharded before GrowthCallback saw it, and a growth needs a "
                f"plain copy; make self.{attribute} in the __init__ of a new {owner}, or give that "
                "an argument that describes it"
            )
        self.see(slot.module, build(description))

    def try_out(self, trainer: Trainer, slot: Slot, large: nn.Module) -> None:
        """Check that the module shards a large network, which may be on the meta device.

        Raises:
            ValueError: see `shard`.
        """
        network = slot.network
        slot.set(large)
        try:
            shard(trainer, slot)
        finally:
            slot.set(network)

    def plain(self, pl_module: LightningModule, network: nn.Module) -> nn.Module:
        """Return a copy that is whole on each rank; the network itself if nothing is sharded."""
        form = self._forms.get(pl_module)
        return network if form is None else gathered(form, network)
