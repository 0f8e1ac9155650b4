"""Layers of several kinds in one list grow by whole periods, each within its kind."""

import pytest
import timm
import torch
from torch import nn
from transformers import (
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    GPTNeoConfig,
    GPTNeoForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    SmolLM3Config,
    SmolLM3ForCausalLM,
)

import lightning_ligo as ligo
from networks import IMAGES, output, randomised

TOKENS = {"input_ids": torch.arange(48).reshape(2, 24) * 7 % 50}
SIZES = {"vocab_size": 50, "hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 4,
         "num_key_value_heads": 4, "max_position_embeddings": 64, "bos_token_id": 0,
         "eos_token_id": 0, "pad_token_id": 0}  # fmt: skip


def gemma(period):
    def build(depth):
        kinds = [("full" if i % period else "sliding") + "_attention" for i in range(1, depth + 1)]
        return Gemma3ForCausalLM(Gemma3TextConfig(
            **SIZES, head_dim=8, num_hidden_layers=depth, layer_types=kinds, sliding_window=4
        ))  # fmt: skip

    return build


def neo(depth):
    return GPTNeoForCausalLM(GPTNeoConfig(
        vocab_size=50, hidden_size=32, num_layers=depth, num_heads=2, window_size=4,
        attention_types=[[["global", "local"], depth // 2]], max_position_embeddings=64,
        intermediate_size=64, bos_token_id=0, eos_token_id=0,
    ))  # fmt: skip


def smol(depth):
    settings = {"num_hidden_layers": depth, "no_rope_layer_interval": 2}
    return SmolLM3ForCausalLM(SmolLM3Config(**SIZES, **settings))


def qwen(depth):
    settings = {"use_sliding_window": True, "sliding_window": 4, "max_window_layers": depth // 2}
    return Qwen2ForCausalLM(Qwen2Config(**SIZES, num_hidden_layers=depth, **settings))


def swin(depth):
    return timm.models.SwinTransformer(
        img_size=8, patch_size=1, in_chans=1, num_classes=10, embed_dim=16, depths=(depth,),
        num_heads=(2,), window_size=4,
    )  # fmt: skip


@pytest.mark.parametrize("method", ["lemon", "ligo-low-rank", "llama-pro"])
@pytest.mark.parametrize(
    ("build", "small", "large", "inputs"),
    [
        pytest.param(gemma(2), 2, 4, TOKENS, id="every second"),
        pytest.param(gemma(3), 3, 9, TOKENS, id="every third"),
        pytest.param(gemma(3), 4, 7, TOKENS, id="every third, one behind"),
        pytest.param(neo, 2, 6, TOKENS, id="masks"),
        pytest.param(smol, 2, 4, TOKENS, id="with and without rotation"),
        pytest.param(qwen, 2, 4, TOKENS, id="one kind behind the other"),
        pytest.param(swin, 2, 4, IMAGES, id="shifted windows"),
    ],
)
def test_a_pattern_of_kinds_stays_one(build, small, large, inputs, method):
    small, large = randomised(build(small)), build(large).eval()
    ligo.Operator(ligo.pair(small, large, **inputs), small, method).bake(large)
    before, after = output(small, inputs), output(large, inputs)
    assert (after - before).norm() <= 1e-6 * before.norm()


class Layer(nn.Module):
    """Post-norm; its kind shows in an attribute only."""

    def __init__(self, shifted):
        super().__init__()
        self.shifted = shifted
        self.mix, self.norm = nn.Linear(6, 6), nn.LayerNorm(6)

    def forward(self, x):
        return self.norm(x + self.mix(x.roll(1, 0) if self.shifted else x).tanh())


class Alternating(nn.Module):
    def __init__(self, depth):
        super().__init__()
        self.stem, self.head = nn.Linear(4, 6), nn.Linear(6, 2)
        self.layers = nn.Sequential(*(Layer(bool(i % 2)) for i in range(depth)))

    def forward(self, x):
        return self.head(self.layers(self.stem(x)))


def test_the_norm_behind_a_period_is_handed_on_to_the_last_new_period():
    x = torch.randn(5, 4)
    small, large = randomised(Alternating(4)), Alternating(12).eval()
    ligo.grow(small, large, x, method="lemon")
    assert (large(x) - small(x)).norm() <= 1e-4 * small(x).norm()
    one = torch.ones(6)
    for layer, source in enumerate((0, None, None, None, None, 1, 2, None, None, None, None, 3)):
        expected = one if source is None else small.layers[source].norm.weight
        assert torch.equal(large.layers[layer].norm.weight, expected)


def test_moves_of_training_only_tell_no_kinds():
    def vit(depth):
        return timm.models.VisionTransformer(
            img_size=8, patch_size=2, in_chans=1, num_classes=10, embed_dim=16, depth=depth,
            num_heads=2, drop_path_rate=0.1,
        )  # fmt: skip

    assert ligo.pair(vit(2), vit(4), **IMAGES).stacks == {"blocks": (2, 4)}
