"""The same attention, called several times in one forward, keeps its function with longer heads.

Two views, a siamese pair, a universal transformer. After ALBERT 153.
"""

import torch
from torch import nn
from torch.nn import functional as F
from transformers import AlbertConfig, AlbertForMaskedLM

from judge import grown, noisy, say


class Views(nn.Module):
    def __init__(self, width, kind):
        super().__init__()
        self.embed, self.qkv = nn.Linear(6, width), nn.Linear(width, 3 * width)
        self.out, self.head = nn.Linear(width, width), nn.Linear(width, 3)
        self.norm, self.kind = nn.LayerNorm(width), kind

    def encode(self, x):
        x = self.embed(x)
        b, t, c = x.shape
        q, k, v = self.qkv(self.norm(x)).view(b, t, 3, 2, c // 2).permute(2, 0, 3, 1, 4)
        seen = ((q @ k.mT) / (c // 2) ** 0.5).softmax(-1) if self.kind != "sdpa" else None
        if self.kind == "sdpa, and a map to look at":
            self.map = seen.detach()
        y = seen @ v if self.kind == "by hand" else F.scaled_dot_product_attention(q, k, v)
        return x + self.out(y.transpose(1, 2).reshape(b, t, c))

    def forward(self, *views):
        return self.head(sum(self.encode(x).mean(1) for x in views))


def albert(width, passes):
    sizes = {"hidden_size": width, "intermediate_size": 2 * width, "num_hidden_layers": passes}
    sizes |= {"vocab_size": 50, "embedding_size": 16, "max_position_embeddings": 16}
    return AlbertForMaskedLM(AlbertConfig(num_attention_heads=2, **sizes)).eval()


def ask(name, small, large, *args):
    torch.manual_seed(1)
    outcome = grown(noisy(small.double(), 0.3), large.double(), *args)
    say(outcome.kept(1e-9), f"{name}:", outcome)


for kind in ("sdpa", "by hand", "sdpa, and a map to look at"):
    for calls in (1, 2, 3):
        views = [torch.randn(3, 5, 6).double() for _ in range(calls)]
        ask(f"{kind}, {calls} calls", Views(16, kind), Views(32, kind), *views)
for passes in (1, 2, 4):
    ids = torch.arange(24).reshape(2, 12)
    ask(f"albert, {passes} passes", albert(32, passes), albert(64, passes), ids)
