import pytest

from lightning_ligo.schedule import Rate


def test_the_schedule_s_rate_is_the_default():
    rate = Rate()
    assert (rate.factor, rate.steps, rate.of_new(0)) == (1, 0, 1)
    assert str(rate) == "the schedule's"


def test_new_entries_rise_from_zero_to_the_rate_of_all_others():
    rate = Rate(rewarm=4)
    assert rate.steps == 4
    assert [rate.of_new(step) for step in range(5)] == [0.25, 0.5, 0.75, 1, 1]


def test_a_peak_is_reached_after_the_steps_of_the_re_warming_and_left_in_as_many():
    rate = Rate(rewarm=250, peak=1.3)
    shares = [rate.of_new(step) for step in range(600)]
    assert shares.index(max(shares)) == 249 and max(shares) == 1.3
    assert shares[498] > shares[499] == 1 == shares[599]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"factor": 0.0}, "must be > 0 .* got factor=0.0, rewarm=0, peak=1.0"),
        ({"rewarm": -1}, "factor and peak must be > 0 and rewarm >= 0, .* rewarm=-1, peak=1.0"),
        ({"peak": 1.3}, "peak=1.3 needs rewarm > 0, got rewarm=0"),
    ],
)
def test_a_rate_that_is_none_is_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        Rate(**settings)
