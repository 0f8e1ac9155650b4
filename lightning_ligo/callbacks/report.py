"""The growth report of a run, as JSON, Markdown, HTML, plot and table."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning_ligo.callbacks import document
from lightning_ligo.callbacks.accounting import Point
from lightning_ligo.operator.cost import short
from lightning_ligo.operator.measure import Change
from lightning_ligo.schedule import Rate

if TYPE_CHECKING:
    from lightning.pytorch import Trainer
    from matplotlib.figure import Figure

NOTE = """\
A metric at the end is the last one before the next growth or before the end of the run; \
FLOPs are of the steps between growths, forward and backward."""


def growth_report(
    records: Sequence[dict[str, Any]],
    failed: dict[str, Any] | None,
    training: Sequence[int],
    metrics: dict[str, float],
    checkpoint: str | None,
) -> dict[str, Any]:
    """Return the report as plain data.

    `failed` is the growth that failed, if the run continued with the small network; `training` are
    the FLOPs at each size, and `metrics` those of the last validation.
    """
    growths = []
    for position, record in enumerate(records):
        name = record["metric"]["name"]
        last = position == len(records) - 1
        final = metrics.get(name) if last else records[position + 1]["metric"]["before"]
        spent = [*training, *[0] * (position + 2 - len(training))]
        growths.append({
            **record,
            "metric": {**record["metric"], "final": final},
            "flops": {"small": spent[position], **record["flops"], "large": spent[position + 1]},
        })  # fmt: skip
    return {
        "growths": growths,
        "failed": failed,
        "checkpoint": checkpoint,
        "validation": metrics,
        "versions": document.versions(),
    }


def report_folder(trainer: Trainer) -> str | None:
    """Return the folder for the report; call it on all ranks.

    It is None without a logger and a `default_root_dir`, which say where files may be written.
    """
    folder = trainer.log_dir or trainer.default_root_dir
    return folder if trainer.loggers or folder != os.getcwd() else None


def write_report(
    report: dict[str, Any], curve: Sequence[Point], folder: str | os.PathLike[str]
) -> Path:
    """Write `growth_report.json`, `.md` and `.html`, and `growth.png` into the folder."""
    brief = [{k: v for k, v in g.items() if k != "learned"} for g in report["growths"]]
    picture = document.png(plot(report, curve))
    document.write_files(Path(folder), {
        "growth_report.json": json.dumps({**report, "growths": brief}, indent=2) + "\n",
        "growth_report.md": markdown(report),
        "growth_report.html": html_page(report, picture),
        "growth.png": picture,
    })  # fmt: skip
    return Path(folder)


# Words --------------------------------------------------------------------------------------------


def plan_rows(report: dict[str, Any]) -> list[list[str]]:
    """Return what grows: a column for every growth, below its head."""
    growths = report["growths"]
    rows = [["", *(f"growth {number}" for number, _ in enumerate(growths, 1))],
            ["parameters", *(_arrow(g["parameters"].values()) for g in growths)]]  # fmt: skip
    for part, what in (("stacks", "depth of"), ("axes", "axis")):
        for name in dict.fromkeys(name for growth in growths for name in growth[part]):
            rows.append([f"{what} {name}", *(_arrow(g[part].get(name)) for g in growths)])
    return rows if growths else []


def run_rows(report: dict[str, Any]) -> list[list[str]]:
    """Return how the run grew and what it spent: a column for every growth."""

    def line(what: str, say: Callable[[dict[str, Any]], str]) -> list[str]:
        return [what, *(say(growth) for growth in report["growths"])]

    return [
        line("step", lambda g: f"{g['step']:,}"),
        line("reason", lambda g: g["reason"]),
        line("method", lambda g: g["method"]),
        line("operator", _operator),
        line("learning rate", lambda g: str(Rate(**g["rate"]))),
        line("optimizer state", lambda g: carried_over(g["moments"])),
        line("metric", lambda g: g["metric"]["name"] or "none"),
        line("  before growth", lambda g: _metric(g["metric"]["before"])),
        line("  after growth", lambda g: _metric(g["metric"]["after"])),
        line("  at the end", lambda g: _metric(g["metric"]["final"])),
        line("FLOPs small", lambda g: f"{g['flops']['small']:.3g}"),
        line("FLOPs operator", lambda g: f"{g['flops']['operator']:.3g}"),
        line("FLOPs large", lambda g: f"{g['flops']['large']:.3g}"),
        line("seconds", lambda g: f"{g['seconds']:.1f}"),
    ]


def rows(report: dict[str, Any]) -> list[list[str]]:
    """Return the whole report as a table; empty without a growth."""
    plan = plan_rows(report)
    return [*plan, *run_rows(report)] if plan else []


def notes(report: dict[str, Any]) -> list[str]:
    """Return what stands below the table."""
    final = document.listed({name: _metric(value) for name, value in report["validation"].items()})
    return [
        *_failed(report),
        f"Last validation: {final or 'none'}.",
        f"Checkpoint: {report['checkpoint'] or 'none'}.",
        f"Versions: {document.listed(report['versions'])}.",
    ]


def markdown(report: dict[str, Any]) -> str:
    """Return the report as Markdown, with the plot beside it."""
    lines = ["# Growth report", "", *document.markdown_table(rows(report)), "", NOTE, ""]
    lines += [line for note in notes(report) for line in (note, "")]
    return "\n".join([*lines, "![the run](growth.png)", ""])


def html_page(report: dict[str, Any], picture: bytes) -> str:
    """Return the report as one self-contained HTML page."""
    plan, growths = plan_rows(report), list(enumerate(report["growths"], 1))
    matrices = [
        (f"growth {number}: {title}", matrix)
        for number, growth in growths
        for title, matrix in growth["learned"].items()
    ]
    parts = [document.paragraph(_summary(number, growth)) for number, growth in growths]
    parts.append(document.image(picture, "the run"))
    if plan:
        run = document.html_table([plan[0], *run_rows(report)])
        parts += [document.heading("Plan"), document.html_table(plan)]
        parts += [document.heading("Run"), run, document.paragraph(NOTE)]
    if matrices:
        maps = document.png(heat_maps(matrices))
        parts.append(document.heading("What the operator learned"))
        parts.append(document.image(maps, "what the operator learned"))
    foot = "\n".join(document.paragraph(note) for note in notes(report))
    return document.page("Growth report", *parts, f"<footer>\n{foot}\n</footer>")


def show_report(report: dict[str, Any], curve: Sequence[Point], folder: str | None) -> None:
    """Print the report as a table, and write it into the folder, if there is one."""
    if folder is not None:
        write_report(report, curve, folder)
    files = [f"checkpoint: {report['checkpoint'] or 'none'}", f"report: {folder or 'not written'}"]
    document.show("Growth report", rows(report), [*_failed(report), *files])


def _summary(number: int, growth: dict[str, Any]) -> str:
    metric = growth["metric"]
    values = [_metric(metric[when]) for when in ("before", "after", "final")]
    validated = ", {} {} before, {} after and {} at the end".format(metric["name"], *values)
    return (
        f"Growth {number} at step {growth['step']:,} ({growth['reason']}) by {growth['method']}: "
        f"{_arrow(growth['parameters'].values())} parameters{validated if metric['name'] else ''}. "
        f"On the batch before which it grew, {Change.from_dict(growth['change']).sentence}."
    )


def _failed(report: dict[str, Any]) -> list[str]:
    failed = report["failed"]
    return [] if failed is None else [
        f"Growth {failed['growth']} by {failed['method']}, due at {failed['reason']}, failed at "
        f"step {failed['step']:,}: {failed['why']}. The run went on with the small network."
    ]  # fmt: skip


def _operator(growth: dict[str, Any]) -> str:
    operator = growth["operator"]
    if not operator["steps"]:
        return "not learned"
    return (
        f"{operator['coefficients']:,} coefficients, {operator['steps']} steps at "
        f"{operator['learning_rate']:g}"
    )


def carried_over(moments: dict[str, Any]) -> str:
    """Return how much of the optimizer's state was carried over.

    >>> carried_over({"policy": "map", "carried": 50, "parameters": 55})
    'mapped for 50 of 55 parameters, fresh for the others'
    """
    done = {"map": "mapped", "keep-old-zero-new": "kept for old entries, zero for new ones,"}
    carried, parameters = moments["carried"], moments["parameters"]
    others = ", fresh for the others" if carried < parameters else ""
    return f"{done.get(moments['policy'], 'kept')} for {carried} of {parameters} parameters{others}"


def _arrow(lengths: Any) -> str:
    return " → ".join(f"{length:,}" for length in lengths) if lengths else "-"


def _metric(value: float | None) -> str:
    return "none" if value is None else f"{value:.4f}"


# Plots --------------------------------------------------------------------------------------------


def plot(report: dict[str, Any], curve: Sequence[Point]) -> Figure:
    """Draw the metric and the learning rate over the FLOPs, with the growths marked."""
    figure = document.blank(10, 4.5)
    left, right = figure.subplots(1, 2, width_ratios=(2, 1))
    spent = [point.training + point.evaluation for point in curve]
    measured = [(x, p.metric) for x, p in zip(spent, curve, strict=True) if p.metric is not None]
    names = [growth["metric"]["name"] for growth in report["growths"] if growth["metric"]["name"]]
    left.set_ylabel(names[0] if names else "metric")
    right.set_ylabel("learning rate")
    _line(left, measured, "tab:blue", "no validation")
    values = [value for _, value in measured if math.isfinite(value)]
    if values and min(values) > 0:
        document.log_axis(left.yaxis, min(values), max(values))
    rates = [(x, p.learning_rate * _factor(report, curve, number))
             for number, (x, p) in enumerate(zip(spent, curve, strict=True))
             if p.learning_rate is not None]  # fmt: skip
    _line(right, rates, "tab:orange", "not recorded")
    for panel in (left, right):
        panel.set_xlabel("FLOPs of training and validation")
        panel.spines[["top", "right"]].set_visible(False)
        if spent and min(spent) > 0:
            ticks = (1, 2, 5) if panel is left else (1,)
            document.log_axis(panel.xaxis, min(spent), max(spent), ticks)
    for number, growth in enumerate(report["growths"], 1):
        _mark(left, right, number, growth, [x for x, p in zip(spent, curve, strict=True)
                                            if p.step == growth["step"]])  # fmt: skip
    return figure


def _line(panel: Any, points: Sequence[tuple[float, float]], color: str, none: str) -> None:
    """Draw a line, or say why there is none."""
    if not points:
        panel.text(0.5, 0.5, none, ha="center", transform=panel.transAxes)
        return
    panel.plot(*zip(*points, strict=True), marker=".", color=color)


def _factor(report: dict[str, Any], curve: Sequence[Point], number: int) -> float:
    """Return the factor of the learning rate at a point, of all growths before it.

    The first point at the step of a growth is before it, the others are after it.
    """
    step, again = curve[number].step, number and curve[number - 1].step == curve[number].step
    return math.prod(growth["rate"]["factor"] for growth in report["growths"]
                     if growth["step"] < step or (growth["step"] == step and again))  # fmt: skip


def _mark(left: Any, right: Any, number: int, growth: dict[str, Any], spent: list[float]) -> None:
    """Mark a growth, and the metric before and after it."""
    if not spent:
        return
    metric, (small, large) = growth["metric"], growth["parameters"].values()
    label = f"growth {number}: {short(small).strip()} → {short(large).strip()} parameters"
    ends = [(spent[0], metric["before"]), (spent[-1], metric["after"])]
    if None not in (metric["before"], metric["after"]):
        label += f"\n{metric['name']} {_metric(metric['before'])} → {_metric(metric['after'])}"
        left.plot(*zip(*ends, strict=True), "o", color="tab:red", fillstyle="none", markersize=8)
    for panel in (left, right):
        panel.axvline(spent[0], color="gray", linestyle="--", linewidth=1, zorder=0)
    across, _ = left.transAxes.inverted().transform(left.transData.transform((spent[0], 1)))
    side, side_of_text = (4, "left") if across < 0.6 else (-4, "right")
    left.annotate(label, (spent[0], 1), xycoords=("data", "axes fraction"),
                  xytext=(side, 26 - 30 * number), textcoords="offset points", va="top",
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
