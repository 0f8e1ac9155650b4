"""The growth report of a run, as JSON, Markdown, HTML, plot and table."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from lightning_ligo.callbacks import document
from lightning_ligo.callbacks.accounting import Accounting, best_checkpoint
from lightning_ligo.callbacks.plot import heat_maps, plot
from lightning_ligo.operator.measure import Change
from lightning_ligo.schedule import Rate

if TYPE_CHECKING:
    from lightning.pytorch import Trainer

NOTE = """\
A metric at the end is the last one before the next growth or before the end of the run; \
FLOPs are of the steps between growths, forward and backward."""


def growth_report(
    records: Sequence[dict[str, Any]],
    failed: dict[str, Any] | None,
    run: dict[str, Any],
) -> dict[str, Any]:
    """Return the report as plain data.

    `failed` is the growth that failed, if the run continued with the small network. `run` holds the
    descriptions of all `networks`, and `facts_of_run`.
    """
    run = dict(run)
    growths, training = [], run.pop("training")
    for position, record in enumerate(records):
        name = record["metric"]["name"]
        last = position == len(records) - 1
        final = run["validation"].get(name) if last else records[position + 1]["metric"]["before"]
        spent = [*training, *[0] * (position + 2 - len(training))]
        growths.append({
            **record,
            "metric": {**record["metric"], "final": final},
            "flops": {"small": spent[position], **record["flops"], "large": spent[position + 1]},
        })  # fmt: skip
    return {"growths": growths, "failed": failed, **run, "versions": document.versions()}


def facts_of_run(
    trainer: Trainer, accounting: Accounting, validation: dict[str, float], seed: int
) -> dict[str, Any]:
    """Return what the report says of the run: `validation` is its last, `seed` that of growths."""
    return {
        "training": accounting.training.totals,  # FLOPs at every size
        "validation": validation,
        "checkpoint": best_checkpoint(trainer),
        "module": type(trainer.lightning_module).__name__,
        "seeds": {"run": os.environ.get("PL_GLOBAL_SEED"), "growths": seed},
        "seconds": accounting.seconds,
    }


def report_folder(trainer: Trainer) -> str | None:
    """Return the folder for the report; call it on all ranks.

    It is None without a logger and a `default_root_dir`, which say where files may be written.
    """
    folder = trainer.log_dir or trainer.default_root_dir
    return folder if trainer.loggers or folder != os.getcwd() else None


def write_report(
    report: dict[str, Any], accounting: Accounting, folder: str | os.PathLike[str]
) -> Path:
    """Write `growth_report.json`, `.md` and `.html`, and `growth.png` into the folder."""
    brief = [{k: v for k, v in g.items() if k != "learned"} for g in report["growths"]]
    picture = document.png(plot(report, accounting.curve, accounting.windows.done))
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
            lengths = [growth[part].get(name) for growth in growths]
            if any(pair and pair[0] != pair[1] for pair in lengths):
                rows.append([f"{what} {name}", *map(_arrow, lengths)])
    return rows if growths else []


def run_rows(report: dict[str, Any]) -> list[list[str]]:
    """Return how the run grew and what it spent: a column for every growth."""

    def line(what: str, say: Callable[[dict[str, Any]], str]) -> list[str]:
        return [what, *(say(growth) for growth in report["growths"])]

    validated = [
        line("metric", lambda g: g["metric"]["name"] or "none"),
        line("  before growth", lambda g: _metric(g["metric"]["before"])),
        line("  after growth", lambda g: _metric(g["metric"]["after"])),
        line("  at the end", lambda g: _metric(g["metric"]["final"])),
    ]
    return [
        line("step", lambda g: f"{g['step']:,}"),
        line("reason", lambda g: g["reason"]),
        line("method", lambda g: g["method"]),
        line("operator", _operator),
        line("the function", lambda g: str(Change.from_dict(g["change"]))),
        line("learning rate", lambda g: str(Rate(**g["rate"]))),
        line("optimizer state", lambda g: carried_over(g["moments"])),
        *(validated if any(g["metric"]["name"] for g in report["growths"]) else []),
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
    seeds = report["seeds"]
    return [
        *_failed(report),
        f"Last validation: {final or 'none'}.",
        f"{_checkpoint(report)}.",
        f"Training took {timedelta(seconds=round(report['seconds']))} (hours, minutes, seconds).",
        f"Seed: {seeds['run'] or 'none'}; that of growths: {seeds['growths']}.",
        f"Versions: {document.listed(report['versions'])}.",
    ]


def networks(report: dict[str, Any]) -> list[tuple[str, str]]:
    """Return the description of every network as YAML, below what it is called."""
    names = ["small", *(f"after growth {number}" for number, _ in enumerate(report["networks"], 1))]
    return [
        (name, yaml.safe_dump(network, sort_keys=False).rstrip() if network else "not described")
        for name, network in zip(names, report["networks"], strict=False)
    ]


def markdown(report: dict[str, Any]) -> str:
    """Return the report as Markdown, with the plot beside it."""
    growths = enumerate(report["growths"], 1)
    lines = ["# Growth report", *(_summary(number, growth) for number, growth in growths)]
    lines += [
        "![the run](growth.png)",
        "\n".join(document.markdown_table(rows(report))),
        NOTE,
        *notes(report),
    ]
    lines += ["## Networks"]
    lines += [f"{name}:\n\n```yaml\n{text}\n```" for name, text in networks(report)]
    return "\n\n".join(lines) + "\n"


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
    parts.append(document.heading("Networks"))
    for name, text in networks(report):
        parts += [document.paragraph(name), document.code(text)]
    if matrices:
        maps = document.png(heat_maps(matrices))
        parts.append(document.heading("What the operator learned"))
        parts.append(document.image(maps, "what the operator learned"))
    foot = "\n".join(document.paragraph(note) for note in notes(report))
    return document.page("Growth report", *parts, f"<footer>\n{foot}\n</footer>")


def show_report(report: dict[str, Any], accounting: Accounting, folder: str | None) -> None:
    """Print the report as a table, and write it into the folder, if there is one."""
    if folder is not None:
        write_report(report, accounting, folder)
    files = [_checkpoint(report), f"Report: {folder or 'not written'}"]
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


def _checkpoint(report: dict[str, Any]) -> str:
    path = report["checkpoint"]
    opened = f"; open it with lightning_ligo.load({report['module']}, path)" if path else ""
    return f"Checkpoint: {path or 'none'}{opened}"


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
    losses = operator.get("losses")  # not in records of older checkpoints
    return (
        f"{operator['coefficients']:,} coefficients, {operator['steps']} steps at "
        f"{operator['learning_rate']:g}"
        + (f", loss {losses[0]:.4g} → {losses[1]:.4g}" if losses else "")
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
