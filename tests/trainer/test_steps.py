"""The calls that are recorded while a step runs, and what is left as it was."""

import warnings

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from lightning_ligo.axes.calls import Result, make
from lightning_ligo.trainer.watch import Recorder

X = torch.randn(4, 6, generator=torch.Generator().manual_seed(0))


class Net(nn.Module):
    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(6, width), nn.BatchNorm1d(width), nn.ReLU())
        self.head, self.aux = nn.Linear(width, 3), nn.Linear(width, 3)

    def forward(self, x, aux=False):
        x = self.body(x)
        return (self.head(x), self.aux(x)) if aux and self.training else self.head(x)

    def encode(self, x):
        return self.body(x)

    def width(self):
        return self.head.in_features


def recorded(network, step):
    recorder = Recorder(network)
    with recorder.recording():
        step(network)
    seen = recorder.settled()
    return [each.call for each in seen], set().union(*(each.parameters for each in seen))


def test_parts_within_a_call_and_repeated_calls_are_not_recorded():
    calls, used = recorded(Net(), lambda net: [net(X), net(X + 1), net(X[:2])])
    assert [(call.path, call.method) for call in calls] == [("", "__call__")]
    assert torch.equal(calls[0].args[0], X)
    assert used == {"body.0.weight", "body.0.bias", "body.1.weight", "body.1.bias"} | {
        "head.weight", "head.bias",
    }  # fmt: skip


def test_a_call_is_made_in_evaluation_mode_unless_that_uses_less():
    (call,), _ = recorded(Net(), lambda net: net(X))
    assert not call.training
    (call,), used = recorded(Net(), lambda net: net(X, aux=True))
    assert call.training and "aux.weight" in used


def test_what_a_call_returned_and_the_functions_between_are_made_again():
    network = Net().eval()

    def step(net):
        return net.head(F.relu(net.encode(X) - 0.5)[:, :])

    calls, _ = recorded(network, step)
    assert [call.method if isinstance(call.method, str) else "a function" for call in calls] == [
        "encode", "a function", "a function", "a function", "__call__",
    ]  # fmt: skip
    assert calls[-1].args == (Result(3, 0),)
    other = Net(12).eval()  # of another width
    torch.testing.assert_close(make(other, calls)[-1][0], step(other))


def test_functions_that_lead_to_no_call_are_left_out():
    calls, _ = recorded(
        Net(), lambda net: F.cross_entropy(net(X) * 2, torch.arange(4) % 3).backward()
    )
    assert len(calls) == 1


def test_methods_that_compute_nothing_are_left_out_and_all_is_put_back():
    network = Net()
    attributes = {name: set(vars(part)) for name, part in network.named_modules()}
    hooks = [len(part._forward_hooks) + len(part._forward_pre_hooks) for part in network.modules()]
    calls, _ = recorded(network, lambda net: net.encode(X[:, : net.width() - 2]))
    assert [call.method for call in calls] == ["encode"]
    assert {name: set(vars(part)) for name, part in network.named_modules()} == attributes
    assert hooks == [
        len(part._forward_hooks) + len(part._forward_pre_hooks) for part in network.modules()
    ]


def test_a_failing_step_leaves_the_network_as_it_was():
    network = Net()
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        recorded(network, lambda net: net(X[:, :5]))
    assert "forward" not in vars(network)


def test_scripted_parts_count_as_used():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it is deprecated
        network = nn.Sequential(torch.jit.script(nn.Linear(6, 8)), nn.Linear(8, 3))
    assert recorded(network, lambda net: net(X))[1] == {
        name for name, _ in network.named_parameters()
    }
