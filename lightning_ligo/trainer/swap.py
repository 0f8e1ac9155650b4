"""Replace the small network by the large one in a LightningModule during `fit`.

The optimizers, their Lightning wrappers and the schedulers stay the same objects. Only the
parameters in the optimizer groups change.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import ModelSummary
from lightning.pytorch.strategies import DDPStrategy
from torch import Tensor, nn
from torch.distributed.algorithms.ddp_comm_hooks.powerSGD_hook import PowerSGDState

from lightning_ligo.trainer.holders import copies_in
from lightning_ligo.trainer.lightning import (
    callbacks_of,
    communication_state,
    forget_metric_names,
    with_synced_norms,
    wrap_in_ddp,
)
from lightning_ligo.trainer.optimizers import (
    all_optimizers,
    carry_states,
    check_every_parameter_once,
    fill_groups,
    group_names,
    moments,
)
from lightning_ligo.trainer.sharding import is_sharded, shard
from lightning_ligo.trainer.slot import Slot

Parents = Mapping[str, Sequence[str]]
"""Maps a large parameter to its small parents; it takes its group from the first of them."""


def swap(
    trainer: Trainer,
    slot: Slot,
    large: nn.Module,
    parents: Parents,
    grow_states: Callable[[Mapping[str, Any]], Mapping[str, Any]],
    put_others: Callable[[], object] = lambda: None,
) -> int:
    """Replace the network in the slot by `large`; return the number of parameters with state.

    A large parameter joins the optimizer group of its first parent. Groups keep the order of
    `named_parameters()`. `grow_states` maps the optimizer state of the small network, by name, to
    that of the large one. A parameter without state starts with zero moments and counts its own
    steps, so that bias correction works as at the start of a run. Parameters outside the network
    keep their group and state. `put_others` replaces what else grows, such as a copy of the network
    in the module. Call `conform` on `large` first.

    Raises:
        RuntimeError: if a trainable parameter is not in exactly one optimizer group afterwards.
        ValueError: if a rank's weights, or its optimizer state under DDP, differ from those of
            rank 0.
    """
    pl_module, small = slot.module, slot.network
    groups = group_names(trainer, pl_module)
    present = dict(pl_module.named_parameters())
    copies = {n: (pl_module.get_submodule(n), at) for n, at in copies_in(slot, small).items()}
    slot.set(large)
    put_others()
    first = {slot.outer(name): slot.outer(names[0]) for name, names in parents.items()}
    for copy, (before, start) in copies.items():
        if pl_module.get_submodule(copy) is not before:
            first |= {
                f"{copy}.{name.removeprefix(start)}": f"{copy}.{names[0].removeprefix(start)}"
                for name, names in parents.items()
                if name.startswith(start)
            }
    order = [name for name, _ in pl_module.named_parameters()]
    groups = [
        [[name for name in order if first.get(name, name) in names] for names in map(set, held)]
        for held in groups
    ]
    if isinstance(trainer.strategy, DDPStrategy):
        wrap_in_ddp(trainer.strategy, pl_module)
    elif is_sharded(trainer):  # compared before sharding; buffers stay each rank's own
        check_ranks_are_alike(trainer, dict(large.named_parameters()))
        shard(trainer, slot)
    carried = carry_states(trainer, small, large, grow_states)
    fill_groups(trainer, pl_module, groups, present)
    for parameter in set(large.parameters()) - set(small.parameters()):
        parameter.grad = None
    if isinstance(trainer.strategy, DDPStrategy):
        check_ranks_are_alike(trainer, {**pl_module.state_dict(), **moments(trainer, pl_module)})
    if slot.is_compiled:
        torch.compiler.reset()  # the small network's programs count against the recompile limit
    forget_metric_names(pl_module)
    check_every_parameter_once(trainer, pl_module, slot.network)
    for callback in callbacks_of(trainer):
        if isinstance(callback, ModelSummary):
            callback.on_fit_start(trainer, pl_module)
    return carried


@contextmanager
def undone(trainer: Trainer, slot: Slot) -> Iterator[None]:
    """Restore the small network and the optimizers if an error occurs inside the context."""
    small, strategy = slot.network, dict(vars(trainer.strategy))
    optimizers = all_optimizers(trainer)
    groups = [[dict(group) for group in o.param_groups] for o in optimizers]
    states = [dict(optimizer.state) for optimizer in optimizers]
    try:
        yield
    except BaseException:  # an interrupt too: callbacks may save a checkpoint on it
        slot.set(small)
        vars(trainer.strategy).update(strategy)  # the wrapper of DDP
        forget_metric_names(slot.module)
        for optimizer, held, state in zip(optimizers, groups, states, strict=True):
            for group, before in zip(optimizer.param_groups, held, strict=True):
                group.update(before)
            optimizer.state.clear()
            optimizer.state.update(state)
        raise


def restart_compression(trainer: Trainer) -> None:
    """Reset PowerSGD, whose buffers have the shapes of the small network's gradients."""
    state = communication_state(trainer)
    if isinstance(state, PowerSGDState):
        state.iter = 0
        for kept in (state.error_dict, state.p_memory_dict, state.q_memory_dict):
            kept.clear()


def check_ranks_are_alike(trainer: Trainer, tensors: Mapping[str, Tensor]) -> None:
    """Raise ValueError naming the ranks whose tensors have another hash than those of rank 0."""
    if trainer.world_size == 1:
        return
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        raw = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
        digest.update(name.encode() + raw.numpy().tobytes())
    own = torch.frombuffer(bytearray(digest.digest()), dtype=torch.uint8)
    every = trainer.strategy.all_gather(own.to(trainer.strategy.root_device))
    differ = [str(rank) for rank, other in enumerate(every) if not torch.equal(other, every[0])]
    if differ:
        raise ValueError(
            "after a growth the weights, or the state of their optimizers, of ranks "
            f"{', '.join(differ)} are not those of rank 0, so the run would train several "
            "networks; look for unseeded randomness in the network's constructor, "
            "and for code that changes the optimizers on one rank only"
        )


def conform(trainer: Trainer, small: nn.Module, large: nn.Module, parents: Parents) -> nn.Module:
    """Give `large` the device, dtypes, frozen parameters and training modes of `small`.

    Batch norms whose statistics a finetuning callback has frozen stay frozen.
    """
    large = with_synced_norms(trainer, large)
    large = trainer.precision_plugin.convert_module(large).to(trainer.strategy.root_device)
    match(small, large, parents)
    return large


def match(small: nn.Module, large: nn.Module, parents: Parents) -> None:
    """Give `large` the dtypes, frozen parameters and training modes of `small`."""
    inner = dict(small.named_parameters())
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


def _layers(parents: Parents) -> dict[str, str]:
    """Return `{"blocks.3": "blocks.1"}` for `blocks.3.mlp.fc1.bias` with a parent in `blocks.1`."""
    layers = {}
    for name, (parent, *_) in parents.items():
        large, small = name.split("."), parent.split(".")
        differ = [i for i, (a, b) in enumerate(zip(large, small, strict=False)) if a != b]
        if differ:
            layers[".".join(large[: differ[-1] + 1])] = ".".join(small[: differ[-1] + 1])
    return layers
