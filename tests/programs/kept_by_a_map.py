"""Networks whose function a map can keep, and that are told to be kept.

An unused parameter; gated and handwritten-norm layers, deeper; F.normalize times sqrt(width); a
tied table behind a handwritten norm (Cohere) or the last post-norm (GPT-1, BART, Marian, XLM); a
table times sqrt(width) (Gemma, BioGPT, XGLM, M2M-100).
"""

import math

import torch
from torch import nn
from torch.nn import functional as F

from judge import grown, say


def handwritten(x, gain):
    mean = x.mean(-1, keepdim=True)
    return gain * (x - mean) * torch.rsqrt((x - mean).pow(2).mean(-1, keepdim=True) + 1e-5)


class Net(nn.Module):
    def __init__(self, kind, width=16, depth=2):
        super().__init__()
        self.kind, self.width = kind, width
        self.embed, self.head = nn.Embedding(20, width), nn.Linear(width, 20, bias=False)
        self.layers = nn.ModuleList(nn.Linear(width, width) for _ in range(depth))
        self.gains = nn.ParameterList(torch.rand(width) + 0.5 for _ in range(depth))
        self.gates = nn.ModuleList(nn.Linear(width, width) for _ in range(depth))
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(depth))
        self.last = nn.Parameter(torch.rand(width) + 0.5)
        if kind == "unused":
            self.mask_token = nn.Parameter(torch.randn(width))
        if "tied" in kind:
            self.head.weight = self.embed.weight

    def forward(self, ids):
        x = c = self.embed(ids) * (math.sqrt(self.width) if self.kind == "scaled" else 1.0)
        for layer, gain, gate, norm in zip(
            self.layers, self.gains, self.gates, self.norms, strict=True
        ):
            if "post" in self.kind:
                x = norm(x + layer(x))
            elif self.kind == "gated":
                x = x + gate(c) * layer(x)
            else:
                x = x + layer(handwritten(x, gain) if "handwritten" in self.kind else gain * x)
        if self.kind == "length":
            x = F.normalize(x, dim=-1) * math.sqrt(self.width) * self.last
        elif "handwritten" in self.kind:
            x = handwritten(x, self.last)
        return self.head(x)


ids = torch.randint(0, 20, (2, 7))
for kind, larger in (
    ("unused", {"width": 32}),
    ("gated", {"depth": 4}),
    ("handwritten", {"depth": 4}),
    ("length", {"width": 32}),
    ("tied handwritten", {"width": 32}),
    ("tied post", {"width": 32}),
    ("scaled", {"width": 32}),
):
    torch.manual_seed(0)
    outcome = grown(Net(kind), Net(kind, **larger), ids)
    say(outcome.kept(), kind, larger, outcome)
