"""Layers under weight_norm, spectral_norm and orthogonal, wider and deeper, stay finite.

What is told is what is measured. An orthogonal weight cannot become wider: copies of its rows are
not orthogonal, so that is refused at the start by name. After pytorch 102981 and 25092.
"""

import torch
from torch import nn
from torch.nn import utils
from torch.nn.utils import parametrizations

from judge import say
from lightning_ligo import describe
from training import Lit, run, vectors

KINDS = {
    "weight_norm": parametrizations.weight_norm,
    "spectral_norm": parametrizations.spectral_norm,
    "hooks of weight_norm": utils.weight_norm,
    "orthogonal": parametrizations.orthogonal,
}


class Net(nn.Module):
    def __init__(self, width: int = 16, kind: str = "weight_norm", depth: int = 2):
        super().__init__()
        wrap = KINDS[kind]
        self.embed, self.head = wrap(nn.Linear(6, width)), nn.Linear(width, 3)
        self.blocks = nn.ModuleList(wrap(nn.Linear(width, width)) for _ in range(depth))

    def forward(self, x):
        x = torch.relu(self.embed(x))
        for block in self.blocks:
            x = x + torch.relu(block(x))
        return self.head(x)


x = torch.randn(5, 6)
for kind in KINDS:
    for sizes in ({"width": 32}, {"width": 16, "depth": 3}):
        outcome = run(
            lambda kind=kind: Lit(Net(kind=kind), torch.optim.SGD, lr=1e-2),
            vectors(),
            describe(Net, kind=kind, **sizes),
            see=lambda module: module.model(x).clone(),
        )
        refused = kind == "orthogonal" and "depth" not in sizes and outcome.refused
        say(outcome.honest() or (refused and "axis" in str(outcome.error)), kind, sizes, outcome)
