"""Growth with fresh parts on one side, against plain torch and the outputs of the small network."""

import copy
from functools import partial

import pytest
import torch
from torch import nn

import lightning_ligo as ligo
from networks import (
    IMAGES,
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
from toys import Toy, X, close

TOY = {"x": X}
BARE = partial(nn.LayerNorm, elementwise_affine=False)


class PostNorm(nn.Module):
    """Two blocks with RMS norms in the stream itself."""

    def __init__(self, width=6):
        super().__init__()
        self.embed = nn.Linear(4, width)
        self.blocks = nn.ModuleList(nn.Linear(width, width) for _ in range(2))
        self.norms = nn.ModuleList(nn.RMSNorm(width, eps=1e-14) for _ in range(2))
        self.head = nn.Linear(width, 3)

    def forward(self, x):
        x = self.embed(x)
        for block, norm in zip(self.blocks, self.norms, strict=True):
            x = norm(x + block(x))
        return self.head(x)


class Attention(nn.Module):
    """Queries, keys and values in projections of their own, and heads that grow."""

    def __init__(self, width=6, heads=2, size=4):
        super().__init__()
        self.embed, self.norm, self.heads = nn.Linear(4, width), nn.LayerNorm(width), heads
        self.q, self.k, self.v = (nn.Linear(width, heads * size) for _ in range(3))
        self.o, self.head = nn.Linear(heads * size, width), nn.Linear(width, 3)

    def forward(self, x):
        x = self.embed(x)[None]
        q, k, v = (
            part(self.norm(x)).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for part in (self.q, self.k, self.v)
        )
        read = nn.functional.scaled_dot_product_attention(q, k, v)
        return self.head(x + self.o(read.transpose(1, 2).flatten(2)))[0]


torch.manual_seed(0)  # of the networks as they are built
EXACT = {
    "layer norm": (Toy(6, 8, 2, nn.LayerNorm), Toy(11, 13, 3, nn.LayerNorm), TOY),
    "layer norm without a gain": (Toy(6, 8, 2, BARE), Toy(11, 13, 3, BARE), TOY),
    "rms norm": (Toy(6, 8, 2, nn.RMSNorm), Toy(11, 13, 3, nn.RMSNorm), TOY),
    "no norm": (Toy(6, 8, 2), Toy(11, 13, 3), TOY),
    "rms norms in the stream": (PostNorm(), PostNorm(11), TOY),
    "fused qkv": (vit(), vit(48, 4), IMAGES),
    "fused qkv, wider heads": (vit(num_heads=2), vit(48, 4, num_heads=2), IMAGES),
    "fused qkv, more and wider heads": (vit(num_heads=2), vit(72, num_heads=3), IMAGES),
    "separate qkv, more and wider heads": (Attention(), Attention(8, 3, 6), TOY),
    "tied head": (gpt2(), gpt2(48, 3), TOKENS),
    "tied head, wider heads": (gpt2(n_head=2), gpt2(80, 3, n_head=2), TOKENS),
    "grouped queries, rotary, gated": (llama(48), llama(64, 3), TOKENS),
    "convolutions with batch norms": (resnet(), resnet(12, 3), IMAGES),
}


def grown(small, large, inputs, method="fresh", dtype=torch.float64):
    """Copies of the small network, with noise on all weights, and of the large, grown from it."""
    torch.manual_seed(0)
    small, large = randomised(copy.deepcopy(small), dtype), copy.deepcopy(large).to(dtype).eval()
    operator = ligo.Operator(ligo.pair(small, large, **cast(inputs, dtype)), small, method)
    operator.bake(large)
    return small, large, operator


@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 1e-5), (torch.float64, 1e-10)])
@pytest.mark.parametrize("name", EXACT)
def test_the_function_is_kept_at_any_length(name, dtype, bound):
    small, large, inputs = EXACT[name]
    single = cast(inputs, torch.float32)
    plan = ligo.pair(small, large, **single)
    assert measured(plan, small, large, single, "fresh").kept
    small, large, _ = grown(small, large, inputs, dtype=dtype)
    before, after = output(small, inputs), output(large, inputs)
    assert (after - before).norm() <= bound * before.norm()


@pytest.mark.parametrize(
    ("small", "large", "inputs"),
    [
        pytest.param(bert(), bert(64), TOKENS, id="layer norms in the stream"),
        pytest.param(vit(init_values=0.1), vit(64, init_values=0.1), IMAGES, id="layer scale"),
        pytest.param(mixer(), mixer(64), IMAGES, id="tokens mixed under a layer norm"),
    ],
)
def test_what_is_scaled_or_bent_under_a_layer_norm_changes(small, large, inputs):
    small, large, _ = grown(small, large, inputs)
    change = (output(large, inputs) - output(small, inputs)).norm() / output(small, inputs).norm()
    assert 1e-3 < change < 0.5


def test_old_new_and_zero_parts_stand_where_the_equation_says():
    small, large = Toy(6, 8, 2, nn.LayerNorm), Toy(11, 13, 2, nn.LayerNorm)
    built = randomised(copy.deepcopy(large), torch.float64)
    small, large, _ = grown(small, built, TOY)
    scale = (11 / 6) ** 0.5
    for layer in range(2):
        U, V = built.U[layer].clone(), small.V[layer]
        U[:8, :6] = small.U[layer]
        close(large.U[layer], U)
        close(large.u[layer], torch.cat([small.u[layer], built.u[layer][8:]]))
        rows = torch.cat([V, V.mean(0).expand(5, 8)])
        close(large.V[layer], scale * torch.cat([rows, torch.zeros(11, 5)], 1))
        norm, old = large.blocks[layer].norm, small.blocks[layer].norm
        new = built.blocks[layer].norm.weight[6:]
        close(norm.weight, torch.cat([old.weight / scale, new]))
        close(norm.bias, torch.cat([old.bias, torch.zeros(5)]).double())
    close(large.E, scale * torch.cat([small.E, small.E.mean(0).expand(5, 4)]))
    close(large.H, torch.cat([small.H, built.H[:, 6:]], 1))


def test_new_parts_of_heads_are_fresh_in_queries_and_read_values_of_zero():
    small, large = vit(num_heads=2), vit(48, num_heads=2)
    built = copy.deepcopy(large.double()).blocks[0].attn
    _, large, _ = grown(small, large, IMAGES)
    query, key, value = large.blocks[0].attn.qkv.weight.unflatten(0, (3, 2, 24))[:, :, 16:]
    fresh = built.qkv.weight.unflatten(0, (3, 2, 24))[0, :, 16:]
    assert torch.equal(query, fresh)
    assert not key[..., :32].any() and not value[..., :32].any()
    reads = [attn.proj.weight.unflatten(1, (2, 24)) for attn in (large.blocks[0].attn, built)]
    assert torch.equal(*(weight[:32, :, 16:] for weight in reads))


@pytest.mark.parametrize(
    ("name", "share"),  # a ReLU kills units, and the bias of keys has no gradient
    [("layer norm", 0.1), ("tied head", 0.65), ("fused qkv, wider heads", 0.65)],
)
def test_every_new_part_gets_gradients_in_three_steps(name, share):
    _, large, operator = grown(*EXACT[name], method="stack+fresh")
    large.requires_grad_(True)
    start = {name: p.detach().clone() for name, p in large.named_parameters()}
    optimizer = torch.optim.SGD(large.parameters(), lr=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        result = large(**cast(EXACT[name][2], torch.float64))
        result = result if isinstance(result, torch.Tensor) else result.logits
        result.sin().square().sum().backward()
        optimizer.step()
    for name, new in operator.new_entries().items():
        parameter = dict(large.named_parameters())[name]
        moved = parameter[new] != start[name][new]
        assert new.sum() == 0 or moved.double().mean() > share, name


def test_moments_of_fresh_parts_are_zero_and_those_of_old_ones_are_mapped():
    sizes = Toy(6, 8, 2, nn.LayerNorm), Toy(11, 13, 2, nn.LayerNorm)
    small, _, operator = grown(*sizes, TOY)
    states = {
        name: {"exp_avg": torch.randn_like(p), "exp_avg_sq": torch.rand_like(p)}
        for name, p in small.named_parameters()
    }
    moments = ligo.grow_states(operator, states)
    for name, new in operator.new_entries().items():
        assert not any(moment[new].any() for moment in moments[name].values()), name
    first, second = (moments["embed.weight"][key][:6] for key in ("exp_avg", "exp_avg_sq"))
    close(first, states["embed.weight"]["exp_avg"] / (11 / 6) ** 0.5)  # E grew by this scale
    close(second, states["embed.weight"]["exp_avg_sq"] / (11 / 6))
    close(moments["head.weight"]["exp_avg"][:, :6], states["head.weight"]["exp_avg"])
