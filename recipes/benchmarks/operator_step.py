"""Measure a step of learning an operator beside a step of training the large network.

    python -m recipes.benchmarks.operator_step            # BERT-Small -> Base, 4 x 128 tokens
    python -m recipes.benchmarks.operator_step --batch 64 --methods ligo-low-rank ligo

Training is AdamW on the masked language loss in float32. Every measurement is a process of its
own, in turn, so that other load on the machine affects all kinds alike. The fastest step of all
rounds counts. Memory is the peak of the process, or of its tensors on a CUDA device.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from itertools import pairwise, repeat

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from transformers import BertConfig, BertForMaskedLM

import lightning_ligo as ligo
from lightning_ligo.operator.flops import flop_counter

TRAINING = "training"
SIZES = {"small": (512, 6), "base": (768, 12)}  # (hidden size, layers); a head is 64 wide


def bert(size: str) -> nn.Module:
    """Build BERT-Small or BERT-Base, with random weights and without dropout."""
    width, depth = SIZES[size]
    return BertForMaskedLM(
        BertConfig(
            hidden_size=width, num_hidden_layers=depth, num_attention_heads=width // 64,
            intermediate_size=4 * width, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
        )
    )  # fmt: skip


def loss(network: nn.Module, tokens: Tensor) -> Tensor:
    return network(input_ids=tokens, labels=tokens).loss


def measure(kind: str, batch: int, length: int, steps: int) -> dict[str, float]:
    """Measure the FLOPs of a step, the seconds of the fastest one, and the memory."""
    torch.manual_seed(0)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    tokens = torch.randint(1000, (batch, length), device=device)
    large, ends = bert("base").to(device), []
    counter = flop_counter()

    def mark(*_: object) -> None:
        if device == "cuda":
            torch.cuda.synchronize()
        counter.__exit__(None, None, None) if not ends else None
        ends.append(time.perf_counter())

    if kind == TRAINING:
        optimizer = torch.optim.AdamW(large.parameters())
        counter.__enter__()
        for _ in range(steps + 1):
            loss(large, tokens).backward()
            optimizer.step()
            optimizer.zero_grad()
            mark()
    else:
        small = bert("small").to(device)
        operator = ligo.Operator(ligo.pair(small, large, input_ids=tokens[:1]), small, kind)
        counter.__enter__()
        ligo.fit(
            operator, large, loss, repeat(tokens), steps=steps + 1, learning_rate=1e-3, on_step=mark
        )
    if device == "cuda":
        memory = torch.cuda.max_memory_allocated()
    else:
        memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return {
        "flops": counter.get_total_flops(),
        "seconds": min(after - before for before, after in pairwise(ends)),
        "memory": memory,
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--methods", nargs="+", default=["ligo-low-rank", "ligo-paper", "ligo"])
    parser.add_argument("--batch", type=int, default=4, help="sequences in a batch")
    parser.add_argument("--length", type=int, default=128, help="tokens of a sequence")
    parser.add_argument("--steps", type=int, default=3, help="timed steps of a process")
    parser.add_argument("--rounds", type=int, default=2, help="processes of every kind")
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        print(json.dumps(measure(options.measure, options.batch, options.length, options.steps)))
        return
    kinds = [TRAINING, *options.methods]
    found: dict[str, list[dict[str, float]]] = {kind: [] for kind in kinds}
    for _ in range(options.rounds):
        for kind in kinds:
            command = [sys.executable, "-m", "recipes.benchmarks.operator_step", *sys.argv[1:]]
            run = subprocess.run([*command, "--measure", kind], stdout=subprocess.PIPE, check=True)
            found[kind].append(json.loads(run.stdout.splitlines()[-1]))
    best = {
        kind: {name: min(run[name] for run in runs) for name in runs[0]}
        for kind, runs in found.items()
    }
    table = Table(
        "", "FLOPs", "seconds", "memory (GiB)", title="One step, and training in brackets"
    )
    for kind, facts in best.items():
        plain = best[TRAINING]
        ratios = {name: f"({facts[name] / plain[name]:.2f}x)" for name in facts}
        table.add_row(
            kind,
            f"{facts['flops']:.3g} {ratios['flops']}",
            f"{facts['seconds']:.3g} {ratios['seconds']}",
            f"{facts['memory'] / 2**30:.2f} {ratios['memory']}",
        )
    Console().print(table)


if __name__ == "__main__":
    main()
