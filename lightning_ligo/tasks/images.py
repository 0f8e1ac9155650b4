"""Folders of images, one folder a class."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from lightning_ligo.networks.libraries import of_recipes
from lightning_ligo.tasks.order import OrderedDataModule, generator

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class ImageFolderDataModule(OrderedDataModule):
    """Images from `folder/train/<class>/*`, `folder/val/<class>/*` and, to test on, `folder/test`.

    A batch is images (batch_size, 3, image_size, image_size), normalized as for ImageNet, and
    classes (batch_size). Training images are cropped and flipped at random, others at the centre.

    Args:
        folder: holds the folders `train` and `val`.
        image_size: pixels of a side.
        batch_size: images in a batch.
        num_workers: processes that read images.
        seed: of the order, crops and flips.
    """

    def __init__(
        self,
        folder: str,
        image_size: int = 224,
        batch_size: int = 64,
        num_workers: int = 4,
        seed: int = 0,
    ) -> None:
        super().__init__(batch_size, num_workers, seed)
        self.folder = Path(folder)
        self.image_size = image_size

    def setup(self, stage: str) -> None:
        if stage == "fit":
            self.train = self._images("train")
        if stage in ("fit", "validate"):
            self.val = self._images("val")
        if stage in ("test", "predict"):
            self.test = self._images("test")

    def _images(self, part: str) -> Any:
        datasets = of_recipes("torchvision.datasets", "ImageFolderDataModule", "torchvision")
        folder = self.folder / part
        if not folder.is_dir():
            raise ValueError(
                f"no folder {str(folder)!r}; put images into {str(folder / 'CLASS')!r}, one folder "
                "a class"
            )
        return datasets.ImageFolder(str(folder))

    def _transformed(self, images: Any, augment: bool) -> "TransformedImages":
        from torchvision.transforms import v2

        size = self.image_size
        geometry = (
            [v2.RandomResizedCrop(size, antialias=True), v2.RandomHorizontalFlip()]
            if augment
            else [v2.Resize(round(size / 0.875), antialias=True), v2.CenterCrop(size)]
        )
        transform = v2.Compose(
            [
                v2.ToImage(),
                *geometry,
                v2.ToDtype(torch.float32, scale=True),
                v2.Normalize(IMAGENET_MEAN, IMAGENET_STD),
            ]
        )
        return TransformedImages(images, transform, self.seed)

    def train_dataloader(self) -> DataLoader:
        images = self._transformed(self.train, augment=True)
        return self.shuffled(images, persistent_workers=self.num_workers > 0)

    def val_dataloader(self) -> DataLoader:
        return self.in_order(self._transformed(self.val, augment=False))

    def test_dataloader(self) -> DataLoader:
        return self.in_order(self._transformed(self.test, augment=False))


class TransformedImages(Dataset[tuple[Tensor, int]]):
    """Images, each transformed with its own random numbers; an item is (image, epoch).

    torchvision's transforms draw from the global random state, which is restored afterwards.
    """

    def __init__(self, images: Any, transform: Callable[[Any], Tensor], seed: int) -> None:
        self.images = images
        self.transform = transform
        self.seed = seed

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, key: tuple[int, int]) -> tuple[Tensor, int]:
        item, epoch = key
        image, target = self.images[item]
        with torch.random.fork_rng(devices=[]):
            torch.set_rng_state(generator(self.seed, epoch, item).get_state())
            return self.transform(image), target
