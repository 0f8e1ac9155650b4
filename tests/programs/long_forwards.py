"""Forwards of public packages that once ended in a RecursionError: Qwen3-Next, DINOv3, ShuffleNet.

They grow, and what is told is what is measured.
"""

import torch
from torchvision.models import ShuffleNetV2
from transformers import DINOv3ViTConfig, DINOv3ViTModel, Qwen3NextConfig, Qwen3NextForCausalLM

from judge import grown, noisy, say

SIZES = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 4}


def qwen3_next(periods):
    heads = {"num_key_value_heads": 2, "head_dim": 8, "linear_key_head_dim": 8}
    heads |= {"linear_value_head_dim": 8, "linear_num_key_heads": 2, "linear_num_value_heads": 4}
    experts = {"moe_intermediate_size": 16, "shared_expert_intermediate_size": 16}
    experts |= {"num_experts": 4, "num_experts_per_tok": 2}
    kinds = ["linear_attention", "full_attention"] * periods
    layers = {"num_hidden_layers": len(kinds), "layer_types": kinds}
    config = Qwen3NextConfig(vocab_size=50, use_cache=False, **SIZES, **heads, **experts, **layers)
    return Qwen3NextForCausalLM(config).eval()


def dinov3(depth):
    config = DINOv3ViTConfig(image_size=16, patch_size=4, num_hidden_layers=depth, **SIZES)
    return DINOv3ViTModel(config).eval()


def shufflenet(width, depth):
    return ShuffleNetV2([depth] * 3, [width * n for n in (1, 2, 4, 8, 11)], num_classes=10).eval()


ids, images = torch.randint(4, 50, (2, 12)), torch.randn(2, 3, 64, 32)
for name, small, large, inputs in (
    ("Qwen3-Next, deeper", qwen3_next(1), qwen3_next(2), {"input_ids": ids}),
    ("DINOv3, deeper", dinov3(2), dinov3(4), {"pixel_values": images[..., :16, :16]}),
    ("ShuffleNet of 2 blocks, wider", shufflenet(12, 2), shufflenet(24, 2), {"x": images}),
    ("ShuffleNet of 3 blocks, wider", shufflenet(12, 3), shufflenet(24, 3), {"x": images}),
):
    outcome = grown(noisy(small, 0.1), large, **inputs)
    say(outcome.honest(), f"{name}:", outcome)
