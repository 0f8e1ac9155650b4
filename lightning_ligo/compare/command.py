"""The command `lightning-ligo compare`: compare methods with scratch at equal FLOPs."""

from __future__ import annotations

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
from jsonargparse.typing import PositiveFloat, PositiveInt
from tqdm.auto import tqdm  # type: ignore[import-untyped]

from lightning_ligo.cli.base import GrowthCLI
from lightning_ligo.cli.parser import CommandParser, fit_words
from lightning_ligo.compare.comparison import (
    FROM_START,
    FRONTIER,
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
                              [--start WEIGHTS] [options of lightning-ligo fit]"""

SHARES, GROWN = (", ".join(f"{share:g}" for share in shares) for shares in (FRONTIER, FROM_START))

DESCRIPTION = f"""\
Train one configuration by several methods at equal FLOPs, and against training from scratch.

  lightning-ligo compare --config recipes/python_gpt.yaml --methods lemon,stack+lemon --seeds 3

The budget is the FLOPs of the run of the configuration. Two runs without a growth are always
included: `{SCRATCH}`, the large network at {SHARES} times the budget, and `{SMALL_ONLY}`, the
small one at the budget. FOLDER gets compare.json, compare.md and compare.png.

  lightning-ligo compare --config recipes/python_gpt.yaml --start small.ckpt --methods lemon

The second form starts from the trained network that you have: the growth is at step 0, and the
training of the small network is not counted. The budget is then the FLOPs of all steps of the
configuration with the large network; every method is trained at {GROWN} times the budget.
"""

EPILOG = """\
First every method is rehearsed, which measures its cost and finds errors before any training. The
same command again keeps finished runs and restarts interrupted ones. The metric is the monitor of
GrowthCallback or of a checkpoint: a loss above 0, lower is better. The docs say what else is
held equal.

The exit status is 1 if a run fails; all others are still run and reported.
"""


def compare(words: Sequence[str]) -> None:
    """Run `lightning-ligo compare` with these arguments."""
    parser = _parser()
    options, rest = parser.parse_known_args(words)
    out = options.out or Path("runs", "compare", Path(options.config[-1]).stem)
    devices = 0
    with parser.refusing():
        recipe = Recipe(_configuration(options.config, rest), options.start)
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
        start=recipe.start,
    )
    write_comparison(comparison, out)
    show_comparison(comparison, out)
    if failures:
        sys.exit(f"lightning-ligo compare: {len(failures)} of {len(trials)} runs failed")


def _rehearsed(
    trials: list[Trial], recipe: Recipe, out: Path, jobs: int, devices: int
) -> dict[Trial, Result]:
    """Return the results of all rehearsals; raise ValueError naming those that fail."""
    results, failures = _watched("Rehearsing", trials, out, jobs, devices)
    if failures:
        lines = [f"{trial.method}: {why}" for trial, why in failures.items()]
        raise ValueError("nothing was trained, as methods fail:\n  " + "\n  ".join(lines))
    if any(result.loss is None for result in results.values()):
        raise ValueError(
            f"the validation does not log the metric {recipe.monitor!r}, or there is none; give "
            "GrowthCallback another metric: --trainer.callbacks.monitor val_loss"
        )
    return results


def _watched(
    what: str, trials: list[Trial], out: Path, jobs: int, devices: int
) -> tuple[dict[Trial, Result], dict[Trial, str]]:
    """Run all trials under a progress bar, in which a run counts by its budget."""
    form = "{desc} |{bar}| {percentage:.0f} %{postfix}, {elapsed}"  # tqdm puts ", " before it
    weights, ended = {trial: trial.share or 1.0 for trial in trials}, set[Trial]()
    with tqdm(desc=what, total=sum(weights.values()), bar_format=form) as bar:

        def done(trial: Trial) -> None:
            ended.add(trial)
            bar.set_postfix_str(f"{len(ended)} of {len(trials)} runs", refresh=False)
            bar.update(weights[trial])

        return run_all(trials, out, jobs, devices, done)


class ConfigurationCLI(GrowthCLI):
    """Reads a configuration and builds nothing."""

    def instantiate_classes(self) -> None:
        """Build nothing."""

    def _run_subcommand(self, subcommand: str) -> None:
        """Run nothing."""


def _configuration(files: Sequence[str], rest: Sequence[str]) -> dict[str, Any]:
    """Return the whole configuration of a run, with every default."""
    cli = ConfigurationCLI(fit_words(files, rest))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # skip_none has another name in later jsonargparse
        text = default_config(cli)
    config: dict[str, Any] = yaml.safe_load(text)
    return config


def _parser() -> CommandParser:
    parser = CommandParser("compare", usage=USAGE, description=DESCRIPTION, epilog=EPILOG)
    parser.add_config("configuration of a run with one GrowthCallback, as for fit", required=True)
    own = "(default: that of the configuration)"
    for name, metavar, what, options in (
        ("--methods", "METHOD,METHOD", f"{', '.join(METHODS)} or DEPTH+WIDTH {own}",
         {"type": lambda text: list(dict.fromkeys(text.split(",")))}),
        ("--seeds", "N", "seeds of every run (default: 1)", {"type": PositiveInt, "default": 1}),
        ("--learning_rates", "RATE,RATE", f"tried for every method and scratch {own}",
         {"type": rates, "default": [None]}),
        ("--jobs", "N", "runs at once (default: one a CUDA device, else 1)", {"type": PositiveInt}),
        ("--start", "WEIGHTS", "trained weights of the small network: a file .ckpt, .pt, .pth, "
         ".bin or .safetensors, or a folder of save_pretrained", {}),
        ("--out", "FOLDER", "(default: runs/compare/NAME of the FILE)", {"type": Path}),
    ):  # fmt: skip
        parser.add_argument(name, metavar=metavar, help=what, **options)
    return parser


def rates(text: str) -> list[float]:
    """Parse `1e-3,2e-3`."""
    return sorted({float(PositiveFloat(word)) for word in text.split(",")})
