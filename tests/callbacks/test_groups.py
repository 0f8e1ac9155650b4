"""What a run does by groups of parameters, and to all gradients, goes on in the large network."""

import pytest
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.plugins import MixedPrecision

from lightning_ligo import Growth, GrowthCallback
from runs import LARGE, Net, Plain, fit

DECAY = 0.5


class Layerwise(Plain):
    """The learning rate decays from layer to layer, away from the head; biases do not decay."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.network = Net(depth=2)

    def configure_optimizers(self):
        groups = {}
        for name, weight in self.named_parameters():
            key = layer_of(name, depth=2), weight.ndim > 1
            groups.setdefault(key, []).append(weight)
        return torch.optim.AdamW([
            {"params": weights, "lr": 1e-2 * DECAY ** (3 - layer), "weight_decay": 0.1 * decays}
            for (layer, decays), weights in groups.items()
        ])  # fmt: skip


def layer_of(name, depth):
    """0 for what is before the blocks, and `depth` + 1 for what is behind them."""
    if name.startswith("network.blocks."):
        return int(name.split(".")[2]) + 1
    return 0 if "embed" in name or "stem" in name else depth + 1


@pytest.mark.parametrize(
    ("method", "comes_from"), [("stack+lemon", [0, 1, 0, 1]), ("interpolate+lemon", [0, 0, 1, 1])]
)
def test_a_layer_has_the_rate_and_the_decay_of_the_layer_it_comes_from(
    tmp_path, method, comes_from
):
    module = Layerwise()
    run = fit(module, tmp_path, GrowthCallback([Growth(LARGE, step=8)], method=method))
    found = {
        weight: (group["lr"], group["weight_decay"])
        for group in run.optimizers[0].param_groups
        for weight in group["params"]
    }
    for name, weight in module.named_parameters():
        layer = layer_of(name, depth=4)
        small = comes_from[layer - 1] + 1 if 0 < layer < 5 else min(layer, 3)
        assert found[weight] == (1e-2 * DECAY ** (3 - small), 0.1 * (weight.ndim > 1)), name


class Stepped(Callback):
    """The gradients that the optimizer has stepped with, by the width of the network."""

    def __init__(self):
        self.gradients = {}

    def on_train_start(self, trainer, pl_module):
        def see(optimizer, *_):
            every = [p.grad.flatten() for group in optimizer.param_groups for p in group["params"]]
            width = pl_module.network.head.in_features
            self.gradients.setdefault(width, []).append(torch.cat(every))

        trainer.optimizers[0].register_step_post_hook(see)


def scaled():
    """As precision="16-mixed" on a GPU; the scale of the loss is doubled after every 4th step."""
    scaler = torch.amp.GradScaler("cpu", init_scale=256.0, growth_interval=4)
    return {"plugins": [MixedPrecision("16-mixed", "cpu", scaler)]}


@pytest.mark.parametrize("precision", [dict, scaled], ids=["32-true", "16-mixed"])
@pytest.mark.parametrize(
    ("algorithm", "size"), [("norm", torch.Tensor.norm), ("value", lambda x: x.abs().max())]
)
def test_all_gradients_of_the_large_network_are_clipped(tmp_path, algorithm, size, precision):
    stepped, module = Stepped(), Layerwise()
    growing = GrowthCallback([Growth(LARGE, step=8)], method="lemon")
    clip = {"gradient_clip_val": 1e-3, "gradient_clip_algorithm": algorithm}
    fit(module, tmp_path, growing, stepped, **clip, **precision())
    assert [len(every) for every in stepped.gradients.values()] == [8, 10]
    assert stepped.gradients[24][0].numel() == sum(p.numel() for p in module.parameters())
    for every in stepped.gradients.values():  # all are larger where they are not clipped
        assert list(map(size, every)) == pytest.approx([1e-3] * len(every), rel=1e-2)
        assert max(map(size, every)) <= 1e-3 * (1 + 1e-5)
