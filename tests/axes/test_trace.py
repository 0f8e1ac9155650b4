import pytest
import torch
from torch import nn

import lightning_ligo as ligo
from lightning_ligo.axes.proof import TOLERANCE
from networks import IMAGES, TOKENS, bert, gpt2, vit
from operations import fourier

VIT = """
cls_token                  1 1 embed
pos_embed                  1 positions embed
patch_embed.proj.weight    embed 1 2 2
patch_embed.proj.bias      embed
blocks.*.norm1.weight      embed
blocks.*.norm1.bias        embed
blocks.*.attn.qkv.weight   (3 heads head_dim) embed
blocks.*.attn.qkv.bias     (3 heads head_dim)
blocks.*.attn.proj.weight  embed (heads head_dim)
blocks.*.attn.proj.bias    embed
blocks.*.norm2.weight      embed
blocks.*.norm2.bias        embed
blocks.*.mlp.fc1.weight    hidden embed
blocks.*.mlp.fc1.bias      hidden
blocks.*.mlp.fc2.weight    embed hidden
blocks.*.mlp.fc2.bias      embed
norm.weight                embed
norm.bias                  embed
head.weight                out embed
head.bias                  out
"""


def test_every_axis_of_a_vision_transformer_is_named():
    assert str(ligo.trace(vit(), **IMAGES)) == VIT.strip()


def test_transposed_linears_and_a_tied_head_are_read():
    axes = ligo.trace(gpt2(), **TOKENS)
    notation = dict(line.split(maxsplit=1) for line in str(axes).splitlines())
    read, written = "(heads c_attn.head_dim)", "(heads attn.head_dim)"
    heads = f"({read} + {read} + {written})"
    assert notation["transformer.h.*.attn.c_attn.weight"] == f"embed {heads}"
    assert notation["transformer.h.*.attn.c_attn.bias"] == heads
    assert notation["transformer.h.*.attn.c_proj.weight"] == f"{written} embed"
    assert notation["transformer.h.*.mlp.c_proj.weight"] == "hidden embed"
    assert "lm_head.weight" not in notation
    assert axes.stacks == {"transformer.h": ("transformer.h", (0, 1), 1, 0, ("*",))}


def test_the_norm_before_a_tied_head_is_written_in_the_form_that_the_head_reads():
    dims = ligo.trace(gpt2(), **TOKENS).dims
    assert dims["transformer.ln_f.weight"][0][0].form == "consumes"
    assert dims["transformer.h.*.ln_1.weight"][0][0].form == "produces"
    assert dims["transformer.wte.weight"][1][0].form == "produces"


@pytest.mark.parametrize(("build", "inputs"), [(vit, IMAGES), (gpt2, TOKENS), (bert, TOKENS)])
def test_the_meta_device_tells_the_same_axes(build, inputs):
    with torch.device("meta"):
        meta = build()
    assert ligo.trace(meta, **inputs) == ligo.trace(build(), **inputs)


@pytest.mark.parametrize(("build", "inputs"), [(vit, IMAGES), (gpt2, TOKENS), (bert, TOKENS)])
def test_an_axis_may_grow_exactly_where_permuting_it_changes_nothing(build, inputs):
    network = build()
    axes = ligo.trace(network, **inputs).axes
    errors = ligo.prove(network, **inputs)
    assert errors.keys() == axes.keys()
    for name, error in errors.items():
        if axes[name].pinned != "the forward does not use it":
            assert (error < 1e-12) == (axes[name].pinned is None), (name, axes[name], error)


def test_tracing_leaves_the_network_in_its_mode():
    network = vit().train()
    network.blocks[0].eval()
    ligo.trace(network, **IMAGES)
    assert network.training and network.blocks[1].training and not network.blocks[0].training


class _Applied(nn.Module):
    def __init__(self, function) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 6)
        self.function = function

    def forward(self, x):
        return self.function(self.linear(x))


def test_an_operation_without_a_rule_names_itself_and_its_parameters():
    network = _Applied(lambda x: fourier(x, 1))
    with pytest.raises(ValueError, match=r"ligo_tests.fourier.*\(2, 6\).*no rule.*linear\.weight"):
        ligo.trace(network, torch.randn(2, 4))


def test_a_reshape_across_axes_names_its_parameters():
    network = _Applied(lambda x: x.reshape(3, 4))
    with pytest.raises(ValueError, match=r"view.*\(2, 6\).*cuts across.*linear\.weight"):
        ligo.trace(network, torch.randn(2, 4))


def test_a_value_read_on_the_meta_device_is_an_error_without_a_network_that_knows_it():
    with torch.device("meta"):
        network = _Applied(lambda x: x if x.sum() > 0 else -x)
    with pytest.raises(ValueError, match="reads a value of a tensor"):
        ligo.trace(network, torch.randn(2, 4))


def test_a_value_read_by_the_small_network_is_told_to_a_large_one_on_the_meta_device():
    def padded(x, mask):
        return x if mask.all() else x * mask

    class Masked(nn.Module):
        def __init__(self, width):
            super().__init__()
            self.one, self.two = nn.Linear(4, width), nn.Linear(width, 3)

        def forward(self, x, mask):
            return self.two(padded(self.one(x), mask))

    with torch.device("meta"):
        large = Masked(10)
    plan = ligo.pair(Masked(5), large, torch.randn(2, 4), torch.tensor([[1.0], [0.0]]))
    assert plan.axes == {"hidden": (5, 10)}


def test_a_table_beside_a_matrix_of_its_shape_is_no_layer_of_one_stack():
    class Mixed(nn.Module):
        def __init__(self):
            super().__init__()
            matrix, table = torch.randn(2, 4, 4)
            self.parts = nn.ModuleList(map(nn.ParameterList, ([matrix], [table])))
            self.choice = nn.Linear(4, 4)

        def forward(self, x):
            matrix, table = (part[0] for part in self.parts)
            x = (x @ matrix.T).tanh() @ matrix
            return x + table[self.choice(x).argmax(-1)]

    x = torch.randn(3, 4)
    network = Mixed()
    errors = ligo.prove(network, x)
    axes = ligo.trace(network, x).axes
    assert all((errors[name] < TOLERANCE) == (axes[name].pinned is None) for name in errors)


def test_chained_modules_are_no_stack():
    network = nn.Sequential()
    network.add_module("layers", nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4)))
    axes = ligo.trace(network, torch.randn(2, 4))
    assert axes.stacks == {} and "chained" in axes.sequential["layers"]


def test_an_axis_that_only_some_orders_leave_alone_is_not_exchangeable():
    """A sum with its mirror image knows its pairs: of 24 orders of four entries eight keep them."""

    class Mirrored(nn.Module):
        def __init__(self, width):
            super().__init__()
            self.one, self.two = nn.Linear(4, width), nn.Linear(width, 2)

        def forward(self, x):
            return self.two(self.one(x) + self.one(x).flip(-1))

    for width in (3, 4, 5):
        assert ligo.prove(Mirrored(width), torch.randn(2, 4))["in"] > 0.01


class _Ordered(nn.Module):
    """Sums its hidden axis up in order, which only one of its outputs shows."""

    def __init__(self):
        super().__init__()
        self.one, self.two, self.three = (
            nn.Linear(4, 6, bias=False),
            nn.Linear(6, 2),
            nn.Linear(6, 2),
        )

    def forward(self, x):
        hidden = self.one(x)
        return self.two(hidden), self.three(hidden.cumsum(-1))


def test_the_proof_looks_at_every_output_and_behind_zeros():
    network, zeros = _Ordered(), torch.zeros(3, 4)
    assert ligo.prove(network, zeros)["in"] > 1e-3
    nn.init.zeros_(network.three.weight)
    assert ligo.prove(network, torch.randn(3, 4))["in"] > 1e-3
    assert not network.three.weight.any() and not zeros.any()


def test_what_tracing_does_not_see_fails_in_the_proof():
    class Unseen(nn.Module):
        def __init__(self, width):
            super().__init__()
            self.one, self.two = nn.Linear(4, width), nn.Linear(width, 2)

        def forward(self, x):
            hidden = self.one(x)
            hidden.detach().numpy()[:, 0] *= 3
            return self.two(hidden)

    with pytest.raises(ValueError, match=r"axis hidden cannot grow: permuting its entries changes"):
        ligo.pair(Unseen(4), Unseen(6), torch.randn(3, 4))


class _Chaotic(nn.Module):
    """Every layer makes a difference of the size of rounding some times larger."""

    def __init__(self, width=8, depth=40):
        super().__init__()
        self.stem, self.head = nn.Linear(4, width), nn.Linear(width, 3)
        self.up = nn.ModuleList(nn.Linear(width, 2 * width) for _ in range(depth))
        self.down = nn.ModuleList(nn.Linear(2 * width, width) for _ in range(depth))

    def forward(self, x):
        x = self.stem(x)
        for up, down in zip(self.up, self.down, strict=True):
            x = x + down(torch.sin(9 * up(x)))
        return self.head(x)


def test_a_network_that_amplifies_rounding_can_be_proved():
    torch.manual_seed(0)
    network, x = _Chaotic().double(), torch.randn(2, 4).double()
    nudged = network(x * (1 + 1e-15))
    assert (nudged - network(x)).norm() > 1e-3 * network(x).norm()  # nothing could be told of it
    axes = ligo.trace(network, x).axes
    for name, error in ligo.prove(network, x).items():
        assert (error < TOLERANCE) == (axes[name].pinned is None), (name, error)
    assert (8, 12) in ligo.pair(network, _Chaotic(12).double(), x).axes.values()


class _Empty(nn.Module):
    """Joins tensors of which none has an entry."""

    def __init__(self, width):
        super().__init__()
        self.up, self.down = nn.Linear(4, width), nn.Linear(width, 2)

    def forward(self, x):
        x = torch.relu(self.up(x))
        nothing = torch.cat([x[:0], x[:0]])
        return self.down(torch.cat([x, nothing]))


def test_empty_tensors_may_be_joined():
    small, large, x = _Empty(8), _Empty(20), torch.randn(3, 4)
    ligo.grow(small, large, x, method="lemon")
    torch.testing.assert_close(large(x), small(x), rtol=1e-5, atol=1e-6)
