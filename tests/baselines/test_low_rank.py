"""Low rank: Eckart and Young, and what weights change."""

import os
from pathlib import Path

import numpy as np
import pytest

from baselines import LowRank
from baselines.low_rank import rank_for_ratio, right_vectors

SHAPES = [(60, 9), (9, 60), (20, 20), (40, 1), (1, 7), (30, 300)]


def table(n=60, d=9, seed=0, dtype=np.float64):
    rng = np.random.default_rng(seed)
    return (rng.standard_normal((n, d)) @ np.diag(0.8 ** np.arange(d)) + 0.3).astype(dtype)


def frequencies(n, seed=1):
    return np.random.default_rng(seed).zipf(1.5, n).clip(max=10**5).astype(float)


def weighted_error(X, model, weights):
    return float((weights[:, None] * (X - model.inverse_transform(model.coefficients_)) ** 2).sum())


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("weighted", [False, True])
def test_error_is_the_tail_of_the_singular_values(shape, weighted):
    X = table(*shape)
    weights = frequencies(len(X)) if weighted else np.ones(len(X))
    values = np.linalg.svd(np.sqrt(weights)[:, None] * X, compute_uv=False)
    for rank in range(1, min(shape) + 1):
        model = LowRank(rank).fit(X, sample_weight=weights)
        tail, whole = (values[rank:] ** 2).sum(), (values**2).sum()
        assert abs(weighted_error(X, model, weights) - tail) < 1e-12 * whole
        np.testing.assert_allclose(model.singular_values_, values, rtol=1e-9, atol=1e-7 * values[0])


@pytest.mark.parametrize("shape", SHAPES)
def test_factors(shape):
    X, weights = table(*shape), frequencies(shape[0])
    rank = max(1, min(shape) // 2)
    model = LowRank(rank).fit(X, sample_weight=weights)
    V = model.components_
    assert V.shape == (rank, shape[1]) and model.coefficients_.shape == (shape[0], rank)
    np.testing.assert_allclose(V @ V.T, np.eye(rank), atol=1e-12)
    np.testing.assert_array_equal(model.coefficients_, X @ V.T)
    np.testing.assert_array_equal(model.transform(X), model.coefficients_)
    P, S, _ = np.linalg.svd(np.sqrt(weights)[:, None] * X, full_matrices=False)
    by_division = P[:, :rank] * S[:rank] / np.sqrt(weights)[:, None]  # the other form, equal where q > 0
    np.testing.assert_allclose(np.abs(model.coefficients_), np.abs(by_division), rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("shape", SHAPES)
def test_signs_are_settled(shape):
    X = table(*shape)
    V = LowRank(min(shape)).fit(X).components_
    assert (V[np.arange(len(V)), np.abs(V).argmax(axis=1)] > 0).all()
    np.testing.assert_array_equal(V, LowRank(min(shape)).fit(-X).components_)


@pytest.mark.parametrize("rank", [1, 3, 6])
def test_weights_serve_the_weighted_error_at_the_cost_of_the_plain_one(rank):
    X, weights = table(300), frequencies(300)
    plain, weighted = LowRank(rank).fit(X), LowRank(rank).fit(X, sample_weight=weights)
    ones = np.ones(300)
    assert weighted_error(X, weighted, weights) < weighted_error(X, plain, weights)
    assert weighted_error(X, weighted, ones) > weighted_error(X, plain, ones)


def test_no_alternating_least_squares_goes_lower():
    X, weights = table(40), frequencies(40)
    ours = weighted_error(X, LowRank(2).fit(X, sample_weight=weights), weights)
    rng = np.random.default_rng(0)
    for _ in range(20):
        V = rng.standard_normal((2, 9))
        for _ in range(200):
            U = np.linalg.lstsq(V.T, X.T, rcond=None)[0].T
            V = np.linalg.solve(U.T @ (weights[:, None] * U), U.T @ (weights[:, None] * X))
        error = (weights[:, None] * (X - U @ V) ** 2).sum()
        assert ours <= error * (1 + 1e-9)


@pytest.mark.parametrize("scale", [1e-200, 1e-6, 3.7, 1e6, 1e200])
def test_scale_of_the_weights_does_not_matter(scale):
    X, weights = table(), frequencies(60)
    a, b = (LowRank(4).fit(X, sample_weight=w) for w in (weights, scale * weights))
    np.testing.assert_allclose(a.components_, b.components_, atol=1e-10)
    np.testing.assert_allclose(a.singular_values_ * np.sqrt(scale), b.singular_values_, rtol=1e-9)


def test_equal_weights_are_none():
    a, b = LowRank(4).fit(table()), LowRank(4).fit(table(), sample_weight=np.full(60, 7))
    np.testing.assert_allclose(a.components_, b.components_, atol=1e-12)


def test_rows_without_weight_do_not_count_but_have_coefficients():
    X, weights = table(), frequencies(60)
    weights[40:] = 0
    model, alone = (
        LowRank(3).fit(X, sample_weight=weights),
        LowRank(3).fit(X[:40], sample_weight=weights[:40]),
    )
    np.testing.assert_allclose(model.components_, alone.components_, atol=1e-12)
    np.testing.assert_allclose(model.coefficients_[40:], alone.transform(X[40:]), atol=1e-12)


def test_a_row_of_great_weight_is_exact():
    X, weights = table(), np.ones(60)
    weights[5] = 1e14
    np.testing.assert_allclose(LowRank(1).fit(X, sample_weight=weights).compress().lookup(5), X[5], atol=1e-6)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("decay", [1.0, 1e-3])
def test_full_rank_is_exact_to_float32_however_small_the_directions(shape, decay):
    X = (table(*shape) * decay ** np.arange(shape[1]).clip(max=6)).astype(np.float32)
    model = LowRank(min(shape)).fit(X)
    longest = np.linalg.norm(X, axis=1).max()
    np.testing.assert_allclose(model.compress().reconstruct(), X, rtol=0, atol=2e-6 * longest)


def test_a_table_of_low_rank_is_exact_from_there_on():
    X = (table(200, 5) @ table(5, 40, seed=1)).astype(np.float32)
    for rank in (5, 6, 39):
        reconstructed = LowRank(rank).fit(X).compress().reconstruct()
        np.testing.assert_allclose(reconstructed, X, rtol=0, atol=2e-6 * np.abs(X).max())
    assert np.abs(LowRank(4).fit(X).compress().reconstruct() - X).max() > 1e-3


def test_both_roads_to_the_right_vectors_agree():
    X, weights = table(60, 60), frequencies(60)
    by_gram, by_svd = right_vectors(X, weights), right_vectors(np.c_[X, np.zeros(60)], weights)
    np.testing.assert_allclose(by_gram[0], by_svd[0], rtol=0, atol=1e-7 * by_svd[0][0])
    np.testing.assert_allclose(by_gram[1][:10], by_svd[1][:10, :60], atol=1e-7)


def test_zeros():
    np.testing.assert_array_equal(LowRank(2).fit(np.zeros((5, 3))).compress().reconstruct(), np.zeros((5, 3)))


@pytest.mark.parametrize("ratio", [1.5, 2, 4, 16])
def test_compression_ratio_is_kept(ratio):
    X = table(2000, 50, dtype=np.float32)
    model = LowRank(compression_ratio=ratio).fit(X)
    rank = len(model.components_)
    assert model.compress().bits() == {"factors": 32 * rank * (2000 + 50)}
    assert model.compress().compression_ratio >= ratio > 2000 * 50 / ((rank + 1) * 2050)


@pytest.mark.parametrize(("ratio", "rank"), [(16.65, 18), (8.10, 37), (4.05, 74), (2.01, 149)])
def test_ranks_of_a_table_of_400_000_words(ratio, rank):
    assert rank_for_ratio(ratio, 400_000, 300) == rank


@pytest.mark.parametrize(
    ("parameters", "error", "message"),
    [
        ({}, ValueError, "exactly one"),
        ({"rank": 1, "compression_ratio": 2}, ValueError, "exactly one"),
        ({"rank": 10}, ValueError, "rank=10; a table of 60 x 9 takes at most 9"),
        ({"rank": 0}, ValueError, "rank=0"),
        ({"rank": 1.0}, TypeError, r"rank=1\.0"),
        ({"compression_ratio": 8}, ValueError, r"rank 0; 60 x 9 takes at most 7\.83"),
        ({"compression_ratio": 0.5}, ValueError, "rank=15; a table of 60 x 9 takes at most 9"),
        ({"compression_ratio": -1}, ValueError, "compression_ratio=-1"),
    ],
)
def test_bad_parameters(parameters, error, message):
    with pytest.raises(error, match=message):
        LowRank(**parameters).fit(table())


def test_coefficients_of_another_rank():
    with pytest.raises(ValueError, match=r"Z has shape \(4, 3\); it takes \(rows, 2\)"):
        LowRank(2).fit(table()).inverse_transform(np.ones((4, 3)))


@pytest.mark.skipif(
    "DPQ_REF_DATA" not in os.environ, reason="DPQ_REF_DATA does not name the folder of tables"
)
def test_word_vectors():
    X = np.load(Path(os.environ["DPQ_REF_DATA"]) / "embeddings/glove-6b-300d-3k.npz")["vectors"]
    values = np.linalg.svd(X.astype(np.float64), compute_uv=False)
    for rank in (10, 100, 300):
        model = LowRank(rank).fit(X)
        error = ((X - model.compress().reconstruct()).astype(np.float64) ** 2).sum()
        np.testing.assert_allclose(
            error, (values[rank:] ** 2).sum(), rtol=1e-5, atol=1e-8 * (values**2).sum()
        )
