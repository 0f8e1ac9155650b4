"""scikit-learn's handwritten digits: 1,797 grey images of 8 x 8 pixels, shipped with it."""

import torch
from lightning.pytorch import LightningDataModule
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset, TensorDataset

from lightning_ligo.data.order import EpochOrder, generator

VALIDATION, TEST = 270, 270


class DigitsDataModule(LightningDataModule):
    """Handwritten digits: images (1, 8, 8) scaled to [-1, 1] and classes 0 to 9.

    1,257 images to train on, 270 to validate and 270 to test; the split is always the same.

    Args:
        batch_size: of training; an evaluation takes 270 images at once.
        shift: training images are moved by up to this many pixels in both directions, at random.
        num_workers: processes that load data; the images are in memory, 0 is fastest.
        seed: of the order and the shifts.
    """

    def __init__(
        self, batch_size: int = 64, shift: int = 1, num_workers: int = 0, seed: int = 0
    ) -> None:
        super().__init__()
        self.batch_size = batch_size
        self.shift = shift
        self.num_workers = num_workers
        self.seed = seed

    def setup(self, stage: str) -> None:
        try:
            from sklearn.datasets import load_digits
        except ImportError as error:
            raise ValueError(
                "DigitsDataModule reads the digits of scikit-learn, which is not installed; "
                'run: pip install "lightning-ligo[recipes]"'
            ) from error
        pixels, classes = load_digits(return_X_y=True)
        images = torch.tensor(pixels, dtype=torch.float32).view(-1, 1, 8, 8) / 8 - 1
        targets = torch.tensor(classes, dtype=torch.int64)
        order = torch.randperm(len(images), generator=generator(0))
        test, val, train = order.split([TEST, VALIDATION, len(order) - TEST - VALIDATION])
        self.train = ShiftedImages(images[train], targets[train], self.shift, self.seed)
        self.val = TensorDataset(images[val], targets[val])
        self.test = TensorDataset(images[test], targets[test])

    def train_dataloader(self) -> DataLoader:
        return DataLoader(
            self.train,
            self.batch_size,
            sampler=EpochOrder(self.train, self.seed),
            drop_last=True,
            num_workers=self.num_workers,
        )

    def val_dataloader(self) -> DataLoader:
        return DataLoader(self.val, VALIDATION, num_workers=self.num_workers)

    def test_dataloader(self) -> DataLoader:
        return DataLoader(self.test, TEST, num_workers=self.num_workers)

    def predict_dataloader(self) -> DataLoader:
        return self.test_dataloader()


class ShiftedImages(Dataset[tuple[Tensor, Tensor]]):
    """Images (n, channels, height, width) moved by up to `shift` pixels, the rim filled with -1."""

    def __init__(self, images: Tensor, classes: Tensor, shift: int, seed: int) -> None:
        self.padded = F.pad(images, [shift] * 4, value=-1.0)
        self.classes = classes
        self.size = images.shape[-2:]
        self.shift = shift
        self.seed = seed

    def __len__(self) -> int:
        return len(self.classes)

    def __getitem__(self, key: tuple[int, int]) -> tuple[Tensor, Tensor]:
        item, epoch = key
        random = generator(self.seed, epoch, item)
        top, left = torch.randint(2 * self.shift + 1, (2,), generator=random).tolist()
        height, width = self.size
        image = self.padded[item, :, top : top + height, left : left + width]
        return image, self.classes[item]
