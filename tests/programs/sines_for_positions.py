"""Sines for positions, as wide as the network: in a buffer, saved or not, or made in the forward.

They grow, and what is told is what is measured. After fairseq 5213.
"""

import math

import torch
from torch import nn
from torch.nn import functional as F

from judge import say
from lightning_ligo import describe
from training import Lit, run, vectors


def sines(length, width):
    p, f = torch.arange(length)[:, None], torch.arange(0, width, 2) * (-math.log(1e4) / width)
    return torch.stack([torch.sin(p * f.exp()), torch.cos(p * f.exp())], -1).flatten(1)


class Net(nn.Module):
    def __init__(self, width: int = 16, kind: str = "saved", depth: int = 1):
        super().__init__()
        self.embed, self.head = nn.Embedding(11, width), nn.Linear(width, 3)
        self.width, self.kind = width, kind
        if kind != "computed":
            self.register_buffer("positions", sines(20, width), persistent=kind == "saved")
        layer = nn.TransformerEncoderLayer(width, 2, 2 * width, batch_first=True, norm_first=True)
        norm = nn.LayerNorm(width)
        self.encoder = nn.TransformerEncoder(layer, depth, norm, enable_nested_tensor=False)

    def forward(self, ids):
        computed = self.kind == "computed"
        positions = sines(20, self.width).to(self.embed.weight) if computed else self.positions
        x = self.embed(ids) * math.sqrt(self.width) + positions[: ids.shape[1]]
        return self.head(self.encoder(x)[:, 0])


class OfTokens(Lit):
    def training_step(self, batch, batch_idx):
        return F.cross_entropy(self.model(ids(batch[0])), batch[1])


def ids(x):
    return (x * 3).abs().long().clamp(0, 10)


x = ids(torch.randn(5, 6))
for kind in ("saved", "not saved", "computed"):
    for size in ({"width": 32}, {"width": 16, "depth": 2}):
        outcome = run(
            lambda kind=kind: OfTokens(Net(kind=kind)),
            vectors(),
            describe(Net, kind=kind, **size),
            see=lambda module: module.model(x),
        )
        say(outcome.honest(), kind, size, outcome)
