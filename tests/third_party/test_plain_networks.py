"""Networks of libraries without modules of their own: monai, segmentation-models-pytorch."""

import pydoc

import pytest
import torch
from lightning.pytorch import LightningModule
from projects import check, growing, opened, sizes
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader

from lightning_ligo import Growth, describe
from lightning_ligo.networks.description import build

pytestmark = [pytest.mark.third_party, pytest.mark.filterwarnings("ignore")]


class Segmenter(LightningModule):
    """A user's module around a network of a library."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.save_hyperparameters(ignore="network")
        self.network = network

    def training_step(self, batch, batch_idx):
        loss = F.cross_entropy(self.network(batch["image"]), batch["mask"])
        self.log("loss", loss, prog_bar=True)
        return loss

    test_step = training_step

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), lr=1e-3)


def scans(channels: int) -> DataLoader:
    torch.manual_seed(0)
    images = torch.randn(4, channels, 64, 64)
    masks = (images[:, 0] > 0).long()
    return DataLoader([{"image": i, "mask": m} for i, m in zip(images, masks, strict=True)], 2)


UNET = {"spatial_dims": 2, "in_channels": 1, "out_channels": 2, "strides": (2,)}
SWIN = {"spatial_dims": 2, "in_channels": 1, "out_channels": 2, "window_size": 2}
SMP = {"encoder_name": "resnet18", "encoder_weights": None, "classes": 2}
WIDE = {"decoder_pyramid_channels": 512, "decoder_segmentation_channels": 256}
NETWORKS = [
    ("monai.networks.nets.UNet", {**UNET, "channels": (8, 16)}, {"channels": (16, 32)}),
    ("monai.networks.nets.UNet", {**UNET, "channels": (8, 16), "num_res_units": 2},
     {"num_res_units": 4}),
    ("monai.networks.nets.SwinUNETR", {**SWIN, "feature_size": 12}, {"feature_size": 24}),
    ("monai.networks.nets.SwinUNETR", {**SWIN, "feature_size": 12}, {"depths": (2, 2, 4, 2)}),
    ("segmentation_models_pytorch.Unet", SMP,
     {"encoder_name": "resnet34", "decoder_channels": (512, 256, 128, 64, 32)}),
    ("segmentation_models_pytorch.FPN", SMP, WIDE),
    ("segmentation_models_pytorch.Segformer", {**SMP, "encoder_name": "mit_b0"},
     {"encoder_name": "mit_b1"}),
]  # fmt: skip


@pytest.mark.parametrize(("path", "small", "large"), NETWORKS)
def test_it_grows_in_a_module_that_knows_nothing_of_growth(tmp_path, path, small, large):
    pytest.importorskip(path.partition(".")[0])
    torch.manual_seed(0)
    kind = pydoc.locate(path)
    to = describe(kind, **{**small, **large})
    module, data = Segmenter(kind(**small)), scans(1 if "monai" in path else 3)
    run = growing(tmp_path, [Growth(to, fraction=0.4)], epochs=2)
    run.fit(module, data)
    check(run, module, {f"network.{name}": shape for name, shape in sizes(build(to)).items()})
    run.test(module, data, ckpt_path="best")
    opened(module, run, network=kind(**small))
