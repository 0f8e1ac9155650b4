"""A network is called with its targets and returns its loss, as forecasting and speech codes do.

It grows with each of these 16 losses.
"""

import torch
from torch import nn
from torch.nn import functional as F

from judge import grown, say


def ctc(o, t):
    return F.ctc_loss(o[:, None].log_softmax(-1), torch.ones(1, 2, dtype=torch.long), (5,), (2,))


LOSSES = {
    "cross_entropy": lambda o, t: F.cross_entropy(o, t[:, 0].long() % 3),
    "mse": F.mse_loss,
    "l1": F.l1_loss,
    "smooth_l1": F.smooth_l1_loss,
    "huber": F.huber_loss,
    "binary_cross_entropy_with_logits": lambda o, t: F.binary_cross_entropy_with_logits(
        o, (t > 0).float()
    ),
    "binary_cross_entropy": lambda o, t: F.binary_cross_entropy(o.sigmoid(), (t > 0).float()),
    "kl_div": lambda o, t: F.kl_div(o.log_softmax(-1), t.softmax(-1), reduction="batchmean"),
    "gaussian_nll": lambda o, t: F.gaussian_nll_loss(o, t, o.exp()),
    "poisson_nll": lambda o, t: F.poisson_nll_loss(o, t.abs()),
    "ctc": ctc,
    "triplet_margin": lambda o, t: F.triplet_margin_loss(o, t, t.flip(0)),
    "multilabel_soft_margin": lambda o, t: F.multilabel_soft_margin_loss(o, (t > 0).float()),
    "soft_margin": lambda o, t: F.soft_margin_loss(o, t.sign()),
    "cosine_embedding": lambda o, t: F.cosine_embedding_loss(o, t, torch.ones(len(o))),
    "hinge by hand": lambda o, t: (1 - o * t).clamp(min=0).mean(),
}


class Net(nn.Module):
    def __init__(self, width: int, kind: str):
        super().__init__()
        self.layers, self.kind = nn.Sequential(nn.Linear(6, width), nn.GELU()), kind
        self.head = nn.Linear(width, 3)

    def forward(self, x, target):
        out = self.head(self.layers(x))
        return LOSSES[self.kind](out, target), out


torch.manual_seed(0)
x, target = torch.randn(5, 6), torch.randn(5, 3)
for kind in LOSSES:
    outcome = grown(Net(16, kind), Net(32, kind), x, target)
    say(outcome.kept(), kind, outcome)
