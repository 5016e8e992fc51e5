"""Who listens hears every step, and what is computed is the same."""

import numpy as np
import pytest

from baselines import ProductQuantizer
from dpq_ref.progress import listening, told


def test_steps_are_told_in_order_to_the_innermost_listener():
    outer, inner = [], []
    with listening(lambda *step: outer.append(step)):
        assert list(told("a", "xy")) == ["x", "y"]
        with listening(lambda *step: inner.append(step)):
            assert list(told("b", range(1))) == [0]
        for _ in told("c", range(9)):
            break  # a loop that stops early tells of what is done, and this one is not
        list(told("d", []))
    list(told("e", range(3)))
    assert outer == [("a", 1, 2), ("a", 2, 2)] and inner == [("b", 1, 1)]


def test_the_listener_goes_with_an_error():
    heard = []
    with pytest.raises(ZeroDivisionError), listening(lambda *step: heard.append(step)):
        raise ZeroDivisionError
    list(told("a", range(3)))
    assert not heard


def test_listening_changes_no_result():
    X = np.random.default_rng(0).standard_normal((500, 6)).astype(np.float32)
    quiet = ProductQuantizer(3, 8, rows_per_code=20, random_state=0).fit(X)
    heard = []
    with listening(lambda *step: heard.append(step)):
        loud = ProductQuantizer(3, 8, rows_per_code=20, random_state=0).fit(X)
    np.testing.assert_array_equal(quiet.codes_, loud.codes_)
    assert {what for what, _, _ in heard} == {"reading", "k-means", "codes"}
    assert all(1 <= done <= steps for _, done, steps in heard)
