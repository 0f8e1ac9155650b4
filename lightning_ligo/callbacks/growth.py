"""GrowthCallback: grows a network in the middle of `fit`."""

from __future__ import annotations

import functools
import gc
import math
import time
from collections.abc import Callable
from typing import Any, get_args

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from lightning_utilities.core.rank_zero import rank_zero_info, rank_zero_warn

from lightning_ligo.axes.override import read
from lightning_ligo.callbacks.accounting import Accounting, Counting
from lightning_ligo.callbacks.averaging import (
    averaged_validation,
    check_averages,
    extra_epochs,
)
from lightning_ligo.callbacks.checks import (
    check_callbacks,
    check_masks,
    check_module,
    check_network,
    check_ramp_and_data,
    check_trainer,
)
from lightning_ligo.callbacks.datamodule import DataStages
from lightning_ligo.callbacks.events import log_growths, log_parameters
from lightning_ligo.callbacks.failure import GrowthFailedError, OnFailure
from lightning_ligo.callbacks.grower import Grower, check_grown
from lightning_ligo.callbacks.planner import Planner
from lightning_ligo.callbacks.ramping import Ramping, check_ramp_goes_on, check_room
from lightning_ligo.callbacks.rates import Rates
from lightning_ligo.callbacks.record import Metric, count, growth_record, told
from lightning_ligo.callbacks.report import growth_report, show_report, write_report
from lightning_ligo.callbacks.resume import Resume
from lightning_ligo.callbacks.sharding import Sharding
from lightning_ligo.callbacks.stopping import Stopping, restart_stopping
from lightning_ligo.callbacks.triggers import Triggers, check_decisions
from lightning_ligo.methods.catalog import DEFAULT, method_named
from lightning_ligo.methods.method import Method
from lightning_ligo.networks import build
from lightning_ligo.operator.choice import check_choice
from lightning_ligo.operator.operator import Operator
from lightning_ligo.operator.optimizer_state import Policy, check_policy
from lightning_ligo.operator.ramp import Ramp
from lightning_ligo.schedule import Growth, Rate, Run, resolve
from lightning_ligo.trainer.checkpoint import (
    KEY,
    described,
    record_of,
    set_record,
    size_of,
    sizes_of,
)
from lightning_ligo.trainer.lightning import (
    callbacks_of,
    is_averaging_epoch,
    is_fast_dev_run,
    set_epoch,
    training_loader,
    validation_names,
)
from lightning_ligo.trainer.optimizers import (
    check_every_parameter_once,
    check_optimizers_can_change,
    group_names,
)
from lightning_ligo.trainer.sandbox import (
    sandboxed,
)
from lightning_ligo.trainer.sharding import (
    is_sharded,
    reshard,
    shares,
)
from lightning_ligo.trainer.slot import Slot
from lightning_ligo.trainer.snapshot import isolated_random
from lightning_ligo.trainer.steps import evaluate, read_again, validation_metrics
from lightning_ligo.trainer.swap import restart_compression


class GrowthCallback(Counting):
    """Replace a network by a larger one, grown from it, while `fit` goes on.

    At the start of the batch at which a growth is due, and before that batch is used, the large
    network is built, the grown weights are written, and the network is swapped. A method that
    learns its operator (`ligo`) does so before, on the run's own training data with the module's
    own `training_step`. Optimizers and schedulers go on, and the moments that the optimizer keeps
    grow by the maps of the weights. What the module logs, counts and draws is not disturbed. At the
    end of `fit` a report is printed and written into the log folder: `growth_report.json`,
    `growth_report.md`, `growth.png`.

    Under ModelParallelStrategy the module's `configure_model` is called again to shard the large
    network: it must shard whatever is at `attribute`, and leave what is sharded already.

    All that can be known to fail is refused before the first optimizer step. A run that ends before
    a growth that it was to decide warns of it and says what was missing.

    A growth fails if there is not enough memory for it, if the loss of learning the operator or its
    gradient is not finite, or if the metric of the grown network is not and that of the small one
    was. The network and the optimizers are then as they were before it, on all ranks.

    Example:
        >>> large = {"class_path": "torch.nn.Linear", "init_args": {"in_features": 4}}
        >>> callback = GrowthCallback([Growth(to=large, fraction=0.5)], attribute="head")

    Args:
        growths: what to grow to and when, in order.
        attribute: where the network is in the LightningModule; may be dotted.
        method: a name of `METHODS`, two with a plus between, the first for depth and the second for
            width, or a `Method` of your own: how the operator starts and what of it is learned. The
            default learns nothing; it is one of the two best of the comparison of the recipes.
        steps: of learning the operator; the method's own number by default.
        learning_rate: of learning the operator; the method's own by default.
        monitor: the validation metric of the report; by default the one that the first
            ModelCheckpoint or EarlyStopping monitors, or the first that is logged.
        moments: what grown parameters get of the optimizer's state, see `grow_states`: "map" takes
            it through the operator, so that the large network goes on as the small one would have,
            with no need of a warm-up; "keep-old-zero-new" keeps what belongs to the small network's
            own entries; "reset" starts it anew.
        early_stopping: what every EarlyStopping gets at a growth: its whole "patience" again, to
            beat the best value of the small network too; to begin "anew", without that value; or to
            "keep" its count.
        seed: of everything random in a growth.
        override: names axes that tracing cannot find, in the network of every size, such as
            `{"blocks.*.mlp.fc1.weight": "hidden embed"}`; see `trace`.
        on_failure: what a run does after a growth that failed: "stop", from where it can be resumed
            from its last checkpoint, or "continue" with the network that it has, to its end. It
            then warns, the report tells what failed, and the growths that were to come are left
            out, as each is a growth of the network before it.

    Raises:
        ValueError: at once for an unknown method, `moments`, `early_stopping` or `on_failure`, no
            growths, an override that cannot be read, or settings of learning for a method that
            learns nothing; at the start of `fit` for all else.
        GrowthFailedError: when a growth has failed, which is to stop the run.
    """

    def __init__(
        self,
        growths: list[Growth],
        attribute: str = "network",
        method: str | Method = DEFAULT,
        steps: int | None = None,
        learning_rate: float | None = None,
        monitor: str | None = None,
        moments: Policy = "map",
        early_stopping: Stopping = "patience",
        seed: int = 0,
        override: dict[str, str] | None = None,
        on_failure: OnFailure = "stop",
    ) -> None:
        if not growths:
            raise ValueError("GrowthCallback has no growths; give at least one")
        self.growths = list(growths)
        self.attribute = attribute
        self.method = method_named(method) if isinstance(method, str) else method
        self.monitor = monitor
        check_policy(moments)
        self.moments: Policy = moments
        stopping = "at a growth EarlyStopping can have"
        check_choice("early_stopping", early_stopping, get_args(Stopping), stopping)
        self.early_stopping: Stopping = early_stopping
        failing = "after a growth that fails a run can"
        check_choice("on_failure", on_failure, get_args(OnFailure), failing)
        self.on_failure: OnFailure = on_failure
        if on_failure == "continue" and any(growth.data for growth in growths):
            raise ValueError(
                "on_failure='continue' goes on with the small network, and the data has changed by "
                "then for the large one; leave it out, or the data of the growths"
            )
        self.seed = seed
        self.override = override
        read(override)
        if not self.method.learns and (steps or learning_rate):
            raise ValueError(
                f"method {self.method.name!r} learns nothing, found steps={steps} and "
                f"learning_rate={learning_rate}; leave them out, or take a method that learns"
            )
        self.steps = self.method.steps if steps is None else steps
        self.learning_rate = self.method.learning_rate if learning_rate is None else learning_rate
        if self.steps < 0 or (self.steps > 0 and not self.learning_rate > 0):
            raise ValueError(
                f"an operator cannot be learned for steps={self.steps} at learning_rate="
                f"{self.learning_rate}; give 0 or more steps and a rate above 0"
            )
        self._stages = DataStages(self.growths)
        self._patched: list[tuple[object, str]] = []
        self._forget()

    def _forget(self) -> None:
        """Start a new run."""
        self._sharding = Sharding()
        self._resuming = Resume(
            self.attribute, self.growths, self.seed, self._sharding, self._stages
        )
        self._records: list[dict[str, Any]] = []
        self._failed: dict[str, Any] | None = None  # the growth that was given up
        self.spending = Accounting()
        self._measured: tuple[int, dict[str, float]] | None = None  # at which step, what
        self.due: dict[int, int | None] = {}  # growths done before it -> at which step
        self.examining = Planner(
            self.attribute, self.growths, self.method, self.steps, self.seed, self.override,
            self._sharding, self._stages,
        )  # fmt: skip
        self._growing = Grower(
            self.attribute, self.growths, self.method, self.steps, self.learning_rate, self.moments,
            self.seed,
        )  # fmt: skip
        self._ramping = Ramping(self.method.ramp)
        self._rates = Rates()
        self._deciding = Triggers()

    # Before training ------------------------------------------------------------------------------

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self._undo_patches()
        record, small = record_of(pl_module), described(Slot(pl_module, self.attribute))
        if stage == "fit" and trainer.global_step == 0:
            self._forget()
            if record is not None and record["size"] > 0:
                small = record["networks"][-1]
            else:
                self._stages.to(trainer, 0)
            record = None
        if record is None:
            record = {"attribute": self.attribute, "size": 0, "networks": [small]}
        set_record(pl_module, record)
        if is_sharded(trainer):
            self._sharding.see(pl_module, Slot(pl_module, self.attribute).find())
        self._patch(trainer, "load_checkpoint", self._resuming.load_checkpoint)
        if stage == "fit":
            self._patch(trainer, "setup_optimizers", self._resuming.setup_optimizers)
            self._patch(trainer, "optimizer_step", self._rates.step)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        check_trainer(trainer, type(self))
        check_module(pl_module, self.method, self.steps)
        check_network(pl_module, self.attribute)
        check_callbacks(trainer, pl_module, self.attribute)
        self._stages.check(trainer)
        check_ramp_and_data(self.method, self.growths)
        if is_sharded(trainer):
            check_masks(trainer, self.method)
            with isolated_random(self.seed):
                description = self._sizes(pl_module)[self.size(pl_module)]
                self._sharding.check(pl_module, self.attribute, description)
        self.examining.begin(trainer, pl_module)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        reshard(pl_module)  # after the sanity check
        self.spending.begin(shares(trainer))
        size = self.size(pl_module)
        self.examining.leave_out(size)
        check_optimizers_can_change(trainer.optimizers)
        check_every_parameter_once(trainer, pl_module)
        check_averages(trainer, pl_module)
        self._rates.resume([Rate(**record["rate"]) for record in self._records])
        if self._rates.factor != 1:
            rank_zero_info(f"The learning rate is {Rate(self._rates.factor)}, as since the growth")
        if self._records:
            check_ramp_goes_on(self._records[-1], self.method, trainer.global_step)
        if self.steps > 0:
            for loader in training_loader(trainer).flattened:
                read_again(loader)
        self.due = {}
        if self._failed is not None:
            self.examining.leave_out(len(self.growths))
        elif not is_fast_dev_run(trainer):
            steps = resolve(self.growths, _run(trainer), size)
            self.due = dict(enumerate(steps, size))
            check_decisions(trainer, self.growths, size)
            self._deciding.begin(trainer)
            check_room(self.method.ramp, self.method.name, steps, _run(trainer).steps)
        log_parameters(trainer, count(Slot(pl_module, self.attribute).network))
        log_growths(trainer, self._records, self._sizes(pl_module))

    def _examine(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        batch: Any,
        batch_idx: int,
        masks: bool,
        entries: bool,
    ) -> None:
        """Plan what is to come; find the masks, or the new entries, of the last growth again."""
        small = None
        if masks or entries:
            description = self._sizes(pl_module)[self.size(pl_module) - 1]
            with isolated_random(self.seed):
                built = build(description, device="meta") if description else None
            small = built or self._resuming.kept[pl_module]
        plan = self.examining.examine(trainer, pl_module, batch, batch_idx, small)
        if small is not None and plan is not None:
            operator, record = Operator(plan, small, self.method), self._records[-1]
            network = Slot(pl_module, self.attribute).network
            if masks:
                self._ramping.begin(Ramp(operator, network), record["step"])
            if entries:
                self._rates.rewarm(Rate(**record["rate"]), record["step"], network, operator)

    def _lost(self, trainer: Trainer) -> tuple[bool, bool]:
        """Whether masks, and which entries are new, of the last growth are to be found again."""
        if not self._records:
            return False, False
        last, rate = self._records[-1], Rate(**self._records[-1]["rate"])
        since = last["step"]
        return (
            last["ramp"] > 0 and self._ramping.is_lost(since, trainer.global_step),
            self._rates.is_lost(rate, since, trainer.global_step),
        )

    # Training -------------------------------------------------------------------------------------

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        size = self.size(pl_module)
        if not self._may_grow(trainer, size) or not self.growths[size].data:
            return
        if trainer.current_epoch >= (self.growths[size].epoch or 0):
            self._stages.to(trainer, size + 1)
            trainer.fit_loop.setup_data()
            for loader in training_loader(trainer).flattened:
                set_epoch(loader, trainer.current_epoch)
            bar = trainer.progress_bar_callback
            callbacks = callbacks_of(trainer)
            if bar is not None and callbacks.index(bar) < callbacks.index(self):
                bar.on_train_epoch_start(trainer, pl_module)  # there are other batches to count

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        lost = (False, False) if self.examining.is_done else self._lost(trainer)
        if self.examining.has_more or any(lost):
            self._examine(trainer, pl_module, batch, batch_idx, *lost)
        size = self.size(pl_module)
        if batch_idx % trainer.accumulate_grad_batches == 0 and self._is_due(trainer, size):
            self._grow(trainer, pl_module)
        self._ramping.advance(trainer.global_step)
        self.spending.training.start(batch, self.size(pl_module))

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.state.fn != "fit":
            return
        size = self.size(pl_module)
        if not self.spending.curve:
            asked = {each.monitored.monitor for each in self.growths[size:] if each.monitored}
            self._check_logged(trainer, asked | ({self.monitor} if self.monitor else set()))
        if not trainer.sanity_checking:
            metrics = validation_metrics(trainer)
            self._note(trainer, metrics)
            rule = self.growths[size].monitored if size in self.due else None
            if rule is not None and rule.monitor in metrics:
                value, spent = metrics[rule.monitor], self.spending.curve[-1].training
                self._deciding.watch(trainer, self.growths[size], value, spent)

    def _check_logged(self, trainer: Trainer, asked: set[str]) -> None:
        names = validation_names(trainer)
        for name in sorted(asked):
            if name not in names:
                raise ValueError(
                    f"the validation did not log the metric {name!r} that GrowthCallback "
                    f"monitors; it logged: {', '.join(names) or 'nothing'}"
                )

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._records or self._failed is not None:
            self._measure(trainer, pl_module)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        size = self.size(pl_module)
        if size in self.due and self.growths[size].is_decided:
            rank_zero_warn(
                f"The run has ended before growth {size + 1} of {len(self.growths)}, at "
                f"{self.growths[size].when}: {self._deciding.verdict.why}"
                + (", after which no batch came" if self._deciding.verdict.due else "")
            )
        folder = trainer.log_dir or trainer.default_root_dir  # all ranks agree on it
        nothing = not self._records and self._failed is None
        if nothing or not trainer.is_global_zero:
            return
        metrics = self._measured[1] if self._measured else {}
        spent = self.spending.training.totals
        report = growth_report(self._records, self._failed, spent, metrics, _checkpoint(trainer))
        show_report(report, write_report(report, self.spending.curve, folder))

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, _: BaseException) -> None:
        self.spending.abort()
        self._ramping.end()
        self._undo_patches()

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self.spending.abort()
        self._ramping.end()
        self._undo_patches()

    # Growth ---------------------------------------------------------------------------------------

    def _may_grow(self, trainer: Trainer, size: int) -> bool:
        """Whether a growth is to come, and nothing but its moment to be waited for."""
        if size not in self.due or self._ramping.is_running(trainer.global_step):
            return False
        return not is_averaging_epoch(trainer)  # batches that are for batch norms only

    def _is_due(self, trainer: Trainer, size: int) -> bool:
        if not self._may_grow(trainer, size):
            return False
        if self.growths[size].data:  # which has changed at the start of the epoch
            return self._stages.size > size
        growth, step = self.growths[size], self.due[size]
        if growth.is_decided:
            return self._deciding.is_due(trainer, growth, self.spending.total)
        if growth.epoch is not None:
            return trainer.current_epoch >= growth.epoch
        return step is not None and trainer.global_step >= step

    def _grow(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._ramping.end()
        number = self.size(pl_module) + 1
        try:
            self._replace(trainer, pl_module)
            return
        except GrowthFailedError as error:
            self.spending.abort()
            why = str(error)
            if self.on_failure == "stop":
                growth = self.growths[number - 1]
                raise GrowthFailedError(
                    f"growth {number} (at {growth.when}, to {growth.to}) failed at step "
                    f"{trainer.global_step}: {why}. The network and the optimizers are as they "
                    "were before it; resume the run from its last checkpoint when this is changed, "
                    "or with GrowthCallback(on_failure='continue'), to go on with the small network"
                ) from error
        gc.collect()  # the tracebacks have held the large network
        self._give_up(trainer, number, why)

    def _give_up(self, trainer: Trainer, number: int, why: str) -> None:
        """Go on with the network that there is, and do not grow any more."""
        self.due = {}
        self._failed = {
            "growth": number,
            "step": trainer.global_step,
            "reason": self._why(number - 1),
            "method": self.method.name,
            "why": why,
        }
        rank_zero_warn(
            f"Growth {number} of {len(self.growths)} failed at step {trainer.global_step}: {why}. "
            "The run goes on with the small network and grows no more"
        )

    def _why(self, size: int) -> str:
        """Why the network of that size grows now."""
        growth = self.growths[size]
        return self._deciding.verdict.why if growth.is_decided else growth.when

    def _replace(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Put a grown network in the place of the small one; leave all as it is if that fails."""
        started, size = time.monotonic(), self.size(pl_module)
        plan, growth = self.examining.plans[size + 1], self.growths[size]
        was_measured = self._measured is not None and self._measured[0] == trainer.global_step
        changed = bool(growth.data) and not was_measured
        before = {} if changed else self._measure(trainer, pl_module)  # on the data it is for

        def metric(after: dict[str, float]) -> Metric:
            name = self._name(trainer, before or after)
            return name, before.get(name or ""), after.get(name or "")

        grown = self._growing.grow(
            trainer, pl_module, plan, self._sharding, self.spending,
            lambda after: check_grown(*metric(after)),
        )  # fmt: skip
        if size == 0 and self._sizes(pl_module)[0] is None:  # no one can build it again
            grown.small.zero_grad()
            self._resuming.kept[pl_module] = grown.small.cpu()
        if grown.ramp is not None:
            self._ramping.begin(grown.ramp, trainer.global_step)
        reason = self._why(size)
        self._deciding.grew(trainer)
        self._rates.begin(growth.rate, trainer.global_step, grown.large, grown.operator)
        record = growth_record(
            grown, plan, trainer.global_step, reason, self.learning_rate, self.moments, growth.rate,
            metric(grown.metrics), time.monotonic() - started,
        )  # fmt: skip
        self._records.append(record)
        self.spending.grew(trainer.global_step)
        self._note(trainer, grown.metrics)
        rank_zero_info(
            f"Growth {size + 1} of {len(self.growths)} at step {trainer.global_step}: "
            + told(trainer, record, grown.losses, self._rates.factor)
        )
        restart_stopping(trainer, self.early_stopping)
        restart_compression(trainer)
        log_parameters(trainer, count(grown.large))
        log_growths(trainer, self._records, self._sizes(pl_module))

    def _measure(self, trainer: Trainer, pl_module: LightningModule) -> dict[str, float]:
        """The validation metrics of the network as it is, from the last validation if it was."""
        if self._measured is None or self._measured[0] != trainer.global_step:
            if not trainer.enable_validation:
                return {}
            counting = self.spending.of_evaluation(self.size(pl_module))
            watching = [*averaged_validation(trainer), counting]
            with sandboxed(trainer, pl_module, self.seed):
                metrics = evaluate(trainer, *watching)
            self._note(trainer, metrics)
            return metrics
        return self._measured[1]

    def _note(self, trainer: Trainer, metrics: dict[str, float]) -> None:
        """A point of the plot."""
        self._measured = trainer.global_step, metrics
        self.spending.note(trainer.global_step, metrics.get(self._name(trainer, metrics) or ""))

    def _name(self, trainer: Trainer, metrics: dict[str, float]) -> str | None:
        """The metric that is reported."""
        callbacks = callbacks_of(trainer)
        monitored = [
            callback.monitor
            for callback in callbacks
            if isinstance(callback, (ModelCheckpoint, EarlyStopping))
        ]
        names = [self.monitor] if self.monitor is not None else [*monitored, *metrics]
        return next((name for name in names if name in metrics), None)

    def size(self, pl_module: LightningModule) -> int:
        """How many growths the network has been through."""
        return size_of(pl_module)

    def _sizes(self, pl_module: LightningModule) -> list[dict[str, Any] | None]:
        return sizes_of(pl_module, self.growths)

    # Checkpoints ----------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        return {
            "records": list(self._records),
            "failed": self._failed,
            "measured": list(self._measured) if self._measured else None,
            "spending": self.spending.state_dict(),
            "deciding": self._deciding.state_dict(),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._records, self._failed = state_dict["records"], state_dict["failed"]
        self._measured = tuple(state_dict["measured"]) if state_dict["measured"] else None
        self.spending.load_state_dict(state_dict["spending"])
        self._deciding.load_state_dict(state_dict["deciding"])

    def on_save_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        if self.size(pl_module) > 0:
            checkpoint.setdefault(KEY, {})["groups"] = group_names(trainer, pl_module)

    def _patch(self, trainer: Trainer, name: str, wrapper: Callable[..., Any]) -> None:
        original = getattr(trainer.strategy, name)
        setattr(trainer.strategy, name, functools.partial(wrapper, original, trainer))
        self._patched.append((trainer.strategy, name))

    def _undo_patches(self) -> None:
        while self._patched:
            owner, name = self._patched.pop()
            vars(owner).pop(name, None)


def _run(trainer: Trainer) -> Run:
    steps: float
    epochs = trainer.max_epochs
    last = math.inf if epochs in (None, -1) else epochs - extra_epochs(trainer)
    if not trainer.lightning_module.automatic_optimization:  # any number of steps in a batch
        steps = trainer.max_steps
        return Run(math.inf if steps == -1 else steps, epochs=last, steps_per_epoch=math.inf)
    steps = trainer.estimated_stepping_batches
    steps_per_epoch = (
        math.inf
        if math.isinf(trainer.num_training_batches)
        else math.ceil(trainer.num_training_batches / trainer.accumulate_grad_batches)
    )
    return Run(
        steps=min(math.inf if steps == -1 else steps, steps_per_epoch * last),
        epochs=last,
        steps_per_epoch=steps_per_epoch,
    )


def _checkpoint(trainer: Trainer) -> str | None:
    """Where the run's best checkpoint is, or its last."""
    for callback in trainer.checkpoint_callbacks:
        if isinstance(callback, ModelCheckpoint):
            return callback.best_model_path or callback.last_model_path or None
    return None
