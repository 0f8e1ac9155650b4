"""The pictures of a growth report: the run, and what an operator has learned."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from lightning_ligo.callbacks import document
from lightning_ligo.callbacks.accounting import Point, Window
from lightning_ligo.operator.cost import short
from lightning_ligo.operator.measure import Change

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def plot(report: dict[str, Any], curve: Sequence[Point], windows: Sequence[Window]) -> Figure:
    """Draw the metric over the steps and over the FLOPs, and the learning rate over the steps.

    The training loss is drawn in place of a metric that no validation has measured, and growths are
    marked.
    """
    figure = document.blank(13, 4.5)
    by_step, by_flops, rate = figure.subplots(1, 3, width_ratios=(3, 3, 2))
    by_flops.sharey(by_step)
    metric = [(p.step, p.training + p.evaluation, p.metric) for p in curve if p.metric is not None]
    names = [growth["metric"]["name"] for growth in report["growths"] if growth["metric"]["name"]]
    drawn = metric or [(w.step, w.spent, w.loss) for w in windows if w.loss is not None]
    by_step.set_ylabel((names or ["metric"])[0] if metric or not drawn else "training loss")
    for panel, position in ((by_step, 0), (by_flops, 1)):
        marker = "." if metric else ""
        _line(panel, [(each[position], each[2]) for each in drawn], "tab:blue", marker)
    values = [value for *_, value in drawn if math.isfinite(value)]
    if values and min(values) > 0:
        document.log_axis(by_step.yaxis, min(values), max(values))
    rates = [(w.step, w.learning_rate * _factor(report, w.step)) for w in windows]
    _line(rate, rates, "tab:orange", "")
    rate.set_ylabel("learning rate")
    by_flops.set_xlabel("FLOPs of training and validation")
    spent = [each[1] for each in drawn]
    if spent and min(spent) > 0:
        document.log_axis(by_flops.xaxis, min(spent), max(spent), (1, 2, 5))
    for panel in (by_step, rate):
        panel.set_xlabel("step")
    for panel in (by_step, by_flops, rate):
        panel.spines[["top", "right"]].set_visible(False)
    for number, growth in enumerate(report["growths"], 1):
        at = [(p.step, p.training + p.evaluation) for p in curve if p.step == growth["step"]]
        _mark((by_step, by_flops, rate), number, growth, at)
    figure.suptitle(_title(report))
    return figure


def _title(report: dict[str, Any]) -> str:
    paths = [each["class_path"] for each in report["networks"] if each and "class_path" in each]
    kind = paths[0].rpartition(".")[-1] if paths else "a network"
    methods = dict.fromkeys(growth["method"] for growth in report["growths"])
    return f"{kind}, grown by {' and '.join(methods)}" if methods else kind


def _line(panel: Any, points: Sequence[tuple[float, float]], color: str, marker: str) -> None:
    """Draw a line, or say that there is none."""
    if points:
        panel.plot(*zip(*points, strict=True), marker=marker, color=color)
    else:
        panel.text(0.5, 0.5, "not recorded", ha="center", transform=panel.transAxes)


def _factor(report: dict[str, Any], step: int) -> float:
    """Return the factor of the learning rate, of all growths before this step."""
    return math.prod(g["rate"]["factor"] for g in report["growths"] if g["step"] < step)


def _mark(
    panels: Sequence[Any], number: int, growth: dict[str, Any], at: Sequence[tuple[int, int]]
) -> None:
    """Mark a growth, with the metric before and after it, at (step, FLOPs) before and after it."""
    if not at:
        return
    metric, (small, large) = growth["metric"], growth["parameters"].values()
    change = Change.from_dict(growth["change"]).sentence.partition(", first")[0]
    label = f"growth {number}: {short(small).strip()} → {short(large).strip()} parameters\n{change}"
    by_step, by_flops, _ = panels
    if None not in (metric["before"], metric["after"]):
        label += f"\n{metric['name']} {metric['before']:.4f} → {metric['after']:.4f}"
        for position, panel in enumerate((by_step, by_flops)):
            ends = [(at[0][position], metric["before"]), (at[-1][position], metric["after"])]
            panel.plot(
                *zip(*ends, strict=True), "o", color="tab:red", fillstyle="none", markersize=8
            )
    for panel, x in zip(panels, (at[0][0], at[0][1], at[0][0]), strict=True):
        panel.axvline(x, color="gray", linestyle="--", linewidth=1, zorder=0)
    x = at[0][0]
    across, _ = by_step.transAxes.inverted().transform(by_step.transData.transform((x, 1)))
    side, side_of_text = (4, "left") if across < 0.6 else (-4, "right")
    by_step.annotate(label, (x, 1), xycoords=("data", "axes fraction"),
                     xytext=(side, 42 - 42 * number), textcoords="offset points", va="top",
                     ha=side_of_text, fontsize="small")  # fmt: skip


def heat_maps(matrices: Sequence[tuple[str, dict[str, Any]]]) -> Figure:
    """Draw matrices by title, red above zero and blue below."""
    columns = min(3, len(matrices))
    lines = math.ceil(len(matrices) / columns)
    figure = document.blank(4 * columns, 3.6 * lines)
    panels = figure.subplots(lines, columns, squeeze=False).ravel()
    for panel in panels[len(matrices) :]:
        panel.set_axis_off()
    for panel, (title, matrix) in zip(panels, matrices, strict=False):
        (large, small), values = matrix["shape"], matrix["values"]
        means = "" if len(values) == large and len(values[0]) == small else "\n(means of blocks)"
        most = max(abs(value) for row in values for value in row) or 1.0
        extent = (-0.5, small - 0.5, large - 0.5, -0.5)
        picture = panel.imshow(values, "RdBu_r", vmin=-most, vmax=most, extent=extent,
                               aspect="auto")  # fmt: skip
        figure.colorbar(picture, ax=panel)
        panel.set_title(title + means, fontsize="small")
        panel.locator_params(integer=True)
        panel.set(xlabel=f"small ({small})", ylabel=f"large ({large})")
    return figure
