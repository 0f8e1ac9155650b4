import pytest
import torch
from lightning.pytorch import Callback
from timm.models import VisionTransformer
from torch import nn
from transformers import BertConfig, BertForMaskedLM, GPT2Config, GPT2LMHeadModel

import lightning_ligo.operator.flops
from lightning_ligo import GrowthCallback
from lightning_ligo.operator.flops import StepFlops, flop_counter, kind_of
from lightning_ligo.schedule import Growth
from runs import LARGE, Plain, fit, of_net, plain


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
    monkeypatch.setattr(lightning_ligo.operator.flops, "MOST", 2)
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
        self.totals = list(self.growth.accounting.training.totals)
        self.operator = [record.flops["operator"] for record in self.growth._records]


@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_run_counts_what_every_size_was_trained_for(tmp_path, accumulate):
    keep, growth = Keep(), GrowthCallback([Growth(LARGE, epoch=1)], method="lemon")
    fit(plain(), tmp_path, growth, keep, accumulate_grad_batches=accumulate)
    assert keep.totals == [6 * of_net(8, 1), 12 * of_net(24, 4)]
    assert keep.operator == [0]


def test_the_operator_costs_a_step_of_the_large_network_and_the_growing(tmp_path):
    keep, growth = Keep(), GrowthCallback([Growth(LARGE, step=8)], method="ligo", steps=5)
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


# Published formulas -------------------------------------------------------------------------------


def of_training(network: nn.Module, inputs: torch.Tensor, loss) -> int:
    """A step of training on the meta device, where nothing is computed, as a run counts it."""
    counter = StepFlops()
    counter.start(inputs, 0)
    loss(network(inputs)).backward()
    counter.stop()
    return counter.totals[0]


def test_a_vit_costs_what_its_formula_says():
    """DeiT-S: per image and layer 24 n d² for the weights and 4 n² d for attention, forward.

    Backward is twice as much, but for the images, which need no gradient. DeiT's 4.6 G products
    forward are published.
    """
    tokens, width, depth, batch = 197, 384, 12, 3
    with torch.device("meta"):
        network = VisionTransformer(embed_dim=width, depth=depth, num_heads=6)
        images = torch.empty(batch, 3, 224, 224)
    weights = depth * 24 * tokens * width**2
    scores = 2 * tokens**2 * width
    patches, head = 2 * 196 * 3 * 16 * 16 * width, 2 * width * 1000
    forward = weights + depth * 2 * scores + patches + head
    assert forward == pytest.approx(2 * 4.6e9, rel=0.01)
    counted = of_training(network, images, lambda out: out.sum())
    assert counted == batch * (3 * forward - patches)


def test_a_gpt2_costs_six_times_its_weights_a_token_and_its_attention():
    """6 N + 12 l d n a token: N weights of matrices, the output's too, l layers, n positions."""
    positions, batch, width, depth = 1024, 2, 768, 12
    with torch.device("meta"):
        network = GPT2LMHeadModel(GPT2Config())
        tokens = torch.zeros(batch, positions, dtype=torch.long)
    weights = depth * 12 * width**2 + width * 50257
    assert weights == pytest.approx(124e6, rel=0.01)
    count = batch * positions
    assert of_training(network, tokens, lambda out: out.logits.sum()) == count * (
        6 * weights + 12 * depth * width * positions
    )


def test_bert_base_costs_what_the_reference_says():
    """400,000 steps of 256 x 128 tokens are 6.03e18 in the paper, to the three digits it gives.

    The reference takes backward for one forward, where it is two, predicts 20 of 128 positions, and
    counts looking up a token as a product with the vocabulary. It counts elementwise operations
    too, which are no products: within layers, where they are less than 0.5 %, they are written out
    below (4 for a dropout, 5 for a norm and a softmax, 8 for GELU). Left out are those outside of
    layers, 0.02 %, hence the tolerance, which is that of three digits.
    """
    steps, batch, positions, predicted = 400_000, 256, 128, 20
    width, depth, heads, vocabulary = 768, 12, 12, 30522
    with torch.device("meta"):
        network = BertForMaskedLM(BertConfig())
        tokens = torch.zeros(1, positions, dtype=torch.long)
        hidden = torch.empty(1, predicted, width)
    with torch.no_grad(), flop_counter() as body:
        network.bert(tokens)
    with torch.no_grad(), flop_counter() as head:
        network.cls(hidden)
    products = body.get_total_flops() + head.get_total_flops()
    lookup = positions * (2 * width * vocabulary + 2 * width * (positions + 2))
    of_scores = 5 + 4 + 1  # softmax, dropout, scaling
    of_width = 9 + 2 * 4 + 2 + 2 * 5 + 4 * 8  # biases, dropouts, residuals, norms, GELU
    elementwise = positions * depth * (of_scores * positions * heads + of_width * width)
    assert elementwise < 0.005 * products
    total = 2 * steps * batch * (products + lookup + elementwise)
    assert total == pytest.approx(6.03e18, abs=0.005e18)
