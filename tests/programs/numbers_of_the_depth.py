"""Residual branches with a number that depends on the depth, or on the layer, written in 20 ways.

Whether the function changes with the depth is told as it is measured.
"""

import math

import torch
from torch import nn
from torch.nn import functional as F

from judge import grown, say


def attention(layer, x, scale):
    q, k, v = layer.qkv(x)[:, None].chunk(3, -1)
    return layer(F.scaled_dot_product_attention(q * 3, k * 3, v, scale=scale)[:, 0])


KINDS = {  # of the layer, its input, the depth and the number of the layer
    "plain": lambda f, x, n, i: x + f(x),
    "float times": lambda f, x, n, i: x + f(x) * (1 / math.sqrt(2 * n)),
    "divided by the int depth": lambda f, x, n, i: x + f(x) / n,
    "int times": lambda f, x, n, i: x + n * f(x),
    "add with alpha": lambda f, x, n, i: torch.add(x, f(x), alpha=1 / n),
    "sub with int alpha": lambda f, x, n, i: torch.sub(x, f(x), alpha=n),
    "stream times float": lambda f, x, n, i: x * (2 * n) ** 0.25 + f(x),
    "power": lambda f, x, n, i: x + torch.tanh(f(x)) ** n,
    "tensor made in the forward": lambda f, x, n, i: x + f(x) * torch.tensor(1.0 / n),
    "buffer, not saved": lambda f, x, n, i: x + f(x) * f.rate,
    "slope of leaky relu": lambda f, x, n, i: x + F.leaky_relu(f(x), 1 / n),
    "clamped": lambda f, x, n, i: x + f(x).clamp(-1 / n, 1 / n),
    "lerp": lambda f, x, n, i: torch.lerp(x, f(x), 1 / n),
    "softmax with temperature": lambda f, x, n, i: x + (f(x) / n).softmax(-1),
    "attention scale by layer": lambda f, x, n, i: x + attention(f, x, 0.25 / (i + 1)),
    "attention scale by depth": lambda f, x, n, i: x + attention(f, x, 0.25 / n),
    "by layer": lambda f, x, n, i: x + f(x) / (i + 1),
    "mask by layer": lambda f, x, n, i: x + f(torch.where(f.mask, x, 0.0)),
    "shift by layer": lambda f, x, n, i: x + f(x.roll(i, 1)),
    "odd layers only": lambda f, x, n, i: x + (torch.relu(f(x)) if i % 2 else torch.tanh(f(x))),
}


class Layer(nn.Module):
    def __init__(self, kind, width, depth, number):
        super().__init__()
        self.linear = nn.Linear(width, width)
        if "attention" in kind:
            self.qkv = nn.Linear(width, 3 * width)
        if "buffer" in kind:
            self.register_buffer("rate", torch.tensor(1.0 / depth), persistent=False)
        if "mask" in kind:
            odd = torch.arange(5)[:, None] % 2
            self.register_buffer("mask", odd == number % 2, persistent=False)

    def forward(self, x):
        return self.linear(x)


class Net(nn.Module):
    def __init__(self, kind, depth, width=16):
        super().__init__()
        self.embed, self.head, self.kind = nn.Linear(6, width), nn.Linear(width, 3), kind
        self.layers = nn.ModuleList(Layer(kind, width, depth, i) for i in range(depth))

    def forward(self, x):
        x = self.embed(x)
        for i, layer in enumerate(self.layers):
            x = KINDS[self.kind](layer, x, len(self.layers), i)
        return self.head(x)


x = torch.randn(4, 5, 6)
for kind in KINDS:
    torch.manual_seed(0)
    outcome = grown(Net(kind, 2).eval(), Net(kind, 4).eval(), x)
    say(outcome.honest(), f"{kind}:", outcome)
