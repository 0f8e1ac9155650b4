"""Networks of nothing but torch: traced, proved, paired with a larger one and grown."""

import itertools

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import lightning_ligo as ligo
from lightning_ligo.axes import UNUSED
from lightning_ligo.proof import TOLERANCE
from networks import cast, output, randomised

TOKENS = {"x": torch.arange(14).reshape(2, 7) * 5 % 11}
VECTORS = {"input": torch.linspace(-1, 1, 3 * 12).sin().mul(7).cos().reshape(3, 12)}
SEQUENCES = {"x": VECTORS["input"].reshape(3, 4, 3)}
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
        mask = nn.Transformer.generate_square_subsequent_mask(x.shape[1], dtype=x.dtype)
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


def case(name, build, small, large, inputs, *reasons):
    """Two sizes of one network, and why a growth cannot keep its function, if so."""
    sizes = [size if isinstance(size, dict) else {"*": size} for size in (small, large)]
    builds = [lambda size=size: build(*size.pop("*", ()), **size) for size in sizes]
    return pytest.param(*builds, inputs, reasons, id=name)


def encoders():
    for first, batch_first in itertools.product((True, False), repeat=2):
        options = {"norm_first": first, "batch_first": batch_first, "masked": batch_first}
        name = f"encoder, norm {'first' if first else 'last'}, {'' if batch_first else 'no '}mask"
        small = {"width": 16, **options}
        wide = {**small, "width": 32, "heads": 4, "hidden": 40}
        stream = () if first else ("norms in the stream itself: a new layer",)
        uneven = () if first else ("no multiple, under norms in the stream",)
        yield case(f"{name}, wider", Encoder, small, wide, SEQUENCES)
        yield case(f"{name}, deeper", Encoder, small, {**wide, "depth": 4}, SEQUENCES, *stream)
        yield case(f"{name}, uneven", Encoder, small, {**small, "width": 20}, SEQUENCES, *uneven)


CASES = [
    *encoders(),
    case("perceptron", perceptron, (7, 5), (17, 6), VECTORS),
    case("perceptron of equal layers", perceptron, (7, 7, 7), (9, 9, 9), VECTORS),
    case("resnet, wider", ResNet, [(4, 6, 8)], [(6, 9, 8)], IMAGES),
    case("resnet", ResNet, [(4, 6, 8)], [(6, 12, 10), (2, 3, 4)], IMAGES),
    case("unet", UNet, [4], [6], IMAGES),
    case("translator", Translator, {"width": 16, "norm_first": True},
         {"width": 24, "heads": 3, "depths": (3, 4), "hidden": 30, "norm_first": True}, TEXTS),
    case("translator, norm last", Translator, [16], [32, (2, 2), 4, 40], TEXTS),
    case("translator, norm last, deeper", Translator, [16], [16, (3, 3)], TEXTS,
         "encoder.layers has norms in the stream itself: a new layer",
         "decoder.layers has norms in the stream itself: a new layer"),
    case("cross attention", CrossAttention, [16, 2, 12], [40, 4, 20], TOKENS),
    case("cross attention, one width", CrossAttention, [16, 2, 16], [40, 4, 40], TOKENS),
    case("cross attention, weights", CrossAttention, {"width": 16, "need_weights": True},
         {"width": 40, "heads": 4, "need_weights": True}, TOKENS),
    case("cross attention, bias", CrossAttention, {"width": 16, "add_bias_kv": True},
         {"width": 32, "add_bias_kv": True}, TOKENS),
]  # fmt: skip


@pytest.mark.filterwarnings("ignore:enable_nested_tensor is True")  # of nn.Transformer
@pytest.mark.parametrize(("small", "large", "inputs", "reasons"), CASES)
def test_networks_of_plain_torch_are_proved_and_grow(small, large, inputs, reasons):
    inputs = cast(inputs, torch.float64)
    small, large = randomised(small(), torch.float64), large().double().eval()
    axes = ligo.trace(small, **inputs).axes
    for name, error in ligo.prove(small, **inputs).items():
        if axes[name].pinned != UNUSED:
            assert (error < TOLERANCE) == (axes[name].pinned is None), (axes[name], error)
    plan = ligo.pair(small, large, **inputs)
    ligo.Operator(plan, small, "lemon").bake(large)
    before, after = output(small, inputs), output(large, inputs)
    kept = (after - before).norm() <= 1e-10 * before.norm()
    assert kept != bool(reasons)
    assert len(plan.inexact) == len(reasons), plan.inexact
    for reason, line in zip(reasons, plan.inexact, strict=True):
        assert reason in line
