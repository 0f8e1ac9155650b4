"""Heads, the keys and values that they share, what lies on them, and experts."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
)

import lightning_ligo as ligo
from networks import TOKENS, changed, measured, output, randomised

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
    with pytest.raises(
        ValueError, match=r"q_proj.*is 32 long .*, expected 16, the product of the axes"
    ):
        ligo.pair(llama(4, 2), llama(8, 1), **TOKENS)


def test_a_wider_rotary_head_says_that_its_frequencies_are_others():
    small, large = llama(4, 2), llama(4, 2, head_dim=16)
    told = measured(ligo.pair(small, large, **TOKENS), small, large, TOKENS)
    assert told.change > 1e-3 and told.place == "model.layers.0.self_attn.o_proj"


def mixtral(experts: int, chosen: int):
    changes = {"num_attention_heads": 4, "num_key_value_heads": 2}
    experts_of = {"num_local_experts": experts, "num_experts_per_tok": chosen}
    return MixtralForCausalLM(MixtralConfig(**{**SETTINGS, **changes, **experts_of}))


def test_new_experts_are_copies_beside_what_they_copy():
    small, large = randomised(mixtral(4, 2)), mixtral(8, 2)
    plan, _, _ = grown(small, large)
    assert not measured(plan, small, large, TOKENS).kept
    before, after = dict(small.named_parameters()), dict(large.named_parameters())
    for rest in ("gate.weight", "experts.gate_up_proj", "experts.down_proj"):
        name = f"model.layers.0.mlp.{rest}"
        assert torch.equal(after[name], before[name].repeat_interleave(2, 0))


def test_twice_the_experts_of_which_twice_as_many_are_chosen_keep_the_function():
    _, before, after = grown(randomised(mixtral(4, 2)), mixtral(8, 4).eval())
    assert (after - before).norm() < 1e-5 * before.norm()


# Networks of nothing but torch -------------------------------------------------------------------

SEQUENCES = {"x": torch.linspace(-1, 1, 36).sin().mul(7).cos().reshape(3, 4, 3)}
IMAGES = {"x": torch.linspace(-1, 1, 2 * 3 * 25).sin().mul(99).cos().reshape(2, 3, 5, 5)}


class Heads(nn.Module):
    """(batch, positions, 3) to (batch, positions, 5), by attention with shared keys and values."""

    def __init__(self, width, heads, keys, head_dim=4):
        super().__init__()
        self.heads, self.keys = heads, keys
        self.embed, self.norm = nn.Linear(3, width), nn.LayerNorm(width)
        self.query = nn.Linear(width, heads * head_dim)
        self.key, self.value = (nn.Linear(width, keys * head_dim) for _ in range(2))
        self.proj, self.head = nn.Linear(heads * head_dim, width), nn.Linear(width, 5)

    def forward(self, x):
        x = self.embed(x)
        return self.head(x + self.proj(self.attend(self.norm(x)).transpose(1, 2).flatten(2)))

    def split(self, x):
        for linear, heads in ((self.query, self.heads), (self.key, self.keys)):
            yield linear(x).unflatten(-1, (heads, -1)).transpose(1, 2)
        yield self.value(x).unflatten(-1, (self.keys, -1)).transpose(1, 2)

    def attend(self, x):
        return F.scaled_dot_product_attention(*self.split(x), enable_gqa=True)


class Sloped(Heads):
    """With ALiBi: slopes by the number of heads, held in a buffer that is not saved, or nowhere."""

    def __init__(self, width, heads, held):
        super().__init__(width, heads, heads)
        self.register_buffer("slopes", self.made() if held else None, persistent=False)

    def made(self):
        return 2.0 ** -torch.arange(1.0, self.heads + 1)

    def attend(self, x):
        query, key, value = self.split(x)
        slopes = self.made() if self.slopes is None else self.slopes
        distances = (torch.arange(4)[None] - torch.arange(4)[:, None]).abs()
        bias = slopes.to(x.dtype)[:, None, None] * distances
        return (query @ key.mT / 2 - bias).softmax(-1) @ value


class Windows(Heads):
    """As in Swin: padded, shifted and cut into windows of 2 x 2, with a table of positions."""

    def __init__(self, width, heads):
        super().__init__(width, heads, heads)
        self.table = nn.Parameter(torch.zeros(9, heads))
        places = torch.cartesian_prod(torch.arange(2), torch.arange(2))
        apart = places[:, None] - places[None] + 1
        self.register_buffer("index", apart[..., 0] * 3 + apart[..., 1])

    def forward(self, x):
        x = self.embed(x.movedim(1, -1))
        batch, height, width, channels = x.shape
        windows = F.pad(self.norm(x), (0, 0, 0, width % 2, 0, height % 2)).roll((-1, -1), (1, 2))
        rows, columns = (length // 2 for length in windows.shape[1:3])
        windows = windows.view(batch, rows, 2, columns, 2, channels).transpose(2, 3)
        query, key, value = self.split(windows.reshape(-1, 4, channels))
        bias = self.table[self.index.view(-1)].view(4, 4, -1).permute(2, 0, 1)
        mixed = (query @ key.mT / 2 + bias).softmax(-1) @ value
        mixed = self.proj(mixed.transpose(1, 2).flatten(2))
        mixed = mixed.view(batch, rows, columns, 2, 2, channels).transpose(2, 3)
        mixed = mixed.reshape(batch, 2 * rows, 2 * columns, channels).roll((1, 1), (1, 2))
        return self.head(x + mixed[:, :height, :width])


class ClassAttention(Heads):
    """As in CaiT: only the class token asks."""

    def __init__(self, width, heads):
        super().__init__(width, heads, heads)
        self.token = nn.Parameter(torch.zeros(1, 1, width))

    def forward(self, x):
        x = torch.cat([self.token.expand(len(x), -1, -1), self.embed(x)], 1)
        return self.head(x[:, :1] + self.proj(self.attend(self.norm(x)).transpose(1, 2).flatten(2)))

    def attend(self, x):
        query, key, value = self.split(x)
        return F.scaled_dot_product_attention(query[:, :, :1], key, value)


@pytest.mark.parametrize(
    ("small", "large", "inputs", "axes"),
    [
        (Heads(8, 4, 2), Heads(16, 8, 4), SEQUENCES, {"heads": (2, 4)}),
        (Heads(8, 4, 2), Heads(16, 8, 2), SEQUENCES, {"group": (2, 4)}),
        (Windows(8, 2), Windows(16, 3), IMAGES, {"heads": (2, 3)}),
        (ClassAttention(8, 2), ClassAttention(16, 3), SEQUENCES, {"heads": (2, 3)}),
    ],
    ids=["shared keys", "more queries share a key", "windows", "class attention"],
)
def test_heads_of_plain_torch_grow_and_keep_the_function(small, large, inputs, axes):
    change, plan = changed(small, large, inputs)
    assert plan.axes.items() > axes.items() and plan.axes["hidden"] == (8, 16)
    assert change < 1e-12


def test_slopes_of_heads_that_are_no_parameter_stay_as_they_were_built():
    change, plan = changed(Sloped(8, 2, held=False), Sloped(16, 4, held=False), SEQUENCES)
    assert change > 1e-4
    constant = "a constant of the network lies on it: the large network has its own"
    assert plan.notes == (f"heads grows although {constant}",)
    change, _ = changed(Sloped(8, 2, held=True), Sloped(16, 4, held=True), SEQUENCES)
    assert change > 1e-4


class Routed(nn.Module):
    """Each position goes to the ``chosen`` best of ``count`` experts, in a list of modules."""

    def __init__(self, count, chosen, width=4):
        super().__init__()
        self.embed, self.router = nn.Linear(3, width), nn.Linear(width, count)
        self.positions = nn.Parameter(torch.randn(4, width))
        self.experts = nn.ModuleList(
            nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))
            for _ in range(count)
        )
        self.head, self.chosen = nn.Linear(width, 5), chosen

    def forward(self, x):
        x = (self.embed(x) + self.positions).flatten(0, 1)
        weights, chosen = self.router(x).softmax(-1).topk(self.chosen)
        out = torch.zeros_like(x)
        for number, expert in enumerate(self.experts):
            rows, slots = torch.where(chosen == number)
            out.index_add_(0, rows, expert(x[rows]) * weights[rows, slots, None])
        return self.head(x + out)


def test_experts_in_a_list_become_wider():
    change, plan = changed(Routed(4, 2), Routed(4, 2, width=6), SEQUENCES)
    assert change < 1e-12
    assert plan.axes == {"embed": (4, 6), "experts.*.hidden": (8, 12)}


@pytest.mark.parametrize("chosen", [2, 4])
def test_more_experts_in_a_list_are_said_to_change_the_function(chosen):
    change, plan = changed(Routed(4, 2), Routed(8, chosen), SEQUENCES)
    assert plan.stacks == {"experts": (4, 8)}
    assert change > 1e-3


class Chosen(nn.Module):
    """Adds to each position what one of its entries chooses, of rows or of products."""

    def __init__(self, width, products):
        super().__init__()
        shape = (3, width, width) if products else (3, width)
        self.entries, self.products = nn.Parameter(torch.randn(shape)), products
        self.choice = nn.Linear(width, 3)

    def forward(self, x):
        chosen, out = self.choice(x).argmax(-1), torch.zeros_like(x)
        for entry in chosen.unique():
            if entry < 3:  # which reads a value
                rows = torch.where(chosen == entry)[0]
                product = self.products and (x[rows] @ self.entries[entry]).tanh()
                out.index_add_(0, rows, product if self.products else self.entries[chosen[rows]])
        return x + out


def choosing(width, depth, products):
    layers = nn.Sequential(*(Chosen(width, products) for _ in range(depth)))
    return nn.Sequential(nn.Linear(3, width), layers, nn.Linear(width, 5))


ROWS = {"input": SEQUENCES["x"].flatten(0, 1)}


@pytest.mark.parametrize("products", [True, False])
def test_more_layers_of_entries_that_are_chosen_add_nothing(products):
    change, plan = changed(choosing(4, 2, products), choosing(4, 3, products), ROWS)
    assert plan.stacks == {"1": (2, 3)}
    assert change < 1e-12


def test_how_often_the_data_has_a_function_computed_does_not_count():
    torch.manual_seed(1)
    small, large = choosing(4, 1, True), choosing(6, 1, True)
    small[1][0].choice.weight.data.mul_(9)  # several are chosen
    large[1][0].choice.bias.data[0] = 99  # one is, by all rows
    assert len(small[1][0].choice(small[0](**ROWS)).argmax(-1).unique()) > 1
    change, _ = changed(small, large, ROWS)
    assert change < 1e-12


class Views(nn.Module):
    """One attention for several views, as of a siamese network, with one head."""

    def __init__(self, width, by_hand):
        super().__init__()
        self.embed, self.head = nn.Linear(4, width), nn.Linear(width, 3)
        self.query, self.key, self.value = (nn.Linear(width, width) for _ in range(3))
        self.by_hand = by_hand

    def forward(self, *views):
        return self.head(sum(self.encode(self.embed(x)).mean(1) for x in views))

    def encode(self, x):
        query, key, value = self.query(x), self.key(x), self.value(x)
        if self.by_hand:
            return (query @ key.mT / key.shape[-1] ** 0.5).softmax(-1) @ value
        return nn.functional.scaled_dot_product_attention(query, key, value)


@pytest.mark.parametrize("calls", [1, 2, 3])
@pytest.mark.parametrize("by_hand", [False, True])
def test_the_scale_of_an_attention_is_corrected_once_however_often_it_is_called(by_hand, calls):
    views = [torch.randn(2, 5, 4, dtype=torch.float64) for _ in range(calls)]
    small = randomised(Views(6, by_hand), torch.float64)
    large = ligo.grow(small, Views(15, by_hand).double(), *views, method="lemon")
    torch.testing.assert_close(large(*views), small(*views))
