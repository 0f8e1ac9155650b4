"""The record of the growths in a checkpoint, by which a network of its size is built.

The record is under the key `lightning_ligo` and has plain types only:

    version     1
    attribute   where the network is in the LightningModule; empty if that is the network; names of
                several networks are separated by commas
    size        the number of growths so far
    networks    the descriptions of all sizes up to this one; None for a small network that the
                user's own code builds; see `hparams.py` for networks made from hyperparameters, and
                `several.py` for several networks
    frozen      the parameters of the network that are not trained
    groups      the parameters in the groups of every optimizer (not in weights-only files)
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar
from unittest.mock import patch

import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.metadata import TensorStorageMetadata
from torch.nn.parameter import is_lazy

from lightning_ligo.networks.description import is_description, merge
from lightning_ligo.networks.pretrained import loads_weights, untrained
from lightning_ligo.schedule import Growth
from lightning_ligo.trainer.holders import copies_in, replace_everywhere
from lightning_ligo.trainer.hparams import HPARAMS, built, described, note, of_parts
from lightning_ligo.trainer.integrity import METADATA
from lightning_ligo.trainer.several import SEPARATOR, parted, whole
from lightning_ligo.trainer.slot import Slot
from lightning_ligo.trainer.snapshot import isolated_random

Module = TypeVar("Module", bound=LightningModule)

KEY = "lightning_ligo"
VERSION = 1


def rebuild(
    module: LightningModule, checkpoint: dict[str, Any], others: Sequence[object] = ()
) -> None:
    """Replace the network of `module` by one of the size that `checkpoint` holds.

    For `load_from_checkpoint` of a module that builds its small network itself:

        def on_load_checkpoint(self, checkpoint):
            lightning_ligo.rebuild(self, checkpoint)

    Copies that have grown with it, in the module and in the objects `others`, are rebuilt too.

    Raises:
        ValueError: if the network cannot be built from the record of the checkpoint.
    """
    record = checkpoint.get(KEY)
    if record is None:
        return
    _check_version(record)
    slot = Slot(module, record["attribute"])
    for part, description in of_parts(slot, record["networks"][record["size"]]):
        if "state_dict" in checkpoint:
            _rebuild(part, description, record["frozen"], checkpoint["state_dict"], slot, others)
        else:  # a sharded strategy has loaded what fits
            _check_sharded(part, description)
    set_record(module, record)


def _check_sharded(slot: Slot, description: dict[str, Any] | None) -> None:
    wanted = None if description is None else built(slot, description, "meta")
    if wanted is not None and _shapes(slot.network.state_dict()) != _shapes(wanted.state_dict()):
        raise ValueError(
            f"the checkpoint holds a network {slot.attribute!r} of another size than the module's, "
            "and a sharded strategy would load a part only; give the Trainer the "
            f"GrowthCallback of the run that wrote it, or make the module with {description}"
        )


def _rebuild(
    part: Slot,
    description: dict[str, Any] | None,
    frozen: Sequence[str],
    stored: dict[str, Tensor],
    slot: Slot,
    others: Sequence[object],
) -> None:
    """Replace a network, which may be one of several in a slot, if a checkpoint holds another."""
    attribute, network = part.attribute, part.network
    wanted = _shapes(stored, part.outer(""))
    entry = described(part, description)
    if _shapes(network.state_dict()) == wanted and entry in (None, description):
        return
    if description is None:
        raise ValueError(
            f"the checkpoint holds the small network {attribute!r}, from before any growth, "
            f"and {type(part.module).__name__} holds another one; load it into a new module"
        )
    network = _built(description, part, stored)
    if _shapes(network.state_dict()) != wanted:
        raise ValueError(
            f"the checkpoint says that its network {attribute!r} is {description}, but this "
            "does not build the parameters that it holds; has the code of "
            f"{description.get('class_path', type(part.module).__name__)} changed?"
        )
    start = f"{attribute}." if slot.is_several else ""
    for name, parameter in network.named_parameters():
        parameter.requires_grad_(f"{start}{name}" not in frozen)
    names = [name for name in copies_in(part, part.network) if not slot.has(name)]
    names = [name for name in names if _shapes(stored, f"{name}.") == wanted]
    replace_everywhere(part, network, others, names)
    note(part, description)


def load(kind: type[Module], path: str | Path, **options: Any) -> Module:
    """Load a LightningModule of any class, with its network in the size that the checkpoint holds.

    For a class that does not call `rebuild`, such as one of another package:

        module = lightning_ligo.load(SemanticSegmentationTask, "best.ckpt")

    Args:
        kind: the class of the module.
        path: a checkpoint file, of a grown network or of one that has not grown.
        options: those of its `load_from_checkpoint`, such as `map_location` and `strict`, and
            arguments of the class that the file does not hold.

    Raises:
        ValueError: if the network cannot be built from the record of the checkpoint.
    """
    own = kind.on_load_checkpoint

    def on_load_checkpoint(module: Module, checkpoint: dict[str, Any]) -> None:
        rebuild(module, checkpoint)
        own(module, checkpoint)

    with patch.object(kind, "on_load_checkpoint", on_load_checkpoint):
        return kind.load_from_checkpoint(path, **options)


def _built(description: dict[str, Any], slot: Slot, stored: dict[str, Tensor]) -> nn.Module:
    """Build a network for the weights of a checkpoint, which are loaded unrounded."""
    with isolated_random(0):
        network = built(slot, description).train(slot.network.training)
    if any(map(is_lazy, network.parameters())):
        start = slot.outer("")
        weights = {n.removeprefix(start): w for n, w in stored.items() if n.startswith(start)}
        network.load_state_dict(weights, strict=False)
    floats = {t.dtype for t in slot.network.state_dict().values() if t.is_floating_point()}
    for tensor in (*network.parameters(), *network.buffers()) if len(floats) == 1 else ():
        if tensor.is_floating_point():  # `to` would make complex numbers real
            tensor.data = tensor.data.to(*floats)
    return network


def sizes(small: dict[str, Any] | None, growths: Sequence[Growth]) -> list[dict[str, Any] | None]:
    """Return the descriptions of the small network and of every network it grows to, in order.

    None is with trained weights. Raises ValueError for a growth that changes nothing or asks for
    trained weights, or a network without a description.
    """
    networks = [untrained_of(small)]
    for number, growth in enumerate(growths, 1):
        after = parted(networks[-1])
        for name, changes in parted(growth.changes).items():
            assert changes is not None
            after[name] = _changed(after.get(name), changes, f"growth {number} is to {changes}")
        networks.append(whole(after))
    return networks


def untrained_of(description: dict[str, Any] | None) -> dict[str, Any] | None:
    """Return a description, which may be that of several networks, without trained weights."""
    parts = parted(description).items()
    return whole({name: own and merge(untrained(own), {}) for name, own in parts})


def _changed(before: dict[str, Any] | None, changes: dict[str, Any], growth: str) -> dict[str, Any]:
    is_other = before is None or (HPARAMS in before) != (HPARAMS in changes)
    if not is_description(changes) and is_other:
        raise ValueError(
            f"{growth}, which are changes to the network before "
            "it, and that has no description in the module's hyperparameters; give a whole "
            "description {'class_path': ..., 'init_args': {...}}"
        )
    after = merge(before or {}, changes)
    if loads := loads_weights(after):
        raise ValueError(
            f"{growth}, which loads trained weights "
            f"({', '.join(loads)}), and a large network gets the weights of the small one; "
            "leave that out"
        )
    if after == before:
        raise ValueError(f"{growth}, which the network before it is already; change something")
    return after


def peek(path: Path, weights_only: bool | None = None) -> dict[str, Any]:
    """Read a checkpoint without its weights, which have shapes only."""
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
    """Raise ValueError for weights of another size, which a sharded strategy would load in part."""
    stored, held = _shapes(checkpoint["state_dict"]), _shapes(pl_module.state_dict())
    strict = pl_module.strict_loading
    names = held.keys() | stored.keys() if strict else held.keys() & stored.keys()
    differ = sorted(name for name in names if held.get(name) != stored.get(name))
    if differ:
        name = differ[0]
        raise ValueError(
            f"{len(differ)} of the checkpoint's weights are not those of "
            f"{type(pl_module).__name__}, such as {name}: {stored.get(name, 'none')} in the "
            f"checkpoint, {held.get(name, 'none')} in the module; make the module as it was in "
            "the run that wrote the checkpoint"
        )


def check_record(
    checkpoint: dict[str, Any], slot: Slot, growths: Sequence[Growth]
) -> dict[str, Any] | None:
    """Return the record of a checkpoint, after a check that these growths lead to its network.

    Raises ValueError for a record of another attribute, of more growths, or of other networks.
    """
    record = checkpoint.get(KEY)
    if record is None:
        return None
    _check_version(record)
    record = _with_others(slot, record)
    if set(record["attribute"].split(SEPARATOR)) != {part.attribute for part in slot.parts}:
        raise ValueError(
            f"the checkpoint was written by a GrowthCallback that grows {record['attribute']!r}, "
            f"this one grows {slot.attribute!r}; give both the same attribute"
        )
    size, networks = record["size"], record["networks"]
    if size > len(growths):
        raise ValueError(
            f"the checkpoint holds a network after {size} growths, and this GrowthCallback has "
            f"only {len(growths)}; give it the growths of the run that wrote the checkpoint"
        )
    expected = sizes(networks[0], growths[:size])
    for number in range(1, size + 1):
        stored = networks[number]
        if untrained_of(stored) != expected[number]:
            raise ValueError(
                f"the checkpoint holds a network that growth {number} made to "
                f"{stored}, and this GrowthCallback would make it {expected[number]}; "
                "give it the growths of the run that wrote the checkpoint"
            )
    return record


def _with_others(slot: Slot, record: dict[str, Any]) -> dict[str, Any]:
    """Return a record with the networks of a place that have had no growth when it was written."""
    old = record["attribute"]
    if not {part.attribute for part in slot.parts} > {*old.split(SEPARATOR)}:
        return record
    rest, start = parted(described(slot)), "" if SEPARATOR in old else f"{old}."
    return record | {
        "attribute": slot.attribute,
        "networks": [whole(rest | parted(each, old)) for each in record["networks"]],
        "frozen": [f"{start}{name}" for name in record["frozen"]],
    }


def record_of(module: LightningModule) -> dict[str, Any] | None:
    """Return the record that the module writes into its checkpoints; None before `set_record`."""
    hook = module.on_save_checkpoint
    if isinstance(hook, functools.partial) and hook.func is _save:
        record: dict[str, Any] = hook.args[1]
        return record
    return None


def set_record(module: LightningModule, record: dict[str, Any]) -> None:
    """Have the module write the record into its checkpoints, also into weights-only ones.

    This leaves one thing on a LightningModule after `fit`: an instance attribute around its
    `on_save_checkpoint`, which can be copied and pickled.
    """
    record = {
        "version": VERSION,
        **{name: record[name] for name in ("attribute", "size", "networks")},
    }
    hook = module.on_save_checkpoint
    if isinstance(hook, functools.partial) and hook.func is _save:
        hook = hook.args[2]
    vars(module)["on_save_checkpoint"] = functools.partial(_save, module, record, hook)


def known(
    slot: Slot, small: dict[str, Any] | None, record: dict[str, Any]
) -> dict[str, Any] | None:
    """Return a description with those of a record for networks that have none."""
    last = parted(record["networks"][-1], record["attribute"])
    parts = of_parts(slot, small)
    return whole({part.attribute: own or last.get(part.attribute) for part, own in parts})


def size_of(module: LightningModule) -> int:
    """Return the number of growths of the module's network so far."""
    record = record_of(module)
    assert record is not None
    return int(record["size"])


def sizes_of(module: LightningModule, growths: Sequence[Growth]) -> list[dict[str, Any] | None]:
    """Return the descriptions of all sizes of the module's run, see `sizes`."""
    record = record_of(module)
    assert record is not None
    return sizes(record["networks"][0], growths)


def remember_growth(module: LightningModule, growths: Sequence[Growth]) -> None:
    """Add a growth to the record in the module's checkpoints."""
    record = record_of(module)
    assert record is not None
    size = record["size"] + 1
    networks = sizes_of(module, growths)[: size + 1]
    note(Slot(module, record["attribute"]), networks[size])
    set_record(module, {**record, "size": size, "networks": networks})


def _save(
    module: LightningModule,
    record: dict[str, Any],
    hook: Callable[[dict[str, Any]], None],
    checkpoint: dict[str, Any],
) -> None:
    hook(checkpoint)
    slot = Slot(module, record["attribute"])
    for part, description in of_parts(slot, described(slot)):
        if description is not None:
            checkpoint["hyper_parameters"][part.attribute] = description
    network = slot.network
    frozen = [name for name, weight in network.named_parameters() if not weight.requires_grad]
    checkpoint[KEY] = {**checkpoint.get(KEY, {}), **record, "frozen": frozen}


def _check_version(record: dict[str, Any]) -> None:
    if record["version"] != VERSION:
        raise ValueError(
            f"the checkpoint has a growth record of version {record['version']}, this package "
            f"reads version {VERSION}; load it with the version of lightning_ligo that wrote it"
        )


def _shapes(tensors: dict[str, Any], prefix: str = "") -> dict[str, tuple[int, ...]]:
    return {
        name.removeprefix(prefix): tuple(tensor.shape)
        for name, tensor in tensors.items()
        if name.startswith(prefix) and isinstance(tensor, Tensor)
    }
