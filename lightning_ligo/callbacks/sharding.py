"""Plain copies of the networks that a run has sharded."""

from __future__ import annotations

from typing import Any

from lightning.pytorch import LightningModule, Trainer
from torch import nn
from torch.distributed.tensor import DTensor

from lightning_ligo.networks import build
from lightning_ligo.trainer.sharding import blank, check_sharded, gathered, shard
from lightning_ligo.trainer.slot import Slot


class Sharding:
    """Knows what the network of a module is like where it is not sharded.

    It has seen it before `configure_model`, or builds it by its description.
    """

    def __init__(self) -> None:
        self._forms: dict[LightningModule, nn.Module] = {}

    def see(self, pl_module: LightningModule, network: nn.Module | None) -> None:
        """Remember what the network is like, if it is there and not sharded by now."""
        if network is not None and not any(isinstance(p, DTensor) for p in network.parameters()):
            self._forms[pl_module] = blank(network)

    def check(
        self, pl_module: LightningModule, attribute: str, description: dict[str, Any] | None
    ) -> None:
        """Refuse a network that is not sharded, or wrapped, or that cannot be copied plainly.

        Raises:
            ValueError: naming what was found.
        """
        if Slot(pl_module, attribute).prefix != attribute:
            raise ValueError(
                f"torch.compile has wrapped {attribute!r}, and the checkpoints that "
                "ModelParallelStrategy writes of it cannot be loaded, as they leave out the "
                f"wrapper's name; compile it in place, with self.{attribute}.compile()"
            )
        check_sharded(Slot(pl_module, attribute))
        if pl_module in self._forms:
            return
        if description is None:
            raise ValueError(
                f"self.{attribute} was sharded before GrowthCallback saw it, and a growth needs a "
                f"copy that is not; make self.{attribute} in the __init__ of a new "
                f"{type(pl_module).__name__}, or have an argument that describes it"
            )
        self.see(pl_module, build(description))

    def try_out(
        self, trainer: Trainer, pl_module: LightningModule, attribute: str, large: nn.Module
    ) -> None:
        """See whether the module shards a large network, which may be on the meta device.

        Raises:
            ValueError: see `shard`.
        """
        network = Slot(pl_module, attribute).network
        Slot(pl_module, attribute).set(large)
        try:
            shard(trainer, Slot(pl_module, attribute))
        finally:
            Slot(pl_module, attribute).set(network)

    def plain(self, pl_module: LightningModule, network: nn.Module) -> nn.Module:
        """A copy that is whole on each rank; the network itself where nothing is sharded."""
        form = self._forms.get(pl_module)
        return network if form is None else gathered(form, network)
