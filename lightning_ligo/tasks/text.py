"""Windows of bytes from text files, for a language model; a token is a byte."""

import glob
import sysconfig
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from lightning_ligo.tasks.order import OrderedDataModule, generator

MASK = 256  # the token after the 256 bytes
NOT_THE_LIBRARY = {"site-packages", "dist-packages", "__pycache__"}
TESTS = {"test", "tests", "idle_test"}


class ByteWindows(Dataset[dict[str, Tensor]]):
    """Text cut into windows of `length` bytes, without the rest.

    An item is (window, epoch), and gives `input_ids` and `labels`, both (length) int64. For a
    causal model (`mask` 0) both are the bytes. For a masked model a share `mask` of the bytes,
    drawn by seed, epoch and window, is replaced by token 256, and all other labels are -100.
    """

    def __init__(self, text: bytes, length: int, mask: float = 0.0, seed: int = 0) -> None:
        windows = len(text) // length
        self.tokens = torch.frombuffer(bytearray(text), dtype=torch.uint8)[: windows * length]
        self.tokens = self.tokens.view(windows, length)
        self.mask = mask
        self.seed = seed

    def __len__(self) -> int:
        return len(self.tokens)

    def __getitem__(self, key: tuple[int, int]) -> dict[str, Tensor]:
        window, epoch = key
        tokens = self.tokens[window].long()
        if self.mask == 0:
            return {"input_ids": tokens, "labels": tokens}
        random = generator(self.seed, epoch, window)
        masked = torch.rand(len(tokens), generator=random) < self.mask
        return {
            "input_ids": tokens.masked_fill(masked, MASK),
            "labels": tokens.masked_fill(~masked, -100),
        }


class TextDataModule(OrderedDataModule):
    """Windows of bytes from text files, split by file into train, validation and test.

    A batch is a dict of `input_ids` and `labels`, both (batch_size, window) int64; a token is a
    byte. The split is always the same for the same files.

    Args:
        files: a folder, read for `*.txt` at any depth, or a pattern such as `books/**/*.md`.
        window: bytes in a window.
        batch_size: windows in a batch.
        validation: the share of files to validate on.
        test: the share of files to test on.
        validation_windows: most windows to validate on, evenly spaced in the validation files.
        mask: 0 for a causal model; for a masked one the share of bytes that token 256 replaces.
        num_workers: processes that load data; the text is in memory, 0 is fastest.
        seed: of the order and the masks.
    """

    def __init__(
        self,
        files: str,
        window: int = 128,
        batch_size: int = 32,
        validation: float = 0.05,
        test: float = 0.05,
        validation_windows: int | None = None,
        mask: float = 0.0,
        num_workers: int = 0,
        seed: int = 0,
    ) -> None:
        super().__init__(batch_size, num_workers, seed)
        self.files = files
        self.window = window
        self.validation = validation
        self.test_share = test
        self.validation_windows = validation_windows
        self.mask = mask
        self._texts: dict[str, bytes] = {}

    def find_files(self) -> list[Path]:
        """Return the files to read, sorted; raise ValueError if there are none."""
        if Path(self.files).is_dir():
            found = sorted(Path(self.files).rglob("*.txt"))
        else:
            found = sorted(Path(name) for name in glob.glob(self.files, recursive=True))
        if not found:
            raise ValueError(
                f"no text file found at {self.files!r}; give a folder that has *.txt files or a "
                "pattern such as 'books/**/*.md'"
            )
        return found

    def setup(self, stage: str) -> None:
        parts = split_files(self.find_files(), self.validation, self.test_share)
        for part, files in zip(("training", "validation", "test"), parts, strict=True):
            self._texts[part] = b"".join(file.read_bytes() for file in files)
            self._windows(part)

    def _windows(self, part: str) -> ByteWindows:
        text = self._texts[part]
        windows = ByteWindows(text, self.window, self.mask, self.seed)
        if not len(windows) and (text or part == "training"):
            raise ValueError(
                f"the {part} files hold {len(text)} bytes, less than one window of {self.window}; "
                "give more text or a smaller window"
            )
        return windows

    def train_dataloader(self) -> DataLoader:
        return self.shuffled(self._windows("training"))

    def val_dataloader(self) -> DataLoader:
        return self.in_order(self._windows("validation"), self.validation_windows)

    def test_dataloader(self) -> DataLoader:
        return self.in_order(self._windows("test"))


class PythonSourceDataModule(TextDataModule):
    """Windows of bytes from the standard library of the running Python, split by file.

    Batches and options are those of TextDataModule. Versions of Python have different texts, so
    compare results of the same version only.

    Args:
        tests: whether to read the library's test folders too, which doubles the text.
        options: the options of TextDataModule, without its files.
    """

    def __init__(self, tests: bool = False, **options: Any) -> None:
        super().__init__(files=sysconfig.get_paths()["stdlib"], **options)
        self.tests = tests

    def find_files(self) -> list[Path]:
        """Return the source files, sorted; raise ValueError if Python has no source."""
        library = Path(self.files)
        unwanted = NOT_THE_LIBRARY if self.tests else NOT_THE_LIBRARY | TESTS
        found = sorted(
            file
            for file in library.rglob("*.py")
            if unwanted.isdisjoint(file.relative_to(library).parts)
        )
        if not found:
            raise ValueError(
                f"no Python source found in the standard library's folder {self.files!r}; some "
                "installations have it compiled or zipped only: use another Python, or "
                "TextDataModule with your own files"
            )
        return found


def split_files(
    files: Sequence[Path], validation: float, test: float
) -> tuple[list[Path], list[Path], list[Path]]:
    """Split files into train, validation and test, always the same way for the same files.

    A share above 0 is at least one file.

    Raises:
        ValueError: if no file is left to train on.
    """
    val_count, test_count = (
        max(1, round(share * len(files))) if share > 0 else 0 for share in (validation, test)
    )
    train_count = len(files) - val_count - test_count
    if train_count < 1:
        raise ValueError(
            f"{len(files)} files cannot be split by file into training, validation (share "
            f"{validation}) and test (share {test}) files; give more files or smaller shares"
        )
    order = torch.randperm(len(files), generator=generator(0))
    train, val, test_part = (
        [files[index] for index in sorted(part.tolist())]
        for part in order.split([train_count, val_count, test_count])
    )
    return train, val, test_part
