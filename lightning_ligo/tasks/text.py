"""Windows of tokens from text files, for a language model; a token is a byte by default."""

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


class TokenWindows(Dataset[dict[str, Tensor]]):
    """Windows of tokens, all of one length: a tensor (windows, length), or a sequence of tensors.

    An item is (window, epoch), and gives `input_ids` and `labels`, both (length) int64. For a
    causal model (`mask` 0) both are the tokens. For a masked model a share `mask` of the tokens,
    drawn by seed, epoch and window, is replaced by `mask_token`, and all other labels are -100.
    """

    def __init__(
        self, windows: Any, mask: float = 0.0, seed: int = 0, mask_token: int = MASK
    ) -> None:
        self.windows = windows
        self.mask = mask
        self.seed = seed
        self.mask_token = mask_token

    def __len__(self) -> int:
        return len(self.windows)

    def __getitem__(self, key: tuple[int, int]) -> dict[str, Tensor]:
        window, epoch = key
        tokens = self.windows[window].long()
        if self.mask == 0:
            return {"input_ids": tokens, "labels": tokens}
        random = generator(self.seed, epoch, window)
        masked = torch.rand(len(tokens), generator=random) < self.mask
        return {
            "input_ids": tokens.masked_fill(masked, self.mask_token),
            "labels": tokens.masked_fill(~masked, -100),
        }


class TextDataModule(OrderedDataModule):
    """Windows of tokens from text files, split by file into train, validation and test.

    A batch is a dict of `input_ids` and `labels`, both (batch_size, window) int64. The split is
    always the same for the same files.

    Args:
        files: a folder, read for `*.txt` at any depth, or a pattern such as `books/**/*.md`.
        window: tokens in a window.
        batch_size: windows in a batch.
        validation: the share of files to validate on.
        test: the share of files to test on.
        validation_windows: most windows to validate on, evenly spaced in the validation files.
        mask: 0 for a causal model; for a masked one the share of tokens that are replaced, by token
            256 or by the tokenizer's own mask.
        num_workers: processes that load data; the text is in memory, 0 is fastest.
        seed: of the order and the masks.
        tokenizer: a folder, or a name on the hub, of a tokenizer of transformers; by default a
            token is a byte.
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
        tokenizer: str | None = None,
    ) -> None:
        super().__init__(batch_size, num_workers, seed)
        self.tokenizer = tokenizer
        self.files = files
        self.window = window
        self.validation = validation
        self.test_share = test
        self.validation_windows = validation_windows
        self.mask = mask
        self._tokens: dict[str, Tensor] = {}
        self._mask_token = MASK

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
            self._tokens[part] = self._read(files)
            self._windows(part)

    def _read(self, files: Sequence[Path]) -> Tensor:
        """Return the tokens of files, one after the other."""
        if self.tokenizer is None:
            text = b"".join(file.read_bytes() for file in files)
            return torch.frombuffer(bytearray(text), dtype=torch.uint8) if text else torch.empty(0)
        tokenizer = tokenizer_named(self.tokenizer)
        if self.mask:
            self._mask_token = mask_of(tokenizer, self.tokenizer, self.mask)
        texts = [file.read_text(errors="replace") for file in files]
        ids = tokenizer(texts, add_special_tokens=False)["input_ids"] if texts else []
        return torch.tensor([token for text in ids for token in text], dtype=torch.int32)

    def _windows(self, part: str) -> TokenWindows:
        tokens = self._tokens[part]
        windows = TokenWindows(cut(tokens, self.window), self.mask, self.seed, self._mask_token)
        if not len(windows) and (len(tokens) or part == "training"):
            unit = "bytes" if self.tokenizer is None else "tokens"
            raise ValueError(
                f"the {part} files hold {len(tokens)} {unit}, less than one window of "
                f"{self.window}; give more text or a smaller window"
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


def cut(tokens: Tensor, length: int) -> Tensor:
    """Cut tokens into windows (windows, length), without the rest."""
    windows = len(tokens) // length
    return tokens[: windows * length].view(windows, length)


def mask_of(tokenizer: Any, name: str, mask: float) -> int:
    """Return the token that masks others; raise ValueError if there is none."""
    token: int | None = tokenizer.mask_token_id
    if token is None:
        raise ValueError(
            f"the tokenizer {name} has no mask token, so it is not one of a masked model; give "
            f"mask=0, got {mask}"
        )
    return token


def tokenizer_named(name: str) -> Any:
    """Return a tokenizer of transformers; raise ValueError if there is none."""
    try:
        from transformers import AutoTokenizer, logging

        verbosity = logging.get_verbosity()
        logging.set_verbosity_error()  # a text longer than a window is no error here
        try:
            return AutoTokenizer.from_pretrained(name)
        finally:
            logging.set_verbosity(verbosity)
    except Exception as error:  # of any kind: a missing package, folder or file
        raise ValueError(
            f"there is no tokenizer {name}: {type(error).__name__}: {error}; give a folder that "
            "its save_pretrained has written, or None for bytes"
        ) from error


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
