"""Heads in a ModuleDict, one task a batch: the head that the first batch does not use is kept.

After sleap-nn 480.
"""

import torch
from torch import nn
from torch.nn import functional as F

from judge import say
from lightning_ligo import describe
from training import Lit, run, vectors


class Net(nn.Module):
    def __init__(self, width: int = 16):
        super().__init__()
        self.trunk = nn.Sequential(
            nn.Linear(6, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU()
        )
        self.heads = nn.ModuleDict({"a": nn.Linear(width, 3), "b": nn.Linear(width, 3)})

    def forward(self, x, task: str):
        return self.heads[task](self.trunk(x))


class MultiTask(Lit):
    def training_step(self, batch, batch_idx):
        return F.cross_entropy(self.model(batch[0], "ab"[batch_idx % 2]), batch[1])


x = torch.randn(5, 6)
for task, named in (("a", {}), ("b", {}), ("b", {"heads.b.weight": "3 hidden"})):
    outcome = run(
        lambda: MultiTask(Net(), torch.optim.SGD),
        vectors(),
        describe(Net, width=32),
        see=lambda module, task=task: module.model(x, task),
        override=named,
    )
    say(outcome.kept(), f"head {task}, named: {named or 'nothing'};", outcome)
