"""torchgeo: its tasks make their networks from hyperparameters, by segmentation-models-pytorch."""

import pytest

pytest.importorskip("torchgeo")

import torch
from projects import check, growing, same, sizes
from torch.utils.data import DataLoader
from torchgeo.trainers import ClassificationTask, SemanticSegmentationTask

from lightning_ligo import Growth

pytestmark = [pytest.mark.third_party, pytest.mark.filterwarnings("ignore")]


def images(*shape: int) -> DataLoader:
    """Images whose classes, of the image or of its pixels, follow from their first channel."""
    torch.manual_seed(0)
    pictures = torch.randn(8, 3, 64, 64)
    first = pictures[:, 0].flatten(1).mean(1) if not shape else pictures[:, 0]
    return DataLoader(
        [
            {"image": i, "label": m, "mask": m}
            for i, m in zip(pictures, (first > 0).long(), strict=True)
        ],
        4,
    )


@pytest.mark.parametrize(
    ("kind", "small", "large", "pixels"),
    [
        (
            SemanticSegmentationTask,
            {"model": "unet", "backbone": "resnet18"},
            {"backbone": "resnet34"},
            (64, 64),
        ),
        (
            SemanticSegmentationTask,
            {"model": "fcn", "num_filters": 4},
            {"num_filters": 8},
            (64, 64),
        ),
        (ClassificationTask, {"model": "resnet18"}, {"model": "resnet34"}, ()),
    ],
)
def test_a_task_grows_and_opens_in_its_own_way(tmp_path, kind, small, large, pixels):
    options = {"in_channels": 3, "num_classes": 2, "task": "multiclass"}
    module, data = kind(**options, **small), images(*pixels)
    run = growing(tmp_path, [Growth(hparams=large, fraction=0.4)], epochs=2)
    run.fit(module, data, data)
    check(run, module, sizes(kind(**options, **{**small, **large})))
    run.test(module, data, ckpt_path="best")
    best = kind.load_from_checkpoint(run.checkpoint_callback.best_model_path, weights_only=False)
    assert same(best, module) and large.items() <= best.hparams.items()
