"""Define a small and a large network of each Hugging Face family, by small configurations."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
import transformers
from torch import Tensor, nn

Inputs = Callable[[], dict[str, Tensor]]
VOCABULARY, LENGTH = 50, 12


def tokens() -> dict[str, Tensor]:
    """Make token ids (2, LENGTH), none of them special."""
    generator = torch.Generator().manual_seed(0)
    return {"input_ids": torch.randint(4, VOCABULARY, (2, LENGTH), generator=generator)}


def two_texts() -> dict[str, Tensor]:
    """Make the tokens of an encoder, and of a decoder."""
    ids = tokens()["input_ids"]
    return {"input_ids": ids, "decoder_input_ids": ids[:, :7].flip(1)}


def images() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {"pixel_values": torch.randn(2, 3, 16, 16, generator=generator)}


def images_and_texts() -> dict[str, Tensor]:
    return {**tokens(), **images()}


def spectrograms() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(2, 8, 24, generator=generator)
    return {"input_features": features, "decoder_input_ids": tokens()["input_ids"]}


def waves() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {"input_values": torch.randn(2, 800, generator=generator)}


@dataclass(frozen=True)
class Family:
    """A model class and the settings of its configuration; ``large`` holds those that change."""

    model: str  # a class of transformers
    config: str
    small: dict[str, Any]
    large: dict[str, Any]
    inputs: Inputs = tokens
    settings: dict[str, Any] = field(default_factory=dict)  # of both, beside the vocabulary

    def build(self, size: str) -> nn.Module:
        """Build the ``small`` or the ``large`` network, with random weights."""
        changes = self.small if size == "small" else {**self.small, **self.large}
        config = getattr(transformers, self.config)(**{**self.settings, **changes})
        return getattr(transformers, self.model)(config).eval()


TEXT = {"vocab_size": VOCABULARY, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
BERT = dict(hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64)
BERT_LARGE = dict(hidden_size=64, num_attention_heads=4, intermediate_size=160)
DEEPER = {**BERT_LARGE, "num_hidden_layers": 4}
LLAMA = {**BERT, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8}
LLAMA_LARGE = {**DEEPER, "hidden_size": 48, "num_attention_heads": 8, "num_key_value_heads": 4}
BART = dict(
    d_model=32, encoder_layers=2, decoder_layers=2, encoder_attention_heads=2,
    decoder_attention_heads=2, encoder_ffn_dim=64, decoder_ffn_dim=64,
)  # fmt: skip
BART_LARGE = dict(
    d_model=64, encoder_attention_heads=4, decoder_attention_heads=4, encoder_ffn_dim=160,
    decoder_ffn_dim=160,
)  # fmt: skip
BART_DEEPER = {**BART_LARGE, "encoder_layers": 4, "decoder_layers": 3}
VIT = {**BERT, "image_size": 16, "patch_size": 4}
POSITIONS = {**TEXT, "max_position_embeddings": 32}

FAMILIES = {
    "bert": Family("BertForMaskedLM", "BertConfig", BERT, BERT_LARGE, settings=POSITIONS),
    "roberta": Family("RobertaForMaskedLM", "RobertaConfig", BERT, BERT_LARGE, settings=POSITIONS),
    "electra": Family("ElectraForPreTraining", "ElectraConfig", {**BERT, "embedding_size": 16},
                      {**BERT_LARGE, "embedding_size": 32}, settings=POSITIONS),
    "deberta-v2": Family("DebertaV2ForMaskedLM", "DebertaV2Config",
                         {**BERT, "relative_attention": True, "pos_att_type": ["p2c", "c2p"],
                          "position_biased_input": False}, BERT_LARGE, settings=POSITIONS),
    "albert": Family("AlbertForMaskedLM", "AlbertConfig", {**BERT, "embedding_size": 16},
                     {**BERT_LARGE, "embedding_size": 32}, settings=POSITIONS),
    "distilbert": Family("DistilBertForMaskedLM", "DistilBertConfig",
                         dict(dim=32, n_layers=2, n_heads=2, hidden_dim=64),
                         dict(dim=64, n_heads=4, hidden_dim=160), settings=POSITIONS),
    "gpt2": Family("GPT2LMHeadModel", "GPT2Config", dict(n_embd=32, n_layer=2, n_head=2),
                   dict(n_embd=48, n_layer=4, n_head=3), settings={**TEXT, "n_positions": 32}),
    "gpt-neo": Family("GPTNeoForCausalLM", "GPTNeoConfig",
                      dict(hidden_size=32, num_layers=2, num_heads=2,
                           attention_types=[[["global", "local"], 1]], window_size=4),
                      dict(hidden_size=64, num_heads=4), settings=POSITIONS),
    "gpt-neox": Family("GPTNeoXForCausalLM", "GPTNeoXConfig", BERT, DEEPER, settings=POSITIONS),
    "opt": Family("OPTForCausalLM", "OPTConfig",
                  dict(hidden_size=32, num_hidden_layers=2, num_attention_heads=2, ffn_dim=64,
                       word_embed_proj_dim=32),
                  dict(hidden_size=64, num_hidden_layers=4, num_attention_heads=4, ffn_dim=160,
                       word_embed_proj_dim=64), settings=POSITIONS),
    "bloom": Family("BloomForCausalLM", "BloomConfig", dict(hidden_size=32, n_layer=2, n_head=4),
                    dict(hidden_size=64, n_layer=4), settings=TEXT),
    "llama": Family("LlamaForCausalLM", "LlamaConfig", LLAMA, LLAMA_LARGE, settings=POSITIONS),
    "mistral": Family("MistralForCausalLM", "MistralConfig", LLAMA, LLAMA_LARGE,
                      settings=POSITIONS),
    "qwen2": Family("Qwen2ForCausalLM", "Qwen2Config", LLAMA,
                    {**LLAMA_LARGE, "hidden_size": 64}, settings=POSITIONS),
    "qwen3": Family("Qwen3ForCausalLM", "Qwen3Config", LLAMA, LLAMA_LARGE, settings=POSITIONS),
    "gemma2": Family("Gemma2ForCausalLM", "Gemma2Config", LLAMA, LLAMA_LARGE,
                     settings={**POSITIONS, "query_pre_attn_scalar": 8}),
    "phi": Family("PhiForCausalLM", "PhiConfig", BERT, DEEPER, settings=POSITIONS),
    "falcon": Family("FalconForCausalLM", "FalconConfig",
                     dict(hidden_size=32, num_hidden_layers=2, num_attention_heads=4),
                     dict(hidden_size=64, num_hidden_layers=4, num_attention_heads=8),
                     settings=TEXT),
    "mixtral": Family("MixtralForCausalLM", "MixtralConfig", {**LLAMA, "num_local_experts": 4},
                      LLAMA_LARGE, settings=POSITIONS),
    "t5": Family("T5ForConditionalGeneration", "T5Config",
                 dict(d_model=32, d_kv=16, d_ff=64, num_layers=2, num_heads=2),
                 dict(d_model=48, d_ff=160, num_layers=4, num_decoder_layers=3, num_heads=3),
                 two_texts, {**TEXT, "decoder_start_token_id": 0}),
    "bart": Family("BartForConditionalGeneration", "BartConfig", BART, BART_LARGE, two_texts,
                   POSITIONS),
    "whisper": Family("WhisperForConditionalGeneration", "WhisperConfig", BART, BART_DEEPER,
                      spectrograms,
                      {**TEXT, "num_mel_bins": 8, "max_source_positions": 12,
                       "max_target_positions": 32, "decoder_start_token_id": 1,
                       "suppress_tokens": None, "begin_suppress_tokens": None}),
    "vit": Family("ViTForImageClassification", "ViTConfig", VIT, DEEPER, images),
    "clip": Family("CLIPModel", "CLIPConfig",
                   {"text_config": {**POSITIONS, **BERT}, "vision_config": VIT},
                   {"text_config": {**POSITIONS, **BERT, **DEEPER},
                    "vision_config": {**VIT, **DEEPER}}, images_and_texts, {"projection_dim": 16}),
    "wav2vec2": Family("Wav2Vec2ForCTC", "Wav2Vec2Config", BERT, BERT_LARGE, waves,
                       {**TEXT, "conv_dim": (32, 32), "conv_stride": (5, 4), "conv_kernel": (10, 8),
                        "num_feat_extract_layers": 2, "num_conv_pos_embeddings": 8,
                        "num_conv_pos_embedding_groups": 2}),
    "mamba": Family("MambaForCausalLM", "MambaConfig",
                    dict(hidden_size=32, num_hidden_layers=2, state_size=4, time_step_rank=2),
                    dict(hidden_size=64, num_hidden_layers=4, intermediate_size=128),
                    settings={**TEXT, "use_cache": False}),
}  # fmt: skip
