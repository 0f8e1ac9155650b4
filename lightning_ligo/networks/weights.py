"""Trained weights in files: open them, and load them into a network.

`weights` of a description is a path, or a dict with these keys:

    path        a file .safetensors, .ckpt, .pt, .pth or .bin, an index of shards (.index.json), or
                a folder of `save_pretrained`
    key         the entry of the file that holds them, if there are several: `state_dict_ema`
    prefix      what the names in the file begin with, if that is not clear: `teacher.`
    leave_out   patterns of names that stay as the network was built: `head.*`
"""

from __future__ import annotations

import functools
import hashlib
import importlib
import json
import pickle
import re
import zipfile
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

SHOWN = 6  # names in one list of an error
INDEX = ".index.json"
_IN_A_FOLDER = tuple(
    f"{stem}{index}" for stem in ("model.safetensors", "pytorch_model.bin") for index in ("", INDEX)
)
_QUANTISED = (".absmax", ".quant_map", ".qweight", ".qzeros", ".SCB", ".weight_scale")
_ADAPTERS = (".lora_A.", ".lora_B.", ".lora_embedding_A")


@dataclass(frozen=True)
class Source:
    """Where the trained weights of a network are, see the top of this file."""

    path: Path
    key: str | None = None
    prefix: str | None = None
    leave_out: tuple[str, ...] = ()

    @classmethod
    def of(cls, weights: object) -> Source:
        """Read the `weights` of a description; raise ValueError if they are malformed."""
        given = {"path": weights} if isinstance(weights, str) else weights
        known = cls.__dataclass_fields__
        if not isinstance(given, Mapping) or not given.keys() <= known.keys() or not (
            isinstance(given.get("path"), str)
        ):  # fmt: skip
            raise ValueError(
                f"weights are a path, or a dict with path and, if needed, {', '.join(known)}; got "
                f"{weights!r}"
            )
        patterns = given.get("leave_out") or ()
        patterns = (patterns,) if isinstance(patterns, str) else tuple(patterns)
        path = Path(given["path"]).expanduser()
        return cls(path, given.get("key"), given.get("prefix"), patterns)

    def leaves_out(self, name: str) -> bool:
        return any(fnmatch(name, pattern) for pattern in self.leave_out)

    @property
    def files(self) -> list[Path]:
        """The files that hold the weights; raise ValueError if there are none."""
        path = self.path
        if path.is_dir():
            found = [path / name for name in _IN_A_FOLDER if (path / name).is_file()]
            if not found and (path / "adapter_config.json").is_file():
                raise ValueError(adapter_refused(path))
            if not found:
                raise ValueError(
                    f"the folder {path} has no weights; expected one of {', '.join(_IN_A_FOLDER)}"
                )
            path = found[0]
        if not path.is_file():
            raise ValueError(f"there are no weights at {path}")
        if not path.name.endswith(INDEX):
            return [path]
        shards = sorted(set(json.loads(path.read_text())["weight_map"].values()))
        if lacking := [name for name in shards if not (path.parent / name).is_file()]:
            raise ValueError(f"{path} lists shards that are not there: {_some(lacking)}")
        return [path.parent / name for name in shards]


def sha256_of(files: Iterable[Path]) -> str:
    """Return the SHA-256 of the contents of files, one after the other."""
    found = hashlib.sha256()
    for file in files:
        with file.open("rb") as content:
            while part := content.read(2**20):
                found.update(part)
    return found.hexdigest()


class Weights(Mapping[str, Tensor]):
    """The tensors of a source by name; each is read from its file when it is asked for.

    Raises:
        ValueError: for a file that is damaged, or holds more than tensors and plain data; for
            adapters and quantised weights.
    """

    def __init__(self, source: Source) -> None:
        self.source = source
        self._tensors: dict[str, Tensor] = {}  # of files of torch.save, which are mapped
        self._files: dict[str, Path] = {}  # of files of safetensors
        for file in source.files:
            if file.suffix == ".safetensors":
                self._files |= dict.fromkeys(_safetensors_names(file), file)
            else:
                self._tensors |= _state_dict(file, source.key)
        if any(part in name for name in self for part in _ADAPTERS):
            raise ValueError(adapter_refused(source.path))
        if any(name.endswith(_QUANTISED) for name in self):
            raise ValueError(_quantised(source.path))

    def __getitem__(self, name: str) -> Tensor:
        if name in self._tensors:
            return self._tensors[name].clone()
        with _safe_open(self._files[name]) as file:  # opened anew: what was read is not kept mapped
            tensor: Tensor = file.get_tensor(name).clone()
        return tensor

    def shape(self, name: str) -> torch.Size:
        """Return the shape of a tensor without reading it."""
        if name in self._tensors:
            return self._tensors[name].shape
        return torch.Size(self._shapes[name])

    @functools.cached_property
    def _shapes(self) -> dict[str, list[int]]:
        shapes: dict[str, list[int]] = {}
        for path in set(self._files.values()):
            with _safe_open(path) as file:
                names = [name for name, at in self._files.items() if at == path]
                shapes |= {name: file.get_slice(name).get_shape() for name in names}
        return shapes

    def __iter__(self) -> Iterator[str]:
        yield from (*self._tensors, *self._files)

    def __len__(self) -> int:
        return len(self._tensors) + len(self._files)


class Matched(Mapping[str, Tensor]):
    """Weights under the names that a network has for them.

    Names that share one tensor in the network need one of them in the file.

    Args:
        network: on any device, also on meta.
        weights: the tensors of a source.

    Raises:
        ValueError: listing the names that are missing, unexpected or of another shape.
    """

    def __init__(self, network: nn.Module, weights: Weights) -> None:
        self.weights = weights
        wanted = network.state_dict(keep_vars=True)
        self._names = self._named(network, wanted)

    def _named(self, network: nn.Module, wanted: Mapping[str, Tensor]) -> dict[str, str]:
        """Return the name in the file of every name of the network."""
        source, found = self.weights.source, self.weights
        prefix = source.prefix if source.prefix is not None else _prefix(wanted, found)
        stored = {name.removeprefix(prefix): name for name in found if name.startswith(prefix)}
        shared: dict[Tensor, list[str]] = {}
        for name, tensor in wanted.items():
            shared.setdefault(tensor, []).append(name)
        names: dict[str, str] = {}
        missing = []
        for group in shared.values():
            there = next((name for name in group if name in stored), None)
            if there is not None:
                names |= dict.fromkeys(group, stored[there])
            elif not all(map(source.leaves_out, group)):
                missing.append(group[0])
        names = {name: at for name, at in names.items() if not source.leaves_out(name)}
        unexpected = [n for n in stored if n not in wanted and not source.leaves_out(n)]
        shapes = [
            f"{name} ({_shape(found.shape(at))} there, {_shape(wanted[name].shape)} here)"
            for name, at in names.items()
            if found.shape(at) != wanted[name].shape
        ]
        if missing or unexpected or shapes:
            raise ValueError(_misfit(network, source, len(wanted), missing, unexpected, shapes))
        return names

    def __getitem__(self, name: str) -> Tensor:
        return self.weights[self._names[name]]

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


def opened(network: nn.Module, weights: object) -> Mapping[str, Tensor]:
    """Open the trained weights of a network, by its own names; see `Source` for ``weights``.

    A folder of `save_pretrained` whose names are not those of the network, as older versions of
    transformers wrote them, is read by `from_pretrained`.

    Raises:
        ValueError: for weights that are not there, cannot be read or do not fit.
    """
    source = Source.of(weights)
    config = source.path / "config.json"
    if config.is_file() and "quantization_config" in json.loads(config.read_text()):
        raise ValueError(_quantised(source.path))
    try:
        return Matched(network, Weights(source))
    except ValueError:
        if not config.is_file() or not hasattr(network, "from_pretrained"):
            raise
        if source.prefix or _foreign(network, config):
            raise
    return _from_pretrained(network, source)


def load(network: nn.Module, weights: object) -> None:
    """Load trained weights into a network, in its own precision, see `opened`."""
    held = network.state_dict(keep_vars=True)
    found = opened(network, weights)
    with torch.no_grad():
        for name in found:
            tensor = found[name]
            if held[name].is_floating_point() and not tensor.is_floating_point():
                raise ValueError(_quantised(Source.of(weights).path))
            held[name].copy_(tensor)


def _from_pretrained(network: Any, source: Source) -> dict[str, Tensor]:
    """Load a folder of `save_pretrained` by the class of the network, and check what was loaded."""
    loaded, info = type(network).from_pretrained(
        source.path, config=network.config, output_loading_info=True, ignore_mismatched_sizes=True,
        dtype="auto",
    )  # fmt: skip
    wanted = loaded.state_dict(keep_vars=True)
    differ = {name: sizes for name, *sizes in info["mismatched_keys"]}
    shapes = [
        f"{name} ({_shape(there)} there, {_shape(here)} here)"
        for name, (there, here) in differ.items()
        if not source.leaves_out(name)
    ]
    kept = [name for name in wanted if not source.leaves_out(name)]
    missing = [name for name in kept if name in info["missing_keys"] and name not in differ]
    unexpected = [name for name in info["unexpected_keys"] if not source.leaves_out(name)]
    if missing or unexpected or shapes:
        raise ValueError(_misfit(network, source, len(wanted), missing, unexpected, shapes))
    return {name: wanted[name].detach() for name in kept}


def _foreign(network: Any, config: Path) -> bool:
    """Whether a folder is of another type of network."""
    return bool(json.loads(config.read_text()).get("model_type") != network.config.model_type)


def _prefix(wanted: Collection[str], found: Collection[str]) -> str:
    """Return what the names in a file begin with, such as the attribute of a LightningModule."""
    if not wanted or any(name in found for name in wanted):
        return ""
    names = list(wanted)
    prefixes = [
        {name.removesuffix(own) for name in found if name.endswith(f".{own}")} for own in names
    ]
    everywhere = sorted(set.intersection(*prefixes) or set.union(*prefixes))
    if len(everywhere) > 1 and set.intersection(*prefixes):
        raise ValueError(
            f"several networks in the file have these names, under {', '.join(everywhere)}; give "
            "one as the prefix of the weights"
        )
    return max(everywhere, key=lambda p: sum(p in each for each in prefixes), default="")


def _state_dict(file: Path, key: str | None) -> dict[str, Tensor]:
    """Return the tensors of a file of torch.save by name."""
    content = read_checkpoint(file)
    if key is None and _is_state_dict(content):
        return dict(content)
    known = [name for name, entry in content.items() if _is_state_dict(entry)]
    chosen = known[0] if key is None and len(known) == 1 else key
    if chosen is None or chosen not in known:
        raise ValueError(
            f"{file} has {f'no state dict {key!r}' if key else f'{len(known)} state dicts'}; "
            f"expected one of {', '.join(map(str, known)) or 'tensors by name'}; give the key of "
            "the weights"
        )
    return dict(content[chosen])


def read_checkpoint(file: Path) -> dict[Any, Any]:
    """Read a file of torch.save without running code; tensors stay on the disk until used.

    Raises:
        ValueError: for a file that is damaged, or holds more than tensors and plain data.
    """
    if not file.is_file():
        raise ValueError(f"there is no file {file}")
    try:
        mapped = zipfile.is_zipfile(file)
        content = torch.load(file, map_location="cpu", weights_only=True, mmap=mapped)
    except pickle.UnpicklingError as error:
        found = re.search(r"GLOBAL (\S+)", str(error))
        if found is None:
            raise ValueError(f"{file} cannot be read: it is no file of torch.save") from error
        raise ValueError(
            f"{file} holds more than tensors and plain data ({found[1]}), and nothing of it was "
            "run; save its state_dict() alone"
        ) from error
    except Exception as error:
        raise ValueError(f"{file} cannot be read: {type(error).__name__}: {error}") from error
    if not isinstance(content, Mapping):
        raise ValueError(f"{file} holds {type(content).__name__}, expected tensors by name")
    return dict(content)


def _is_state_dict(content: object) -> bool:
    return (
        isinstance(content, Mapping)
        and bool(content)
        and all(isinstance(tensor, Tensor) for tensor in content.values())
    )


def _safe_open(file: Path) -> Any:
    return importlib.import_module("safetensors").safe_open(str(file), "pt")


def _safetensors_names(file: Path) -> list[str]:
    try:
        with _safe_open(file) as content:
            return list(content.keys())
    except ModuleNotFoundError as error:
        raise ValueError(
            "reading .safetensors needs the package safetensors, which is not installed: "
            "pip install safetensors"
        ) from error
    except Exception as error:
        raise ValueError(f"{file} cannot be read: {type(error).__name__}: {error}") from error


def _misfit(
    network: nn.Module,
    source: Source,
    wanted: int,
    missing: list[str],
    unexpected: list[str],
    shapes: list[str],
) -> str:
    lists = {"missing": missing, "unexpected": unexpected, "of another shape": shapes}
    lines = [f"{len(names)} {what}: {_some(names)}" for what, names in lists.items() if names]
    other = "; are they of another architecture?" if 2 * len(missing) > wanted else ""
    return (
        f"the weights at {source.path} do not fit {type(network).__name__}, which has {wanted}"
        f"{other}\n  "
        + "\n  ".join(lines)
        + "\nparameters that are to stay as they were built, such as a head of another size, are "
        "named by leave_out of the weights"
    )


def adapter_refused(path: Path) -> str:
    return (
        f"{path} holds an adapter (LoRA), not a whole network; merge it into its network first, by "
        "merge_and_unload() of peft, and save that"
    )


def _quantised(path: Path) -> str:
    return (
        f"{path} holds quantised weights, which cannot grow; take the weights that they were made "
        "from, in float32, float16 or bfloat16"
    )


def _shape(shape: Iterable[int]) -> str:
    return "x".join(map(str, shape)) or "scalar"


def _some(names: list[str]) -> str:
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more
