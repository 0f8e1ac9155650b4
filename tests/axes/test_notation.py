import random
from dataclasses import replace

import pytest
import timm
import torch
from torch import nn

import lightning_ligo as ligo
from lightning_ligo.axes.axes import Axes
from lightning_ligo.axes.dims import Sum
from lightning_ligo.axes.notation import Unreadable, hole, match, parse, split, write
from networks import IMAGES, TOKENS, bert, gpt2, vit


def some_product(generator: random.Random, depth: int = 3) -> tuple:
    """A dimension as it can be read: no product in a product, and sums of two or more."""
    nodes = []
    for _ in range(generator.randint(1, 3)):
        kind = generator.randrange(3 if depth else 2)
        if kind == 2:
            terms = generator.randint(2, 3)
            nodes.append(Sum(tuple(some_product(generator, depth - 1) for _ in range(terms))))
        else:
            words = ["embed", "h2", "blocks[0].*.attn.heads", "0.in", "hidden.2"]
            nodes.append(generator.choice(words) if kind else generator.randint(1, 2000))
    return tuple(nodes)


def test_what_is_written_is_read_as_the_same():
    for seed in range(500):
        generator = random.Random(seed)
        dims = tuple(some_product(generator) for _ in range(generator.randrange(4)))
        assert parse(write(dims)) == dims


@pytest.mark.parametrize(
    ("text", "position", "message"),
    [
        ("(3 heads embed", 0, "this parenthesis is not closed"),
        ("embed (a + (b c)", 6, "this parenthesis is not closed"),
        ("hidden) embed", 6, r"'\)' cannot stand here"),
        ("hidden + embed", 7, r"\+ and \) stand inside parentheses"),
        ("(hidden + ) embed", 10, "a name or a number is missing before this"),
        ("() embed", 1, "a name or a number is missing before this"),
        ("hidden, embed", 6, "',' cannot stand here, a name, a number or"),
        ("1.5 embed", 0, "'1.5' cannot stand here"),
    ],
)
def test_what_cannot_be_read_says_where(text, position, message):
    with pytest.raises(Unreadable, match=message) as raised:
        parse(text)
    assert raised.value.position == position


def test_a_hole_is_the_number_of_a_layer_and_nothing_else():
    assert match(split("blocks.*.fc.weight"), "blocks.12.fc.weight") == (12,)
    assert match(split("blocks.*.fc.weight"), "blocks.fc.fc.weight") is None
    assert match(split("blocks.*.fc.weight"), "blocks.1.fc.bias") is None
    assert match(split("stages.*.blocks.*.weight"), "stages.1.blocks.2.weight") == (1, 2)
    chosen = [n for n in range(12) if match(split("blocks.{0,3..5,10..}.w"), f"blocks.{n}.w")]
    assert chosen == [0, 3, 4, 5, 10, 11]


@pytest.mark.parametrize("layers", [[0], [0, 1], [2, 3, 4], [0, 2, 3], [1, 5], [0, 1, 2, 3, 4, 5]])
def test_the_hole_that_is_written_for_layers_stands_for_them(layers):
    parts = split(f"blocks.{hole(layers, {*range(6)} - {*layers})}.weight")
    assert [n for n in range(6) if match(parts, f"blocks.{n}.weight")] == layers


@pytest.mark.parametrize("pattern", ["blocks.{layers}.weight", "blocks.{}.weight", "blocks.{0.w"])
def test_a_pattern_that_cannot_be_read_says_how_layers_are_written(pattern):
    with pytest.raises(
        Unreadable, match=r"no choice of layers, as \{0,2\} or \{1\.\.\} are"
    ) as raised:
        split(pattern)
    assert raised.value.position == 7


class Branch(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(8, width), nn.Linear(width, 8)

    def forward(self, x):
        return x + self.down(self.up(x).relu())


def alternating() -> nn.Module:
    """Two stacks in one list, and a last layer that is like none of them."""
    return nn.Sequential(nn.Sequential(*(Branch(width) for width in (4, 6, 4, 6, 4, 6, 7, 8, 8))))


def gmlp() -> nn.Module:
    with torch.device("meta"):
        return timm.create_model("gmlp_ti16_224")


def swin() -> nn.Module:
    with torch.device("meta"):
        return timm.create_model("swin_tiny_patch4_window7_224")


LARGE_IMAGES = {"x": torch.zeros(1, 3, 224, 224)}


@pytest.mark.parametrize(
    ("build", "inputs"),
    [
        (vit, IMAGES),
        (gpt2, TOKENS),
        (bert, TOKENS),
        (swin, LARGE_IMAGES),
        (gmlp, LARGE_IMAGES),
        (alternating, {"input": torch.zeros(2, 8)}),
    ],
)
def test_axes_that_are_named_as_they_are_printed_are_the_same_axes(build, inputs):
    network = build()
    axes = ligo.trace(network, **inputs)
    again = ligo.trace(network, override=axes.notation, **inputs)
    assert str(again) == str(axes)
    assert settled(again) == settled(axes)


def settled(axes: Axes) -> Axes:
    """All of it but who said that an axis stays, and that the user named it."""
    return replace(
        axes,
        axes={
            name: replace(axis, pinned=axis.stays or axis.resize, resize=None, named=False)
            for name, axis in axes.axes.items()
        },
    )


def test_words_are_as_long_as_it_takes_to_tell_two_axes_apart():
    notation = ligo.trace(bert(), **TOKENS).notation
    words = {name: notation[f"bert.embeddings.{name}_embeddings.weight"].split()[0]
             for name in ("word", "position", "token_type")}  # fmt: skip
    assert words == {
        "word": "entries",
        "position": "position_embeddings.entries",
        "token_type": "token_type_embeddings.entries",
    }


def test_layers_are_numbered_where_not_all_of_a_list_are_of_one_stack():
    notation = ligo.trace(alternating(), torch.zeros(2, 8)).notation
    assert [name for name in notation if name.endswith("up.weight")] == [
        "0.{0,2,4}.up.weight",
        "0.{1,3,5}.up.weight",
        "0.6.up.weight",
        "0.{7..}.up.weight",
    ]
