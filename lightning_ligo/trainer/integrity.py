"""Check that a checkpoint is undamaged and contains no code."""

from __future__ import annotations

import enum
import io
import pickle
import re
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import torch
from torch.distributed.checkpoint.filesystem import _metadata_fn as LIST
from torch.distributed.checkpoint.filesystem import _StorageInfo
from torch.distributed.checkpoint.metadata import BytesStorageMetadata, Metadata

METADATA = "meta.pt"
"""The file in a folder checkpoint of `ModelParallelStrategy` with everything but tensors."""


@contextmanager
def intact(path: str | Path, weights_only: bool | None = None) -> Iterator[None]:
    """Check a local checkpoint, a file or a `ModelParallelStrategy` folder, before it is loaded.

    Load it inside the context. All checksums are compared, which reads the checkpoint once, because
    torch loads changed numbers without an error. Only the list of the tensors in a folder has no
    checksum. Torch unpickles that list and a folder's numbers whatever `weights_only` is. Unless it
    is False, both are read safely first, and refused if they contain anything else.

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
    with path.open("rb") as file:
        _check_sums(path, file, "it")


def _check_sums(path: Path, file: IO[bytes], what: str) -> None:
    """Refuse a zip file of torch.save whose content does not match its checksums."""
    try:
        changed = zipfile.ZipFile(file).testzip()
    except Exception as error:  # of any kind: a damaged zip file has wrong offsets
        raise _damaged(path, f"{what} is cut off, or no file of torch.save") from error
    if changed is not None:
        raise _damaged(path, f"{changed} in {what} is not as it was written")


def _check_folder(path: Path, weights_only: bool | None) -> None:
    for name in (METADATA, LIST):
        if not (path / name).is_file():
            raise _damaged(path, f"it has no file {name}, which is written last")
    _check_file(path / METADATA)
    for name, info, is_number in _listed(path, weights_only):
        _check_item(path, name, info, unpickled=is_number and weights_only is not False)


def _listed(path: Path, weights_only: bool | None) -> list[tuple[str, _StorageInfo, bool]]:
    """Read the list of a folder: for every entry its name, place, and whether it is a number."""
    try:
        with (path / LIST).open("rb") as file:
            metadata = (pickle.Unpickler if weights_only is False else _Listed)(file).load()
        kinds = metadata.state_dict_metadata
        return [
            (index.fqn, info, isinstance(kinds[index.fqn], BytesStorageMetadata))
            for index, info in metadata.storage_data.items()
        ]
    except (ImportError, OSError):
        raise
    except Exception as error:  # of any kind: the pickle is damaged
        if str(error).startswith("GLOBAL"):
            raise
        raise _damaged(path, f"its file {LIST} is cut off, or no list of tensors") from error


def _check_item(path: Path, name: str, info: _StorageInfo, *, unpickled: bool) -> None:
    """Refuse a tensor or a number that does not match its checksums."""
    part = path / info.relative_path
    if not part.is_file():
        raise _damaged(path, f"it has no file {part.name}")
    if part.stat().st_size < info.offset + info.length:
        raise _damaged(path, f"its file {part.name} is cut off")
    with part.open("rb") as file:
        file.seek(info.offset)
        held = io.BytesIO(file.read(info.length))
    _check_sums(path, held, f"{name} of its file {part.name}")
    if unpickled:
        held.seek(0)
        torch.load(held, weights_only=True)


def _damaged(path: Path, how: str) -> ValueError:
    return ValueError(f"the checkpoint {path} is damaged: {how}; resume from another one")


class _Listed(pickle.Unpickler):
    """Reads the list of the tensors in a folder, as torch writes it, and nothing else."""

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
        if (module, name) == ("builtins", "getattr"):
            return _member
        raise pickle.UnpicklingError(f"GLOBAL {module}.{name}")


def _member(kind: Any, name: str) -> Any:
    """Return a member of an enumeration, as Python 3.11.0 to 3.11.3 write one."""
    if isinstance(kind, type) and issubclass(kind, enum.Enum):
        return kind[name]
    raise pickle.UnpicklingError("GLOBAL builtins.getattr")
