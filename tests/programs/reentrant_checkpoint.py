"""A network with torch.utils.checkpoint of its own, grown by a method that learns.

Recomputing changes nothing of what is learned; use_reentrant=True, which torch cannot
differentiate so, is refused at the start by name. After pytorch 65537.
"""

import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from judge import say
from lightning_ligo import describe
from training import Lit, run, vectors


class Block(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.norm, self.up = nn.LayerNorm(width), nn.Linear(width, 2 * width)
        self.down = nn.Linear(2 * width, width)

    def forward(self, x):
        return x + self.down(F.gelu(self.up(self.norm(x))))


class Net(nn.Module):
    def __init__(self, width: int = 16, depth: int = 2, recompute: str = "no"):
        super().__init__()
        self.embed, self.head = nn.Linear(6, width), nn.Linear(width, 3)
        self.blocks = nn.ModuleList(Block(width) for _ in range(depth))
        self.recompute = recompute

    def forward(self, x):
        x = self.embed(x)
        for block in self.blocks:
            if self.training and self.recompute != "no":
                x = checkpoint(block, x, use_reentrant=self.recompute == "reentrant")
            else:
                x = block(x)
        return self.head(x)


def make(recompute):
    torch.manual_seed(5)
    return Lit(Net(recompute=recompute))


outcomes = {
    recompute: run(
        lambda recompute=recompute: make(recompute),
        vectors(),
        describe(Net, width=32, depth=4, recompute=recompute),
        see=lambda module: nn.utils.parameters_to_vector(module.model.parameters()),
        method="ligo",
        steps=20,
        learning_rate=1e-2,
    )
    for recompute in ("no", "not reentrant", "reentrant")
}
plain = outcomes.pop("no")
say(plain.grew, "without recomputing;", plain)
for name, outcome in outcomes.items():
    if outcome.grew:
        gap = float((outcome.after - plain.after).abs().max())
        say(gap < 1e-4, f"{name}: grown weights differ by {gap:.1e} from those of no recomputing")
    else:
        refused = outcome.refused and "reentrant" in str(outcome.error)
        say(refused and name == "reentrant", f"{name}: {outcome}")
