"""The cyclically annealed rate against its released loop, and what that loop gets wrong."""

import numpy as np
import pytest

from dpq_ref.schedules import CyclicallyAnnealedRate

FINE = {"steps_per_epoch": 20, "half_period": 10, "high": 1e-3, "low": 1e-6, "decay": 0.1}


def rates(epochs, **options):
    schedule = CyclicallyAnnealedRate(**FINE | options)
    return np.array([schedule(step) for step in range(1, epochs * schedule.steps_per_epoch + 1)])


def loop(epochs, steps_per_epoch, half_period, high, low, decay):
    """As released, state and all; the restart compares with a tolerance."""
    peak, t, out = high, 0, []
    for epoch in range(epochs):
        if epoch > 0:
            peak *= decay
        if peak <= low * (1 + 1e-6):
            peak, low = high, high * decay**5
        for _ in range(steps_per_epoch):
            t += 1
            position = t % (2 * half_period)
            bump = (peak - low) / half_period
            rising = position < half_period
            out.append(low + position * bump if rising else peak - (position - half_period) * bump)
    return np.array(out)


@pytest.mark.parametrize("decay", [0.1, 0.2, 0.3, 0.5, 0.6, 0.7, 0.9])
@pytest.mark.parametrize("high", [1e-3, 3e-3, 1e-2])
@pytest.mark.parametrize("power", [1, 3, 5])
@pytest.mark.parametrize(("steps_per_epoch", "half_period"), [(20, 10), (19, 100), (7, 3), (1, 1)])
def test_it_is_the_released_loop(decay, high, power, steps_per_epoch, half_period):
    options = {
        "steps_per_epoch": steps_per_epoch,
        "half_period": half_period,
        "high": high,
        "low": high * decay**power,
        "decay": decay,
    }
    np.testing.assert_allclose(rates(13, **options), loop(13, **options), rtol=1e-9)


@pytest.mark.parametrize(
    ("power", "expected"), [(3, [0, 1, 2, 0, 1, 2, 3, 4, 0]), (5, [0, 1, 2, 3, 4, 0, 1])]
)
def test_peaks_are_geometric_and_restart(power, expected):
    epochs = len(expected)
    peaks = rates(epochs, low=1e-3 * 0.1**power).reshape(epochs, -1).max(axis=1)
    np.testing.assert_allclose(peaks, [1e-3 * 0.1**e for e in expected], rtol=1e-12)


@pytest.mark.parametrize("decay", [0.1, 0.3, 0.6, 0.7])
@pytest.mark.parametrize("high", [1e-3, 3e-3, 1e-2])
def test_restarts_are_on_time_where_comparing_floats_is_late(decay, high):
    schedule = CyclicallyAnnealedRate(1, 1, high=high, low=high * decay**5, decay=decay)
    assert [schedule.bounds(e)[1] == high for e in range(11)] == [e % 5 == 0 for e in range(11)]
    assert schedule.bounds(5)[0] == schedule.bounds(12)[0] == pytest.approx(high * decay**5)


def test_bounds_and_period():
    x = rates(3)
    assert x.max() == 1e-3 and x.min() == pytest.approx(1e-6)
    assert ((x >= 1e-6 - 1e-20) & (x <= 1e-3)).all()
    y = rates(1, steps_per_epoch=60)
    np.testing.assert_array_equal(y[:20], y[20:40])
    assert np.unique(y[:20]).size == 11


def test_decay_one_is_a_triangle_for_ever():
    x = rates(40, decay=1.0)
    up = 1e-6 + (1e-3 - 1e-6) * np.arange(11) / 10
    np.testing.assert_allclose(x, np.tile(np.r_[up[1:], up[:10][::-1]], 40), rtol=1e-12)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"low": 1e-3}, "low"),
        ({"low": 0.0}, "low"),
        ({"high": np.inf}, "high"),
        ({"high": np.nan}, "high"),
        ({"decay": 0.0}, "decay"),
        ({"decay": 1.1}, "decay"),
        ({"half_period": 0}, "half_period"),
        ({"steps_per_epoch": 0}, "steps_per_epoch"),
    ],
)
def test_bad_numbers_are_refused_by_name(options, message):
    with pytest.raises(ValueError, match=message):
        CyclicallyAnnealedRate(**FINE | options)
