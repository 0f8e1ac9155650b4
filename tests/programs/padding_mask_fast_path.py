"""nn.TransformerEncoder as it comes (nested tensors on) with a padding mask grows exactly.

In evaluation it takes another path than in training. After pytorch 97111 and 86120.
"""

import torch
from torch import nn
from torch.nn import functional as F

from judge import say
from lightning_ligo import describe
from training import Lit, run, vectors


class Net(nn.Module):
    def __init__(self, width: int = 16, depth: int = 2, heads: int = 2):
        super().__init__()
        self.embed = nn.Embedding(11, width, padding_idx=0)
        layer = nn.TransformerEncoderLayer(width, heads, 2 * width, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, depth)
        self.head = nn.Linear(width, 3)

    def forward(self, ids):
        pad = ids == 0
        x = self.encoder(self.embed(ids), src_key_padding_mask=pad)
        keep = (~pad)[:, : x.shape[1], None]  # the fast path cuts what is padding in all
        return self.head((x * keep).sum(1) / keep.sum(1))


class Masked(Lit):
    def training_step(self, batch, batch_idx):
        return F.cross_entropy(self.model(ids(batch[0])), batch[1])

    def validation_step(self, batch, batch_idx):
        self.log("val_loss", self.training_step(batch, batch_idx))


def ids(x):
    tokens = (x * 3).abs().long().clamp(1, 10)
    lengths = 3 + torch.arange(len(x))[:, None] % 3
    return torch.where(torch.arange(x.shape[1]) < lengths, tokens, 0)


x = ids(torch.randn(5, 6))
outcome = run(
    lambda: Masked(Net()),
    vectors(),
    describe(Net, width=32, heads=4),
    see=lambda module: module.model(x),
    val=vectors(),
)
say(outcome.kept(), outcome)
