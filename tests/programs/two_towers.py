"""One network with two towers, called twice a step (CLIP-like): both towers are kept.

After openai/CLIP 111.
"""

import torch
from torch import nn
from torch.nn import functional as F

from judge import say
from lightning_ligo import describe
from training import Lit, run, vectors


class TwoTowers(nn.Module):
    def __init__(self, width: int = 16):
        super().__init__()
        self.image = nn.Sequential(nn.Linear(6, width), nn.GELU(), nn.Linear(width, 4))
        self.text = nn.Sequential(nn.Linear(6, width), nn.GELU(), nn.Linear(width, 4))

    def forward(self, image=None, text=None):
        return self.image(image) if image is not None else self.text(text)


class Contrastive(Lit):
    def training_step(self, batch, batch_idx):
        a, b = self.model(image=batch[0]), self.model(text=batch[0].flip(1))
        return F.cross_entropy(a @ b.T, torch.arange(len(a)))


x = torch.randn(5, 6)
for tower in ("image", "text"):
    outcome = run(
        lambda: Contrastive(TwoTowers(), torch.optim.SGD),
        vectors(),
        describe(TwoTowers, width=32),
        see=lambda module, tower=tower: module.model(**{tower: x}),
    )
    say(outcome.kept(), f"tower {tower}", outcome)
