"""A causal mask of -inf in a buffer (llama2.c), saved or not, is no reason to refuse."""

import torch
from torch import nn

from judge import grown, say


class Net(nn.Module):
    def __init__(self, width, persistent):
        super().__init__()
        self.read, self.qkv = nn.Linear(6, width), nn.Linear(width, 3 * width)
        self.head = nn.Linear(width, 5)
        mask = torch.full((12, 12), float("-inf")).triu(1)
        self.register_buffer("mask", mask, persistent=persistent)

    def forward(self, x):
        x = self.read(x)
        q, k, v = self.qkv(x).chunk(3, -1)
        scores = q @ k.transpose(1, 2) / q.shape[-1] ** 0.5
        scores = scores + self.mask[: x.shape[1], : x.shape[1]]
        return self.head(x + scores.softmax(-1) @ v)


x = torch.randn(2, 12, 6)
for persistent in (False, True):
    outcome = grown(Net(16, persistent), Net(32, persistent), x)
    say(outcome.honest(), "saved:" if persistent else "not saved:", outcome)
