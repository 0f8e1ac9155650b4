"""What a comparison has found, as JSON, Markdown, table and plot."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, LogLocator, NullFormatter, ScalarFormatter
from rich.console import Console
from rich.table import Table

from lightning_ligo.callbacks.accounting import Point
from lightning_ligo.callbacks.report import versions, write_whole
from lightning_ligo.compare.comparison import FRONTIER, Budget, Entry, Saved, saved, worth
from lightning_ligo.compare.trial import SCRATCH, SMALL_ONLY, Result, Trial

SHARES = ", ".join(f"{share:g}" for share in FRONTIER)

NOTES = f"""\
Loss is after the last step; FLOPs are measured on the run's own batches, forward and backward, and
are the mean over the seeds. Every run has a complete schedule for its own number of steps. Off the
budget is how much more or less than its share of the budget a run has spent.

Saved is 1 - FLOPs / FLOPs that {SCRATCH} needs for the same loss, between its runs at {SHARES} of
the budget, the logarithm of one linear in that of the other; where {SCRATCH} does not reach the
loss it is a bound. All counted: the small network, the operator, the large network and all
validations; small free: without what was spent before the last growth, as the paper counts. In
parentheses: the least and the most over the seeds, each against {SCRATCH} of the same seed.

Seconds are of training with its validations, beside other runs where several went at once."""

LINES = ("-", "--", ":")  # of the first ten curves, the next ten and those after them

HEADS = ("method", "rate", "steps", "loss", "FLOPs", "small", "operator", "large", "evaluation",
         "off budget", "saved, all counted", "saved, small free", "seconds")  # fmt: skip


@dataclass(frozen=True)
class Comparison:
    """All that is known when the runs have ended."""

    command: str
    date: str
    metric: str
    seeds: int
    rates: tuple[float | None, ...]
    budget: Budget
    entries: tuple[Entry, ...]
    results: dict[Trial, Result]
    failures: dict[Trial, str]

    def savings(self, entry: Entry) -> tuple[Saved | None, Saved | None]:
        """All counted, and with the small network for free."""
        counted = saved(entry, self.entries, False) if entry.method != SCRATCH else None
        return counted, saved(entry, self.entries, True) if entry.grows else None

    def off(self, entry: Entry) -> float:
        """The share of its budget that an entry has spent more, or less, than it."""
        return fmean(r.flops for r in entry.results) / (entry.share * self.budget.flops) - 1

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain data, for JSON."""
        return {
            "command": self.command,
            "date": self.date,
            "versions": versions(),
            "devices": sorted({result.device for result in self.results.values()}),
            "metric": self.metric,
            "seeds": self.seeds,
            "learning_rates": list(self.rates),
            "budget": self.budget.flops,
            "costs": {name: asdict(costs) for name, costs in self.budget.costs.items()},
            "worth": worth(self.entries),
            "entries": [self._entry(entry) for entry in self.entries],
            "runs": [{**_facts(trial), **asdict(result)} for trial, result in self.results.items()],
            "failures": [{**_facts(trial), "error": why} for trial, why in self.failures.items()],
        }

    def _entry(self, entry: Entry) -> dict[str, Any]:
        counted, free = self.savings(entry)
        return {
            "method": entry.method,
            "share": entry.share,
            "learning_rate": entry.rate,
            "tried": [{"learning_rate": rate, "loss": _plain(loss)} for rate, loss in entry.tried],
            "loss": _plain(entry.loss),
            "losses": [_plain(loss) for loss in entry.losses],
            "flops": parts(entry),
            "off_budget": self.off(entry),
            "saved": asdict(counted) if counted else None,
            "saved_small_free": asdict(free) if free else None,
        }


def parts(entry: Entry) -> dict[str, float]:
    """The mean FLOPs of an entry over its seeds: in all, and what they were spent on."""

    def mean(of: Callable[[Result], int]) -> float:
        return fmean(of(result) for result in entry.results)

    large = mean(lambda result: result.training[-1])
    small = mean(lambda result: sum(result.training[:-1]))
    if entry.method == SMALL_ONLY:
        small, large = large, 0.0
    return {
        "all": mean(lambda result: result.flops),
        "small": small,
        "operator": mean(lambda result: result.operator),
        "large": large,
        "evaluation": mean(lambda result: sum(result.evaluation)),
    }


def write_comparison(comparison: Comparison, folder: Path) -> None:
    """Write `compare.json`, `compare.md` and `compare.png` into the folder."""
    figure = plot(comparison)
    for name, write in (
        ("compare.json", lambda path: path.write_text(json.dumps(comparison.to_dict(), indent=1))),
        ("compare.md", lambda path: path.write_text(markdown(comparison))),
        ("compare.png", lambda path: figure.savefig(path, format="png", dpi=100)),
    ):
        write_whole(folder / name, write)


# Words --------------------------------------------------------------------------------------------


def rows(comparison: Comparison) -> list[list[str]]:
    """A line for every entry, below `HEADS`; from scratch first, then the lowest loss."""
    lines = []
    for entry in _in_order(comparison):
        flops = parts(entry)
        losses = f"{entry.loss:.4f}"
        if len(entry.losses) > 1:
            losses += f" ({min(entry.losses):.4f} to {max(entry.losses):.4f})"
        lines.append([
            name_of(entry),
            "own" if entry.rate is None else f"{entry.rate:g}",
            f"{entry.results[0].steps:,}",
            losses,
            *(f"{value:.3g}" for value in flops.values()),
            f"{100 * comparison.off(entry):+.2f} %",
            *(_saved(each) for each in comparison.savings(entry)),
            f"{fmean(result.seconds for result in entry.results):.0f}",
        ])  # fmt: skip
    return lines


def _in_order(comparison: Comparison) -> list[Entry]:
    return sorted(comparison.entries, key=lambda e: (e.method != SCRATCH, e.share, e.loss))


def name_of(entry: Entry) -> str:
    """`scratch, 0.5 of the budget`; methods are compared at the whole budget only."""
    return f"{SCRATCH}, {entry.share:g} of it" if entry.method == SCRATCH else entry.method


def facts(comparison: Comparison) -> list[str]:
    """What stands below the table."""
    lines = [worth(comparison.entries)]
    if comparison.seeds == 1:
        lines.append("One seed only: how far chance alone carries is not known.")
    if len(comparison.rates) > 1:
        tried = [
            f"{name_of(entry)} "
            + ", ".join(f"{rate:g}: {loss:.4f}" for rate, loss in entry.tried if rate is not None)
            for entry in comparison.entries
        ]
        lines.append(f"Learning rates tried, and the mean loss of each: {'; '.join(tried)}.")
    lines += [f"Failed: {trial.label}: {why}" for trial, why in comparison.failures.items()]
    return lines


def markdown(comparison: Comparison) -> str:
    """The comparison as Markdown, with the plot beside it."""
    used = ", ".join(f"{name} {number}" for name, number in versions().items())
    devices = ", ".join(sorted({result.device for result in comparison.results.values()}))
    table = [list(HEADS), ["---"] * len(HEADS), *rows(comparison)]
    return "\n".join([
        "# Comparison",
        "",
        f"Metric: {comparison.metric}. Budget: {comparison.budget.flops:.4g} FLOPs. Seeds: "
        f"{comparison.seeds}.",
        "",
        *(f"| {' | '.join(line)} |" for line in table),
        "",
        *(line for fact in facts(comparison) for line in (fact, "")),
        NOTES,
        "",
        f"Command: `{comparison.command}`",
        f"Date: {comparison.date}. Versions: {used}. Device: {devices}.",
        "",
        "![the comparison](compare.png)",
        "",
    ])  # fmt: skip


def show_comparison(comparison: Comparison, folder: Path) -> None:
    """Print the comparison as a table."""
    table = Table(title=f"{comparison.metric} at {comparison.budget.flops:.3g} FLOPs")
    shown = [HEADS.index(head) for head in ("method", "rate", "loss", "FLOPs", "off budget",
             "saved, all counted", "saved, small free")]  # fmt: skip
    for number in shown:
        table.add_column(HEADS[number], justify="right" if number else "left")
    for row in rows(comparison):
        table.add_row(*(row[number] for number in shown))
    console = Console()
    console.print(table)
    for fact in facts(comparison):
        console.print(fact, soft_wrap=True, highlight=False, markup=False)
    console.print(f"comparison: {folder}", soft_wrap=True, highlight=False, markup=False)


def _facts(trial: Trial) -> dict[str, Any]:
    return {
        "method": trial.method,
        "share": trial.share,
        "learning_rate": trial.rate,
        "seed": trial.seed,
        "folder": trial.name,
    }


def _saved(saving: Saved | None) -> str:
    if saving is None:
        return "-"
    if len(saving.seeds) == 1:
        return str(saving.mean)
    ordered = sorted(saving.seeds, key=lambda each: each.share)
    return f"{saving.mean} ({ordered[0]} to {ordered[-1]})"


def _plain(loss: float) -> float | None:
    """JSON has no infinity."""
    return loss if math.isfinite(loss) else None


# Plot ---------------------------------------------------------------------------------------------


def plot(comparison: Comparison) -> Figure:
    """The metric over FLOPs and over time: a curve a method, the least and the most of its seeds.

    Growths are marked by a ring, and the ends of the runs from scratch by crosses. Shown are the
    last four fifths of the budget, and losses up to a little above the highest that a run ends at;
    what is above for a while, as many networks are right after they have grown, is cut off.
    """
    figure = Figure(figsize=(12, 5.5), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, 2, sharey=True)
    over: tuple[Callable[[Point], float], ...] = (_flops_at, _seconds_at)
    entries = [entry for entry in _in_order(comparison) if math.isfinite(entry.loss)]
    for panel, at in zip(panels, over, strict=True):
        for number, entry in enumerate(e for e in entries if e.share == 1):
            _draw(panel, entry, at, f"C{number}", LINES[number // 10 % len(LINES)])
        ends = [
            (fmean(at(result.curve[-1]) for result in entry.results), entry.loss)
            for entry in entries
            if entry.method == SCRATCH
        ]
        if ends:
            panel.plot(*zip(*ends, strict=True), "x-.", color="black", label=f"{SCRATCH} frontier")
        panel.set(xscale="log", yscale="log")
        longest = [at(result.curve[-1]) for entry in entries for result in entry.results]
        whole = [at(r.curve[-1]) for entry in entries if entry.share == 1 for r in entry.results]
        if longest and whole:
            panel.set_xlim(min(whole) / 5, 1.1 * max(longest))
    losses = [entry.loss for entry in entries]
    if losses:
        panels[0].set_ylim(0.97 * min(losses), 1.1 * max(losses))
    for panel in panels:
        panel.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        panel.xaxis.set_major_formatter(EngFormatter())
        panel.xaxis.set_minor_formatter(NullFormatter())
        panel.yaxis.set_major_formatter(ScalarFormatter())
        panel.yaxis.set_minor_formatter(ScalarFormatter())
    panels[0].set_xlabel("FLOPs, all counted")
    panels[0].set_ylabel(comparison.metric)
    panels[1].set_xlabel("seconds")
    handles, names = panels[0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside right upper", fontsize="small")
    return figure


def _draw(panel: Any, entry: Entry, at: Callable[[Point], float], color: str, line: str) -> None:
    """The mean of the seeds, point by point: they are validated at the same steps."""
    curves = [result.curve for result in entry.results]
    points = [
        (fmean(map(at, same)), [math.nan if p.metric is None else p.metric for p in same])
        for same in zip(*curves, strict=True)
    ]
    xs = [x for x, _ in points]
    panel.plot(xs, [fmean(ys) for _, ys in points], color=color, linestyle=line, label=entry.method)
    if len(curves) > 1:
        panel.fill_between(xs, [min(ys) for _, ys in points], [max(ys) for _, ys in points],
                           color=color, alpha=0.2)  # fmt: skip
    steps = [point.step for point in curves[0]]
    for step in entry.results[0].grew_at:
        after = len(steps) - 1 - steps[::-1].index(step)  # the last validation at this step
        x, values = points[after]
        panel.plot(x, fmean(values), "o", color=color, fillstyle="none", markersize=9)


def _flops_at(point: Point) -> float:
    return point.training + point.evaluation


def _seconds_at(point: Point) -> float:
    return point.seconds
