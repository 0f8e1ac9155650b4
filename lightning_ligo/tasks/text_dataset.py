"""Windows of tokens from a dataset of Hugging Face's library datasets, for a language model."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lightning_ligo.networks.libraries import of_recipes
from lightning_ligo.tasks.text import TextDataModule, TokenWindows, cut, mask_of, tokenizer_named

PARTS = {"training": "train", "validation": "validation", "test": "test"}


class TextDatasetDataModule(TextDataModule):
    """Windows of tokens from the texts of a dataset, on the hub or on the disk.

    Texts are tokenized once, a thousand at a time, and cut into windows without the rest; the
    windows stay on the disk, in the cache of `datasets`. The splits `validation` and `test` are
    taken from `train`, always the same way, where the dataset has none. Batches and options are
    those of TextDataModule; `num_workers` is also the number of processes that tokenize.

    Args:
        dataset: a name on the hub, or a folder that `Dataset.save_to_disk` or
            `DatasetDict.save_to_disk` has written.
        tokenizer: a folder, or a name on the hub, of a tokenizer of transformers.
        name: of a configuration of the dataset on the hub, such as `20231101.en`.
        column: the column that holds the texts.
        options: the options of TextDataModule, without its files.
    """

    def __init__(
        self,
        dataset: str,
        tokenizer: str,
        name: str | None = None,
        column: str = "text",
        **options: Any,
    ) -> None:
        super().__init__(files=dataset, tokenizer=tokenizer, **options)
        self.name = name
        self.column = column
        self._texts: dict[str, Any] = {}

    def prepare_data(self) -> None:
        """Download and tokenize the dataset, so that other ranks find it in the cache."""
        self.setup("fit")
        for part in PARTS:
            self._windows(part)

    def setup(self, stage: str) -> None:
        splits = _loaded(self.files, self.name)
        if self.column not in splits["train"].column_names:
            raise ValueError(
                f"the dataset {self.files} has no column {self.column!r}; it has: "
                f"{', '.join(splits['train'].column_names)}"
            )
        for split, share in (("validation", self.validation), ("test", self.test_share)):
            if split not in splits and share > 0:
                both = splits["train"].train_test_split(test_size=share, seed=0)
                splits["train"], splits[split] = both["train"], both["test"]
        self._texts = {part: splits.get(split) for part, split in PARTS.items()}

    def _windows(self, part: str) -> TokenWindows:
        texts, name = self._texts[part], str(self.tokenizer)
        tokenizer = tokenizer_named(name)
        mask_token = mask_of(tokenizer, name, self.mask) if self.mask else 0
        windows: Any = [] if texts is None else texts.map(
            _cut,
            batched=True,
            remove_columns=texts.column_names,
            fn_kwargs={"tokenizer": tokenizer, "column": self.column, "window": self.window},
            num_proc=self.num_workers if self.num_workers > 1 else None,
            desc="Tokenizing",
        )  # fmt: skip
        if texts is not None and not len(windows):
            raise ValueError(
                f"{len(texts)} texts of {self.files} hold less than one window of {self.window} "
                "tokens; give more text or a smaller window"
            )
        return TokenWindows(_Rows(windows), self.mask, self.seed, mask_token)


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
    tokens = torch.tensor([token for text in ids for token in text])
    return {"input_ids": cut(tokens, window).tolist()}


def _loaded(dataset: str, name: str | None) -> dict[str, Any]:
    """Return the splits of a dataset; raise ValueError if there is none to train on."""
    datasets = of_recipes("datasets", "TextDatasetDataModule", "datasets")
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
