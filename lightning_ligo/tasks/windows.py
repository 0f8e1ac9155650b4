"""Text files as windows of bytes for a language model; a token is a byte."""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.data import Dataset

from lightning_ligo.tasks.order import generator

MASK = 256  # the token after the 256 bytes


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
