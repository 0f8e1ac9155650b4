"""A weight that is used through a function, a mask or a scale: f(w / 2) is not f(w) / 2.

What can be followed is kept, and the change of all others is told.
"""

import torch
from torch import nn
from torch.nn import functional as F

from judge import grown, say

FUNCTIONS = {
    "w": lambda net: net.w,
    "w / sqrt(fan_in)": lambda net: net.w / net.w.shape[1] ** 0.5,  # equalized learning rate
    "w * mask": lambda net: net.w * net.mask,  # pruning, a saved buffer
    "w * scale": lambda net: net.w * net.scale,  # efficient-kan
    "w * gain": lambda net: net.w * net.gain,  # a norm's gain folded into the reader
    "w + 1": lambda net: net.w + 1,
    "softplus(w)": lambda net: F.softplus(net.w),  # positive weights: ICNN, monotone networks
    "exp(w)": lambda net: net.w.exp(),
    "tanh(w)": lambda net: net.w.tanh(),
    "sign(w)": lambda net: net.w.sign(),  # binary networks
    "round(w / mean|w|)": lambda net: (net.w / net.w.abs().mean()).round() * net.w.abs().mean(),
    "(w - mean) / std": lambda net: (
        (net.w - net.w.mean(1, keepdim=True)) / net.w.std(1, keepdim=True)
    ),  # weight standardization by hand
}


class Net(nn.Module):
    def __init__(self, width, function):
        super().__init__()
        self.read, self.w = nn.Linear(6, width), nn.Parameter(torch.randn(5, width))
        if "scale" in function:
            self.scale = nn.Parameter(torch.randn(5, width))
        if "gain" in function:
            self.gain = nn.Parameter(torch.randn(width))
        if "mask" in function:
            self.register_buffer("mask", (torch.rand(5, width) > 0.5).float())
        self.function = function

    def forward(self, x):
        return F.linear(F.relu(self.read(x)), FUNCTIONS[self.function](self))


x = torch.randn(7, 6)
for function in FUNCTIONS:
    torch.manual_seed(0)
    outcome = grown(Net(16, function), Net(32, function), x)
    say(outcome.honest(), f"{function}:", outcome)
