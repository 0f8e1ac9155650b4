"""Every method against its published equation, written out here in plain torch."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode
from transformers import BertConfig, BertForMaskedLM

import lightning_ligo as ligo
from lightning_ligo.cli.methods import methods_table
from lightning_ligo.methods.catalog import method_named
from lightning_ligo.methods.maps import Map
from networks import TOKENS, gpt2, measured, output, randomised, vit
from toys import Toy, X, close


def grown(method, small_size, large_size, norm=nn.Identity):
    """A small toy (width, hidden, depth), and the large one that is grown from it."""
    torch.manual_seed(0)
    small, large = Toy(*small_size, norm=norm), Toy(*large_size, norm=norm).double()
    small = randomised(small, torch.float64)
    ligo.grow(small, large, X, method=method, steps=0)
    return small.requires_grad_(False), large.eval().requires_grad_(False)


def copied(large: Tensor, small: Tensor) -> Tensor:
    """For every row of the large matrix, which row of the small one it is."""
    return (large[:, None] - small).abs().sum(-1).argmin(1)


def count(g: Tensor) -> Tensor:
    """For every entry, how many are copies of the same."""
    return torch.bincount(g)[g]


# Width ------------------------------------------------------------------------------------------


def test_random_is_the_large_network_as_it_was_built():
    small, large = randomised(gpt2()), gpt2(64, 4)
    built = {name: tensor.clone() for name, tensor in large.state_dict().items()}
    ligo.grow(small, large, method="random", **TOKENS)
    assert all(torch.equal(built[name], t) for name, t in large.state_dict().items())


def test_random_carries_no_optimizer_state_over():
    small, large = gpt2(), gpt2(32, 4)
    parents = ligo.Operator(ligo.pair(small, large, **TOKENS), small, "random").parents()
    assert all(list(names) != [name] for name, names in parents.items())


@pytest.mark.parametrize(("method", "rest"), [("zero", 0.0), ("copy", 1.0)])
def test_zero_and_copy_hold_the_small_network_in_the_upper_left(method, rest):
    torch.manual_seed(0)
    small, large = randomised(Toy(6, 8, 2)), Toy(7, 9, 3)
    expected = {name: rest * tensor.clone() for name, tensor in large.state_dict().items()}
    ligo.grow(small, large, X.float(), method=method)
    for name, tensor in small.state_dict().items():
        expected[name][tuple(slice(length) for length in tensor.shape)] = tensor
    for name, tensor in large.state_dict().items():
        assert torch.equal(tensor, expected[name]), name


def test_copy_keeps_the_heads_that_the_large_network_was_built_with():
    small, large = randomised(vit()), vit(48)
    built = large.blocks[0].attn.qkv.weight.detach().clone()
    ligo.grow(small, large, torch.randn(2, 1, 8, 8), method="copy")
    ours = large.blocks[0].attn.qkv.weight.unflatten(0, (3, 3, 16))
    assert torch.equal(ours[:, :2, :, :32].flatten(0, 2), small.blocks[0].attn.qkv.weight)
    assert torch.equal(ours[:, 2], built.unflatten(0, (3, 3, 16))[:, 2])
    assert torch.equal(ours[..., 32:], built.unflatten(0, (3, 3, 16))[..., 32:])


def noiseless(name):
    method = ligo.METHODS[name]
    return replace(method, width=replace(method.width, noise=0.0))


def test_net2net_copies_random_neurons_and_divides_by_their_number():
    small, large = grown(noiseless("net2net"), (6, 8), (11, 13))
    g = copied(large.E, small.E)
    assert g[:6].tolist() == list(range(6)) and g[6:].tolist() != list(range(5))
    close(large.E, small.E[g])
    for layer in range(2):
        h = copied(large.u[layer][:, None], small.u[layer][:, None])
        assert h[:8].tolist() == list(range(8))
        close(large.U[layer], small.U[layer][h][:, g] / count(g))
        close(large.V[layer], small.V[layer][g][:, h] / count(h))
    close(large.H, small.H[:, g] / count(g))
    close(large(X), small(X))


def test_net2net_s_noise_cancels_between_two_copies():
    small, plain = grown(noiseless("net2net"), (6, 8), (12, 16))
    _, large = grown("net2net", (6, 8), (12, 16))
    g = copied(plain.E, small.E)
    for ours, theirs in ((large.H, plain.H), (large.U[0], plain.U[0])):
        noise = ours - theirs
        close(torch.zeros(len(noise), 6).double().index_add(1, g, noise), 0 * noise[:, :6])
        size = noise[:, count(g) > 1].square().mean().sqrt() / theirs.square().mean().sqrt()
        assert 0.004 < size < 0.02
    close(large(X), small(X))


def test_net2net_s_new_layers_of_a_chain_are_the_identity():
    def chain(depth):
        layers = (nn.Sequential(nn.Linear(6, 6), nn.ReLU()) for _ in range(depth))
        return nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Sequential(*layers), nn.Linear(6, 3))

    small, large = randomised(chain(2), torch.float64), chain(4).double()
    ligo.grow(small, large, X, method="net2net")
    for layer, source in enumerate((0, None, 1, None)):
        ours = large[2][layer][0]
        weight = torch.eye(6).double() if source is None else small[2][source][0].weight
        close(ours.weight, weight)
        assert source is not None or not ours.bias.any()
    close(large(X), small(X))


def test_bert2bert_copies_by_the_same_rule_and_stacks():
    small, large = grown("bert2bert", (6, 8, 2), (11, 13, 5), nn.LayerNorm)
    g = copied(large.E, small.E)
    assert g[:6].tolist() == list(range(6)) and len(count(g).unique()) > 1
    h = [copied(large.u[layer][:, None], small.u[layer][:, None]) for layer in range(2)]
    for layer in range(5):
        source = layer % 2
        close(
            large.u[layer],
            small.u[source][copied(large.u[layer][:, None], small.u[source][:, None])],
        )
        close(large.blocks[layer].norm.weight, small.blocks[source].norm.weight[g])
        if layer < 2:
            close(large.U[layer], small.U[layer][h[layer]][:, g] / count(g))
            close(large.V[layer], small.V[layer][g][:, h[layer]] / count(h[layer]))
    close(large.H, small.H[:, g] / count(g))


def test_bert2bert_aki_takes_new_neurons_from_the_next_layer():
    small, large = grown("bert2bert-aki", (6, 8, 3), (11, 13, 3))
    g = copied(large.E, small.E)
    for layer in range(3):
        ahead = min(layer + 1, 2)
        close(large.U[layer][:8], small.U[layer][:, g] / count(g))
        widened = small.U[ahead][:, g] / count(g)
        h = copied(large.U[layer][8:], widened)
        close(large.U[layer][8:], widened[h])
        close(large.u[layer], torch.cat([small.u[layer], small.u[ahead][h]]))
        h = torch.cat([torch.arange(8), h])
        close(large.V[layer][:6], small.V[layer][:, h] / count(h))
        close(large.V[layer][6:], (small.V[ahead][:, h] / count(h))[g[6:]])
        close(large.v[layer], torch.cat([small.v[layer], small.v[ahead][g[6:]]]))


def test_hypercloning_tiles_and_divides():
    small, large = grown("hypercloning", (6, 8), (18, 16))
    close(large.E, small.E.repeat(3, 1))
    for layer in range(2):
        close(large.U[layer], small.U[layer].repeat(2, 3) / 3)
        close(large.V[layer], small.V[layer].repeat(3, 2) / 2)
        close(large.u[layer], small.u[layer].repeat(2))
    close(large.H, small.H.repeat(1, 3) / 3)
    close(large(X), small(X))


def test_hypercloning_s_noise_has_the_other_sign_in_every_second_tile():
    small, large = grown("hypercloning-noisy", (6, 8), (18, 16))
    for ours, theirs, tiles in ((large.H, small.H, 3), (large.V[1], small.V[1].repeat(3, 1), 2)):
        noise = (ours - theirs.repeat(1, tiles) / tiles).unflatten(1, (tiles, -1))
        close(noise[:, 0], -noise[:, 1])
        size = noise[:, 0].square().mean().sqrt() / (theirs / tiles).square().mean().sqrt()
        assert 0.05 < size < 0.2
        assert tiles == 2 or not noise[:, 2].abs().max() > 1e-15
    close(large(X), small(X))


def test_staged_puts_networks_side_by_side():
    small, large = grown("staged", (6, 8), (12, 16), nn.LayerNorm)
    close(large.E, small.E.repeat(2, 1))
    for layer in range(2):
        close(large.U[layer], torch.block_diag(small.U[layer], small.U[layer]))
        close(large.V[layer], torch.block_diag(small.V[layer], small.V[layer]))
        close(large.blocks[layer].norm.bias, small.blocks[layer].norm.bias.repeat(2))
    close(large.H, small.H.repeat(1, 2) / 2)
    close(large(X), small(X))


def test_staged_s_new_layers_have_identity_matrices_and_nothing_else():
    small, large = grown("staged", (6, 8, 2), (6, 8, 4), nn.LayerNorm)
    for layer in (1, 3):
        close(large.U[layer], torch.eye(8, 6).double())
        close(large.V[layer], torch.eye(6, 8).double())
        zero = (large.u[layer], large.v[layer], *large.blocks[layer].norm.parameters())
        assert not any(tensor.any() for tensor in zero)
    close(large.U[2], small.U[1])
    close(large(X), small(X))
    small, large = randomised(gpt2()), gpt2(32, 4)
    ligo.grow(small, large, method="staged", **TOKENS)
    assert torch.equal(large.transformer.h[1].attn.c_attn.weight, torch.eye(32).repeat(1, 3))


def test_lemon_weighs_copies_by_shares_that_sum_to_one():
    small, large = grown("lemon", (6, 8), (11, 13))
    g, h = torch.arange(11) % 6, torch.arange(13) % 8
    close(large.E, small.E[g])
    shares = large.H[0] / small.H[0][g]
    close(large.H, small.H[:, g] * shares)
    close(torch.zeros(6).double().index_add(0, g, shares), torch.ones(6).double())
    two = shares[count(g) == 2]
    assert two.min() >= 1 / 3 and two.max() <= 2 / 3 and (two - 0.5).abs().min() > 1e-3
    for layer in range(2):
        inner = large.V[layer][0] / small.V[layer][0][h]
        close(large.U[layer], small.U[layer][h][:, g] * shares)
        close(large.V[layer], small.V[layer][g][:, h] * inner)
    close(large(X), small(X))


def test_lemon_fills_up_with_the_mean_under_a_layer_norm():
    small, large = grown("lemon", (6, 8), (15, 8), nn.LayerNorm)
    scale = (15 / 12) ** 0.5  # the norm divides by the deviation of 12 of 15 entries
    stream = small.embed(X)
    mean = stream.mean(1, keepdim=True).expand(-1, 3)
    close(large.embed(X), scale * torch.cat([stream, stream, mean], 1))
    assert not large.H[:, 12:].any() and not large.U[0][:, 12:].any()
    close(large(X), small(X))


def test_lemon_s_new_layers_write_nothing():
    small, large = grown("lemon", (6, 8, 2), (6, 8, 5))
    for layer, source in enumerate((0, 0, 0, 1, 1)):
        close(large.U[layer], small.U[source])
        new = layer not in (0, 3)
        close(large.V[layer], small.V[source] * (not new))
        close(large.v[layer], small.v[source] * (not new))


@pytest.mark.parametrize(
    ("width", "hidden", "factors"), [(9, 24, (0.4**0.5 * 1.0, 1 / 3)), (12, 12, (0.5, 0.4**0.5))]
)
def test_sparkling_keeps_the_scale_of_what_is_written(width, hidden, factors):
    """Equation 16: one over sqrt(1 + 3 c) for a share c of copies up to 1, else over 1 + c."""
    small, large = grown("sparkling", (6, 8), (width, hidden))
    g, h = torch.arange(width) % 6, torch.arange(hidden) % 8
    c = width / 6 - 1, hidden / 8 - 1
    expected = tuple((1 + 3 * c) ** -0.5 if c <= 1 else 1 / (1 + c) for c in c)
    assert expected == pytest.approx(factors)
    close(large.E, small.E[g])
    for layer in range(2):
        close(large.U[layer], expected[0] * small.U[layer][h][:, g])
        close(large.V[layer], expected[1] * small.V[layer][g][:, h])
    close(large.H, expected[0] * small.H[:, g])


# Depth ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "small_depth", "sources", "zero_output"),
    [
        ("stack", 3, [0, 1, 2, 0, 1, 2, 0], []),
        ("gstack", 2, [0, 1, 0, 1, 0, 1], []),
        ("interpolate", 2, [0, 0, 0, 1, 1, 1], []),
        ("interpolate", 3, [0, 0, 1, 1, 2], []),
        ("llama-pro", 4, [0, 1, 1, 2, 3, 3], [2, 5]),  # two groups of two, a block after each
        ("llama-pro", 2, [0, 0, 0, 1, 1, 1], [1, 2, 4, 5]),
        ("lemon", 2, [0, 0, 1, 1], [1, 3]),
        ("copy", 2, [0, 1], []),
    ],
)
def test_layers_come_from_where_the_method_says(method, small_depth, sources, zero_output):
    depth = max(len(sources), small_depth + 1) if method == "copy" else len(sources)
    small, large = grown(method, (6, 8, small_depth), (6, 8, depth))
    for layer, source in enumerate(sources):
        close(large.U[layer], small.U[source])
        close(large.V[layer], small.V[source] * (layer not in zero_output))
        close(large.v[layer], small.v[source] * (layer not in zero_output))


def test_two_methods_combine_with_depth_first():
    small, large = grown("stack+hypercloning", (6, 8, 2), (12, 8, 4))
    for layer in range(4):
        close(large.U[layer], small.U[layer % 2].repeat(1, 2) / 2)
    close(large.H, small.H.repeat(1, 2) / 2)


def test_a_combined_method_learns_what_its_parts_learn():
    both, depth = method_named("ligo-paper+ligo"), method_named("ligo+lemon")
    assert (both.steps, both.learning_rate) == (100, 1e-3) and both.learns
    assert depth.learns and depth.steps == 25 and method_named("stack+ligo").learns
    assert not method_named("stack+lemon").learns and method_named("stack+lemon").steps == 0


# What is learned --------------------------------------------------------------------------------


def operator(method, small_size=(6, 8, 2), large_size=(9, 12, 3), norm=nn.Identity):
    torch.manual_seed(0)
    small, large = Toy(*small_size, norm=norm), Toy(*large_size, norm=norm).double()
    small = randomised(small, torch.float64)
    return small, ligo.Operator(ligo.pair(small, large, X), small, method)


def learning(**changes):
    """Lemon with other things learned; `depth` says whether the mix is."""
    lemon, depth = ligo.METHODS["lemon"], changes.pop("depth", False)
    width = replace(lemon.width, **changes)
    return replace(lemon, width=width, depth=replace(lemon.depth, learned=depth))


def test_a_low_rank_part_starts_at_the_copy_and_adds_two_thin_products():
    method = learning(learns="low-rank", rank=2)
    small, ours = operator(method)
    _, lemon = operator("lemon")
    for name, tensor in lemon().items():
        close(ours()[name], tensor)
    assert ours.coefficients == 2 * ((9 + 6) * 2 + 3 * (12 + 8) * 2)  # embed; hidden of 3 layers
    with torch.no_grad():
        for parameter in ours.parameters():
            parameter += torch.randn(parameter.shape, dtype=torch.float64)
    maps = {name: tensor.detach() for name, tensor in ours.widths.maps.items()}
    copy = torch.zeros(9, 6).double()
    copy[range(9), [i % 6 for i in range(9)]] = 1
    B = copy + maps["embed:produces:U"] @ maps["embed:produces:V"]
    close(ours()["embed.weight"], B @ small.E)


def test_the_lower_part_of_each_form_can_be_learned_by_itself():
    _, ours = operator(learning(learns="lower"), (6, 8, 2), (9, 12, 2))
    _, lemon = operator("lemon", (6, 8, 2), (9, 12, 2))
    for name, tensor in lemon().items():
        close(ours()[name], tensor)
    assert ours.coefficients == 2 * (3 * 6 + 2 * 4 * 8)


def test_depth_alone_or_width_alone_can_be_learned():
    _, depth = operator(learning(depth=True))
    assert depth.coefficients == 4 * 3 * 2 and not depth.widths.maps  # U, u, V, v
    _, width = operator(learning(learns="both"))
    assert width.coefficients == 2 * (9 * 6 + 3 * 12 * 8)
    assert not width.depths.mixes
    _, nothing = operator("lemon")
    assert nothing.coefficients == 0 and not list(nothing.parameters())


def test_the_paper_s_ties_make_one_map_of_what_is_written_and_read():
    small, tied = operator(learning(learns="both", ties="flow"), (6, 8, 1), (9, 12, 1))
    assert tied.coefficients == 9 * 6 + 12 * 8
    maps = {name.split("/")[0]: tensor.detach() for name, tensor in tied.widths.maps.items()}
    B, C = maps["embed"], maps["blocks"]
    close(tied()["blocks.0.fc1.weight"], C.squeeze(0) @ small.U[0] @ B.T)
    close(tied()["head.weight"], small.H @ B.T)


def test_what_is_added_to_copies_needs_a_start_that_copies():
    paper = ligo.METHODS["ligo-paper"]
    method = replace(paper, width=replace(paper.width, learns="low-rank", rank=1))
    with pytest.raises(
        ValueError, match=r"got learns='low-rank', which adds a .* copies, but the map of"
    ):
        operator(method)


# Methods of one's own -----------------------------------------------------------------------------


def test_a_method_of_one_s_own_is_data():
    """Halves: every entry is split into two that both hold half of it."""

    def halves(small, large, normed, zero_output, generator):
        forms = torch.eye(small).double().repeat(2, 1)
        return Map(forms / 2, forms)

    method = ligo.Method(
        name="halves", idea="", equation="", source="", keeps_function=True, conditions="",
        breaks_symmetry="no", settings="", width=ligo.Width(halves, halves),
    )  # fmt: skip
    small, large = grown(method, (6, 8), (12, 16))
    close(large.E, torch.cat([small.E, small.E]) / 2)
    close(large.H, torch.cat([small.H, small.H], 1))
    close(large(X), small(X))  # with no norm, and relu(x / 2) * 2 = relu(x)
    plan = ligo.pair(small, large, X)
    assert measured(plan, small, Toy(12, 16), {"x": X}, method).kept


# Copies that part ---------------------------------------------------------------------------------

PARTING = ["ligo", "ligo-low-rank", "lemon", "net2net", "hypercloning-noisy", "ligo-paper", "copy"]
PARTING += ["fresh"]
LOCKED = ["hypercloning", "staged", "sparkling"]


def closest(method):
    """The least distance of two entries of the stream, heads or hidden neurons after ten steps."""
    torch.manual_seed(0)
    small, large = gpt2().double().eval(), gpt2(64, 4).double().eval()  # no dropout
    ligo.grow(small, large, method=method, steps=0, **TOKENS)
    optimizer = torch.optim.AdamW(large.parameters(), lr=1e-3)
    for _ in range(10):
        optimizer.zero_grad()
        large(**TOKENS, labels=TOKENS["input_ids"]).loss.backward()
        optimizer.step()
    entries = [torch.cat([large.transformer.wte.weight, large.transformer.wpe.weight]).T]
    for block in large.transformer.h:
        heads = block.attn.c_attn.weight.T.unflatten(0, (3, 4, 16)).transpose(0, 1).flatten(1)
        entries += [heads, block.mlp.c_fc.weight.T]
    return min(torch.pdist(rows.detach()).min() for rows in entries)


@pytest.mark.parametrize("method", PARTING)
def test_copies_part_within_ten_steps(method):
    assert ligo.METHODS[method].breaks_symmetry.startswith("yes")
    assert closest(method) > 1e-6


@pytest.mark.parametrize("method", LOCKED)
def test_equal_copies_never_part_and_the_card_says_so(method):
    assert ligo.METHODS[method].breaks_symmetry.startswith(("no", "never"))
    assert closest(method) < 1e-10


# What is refused, and said ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "size", "message"),
    [
        (
            replace(ligo.METHODS["stack"], name="mine", width=None),
            (9, 8, 4),
            r"'mine' has no width, and embed grows from 6 to 9; .*METHODS\['lemon'\]\.width",
        ),
        (
            replace(ligo.METHODS["stack"], name="mine", depth=None),
            (6, 8, 4),
            r"'mine' has no depth, and blocks grows from 2 to 4; .*METHODS\['lemon'\]\.depth",
        ),
        ("hypercloning", (9, 8, 2), "whole copies, and embed grows from 6 to 9, no multiple"),
        ("gstack", (6, 8, 3), "whole copies, and blocks grows from 2 to 3, no multiple"),
        ("staged", (12, 24, 2), "side by side, and embed grows from 6 to 12, .* by one multiple"),
    ],
)
def test_what_a_method_cannot_grow_is_refused(method, size, message):
    with pytest.raises(ValueError, match=message):
        grown(method, (6, 8, 2), size)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("stack+random", "'random' has no width"),
        ("random+lemon", "'random' has no depth"),
        ("msg+lemon", "'msg' masks all that is new; use it by itself"),
        ("stack+lego", "unknown method 'lego'; the methods are .*lemon.* plus between"),
    ],
)
def test_methods_that_do_not_combine_are_refused(name, message):
    with pytest.raises(ValueError, match=message):
        method_named(name)


def test_an_unknown_kind_of_new_layer_lists_the_known_ones():
    with pytest.raises(ValueError, match=r"new='silent'.*'copied', 'zero_output', 'identity'"):
        ligo.Depth(ligo.METHODS["lemon"].depth.mix, "silent")


def test_what_stays_as_it_was_built_needs_the_large_network():
    _, ours = operator("copy")
    with pytest.raises(ValueError, match=r"as it was built; call operator\(large\)"):
        ours()
    assert ours(Toy(9, 12, 3).double())["embed.weight"].shape == (9, 4)


def test_a_network_on_the_meta_device_cannot_be_baked():
    _, ours = operator("lemon")
    with pytest.raises(ValueError, match="Toy is on the meta device"):
        ours.bake(Toy(9, 12, 3).to("meta"))


CHANGES = [  # where a method begins to change the function, if it does
    ("stack", (6, 8, 4), "head"),
    ("copy", (6, 8, 3), "head"),
    ("sparkling", (9, 8, 2), "embed"),
    ("bert2bert-aki", (9, 8, 2), "blocks.0.fc2"),
    ("ligo-paper", (6, 8, 3), "blocks.0.fc1"),
    ("zero", (9, 12, 3), None),
    ("sparkling", (12, 16, 2), None),
]


@pytest.mark.parametrize(("method", "size", "place"), CHANGES)
def test_a_start_that_does_not_keep_the_function_is_measured(method, size, place):
    small, ours = operator(method, (6, 8, 2), size)
    large = Toy(*size).double()
    told = measured(ours.plan, small, large, {"x": X}, method)
    assert (told.kept, told.place) == (place is None, place)
    ours.bake(large)
    change = (large(X) - small(X)).norm() / small(X).norm()
    assert change > 1e-3 if place else change < 1e-12


# Cards ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ligo.METHODS.values(), ids=ligo.METHODS)
def test_a_card_and_the_operator_agree_on_whether_the_function_is_kept(method):
    whole = any(part is not None and part.whole for part in (method.width, method.depth))
    size = (12, 16, 4) if whole else (9, 12, 3)
    small, ours = operator(method, (6, 8, 2), size, nn.LayerNorm)
    large = Toy(*size, norm=nn.LayerNorm).double()
    assert measured(ours.plan, small, large, {"x": X}, method).kept == method.keeps_function


def test_every_method_has_a_card():
    for name, method in ligo.METHODS.items():
        card = str(method)
        assert card.startswith(f"{name}: {method.idea}")
        for what in (method.equation, method.source, method.conditions, method.breaks_symmetry):
            assert what.split()[0] in card
        assert all(len(line) <= 100 for line in card.splitlines()[1:])


def test_a_table_lists_the_methods():
    lines = methods_table().splitlines()
    column = lines[0].index("exact")
    for name, method in ligo.METHODS.items():
        (line,) = [line for line in lines if line.startswith(f"{name} ")]
        assert line[column:].split()[0] == ("yes" if method.keeps_function else "no")


def test_the_large_network_of_every_method_is_plain():
    for name in ligo.METHODS:
        small, large = randomised(gpt2()), gpt2(64, 4).eval()
        keys, types = list(large.state_dict()), [type(m) for m in large.modules()]
        ligo.grow(small, large, method=name, steps=0, **TOKENS)
        assert list(large.state_dict()) == keys and [type(m) for m in large.modules()] == types
        assert output(large, TOKENS).isfinite().all()


# Cost ---------------------------------------------------------------------------------------------


def test_fixed_maps_and_mixes_are_applied_without_a_matrix_product():
    for method in ("lemon", "stack+net2net", "staged", "llama-pro+hypercloning-noisy"):
        _, ours = operator(method, (6, 8, 2), (12, 16, 4))
        with FlopCounterMode(display=False) as counter:
            ours()
        assert counter.get_total_flops() == 0


def test_learning_a_low_rank_part_costs_little_more_than_training():
    """At most 1.2 steps of training, from BERT-Small to BERT-Base on 4 x 128 tokens."""

    def bert(width, depth):
        config = BertConfig(hidden_size=width, num_hidden_layers=depth, intermediate_size=4 * width,
                            num_attention_heads=width // 64)  # fmt: skip
        with torch.device("meta"):
            return BertForMaskedLM(config)

    small, large = bert(512, 6), bert(768, 12)
    tokens = {"input_ids": torch.zeros(4, 128, dtype=torch.long)}
    plan = ligo.pair(small, large, **tokens)
    cost = ligo.estimate(plan, small, large, method="ligo-low-rank", **tokens)
    assert cost.learning_flops <= 1.2 * cost.training_flops
