"""Grow the network of a run once: learn the operator on the run's batches, and swap."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from typing import Any, NamedTuple

from lightning.pytorch import LightningModule, Trainer
from torch import Tensor, nn
from tqdm.auto import tqdm  # type: ignore[import-untyped]

from lightning_ligo.axes.calls import Call, materialize
from lightning_ligo.callbacks.accounting import Accounting
from lightning_ligo.callbacks.averaging import (
    averaged_validation,
    averages_of,
    check_averages,
    grown_averages,
    set_averages,
    slots_of_averages,
)
from lightning_ligo.callbacks.failure import alike
from lightning_ligo.callbacks.finetuning import remember_groups
from lightning_ligo.callbacks.settings import Settings
from lightning_ligo.callbacks.sharding import Sharding
from lightning_ligo.networks import build
from lightning_ligo.operator.fit import fit
from lightning_ligo.operator.flops import flop_counter
from lightning_ligo.operator.measure import Change, compare
from lightning_ligo.operator.operator import Operator
from lightning_ligo.operator.optimizer_state import grow_states
from lightning_ligo.operator.ramp import Ramp
from lightning_ligo.plan.plan import Plan
from lightning_ligo.trainer.checkpoint import (
    described,
    record_of,
    remember_growth,
    set_record,
    size_of,
    sizes_of,
)
from lightning_ligo.trainer.lightning import training_output
from lightning_ligo.trainer.sandbox import sandboxed
from lightning_ligo.trainer.sharding import is_sharded
from lightning_ligo.trainer.steps import evaluate, own_batches, training_loss
from lightning_ligo.trainer.swap import conform, swap, undone


class Grown(NamedTuple):
    """The results of a growth."""

    small: nn.Module  # whole on every rank
    large: nn.Module
    operator: Operator
    ramp: Ramp | None  # for a method that masks new parts
    change: Change  # of the function
    losses: tuple[float, ...]  # of every step of learning
    flops: int  # of learning
    metrics: dict[str, float]  # of the large network, if it was validated
    optimizer_state: dict[str, int]  # large parameters, and those `carried` over


class Grower:
    """Swaps a network for a grown one, or restores everything if that fails."""

    def __init__(self, settings: Settings, sharding: Sharding, accounting: Accounting) -> None:
        self._settings = settings
        self._sharding = sharding
        self._accounting = accounting

    def grow(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        plan: Plan,
        calls: Sequence[Call],
        check: Callable[[dict[str, float]], None],
    ) -> Grown:
        """Grow the network once, at the start of a batch.

        Args:
            trainer, pl_module: of the run.
            plan: plan of this growth.
            calls: of the small network, on which the function is compared.
            check: called with the metrics of the large network, before the swap.

        Raises:
            GrowthFailedError: on all ranks if the growth fails on one; everything is restored.
        """
        slot, growths = self._settings.slot(pl_module), self._settings.growths
        size = size_of(pl_module)
        description = sizes_of(pl_module, growths)[size + 1]
        seed = self._settings.seed * 65537 + size
        bar_is_shown = _shows_progress(trainer)
        with alike(trainer):
            small = self._sharding.plain(pl_module, slot.network)
            with sandboxed(trainer, pl_module, seed):
                assert description is not None
                operator = Operator(plan, small, self._settings.method, seed)
                parents = operator.parents()
                built = materialize(build(description), plan.lazy)
                large = conform(trainer, small, built, parents)
                slot.set(large)
                learned = self._learn(trainer, pl_module, operator, bar_is_shown)
                operator.bake(large)
                change = _compared(operator, small, large, calls)
                averaged = grown_averages(trainer, slot.attribute, operator, large)
                ramp = Ramp(operator, large) if self._settings.method.ramp else None
            watching = [*averaged_validation(trainer), self._accounting.of_evaluation(size + 1)]
            with (
                sandboxed(trainer, pl_module, seed),
                averages_of(trainer, slot.attribute, averaged),
            ):
                slot.set(large)
                metrics = evaluate(trainer, *watching) if trainer.enable_validation else {}
            check(metrics)
        states = functools.partial(grow_states, operator, policy=self._settings.optimizer_state)
        with self._undone(trainer, pl_module, small), alike(trainer):
            if is_sharded(trainer):
                self._sharding.see(pl_module, large)
            carried = swap(trainer, slot, large, parents, states)
            set_averages(trainer, slot.attribute, averaged)
            check_averages(trainer, pl_module)
            remember_groups(trainer, pl_module)
            remember_growth(pl_module, growths)
        state = {"carried": carried, "parameters": len(parents)}
        return Grown(small, large, operator, ramp, change, *learned, metrics, state)

    def _learn(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        operator: Operator,
        bar_is_shown: bool,
    ) -> tuple[tuple[float, ...], int]:
        """Learn the operator in place; return the loss of every step, and the FLOPs."""
        method = self._settings.method
        if not method.steps or not operator.coefficients:
            return (), 0
        counter, first_step, losses = flop_counter(), ExitStack(), list[float]()
        bar = tqdm(total=method.steps, desc="Growing", leave=False, disable=not bar_is_shown)
        batches = own_batches(trainer, pl_module)
        numbered = enumerate(batches)

        def loss(_: nn.Module, item: tuple[int, Any]) -> Tensor:
            position, batch = item
            return training_loss(training_output(trainer, batch, position))

        def on_step(_: int, value: float) -> None:
            first_step.close()
            losses.append(value)
            bar.set_postfix(loss=f"{value:.4g}", refresh=False)
            bar.update()

        try:
            with bar, closing(batches), first_step:
                first_step.enter_context(counter)
                fit(
                    operator,
                    self._settings.slot(pl_module).network,
                    loss,
                    numbered,
                    steps=method.steps,
                    learning_rate=method.learning_rate,
                    warmup=min(method.warmup, method.steps // 2),
                    on_step=on_step,
                    average=functools.partial(trainer.strategy.reduce, reduce_op="mean"),
                )
        finally:  # a failed growth has spent them too
            flops = counter.get_total_flops() * len(losses) * trainer.world_size
            self._accounting.operator += flops
        return tuple(losses), flops

    @contextmanager
    def _undone(
        self, trainer: Trainer, pl_module: LightningModule, small: nn.Module
    ) -> Iterator[None]:
        """Restore everything if the swap fails, the record for checkpoints too."""
        slot, record = self._settings.slot(pl_module), record_of(pl_module)
        entry, places = described(slot), slots_of_averages(trainer, slot.attribute)
        averaged = [each.network for each in places]
        assert record is not None
        try:
            with undone(trainer, slot):
                yield
        except BaseException:
            set_record(pl_module, record)
            set_averages(trainer, slot.attribute, averaged)
            if entry is not None:
                pl_module.hparams[slot.attribute] = entry
            if is_sharded(trainer):
                self._sharding.see(pl_module, small)
            raise


def _compared(
    operator: Operator, small: nn.Module, large: nn.Module, calls: Sequence[Call]
) -> Change:
    """Compare the networks on calls of the small one, if there are any.

    Raises:
        FloatingPointError: if the large network returns what is not finite.
    """
    if not calls:
        return Change(None, why="no calls of the small network are at hand")
    change = compare(operator, small, large, calls)
    if not change.is_finite:
        raise FloatingPointError(f"the grown network returns what is {change}")
    return change


def check_grown(name: str | None, before: float | None, after: float | None) -> None:
    """Check that the metric of the grown network is finite if that of the small one was.

    Raises:
        FloatingPointError: naming the metric.
    """
    if before is None or after is None or math.isfinite(after) or not math.isfinite(before):
        return
    raise FloatingPointError(
        f"{name} is {after} for the grown network, and was {before:.4g} for the small one; use a "
        "lower learning rate for the operator if it is learned, or another method"
    )


def _shows_progress(trainer: Trainer) -> bool:
    bar = trainer.progress_bar_callback
    return bool(getattr(bar, "is_enabled", False)) and trainer.is_global_zero
