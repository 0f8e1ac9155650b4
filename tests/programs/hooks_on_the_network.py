"""Hooks of a module on a layer (features for a loss) and a parameter (a mask) are carried over.

After slapo 24.
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
        self.embed, self.body = nn.Embedding(11, width), nn.Linear(width, width)
        self.head = nn.Linear(width, 3)

    def forward(self, ids):
        return self.head(torch.relu(self.body(self.embed(ids).mean(1))))


class Hooked(Lit):
    def __init__(self, which):
        super().__init__(Net(), torch.optim.SGD, lr=1e-1)
        self.which, self.calls = which, 0
        if which == "forward":
            self.model.body.register_forward_hook(self.keep)
        else:  # rows 0 to 4 of the table are to stay as they are
            self.model.embed.weight.register_hook(lambda g: g * (torch.arange(11) > 4)[:, None])

    def keep(self, module, args, output):
        self.features, self.calls = output, self.calls + 1

    def training_step(self, batch, batch_idx):
        out = self.model((batch[0] * 3).abs().long().clamp(0, 10))
        loss = F.cross_entropy(out, batch[1])
        return loss + 0.1 * self.features.square().mean() if self.which == "forward" else loss


outcome = run(lambda: Hooked("forward"), vectors(), describe(Net, width=32))
calls = outcome.module.calls
say(outcome.grew and calls >= 24, f"forward hook, called in {calls} steps of 24;", outcome)


def rows(module):
    return module.model.embed.weight[:5].detach().clone()


outcome = run(lambda: Hooked("gradient"), vectors(), describe(Net, width=32), see=rows)
moved = float((rows(outcome.module) - outcome.after).norm()) if outcome.grew else None
say(moved == 0, f"gradient hook, the rows that were to stay moved by {moved};", outcome.told)
