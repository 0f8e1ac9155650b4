"""The record of a growth, in checkpoints, the log and the loggers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from lightning.pytorch import Trainer
from torch import nn

from lightning_ligo.callbacks.grower import Grown
from lightning_ligo.callbacks.learned import learned
from lightning_ligo.callbacks.report import carried_over
from lightning_ligo.operator.measure import Change
from lightning_ligo.operator.optimizer_state import Policy
from lightning_ligo.schedule import Rate
from lightning_ligo.trainer.lightning import logged_step


@dataclass(frozen=True)
class Metric:
    """The reported metric, in the small network and in the large one."""

    name: str | None
    before: float | None
    after: float | None


@dataclass(frozen=True)
class GrowthRecord:
    """Facts about one growth, as checkpoints and the report hold them.

    Args:
        step: optimizer step of the growth.
        reason: why the growth was due.
        method: name of the method.
        ramp: number of training steps over which new parts are unmasked.
        parameters: parameter counts of the networks, `small` and `large`.
        axes: both lengths of every axis that has grown.
        stacks: both depths of every stack that has grown.
        operator: `coefficients`, and the `steps` and `learning_rate` of learning them.
        optimizer_state: the `policy`, and for how many (`carried`) of all `parameters` the
            optimizer continues with a state.
        rate: learning rate after the growth.
        change: how much the growth changed the function, on the batch before which it grew.
        metric: name of the reported metric, and its values before and after the growth.
        flops: FLOPs of learning the `operator`.
        seconds: duration of the growth.
        learned: matrices of the learned operator, see `learned`.
    """

    step: int
    reason: str
    method: str
    ramp: int
    parameters: dict[str, int]
    axes: dict[str, list[int]]
    stacks: dict[str, list[int]]
    operator: dict[str, Any]
    optimizer_state: dict[str, Any]
    rate: Rate
    change: Change
    metric: Metric
    flops: dict[str, int]
    seconds: float
    learned: dict[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Return the record as plain data; `optimizer_state` has the key `moments`."""
        plain = {_KEYS.get(name, name): value for name, value in asdict(self).items()}
        return plain | {"change": self.change.to_dict()}

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any]) -> GrowthRecord:
        """Read what `to_dict` has returned."""
        unknown = Change(None, why="the checkpoint is older").to_dict()
        plain = {"learned": {}, "change": unknown, **plain}  # older checkpoints have none
        fields = {name: plain[_KEYS.get(name, name)] for name in cls.__dataclass_fields__}
        return cls(
            **fields
            | {
                "rate": Rate(**plain["rate"]),
                "metric": Metric(**plain["metric"]),
                "change": Change.from_dict(plain["change"]),
            }
        )


_KEYS = {"optimizer_state": "moments"}
"""Fields whose key in checkpoints differs from their name."""


def growth_record(
    grown: Grown,
    step: int,
    reason: str,
    rate: Rate,
    optimizer_state: Policy,
    metric: Metric,
    seconds: float,
) -> GrowthRecord:
    """Return the record of a growth; see `GrowthRecord` for the arguments."""
    operator, steps, plan = grown.operator, len(grown.losses), grown.operator.plan
    return GrowthRecord(
        step=step,
        reason=reason,
        method=operator.method.name,
        ramp=operator.method.ramp,
        parameters={"small": count(grown.small), "large": count(grown.large)},
        axes={axis: list(lengths) for axis, lengths in plan.axes.items()},
        stacks={stack: list(depths) for stack, depths in plan.stacks.items()},
        operator={
            "coefficients": operator.coefficients,
            "steps": steps,
            "learning_rate": operator.method.learning_rate if steps else None,
        },
        optimizer_state={"policy": optimizer_state, **grown.optimizer_state},
        rate=rate,
        change=grown.change,
        metric=metric,
        flops={"operator": grown.flops},
        seconds=seconds,
        learned=learned(operator) if steps else {},
    )


def log_line(
    trainer: Trainer, record: GrowthRecord, losses: tuple[float, ...], factor: float
) -> str:
    """Return the line that the log shows after a growth.

    Args:
        trainer: Trainer of the run, after the growth.
        record: record of the growth.
        losses: loss of every step of learning the operator.
        factor: product of the learning rate factors of all growths so far.
    """
    steps = len(losses)
    learned = f"{steps} steps, loss {losses[0]:.4g} -> {losses[-1]:.4g}" if steps else "0 steps"
    scheduled = {group["lr"] for o in trainer.optimizers for group in o.param_groups}
    rates = ", ".join(f"{lr * factor:.3g}" for lr in sorted(scheduled))
    metric = record.metric
    validated = f"{metric.name}: {_number(metric.before)} -> {_number(metric.after)}; "
    return (
        f"{record.parameters['small']:,} -> {record.parameters['large']:,} parameters, method "
        f"{record.method} (operator: {record.operator['coefficients']:,} coefficients, {learned}); "
        f"at its start {record.change.sentence}; {validated if metric.name else ''}"
        f"optimizer state: {carried_over(record.optimizer_state)}; "
        f"learning rate {rates} ({replace(record.rate, factor=factor)})"
    )


def log_parameters(trainer: Trainer, number: int) -> None:
    """Log the parameter count of the network, at the step at which the next batch is logged."""
    step = logged_step(trainer)
    for logger in trainer.loggers:
        logger.log_metrics({"growth/parameters": number}, step=step)


def log_growths(
    trainer: Trainer, records: Sequence[GrowthRecord], networks: Sequence[dict[str, Any] | None]
) -> None:
    """Log every growth as a new hyperparameter, with the description of the large network.

    Existing hyperparameters do not change, as some trackers refuse that.

    Args:
        trainer: Trainer of the run.
        records: records of the growths.
        networks: descriptions of the small network and of the larger ones.
    """
    growths = {
        f"growth_{number}": {
            "step": record.step,
            "reason": record.reason,
            "method": record.method,
            "parameters": dict(record.parameters),
            "network": networks[number],
        }
        for number, record in enumerate(records, 1)
    }
    for logger in trainer.loggers if growths else ():
        logger.log_hyperparams(growths)
        logger.save()


def count(network: nn.Module) -> int:
    """Return the number of parameters of a network."""
    return sum(parameter.numel() for parameter in network.parameters())


def _number(value: float | None) -> str:
    return "none" if value is None else f"{value:.4g}"
