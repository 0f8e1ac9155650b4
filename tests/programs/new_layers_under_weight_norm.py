"""New layers that add nothing, under weight_norm, are 0 / |0|: the grown network stays finite."""

import torch
from torch import nn
from torch.nn import utils
from torch.nn.utils import parametrizations

from judge import grown, say


class Net(nn.Module):
    def __init__(self, depth, wrap):
        super().__init__()
        self.read, self.head = nn.Linear(6, 16), nn.Linear(16, 5)
        self.blocks = nn.ModuleList(
            nn.Sequential(wrap(nn.Linear(16, 32)), nn.ReLU(), wrap(nn.Linear(32, 16)))
            for _ in range(depth)
        )

    def forward(self, x):
        x = self.read(x)
        for block in self.blocks:
            x = x + block(x)
        return self.head(x)


x = torch.randn(7, 6)
for wrap in (parametrizations.weight_norm, utils.weight_norm, utils.spectral_norm):
    for method in ("lemon", "net2net", "llama-pro", "stack+copy"):
        torch.manual_seed(0)
        outcome = grown(Net(2, wrap).eval(), Net(4, wrap).eval(), x, method=method)
        say(outcome.honest(), f"{wrap.__module__}.{wrap.__name__}, {method}:", outcome)
