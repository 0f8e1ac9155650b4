"""Forwards that draw in evaluation too grow: F.dropout without training=, a VAE that samples.

Both networks draw the same random numbers when they are compared. After pytorch 11999.
"""

import torch
from torch import nn
from torch.nn import functional as F

from judge import say
from lightning_ligo import describe
from training import Lit, run, vectors


class Dropping(nn.Module):
    def __init__(self, width: int = 16):
        super().__init__()
        self.one, self.two = nn.Linear(6, width), nn.Linear(width, width)
        self.head = nn.Linear(width, 3)

    def forward(self, x):
        x = F.dropout(torch.relu(self.one(x)), 0.2)
        return self.head(torch.relu(self.two(x)))


class Sampling(nn.Module):
    def __init__(self, width: int = 16):
        super().__init__()
        self.one, self.mean = nn.Linear(6, width), nn.Linear(width, 4)
        self.spread = nn.Linear(width, 4)
        self.back, self.head = nn.Linear(4, width), nn.Linear(width, 3)

    def forward(self, x):
        x = torch.relu(self.one(x))
        z = self.mean(x) + self.spread(x).exp() * torch.randn(len(x), 4, device=x.device)
        return self.head(torch.relu(self.back(z)))


def see(module):
    """Return the mean of many draws."""
    with torch.random.fork_rng():
        torch.manual_seed(1)
        x = torch.linspace(-1, 1, 30).reshape(5, 6)
        return module.model(x.repeat(4000, 1)).reshape(-1, 5, 3).mean(0)


for kind in (Dropping, Sampling):
    outcome = run(lambda kind=kind: Lit(kind()), vectors(), describe(kind, width=32), see=see)
    say(outcome.kept(3e-2), kind.__name__, outcome)
