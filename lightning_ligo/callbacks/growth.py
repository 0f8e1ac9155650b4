"""GrowthCallback: grows a network in the middle of `fit`."""

from __future__ import annotations

import functools
import gc
import inspect
import math
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import asdict, replace
from typing import Any

from lightning.fabric.utilities.data import _set_sampler_epoch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from lightning_utilities.core.rank_zero import rank_zero_info, rank_zero_warn
from torch import Tensor, nn
from tqdm.auto import tqdm  # type: ignore[import-untyped]

from lightning_ligo.aside import (
    called_with,
    contained,
    evaluate,
    isolated_random,
    own_batches,
    read_again,
    training_loss,
    training_output,
    validation_metrics,
    validation_names,
)
from lightning_ligo.callbacks.averaging import (
    averaged_validation,
    averages,
    averages_of,
    check_averages,
    extra_epochs,
    grown_averages,
    set_averages,
)
from lightning_ligo.callbacks.checks import (
    check_callbacks,
    check_masks,
    check_module,
    check_network,
    check_outputs,
    check_ramp_and_data,
    check_trainer,
    find_network,
)
from lightning_ligo.callbacks.deciding import Deciding, check_decisions
from lightning_ligo.callbacks.events import log_growths, log_parameters
from lightning_ligo.callbacks.failing import (
    GrowthFailedError,
    OnFailure,
    alike,
    check_on_failure,
)
from lightning_ligo.callbacks.finetuning import remember_groups
from lightning_ligo.callbacks.ramping import Ramping, check_room
from lightning_ligo.callbacks.rates import Rates
from lightning_ligo.callbacks.report import carried_over, growth_report, show_report, write_report
from lightning_ligo.callbacks.resuming import Resuming
from lightning_ligo.callbacks.sharding import Sharding
from lightning_ligo.callbacks.spending import Counting, Spending
from lightning_ligo.callbacks.stages import Stages
from lightning_ligo.callbacks.stopping import Stopping, check_stopping, restart_stopping
from lightning_ligo.checkpoint import (
    KEY,
    described,
    record_of,
    set_record,
    sizes,
)
from lightning_ligo.fit import fit
from lightning_ligo.flops import flop_counter
from lightning_ligo.growth import Operator
from lightning_ligo.in_place import network_at, set_network, unwrapped
from lightning_ligo.limits import refuse
from lightning_ligo.method import Method
from lightning_ligo.methods import method_named
from lightning_ligo.moments import Policy, check_policy, grow_states
from lightning_ligo.naming import read
from lightning_ligo.nets import build
from lightning_ligo.pairing import pair
from lightning_ligo.plan import Plan
from lightning_ligo.ramp import Ramp, check_ramp
from lightning_ligo.rate import Rate
from lightning_ligo.schedule import Growth, Run, resolve
from lightning_ligo.sharded import (
    is_sharded,
    reshard,
    shares,
)
from lightning_ligo.surgery import (
    check_every_parameter_once,
    check_optimizers_can_change,
    conform,
    group_names,
    swap,
    undone,
)


class GrowthCallback(Counting):
    """Replace a network by a larger one, grown from it, while `fit` goes on.

    At the start of the batch at which a growth is due, and before that batch is used, the large
    network is built, the operator is learned on the run's own training data with the module's own
    `training_step`, the grown weights are written, and the network is swapped. Optimizers and
    schedulers go on, and the moments that the optimizer keeps grow by the maps of the weights. What
    the module logs, counts and draws is not disturbed. At the end of `fit` a report is printed and
    written into the log folder: `growth_report.json`, `growth_report.md`, `growth.png`.

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
            width, or a `Method` of your own: how the operator starts and what of it is learned.
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
        method: str | Method = "ligo",
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
        check_stopping(early_stopping)
        self.early_stopping: Stopping = early_stopping
        check_on_failure(on_failure)
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
        self._stages = Stages(self.growths)
        self._patched: list[tuple[object, str]] = []
        self._forget()

    def _forget(self) -> None:
        """Start a new run."""
        self._sharding = Sharding()
        self._resuming = Resuming(
            self.attribute, self.growths, self.seed, self._sharding, self._stages
        )
        self._records: list[dict[str, Any]] = []
        self._failed: dict[str, Any] | None = None  # the growth that was given up
        self.spending = Spending()
        self._measured: tuple[int, dict[str, float]] | None = None  # at which step, what
        self.due: dict[int, int | None] = {}  # growths done before it -> at which step
        self._larger: dict[int, nn.Module] = {}  # of the growths to come, on the meta device
        self._plans: dict[int, Plan] = {}
        self._examined = False
        self._ramping = Ramping(self.method.ramp)
        self._rates = Rates()
        self._deciding = Deciding()

    # Before training ------------------------------------------------------------------------------

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self._undo_patches()
        record, small = record_of(pl_module), described(pl_module, self.attribute)
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
            network = dict(pl_module.named_modules()).get(self.attribute)
            self._sharding.see(pl_module, None if network is None else unwrapped(network))
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
        self._larger, self._examined = {}, False
        for number, description in self.coming(pl_module):
            with isolated_random(self.seed), of_growth(number, self.growths[number - 1]):
                self._larger[number] = build(description, device="meta")
                if is_sharded(trainer):
                    trial = build(description, device="meta")
                    self._sharding.try_out(trainer, pl_module, self.attribute, trial)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        reshard(pl_module)  # after the sanity check
        self.spending.begin(shares(trainer))
        size = self.size(pl_module)
        self._larger = {n: large for n, large in self._larger.items() if n > size}  # if resumed
        check_optimizers_can_change(trainer.optimizers)
        check_every_parameter_once(trainer, pl_module)
        check_averages(trainer, pl_module)
        self._rates.resume([Rate(**record["rate"]) for record in self._records])
        if self._rates.factor != 1:
            rank_zero_info(f"The learning rate is {Rate(self._rates.factor)}, as since the growth")
        if self.steps > 0:
            assert trainer.fit_loop._combined_loader is not None
            for loader in trainer.fit_loop._combined_loader.flattened:
                read_again(loader)
        self.due = {}
        if self._failed is not None:
            self._larger = {}
        elif not trainer.fast_dev_run:  # type: ignore[attr-defined]
            steps = resolve(self.growths, _run(trainer), size)
            self.due = dict(enumerate(steps, size))
            check_decisions(trainer, self.growths, size)
            self._deciding.begin(trainer)
            check_room(self.method.ramp, self.method.name, steps, _run(trainer).steps)
        log_parameters(trainer, _count(find_network(pl_module, self.attribute)))
        log_growths(trainer, self._records, self._sizes(pl_module))

    def _examine(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Pair the network with all that it will become, on what it is called with in training."""
        network = find_network(pl_module, self.attribute)
        network = smaller = self._sharding.plain(pl_module, network)
        with contained(trainer, pl_module, self.seed):
            set_network(pl_module, self.attribute, network)
            batches = self.batches(trainer, pl_module, batch)
            args, kwargs = self.called_with(
                trainer, pl_module, batches[self.size(pl_module)], batch_idx
            )
            at_first = args, kwargs
            for number, larger in self._larger.items():
                with of_growth(number, self.growths[number - 1]):
                    inputs = None
                    if number in batches:
                        inputs = self.large_inputs(trainer, pl_module, number, batches[number])
                    self._plans[number] = self.paired(smaller, larger, args, kwargs, inputs)
                smaller = larger
                args, kwargs = (args, kwargs) if inputs is None else ((), inputs)
            args, kwargs = at_first
            masks, entries = self._lost(trainer)
            if masks or entries:
                description = self._sizes(pl_module)[self.size(pl_module) - 1]
                small = (
                    build(description, device="meta")
                    if description
                    else self._resuming.kept[pl_module]
                )
                plan = pair(small, network, *args, override=self.override, **kwargs)
        if masks or entries:
            operator, record = Operator(plan, small, self.method), self._records[-1]
            network = find_network(pl_module, self.attribute)
            if masks:
                self._ramping.begin(Ramp(operator, network), record["step"])
            if entries:
                self._rates.rewarm(Rate(**record["rate"]), record["step"], network, operator)
        self._larger, self._examined = {}, True

    def _lost(self, trainer: Trainer) -> tuple[bool, bool]:
        """Whether masks, and which entries are new, of the last growth are to be found again."""
        if not self._records:
            return False, False
        since, rate = self._records[-1]["step"], Rate(**self._records[-1]["rate"])
        return (
            self._ramping.is_lost(since, trainer.global_step),
            self._rates.is_lost(rate, since, trainer.global_step),
        )

    def batches(self, trainer: Trainer, pl_module: LightningModule, batch: Any) -> dict[int, Any]:
        """See `Stages.batches`."""
        return self._stages.batches(trainer, pl_module, self.size(pl_module), batch)

    def large_inputs(
        self, trainer: Trainer, pl_module: LightningModule, number: int, batch: Any
    ) -> dict[str, Any]:
        """What training calls the large network of a growth with, on a batch of changed data.

        To be used within `contained`, which takes that network off again.
        """
        description = self._sizes(pl_module)[number]
        assert description is not None
        large = trainer.precision_plugin.convert_module(build(description))
        set_network(pl_module, self.attribute, large.to(trainer.strategy.root_device))
        args, kwargs = self.called_with(trainer, pl_module, batch, 0)
        return dict(inspect.signature(large.forward).bind(*args, **kwargs).arguments)

    def paired(
        self,
        small: nn.Module,
        large: nn.Module,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        large_inputs: dict[str, Any] | None = None,
    ) -> Plan:
        """How a growth of this run goes; refuses one that the run's own module cannot follow."""
        plan = pair(
            small, large, *args, large_inputs=large_inputs, override=self.override, **kwargs
        )
        check_outputs(plan)
        refuse(plan, self.method)
        if self.method.ramp:
            check_ramp(plan, small)
        return plan

    def called_with(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """What training calls the network with; refuses a step that no operator is learned on."""
        network = find_network(pl_module, self.attribute)
        args, kwargs, output = called_with(trainer, self.attribute, network, batch, batch_idx)
        if self.steps > 0:
            training_loss(output)
        return args, kwargs

    # Training -------------------------------------------------------------------------------------

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        size = self.size(pl_module)
        if not self._may_grow(trainer, size) or not self.growths[size].data:
            return
        if trainer.current_epoch >= (self.growths[size].epoch or 0):
            self._stages.to(trainer, size + 1)
            trainer.fit_loop.setup_data()
            assert trainer.fit_loop._combined_loader is not None
            for loader in trainer.fit_loop._combined_loader.flattened:
                _set_sampler_epoch(loader, trainer.current_epoch)

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        if self._larger or (not self._examined and any(self._lost(trainer))):
            self._examine(trainer, pl_module, batch, batch_idx)
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
        return not trainer.fit_loop._skip_backward  # batches that are for batch norms only

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
        started = time.monotonic()
        size = self.size(pl_module)
        seed, plan = self.seed * 65537 + size, self._plans[size + 1]
        description = self._sizes(pl_module)[size + 1]
        bar_is_shown = _shows_progress(trainer)
        was_measured = self._measured is not None and self._measured[0] == trainer.global_step
        changed = bool(self.growths[size].data) and not was_measured
        before = {} if changed else self._measure(trainer, pl_module)  # on the data it is for
        with alike(trainer):
            small = self._sharding.plain(pl_module, find_network(pl_module, self.attribute))
            with contained(trainer, pl_module, seed):
                assert description is not None
                operator = Operator(plan, small, self.method, seed)
                parents = operator.parents()
                large = conform(trainer, small, build(description), parents)
                set_network(pl_module, self.attribute, large)
                losses, flops = self._learn(trainer, pl_module, operator, bar_is_shown)
                operator.bake(large)
                grown = grown_averages(trainer, self.attribute, operator, large)
                ramp = Ramp(operator, large) if self.method.ramp else None
            watching = [*averaged_validation(trainer), self.spending.of_evaluation(size + 1)]
            with (
                contained(trainer, pl_module, seed),
                averages_of(trainer, self.attribute, grown),
            ):
                set_network(pl_module, self.attribute, large)
                after = evaluate(trainer, *watching) if trainer.enable_validation else {}
            name = self._name(trainer, before or after)
            value, grown_value = before.get(name or ""), after.get(name or "")
            check_grown(name, value, grown_value)
        states = functools.partial(grow_states, operator, policy=self.moments)
        with self._undone(trainer, pl_module, small), alike(trainer):
            if is_sharded(trainer):
                self._sharding.see(pl_module, large)
            carried = swap(trainer, pl_module, self.attribute, large, parents, states)
            set_averages(trainer, self.attribute, grown)
            check_averages(trainer, pl_module)
            remember_groups(trainer, pl_module)
            self._remember(pl_module)
        if size == 0 and self._sizes(pl_module)[0] is None:  # no one can build it again
            small.zero_grad()
            self._resuming.kept[pl_module] = small.cpu()
        if ramp is not None:
            self._ramping.begin(ramp, trainer.global_step)
        rate, why = self.growths[size].rate, self._why(size)
        self._deciding.grew(trainer)
        self._rates.begin(rate, trainer.global_step, large, operator)
        coefficients, steps = operator.coefficients, len(losses)
        self._records.append({
            "step": trainer.global_step,
            "reason": why,
            "method": self.method.name,
            "parameters": {"small": _count(small), "large": _count(large)},
            "axes": {axis: list(lengths) for axis, lengths in plan.axes.items()},
            "stacks": {stack: list(depths) for stack, depths in plan.stacks.items()},
            "operator": {
                "coefficients": coefficients,
                "steps": steps,
                "learning_rate": self.learning_rate if steps else None,
            },
            "moments": {
                "policy": self.moments, "carried": carried, "parameters": len(parents),
            },
            "rate": asdict(rate),
            "inexact": list(operator.inexact),
            "metric": {"name": name, "before": value, "after": grown_value},
            "flops": {"operator": flops},
            "seconds": time.monotonic() - started,
        })  # fmt: skip
        self.spending.grew(trainer.global_step)
        self._note(trainer, after)
        learned = f"{steps} steps, loss {losses[0]:.4g} -> {losses[-1]:.4g}" if steps else "0 steps"
        reasons = "; ".join(operator.inexact)
        exact = f"is not kept ({reasons})" if reasons else "is kept"
        scheduled = {group["lr"] for o in trainer.optimizers for group in o.param_groups}
        rates = ", ".join(f"{lr * self._rates.factor:.3g}" for lr in sorted(scheduled))
        whole = replace(rate, factor=self._rates.factor)
        rank_zero_info(
            f"Growth {size + 1} of {len(self.growths)} at step {trainer.global_step}: "
            f"{_count(small):,} -> {_count(large):,} parameters, method {self.method.name} "
            f"(operator: {coefficients:,} coefficients, {learned}); at its start the function "
            f"{exact}; {name or 'no metric'}: "
            f"{_number(value)} -> {_number(grown_value)}; optimizer state: "
            f"{carried_over(self._records[-1]['moments'])}; learning rate {rates} ({whole})"
        )
        restart_stopping(trainer, self.early_stopping)
        log_parameters(trainer, _count(large))
        log_growths(trainer, self._records, self._sizes(pl_module))

    def _learn(
        self, trainer: Trainer, pl_module: LightningModule, operator: Operator, bar_is_shown: bool
    ) -> tuple[tuple[float, ...], int]:
        """Learn the operator in place; the loss of every step, and the operations spent."""
        if not self.steps or not operator.coefficients:
            return (), 0
        counter, first_step, losses = flop_counter(), ExitStack(), list[float]()
        bar = tqdm(total=self.steps, desc="Growing", leave=False, disable=not bar_is_shown)
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
                    find_network(pl_module, self.attribute),
                    loss,
                    numbered,
                    steps=self.steps,
                    learning_rate=self.learning_rate,
                    warmup=min(self.method.warmup, self.steps // 2),
                    on_step=on_step,
                    average=functools.partial(trainer.strategy.reduce, reduce_op="mean"),
                )
        finally:  # what failed was spent too
            flops = counter.get_total_flops() * len(losses) * trainer.world_size
            self.spending.operator += flops
        return tuple(losses), flops

    def _measure(self, trainer: Trainer, pl_module: LightningModule) -> dict[str, float]:
        """The validation metrics of the network as it is, from the last validation if it was."""
        if self._measured is None or self._measured[0] != trainer.global_step:
            if not trainer.enable_validation:
                return {}
            counting = self.spending.of_evaluation(self.size(pl_module))
            watching = [*averaged_validation(trainer), counting]
            with contained(trainer, pl_module, self.seed):
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
        callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]
        monitored = [
            callback.monitor
            for callback in callbacks
            if isinstance(callback, (ModelCheckpoint, EarlyStopping))
        ]
        names = [self.monitor] if self.monitor is not None else [*monitored, *metrics]
        return next((name for name in names if name in metrics), None)

    @contextmanager
    def _undone(
        self, trainer: Trainer, pl_module: LightningModule, small: nn.Module
    ) -> Iterator[None]:
        """If the swap fails, put all back, and have the checkpoints tell so."""
        record, entry = record_of(pl_module), described(pl_module, self.attribute)
        averaged = [network_at(average, self.attribute) for average in averages(trainer)]
        assert record is not None
        try:
            with undone(trainer, pl_module, self.attribute):
                yield
        except BaseException:
            set_record(pl_module, record)
            set_averages(trainer, self.attribute, averaged)
            if entry is not None:
                pl_module.hparams[self.attribute] = entry
            if is_sharded(trainer):
                self._sharding.see(pl_module, small)
            raise

    def _remember(self, pl_module: LightningModule) -> None:
        """Have the checkpoints tell what the network is now."""
        record = record_of(pl_module)
        assert record is not None
        size = record["size"] + 1
        networks = self._sizes(pl_module)[: size + 1]
        if described(pl_module, self.attribute) is not None:
            pl_module.hparams[self.attribute] = networks[size]
        set_record(pl_module, {**record, "size": size, "networks": networks})

    def size(self, pl_module: LightningModule) -> int:
        """How many growths the network has been through."""
        record = record_of(pl_module)
        assert record is not None
        return int(record["size"])

    def coming(self, pl_module: LightningModule) -> list[tuple[int, dict[str, Any]]]:
        """The growths that are still to come: the number, from 1, and the large network of each."""
        numbered = enumerate(self._sizes(pl_module))
        done = self.size(pl_module)
        return [(number, to) for number, to in numbered if number > done and to is not None]

    def _sizes(self, pl_module: LightningModule) -> list[dict[str, Any] | None]:
        """The descriptions of all sizes of the run."""
        record = record_of(pl_module)
        assert record is not None
        return sizes(record["networks"][0], self.growths)

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


@contextmanager
def of_growth(number: int, growth: Growth) -> Iterator[None]:
    """Say in an error which growth it is about."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"growth {number} (at {growth.when}, to {growth.to}): {error}") from error


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


def _shows_progress(trainer: Trainer) -> bool:
    bar = trainer.progress_bar_callback
    return bool(getattr(bar, "is_enabled", False)) and trainer.is_global_zero


def _count(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


def _number(value: float | None) -> str:
    return "none" if value is None else f"{value:.4g}"


def _checkpoint(trainer: Trainer) -> str | None:
    """Where the run's best checkpoint is, or its last."""
    for callback in trainer.checkpoint_callbacks:
        if isinstance(callback, ModelCheckpoint):
            return callback.best_model_path or callback.last_model_path or None
    return None
