"""Layers whose kind depends on their number: local and global attention, a scale by the layer.

Gemma 3, GPT-Neo, GPT-2 with scale_attn_by_inverse_layer_idx, SmolLM3. What is told is what is
measured; the kinds that can be matched are.
"""

import torch
from transformers import (
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    GPT2Config,
    GPT2LMHeadModel,
    GPTNeoConfig,
    GPTNeoForCausalLM,
    SmolLM3Config,
    SmolLM3ForCausalLM,
)

from judge import grown, noisy, say

IDS = torch.arange(48).reshape(2, 24) * 7 % 50
BASE = {"vocab_size": 50, "hidden_size": 32, "bos_token_id": 0, "eos_token_id": 0}
WITH_HEADS = BASE | {"intermediate_size": 64, "max_position_embeddings": 64, "pad_token_id": 0}
WITH_HEADS |= {"num_attention_heads": 4, "num_key_value_heads": 4, "head_dim": 8}


def gemma3(depth):
    kinds = ["sliding_attention", "full_attention"] * (depth // 2)
    config = Gemma3TextConfig(
        **WITH_HEADS, num_hidden_layers=depth, layer_types=kinds, sliding_window=4
    )
    return Gemma3ForCausalLM(config)


def gpt_neo(depth):
    kinds = [[["global", "local"], depth // 2]]
    sizes = {"num_heads": 2, "window_size": 4, "max_position_embeddings": 64}
    return GPTNeoForCausalLM(
        GPTNeoConfig(**BASE, **sizes, num_layers=depth, intermediate_size=64, attention_types=kinds)
    )


def gpt2(depth):
    sizes = {"n_positions": 32, "n_layer": depth, "n_head": 2}
    return GPT2LMHeadModel(GPT2Config(**BASE, **sizes, scale_attn_by_inverse_layer_idx=True))


def smollm3(depth):
    config = SmolLM3Config(**WITH_HEADS, num_hidden_layers=depth, no_rope_layer_interval=2)
    return SmolLM3ForCausalLM(config)


for build in (gemma3, gpt_neo, gpt2, smollm3):
    for method in ("lemon", "llama-pro"):
        torch.manual_seed(0)
        small, large = build(2).eval(), build(4).eval()
        outcome = grown(noisy(small, 0.2), large, method=method, input_ids=IDS)
        asked = outcome.honest() if build is gpt2 else outcome.kept()
        say(asked, f"{build.__name__} 2 -> 4 layers, {method};", outcome)
