"""Grow the network of a run once: learn the operator on the run's batches, and swap."""

from __future__ import annotations

import copy
import functools
import math
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from typing import Any, NamedTuple

from lightning.pytorch import Trainer
from torch import Tensor, nn
from tqdm.auto import tqdm  # type: ignore[import-untyped]

from lightning_ligo.axes.calls import Call, materialize
from lightning_ligo.callbacks.accounting import Accounting
from lightning_ligo.callbacks.averaging import averaged_validation, check_averages
from lightning_ligo.callbacks.companions import remember_groups
from lightning_ligo.callbacks.failure import alike
from lightning_ligo.callbacks.followers import ByName, Followers
from lightning_ligo.callbacks.settings import Settings
from lightning_ligo.operator.fit import fit
from lightning_ligo.operator.flops import flop_counter
from lightning_ligo.operator.measure import Change, compare
from lightning_ligo.operator.operator import Operator
from lightning_ligo.operator.ramp import Ramp
from lightning_ligo.plan.plan import Plan
from lightning_ligo.trainer.checkpoint import (
    record_of,
    remember_growth,
    set_record,
    size_of,
    sizes_of,
)
from lightning_ligo.trainer.holders import tensors_of
from lightning_ligo.trainer.hparams import built, described, note, unchanged
from lightning_ligo.trainer.lightning import training_output
from lightning_ligo.trainer.rehearsal import State
from lightning_ligo.trainer.sandbox import sandboxed
from lightning_ligo.trainer.sharding import Sharding, is_sharded
from lightning_ligo.trainer.steps import evaluate, own_batches, training_loss
from lightning_ligo.trainer.swap import conform, swap, undone


class Grown(NamedTuple):
    """A large network and all that has grown with it, at first outside of the run."""

    small: nn.Module  # whole on every rank
    large: nn.Module
    operator: Operator
    ramp: Ramp | None  # for a method that masks new parts
    change: Change  # of the function
    parents: dict[str, list[str]]
    followers: Followers
    losses: tuple[float, ...]  # of every step of learning
    flops: int  # of learning
    metrics: dict[str, float]  # of the large network, if it was validated
    carried: int = 0  # parameters with the optimizer state of the small network


class Grower:
    """Swaps a network for a grown one, or restores everything if that fails."""

    def __init__(self, settings: Settings, sharding: Sharding, accounting: Accounting) -> None:
        self._settings = settings
        self._sharding = sharding
        self._accounting = accounting
        self.hidden: list[State] = []  # found by a rehearsal

    def grow(
        self,
        trainer: Trainer,
        plan: Plan,
        calls: Callable[[], Sequence[Call]],
        check: Callable[[dict[str, float]], None],
    ) -> Grown:
        """Grow the network once, at the start of a batch.

        The function is compared on the ``calls`` of the small network. ``check`` is called with the
        metrics of the large one, before the swap.

        Raises:
            GrowthFailedError: on all ranks if the growth fails on one; everything is restored.
        """
        with alike(trainer):
            batches = own_batches(trainer, trainer.lightning_module)
            made = self.make(trainer, plan, calls(), self._settings.method.steps, batches)
            metrics = self._validated(trainer, made)
            check(metrics)
        with self.undone(trainer, made), alike(trainer):
            carried = self.put(trainer, made)
        made.followers.tell()
        return made._replace(metrics=metrics, carried=carried)

    def make(
        self,
        trainer: Trainer,
        plan: Plan,
        calls: Sequence[Call],
        steps: int,
        batches: Generator[Any, None, None],
    ) -> Grown:
        """Make the large network, and all that grows with it, outside of the run.

        The operator is learned on the batches.
        """
        slot, growths = self._settings.slot_of(trainer), self._settings.growths
        before, description = sizes_of(slot.module, growths)[size_of(slot.module) :][:2]
        bar_is_shown = _shows_progress(trainer)
        small = self._sharding.plain(slot.module, slot.network)
        followers = self.followers(trainer)
        with sandboxed(trainer, slot.module, self._seed(trainer)):
            operator = Operator(plan, small, self._settings.method, self._seed(trainer))
            parents = operator.parents()
            stays = unchanged(slot, small, before, description)
            if is_sharded(trainer):  # which sharding changes in place
                stays = copy.deepcopy(stays)
            made = materialize(built(slot, description, standing=stays), plan.lazy)
            large = conform(trainer, small, made, parents)
            followers.begin(small, large)
            slot.set(large)
            note(slot, description)
            learned: tuple[tuple[float, ...], int] = (), 0
            if steps and operator.coefficients:
                followers.grow(operator)
                with followers.placed():
                    learned = self._learn(trainer, operator, steps, batches, bar_is_shown)
            operator.bake(large)
            change = _compared(trainer, operator, small, large, calls)
            followers.grow(operator)
            ramp = Ramp(operator, large) if self._settings.method.ramp else None
        return Grown(small, large, operator, ramp, change, parents, followers, *learned, {})

    def followers(self, trainer: Trainer) -> Followers:
        """Find what follows the network.

        Raises:
            ValueError: naming what cannot follow it.
        """
        return Followers(trainer, self._settings.slot_of(trainer), self.hidden)

    def _seed(self, trainer: Trainer) -> int:
        return self._settings.seed * 65537 + size_of(trainer.lightning_module)

    def _validated(self, trainer: Trainer, made: Grown) -> dict[str, float]:
        """Return the metrics of the large network, if there is a validation."""
        if not trainer.enable_validation:
            return {}
        slot, size = self._settings.slot_of(trainer), size_of(trainer.lightning_module) + 1
        watching = [*averaged_validation(trainer), self._accounting.of_evaluation(size)]
        with sandboxed(trainer, slot.module, self._seed(trainer)), made.followers.placed():
            slot.set(made.large)
            note(slot, sizes_of(slot.module, self._settings.growths)[size])
            return evaluate(trainer, *watching)

    def put(self, trainer: Trainer, made: Grown) -> int:
        """Swap the networks; return the number of parameters with optimizer state."""
        slot = self._settings.slot_of(trainer)
        if is_sharded(trainer):
            self._sharding.see(slot.module, made.large)
        by_name = ByName(made.operator, tensors_of(made.small), tensors_of(made.large))
        states = functools.partial(by_name.states, self._settings.optimizer_state)
        carried = swap(trainer, slot, made.large, made.parents, states, made.followers.put)
        check_averages(trainer)
        remember_groups(trainer)
        remember_growth(slot.module, self._settings.growths)
        return carried

    def _learn(
        self,
        trainer: Trainer,
        operator: Operator,
        steps: int,
        batches: Generator[Any, None, None],
        bar_is_shown: bool,
    ) -> tuple[tuple[float, ...], int]:
        """Learn the operator in place; return the loss of every step, and the FLOPs."""
        method = self._settings.method
        counter, first_step, losses = flop_counter(), ExitStack(), list[float]()
        bar = tqdm(total=steps, desc="Growing", leave=False, disable=not bar_is_shown)
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
                    self._settings.slot_of(trainer).network,
                    loss,
                    numbered,
                    steps=steps,
                    learning_rate=method.learning_rate,
                    warmup=min(method.warmup, steps // 2),
                    on_step=on_step,
                    average=functools.partial(trainer.strategy.reduce, reduce_op="mean"),
                )
        finally:  # a failed growth has spent them too
            flops = counter.get_total_flops() * len(losses) * trainer.world_size
            self._accounting.operator += flops
        return tuple(losses), flops

    @contextmanager
    def undone(self, trainer: Trainer, made: Grown) -> Iterator[None]:
        """Restore everything if the swap fails, the record for checkpoints too."""
        slot = self._settings.slot_of(trainer)
        record = record_of(slot.module)
        assert record is not None
        entry = described(slot, record["networks"][0])
        try:
            with undone(trainer, slot):
                yield
        except BaseException:
            set_record(slot.module, record)
            note(slot, entry)
            self.back(trainer, made.followers, made.small)
            raise

    def back(self, trainer: Trainer, followers: Followers, small: nn.Module) -> None:
        """Put back what `put` has replaced outside of the network and its record."""
        followers.restore()
        if is_sharded(trainer):
            self._sharding.see(trainer.lightning_module, small)


def _compared(
    trainer: Trainer, operator: Operator, small: nn.Module, large: nn.Module, calls: Sequence[Call]
) -> Change:
    """Compare the networks on calls of the small one, if there are any.

    Raises:
        FloatingPointError: if the large network returns what is not finite.
    """
    if not calls:
        return Change(None, why="no calls of the small network are at hand")
    change = trainer.strategy.broadcast(compare(operator, small, large, calls))  # of rank 0
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
