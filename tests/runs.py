"""Small runs of the Lightning Trainer for the tests of growth."""

import lightning.pytorch as pl
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Sampler, TensorDataset
from torchmetrics.classification import MulticlassAccuracy

from lightning_ligo.networks.description import build, describe
from operations import fourier

FEATURES, CLASSES, ITEMS, BATCH = 6, 3, 48, 8
STEPS_PER_EPOCH = ITEMS // BATCH


class Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.fc1 = nn.Linear(width, 2 * width)
        self.fc2 = nn.Linear(2 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.fc2(F.gelu(self.fc1(self.norm(x))))


class Net(nn.Module):
    """A residual network on vectors: (batch, FEATURES) to (batch, classes)."""

    def __init__(self, width: int = 8, depth: int = 1, classes: int = CLASSES) -> None:
        super().__init__()
        self.embed = nn.Linear(FEATURES, width)
        self.blocks = nn.Sequential(*(Block(width) for _ in range(depth)))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.norm(self.blocks(self.embed(x))))


class Fourier(Net):
    """The same behind a Fourier transform over one position, for which tracing has no rule."""

    def forward(self, x: Tensor) -> Tensor:
        x = fourier(self.embed(x)[:, None], 1)[:, 0]
        return self.head(self.norm(self.blocks(x)))


def net(width: int, depth: int, **changes: int) -> dict:
    return describe(Net, width=width, depth=depth, **changes)


SMALL, MIDDLE, LARGE = net(8, 1), net(16, 2), net(24, 4)


class Plain(pl.LightningModule):
    """Knows nothing of growth; two groups, a scheduler of every step, metrics, counters."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.BatchNorm1d(FEATURES)
        self.network = Net()
        self.accuracy = MulticlassAccuracy(CLASSES, average="micro")
        self.val_accuracy = MulticlassAccuracy(CLASSES, average="micro")
        self.calls = 0
        self.outputs: list[Tensor] = []
        self.seen: dict[str, list[int]] = {"batches": []}
        self.batches: list[list[float]] = []  # the first column of every batch trained on

    def loss(self, batch: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        x, y = batch
        logits = self.network(self.stem(x))
        return logits, F.cross_entropy(logits, y)

    def training_step(self, batch, batch_idx):
        logits, loss = self.loss(batch)
        self.calls += 1
        self.outputs.append(loss.detach())
        self.seen["batches"].append(batch_idx)
        self.batches.append(batch[0][:, 0].tolist())
        self.accuracy(logits, batch[1])
        self.log("train_loss", loss, on_step=True, on_epoch=True)
        self.log("train_accuracy", self.accuracy, on_step=True, on_epoch=True)
        return loss

    def validation_step(self, batch, batch_idx):
        logits, loss = self.loss(batch)
        self.val_accuracy(logits, batch[1])
        self.log("val_loss", loss)
        self.log("val_accuracy", self.val_accuracy)

    def test_step(self, batch, batch_idx):
        self.log("test_loss", self.loss(batch)[1])

    def configure_optimizers(self):
        weights = list(self.parameters())
        groups = [
            {"params": [w for w in weights if w.ndim > 1]},
            {"params": [w for w in weights if w.ndim < 2], "weight_decay": 0.0},
        ]
        optimizer = torch.optim.AdamW(groups, lr=1e-2, weight_decay=0.1)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.95**step)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


class Described(Plain):
    """Takes its network as a description, as the modules of the package do."""

    def __init__(self, network: dict) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.network = build(network)


class EpochOrder(Sampler):
    """An order that depends on the epoch alone, so that a resumed epoch has it again."""

    epoch = 0

    def set_epoch(self, epoch):
        self.epoch = epoch

    def __len__(self):
        return ITEMS

    def __iter__(self):
        generator = torch.Generator().manual_seed(self.epoch)
        return iter(torch.randperm(ITEMS, generator=generator).tolist())


def items(seed: int = 0) -> TensorDataset:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(ITEMS, FEATURES, generator=generator)
    return TensorDataset(x, x[:, :CLASSES].argmax(1))


def train_loader(**options) -> DataLoader:
    return DataLoader(items(), BATCH, **{"shuffle": True, **options})


def val_loader() -> DataLoader:
    return DataLoader(items(1), ITEMS)


def trainer(folder, *callbacks, epochs: int = 3, **options) -> pl.Trainer:
    settings = {"logger": False, "enable_checkpointing": False, "num_sanity_val_steps": 0}
    settings |= {"enable_progress_bar": False, "enable_model_summary": False}
    settings |= {"accelerator": "cpu", **options}
    return pl.Trainer(
        max_epochs=epochs, default_root_dir=folder, callbacks=list(callbacks), **settings
    )


def fit(module: pl.LightningModule, folder, *callbacks, seed: int = 0, ckpt_path=None, **options):
    """Train the module from a fixed seed; return the Trainer."""
    torch.manual_seed(seed)
    run = trainer(folder, *callbacks, **options)
    run.fit(module, train_loader(), val_loader(), ckpt_path=ckpt_path)
    return run


def plain(seed: int = 0) -> Plain:
    torch.manual_seed(seed)
    return Plain()


def of_net(width: int, depth: int, batch: int = 8) -> int:
    """A product of (a x b) and (b x c) is 2abc; backward has two, for weights and for inputs.

    The input of the network needs its gradient, as a stem with weights is before it.
    """
    weights = FEATURES * width + depth * 4 * width * width + width * 3
    return 3 * 2 * batch * weights
