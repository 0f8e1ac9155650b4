"""Plain copies of networks, and the shapes in checkpoints; on ranks in callbacks/test_ranks.py."""

import copy

import pytest
import torch
from torch import nn

from lightning_ligo.trainer.checkpoint import check_same_shapes
from lightning_ligo.trainer.sharding import blank, gathered
from runs import Plain


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(5, 4)
        self.norm = nn.BatchNorm1d(4)
        self.head = nn.Linear(4, 5)
        self.head.weight = self.embed.weight
        self.register_buffer("scale", torch.ones(1), persistent=False)


def test_a_blank_copy_holds_no_parameters_and_the_network_stays_as_it_is():
    network = Tied()
    before = copy.deepcopy(network.state_dict())
    assert all(p.is_meta for p in blank(network).parameters())
    assert not any(p.is_meta for p in network.parameters())
    for name, tensor in network.state_dict().items():
        assert torch.equal(tensor, before[name]), name


def test_a_plain_copy_has_the_weights_ties_buffers_and_modes_of_the_network_by_now():
    network = Tied()
    form = blank(network)
    with torch.no_grad():
        network.head.bias.fill_(2.0)
        network.norm.running_mean.fill_(3.0)
        network.scale.fill_(4.0)
    network.norm.eval()
    network.head.bias.requires_grad_(False)
    plain = gathered(form, network)
    assert type(plain) is Tied
    assert plain.head.weight is plain.embed.weight
    assert torch.equal(plain.embed.weight, network.embed.weight)
    assert plain.head.bias.tolist() == [2.0] * 5
    assert plain.norm.running_mean.tolist() == [3.0] * 4
    assert plain.scale.item() == 4.0
    assert plain.training and not plain.norm.training
    assert [p.requires_grad for p in (plain.head.bias, plain.head.weight)] == [False, True]
    shared = {id(t) for t in (*network.parameters(), *network.buffers())}
    assert not shared & {id(t) for t in (*plain.parameters(), *plain.buffers())}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"network.head.bias": torch.ones(4)}, r"1 of .* network.head.bias: \(4,\) in .*, \(3,\)"),
        ({"network.more": torch.ones(2)}, r"network.more: \(2,\) in the checkpoint, none in the"),
    ],
)
def test_weights_of_other_shapes_are_refused(change, message):
    module = Plain()
    check_same_shapes(module, {"state_dict": module.state_dict()})
    with pytest.raises(ValueError, match=message):
        check_same_shapes(module, {"state_dict": {**module.state_dict(), **change}})


def test_a_module_that_loads_what_fits_is_let():
    module = Plain()
    module.strict_loading = False
    check_same_shapes(module, {"state_dict": {"network.more": torch.ones(2)}})
