"""A tied table that is read joined to another weight (MobileBERT's head) is kept, or told."""

import torch
from torch import nn

from judge import grown, say


class Net(nn.Module):
    def __init__(self, embed, extra, vocab=20):
        super().__init__()
        self.embed = nn.Embedding(vocab, embed)
        self.up = nn.Linear(embed, embed + extra)
        self.norm = nn.LayerNorm(embed + extra)
        self.more = nn.Linear(vocab, extra, bias=False)  # (extra, vocab)

    def forward(self, ids):
        x = self.norm(self.up(self.embed(ids)))
        return x @ torch.cat([self.embed.weight.t(), self.more.weight])


outcome = grown(Net(8, 8), Net(16, 16), torch.arange(12)[None])
say(outcome.honest(), outcome)
