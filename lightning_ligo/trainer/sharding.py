"""Networks whose parameters are shared out over ranks by the LightningModule's `configure_model`.

With `ModelParallelStrategy` the module shards its network itself, with `fully_shard`, and every
parameter is then a DTensor, of which a rank holds a part. A growth needs the parameters whole: they
are gathered into a plain copy, grown there, and the large network is sharded by the same
`configure_model`. What is here does nothing to networks that are not sharded.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.strategies import ModelParallelStrategy
from torch import Tensor, nn
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.metadata import TensorStorageMetadata
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor, distribute_tensor

from lightning_ligo.trainer.integrity import METADATA
from lightning_ligo.trainer.lightning import configure_model
from lightning_ligo.trainer.slot import Slot


def is_sharded(trainer: Trainer) -> bool:
    """Whether the Trainer leaves it to the LightningModule to shard its network."""
    return isinstance(trainer.strategy, ModelParallelStrategy)


def shares(trainer: Trainer) -> int:
    """How many parts a batch has; the ranks of one tensor parallel group get the same."""
    strategy = trainer.strategy
    if isinstance(strategy, ModelParallelStrategy):
        return strategy.device_mesh["data_parallel"].size()
    return trainer.world_size


@contextmanager
def at_rest(module: nn.Module) -> Iterator[None]:
    """Have all parameters sharded, before and after; a forward alone leaves some of them whole."""
    reshard(module)
    try:
        yield
    finally:
        reshard(module)


def reshard(module: nn.Module) -> None:
    """Let go of the whole parameters that a forward without a backward has left."""
    for part in module.modules():
        if isinstance(part, FSDPModule):
            part.reshard()


def whole(tensor: Any) -> Any:
    """A tensor with the parts of all ranks, on each of them; all else as it is."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def placed(tensor: Tensor, like: Tensor) -> Tensor:
    """A whole tensor on the device of `like`, and shared out as it is. All ranks have it."""
    if not isinstance(like, DTensor):
        return tensor.to(like.device)
    mesh = like.device_mesh
    return distribute_tensor(tensor.to(like.device), mesh, like.placements, src_data_rank=None)


# Plain copies -------------------------------------------------------------------------------------


def blank(network: nn.Module) -> nn.Module:
    """A copy of a network that is not sharded, with parameters on the meta device."""
    meta: dict[int, Any] = {
        id(p): nn.Parameter(torch.empty_like(p, device="meta"), p.requires_grad)
        for p in network.parameters()
    }
    return copy.deepcopy(network, meta)


@torch.no_grad()
def gathered(form: nn.Module, network: nn.Module) -> nn.Module:
    """A plain copy of a sharded network, whole on each rank. `form` is what `blank` made of it."""
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
    """Have the LightningModule's `configure_model` shard the plain network in the slot.

    Raises:
        ValueError: if `configure_model` cannot be called again, or does not shard the network, or
            gives its parameters other names.
    """
    owner, at, network = type(slot.module).__name__, slot.attribute, slot.network
    names = {name for name, _ in network.named_parameters()}
    try:
        configure_model(trainer)
    except Exception as error:
        raise ValueError(
            f"configure_model of {owner} is called again for a large network, and failed "
            f"({type(error).__name__}: {error}); let it shard self.{at} whatever its size, "
            "and leave what is sharded already, an FSDPModule, as it is"
        ) from error
    check_sharded(slot)
    found = {name for name, _ in slot.network.named_parameters()}
    if found != names:
        raise ValueError(
            f"configure_model of {owner} changes the names of parameters of self.{at}, such "
            f"as {min(found ^ names)}, so that they cannot be told from those of the network as it "
            "is built; shard it with fully_shard only"
        )


def check_sharded(slot: Slot) -> None:
    """Refuse a network that `configure_model` has left whole, or shards with all that is around it.

    Raises:
        ValueError: naming the parameters, or the module.
    """
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


# Checkpoints --------------------------------------------------------------------------------------


def peek(path: Path, weights_only: bool | None = None) -> dict[str, Any]:
    """What a checkpoint says, before it is loaded: its weights are there by shape only."""
    if not path.is_dir():
        checkpoint: dict[str, Any] = torch.load(
            path, map_location="cpu", mmap=True, weights_only=weights_only
        )
        return checkpoint
    checkpoint = torch.load(path / METADATA, map_location="cpu", weights_only=weights_only)
    stored = FileSystemReader(path).read_metadata().state_dict_metadata
    checkpoint["state_dict"] = {
        name.removeprefix("state_dict."): torch.empty(entry.size, device="meta")
        for name, entry in stored.items()
        if name.startswith("state_dict.") and isinstance(entry, TensorStorageMetadata)
    }
    return checkpoint


def check_same_shapes(pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
    """Refuse weights of another size, of which a sharded checkpoint would load what it finds.

    Raises:
        ValueError: naming the first that differs.
    """
    theirs = {name: tuple(tensor.shape) for name, tensor in checkpoint["state_dict"].items()}
    ours = {name: tuple(tensor.shape) for name, tensor in pl_module.state_dict().items()}
    names = ours.keys() | theirs.keys() if pl_module.strict_loading else ours.keys() & theirs.keys()
    differ = sorted(name for name in names if ours.get(name) != theirs.get(name))
    if differ:
        name = differ[0]
        raise ValueError(
            f"{len(differ)} of the checkpoint's weights are not those of "
            f"{type(pl_module).__name__}, such as {name}: {theirs.get(name, 'none')} in the "
            f"checkpoint, {ours.get(name, 'none')} in the module; make the module as it was in "
            "the run that wrote the checkpoint"
        )
