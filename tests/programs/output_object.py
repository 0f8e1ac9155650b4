"""A network returns a torch Distribution, or a plain dataclass, instead of tensors, and grows.

After pytorch 14329.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import lightning_ligo as ligo
from judge import say
from training import Lit, run, vectors


@dataclass
class Out:
    logits: Tensor
    hidden: Tensor


class Net(nn.Module):
    def __init__(self, width: int = 16, kind: str = "distribution"):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(6, width), nn.GELU(), nn.Linear(width, width), nn.GELU()
        )
        self.mean, self.spread, self.kind = nn.Linear(width, 3), nn.Linear(width, 3), kind

    def forward(self, x):
        h = self.layers(x)
        if self.kind == "distribution":
            return torch.distributions.Normal(self.mean(h), F.softplus(self.spread(h)) + 0.1)
        return Out(self.mean(h) * self.spread(h).sigmoid(), h.mean(-1))


class OfObjects(Lit):
    def training_step(self, batch, batch_idx):
        out = self.model(batch[0])
        if isinstance(out, Out):
            return F.cross_entropy(out.logits, batch[1]) + out.hidden.square().mean()
        return -out.log_prob(batch[0][:, :3]).mean()


x = torch.randn(5, 6)


def see(module):
    out = module.model(x)
    return out.logits if isinstance(out, Out) else torch.cat([out.mean, out.stddev])


for kind in ("distribution", "dataclass"):
    outcome = run(
        lambda kind=kind: OfObjects(Net(kind=kind)),
        vectors(),
        ligo.describe(Net, width=32, kind=kind),
        see=see,
    )
    say(outcome.kept(), kind, outcome)
    plan = ligo.pair(Net(kind=kind), Net(32, kind), x)
    proofs = ligo.prove(Net(kind=kind), x)
    say(plan.axes and all(proofs[axis] < 1e-3 for axis in plan.axes), kind, "proved:", proofs)
