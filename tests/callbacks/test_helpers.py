"""Modules that call their network by what else holds it: an object, a list, a dict, a partial."""

import functools

import pytest
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_ligo import Growth, GrowthCallback
from runs import LARGE, Plain, fit, train_loader


class Helped(Plain):
    """Its steps call what `helper` makes of the network."""

    def __init__(self) -> None:
        super().__init__()
        self.held = self.helper(self.network)

    def loss(self, batch):
        logits = self.call(self.stem(batch[0]))
        return logits, F.cross_entropy(logits, batch[1])


class Sampler:
    """Calls a network, as a helper of a diffusion model does."""

    def __init__(self, network: nn.Module) -> None:
        self.network = network

    def sample(self, x: Tensor) -> Tensor:
        return self.network(x)


class ByObject(Helped):
    helper = staticmethod(Sampler)

    def call(self, x):
        return self.held.sample(x)


class ByList(Helped):
    def helper(self, network):
        return [network]

    def call(self, x):
        return self.held[0](x)


class ByDict(ByList):
    def helper(self, network):
        return {0: network}


class ByPartial(Helped):
    helper = staticmethod(functools.partial)

    def call(self, x):
        return self.held(x)


@pytest.mark.parametrize("kind", [ByObject, ByList, ByDict])
def test_a_helper_calls_the_large_network(tmp_path, kind):
    module = kind()
    fit(module, tmp_path, GrowthCallback([Growth(LARGE, step=8)]))
    assert module.network.embed.out_features == 24
    module.network.zero_grad()
    module.loss(next(iter(train_loader())))[1].backward()
    assert all(parameter.grad is not None for parameter in module.network.parameters())


def test_a_helper_that_cannot_be_given_another_network_is_refused_at_the_start(tmp_path):
    with pytest.raises(ValueError, match="ByPartial holds a part of 'network' in its attribute"):
        fit(ByPartial(), tmp_path, GrowthCallback([Growth(LARGE, step=8)]))
