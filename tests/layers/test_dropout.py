"""Dropout: what is kept, what it is scaled by, and its gradient."""

import numpy as np
import pytest

from dpq_ref.layers import Dropout


def test_kept_entries_are_scaled_and_their_share_is_the_probability():
    x = np.arange(1, 200_001, dtype=np.float32).reshape(2, 400, 250)
    output = Dropout(0.7, rng=3).forward(x)
    kept = output != 0
    np.testing.assert_allclose(output[kept], x[kept] / np.float32(0.7), rtol=1e-6)
    assert abs(kept.mean() - 0.7) < 4 * np.sqrt(0.7 * 0.3 / x.size)
    assert output.dtype == np.float32


def test_gradient_passes_where_the_input_did(rng):
    layer, x, d = Dropout(0.5, rng=0), rng.standard_normal((4, 5)), rng.standard_normal((4, 5))
    output = layer.forward(x)
    np.testing.assert_allclose(layer.backward(d), d * output / x)


def test_each_batch_draws_anew_and_a_seed_repeats(rng):
    x = np.ones(1000)
    one, other = Dropout(0.5, rng=7), Dropout(0.5, rng=7)
    first, second = one.forward(x), one.forward(x)
    assert (first != second).any()
    np.testing.assert_array_equal(other.forward(x), first)


@pytest.mark.parametrize(("keep", "train"), [(1, True), (0.5, False)])
def test_nothing_is_dropped_nor_drawn(keep, train, rng):
    layer, x = Dropout(keep, rng=0), rng.standard_normal((4, 5))
    before = layer.rng.bit_generator.state
    np.testing.assert_array_equal(layer.forward(x, train), x)
    np.testing.assert_array_equal(layer.backward(x), x)
    assert layer.rng.bit_generator.state == before


@pytest.mark.parametrize("keep", [0, -0.1, 1.1, float("nan")])
def test_bad_probability(keep):
    with pytest.raises(ValueError, match="keep="):
        Dropout(keep)
