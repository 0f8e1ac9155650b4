"""Whether a checkpoint is whole, and holds nothing that would be run when it is loaded."""

from __future__ import annotations

import io
import pickle
import re
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch.distributed.checkpoint.filesystem import _metadata_fn as LIST
from torch.distributed.checkpoint.metadata import BytesStorageMetadata, Metadata

METADATA = "meta.pt"
"""Where a folder that `ModelParallelStrategy` writes has all but tensors."""


@contextmanager
def intact(path: str | Path, weights_only: bool | None = None) -> Iterator[None]:
    """Load a local checkpoint within: a file, or a folder that `ModelParallelStrategy` writes.

    The check sums of a file are computed, which reads it once, for torch itself loads changed
    numbers without a word. Of a folder all files must be there and as long as they were. Torch
    unpickles its list of tensors and its numbers whatever `weights_only` is; unless it is False,
    they are read by themselves before, and refused if they are more than that.

    Raises:
        ValueError: for a checkpoint that is damaged, or that would run code.
    """
    path = Path(path)
    try:
        if path.is_dir():
            _check_folder(path, weights_only)
        elif path.is_file():
            _check_file(path)
        yield
    except pickle.UnpicklingError as error:
        found = re.search(r"GLOBAL (\S+)", str(error))
        what = found[1] if found else str(error).splitlines()[0]
        raise ValueError(
            f"the checkpoint {path} holds more than tensors and plain data ({what}); nothing of it "
            "was run. Take another one, or give weights_only=False if you trust its source"
        ) from error


def _check_file(path: Path) -> None:
    try:
        with zipfile.ZipFile(path) as file:
            changed = file.testzip()
    except zipfile.BadZipFile as error:
        raise _damaged(path, "it is cut off, or no file of torch.save") from error
    if changed is not None:
        raise _damaged(path, f"{changed} in it is not as it was written")


def _check_folder(path: Path, weights_only: bool | None) -> None:
    for name in (METADATA, LIST):
        if not (path / name).is_file():
            raise _damaged(path, f"it has no file {name}, which is written last")
    _check_file(path / METADATA)
    try:
        with (path / LIST).open("rb") as file:
            metadata = (pickle.Unpickler if weights_only is False else _Listed)(file).load()
    except EOFError as error:
        raise _damaged(path, f"its file {LIST} is cut off") from error
    for index, info in metadata.storage_data.items():
        part = path / info.relative_path
        if not part.is_file():
            raise _damaged(path, f"it has no file {part.name}")
        if part.stat().st_size < info.offset + info.length:
            raise _damaged(path, f"its file {part.name} is cut off")
        numbers = isinstance(metadata.state_dict_metadata[index.fqn], BytesStorageMetadata)
        if numbers and weights_only is not False:
            with part.open("rb") as file:
                file.seek(info.offset)
                torch.load(io.BytesIO(file.read(info.length)), weights_only=True)


def _damaged(path: Path, how: str) -> ValueError:
    return ValueError(f"the checkpoint {path} is damaged: {how}; resume from another one")


class _Listed(pickle.Unpickler):
    """Reads what torch writes as the list of the tensors in a folder, and nothing else."""

    KNOWN = (
        "pathlib.PosixPath", "pathlib.WindowsPath", "torch.Size", "torch.serialization._get_layout",
        "torch.distributed.checkpoint.filesystem._StorageInfo",
    )  # fmt: skip

    def find_class(self, module: str, name: str) -> Any:
        if f"{module}.{name}" in self.KNOWN or module in ("torch", Metadata.__module__):
            found = super().find_class(module, name)
            own = getattr(found, "__module__", None) == Metadata.__module__
            if own or isinstance(found, torch.dtype) or f"{module}.{name}" in self.KNOWN:
                return found
        raise pickle.UnpicklingError(f"GLOBAL {module}.{name}")
