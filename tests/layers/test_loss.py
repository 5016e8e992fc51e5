"""Softmax output over a vocabulary: SciPy, finite differences, blocks of logits, tables as its matrix."""

import numpy as np
import pytest
import scipy.special

from dpq_ref.gradcheck import directional
from dpq_ref.layers import DPQEmbedding, FullEmbedding, LowRankEmbedding, RowSparse, SoftmaxOutput, loss

TOLERANCE = 1e-8
B, DIM, VOCAB = 7, 4, 11


@pytest.fixture
def batch(rng):
    weights = np.abs(rng.standard_normal(B))
    weights[2] = 0
    return rng.standard_normal((B, DIM)), rng.integers(0, VOCAB, B), weights


def random_layer(rng, **parameters):
    layer = SoftmaxOutput(VOCAB, DIM, rng=rng, dtype=np.float64, **parameters)
    for array in layer.params.values():
        array += rng.standard_normal(array.shape)
    return layer


@pytest.mark.parametrize("backend", ["numpy", "numba"])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_loss_is_that_of_scipy(backend, smoothing, batch, rng):
    x, labels, weights = batch
    layer = random_layer(rng, backend=backend, smoothing=smoothing)
    losses, _ = layer.loss(30 * x, labels, weights)
    log_p = scipy.special.log_softmax(30 * x @ layer.params["weight"].T + layer.params["bias"], axis=1)
    target = np.full((B, VOCAB), smoothing / VOCAB)
    target[np.arange(B), labels] += 1 - smoothing
    np.testing.assert_allclose(losses, -(target * log_p).sum(axis=1), rtol=1e-12, atol=1e-13)
    plain = -log_p[np.arange(B), labels]
    np.testing.assert_allclose(layer.losses(30 * x, labels), plain, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_gradients_are_those_of_the_weighted_sum(smoothing, batch, rng):
    x, labels, weights = batch
    layer = random_layer(rng, smoothing=smoothing)
    _, d_x = layer.loss(x, labels, weights)
    grads = layer.grads

    def total(x=x):
        return float((layer.loss(x, labels, weights)[0] * weights).sum())

    assert directional(total, x, d_x, rng).error < TOLERANCE
    assert not d_x[2].any()
    for name, value in layer.params.items():

        def changed(array, name=name, value=value):
            layer.params[name] = array
            result = total()
            layer.params[name] = value
            return result

        assert directional(changed, value, grads[name], rng).error < TOLERANCE


def test_blocks_of_logits_change_nothing(batch, rng, monkeypatch):
    x, labels, weights = batch
    layer = random_layer(rng)
    whole = (*layer.loss(x, labels, weights), *layer.grads.values(), layer.losses(x, labels))
    for size in (1, 2 * VOCAB, 3 * VOCAB):
        monkeypatch.setattr(loss, "LOGITS", size)
        parts = (*layer.loss(x, labels, weights), *layer.grads.values(), layer.losses(x, labels))
        for a, b in zip(parts, whole, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-14)


def test_no_rows(rng):
    layer = random_layer(rng)
    losses, d_x = layer.loss(np.zeros((0, DIM)), np.zeros(0, int), np.zeros(0))
    assert losses.shape == (0,)
    assert d_x.shape == (0, DIM)
    assert not layer.grads["weight"].any()


@pytest.mark.parametrize(
    "table",
    [
        lambda rng: FullEmbedding(VOCAB, DIM, rng=rng, dtype=np.float64),
        lambda rng: DPQEmbedding(VOCAB, DIM, n_groups=2, n_codes=4, rng=rng, dtype=np.float64),
        lambda rng: LowRankEmbedding(rng.standard_normal((VOCAB, 2)), rng.standard_normal((2, DIM))),
    ],
    ids=["full", "dpq", "low-rank"],
)
def test_rows_of_a_table_are_the_matrix(table, batch, rng):
    """Losses and gradients are those of the matrix; its gradient is handed to the table."""
    x, labels, weights = batch
    table = table(rng)
    layer = random_layer(rng, table=table)
    matrix = random_layer(rng)
    matrix.params = {"bias": layer.params["bias"], "weight": table.forward(np.arange(VOCAB))}
    losses, d_x = layer.loss(x, labels, weights)
    expected, d_expected = matrix.loss(x, labels, weights)
    np.testing.assert_array_equal(losses, expected)
    np.testing.assert_array_equal(d_x, d_expected)
    assert set(layer.params) == set(layer.grads) == {"bias"}
    actual = table.grads
    table.forward(np.arange(VOCAB))
    table.backward(matrix.grads["weight"])
    for name, gradient in table.grads.items():
        a, b = (g.to_dense() if isinstance(g, RowSparse) else g for g in (actual[name], gradient))
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("label", [-1, VOCAB])
@pytest.mark.parametrize("backend", ["numpy", "numba"])
def test_labels_out_of_range(label, backend, rng):
    layer = random_layer(rng, backend=backend)
    with pytest.raises(IndexError, match="labels"):
        layer.loss(np.zeros((1, DIM)), np.array([label]), np.ones(1))


def test_bad_smoothing():
    with pytest.raises(ValueError, match=r"smoothing=1\.0"):
        SoftmaxOutput(5, 2, smoothing=1.0)
