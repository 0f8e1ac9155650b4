"""Modules that are of another class in the large network: the oracle is the small one without."""

import pytest
import torch
from timm.layers import SwiGLUPacked
from timm.models import VisionTransformer
from torch import nn
from torch.nn import functional as F

import lightning_ligo as ligo
from lightning_ligo import Growth, GrowthCallback, describe
from networks import IMAGES, IMAGES64, LEARNED, randomised, vit
from runs import FEATURES, Plain, fit, train_loader

GATED = {"mlp_layer": SwiGLUPacked}


@pytest.mark.parametrize("method", ["lemon", "net2net", "llama-pro+lemon", LEARNED, "msg"])
def test_a_feed_forward_part_with_a_gate_stays_as_it_was_built_and_adds_nothing(method):
    small, large = (randomised(network, torch.float64) for network in (vit(), vit(64, 4, **GATED)))
    built = {name: weight.clone() for name, weight in large.named_parameters()}
    operator = ligo.Operator(ligo.pair(small, large, **IMAGES64), small, method)
    operator.bake(large)
    masks = ligo.Ramp(operator, large) if method == "msg" else None
    with torch.no_grad():
        for block in small.blocks:
            block.mlp.fc2.weight.zero_()
            block.mlp.fc2.bias.zero_()
    torch.testing.assert_close(large(**IMAGES64), small(**IMAGES64), rtol=1e-10, atol=1e-10)
    assert masks is None or masks.c == 0
    for name, weight in large.named_parameters():
        if ".mlp.fc1." in name:
            assert torch.equal(weight, built[name])


def test_the_plan_says_what_stays_as_it_was_built():
    plan = ligo.pair(vit(), vit(64, 4, mlp_ratio=1, **GATED), **IMAGES)  # shorter than it was
    assert plan.notes == (
        "blocks.*.mlp is a Mlp in the small network and a GluMlp in the large one, with other "
        "axes: it starts as it was built, and what it writes is zero",
    )
    assert plan.axes == {"embed": (32, 64), "blocks.*.attn.heads": (2, 4)}


class Block(nn.Module):
    """Adds what it does to what passes it, with a gate or without."""

    def __init__(self, width, gated):
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.up, self.down = nn.Linear(width, 2 * width), nn.Linear(width * (2 - gated), width)
        self.gated = gated

    def forward(self, x):
        y = self.up(self.norm(x))
        return x + self.down(F.glu(y) if self.gated else F.gelu(y))


class Net(nn.Module):
    def __init__(self, width=8, depth=1, gated=False):
        super().__init__()
        self.embed = nn.Linear(FEATURES, width)
        self.blocks = nn.Sequential(*[Block(width, gated) for _ in range(depth)])
        self.head = nn.Linear(width, 3)

    def forward(self, x):
        return self.head(self.blocks(self.embed(x)))


def test_another_architecture_of_one_class_is_refused():
    with pytest.raises(ValueError, match=r"blocks.*\.up\.weight has the axes .*another architect"):
        ligo.pair(Net(), Net(16, gated=True), torch.randn(4, FEATURES))


class Images(Plain):
    """A vision transformer on images that are made of the features."""

    def __init__(self):
        super().__init__()
        self.network = VisionTransformer(**SIZES, embed_dim=16, depth=1, num_heads=1)

    def loss(self, batch):
        images = F.pad(batch[0], (0, 16 - FEATURES)).view(-1, 1, 4, 4)
        logits = self.network(images)
        return logits, F.cross_entropy(logits, batch[1])


def gated() -> nn.Module:
    return VisionTransformer(**SIZES, embed_dim=32, depth=2, num_heads=2, **GATED)


SIZES = {"img_size": 4, "patch_size": 2, "in_chans": 1, "num_classes": 3}


def test_a_run_grows_into_it_and_trains_all_of_it(tmp_path):
    module = Images()
    callback = GrowthCallback([Growth(describe(gated), epoch=1)], method="lemon")
    with pytest.warns(UserWarning, match="promises to keep the function, and it changes by"):
        fit(module, tmp_path, callback, epochs=3)
    _, loss = module.loss(next(iter(train_loader())))
    loss.backward()
    trained = dict(module.network.named_parameters())
    assert trained["blocks.1.mlp.fc1.weight"].shape == (128, 32)
    assert all(bool(weight.grad.any()) for weight in trained.values())
    assert bool(trained["blocks.1.mlp.fc2.weight"].any())  # it began at zero
