"""Optimizers by hand, and row-sparse against dense."""

import numpy as np
import pytest

from dpq_ref import SGD, Adagrad, Adam, RowSparse
from dpq_ref.optim import clip_global_norm

KINDS = {
    "sgd": lambda params, backend: SGD(params, 0.1, backend=backend),
    "adagrad": lambda params, backend: Adagrad(params, 0.1, backend=backend),
    "adam": lambda params, backend: Adam(params, 0.1, backend=backend),
}


def test_adam_by_hand():
    x = np.array([[1.0]])
    optimizer = Adam({"x": x}, 0.1)
    m = v = 0.0
    expected = 1.0
    for t, g in enumerate((2.0, -1.0, 0.5), start=1):
        optimizer.step({"x": np.array([[g]])})
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g * g
        expected -= 0.1 * (m / (1 - 0.9**t)) / (np.sqrt(v / (1 - 0.999**t)) + 1e-8)
        assert x[0, 0] == pytest.approx(expected, rel=1e-12)


def test_adagrad_by_hand():
    x = np.array([[1.0]])
    optimizer = Adagrad({"x": x}, 0.1)
    for g in (3.0, 4.0):
        optimizer.step({"x": np.array([[g]])})
    assert x[0, 0] == pytest.approx(1 - 0.1 - 0.1 * 4 / 5, rel=1e-9)


@pytest.mark.parametrize("backend", ["numpy", "numba"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", [(6,), (6, 2), (6, 2, 3)])
def test_all_shapes_are_updated_in_place_alike(kind, backend, shape, rng):
    start, gradient = rng.standard_normal(shape), rng.standard_normal(shape)
    x, flat = start.copy(), start.reshape(6, -1).copy()
    KINDS[kind]({"x": x}, backend).step({"x": gradient})
    KINDS[kind]({"x": flat}, "numpy").step({"x": gradient.reshape(6, -1)})
    np.testing.assert_allclose(x.reshape(6, -1), flat, rtol=1e-12)
    assert np.abs(x - start).min() > 0


@pytest.mark.parametrize("backend", ["numpy", "numba"])
@pytest.mark.parametrize("kind", KINDS)
def test_rows_without_gradient_stay_and_the_others_move_as_if_alone(kind, backend, rng):
    table = rng.standard_normal((5, 3))
    start, rows = table.copy(), np.array([1, 4])
    alone = start[rows].copy()
    sparse, dense = KINDS[kind]({"x": table}, backend), KINDS[kind]({"x": alone}, backend)
    for _ in range(3):
        values = rng.standard_normal((2, 3))
        sparse.step({"x": RowSparse(rows, values, 5)})
        dense.step({"x": values})
    np.testing.assert_array_equal(table[rows], alone)
    np.testing.assert_array_equal(table[[0, 2, 3]], start[[0, 2, 3]])


def test_empty_row_sparse_gradient_changes_nothing():
    table = np.ones((3, 2), np.float32)
    Adam({"x": table}).step({"x": RowSparse(np.zeros(0, np.int64), np.zeros((0, 2), np.float32), 3)})
    np.testing.assert_array_equal(table, 1)


def test_parameters_without_gradient_stay_and_unknown_ones_are_refused():
    params = {"x": np.ones((1, 1)), "y": np.ones((1, 1))}
    SGD(params, 1.0).step({"x": np.ones((1, 1))})
    assert params["x"][0, 0] == 0 and params["y"][0, 0] == 1
    with pytest.raises(KeyError, match="z"):
        SGD(params, 1.0).step({"z": np.ones((1, 1))})


def test_clipping_by_the_global_norm():
    rng = np.random.default_rng(0)
    dense, values = rng.standard_normal((4, 3)).astype(np.float32), rng.standard_normal((2, 5))
    grads = {"a": dense, "b": RowSparse(np.array([0, 7]), values, 9)}
    norm = np.linalg.norm(np.concatenate([dense.ravel().astype(np.float64), values.ravel()]))
    before = dense.copy(), values.copy()
    for limit in (norm * 1.001, np.inf):
        assert clip_global_norm(grads, limit) == pytest.approx(norm, rel=1e-6)
        np.testing.assert_array_equal(dense, before[0])
        np.testing.assert_array_equal(values, before[1])
    assert clip_global_norm(grads, norm / 4) == pytest.approx(norm, rel=1e-6)
    np.testing.assert_allclose(grads["a"], before[0] / 4, rtol=1e-6)
    np.testing.assert_allclose(grads["b"].values, before[1] / 4, rtol=1e-6)
    assert grads["a"].dtype == np.float32 and grads["b"].values.dtype == np.float64
    assert clip_global_norm({"x": np.zeros((2, 2))}, 1.0) == clip_global_norm({}, 1.0) == 0


def test_clipping_of_huge_gradients_does_not_overflow():
    x = np.full((2, 1), 1e30, np.float32)
    assert clip_global_norm({"x": x}, 1.0) == pytest.approx(np.sqrt(2) * 1e30)
    np.testing.assert_allclose(x, np.sqrt(0.5), rtol=1e-6)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_the_norm_of_what_is_not_finite_is_not_finite_and_nothing_moves(bad):
    x, y = np.array([[3.0, bad]], np.float32), np.array([4.0])
    assert not np.isfinite(clip_global_norm({"x": x, "y": y}, 1.0))
    np.testing.assert_array_equal(x, np.array([[3.0, bad]], np.float32))
    assert y[0] == 4


@pytest.mark.parametrize("limit", [0.0, -1.0, np.nan])
def test_a_limit_that_is_not_positive_is_refused(limit):
    with pytest.raises(ValueError, match="clip_norm"):
        clip_global_norm({}, limit)
