"""The network to grow is itself a LightningModule, and its forward may ask its trainer.

After pytorch-lightning 20053.
"""

import lightning.pytorch as pl
import torch
from torch import nn

from judge import say
from lightning_ligo import describe
from training import LEMON, LIGO, Lit, run, vectors


class Inner(pl.LightningModule):
    def __init__(self, width: int = 16, asks_trainer: bool = False):
        super().__init__()
        self.save_hyperparameters()
        self.asks_trainer = asks_trainer
        self.layers = nn.Sequential(nn.Linear(6, width), nn.GELU(), nn.Linear(width, 3))

    def forward(self, x):
        heat = min(1.0, 0.1 * self.trainer.global_step) if self.asks_trainer else 1.0
        return self.layers(x) * heat


x = torch.randn(5, 6)
for asks in (False, True):
    for method in (LEMON, LIGO):
        outcome = run(
            lambda asks=asks: Lit(Inner(asks_trainer=asks)),
            vectors(),
            describe(Inner, width=32, asks_trainer=asks),
            see=lambda module: module.model(x),
            **method,
        )
        say(outcome.kept(), method["method"], "asks its trainer:" if asks else "alone:", outcome)
