"""A diffusion network: sines of the time step, made in the forward, go into a linear layer.

They are as wide as the network. It grows, and what is told is what is measured. After fairseq 5213.
"""

import math

import torch
from torch import nn
from torch.nn import functional as F

from judge import say
from lightning_ligo import describe
from training import Lit, run, vectors


class Time(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.width = width
        self.mlp = nn.Sequential(
            nn.Linear(width, 2 * width), nn.SiLU(), nn.Linear(2 * width, width)
        )

    def forward(self, t):
        half = self.width // 2
        f = torch.exp(torch.arange(half, device=t.device) * (-math.log(1e4) / (half - 1)))
        angles = t[:, None].float() * f
        return self.mlp(torch.cat([angles.sin(), angles.cos()], -1))


def block(width):
    return nn.Sequential(nn.GroupNorm(4, width), nn.SiLU(), nn.Conv1d(width, width, 3, padding=1))


class Denoiser(nn.Module):
    def __init__(self, width: int = 16, depth: int = 2):
        super().__init__()
        self.time, self.embed = Time(width), nn.Conv1d(1, width, 3, padding=1)
        self.out = nn.Conv1d(width, 1, 3, padding=1)
        self.blocks = nn.ModuleList(block(width) for _ in range(depth))

    def forward(self, x, t):
        h, time = self.embed(x), self.time(t)[..., None]
        for block in self.blocks:
            h = h + block(h + time)
        return self.out(h)


class Diffusion(Lit):
    def training_step(self, batch, batch_idx):
        x, t = batch[0][:, None], torch.randint(100, (len(batch[0]),))
        noise = torch.randn_like(x)
        return F.mse_loss(self.model(x + noise * t[:, None, None] / 100, t), noise)


x, t = torch.randn(5, 1, 16), torch.arange(5) * 17
for name, size, named in (
    ("deeper", {"depth": 4}, {}),
    ("wider", {"width": 32}, {}),
    ("wider, the axis named", {"width": 32}, {"time.mlp.0.weight": "time_hidden sines"}),
):
    outcome = run(
        lambda: Diffusion(Denoiser()),
        vectors(inputs=16),
        describe(Denoiser, **size),
        see=lambda module: module.model(x, t),
        override=named,
    )
    say(outcome.honest(), f"{name}:", outcome)
