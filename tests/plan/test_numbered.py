"""Layers whose numbers stand inside of names, or in the names of parameters."""

from collections import OrderedDict

import pytest
import torch
from torch import nn
from torchvision.models import DenseNet, VisionTransformer
from torchvision.models.regnet import BlockParams, RegNet

import lightning_ligo as ligo
from networks import KEPT, SEQUENCES, Recurrent, changed, measured, output, randomised

IMAGES = {"x": torch.linspace(-1, 1, 2 * 3 * 32 * 32).sin().mul(99).cos().reshape(2, 3, 32, 32)}
VECTORS = {"input": SEQUENCES["x"]}


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def vit(width, depth):
    return VisionTransformer(32, 8, depth, 2, width, 2 * width, num_classes=5)


def regnet(width, depths):
    widths = [width, 2 * width]
    shape = BlockParams(depths, widths, [4, 4], [1.0, 1.0], [2, 2], None)
    return RegNet(shape, num_classes=5, stem_width=8)


def densenet(growth, depths=(2, 3)):
    return DenseNet(growth, depths, 2 * growth, 2, num_classes=5)


class Translator(nn.Module):
    def __init__(self, width, depth, norm_first):
        super().__init__()
        self.embed = nn.Linear(3, width)
        self.transformer = nn.Transformer(
            width, 2, depth, depth, 2 * width, batch_first=True, norm_first=norm_first
        )
        self.head = nn.Linear(width, 5)

    def forward(self, x):
        x = self.embed(x)
        return self.head(self.transformer(x, x.flip(1)))


class Residual(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.one, self.two = nn.Linear(width, 12), nn.Linear(12, width)

    def forward(self, x):
        return x + self.two(self.one(self.norm(x)).relu())


def sequential(width, depth):
    blocks = (Residual(width) for _ in range(depth))
    return nn.Sequential(nn.Linear(3, width), *blocks, nn.LayerNorm(width), nn.Linear(width, 5))


class Attributes(nn.Module):
    """Layers in attributes of the network itself, next to others; of one module or of several."""

    def __init__(self, width, depth, flat):
        super().__init__()
        self.first1, self.flat = nn.Linear(3, width), flat
        for number in range(depth):
            if flat:
                setattr(self, f"norm{number}", nn.LayerNorm(width))
                setattr(self, f"one_{number}_up", nn.Linear(width, 12))
                setattr(self, f"two_{number}_down", nn.Linear(12, width))
            else:
                setattr(self, f"layer_{number}_block", Residual(width))
        self.last2, self.depth = nn.Linear(width, 5), depth

    def forward(self, x):
        x = self.first1(x)
        for number in range(self.depth):
            if self.flat:
                inside = getattr(self, f"one_{number}_up")(getattr(self, f"norm{number}")(x))
                x = x + getattr(self, f"two_{number}_down")(inside.relu())
            else:
                x = getattr(self, f"layer_{number}_block")(x)
        return self.last2(x)


@pytest.mark.filterwarnings("ignore:enable_nested_tensor")
@pytest.mark.parametrize(
    ("build", "small", "large", "inputs", "stacks"),
    [
        (vit, (8, 2), (8, 4), IMAGES, {"encoder.layers": (2, 4)}),
        (vit, (8, 2), (16, 3), IMAGES, {"encoder.layers": (2, 3)}),
        (vit, (8, 1), (16, 2), IMAGES, {"encoder.layers": (1, 2)}),
        (regnet, (8, [1, 2]), (8, [1, 4]), IMAGES, {"trunk_output.block2[1]": (1, 3)}),
        (
            regnet, (8, [2, 2]), (16, [3, 4]), IMAGES,
            {"trunk_output.block1[1]": (1, 2), "trunk_output.block2[1]": (1, 3)},
        ),
        (densenet, (4,), (8,), IMAGES, {}),
        (densenet, (4,), (4, (2, 5)), IMAGES, {}),
        (
            Translator, (8, 2, True), (16, 4, True), SEQUENCES,
            {"transformer.encoder.layers": (2, 4), "transformer.decoder.layers": (2, 4)},
        ),
        (
            Translator, (8, 2, False), (16, 3, False), SEQUENCES,
            {"transformer.encoder.layers": (2, 3), "transformer.decoder.layers": (2, 3)},
        ),
        (Attributes, (6, 1, False), (12, 3, False), SEQUENCES, {"[0]": (1, 3)}),
        (Attributes, (6, 2, True), (12, 4, True), SEQUENCES, {"[0]": (2, 4)}),
        (sequential, (6, 2), (12, 5), VECTORS, {"[1]": (2, 5), "[2]": (1, 1), "[3]": (1, 1)}),
    ],
)  # fmt: skip
def test_layers_with_a_number_in_their_name_are_a_stack(build, small, large, inputs, stacks):
    change, plan = changed(build(*small), build(*large), inputs)
    assert change <= KEPT and plan.stacks == stacks


def test_their_axes_are_named_by_what_is_printed():
    axes = ligo.trace(vit(8, 3), **IMAGES)
    line = "encoder.layers.encoder_layer_*.mlp.0.weight"
    assert axes.notation[line] == "hidden embed"
    named = ligo.pair(vit(8, 2), vit(12, 3), **IMAGES, override={line: "inside embed"})
    assert named.axes["encoder.layers.encoder_layer_*.mlp.inside"] == (16, 24)
    chosen = {"encoder.layers.encoder_layer_{0..2}.mlp.0.weight": "inside embed"}
    plan = ligo.pair(vit(8, 3), vit(12, 3), **IMAGES, override=chosen)
    assert plan.axes == named.axes


def test_every_layer_is_its_source_where_layers_are_stacked():
    small, large = randomised(vit(8, 2)), vit(8, 5)
    ligo.grow(small, large, **IMAGES, method="stack")
    grown, given = large.encoder.layers, small.encoder.layers
    for layer, source in enumerate([0, 1, 0, 1, 0]):
        for one, other in zip(grown[layer].parameters(), given[source].parameters(), strict=True):
            assert torch.equal(one, other)


# Recurrent networks -----------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:LSTM with projections")
@pytest.mark.parametrize("options", [{}, {"bidirectional": True}, {"proj_size": 2}], ids=str)
@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
def test_new_layers_of_a_recurrent_network_are_copies_and_change_what_it_says(kind, options):
    if "proj_size" in options and kind is not nn.LSTM:
        pytest.skip("only an LSTM has a projection")
    small = randomised(Recurrent(kind, 4, 3, **options))
    large = Recurrent(kind, 4, 5, **options).eval()
    plan = ligo.pair(small, large, **SEQUENCES)
    assert plan.stacks == {"rnn[1]": (2, 4)} and not plan.axes
    told = measured(plan, small, large, SEQUENCES, "staged")
    assert not told.kept and told.change > 1e-3
    for method, sources in (("stack", [0, 1, 2, 1, 2]), ("lemon", [0, 1, 1, 2, 2])):
        ligo.Operator(plan, small, method).bake(large)
        given = small.rnn.state_dict()
        for name, weight in large.rnn.state_dict().items():
            number = next(filter(str.isdigit, name))
            assert torch.equal(weight, given[name.replace(number, str(sources[int(number)]))])


@pytest.mark.parametrize("options", [{}, {"bidirectional": True}, {"proj_size": 2}], ids=str)
def test_a_recurrent_network_grows_in_width_and_depth_as_in_one_after_the_other(options):
    def build(width, depth):
        return Recurrent(nn.LSTM, width, depth, "states", **options)

    small = randomised(build(4, 2), torch.float64)
    inputs = {name: x.double() for name, x in SEQUENCES.items()}
    deep, both, wide = (build(*size).double() for size in ((4, 4), (8, 4), (8, 4)))
    ligo.grow(small, deep, **inputs, method="stack")
    ligo.grow(deep, wide, **inputs, method="lemon")
    ligo.grow(small, both, **inputs, method="stack+lemon")
    for one, other, third in zip(*(map(output, (wide, both, deep), [inputs] * 3)), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-12)
        torch.testing.assert_close(one, third, rtol=1e-9, atol=1e-12)


def test_a_single_recurrent_layer_becomes_several_if_it_reads_its_own_width():
    plan = ligo.pair(Recurrent(nn.LSTM, 6, 1), Recurrent(nn.LSTM, 6, 3), **SEQUENCES)
    assert plan.stacks == {"rnn": (1, 3)}


# What changes, or cannot grow --------------------------------------------------------------------


class Unit(nn.Module):
    """A residual unit as of monai: convolutions ``unit0``, ``unit1`` in a row, and a shortcut."""

    def __init__(self, width, depth):
        super().__init__()
        self.stem, self.conv = nn.Conv2d(3, width, 1), nn.Sequential()
        for number in range(depth):
            unit = nn.Sequential(nn.Conv2d(width, width, 3, padding=1), nn.PReLU())
            self.conv.add_module(f"unit{number}", unit)
        self.out = nn.Conv2d(width, 2, 1)

    def forward(self, x):
        x = self.stem(x)
        return self.out(x + self.conv(x))


def test_units_in_a_row_widen_and_deepen_and_the_change_is_told():
    assert changed(Unit(4, 2), Unit(8, 2), IMAGES)[0] <= KEPT
    change, plan = changed(Unit(4, 2), Unit(4, 4), IMAGES)
    assert change > KEPT and plan.stacks == {"conv": (2, 4)}


@pytest.mark.parametrize("large", [(4, (2, 5)), (4, (4, 3)), (8, (3, 5))])
@pytest.mark.parametrize("method", ["lemon", "stack+fresh"])
def test_what_new_layers_join_to_others_is_read_by_zeros(method, large):
    small, large = randomised(densenet(4), torch.float64), densenet(*large).double().eval()
    inputs = {"x": IMAGES["x"].double()}
    built = {name: tensor.clone() for name, tensor in large.named_parameters()}
    plan = ligo.pair(small, large, **inputs)
    ligo.grow(small, large, **inputs, method=method)
    before, after = output(small, inputs), output(large, inputs)
    torch.testing.assert_close(after, before, rtol=1e-9, atol=1e-12)
    new = [row for row in plan.rows if not row.small_names]
    assert new
    for row in new:
        for name in row.large_names:
            assert torch.equal(large.get_parameter(name), built[name])


def test_a_network_with_joined_outputs_trains_on_through_its_new_layers():
    small, large = densenet(4), densenet(4, (2, 5))
    ligo.grow(small, large, **IMAGES, method="lemon")
    optimizer = torch.optim.SGD(large.parameters(), lr=0.1)
    for _ in range(2):  # the zeros that read the new layers move first
        optimizer.zero_grad()
        large(**IMAGES).square().mean().backward()
        optimizer.step()
    for part in large.features.denseblock2.denselayer5.parameters():
        assert part.grad.abs().max() > 0


def test_names_in_words_cannot_be_counted():
    def build(*names):
        return nn.Sequential(OrderedDict((name, Residual(6)) for name in ("first", *names)))

    with pytest.raises(ValueError, match=r"the small network lacks third\.norm\.weight"):
        inputs = torch.zeros(2, 6)
        ligo.pair(build("second"), build("second", "third"), inputs)
