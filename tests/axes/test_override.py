import re

import pytest
import torch
from torch import Tensor, nn

import lightning_ligo as ligo
from networks import IMAGES, IMAGES64, LEARNED, TOKENS, gpt2, randomised, vit
from operations import affine, fourier


class Mixer(nn.Module):
    """Fourier transforms mix positions, as in FNet, and a block's linears are strange operations.

    (batch, positions, 6) to (batch, 3).
    """

    def __init__(self, width: int = 8, depth: int = 2, dim: int = 1, mixes: bool = True) -> None:
        super().__init__()
        self.embed = nn.Linear(6, width)
        self.blocks = nn.Sequential(*(Block(width) for _ in range(depth)))
        self.mixed = nn.Linear(width, width) if mixes else None
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, 3)
        self.dim = dim

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        if self.mixed is not None:
            x = x + self.mixed(fourier(x, self.dim))
        return self.head(self.norm(self.blocks(x))).mean(1)


class Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.up, self.down = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        hidden = affine(self.norm(x), self.up.weight, self.up.bias)
        return x + affine(nn.functional.gelu(hidden), self.down.weight, self.down.bias)


X = torch.linspace(-3, 3, 60, dtype=torch.float64).sin().reshape(2, 5, 6)
NAMES = {
    "embed.weight": "stream 6",
    "mixed.weight": "stream stream",
    "blocks.*.up.weight": "wide stream",
    "blocks.*.up.bias": "wide",
    "blocks.*.down.weight": "stream wide",
    "blocks.*.down.bias": "stream",
}


@pytest.mark.parametrize("method", ["lemon", LEARNED])
@pytest.mark.parametrize(("width", "depth"), [(16, 2), (16, 4), (24, 3)])
def test_a_network_that_cannot_be_read_is_grown_by_names_and_keeps_its_function(
    width, depth, method
):
    small, large = randomised(Mixer(), torch.float64), Mixer(width, depth).double().eval()
    with pytest.raises(ValueError, match="there is no rule"):
        ligo.grow(small, large, X, method=method, steps=0)
    ligo.grow(small, large, X, method=method, steps=0, override=NAMES)
    torch.testing.assert_close(large(X), small(X), rtol=1e-10, atol=1e-10)


def test_lengths_that_are_no_multiple_keep_the_function_through_weights_of_strange_operations():
    small = randomised(Mixer(mixes=False), torch.float64)
    large = Mixer(20, 3, mixes=False).double().eval()
    names = {name: text for name, text in NAMES.items() if name != "mixed.weight"}
    ligo.grow(small, large, X, method="lemon", override=names)
    torch.testing.assert_close(large(X), small(X), rtol=1e-10, atol=1e-10)


def test_the_plan_measures_the_operation_that_it_has_to_trust():
    for width in (16, 20):
        small, large = Mixer().double(), Mixer(width).double()
        plan = ligo.pair(small, large, X, override=NAMES)
        assert plan.axes == {"stream": (8, width), "blocks.*.wide": (16, 2 * width)}
        assert ligo.measure(plan, small, large, [ligo.Call((X,))], method="lemon").kept


def test_the_paper_s_maps_are_tied_through_a_strange_operation():
    dims = ligo.trace(Mixer().double(), X, override=NAMES).dims
    written = {dims["blocks.*.up.weight"][0][0].flow, dims["embed.weight"][0][0].flow}
    assert written == {"blocks.*.up.weight:0", "embed.weight:0"}
    assert {use.flow for product in dims["blocks.*.down.weight"] for use in product} == written


def test_names_that_are_right_pass_the_proof_and_wrong_ones_do_not():
    assert ligo.prove(Mixer().double(), X, axes=["stream"], override=NAMES)["stream"] < 1e-12
    over_channels = randomised(Mixer(dim=2), torch.float64)
    assert ligo.prove(over_channels, X, axes=["stream"], override=NAMES)["stream"] > 1e-3
    plan = ligo.pair(over_channels, Mixer(16, dim=2).double(), X, override=NAMES)
    told = ligo.measure(plan, over_channels, Mixer(16, dim=2).double(), [ligo.Call((X,))])
    assert not told.kept
    change = plan.proofs["stream"]
    assert change > 1e-3 and plan.notes[0] == (
        "stream grows as you named it, against this: permuting its entries changes the output by "
        f"{change:.1g} of itself"
    )


class Applied(nn.Module):
    """(batch, 4) to (batch, 3) through a function of ``width`` values."""

    def __init__(self, function, width: int = 6) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(4, width), nn.Linear(width, 3)
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.two(self.function(self.one(x)))


def cut(x: Tensor) -> Tensor:
    return x.reshape(3, -1).reshape(2, -1)


@pytest.mark.parametrize(
    ("function", "problem"),
    [
        (lambda x: fourier(x, 1), r"ligo_tests\.fourier\.default on shapes \[\(2, 6\)\], for"),
        (cut, r"aten\.(view|reshape).* on shapes \[\(2, 6\)\], which cuts across axes"),
    ],
)
def test_the_error_shows_the_lines_to_write_and_they_can_be_pasted(function, problem):
    network, x = Applied(function), torch.randn(2, 4)
    with pytest.raises(ValueError, match=f"{problem}.*touches the axes of one.weight") as raised:
        ligo.trace(network, x)
    lines = dict(re.findall(r'^    "(.*)": "(.*)",$', str(raised.value), re.MULTILINE))
    assert lines["one.weight"].endswith(" 4") and "one.bias" in lines
    axes = ligo.trace(network, x, override=lines)
    assert axes.notation["one.weight"] == lines["one.weight"]


def test_a_reshape_across_axes_is_trusted_where_they_are_named():
    names = {"one.weight": "hidden 4", "two.weight": "out hidden"}
    small, large = randomised(Applied(cut), torch.float64), Applied(cut, 12).double()
    x = torch.randn(2, 4, dtype=torch.float64)
    ligo.grow(small, large, x, method="lemon", override=names)
    torch.testing.assert_close(large(x), small(x))


def test_a_reader_that_is_left_out_of_the_names_is_refused():
    names = {"one.weight": "hidden 4"}
    with pytest.raises(ValueError, match=r"axis two\.in .* cannot grow: it comes out of aten"):
        ligo.pair(Applied(cut), Applied(cut, 12), torch.randn(2, 4), override=names)


def test_the_large_network_says_what_to_name_as_well():
    with pytest.raises(ValueError, match=r'(?s)fails with ValueError.*"one.weight": "one.out 4"'):
        ligo.pair(Applied(lambda x: x), Applied(cut, 12), torch.randn(2, 4))


def test_an_axis_takes_the_name_that_it_is_given():
    names = {"head.weight": "classes stream", "blocks.*.attn.qkv.bias": "(3 groups depth)"}
    axes = ligo.trace(vit(), override=names, **IMAGES).axes
    assert axes["stream"].length == 32 and "embed" not in axes
    assert axes["blocks.*.attn.groups"].length == 2
    assert axes["blocks.*.attn.groups"].stack == "blocks"
    assert axes["head.classes"].resize == "append"  # it grows as it did before


def test_a_word_is_an_axis_of_every_layer_or_of_the_whole_network():
    network = vit(mlp_ratio=1)
    inside = ligo.trace(network, override={"blocks.*.mlp.fc1.bias": "wide"}, **IMAGES).axes
    assert inside["blocks.*.mlp.wide"].stack == "blocks" and "embed" in inside
    both = {"blocks.*.mlp.fc1.bias": "wide", "norm.weight": "wide"}
    everywhere = ligo.trace(network, override=both, **IMAGES).axes
    assert everywhere["wide"].stack is None and "embed" not in everywhere
    assert ligo.prove(network, axes=["wide"], override=both, **IMAGES)["wide"] < 1e-12


def test_what_is_named_may_grow_although_tracing_pinned_it():
    small, large = randomised(vit(in_chans=2), torch.float64), vit(in_chans=4).double().eval()
    x = torch.cat([IMAGES64["x"], IMAGES64["x"].flip(0)], 1)
    twice = {"x": torch.cat([x, x], 1)}
    with pytest.raises(ValueError, match=r"in is 2 long .* cannot grow: it is the network's input"):
        ligo.pair(small, large, x, large_inputs=twice)
    names = {"patch_embed.proj.weight": "embed colours 2 2"}
    plan = ligo.pair(small, large, x, large_inputs=twice, override=names)
    assert plan.axes == {"patch_embed.proj.colours": (2, 4)}
    change = plan.proofs["patch_embed.proj.colours"]
    assert change > 1e-3 and f"fails, by {change:.0e}" in str(plan)
    assert "colours stays" not in str(plan)
    assert plan.notes == (
        "patch_embed.proj.colours grows as you named it, against this: it is the network's input, "
        f"and permuting its entries changes the output by {change:.1g} of itself",
    )
    ligo.grow(small, large, x, large_inputs=twice, override=names, method="lemon")
    torch.testing.assert_close(large(**twice), small(x))  # the new colours are copies


def test_a_number_refuses_to_grow():
    names = {"blocks.*.mlp.fc1.weight": "128 embed"}
    with pytest.raises(ValueError, match="is 256 long, and you said that it stays 128"):
        ligo.pair(vit(), vit(64), override=names, **IMAGES)
    plan = ligo.pair(vit(), vit(32, 4), override=names, **IMAGES)
    assert "blocks.*.mlp.in stays 128: you said that it stays" in str(plan)


def test_a_number_refuses_more_entries_of_a_table():
    names = {"transformer.wte.weight": "50 embed"}
    with pytest.raises(ValueError, match="is 60 long, and you said that it stays 50"):
        ligo.pair(gpt2(), gpt2(vocab_size=60), override=names, **TOKENS)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ({"blocks.*.atn.qkv.bias": "qkv"}, r"no parameter of .*; near are blocks\.\*\.attn\.qkv"),
        (
            {"x": "embed"},
            "'x': 'embed' matches no parameter of VisionTransformer; it has cls_token",
        ),
        ({"norm.weight": "embed embed"}, r"names 2 dimensions, and norm.weight has 1: \(32,\)"),
        (
            {"head.weight": "(3 a) embed"},
            "dimension 0 of head.weight is 10 long, and no length of a",
        ),
        (
            {"head.weight": "9 embed"},
            "dimension 0 of head.weight is 10 long, and you said that it s",
        ),
        (
            {"norm.weight": "embed", "head.weight": "embed out"},
            "is 10 long, and embed is 32 in dimension 0 of norm.weight; a word is one axis, of one",
        ),
        (
            {"norm.weight": "embed", "head.weight": "(a embed) out"},
            "10 long, and no length of a fits, as embed is 32 in dimension 0 of norm.weight",
        ),
        (
            {"blocks.*.attn.qkv.bias": "(4 a b)"},
            "which reads it as 3 x 2 x 16, tell how long a and",
        ),
        ({"blocks.*.mlp.fc1.bias": "(a + b)"}, "which reads it as 128, tell how long a and b are"),
        ({"norm.*": "embed"}, "'norm.*': 'embed' matches no parameter"),
        (
            {"norm.bias": "(embed"},
            r"'\(embed' cannot be read: this parenthesis is not closed\n  \(embed\n  \^",
        ),
        (
            {"blocks.{layers}.norm1.bias": "embed"},
            r"every layer is \*\n  blocks\.\{layers\}\.norm1\.bias\n         \^",
        ),
        (
            {"blocks.*.norm1.bias": "embed", "blocks.0.norm1.bias": "embed"},
            r"blocks.0.norm1.bias twice, as 'blocks.\*.norm1.bias' and as 'blocks.0.norm1.bias'",
        ),
        ({"norm.bias": 32}, "'norm.bias': 32 is int; write the axes of the dimensions as text"),
        ("embed", "override is 'embed'; give a dict from parameters to the names of their axes"),
    ],
)
def test_an_override_that_does_not_fit_says_what_to_do(override, message):
    with pytest.raises(ValueError, match=message):
        ligo.trace(vit(), override=override, **IMAGES)


def test_a_name_that_is_tied_to_another_says_which():
    with pytest.raises(
        ValueError, match=r"lm_head.weight is tied to transformer.wte.weight, name th"
    ):
        ligo.trace(gpt2(), override={"lm_head.weight": "entries embed"}, **TOKENS)


def test_names_against_what_the_forward_shows_are_refused():
    names = {"blocks.*.attn.qkv.bias": "(heads rest)", "blocks.*.attn.proj.weight": "32 (heads a)"}
    with pytest.raises(ValueError, match="the forward reads it as 3 x 2 x 16, which does not fit"):
        ligo.trace(vit(), override=names, **IMAGES)
