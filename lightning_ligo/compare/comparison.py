"""Compare methods: the same run at equal FLOPs, by every method and from scratch."""

from __future__ import annotations

import math
import signal
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise, product
from multiprocessing.process import BaseProcess
from pathlib import Path
from statistics import fmean

from lightning_ligo.callbacks.after_growth import check_room
from lightning_ligo.compare.budget import (
    Costs,
    Saving,
    cost,
    passes,
    saving,
    steps_within,
    triggers,
)
from lightning_ligo.compare.trial import (
    SCRATCH,
    SMALL_ONLY,
    Recipe,
    Result,
    Trial,
    failure,
    finished,
    seeded,
    start,
)
from lightning_ligo.methods.catalog import method_named

FRONTIER = (0.5, 1.0, 2.0)
"""Shares of the budget at which the large network is trained from scratch, each to its end."""

FROM_START = (0.25, 0.5, 1.0)
"""Shares of the budget at which a given small network is grown, each to its end."""

VALIDATIONS = 20
"""Number of validations of a run of the configuration; others have as many steps between them."""


# Rehearsals ---------------------------------------------------------------------------------------


def rehearsal(recipe: Recipe, method: str) -> Trial:
    """Return a run that grows after one step, to measure costs and to find errors."""
    apart = 1 + method_named(method).ramp
    grows_at = [1 + number * apart for number in range(len(recipe.growths))]
    steps = grows_at[-1] + apart
    learning = 1 if recipe.learning_steps(method) else None
    config = recipe.grown(method, grows_at, steps, every=1, learning_steps=learning)
    return Trial(method, 0, None, 0, steps, config, _digest(recipe, method))


def costs_of(recipe: Recipe, method: str, result: Result) -> Costs:
    """Return the costs of a run by this method, as its rehearsal has measured them."""
    bounds = [0, *result.grew_at, result.steps]
    trained = [last - first for first, last in pairwise(bounds)]
    validated = passes(result.steps, result.grew_at, every=1)
    return Costs(
        training=_each(result.training, trained),
        evaluation=_each(result.evaluation, validated),
        operator=result.operator * recipe.learning_steps(method),
    )


def _each(totals: Sequence[int], counts: Sequence[int]) -> tuple[float, ...]:
    return tuple(total / count for total, count in zip(totals, counts, strict=True))


# Trials -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Budget:
    """The FLOPs that every method may spend, and the costs of the methods."""

    flops: float  # the budget
    costs: dict[str, Costs]  # costs of a run by method
    every: int  # steps from one validation to the next, in every run
    steps_per_epoch: float  # optimizer steps in an epoch


def budget_of(recipe: Recipe, costs: dict[str, Costs], steps_per_epoch: float) -> Budget:
    """Return the FLOPs of the run of the configuration; see `Recipe.steps` and `triggers`.

    From a given small network, they are those of as many steps of the large one from scratch.
    """
    steps, some = recipe.steps(steps_per_epoch), costs[recipe.method]
    every = math.ceil(steps / VALIDATIONS)
    if recipe.start:
        return Budget(cost(steps, [], some.of(-1), every), costs, every, steps_per_epoch)
    grows_at = triggers(steps, recipe.growths, steps_per_epoch)
    return Budget(cost(steps, grows_at, some, every), costs, every, steps_per_epoch)


def trials_of(
    recipe: Recipe,
    budget: Budget,
    methods: Sequence[str],
    seeds: int,
    rates: Sequence[float | None],
) -> list[Trial]:
    """Return all runs of a comparison; `scratch` and `small-only` are always among them.

    Every run has as many steps as its share of the budget pays for, and its own schedule over them.
    A growth at a fraction of the run is at that fraction of its steps.

    Raises:
        ValueError: for a budget that is too small, and for a method without room for its ramp.
    """
    some, every = budget.costs[recipe.method], budget.every
    runs = []
    for share in FRONTIER:
        steps = steps_within(share * budget.flops, some.of(-1), every)
        runs.append((SCRATCH, share, steps, recipe.plain(-1, steps, every)))
    steps = steps_within(budget.flops, some.of(0), every)
    runs.append((SMALL_ONLY, 1.0, steps, recipe.plain(0, steps, every)))
    for name, share in product(methods, FROM_START if recipe.start else (1.0,)):
        growths, epoch = recipe.growths, budget.steps_per_epoch
        steps = steps_within(share * budget.flops, budget.costs[name], every, growths, epoch)
        grows_at = triggers(steps, growths, epoch)
        check_room(method_named(name).ramp, name, grows_at, steps)
        runs.append((name, share, steps, recipe.grown(name, grows_at, steps, every)))
    return [
        Trial(name, share, rate, number, steps, seeded(config, number, rate), digest)
        for name, share, steps, config in runs
        for digest in [_digest(recipe, name)]
        for rate in rates
        for number in range(seeds)
    ]


def _digest(recipe: Recipe, method: str) -> str:
    """Return the hash of the trained weights that a run by this method reads."""
    return recipe.start.digest if recipe.start and method != SCRATCH else ""


def run_all(
    trials: Sequence[Trial],
    out: Path,
    jobs: int,
    devices: int,
    done: Callable[[Trial], None],
) -> tuple[dict[Trial, Result], dict[Trial, str]]:
    """Run all unfinished trials; return the results of all in order, and the reasons of failures.

    CUDA devices are shared by `jobs` runs at once; with 0 devices every run uses its configured
    one. `done` is called with every trial that has ended, now or before.
    """
    results: dict[Trial, Result] = {}
    failures: dict[Trial, str] = {}
    waiting, running = [], dict[int, tuple[Trial, BaseProcess]]()
    for trial in trials:
        result = finished(trial, out)
        if result is None:
            waiting.append(trial)
        else:
            results[trial] = result
            done(trial)
    before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # as a cluster ends a job
    try:
        while waiting or running:
            for slot in [slot for slot in range(jobs) if slot not in running][: len(waiting)]:
                trial = waiting.pop(0)
                running[slot] = trial, start(trial, out, slot % devices if devices else None)
            time.sleep(0.1)
            for slot, (trial, process) in list(running.items()):
                if process.is_alive():
                    continue
                del running[slot]
                result = finished(trial, out)
                if result is None:
                    failures[trial] = failure(trial, out, process.exitcode)
                else:
                    results[trial] = result
                done(trial)
    finally:
        for _, process in running.values():
            process.terminate()
            process.join()
        signal.signal(signal.SIGTERM, before)
    return {trial: results[trial] for trial in trials if trial in results}, failures


# Results ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Entry:
    """The finished runs of one method, share of the budget and learning rate, over all seeds."""

    method: str  # name of the method
    share: float  # share of the budget
    rate: float | None  # learning rate; None for that of the configuration
    results: tuple[Result, ...]  # results in the order of the seeds
    tried: tuple[tuple[float | None, float], ...] = ()  # rates and mean losses

    @property
    def losses(self) -> list[float]:
        """The last loss of every seed; infinite for a run that has diverged."""
        losses = [result.loss for result in self.results]
        return [math.inf if loss is None else loss for loss in losses]

    @property
    def loss(self) -> float:
        return fmean(self.losses)

    @property
    def grows(self) -> bool:
        return self.method not in (SCRATCH, SMALL_ONLY)


def entries_of(results: dict[Trial, Result], seeds: int) -> list[Entry]:
    """Return every method at the learning rate with the lowest mean loss over the seeds.

    A rate counts only if the runs of all seeds are finished.
    """
    groups: dict[tuple[str, float], dict[float | None, dict[int, Result]]] = {}
    for trial, result in results.items():
        rates = groups.setdefault((trial.method, trial.share), {})
        rates.setdefault(trial.rate, {})[trial.seed] = result
    best = []
    for (method, share), rates in groups.items():
        complete = [
            Entry(method, share, rate, tuple(of_seed[number] for number in range(seeds)))
            for rate, of_seed in rates.items()
            if len(of_seed) == seeds
        ]
        if complete:
            tried = tuple((entry.rate, entry.loss) for entry in complete)
            chosen = min(complete, key=lambda entry: entry.loss)
            best.append(Entry(method, share, chosen.rate, chosen.results, tried))
    return best


@dataclass(frozen=True)
class Saved:
    """The saving of the mean, and of every seed against scratch of the same seed."""

    mean: Saving
    seeds: tuple[Saving, ...]


def saved(entry: Entry, entries: Sequence[Entry], small_is_free: bool) -> Saved | None:
    """Return the saving of an entry against the scratch frontier, which is among the entries.

    It is None if runs are missing or have diverged, or if a loss is not above 0. If the small
    network is free, the FLOPs before the last growth do not count, except those of learning the
    operators, as in the paper.
    """
    scratch = [other for other in entries if other.method == SCRATCH]
    if len(scratch) < len(FRONTIER) or not all(
        min(other.losses) > 0 and math.isfinite(other.loss) for other in (entry, *scratch)
    ):
        return None

    def spent(result: Result) -> int:
        return result.flops_after_small if small_is_free else result.flops

    whole = [(fmean(result.flops for result in other.results), other.loss) for other in scratch]
    return Saved(
        saving(fmean(map(spent, entry.results)), entry.loss, whole),
        tuple(
            saving(
                spent(result),
                loss,
                [(other.results[seed].flops, other.losses[seed]) for other in scratch],
            )
            for seed, (result, loss) in enumerate(zip(entry.results, entry.losses, strict=True))
        ),
    )


def worth(entries: Sequence[Entry]) -> str:
    """Say in a sentence whether the large network was worth having at this budget."""
    found = {entry.method: entry for entry in entries if entry.share == 1}
    small = found.pop(SMALL_ONLY, None)
    if small is None or not found:
        return "Whether the large network is worth having is not known: runs are missing."
    best = min(found.values(), key=lambda entry: entry.loss)
    facts = f"{SMALL_ONLY} ends at {small.loss:.4f}, {best.method} at {best.loss:.4f}"
    if SCRATCH in found and best.method != SCRATCH:
        facts += f" and {SCRATCH} at {found[SCRATCH].loss:.4f}"
    if max(best.losses) < min(small.losses):
        seeds = "in every seed" if len(small.losses) > 1 else "in the one seed there is"
        return f"The large network was worth having at this budget, {seeds}: {facts}."
    if max(small.losses) < min(best.losses):
        return (
            f"The large network was not worth having at this budget: {facts}. Training the small "
            "one for longer is better than any growth; compare at a larger budget."
        )
    return (
        f"Whether the large network was worth having at this budget is within the spread of the "
        f"seeds: {facts}."
    )
