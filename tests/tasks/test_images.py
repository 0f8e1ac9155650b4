import sys

import pytest
import torch
from PIL import Image

from lightning_ligo.tasks.images import IMAGENET_MEAN, IMAGENET_STD, ImageFolderDataModule


@pytest.fixture
def folder(tmp_path):
    """Six images of a class, each of one colour: 'dark' and 'light'."""
    for part in ("train", "val", "test"):
        for name, level in (("dark", 20), ("light", 200)):
            (tmp_path / part / name).mkdir(parents=True)
            for number in range(6):
                image = Image.new("RGB", (40, 30 + number), (level, level + number, level))
                image.putpixel((20, 15), (0, 0, 0))
                image.save(tmp_path / part / name / f"{number}.png")
    return tmp_path


def module(folder, stage="fit", **options):
    data = ImageFolderDataModule(str(folder), image_size=16, batch_size=4, **options)
    data.setup(stage)
    return data


def test_images_are_cropped_and_normalized_and_folders_are_classes(folder):
    data = module(folder, num_workers=0)
    batches = list(data.val_dataloader())
    assert [images.shape for images, _ in batches] == [(4, 3, 16, 16)] * 3
    assert torch.cat([classes for _, classes in batches]).tolist() == [0] * 6 + [1] * 6
    red = batches[0][0][0, 0, 0, 0].item()
    assert red == pytest.approx((20 / 255 - IMAGENET_MEAN[0]) / IMAGENET_STD[0], rel=1e-5)


def test_workers_and_the_global_random_state_change_nothing(folder):
    alone = list(module(folder, num_workers=0).train_dataloader())
    torch.manual_seed(7)
    shared = list(module(folder, num_workers=1).train_dataloader())
    for (images, classes), (expected_images, expected_classes) in zip(shared, alone, strict=True):
        assert torch.equal(images, expected_images)
        assert torch.equal(classes, expected_classes)


def test_crops_are_new_in_every_epoch(folder):
    images = module(folder, num_workers=0).train_dataloader().dataset
    assert torch.equal(images[0, 0][0], images[0, 0][0])
    assert any(not torch.equal(images[item, 0][0], images[item, 1][0]) for item in range(6))


def test_another_size_is_that_of_the_loaders_made_from_then_on(folder):
    data = module(folder, num_workers=0)
    data.image_size = 12
    for loader in (data.train_dataloader(), data.val_dataloader()):
        assert next(iter(loader))[0].shape[-2:] == (12, 12)


def test_a_stage_reads_only_its_folders(folder):
    (folder / "val").rename(folder / "away")
    assert len(module(folder, "test", num_workers=0).test_dataloader()) == 3
    assert len(module(folder, "predict", num_workers=0).predict_dataloader()) == 3
    with pytest.raises(ValueError, match=r"no folder '.*val'; put images into '.*CLASS'"):
        module(folder, "fit")


def test_without_torchvision_the_error_says_what_to_install(folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "torchvision.datasets", None)
    with pytest.raises(ValueError, match="torchvision, which is not installed; run: pip install"):
        module(folder)
