"""What is refused at the start of `fit`, because it would fail when a growth is due."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Sequence

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import (
    BatchSizeFinder,
    Callback,
    LearningRateFinder,
    ModelPruning,
)
from lightning.pytorch.strategies import (
    DDPStrategy,
    DeepSpeedStrategy,
    ModelParallelStrategy,
    SingleDeviceStrategy,
)
from torch import nn
from torch._dynamo import OptimizedModule

from lightning_ligo.axes.axes import OUTPUT
from lightning_ligo.callbacks.averaging import AVERAGING
from lightning_ligo.methods.method import Method
from lightning_ligo.plan.plan import Plan
from lightning_ligo.schedule import Growth
from lightning_ligo.trainer.lightning import averaging_period, callbacks_of, start_method
from lightning_ligo.trainer.sharding import is_sharded
from lightning_ligo.trainer.slot import Slot, listed


def check_trainer(trainer: Trainer, growing: type[Callback]) -> None:
    """Refuse strategies that a growth cannot work with, and several growing callbacks.

    Raises:
        ValueError: naming what was found.
    """
    strategy = trainer.strategy
    known = isinstance(strategy, (SingleDeviceStrategy, DDPStrategy, ModelParallelStrategy))
    if not known or isinstance(strategy, DeepSpeedStrategy):
        raise ValueError(
            f"growth under {type(strategy).__name__} is not supported; train with strategy='ddp', "
            "with ModelParallelStrategy, or on one device, or grow its checkpoint between two "
            "runs, with the command lightning-ligo grow or with lightning_ligo.grow_checkpoint"
        )
    if isinstance(strategy, DDPStrategy) and start_method(strategy) != "popen":
        raise ValueError(
            f"the processes of the DDPStrategy are made by {start_method(strategy)}, and the one "
            "that makes them, which goes on after fit, would be left with the small network; use "
            "strategy='ddp'"
        )
    if isinstance(strategy, DDPStrategy) and averaging_period(strategy) is not None:
        raise ValueError(
            "the DDPStrategy averages the weights of the ranks every "
            f"{averaging_period(strategy)} steps only, and until then each has a network of "
            "its own to grow; leave out model_averaging_period"
        )
    count = sum(isinstance(callback, growing) for callback in callbacks_of(trainer))
    if count > 1:
        raise ValueError(
            f"the Trainer has {count} callbacks of type {growing.__name__}; give one, with all "
            "growths in its list"
        )


def check_callbacks(trainer: Trainer, pl_module: LightningModule, attribute: str) -> None:
    """Refuse callbacks that would be left with the small network.

    Raises:
        ValueError: naming the callback, and where it holds the network or a copy of it.
    """
    network = Slot(pl_module, attribute).network
    parts = {*network.modules(), *network.parameters()}
    for callback in callbacks_of(trainer):
        kind = type(callback).__name__
        if isinstance(callback, ModelPruning):
            raise ValueError(
                f"{kind} has chosen what to prune of the small network and cannot follow a growth; "
                "train without it, and prune the network that has grown"
            )
        if any(base.__name__ == "FinetuningScheduler" for base in type(callback).__mro__):
            raise ValueError(
                f"{kind} trains parameters by the names in its schedule, which a growth in depth "
                "adds to, and goes back to checkpoints of any size; fine-tune with Lightning's "
                "BackboneFinetuning, or in a run after the growths"
            )
        if isinstance(callback, AVERAGING):
            if is_sharded(trainer):
                raise ValueError(
                    f"{kind} keeps an average of whole parameters, and {attribute!r} is shared out "
                    f"under {type(trainer.strategy).__name__}; train without it"
                )
            continue
        for name, value in vars(callback).items():
            held = list(value.values()) if isinstance(value, dict) else value
            for item in held if isinstance(held, (list, tuple, set)) else [held]:
                if isinstance(item, (nn.Module, nn.Parameter)) and item in parts:
                    raise ValueError(
                        f"{kind} holds a part of {attribute!r} in its attribute {name!r}, and "
                        "would be left with the small network; let it reach the network through "
                        "pl_module in its hooks"
                    )
                if isinstance(item, nn.Module) and _has_copy(item, network):
                    raise ValueError(
                        f"{kind} keeps a copy of {attribute!r} in its attribute {name!r}, which "
                        "would stay small; train without it, or average weights with Lightning's "
                        "WeightAveraging, EMAWeightAveraging or StochasticWeightAveraging"
                    )


def _has_copy(module: nn.Module, network: nn.Module) -> bool:
    """Whether a module has in it another network with the same weights."""
    ours = dict(network.named_parameters())
    for part in module.modules():
        if type(part) is type(network) and part is not network:
            theirs = dict(part.named_parameters())
            shapes = [{name: p.shape for name, p in each.items()} for each in (ours, theirs)]
            if shapes[0] == shapes[1] and all(
                torch.equal(p, theirs[name].to(p.device)) for name, p in ours.items()
            ):
                return True
    return False


def check_searches(trainer: Trainer) -> None:
    """Refuse searches at the start of a run that goes on from a checkpoint.

    They load a checkpoint of their own, and Lightning forgets the other one.

    Raises:
        ValueError: naming the callback.
    """
    searches = BatchSizeFinder.on_fit_start, LearningRateFinder.on_fit_start
    for callback in callbacks_of(trainer):
        if type(callback).on_fit_start in searches:
            kind = type(callback).__name__
            raise ValueError(
                f"{kind} searches at the start of fit, after which Lightning has forgotten at "
                "which step and with which optimizer state the run was to go on; resume it "
                f"without {kind}, and set what that has found"
            )


def check_masks(trainer: Trainer, method: Method) -> None:
    """Refuse a method with masks where a rank has only a part of what they mask.

    Raises:
        ValueError: naming the method.
    """
    if method.ramp:
        raise ValueError(
            f"method {method.name!r} masks parameters while the network runs, which is not "
            f"supported under {type(trainer.strategy).__name__}; take another method"
        )


def check_ramp_and_data(method: Method, growths: Sequence[Growth]) -> None:
    """Refuse a method with masks where the data changes, as masks are found by the small network.

    Raises:
        ValueError: naming the growth.
    """
    for number, growth in enumerate(growths, 1):
        if method.ramp and growth.data:
            raise ValueError(
                f"growth {number} changes {', '.join(growth.data)} of the data, and method "
                f"{method.name!r} lets new parts in little by little, which a resumed run could "
                "not find again; take another method"
            )


def check_outputs(plan: Plan) -> None:
    """Refuse a network with more outputs: the module's loss and metrics are for as many as it has.

    Raises:
        ValueError: naming the axis and both lengths.
    """
    for name, (small, large) in plan.axes.items():
        if plan.facts[name].pinned == OUTPUT:
            raise ValueError(
                f"axis {name}, the network's output, is {small} long in the small network and "
                f"{large} in the large one, and what the module does with it, its loss and "
                "metrics, would stay as it is; give both networks the same, or grow between two "
                "runs with lightning_ligo.grow"
            )


def check_network(pl_module: LightningModule, attribute: str) -> None:
    """Refuse networks that something else holds on to, or that have other names where compiled.

    Raises:
        ValueError: naming the other place.
    """
    network, prefix = Slot(pl_module, attribute).network, f"{attribute}."
    wrapped = [name for name, part in network.named_modules() if isinstance(part, OptimizedModule)]
    if wrapped:
        raise ValueError(
            f"torch.compile has wrapped {listed(wrapped)} of {attribute!r}, whose parameters then "
            "have other names than in a network that is built; compile it in place, with "
            "module.compile(), or the whole network"
        )
    inner = {*network.modules(), *network.parameters()}
    for kind, everywhere in (
        ("module", pl_module.named_modules(remove_duplicate=False)),
        ("parameter", pl_module.named_parameters(remove_duplicate=False)),
    ):
        outside = [
            name
            for name, item in everywhere
            if item in inner and name != attribute and not name.startswith(prefix)
        ]
        if outside:
            raise ValueError(
                f"{listed(outside)} of {type(pl_module).__name__} is a {kind} of {attribute!r} "
                "too, and would be left with the small network; reach it through "
                f"self.{attribute} only"
            )


def check_module(pl_module: LightningModule, method: Method, steps: int) -> None:
    """Refuse modules whose training step cannot be run aside.

    Raises:
        ValueError: for a step that optimizes, and for activations that are computed again in the
            old way (transformers' networks alone say so), if an operator is to be learned on the
            loss; for a step that takes the data iterator.
    """
    if steps > 0 and not pl_module.automatic_optimization:
        raise ValueError(
            f"{type(pl_module).__name__} has automatic_optimization = False, so that its "
            f"training_step trains, and the operator of method {method.name!r} is learned on a "
            "loss without training; take a method that learns nothing, as "
            'GrowthCallback(..., method="lemon"), or learn for steps=0'
        )
    again = [
        name
        for name, part in pl_module.named_modules()
        if getattr(part, "gradient_checkpointing", False)
        and _is_reentrant(getattr(part, "_gradient_checkpointing_func", None))
    ]
    if steps > 0 and again:
        raise ValueError(
            f"{listed(again)} of {type(pl_module).__name__} computes activations again with "
            f"use_reentrant=True, by which torch finds gradients of parameters alone, and method "
            f"{method.name!r} learns those of an operator; use use_reentrant=False, which torch "
            "advises, or a method that learns nothing"
        )
    if "dataloader_iter" in inspect.signature(pl_module.training_step).parameters:
        raise ValueError(
            "training_step takes dataloader_iter, and growth calls it with batches; take the "
            "batch instead"
        )


def _is_reentrant(function: object) -> bool:
    """Whether it is torch's activation checkpointing in its old way, as transformers keep it."""
    return isinstance(function, functools.partial) and bool(function.keywords.get("use_reentrant"))
