"""Savings on frontiers whose answer is known in closed form."""

import pytest

from lightning_ligo.compare.budget import Saving, frontier, saving


def law(flops):
    """A power law, which is a line between logarithms."""
    return 3.0 * flops**-0.25


SCRATCH = [(flops, law(flops)) for flops in (1e9, 2e9, 4e9)]


@pytest.mark.parametrize("needed", [1e9, 1.3e9, 2e9, 3.7e9, 4e9])
def test_a_saving_is_exact_on_a_power_law(needed):
    assert saving(1e9, law(needed), SCRATCH).share == pytest.approx(1 - 1e9 / needed)
    assert saving(1e9, law(needed), SCRATCH).bound == ""


def test_more_than_scratch_needs_is_a_loss():
    assert saving(3e9, law(1.5e9), SCRATCH).share == pytest.approx(-1)


def test_beyond_the_frontier_there_is_a_bound_and_no_guess():
    assert saving(2e9, law(8e9), SCRATCH) == Saving(0.5, ">")
    assert saving(2e9, law(0.5e9), SCRATCH) == Saving(-1.0, "<")


def test_a_run_from_scratch_that_a_cheaper_one_beats_is_not_on_the_frontier():
    runs = [*SCRATCH, (3e9, law(1e9)), (8e9, law(2e9))]
    assert frontier(reversed(runs)) == SCRATCH
    assert saving(1e9, law(3e9), runs).share == pytest.approx(1 - 1 / 3)


def test_a_loss_without_a_logarithm_is_refused():
    with pytest.raises(ValueError, match="monitor a loss, which is above 0"):
        saving(1e9, 0.0, SCRATCH)
