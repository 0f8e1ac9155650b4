"""Optimizer state through an operator, against autograd and against what papers say."""

from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import lightning_ligo as ligo
from lightning_ligo.operator.optimizer_state import grow_states
from networks import IMAGES64, TOKENS, TiedPostNorm, bert, gpt2, llama, randomised, resnet, vit
from runs import Net


class Mlp(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.one, self.two = nn.Linear(4, width), nn.Linear(width, width)
        self.three = nn.Linear(width, 3)

    def forward(self, x):
        return self.three(self.two(self.one(x).tanh()).tanh())


VECTORS = {"x": torch.linspace(0, 9, 20, dtype=torch.float64).sin().view(5, 4)}
ROWS = {"x": torch.linspace(0, 9, 30, dtype=torch.float64).sin().view(5, 6)}


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def gradients(network, inputs):
    output = network(**inputs)
    logits = output if isinstance(output, torch.Tensor) else output.logits
    labels = torch.arange(logits[..., 0].numel()) % logits.shape[-1]
    named = dict(network.named_parameters())
    loss = F.cross_entropy(logits.flatten(0, -2), labels)
    return dict(zip(named, torch.autograd.grad(loss, named.values()), strict=True))


def grown(small, large, inputs, method, **changes):
    """The operator, the gradients of the small network as first moments, and of the large one."""
    small, large = randomised(small, torch.float64), large.double().eval()
    if isinstance(method, str) and changes:
        method = replace(ligo.METHODS[method], **changes)
    operator = ligo.Operator(ligo.pair(small, large, **inputs), small, method)
    operator.bake(large)
    states = {name: {"exp_avg": g} for name, g in gradients(small, inputs).items()}
    return operator, states, gradients(large, inputs)


def relative(one, other):
    return float((one - other).norm() / other.norm())


def cosine(one, other):
    return float((one * other).sum() / one.norm() / other.norm())


@pytest.mark.parametrize(
    ("small", "large", "inputs", "method"),
    [
        (Mlp(5), Mlp(13), VECTORS, "lemon"),
        (Mlp(5), Mlp(13), VECTORS, "bert2bert"),
        (vit(), vit(64), IMAGES64, "hypercloning"),
        (gpt2(), gpt2(64), TOKENS, "hypercloning"),
        (gpt2(tie_word_embeddings=False), gpt2(64, tie_word_embeddings=False), TOKENS,
         "hypercloning"),
        (llama(), llama(64), TOKENS, "hypercloning"),
        (llama(), llama(48), TOKENS, "lemon"),
        (vit(num_heads=2), vit(64, num_heads=2), IMAGES64, "hypercloning"),  # longer heads
        (resnet(), resnet(16), IMAGES64, "hypercloning"),
        (TiedPostNorm(6), TiedPostNorm(18), TOKENS, "hypercloning"),
    ],
)  # fmt: skip
def test_first_moments_grow_as_the_true_gradient_does(small, large, inputs, method):
    operator, states, expected = grown(small, large, inputs, method)
    moments = grow_states(operator, states)
    assert moments.keys() == expected.keys()
    for name, gradient in expected.items():
        assert relative(moments[name]["exp_avg"], gradient) < 1e-10, name


def test_unequal_shares_differ_only_in_what_is_written_into_a_stream_under_norms():
    operator, states, expected = grown(vit(), vit(64), IMAGES64, "lemon")
    moments = grow_states(operator, states)
    differ = {n for n, g in expected.items() if relative(moments[n]["exp_avg"], g) > 1e-10}
    writes = ("attn.proj.weight", "attn.proj.bias", "mlp.fc2.weight", "mlp.fc2.bias")
    writers = {n for n in expected if n.endswith(writes) or n.startswith("patch_embed")}
    assert differ == {*writers, "cls_token", "pos_embed"}
    assert all(relative(moments[name]["exp_avg"], expected[name]) < 0.1 for name in differ)


def test_the_moments_of_a_norm_that_ends_a_post_norm_layer_move_with_it():
    operator, states, expected = grown(bert(), bert(64, 4), TOKENS, "hypercloning")
    for policy in ("map", "keep-old-zero-new"):
        moments = grow_states(operator, states, policy)
        for part in ("weight", "bias"):
            name = f"bert.encoder.layer.{{}}.output.LayerNorm.{part}"
            assert name.format(0) not in moments and name.format(2) not in moments
            for layer, source in ((1, 0), (3, 1)):
                moment = moments[name.format(layer)]["exp_avg"]
                whole = torch.cat([states[name.format(source)]["exp_avg"] / 2] * 2)
                assert relative(whole, expected[name.format(layer)]) < 1e-8
                if policy == "map":
                    assert relative(moment, expected[name.format(layer)]) < 1e-8
    new = operator.new_entries()
    assert new[name.format(0)].all() and not new[name.format(1)][:32].any()


@pytest.mark.parametrize(
    ("build", "inputs", "writes", "last"),
    [
        (vit, IMAGES64, ("attn.proj.", "mlp.fc2."), "mlp.fc2.bias"),
        (gpt2, TOKENS, ("attn.c_proj.", "mlp.c_proj."), "mlp.c_proj.bias"),
    ],
)
def test_silent_layers_have_gradients_only_in_what_they_write_with(build, inputs, writes, last):
    operator, states, expected = grown(build(), build(32, 4), inputs, "lemon")
    moments, likeness = grow_states(operator, states), {}
    for name, gradient in expected.items():
        new = any(f".{layer}." in name for layer in (1, 3))
        if new and not any(write in name for write in writes):
            assert name not in moments and float(gradient.norm()) == 0, name
        elif new and not name.endswith(last):
            likeness[name] = cosine(moments[name]["exp_avg"], gradient)
        else:
            assert relative(moments[name]["exp_avg"], gradient) < 1e-10, name
    assert len(likeness) == 2 * 3 and min(likeness.values()) > 0
    assert sum(likeness.values()) / 6 > 0.4  # it writes there too, one layer later


def test_stacked_layers_have_the_moments_of_their_sources():
    operator, states, expected = grown(gpt2(), gpt2(32, 4), TOKENS, "stack")
    moments = grow_states(operator, states)
    alike = []
    for name, gradient in expected.items():
        source = name.replace("h.2.", "h.0.").replace("h.3.", "h.1.")
        assert torch.equal(moments[name]["exp_avg"], states[source]["exp_avg"]), name
        alike.append(cosine(states[source]["exp_avg"], gradient))
    assert sum(alike) / len(alike) > 0.5  # it is another network, and only alike


def test_staged_training_halves_and_quarters_the_diagonal_and_keeps_the_step():
    small, large = Mlp(5), Mlp(10)
    operator, states, expected = grown(small, large, VECTORS, "staged")
    states = {
        name: {"step": torch.tensor(7.0), "exp_avg": g, "exp_avg_sq": g.square()}
        for name, g in ((name, state["exp_avg"]) for name, state in states.items())
    }
    moments = grow_states(operator, states)
    first, second = (states["two.weight"][key] for key in ("exp_avg", "exp_avg_sq"))
    torch.testing.assert_close(
        moments["two.weight"],
        {
            "step": torch.tensor(7.0),
            "exp_avg": torch.block_diag(first, first) / 2,
            "exp_avg_sq": torch.block_diag(second, second) / 4,
        },
    )
    for name in expected.keys() - {"two.weight"}:
        torch.testing.assert_close(moments[name]["exp_avg"], expected[name])
    same = torch.block_diag(torch.ones(5, 5), torch.ones(5, 5))
    torch.testing.assert_close(moments["two.weight"]["exp_avg"], expected["two.weight"] * same)


@pytest.mark.parametrize(
    "method", ["lemon", "net2net", "ligo", "ligo-low-rank", "ligo-paper", "stack+sparkling"]
)
def test_second_moments_grow_by_the_squares_of_what_first_ones_grow_by(method):
    small, large = Net(4, 2).double(), Net(6, 3).double()
    operator = ligo.Operator(ligo.pair(small, large, **ROWS), small, method)
    with torch.no_grad():
        for coefficient in operator.parameters():  # as if it had been learned
            coefficient += 0.1 * torch.randn_like(coefficient)
    named = {name: torch.rand_like(p) for name, p in small.named_parameters()}

    def first(values):
        states = {name: {"exp_avg": value} for name, value in zip(named, values, strict=True)}
        moments = grow_states(operator, states)
        return {name: state["exp_avg"] for name, state in moments.items()}

    expected: dict = {}
    zeros = [torch.zeros_like(value) for value in named.values()]
    for which, value in enumerate(named.values()):  # every column of the map, squared
        for entry in range(value.numel()):
            zeros[which].view(-1)[entry] = 1
            for name, column in first(zeros).items():
                added = column.square() * value.view(-1)[entry]
                expected[name] = expected.get(name, 0) + added
            zeros[which].view(-1)[entry] = 0
    moments = grow_states(operator, {n: {"exp_avg_sq": value} for n, value in named.items()})
    for name, state in moments.items():
        torch.testing.assert_close(state["exp_avg_sq"], expected[name], msg=name)


def states_of(optimizer, network):
    return {n: optimizer.state[p] for n, p in network.named_parameters() if p in optimizer.state}


def stepped(network, make, steps=3):
    optimizer = make(network.parameters())
    for _ in range(steps):
        optimizer.zero_grad()
        network(ROWS["x"].float()).square().sum().backward()
        optimizer.step()
    return optimizer


@pytest.mark.parametrize("policy", ["map", "keep-old-zero-new"])
@pytest.mark.parametrize(
    "make",
    [
        lambda p: torch.optim.SGD(p, 0.01, momentum=0.9),
        lambda p: torch.optim.SGD(p, 0.01),
        lambda p: torch.optim.AdamW(p, 0.01, amsgrad=True, foreach=True),
        lambda p: torch.optim.AdamW(p, 0.01, fused=True),
        lambda p: torch.optim.NAdam(p, 0.01),
        lambda p: torch.optim.RAdam(p, 0.01),
        lambda p: torch.optim.RMSprop(p, 0.01, centered=True, momentum=0.9),
    ],
    ids=["momentum", "sgd", "amsgrad", "fused", "nadam", "radam", "rmsprop"],
)
def test_an_optimizer_goes_on_with_what_it_gets(make, policy):
    small, large = Net(8, 2), Net(12, 3)
    optimizer = stepped(small, make)
    operator = ligo.Operator(ligo.pair(small, large, ROWS["x"].float()), small, "stack+lemon")
    operator.bake(large)
    moments = grow_states(operator, states_of(optimizer, small), policy)
    further = make(large.parameters())
    further.state.update({p: moments[n] for n, p in large.named_parameters() if n in moments})
    before = {name: p.detach().clone() for name, p in large.named_parameters()}
    for group in further.param_groups:
        assert group["params"]
    large(ROWS["x"].float()).square().sum().backward()
    further.step()
    counted = {}
    for name, p in large.named_parameters():
        assert not torch.equal(p, before[name]), name
        for key, value in further.state[p].items():
            if isinstance(value, torch.Tensor) and value.dim():
                assert value.shape == p.shape and value.dtype == p.dtype, (name, key)
        if "step" in further.state[p]:
            counted[name] = float(further.state[p]["step"])
    new = {name for name in counted if policy != "map" and "blocks.2." in name}
    assert counted == {name: 1 if name in new else 4 for name in counted}


def test_old_entries_keep_their_moments_and_new_ones_have_zero():
    small, large = Net(8, 1), Net(20, 3)
    operator = ligo.Operator(ligo.pair(small, large, ROWS["x"].float()), small, "lemon")
    states = states_of(stepped(small, torch.optim.AdamW), small)
    moments = grow_states(operator, states, "keep-old-zero-new")
    assert not any(".1." in name or ".2." in name for name in moments)
    assert moments.keys() == states.keys()
    for name, state in states.items():
        assert float(moments[name]["step"]) == 3
        for key in ("exp_avg", "exp_avg_sq"):
            expected = torch.zeros_like(large.get_parameter(name))
            expected[tuple(slice(length) for length in state[key].shape)] = state[key]
            assert torch.equal(moments[name][key], expected), name


@pytest.mark.parametrize(
    ("method", "policy", "part"),
    [
        ("hypercloning", "map", False),
        ("hypercloning", "reset", False),
        ("hypercloning", "keep-old-zero-new", True),  # what SPARKLING says of it
        ("lemon", "map", True),
    ],
)
def test_whether_copies_part_in_training(method, policy, part):
    small, large = Mlp(5), Mlp(10)
    x = VECTORS["x"].float()

    def train(network, optimizer, steps):
        for _ in range(steps):
            optimizer.zero_grad()
            F.cross_entropy(network(x), torch.arange(5) % 3).backward()
            optimizer.step()

    optimizer = torch.optim.AdamW(small.parameters(), 0.01)
    train(small, optimizer, 5)
    operator = ligo.Operator(ligo.pair(small, large, x), small, method)
    operator.bake(large)
    moments = grow_states(operator, states_of(optimizer, small), policy)
    further = torch.optim.AdamW(large.parameters(), 0.01)
    further.state.update({p: moments[n] for n, p in large.named_parameters() if n in moments})
    train(large, further, 5)
    one, other = large.one.weight.detach().chunk(2)
    assert (relative(one, other) > 1e-3) == part


@pytest.mark.parametrize("policy", ["map", "keep-old-zero-new", "reset"])
def test_what_does_not_grow_keeps_its_own_tensors(policy):
    small, large = Net(8, 1), Net(20, 3)
    operator = ligo.Operator(ligo.pair(small, large, ROWS["x"].float()), small, "lemon")
    states = states_of(stepped(small, torch.optim.AdamW), small)
    moments = grow_states(operator, states, policy)
    assert moments["head.bias"] is states["head.bias"]
    assert (moments.keys() == {"head.bias"}) == (policy == "reset")


def test_layers_share_no_state():
    small, large = Net(8, 1), Net(8, 3)
    operator = ligo.Operator(ligo.pair(small, large, ROWS["x"].float()), small, "stack")
    moments = grow_states(operator, states_of(stepped(small, torch.optim.AdamW), small))
    places = [value.data_ptr() for state in moments.values() for value in state.values()]
    assert len(places) == len(set(places)) == 3 * len(list(large.parameters()))


def test_layers_that_were_frozen_have_no_state_and_others_have():
    small, large = Net(8, 2), Net(12, 4)
    small.blocks[0].requires_grad_(False)
    operator = ligo.Operator(ligo.pair(small, large, ROWS["x"].float()), small, "stack+lemon")
    moments = grow_states(operator, states_of(stepped(small, torch.optim.AdamW), small))
    blocks = {name.split(".")[1] for name in moments if name.startswith("blocks")}
    assert blocks == {"1", "3"}


def test_state_keeps_its_precision_whatever_the_weights_have():
    small, large = Net(8, 1).bfloat16(), Net(16, 1).bfloat16()
    plan = ligo.pair(small, large, ROWS["x"].bfloat16())
    operator = ligo.Operator(plan, small, "lemon")
    states = {n: {"exp_avg": torch.rand(p.shape)} for n, p in small.named_parameters()}
    moments = grow_states(operator, states)
    assert {state["exp_avg"].dtype for state in moments.values()} == {torch.float32}
    twice = states["head.weight"]["exp_avg"].repeat(1, 2)  # it reads copies, which share nothing
    assert torch.equal(moments["head.weight"]["exp_avg"], twice)


def test_unknown_state_starts_fresh_with_a_warning():
    small, large = Net(8, 1), Net(12, 1)
    operator = ligo.Operator(ligo.pair(small, large, ROWS["x"].float()), small, "lemon")
    states = states_of(stepped(small, torch.optim.Adamax), small)
    with pytest.warns(UserWarning, match=r"keeps exp_inf, which is not a known .* fresh state"):
        moments = grow_states(operator, states)
    assert moments.keys() == {"head.bias"}


def test_a_method_that_takes_nothing_takes_no_moments():
    small, large = Net(8, 1), Net(12, 1)
    operator = ligo.Operator(ligo.pair(small, large, ROWS["x"].float()), small, "random")
    assert grow_states(operator, states_of(stepped(small, torch.optim.AdamW), small)) == {}


def test_tables_that_are_stretched_start_fresh():
    small, large = gpt2(), gpt2(64, vocab_size=60)
    operator = ligo.Operator(ligo.pair(small, large, **TOKENS), small, "lemon")
    states = {n: {"exp_avg": torch.ones_like(p)} for n, p in small.named_parameters()}
    fresh = dict(large.named_parameters()).keys() - grow_states(operator, states).keys()
    assert fresh == {"transformer.wte.weight"}


def test_an_unknown_policy_lists_the_known_ones():
    small, large = Net(8, 1), Net(12, 1)
    operator = ligo.Operator(ligo.pair(small, large, ROWS["x"].float()), small, "lemon")
    with pytest.raises(ValueError, match=r"'keep', .* 'map', 'keep-old-zero-new', 'reset'"):
        grow_states(operator, {}, "keep")
