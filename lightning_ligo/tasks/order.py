"""A random order and random changes of items that depend only on seed, epoch and item.

So a resumed run sees exactly the batches of an uninterrupted one, with any number of workers and
whatever else draws random numbers.
"""

from collections.abc import Iterator, Sized

import torch
from torch import Generator
from torch.utils.data import Sampler


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
