"""A Fourier neural operator: both parts of its complex weights are mapped.

After neuraloperator 49.
"""

import torch
from torch import nn
from torch.nn import functional as F

from judge import say
from lightning_ligo import describe
from training import LEMON, LIGO, Lit, run, vectors


class Spectral(nn.Module):
    def __init__(self, width, modes):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(width, width, modes, dtype=torch.cfloat) / width)
        self.modes = modes

    def forward(self, x):
        f = torch.fft.rfft(x)
        out = torch.zeros_like(f)
        out[..., : self.modes] = torch.einsum("bim,iom->bom", f[..., : self.modes], self.weight)
        return torch.fft.irfft(out, n=x.shape[-1])


class Fno(nn.Module):
    def __init__(self, width: int = 8, depth: int = 2, modes: int = 4):
        super().__init__()
        self.lift, self.project = nn.Conv1d(1, width, 1), nn.Conv1d(width, 1, 1)
        self.spectral = nn.ModuleList(Spectral(width, modes) for _ in range(depth))
        self.local = nn.ModuleList(nn.Conv1d(width, width, 1) for _ in range(depth))

    def forward(self, x):
        x = self.lift(x)
        for far, near in zip(self.spectral, self.local, strict=True):
            x = F.gelu(far(x) + near(x))
        return self.project(x)


class Shifting(Lit):
    def training_step(self, batch, batch_idx):
        x = batch[0][:, None]
        return F.mse_loss(self.model(x), x.roll(1, -1))


x = torch.randn(5, 1, 16)
for method in (LEMON, LIGO, {"method": "stack+copy"}):
    outcome = run(
        lambda: Shifting(Fno()),
        vectors(inputs=16),
        describe(Fno, width=16),
        see=lambda module: module.model(x),
        **method,
    )
    asked = outcome.honest() if method["method"] == "stack+copy" else outcome.kept()
    say(asked, method["method"], outcome)
