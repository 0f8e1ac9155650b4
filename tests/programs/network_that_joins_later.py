"""The network is not called on the first batch: it is skipped, or networks run in turn, or late.

After pytorch-lightning 3262 and 3323.
"""

import torch
from torch.nn import functional as F

from judge import say
from lightning_ligo import describe
from training import Lit, Net, run, vectors


class Late(Lit):
    def __init__(self, kind):
        super().__init__(Net())
        self.other, self.kind = Net(), kind

    def training_step(self, batch, batch_idx):
        x, y = batch
        if self.kind == "skipped" and batch_idx == 0:
            return None  # nothing to learn in this batch
        loss = F.cross_entropy(self.other(x), y)
        if self.kind == "in turn" and batch_idx % 2 == 0:
            return loss
        if self.kind == "in the second epoch" and self.current_epoch == 0:
            return loss
        own = F.cross_entropy(self.model(x), y)
        return own if self.kind == "in turn" else loss + own


x = torch.randn(5, 6)
for kind in ("skipped", "in turn", "in the second epoch"):
    outcome = run(
        lambda kind=kind: Late(kind),
        vectors(),
        describe(Net, width=32),
        see=lambda module: module.model(x),
        step=18,
    )
    say(outcome.kept(), kind + ":", outcome)
