"""What size a checkpoint holds, and a network of that size before its weights are loaded.

A checkpoint has a record under the key `lightning_ligo`, of plain types only:

    version     1
    attribute   where the network is in the LightningModule
    size        how many growths it has been through
    networks    the descriptions of all its sizes up to this one; None for a small network that
                the user's own code builds
    frozen      the parameters of the network that are not trained
    groups      the parameters in the groups of every optimizer (not in weights-only files)
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

from lightning.pytorch import LightningModule
from torch import Tensor, nn

from lightning_ligo.networks import build, is_description, merge
from lightning_ligo.schedule import Growth
from lightning_ligo.trainer.slot import Slot
from lightning_ligo.trainer.snapshot import isolated_random

KEY = "lightning_ligo"
VERSION = 1


def rebuild(module: LightningModule, checkpoint: dict[str, Any]) -> None:
    """Give `module` the network that `checkpoint` holds the weights of, if it has another one.

    For `load_from_checkpoint` of a module that builds its small network itself:

        def on_load_checkpoint(self, checkpoint):
            lightning_ligo.rebuild(self, checkpoint)

    Raises:
        ValueError: if the record of the checkpoint does not tell how to build its network.
    """
    record = checkpoint.get(KEY)
    if record is None:
        return
    _check_version(record)
    attribute, size = record["attribute"], record["size"]
    description = record["networks"][size]
    slot = Slot(module, attribute)
    network = slot.network
    if "state_dict" not in checkpoint:  # a strategy that shards has loaded what fits of it
        _check_size(network, attribute, description)
        set_record(module, record)
        return
    wanted = _shapes(checkpoint["state_dict"], f"{slot.prefix}.")
    entry = described(slot)
    if _shapes(network.state_dict()) != wanted or entry not in (None, description):
        if description is None:
            raise ValueError(
                f"the checkpoint holds the small network {attribute!r}, from before any growth, "
                f"and {type(module).__name__} holds another one; load it into a newly made module"
            )
        with isolated_random(0):
            built = build(description).train(network.training)
        floats = {t.dtype for t in network.state_dict().values() if t.is_floating_point()}
        network = built.to(*floats) if len(floats) == 1 else built  # weights are loaded unrounded
        if _shapes(network.state_dict()) != wanted:
            raise ValueError(
                f"the checkpoint says that its network {attribute!r} is {description}, but this "
                "does not build the parameters that it holds; has the code of "
                f"{description['class_path']} changed?"
            )
        for name, parameter in network.named_parameters():
            parameter.requires_grad_(name not in record["frozen"])
        slot.set(network)
        if entry is not None:
            module.hparams[attribute] = description
    set_record(module, record)


def _check_size(network: nn.Module, attribute: str, description: dict[str, Any] | None) -> None:
    if description is None:
        return
    if _shapes(network.state_dict()) != _shapes(build(description, device="meta").state_dict()):
        raise ValueError(
            f"the checkpoint holds a network {attribute!r} of another size than the module's, and "
            "a strategy that shards loads only what fits; give the Trainer the GrowthCallback of "
            f"the run that wrote it, or make the module with {description}"
        )


def described(slot: Slot) -> dict[str, Any] | None:
    """The description of a network in the hyperparameters of its module, if there is one."""
    entry = slot.module.hparams.get(slot.attribute)
    return entry if is_description(entry) else None


def sizes(small: dict[str, Any] | None, growths: Sequence[Growth]) -> list[dict[str, Any] | None]:
    """The descriptions of the small network and of what it grows to, one after the other.

    Raises:
        ValueError: for a growth that is given as changes to a network without a description, and
            for one that changes nothing.
    """
    networks: list[dict[str, Any] | None] = [small]
    for number, growth in enumerate(growths, 1):
        before = networks[-1]
        if not is_description(growth.to) and before is None:
            raise ValueError(
                f"growth {number} is to {growth.to}, which are changes to the network before it, "
                "and that has no description in the module's hyperparameters; give a whole "
                "description {'class_path': ..., 'init_args': {...}}"
            )
        after = merge(before or {}, growth.to)
        if after == before:
            raise ValueError(
                f"growth {number} is to {growth.to}, which the network before it is already; "
                "change something"
            )
        networks.append(after)
    return networks


def check_record(
    checkpoint: dict[str, Any], attribute: str, growths: Sequence[Growth]
) -> dict[str, Any] | None:
    """The record of a checkpoint, once it is sure that these growths lead to what it holds.

    Raises:
        ValueError: for a record of another attribute, of more growths, or of other networks.
    """
    record = checkpoint.get(KEY)
    if record is None:
        return None
    _check_version(record)
    if record["attribute"] != attribute:
        raise ValueError(
            f"the checkpoint was written by a GrowthCallback that grows {record['attribute']!r}, "
            f"this one grows {attribute!r}; give both the same attribute"
        )
    size, networks = record["size"], record["networks"]
    if size > len(growths):
        raise ValueError(
            f"the checkpoint holds a network after {size} growths, and this GrowthCallback has "
            f"only {len(growths)}; give it the growths of the run that wrote the checkpoint"
        )
    expected = sizes(networks[0], growths[:size])
    for number in range(1, size + 1):
        if networks[number] != expected[number]:
            raise ValueError(
                f"the checkpoint holds a network that growth {number} made to "
                f"{networks[number]}, and this GrowthCallback would make it {expected[number]}; "
                "give it the growths of the run that wrote the checkpoint"
            )
    return record


def record_of(module: LightningModule) -> dict[str, Any] | None:
    """The record that the module writes into its checkpoints, if `set_record` was called."""
    hook = module.on_save_checkpoint
    if isinstance(hook, functools.partial) and hook.func is _save:
        record: dict[str, Any] = hook.args[1]
        return record
    return None


def set_record(module: LightningModule, record: dict[str, Any]) -> None:
    """Have the module write the record into its checkpoints, weights-only ones too.

    This is the one thing that remains on a LightningModule after `fit`: an instance attribute
    around its `on_save_checkpoint`, which can be copied and pickled.
    """
    record = {
        "version": VERSION,
        **{name: record[name] for name in ("attribute", "size", "networks")},
    }
    hook = module.on_save_checkpoint
    if isinstance(hook, functools.partial) and hook.func is _save:
        hook = hook.args[2]
    vars(module)["on_save_checkpoint"] = functools.partial(_save, module, record, hook)


def size_of(module: LightningModule) -> int:
    """How many growths the module's network has been through."""
    record = record_of(module)
    assert record is not None
    return int(record["size"])


def sizes_of(module: LightningModule, growths: Sequence[Growth]) -> list[dict[str, Any] | None]:
    """The descriptions of all sizes of the run that the module is in, see `sizes`."""
    record = record_of(module)
    assert record is not None
    return sizes(record["networks"][0], growths)


def remember_growth(module: LightningModule, growths: Sequence[Growth]) -> None:
    """Have the module's checkpoints tell that its network has grown once more."""
    record = record_of(module)
    assert record is not None
    size = record["size"] + 1
    networks = sizes_of(module, growths)[: size + 1]
    if described(Slot(module, record["attribute"])) is not None:
        module.hparams[record["attribute"]] = networks[size]
    set_record(module, {**record, "size": size, "networks": networks})


def _save(
    module: LightningModule,
    record: dict[str, Any],
    hook: Callable[[dict[str, Any]], None],
    checkpoint: dict[str, Any],
) -> None:
    hook(checkpoint)
    network = Slot(module, record["attribute"]).network
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
