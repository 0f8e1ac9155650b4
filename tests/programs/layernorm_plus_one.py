"""A layer norm whose gain is `weight + 1` (Nemotron, Gemma-like), 32 -> 48 wide."""

import torch
from torch import nn
from torch.nn import functional as F

from judge import grown, say


class LayerNorm1P(nn.LayerNorm):  # transformers.models.nemotron
    def forward(self, x):
        return F.layer_norm(x, self.normalized_shape, self.weight + 1, self.bias, self.eps)


class Net(nn.Module):
    def __init__(self, width, norm):
        super().__init__()
        self.read, self.norm, self.head = nn.Linear(6, width), norm(width), nn.Linear(width, 5)

    def forward(self, x):
        return self.head(self.norm(self.read(x)))


x = torch.randn(7, 6)
for norm in (nn.LayerNorm, LayerNorm1P):
    small, large = Net(32, norm), Net(48, norm)
    with torch.no_grad():
        small.norm.weight += 0.1 * torch.randn(32)
    outcome = grown(small, large, x)
    say(outcome.kept() if norm is nn.LayerNorm else outcome.honest(), norm.__name__, outcome)
