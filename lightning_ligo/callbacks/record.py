"""The record of a growth, in checkpoints, the log and the loggers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import torch
from lightning.pytorch import Trainer
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_ligo.callbacks.grower import Grown
from lightning_ligo.callbacks.report import carried_over
from lightning_ligo.operator.measure import Change
from lightning_ligo.operator.operator import Operator
from lightning_ligo.operator.optimizer_state import Policy
from lightning_ligo.schedule import Rate
from lightning_ligo.trainer.lightning import logged_step

MOST = 32
"""Rows and columns of a summary; a larger matrix is averaged over blocks."""


@dataclass(frozen=True)
class Metric:
    """The reported metric, in the small network and in the large one."""

    name: str | None
    before: float | None
    after: float | None


@dataclass(frozen=True)
class GrowthRecord:
    """Facts about one growth, as checkpoints and the report hold them."""

    step: int  # optimizer step of the growth
    reason: str  # why the growth was due
    method: str  # name of the method
    ramp: int  # number of training steps over which new parts are unmasked
    parameters: dict[str, int]  # parameter counts of the networks, `small` and `large`
    axes: dict[str, list[int]]  # both lengths of every axis that has grown
    stacks: dict[str, list[int]]  # both depths of every stack that has grown
    operator: dict[str, Any]  # `coefficients`; `steps`, `learning_rate` and `losses` of learning
    optimizer_state: dict[str, Any]  # the `policy`; `carried` of all `parameters` have a state
    rate: Rate  # learning rate after the growth
    change: Change  # of the function, on the batch before which it grew
    metric: Metric  # name of the reported metric, and its values before and after the growth
    flops: dict[str, int]  # FLOPs of learning the `operator`
    seconds: float  # duration of the growth
    learned: dict[str, Any] = field(default_factory=dict)  # see `learned`

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
            "losses": [grown.losses[0], grown.losses[-1]] if steps else None,
        },
        optimizer_state={
            "policy": optimizer_state,
            "carried": grown.carried,
            "parameters": len(grown.parents),
        },
        rate=rate,
        change=grown.change,
        metric=metric,
        flops={"operator": grown.flops},
        seconds=seconds,
        learned=learned(operator) if steps else {},
    )


def log_line(trainer: Trainer, record: GrowthRecord, factor: float) -> str:
    """Return the line of the log after a growth; `factor` is that of all growths so far."""
    learned, operator = "nothing learned", record.operator
    if operator["steps"]:
        first, last = operator["losses"]
        learned = (
            f"operator: {operator['coefficients']:,} coefficients, {operator['steps']} steps, "
            f"loss {first:.4g} -> {last:.4g}"
        )
    scheduled = {group["lr"] for o in trainer.optimizers for group in o.param_groups}
    rates = ", ".join(f"{lr * factor:.3g}" for lr in sorted(scheduled))
    metric = record.metric
    validated = f"{metric.name}: {_number(metric.before)} -> {_number(metric.after)}; "
    return (
        f"{record.parameters['small']:,} -> {record.parameters['large']:,} parameters, method "
        f"{record.method} ({learned}); "
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


@torch.no_grad()
def learned(operator: Operator) -> dict[str, Any]:
    """Return matrices of the learned operator by title, as nested lists.

    The depth mix of a stack (large x small layers) is the mean over its parameters. Of all maps
    that are learned, the one with most entries is taken (large x small lengths), in the first
    layer if it has layers.
    """
    stacks: dict[str, list[Tensor]] = {}
    for row in operator.plan.rows:
        mix = operator.depths.mixes.get(row.pattern.replace(".", "/"))
        if mix is not None:
            stacks.setdefault(f"depth mix of {row.stack}", []).append(mix)
    matrices = {title: torch.stack(mixes).mean(0) for title, mixes in stacks.items()}
    maps = {name: form for name, form in operator.widths.maps.items() if form.requires_grad}
    whole = {name: form for name, form in maps.items() if not name.endswith((":U", ":V"))}
    for name in maps:
        if name.endswith(":U"):
            whole[name[:-2]] = maps[name] @ maps[f"{name[:-2]}:V"]
    if whole:
        name, form = max(whole.items(), key=lambda each: each[1].shape[-2:].numel())
        axis, kind = name.replace("/", ".").rsplit(":", 1)
        matrices[f"map of {axis} ({kind})"] = form[0] if form.dim() == 3 else form
    return {title: _summary(matrix) for title, matrix in matrices.items()}


def _summary(matrix: Tensor) -> dict[str, Any]:
    small = F.adaptive_avg_pool2d(
        matrix.float().cpu()[None], (min(MOST, matrix.shape[0]), min(MOST, matrix.shape[1]))
    )[0]
    rounded = [[float(f"{value:.3g}") for value in row] for row in small.tolist()]
    return {"shape": list(matrix.shape), "values": rounded}
