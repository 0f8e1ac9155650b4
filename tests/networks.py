"""Small networks of the families that the tests grow."""

from dataclasses import replace

import torch
from timm.models import VisionTransformer
from timm.models.mlp_mixer import MlpMixer
from timm.models.resnet import BasicBlock, ResNet
from torch import Tensor, nn
from transformers import (
    BertConfig,
    BertForMaskedLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
)
from transformers.models.llama.modeling_llama import LlamaRMSNorm

import lightning_ligo as ligo
from lightning_ligo.operator.measure import KEPT


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


def llama(width: int = 32, depth: int = 2, **changes) -> nn.Module:
    """With an RMS norm (torch's own: Llama's rounds to float32), gated, grouped queries, rotary."""
    settings = {"vocab_size": 50, "max_position_embeddings": 16, "intermediate_size": 2 * width}
    settings |= {"hidden_size": width, "num_hidden_layers": depth, "head_dim": 8, **changes}
    heads = {"num_attention_heads": width // 8, "num_key_value_heads": width // 16}
    network = LlamaForCausalLM(LlamaConfig(**heads, **settings))
    for module in list(network.modules()):
        for name, child in module.named_children():
            if isinstance(child, LlamaRMSNorm):
                setattr(module, name, nn.RMSNorm(width, eps=child.variance_epsilon))
    return network


def mixer(width: int = 32, depth: int = 2) -> nn.Module:
    settings = {"img_size": 8, "patch_size": 2, "in_chans": 1, "num_classes": 10}
    return MlpMixer(num_blocks=depth, embed_dim=width, **settings)


def resnet(width: int = 8, depth: int = 2) -> nn.Module:
    """With batch norms; its second stage has one block more than `depth`."""
    channels = (width, 2 * width, 2 * width, 2 * width)
    return ResNet(BasicBlock, (1, 1 + depth, 1, 1), 10, 1, channels=channels, stem_width=width)


class TiedPostNorm(nn.Module):
    """A table that reads what the last norm of a post-norm stack writes, as of GPT-1 or BART."""

    def __init__(self, width: int, depth: int = 2) -> None:
        super().__init__()
        self.table = nn.Embedding(50, width)
        self.layers = nn.ModuleList(
            nn.ModuleDict({"inside": nn.Linear(width, width), "norm": nn.LayerNorm(width)})
            for _ in range(depth)
        )

    def forward(self, input_ids: Tensor) -> Tensor:
        x = self.table(input_ids)
        for layer in self.layers:
            x = layer["norm"](x + layer["inside"](x).tanh())
        return x @ self.table.weight.T


DEVICES = ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]
IMAGES = {"x": torch.linspace(-1, 1, 3 * 64).sin().mul(7).cos().reshape(3, 1, 8, 8)}
IMAGES64 = {"x": IMAGES["x"].double()}
TOKENS = {"input_ids": torch.arange(32).reshape(2, 16) * 7 % 50}


def randomised(network: nn.Module, dtype: torch.dtype = torch.float32) -> nn.Module:
    """The network with noise on all it holds, so that no zero or one hides a fault."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, tensor in network.state_dict().items():
            if tensor.is_floating_point() and name.endswith("running_var"):
                tensor += 0.1 * torch.rand(tensor.shape, generator=generator)
            elif tensor.is_floating_point():
                tensor += 0.1 * torch.randn(tensor.shape, generator=generator)
    return network.to(dtype).eval()


def cast(
    inputs: dict[str, Tensor], dtype: torch.dtype, device: str | None = None
) -> dict[str, Tensor]:
    return {k: v.to(device, dtype if v.is_floating_point() else None) for k, v in inputs.items()}


@torch.no_grad()
def output(network: nn.Module, inputs: dict[str, Tensor]) -> Tensor:
    result = network(**cast(inputs, next(network.parameters()).dtype))
    return result if isinstance(result, Tensor) else result.to_tuple()[0]


def changed(
    small: nn.Module, large: nn.Module, inputs: dict[str, Tensor]
) -> tuple[float, ligo.Plan]:
    """How much the output changes, in float64, by a growth that keeps what it can; and its plan.

    What is measured with noise on the weights must say the same.
    """
    inputs = cast(inputs, torch.float64)
    small, large = randomised(small, torch.float64), large.double().eval()
    plan = ligo.pair(small, large, **inputs)
    told = measured(plan, small, large, inputs)
    ligo.Operator(plan, small, "lemon").bake(large)
    before, after = output(small, inputs), output(large, inputs)
    change = float((after - before).norm() / before.norm())
    assert told.kept == (change <= KEPT), (told, change)
    return change, plan


def measured(
    plan: ligo.Plan,
    small: nn.Module,
    large: nn.Module,
    inputs: dict[str, Tensor],
    method: str = "lemon",
) -> ligo.Change:
    """How much a growth changes the function, as the user is told."""
    return ligo.measure(plan, small, large, [ligo.Call(kwargs=inputs)], method=method)


SEQUENCES = {"x": torch.linspace(-1, 1, 3 * 12).sin().mul(7).cos().reshape(3, 4, 3)}


class Recurrent(nn.Module):
    """Reads the outputs of a recurrent network, or only its last state."""

    def __init__(self, kind, width, layers=1, read="outputs", **options):
        super().__init__()
        self.embed = nn.Linear(3, 6)
        self.rnn = kind(6, width, layers, **options)
        directions = 1 + self.rnn.bidirectional
        self.head = nn.Linear((options.get("proj_size") or width) * directions, 5)
        self.read = read

    def forward(self, x):
        if self.read == "packed":
            lengths = torch.arange(x.shape[1], x.shape[1] - len(x), -1)
            x = nn.utils.rnn.pack_padded_sequence(x, lengths, batch_first=True)
            x = x._replace(data=self.embed(x.data))
            return self.head(nn.utils.rnn.pad_packed_sequence(self.rnn(x)[0], True)[0])
        outputs, states = self.rnn(self.embed(x))
        if self.read == "states":
            state = states[0] if isinstance(states, tuple) else states
            outputs = torch.cat([*state[-2:]], -1) if self.rnn.bidirectional else state[-1]
        return self.head(outputs)


_LEMON = ligo.METHODS["lemon"]
LEARNED = replace(
    _LEMON,
    name="learned",
    width=replace(_LEMON.width, learns="both"),
    depth=replace(_LEMON.depth, learned=True),
    steps=100,
    learning_rate=1e-3,
    warmup=10,
)
"""Maps and mixes learned from the start of lemon, which keeps the function."""
