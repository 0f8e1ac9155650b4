"""Kinds of networks for which claims were once false: what is told is what plain forwards show."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from lightning_ligo.operator.measure import KEPT
from networks import TOKENS, changed

X = {"x": torch.linspace(-3, 3, 72).sin().mul(7).cos().reshape(2, 6, 6)}


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


class Block(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.up, self.down = nn.Linear(width, 12), nn.Linear(12, width)

    def forward(self, x):
        return self.down(self.up(self.norm(x)).relu())


class Layered(nn.Module):
    """Blocks on a stream, joined by a function of the stream, the block, its number and all."""

    def __init__(self, step, width=6, depth=2):
        super().__init__()
        self.embed, self.head, self.step = nn.Linear(6, width), nn.Linear(width, 3), step
        self.blocks = nn.ModuleList(Block(width) for _ in range(depth))

    def forward(self, x):
        x = self.embed(x)
        for number, block in enumerate(self.blocks):
            x = self.step(x, block, number, len(self.blocks))
        return self.head(x)


NUMBERS = {  # of the depth or of a layer; whether new layers that add nothing leave the function
    "none": (lambda x, f, i, n: x + f(x), True),
    "one over the depth": (lambda x, f, i, n: x + f(x) / n, True),  # what is written is scaled
    "a power of the depth": (lambda x, f, i, n: x + f(x) * n**-0.5, True),
    "its own number": (lambda x, f, i, n: x + f(x) / (i + 1), False),
    "a power of its number": (lambda x, f, i, n: torch.add(x, f(x), alpha=0.5**i), False),
    "subtracted": (lambda x, f, i, n: torch.sub(x, f(x), alpha=i + 1), False),
    "every second": (lambda x, f, i, n: x + f(x) * (i % 2), False),
    "a mask": (lambda x, f, i, n: x + f(x) * torch.ones(6, 1).tril(-i), False),
    "the stream": (lambda x, f, i, n: x * 0.9 + f(x), False),
    "the last": (lambda x, f, i, n: x + f(x) * (2 if i == n - 1 else 1), False),
    "integers": (lambda x, f, i, n: x + f(x) * torch.tensor(n - i), False),
}


@pytest.mark.parametrize(("step", "kept"), NUMBERS.values(), ids=NUMBERS.keys())
def test_numbers_of_the_depth_are_told(step, kept):
    change, plan = changed(Layered(step), Layered(step, depth=4), X)
    assert (change <= KEPT) == kept and plan.stacks == {"blocks": (2, 4)}
    assert changed(Layered(step), Layered(step, 12), X)[0] <= KEPT  # wider, it is always kept


class Reads(Layered):
    def __init__(self, read, depth=2):
        super().__init__(None, depth=depth)
        self.read = read

    def forward(self, x):
        states = [self.embed(x)]
        for block in self.blocks:
            states.append(states[-1] + block(states[-1]))
        return self.head(self.read(states))


@pytest.mark.parametrize(
    ("read", "kept"),
    [
        (lambda states: torch.stack(states).mean(0), False),
        (lambda states: sum(states), False),
        (lambda states: states[1], True),
        (lambda states: states[-2], False),
        (lambda states: states[len(states) // 2], True),
    ],
    ids=["mean", "sum", "first", "last but one", "middle"],
)
def test_heads_that_read_layers_are_told(read, kept):
    change, _ = changed(Reads(read), Reads(read, 4), X)
    assert kept or change > KEPT


class Attention(nn.Module):
    """Attention that may be called several times, or otherwise in the larger network."""

    def __init__(self, head=4, calls=1, causal=False, scale=None, **_):
        super().__init__()
        self.qkv, self.out = nn.Linear(6, 6 * head), nn.Linear(2 * head, 6)
        self.calls, self.settings = calls, {"is_causal": causal, "scale": scale}
        self.head = head

    def forward(self, x):
        for _ in range(self.calls):
            heads = self.qkv(x).unflatten(-1, (3, 2, self.head)).permute(2, 0, 3, 1, 4)
            attended = F.scaled_dot_product_attention(*heads, **self.settings)
            x = x + self.out(attended.transpose(1, 2).flatten(2))
        return x


@pytest.mark.parametrize(
    ("small", "large", "kept"),
    [
        ({"calls": 1}, {"calls": 1}, True),
        ({"calls": 2}, {"calls": 2}, True),
        ({"calls": 3}, {"calls": 3}, True),
        ({"calls": 1}, {"calls": 2}, False),
        ({"causal": True}, {"causal": True}, True),
        ({"causal": False}, {"causal": True}, False),
        ({"scale": 0.3}, {"scale": 0.3}, True),
        ({"scale": 0.3}, {"scale": 0.2}, True),  # queries and keys make up for it
    ],
    ids=str,
)
def test_settings_that_no_tensor_shows_are_told(small, large, kept):
    change, plan = changed(Attention(4, **small), Attention(8, **large), X)
    assert (change <= KEPT) == kept and plan.axes == {"head_dim": (4, 8)}


@pytest.mark.parametrize(
    "settings",
    [
        (lambda x: x.mean(2, True), lambda x: x.amax(2, True)),
        (lambda x: x.topk(2, 2)[0], lambda x: x.topk(2, 2, largest=False)[0]),
        (F.gelu, F.silu),
        (lambda x: F.interpolate(x, 12), lambda x: F.interpolate(x, 12, mode="linear")),
    ],
    ids=["pooling", "top-k", "activation", "interpolation"],
)
def test_functions_that_differ_are_told(settings):
    def build(width, function):
        network = nn.Sequential(nn.Linear(6, width), nn.Identity(), nn.Linear(width, 3))
        network[1].forward = lambda x: function(x.transpose(1, 2)).transpose(1, 2)
        return network

    inputs = {"input": X["x"]}
    for large, kept in zip(settings, (True, False), strict=True):
        change, _ = changed(build(8, settings[0]), build(16, large), inputs)
        assert (change <= KEPT) == kept


class Beside(nn.Module):
    """A tied table that is joined to another weight, as in MobileBERT's head."""

    def __init__(self, width):
        super().__init__()
        self.table, self.other = nn.Embedding(50, width), nn.Parameter(torch.randn(50, width))
        self.inside, self.norm = nn.Linear(width, 2 * width), nn.LayerNorm(2 * width)

    def forward(self, input_ids):
        x = self.norm(self.inside(self.table(input_ids)))
        return x @ torch.cat([self.table.weight, self.other], 1).T


def test_a_tied_table_beside_another_weight_is_told():
    changed(Beside(4), Beside(8), TOKENS)


class PlusOne(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.zeros(width)), nn.Parameter(torch.zeros(width))

    def forward(self, x):
        return F.layer_norm(x, x.shape[-1:], self.weight + 1, self.bias)


@pytest.mark.parametrize("width", [12, 8])
def test_a_gain_of_one_more_than_its_weight_is_a_gain(width):
    def build(width):
        return nn.Sequential(nn.Linear(6, width), PlusOne(width), nn.Linear(width, 3))

    assert changed(build(6), build(width), {"input": X["x"]})[0] <= KEPT
