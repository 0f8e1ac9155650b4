"""Windows of tokens from a dataset of Hugging Face's library datasets, for a language model."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from lightning_ligo.tasks.order import OrderedDataModule
from lightning_ligo.tasks.text import TokenWindows, mask_of, tokenizer_named

PARTS = {"training": "train", "validation": "validation", "test": "test"}


class TextDatasetDataModule(OrderedDataModule):
    """Windows of tokens from the texts of a dataset, on the hub or on the disk.

    Texts are tokenized once, a thousand at a time, and cut into windows without the rest; the
    windows stay on the disk, in the cache of `datasets`. The splits `validation` and `test` are
    taken from `train`, always the same way, where the dataset has none. A batch is that of
    TextDataModule.

    Args:
        dataset: a name on the hub, or a folder that `Dataset.save_to_disk` or
            `DatasetDict.save_to_disk` has written.
        tokenizer: a folder, or a name on the hub, of a tokenizer of transformers.
        name: of a configuration of the dataset on the hub, such as `20231101.en`.
        column: the column that holds the texts.
        window: tokens in a window.
        batch_size: windows in a batch.
        validation: the share of `train` to validate on, where there is no split for it.
        test: the share of `train` to test on, where there is no split for it.
        validation_windows: most windows to validate on, evenly spaced.
        mask: 0 for a causal model; for a masked one the share of tokens that the tokenizer's mask
            replaces.
        num_workers: processes that tokenize, and processes that load windows.
        seed: of the order and the masks.
    """

    def __init__(
        self,
        dataset: str,
        tokenizer: str,
        name: str | None = None,
        column: str = "text",
        window: int = 128,
        batch_size: int = 32,
        validation: float = 0.01,
        test: float = 0.01,
        validation_windows: int | None = None,
        mask: float = 0.0,
        num_workers: int = 4,
        seed: int = 0,
    ) -> None:
        super().__init__(batch_size, num_workers, seed)
        self.dataset = dataset
        self.tokenizer = tokenizer
        self.name = name
        self.column = column
        self.window = window
        self.validation = validation
        self.test_share = test
        self.validation_windows = validation_windows
        self.mask = mask
        self._parts: dict[str, Any] = {}

    def prepare_data(self) -> None:
        """Download and tokenize the dataset, so that other ranks find it in the cache."""
        for part in PARTS:
            self._windows(self._split(part))

    def setup(self, stage: str) -> None:
        self._parts = {part: self._split(part) for part in PARTS}

    def _split(self, part: str) -> Any:
        """Return the texts of a part; None if there are none."""
        splits = _loaded(self.dataset, self.name)
        if self.column not in splits["train"].column_names:
            raise ValueError(
                f"the dataset {self.dataset} has no column {self.column!r}; it has: "
                f"{', '.join(splits['train'].column_names)}"
            )
        rest, shares = splits["train"], {"validation": self.validation, "test": self.test_share}
        for each, share in shares.items():
            if each in splits or share <= 0:
                continue
            both = rest.train_test_split(test_size=share, seed=0)
            rest, splits[each] = both["train"], both["test"]
        return rest if part == "training" else splits.get(PARTS[part])

    def _windows(self, texts: Any) -> TokenWindows:
        tokenizer, mask_token = tokenizer_named(self.tokenizer), 0
        if self.mask:
            mask_token = mask_of(tokenizer, self.tokenizer, self.mask)
        cut: Any = [] if texts is None else texts.map(
            _cut,
            batched=True,
            remove_columns=texts.column_names,
            fn_kwargs={"tokenizer": tokenizer, "column": self.column, "window": self.window},
            num_proc=self.num_workers if self.num_workers > 1 else None,
            desc="Tokenizing",
        )  # fmt: skip
        if texts is not None and not len(cut):
            raise ValueError(
                f"{len(texts)} texts of {self.dataset} hold less than one window of {self.window} "
                "tokens; give more text or a smaller window"
            )
        return TokenWindows(_Rows(cut), self.mask, self.seed, mask_token)

    def train_dataloader(self) -> DataLoader:
        windows = self._windows(self._parts["training"])
        return self.shuffled(windows, persistent_workers=self.num_workers > 0)

    def val_dataloader(self) -> DataLoader:
        return self.in_order(self._windows(self._parts["validation"]), self.validation_windows)

    def test_dataloader(self) -> DataLoader:
        return self.in_order(self._windows(self._parts["test"]))


class _Rows:
    """The rows `input_ids` of a dataset, as tensors."""

    def __init__(self, rows: Any) -> None:
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, row: int) -> Tensor:
        return torch.tensor(self.rows[row]["input_ids"])


def _cut(
    batch: dict[str, list[str]], tokenizer: Any, column: str, window: int
) -> dict[str, list[list[int]]]:
    ids = tokenizer(batch[column], add_special_tokens=False)["input_ids"]
    tokens = [token for text in ids for token in text]
    starts = range(0, len(tokens) - window + 1, window)
    return {"input_ids": [tokens[start : start + window] for start in starts]}


def _loaded(dataset: str, name: str | None) -> dict[str, Any]:
    """Return the splits of a dataset; raise ValueError if there is none to train on."""
    try:
        import datasets
    except ImportError as error:
        raise ValueError(
            "TextDatasetDataModule needs datasets, which is not installed; run: pip install "
            '"lightning-ligo[recipes]"'
        ) from error
    try:
        on_disk = Path(dataset).is_dir() and any(_saved(Path(dataset)))
        found = (
            datasets.load_from_disk(dataset) if on_disk else datasets.load_dataset(dataset, name)
        )
    except Exception as error:  # of any kind: a missing folder, network or configuration
        raise ValueError(
            f"there is no dataset {dataset}: {type(error).__name__}: {error}; give a name on the "
            "hub, or a folder that its save_to_disk has written"
        ) from error
    splits = dict(found) if isinstance(found, dict) else {"train": found}
    if "train" not in splits:
        raise ValueError(f"the dataset {dataset} has no split train; it has: {', '.join(splits)}")
    return splits


def _saved(folder: Path) -> Iterator[bool]:
    return ((folder / name).exists() for name in ("dataset_dict.json", "state.json"))
