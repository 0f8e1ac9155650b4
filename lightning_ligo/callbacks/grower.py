"""One growth of a run: its operator is learned on the run's own batches, its network swapped."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from typing import Any, NamedTuple

from lightning.pytorch import LightningModule, Trainer
from torch import Tensor, nn
from tqdm.auto import tqdm  # type: ignore[import-untyped]

from lightning_ligo.callbacks.accounting import Accounting
from lightning_ligo.callbacks.averaging import (
    averaged_validation,
    averages,
    averages_of,
    check_averages,
    grown_averages,
    set_averages,
)
from lightning_ligo.callbacks.failure import alike
from lightning_ligo.callbacks.finetuning import remember_groups
from lightning_ligo.callbacks.sharding import Sharding
from lightning_ligo.methods.method import Method
from lightning_ligo.networks import build
from lightning_ligo.operator.fit import fit
from lightning_ligo.operator.flops import flop_counter
from lightning_ligo.operator.operator import Operator
from lightning_ligo.operator.optimizer_state import Policy, grow_states
from lightning_ligo.operator.ramp import Ramp
from lightning_ligo.plan.plan import Plan
from lightning_ligo.schedule import Growth
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
from lightning_ligo.trainer.slot import Slot
from lightning_ligo.trainer.steps import evaluate, own_batches, training_loss
from lightning_ligo.trainer.swap import conform, swap, undone


class Grown(NamedTuple):
    """What a growth has made, and what it took."""

    small: nn.Module  # whole on every rank
    large: nn.Module
    operator: Operator
    ramp: Ramp | None  # for a method that masks what is new
    losses: tuple[float, ...]  # of every step of learning
    flops: int  # of learning
    metrics: dict[str, float]  # of the large network, if it was validated
    parameters: int  # tensors of the large network
    carried: int  # of these, those that the optimizer goes on with the state of


class Grower:
    """Puts a grown network in the place of the small one, or leaves all as it is if that fails.

    Args:
        attribute: where the network is in the module.
        growths: those of the run.
        method: how the operator starts and what of it is learned.
        steps: of learning it.
        learning_rate: of learning it.
        moments: what grown parameters get of the optimizer's state.
        seed: of everything random in a growth.
    """

    def __init__(
        self,
        attribute: str,
        growths: Sequence[Growth],
        method: Method,
        steps: int,
        learning_rate: float,
        moments: Policy,
        seed: int,
    ) -> None:
        self._attribute = attribute
        self._growths = growths
        self._method = method
        self._steps = steps
        self._learning_rate = learning_rate
        self._moments: Policy = moments
        self._seed = seed

    def grow(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        plan: Plan,
        sharding: Sharding,
        spending: Accounting,
        check: Callable[[dict[str, float]], None],
    ) -> Grown:
        """Grow the network once.

        Args:
            trainer, pl_module: of the run, at the start of a batch.
            plan: of this growth.
            sharding: what the network is like where it is not sharded.
            spending: what is counted.
            check: is called with the metrics of the large network, before it takes its place.

        Raises:
            GrowthFailedError: on all ranks, with all as it was, if it fails on one.
        """
        size = size_of(pl_module)
        description, seed = sizes_of(pl_module, self._growths)[size + 1], self._seed * 65537 + size
        bar_is_shown = _shows_progress(trainer)
        with alike(trainer):
            small = sharding.plain(pl_module, Slot(pl_module, self._attribute).network)
            with sandboxed(trainer, pl_module, seed):
                assert description is not None
                operator = Operator(plan, small, self._method, seed)
                parents = operator.parents()
                large = conform(trainer, small, build(description), parents)
                Slot(pl_module, self._attribute).set(large)
                learned = self._learn(trainer, pl_module, operator, spending, bar_is_shown)
                operator.bake(large)
                averaged = grown_averages(trainer, self._attribute, operator, large)
                ramp = Ramp(operator, large) if self._method.ramp else None
            watching = [*averaged_validation(trainer), spending.of_evaluation(size + 1)]
            with (
                sandboxed(trainer, pl_module, seed),
                averages_of(trainer, self._attribute, averaged),
            ):
                Slot(pl_module, self._attribute).set(large)
                metrics = evaluate(trainer, *watching) if trainer.enable_validation else {}
            check(metrics)
        states = functools.partial(grow_states, operator, policy=self._moments)
        with self._undone(trainer, pl_module, small, sharding), alike(trainer):
            if is_sharded(trainer):
                sharding.see(pl_module, large)
            carried = swap(trainer, Slot(pl_module, self._attribute), large, parents, states)
            set_averages(trainer, self._attribute, averaged)
            check_averages(trainer, pl_module)
            remember_groups(trainer, pl_module)
            remember_growth(pl_module, self._growths)
        return Grown(small, large, operator, ramp, *learned, metrics, len(parents), carried)

    def _learn(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        operator: Operator,
        spending: Accounting,
        bar_is_shown: bool,
    ) -> tuple[tuple[float, ...], int]:
        """Learn the operator in place; the loss of every step, and the operations spent."""
        if not self._steps or not operator.coefficients:
            return (), 0
        counter, first_step, losses = flop_counter(), ExitStack(), list[float]()
        bar = tqdm(total=self._steps, desc="Growing", leave=False, disable=not bar_is_shown)
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
                    Slot(pl_module, self._attribute).network,
                    loss,
                    numbered,
                    steps=self._steps,
                    learning_rate=self._learning_rate,
                    warmup=min(self._method.warmup, self._steps // 2),
                    on_step=on_step,
                    average=functools.partial(trainer.strategy.reduce, reduce_op="mean"),
                )
        finally:  # what failed was spent too
            flops = counter.get_total_flops() * len(losses) * trainer.world_size
            spending.operator += flops
        return tuple(losses), flops

    @contextmanager
    def _undone(
        self, trainer: Trainer, pl_module: LightningModule, small: nn.Module, sharding: Sharding
    ) -> Iterator[None]:
        """If the swap fails, put all back, and have the checkpoints tell so."""
        record, entry = record_of(pl_module), described(Slot(pl_module, self._attribute))
        averaged = [Slot(average, self._attribute).network for average in averages(trainer)]
        assert record is not None
        try:
            with undone(trainer, Slot(pl_module, self._attribute)):
                yield
        except BaseException:
            set_record(pl_module, record)
            set_averages(trainer, self._attribute, averaged)
            if entry is not None:
                pl_module.hparams[self._attribute] = entry
            if is_sharded(trainer):
                sharding.see(pl_module, small)
            raise


def check_grown(name: str | None, before: float | None, after: float | None) -> None:
    """Refuse a grown network whose metric is not finite, where that of the small one was.

    Raises:
        FloatingPointError: naming the metric.
    """
    if before is None or after is None or math.isfinite(after) or not math.isfinite(before):
        return
    raise FloatingPointError(
        f"{name} is {after} of the grown network, and was {before:.4g} of the small one; use a "
        "lower learning rate for the operator, or a method that keeps the function, such as lemon"
    )


def _shows_progress(trainer: Trainer) -> bool:
    bar = trainer.progress_bar_callback
    return bool(getattr(bar, "is_enabled", False)) and trainer.is_global_zero
