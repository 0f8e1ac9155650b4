"""The network is called with the batch itself, a dataclass of tensors that knows `.to`, and grows.

After pytorch-lightning 2465.
"""

from dataclasses import dataclass, fields

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader

from judge import say
from lightning_ligo import describe
from training import LEMON, LIGO, Lit, run


@dataclass
class Graphs:
    x: Tensor
    edges: Tensor
    graph: Tensor
    y: Tensor

    def to(self, device, **_):
        return Graphs(*(getattr(self, field.name).to(device) for field in fields(self)))


class Gnn(nn.Module):
    def __init__(self, width: int = 8, depth: int = 2):
        super().__init__()
        self.embed, self.head = nn.Linear(4, width), nn.Linear(width, 3)
        self.blocks = nn.ModuleList(nn.Linear(2 * width, width) for _ in range(depth))

    def forward(self, batch):
        source, target = batch.edges
        x = self.embed(batch.x)
        for block in self.blocks:
            heard = torch.zeros_like(x).index_add(0, target, x[source])
            x = x + torch.relu(block(torch.cat([x, heard], -1)))
        count = int(batch.graph.max()) + 1
        return self.head(x.new_zeros(count, x.shape[1]).index_add(0, batch.graph, x))


def collate(items):
    g = torch.Generator().manual_seed(int(items[0]))
    x, edges = torch.randn(20, 4, generator=g), torch.randint(20, (2, 40), generator=g)
    return Graphs(x, edges, torch.arange(20) // 5, torch.randint(3, (4,), generator=g))


class OfGraphs(Lit):
    def training_step(self, batch, batch_idx):
        return F.cross_entropy(self.model(batch), batch.y)


x = collate([torch.tensor(3)])
for method in (LEMON, LIGO):
    outcome = run(
        lambda: OfGraphs(Gnn()),
        DataLoader(range(96), 8, collate_fn=collate),
        describe(Gnn, width=16, depth=3),
        see=lambda module: module.model(x),
        **method,
    )
    # ligo starts from a stack with fresh parts, which is another function
    say(outcome.kept() if method is LEMON else outcome.honest(), method["method"], outcome)
