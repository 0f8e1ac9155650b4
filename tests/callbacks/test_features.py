"""Steps read features whose length grows, and compute with parameters of the network themselves.

The oracle is the module: what it computes is the same just before a growth by ``lemon`` and after.
"""

import pytest
import torch
from lightning.pytorch.utilities.model_helpers import is_overridden
from test_watched import Module, Probe, X
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader

from lightning_ligo import Growth, GrowthCallback, describe
from runs import CLASSES, FEATURES, items, train_loader, trainer


class Features(nn.Module):
    """Returns its features in front of the logits."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(FEATURES, width), nn.GELU(), nn.Linear(width, width))
        self.head = nn.Linear(width, CLASSES)
        self.token, self.scale = nn.Parameter(torch.randn(width)), nn.Parameter(torch.tensor(0.5))
        self.gate = nn.Parameter(torch.randn(width, CLASSES))
        self.register_buffer("centers", torch.randn(CLASSES, width))

    def forward(self, x):
        features = self.encoder(x) * self.token
        return features, self.head(features) + features @ self.gate * self.scale


class Penalty(Module):
    """Adds a penalty of the features to the loss of the logits."""

    def training_step(self, batch, batch_idx):
        features, logits = self.network(batch[0])
        return F.cross_entropy(logits, batch[1]) + 0.01 * features.square().mean()

    def seen(self):
        return self.network(X)[1]


class Neighbors(Penalty):
    """Collects features for a metric of the validation."""

    def on_validation_epoch_start(self):
        self.found = []

    def validation_step(self, batch, batch_idx):
        self.found.append(self.network.encoder(batch[0]))

    def on_validation_epoch_end(self):
        self.log("distance", torch.pdist(torch.cat(self.found)).mean())


class Centers(Penalty):
    """Moves the network's centers of classes towards the features."""

    def training_step(self, batch, batch_idx):
        features = self.network.encoder(batch[0])
        with torch.no_grad():
            for label in batch[1].unique():
                mean = features[batch[1] == label].mean(0)
                self.network.centers[label].lerp_(mean, 0.1)
        loss = F.cross_entropy(self.network(batch[0])[1], batch[1])
        return loss - 0.01 * torch.cdist(features, self.network.centers.clone()).mean()


class InTheStep(Penalty):
    """Has its forward in the step."""

    def logits(self, x):
        features = self.network.encoder(x) * self.network.token
        return self.network.head(features) + features @ self.network.gate * self.network.scale

    def training_step(self, batch, batch_idx):
        weights = sum(p.square().sum() for p in self.network.parameters())
        return F.cross_entropy(self.logits(batch[0]), batch[1]) + 1e-4 * weights

    def validation_step(self, batch, batch_idx):
        self.log("val_loss", F.cross_entropy(self.logits(batch[0]), batch[1]))

    def seen(self):
        return self.logits(X)


class Tied(Penalty):
    """Decodes by the weights of its encoder."""

    def decoded(self, x):
        first, *rest = self.network.encoder
        hidden = first(x)
        for layer in rest:
            hidden = layer(hidden)
        return F.linear(hidden, first.weight.T)

    def training_step(self, batch, batch_idx):
        return F.mse_loss(self.decoded(batch[0]), batch[0]) + super().training_step(batch, 0)

    def seen(self):
        return torch.cat([self.decoded(X), self.network(X)[1]], 1)


class InTheStepOfTheModule(InTheStep):
    """Is the network itself, and grows by its hyperparameters."""

    def __init__(self, width: int = 8) -> None:
        super().__init__(Features(width))
        self.save_hyperparameters()
        self.enter = nn.Linear(FEATURES, width)
        self.shift = nn.Parameter(torch.randn(width))

    def logits(self, x):
        return super().logits(x) + self.network.head(self.enter(x) + self.shift)


def fit(folder, module, callback, step=9):
    before, after = Probe(step), Probe(step)
    run = trainer(folder, before, callback, after, epochs=3)
    validates = is_overridden("validation_step", module)
    valid = DataLoader(items(1), 16) if validates else None
    run.fit(module, train_loader(shuffle=False), valid)
    assert (before.width, after.width) == (8, 16)
    return float((after.value - before.value).abs().max())


@pytest.mark.parametrize("kind", [Penalty, Neighbors, Centers, InTheStep])
def test_what_the_step_computes_is_kept(tmp_path, kind):
    torch.manual_seed(0)
    growth = GrowthCallback([Growth(describe(Features, width=16), step=9)], method="lemon")
    assert fit(tmp_path, kind(Features()), growth) < 1e-5


def test_what_a_module_computes_with_its_own_parameters_is_kept(tmp_path):
    torch.manual_seed(0)
    growth = GrowthCallback([Growth(hparams={"width": 16}, step=9)], method="lemon")
    assert fit(tmp_path, InTheStepOfTheModule(), growth) < 1e-5


@pytest.mark.filterwarnings("ignore:.*promises to keep the function:UserWarning")
def test_a_weight_that_the_step_uses_once_more_is_measured(tmp_path):
    torch.manual_seed(0)
    to = [Growth(describe(Features, width=16), step=9)]
    growth = GrowthCallback(to, method="lemon")
    change = fit(tmp_path, Tied(Features()), growth)
    assert growth._records[0].change.kept == (change < 1e-4)


def test_a_tensor_of_a_length_of_the_small_network_is_refused_at_the_start(tmp_path):
    class Noised(Penalty):
        def training_step(self, batch, batch_idx):
            features = self.network.encoder(batch[0])
            return self.network.head(features + torch.randn(features.shape)).square().mean()

    growth = GrowthCallback([Growth(describe(Features, width=16), step=9)])
    with pytest.raises(ValueError, match=r"make it like another one, as with torch\.randn_like"):
        fit(tmp_path, Noised(Features()), growth)
