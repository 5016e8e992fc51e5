import numpy as np
import pytest
from sklearn.base import BaseEstimator

from baselines import KMeansQuantizer, ProductQuantizer
from figures import timing
from figures.timing import timed_fit


class Recorder(BaseEstimator):
    seen = []

    def __init__(self, max_iter=7, steps=9, least=1):
        self.max_iter, self.steps, self.least = max_iter, steps, least

    def fit(self, X, sample_weight=None):
        self.seen.append(
            (self.max_iter, self.steps, len(X), None if sample_weight is None else len(sample_weight))
        )
        if len(X) < self.least:
            raise ValueError("too few rows")
        return self

    def compress(self):
        return self


@pytest.mark.parametrize("least", [1, 2000])
def test_first_one_iteration_on_a_few_rows(least, monkeypatch):
    monkeypatch.setattr(Recorder, "seen", [])
    table, seconds = timed_fit(Recorder(least=least), np.zeros((2000, 3)), np.ones(2000))
    assert Recorder.seen == [(1, 1, 667, 667), (7, 9, 2000, 2000)]
    assert table.get_params() == {"max_iter": 7, "steps": 9, "least": least}
    assert min(seconds.values()) >= 0 and [*seconds] == ["compile", "fit"]


def test_what_fails_on_all_rows_fails():
    with pytest.raises(ValueError, match="too few rows"):
        timed_fit(Recorder(least=11), np.zeros((10, 3)))


def test_the_clock_of_the_fit_begins_after_the_trial(monkeypatch):
    now = iter([0.0, 100.0, 103.0])
    monkeypatch.setattr(timing.time, "perf_counter", lambda: next(now))
    assert timed_fit(Recorder(), np.zeros((10, 3)))[1] == {"compile": 100.0, "fit": 3.0}


@pytest.mark.parametrize("estimator", [ProductQuantizer(2, 16, random_state=0), KMeansQuantizer(n_bits=2)])
def test_the_table_is_that_of_one_fit(estimator, rng):
    X = rng.standard_normal((600, 4)).astype(np.float32)
    expected = estimator.fit(X).compress().reconstruct()
    np.testing.assert_array_equal(timed_fit(estimator, X)[0].reconstruct(), expected)
