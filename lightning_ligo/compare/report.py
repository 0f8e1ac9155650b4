"""The report of a comparison, as JSON, Markdown, plot and table."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

from lightning_ligo.callbacks import document
from lightning_ligo.callbacks.accounting import Point
from lightning_ligo.compare.comparison import FRONTIER, Budget, Entry, Saved, saved, worth
from lightning_ligo.compare.trial import SCRATCH, SMALL_ONLY, Result, Start, Trial

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SHARES = ", ".join(f"{share:g}" for share in FRONTIER)

NOTES = f"""\
Loss is after the last step. FLOPs are measured on the run's own batches, forward and backward, and
averaged over the seeds. Every run has a complete schedule for its own number of steps. Off budget
is how much more or less a run has spent than its share of the budget.

Saved is 1 - FLOPs / FLOPs that {SCRATCH} needs for the same loss, by log-log interpolation between
its runs at {SHARES} of the budget; it is a bound where {SCRATCH} does not reach the loss. All
counted: the small network, the operator, the large network and all validations. Small free: without
the training of the small network before the run, or else without the FLOPs before the last growth,
as the paper counts. In parentheses: the least and the most over the seeds, each against {SCRATCH}
of the same seed.

Seconds are of training with its validations, beside other runs if several ran at once."""

CURVES = 8
"""Most curves in a plot: from scratch, the small network, and the methods that end lowest."""

HEADS = ["method", "rate", "steps", "loss", "FLOPs", "small", "operator", "large", "evaluation",
         "off budget"]  # fmt: skip


@dataclass(frozen=True)
class Comparison:
    """The facts of a comparison whose runs have ended."""

    command: str
    date: str
    metric: str
    seeds: int
    rates: tuple[float | None, ...]
    budget: Budget
    entries: tuple[Entry, ...]
    results: dict[Trial, Result]
    failures: dict[Trial, str]
    start: Start | None = None

    @property
    def kinds(self) -> dict[str, str]:
        """What the savings count, by their names in `compare.json`."""
        both = {"saved": "all counted", "saved_small_free": "small free"}
        return {"saved_small_free": both["saved_small_free"]} if self.start else both

    @property
    def heads(self) -> list[str]:
        """The heads of the table."""
        return [*HEADS, *(f"saved, {what}" for what in self.kinds.values()), "seconds"]

    def savings(self, entry: Entry) -> tuple[Saved | None, ...]:
        """Return the savings of all kinds; a start was trained before the run, and is free."""
        counted = saved(entry, self.entries, False) if entry.method != SCRATCH else None
        if self.start:
            return (counted,)
        return counted, saved(entry, self.entries, True) if entry.grows else None

    def name_of(self, entry: Entry) -> str:
        """Return its name, with its share of the budget if it is one of several."""
        several = entry.method == SCRATCH or (self.start and entry.grows)
        return f"{entry.method}, {entry.share:g} of it" if several else entry.method

    @property
    def start_loss(self) -> float | None:
        """The loss of the start, which every run that grows has measured at step 0."""
        grown = [entry for entry in self.entries if entry.grows]
        losses = [result.curve[0].metric for entry in grown for result in entry.results]
        known = [loss for loss in losses if loss is not None]
        return fmean(known) if self.start and known else None

    def off(self, entry: Entry) -> float:
        """Return how much more or less an entry has spent, as a share of its budget."""
        return fmean(r.flops for r in entry.results) / (entry.share * self.budget.flops) - 1

    def to_dict(self) -> dict[str, Any]:
        """Return all facts as plain data, for JSON."""
        return {
            "command": self.command,
            "date": self.date,
            "versions": document.versions(),
            "devices": sorted({result.device for result in self.results.values()}),
            "metric": self.metric,
            "seeds": self.seeds,
            "learning_rates": list(self.rates),
            "budget": self.budget.flops,
            "costs": {name: asdict(costs) for name, costs in self.budget.costs.items()},
            "start": {**asdict(self.start), "loss": self.start_loss} if self.start else None,
            "worth": worth(self.entries),
            "entries": [self._entry(entry) for entry in self.entries],
            "runs": [{**_facts(trial), **asdict(result)} for trial, result in self.results.items()],
            "failures": [{**_facts(trial), "error": why} for trial, why in self.failures.items()],
        }

    def _entry(self, entry: Entry) -> dict[str, Any]:
        savings = zip(self.kinds, self.savings(entry), strict=True)
        return {
            "method": entry.method,
            "share": entry.share,
            "learning_rate": entry.rate,
            "tried": [{"learning_rate": rate, "loss": _plain(loss)} for rate, loss in entry.tried],
            "loss": _plain(entry.loss),
            "losses": [_plain(loss) for loss in entry.losses],
            "flops": parts(entry),
            "off_budget": self.off(entry),
            **{name: asdict(saving) if saving else None for name, saving in savings},
        }


def parts(entry: Entry) -> dict[str, float]:
    """Return the mean FLOPs of an entry over its seeds: in all, and of each part."""

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
    document.write_files(folder, {
        "compare.json": json.dumps(comparison.to_dict(), indent=1),
        "compare.md": markdown(comparison),
        "compare.png": document.png(plot(comparison)),
    })  # fmt: skip


# Words --------------------------------------------------------------------------------------------


def rows(comparison: Comparison) -> list[list[str]]:
    """Return a line for every entry; from scratch first, then the lowest loss."""
    lines = []
    for entry in _in_order(comparison):
        flops = parts(entry)
        losses = f"{entry.loss:.4f}"
        if len(entry.losses) > 1:
            losses += f" ({min(entry.losses):.4f} to {max(entry.losses):.4f})"
        lines.append([
            comparison.name_of(entry),
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


def facts(comparison: Comparison) -> list[str]:
    """Return what stands below the table."""
    lines = [worth(comparison.entries)]
    if comparison.start:
        lines[:0] = _of_start(comparison, comparison.start)
    if comparison.seeds == 1:
        lines.append("One seed only: the effect of chance is not known.")
    if len(comparison.rates) > 1:
        tried = [
            f"{comparison.name_of(entry)} "
            + ", ".join(f"{rate:g}: {loss:.4f}" for rate, loss in entry.tried if rate is not None)
            for entry in comparison.entries
        ]
        lines.append(f"Learning rates tried, and the mean loss of each: {'; '.join(tried)}.")
    lines += [f"Failed: {trial.label}: {why}" for trial, why in comparison.failures.items()]
    return lines


def _of_start(comparison: Comparison, start: Start) -> list[str]:
    """Return the loss of the start, and which growths have not bettered it."""
    loss = comparison.start_loss
    if loss is None:
        return [f"All grow at step 0 from {start.name}, whose loss is unknown: no run has grown."]
    lines = [f"All grow at step 0 from {start.name}, whose loss is {loss:.4f}."]
    worse = [comparison.name_of(e) for e in _in_order(comparison) if e.grows and e.loss >= loss]
    if worse:
        lines.append(f"No better than the start itself, whatever is saved: {', '.join(worse)}.")
    return lines


def markdown(comparison: Comparison) -> str:
    """Return the comparison as Markdown, with the plot beside it."""
    devices = ", ".join(sorted({result.device for result in comparison.results.values()}))
    versions = document.listed(document.versions())
    return "\n".join([
        "# Comparison",
        "",
        f"Metric: {comparison.metric}. Budget: {comparison.budget.flops:.4g} FLOPs. Seeds: "
        f"{comparison.seeds}.",
        "",
        *document.markdown_table([comparison.heads, *rows(comparison)]),
        "",
        *(line for fact in facts(comparison) for line in (fact, "")),
        NOTES,
        "",
        f"Command: `{comparison.command}`",
        f"Date: {comparison.date}. Versions: {versions}. Device: {devices}.",
        "",
        "![the comparison](compare.png)",
        "",
    ])  # fmt: skip


def show_comparison(comparison: Comparison, folder: Path) -> None:
    """Print the comparison as a table."""
    told = ("method", "rate", "loss", "FLOPs", "off budget", "saved")
    shown = [number for number, head in enumerate(comparison.heads)
             if head.partition(",")[0] in told]  # fmt: skip
    table = [[row[number] for number in shown] for row in (comparison.heads, *rows(comparison))]
    title = f"{comparison.metric} at {comparison.budget.flops:.3g} FLOPs"
    document.show(title, table, [*facts(comparison), f"comparison: {folder}"])


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
    """Return the loss, or None for infinity, which JSON cannot hold."""
    return loss if math.isfinite(loss) else None


# Plot ---------------------------------------------------------------------------------------------


def plot(comparison: Comparison) -> Figure:
    """Draw the metric over FLOPs, and the savings of the methods beside it.

    A curve is the mean of the seeds, with their least and most; a ring marks a growth. A dashed
    line joins the ends of the runs of one method at several budgets. Shown are the last four fifths
    of the budget, and losses up to a little above the highest end.
    """
    figure = document.blank(12, 5)
    left, right = figure.subplots(1, 2, width_ratios=(3, 2))
    finite = [entry for entry in _in_order(comparison) if math.isfinite(entry.loss)]
    whole = [entry for entry in finite if entry.share == 1]
    always = [entry for entry in whole if not entry.grows]
    grown = [entry for entry in whole if entry.grows][: CURVES - len(always)]
    drawn = [entry for entry in whole if entry in always or entry in grown]
    for number, entry in enumerate(drawn):
        _draw(left, entry, f"C{number}")
        if comparison.start and entry.grows:
            left.plot(*zip(*_ends(finite, entry.method), strict=True), "x-.", color=f"C{number}")
    ends = _ends(finite, SCRATCH)
    if ends:
        left.plot(*zip(*ends, strict=True), "x-.", color="black", label="scratch frontier")
        left.annotate("scratch frontier", ends[0], (8, 2), textcoords="offset points",
                      fontsize="small")  # fmt: skip
    if drawn:
        spent = [_spent(result.curve[-1]) for entry in drawn for result in entry.results]
        losses = [entry.loss for entry in [*drawn, *finite]]
        across = min(spent) / 5, 1.1 * max([*spent, *(x for x, _ in ends)])
        upwards = 0.94 * min(losses), 1.15 * max(losses)
        document.log_axis(left.xaxis, *across)
        document.log_axis(left.yaxis, *upwards)
        left.set(xlim=across, ylim=upwards)
        _name_ends(left, drawn)
    left.set(xlabel=f"FLOPs, {next(iter(comparison.kinds.values()))}", ylabel=comparison.metric)
    left.spines[["top", "right"]].set_visible(False)
    _bars(right, comparison, [entry for entry in finite if entry.grows])
    return figure


def _ends(entries: Sequence[Entry], method: str) -> list[tuple[float, float]]:
    """Return the FLOPs and the loss at the end of the runs of a method, at every budget."""
    return [(fmean(_spent(result.curve[-1]) for result in entry.results), entry.loss)
            for entry in entries if entry.method == method]  # fmt: skip


def _draw(panel: Any, entry: Entry, color: str) -> None:
    """Draw the mean of the seeds point by point: they are validated at the same steps."""
    curves = [result.curve for result in entry.results]
    points = [
        (fmean(map(_spent, same)), [math.nan if p.metric is None else p.metric for p in same])
        for same in zip(*curves, strict=True)
    ]
    xs = [x for x, _ in points]
    panel.plot(xs, [fmean(ys) for _, ys in points], color=color, label=entry.method)
    if len(curves) > 1:
        panel.fill_between(xs, [min(ys) for _, ys in points], [max(ys) for _, ys in points],
                           color=color, alpha=0.15, linewidth=0)  # fmt: skip
    steps = [point.step for point in curves[0]]
    for step in entry.results[0].grew_at:
        after = len(steps) - 1 - steps[::-1].index(step)  # the last validation at this step
        x, values = points[after]
        panel.plot(x, fmean(values), "o", color=color, fillstyle="none", markersize=8)


def _name_ends(panel: Any, entries: Sequence[Entry]) -> None:
    """Write the name of every curve beside its end, one below the other."""
    low, high = map(math.log, panel.get_ylim())
    place = math.inf
    ordered = sorted(enumerate(entries), key=lambda each: -each[1].loss)
    for below, (number, entry) in zip(range(len(ordered) - 1, -1, -1), ordered, strict=True):
        own = (math.log(entry.loss) - low) / (high - low)
        place = max(min(own, place - 0.05), 0.05 * below)
        end = fmean(_spent(result.curve[-1]) for result in entry.results), entry.loss
        panel.annotate(
            f"{entry.method} {entry.loss:.3f}", end, xytext=(1.02, place),
            textcoords="axes fraction", va="center", fontsize="small", color=f"C{number}",
            arrowprops={"arrowstyle": "-", "color": f"C{number}", "linewidth": 0.5},
        )  # fmt: skip


def _bars(panel: Any, comparison: Comparison, entries: Sequence[Entry]) -> None:
    """Draw the savings as bars, with the least and the most over the seeds."""
    panel.set_xlabel(f"FLOPs saved against {SCRATCH} for the same loss, %")
    panel.spines[["top", "right"]].set_visible(False)
    panel.axvline(0, color="black", linewidth=0.8)
    kinds = list(comparison.kinds.values())
    for row, entry in enumerate(entries):
        for number, saving in enumerate(comparison.savings(entry)):
            if saving is None:
                continue
            mean, seeds = saving.mean.share, [each.share for each in saving.seeds]
            spread = [[100 * max(0.0, mean - min(seeds))], [100 * max(0.0, max(seeds) - mean)]]
            place = row + 0.4 * number - 0.2 * (len(kinds) - 1)
            color = ("tab:blue", "lightsteelblue")[number]
            label = kinds[number] if row == 0 else None
            bars = panel.barh(place, 100 * mean, 0.38, color=color, xerr=spread, ecolor="gray",
                              label=label)  # fmt: skip
            panel.bar_label(bars, [str(saving.mean)], padding=3, fontsize="x-small")
    panel.set_yticks(range(len(entries)), [comparison.name_of(entry) for entry in entries])
    panel.invert_yaxis()
    panel.margins(x=0.15)
    if panel.containers:
        panel.legend(frameon=False, fontsize="small", loc="upper center", ncols=2,
                     bbox_to_anchor=(0.5, 1.08))  # fmt: skip


def _spent(point: Point) -> float:
    return point.training + point.evaluation
