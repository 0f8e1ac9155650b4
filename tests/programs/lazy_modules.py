"""A network of LazyLinear has no shapes before its first forward; it gets them and grows.

After pytorch-lightning 13764.
"""

import torch
from torch import nn

from judge import say
from lightning_ligo import describe
from training import Lit, run, vectors


class Net(nn.Module):
    def __init__(self, width: int = 16):
        super().__init__()
        self.layers = nn.Sequential(
            nn.LazyLinear(width), nn.ReLU(), nn.LazyLinear(width), nn.ReLU(), nn.LazyLinear(3)
        )

    def forward(self, x):
        return self.layers(x)


def make():
    module = Lit(Net(), torch.optim.SGD, lr=1e-2)
    module.model(torch.zeros(2, 6))  # as torch advises: a dry run, before an optimizer is made
    return module


x = torch.randn(5, 6)
outcome = run(make, vectors(), describe(Net, width=32), see=lambda module: module.model(x))
say(outcome.kept(), outcome)
