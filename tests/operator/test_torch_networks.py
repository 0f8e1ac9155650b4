"""Networks of nothing but torch: traced, proved, paired with a larger one and grown."""

import functools
import itertools

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import lightning_ligo as ligo
from lightning_ligo.axes.axes import UNUSED
from lightning_ligo.axes.proof import TOLERANCE
from networks import DEVICES, SEQUENCES, Recurrent, cast, measured, output, randomised

TOKENS = {"x": torch.arange(14).reshape(2, 7) * 5 % 11}
VECTORS = {"input": torch.linspace(-1, 1, 3 * 12).sin().mul(7).cos().reshape(3, 12)}
IMAGES = {"x": torch.linspace(-1, 1, 2 * 3 * 256).sin().mul(99).cos().reshape(2, 3, 16, 16)}
TEXTS = {"source": TOKENS["x"], "target": TOKENS["x"][:, :5].flip(1)}


class Encoder(nn.Module):
    def __init__(self, width, depth=2, heads=2, hidden=24, masked=False, final=True, **options):
        super().__init__()
        self.embed = nn.Linear(3, width)
        layer = nn.TransformerEncoderLayer(width, heads, hidden, **options)
        norm = nn.LayerNorm(width) if final else None
        self.encoder = nn.TransformerEncoder(layer, depth, norm, enable_nested_tensor=False)
        self.head = nn.Linear(width, 5)
        self.masked = masked

    def forward(self, x):
        mask = nn.Transformer.generate_square_subsequent_mask(x.shape[1], x.device, x.dtype)
        return self.head(self.encoder(self.embed(x), mask=mask if self.masked else None))


class Translator(nn.Module):
    def __init__(self, width, depths=(2, 2), heads=2, hidden=24, **options):
        super().__init__()
        self.embed = nn.Embedding(11, width)
        self.positions = nn.Parameter(torch.zeros(9, width))
        self.transformer = nn.Transformer(
            width, heads, *depths, hidden, batch_first=True, **options
        )
        self.head = nn.Linear(width, 11)

    def forward(self, source, target):
        mask = nn.Transformer.generate_square_subsequent_mask(target.shape[1])
        embedded = [self.embed(x) + self.positions[: x.shape[1]] for x in (source, target)]
        return self.head(self.transformer(*embedded, tgt_mask=mask.to(embedded[0])))


class CrossAttention(nn.Module):
    def __init__(self, width, heads=2, other=12, latents=3, need_weights=False, **options):
        super().__init__()
        self.embed = nn.Embedding(11, other)
        self.queries = nn.Parameter(torch.zeros(latents, width))
        self.attention = nn.MultiheadAttention(
            width, heads, kdim=other, vdim=other, batch_first=True, **options
        )
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, 4)
        self.need_weights = need_weights

    def forward(self, x):
        x, queries = self.embed(x), self.queries.expand(len(x), -1, -1)
        attended = self.attention(queries, x, x, need_weights=self.need_weights)[0]
        return self.head(self.norm(queries + attended).mean(1))


def perceptron(*widths):
    linears = [nn.Linear(*pair) for pair in itertools.pairwise((12, *widths, 3))]
    return nn.Sequential(*itertools.chain(*((linear, nn.GELU()) for linear in linears)))


class BasicBlock(nn.Module):
    def __init__(self, inputs, outputs, stride):
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.downsample = nn.Identity()
        if stride > 1:
            conv = nn.Conv2d(inputs, outputs, 1, stride, bias=False)
            self.downsample = nn.Sequential(conv, nn.BatchNorm2d(outputs))

    def forward(self, x):
        inside = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(inside)) + self.downsample(x))


class ResNet(nn.Module):
    def __init__(self, widths, depths=(2, 2, 2)):
        super().__init__()
        conv = nn.Conv2d(3, widths[0], 3, 1, 1, bias=False)
        self.stem = nn.Sequential(conv, nn.BatchNorm2d(widths[0]), nn.ReLU(), nn.MaxPool2d(2))
        self.stages, inputs = nn.Sequential(), widths[0]
        for number, (width, depth) in enumerate(zip(widths, depths, strict=True)):
            blocks = [BasicBlock(inputs, width, 2 if number else 1)]
            blocks += [BasicBlock(width, width, 1) for _ in range(depth - 1)]
            self.stages.append(nn.Sequential(*blocks))
            inputs = width
        self.fc = nn.Linear(inputs, 5)

    def forward(self, x):
        return self.fc(self.stages(self.stem(x)).mean((2, 3)))


class UNet(nn.Module):
    def __init__(self, width, levels=2):
        super().__init__()
        widths = [width * 2**level for level in range(levels + 1)]
        pairs = list(itertools.pairwise(widths))
        self.stem = self.two(3, width)
        self.down = nn.ModuleList(self.two(*pair) for pair in pairs)
        self.up = nn.ModuleList(nn.ConvTranspose2d(b, a, 2, 2) for a, b in pairs[::-1])
        self.merge = nn.ModuleList(self.two(2 * a, a) for a, _ in pairs[::-1])
        self.out = nn.Conv2d(width, 2, 1)

    def two(self, inputs, outputs):
        layers = [
            [nn.Conv2d(before, outputs, 3, 1, 1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()]
            for before in (inputs, outputs)
        ]
        return nn.Sequential(*itertools.chain(*layers))

    def forward(self, x):
        passed = [self.stem(x)]
        for down in self.down:
            passed.append(down(F.max_pool2d(passed[-1], 2)))
        x = passed.pop()
        for up, merge in zip(self.up, self.merge, strict=True):
            x = merge(torch.cat([passed.pop(), up(x)], 1))
        return self.out(x)


class Listed(nn.Module):
    """Parameters in lists, without a module to each, as prompts and low-rank parts often are."""

    def __init__(self, width, depth):
        super().__init__()
        self.stem, self.head = nn.Linear(12, width), nn.Linear(width, 3)
        self.ups = nn.ParameterList(torch.randn(width, 2 * width) for _ in range(depth))
        self.downs = nn.ParameterList(torch.randn(2 * width, width) for _ in range(depth))

    def forward(self, input):
        x = self.stem(input)
        for up, down in zip(self.ups, self.downs, strict=True):
            x = x + torch.tanh(x @ up) @ down
        return self.head(x)


class Cells(nn.Module):
    def __init__(self, kind, width):
        super().__init__()
        self.cell, self.head = kind(3, width), nn.Linear(width, 5)

    def forward(self, x):
        states = None
        for step in x.unbind(1):
            states = self.cell(step, states)
        return self.head(states[0] if isinstance(states, tuple) else states)


class LearnedState(nn.Module):
    def __init__(self, width, layers=2):
        super().__init__()
        self.state = nn.Parameter(torch.zeros(layers, 1, width))
        self.encoder, self.decoder = nn.GRU(3, width, layers), nn.GRU(3, width, layers)
        self.head = nn.Linear(width, 5)

    def forward(self, x):
        states = self.encoder(x, self.state.repeat(1, x.shape[1], 1))[1]
        return self.head(self.decoder(x, states)[0])


class ResidualRecurrent(nn.Module):
    def __init__(self, width, depth=2):
        super().__init__()
        self.embed, self.head = nn.Linear(3, width), nn.Linear(width, 5)
        self.layers = nn.ModuleList(nn.LSTM(width, width) for _ in range(depth))

    def forward(self, x):
        x = self.embed(x)
        for layer in self.layers:
            x = x + layer(x)[0]
        return self.head(x)


def recurrent():
    for kind in (nn.LSTM, nn.GRU, nn.RNN):
        for layers, both in itertools.product((1, 2), (False, True)):
            options = {"kind": kind, "layers": layers, "bidirectional": both, "batch_first": True}
            for read in ("outputs", "states"):
                name = f"{kind.__name__}, {layers} layers, {'both ways, ' if both else ''}{read}"
                small = {"width": 4, "read": read, **options}
                yield case(name, Recurrent, small, {**small, "width": 7}, SEQUENCES)
    for options in ({"bias": False}, {"proj_size": 3, "read": "packed", "batch_first": True}):
        small = {"kind": nn.LSTM, "width": 4, "layers": 2, "bidirectional": True, **options}
        large = {**small, "width": 9} | ({"proj_size": 5} if "proj_size" in options else {})
        yield case(f"LSTM, {next(iter(options))}", Recurrent, small, large, SEQUENCES)
    for kind in (nn.LSTMCell, nn.GRUCell, nn.RNNCell):
        yield case(kind.__name__, Cells, [kind, 4], [kind, 7], SEQUENCES)
    yield case("learned state", LearnedState, [4], [7], SEQUENCES)
    yield case("residual LSTM, deeper", ResidualRecurrent, [4], [7, 4], SEQUENCES)


def case(name, build, small, large, inputs, place=""):
    """Two sizes of one network, and where a growth begins to change its function, if it does."""
    builds = [
        functools.partial(build, **size)
        if isinstance(size, dict)
        else functools.partial(build, *size)
        for size in (small, large)
    ]
    return pytest.param(*builds, inputs, place, id=name)


def encoders():
    for first, batch_first in itertools.product((True, False), repeat=2):
        options = {"norm_first": first, "batch_first": batch_first, "masked": batch_first}
        name = f"encoder, norm {'first' if first else 'last'}, {'' if batch_first else 'no '}mask"
        small = {"width": 16, **options}
        wide = {**small, "width": 32, "heads": 4, "hidden": 40}
        deep = {} if first else {"layer_norm_eps": 1e-12}  # what is normed twice
        uneven = "" if first else "encoder.layers.0.norm2"
        yield case(f"{name}, wider", Encoder, small, wide, SEQUENCES)
        yield case(f"{name}, deeper", Encoder, small | deep, wide | deep | {"depth": 4}, SEQUENCES)
        yield case(f"{name}, uneven", Encoder, small, {**small, "width": 20}, SEQUENCES, uneven)


CASES = [
    *encoders(),
    *recurrent(),
    case("perceptron", perceptron, (7, 5), (17, 6), VECTORS),
    case("perceptron of equal layers", perceptron, (7, 7, 7), (9, 9, 9), VECTORS),
    case("parameters in lists", Listed, [4, 2], [7, 2], VECTORS),
    case("resnet, wider", ResNet, [(4, 6, 8)], [(6, 9, 8)], IMAGES),
    case("resnet", ResNet, [(4, 6, 8)], [(6, 12, 10), (2, 3, 4)], IMAGES),
    case("unet", UNet, [4], [6], IMAGES),
    case("translator", Translator, {"width": 16, "norm_first": True},
         {"width": 24, "heads": 3, "depths": (3, 4), "hidden": 30, "norm_first": True}, TEXTS),
    case("translator, norm last", Translator, [16], [32, (2, 2), 4, 40], TEXTS),
    case("translator, norm last, deeper", Translator, {"width": 16, "layer_norm_eps": 1e-12},
         {"width": 16, "depths": (3, 3), "layer_norm_eps": 1e-12}, TEXTS),
    case("cross attention", CrossAttention, [16, 2, 12], [40, 4, 20], TOKENS),
    case("cross attention, one width", CrossAttention, [16, 2, 16], [40, 4, 40], TOKENS),
    case("cross attention, weights", CrossAttention, {"width": 16, "need_weights": True},
         {"width": 40, "heads": 4, "need_weights": True}, TOKENS),
    case("cross attention, bias", CrossAttention, {"width": 16, "add_bias_kv": True},
         {"width": 32, "add_bias_kv": True}, TOKENS),
]  # fmt: skip


@pytest.mark.filterwarnings("ignore:enable_nested_tensor is True")  # of nn.Transformer
@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(("small", "large", "inputs", "place"), CASES)
def test_networks_of_plain_torch_are_proved_and_grow(small, large, inputs, place, device):
    inputs = cast(inputs, torch.float64, device)
    small, large = randomised(small(), torch.float64), large().double().eval()
    small, large = small.to(device), large.to(device)
    axes = ligo.trace(small, **inputs).axes
    for name, error in ligo.prove(small, **inputs).items():
        if axes[name].pinned != UNUSED:
            assert (error < TOLERANCE) == (axes[name].pinned is None), (axes[name], error)
    plan = ligo.pair(small, large, **inputs)
    told = measured(plan, small, large, inputs)
    ligo.Operator(plan, small, "lemon").bake(large)
    before, after = output(small, inputs), output(large, inputs)
    kept = (after - before).norm() <= 1e-10 * before.norm()
    assert kept == told.kept == (not place)
    assert (told.place or "") == place


def test_lists_of_parameters_become_deeper():
    small, large = randomised(Listed(4, 2), torch.float64), Listed(6, 3).double()
    inputs = cast(VECTORS, torch.float64)
    plan = ligo.pair(small, large, **inputs)
    assert plan.stacks == {"ups": (2, 3), "downs": (2, 3)}
    ligo.Operator(plan, small, "lemon").bake(large)
    torch.testing.assert_close(output(large, inputs), output(small, inputs))


def test_the_gates_of_a_recurrent_layer_are_told_apart():
    notation = str(ligo.trace(Recurrent(nn.LSTM, 4), **SEQUENCES)).splitlines()
    assert "rnn.weight_ih_l0  (4 hidden.2) hidden" in notation
    assert "rnn.weight_hh_l0  (4 hidden.2) hidden.2" in notation


def test_a_deeper_recurrent_network_is_refused():
    small, large = Recurrent(nn.GRU, 4), Recurrent(nn.GRU, 4, 2)
    with pytest.raises(ValueError, match=r"small network lacks rnn\.weight_ih_l1"):
        ligo.pair(small, large, **SEQUENCES)
