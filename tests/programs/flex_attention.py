"""Attention by torch's flex_attention, with a causal block mask, grows.

Forward only: torch has no backward of it on CPUs. After attention-gym 70.
"""

import torch
from torch import nn
from torch.nn.attention import flex_attention as flex

from judge import grown, say


def causal(batch, head, query, key):
    return query >= key


class Block(nn.Module):
    def __init__(self, width, heads):
        super().__init__()
        self.norm, self.qkv = nn.LayerNorm(width), nn.Linear(width, 3 * width)
        self.out, self.heads = nn.Linear(width, width), heads

    def forward(self, x, mask):
        b, t, c = x.shape
        heads = self.qkv(self.norm(x)).view(b, t, 3, self.heads, c // self.heads)
        q, k, v = heads.permute(2, 0, 3, 1, 4)
        y = flex.flex_attention(q, k, v, block_mask=mask)
        return x + self.out(y.transpose(1, 2).reshape(b, t, c))


class Net(nn.Module):
    def __init__(self, width: int, heads: int, depth: int, masked: bool):
        super().__init__()
        self.embed, self.head = nn.Linear(4, width), nn.Linear(width, 3)
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(depth))
        self.masked = masked

    def forward(self, x):
        mask = None
        if self.masked:
            length = x.shape[1]
            mask = flex.create_block_mask(causal, None, None, length, length, device=x.device.type)
        x = self.embed(x)
        for block in self.blocks:
            x = block(x, mask)
        return self.head(x[:, -1])


x = torch.randn(5, 16, 4)
for masked in (True, False):
    small, large = Net(32, 2, 1, masked), Net(64, 4, 2, masked)
    outcome = grown(small.requires_grad_(False).eval(), large.requires_grad_(False).eval(), x)
    say(outcome.kept(), "block mask;" if masked else "no mask;", outcome)
