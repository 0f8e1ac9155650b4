"""Runs of networks whose layers have their numbers inside of names: a growth in their middle."""

import pytest
import torch
from lightning.pytorch import Callback, LightningModule
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset
from torchvision.models import DenseNet, VisionTransformer

from lightning_ligo import Growth, GrowthCallback, describe
from runs import trainer

STEP = 4
VIT = {"image_size": 8, "patch_size": 4, "num_heads": 2, "num_classes": 3}


class Words(nn.Module):
    def __init__(self, width=8, depth=2):
        super().__init__()
        self.rnn = nn.LSTM(6, width, depth, batch_first=True)
        self.head = nn.Linear(width, 3)

    def forward(self, x):
        return self.head(self.rnn(x)[0][:, -1])


class Module(LightningModule):
    def __init__(self, network):
        super().__init__()
        self.network = network

    def training_step(self, batch, batch_idx):
        x, y = batch
        return F.cross_entropy(self.network(x), y)

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=1e-3)


class Moments(Callback):
    """Adam's moments and the weights by name, before the growth and at the first step after it."""

    def keep(self, module):
        state = module.trainer.optimizers[0].state
        return {name: (p.detach().clone(), state[p]["exp_avg"].clone(), state[p]["step"].clone())
                for name, p in module.network.named_parameters() if state[p]}  # fmt: skip

    def on_train_batch_end(self, trainer, module, *_):
        if trainer.global_step == STEP:
            self.before = self.keep(module)

    def on_before_optimizer_step(self, trainer, module, optimizer):
        if trainer.global_step == STEP:
            self.after = self.keep(module)


def grown(folder, network, large, x, method="stack"):
    torch.manual_seed(0)
    data = TensorDataset(x, (x.flatten(1)[:, 0] > 0).long())
    module, moments = Module(network), Moments()
    growing = GrowthCallback([Growth(large, step=STEP)], method=method)
    run = trainer(folder, growing, moments, max_steps=10)
    run.fit(module, DataLoader(data, 8))
    assert run.global_step == 10
    assert {p for g in run.optimizers[0].param_groups for p in g["params"]} == {
        *module.network.parameters()
    }
    return module, moments


@pytest.mark.parametrize("name", ["vit", "lstm"])
def test_a_run_grows_its_layers_and_carries_their_moments(tmp_path, name):
    if name == "vit":
        small = VisionTransformer(num_layers=2, hidden_dim=8, mlp_dim=16, **VIT)
        large = describe(VisionTransformer, num_layers=4, hidden_dim=8, mlp_dim=16, **VIT)
        x, start, sources = torch.randn(32, 3, 8, 8), "encoder.layers.encoder_layer_", [0, 1, 0, 1]
    else:
        small, large = Words(), describe(Words, width=8, depth=4)
        x, start, sources = torch.randn(32, 5, 6), "rnn.weight_hh_l", [0, 1, 1, 1]
    module, moments = grown(tmp_path, small, large, x)
    assert moments.after.keys() == {name for name, _ in module.network.named_parameters()}
    for name, (weight, moment, step) in moments.after.items():
        source = name
        if name.startswith(start):
            number = name[len(start)]
            source = f"{start}{sources[int(number)]}{name[len(start) + 1 :]}"
        elif name not in moments.before:  # the other parameters of recurrent layers
            source = f"{name[:-1]}1"
        before = moments.before[source]
        assert torch.equal(weight, before[0]) and step == before[2]
        torch.testing.assert_close(moment, before[1])


def test_a_run_adds_layers_whose_outputs_are_joined(tmp_path):
    sizes = {"growth_rate": 4, "num_init_features": 8, "bn_size": 2, "num_classes": 3}
    small = DenseNet(block_config=(2, 2), **sizes)
    large = describe(DenseNet, block_config=(2, 4), **sizes)
    module, moments = grown(tmp_path, small, large, torch.randn(32, 3, 16, 16), "lemon")
    name = "classifier.weight"
    width = moments.before[name][0].shape[1]
    for before, after in zip(moments.before[name][:2], moments.after[name][:2], strict=True):
        torch.testing.assert_close(after[:, :width], before)
        assert not after[:, width:].any()
    assert module.network.classifier.weight[:, width:].abs().max() > 0
