"""x.std(-1) divides by n - 1, as in the Annotated Transformer's norm: a change is told."""

import torch
from torch import nn

from judge import grown, say


class Net(nn.Module):
    def __init__(self, width, unbiased):
        super().__init__()
        self.read, self.head = nn.Linear(6, width), nn.Linear(width, 5)
        self.gain, self.bias = nn.Parameter(torch.ones(width)), nn.Parameter(torch.zeros(width))
        self.unbiased = unbiased

    def forward(self, x):
        x = self.read(x)
        spread = x.std(-1, keepdim=True, unbiased=self.unbiased)
        return self.head(self.gain * (x - x.mean(-1, keepdim=True)) / (spread + 1e-6) + self.bias)


x = torch.randn(7, 6)
for unbiased in (False, True):
    torch.manual_seed(0)
    outcome = grown(Net(16, unbiased), Net(32, unbiased), x)
    asked = outcome.honest() if unbiased else outcome.kept()
    say(asked, "unbiased:" if unbiased else "biased:", outcome)
