"""What a run's validations decide, against Lightning's EarlyStopping and a scaling law."""

import math
import random

import pytest
import torch
from lightning.pytorch.callbacks import EarlyStopping

from lightning_ligo.schedule import Plateau, Slope, Validation


def first(rule, validations):
    """After how many validations it is time to grow."""
    counts = range(1, len(validations) + 1)
    return next((count for count in counts if rule.verdict(validations[:count]).due), None)


@pytest.mark.parametrize("mode", ["min", "max"])
@pytest.mark.parametrize("patience", [1, 2, 4])
@pytest.mark.parametrize("min_delta", [0.0, 0.25])
def test_a_plateau_is_where_early_stopping_stops(mode, patience, min_delta):
    found = set()
    for seed in range(30):
        draw = random.Random(seed)
        values = [draw.randrange(32) / 8 for _ in range(12)]  # exact, as are their differences
        values[draw.randrange(12)] = math.nan
        stopping = EarlyStopping(
            "loss", mode=mode, patience=patience, min_delta=min_delta, check_finite=False
        )
        stops = [stopping._evaluate_stopping_criteria(torch.tensor(value))[0] for value in values]
        expected = stops.index(True) + 1 if True in stops else None
        rule = Plateau("loss", patience, min_delta, mode)
        assert first(rule, [Validation(value, 0) for value in values]) == expected
        found.add(expected)
    assert len(found) > 1


def test_a_plateau_says_what_it_waits_for():
    seen = [Validation(value, 0) for value in (0.5, 0.75, 0.7)]
    rule = Plateau("val_acc", patience=2, min_delta=0.1, mode="max")
    assert rule.verdict(seen) == (
        False, "val_acc has not been above 0.75 by more than 0.1 for 1 of 2 validations",
    )  # fmt: skip
    assert rule.verdict([]) == (False, "no validation has logged val_acc")


def scaling_law(parameters, steps):
    """Loss of a language model at the critical batch size (Kaplan et al., 2020, equation 1.6)."""
    converged, learned = (8.8e13 / parameters) ** 0.076, (2 * 2.1e3 / steps) ** 0.76
    return converged + learned, learned


@pytest.mark.parametrize("threshold", [-0.0475, -0.0575])
@pytest.mark.parametrize("parameters", [2e7, 8.5e7, 6.8e8])
def test_a_slope_is_that_of_the_scaling_law(threshold, parameters):
    """With batches of one size C ~ S, so that d log L / d log C = S L' / L, in closed form."""
    every = 50
    at = range(every, 200_000, every)
    curve = [
        Validation(scaling_law(parameters, steps)[0], 6 * parameters * 5e5 * steps) for steps in at
    ]

    def slope(steps):
        loss, learned = scaling_law(parameters, steps)
        return -0.76 * learned / loss

    crossing = next(steps for steps in at if slope(steps) > threshold)
    rule, low, high = Slope("val_loss", threshold), 1, len(curve)
    while low < high:  # once it is time, it stays
        middle = (low + high) // 2
        low, high = (low, middle) if rule.verdict(curve[:middle]).due else (middle + 1, high)
    chord = 5 * every  # the slope of a chord is that of a point within it
    assert crossing <= at[low - 1] <= crossing + chord
    why = rule.verdict(curve[:low]).why
    assert float(why.split("slope of ")[1].split()[0]) == pytest.approx(threshold, rel=0.01)


def test_a_slope_must_have_been_steep_before_it_is_flat():
    warm_up = [(8.0, 1), (7.9, 2), (7.8, 4)]
    falls = [(4.0, 8), (2.0, 16), (1.9, 32)]
    rule = Slope("loss", -0.5, window=1)
    assert first(rule, [Validation(*point) for point in warm_up]) is None
    assert first(rule, [Validation(*point) for point in warm_up + falls]) == 6
    assert rule.verdict([Validation(*point) for point in warm_up]).why == (
        "loss falls with a slope of -0.0184 over training FLOPs, against -0.5, and has never "
        "fallen so fast"
    )


def test_neither_base_nor_unit_nor_what_has_no_logarithm_changes_a_slope():
    points = [(8.0, 1), (4.0, 2), (3.9, 4), (3.8, 8)]
    rule = Slope("loss", -0.5, window=1)
    scaled = [Validation(loss / math.log(2), 1e15 * flops) for loss, flops in points]
    holes = [
        *scaled[:2],
        Validation(0.0, 2.5e15),
        Validation(math.nan, 3e15),
        Validation(math.inf, 3.5e15),
    ]
    assert [first(rule, seen) for seen in ([Validation(*p) for p in points], scaled)] == [3, 3]
    assert first(rule, [*holes, *scaled[2:]]) == 6
    assert rule.verdict(holes[:1]).why == "there were 1 of 2 validations for a slope of loss"
    assert not rule.verdict([scaled[0], scaled[0]]).due


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        (
            lambda: Plateau("loss", patience=0),
            "patience must be >= 1 .* got patience=0",
        ),
        (lambda: Plateau("loss", min_delta=-0.1), "min_delta >= 0, got .* min_delta=-0.1"),
        (
            lambda: Plateau("loss", min_delta=math.nan),
            "min_delta >= 0, got .* min_delta=nan",
        ),
        (lambda: Plateau("loss", mode="low"), "mode must be 'min' or 'max', got mode='low'"),
        (
            lambda: Slope("loss", 0.1),
            "threshold must be < 0, such as -0.0475, .* threshold=0.1",
        ),
        (lambda: Slope("loss", math.nan), "threshold must be < 0, .* got threshold=nan"),
        (lambda: Slope("loss", -0.05, window=0), "window >= 1, got threshold=-0.05, window=0"),
    ],
)
def test_a_rule_that_decides_nothing_is_refused(rule, message):
    with pytest.raises(ValueError, match=message):
        rule()
