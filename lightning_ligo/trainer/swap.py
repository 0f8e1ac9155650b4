"""Put a large network where a small one was, in a LightningModule that is being trained.

The only file that changes a live Trainer. The optimizers, their Lightning wrappers and the
schedulers stay the objects they were; what changes are the parameters in their groups.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import BaseFinetuning, Callback, ModelSummary
from lightning.pytorch.strategies import DDPStrategy
from torch import Tensor, nn
from torch.distributed.algorithms.ddp_comm_hooks.powerSGD_hook import PowerSGDState
from torch.distributed.tensor import DTensor
from torch.optim import Adagrad, Optimizer

from lightning_ligo.trainer.sharding import is_sharded, placed, shard, whole
from lightning_ligo.trainer.slot import Slot

Parents = Mapping[str, Sequence[str]]
"""Large parameter name -> the small ones it comes from; the first is the one it takes after."""


def swap(
    trainer: Trainer,
    slot: Slot,
    large: nn.Module,
    parents: Parents,
    grow_states: Callable[[Mapping[str, Any]], Mapping[str, Any]],
) -> int:
    """Replace the network in the slot by `large`; return how many parameters have state.

    A large parameter joins the optimizer group that the first of its parents was in; groups are in
    the order of `named_parameters()`. Its optimizer state is what `grow_states` makes of that of
    the small network, by name; one that gets none starts fresh: its moments are zero and its own
    steps are counted from here, so that bias correction works as at the start of a run. Parameters
    outside the network keep their place and state. `large` is to be made alike before, see
    `conform`.

    Raises:
        RuntimeError: if a trainable parameter is not in exactly one optimizer group afterwards, or
            ranks have other weights, or under DDP another optimizer state, than rank 0.
    """
    pl_module, small, at = slot.module, slot.network, slot.prefix
    groups = group_names(trainer, pl_module)
    outer, inner = dict(pl_module.named_parameters()), dict(small.named_parameters())
    slot.set(large)
    first = {f"{at}.{name}": f"{at}.{names[0]}" for name, names in parents.items()}
    order = [name for name, _ in pl_module.named_parameters()]
    groups = [
        [[name for name in order if first.get(name, name) in names] for names in map(set, held)]
        for held in groups
    ]
    _wrap_again(trainer, slot)
    grown, carried = dict(large.named_parameters()), 0
    for optimizer in trainer.optimizers:
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
        carried += len(states)
    _fill_groups(trainer, pl_module, groups, outer)
    for parameter in grown.values():
        parameter.grad = None
    if isinstance(trainer.strategy, DDPStrategy):
        check_ranks_are_alike(trainer, {**pl_module.state_dict(), **_moments(trainer, pl_module)})
    if slot.is_compiled or pl_module._compiler_ctx is not None:
        torch.compiler.reset()  # the small network's programs count against the recompile limit
    pl_module._metric_attributes = None  # the names of torchmetrics, which Lightning caches
    check_every_parameter_once(trainer, pl_module)
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(callback, ModelSummary):
            callback.on_fit_start(trainer, pl_module)
    return carried


@contextmanager
def undone(trainer: Trainer, slot: Slot) -> Iterator[None]:
    """If `swap` or what follows it fails, put the small network and the optimizers back."""
    small, strategy = slot.network, dict(vars(trainer.strategy))
    groups = [[dict(group) for group in o.param_groups] for o in trainer.optimizers]
    states = [dict(optimizer.state) for optimizer in trainer.optimizers]
    try:
        yield
    except BaseException:  # an interrupt too: callbacks may save a checkpoint on it
        slot.set(small)
        vars(trainer.strategy).update(strategy)  # the wrapper of DDP
        slot.module._metric_attributes = None
        for optimizer, held, state in zip(trainer.optimizers, groups, states, strict=True):
            for group, before in zip(optimizer.param_groups, held, strict=True):
                group.update(before)
            optimizer.state.clear()
            optimizer.state.update(state)
        raise


def _wrap_again(trainer: Trainer, slot: Slot) -> None:
    """Let DDP reduce the gradients of the parameters that there are now, or share them out."""
    strategy = trainer.strategy
    if isinstance(strategy, DDPStrategy):
        strategy.model = slot.module  # the old wrapper, and its buckets, are freed
        strategy._pl_static_graph_delay_done = False
        strategy.configure_ddp()  # rank 0's parameters and buffers are for all
    elif is_sharded(trainer):  # afterwards each rank has a part only; buffers stay its own
        check_ranks_are_alike(trainer, dict(slot.network.named_parameters()))
        shard(trainer, slot)


def restart_compression(trainer: Trainer) -> None:
    """Let PowerSGD begin anew: what it keeps has the shapes of the small network's gradients."""
    state = getattr(trainer.strategy, "_ddp_comm_state", None)
    if isinstance(state, PowerSGDState):
        state.iter = 0
        for kept in (state.error_dict, state.p_memory_dict, state.q_memory_dict):
            kept.clear()


def check_ranks_are_alike(trainer: Trainer, tensors: Mapping[str, Tensor]) -> None:
    """Assert that all ranks hold the same tensors, by a hash of them.

    Raises:
        RuntimeError: naming the ranks that differ from rank 0.
    """
    if trainer.world_size == 1:
        return
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        raw = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
        digest.update(name.encode() + raw.numpy().tobytes())
    mine = torch.frombuffer(bytearray(digest.digest()), dtype=torch.uint8)
    every = trainer.strategy.all_gather(mine.to(trainer.strategy.root_device))
    differ = [str(rank) for rank, theirs in enumerate(every) if not torch.equal(theirs, every[0])]
    if differ:
        raise RuntimeError(
            f"after the growth at step {trainer.global_step} the weights, or the state of their "
            f"optimizers, of ranks {', '.join(differ)} are not those of rank 0, so the run would "
            "train several networks; look for randomness that is not seeded, in the network's "
            "constructor, and for what one rank alone does to the optimizers"
        )


def conform(trainer: Trainer, small: nn.Module, large: nn.Module, parents: Parents) -> nn.Module:
    """Make `large` like `small`: device, dtypes, what is frozen, and what is in evaluation mode.

    Batch norms whose statistics a finetuning callback has stopped are stopped too.
    """
    inner = dict(small.named_parameters())
    synced = getattr(trainer.strategy, "_layer_sync", None)
    large = synced.apply(large) if synced is not None else large
    large = trainer.precision_plugin.convert_module(large).to(trainer.strategy.root_device)
    for name, parameter in large.named_parameters():
        parent = inner[parents[name][0]]
        parameter.data = parameter.data.to(parent.dtype)
        parameter.requires_grad_(parent.requires_grad)
    twins, layers = dict(small.named_modules()), _layers(parents)
    for name, module in large.named_modules():
        twin = name
        for large_layer, small_layer in layers.items():
            if f"{name}.".startswith(f"{large_layer}."):
                twin = small_layer + name[len(large_layer) :]
        module.training = twins.get(twin, small).training
        if hasattr(twins.get(twin), "track_running_stats"):
            module.track_running_stats = twins[twin].track_running_stats
    return large


def _layers(parents: Parents) -> dict[str, str]:
    """`{"blocks.3": "blocks.1"}` from `blocks.3.mlp.fc1.bias` and its parent in `blocks.1`."""
    layers = {}
    for name, (parent, *_) in parents.items():
        mine, theirs = name.split("."), parent.split(".")
        differ = [i for i, (a, b) in enumerate(zip(mine, theirs, strict=False)) if a != b]
        if differ:
            layers[".".join(mine[: differ[-1] + 1])] = ".".join(theirs[: differ[-1] + 1])
    return layers


# Optimizers ---------------------------------------------------------------------------------------


def group_names(trainer: Trainer, pl_module: LightningModule) -> list[list[list[str]]]:
    """The names of the parameters in every group of every optimizer."""
    name_of = _names(pl_module)
    return [
        [[name_of[parameter] for parameter in group["params"]] for group in optimizer.param_groups]
        for optimizer in trainer.optimizers
    ]


def _names(pl_module: LightningModule) -> dict[Tensor, str]:
    return {parameter: name for name, parameter in pl_module.named_parameters()}


def _moments(trainer: Trainer, pl_module: LightningModule) -> dict[str, Tensor]:
    """The tensors of the optimizers' state, by the parameter that they belong to."""
    name_of = _names(pl_module)
    return {
        f"{name_of[parameter]} {number} {key}": value
        for number, optimizer in enumerate(trainer.optimizers)
        for parameter, state in optimizer.state.items()
        for key, value in state.items()
        if isinstance(value, Tensor)
    }


def _laid_out(value: Any, parameter: nn.Parameter) -> Any:
    """State shared out as its parameter, or in its memory format, which fused optimizers expect."""
    if not isinstance(value, Tensor) or value.shape != parameter.shape:
        return value
    if isinstance(parameter, DTensor):
        return placed(value, parameter)
    if value.stride() == parameter.stride():
        return value
    return torch.empty_like(parameter, dtype=value.dtype, requires_grad=False).copy_(value)


def regroup(trainer: Trainer, pl_module: LightningModule, groups: list[list[list[str]]]) -> None:
    """Put the parameters of these names into the groups of the optimizers, whatever was there.

    Raises:
        ValueError: if the optimizers have other groups than the names tell.
    """
    found = [len(optimizer.param_groups) for optimizer in trainer.optimizers]
    if found != [len(names) for names in groups]:
        raise ValueError(
            f"the checkpoint was written with optimizers of {[len(names) for names in groups]} "
            f"parameter groups, configure_optimizers makes {found}; resume with the optimizers "
            "that the run began with"
        )
    _fill_groups(trainer, pl_module, groups, {})
    check_every_parameter_once(trainer, pl_module)


def _fill_groups(
    trainer: Trainer,
    pl_module: LightningModule,
    groups: list[list[list[str]]],
    before: Mapping[str, nn.Parameter],
) -> None:
    parameters = dict(pl_module.named_parameters())
    for optimizer, names_of_groups in zip(trainer.optimizers, groups, strict=True):
        for group, names in zip(optimizer.param_groups, names_of_groups, strict=True):
            if "param_names" in group:  # torch keeps these where it was given named parameters
                group["param_names"] = _short(group, names, before)
            group["params"] = [parameters[name] for name in names]


def _short(
    group: dict[str, Any], names: list[str], before: Mapping[str, nn.Parameter]
) -> list[str]:
    """The names as the optimizer was told them, which may be relative to some submodule."""
    full_name = {parameter: name for name, parameter in before.items()}
    for parameter, short in zip(group["params"], group["param_names"], strict=True):
        full = full_name.get(parameter, short)
        if full.endswith(f".{short}"):
            return [name.removeprefix(full[: -len(short)]) for name in names]
    return names


def check_every_parameter_once(trainer: Trainer, pl_module: LightningModule) -> None:
    """Assert that every trainable parameter is in exactly one optimizer group.

    Or in none by now, where a finetuning callback puts it into one when its time has come.

    Raises:
        RuntimeError: naming the parameters that are not, or that the optimizers hold although the
            module does not.
    """
    counts: dict[nn.Parameter, int] = {}
    for optimizer in trainer.optimizers:
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                counts[parameter] = counts.get(parameter, 0) + 1
    named, later = dict(pl_module.named_parameters()), finetunes(trainer)
    strangers = len(counts.keys() - set(named.values()))
    problems = [
        f"{name} is in {counts.get(parameter, 0)} groups"
        for name, parameter in named.items()
        if counts.get(parameter, 0) > 1
        or (parameter.requires_grad and parameter not in counts and not later)
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
    """Whether a callback gives parameters to the optimizers while the run goes on."""
    callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]
    return any(isinstance(callback, BaseFinetuning) for callback in callbacks)


def check_optimizers_can_change(optimizers: Iterable[Optimizer]) -> None:
    """Refuse optimizers that keep a list of parameters besides their groups, as LBFGS does.

    Also Adagrad, which makes its state when it is built and cannot go on with a new parameter.

    Raises:
        ValueError: naming the optimizer.
    """
    for optimizer in optimizers:
        if isinstance(optimizer, Adagrad):
            raise ValueError(
                "Adagrad makes the state of its parameters when it is built, and has none for "
                "those that a growth adds; use an optimizer that makes it at the first step, such "
                "as AdamW or RMSprop"
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


def listed(words: Sequence[str], most: int = 6) -> str:
    """Some of many words, for an error."""
    more = [f"and {len(words) - most} more"] if len(words) > most else []
    return ", ".join([*words[:most], *more])
