import math

import pytest

from lightning_ligo.schedule import Growth, Plateau, Run, Slope, resolve

RUN = Run(steps=100, epochs=10, steps_per_epoch=10)
ENDLESS = Run(steps=math.inf, epochs=math.inf, steps_per_epoch=math.inf)


def grow(**when):
    return Growth(to={}, **when)


@pytest.mark.parametrize(
    ("when", "step"),
    [
        ({"step": 0}, 0),
        ({"step": 99}, 99),
        ({"epoch": 0}, 0),
        ({"epoch": 3}, 30),
        ({"fraction": 0.4}, 40),
        ({"fraction": 0.29}, 29),
        ({"fraction": 0.999}, 99),
    ],
)
def test_a_trigger_is_an_optimizer_step(when, step):
    assert resolve([grow(**when)], RUN) == [step]


def test_a_run_without_end_takes_steps_and_epochs():
    assert resolve([grow(step=7)], ENDLESS) == [7]
    assert resolve([grow(epoch=2)], ENDLESS) == [None]


@pytest.mark.parametrize(
    ("when", "words"),
    [
        ({"plateau": Plateau("loss", patience=5)}, "a plateau of loss (patience 5)"),
        ({"slope": Slope("loss", -0.05)}, "a slope of loss above -0.05"),
        ({"flops": 2e17}, "2e+17 FLOPs"),
        ({"file": "grow.now"}, "the file grow.now"),
    ],
)
def test_what_the_run_decides_has_no_step_and_may_stand_among_steps(when, words):
    decided = grow(**when)
    assert decided.is_decided and decided.when == words
    assert resolve([decided, grow(step=3), grow(fraction=0.4)], RUN) == [None, 3, 40]
    assert resolve([decided], ENDLESS) == [None]


def test_growths_that_are_done_are_not_checked_again():
    assert resolve([grow(step=500), grow(step=60)], RUN, done=1) == [60]


@pytest.mark.parametrize(
    ("when", "message"),
    [
        ({}, "a growth has one trigger, got none; give exactly one of step, epoch, .* flops, file"),
        ({"step": 1, "epoch": 1}, "got step=1, epoch=1; give exactly one"),
        ({"fraction": 0.0}, "fraction must be between 0 and 1, exclusive, got 0.0"),
        ({"fraction": 1.0}, "fraction must be between 0 and 1, exclusive, got 1.0"),
        ({"step": 1, "file": "grow"}, "got step=1, file=grow; give exactly one"),
        ({"flops": 0.0}, "flops must be > 0 and finite, such as 2e17, got 0.0"),
        ({"flops": math.inf}, "flops must be > 0 and finite, such as 2e17, got inf"),
        ({"file": " "}, "file must be a path, got ' '"),
        ({"step": -1}, "step and epoch must be >= 0, got step -1"),
        ({"epoch": -1}, "step and epoch must be >= 0, got epoch -1"),
    ],
)
def test_a_growth_without_one_trigger_is_refused(when, message):
    with pytest.raises(ValueError, match=message):
        grow(**when)


@pytest.mark.parametrize(
    ("growths", "run", "message"),
    [
        ([grow(step=100)], RUN, "growth 1 is due at step 100, and the run has only 100 optimizer"),
        ([grow(epoch=10)], RUN, "growth 1 is due at epoch 10, and the run has only 10 epochs"),
        ([grow(epoch=10)], Run(50, 20, 10), "epoch 10, which is step 100, and the run has only 50"),
        ([grow(fraction=0.5)], ENDLESS, "fraction 0.5 of the run, and this run has no known end"),
        ([grow(step=30), grow(epoch=3)], RUN, r"growth 1 \(step 30\) and growth 2 \(epoch 3\) are"),
        ([grow(step=30), grow(step=20)], RUN, "at step 30, after growth 2 .* in the order"),
        ([grow(step=9), grow(flops=1), grow(step=9)], RUN, "growth 1 .step 9. and growth 3 .step"),
        ([grow(flops=2e9), grow(flops=1e9)], RUN, r"at FLOPs 2e\+09, 1e\+09; give each more"),
        ([grow(flops=1e9), grow(flops=1e9)], RUN, "give each more than the one before"),
        ([grow(step=1), grow(slope=Slope("loss", -1))], RUN, "growth 2 .*; give a slope to growth"),
        (
            [grow(epoch=3), grow(epoch=3)],
            ENDLESS,
            "epochs 3, 3; give each more than the one",
        ),
        (
            [grow(epoch=3), grow(epoch=1)],
            ENDLESS,
            "epochs 3, 1; give each more than the one",
        ),
    ],
)
def test_growths_outside_the_run_or_out_of_order_are_refused(growths, run, message):
    with pytest.raises(ValueError, match=message):
        resolve(growths, run)
