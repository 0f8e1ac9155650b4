"""The command `lightning-ligo compare`: methods at equal FLOPs, against training from scratch."""

from __future__ import annotations

import argparse
import math
import shlex
import sys
import warnings
from collections.abc import Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch
import yaml
from lightning.pytorch.cli import ArgsType, LightningArgumentParser
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn

from lightning_ligo.cli.base import GrowthCLI
from lightning_ligo.compare.comparison import (
    FRONTIER,
    VALIDATIONS,
    budget_of,
    costs_of,
    entries_of,
    rehearsal,
    run_all,
    trials_of,
)
from lightning_ligo.compare.report import Comparison, show_comparison, write_comparison
from lightning_ligo.compare.trial import SCRATCH, SMALL_ONLY, Recipe, Result, Trial
from lightning_ligo.methods.catalog import METHODS, method_named
from lightning_ligo.trainer.lightning import default_config

USAGE = """\
lightning-ligo compare --config FILE [--methods METHOD,METHOD] [--seeds N]
                              [--learning_rates RATE,RATE] [--jobs N] [--out FOLDER]
                              [options of lightning-ligo fit]"""

SHARES = ", ".join(f"{share:g}" for share in FRONTIER)

DESCRIPTION = f"""\
Train one configuration by several methods at equal FLOPs, and against training from scratch.

  lightning-ligo compare --config recipes/python_gpt.yaml --methods lemon,stack+lemon --seeds 3

The budget is what the run of the configuration itself spends: training at every size, learning the
operators, and all validations. Every method gets as many steps as that pays for, with a schedule
over exactly these; a growth at a fraction of the run is at that fraction of its steps, one at a
step or an epoch stays there, and one that the run decides is refused. Two runs that do not grow are
always of the comparison: `{SCRATCH}`, the large network at {SHARES} times the budget, and
`{SMALL_ONLY}`, the small one at all of it.
"""

EPILOG = f"""\
First every method is rehearsed: it grows after one step and learns its operator for one, to measure
what steps cost and to refuse, before any training, what the run would refuse. Then all runs are
trained, each in a process and a folder of its own, whose name holds a hash of its configuration:
what is finished is kept, and not repeated by the same command; what was interrupted begins anew.

The same seed means the same data order and the same first weights; it is the configuration's
seed_everything, and seed of GrowthCallback and data, plus 0, 1, ... Every method, and {SCRATCH}, is
trained at all learning rates, which take the place of the model's learning_rate, and is judged by
the one with the lowest mean loss at the end. What GrowthCallback says of steps and learning_rate is
for its own method. The run of the configuration is validated {VALIDATIONS} times, all others after
as many steps each; loggers, checkpoints and early stopping are left out. The metric is the monitor
of GrowthCallback, or of a checkpoint; a loss, above 0 and better the lower it is.

FOLDER gets compare.json, compare.md and compare.png: the loss of every method, what it spent, and
what it saves against scratch, all counted and with the small network for free. The exit status is 1
if a run has failed; all others are run and summarized nevertheless.
"""


def compare(words: Sequence[str]) -> None:
    """Run the command with what stands behind `lightning-ligo compare`."""
    parser = _parser()
    options, rest = parser.parse_known_args(words)
    out = options.out or Path("runs", "compare", Path(options.config[-1]).stem)
    devices = 0
    try:
        recipe = Recipe(_configuration(options.config, rest))
        methods = [name for name in options.methods or [recipe.method]
                   if name not in (SCRATCH, SMALL_ONLY)]  # fmt: skip
        for name in methods:
            method_named(name)
        if recipe.config["trainer"]["accelerator"] != "cpu":
            devices = torch.cuda.device_count()
        jobs = options.jobs or max(1, devices)
        costs, steps_per_epoch = {}, math.inf
        rehearsals = [rehearsal(recipe, name) for name in dict.fromkeys([recipe.method, *methods])]
        for trial, result in _rehearsed(rehearsals, recipe, out, jobs, devices).items():
            costs[trial.method] = costs_of(recipe, trial.method, result)
            steps_per_epoch = recipe.steps_per_epoch(result)
        budget = budget_of(recipe, costs, steps_per_epoch)
        trials = trials_of(recipe, budget, methods, options.seeds, options.learning_rates)
    except ValueError as error:
        sys.exit(f"lightning-ligo compare: {error}")
    results, failures = _watched("Comparing", trials, out, jobs, devices)
    comparison = Comparison(
        command=shlex.join(["lightning-ligo", "compare", *words]),
        date=datetime.now(timezone.utc).date().isoformat(),
        metric=recipe.monitor,
        seeds=options.seeds,
        rates=tuple(options.learning_rates),
        budget=budget,
        entries=tuple(entries_of(results, options.seeds)),
        results=results,
        failures=failures,
    )
    write_comparison(comparison, out)
    show_comparison(comparison, out)
    if failures:
        sys.exit(f"lightning-ligo compare: {len(failures)} of {len(trials)} runs failed")


def _rehearsed(
    trials: list[Trial], recipe: Recipe, out: Path, jobs: int, devices: int
) -> dict[Trial, Result]:
    """The results of all rehearsals, in their order.

    Raises:
        ValueError: naming the methods that have failed, and if the metric is not measured.
    """
    results, failures = _watched("Rehearsing", trials, out, jobs, devices)
    if failures:
        lines = [f"{trial.method}: {why}" for trial, why in failures.items()]
        raise ValueError("nothing was trained, as methods fail:\n  " + "\n  ".join(lines))
    if any(result.loss is None for result in results.values()):
        raise ValueError(
            f"the validation does not log the metric {recipe.monitor!r} that is compared, or there "
            "is no validation; give GrowthCallback another: --trainer.callbacks.monitor val_loss"
        )
    return {trial: results[trial] for trial in trials}


def _watched(
    what: str, trials: list[Trial], out: Path, jobs: int, devices: int
) -> tuple[dict[Trial, Result], dict[Trial, str]]:
    """Run all trials under a progress bar, whose length is what they spend."""
    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(),
               TextColumn("{task.fields[ended]} of {task.fields[runs]} runs"),
               TimeElapsedColumn())  # fmt: skip
    with Progress(*columns) as progress:
        weights = {trial: trial.share or 1.0 for trial in trials}
        bar = progress.add_task(what, total=sum(weights.values()), ended=0, runs=len(trials))

        def done(trial: Trial) -> None:
            ended = progress.tasks[0].fields["ended"] + 1
            progress.update(bar, advance=weights[trial], ended=ended)

        return run_all(trials, out, jobs, devices, done)


class ConfigurationCLI(GrowthCLI):
    """Reads a configuration and makes nothing of it."""

    def parse_arguments(self, parser: LightningArgumentParser, args: ArgsType) -> None:
        """In place of Lightning's, which warns of the words that the process was called with."""
        self.config = parser.parse_args(args)  # type: ignore[arg-type]

    def instantiate_classes(self) -> None:
        """Nothing is made."""

    def _run_subcommand(self, subcommand: str) -> None:
        """Nothing is run."""


def _configuration(files: Sequence[str], rest: Sequence[str]) -> dict[str, Any]:
    """The whole configuration of a run, every default written out."""
    configs = [word for file in files for word in ("--config", file)]
    cli = ConfigurationCLI(["fit", *configs, *rest])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # skip_none has another name in later jsonargparse
        text = default_config(cli)
    config: dict[str, Any] = yaml.safe_load(text)
    return config


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="lightning-ligo compare",
        usage=USAGE,
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument(
        "--config",
        metavar="FILE",
        action="append",
        required=True,
        help="the configuration of a run with one GrowthCallback, as for fit",
    )
    parser.add_argument(
        "--methods",
        metavar="METHOD,METHOD",
        type=lambda text: list(dict.fromkeys(text.split(","))),
        help=f"of {', '.join(METHODS)}, or two with a plus between (default: that of the "
        "configuration)",
    )
    parser.add_argument(
        "--seeds", metavar="N", type=_count, default=1, help="runs of every kind (default: 1)"
    )
    parser.add_argument(
        "--learning_rates",
        metavar="RATE,RATE",
        type=_rates,
        default=[None],
        help="to try for every method and from scratch (default: that of the configuration)",
    )
    parser.add_argument(
        "--jobs",
        metavar="N",
        type=_count,
        help="runs at once (default: one for every CUDA device, else 1)",
    )
    parser.add_argument(
        "--out", metavar="FOLDER", type=Path, help="(default: runs/compare/NAME of the FILE)"
    )
    return parser


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not 1 or more")
    return int(text)


def _rates(text: str) -> list[float]:
    try:
        rates = sorted({float(word) for word in text.split(",")})
    except ValueError:
        rates = [0.0]
    if rates[0] <= 0 or not math.isfinite(rates[-1]):
        raise argparse.ArgumentTypeError(f"{text!r} are not rates above 0: 1e-3,2e-3")
    return rates
