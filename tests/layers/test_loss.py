"""Softmax output over a vocabulary: SciPy, finite differences, blocks of logits, tables as its matrix."""

import numpy as np
import pytest
import scipy.special

from dpq_ref.gradcheck import directional
from dpq_ref.layers import SoftmaxOutput, loss

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


def test_matrix_that_is_not_its_own(batch, rng):
    """The losses and gradients of a layer with that matrix, and no parameter but the bias."""
    x, labels, weights = batch
    own, layer = random_layer(rng), random_layer(rng, own=False)
    layer.params["bias"] = own.params["bias"]
    weight = own.params["weight"]
    for a, b in zip(layer.loss(x, labels, weights, weight), own.loss(x, labels, weights), strict=True):
        np.testing.assert_array_equal(a, b)
    np.testing.assert_array_equal(layer.d_weight, own.grads["weight"])
    np.testing.assert_array_equal(layer.losses(x, labels, weight), own.losses(x, labels))
    assert set(layer.params) == set(layer.grads) == {"bias"}
    with pytest.raises(ValueError, match="weight=None"):
        layer.loss(x, labels, weights)


@pytest.mark.parametrize("label", [-1, VOCAB])
@pytest.mark.parametrize("backend", ["numpy", "numba"])
def test_labels_out_of_range(label, backend, rng):
    layer = random_layer(rng, backend=backend)
    with pytest.raises(IndexError, match="labels"):
        layer.loss(np.zeros((1, DIM)), np.array([label]), np.ones(1))


def test_bad_smoothing():
    with pytest.raises(ValueError, match=r"smoothing=1\.0"):
        SoftmaxOutput(5, 2, smoothing=1.0)
