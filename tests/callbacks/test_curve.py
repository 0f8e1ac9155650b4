"""What runs spend, of both kinds, against products counted by hand."""

import math

import pytest
import torch

from lightning_ligo import GrowthCallback
from lightning_ligo.callbacks.accounting import CurveCallback
from lightning_ligo.schedule import Growth
from runs import ITEMS, LARGE, STEPS_PER_EPOCH, fit, of_net, plain


def validation(width, depth):
    """Forward only, of all validation items at once."""
    return of_net(width, depth, ITEMS) // 3


def test_a_run_that_does_not_grow_is_counted_and_noted(tmp_path):
    noting, module = CurveCallback("val_loss"), plain()
    run = fit(module, tmp_path, noting, epochs=2)
    curve = noting.accounting.curve
    one, valid = STEPS_PER_EPOCH * of_net(8, 1), validation(8, 1)
    assert [point[:1] + point[2:4] for point in curve] == [
        (6, one, valid),
        (12, 2 * one, 2 * valid),
    ]
    assert curve[-1].metric == float(run.callback_metrics["val_loss"])
    assert 0 < curve[0].seconds < curve[1].seconds


def test_the_last_step_is_measured_where_no_validation_is_due(tmp_path):
    noting, module = CurveCallback("val_loss"), plain()
    run = fit(module, tmp_path, noting, epochs=-1, max_steps=8, check_val_every_n_epoch=None,
              val_check_interval=5)  # fmt: skip
    curve = noting.accounting.curve
    assert [point.step for point in curve] == [5, 8]
    assert curve[-1].evaluation == 2 * validation(8, 1)
    (metrics,) = run.validate(module, torch.utils.data.DataLoader(
        run.val_dataloaders.dataset, ITEMS), verbose=False)  # fmt: skip
    assert curve[-1].metric == pytest.approx(metrics["val_loss"], rel=1e-6)
    assert len(noting.accounting.curve) == 2  # a validation of its own is none of the run's


def test_the_validations_of_a_growth_are_counted_for_the_network_that_they_are_of(tmp_path):
    growth = GrowthCallback([Growth(LARGE, step=8)], method="lemon")
    fit(plain(), tmp_path, growth, epochs=2)
    accounting = growth.accounting
    # after step 6 and before the growth; after it and after step 12
    assert accounting.evaluation.totals == [2 * validation(8, 1), 2 * validation(24, 4)]
    assert [point.step for point in accounting.curve] == [6, 8, 8, 12]
    assert accounting.grew_at == [8]
    assert accounting.curve[-1].training == 8 * of_net(8, 1) + 4 * of_net(24, 4)


def test_counting_changes_no_bit_of_a_run_that_does_not_grow(tmp_path):
    watched, free = plain(), plain()
    fit(watched, tmp_path, CurveCallback("val_loss"))
    fit(free, tmp_path)
    for one, other in zip(watched.parameters(), free.parameters(), strict=True):
        assert torch.equal(one, other)


def test_a_resumed_run_goes_on_counting(tmp_path):
    first, second = CurveCallback("val_loss"), CurveCallback("val_loss")
    fit(plain(), tmp_path, first, epochs=1).save_checkpoint(tmp_path / "one.ckpt")
    fit(plain(), tmp_path, second, epochs=2, ckpt_path=tmp_path / "one.ckpt")
    assert second.accounting.training.totals == [2 * STEPS_PER_EPOCH * of_net(8, 1)]
    curve = second.accounting.curve
    assert [point.step for point in curve] == [6, 12]
    assert math.isfinite(curve[1].seconds) and curve[1].seconds > first.accounting.curve[0].seconds
