"""Compare ways to learn how a growth starts, each with the same start not learned, at equal FLOPs.

    python -m recipes.benchmarks.learned_starts search --out runs/learned   # needs: pip install cma
    python -m recipes.benchmarks.learned_starts compare --out runs/learned --seeds 5
    python -m recipes.benchmarks.learned_starts table --out runs/learned

A byte-level GPT learns the Python source of this machine and is grown by `stack+fresh`:

    start        nothing is learned
    constants    ten constants that CMA-ES finds on the final loss of tiny runs (`search`)
    weights      the same without the factor of the rate
    rate         only the factor of the rate and the warm-up
    look-ahead   gains of every kind of tensor, on the loss after one step of AdamW (GradInit,
                 https://arxiv.org/abs/2102.08098)
    gradients    new neurons and heads from the gradient that the old ones cannot express (GradMax,
                 https://arxiv.org/abs/2201.05125, and TINY, https://arxiv.org/abs/2405.19816)
    ligo         both maps and the depth mix, as the method of that name
    fresh+ligo   the same from a start that keeps the function, its new layers silent
    robust       as `ligo`, with four times the batch, a third of the rate, noise of the size that
                 50 steps of training make, and the mean of the coefficients of the last half

What learning costs is taken from the steps that follow. Every run is a line of a JSON file, and
none is repeated.
"""

from __future__ import annotations

import argparse
import copy
import importlib
import json
import math
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from recipes.benchmarks.starts import (
    WAYS,
    Constants,
    Data,
    Event,
    Parts,
    Regime,
    Size,
    State,
    train,
)

REGIMES = {
    "mid-run": Regime(Size(2, 3), Size(4, 4), 4e-3, (1600, 500)),
    "annealed": Regime(Size(2, 3), Size(4, 4), 4e-3, (3000, 300), factor=0.2, annealed=True),
    "post-norm": Regime(Size(2, 3), Size(4, 4), 4e-3, (1600, 500), post=True),
    "double": Regime(Size(2, 2), Size(4, 4), 4e-3, (1600, 500)),
}
PROXIES = (
    Regime(Size(1, 1), Size(2, 2), 4e-3, (800, 400)),
    Regime(Size(1, 2), Size(2, 3), 4e-3, (800, 400)),
)

FOUND: dict[str, Callable[[Constants], tuple[Constants, Constants]]] = {
    "constants": lambda found: (found, found),
    "weights": lambda found: (found, replace(found, factor=0.0)),
    "rate": lambda found: (Constants(), Constants(factor=found.factor, warmup=found.warmup)),
}
"""Of what the search found: the constants of the weights, and those of the training."""


class Bench:
    def __init__(self, out: Path) -> None:
        out.mkdir(parents=True, exist_ok=True)
        self.out, self.data = out, Data()
        self.smalls: dict[tuple[Regime, int], State] = {}
        self.parts: dict[tuple[Regime, int], Parts] = {}

    def event(self, regime: Regime, seed: int) -> Event:
        """Return the networks of a growth, the small one trained; it is trained once."""
        key = regime, seed
        small = regime.small.build(regime.post, seed)
        large = regime.large.build(regime.post, 1000 + seed)
        if key not in self.smalls:
            windows = self.data.windows(seed)
            train(small, windows, regime.steps[0], regime.rate, decays=regime.annealed)
            self.smalls[key] = copy.deepcopy(small.state_dict())
            self.parts[key] = Parts.of(small, large)
        small.load_state_dict(self.smalls[key])
        return Event(regime, small, large, self.parts[key], self.data, seed)

    def run(self, regime: Regime, way: str, seed: int, constants: Constants) -> dict[str, Any]:
        """Grow by one way, train to the end, and return the record."""
        event, cost, training = self.event(regime, seed), 0.0, Constants()
        if way in FOUND:
            weights, training = FOUND[way](constants)
            event.large.load_state_dict(event.parts.compose(weights))
        else:
            cost = WAYS[way](event)
        before, after = self.data.evaluate(event.small), self.data.evaluate(event.large)
        train(
            event.large,
            self.data.windows(20_000 + seed),
            max(1, round(regime.steps[1] - cost)),
            event.rate * 2.0**training.factor,
            decays=True,
            warmup=max(1.0, 2.0**training.warmup),
            fresh={name: (part == 0).float() for name, part in event.parts.small.items()},
            fresh_rate=2.0**training.fresh_rate,
        )
        end = self.data.evaluate(event.large)
        return {
            "way": way, "seed": seed, "before": before, "after": after, "cost": cost, "loss": end,
        }  # fmt: skip


def search(bench: Bench, generations: int) -> None:
    """Search the constants on the final loss of tiny runs, and keep the best mean."""
    cma = importlib.import_module("cma")
    names = [field.name for field in fields(Constants)]
    origin = asdict(Constants())
    settings = {"seed": 1, "popsize": 10, "verbose": -9}
    strategy = cma.CMAEvolutionStrategy([0.0] * len(names), 0.4, settings)

    def of(point: Any) -> Constants:
        moved = {n: origin[n] + float(x) for n, x in zip(names, point, strict=True)}
        shares = {n: min(1.0, max(0.0, moved[n])) for n in ("writes", "tables", "queries")}
        return Constants(**moved | shares)

    def value(constants: Constants) -> float:
        runs = [
            bench.run(proxy, "constants", seed, constants) for seed, proxy in enumerate(PROXIES)
        ]
        return statistics.fmean(run["loss"] for run in runs)

    began = time.monotonic()
    print(f"stack+fresh: {value(Constants()):.4f}", flush=True)
    for generation in range(generations):
        points = strategy.ask()
        losses = [value(of(point)) for point in points]
        strategy.tell(points, losses)
        found = of(strategy.mean)
        record = {"constants": asdict(found), "generation": generation, "best": min(losses)}
        (bench.out / "constants.json").write_text(json.dumps(record, indent=1))
        print(generation, f"{min(losses):.4f} {statistics.fmean(losses):.4f}",
              {n: round(v, 2) for n, v in asdict(found).items()}, flush=True)  # fmt: skip
    print(f"{value(found):.4f} after {time.monotonic() - began:.0f} s")


def compare(bench: Bench, seeds: int, regimes: list[str]) -> None:
    """Do all runs that are not in the file yet."""
    path, found = bench.out / "runs.jsonl", bench.out / "constants.json"
    constants = Constants(**json.loads(found.read_text())["constants"]) if found.exists() else None
    records = read_records(path)
    done = {(r["regime"], r["way"], r["seed"]) for r in records}
    for seed in range(seeds):
        for name in regimes:
            for way in (*WAYS, *FOUND):
                if (name, way, seed) in done or (way in FOUND and not constants):
                    continue
                record = bench.run(REGIMES[name], way, seed, constants or Constants())
                record = {"regime": name, **record, "torch": torch.__version__}
                with path.open("a") as file:
                    file.write(json.dumps(record) + "\n")
                print(record, flush=True)
        bench.smalls.clear()
        bench.parts.clear()


def read_records(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def differences(records: list[dict[str, Any]]) -> list[tuple[str, str, int, float, float, float]]:
    """Per regime and way: runs, mean loss, mean difference to `start`, and its standard error."""
    rows = []
    for name in dict.fromkeys(r["regime"] for r in records):
        own = {(r["way"], r["seed"]): r["loss"] for r in records if r["regime"] == name}
        for way in dict.fromkeys(w for w, _ in own):
            pairs = [
                (own[w, s], own["start", s]) for w, s in own if w == way and ("start", s) in own
            ]
            if not pairs:
                continue
            gaps = [a - b for a, b in pairs]
            error = statistics.stdev(gaps) / math.sqrt(len(gaps)) if len(gaps) > 1 else math.nan
            mean = statistics.fmean(a for a, _ in pairs)
            rows.append((name, way, len(pairs), mean, statistics.fmean(gaps), error))
    return rows


def show(records: list[dict[str, Any]]) -> None:
    table = Table(
        "regime", "learned", "seeds", "loss", "minus start", "standard error", "before", "after"
    )
    for name, way, count, mean, gap, error in differences(records):
        own = [r for r in records if r["regime"] == name and r["way"] == way]
        cells = (statistics.fmean(r[key] for r in own) for key in ("before", "after"))
        table.add_row(name, way, str(count), f"{mean:.4f}", f"{gap:+.4f}", f"{error:.4f}",
                      *(f"{cell:.3f}" for cell in cells))  # fmt: skip
    Console(width=100).print(table)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("command", choices=["search", "compare", "table"])
    parser.add_argument("--out", type=Path, required=True, help="the folder of finished runs")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--generations", type=int, default=6, help="of ten points each")
    parser.add_argument("--regimes", nargs="+", choices=REGIMES, default=list(REGIMES))
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.command == "table":
        show(read_records(options.out / "runs.jsonl"))
        return
    bench = Bench(options.out)
    if options.command == "search":
        search(bench, options.generations)
    else:
        compare(bench, options.seeds, options.regimes)


if __name__ == "__main__":
    main()
