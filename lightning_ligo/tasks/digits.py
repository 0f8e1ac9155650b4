"""scikit-learn's handwritten digits: 1,797 grey images of 8 x 8 pixels, shipped with it."""

import math

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset, TensorDataset

from lightning_ligo.networks.libraries import of_recipes
from lightning_ligo.tasks.order import OrderedDataModule, generator

VALIDATION, TEST = 270, 270


class DigitsDataModule(OrderedDataModule):
    """Handwritten digits: images (1, 8, 8) scaled to [-1, 1] and classes 0 to 9.

    1,257 images to train on, 270 to validate and 270 to test; the split is always the same.

    Args:
        batch_size: of training; an evaluation takes 270 images at once.
        shift: most pixels by which a training image is moved at random in both directions; a
            fraction of a pixel blurs it.
        num_workers: processes that load data; the images are in memory, 0 is fastest.
        seed: of the order and the shifts.
    """

    def __init__(
        self, batch_size: int = 64, shift: float = 0.5, num_workers: int = 0, seed: int = 0
    ) -> None:
        super().__init__(batch_size, num_workers, seed)
        self.shift = shift

    def setup(self, stage: str) -> None:
        load_digits = of_recipes("sklearn.datasets", "DigitsDataModule", "scikit-learn").load_digits
        pixels, classes = load_digits(return_X_y=True)
        images = torch.tensor(pixels, dtype=torch.float32).view(-1, 1, 8, 8) / 8 - 1
        targets = torch.tensor(classes, dtype=torch.int64)
        order = torch.randperm(len(images), generator=generator(0))
        test, val, train = order.split([TEST, VALIDATION, len(order) - TEST - VALIDATION])
        self.train = ShiftedImages(images[train], targets[train], self.shift, self.seed)
        self.val = TensorDataset(images[val], targets[val])
        self.test = TensorDataset(images[test], targets[test])

    def train_dataloader(self) -> DataLoader:
        return self.shuffled(self.train)

    def val_dataloader(self) -> DataLoader:
        return DataLoader(self.val, batch_size=VALIDATION, num_workers=self.num_workers)

    def test_dataloader(self) -> DataLoader:
        return DataLoader(self.test, batch_size=TEST, num_workers=self.num_workers)


class ShiftedImages(Dataset[tuple[Tensor, Tensor]]):
    """Images (n, channels, height, width) moved by up to `shift` pixels and padded with -1.

    An item is (image, epoch). A fraction of a pixel is interpolated linearly.
    """

    def __init__(self, images: Tensor, classes: Tensor, shift: float, seed: int) -> None:
        self.rim = math.ceil(shift)
        self.padded = F.pad(images, [self.rim] * 4, value=-1.0)
        self.classes = classes
        self.shift = shift
        self.seed = seed

    def __len__(self) -> int:
        return len(self.classes)

    def __getitem__(self, key: tuple[int, int]) -> tuple[Tensor, Tensor]:
        item, epoch = key
        random = generator(self.seed, epoch, item)
        down, right = ((2 * torch.rand(2, generator=random) - 1) * self.shift).tolist()
        image = self._move(self._move(self.padded[item], 1, down), 2, right)
        return image, self.classes[item]

    def _move(self, image: Tensor, dim: int, distance: float) -> Tensor:
        """Crop dimension `dim` to its length, `distance` pixels off the centre."""
        length = image.shape[dim] - 2 * self.rim
        whole = math.floor(distance)
        part = distance - whole
        moved = image.narrow(dim, self.rim + whole, length)
        if part > 0:
            further = image.narrow(dim, self.rim + whole + 1, length)
            moved = moved * (1 - part) + further * part
        return moved
