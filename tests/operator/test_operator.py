import copy
from functools import cache, partial

import pytest
import timm
import torch
from timm.layers import resample_abs_pos_embed
from torch import nn
from transformers import BertConfig, BertForMaskedLM, Gemma3ForCausalLM, Gemma3TextConfig

import lightning_ligo as ligo
from networks import (
    IMAGES,
    IMAGES64,
    LEARNED,
    TOKENS,
    bert,
    cast,
    gpt2,
    llama,
    measured,
    mixer,
    output,
    randomised,
    resnet,
    vit,
)
from toys import Toy, X

MULTIPLES = {
    "vit": (vit, IMAGES, 64, 4),
    "vit with layer scale": (partial(vit, init_values=0.1), IMAGES, 64, 4),
    "gpt2": (gpt2, TOKENS, 64, 4),
    "llama": (llama, TOKENS, 64, 4),
    "bert, width": (bert, TOKENS, 64, 2),
    "mixer": (mixer, IMAGES, 64, 4),
    "resnet": (resnet, IMAGES, 16, 4),
}
OTHERS = {
    "vit to 48": (vit, IMAGES, 48, 3),
    "gpt2 to 48": (gpt2, TOKENS, 48, 3),
    "llama to 48": (llama, TOKENS, 48, 3),
    "llama from 48": (llama, TOKENS, 64, 3, 48),
    "resnet to 12": (resnet, IMAGES, 12, 3),
}
FAMILIES = {**MULTIPLES, **OTHERS}
KEEPS = [LEARNED, "ligo-low-rank", "lemon", "net2net", "llama-pro+lemon"]
TILES = ["llama-pro+hypercloning", "lemon+hypercloning-noisy", "staged", "lemon+sparkling"]
KEPT = [(name, method) for name in FAMILIES for method in KEEPS]
KEPT += [(name, method) for name in MULTIPLES for method in TILES]


@cache
def paired(name, dtype):
    build, inputs, width, depth, *narrow = FAMILIES[name]
    small, large = randomised(build(*narrow), dtype), build(width, depth).to(dtype).eval()
    return small, large, ligo.pair(small, large, **cast(inputs, dtype)), inputs


@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 1e-5), (torch.float64, 1e-10)])
@pytest.mark.parametrize(("name", "method"), KEPT)
def test_the_start_keeps_the_function(name, method, dtype, bound):
    small, large, plan, inputs = paired(name, dtype)
    operator = ligo.Operator(plan, small, method)
    told = measured(plan, small, large, inputs, method)
    operator.bake(large)
    before, after = output(small, inputs), output(large, inputs)
    assert (after - before).norm() <= bound * before.norm()
    assert told.kept


@pytest.mark.parametrize("method", [LEARNED, "lemon", "net2net", "staged"])
def test_where_no_method_can_keep_the_function_all_say_so(method):
    class Bounded(Toy):
        def forward(self, x):
            x = self.embed(x)
            for block in self.blocks:
                x = block(x).tanh()
            return self.head(x)

    small, large = Bounded(), Bounded(depth=4)
    plan = ligo.pair(small, large, X.float())
    told = measured(plan, small, large, {"x": X.float()}, method)
    assert told.change > 0.01 and told.place == "blocks.2.fc1"


class PostNorm(nn.Module):
    """Layers whose stream goes through norms, in one of the orders that are in use."""

    class Layer(nn.Module):
        def __init__(self, width, norm, order):
            super().__init__()
            self.order = order
            self.one, self.two = nn.Linear(width, width), nn.Linear(width, width)
            self.norm1, self.norm2 = norm(width), norm(width)

        def forward(self, x):
            if self.order == "first":  # as BLOOM's residual behind its norms
                x = self.norm1(x)
                x = self.norm2(x + self.one(x).relu())
                return x + self.two(x).relu()
            if self.order == "sandwich":
                return x + self.norm2(self.one(self.norm1(x)))
            scale = 1.5 if self.order == "scaled" else 1  # as DeepNorm
            x = self.norm1(x * scale + self.one(x).relu())
            return self.norm2(x * scale + self.two(x).relu())

    def __init__(self, width=16, depth=2, norm=nn.LayerNorm, order="last"):
        super().__init__()
        self.embed, self.head = nn.Linear(4, width), nn.Linear(width, 3)
        self.layers = nn.ModuleList(self.Layer(width, norm, order) for _ in range(depth))
        self.norm = norm(width) if order in ("first", "sandwich") else nn.Identity()

    def forward(self, x):
        x = self.embed(x)
        for layer in self.layers:
            x = layer(x)
        return self.head(self.norm(x))


class HandwrittenNorm(nn.RMSNorm):
    def forward(self, x):
        return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-6) * self.weight


@pytest.mark.parametrize("order", ["last", "first", "sandwich", "scaled"])
@pytest.mark.parametrize("norm", [nn.LayerNorm, nn.RMSNorm, HandwrittenNorm])
def test_new_layers_pass_a_stream_that_goes_through_norms(norm, order):
    small = randomised(PostNorm(norm=norm, order=order), torch.float64)
    for width, depth in ((16, 4), (16, 3), (32, 5)):  # one or several behind one, and wider
        large = PostNorm(width, depth, norm, order).double().eval()
        plan = ligo.pair(small, large, X)
        for method in ("lemon", LEARNED, "net2net", "hypercloning", "llama-pro", "staged", "zero"):
            if (width, method) == (32, "zero"):
                continue
            told = measured(plan, small, large, {"x": X}, method)
            ligo.Operator(plan, small, method).bake(large)
            assert told.kept
            changed = (large(X) - small(X)).norm() / small(X).norm()
            assert changed < 1e-4, (method, width, depth, changed)


@pytest.mark.parametrize("method", ["lemon", LEARNED, "net2net", "hypercloning", "llama-pro"])
def test_a_deeper_and_wider_bert_keeps_the_function(method):
    small, large = randomised(bert(), torch.float64), bert(64, 5).double().eval()
    ligo.Operator(ligo.pair(small, large, **TOKENS), small, method).bake(large)
    before, after = output(small, TOKENS), output(large, TOKENS)
    assert (after - before).norm() <= 1e-9 * before.norm()
    for layer, source in ((0, None), (1, None), (2, 0), (3, None), (4, 1)):
        norm = large.bert.encoder.layer[layer].output.LayerNorm
        one = torch.ones(32, dtype=torch.float64)
        weight = one if source is None else small.bert.encoder.layer[source].output.LayerNorm.weight
        assert torch.equal(norm.weight[:32], weight)


def test_layer_scale_and_an_untied_head_keep_the_function():
    for build, inputs, changes in (
        (vit, IMAGES, {"init_values": 0.1}),
        (gpt2, TOKENS, {"tie_word_embeddings": False}),
    ):
        small = randomised(build(**changes), torch.float64)
        large = randomised(build(64, 4, **changes), torch.float64)
        ligo.grow(small, large, method="lemon", **cast(inputs, torch.float64))
        torch.testing.assert_close(output(small, inputs), output(large, inputs))


@pytest.mark.parametrize("method", ["lemon", LEARNED])
@pytest.mark.parametrize(
    ("small", "large", "inputs"),
    [
        pytest.param(vit(32, num_heads=2), vit(64, 4, num_heads=2), IMAGES64, id="vit"),
        pytest.param(vit(32, num_heads=2), vit(72, num_heads=3), IMAGES64, id="vit, more heads"),
        pytest.param(gpt2(32, n_head=2), gpt2(80, n_head=2), TOKENS, id="gpt2, no multiple"),
    ],
)
def test_wider_heads_keep_the_function(small, large, inputs, method):
    small, large = randomised(small, torch.float64), large.double().eval()
    ligo.grow(small, large, method=method, steps=0, **inputs)
    before, after = output(small, inputs), output(large, inputs)
    assert (after - before).norm() <= 1e-10 * before.norm()


def test_a_larger_vocabulary_keeps_its_entries_and_more_classes_theirs():
    small, large = randomised(gpt2(), torch.float64), gpt2(64, 4, vocab_size=60).double().eval()
    ligo.grow(small, large, method="lemon", **TOKENS)
    before, after = output(small, TOKENS), output(large, TOKENS)
    torch.testing.assert_close(after[..., :50], before)
    torch.testing.assert_close(after[..., 50:], before.mean(-1, keepdim=True).expand(2, 16, 10))
    small, large = randomised(vit(), torch.float64), vit(64, classes=12).double().eval()
    ligo.grow(small, large, method="lemon", **IMAGES64)
    torch.testing.assert_close(output(large, IMAGES64)[:, :10], output(small, IMAGES64))


def test_positions_are_interpolated_as_timm_does():
    small, large = randomised(vit()), vit(64, img_size=16)
    images = {"x": torch.randn(3, 1, 16, 16)}
    ligo.grow(small, large, method="lemon", large_inputs=images, **IMAGES)
    expected = resample_abs_pos_embed(small.pos_embed, [8, 8], num_prefix_tokens=1)
    # a multiple: the first copies of the stream, whose variance an equal norm keeps
    torch.testing.assert_close(large.pos_embed[..., :32], expected)
    calls = [[ligo.Call(kwargs=inputs)] for inputs in (IMAGES, images)]
    plan = ligo.pair(small, large, large_inputs=images, **IMAGES)
    told = ligo.measure(plan, small, large, *calls)
    assert told.why.startswith("the large network is called with other inputs")


def test_more_tokens_are_the_mean_of_all_and_the_first_stay():
    small, large = randomised(vit(reg_tokens=2)), vit(reg_tokens=5)
    plan = ligo.pair(small, large, **IMAGES)
    assert not measured(plan, small, large, IMAGES).kept
    ligo.grow(small, large, method="lemon", **IMAGES)
    torch.testing.assert_close(large.reg_token[:, :2], small.reg_token)
    mean = small.reg_token.mean(1, keepdim=True).expand(1, 3, -1)
    torch.testing.assert_close(large.reg_token[:, 2:], mean)


def test_a_larger_window_has_a_smaller_mask_of_windows():
    swin = partial(timm.models.SwinTransformer, img_size=16, patch_size=2, in_chans=1,
                   num_classes=10, embed_dim=16, depths=(2,), num_heads=(2,))  # fmt: skip
    small, large = randomised(swin(window_size=2)), swin(window_size=4)
    masks = [network.layers[0].blocks[1].attn_mask for network in (small, large)]
    assert [tuple(mask.shape) for mask in masks] == [(16, 4, 4), (4, 16, 16)]
    images = torch.randn(2, 1, 16, 16)
    assert ligo.pair(small, large, images).axes == {"layers.0.blocks.*.attn.positions": (9, 49)}
    built = masks[1].clone()
    ligo.grow(small, large, images, method="lemon")
    assert torch.equal(large.layers[0].blocks[1].attn_mask, built)
    tables = [n.layers[0].blocks[0].attn.relative_position_bias_table for n in (small, large)]
    image = tables[0].T.reshape(1, 2, 3, 3)
    resized = nn.functional.interpolate(image, size=(7, 7), mode="bicubic", antialias=True)
    torch.testing.assert_close(tables[1], resized.reshape(2, 49).T)


def test_equal_sizes_leave_every_parameter_bit_equal():
    small, large = randomised(vit()), vit()
    ligo.grow(small, large, method="lemon", **IMAGES)
    for name, ours in small.state_dict().items():
        assert torch.equal(ours, large.state_dict()[name]), name


@pytest.mark.parametrize("method", ["ligo", "ligo-paper", "lemon"])
def test_a_grown_network_is_the_plain_network(method):
    small, large = randomised(gpt2()), gpt2(64, 4).eval()
    keys, types = list(large.state_dict()), [type(m) for m in large.modules()]
    ligo.grow(small, large, method=method, steps=0, **TOKENS)
    plain = gpt2(64, 4).eval()
    plain.load_state_dict(large.state_dict())
    assert torch.equal(output(plain, TOKENS), output(large, TOKENS))
    assert list(large.state_dict()) == keys and [type(m) for m in large.modules()] == types
    assert not any(
        hooks
        for module in large.modules()
        for name, hooks in vars(module).items()
        if name.endswith("_hooks")
    )


def test_baking_writes_every_layer_before_the_next_is_grown(monkeypatch):
    small, large = randomised(vit()), vit(64, 4)
    operator = ligo.Operator(ligo.pair(small, large, **IMAGES), small, "lemon")
    expected = {name: tensor.clone() for name, tensor in operator(large).items()}
    grow, written, parameters = operator._grow, [], dict(large.named_parameters())

    def checked(row, fresh, small, layer=None):
        assert all(torch.equal(parameters[name], expected[name]) for name in written)
        names = row.large_names
        written.extend(names if layer is None else names[layer : layer + 1])
        return grow(row, fresh, small, layer)

    monkeypatch.setattr(operator, "_grow", checked)
    operator.bake(large)
    assert written == list(expected)


@pytest.mark.parametrize("method", [*ligo.METHODS, "stack+fresh", "interpolate+ligo"])
@pytest.mark.parametrize("network", [vit, gpt2, llama, resnet])
def test_layer_by_layer_is_all_at_once_also_from_weights_by_name(network, method):
    inputs = IMAGES if network in (vit, resnet) else TOKENS
    small = randomised(network())
    large = network(12) if network is resnet else network(64, 4)
    plan = ligo.pair(small, large, **inputs)
    try:
        operator = ligo.Operator(plan, small, method)
    except ValueError as refused:
        pytest.skip(str(refused))
    with torch.no_grad():
        for coefficients in operator.parameters():
            coefficients += 0.1 * torch.randn(coefficients.shape)
    expected = {**operator(large), **dict(operator.buffers_of(large))}
    by_name = ligo.Operator(plan, small.state_dict(keep_vars=True), method)
    by_name.load_state_dict(operator.state_dict())
    for found in (dict(operator.tensors(large)), dict(by_name.tensors(large))):
        assert found.keys() == expected.keys()
        for name, tensor in found.items():
            assert tensor.dtype == expected[name].dtype
            torch.testing.assert_close(tensor, expected[name], rtol=1e-5, atol=1e-6)


def test_a_tied_head_stays_tied():
    small, large = randomised(gpt2()), gpt2(64, 4)
    ligo.grow(small, large, method="ligo", steps=0, **TOKENS)
    assert large.lm_head.weight is large.transformer.wte.weight


@pytest.mark.parametrize("method", [LEARNED, "ligo"])
def test_a_weight_grows_by_the_kronecker_product_of_its_maps(method):
    small, large = randomised(vit(), torch.float64), vit(64, 2).double()
    plan = ligo.pair(small, large, **IMAGES64)
    operator = ligo.Operator(plan, small, method, seed=3)
    name = "blocks.1.attn.qkv.weight"

    def product():
        maps = {name: p.detach() for name, p in operator.widths.maps.items()}
        heads = maps["blocks/*/attn/heads:produces"][1]  # (4, 2), of layer 1
        eye = torch.eye(3, dtype=torch.float64), torch.eye(16, dtype=torch.float64)
        out = torch.kron(torch.kron(eye[0], heads), eye[1])
        return out @ small.get_parameter(name) @ maps["embed:consumes"].T

    fresh = 0.0
    if method == "ligo":  # what stack+fresh has beside its own product
        fresh = ligo.Operator(plan, small, "stack+fresh")(large)[name] - product()
        assert (fresh != 0).double().mean() == 0.75  # all but the upper left quarter
    with torch.no_grad():
        for coefficients in operator.parameters():
            coefficients += torch.randn(coefficients.shape, dtype=torch.float64)
    torch.testing.assert_close(operator(large)[name], product() + fresh)


@pytest.mark.parametrize("name", FAMILIES)
def test_ligo_starts_as_stack_with_fresh_parts(name):
    small, large, plan, _ = paired(name, torch.float64)
    started = ligo.Operator(plan, small, "ligo")(large)
    for name, tensor in ligo.Operator(plan, small, "stack+fresh")(large).items():
        torch.testing.assert_close(started[name], tensor, msg=name)


def test_depth_is_mixed_before_width():
    small, large = randomised(vit(), torch.float64), vit(32, 3).double()
    operator = ligo.Operator(ligo.pair(small, large, **IMAGES64), small, "ligo-paper", seed=3)
    mix = operator.depths.mixes["blocks/*/mlp/fc1/weight"].detach()
    first, second = (small.blocks[layer].mlp.fc1.weight for layer in (0, 1))
    expected = mix[2, 0] * first + mix[2, 1] * second
    torch.testing.assert_close(operator()["blocks.2.mlp.fc1.weight"], expected)


def test_new_layers_add_nothing_and_keep_their_inner_weights():
    small, large = randomised(vit()), vit(32, 4)
    ligo.grow(small, large, method="lemon", **IMAGES)
    x = torch.randn(2, 17, 32)
    for layer, silent in enumerate((False, True, False, True)):
        assert torch.equal(large.blocks[layer](x), x) == silent
        source = small.blocks[layer // 2]
        assert torch.equal(large.blocks[layer].attn.qkv.weight, source.attn.qkv.weight)


def divided_by_its_norm(linear):
    class Divided(nn.Module):
        def forward(self, weight):
            return weight / weight.norm(dim=1, keepdim=True)

    return nn.utils.parametrize.register_parametrization(linear, "weight", Divided())


@pytest.mark.filterwarnings("ignore:`torch.nn.utils.weight_norm` is deprecated")
@pytest.mark.parametrize(
    ("wrap", "kept"),
    [
        (nn.utils.parametrizations.weight_norm, True),
        (nn.utils.weight_norm, True),
        (lambda linear: nn.utils.parametrizations.weight_norm(linear, dim=None), True),
        (nn.utils.spectral_norm, False),  # no weight of zero has this norm
        (divided_by_its_norm, False),
    ],
)
def test_a_new_layer_whose_weight_is_normed_is_finite_and_silent_by_its_gain(wrap, kept):
    class Net(nn.Module):
        def __init__(self, depth):
            super().__init__()
            self.embed, self.head = nn.Linear(4, 6), nn.Linear(6, 2)
            self.layers = nn.ModuleList(wrap(nn.Linear(6, 6)) for _ in range(depth))

        def forward(self, x):
            x = self.embed(x)
            for layer in self.layers:
                x = x + layer(x).tanh()
            return self.head(x)

    x = torch.randn(5, 4)
    small, large = Net(2).eval(), Net(4).eval()
    ligo.grow(small, large, x, method="lemon")
    assert large(x).isfinite().all()
    assert torch.allclose(large(x), small(x), atol=1e-6) == kept


def test_the_paper_s_operator_has_the_paper_s_size():
    """30.1 M coefficients from BERT-Small (6 x 512) to BERT-Base (12 x 768)."""

    def network(width, depth):
        config = BertConfig(hidden_size=width, num_hidden_layers=depth, intermediate_size=4 * width,
                            num_attention_heads=width // 64, tie_word_embeddings=False)  # fmt: skip
        with torch.device("meta"):
            return BertForMaskedLM(config)

    small, large = network(512, 6), network(768, 12)
    operator = ligo.Operator(ligo.pair(small, large, **TOKENS), small, "ligo-paper")
    assert round(operator.coefficients / 1e6, 1) == 30.1


def test_the_same_seed_gives_the_same_operator():
    small, large = randomised(vit()), vit(64, 4)
    plan = ligo.pair(small, large, **IMAGES)
    first, second, other = (ligo.Operator(plan, small, "lemon", seed)() for seed in (1, 1, 2))
    name = "blocks.0.attn.qkv.weight"
    assert torch.equal(first[name], second[name]) and not torch.equal(first[name], other[name])


def test_parents_follow_the_layers():
    small, large = vit(), vit(64, 4)
    plan = ligo.pair(small, large, **IMAGES)
    parents = ligo.Operator(plan, small, "lemon").parents()
    assert parents.keys() == dict(large.named_parameters()).keys()
    assert parents["blocks.3.norm1.weight"] == ["blocks.1.norm1.weight", "blocks.0.norm1.weight"]
    assert parents["norm.weight"] == ["norm.weight"]


def test_buffers_are_kept():
    class Counted(nn.Module):
        def __init__(self, width):
            super().__init__()
            self.one, self.two = nn.Linear(4, width), nn.Linear(width, 2)
            self.register_buffer("mean", torch.zeros(width))
            self.register_buffer("steps", torch.tensor(0))

        def forward(self, x):
            return self.two(self.one(x) - self.mean)

    small, large, x = Counted(6), Counted(9), torch.randn(3, 4)
    small.mean.uniform_()
    small.steps += 5
    ligo.grow(small, large, x, method="lemon")
    torch.testing.assert_close(large(x), small(x))
    assert large.steps == 5


def test_an_unknown_method_lists_the_known_ones():
    small, large = vit(), vit(64)
    with pytest.raises(ValueError, match=r"unknown method 'lego'.* ligo, .*lemon, .*plus"):
        ligo.grow(small, large, method="lego", **IMAGES)


@pytest.mark.parametrize("method", [LEARNED, "ligo-paper", "stack+lemon", "lemon+sparkling"])
def test_an_operator_of_other_weights_is_one_built_on_them_with_its_coefficients(method):
    small, large, plan, _ = paired("gpt2", torch.float64)
    other = copy.deepcopy(small)
    operator = ligo.Operator(plan, small, method, seed=3)
    with torch.no_grad():
        for tensor in other.parameters():
            tensor.mul_(2).add_(0.1)
        for coefficient in operator.parameters():
            coefficient.add_(0.1 * torch.randn_like(coefficient))
        before = operator(large)
        built = ligo.Operator(plan, other, method, seed=3)
        built.load_state_dict(operator.state_dict())
        expected, found = built(large), operator.of(other)(large)
        for name, tensor in operator(large).items():  # which is as it was
            assert torch.equal(tensor, before[name])
    assert found.keys() == expected.keys()
    for name, tensor in found.items():
        assert torch.equal(tensor, expected[name]), name
        assert not tensor.any() or not torch.equal(tensor, before[name]), name  # or silent


class Constants(nn.Module):
    """A table times the root of the width, a tied head, a scale that a buffer holds."""

    def __init__(self, width, tied=True, plus=0.0):
        super().__init__()
        self.table, self.inner = nn.Embedding(50, width), nn.Linear(width, width)
        self.gain, self.shift = nn.Parameter(torch.ones(width)), nn.Parameter(torch.zeros(width))
        self.head = nn.Linear(width, 50, bias=False)
        if tied:
            self.head.weight = self.table.weight
        self.weight = nn.Parameter(torch.randn(width, width))
        self.register_buffer("scale", torch.tensor(float(width) ** 0.5), persistent=False)
        self.plus = plus

    def forward(self, input_ids):
        x = self.table(input_ids) * self.scale
        x = x + self.inner(x) * len(self.gain) ** -0.5
        weight = self.weight / self.weight.shape[1] ** 0.5  # equalized learning rate
        x = x + nn.functional.linear(x, weight)
        x = nn.functional.layer_norm(x, self.gain.shape, self.gain + self.plus, self.shift)
        return self.head(x)


@pytest.mark.parametrize("width", [32, 40])
@pytest.mark.parametrize("plus", [0.0, 1.0])
@pytest.mark.parametrize("tied", [True, False])
def test_constants_of_the_width_are_folded_into_what_they_scale(tied, plus, width):
    small = randomised(Constants(16, tied, plus), torch.float64)
    large = Constants(width, tied, plus).double().eval()
    for method in ("lemon", LEARNED, "ligo-low-rank"):
        ligo.Operator(ligo.pair(small, large, **TOKENS), small, method).bake(large)
        before, after = output(small, TOKENS), output(large, TOKENS)
        assert (after - before).norm() <= 1e-10 * before.norm(), method


@pytest.mark.parametrize("depth", [2, 4])
def test_a_wider_gemma_keeps_the_function(depth):
    def build(width, depth=2):
        return Gemma3ForCausalLM(Gemma3TextConfig(
            vocab_size=50, hidden_size=width, intermediate_size=64, num_attention_heads=width // 8,
            num_key_value_heads=width // 8, head_dim=8, num_hidden_layers=depth, sliding_window=4,
            layer_types=["sliding_attention", "full_attention"] * (depth // 2),
            max_position_embeddings=32, bos_token_id=0, eos_token_id=0, pad_token_id=0,
        ))  # fmt: skip

    small, large = randomised(build(32)), build(64, depth).eval()
    ligo.grow(small, large, method="lemon", **TOKENS)
    before, after = output(small, TOKENS), output(large, TOKENS)
    assert (after - before).norm() <= 1e-4 * before.norm()


@pytest.mark.parametrize("method", ["ligo", "ligo-paper", "ligo-low-rank", "lemon"])
def test_what_reads_heads_alone_has_a_map_of_the_heads(method):
    """CaiT's talking heads: (heads, heads) beside queries of (3, heads, head size)."""
    sizes = [("cait_xs24_384", 32, 2), ("cait_s24_224", 48, 3)]
    small, large = (
        timm.create_model(
            name, embed_dim=width, depth=2, num_heads=heads, img_size=32, num_classes=2
        )
        for name, width, heads in sizes
    )
    operator = ligo.Operator(ligo.pair(small, large, torch.randn(2, 3, 32, 32)), small, method)
    grown = dict(operator.tensors(large))
    shapes = {name: parameter.shape for name, parameter in large.named_parameters()}
    assert {name: tensor.shape for name, tensor in grown.items() if name in shapes} == shapes
    if method == "ligo-paper":  # tied over all of a dimension, and so over (heads, head size)
        maps = operator.widths.maps
        assert maps["blocks/*/attn/qkv/weight:0:produces"].shape == (2, 48 - 32, 32)
        assert maps["blocks/*/attn/heads:produces"].shape == (2, 3 - 2, 2)
