"""Heads, the keys and values that they share, and experts."""

import pytest
import torch
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
)

import lightning_ligo as ligo
from networks import TOKENS, output, randomised

SETTINGS = {
    "vocab_size": 50,
    "hidden_size": 48,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "max_position_embeddings": 32,
    "head_dim": 8,
    "pad_token_id": 0,
}


def llama(queries: int, keys: int, width: int = 48, head_dim: int = 8):
    """A Llama with so many heads of queries, and of keys and values."""
    changes = {"hidden_size": width, "head_dim": head_dim, "num_attention_heads": queries}
    return LlamaForCausalLM(LlamaConfig(**{**SETTINGS, **changes, "num_key_value_heads": keys}))


def grown(small, large):
    plan = ligo.pair(small, large, **TOKENS)
    ligo.Operator(plan, small, "lemon").bake(large)
    return plan, output(small, TOKENS), output(large, TOKENS)


@pytest.mark.parametrize(
    ("small", "large"),
    [
        ((4, 2), (8, 2)),  # more queries share a key
        ((4, 2), (8, 4)),  # more keys, each shared by as many
        ((4, 2), (4, 4)),  # every query gets a key of its own
        ((4, 1), (4, 4)),  # and where there was only one
        ((4, 1), (4, 2)),
        ((4, 1), (8, 4)),
        ((8, 2), (16, 8)),
        ((4, 2), (12, 4)),
        ((4, 2), (6, 3)),
    ],
)
def test_queries_and_the_keys_that_they_share_grow_and_keep_the_function(small, large):
    _, before, after = grown(randomised(llama(*small)), llama(*large, width=96).eval())
    assert (after - before).norm() < 1e-5 * before.norm()


def test_the_plan_says_which_heads_are_no_longer_shared():
    plan = ligo.pair(llama(4, 2), llama(4, 4), **TOKENS)
    assert plan.shared == {"model.layers.*.self_attn.heads": 2}
    assert "one head of keys and values becomes 2, which were shared" in str(plan)


def test_heads_that_would_share_more_are_refused():
    with pytest.raises(ValueError, match=r"heads is 4 long in the small network and only 2"):
        ligo.pair(llama(4, 4), llama(8, 2), **TOKENS)
    with pytest.raises(ValueError, match=r"q_proj.*is 32 long .* and not the 16 of the axes"):
        ligo.pair(llama(4, 2), llama(8, 1), **TOKENS)


def test_a_wider_rotary_head_says_that_its_frequencies_are_others():
    plan, _, _ = grown(llama(4, 2), llama(4, 2, head_dim=16))
    assert any("inv_freq is not saved" in line for line in plan.inexact)


def mixtral(experts: int, chosen: int):
    changes = {"num_attention_heads": 4, "num_key_value_heads": 2}
    experts_of = {"num_local_experts": experts, "num_experts_per_tok": chosen}
    return MixtralForCausalLM(MixtralConfig(**{**SETTINGS, **changes, **experts_of}))


def test_new_experts_are_copies_beside_what_they_copy():
    small, large = randomised(mixtral(4, 2)), mixtral(8, 2)
    plan, _, _ = grown(small, large)
    assert any("experts grows from 4 to 8 by copies" in line for line in plan.inexact)
    before, after = dict(small.named_parameters()), dict(large.named_parameters())
    for rest in ("gate.weight", "experts.gate_up_proj", "experts.down_proj"):
        name = f"model.layers.0.mlp.{rest}"
        assert torch.equal(after[name], before[name].repeat_interleave(2, 0))


def test_twice_the_experts_of_which_twice_as_many_are_chosen_keep_the_function():
    _, before, after = grown(randomised(mixtral(4, 2)), mixtral(8, 4).eval())
    assert (after - before).norm() < 1e-5 * before.norm()
