"""Small networks of the families that the tests grow."""

import torch
from timm.models import VisionTransformer
from torch import Tensor, nn
from transformers import BertConfig, BertForMaskedLM, GPT2Config, GPT2LMHeadModel


def vit(width: int = 32, depth: int = 2, classes: int = 10, **changes) -> nn.Module:
    settings = {"img_size": 8, "patch_size": 2, "in_chans": 1, "num_heads": width // 16, **changes}
    return VisionTransformer(embed_dim=width, depth=depth, num_classes=classes, **settings)


def gpt2(width: int = 32, depth: int = 2, **changes) -> nn.Module:
    settings = {"vocab_size": 50, "n_positions": 16, "bos_token_id": 0, "eos_token_id": 0}
    settings |= {"n_embd": width, "n_layer": depth, "n_head": width // 16, **changes}
    return GPT2LMHeadModel(GPT2Config(**settings))


def bert(width: int = 32, depth: int = 2, **changes) -> nn.Module:
    settings = {"vocab_size": 50, "max_position_embeddings": 16, "intermediate_size": 2 * width}
    settings |= {"hidden_size": width, "num_hidden_layers": depth, **changes}
    return BertForMaskedLM(BertConfig(num_attention_heads=width // 16, **settings))


IMAGES = {"x": torch.linspace(-1, 1, 3 * 64).sin().mul(7).cos().reshape(3, 1, 8, 8)}
IMAGES64 = {"x": IMAGES["x"].double()}
TOKENS = {"input_ids": torch.arange(32).reshape(2, 16) * 7 % 50}


def randomised(network: nn.Module, dtype: torch.dtype = torch.float32) -> nn.Module:
    """The network with noise on every parameter, so that no zero or one hides a fault."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
    return network.to(dtype).eval()


def cast(inputs: dict[str, Tensor], dtype: torch.dtype) -> dict[str, Tensor]:
    return {k: v.to(dtype) if v.is_floating_point() else v for k, v in inputs.items()}


@torch.no_grad()
def output(network: nn.Module, inputs: dict[str, Tensor]) -> Tensor:
    result = network(**cast(inputs, next(network.parameters()).dtype))
    return result if isinstance(result, Tensor) else result.to_tuple()[0]
