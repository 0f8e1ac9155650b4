"""Networks that read values in their forward, which tensors without memory do not have."""

import pytest
import torch
from torch import Tensor, nn

from lightning_ligo import Growth, GrowthCallback, describe
from runs import CLASSES, Net, Plain, fit


class Reading(Net):
    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.norm(self.blocks(self.read(self.embed(x)))))


class Numpy(Reading):
    def read(self, x):
        keep = x.detach().abs().sum(-1).cpu().numpy() >= 0
        return x[torch.from_numpy(keep)]


class Repeated(Reading):
    def read(self, x):
        return torch.repeat_interleave(x, torch.full((len(x),), 2), 0)[::2]


class Masked(Reading):
    def read(self, x):
        return x * (torch.arange(len(x), device="cpu") >= 0)[:, None]


class Packed(Reading):
    """Runs over three positions, as many as a length on the CPU says."""

    def __init__(self, width: int = 8, depth: int = 1, classes: int = CLASSES) -> None:
        super().__init__(width, depth, classes)
        self.rnn = nn.GRU(width, width, batch_first=True)

    def read(self, x):
        lengths = torch.full((len(x),), 2, device=x.device)
        packed = nn.utils.rnn.pack_padded_sequence(
            x[:, None].expand(-1, 3, -1), lengths.cpu(), batch_first=True, enforce_sorted=False
        )
        return nn.utils.rnn.pad_packed_sequence(self.rnn(packed)[0], batch_first=True)[0].mean(1)


@pytest.mark.parametrize("kind", [Numpy, Repeated, Masked, Packed])
def test_they_grow_in_a_run(tmp_path, kind):
    module = Plain()
    module.network = kind()
    large = describe(kind, width=24, depth=4)
    fit(module, tmp_path, GrowthCallback([Growth(large, step=8)]))
    assert module.network.embed.out_features == 24 and len(module.network.blocks) == 4
