"""A stream with two blocks, small enough to write down what grows out of it."""

import torch
from torch import Tensor, nn

X = torch.linspace(-2, 2, 20).sin().reshape(5, 4).double()


class Block(nn.Module):
    def __init__(self, width, hidden, norm):
        super().__init__()
        self.norm = norm(width)
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, x):
        return x + self.fc2(self.fc1(self.norm(x)).relu())


class Toy(nn.Module):
    """A stream with blocks of two layers. E embeds, U and V are a block's layers, H is the head."""

    def __init__(self, width=6, hidden=8, depth=2, norm=nn.Identity):
        super().__init__()
        self.embed = nn.Linear(4, width)
        self.blocks = nn.ModuleList(Block(width, hidden, norm) for _ in range(depth))
        self.norm = norm(width)
        self.head = nn.Linear(width, 3)

    E = property(lambda self: self.embed.weight)
    H = property(lambda self: self.head.weight)
    U = property(lambda self: [block.fc1.weight for block in self.blocks])
    u = property(lambda self: [block.fc1.bias for block in self.blocks])
    V = property(lambda self: [block.fc2.weight for block in self.blocks])
    v = property(lambda self: [block.fc2.bias for block in self.blocks])

    def forward(self, x):
        x = self.embed(x)
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x))


def close(ours: Tensor, theirs: Tensor) -> None:
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)
