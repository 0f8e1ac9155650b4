"""Write the weights of a network as their users load them: a file, or a folder of Hugging Face."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lightning_ligo.networks.libraries import installed
from lightning_ligo.networks.weights import INDEX

TORCH = (".pt", ".pth", ".bin")
SHARD = "5GB"
"""Most bytes of a file in a folder of Hugging Face."""

_NAMES = {
    torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16",
    torch.int64: "I64", torch.int32: "I32", torch.int16: "I16", torch.int8: "I8",
    torch.uint8: "U8", torch.bool: "BOOL", torch.complex64: "C64",
}  # fmt: skip
"""Names of dtypes in the header of a safetensors file."""


def save(network: nn.Module, out: str | Path) -> None:
    """Save a network, such as a grown one, where its users load it from.

    Args:
        network: the network.
        out: a file `.safetensors`, `.pt`, `.pth` or `.bin`, for its state dict, as
            `timm.create_model(checkpoint_path=...)` and `load_state_dict` read it; or a folder for
            a network of transformers, as `from_pretrained` reads it.

    Raises:
        FileExistsError: if there is something at ``out``.
        ValueError: for another kind of file, and for a folder if it is no network of transformers.

    Example:
        >>> import tempfile
        >>> file = Path(tempfile.mkdtemp(), "linear.pth")
        >>> save(nn.Linear(2, 3), file)
        >>> sorted(torch.load(file))
        ['bias', 'weight']
    """
    out = free(out)
    is_folder = check_kind(out, network)
    with placed(out) as part:
        if is_folder:
            network.save_pretrained(part)  # type: ignore[operator]
        elif out.suffix in TORCH:
            torch.save(network.state_dict(), part)
        else:
            tensors = held(network)
            write_safetensors(part, tensors, tensors.items())


def free(out: str | Path) -> Path:
    """Return the path of something to be written; raise an error if it cannot be."""
    out = Path(out).expanduser()
    if out.exists():
        raise FileExistsError(f"there is something at {out}; give another name")
    if not out.parent.is_dir():
        raise ValueError(f"the folder {out.parent} for {out.name} does not exist")
    return out


def check_kind(out: Path, network: object) -> bool:
    """Return whether ``out`` is a folder; raise ValueError if it does not fit the network."""
    if out.suffix in (".safetensors", *TORCH):
        return False
    if not hasattr(network, "save_pretrained") or out.suffix:
        raise ValueError(
            f"{type(network).__name__} cannot be saved as {out}: expected the suffix .safetensors, "
            f"{', '.join(TORCH)}, or for a network of transformers a folder, without a suffix"
        )
    return True


@contextmanager
def placed(out: Path) -> Iterator[Path]:
    """Give a path to write a file or folder to; in the end all of it is at ``out``, or nothing."""
    part = out.with_name(f".{out.name}.part")
    try:
        yield part
        os.replace(part, out)
    except BaseException:
        shutil.rmtree(part) if part.is_dir() else part.unlink(missing_ok=True)
        raise


def held(network: nn.Module) -> dict[str, Tensor]:
    """Return parameters and persistent buffers, the first name of those that share a tensor."""
    first: dict[Tensor, str] = {}
    for name, tensor in network.state_dict(keep_vars=True).items():
        first.setdefault(tensor, name)
    return {name: tensor.detach() for tensor, name in first.items()}


def write_safetensors(
    file: Path, wanted: Mapping[str, Tensor], tensors: Iterable[tuple[str, Tensor]]
) -> None:
    """Write one file; ``wanted`` has the shapes and dtypes of all ``tensors``, in any order."""
    with _Writer(file, wanted) as writer:
        for name, tensor in tensors:
            writer.write(name, tensor)


def write_shards(
    folder: Path, wanted: Mapping[str, Tensor], tensors: Iterable[tuple[str, Tensor]]
) -> None:
    """Write the files of a folder of Hugging Face, and their index if there are several."""
    split = installed("huggingface_hub").split_state_dict_into_shards_factory(
        dict(wanted),
        get_storage_size=lambda tensor: tensor.nbytes,
        filename_pattern="model{suffix}.safetensors",
        max_shard_size=SHARD,
    )
    with ExitStack() as stack:
        writers = {
            file: stack.enter_context(
                _Writer(folder / file, {name: wanted[name] for name in names})
            )
            for file, names in split.filename_to_tensors.items()
        }
        for name, tensor in tensors:
            writers[split.tensor_to_filename[name]].write(name, tensor)
    if split.is_sharded:
        index = {"metadata": split.metadata, "weight_map": split.tensor_to_filename}
        (folder / f"model.safetensors{INDEX}").write_text(json.dumps(index, indent=2))


class _Writer:
    """Writes a safetensors file one tensor at a time, which the library does not do.

    The format: the length of the header in 8 bytes, the header as JSON, then all tensors.
    """

    def __init__(self, path: Path, wanted: Mapping[str, Tensor]) -> None:
        self._wanted = dict(wanted)
        header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
        self._start: dict[str, int] = {}
        end = 0
        for name, tensor in wanted.items():
            self._start[name], end = end, end + tensor.nbytes
            header[name] = {
                "dtype": _NAMES[tensor.dtype],
                "shape": list(tensor.shape),
                "data_offsets": [self._start[name], end],
            }
        text = json.dumps(header).encode()
        text += b" " * (-len(text) % 8)
        self._file = path.open("wb")
        self._file.write(len(text).to_bytes(8, "little") + text)
        self._data = self._file.tell()

    def write(self, name: str, tensor: Tensor) -> None:
        like = self._wanted.pop(name)
        assert tensor.shape == like.shape, name
        self._file.seek(self._data + self._start[name])
        flat = tensor.detach().to("cpu", like.dtype).contiguous().flatten()
        self._file.write(flat.view(torch.uint8).numpy().data)

    def __enter__(self) -> _Writer:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        self._file.close()
        assert kind is not None or not self._wanted, f"not written: {list(self._wanted)}"
