"""Data of your own text files, read as bytes."""

import glob
from pathlib import Path

from lightning.pytorch import LightningDataModule
from torch.utils.data import DataLoader

from lightning_ligo.tasks.order import EpochOrder
from lightning_ligo.tasks.windows import ByteWindows, split_files


class TextDataModule(LightningDataModule):
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
        super().__init__()
        self.files = files
        self.window = window
        self.batch_size = batch_size
        self.validation = validation
        self.test_share = test
        self.validation_windows = validation_windows
        self.mask = mask
        self.num_workers = num_workers
        self.seed = seed
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
        windows = self._windows("training")
        return DataLoader(
            windows,
            batch_size=self.batch_size,
            sampler=EpochOrder(windows, self.seed),
            drop_last=len(windows) >= self.batch_size,
            num_workers=self.num_workers,
        )

    def val_dataloader(self) -> DataLoader:
        return self._in_order(self._windows("validation"), self.validation_windows)

    def test_dataloader(self) -> DataLoader:
        return self._in_order(self._windows("test"))

    def predict_dataloader(self) -> DataLoader:
        return self.test_dataloader()

    def _in_order(self, windows: ByteWindows, most: int | None = None) -> DataLoader:
        count = len(windows) if most is None else min(most, len(windows))
        evenly = [(number * len(windows) // count, 0) for number in range(count)]
        return DataLoader(
            windows, batch_size=self.batch_size, sampler=evenly, num_workers=self.num_workers
        )
