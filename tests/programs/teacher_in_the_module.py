"""A mean teacher (BYOL, DINO) that the module keeps as a deep copy of the network grows too.

After lightly 1899.
"""

import copy

import torch
from torch.nn import functional as F

from judge import say
from lightning_ligo import describe
from training import Lit, Net, run, vectors


class Student(Lit):
    def __init__(self):
        super().__init__(Net())
        self.teacher = copy.deepcopy(self.model).requires_grad_(False)

    def training_step(self, batch, batch_idx):
        with torch.no_grad():
            target = self.teacher(batch[0])
        out = self.model(batch[0])
        return F.cross_entropy(out, batch[1]) + F.mse_loss(out, target)

    @torch.no_grad()
    def on_train_batch_end(self, outputs, batch, batch_idx):
        for slow, fast in zip(self.teacher.parameters(), self.model.parameters(), strict=True):
            slow.lerp_(fast, 0.01)

    def configure_optimizers(self):
        return torch.optim.SGD(self.model.parameters(), lr=1e-3)


outcome = run(Student, vectors(), describe(Net, width=32))
shapes = [
    [parameter.shape for parameter in network.parameters()]
    for network in (outcome.module.teacher, outcome.module.model)
]
say((outcome.grew and shapes[0] == shapes[1]) or outcome.refused, outcome)
