"""Train a network for a few steps, quietly, and grow it in between."""

import io
import logging
import re
import tempfile
from collections.abc import Callable
from contextlib import redirect_stdout
from typing import Any

import lightning.pytorch as pl
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

import lightning_ligo as ligo
from judge import Outcome
from runs import trainer

LINES: list[str] = []
"""What has been logged since the start of the last run."""


class _Lines(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        LINES.append(record.getMessage())


for _name in ("lightning", "lightning.pytorch", "lightning_utilities", "lightning.fabric"):
    logging.getLogger(_name).handlers = []
    logging.getLogger(_name).propagate = True
logging.basicConfig(level=logging.INFO, handlers=[_Lines()], force=True)

LEMON: dict[str, Any] = {"method": "lemon"}
LIGO: dict[str, Any] = {"method": "ligo", "steps": 5, "learning_rate": 1e-12}  # all but unlearned


class Net(nn.Module):
    """Six numbers in, three classes out."""

    def __init__(self, width: int = 16):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(6, width), nn.GELU(), nn.Linear(width, 3))

    def forward(self, x):
        return self.layers(x)


class Probe(pl.Callback):
    """Looks at the module before a step, in evaluation mode."""

    def __init__(self, see: Callable, step: int) -> None:
        self.see, self.step, self.value = see, step, None

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if trainer.global_step == self.step and self.value is None:
            training = {module: module.training for module in pl_module.modules()}
            pl_module.eval()
            with torch.no_grad():
                self.value = self.see(pl_module)
            for module in pl_module.modules():
                module.training = training.get(module, module.training)


class Lit(pl.LightningModule):
    """Trains a network by its cross-entropy."""

    def __init__(self, model: nn.Module, optimizer: type = torch.optim.Adam, lr: float = 1e-3):
        super().__init__()
        self.model, self.how = model, (optimizer, lr)

    def training_step(self, batch, batch_idx):
        return F.cross_entropy(self.model(batch[0]), batch[1])

    def configure_optimizers(self):
        optimizer, lr = self.how
        return optimizer([p for p in self.parameters() if p.requires_grad], lr=lr)


def run(
    make: Callable[[], pl.LightningModule],
    data: DataLoader,
    to: dict,
    see: Callable = lambda module: None,
    step: int = 8,
    val: DataLoader | None = None,
    **growth: Any,
) -> Outcome:
    """Train what is made for two epochs, and grow its ``model`` at a step, by lemon."""
    grow = ligo.GrowthCallback([ligo.Growth(to, step=step)], attribute="model", **LEMON | growth)
    outcome = _fit(make, data, val, Probe(see, step), grow, Probe(see, step))
    if outcome.error is not None:
        control = _fit(make, data, val).error
        outcome.control = "fine" if control is None else f"{type(control).__name__}: {control}"
    return outcome


def _fit(make: Callable, data: DataLoader, val: DataLoader | None, *callbacks: Any) -> Outcome:
    LINES.clear()
    outcome = Outcome(module=make())
    torch.manual_seed(0)
    with redirect_stdout(io.StringIO()), tempfile.TemporaryDirectory() as folder:
        runner = trainer(folder, *callbacks, epochs=2)
        try:
            runner.fit(outcome.module, data, val)
        except Exception as error:
            outcome.error = error
    outcome.step, outcome.told = runner.global_step, told()
    if callbacks:
        outcome.before, outcome.after = callbacks[0].value, callbacks[-1].value
    return outcome


def told() -> str:
    """Return what the log says of the function, in the line of the growth."""
    words = (re.search(r"^Growth 1 of 1 .* at its start (.*?); ", line) for line in LINES)
    return next((found[1] for found in words if found), "")


def vectors(items: int = 96, inputs: int = 6, classes: int = 3, batch: int = 8) -> DataLoader:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(items, inputs, generator=generator)
    return DataLoader(
        TensorDataset(x, torch.randint(classes, (items,), generator=generator)), batch
    )
