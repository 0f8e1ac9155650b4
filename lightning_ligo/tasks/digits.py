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
        train, val, test = parts("DigitsDataModule")
        self.train = ShiftedImages(*train, self.shift, self.seed)
        self.val, self.test = TensorDataset(*val), TensorDataset(*test)

    def train_dataloader(self) -> DataLoader:
        return self.shuffled(self.train)

    def val_dataloader(self) -> DataLoader:
        return DataLoader(self.val, batch_size=VALIDATION, num_workers=self.num_workers)

    def test_dataloader(self) -> DataLoader:
        return DataLoader(self.test, batch_size=TEST, num_workers=self.num_workers)


class DigitPairsDataModule(OrderedDataModule):
    """Two overlapping digits, anywhere in an image (1, 16, 16), scaled to [-1, 1].

    The class is the unordered pair, 0 to 54: (0, 0), (0, 1), ... (0, 9), (1, 1), ... (9, 9).
    A pixel is the brighter of both digits. Pairs and places are drawn anew in every epoch, of the
    images of the same split as in `DigitsDataModule`; those of evaluations are always the same.

    Args:
        batch_size: of training and of an evaluation.
        train_size: the images of an epoch.
        eval_size: the images of an evaluation.
        num_workers: processes that draw images.
        seed: of the pairs, the places and the order.
    """

    def __init__(
        self,
        batch_size: int = 64,
        train_size: int = 12800,
        eval_size: int = 2048,
        num_workers: int = 0,
        seed: int = 0,
    ) -> None:
        super().__init__(batch_size, num_workers, seed)
        self.train_size = train_size
        self.eval_size = eval_size

    def setup(self, stage: str) -> None:
        train, val, test = parts("DigitPairsDataModule")
        self.train = PairedImages(*train, self.train_size, self.seed)
        self.val = PairedImages(*val, self.eval_size, 0)
        self.test = PairedImages(*test, self.eval_size, 0)

    def train_dataloader(self) -> DataLoader:
        return self.shuffled(self.train)

    def val_dataloader(self) -> DataLoader:
        return self.in_order(self.val)

    def test_dataloader(self) -> DataLoader:
        return self.in_order(self.test)


def parts(asker: str) -> list[tuple[Tensor, Tensor]]:
    """Return images (n, 1, 8, 8) in [-1, 1] with their classes, to train, validate and test on.

    The split is always the same. ``asker`` is named where scikit-learn is not installed.
    """
    load_digits = of_recipes("sklearn.datasets", asker, "scikit-learn").load_digits
    pixels, classes = load_digits(return_X_y=True)
    images = torch.tensor(pixels, dtype=torch.float32).view(-1, 1, 8, 8) / 8 - 1
    targets = torch.tensor(classes, dtype=torch.int64)
    order = torch.randperm(len(images), generator=generator(0))
    test, val, train = order.split([TEST, VALIDATION, len(order) - TEST - VALIDATION])
    return [(images[part], targets[part]) for part in (train, val, test)]


class PairedImages(Dataset[tuple[Tensor, Tensor]]):
    """Images of twice the size with two of the given images (n, 1, size, size) at random places.

    An item is (image, epoch).
    """

    def __init__(self, images: Tensor, classes: Tensor, items: int, seed: int) -> None:
        self.images = images
        self.classes = classes
        self.items = items
        self.seed = seed
        pairs = torch.combinations(torch.arange(10), with_replacement=True)
        self.numbers = torch.empty(10, 10, dtype=torch.int64)  # of the class, by both digits
        self.numbers[pairs[:, 0], pairs[:, 1]] = torch.arange(len(pairs))
        self.numbers[pairs[:, 1], pairs[:, 0]] = torch.arange(len(pairs))

    def __len__(self) -> int:
        return self.items

    def __getitem__(self, key: tuple[int, int]) -> tuple[Tensor, Tensor]:
        item, epoch = key
        random = generator(self.seed, epoch, item)
        size = self.images.shape[-1]
        both = torch.randint(len(self.images), (2,), generator=random)
        places = torch.randint(size + 1, (2, 2), generator=random).tolist()
        image = torch.full((1, 2 * size, 2 * size), -1.0)
        for digit, (top, left) in zip(both, places, strict=True):
            place = image[:, top : top + size, left : left + size]
            torch.maximum(place, self.images[digit], out=place)
        first, second = self.classes[both]
        return image, self.numbers[first, second]


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
