"""Layers that differ by their number only: gpt-oss (sliding, full, sliding, full), 2 -> 4."""

import torch
from transformers import GptOssConfig, GptOssForCausalLM

from judge import grown, noisy, say


def gpt_oss(depth):
    sizes = {"vocab_size": 50, "hidden_size": 32, "intermediate_size": 64, "head_dim": 8}
    sizes |= {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64}
    layers = {"layer_types": ["sliding_attention", "full_attention"] * (depth // 2)}
    layers |= {"num_hidden_layers": depth, "sliding_window": 4}
    experts = {"num_local_experts": 4, "num_experts_per_tok": 2}
    tokens = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    return GptOssForCausalLM(GptOssConfig(**sizes, **layers, **experts, **tokens)).eval()


torch.manual_seed(0)
small, large = gpt_oss(2), gpt_oss(4)
outcome = grown(noisy(small, 0.05), large, input_ids=torch.randint(4, 50, (2, 12)))
say(outcome.kept(), outcome)
