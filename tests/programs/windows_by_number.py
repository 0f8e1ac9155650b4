"""Local and full attention by the layer's number, in plain torch, 2 -> 4 layers.

With windows longer than the traced text the growth is exact for that text and wrong for longer
ones, which "kept" must not be told of. Qwen2, Gemma 2 and Mistral are built so.
"""

import torch
from torch import nn

from judge import grown, say


class Net(nn.Module):
    def __init__(self, depth, window, width=32):
        super().__init__()
        self.embed, self.head = nn.Embedding(50, width), nn.Linear(width, 50)
        self.place = nn.Parameter(torch.randn(64, width))
        self.layers = nn.ModuleList(
            nn.MultiheadAttention(width, 4, batch_first=True) for _ in range(depth)
        )
        self.window = window

    def forward(self, ids):
        x = self.embed(ids) + self.place[: ids.shape[1]]
        at = torch.arange(ids.shape[1])
        back = at[:, None] - at
        for number, layer in enumerate(self.layers):
            seen = (back >= 0) & (back < (self.window if number % 2 == 0 else 10**6))
            x = x + layer(x, x, x, attn_mask=~seen, need_weights=False)[0]
        return self.head(x)


torch.manual_seed(0)
traced, longer = torch.randint(0, 50, (2, 12)), torch.randint(0, 50, (2, 40))
for window in (3, 16):
    outcome = grown(
        Net(2, window),
        Net(4, window),
        traced,
        see=lambda network: torch.cat([network(traced), network(longer)], 1),
    )
    say(outcome.honest(), f"window {window}, traced with 12 tokens, of 12 and 40:", outcome)
