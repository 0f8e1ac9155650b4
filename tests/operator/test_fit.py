import math
from itertools import repeat

import pytest
import torch

import lightning_ligo as ligo
from networks import IMAGES, TOKENS, gpt2, randomised, resnet


def loss(network, batch):
    return network(**batch, labels=batch["input_ids"]).loss


@pytest.fixture
def pair():
    torch.manual_seed(0)
    return randomised(gpt2()), gpt2(64, 4).eval()


@pytest.mark.parametrize("method", ["ligo", "ligo-paper"])
def test_learning_lowers_the_loss_below_that_of_the_start(pair, method):
    small, large = pair
    losses = []
    for steps in (0, 20):
        ligo.grow(small, large, method=method, loss=loss, batches=repeat(TOKENS), steps=steps,
                  **TOKENS)  # fmt: skip
        losses.append(loss(large, TOKENS).item())
    assert losses[1] < 0.98 * losses[0]


def test_learning_changes_neither_the_small_nor_the_large_network(pair):
    small, large = pair
    before = [p.detach().clone() for network in pair for p in network.parameters()]
    operator = ligo.Operator(ligo.pair(small, large, **TOKENS), small, "ligo")
    fit = ligo.fit(operator, large, loss, repeat(TOKENS), steps=3, learning_rate=1e-3)
    assert fit.steps == len(fit.losses) == 3
    after = [p for network in pair for p in network.parameters()]
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
    assert all(p.grad is None for p in after)


def test_the_baked_network_has_the_loss_that_was_learned(pair):
    small, large = pair
    operator = ligo.Operator(ligo.pair(small, large, **TOKENS), small, "ligo")
    ligo.fit(operator, large, loss, repeat(TOKENS), steps=3, learning_rate=1e-3)
    learned = ligo.fit(operator, large, loss, repeat(TOKENS), steps=1, learning_rate=0.0)
    operator.bake(large)
    torch.testing.assert_close(loss(large, TOKENS).item(), learned.losses[0])


def test_every_step_is_reported(pair):
    small, large = pair
    operator = ligo.Operator(ligo.pair(small, large, **TOKENS), small, "ligo")
    seen = []
    fit = ligo.fit(operator, large, loss, repeat(TOKENS), steps=3, learning_rate=1e-3,
                   on_step=lambda step, value: seen.append((step, value)))  # fmt: skip
    assert seen == list(enumerate(fit.losses, start=1))


def test_a_loss_that_is_not_finite_stops_with_the_step_and_the_rate(pair):
    small, large = pair
    losses = iter([1.0, float("nan")])
    with pytest.raises(FloatingPointError, match=r"nan at step 2 of 5 .*'ligo'.* rate 0\.001"):
        ligo.grow(small, large, method="ligo",
                  loss=lambda network, batch: loss(network, batch) * next(losses),
                  batches=repeat(TOKENS), steps=5, **TOKENS)  # fmt: skip


def test_a_gradient_that_is_not_finite_stops_as_well(pair):
    def infinitely_steep(network, batch):
        value = loss(network, batch)
        return value + torch.sqrt(value - value)

    small, large = pair
    with pytest.raises(FloatingPointError, match=r"gradient's norm is nan at step 1 of 5 of .*use"):
        ligo.grow(
            small,
            large,
            method="ligo",
            loss=infinitely_steep,
            batches=repeat(TOKENS),
            steps=5,
            **TOKENS,
        )


def test_other_processes_are_told_of_an_error(pair):
    def fails(network, batch):
        raise RuntimeError("mine alone")

    small, large = pair
    operator, told = ligo.Operator(ligo.pair(small, large, **TOKENS), small, "ligo"), []
    with pytest.raises(RuntimeError, match="mine alone"):
        ligo.fit(operator, large, fails, repeat(TOKENS), steps=1, learning_rate=1e-3,
                 average=lambda value: told.append(value.item()) or value)  # fmt: skip
    assert len(told) == 1 and math.isnan(told[0])


def test_batches_that_end_are_an_error(pair):
    small, large = pair
    with pytest.raises(ValueError, match="ended after 2 of 5 steps"):
        ligo.grow(small, large, method="ligo", loss=loss, batches=[TOKENS] * 2, steps=5, **TOKENS)


def test_a_learned_method_needs_a_loss(pair):
    small, large = pair
    with pytest.raises(ValueError, match="'ligo' learns its operator for 25 steps and needs"):
        ligo.grow(small, large, method="ligo", **TOKENS)


def test_nothing_to_learn_is_an_error(pair):
    small, large = pair
    operator = ligo.Operator(ligo.pair(small, large, **TOKENS), small, "lemon")
    with pytest.raises(ValueError, match="'lemon' has nothing to learn"):
        ligo.fit(operator, large, loss, repeat(TOKENS), steps=1, learning_rate=1e-3)


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ({"steps": 3}, "steps"),
        (
            {"loss": loss, "batches": [TOKENS], "learning_rate": 1e-3},
            "loss, batches, learning_rate",
        ),
    ],
)
def test_a_method_that_learns_nothing_is_given_nothing_to_learn_from(pair, given, named):
    small, large = pair
    before = [p.detach().clone() for p in large.parameters()]
    with pytest.raises(ValueError, match=f"'lemon' learns nothing, and was given {named}; leave"):
        ligo.grow(small, large, method="lemon", **given, **TOKENS)
    assert all(torch.equal(a, b) for a, b in zip(before, large.parameters(), strict=True))


def test_in_evaluation_mode_learning_starts_at_the_loss_of_the_grown_network():
    def loss(network, batch):
        return network(batch).square().mean()

    images = torch.cat([IMAGES["x"]] * 4)
    small, large = randomised(resnet()), randomised(resnet(16, 4))  # with other statistics
    operator = ligo.Operator(ligo.pair(small, large, images), small, "ligo-low-rank")
    built = {name: buffer.clone() for name, buffer in large.named_buffers()}
    for training in (True, False):
        large.train(training)
        fit = ligo.fit(operator, large, loss, repeat(images), steps=1, learning_rate=1e-12)
        assert all(torch.equal(built[name], buffer) for name, buffer in large.named_buffers())
    operator.bake(large)
    assert fit.losses[0] == pytest.approx(loss(large, images).item(), rel=1e-5)
    assert fit.losses[0] == pytest.approx(loss(small, images).item(), rel=1e-4)
