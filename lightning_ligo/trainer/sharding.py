"""Networks that the LightningModule's `configure_model` shards over ranks.

With `ModelParallelStrategy` the module shards its network itself, with `fully_shard`. Every
parameter is then a DTensor, of which a rank holds a part. A growth gathers them into a plain copy
and grows the copy. The same `configure_model` shards the large network. Networks that are not
sharded stay unchanged.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.strategies import ModelParallelStrategy
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor, distribute_tensor

from lightning_ligo.trainer.hparams import built, of_parts
from lightning_ligo.trainer.lightning import configure_model
from lightning_ligo.trainer.several import parted
from lightning_ligo.trainer.slot import Slot


def is_sharded(trainer: Trainer) -> bool:
    """Return whether the Trainer has the LightningModule shard its network."""
    return isinstance(trainer.strategy, ModelParallelStrategy)


def shares(trainer: Trainer) -> int:
    """Return the number of parts of a global batch; a tensor parallel group shares one."""
    strategy = trainer.strategy
    if isinstance(strategy, ModelParallelStrategy):
        return strategy.device_mesh["data_parallel"].size()
    return trainer.world_size


@contextmanager
def at_rest(module: nn.Module) -> Iterator[None]:
    """Shard all parameters before and after the context; a forward alone leaves some whole."""
    reshard(module)
    try:
        yield
    finally:
        reshard(module)


def reshard(module: nn.Module) -> None:
    """Free the whole parameters that a forward without a backward leaves."""
    for part in module.modules():
        if isinstance(part, FSDPModule):
            part.reshard()


def whole(tensor: Any) -> Any:
    """Gather a sharded tensor on every rank; return any other value unchanged."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def placed(tensor: Tensor, like: Tensor) -> Tensor:
    """Put a tensor that all ranks hold on the device of `like`, and shard it like that."""
    if not isinstance(like, DTensor):
        return tensor.to(like.device)
    mesh = like.device_mesh
    return distribute_tensor(tensor.to(like.device), mesh, like.placements, src_data_rank=None)


# Plain copies -------------------------------------------------------------------------------------


def blank(network: nn.Module) -> nn.Module:
    """Copy a network that is not sharded, with parameters on the meta device."""
    meta: dict[int, Any] = {
        id(p): nn.Parameter(torch.empty_like(p, device="meta"), p.requires_grad)
        for p in network.parameters()
    }
    return copy.deepcopy(network, meta)


@torch.no_grad()
def gathered(form: nn.Module, network: nn.Module) -> nn.Module:
    """Copy a sharded network to a plain one on every rank. `form` is its copy by `blank`."""
    with at_rest(network):
        tensors = {
            name: whole(tensor.detach()).clone()
            for name, tensor in (*network.named_parameters(), *network.named_buffers())
        }
        trained = {name: p.requires_grad for name, p in network.named_parameters()}
    memo: dict[int, Any] = {
        id(p): nn.Parameter(tensors[name], trained[name]) for name, p in form.named_parameters()
    }
    memo |= {id(buffer): tensors[name] for name, buffer in form.named_buffers()}
    plain = copy.deepcopy(form, memo)
    modes = {name: module.training for name, module in network.named_modules()}
    for name, module in plain.named_modules():
        module.training = modes[name]
    return plain


# Sharding again -----------------------------------------------------------------------------------


def shard(trainer: Trainer, slot: Slot) -> None:
    """Shard the plain network in the slot with the LightningModule's `configure_model`.

    Raises ValueError if it cannot be called again, does not shard, or changes parameters' names.
    """
    owner, network = type(slot.module).__name__, slot.network
    names = {name for name, _ in network.named_parameters()}
    try:
        configure_model(trainer)
    except Exception as error:
        raise ValueError(
            f"configure_model of {owner} is called again for a large network, and failed "
            f"({type(error).__name__}: {error}); let it shard {slot.words} whatever its size, "
            "and leave what is sharded already, an FSDPModule, as it is"
        ) from error
    check_sharded(slot)
    found = {name for name, _ in slot.network.named_parameters()}
    if found != names:
        raise ValueError(
            f"configure_model of {owner} changes the names of parameters of {slot.words}, such "
            f"as {min(found ^ names)}, which then do not match those of a newly built network; "
            "shard it with fully_shard only"
        )


def check_sharded(slot: Slot) -> None:
    """Raise ValueError for a network that is whole, or sharded as part of a larger module."""
    for part in slot.parts:
        _check_sharded(part)


def _check_sharded(slot: Slot) -> None:
    owner, at = type(slot.module).__name__, slot.attribute
    outer = [name for name, module in slot.module.named_modules() if isinstance(module, FSDPModule)]
    around = [name for name in outer if not name or at.startswith(f"{name}.")]
    if around:
        raise ValueError(
            f"configure_model of {owner} calls fully_shard on {around[0] or 'self'}, which holds "
            f"the network {at!r}, and so cannot shard a large network in its place; let "
            f"self.{at} be the outermost that it shards"
        )
    network = slot.network
    plain = [name for name, p in network.named_parameters() if not isinstance(p, DTensor)]
    if plain:
        raise ValueError(
            f"after configure_model of {owner}, {len(plain)} parameters of self.{at} are "
            f"not sharded, such as {plain[0]}; let it call fully_shard on the network at "
            f"self.{at} that there is, of any size, each time that it is called"
        )


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
        """Raise ValueError if the network is not sharded, is wrapped, or has no plain form."""
        attribute, owner = slot.attribute, type(slot.module).__name__
        if any(start.endswith("_orig_mod.") for start in slot.starts.values()):
            raise ValueError(
                f"torch.compile has wrapped {attribute!r}, and ModelParallelStrategy writes "
                "checkpoints without the wrapper's name, which cannot be loaded; compile it in "
                "place, with its method compile()"
            )
        check_sharded(slot)
        if slot.module in self._forms:
            return
        if None in parted(description).values():
            raise ValueError(
                f"{slot.words} was sharded before GrowthCallback saw it, and a growth needs a "
                f"plain copy; make {slot.words} in the __init__ of a new {owner}, or give that "
                "an argument that describes it"
            )
        self.see(slot.module, built(slot, description))

    def forms(self, slot: Slot, description: dict[str, Any] | None) -> dict[str, nn.Module]:
        """Return the forms, by attribute, of networks that have no description."""
        form = self._forms.get(slot.module)
        both = zip(of_parts(slot, description), slot.split(form), strict=True) if form else ()
        return {part.attribute: one for (part, own), (_, one) in both if own is None}

    def try_out(self, trainer: Trainer, slot: Slot, large: nn.Module) -> None:
        """Try to shard a large network, which may be on the meta device; see `shard`."""
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
