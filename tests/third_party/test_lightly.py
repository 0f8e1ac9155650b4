"""lightly: self-supervised modules with momentum teachers, which grow with the student."""

import copy

import pytest

pytest.importorskip("lightly")

import torch
from lightly.loss import DINOLoss, NegativeCosineSimilarity, NTXentLoss
from lightly.models.modules.heads import (
    BYOLPredictionHead,
    BYOLProjectionHead,
    DINOProjectionHead,
    SimCLRProjectionHead,
)
from lightly.models.utils import deactivate_requires_grad, update_momentum
from lightning.pytorch import LightningModule
from projects import check, growing, opened, sizes
from torch import Tensor, nn
from torch.utils.data import DataLoader

from lightning_ligo import Growth

pytestmark = [pytest.mark.third_party, pytest.mark.filterwarnings("ignore")]


class Views(LightningModule):
    """What the modules share: two noisy views of a picture, a backbone, an optimizer."""

    def views(self, batch: list[Tensor]) -> list[Tensor]:
        return [batch[0] + 0.1 * torch.randn_like(batch[0]) for _ in range(2)]

    def test_step(self, batch, batch_idx):
        self.log("loss", self.training_step(batch, batch_idx))

    def configure_optimizers(self):
        return torch.optim.SGD([p for p in self.parameters() if p.requires_grad], lr=0.01)


def backbone(width: int, depth: int) -> nn.Module:
    layers = [nn.Sequential(nn.Conv2d(width, width, 3, padding=1), nn.ReLU()) for _ in range(depth)]
    ends = nn.Conv2d(3, width, 3, 2, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    return nn.Sequential(ends[0], nn.ReLU(), *layers, *ends[1:])


class SimCLR(Views):
    def __init__(self, width: int = 16, depth: int = 2) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.backbone = backbone(width, depth)
        self.head = SimCLRProjectionHead(width, 2 * width, 8)
        self.criterion = NTXentLoss()

    def training_step(self, batch, batch_idx):
        return self.criterion(*(self.head(self.backbone(view)) for view in self.views(batch)))


class BYOL(Views):
    def __init__(self, width: int = 16, depth: int = 2) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.backbone = backbone(width, depth)
        self.head = BYOLProjectionHead(width, 2 * width, 8)
        self.predict = BYOLPredictionHead(8, 2 * width, 8)
        self.momentum_backbone = copy.deepcopy(self.backbone)
        self.momentum_head = copy.deepcopy(self.head)
        deactivate_requires_grad(self.momentum_backbone)
        deactivate_requires_grad(self.momentum_head)
        self.criterion = NegativeCosineSimilarity()

    def training_step(self, batch, batch_idx):
        if self.training:
            update_momentum(self.backbone, self.momentum_backbone, m=0.9)
            update_momentum(self.head, self.momentum_head, m=0.9)
        one, other = self.views(batch)
        students = [self.predict(self.head(self.backbone(view))) for view in (one, other)]
        teachers = [
            self.momentum_head(self.momentum_backbone(view)).detach() for view in (other, one)
        ]
        return sum(map(self.criterion, students, teachers)) / 2


class DINO(Views):
    def __init__(self, width: int = 16, depth: int = 2) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.student_backbone = backbone(width, depth)
        self.student_head = DINOProjectionHead(width, 2 * width, 8, 32)
        self.teacher_backbone = copy.deepcopy(self.student_backbone)
        self.teacher_head = DINOProjectionHead(width, 2 * width, 8, 32)
        deactivate_requires_grad(self.teacher_backbone)
        deactivate_requires_grad(self.teacher_head)
        self.criterion = DINOLoss(output_dim=32, warmup_teacher_temp_epochs=1)

    def training_step(self, batch, batch_idx):
        if self.training:
            update_momentum(self.student_backbone, self.teacher_backbone, m=0.9)
            update_momentum(self.student_head, self.teacher_head, m=0.9)
        views = self.views(batch)
        teachers = [self.teacher_head(self.teacher_backbone(view)) for view in views]
        students = [self.student_head(self.student_backbone(view)) for view in views]
        return self.criterion(teachers, students, epoch=self.current_epoch)


@pytest.mark.parametrize("large", [{"width": 32}, {"depth": 4}, {"width": 32, "depth": 3}])
@pytest.mark.parametrize("kind", [SimCLR, BYOL, DINO])
def test_student_and_teacher_grow_together(tmp_path, kind, large):
    torch.manual_seed(0)
    module = kind()
    data = DataLoader(torch.utils.data.TensorDataset(torch.randn(16, 3, 16, 16)), 8)
    run = growing(tmp_path, [Growth(hparams=large, fraction=0.5)])
    run.fit(module, data)
    check(run, module, sizes(kind(**large)))
    opened(module, run)
    run.test(module, data, ckpt_path="best")
