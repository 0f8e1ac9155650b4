"""Checks at the start of `fit` of what would fail when a growth is due.

Each raises a ValueError that names the cause.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Collection

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
from lightning_utilities.core.rank_zero import rank_zero_warn
from torch import nn
from torch._dynamo import OptimizedModule
from torch.utils._pytree import MappingKey, tree_flatten_with_path

from lightning_ligo.axes.axes import OUTPUT
from lightning_ligo.axes.notation import match, split
from lightning_ligo.axes.override import Override
from lightning_ligo.axes.stacks import inside, place_of
from lightning_ligo.callbacks.averaging import AVERAGING
from lightning_ligo.callbacks.settings import Settings
from lightning_ligo.methods.method import Method
from lightning_ligo.plan.plan import Plan
from lightning_ligo.trainer.lightning import (
    averaging_period,
    callbacks_of,
    datamodule_of,
    start_method,
)
from lightning_ligo.trainer.sharding import is_sharded
from lightning_ligo.trainer.slot import Slot, listed


def check_run(
    trainer: Trainer, pl_module: LightningModule, settings: Settings, kind: type[Callback]
) -> None:
    """Check everything that a run with a GrowthCallback of this kind is made of."""
    check_trainer(trainer, kind)
    check_module(pl_module, settings.method)
    check_network(settings.slot(pl_module))
    check_callbacks(trainer, settings.slot(pl_module))
    check_masks(trainer, settings)


def check_imports(trainer: Trainer) -> None:
    """Check that the Trainer, its callbacks and its datamodule are of the package `lightning`.

    `pytorch_lightning` has the same classes once more, which no check for a class recognises.
    """
    for part in (trainer, *callbacks_of(trainer), datamodule_of(trainer)):
        if any(base.__module__.startswith("pytorch_lightning.") for base in type(part).__mro__):
            raise ValueError(
                f"{type(part).__name__} is of the package pytorch_lightning, whose classes are "
                "others than those of lightning, which GrowthCallback grows with; import it from "
                "lightning: write `import lightning.pytorch as pl` for `import pytorch_lightning "
                "as pl`, everywhere"
            )


def warn_of_script(networks: object) -> None:
    """Warn of networks whose class only this script has, in descriptions within plain data."""
    classes = {
        value
        for path, value in tree_flatten_with_path(networks)[0]
        if path[-1:] == (MappingKey("class_path"),) and str(value).startswith("__main__.")
    }
    if classes:
        names = ", ".join(sorted(classes))
        rank_zero_warn(
            f"{names}: only this script can open the checkpoints of this run, as the network is "
            "defined in it; move its class into a file of its own, such as networks.py, and "
            "import it from there, here and where checkpoints are opened"
        )


def check_trainer(trainer: Trainer, kind: type[Callback]) -> None:
    """Check that the strategy is supported, and that there is one callback of this kind."""
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
            f"the processes of the DDPStrategy are made by {start_method(strategy)}, and the main "
            "process, which continues after fit, would keep the small network; use strategy='ddp'"
        )
    if isinstance(strategy, DDPStrategy) and averaging_period(strategy) is not None:
        raise ValueError(
            "the DDPStrategy averages the weights of the ranks every "
            f"{averaging_period(strategy)} steps only, and each rank would grow another "
            "network; leave out model_averaging_period"
        )
    callbacks = callbacks_of(trainer)
    count = sum(isinstance(callback, kind) for callback in callbacks)
    if count > 1:
        raise ValueError(
            f"the Trainer has {count} callbacks of type {kind.__name__}; give one, with all "
            "growths in its list"
        )


def check_callbacks(trainer: Trainer, slot: Slot) -> None:
    """Check that no callback is known not to follow a growth."""
    for callback in callbacks_of(trainer):
        kind = type(callback).__name__
        if isinstance(callback, ModelPruning):
            raise ValueError(
                f"{kind} has chosen parameters of the small network to prune and cannot follow a "
                "growth; train without it, and prune the large network"
            )
        if any(base.__name__ == "FinetuningScheduler" for base in type(callback).__mro__):
            raise ValueError(
                f"{kind} has a schedule of parameter names, to which a growth in depth adds, and "
                "restores checkpoints of any size; fine-tune with Lightning's BackboneFinetuning, "
                "or in a run after the growths"
            )
        if isinstance(callback, AVERAGING) and is_sharded(trainer):
            raise ValueError(
                f"{kind} keeps an average of whole parameters, and {slot.attribute!r} is sharded "
                f"under {type(trainer.strategy).__name__}; train without it"
            )


def check_searches(trainer: Trainer) -> None:
    """Check that a resumed run does not begin with a search.

    A search loads its own checkpoint, and Lightning then loses the one to resume from.
    """
    searches = BatchSizeFinder.on_fit_start, LearningRateFinder.on_fit_start
    for callback in callbacks_of(trainer):
        if type(callback).on_fit_start in searches:
            kind = type(callback).__name__
            raise ValueError(
                f"{kind} searches at the start of fit, after which Lightning has lost the step and "
                f"the optimizer state to resume from; resume without {kind}, and set the value "
                "that it has found"
            )


def check_masks(trainer: Trainer, settings: Settings) -> None:
    """Check that a method with masks is not used with sharded parameters or with changes of data.

    Masks are found with the small network, which a resumed run cannot call on the new data.
    """
    method = settings.method
    if method.ramp and is_sharded(trainer):
        raise ValueError(
            f"method {method.name!r} masks parameters while the network runs, which is not "
            f"supported under {type(trainer.strategy).__name__}; use another method"
        )
    for number, growth in enumerate(settings.growths, 1):
        if method.ramp and growth.data:
            raise ValueError(
                f"growth {number} changes {', '.join(growth.data)} of the data, and method "
                f"{method.name!r} unmasks new parts over many steps, and a resumed run could not "
                "find them again; use another method"
            )


def check_outputs(plan: Plan) -> None:
    """Check that both networks have as many outputs, as the module's loss and metrics expect."""
    for name, (small, large) in plan.axes.items():
        if plan.all_axes[name].pinned == OUTPUT:
            raise ValueError(
                f"axis {name}, the network's output, is {small} long in the small network and "
                f"{large} in the large one, and the module's loss and metrics would not change; "
                "give both networks the same outputs, or what reads them a growth with the same "
                "trigger, or grow between two runs with lightning_ligo.grow"
            )


def check_used(plan: Plan, trained: Collection[str], override: Override | None) -> None:
    """Check that the watched steps use every trained parameter that a growth changes.

    Those that ``override`` maps to None start as the large network builds them.
    """
    fresh = [name for name, text in (override or {}).items() if text is None]
    unused = [
        row.pattern
        for row in plan.unused
        if not set(trained).isdisjoint(row.large_names)
        and not any(match(split(n), each) is not None for n in fresh for each in row.large_names)
    ]
    if unused:
        places = (place_of(pattern, plan.layers) for pattern in unused[:6])
        names = (inside(plan.layers[stack].path, rest) if stack else rest for stack, rest in places)
        lines = ", ".join(f"{name!r}: None" for name in names)
        raise ValueError(
            f"an optimizer trains {listed(unused)}, and no step that was watched (training_step on "
            "up to 8 batches, validation_step on one) uses it in a call of the network or of its "
            "parts, so that nothing shows its axes; call the network in the step, or let it start "
            f"as the large network builds it, with override={{{lines}}}"
        )


def check_network(slot: Slot) -> None:
    """Check that nothing else holds the network, and that compiling has renamed no parameter."""
    network, attribute = slot.network, slot.attribute
    wrapped = [name for name, part in network.named_modules() if isinstance(part, OptimizedModule)]
    if wrapped:
        raise ValueError(
            f"torch.compile has wrapped {listed(wrapped)} of {attribute!r}, whose parameters then "
            "have other names than in a new network; compile it in place, with "
            "module.compile(), or the whole network"
        )
    names = dict[nn.Parameter, list[str]]()
    for part, one in slot.split(network):
        for name, parameter in one.named_parameters():
            names.setdefault(parameter, []).append(f"{part.attribute}.{name}")
    tied = [" and ".join(each) for each in names.values() if len(each) > 1]
    if tied:
        raise ValueError(
            f"{listed(tied)} are one parameter in two networks, and would be two in the large "
            "ones; let one network hold both, and grow that"
        )
    inner = {*network.modules(), *network.parameters()}
    for kind, everywhere in (
        ("module", slot.module.named_modules(remove_duplicate=False)),
        ("parameter", slot.module.named_parameters(remove_duplicate=False)),
    ):
        outside = [
            name
            for name, item in everywhere
            if item in inner and not slot.is_whole and not slot.has(name)
        ]
        if outside:
            raise ValueError(
                f"{listed(outside)} of {type(slot.module).__name__} is a {kind} of {attribute!r} "
                f"too, and would keep the small network; access it through {slot.words} only"
            )


def check_module(pl_module: LightningModule, method: Method) -> None:
    """Check that the training step can be run without side effects."""
    if method.steps > 0 and not pl_module.automatic_optimization:
        raise ValueError(
            f"{type(pl_module).__name__} has automatic_optimization = False, so that its "
            f"training_step trains, and the operator of method {method.name!r} is learned on a "
            'loss without training; use a method that learns nothing, such as method="lemon", or '
            "steps=0"
        )
    again = [
        name
        for name, part in pl_module.named_modules()
        if getattr(part, "gradient_checkpointing", False)
        and _is_reentrant(getattr(part, "_gradient_checkpointing_func", None))
    ]
    if method.steps > 0 and again:
        raise ValueError(
            f"{listed(again)} of {type(pl_module).__name__} recomputes activations with "
            f"use_reentrant=True, with which torch finds gradients of parameters only, and method "
            f"{method.name!r} needs those of an operator; use use_reentrant=False, as torch "
            "recommends, or a method that learns nothing"
        )
    if "dataloader_iter" in inspect.signature(pl_module.training_step).parameters:
        raise ValueError(
            "training_step takes dataloader_iter, and a growth calls it with batches; give it the "
            "argument batch instead"
        )


def _is_reentrant(function: object) -> bool:
    """Whether it is torch's reentrant activation checkpointing, as transformers store it."""
    return isinstance(function, functools.partial) and bool(function.keywords.get("use_reentrant"))
