import pytest
import torch
from lightning.pytorch import Callback
from torch import nn

import lightning_ligo.flops
from lightning_ligo.callbacks import GrowthCallback
from lightning_ligo.flops import StepFlops, flop_counter, kind_of
from lightning_ligo.schedule import Growth
from runs import FEATURES, LARGE, Plain, fit, plain


def of_net(width: int, depth: int, batch: int = 8) -> int:
    """A product of (a x b) and (b x c) is 2abc; backward has two, for weights and for inputs.

    The input of the network needs its gradient, as a stem with weights is before it.
    """
    weights = FEATURES * width + depth * 4 * width * width + width * 3
    return 3 * 2 * batch * weights


def train(counter: StepFlops, network: nn.Module, batch: torch.Tensor, size: int = 0) -> None:
    counter.start(batch, size)
    network(batch).sum().backward()
    counter.stop()


def test_a_step_is_counted_forward_and_backward_and_known_afterwards():
    counter, network = StepFlops(), nn.Linear(4, 5)
    one = 2 * (2 * 8 * 4 * 5)  # forward, and backward to the weights
    for count in range(1, 4):
        train(counter, network, torch.ones(8, 4))
        assert counter.totals == [count * one]
    train(counter, network, torch.ones(16, 4))
    assert counter.totals == [5 * one]
    train(counter, network, torch.ones(8, 4), size=1)
    assert counter.totals == [5 * one, one]


def test_batches_of_ever_new_kinds_are_taken_as_the_average(monkeypatch):
    monkeypatch.setattr(lightning_ligo.flops, "MOST", 2)
    counter, network = StepFlops(), nn.Linear(4, 5)
    for length in (8, 16, 100):
        train(counter, network, torch.ones(length, 4))
    assert counter.totals == [2 * 2 * 4 * 5 * (8 + 16 + 12)]


@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_attention_is_counted_whichever_way_it_runs(dropout):
    heads = torch.ones(2, 3, 7, 8, requires_grad=True)
    product = 2 * (2 * 3 * 7 * 7 * 8)
    with flop_counter() as count:
        out = nn.functional.scaled_dot_product_attention(heads, heads, heads, dropout_p=dropout)
    assert count.get_total_flops() == 2 * product
    with flop_counter() as count:
        out.sum().backward()
    again = 0 if dropout else 1  # one operation does not keep the products of its forward
    assert count.get_total_flops() == (4 + again) * product


def test_a_step_that_fails_is_not_counted_and_the_next_one_is():
    counter, network = StepFlops(), nn.Linear(4, 5)
    counter.start(torch.ones(8, 4), 0)
    network(torch.ones(8, 4))
    counter.abort()
    counter.stop()
    train(counter, network, torch.ones(8, 4))
    assert counter.totals == [2 * (2 * 8 * 4 * 5)]


def test_counts_survive_as_plain_types():
    first, second = StepFlops(), StepFlops()
    train(first, nn.Linear(4, 5), torch.ones(8, 4))
    second.load_state_dict(first.state_dict())
    train(second, nn.Linear(4, 5), torch.ones(8, 4))
    assert second.totals == [2 * first.totals[0]]


def test_the_kind_of_a_batch_is_its_structure_with_shapes_and_dtypes():
    x = torch.zeros(2, 3)
    kinds = [x, x.double(), x.T, [x], (x,), {"x": x}, {"y": x}, [x, "a"], [x, x], (x, {"z": None})]
    assert len({kind_of(kind) for kind in kinds}) == len(kinds)
    assert kind_of({"x": x, "n": ["a", 1]}) == kind_of({"x": x + 1, "n": ["b", 2]})


class Keep(Callback):
    def on_train_end(self, trainer, pl_module):
        self.growth = next(c for c in trainer.callbacks if isinstance(c, GrowthCallback))
        self.totals = list(self.growth.spending.training.totals)
        self.operator = [record["flops"]["operator"] for record in self.growth._records]


@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_run_counts_what_every_size_was_trained_for(tmp_path, accumulate):
    keep, growth = Keep(), GrowthCallback([Growth(LARGE, epoch=1)], method="lemon")
    fit(plain(), tmp_path, growth, keep, accumulate_grad_batches=accumulate)
    assert keep.totals == [6 * of_net(8, 1), 12 * of_net(24, 4)]
    assert keep.operator == [0]


def test_the_operator_costs_a_step_of_the_large_network_and_the_growing(tmp_path):
    keep, growth = Keep(), GrowthCallback([Growth(LARGE, step=8)], steps=5)
    fit(plain(), tmp_path, growth, keep)
    (operator,) = keep.operator
    assert operator % 5 == 0
    assert operator > 5 * of_net(24, 4)


def test_counting_changes_no_bit_of_the_training(tmp_path, monkeypatch):
    first, second = plain(), plain()
    fit(first, tmp_path, GrowthCallback([Growth(LARGE, step=8)], method="lemon"))
    monkeypatch.setattr(StepFlops, "start", lambda *_: None)
    fit(second, tmp_path, GrowthCallback([Growth(LARGE, step=8)], method="lemon"))
    for one, other in zip(first.parameters(), second.parameters(), strict=True):
        assert torch.equal(one, other)


def test_a_step_that_fails_in_a_run_leaves_no_counter_behind(tmp_path):
    class Breaks(Plain):
        def on_before_zero_grad(self, optimizer):
            raise RuntimeError("on purpose")

    with pytest.raises(RuntimeError, match="on purpose"):
        fit(Breaks(), tmp_path, GrowthCallback([Growth(LARGE, step=8)]))
    assert torch.utils._python_dispatch._get_current_dispatch_mode() is None
