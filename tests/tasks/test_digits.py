import sys

import pytest
import torch
from sklearn.datasets import load_digits
from torch.nn import functional as F

from lightning_ligo.tasks.digits import DigitPairsDataModule, DigitsDataModule, ShiftedImages
from lightning_ligo.tasks.order import generator


def digits(**options):
    data = DigitsDataModule(**options)
    data.setup("fit")
    return data


def test_train_validation_and_test_hold_every_digit_once():
    data = digits(shift=0)
    parts = [data.train.padded, data.val.tensors[0], data.test.tensors[0]]
    assert [len(part) for part in parts] == [1257, 270, 270]
    pixels, classes = load_digits(return_X_y=True)
    held = ((torch.cat(parts) + 1) * 8).flatten(1)
    labels = torch.cat([data.train.classes, data.val.tensors[1], data.test.tensors[1]])
    rows = sorted([*row, label] for row, label in zip(held.tolist(), labels.tolist(), strict=True))
    expected = sorted(
        [*row, label] for row, label in zip(pixels.tolist(), classes.tolist(), strict=True)
    )
    assert rows == expected


def test_the_split_does_not_depend_on_the_seed_and_the_order_does():
    zero, one = digits(seed=0), digits(seed=1)
    assert torch.equal(zero.val.tensors[0], one.val.tensors[0])
    first, other = next(iter(zero.train_dataloader())), next(iter(one.train_dataloader()))
    assert not torch.equal(first[1], other[1])
    again = next(iter(digits(seed=0).train_dataloader()))
    assert torch.equal(first[0], again[0])
    assert torch.equal(first[1], again[1])


def test_batches_have_the_promised_shapes_types_and_range():
    data = digits(batch_size=32)
    images, classes = next(iter(data.train_dataloader()))
    assert images.shape == (32, 1, 8, 8)
    assert classes.shape == (32,)
    assert (images.dtype, classes.dtype) == (torch.float32, torch.int64)
    assert images.min() >= -1
    assert images.max() <= 1
    for loader in (data.val_dataloader(), data.test_dataloader(), data.predict_dataloader()):
        assert [len(classes) for _, classes in loader] == [270]
    assert len(data.train_dataloader()) == 1257 // 32


def test_an_image_is_moved_anew_in_every_epoch_and_the_same_way_when_asked_again():
    images = ShiftedImages(torch.rand(3, 1, 8, 8), torch.arange(3), shift=1.0, seed=0)
    assert torch.equal(images[1, 4][0], images[1, 4][0])
    assert not torch.equal(images[1, 4][0], images[1, 5][0])
    assert not torch.equal(images[1, 4][0], images[2, 4][0])


def test_without_a_shift_the_images_are_as_they_were():
    pictures = torch.rand(3, 1, 8, 8)
    images = ShiftedImages(pictures, torch.arange(3), shift=0, seed=0)
    assert torch.equal(images[2, 0][0], pictures[2])


@pytest.mark.parametrize("shift", [0.3, 1.0, 2.5])
def test_a_shift_samples_the_moved_image_bilinearly(shift):
    torch.manual_seed(0)
    picture = torch.rand(1, 8, 8) * 2 - 1
    images = ShiftedImages(picture[None], torch.zeros(1), shift=shift, seed=0)
    for epoch in range(20):
        down, right = (2 * torch.rand(2, generator=generator(0, epoch, 0)) - 1) * shift
        theta = torch.tensor([[[1.0, 0, right * 2 / 8], [0, 1, down * 2 / 8]]])
        grid = F.affine_grid(theta, [1, 1, 8, 8], align_corners=False)
        expected = F.grid_sample(picture[None] + 1, grid, align_corners=False) - 1  # rim of -1
        assert torch.allclose(images[0, epoch][0], expected[0], atol=1e-5)


def test_without_scikit_learn_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(ValueError, match=r"scikit-learn, which is not installed; run: pip install"):
        digits()


def pairs(**options):
    data = DigitPairsDataModule(train_size=96, eval_size=40, **options)
    data.setup("fit")
    return data


def test_an_image_of_a_pair_holds_two_digits_of_its_class():
    data = pairs()
    singles, classes = data.train.images, data.train.classes
    names = [(a, b) for a in range(10) for b in range(a, 10)]
    for item in range(20):
        image, label = data.train[item, 3]
        assert image.shape == (1, 16, 16)
        windows = image.unfold(1, 8, 1).unfold(2, 8, 1).reshape(81, 64)  # every place
        inside = [  # whose pixels are all there, at some place
            bool((windows >= single.flatten()).all(1).any()) for single in singles
        ]
        present = {int(c) for c, there in zip(classes, inside, strict=True) if there}
        assert present >= set(names[label])


def test_pairs_are_new_in_every_epoch_and_the_same_when_asked_again():
    data, other = pairs(), pairs(seed=1)
    assert torch.equal(data.train[5, 2][0], pairs().train[5, 2][0])
    assert not torch.equal(data.train[5, 2][0], data.train[5, 3][0])
    assert not torch.equal(data.train[5, 2][0], other.train[5, 2][0])
    assert torch.equal(data.val[5, 0][0], other.val[5, 0][0])
    assert not torch.equal(data.val[5, 0][0], data.test[5, 0][0])


def test_batches_of_pairs_have_the_promised_shapes_and_numbers():
    data = pairs(batch_size=32)
    images, labels = next(iter(data.train_dataloader()))
    assert images.shape == (32, 1, 16, 16) and images.min() == -1 and images.max() <= 1
    assert labels.dtype == torch.int64 and labels.min() >= 0 and labels.max() <= 54
    assert len(data.train_dataloader()) == 3
    assert sum(len(labels) for _, labels in data.val_dataloader()) == 40
    assert sum(len(labels) for _, labels in data.predict_dataloader()) == 40
