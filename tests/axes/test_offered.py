"""Overrides that refusals offer, taken at their word: pasted, they let the network grow."""

import ast
import re

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import lightning_ligo as ligo
from lightning_ligo.callbacks.checks import check_used
from networks import randomised
from operations import fourier

X = torch.linspace(-3, 3, 60, dtype=torch.float64).sin().reshape(2, 5, 6)
TOKENS = torch.arange(10).reshape(2, 5)


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def strange(x: Tensor) -> Tensor:
    """An operation on positions that cannot be read, and leaves all axes where they are."""
    return fourier(x, 1)


class Block(nn.Module):
    def __init__(self, width, around=strange, shortcut=False):
        super().__init__()
        self.norm, self.around = nn.LayerNorm(width), around
        self.up, self.down = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)
        self.shortcut = nn.Linear(width, width) if shortcut else None

    def forward(self, x):
        inside = self.down(self.around(self.up(self.norm(x))))
        return x + inside + (self.shortcut(x) if self.shortcut else 0)


class Gated(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(2 * width, width)

    def forward(self, x):
        value, gate = strange(self.up(x)).chunk(2, -1)
        return x + self.down(value * gate.sigmoid())


class Joined(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.one, self.two = nn.Linear(width, width), nn.Linear(width, 2 * width)
        self.down = nn.Linear(3 * width, width)

    def forward(self, x):
        return x + self.down(strange(torch.cat([self.one(x), self.two(x)], -1)))


class Heads(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x):
        heads = strange(self.qkv(x)).unflatten(-1, (3, -1, 4)).permute(2, 0, 3, 1, 4)
        return x + self.out(F.scaled_dot_product_attention(*heads).transpose(1, 2).flatten(2))


class Convolved(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.up = nn.Conv1d(width, 2 * width, 3, padding=1)
        self.down = nn.Conv1d(2 * width, width, 1)

    def forward(self, x):
        inside = strange(self.up(x.transpose(1, 2)).transpose(1, 2))
        return x + self.down(inside.transpose(1, 2)).transpose(1, 2)


class Tied(nn.Module):
    def __init__(self, width, _):
        super().__init__()
        self.table, self.norm = nn.Embedding(11, width), nn.LayerNorm(width)

    def forward(self, x):
        return self.norm(strange(self.table(x))) @ self.table.weight.T


class Recurrent(nn.Module):
    def __init__(self, width, _):
        super().__init__()
        self.rnn, self.head = nn.LSTM(6, width, 2, batch_first=True), nn.Linear(width, 3)

    def forward(self, x):
        return self.head(strange(self.rnn(x)[0]))


class Named(nn.Module):
    def __init__(self, width, depth):
        super().__init__()
        self.embed, self.head, self.depth = nn.Linear(6, width), nn.Linear(width, 3), depth
        for number in range(depth):
            setattr(self, f"layer_{number}_block", Block(width))

    def forward(self, x):
        x = self.embed(x)
        for number in range(self.depth):
            x = getattr(self, f"layer_{number}_block")(x)
        return self.head(x)


def of(*kinds):
    """A network whose blocks are of these kinds in turn."""

    def build(width, depth):
        blocks = (kinds[layer % len(kinds)](width) for layer in range(depth * len(kinds)))
        return nn.Sequential(nn.Linear(6, width), nn.Sequential(*blocks), nn.Linear(width, 3))

    return build


def shortcut(width):
    return Block(width, shortcut=True)


def plain(width):
    return Block(width, F.relu, shortcut=True)


@pytest.mark.parametrize(("width", "depth"), [(16, 2), (8, 4), (16, 4)])
@pytest.mark.parametrize(
    ("build", "x"),
    [
        pytest.param(of(Block), X, id="blocks"),
        pytest.param(of(Block, shortcut), X, id="two kinds of blocks"),
        pytest.param(of(Block, plain), X, id="in one kind only"),
        pytest.param(of(Gated), X, id="gates"),
        pytest.param(of(Joined), X, id="joined"),
        pytest.param(of(Heads), X, id="heads"),
        pytest.param(of(Convolved), X, id="convolutions"),
        pytest.param(Named, X, id="numbers in names"),
        pytest.param(Tied, TOKENS, id="a tied table"),
        pytest.param(Recurrent, X, id="a recurrent network"),
    ],
)
def test_the_override_that_is_offered_lets_the_network_grow(build, x, width, depth):
    small, large = randomised(build(8, 2), torch.float64), build(width, depth).double().eval()
    override, offers = None, 0
    while True:
        try:
            plan = ligo.pair(small, large, x, override=override)
            break
        except ValueError as error:  # the large network has further layers to name
            found = re.search(r"override=(\{.*?\n\})", str(error), re.DOTALL)
            override, offers = ast.literal_eval(found[1]), offers + 1
            assert offers <= 2, error
    assert offers and bool(plan.axes) == (width > 8)
    assert ligo.measure(plan, small, large, [ligo.Call((x,))], method="lemon").kept


def test_the_override_that_is_offered_for_what_no_call_uses_is_enough():
    class Spare(Block):
        def __init__(self, width):
            super().__init__(width, F.relu)
            self.spare = nn.Parameter(torch.zeros(width))

    build = of(Spare, plain)
    plan = ligo.pair(build(8, 2), build(16, 4).double(), X.float())
    trained = [name for row in plan.rows for name in row.large_names]
    with pytest.raises(ValueError, match="let it start as the large network builds it") as raised:
        check_used(plan, trained, None)
    offer = ast.literal_eval(re.search(r"override=(\{.*\})$", str(raised.value))[1])
    check_used(plan, trained, offer)
    ligo.pair(build(8, 2), build(16, 4), X.float(), override=offer)
