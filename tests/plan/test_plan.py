import subprocess
import sys
import time

import pytest
import timm
import torch
from timm.models import VisionTransformer, VisionTransformerDistilled
from timm.models.cait import Cait
from timm.models.swin_transformer import SwinTransformer
from torch import nn

import lightning_ligo as ligo
from networks import IMAGES, TOKENS, bert, changed, gpt2, measured, vit

SMALL = {"img_size": 8, "in_chans": 1, "num_classes": 5}


def test_the_plan_of_a_vision_transformer_names_what_grows():
    plan = ligo.pair(vit(), vit(64, 4), **IMAGES)
    assert plan.axes == {
        "embed": (32, 64),
        "blocks.*.attn.heads": (2, 4),
        "blocks.*.mlp.hidden": (128, 256),
    }
    assert plan.stacks == {"blocks": (2, 4)}
    assert plan.parameters == tuple(
        sum(p.numel() for p in network.parameters()) for network in (vit(), vit(64, 4))
    )
    assert plan.notes == ()


def test_the_plan_prints_as_a_table():
    table = str(ligo.pair(vit(), vit(64, 4), **IMAGES))
    for line in (
        r"embed                          32            64",
        r"blocks (layers)                 2             4",
        "head.out stays 10: it is the network's output",
    ):
        assert line in table


def test_a_large_network_on_the_meta_device_is_paired_without_memory():
    with torch.device("meta"):
        large = vit(64, 4)
    assert ligo.pair(vit(), large, **IMAGES) == ligo.pair(vit(), vit(64, 4), **IMAGES)


def test_a_single_head_grows():
    plan = ligo.pair(vit(16), vit(48), **IMAGES)
    assert plan.axes["blocks.*.attn.heads"] == (1, 3)


@pytest.mark.parametrize(
    ("small", "large", "inputs", "message"),
    [
        (vit(64), vit(32), IMAGES, "embed is 64 long .* and only 32 in the large one"),
        (vit(32, 4), vit(32, 2), IMAGES, "it has 26538 parameters and the small network"),
        (vit(), vit(64, init_values=1.0), IMAGES, "small network lacks blocks.*ls1.gamma"),
        (vit(init_values=1.0), vit(64), IMAGES, "large network lacks blocks.*ls1.gamma"),
        (
            vit(),
            vit(64, img_size=16),
            IMAGES,
            "called with the same inputs it fails with AssertionError",
        ),
        (vit(), vit(64, patch_size=1), IMAGES, r"proj.weight is \(32, 1, 2, 2\) in the small"),
        (vit(), gpt2(64), IMAGES, "called with the same inputs it fails with ValueError"),
        (gpt2(), bert(64), TOKENS, "large network lacks transformer.wte.weight"),
        (bert(tie_word_embeddings=False), bert(64), TOKENS, "lacks cls.*decoder.*or ties them"),
        (vit(48, num_heads=3), vit(96, num_heads=2), IMAGES, "heads is 3 long .* and only 2"),
    ],
)
def test_what_cannot_grow_is_named(small, large, inputs, message):
    with pytest.raises(ValueError, match=rf"cannot be grown from[\s\S]*{message}"):
        ligo.pair(small, large, **inputs)


class Tables(nn.Module):
    """Indices of some length, which are no parameters."""

    def __init__(self, length, count):
        super().__init__()
        self.one, self.two = nn.Linear(4, 6), nn.Linear(6, 2)
        for number in range(count):
            self.register_buffer(f"index{number}", torch.arange(length))

    def forward(self, x):
        x = self.one(x)
        return self.two(x + sum(x[:, index].sum(-1, True) for index in self.buffers()))


class Mixed(nn.Module):
    """Layers in a row, between which what they write is cut in two ways."""

    def __init__(self, depth):
        super().__init__()
        self.one, self.two = nn.Linear(4, 6), nn.Linear(6, 2)
        self.layers = nn.ModuleList(nn.Linear(6, 6) for _ in range(depth))

    def forward(self, x):
        x = self.one(x)
        for number, layer in enumerate(self.layers):
            x = layer(x).unflatten(-1, ((3, 2), (2, 3))[number % 2]).mT.flatten(1)
        return self.two(x)


@pytest.mark.parametrize(
    ("small", "large", "message"),
    [
        (
            Tables(3, 1),
            Tables(5, 1),
            r"index0 is \(3,\) in the small network and \(5,\) in the large one, "
            r"and has no axes to grow by$",
        ),
        (Tables(3, 12), Tables(5, 12), r"index11 is .*, and has no axes to grow by$"),
        (Tables(3, 15), Tables(5, 15), r"index11 is .*, and has no axes to grow by\n  and 3 more "),
        (Mixed(2), Mixed(3), "layers cannot change its depth: the modules of layers are chained"),
    ],
)
def test_what_cannot_grow_of_buffers_and_rows_of_layers_is_named(small, large, message):
    with pytest.raises(ValueError, match=message):
        ligo.pair(small, large, torch.randn(3, 4))


def test_inputs_that_the_large_network_does_not_take_are_named():
    with pytest.raises(ValueError, match="called with large_inputs it fails with AssertionError"):
        ligo.pair(vit(), vit(64, img_size=16), **IMAGES, large_inputs=IMAGES)


def test_a_backbone_whose_reader_stays_outside_is_refused():
    with pytest.raises(ValueError, match=r"output would change from \(3, 32\) to \(3, 64\)"):
        ligo.pair(vit(classes=0), vit(64, classes=0), **IMAGES)


def test_chained_modules_grow_in_depth_and_the_plan_says_what_that_means():
    def chain(depth):
        layers = nn.Sequential(*(nn.Linear(4, 4) for _ in range(depth)))
        return nn.Sequential(layers, nn.Linear(4, 2))

    x = torch.randn(3, 4)
    plan = ligo.pair(chain(2), chain(3), x)
    assert plan.stacks == {"0": (2, 3)}
    for method, kept in (("lemon", True), ("stack", False)):  # its new layer is the identity
        assert measured(plan, chain(2), chain(3), {"input": x}, method).kept == kept


@pytest.mark.parametrize(
    ("small", "large", "inputs", "reason"),
    [
        (bert(32), bert(48), TOKENS, "embed grows from 32 to 48, no multiple, under a norm"),
    ],
)
def test_a_growth_that_cannot_keep_the_function_says_why(small, large, inputs, reason):
    plan = ligo.pair(small, large, **inputs)
    assert any(reason in line for line in plan.notes)
    assert reason in str(plan) and not measured(plan, small, large, inputs).kept


def cait(width, depth, depth_token_only):
    depths = {"depth": depth, "depth_token_only": depth_token_only}
    return Cait(**SMALL, patch_size=4, embed_dim=width, num_heads=width // 8, **depths)


def swin(width, depths):
    heads = (width // 8, width // 4)
    return SwinTransformer(
        **SMALL, patch_size=1, embed_dim=width, depths=depths, num_heads=heads, window_size=2
    )


@pytest.mark.parametrize(
    ("small", "large", "stacks"),
    [
        (cait(16, 2, 1), cait(32, 4, 3), {"blocks": (2, 4), "blocks_token_only": (1, 3)}),
        (
            swin(8, (2, 2)),
            swin(16, (6, 6)),
            {f"layers.{stage}.blocks[{kind}]": (1, 3) for stage in (0, 1) for kind in (0, 1)},
        ),
    ],
    ids=["cait", "swin"],
)
def test_two_stacks_that_grow_at_once_keep_the_function(small, large, stacks):
    change, plan = grown(small, large)
    assert plan.stacks == stacks and plan.axes
    assert change < 1e-12


def test_layers_with_shifted_windows_stay_every_second():
    small, large = swin(8, (2, 2)), swin(8, (4, 4))
    assert measured(ligo.pair(small, large, **IMAGES), small, large, IMAGES).change < 1e-6


def grown(small, large):
    """How much the output changes by a growth, and its plan."""
    return changed(small, large, IMAGES)


@pytest.mark.parametrize(("distilled", "lacks"), [(False, "small"), (True, "large")])
def test_a_token_of_distillation_that_one_network_lacks_is_named(distilled, lacks):
    small, large = (
        kind(**SMALL, patch_size=4, embed_dim=width, depth=2, num_heads=width // 16)
        for kind, width in (
            (VisionTransformerDistilled if distilled else VisionTransformer, 32),
            (VisionTransformer if distilled else VisionTransformerDistilled, 64),
        )
    )
    with pytest.raises(ValueError, match=rf"the {lacks} network lacks dist_token, head_dist"):
        ligo.pair(small, large, **IMAGES)


def test_layers_that_are_equal_in_one_of_the_networks_only_are_no_stack():
    def network(*widths):
        linears = [nn.Linear(*pair) for pair in zip((4, *widths), (*widths, 2), strict=True)]
        return nn.Sequential(nn.Sequential(*linears), nn.Tanh())

    plan = ligo.pair(network(5, 5, 5), network(7, 6, 7), torch.randn(3, 4))
    assert list(plan.axes.values()) == [(5, 7), (5, 6), (5, 7)]


COST = """
import gc, resource, time
import timm, torch
import lightning_ligo as ligo

def peak():  # bytes
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

images = torch.randn(1, 3, 224, 224)
small, large = (timm.create_model(name).eval() for name in {names})
networks = sum(4 * p.numel() for network in (small, large) for p in network.parameters())
with torch.no_grad():
    small(images)  # what torch loads at its first forward
before, start = peak(), time.process_time()
plan = ligo.pair(small, large, images)
seconds, memory = time.process_time() - start, 1 + (peak() - before) / networks
print(seconds, memory, max(plan.proofs.values()))
"""


@pytest.mark.slow
def test_pairing_costs_seconds_and_little_memory():
    """Without other jobs beside it: 5 s of CPU, and half as much memory again as the networks."""
    names = ("deit_small_patch16_224", "deit_base_patch16_224")
    command = [sys.executable, "-c", COST.format(names=names)]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    seconds, memory, proof = map(float, printed.split())
    assert seconds < 5 and memory < 1.5 and proof < 1e-5


@pytest.mark.slow
def test_pairing_on_the_meta_device_costs_seconds():
    with torch.device("meta"):
        small, large = (
            timm.create_model(f"vit_{size}_patch14_clip_224") for size in ("large", "huge")
        )
    start = time.process_time()
    ligo.pair(small, large, torch.randn(1, 3, 224, 224))
    assert time.process_time() - start < 30
