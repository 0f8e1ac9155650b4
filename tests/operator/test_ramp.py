import copy
from functools import partial

import pytest
import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

import lightning_ligo as ligo
from networks import IMAGES, TOKENS, bert, cast, gpt2, llama, mixer, output, randomised, resnet, vit
from toys import Toy, X, close

FAMILIES = {
    "vit": (vit, IMAGES, 48, 4),
    "vit with layer scale": (partial(vit, init_values=0.1), IMAGES, 48, 3),
    "gpt2": (gpt2, TOKENS, 48, 3),
    "llama": (llama, TOKENS, 64, 3),
    "bert, width": (bert, TOKENS, 48, 2),
    "mixer": (mixer, IMAGES, 48, 3),
    "resnet": (resnet, IMAGES, 12, 3),
}


def masked(build, inputs, width, depth, dtype):
    """A small network, the large one behind its ramp, and what that computes by itself."""
    small, large = randomised(build(), dtype), randomised(build(width, depth), dtype)
    operator = ligo.Operator(ligo.pair(small, large, **cast(inputs, dtype)), small, "msg")
    operator.bake(large)
    return small, large, ligo.Ramp(operator, large), copy.deepcopy(large)


@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 1e-5), (torch.float64, 1e-10)])
@pytest.mark.parametrize("name", FAMILIES)
def test_a_masked_network_computes_what_the_small_one_does(name, dtype, bound):
    build, inputs, width, depth = FAMILIES[name]
    small, large, ramp, _ = masked(build, inputs, width, depth, dtype)
    before = output(small, inputs)
    assert (output(large, inputs) - before).norm() <= bound * before.norm()
    ramp.to(1.0)
    whole = output(large, inputs)
    ramp.end()
    assert (output(large, inputs) - whole).norm() <= bound * whole.norm()
    assert (whole - before).norm() > 0.05 * before.norm()


def toys(norm):
    torch.manual_seed(0)
    small = randomised(Toy(6, 8, 2, norm=norm), torch.float64)
    large = randomised(Toy(9, 12, 3, norm=norm), torch.float64)
    operator = ligo.Operator(ligo.pair(small, large, X), small, "msg")
    operator.bake(large)
    return large, ligo.Ramp(operator, large)


@pytest.mark.parametrize("norm", [nn.Identity, nn.LayerNorm, nn.RMSNorm])
def test_readers_see_a_share_of_new_entries_and_norms_weigh_them(norm):
    """The masks of MSG: c on new entries and on new layers, in the mean and variance, too."""
    large, ramp = toys(norm)
    c, eps = 0.3, getattr(norm(9), "eps", None) or torch.finfo(torch.float64).eps
    ramp.to(c)
    stream = torch.tensor([1.0] * 6 + [c] * 3, dtype=torch.float64)
    inner = torch.tensor([1.0] * 8 + [c] * 4, dtype=torch.float64)

    def normed(module, x):
        if norm is nn.Identity:
            return x
        if norm is nn.LayerNorm:
            x = x - (x * stream).sum(-1, keepdim=True) / stream.sum()
        x = x / ((x**2 * stream).sum(-1, keepdim=True) / stream.sum() + eps).sqrt()
        return x * module.weight + (module.bias if norm is nn.LayerNorm else 0)

    x = large.embed(X)
    for layer, block in enumerate(large.blocks):
        hidden = (stream * normed(block.norm, x)) @ block.fc1.weight.T + block.fc1.bias
        added = (inner * hidden.relu()) @ block.fc2.weight.T + block.fc2.bias
        x = x + (c if layer == 2 else 1) * added
    expected = (stream * normed(large.norm, x)) @ large.head.weight.T + large.head.bias
    close(large(X), expected)
    ramp.end()
    whole = large(X)
    assert (expected - whole).norm() > 1e-3 * whole.norm()


def test_parameters_keep_their_names_and_values_and_are_trained():
    large, ramp = toys(nn.LayerNorm)
    names, values = list(large.state_dict()), [p.detach().clone() for p in large.parameters()]
    ramp.to(0.5)
    large(X).square().sum().backward()
    assert list(large.state_dict()) == names
    assert all(torch.equal(p, v) for p, v in zip(large.parameters(), values, strict=True))
    reads = large.head.weight.grad.clone()
    assert reads[:, :6].abs().min() > 0 and reads[:, 6:].abs().min() > 0
    large.zero_grad()
    ramp.to(0.0)
    large(X).square().sum().backward()
    assert not large.head.weight.grad[:, 6:].any() and not large.V[2].grad.any()


def test_after_its_end_nothing_is_left():
    large, ramp = toys(nn.LayerNorm)
    plain = {
        name: sorted(vars(module)) for name, module in Toy(9, 12, 3, nn.LayerNorm).named_modules()
    }
    large(X)
    ramp.end()
    assert {name: sorted(vars(module)) for name, module in large.named_modules()} == plain
    hooks = [hooks for m in large.modules() for name, hooks in vars(m).items() if "_hooks" in name]
    assert not any(hooks)


def test_a_forward_that_fails_leaves_no_masks():
    large, _ = toys(nn.LayerNorm)
    with pytest.raises(RuntimeError):
        large(X[:, :3])
    assert "weight" not in vars(large.head)


def test_llama_s_own_norm_is_known():
    def build(width, depth):
        return LlamaForCausalLM(LlamaConfig(
            vocab_size=50, hidden_size=width, num_hidden_layers=depth, intermediate_size=2 * width,
            num_attention_heads=width // 8, num_key_value_heads=width // 8,
        ))  # fmt: skip

    small, large = randomised(build(32, 2)), randomised(build(48, 3))
    operator = ligo.Operator(ligo.pair(small, large, **TOKENS), small, "msg")
    operator.bake(large)
    ligo.Ramp(operator, large)
    before = output(small, TOKENS)
    assert (output(large, TOKENS) - before).norm() <= 1e-5 * before.norm()


def test_what_cannot_be_masked_is_refused():
    class Other(nn.LayerNorm):
        def forward(self, x):
            return super().forward(x).tanh()

    with pytest.raises(ValueError, match=r"blocks.0.norm.weight belongs to Other, which"):
        toys(Other)
    small, large = gpt2(), gpt2(64)
    large.transformer.gradient_checkpointing = True
    operator = ligo.Operator(ligo.pair(small, large, **TOKENS), small, "msg")
    with pytest.raises(ValueError, match=r"transformer computes activations again"):
        ligo.Ramp(operator, large)
    plan = ligo.pair(gpt2(32, n_head=2), gpt2(64, n_head=2), **TOKENS)
    with pytest.raises(ValueError, match=r"masks new parts, and .* queries and keys"):
        ligo.Operator(plan, small, "msg")
