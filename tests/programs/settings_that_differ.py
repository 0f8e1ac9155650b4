"""Settings that differ between the two networks and have no shape: their effect is told.

The scale of attention, causal flag, window, pooling, interpolation, top-k.
"""

import torch
from torch import nn
from torch.nn import functional as F

from judge import grown, say


class Net(nn.Module):
    def __init__(self, width=16, **settings):
        super().__init__()
        self.read = nn.Conv2d(3, width, 3, padding=1)
        self.qkv, self.head = nn.Linear(width, 3 * width), nn.Linear(width, 5)
        self.settings = settings

    def forward(self, x):
        get = self.settings.get
        x = F.relu(self.read(x))
        x = F.max_pool2d(x, 2) if get("pool") == "max" else F.avg_pool2d(x, 2)
        mode, align = get("mode", "nearest"), get("align")
        x = F.interpolate(x, scale_factor=2, mode=mode, align_corners=align)
        x = x.flatten(2).transpose(1, 2)
        q, k, v = self.qkv(x).unflatten(-1, (3, -1, 4)).permute(2, 0, 3, 1, 4)
        near = None
        if "window" in self.settings:
            at = torch.arange(x.shape[1])
            near = (at[:, None] - at).abs() < get("window")
        scale, causal = get("scale"), get("causal", False)
        y = F.scaled_dot_product_attention(q, k, v, near, scale=scale, is_causal=causal)
        best = x.topk(get("top", 1), 1).values.sum(1)
        return self.head(y.transpose(1, 2).flatten(2).mean(1) + best)


x = torch.randn(2, 3, 8, 8)
for of_small, of_large in (
    ({}, {}),
    ({"scale": 0.5}, {"scale": 2.0}),
    ({}, {"causal": True}),
    ({"window": 3}, {"window": 9}),
    ({}, {"pool": "max"}),
    ({}, {"mode": "bilinear"}),
    ({"mode": "bilinear", "align": False}, {"mode": "bilinear", "align": True}),
    ({}, {"top": 3}),
):
    torch.manual_seed(0)
    outcome = grown(Net(**of_small), Net(32, **of_large), x)
    say(outcome.honest() if of_large else outcome.kept(), of_small, "->", of_large, outcome)
