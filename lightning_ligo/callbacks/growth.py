"""GrowthCallback: grows a network in the middle of `fit`."""

from __future__ import annotations

import functools
import gc
import time
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning_utilities.core.rank_zero import rank_zero_info, rank_zero_warn

from lightning_ligo.callbacks.accounting import Accounting, Counting, Validations
from lightning_ligo.callbacks.after_growth import Ramping, Rates, check_ramp_goes_on, check_room
from lightning_ligo.callbacks.averaging import check_averages
from lightning_ligo.callbacks.checks import check_imports, check_run, warn_of_script
from lightning_ligo.callbacks.companions import Stopping, restart_stopping
from lightning_ligo.callbacks.datamodule import DataStages
from lightning_ligo.callbacks.failure import GrowthFailedError, OnFailure, stopping_error
from lightning_ligo.callbacks.grower import Grower, check_grown
from lightning_ligo.callbacks.planner import Planner
from lightning_ligo.callbacks.record import (
    GrowthRecord,
    Metric,
    count,
    growth_record,
    log_growths,
    log_line,
    log_parameters,
)
from lightning_ligo.callbacks.rehearsal import Rehearsal
from lightning_ligo.callbacks.report import facts_of_run, growth_report, report_folder, show_report
from lightning_ligo.callbacks.resume import Resume
from lightning_ligo.callbacks.settings import Settings, check_choices, learning
from lightning_ligo.callbacks.triggers import Triggers, run_of
from lightning_ligo.methods.catalog import DEFAULT
from lightning_ligo.methods.method import Method
from lightning_ligo.operator.operator import Operator
from lightning_ligo.operator.optimizer_state import Policy
from lightning_ligo.operator.ramp import Ramp
from lightning_ligo.schedule import Growth, Rate
from lightning_ligo.trainer.checkpoint import (
    KEY,
    known,
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
)
from lightning_ligo.trainer.optimizers import (
    check_every_parameter_once,
    check_optimizers_can_change,
    group_names,
)
from lightning_ligo.trainer.sharding import Sharding, is_sharded, reshard, shares
from lightning_ligo.trainer.snapshot import isolated_random
from lightning_ligo.trainer.steps import read_again, validation_metrics
from lightning_ligo.trainer.swap import restart_compression
from lightning_ligo.trainer.whole import forget


class GrowthCallback(Counting):
    """Replace a network by a larger one, grown from it, while `fit` continues.

    A growth happens at the start of the batch at which it is due, before that batch is used: the
    large network is built, the grown weights are written, and the network is swapped. A method that
    learns its operator (`ligo`) first does so on the run's own training data, with the module's own
    `training_step`. Optimizers and schedulers stay the same objects. The optimizer state grows by
    the maps of the weights. Logged values, counters and random states of the module do not change.
    At the end of `fit` a report is printed and written into the log folder: `growth_report.json`,
    `growth_report.md`, `growth_report.html`, `growth.png`. With `logger=False` it is written only
    if the Trainer has a `default_root_dir`.

    Under ModelParallelStrategy the module's `configure_model` is called again to shard the large
    network: it must shard the network at `attribute`, and skip modules that are sharded already.

    The next growth is rehearsed before the first step, and what crashes is refused. A run that ends
    before a growth that it was to decide warns, and says what was missing.

    A growth fails if there is not enough memory, if the loss or a gradient of learning the operator
    is not finite, or if the metric of the grown network is not finite and that of the small one
    was. The network and the optimizers are then restored on all ranks.

    Example:
        >>> large = {"class_path": "torch.nn.Linear", "init_args": {"in_features": 4}}
        >>> callback = GrowthCallback([Growth(to=large, fraction=0.5)], attribute="head")

    Args:
        growths: when to grow and to what, in order; each may be a dict of the arguments of Growth.
        attribute: name of the network in the LightningModule, of growths that name none; may be
            dotted. Growths by `hparams` find it.
        method: how to grow: a name of `METHODS`, two names `DEPTH+WIDTH`, or your own `Method`. The
            default learns nothing; it is one of the two best in the comparison of the recipes.
        steps: number of steps of learning the operator; default: the method's own.
        learning_rate: learning rate of learning the operator; default: the method's own.
        monitor: validation metric of the report; default: the one that the first ModelCheckpoint or
            EarlyStopping monitors, or the first that is logged.
        optimizer_state: optimizer state of grown parameters, see `grow_states`. "map" grows it
            through the operator, so that no warm-up is needed; "keep-old-zero-new" keeps the state
            of the small network's entries and sets that of new ones to zero; "reset" starts with
            fresh state.
        early_stopping: effect of a growth on every EarlyStopping. "patience" restarts its patience,
            and it must still beat the best value of the small network; "anew" also forgets that
            value; "keep" changes nothing.
        seed: seed of everything random in a growth.
        override: names of axes that tracing cannot find, in the network of every size, such as
            `{"blocks.*.mlp.fc1.weight": "hidden embed"}`; see `trace`. None: it may start fresh.
        on_failure: what follows a growth that failed. "stop" ends the run, which can be resumed
            from its last checkpoint. "continue" trains the present network to the end of the run;
            it warns, the report names the failure, and later growths are skipped, as each grows the
            network before it.
        rehearse: whether the next growth is tried at the start of `fit`, and undone.

    Raises:
        ValueError: at once for an unknown method, `optimizer_state`, `early_stopping` or
            `on_failure`, no growths, an override that cannot be read, or settings of learning for a
            method that learns nothing; at the start of `fit` for all else.
        GrowthFailedError: when a growth has failed, with `on_failure="stop"`.
    """

    def __init__(
        self,
        growths: list[Growth],
        attribute: str = "network",
        method: str | Method = DEFAULT,
        steps: int | None = None,
        learning_rate: float | None = None,
        monitor: str | None = None,
        optimizer_state: Policy = "map",
        early_stopping: Stopping = "patience",
        seed: int = 0,
        override: dict[str, str | None] | None = None,
        on_failure: OnFailure = "stop",
        rehearse: bool = True,
    ) -> None:
        method = learning(method, steps, learning_rate)
        self.settings = Settings(
            list(map(Growth.of, growths)), attribute, method, optimizer_state, seed, override
        )
        self.monitor = monitor
        check_choices(self.settings.growths, early_stopping, on_failure)
        self.early_stopping: Stopping = early_stopping
        self.on_failure: OnFailure = on_failure
        self.rehearse = rehearse
        self._data = DataStages(self.settings.growths)
        self._wrapped = ExitStack()  # unwraps methods of the strategy
        self._reset()

    def _reset(self) -> None:
        """Start a new run."""
        settings, sharding = self.settings, Sharding()
        self.accounting = Accounting()
        self.triggers = Triggers(settings.growths)
        self.planner = Planner(settings, sharding, self._data)
        self._sharding = sharding
        self._resume = Resume(settings, sharding, self._data)
        self._grower = Grower(settings, sharding, self.accounting)
        self._rehearsal = Rehearsal(settings, self._data, self._grower, self.accounting)
        self._validations = Validations(self.monitor, settings.seed, self.accounting)
        self._ramping = Ramping(settings.method.ramp)
        self._rates = Rates()
        self._records: list[GrowthRecord] = []
        self._failed: dict[str, Any] | None = None  # facts about a growth that failed

    # Before training ------------------------------------------------------------------------------

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        check_imports(trainer)
        self._wrapped.close()
        slot, small = self.settings.find(trainer, pl_module)
        record = record_of(pl_module)
        if stage == "fit" and trainer.global_step == 0:
            self._reset()
            if record is not None and record["size"] > 0:
                small = known(slot, small, record)
            else:
                self._data.to(trainer, 0)
            record = None
        if record is None:
            record = {"attribute": slot.attribute, "size": 0, "networks": [small]}
        set_record(pl_module, record)
        if is_sharded(trainer):
            self._sharding.see(pl_module, slot.find())
        self._wrap(trainer, "load_checkpoint", self._resume.load_checkpoint)
        if stage == "fit":
            self._wrap(trainer, "setup_optimizers", self._resume.setup_optimizers)
            self._wrap(trainer, "optimizer_step", self._rates.step)

    def _wrap(self, trainer: Trainer, name: str, wrapper: Callable[..., Any]) -> None:
        """Call `wrapper(original, trainer, ...)` in place of a method of the strategy."""
        original = getattr(trainer.strategy, name)
        setattr(trainer.strategy, name, functools.partial(wrapper, original, trainer))
        self._wrapped.callback(vars(trainer.strategy).pop, name, None)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        settings = self.settings
        settings.check_found(pl_module)
        check_run(trainer, pl_module, settings, type(self))
        self._data.check(trainer)
        if is_sharded(trainer):
            with isolated_random(settings.seed):
                description = self._sizes(pl_module)[self.size(pl_module)]
                self._sharding.check(settings.slot(pl_module), description)
        self.planner.begin(trainer)
        warn_of_script(self._sizes(pl_module))

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        reshard(pl_module)  # after the sanity check
        self.accounting.begin(shares(trainer))
        size, method = self.size(pl_module), self.settings.method
        self.planner.skip(size)
        check_optimizers_can_change(trainer.optimizers)
        network = self.settings.slot(pl_module).network
        check_every_parameter_once(trainer, pl_module, network)
        check_averages(trainer)
        self._grower.followers(trainer)
        self._rates.resume([record.rate for record in self._records])
        if self._rates.factor != 1:
            rank_zero_info(f"The learning rate is {Rate(self._rates.factor)}, as since the growth")
        if self._records:
            check_ramp_goes_on(self._records[-1], method, trainer.global_step)
        if method.steps > 0:
            for loader in training_loader(trainer).flattened:
                read_again(loader)
        self.triggers.end()
        if self._failed is not None:
            self.planner.skip(len(self.settings.growths))
        elif not is_fast_dev_run(trainer):
            steps = self.triggers.begin(trainer, size)
            check_room(method.ramp, method.name, steps, run_of(trainer).steps)
        log_parameters(trainer, count(network))
        log_growths(trainer, self._records, self._sizes(pl_module))

    def _plan(self, trainer: Trainer, batch: Any, batch_idx: int) -> None:
        """Plan the growths to come; after a resume also find masks and new entries of the last."""
        masks, entries = self._are_lost(trainer)
        pl_module, small = trainer.lightning_module, None
        if masks or entries:
            small = self._resume.before(pl_module)
        elif not self.planner.has_more:
            return
        if not self.planner.is_ready(trainer):
            return
        plan = self.planner.plan(trainer, batch, batch_idx, small)
        if self.rehearse:
            self._rehearsal.run(trainer, self.planner, batch, batch_idx)
        if small is not None and plan is not None:
            operator, record = Operator(plan, small, self.settings.method), self._records[-1]
            network = self.settings.slot(pl_module).network
            if masks:
                self._ramping.begin(Ramp(operator, network), record.step)
            if entries:
                self._rates.rewarm(record.rate, record.step, network, operator)

    def _are_lost(self, trainer: Trainer) -> tuple[bool, bool]:
        """Whether masks, and which entries are new, must be found again for the last growth."""
        if self.planner.is_done or not self._records:
            return False, False
        last, step = self._records[-1], trainer.global_step
        return (
            last.ramp > 0 and self._ramping.is_lost(last.step, step),
            self._rates.is_lost(last.rate, last.step, step),
        )

    # Training -------------------------------------------------------------------------------------

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        size, growths = self.size(pl_module), self.settings.growths
        if not self._may_grow(trainer, size) or not growths[size].data:
            return
        if trainer.current_epoch >= (growths[size].epoch or 0):
            self._data.to(trainer, size + 1)
            trainer.fit_loop.setup_data()
            for loader in training_loader(trainer).flattened:
                set_epoch(loader, trainer.current_epoch)
            bar = trainer.progress_bar_callback
            callbacks = callbacks_of(trainer)
            if bar is not None and callbacks.index(bar) < callbacks.index(self):
                bar.on_train_epoch_start(trainer, pl_module)  # the number of batches has changed

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        self._plan(trainer, batch, batch_idx)
        size = self.size(pl_module)
        if batch_idx % trainer.accumulate_grad_batches == 0 and self._is_due(trainer, size):
            self._grow(trainer, batch, batch_idx)
        self._ramping.advance(trainer.global_step)
        self.accounting.training.start(batch, self.size(pl_module))

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.state.fn != "fit":
            return
        size = self.size(pl_module)
        if not self.accounting.curve:
            coming = self.settings.growths[size:]
            asked = {growth.monitored.monitor for growth in coming if growth.monitored}
            self._validations.check_logged(trainer, asked)
        if not trainer.sanity_checking:
            metrics = validation_metrics(trainer)
            self._validations.note(trainer, metrics)
            self.triggers.watch(trainer, size, metrics, self.accounting.curve[-1].training)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._records or self._failed is not None:
            self._validations.measure(trainer, pl_module)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if warning := self.triggers.unreached(self.size(pl_module)):
            rank_zero_warn(warning)
        folder = report_folder(trainer)
        if not (self._records or self._failed) or not trainer.is_global_zero:
            return
        records = [record.to_dict() for record in self._records]
        networks = self._sizes(pl_module)[: len(records) + 1]
        run = facts_of_run(trainer, self.accounting, self._validations.metrics, self.settings.seed)
        report = growth_report(records, self._failed, {"networks": networks, **run})
        show_report(report, self.accounting, folder)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        super().teardown(trainer, pl_module, stage)
        self._ramping.end()
        self._wrapped.close()
        forget(pl_module)

    # Growth ---------------------------------------------------------------------------------------

    def _may_grow(self, trainer: Trainer, size: int) -> bool:
        """Whether a growth only waits for its trigger."""
        if size not in self.triggers.due or self._ramping.is_running(trainer.global_step):
            return False
        return not is_averaging_epoch(trainer)  # batches for batch norms only

    def _is_due(self, trainer: Trainer, size: int) -> bool:
        if not self._may_grow(trainer, size):
            return False
        if self.settings.growths[size].data:  # changed at the start of the epoch
            return self._data.size > size
        return self.triggers.is_due(trainer, size, self.accounting.total)

    def _grow(self, trainer: Trainer, batch: Any, batch_idx: int) -> None:
        self._ramping.end()
        number = self.size(trainer.lightning_module) + 1
        try:
            self._replace(trainer, batch, batch_idx)
            gc.collect()  # what was used for the growth is held by cycles
            return
        except GrowthFailedError as error:
            self.accounting.abort()
            why, growth = str(error), self.settings.growths[number - 1]
            if self.on_failure == "stop":
                raise stopping_error(number, growth, trainer.global_step, why) from error
        gc.collect()  # the tracebacks have held the large network
        self._failed = {
            "growth": number,
            "step": trainer.global_step,
            "reason": self.triggers.reason(number - 1),
            "method": self.settings.method.name,
            "why": why,
        }
        self.triggers.end()
        rank_zero_warn(
            f"Growth {number} of {len(self.settings.growths)} failed at step "
            f"{trainer.global_step}: {why}. The run continues with the small network and grows no "
            "more"
        )

    def _replace(self, trainer: Trainer, batch: Any, batch_idx: int) -> None:
        """Grow the network, log it, and record it; restore everything if that fails."""
        pl_module, started, step = trainer.lightning_module, time.monotonic(), trainer.global_step
        size = self.size(pl_module)
        plan, growth = self.planner.planned(size + 1), self.settings.growths[size]
        validations, before = self._validations, dict[str, float]()
        if not growth.data or validations.is_current(trainer):  # else the data is the large one's
            before = validations.measure(trainer, pl_module)

        def metric(after: dict[str, float]) -> Metric:
            name = validations.reported(trainer, before or after)
            return Metric(name, before.get(name or ""), after.get(name or ""))

        calls = functools.partial(self.planner.calls_of, trainer, batch, batch_idx)
        grown = self._grower.grow(
            trainer, plan, calls, lambda after: check_grown(**vars(metric(after)))
        )
        self._resume.keep(pl_module, grown.small, self._sizes(pl_module)[size : size + 2])
        if grown.ramp is not None:
            self._ramping.begin(grown.ramp, step)
        self._rates.begin(growth.rate, step, grown.large, grown.operator)
        record = growth_record(
            grown, step, self.triggers.reason(size), growth.rate, self.settings.optimizer_state,
            metric(grown.metrics), time.monotonic() - started,
        )  # fmt: skip
        self.triggers.grew(trainer)
        self._records.append(record)
        self.accounting.grew(trainer)
        validations.note(trainer, grown.metrics)
        rank_zero_info(
            f"Growth {size + 1} of {len(self.settings.growths)} at step {step}: "
            + log_line(trainer, record, self._rates.factor)
        )
        restart_stopping(trainer, self.early_stopping)
        restart_compression(trainer)
        log_parameters(trainer, count(grown.large))
        log_growths(trainer, self._records, self._sizes(pl_module))

    def size(self, pl_module: LightningModule) -> int:
        """Return how many growths the network has been through."""
        return size_of(pl_module)

    def _sizes(self, pl_module: LightningModule) -> list[dict[str, Any] | None]:
        return sizes_of(pl_module, self.settings.growths)

    # Checkpoints ----------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        last = self._validations.last
        return {
            "records": [record.to_dict() for record in self._records],
            "failed": self._failed,
            "measured": list(last) if last else None,
            "spending": self.accounting.state_dict(),
            "deciding": self.triggers.state_dict(),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._records = [GrowthRecord.from_dict(record) for record in state_dict["records"]]
        self._failed, last = state_dict["failed"], state_dict["measured"]
        self._validations.last = (last[0], last[1]) if last else None
        self.accounting.load_state_dict(state_dict["spending"])
        self.triggers.load_state_dict(state_dict["deciding"])

    def on_save_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        if self.size(pl_module) > 0:
            checkpoint.setdefault(KEY, {})["groups"] = group_names(trainer, pl_module)
