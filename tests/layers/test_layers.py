"""Dense, batch norm, ReLU and cross-entropy against finite differences and formulas by hand."""

import numpy as np
import pytest
import scipy.special

from dpq_ref.compressed import DenseTable
from dpq_ref.gradcheck import directional
from dpq_ref.layers import (
    BatchNorm,
    BlockEmbedding,
    Dense,
    DPQEmbedding,
    FixedEmbedding,
    FullEmbedding,
    LowRankEmbedding,
    Relu,
    RowSparse,
    softmax_cross_entropy,
)

TOLERANCE = 1e-8


def layers(rng):
    return {
        "dense": Dense(5, 3, rng=rng, dtype=np.float64),
        "norm": BatchNorm(5, dtype=np.float64),
        "rectified norm": BatchNorm(5, rectified=True, dtype=np.float64),
        "relu": Relu(),
    }


@pytest.mark.parametrize("name", ["dense", "norm", "rectified norm", "relu"])
@pytest.mark.parametrize("order", ["C", "F"])
def test_gradients_are_those_of_the_forward(name, order, rng):
    layer = layers(rng)[name]
    for array in layer.params.values():
        array += rng.standard_normal(array.shape)
    x = np.asarray(rng.standard_normal((7, 5)), order=order)
    d_output = rng.standard_normal(layer.forward(x).shape)
    before = x.copy(), d_output.copy()
    d_x = layer.backward(d_output)
    np.testing.assert_array_equal(x, before[0])
    np.testing.assert_array_equal(d_output, before[1])

    assert directional(lambda x: float((d_output * layer.forward(x)).sum()), x, d_x, rng).error < TOLERANCE
    for key, gradient in layer.grads.items():
        value = layer.params[key]

        def loss(changed, key=key, value=value):
            layer.params[key] = changed
            result = float((d_output * layer.forward(x)).sum())
            layer.params[key] = value
            return result

        assert directional(loss, value, gradient, rng).error < TOLERANCE, key


def test_batch_norm_by_hand():
    layer = BatchNorm(1, dtype=np.float64)
    y = layer.forward(np.array([[1.0], [3.0]]))
    np.testing.assert_allclose(y[:, 0], np.array([-1, 1]) / np.sqrt(1 + 1e-3))
    np.testing.assert_allclose(layer.buffers["mean"], [0.2])
    np.testing.assert_allclose(layer.buffers["variance"], [0.9 + 0.1 * 1.0])
    mean = layer.buffers["mean"].copy()
    layer.forward(np.array([[50.0]]), train=False)
    np.testing.assert_array_equal(layer.buffers["mean"], mean)


def test_cross_entropy_is_that_of_scipy_and_its_gradient_exact(rng):
    logits, labels = 30 * rng.standard_normal((6, 4)), np.array([0, 1, 2, 3, 3, 0])
    loss, d_logits = softmax_cross_entropy(logits, labels)
    expected = -scipy.special.log_softmax(logits, axis=1)[np.arange(6), labels].mean()
    assert loss == pytest.approx(expected, rel=1e-12)
    check = directional(lambda x: softmax_cross_entropy(x, labels)[0], logits, d_logits, rng, step=1e-5)
    assert check.error < 1e-7
    np.testing.assert_allclose(d_logits.sum(axis=1), 0, atol=1e-15)


def test_cross_entropy_of_huge_logits_is_finite():
    loss, d_logits = softmax_cross_entropy(np.array([[1e4, -1e4]], np.float32), np.array([1]))
    assert loss == pytest.approx(2e4)
    np.testing.assert_array_equal(d_logits, [[1, -1]])


def embeddings(rng):
    table = rng.standard_normal((9, 6))
    blocks = [FullEmbedding(5, 6, dtype=np.float64), FullEmbedding(4, 6, dtype=np.float64)]
    return {
        "full": FullEmbedding(9, 6, dtype=np.float64),
        "sx": DPQEmbedding(9, 6, n_groups=3, n_codes=4, dtype=np.float64),
        "vq": DPQEmbedding(9, 6, n_groups=3, n_codes=4, method="vq", dtype=np.float64),
        "low rank": LowRankEmbedding.from_table(table, 3),
        "blocks": BlockEmbedding(np.arange(9) // 5, blocks),
        "fixed": FixedEmbedding(DenseTable(table)),
    }


@pytest.mark.parametrize("name", ["full", "sx", "vq", "low rank", "blocks", "fixed"])
@pytest.mark.parametrize("train", [True, False])
def test_pooled_is_the_mean_of_what_is_kept(name, train, rng):
    """With a mask: means of the vectors without, and the gradients that these give; a text may keep none."""
    ids, mask = rng.integers(0, 9, (4, 5)), rng.random((4, 5)) < 0.5
    mask[2] = False
    length, d = np.maximum(mask.sum(axis=1), 1)[:, None], rng.standard_normal((4, 6))
    layer, other = embeddings(np.random.default_rng(1))[name], embeddings(np.random.default_rng(1))[name]
    expected = np.where(mask[:, :, None], other.forward(ids, train), 0).sum(axis=1) / length
    np.testing.assert_allclose(layer.forward(ids, train, mask=mask), expected, rtol=1e-12, atol=1e-14)
    if train:
        layer.backward(d)
        other.backward(mask[:, :, None] * (d / length)[:, None])
        for key, gradient in other.grads.items():
            found, wanted = (
                g.to_dense() if isinstance(g, RowSparse) else g for g in (layer.grads[key], gradient)
            )
            np.testing.assert_allclose(found, wanted, rtol=1e-9, atol=1e-12)
        if layer.params:
            with pytest.raises(ValueError, match="shape"):
                layer.backward(d[:3])
