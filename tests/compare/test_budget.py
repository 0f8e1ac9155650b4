"""What a budget of FLOPs pays for, by hand."""

import math

import pytest

from lightning_ligo.compare.budget import Costs, cost, passes, steps_within, triggers
from lightning_ligo.schedule import Growth

TO = {"init_args": {"width": 2}}
HALF = [Growth(TO, fraction=0.5)]
FREE = Costs(training=(1, 4), evaluation=(0, 0))


def test_a_run_costs_its_steps_its_operator_and_its_validations():
    costs = Costs(training=(1, 10), evaluation=(100, 1000), operator=50_000)
    # 4 small and 6 large steps; small validated after 3 and 4, large at once, after 6, 9 and 10
    assert passes(10, [4], every=3) == [2, 4]
    assert cost(10, [4], costs, every=3) == 4 * 1 + 6 * 10 + 2 * 100 + 4 * 1000 + 50_000


def test_a_validation_at_the_step_of_a_growth_is_the_one_before_it():
    assert passes(12, [6], every=3) == [2, 3]


def test_growths_in_a_row_are_validated_between():
    assert passes(12, [4, 8], every=5) == [1, 3, 3]


@pytest.mark.parametrize(
    ("budget", "operator", "steps"),
    [(100, 0, 40), (99, 0, 39), (100, 25, 30)],
)
def test_steps_at_a_fraction_share_the_budget(budget, operator, steps):
    """Half of the steps cost 1, half of them 4: 2.5 each; a half step is one of the large."""
    costs = Costs(FREE.training, FREE.evaluation, operator)
    assert steps_within(budget, costs, 10, HALF) == steps


def test_steps_before_a_growth_at_a_step_or_an_epoch_stay():
    assert steps_within(100, FREE, 10, [Growth(TO, step=20)]) == 20 + 80 // 4
    assert steps_within(100, FREE, 10, [Growth(TO, epoch=2)], steps_per_epoch=10) == 20 + 80 // 4


def test_runs_that_do_not_grow_have_the_costs_of_one_size():
    costs = Costs(training=(1, 4), evaluation=(2, 8), operator=10)
    assert steps_within(120, costs.of(0), every=5) == 85
    assert [cost(steps, [], costs.of(0), 5) for steps in (85, 86)] == [85 + 17 * 2, 86 + 18 * 2]
    assert costs.of(1) == Costs((4,), (8,))


def test_a_budget_that_is_too_small_is_refused():
    with pytest.raises(ValueError, match=r"does not pay for a step of training, 4"):
        steps_within(3, FREE.of(1), every=1)
    with pytest.raises(ValueError, match="due at step 200, and the run has only 100 optimizer"):
        steps_within(100, FREE, 10, [Growth(TO, step=200)])


def test_growths_that_never_fit_are_refused_with_their_reason():
    backwards = [Growth(TO, fraction=0.5), Growth(TO, fraction=0.2)]
    with pytest.raises(ValueError, match="in the order"):
        steps_within(100, Costs((1, 1, 1), (0, 0, 0)), 10, backwards)
    with pytest.raises(ValueError, match="unknown number of steps"):
        triggers(100, [Growth(TO, epoch=1)], math.inf)
