"""The growth report: what a run with growths did and spent, as JSON, Markdown, plot and table."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Callable, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import lightning
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table

from lightning_ligo.callbacks.accounting import Point
from lightning_ligo.schedule import Rate


def growth_report(
    records: Sequence[dict[str, Any]],
    failed: dict[str, Any] | None,
    training: Sequence[int],
    metrics: dict[str, float],
    checkpoint: str | None,
) -> dict[str, Any]:
    """The report as plain data.

    Args:
        records: of the growths, as GrowthCallback writes them.
        failed: the growth after which the run has gone on with the network that it had.
        training: the operations spent on training at each size.
        metrics: of the last validation.
        checkpoint: the path of the run's best or last checkpoint.
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
        "versions": versions(),
    }


def versions() -> dict[str, str]:
    """Of what a result depends on."""
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "lightning": lightning.__version__,
        "lightning_ligo": _own_version(),
    }


def _own_version() -> str:
    try:
        return version("lightning-ligo")
    except PackageNotFoundError:  # it is on the path, but was not installed
        return "not installed"


def write_report(
    report: dict[str, Any], curve: Sequence[Point], folder: str | os.PathLike[str]
) -> Path:
    """Write `growth_report.json`, `growth_report.md` and `growth.png` into the folder."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    figure = plot(report, curve)
    for name, write in (
        ("growth_report.json", lambda path: path.write_text(json.dumps(report, indent=2) + "\n")),
        ("growth_report.md", lambda path: path.write_text(markdown(report))),
        ("growth.png", lambda path: figure.savefig(path, format="png", dpi=150)),
    ):
        write_whole(folder / name, write)
    return folder


def write_whole(path: Path, write: Callable[[Path], object]) -> None:
    """Nobody finds half a file, and a failure leaves the one before."""
    part = path.with_name(f".{path.name}.part")
    try:
        write(part)
        os.replace(part, path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise


# Words --------------------------------------------------------------------------------------------


def rows(report: dict[str, Any]) -> list[list[str]]:
    """The report as a table: a first column of what, and a column for every growth."""
    growths = report["growths"]
    axes = dict.fromkeys(name for growth in growths for name in growth["axes"])
    stacks = dict.fromkeys(name for growth in growths for name in growth["stacks"])

    def line(what: str, say: Callable[[dict[str, Any]], str]) -> list[str]:
        return [what, *(say(growth) for growth in growths)]

    return [
        line("step", lambda g: f"{g['step']:,}"),
        line("reason", lambda g: g["reason"]),
        line("method", lambda g: g["method"]),
        line("parameters", lambda g: _arrow(g["parameters"].values())),
        *(line(f"depth of {n}", lambda g, n=n: _arrow(g["stacks"].get(n))) for n in stacks),  # type: ignore[misc]
        *(line(f"axis {n}", lambda g, n=n: _arrow(g["axes"].get(n))) for n in axes),  # type: ignore[misc]
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


def markdown(report: dict[str, Any]) -> str:
    """The report as Markdown, with the plot beside it."""
    heads = ["", *(f"growth {number}" for number, _ in enumerate(report["growths"], 1))]
    table = [heads, ["---"] * len(heads), *rows(report)] if report["growths"] else []
    lines = [f"| {' | '.join(cell.strip() for cell in line)} |" for line in table]
    used = ", ".join(f"{name} {number}" for name, number in report["versions"].items())
    final = ", ".join(f"{name} {_metric(value)}" for name, value in report["validation"].items())
    return "\n".join([
        "# Growth report",
        "",
        *lines,
        *([] if report["failed"] is None else ["", _failed(report["failed"])]),
        "",
        "A metric at the end is the last one before the next growth or before the end of the run; "
        "FLOPs are of the steps between growths, forward and backward.",
        "",
        f"Last validation: {final or 'none'}.",
        f"Checkpoint: {report['checkpoint'] or 'none'}.",
        f"Versions: {used}.",
        "",
        "![the run](growth.png)",
        "",
    ])  # fmt: skip


def show_report(report: dict[str, Any], folder: Path) -> None:
    """Print the report as a table."""
    table = Table(title="Growth report")
    table.add_column("")
    for number, _ in enumerate(report["growths"], 1):
        table.add_column(f"growth {number}", justify="right")
    for row in rows(report):
        table.add_row(*row)
    console = Console()
    if report["growths"]:
        console.print(table)
    if report["failed"] is not None:
        console.print(_failed(report["failed"]), highlight=False, markup=False)
    console.print(f"checkpoint: {report['checkpoint'] or 'none'}", soft_wrap=True, highlight=False)
    console.print(f"report: {folder}", soft_wrap=True, highlight=False)


def _failed(failed: dict[str, Any]) -> str:
    return (
        f"Growth {failed['growth']} by {failed['method']}, due at {failed['reason']}, failed at "
        f"step {failed['step']:,}: {failed['why']}. The run went on with the small network."
    )


def _operator(growth: dict[str, Any]) -> str:
    operator = growth["operator"]
    if not operator["steps"]:
        return "not learned"
    return (
        f"{operator['coefficients']:,} coefficients, {operator['steps']} steps at "
        f"{operator['learning_rate']:g}"
    )


def carried_over(moments: dict[str, Any]) -> str:
    """
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


# Plot ---------------------------------------------------------------------------------------------


def plot(report: dict[str, Any], curve: Sequence[Point]) -> Figure:
    """The validation metric and the operations spent over the steps, with the growths marked."""
    figure = Figure(figsize=(7, 5), layout="constrained")
    FigureCanvasAgg(figure)
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=(2, 1))
    measured = [(point.step, point.metric) for point in curve if point.metric is not None]
    names = [growth["metric"]["name"] for growth in report["growths"] if growth["metric"]["name"]]
    if measured:
        above.plot(*zip(*measured, strict=True), marker=".", color="tab:blue")
        above.set_ylabel(names[0] if names else "metric")
    else:
        above.text(0.5, 0.5, "no validation", ha="center", transform=above.transAxes)
    below.plot(
        [point.step for point in curve], [point.training for point in curve], color="tab:orange"
    )
    below.set_ylabel("training FLOPs")
    below.set_xlabel("optimizer step")
    for number, growth in enumerate(report["growths"], 1):
        small, large = growth["parameters"]["small"], growth["parameters"]["large"]
        for axes in (above, below):
            axes.axvline(growth["step"], color="gray", linestyle="--", linewidth=1)
        above.annotate(
            f"growth {number}: {_short(small)} → {_short(large)}",
            (growth["step"], 1),
            xycoords=("data", "axes fraction"),
            xytext=(4, -4),
            textcoords="offset points",
            va="top",
            fontsize="small",
        )
    return figure


def _short(count: int) -> str:
    """
    >>> _short(25354), _short(1200000)
    ('25k', '1.2M')
    """
    for size, letter in ((10**9, "B"), (10**6, "M"), (10**3, "k")):
        if count >= size:
            return (
                f"{count / size:.2g}{letter}" if count < 10 * size else f"{count // size}{letter}"
            )
    return str(count)
