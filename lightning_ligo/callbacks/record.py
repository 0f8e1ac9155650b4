"""What is known of a growth once it is done: its record, and its line in the log."""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import Any

from lightning.pytorch import Trainer
from torch import nn

from lightning_ligo.callbacks.grower import Grown
from lightning_ligo.callbacks.report import carried_over
from lightning_ligo.operator.optimizer_state import Policy
from lightning_ligo.plan.plan import Plan
from lightning_ligo.schedule import Rate

Metric = tuple[str | None, float | None, float | None]
"""The name of what is reported, and its value before and after."""


def growth_record(
    grown: Grown,
    plan: Plan,
    step: int,
    reason: str,
    learning_rate: float,
    moments: Policy,
    rate: Rate,
    metric: Metric,
    seconds: float,
) -> dict[str, Any]:
    """The record as plain data, for checkpoints and the report."""
    operator, steps = grown.operator, len(grown.losses)
    name, before, after = metric
    return {
        "step": step,
        "reason": reason,
        "method": operator.method.name,
        "ramp": operator.method.ramp,
        "parameters": {"small": count(grown.small), "large": count(grown.large)},
        "axes": {axis: list(lengths) for axis, lengths in plan.axes.items()},
        "stacks": {stack: list(depths) for stack, depths in plan.stacks.items()},
        "operator": {
            "coefficients": operator.coefficients,
            "steps": steps,
            "learning_rate": learning_rate if steps else None,
        },
        "moments": {"policy": moments, "carried": grown.carried, "parameters": grown.parameters},
        "rate": asdict(rate),
        "inexact": list(operator.inexact),
        "metric": {"name": name, "before": before, "after": after},
        "flops": {"operator": grown.flops},
        "seconds": seconds,
    }


def told(trainer: Trainer, record: dict[str, Any], losses: tuple[float, ...], factor: float) -> str:
    """What the log says of a growth that has this record.

    Args:
        trainer: of the run, after the growth.
        record: of the growth.
        losses: of every step of learning the operator.
        factor: of the learning rate, of all growths so far.
    """
    steps = len(losses)
    learned = f"{steps} steps, loss {losses[0]:.4g} -> {losses[-1]:.4g}" if steps else "0 steps"
    reasons = "; ".join(record["inexact"])
    exact = f"is not kept ({reasons})" if reasons else "is kept"
    scheduled = {group["lr"] for o in trainer.optimizers for group in o.param_groups}
    rates = ", ".join(f"{lr * factor:.3g}" for lr in sorted(scheduled))
    small, large = record["parameters"].values()
    name, before, after = record["metric"].values()
    return (
        f"{small:,} -> {large:,} parameters, method {record['method']} "
        f"(operator: {record['operator']['coefficients']:,} coefficients, {learned}); at its start "
        f"the function {exact}; {name or 'no metric'}: {_number(before)} -> {_number(after)}; "
        f"optimizer state: {carried_over(record['moments'])}; learning rate {rates} "
        f"({replace(Rate(**record['rate']), factor=factor)})"
    )


def count(network: nn.Module) -> int:
    """The numbers in a network's parameters."""
    return sum(parameter.numel() for parameter in network.parameters())


def _number(value: float | None) -> str:
    return "none" if value is None else f"{value:.4g}"
