"""Networks that their LightningModule makes from its hyperparameters.

Such a network is described by the hyperparameters that growths change:

    {"hparams": {"hidden_size": 64, "num_layers": 4}}

The class of the module makes it from these and from the module's other hyperparameters, which
need not be plain data.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.utils._pytree import tree_map

from lightning_ligo.axes.calls import copied, found, without_values
from lightning_ligo.networks.description import build, is_description, merge, on_device
from lightning_ligo.networks.libraries import nearest
from lightning_ligo.networks.pretrained import untrained
from lightning_ligo.schedule import Growth
from lightning_ligo.trainer.lightning import made_again, saved_hparams
from lightning_ligo.trainer.several import NETWORKS, Networks, parted
from lightning_ligo.trainer.slot import Slot, listed
from lightning_ligo.trainer.whole import ROOT, joined

HPARAMS = "hparams"
COMPILED = "_orig_mod."
_CONTAINERS = (nn.ModuleList, nn.Sequential, nn.ModuleDict)

Description = dict[str, Any]


def described(slot: Slot, like: Description | None = None) -> dict[str, Any] | None:
    """Return the description of a network in the hyperparameters of its module, or None.

    It is without trained weights: a checkpoint holds its own. Give a description of a network of
    the run, if there is one, to get one with the same hyperparameters.
    """
    if slot.is_several:
        return {NETWORKS: {part.attribute: described(part) for part in slot.parts}}
    hparams = slot.module.hparams
    if like is not None and HPARAMS in like:
        return {HPARAMS: {name: _listed(hparams[name]) for name in like[HPARAMS]}}
    entry = hparams.get(slot.attribute)
    return untrained(entry) if is_description(entry) else None


def note(slot: Slot, description: Description | None) -> None:
    """Let the hyperparameters of the module describe this network, if they describe any."""
    for part, own in of_parts(slot, description):
        if own is not None and HPARAMS in own:
            slot.module.hparams.update(_typed(slot.module, own[HPARAMS]))
        elif own is not None and described(part) is not None:
            slot.module.hparams[part.attribute] = dict(own)


def of_parts(slot: Slot, description: Description | None) -> list[tuple[Slot, Description | None]]:
    """Return every single place with the description of its network."""
    own = parted(description, slot.attribute)
    return [(part, own[part.attribute]) for part in slot.parts]


def unchanged(
    slot: Slot, network: nn.Module, before: Description | None, after: Description | None
) -> dict[str, nn.Module]:
    """Return those of several networks, by attribute, that have one description twice."""
    return {
        part.attribute: one
        for (part, one), (_, old), (_, new) in zip(
            slot.split(network), of_parts(slot, before), of_parts(slot, after), strict=True
        )
        if old == new
    }


def built(
    slot: Slot,
    description: Description | None,
    device: torch.device | str | None = None,
    standing: Mapping[str, nn.Module] | None = None,
) -> Any:
    """Build a network for a place, see `build`.

    One without a description is taken as it is. So are the networks ``standing``, by attribute. On
    the meta device they are copied without values.

    Raises:
        ValueError: if it cannot be built.
    """
    if slot.is_several:
        parts = of_parts(slot, description)
        return Networks({part.attribute: built(part, own, device, standing) for part, own in parts})
    there = (standing or {}).get(slot.attribute)
    if there is not None or description is None:
        there = slot.network if there is None else there
        return copied(there, without_values) if str(device) == "meta" else there
    if HPARAMS not in description:
        return build(description, device)
    module, hparams = slot.module, description[HPARAMS]
    large = made(module, hparams, device)
    if not slot.is_whole:
        return large.get_submodule(slot.attribute)
    return joined(module, made(module, {}, "meta"), large, str(device) == "meta")


def small_of(
    module: LightningModule, growths: Sequence[Growth]
) -> tuple[str | None, dict[str, Any]]:
    """Return where a module holds the network that its hyperparameters make, and its description.

    The place is the one submodule in which parameters change with the growths, or the module itself
    if there is no such one, or it is a list of layers; None if no parameter changes.

    Raises:
        ValueError: for hyperparameters that the module does not have.
    """
    changes = [growth.hparams for growth in growths if growth.hparams is not None]
    names = dict.fromkeys(name for each in changes for name in each)
    _check_names(module, list(names))
    small = {HPARAMS: {name: _listed(module.hparams[name]) for name in names}}
    sizes = [small]
    for each in changes:
        sizes.append(merge(sizes[-1], {HPARAMS: each}))
    modules = [made(module, size[HPARAMS], "meta") for size in sizes]
    shapes = [shapes_of(each) for each in modules]
    differ = [
        name
        for name in dict.fromkeys(name for each in shapes for name in each)
        if any(each.get(name) != shapes[0].get(name) for each in shapes)
    ]
    tops = {name.partition(".")[0] for name in differ}
    if not tops:
        return None, small
    top = getattr(modules[0], tops.pop(), None) if len(tops) == 1 else None
    is_network = isinstance(top, nn.Module) and not isinstance(top, _CONTAINERS)
    return differ[0].partition(".")[0] if is_network else ROOT, small


def check_made(slot: Slot, description: Description | None) -> None:
    """Check that a network is what the module's hyperparameters make, if they describe it.

    Raises:
        ValueError: naming a parameter that is not.
    """
    if description is None or HPARAMS not in description:
        return
    wanted, there = shapes_of(built(slot, description, "meta")), shapes_of(slot.network)
    names = sorted(wanted.keys() | there.keys())
    pairs = [(name, wanted.get(name, "none"), there.get(name, "none")) for name in names]
    differ = [each for each in pairs if None not in each and each[1] != each[2]]
    if differ:
        name, made_here, found = differ[0]
        raise ValueError(
            f"{type(slot.module).__name__} is not what its hyperparameters make: they make "
            f"{name} of shape {made_here}, and it has {found}; make the network in __init__ from "
            "hyperparameters alone, or describe the large network, with Growth(to=...)"
        )


def made(
    module: LightningModule, hparams: Mapping[str, Any], device: torch.device | str | None
) -> LightningModule:
    """Make a module of the same class, from the hyperparameters of a module and changes to them.

    Raises:
        ValueError: if its class cannot be called with them.
    """
    saved, kind = saved_hparams(module), type(module)
    own = saved[kind.CHECKPOINT_HYPER_PARAMS_KEY] | _typed(module, hparams)

    def call() -> LightningModule:
        again = {**saved, kind.CHECKPOINT_HYPER_PARAMS_KEY: tree_map(_own, own)}
        try:
            return made_again(kind, again)
        except Exception as error:
            raise ValueError(
                f"{kind.__name__} cannot be made again from its hyperparameters, with "
                f"{dict(hparams)}: {type(error).__name__}: {error}; give values that it takes, and "
                "let its __init__ save every argument, with self.save_hyperparameters() after "
                f"super().__init__(); saved are {listed(sorted(own)) or 'none'}"
            ) from error

    return on_device(call, device)


def shapes_of(module: nn.Module) -> dict[str, tuple[int, ...] | None]:
    """Return the shapes of parameters by name; None for one that is not known yet."""
    return {
        name.replace(COMPILED, ""): None if is_lazy(parameter) else tuple(parameter.shape)
        for name, parameter in module.named_parameters()
    }


def _check_names(module: LightningModule, names: Sequence[str]) -> None:
    owner, arguments = type(module).__name__, inspect.signature(type(module).__init__).parameters
    for name in names:
        if name in module.hparams:
            continue
        if name in arguments:
            raise ValueError(
                f"{owner} does not save its argument {name!r} in its hyperparameters, so that it "
                "cannot be made again with another one; add this line at the top of its __init__, "
                "after super().__init__(): self.save_hyperparameters()"
            )
        known = [*module.hparams]
        raise ValueError(
            f"{owner} has no hyperparameter {name!r}; it has {listed(known) or 'none'}"
            f"{nearest(name, known)}"
        )


def _own(value: Any) -> Any:
    """Return a copy of a module, which another one may change; anything else as it is."""
    if not isinstance(value, nn.Module):
        return value
    tensors = [t for part in value.modules() for t in found(dict(vars(part)), Tensor)]
    return copy.deepcopy(value, {id(t): t.detach() for t in tensors if not t.is_leaf})


def _typed(module: LightningModule, hparams: Mapping[str, Any]) -> dict[str, Any]:
    """Make tuples of lists where the module holds tuples: plain data has lists only."""
    own = module.hparams
    return {
        name: tuple(value) if isinstance(own.get(name), tuple) and value is not None else value
        for name, value in hparams.items()
    }


def _listed(value: Any) -> Any:
    return [_listed(item) for item in value] if isinstance(value, (list, tuple)) else value
