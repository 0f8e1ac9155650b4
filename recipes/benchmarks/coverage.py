"""Trace, pair, prove and grow every family of networks that timm and Hugging Face hold.

    python -m recipes.benchmarks.coverage --jobs 2         # go on where the last run stopped
    python -m recipes.benchmarks.coverage --only swin      # the pairs whose names match
    python -m recipes.benchmarks.coverage --summary        # the summary of what has been run

A pair of timm's is two names of its registry with the same module, class and input size that differ
in one of their words (`swin_tiny_patch4_window7_224`, `swin_small_patch4_window7_224`). The large
network has the same kinds of parameters, as many or more of each, none shorter, with the same
kernels, and its heads and groups are no fewer and no narrower. Each network is paired with the next
larger one, and pairs of the same shapes are run once. The families of Hugging Face are those of
`recipes/benchmarks/families.py`.

Networks of which the large one has over 100 million parameters are paired on the meta device, those
of which the small one has, for small images where the family allows it; a small network with over
700 million is proved with two of its layers. Every result is a line of
`runs/coverage/results.jsonl`, and of the table in `runs/coverage/coverage.md`.
"""

from __future__ import annotations

import argparse
import json
import re
import time
import warnings
from collections import defaultdict
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import timm
import torch
from torch import Tensor, nn
from tqdm import tqdm

import lightning_ligo as ligo
from lightning_ligo.axes.proof import TOLERANCE, noisy
from lightning_ligo.plan.residual import children
from recipes.benchmarks.families import FAMILIES

KEPT = 1e-4  # relative change of the output in float32
REAL = 100_000_000  # parameters; a large network with more is paired on the meta device
PROVED = 700_000_000  # parameters; a small network with more is proved with two layers only
CLASSES = 1000
SHARE = 40  # pairs that a process runs before it makes room for another one
PIXELS = (64, 112, 128)  # images of networks that take any size, or can be built for these


@dataclass(frozen=True)
class Pair:
    """Two sizes of one family: names of timm's registry, or a family of Hugging Face's."""

    source: str  # timm | hf
    module: str
    small: str
    large: str

    @property
    def key(self) -> str:
        return f"{self.source}:{self.small}->{self.large}"


@dataclass
class Result:
    """The outcome for a pair; steps that were not reached are None or False."""

    key: str
    module: str
    parameters: tuple[int, int] = (0, 0)
    paired: bool = False
    axes: int = 0  # that grow
    stacks: int = 0  # that grow
    proof: float | None = None  # the largest relative change of an axis that grows
    told: float | None = None  # relative change of the output that the plan measures
    place: str | None = None  # where it says that the change begins
    kept: float | None = None  # relative change on other inputs, with another noise on the weights
    seconds: float = 0.0  # of tracing, pairing, proving and measuring
    reason: str = ""  # why the pair got no further

    @property
    def is_kept(self) -> bool:
        """Whether the plan says that the function is kept."""
        return self.told is not None and self.told <= KEPT

    @property
    def is_false(self) -> bool:
        """Whether the plan says so of a function that is not kept."""
        return self.is_kept and self.kept is not None and not self.kept <= KEPT


# Which pairs there are --------------------------------------------------------------------------


def timm_pairs() -> Iterator[Pair]:
    """Find the pairs of timm's registry by the rule above."""
    seen = set()
    for module in timm.list_modules():
        known = {name: kinds for name in timm.list_models(module=module) if (kinds := _Kinds(name))}
        for name, small in known.items():
            larger = [
                other
                for other, large in known.items()
                if _one_word(name, other) and large.grows_from(small)
            ]
            if larger:
                nearest = min(larger, key=lambda other: known[other].parameters)
                shapes = (small.shapes, known[nearest].shapes)
                if shapes not in seen:
                    seen.add(shapes)
                    yield Pair("timm", module, name, nearest)


def _one_word(first: str, second: str) -> bool:
    one, other = first.split("_"), second.split("_")
    return len(one) == len(other) and sum(map(str.__ne__, one, other)) == 1


class _Kinds:
    """The parameters and buffers of a network, by kind: name without numbers, rank, convolution."""

    def __init__(self, name: str) -> None:
        network = timm_network(name, "meta")
        self.parameters = sum(p.numel() for p in network.parameters())
        self.tensors = {name: tuple(t.shape) for name, t in network.state_dict().items()}
        self.shapes = hash((type(network).__name__, *self.tensors.items()))
        self.lists: dict[str, set[str]] = defaultdict(set)
        for tensor in self.tensors:
            for path, child in children(tensor):
                self.lists[path].add(child)
        self.what = (type(network), network.pretrained_cfg["input_size"])
        self.kinds: dict[tuple[str, ...], list[tuple[int, ...]]] = defaultdict(list)
        styles = {f"{path}.weight": _style(module) for path, module in network.named_modules()}
        for tensor, shape in self.tensors.items():
            kind = re.sub(r"\b\d+\b", "*", tensor), f"{len(shape)}d", styles.get(tensor, "")
            self.kinds[kind].append(shape)
        counts = [
            [n for m in network.modules() if isinstance(n := getattr(m, what, None), int)]
            for what in ("num_heads", "groups")
        ]
        widths = [*map(_head_width, network.modules())]
        self.counts = [found or [0] for found in (*counts, [*filter(None, widths)])]

    def grows_from(self, small: _Kinds) -> bool:
        return (
            self.what == small.what
            and self.parameters > small.parameters
            and self.kinds.keys() == small.kinds.keys()
            and all(_longer(self.kinds[kind], shapes) for kind, shapes in small.kinds.items())
            and all(_longer([self.tensors[name]], [shape])
                    for name, shape in small.tensors.items()
                    if name in self.tensors and self._same_place(name, small))
            and all(end(large) >= end(least) for end in (min, max)
                    for large, least in zip(self.counts, small.counts, strict=True))
        )  # fmt: skip

    def _same_place(self, name: str, other: _Kinds) -> bool:
        """Check that all lists around a name have the same length in both networks."""
        return len(self.tensors[name]) == len(other.tensors[name]) and all(
            self.lists[path] == other.lists[path] for path, _ in children(name)
        )


def _head_width(module: nn.Module) -> int | None:
    heads = getattr(module, "num_heads", None)
    inputs = [child.in_features for child in module.children() if isinstance(child, nn.Linear)]
    known = isinstance(heads, int) and inputs
    return getattr(module, "head_dim", max(inputs) // heads if known else None)


def _style(module: nn.Module) -> str:
    """Name the grouping of a convolution; another grouping is another kind."""
    groups = getattr(module, "groups", 1)
    if groups == 1:
        return ""
    return "depthwise" if groups == getattr(module, "in_channels", None) else "grouped"


def _longer(large: list[tuple[int, ...]], small: list[tuple[int, ...]]) -> bool:
    """Check that the large shapes are as many, nowhere shorter, with the same kernels."""
    kernels = [{shape[2:] for shape in shapes if len(shape) > 3} for shapes in (large, small)]
    if len(large) < len(small) or kernels[0] != kernels[1]:
        return False
    lengths = zip(zip(*large, strict=True), zip(*small, strict=True), strict=True)
    return all(end(longs) >= end(shorts) for longs, shorts in lengths for end in (min, max))


# Networks ---------------------------------------------------------------------------------------


def timm_network(name: str, device: str = "cpu", **options: Any) -> nn.Module:
    """Build a network with random weights and a classifier, also where timm's has none."""
    options |= {"pretrained": False, "num_classes": CLASSES}
    try:
        with torch.device(device):
            return timm.create_model(name, **options)
    except (NotImplementedError, RuntimeError):  # its constructor reads values
        return timm.create_model(name, **options).to(device)


def _networks(pair: Pair, device: str, **options: Any) -> tuple[nn.Module, nn.Module]:
    if pair.source == "timm":
        names = (pair.small, pair.large)
        small, large = (timm_network(name, device, **options) for name in names)
        return small, large
    with torch.device(device):
        family = FAMILIES[pair.module]
        return family.build("small"), family.build("large")


def _inputs(pair: Pair, small: nn.Module) -> tuple[dict[str, Any], Tensor]:
    """Choose the arguments of the networks, and an image as small as they then take.

    ``small`` is on the meta device. Networks that are costly to prove are built for smaller images
    where their family allows it.
    """
    channels, height, width = small.pretrained_cfg["input_size"]
    costly = sum(p.numel() for p in small.parameters()) > REAL
    for pixels in sorted({*(min(size, height) for size in PIXELS), height}):
        images = torch.empty(1, channels, pixels, width * pixels // height, device="meta")
        for options in ({}, {"img_size": pixels}) if costly else ({},):
            try:
                with torch.no_grad():
                    for network in _networks(pair, "meta", **options) if options else (small,):
                        network.eval()(images)
            except Exception:  # every family refuses what it cannot take in its own way
                continue
            generator = torch.Generator().manual_seed(0)
            return options, torch.randn(images.shape, generator=generator)
    raise ValueError(f"{pair.small} takes no image of {height} pixels")


# One pair ---------------------------------------------------------------------------------------


def run(pair: Pair) -> Result:
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    result = Result(pair.key, pair.module)
    try:
        small, large = _networks(pair, "meta")
        sizes = [sum(p.numel() for p in network.parameters()) for network in (small, large)]
        result.parameters = (sizes[0], sizes[1])
        options: dict[str, Any] = {}
        if pair.source == "hf":
            inputs = FAMILIES[pair.module].inputs()
        else:
            options, images = _inputs(pair, small.eval())
            inputs = {"x": images}
        real = pair.source == "hf" or sizes[1] <= REAL
        small, large = _networks(pair, "cpu" if real else "meta", **options)
        if not real and sizes[0] <= PROVED:
            small = timm_network(pair.small, **options)
        small, large = small.eval(), large.eval()
        torch.manual_seed(0)
        start = time.perf_counter()
        plan = ligo.pair(small, large, **inputs)
        told = ligo.measure(plan, small, large, [ligo.Call(kwargs=inputs)], method="lemon")
        result.told, result.place = told.change, told.place
        result.seconds = round(time.perf_counter() - start, 2)
        result.paired, result.axes = True, len(plan.axes)
        result.stacks = sum(one != other for one, other in plan.stacks.values())
        result.proof = max(plan.proofs.values(), default=None)
        if sizes[0] > PROVED and result.axes:
            result.proof = _proof_of_two_layers(pair, inputs, options)
        if not any(p.is_meta for p in (*small.parameters(), *large.parameters())):
            others = {name: _other(tensor) for name, tensor in inputs.items()}
            result.kept = _kept(noisy(small, seed=1), large, plan, others)
            if result.is_false:  # rounding, or not finite
                exact = {k: v.double() if v.is_floating_point() else v for k, v in others.items()}
                result.kept = _kept(small.double(), large.double(), plan, exact)
    except Exception as error:
        result.reason = f"{type(error).__name__}: {error}"
    return result


def _proof_of_two_layers(
    pair: Pair, inputs: dict[str, Tensor], options: dict[str, Any]
) -> float | None:
    """Prove networks that are too large by two of their layers, if these can be built."""
    try:
        small = timm_network(pair.small, depth=2, **options)
        large = timm_network(pair.large, "meta", depth=2, **options)
    except TypeError:
        return None
    return max(ligo.pair(small.eval(), large.eval(), **inputs).proofs.values(), default=None)


def _other(tensor: Tensor) -> Tensor:
    """Make another input: entries in another order, of numbers also with noise; masks stay."""
    if bool(((tensor == 0) | (tensor == 1)).all()):
        return tensor
    generator = torch.Generator().manual_seed(7)
    tensor = tensor[..., torch.randperm(tensor.shape[-1], generator=generator)]
    if not tensor.is_floating_point():
        return tensor
    return tensor + 0.5 * tensor.std() * torch.randn(tensor.shape, generator=generator)


@torch.no_grad()
def _kept(small: nn.Module, large: nn.Module, plan: ligo.Plan, inputs: dict[str, Tensor]) -> float:
    ligo.Operator(plan, small, "lemon").bake(large)
    before, after = (_output(network, inputs) for network in (small, large))
    return float((after - before).norm() / before.norm())


def _output(network: nn.Module, inputs: dict[str, Tensor]) -> Tensor:
    out: Any = network(**inputs)
    out = out.to_tuple() if hasattr(out, "to_tuple") else out
    while not isinstance(out, Tensor):
        out = out[0]
    return out


# All of them ------------------------------------------------------------------------------------


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", default="", help="regular expression that a pair must match")
    parser.add_argument("--again", action="store_true", help="also pairs that have a result")
    parser.add_argument("--jobs", type=int, default=1, help="processes")
    parser.add_argument("--out", type=Path, default=Path("runs/coverage"))
    parser.add_argument("--summary", action="store_true", help="print the table and stop")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    results = options.out / "results.jsonl"
    done = _read(results)
    if options.summary:
        _write(options.out, list(done.values()))
        return
    pairs = [pair for pair in _pairs(options.out) if re.search(options.only, pair.key)]
    todo = [pair for pair in pairs if options.again or pair.key not in done]
    with (
        results.open("a") as file,
        tqdm(total=len(pairs), initial=len(pairs) - len(todo), unit="pair") as bar,
    ):
        for result in _run_all(todo, options.jobs):
            file.write(json.dumps(asdict(result)) + "\n")
            file.flush()
            bar.update()
            if result.reason:
                bar.write(f"{result.key}: {result.reason}")
    _write(options.out, list(_read(results).values()))


def _run_all(pairs: list[Pair], jobs: int) -> Iterator[Result]:
    """Run all pairs, in processes that are replaced now and then to free their memory."""
    for start in range(0, len(pairs), SHARE * jobs):
        with ProcessPoolExecutor(jobs) as pool:
            share = [pool.submit(run, pair) for pair in pairs[start : start + SHARE * jobs]]
            yield from (future.result() for future in as_completed(share))


def _write(out: Path, results: list[Result]) -> None:
    text = summary(results)
    (out / "coverage.md").write_text(f"{text}\n\n{table(results)}\n")
    print(text)


def _pairs(out: Path) -> list[Pair]:
    """List all pairs; finding those of timm takes minutes, so they are kept in a file."""
    found = out / f"pairs-{timm.__version__}.json"
    if not found.exists():
        found.write_text(json.dumps([asdict(pair) for pair in timm_pairs()], indent=1))
    families = [Pair("hf", name, f"{name} small", f"{name} large") for name in FAMILIES]
    return [*families, *(Pair(**pair) for pair in json.loads(found.read_text()))]


def _read(results: Path) -> dict[str, Result]:
    """Read the last result of every pair."""
    if not results.exists():
        return {}
    lines = [Result(**json.loads(line)) for line in results.read_text().splitlines()]
    return {result.key: result for result in lines}


def summary(results: list[Result]) -> str:
    """Count by source the pairs that were paired, proved and kept, and the false claims."""
    lines = [
        "| source | pairs | paired | proved | grown | said to be kept | false claims |",
        "|---|---|---|---|---|---|---|",
    ]
    for source in sorted({result.key.partition(":")[0] for result in results}):
        found = [result for result in results if result.key.startswith(f"{source}:")]
        grown = [result for result in found if result.kept is not None]
        kept = sum(result.is_kept for result in grown)
        false = sum(result.is_false for result in grown)
        paired = sum(result.paired for result in found)
        proved = sum(result.proof is not None and result.proof <= TOLERANCE for result in found)
        deeper = sum(result.paired and not result.axes for result in found)
        lines.append(
            f"| {source} | {len(found)} | {paired} ({paired / len(found):.1%}) | "
            f"{proved} (and {deeper} with nothing to prove) | {len(grown)} | "
            f"{kept} | {false} |"
        )
    return "\n".join(lines)


def table(results: list[Result]) -> str:
    """Write a row for every pair, by module."""
    lines = [
        "| module | pair | parameters (M) | axes | stacks | proof | told | change | seconds "
        "| place, or reason |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for result in sorted(results, key=lambda result: (result.module, result.key)):
        small, large = (f"{number / 1e6:.1f}" for number in result.parameters)
        proof, told, kept = (
            "" if value is None else f"{value:.0e}"
            for value in (result.proof, result.told, result.kept)
        )
        why = " ".join(result.reason.split()) or result.place or ""
        lines.append(
            f"| {result.module} | {result.key.partition(':')[2]} | {small} → {large} | "
            f"{result.axes} | {result.stacks} | {proof} | {told} | {kept} | {result.seconds} | "
            f"{why} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
