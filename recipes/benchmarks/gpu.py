"""Compare methods of growth on one GPU, at equal FLOPs: a pre-norm GPT and a post-norm BERT.

    python -m recipes.benchmarks.gpu --out runs/gpu --minutes 8        # repeat to go on
    python -m recipes.benchmarks.gpu --out runs/cpu --minutes 2 --device cpu --scale 0.01

Both predict the next byte of all Python source on the machine, as masked bytes need longer runs. A
network of 4 layers of 192 is trained without a decay of its rate, grown to 8 layers of 256, and
trained to the end. It is compared with the large network from scratch at several budgets. Every
run but that of the small network ends with a decay to zero over its last 40 %.

Runs are in order of importance and stop after ``--minutes``. Each is a line of ``runs.jsonl``, and
none is repeated. ``--scale`` shrinks networks and data.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import sysconfig
import time
import traceback
import zlib
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.nn import functional as F

import lightning_ligo as ligo
from lightning_ligo.methods.catalog import DEFAULT, method_named
from lightning_ligo.operator.flops import flop_counter

DEPTHS, HEADS = {"small": 4, "large": 8}, {"small": 3, "large": 4}
RATES = {"gpt": 2e-3, "bert": 1e-3}
SMALL, GROWN, UNIT = 0.8, 1.6, 1e15  # FLOPs of the small run, and of what follows, in units
BYTES = 200_000_000


class Block(nn.Module):
    def __init__(self, width: int, heads: int, post: bool) -> None:
        super().__init__()
        self.heads, self.post = heads, post
        self.qkv, self.o = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.fc1, self.fc2 = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)

    def attention(self, x: Tensor) -> Tensor:
        qkv = self.qkv(x).unflatten(-1, (3, self.heads, -1)).transpose(1, 3)
        q, k, v = qkv.unbind(2)
        read = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.o(read.transpose(1, 2).flatten(2))

    def forward(self, x: Tensor) -> Tensor:
        if self.post:
            x = self.norm1(x + self.attention(x))
            return self.norm2(x + self.fc2(F.gelu(self.fc1(x))))
        x = x + self.attention(self.norm1(x))
        return x + self.fc2(F.gelu(self.fc1(self.norm2(x))))


class Network(nn.Module):
    def __init__(self, width: int, depth: int, heads: int, context: int, post: bool) -> None:
        super().__init__()
        self.bytes, self.positions = nn.Embedding(256, width), nn.Embedding(context, width)
        for table in (self.bytes, self.positions):
            nn.init.normal_(table.weight, std=0.5)
        self.blocks = nn.ModuleList(Block(width, heads, post) for _ in range(depth))
        self.norm, self.post = nn.LayerNorm(width), post
        self.head = nn.Linear(width, 256, bias=False)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.bytes(tokens) + self.positions.weight[: tokens.shape[1]]
        x = self.norm(x) if self.post else x
        for block in self.blocks:
            x = block(x)
        return self.head(x if self.post else self.norm(x))


def loss(network: nn.Module, windows: Tensor) -> Tensor:
    with torch.autocast(windows.device.type, torch.bfloat16, enabled=windows.is_cuda):
        logits = network(windows[:, :-1])
    return F.cross_entropy(logits.flatten(0, 1).float(), windows[:, 1:].flatten())


class Loss(nn.Module):
    """The loss as a module, to compile."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, windows: Tensor) -> Tensor:
        return loss(self.network, windows)


@dataclass(frozen=True)
class Run:
    """One run: ``kind`` is "scratch", "small", "small only" or a method.

    Args:
        units: the FLOPs, in units; for a method those after the small run.
        factor: on the rate of the family.
    """

    family: str
    kind: str
    units: float
    factor: float = 1.0

    @property
    def grows(self) -> bool:
        return self.kind not in ("scratch", "small", "small only")


def runs() -> list[Run]:
    """List all runs, the most important first."""
    methods = dict.fromkeys(["stack+fresh", DEFAULT, "stack+copy"])
    others, both = ["fresh", "ligo-paper", "lemon"], SMALL + GROWN
    groups = [
        [("scratch", both, 1.0), ("small", SMALL, 1.0)],
        [(method, GROWN, 0.5) for method in methods],
        [("scratch", 2 * GROWN, 1.0), ("scratch", GROWN, 1.0)],
        [(method, GROWN, 0.5) for method in others],
        [("small only", both, 1.0), ("scratch", both, 0.5)],
        [(method, GROWN, 1.0) for method in methods],
        [("scratch", both, 2.0), ("scratch", 2 * both, 1.0)],
        [(method, GROWN, 1.0) for method in others],
    ]
    return [Run(family, *run) for group in groups for family in RATES for run in group]


class Bench:
    """The data and networks on the device; each network is compiled once."""

    def __init__(self, device: str, scale: float, out: Path) -> None:
        self.device, self.scale, self.out = torch.device(device), scale, out
        self.head = max(8, round(64 * scale**0.5))
        self.context = max(32, round(256 * scale**0.5))
        self.batch = max(4, round(64 * scale))
        data = read(int(BYTES * scale**0.5))
        self.training, self.validation = (part.to(self.device) for part in data)
        self.networks: dict[tuple[str, str], tuple[Network, nn.Module, dict[str, Tensor]]] = {}
        self.flops: dict[tuple[str, str], int] = {}
        self.plans: dict[str, ligo.Plan] = {}
        self.speed: dict[str, float] = {}  # FLOPs a second, by size

    def windows(self, count: int, seed: int) -> Iterator[Tensor]:
        generator = torch.Generator(self.device).manual_seed(seed)
        offsets = torch.arange(self.context + 1, device=self.device)
        while True:
            start = torch.randint(
                len(self.training) - self.context, (count, 1), device=self.device,
                generator=generator,
            )  # fmt: skip
            yield self.training[start + offsets].long()

    def network(self, family: str, size: str) -> tuple[Network, nn.Module]:
        """Return a network as it was built, and its compiled loss."""
        key = family, size
        if key not in self.networks:
            torch.manual_seed(0)
            width = HEADS[size] * self.head
            network = Network(width, DEPTHS[size], HEADS[size], self.context, family == "bert")
            network = network.to(self.device)
            with flop_counter() as counter:
                loss(network, next(self.windows(self.batch, 0))).backward()
            self.flops[key] = counter.get_total_flops()
            built = {name: tensor.clone() for name, tensor in network.state_dict().items()}
            compiled = Loss(network)
            if self.device.type == "cuda":
                compiled = torch.compile(compiled, dynamic=False)
            self.networks[key] = network, compiled, built
        network, compiled, built = self.networks[key]
        network.load_state_dict(built)
        network.zero_grad(set_to_none=True)
        return network, compiled

    @torch.no_grad()
    def evaluate(self, network: nn.Module) -> float:
        """The loss on 1,024 windows of the validation data, evenly apart."""
        count = min(1024, len(self.validation) // (self.context + 1))
        start = torch.linspace(0, len(self.validation) - self.context - 1, count).long()
        index = start[:, None] + torch.arange(self.context + 1)
        windows = self.validation[index.to(self.device)].long()
        return sum(float(loss(network, part)) * len(part) for part in windows.split(64)) / count

    def train(
        self, network: nn.Module, compiled: nn.Module, steps: int, rate: float, decays: bool
    ) -> None:
        """Train with AdamW: a warm-up, a constant rate, and a decay over the last 40 %."""
        matrices = [p for p in network.parameters() if p.dim() > 1]
        vectors = [p for p in network.parameters() if p.dim() < 2]
        groups = [{"params": matrices, "weight_decay": 0.1}, {"params": vectors}]
        optimizer = torch.optim.AdamW(
            groups, rate, betas=(0.9, 0.95), weight_decay=0.0, fused=self.device.type == "cuda"
        )
        warmup, fall = min(200, 1 + steps // 10), 0.4 * steps
        for step, windows in zip(range(steps), self.windows(self.batch, 1), strict=False):
            factor = min(1.0, (step + 1) / warmup, (steps - step) / fall if decays else 1.0)
            for group in optimizer.param_groups:
                group["lr"] = rate * factor
            compiled(windows).backward()
            nn.utils.clip_grad_norm_(network.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

    def do(self, run: Run) -> dict[str, Any]:
        """Do one run and return its record."""
        size = "small" if run.kind in ("small", "small only") else "large"
        network, compiled = self.network(run.family, size)
        total, operator = run.units * UNIT * self.scale**2, 0
        facts: dict[str, Any] = {}
        if run.grows:
            operator = self.grow(run, network)
            facts["after"] = self.evaluate(network)
        steps = max(2, round((total - operator) / self.flops[run.family, size]))
        compiled(next(self.windows(self.batch, 1))).backward()  # compiles, if it is the first
        network.zero_grad(set_to_none=True)
        self.synchronize()
        began = time.perf_counter()
        self.train(network, compiled, steps, RATES[run.family] * run.factor, run.kind != "small")
        self.synchronize()
        facts["seconds"] = time.perf_counter() - began
        spent = steps * self.flops[run.family, size]
        self.speed[size] = spent / facts["seconds"]
        if run.kind == "small":
            torch.save(network.state_dict(), self.out / f"small-{run.family}.pt")
        facts |= {"steps": steps, "flops": spent + operator, "operator": operator}
        return {**asdict(run), "loss": self.evaluate(network), **facts}

    def grow(self, run: Run, large: Network) -> int:
        """Grow the trained small network into ``large``; return the FLOPs of learning."""
        small, _ = self.network(run.family, "small")
        small.load_state_dict(torch.load(self.out / f"small-{run.family}.pt", self.device))
        batches = self.windows(self.batch, 2)
        tokens = next(batches)[:, :-1]
        if run.family not in self.plans:
            self.plans[run.family] = ligo.pair(small, large, tokens[:2])
        plan = self.plans[run.family]
        operator, cost = ligo.Operator(plan, small, run.kind), 0
        if operator.coefficients:
            method = method_named(run.kind)
            cost = ligo.estimate(plan, small, large, tokens, method=method).flops
            ligo.fit(operator, large, loss, batches, steps=method.steps,
                     learning_rate=method.learning_rate, warmup=method.warmup)  # fmt: skip
        operator.bake(large)
        return cost

    def synchronize(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    def seconds(self, run: Run) -> float:
        """Estimate the seconds of a run, with what compiling and evaluating take."""
        size = "small" if run.kind in ("small", "small only") else "large"
        speed = self.speed.get(size)
        return 5 + run.units * UNIT * self.scale**2 / speed if speed else 0.0


def read(most: int) -> tuple[Tensor, Tensor]:
    """Read Python source for training and, one file in fifty, for validation."""
    folders = {Path(sysconfig.get_path(name)) for name in ("stdlib", "purelib")}
    files = sorted({file for folder in folders for file in folder.rglob("*.py")})
    random.Random(0).shuffle(files)
    parts: tuple[bytearray, bytearray] = bytearray(), bytearray()
    seen: set[int] = set()
    for file in files:
        try:
            text = file.read_bytes()
        except OSError:
            continue
        key = zlib.crc32(text)
        if key not in seen:
            seen.add(key)
            parts[key % 50 == 0].extend(text)
        if len(parts[0]) > most:
            break
    training, validation = (torch.frombuffer(part, dtype=torch.uint8) for part in parts)
    return training, validation


# The table --------------------------------------------------------------------------------------


def needed(frontier: list[tuple[float, float]], value: float) -> tuple[str, float]:
    """The FLOPs from scratch to a loss, between budgets; "<" or ">" outside of them."""
    for (flops, above), (more, below) in pairwise(frontier):
        if above >= value > below:
            share = (above - value) / (above - below)
            return "", math.exp(math.log(flops) + share * math.log(more / flops))
    return (">", frontier[-1][0]) if value <= frontier[-1][1] else ("<", frontier[0][0])


def show(records: list[dict[str, Any]]) -> None:
    """Print what every run ended with, and what it saved against scratch."""
    table = Table("", "run", "rate", "FLOPs", "after growth", "loss", "saved", "small free")
    for family in RATES:
        own = [r for r in records if r["family"] == family]
        best: dict[float, float] = {}
        for r in own:
            if r["kind"] == "scratch":
                best[r["flops"]] = min(r["loss"], best.get(r["flops"], math.inf))
        frontier = sorted(best.items())
        before = next((r for r in own if r["kind"] == "small"), None)
        for r in sorted(own, key=lambda r: (r["kind"] == "scratch", r["loss"])):
            grows, free = "after" in r, r["flops"]
            total = free + (before["flops"] if grows and before else 0)
            cells = ["", ""]
            if frontier and r["kind"] not in ("scratch", "small"):
                sign, enough = needed(frontier, r["loss"])
                cells = [f"{sign}{1 - total / enough:.1%}"]
                cells += [f"{sign}{1 - free / enough:.1%}" if grows else ""]
            after = f"{r['after']:.4f}" if grows else ""
            table.add_row(family, r["kind"], f"{r['factor']:g}", f"{total:.3g}", after,
                          f"{r['loss']:.4f}", *cells)  # fmt: skip
    Console(width=110).print(table)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True, help="the folder of finished runs")
    parser.add_argument("--minutes", type=float, default=8.0, help="start no run that ends later")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--scale", type=float, default=1.0, help="of parameters and of tokens")
    options = parser.parse_args()
    end = time.monotonic() + 60 * options.minutes
    options.out.mkdir(parents=True, exist_ok=True)
    path = options.out / "runs.jsonl"
    records = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    done = {Run(*(r[name] for name in ("family", "kind", "units", "factor"))) for r in records}
    bench = Bench(options.device, options.scale, options.out)
    for run in runs():
        checkpoint = options.out / f"small-{run.family}.pt"
        lost = run.kind == "small" and not checkpoint.exists()
        if (run in done and not lost) or time.monotonic() + bench.seconds(run) > end:
            continue
        if run.grows and not checkpoint.exists():
            continue
        try:
            record = bench.do(run)
        except Exception:
            traceback.print_exc()
            continue
        records.append({**record, "torch": torch.__version__, "device": options.device})
        with path.open("a") as file:
            file.write(json.dumps(records[-1]) + "\n")
        print({k: v for k, v in record.items() if k != "units"}, flush=True)
    show(records)


if __name__ == "__main__":
    main()
