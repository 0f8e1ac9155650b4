"""Change the datamodule of a run with the size of its network."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from lightning.pytorch.utilities.combined_loader import CombinedLoader
from lightning.pytorch.utilities.data import extract_batch_size
from torch import Tensor
from torch.utils._pytree import tree_map_only

from lightning_ligo.schedule import Growth
from lightning_ligo.trainer.lightning import (
    at_device,
    datamodule_of,
    forget_loaders,
    new_training_loader,
)


class DataStages:
    """Sets attributes of the datamodule as the growths say, and rebuilds its loaders."""

    def __init__(self, growths: Sequence[Growth]) -> None:
        self._growths = growths
        self._names = list(dict.fromkeys(name for each in growths for name in each.data or ()))
        self._base: dict[LightningDataModule, dict[str, Any]] = {}  # first values
        self.size = 0  # number of growths that the data has followed

    def check(self, trainer: Trainer) -> None:
        """Raise ValueError for attributes that the datamodule lacks, and for a run without one."""
        data = datamodule_of(trainer)
        if self._names and data is None:
            raise ValueError(
                f"the growths change {', '.join(self._names)} of the data, and the Trainer got "
                "loaders; give it a LightningDataModule"
            )
        for name in self._names:
            if name not in _values(data, name):
                raise ValueError(
                    f"a growth changes {name!r} of the data, and {type(data).__name__} has no such "
                    "attribute; add it, and read it in train_dataloader and val_dataloader"
                )

    def to(self, trainer: Trainer, size: int) -> None:
        """Set the data for this size; loaders are rebuilt when they are next needed."""
        data = datamodule_of(trainer)
        if data is None or not self._names:
            return
        self._set(data, size)
        self.size = size
        forget_loaders(trainer)

    def fits(self, size: int) -> bool:
        """Whether the data is that of a network after so many growths."""
        return self.size == size or not self._names

    def batches(
        self, trainer: Trainer, pl_module: LightningModule, done: int, batch: Any
    ) -> dict[int, Any]:
        """Return batches by size: of the present network (`done`) and of every change to come.

        The first is `batch`, if the data has that size. All are cut to the same number of items.
        """
        changes = [n for n, growth in enumerate(self._growths, 1) if growth.data and n > done]
        if not changes:
            return {done: batch}
        if self.size != done:  # a run that resumes where the data changes
            batch = self._first_batch(trainer, pl_module, done)
        found = {done: batch}
        found |= {number: self._first_batch(trainer, pl_module, number) for number in changes}
        lengths = {number: extract_batch_size(each) for number, each in found.items()}
        shortest = min(lengths.values())
        return {number: cut(each, lengths[number], shortest) for number, each in found.items()}

    def _first_batch(self, trainer: Trainer, pl_module: LightningModule, size: int) -> Any:
        data = datamodule_of(trainer)
        assert data is not None
        self._set(data, size)
        try:
            loader = new_training_loader(trainer)
            if not isinstance(loader, CombinedLoader):
                loader = CombinedLoader(loader, "max_size_cycle")
            batch, *_ = next(iter(loader))
        finally:
            self._set(data, self.size)
        return at_device(trainer, pl_module, batch)

    @contextmanager
    def of_size(self, trainer: Trainer, size: int) -> Iterator[None]:
        """Set the data for this size within the context."""
        before = self.size
        self.to(trainer, size)
        try:
            yield
        finally:
            self.to(trainer, before)

    def _set(self, data: LightningDataModule, size: int) -> None:
        now = {name: _values(data, name).get(name) for name in self._names}
        values = dict(self._base.setdefault(data, now))
        for growth in self._growths[:size]:
            values |= growth.data or {}
        for name, value in values.items():
            if hasattr(data, name):
                setattr(data, name, value)
            if name in data.hparams:
                data.hparams[name] = value


def _values(data: Any, name: str) -> Mapping[str, Any]:
    """Return the mapping that holds the attribute: of the datamodule, or its hyperparameters."""
    return {name: getattr(data, name)} if hasattr(data, name) else data.hparams


def cut(batch: Any, length: int, shortest: int) -> Any:
    """Return the first items of a batch of this length."""

    def first(tensor: Tensor) -> Tensor:
        cuts = tensor.dim() and len(tensor) == length and tensor.layout == torch.strided
        return tensor[:shortest] if cuts else tensor

    return tree_map_only(Tensor, first, batch)
