"""Ways to learn how a growth starts, and what they work on: networks, data, training, constants.

`learned_starts` describes and compares them.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

import lightning_ligo as ligo
from lightning_ligo.methods.catalog import method_named
from lightning_ligo.operator.flops import flop_counter
from recipes.benchmarks.gpu import Block, Network, loss, read

CONTEXT, BATCH, HEAD, BYTES = 64, 16, 16, 20_000_000
START = "stack+fresh"
NAMES = ("qkv", "o", "o'", "fc1", "fc2", "fc2'")  # inputs, and gradients of outputs
State = dict[str, Tensor]


@dataclass(frozen=True)
class Size:
    """The layers and heads of a network; a head has 16 entries."""

    depth: int
    heads: int

    def build(self, post: bool, seed: int) -> Network:
        torch.manual_seed(seed)
        return Network(HEAD * self.heads, self.depth, self.heads, CONTEXT, post)


@dataclass(frozen=True)
class Regime:
    """A growth in the middle of a run, or of a network that was trained to the end.

    Args:
        rate: of AdamW for the small network, and `factor` times that for the large one.
        steps: of the small network and of the large one.
        annealed: whether the rate of the small network falls to zero before the growth.
    """

    small: Size
    large: Size
    rate: float
    steps: tuple[int, int]
    factor: float = 1.0
    post: bool = False
    annealed: bool = False


@dataclass(frozen=True)
class Constants:
    """Numbers that most methods of growth are points of; those of `stack+fresh` by default.

    Args:
        old: log2 of the gain of weights that come from the small network, in its layers.
        branch: log2 of the gain of what its layers add to the residual stream.
        stacked: log2 of the gain of what new layers add.
        reads: log2 of the scale of fresh entries in layers that read the stream.
        writes: the share of the fresh entries of `stack+copy` in layers that write to it.
        tables: that share in embeddings and the head.
        queries: that share in queries, keys, values and the hidden layer.
        factor: log2 of the factor of the rate after the growth.
        fresh_rate: log2 of the factor of the rate of fresh entries.
        warmup: log2 of the steps of the warm-up after the growth.
    """

    old: float = 0.0
    branch: float = 0.0
    stacked: float = 0.0
    reads: float = 0.0
    writes: float = 0.0
    tables: float = 0.0
    queries: float = 0.0
    factor: float = 0.0
    fresh_rate: float = 0.0
    warmup: float = 5.0


@dataclass(frozen=True)
class Parts:
    """The weights of a grown network as sums, by name.

    Args:
        small: what comes from the small network.
        fresh: what `stack+fresh` adds as it was built.
        other: what `stack+copy` adds beyond that.
        old: the number of layers of the small network.
    """

    small: State
    fresh: State
    other: State
    old: int

    @classmethod
    def of(cls, small: Network, large: Network) -> Parts:
        zeros = copy.deepcopy(large)
        for parameter in zeros.parameters():
            nn.init.zeros_(parameter)
        start, copied = (grown(small, large, method) for method in (START, "stack+copy"))
        old, old_copied = (grown(small, zeros, method) for method in (START, "stack+copy"))
        fresh = {name: start[name] - old[name] for name in start}
        other = {name: copied[name] - old_copied[name] - fresh[name] for name in start}
        return cls(old, fresh, other, len(small.blocks))

    def compose(self, constants: Constants) -> State:
        """Return the weights that some constants describe."""
        return {name: self.one(name, *_shares(name, constants, self.old)) for name in self.small}

    def one(self, name: str, gain: Any, scale: Any, share: Any) -> Tensor:
        return gain * self.small[name] + scale * self.fresh[name] + share * self.other[name]


def _shares(name: str, constants: Constants, old: int) -> tuple[float, float, float]:
    """Return the gain of the small part, the scale of the fresh one, the share of the other."""
    kind, layer = kind_of(name)
    if kind == "vector":
        return 1.0, 1.0, 0.0
    if kind == "table":
        return 1.0, 1.0, constants.tables
    if kind == "writes":
        added = constants.branch if layer < old else constants.stacked
        return 2.0 ** (constants.old + added), 1.0, constants.writes
    return 2.0**constants.old, 2.0**constants.reads, constants.queries


def kind_of(name: str) -> tuple[str, int]:
    """Return the kind of a tensor and the number of its layer, -1 for none."""
    layer = int(name.split(".")[1]) if name.startswith("blocks.") else -1
    if name.endswith("bias") or "norm" in name:
        return "vector", layer
    if layer < 0:
        return "table", layer
    return ("writes" if ".o." in name or ".fc2." in name else "reads"), layer


def grown(small: Network, large: Network, method: str) -> State:
    network = ligo.grow(small, copy.deepcopy(large), torch.zeros(2, CONTEXT).long(), method=method)
    return {name: tensor.clone() for name, tensor in network.state_dict().items()}


class Data:
    """Windows of bytes; those of one seed are the same in every run."""

    def __init__(self) -> None:
        self.training, self.validation = read(BYTES)

    def windows(self, seed: int, count: int = BATCH) -> Iterator[Tensor]:
        generator = torch.Generator().manual_seed(seed)
        offsets = torch.arange(CONTEXT + 1)
        while True:
            start = torch.randint(len(self.training) - CONTEXT, (count, 1), generator=generator)
            yield self.training[start + offsets].long()

    @torch.no_grad()
    def evaluate(self, network: nn.Module) -> float:
        """The loss on 2,048 windows of the validation data, evenly apart."""
        start = torch.linspace(0, len(self.validation) - CONTEXT - 1, 2048).long()
        windows = self.validation[start[:, None] + torch.arange(CONTEXT + 1)].long()
        return sum(float(loss(network, part)) for part in windows.split(128)) / 16


def train(
    network: nn.Module,
    windows: Iterator[Tensor],
    steps: int,
    rate: float,
    *,
    decays: bool,
    warmup: float = 50.0,
    fresh: State | None = None,
    fresh_rate: float = 1.0,
) -> None:
    """Train with AdamW: a warm-up, a constant rate, and a linear decay over the last 40 %.

    Entries where ``fresh`` is true move by ``fresh_rate`` times the step of AdamW.
    """
    groups = [
        {"params": [p for p in network.parameters() if p.dim() > 1], "weight_decay": 0.1},
        {"params": [p for p in network.parameters() if p.dim() < 2]},
    ]
    optimizer = torch.optim.AdamW(groups, rate, betas=(0.9, 0.95), weight_decay=0.0)
    for step in range(steps):
        fall = (steps - step) / (0.4 * steps) if decays else 1.0
        for group in optimizer.param_groups:
            group["lr"] = rate * min(1.0, (step + 1) / warmup, fall)
        loss(network, next(windows)).backward()
        nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        before = {}
        if fresh is not None and fresh_rate != 1:
            before = {name: p.detach().clone() for name, p in network.named_parameters()}
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        with torch.no_grad():
            for name, old in before.items():
                p = network.get_parameter(name)
                p.add_((p - old) * fresh[name], alpha=fresh_rate - 1)


@dataclass(frozen=True)
class Event:
    """What a way of learning has at hand: the networks, the data and the regime."""

    regime: Regime
    small: Network
    large: Network
    parts: Parts
    data: Data
    seed: int

    @property
    def rate(self) -> float:
        return self.regime.rate * self.regime.factor

    def windows(self, count: int = BATCH) -> Iterator[Tensor]:
        return self.data.windows(10_000 + self.seed, count)


# The ways of learning: each fills the large network and returns what that took, in its steps ------


def start(event: Event) -> float:
    event.large.load_state_dict(grown(event.small, event.large, START))
    return 0.0


def look_ahead(event: Event, updates: int = 20, rate: float = 0.03) -> float:
    """Learn gains of every kind of tensor on the loss after one step, on quarter batches."""
    parts = event.parts
    names = [name for name in parts.small if kind_of(name)[0] != "vector"]
    keys = sorted({_key(name, parts.old) for name in names})
    gains = {key: torch.zeros(3, requires_grad=True) for key in keys}
    optimizer = torch.optim.Adam(gains.values(), rate)
    windows = event.windows(BATCH // 4)

    def weights() -> State:
        made = dict(parts.compose(Constants()))
        for name in names:
            old, fresh, share = gains[_key(name, parts.old)]
            made[name] = parts.one(name, old.exp(), fresh.exp(), share)
        return made

    for _ in range(updates):
        now = weights()
        leaves = {name: w.detach().requires_grad_() for name, w in now.items()}
        first = loss(_Called(event.large, leaves), next(windows))
        gradients = torch.autograd.grad(first, list(leaves.values()))
        moved = {
            name: w - event.rate * gradient.sign()
            for (name, w), gradient in zip(now.items(), gradients, strict=True)
        }
        optimizer.zero_grad()
        loss(_Called(event.large, moved), next(windows)).backward()
        optimizer.step()
        with torch.no_grad():
            for gain in gains.values():
                gain[:2].clamp_(math.log(0.1), math.log(3.0))
                gain[2].clamp_(0.0, 1.0)
    event.large.load_state_dict({name: w.detach() for name, w in weights().items()})
    return 2 * updates / 4


def _key(name: str, old: int) -> str:
    layer = kind_of(name)[1]
    place = "" if layer < 0 else "old " if layer < old else "new "
    return place + name.split(".", 2 if layer >= 0 else 0)[-1]


class _Called(nn.Module):
    """A network called with other weights."""

    def __init__(self, network: nn.Module, weights: State) -> None:
        super().__init__()
        self.network, self.weights = network, weights

    def forward(self, tokens: Tensor) -> Tensor:
        return functional_call(self.network, self.weights, (tokens,))


def gradients(event: Event, batches: int = 4, scale: float = 0.1) -> float:
    """Point new neurons and heads along the gradient that the old ones cannot express."""
    start(event)
    network, windows = event.large, event.windows(batches * BATCH)
    seen: dict[str, Tensor] = {}

    def keep(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            seen[name] = inputs[0].detach()
            output.register_hook(lambda gradient: seen.__setitem__(f"{name}'", gradient))

        return hook

    handles = [
        module.register_forward_hook(keep(name))
        for name, module in network.named_modules()
        if name.endswith((".qkv", ".fc1", ".o", ".fc2"))
    ]
    loss(network, next(windows)).backward()
    for handle in handles:
        handle.remove()
    network.zero_grad(set_to_none=True)
    heads = event.regime.small.heads
    with torch.no_grad():
        for number, block in enumerate(network.blocks):
            own = {name: seen[f"blocks.{number}.{name}"] for name in NAMES}
            old = 4 * HEAD * heads
            _aim(block.fc1.weight, block.fc1.bias, block.fc2.weight, slice(old, None), scale,
                 own["fc1"], own["fc2"][..., :old], own["fc2'"])  # fmt: skip
            _aim_heads(block, heads, scale, own["qkv"], own["o"], own["o'"])
    return float(batches)


def _aim(
    reads: Tensor, bias: Tensor | None, writes: Tensor, new: slice, scale: float,
    heard: Tensor, old: Tensor, gradient: Tensor,
) -> None:  # fmt: skip
    """Set the new rows of ``reads`` and columns of ``writes`` from singular vectors.

    Shapes: heard (batch, positions, width), old (batch, positions, old units), gradient as the
    output of ``writes``.
    """
    heard, old, wanted = heard.flatten(0, 1), old.flatten(0, 1), -gradient.flatten(0, 1)
    wanted = wanted - old @ torch.linalg.lstsq(old, wanted, driver="gelsd").solution
    values, vectors = torch.linalg.eigh(heard.T @ heard / len(heard))
    whiten = vectors * values.clamp(min=1e-4 * values.max()).rsqrt() @ vectors.T
    left, _, right = torch.linalg.svd(whiten @ heard.T @ wanted, full_matrices=False)
    directions, answers = (whiten @ left).T, right
    directions = torch.cat([directions, -directions])
    answers = torch.cat([answers, -answers])
    units = range(*new.indices(len(reads)))
    rms_in, rms_out = reads[: units.start].square().mean().sqrt(), writes.square().mean().sqrt()
    for unit, direction, answer in zip(units, directions, answers, strict=False):
        reads[unit] = direction / direction.square().mean().sqrt() * rms_in
        writes[:, unit] = answer / answer.square().mean().sqrt() * rms_out * scale
        if bias is not None:
            bias[unit] = 0.0


def _aim_heads(
    block: Block, heads: int, scale: float, heard: Tensor, old: Tensor, gradient: Tensor
) -> None:
    """Aim the values of new heads at what their attention, as it was built, lets them read."""
    width = block.o.in_features
    query, key, _ = block.qkv(heard).unflatten(-1, (3, block.heads, -1)).permute(2, 0, 3, 1, 4)
    for head in range(heads, block.heads):
        read = F.scaled_dot_product_attention(query[:, head], key[:, head], heard, is_causal=True)
        rows = slice(2 * width + HEAD * head, 2 * width + HEAD * (head + 1))
        columns = slice(HEAD * head, HEAD * (head + 1))
        known = old[..., : HEAD * heads]
        values, outputs = block.qkv.weight[: rows.stop], block.o.weight
        padded = torch.zeros(len(outputs), rows.stop)
        padded[:, : HEAD * heads] = outputs[:, : HEAD * heads]
        _aim(values, block.qkv.bias, padded, slice(rows.start, None), scale, read, known, gradient)
        outputs[:, columns] = padded[:, rows]


def learn(event: Event, name: str = "ligo", robust: bool = False) -> float:
    """Learn the operator of a method and put its weights into the large network."""
    method, windows = method_named(name), event.windows(4 * BATCH if robust else BATCH)
    tokens = next(windows)[:, :-1]
    plan = ligo.pair(event.small, event.large, tokens[:2])
    operator = ligo.Operator(plan, event.small, name)
    noise, cost = _noise(event) if robust else ({}, 0.0)
    last = method.steps - method.steps // 2
    coefficients = list(operator.parameters())
    mean = [torch.zeros_like(coefficient) for coefficient in coefficients]

    def noisy(network: nn.Module, batch: Tensor) -> Tensor:
        moved = {
            name: p + noise.get(kind_of(name)[0], 0.0) * torch.randn_like(p)
            for name, p in network.named_parameters()
        }
        return loss(_Called(network, moved), batch)

    def gather(step: int, value: float) -> None:
        for total, coefficient in zip(mean, coefficients, strict=True):
            total += coefficient.detach() / last * (step > method.steps - last)

    ligo.fit(operator, event.large, noisy if robust else loss, windows, steps=method.steps,
             learning_rate=method.learning_rate / (3 if robust else 1), warmup=method.warmup,
             on_step=gather)  # fmt: skip
    if robust:
        with torch.no_grad():
            for total, coefficient in zip(mean, coefficients, strict=True):
                coefficient.copy_(total)
    cost += ligo.estimate(plan, event.small, event.large, tokens, method=method).flops
    operator.bake(event.large)
    with flop_counter() as counter:
        loss(event.large, next(event.windows())).backward()
    event.large.zero_grad(set_to_none=True)
    return cost / counter.get_total_flops()


def _noise(event: Event, steps: int = 50) -> tuple[dict[str, float], float]:
    """The rms by which training moves each kind of tensor, and the FLOPs of finding out."""
    moved = copy.deepcopy(event.small)
    with flop_counter() as counter:
        train(moved, event.windows(), steps, event.rate, decays=False, warmup=1)
    changes: dict[str, list[Tensor]] = {}
    for (name, after), before in zip(
        moved.named_parameters(), event.small.parameters(), strict=True
    ):
        changes.setdefault(kind_of(name)[0], []).append((after - before).detach().flatten())
    noise = {kind: float(torch.cat(c).square().mean().sqrt()) for kind, c in changes.items()}
    return noise, counter.get_total_flops()


WAYS: dict[str, Callable[[Event], float]] = {
    "start": start,
    "look-ahead": look_ahead,
    "gradients": gradients,
    "ligo": learn,
    "fresh+ligo": lambda event: learn(event, "fresh+ligo"),
    "robust": lambda event: learn(event, robust=True),
}
