"""A random order and random changes of items that depend only on seed, epoch and item.

So a resumed run sees exactly the batches of an uninterrupted one, with any number of workers and
whatever else draws random numbers.
"""

from collections.abc import Iterator, Sized
from typing import Any

import torch
from lightning.pytorch import LightningDataModule
from torch import Generator
from torch.utils.data import DataLoader, Sampler


def generator(*key: int) -> Generator:
    """Return a random generator for a key such as (seed, epoch, item)."""
    state = 0
    for part in key:
        state = (state * 6364136223846793005 + part + 1442695040888963407) % 2**63
    return Generator().manual_seed(state)


class EpochOrder(Sampler[tuple[int, int]]):
    """Yields every item once, as (item, epoch), in a new order every epoch.

    Lightning calls `set_epoch` at the start of an epoch; a plain loop must do so itself.
    """

    def __init__(self, items: Sized, seed: int) -> None:
        self.items = items
        self.seed = seed
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.items)

    def __iter__(self) -> Iterator[tuple[int, int]]:
        order = torch.randperm(len(self), generator=generator(self.seed, self.epoch)).tolist()
        return ((item, self.epoch) for item in order)


class OrderedDataModule(LightningDataModule):
    """Loads datasets whose items are given by (item, epoch), such as random crops."""

    def __init__(self, batch_size: int, num_workers: int, seed: int) -> None:
        super().__init__()
        self.batch_size = batch_size
        self.num_workers = num_workers
        self.seed = seed

    def shuffled(self, items: Any, **options: Any) -> DataLoader:
        """Load whole batches, in a new order every epoch."""
        order = EpochOrder(items, self.seed)
        return DataLoader(
            items,
            batch_size=self.batch_size,
            sampler=order,
            drop_last=len(order) >= self.batch_size,
            num_workers=self.num_workers,
            **options,
        )

    def in_order(self, items: Any, most: int | None = None) -> DataLoader:
        """Load items in their own order, as in epoch 0; `most` of them, evenly spaced."""
        count = len(items) if most is None else min(most, len(items))
        evenly = [(number * len(items) // count, 0) for number in range(count)]
        return DataLoader(
            items, batch_size=self.batch_size, sampler=evenly, num_workers=self.num_workers
        )

    def predict_dataloader(self) -> DataLoader:
        return self.test_dataloader()
