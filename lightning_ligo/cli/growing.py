"""Grow the trained weights of a network into files, layer by layer."""

from __future__ import annotations

import datetime
import math
import shutil
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm  # type: ignore[import-untyped]

from lightning_ligo.axes.calls import Call
from lightning_ligo.axes.override import Override
from lightning_ligo.cli.card import beside, describe_growth, sums, versions
from lightning_ligo.cli.planned import Pair, paired, sized
from lightning_ligo.methods.method import Method
from lightning_ligo.networks.description import build
from lightning_ligo.networks.pretrained import loads_weights, untrained
from lightning_ligo.networks.saving import (
    TORCH,
    check_kind,
    free,
    held,
    placed,
    write_safetensors,
    write_shards,
)
from lightning_ligo.networks.weights import Source, opened, read_checkpoint
from lightning_ligo.operator.fit import Loss, fit
from lightning_ligo.operator.limits import refuse
from lightning_ligo.operator.measure import KEPT, Change, compare, compare_in_turn
from lightning_ligo.operator.operator import Operator

COPIED = (".json", ".txt", ".model", ".jinja")
"""Files that go along with a folder of Hugging Face: tokenizer, generation, preprocessing."""

OWN = ("config.json", "growth.json")

KEPT_IN_HALF = 2e-2
"""A relative change that may be the rounding of weights to half precision, in 20 layers or more."""


@dataclass(frozen=True)
class Learning:
    """How an operator is learned, and the data on which a growth is measured."""

    loss: Loss
    batches: Callable[[], Iterator[Any]]  # endless, each time from the start
    steps: int
    learning_rate: float
    call: Callable[[Any], Call]  # of the network, on a batch


@dataclass(frozen=True)
class Request:
    """What is to be grown, and where it is written.

    Args:
        small: description of the small network, with trained weights.
        large: description of the large network.
        out: a file or a folder that does not exist.
        method: the method.
        dtype: precision of the large network; that of the small weights if None.
        seed: of the random part of the method, and of what stays as it was built.
        override: names for axes, see `trace`.
        learning: data and settings; None for random inputs and nothing learned.
        checkpoint: the Lightning checkpoint that ``small`` is from, if it is.
    """

    small: dict[str, Any]
    large: dict[str, Any]
    out: Path
    method: Method
    dtype: torch.dtype | None = None
    seed: int = 0
    override: Override | None = None
    learning: Learning | None = None
    checkpoint: Path | None = None


def grow_weights(request: Request) -> dict[str, Any]:
    """Grow trained weights into a new file or folder, and describe the growth beside it.

    Tensors are read and written one layer at a time. The large network is built only if some of its
    weights stay as they were built, if the operator is learned, and to measure the change.

    Returns:
        What `growth.json` holds.

    Raises:
        FileExistsError: if there is something at ``out``.
        ValueError: if there are no trained weights, they do not fit, the networks cannot be paired,
            the method cannot grow them, or there is too little room on the disk.
    """
    out, small = free(request.out), request.small
    _check(request)
    data = request.learning
    calls = None if data is None else [data.call(next(data.batches()))]
    pair = paired(small, request.large, request.override, calls)
    is_folder = out.suffix != ".ckpt" and check_kind(out, pair.large)
    refuse(pair.plan, request.method)
    for path in () if is_folder else beside(out):
        free(path)
    weights = _weights(small, pair.small)
    dtype = request.dtype or next(t.dtype for t in weights.values() if _is_real(t))
    like = _like(request.large, pair.large, dtype)
    _check_room(out, like)
    operator, losses = _operator(request, pair, weights)
    with placed(out) as part:
        _write(request, operator, like, dtype, part, is_folder)
    change = _measured(request, pair, operator, dtype)
    rounding = KEPT if dtype in (torch.float32, torch.float64) else KEPT_IN_HALF
    promised = request.method.keeps_function and not losses
    if promised and change.change is not None and change.change > rounding:
        warnings.warn(
            f"method {request.method.name!r} promises to keep the function, and {change.sentence}",
            stacklevel=2,
        )
    record = {
        "small": untrained(small),
        "weights": small.get("weights") or ", ".join(loads_weights(small)),
        "sha256": sums(small.get("weights")),
        "large": request.large,
        "method": request.method.name,
        "seed": request.seed,
        "dtype": str(dtype).removeprefix("torch."),
        "learned": {"steps": len(losses), "loss": [losses[0], losses[-1]]} if losses else None,
        "change": change.to_dict(),
        "plan": pair.plan.to_dict(),
        "versions": versions(),
        "date": datetime.date.today().isoformat(),
    }
    describe_growth(record, out, is_folder)
    return record


def _check(request: Request) -> None:
    """Refuse what cannot be grown before anything is built."""
    if not loads_weights(request.small):
        raise ValueError(
            "the small network has no trained weights; name them by --weights, or take a network "
            "that brings them, such as hf:FOLDER"
        )
    if request.method.ramp:
        raise ValueError(
            f"method {request.method.name!r} unmasks new parts while a run goes on; grow at step 0 "
            "of a run, or use another method"
        )
    if request.out.suffix == ".ckpt" and request.checkpoint is None:
        raise ValueError(
            f"{request.out} would be a Lightning checkpoint, which is grown from one; write to "
            ".safetensors, .pt, .pth or .bin, or to a folder"
        )


def _weights(small: dict[str, Any], network: nn.Module) -> Mapping[str, Tensor]:
    """Return the trained weights by name, read from their files whenever they are used.

    Those that the user leaves out are as the small network was built.
    """
    found = opened(network, small["weights"]) if small.get("weights") else {}
    if found.keys() >= network.state_dict().keys():
        return found
    network = build(small) if _is_meta(network) else network
    return {name: found.get(name, tensor) for name, tensor in network.state_dict().items()}


def _operator(
    request: Request, pair: Pair, weights: Mapping[str, Tensor]
) -> tuple[Operator, list[float]]:
    """Return the operator, learned if the method does so, and the losses of its steps."""
    method, learning = request.method, request.learning
    operator = Operator(pair.plan, weights, method, request.seed)
    if not (method.learns and operator.coefficients):
        return operator, []
    if learning is None:
        raise ValueError(
            f"method {method.name!r} learns its operator and needs data: --data text --data.files "
            "'corpus/**/*.txt', or --data images --data.folder FOLDER; or a method that learns "
            "nothing, such as lemon"
        )
    if not learning.steps:
        return operator, []
    small = build(request.small) if _is_meta(pair.small) else pair.small
    learned = Operator(pair.plan, small, method, request.seed)
    large = _built(request.large, torch.float32, request.seed)
    with tqdm(desc="Learning the operator", total=learning.steps) as bar:

        def on_step(step: int, loss: float) -> None:
            bar.set_postfix(loss=f"{loss:.4f}", refresh=False)
            bar.update()

        found = fit(
            learned, large.train(), learning.loss, learning.batches(),
            steps=learning.steps, learning_rate=learning.learning_rate,
            warmup=min(method.warmup, learning.steps // 2), on_step=on_step,
        )  # fmt: skip
    operator.load_state_dict(learned.state_dict())
    return operator, list(found.losses)


def _like(large: dict[str, Any], network: nn.Module, dtype: torch.dtype) -> dict[str, Tensor]:
    """Return what is to be written, without values: the first name of tensors that are shared."""
    network = network if _is_meta(network) else build(large, "meta")
    return {
        name: tensor.to("meta", dtype if _is_real(tensor) else tensor.dtype)
        for name, tensor in held(network).items()
    }


def _write(
    request: Request,
    operator: Operator,
    like: dict[str, Tensor],
    dtype: torch.dtype,
    part: Path,
    is_folder: bool,
) -> None:
    """Write the weights of the large network, and what its users load with them."""
    own = torch.float32 if operator.coefficients else dtype  # as it was learned with
    if operator.uses_built and _available() < (needed := _size(like)):
        raise ValueError(
            f"method {request.method.name!r} leaves parts of the large network as it was built, "
            f"which takes {_bytes(needed)} of memory, and {_bytes(_available())} are free; use a "
            "method that takes all from the small one, such as lemon"
        )
    built = _built(request.large, own, request.seed) if operator.uses_built else None
    tensors = _tensors(operator, built, like)
    if is_folder:
        part.mkdir()
        source = Source.of(request.small["weights"]).path if request.small.get("weights") else None
        _write_configuration(request.large, dtype, part, source)
        write_shards(part, like, tensors)
    elif request.out.suffix == ".safetensors":
        write_safetensors(part, like, tensors)
    elif request.out.suffix in TORCH:
        torch.save(_whole(request.large, dict(tensors)), part)
    else:
        assert request.checkpoint is not None
        torch.save(_checkpoint(request, dict(tensors)), part)


def _tensors(
    operator: Operator, built: nn.Module | None, like: dict[str, Tensor]
) -> Iterator[tuple[str, Tensor]]:
    """Grow all tensors, with a progress bar; those without a small one stay as they were built."""
    left = dict(like)
    own = {} if built is None else held(built)
    with tqdm(desc="Growing", total=len(like), unit="tensor") as bar:
        for name, tensor in operator.tensors(built):
            if left.pop(name, None) is not None:
                bar.update()
                yield name, tensor.to(like[name].dtype)
        for name in left:
            bar.update()
            yield name, own[name].to(like[name].dtype)


def _built(large: dict[str, Any], dtype: torch.dtype, seed: int) -> nn.Module:
    """Build a network with random weights, in its precision from the start."""
    with torch.random.fork_rng(devices=[]), _default(dtype):
        torch.default_generator.manual_seed(seed)
        return build(large)


@contextmanager
def _default(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def _whole(large: dict[str, Any], tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return a whole state dict, in which shared tensors have all their names."""
    first: dict[Tensor, Tensor] = {}
    state = build(large, "meta").state_dict(keep_vars=True)
    return {name: first.setdefault(t, tensors.get(name, t)) for name, t in state.items()}


def _write_configuration(
    large: dict[str, Any], dtype: torch.dtype, folder: Path, source: Path | None
) -> None:
    """Write `config.json`, and copy the small files that stand beside the small network."""
    network: Any = build(large, "meta")
    network.config.architectures = [type(network).__name__]
    network.config.dtype = dtype
    network.config.save_pretrained(folder)
    if network.can_generate():
        network.generation_config.save_pretrained(folder)
    for file in sorted(source.iterdir()) if source is not None and source.is_dir() else ():
        if file.suffix in COPIED and file.name not in OWN and not file.name.endswith(".index.json"):
            shutil.copyfile(file, folder / file.name)


def _checkpoint(request: Request, tensors: dict[str, Tensor]) -> dict[str, Any]:
    """Return a weights-only Lightning checkpoint of the module with the large network."""
    assert request.checkpoint is not None
    content = read_checkpoint(request.checkpoint)
    prefix = str(Source.of(request.small["weights"]).prefix)
    others = {n: t for n, t in content["state_dict"].items() if not n.startswith(prefix)}
    whole = _whole(request.large, tensors)
    kept = {key: content[key] for key in ("pytorch-lightning_version",) if key in content}
    return {
        **kept,
        "epoch": 0,
        "global_step": 0,
        "state_dict": {**others, **{f"{prefix}{name}": t for name, t in whole.items()}},
        "hyper_parameters": {**content["hyper_parameters"], prefix[:-1]: request.large},
    }


# Measuring ------------------------------------------------------------------------------------


def _measured(request: Request, pair: Pair, operator: Operator, dtype: torch.dtype) -> Change:
    """Measure how much what was written differs from the small network."""
    if pair.large_calls is not None:
        return Change(None, why="the large network is called with other inputs")
    trained = {**request.large, "weights": {"path": str(request.out)}}
    if request.out.suffix == ".ckpt":
        trained["weights"]["prefix"] = Source.of(request.small["weights"]).prefix
    if not _is_meta(pair.small) and not _is_meta(pair.large):
        return compare(operator, pair.small.eval(), sized(trained).eval(), pair.calls)
    needed = _size(_like(request.large, pair.large, dtype))
    if _available() < 1.1 * needed:
        return Change(None, why=f"the large network needs {_bytes(needed)} of memory")

    def built(description: dict[str, Any]) -> Callable[[], nn.Module]:
        def build_in_dtype() -> nn.Module:
            with _default(dtype):
                return build(description)

        return build_in_dtype

    return compare_in_turn(operator, built(request.small), built(trained), pair.calls)


def _available() -> float:
    """Return how many bytes of memory can still be used; infinite if the system does not tell."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return math.inf
    found = [line.split()[1] for line in lines if line.startswith("MemAvailable:")]
    return 1024 * float(found[0]) if found else math.inf


def _check_room(out: Path, like: dict[str, Tensor]) -> None:
    needed = _size(like)
    room = shutil.disk_usage(out.parent).free
    if room < needed:
        raise ValueError(
            f"the large network needs {_bytes(needed)} on the disk, and {out.parent} has "
            f"{_bytes(room)}; make room, or write it in another --dtype or place"
        )


def _size(tensors: dict[str, Tensor]) -> int:
    return sum(tensor.nbytes for tensor in tensors.values())


def _is_meta(network: nn.Module) -> bool:
    return any(parameter.is_meta for parameter in network.parameters())


def _is_real(tensor: Tensor) -> bool:
    return tensor.is_floating_point()


def _bytes(count: float) -> str:
    return f"{count / 2**30:.1f} GiB"
