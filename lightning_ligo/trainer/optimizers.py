"""The parameter groups and the state of a run's optimizers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import BaseFinetuning
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.optim import Adagrad, Optimizer

from lightning_ligo.trainer.lightning import callbacks_of
from lightning_ligo.trainer.sharding import placed, whole
from lightning_ligo.trainer.slot import listed


def carry_states(
    trainer: Trainer,
    small: nn.Module,
    large: nn.Module,
    grow_states: Callable[[Mapping[str, Any]], Mapping[str, Any]],
) -> int:
    """Replace the state of the small parameters by that of the large ones; return their number.

    Parameters that are in both networks keep theirs.
    """
    grown, carried = dict(large.named_parameters()), 0
    kept = {p for name, p in small.named_parameters() if p is grown.get(name)}
    inner = {name: p for name, p in small.named_parameters() if p not in kept}
    for optimizer in all_optimizers(trainer):
        states = grow_states(
            {
                name: {key: whole(value) for key, value in optimizer.state[parameter].items()}
                for name, parameter in inner.items()
                if parameter in optimizer.state
            }
        )
        for parameter in inner.values():
            optimizer.state.pop(parameter, None)
        for name, state in states.items():
            optimizer.state[grown[name]] = {
                key: _laid_out(value, grown[name]) for key, value in state.items()
            }
        carried += len(states) + sum(p in optimizer.state for p in kept)
    return carried


def group_names(trainer: Trainer, pl_module: LightningModule) -> list[list[list[str]]]:
    """Return the names of the parameters in every group of every optimizer."""
    name_of = _names(pl_module)
    return [
        [[name_of[parameter] for parameter in group["params"]] for group in optimizer.param_groups]
        for optimizer in all_optimizers(trainer)
    ]


def parameters_in(optimizers: Iterable[Optimizer]) -> list[nn.Parameter]:
    """Return the parameters in the groups of optimizers, each as often as it is in one."""
    return [p for each in optimizers for group in each.param_groups for p in group["params"]]


def all_optimizers(trainer: Trainer) -> list[Optimizer]:
    """Return the optimizers, and those that they hold with groups or state of their own.

    Lookahead and SAM wrap another optimizer, and most often share its groups.
    """
    found: list[Optimizer] = []
    waiting: list[Any] = list(trainer.optimizers)
    while waiting:
        optimizer = waiting.pop(0)
        shared = [each for each in found if _are_shared(each, optimizer)]
        if not shared:
            found.append(optimizer)
        waiting += [inner for inner in vars(optimizer).values() if isinstance(inner, Optimizer)]
    return found


def _are_shared(one: Optimizer, other: Optimizer) -> bool:
    """Whether two optimizers have the same groups and the same state."""
    groups = zip(one.param_groups, other.param_groups, strict=False)
    return one.state is other.state and all(mine is its for mine, its in groups)


def _names(pl_module: LightningModule) -> dict[Tensor, str]:
    return {parameter: name for name, parameter in pl_module.named_parameters()}


def moments(trainer: Trainer, pl_module: LightningModule) -> dict[str, Tensor]:
    """Return the tensors of the optimizer state, by parameter, optimizer and key."""
    name_of = _names(pl_module)
    return {
        f"{name_of[parameter]} {number} {key}": value
        for number, optimizer in enumerate(trainer.optimizers)
        for parameter, state in optimizer.state.items()
        for key, value in state.items()
        if isinstance(value, Tensor)
    }


def _laid_out(value: Any, parameter: nn.Parameter) -> Any:
    """Give state the sharding and memory format of its parameter, as fused optimizers expect."""
    if not isinstance(value, Tensor) or value.shape != parameter.shape:
        return value
    if isinstance(parameter, DTensor):
        return placed(value, parameter)
    if value.stride() == parameter.stride():
        return value
    return torch.empty_like(parameter, dtype=value.dtype, requires_grad=False).copy_(value)


def regroup(trainer: Trainer, pl_module: LightningModule, groups: list[list[list[str]]]) -> None:
    """Replace the parameters in the optimizer groups by those of these names, group by group."""
    found = [len(optimizer.param_groups) for optimizer in all_optimizers(trainer)]
    if found != [len(names) for names in groups]:
        raise ValueError(
            f"the checkpoint was written with optimizers of {[len(names) for names in groups]} "
            f"parameter groups, configure_optimizers makes {found}; resume with the optimizers "
            "that the run began with"
        )
    fill_groups(trainer, pl_module, groups, {})


def fill_groups(
    trainer: Trainer,
    pl_module: LightningModule,
    groups: list[list[list[str]]],
    before: Mapping[str, nn.Parameter],
) -> None:
    """Put the parameters of the given names into the optimizer groups.

    `before` are the parameters of the module when the groups were last filled, by name.
    """
    parameters = dict(pl_module.named_parameters())
    for optimizer, names_of_groups in zip(all_optimizers(trainer), groups, strict=True):
        for group, names in zip(optimizer.param_groups, names_of_groups, strict=True):
            if "param_names" in group:  # set if torch was given named parameters
                group["param_names"] = _short(group, names, before)
            group["params"] = [parameters[name] for name in names]


def _short(
    group: dict[str, Any], names: list[str], before: Mapping[str, nn.Parameter]
) -> list[str]:
    """Return the names relative to the submodule whose names the optimizer was given."""
    full_name = {parameter: name for name, parameter in before.items()}
    for parameter, short in zip(group["params"], group["param_names"], strict=True):
        full = full_name.get(parameter, short)
        if full.endswith(f".{short}"):
            return [name.removeprefix(full[: -len(short)]) for name in names]
    return names


def check_every_parameter_once(
    trainer: Trainer, pl_module: LightningModule, network: nn.Module
) -> None:
    """Check that every trainable parameter of the network is in exactly one optimizer group.

    With a finetuning callback, which adds parameters later, it may be in none. One that is outside
    of the network may be in none, too.

    Raises:
        RuntimeError: naming the parameters that are not, or counting those that the module lacks.
    """
    counts = Counter(parameters_in(trainer.optimizers))
    named, later = dict(pl_module.named_parameters()), finetunes(trainer)
    missing = set(network.parameters()) - counts.keys()
    strangers = len(counts.keys() - set(named.values()))
    problems = [
        f"{name} is in {counts[parameter]} groups"
        for name, parameter in named.items()
        if counts[parameter] > 1 or (parameter in missing and parameter.requires_grad and not later)
    ]
    if strangers:
        problems.append(f"{strangers} parameters in the optimizers are not the module's")
    if problems:
        raise RuntimeError(
            "every trainable parameter must be in exactly one optimizer group, found that "
            f"{listed(problems)}; give each to an optimizer once, or freeze those that are not "
            "trained with requires_grad_(False)"
        )


def finetunes(trainer: Trainer) -> bool:
    """Return whether a callback adds parameters to the optimizers during the run."""
    return any(isinstance(callback, BaseFinetuning) for callback in callbacks_of(trainer))


def check_optimizers_can_change(optimizers: Iterable[Optimizer]) -> None:
    """Refuse optimizers that keep a second list of parameters, as LBFGS does, and Adagrad.

    Adagrad makes its state in its constructor, and so has none for a new parameter.

    Raises:
        ValueError: naming the optimizer.
    """
    for optimizer in optimizers:
        if isinstance(optimizer, Adagrad):
            raise ValueError(
                "Adagrad makes the state of its parameters when it is built, and has none for "
                "those that a growth adds; use an optimizer that makes its state at the first "
                "step, such as AdamW or RMSprop"
            )
        for name, value in vars(optimizer).items():
            if name in ("param_groups", "state", "defaults"):
                continue
            values = [*value.keys(), *value.values()] if isinstance(value, dict) else value
            if isinstance(values, (list, tuple, set)) and any(
                isinstance(item, nn.Parameter) for item in values
            ):
                raise ValueError(
                    f"{type(optimizer).__name__} keeps parameters in its own attribute {name!r}, "
                    "which a growth cannot replace; use an optimizer that reads its param_groups, "
                    "such as AdamW or SGD"
                )
