"""What a run does by groups of parameters, and to all gradients, goes on in the large network."""

import pytest
import torch
from lightning.pytorch.callbacks import Callback

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


@pytest.mark.parametrize("algorithm", ["norm", "value"])
def test_all_gradients_of_the_large_network_are_clipped(tmp_path, algorithm):
    class Clipped(Callback):
        """The gradients that the optimizer was given, by the width of the network."""

        def __init__(self):
            self.sizes = {}

        def on_train_batch_end(self, trainer, pl_module, *_):
            gradients = torch.cat([p.grad.flatten() for p in pl_module.parameters()])
            size = gradients.norm() if algorithm == "norm" else gradients.abs().max()
            self.sizes.setdefault(pl_module.network.head.in_features, []).append(size.item())

    clipped = Clipped()
    growing = GrowthCallback([Growth(LARGE, step=8)], method="lemon")
    clip = {"gradient_clip_val": 1e-3, "gradient_clip_algorithm": algorithm}
    fit(Layerwise(), tmp_path, growing, clipped, **clip)
    assert [len(sizes) for sizes in clipped.sizes.values()] == [8, 10]
    for sizes in clipped.sizes.values():  # all are larger where they are not clipped
        assert sizes == pytest.approx([1e-3] * len(sizes), rel=1e-2)
