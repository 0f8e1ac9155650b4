"""Rows taken by index behind an RMS norm (experts that get their tokens), 32 -> 48 wide."""

import torch
from torch import nn

from judge import grown, say


class Net(nn.Module):
    def __init__(self, width, add_into):
        super().__init__()
        self.read, self.norm = nn.Linear(6, width), nn.RMSNorm(width, eps=1e-6)
        self.expert, self.head = nn.Linear(width, width), nn.Linear(width, 5)
        self.add_into = add_into

    def forward(self, x):
        x = self.read(x)
        y = self.norm(x)
        rows = torch.tensor([0, 2, 3])
        out = torch.zeros_like(y)
        if self.add_into == "out[rows] +=":  # as in Mixtral's first code
            out[rows] += self.expert(y[rows])
        elif self.add_into == "index_add_":
            out.index_add_(0, rows, self.expert(y[rows]))
        else:
            out = self.expert(y)
        return self.head(x + out)


x = torch.randn(7, 6)
for kind in ("all rows", "index_add_", "out[rows] +="):
    torch.manual_seed(0)
    outcome = grown(Net(32, kind), Net(48, kind), x)
    say(outcome.kept(), f"{kind}:", outcome)
