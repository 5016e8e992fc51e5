"""Low rank: Eckart and Young, and what weights change."""

import os
from pathlib import Path

import numpy as np
import pytest
from scipy import linalg

from baselines import LowRank
from baselines.low_rank import right_vectors
from dpq_ref.compressed import load

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


@pytest.mark.parametrize("first", [1, 30, 1e4])
def test_float32_tables_lose_less_than_a_millionth(first):
    """Also where one direction is so strong that float32 would not see the others."""
    X = table(4000, 40, dtype=np.float32)
    X[:, 0] += np.float32(first)
    values = np.linalg.svd(X.astype(float), compute_uv=False)
    for rank in (1, 5, 39):
        V = LowRank(rank).fit(X).components_.astype(float)
        error = np.square(X - X @ np.linalg.pinv(V) @ V).sum()
        assert error <= (1 + 1e-6) * np.square(values[rank:]).sum() + 1e-13 * np.square(values).sum()


def test_zeros():
    np.testing.assert_array_equal(LowRank(2).fit(np.zeros((5, 3))).compress().reconstruct(), np.zeros((5, 3)))


@pytest.mark.parametrize("ratio", [1.5, 2, 4, 16])
def test_ratio_is_kept(ratio):
    X = table(2000, 50, dtype=np.float32)
    model = LowRank(ratio=ratio).fit(X)
    rank = len(model.components_)
    assert model.compress().bits() == {"values": 32 * rank * 2000, "basis": 32 * rank * 50}
    assert model.compress().compression_ratio >= ratio > 2000 * 50 / ((rank + 1) * 2050)
    bits = 32 * rank * 2050
    assert len(LowRank(bits=bits).fit(X).components_) == rank
    assert rank == 1 or len(LowRank(bits=bits - 1).fit(X).components_) == rank - 1


@pytest.mark.parametrize(("ratio", "rank"), [(16.65, 18), (8.10, 37), (4.05, 74), (2.01, 149)])
def test_ranks_of_a_table_of_400_000_words(ratio, rank):
    assert LowRank(ratio=ratio)._size(400_000, 300) == {"rank": rank}


def test_a_row_is_the_same_bit_by_bit_in_any_batch(tmp_path):
    model = LowRank(5).fit(table(3000, 70, dtype=np.float32))
    compressed = model.compress()
    compressed.save(tmp_path / "table")
    whole = load(tmp_path / "table").reconstruct()
    ids = np.random.default_rng(0).integers(0, 3000, 500)
    np.testing.assert_array_equal(compressed.lookup(ids), whole[ids])
    for i in (0, 1, 2999):
        np.testing.assert_array_equal(compressed.lookup(i), whole[i])
    np.testing.assert_allclose(whole, model.inverse_transform(model.coefficients_), atol=1e-5)


@pytest.mark.parametrize("solver", ["exact", "randomized"])
@pytest.mark.parametrize(
    "X",
    [
        table(300, 40).astype(np.float16),
        np.asfortranarray(table(300, 40)),
        (table(200, 5) @ table(5, 40, seed=1)),
        table(30, 200),
        table(50, 1),
        table(1, 40),
        np.repeat(table(3, 8), 10, axis=0),
        np.full((20, 6), 0.5),
        table(40, 7) * [1, 0, 1, 0, 1, 1, 1],
    ],
    ids=["float16", "fortran", "deficient", "n < d", "d = 1", "n = 1", "duplicates", "constant", "empty"],
)
def test_error_is_that_of_scipy(solver, X):
    values = linalg.svd(X.astype(np.float64), compute_uv=False)
    rank = min(4, *X.shape)
    model = LowRank(rank, solver=solver, power_iterations=20, random_state=0).fit(X)
    exact = X.astype(np.float64)
    error = ((exact - exact @ model.components_.T @ model.components_) ** 2).sum()
    rtol = 2e-6 if X.dtype == np.float16 else 1e-6
    np.testing.assert_allclose(error, (values[rank:] ** 2).sum(), rtol=rtol, atol=1e-12 * (values**2).sum())


def slow_decay(n=500, d=120):
    rng = np.random.default_rng(0)
    left, right = (linalg.qr(rng.standard_normal((m, d)), mode="economic")[0] for m in (n, d))
    return (left * np.arange(1, d + 1) ** -0.5) @ right.T


@pytest.mark.parametrize("weighted", [False, True])
def test_randomized_error_falls_with_the_power_iterations(weighted):
    X = slow_decay()
    weights = np.random.default_rng(1).uniform(1, 9, len(X)) if weighted else np.ones(len(X))
    least = LowRank(10).fit(X, sample_weight=weights)
    errors = [
        weighted_error(
            X,
            LowRank(10, solver="randomized", power_iterations=p, random_state=3).fit(
                X, sample_weight=weights
            ),
            weights,
        )
        / weighted_error(X, least, weights)
        for p in (0, 1, 4, 30)
    ]
    assert errors[0] > errors[1] > errors[2] > errors[3] >= 1 - 1e-12
    assert errors[0] < 1.2 and errors[2] < 1.002 and errors[3] < 1 + 1e-7


def test_randomized_vectors_and_values_are_the_exact_ones_in_the_end():
    X, weights = slow_decay(), frequencies(500)
    exact = LowRank(6).fit(X, sample_weight=weights)
    other = LowRank(6, solver="randomized", power_iterations=50, random_state=0).fit(X, sample_weight=weights)
    np.testing.assert_allclose(other.components_, exact.components_, atol=1e-6)  # signs too
    np.testing.assert_allclose(other.singular_values_, exact.singular_values_[:6], rtol=1e-9)


def test_randomized_repeats_with_its_seed():
    X = slow_decay()
    a, b, c = (LowRank(5, solver="randomized", random_state=s).fit(X).components_ for s in (0, 0, 1))
    np.testing.assert_array_equal(a, b)
    assert not np.array_equal(a, c)


@pytest.mark.parametrize(
    ("parameters", "error", "message"),
    [
        ({}, ValueError, "nothing is given; it takes rank, or one of bits and ratio"),
        ({"rank": 1, "ratio": 2}, ValueError, "rank=1, ratio=2; it takes rank, or one of"),
        ({"bits": 10**4, "ratio": 2}, ValueError, "bits=10000, ratio=2; it takes rank, or one of"),
        ({"rank": 10}, ValueError, "rank=10; a table of 60 x 9 takes at most 9"),
        ({"rank": 0}, ValueError, "rank=0"),
        ({"rank": 1.0}, TypeError, r"rank=1\.0"),
        ({"ratio": 8}, ValueError, r"ratio=8 cannot be met .* 2208 bits, ratio 7\.83 \(rank=1\)"),
        ({"ratio": -1}, ValueError, "ratio=-1"),
        ({"rank": 1, "solver": "full"}, ValueError, "solver='full'; it takes 'exact' or 'randomized'"),
        ({"rank": 1, "power_iterations": -1}, ValueError, "power_iterations=-1"),
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
@pytest.mark.parametrize("name", ["glove-6b-300d-3k", "glove-6b-50d-5k"])
@pytest.mark.parametrize("weighted", [False, True])
def test_word_vectors(name, weighted):
    X = np.load(Path(os.environ["DPQ_REF_DATA"]) / f"embeddings/{name}.npz")["vectors"]
    weights = 1e6 / np.arange(1, len(X) + 1) if weighted else np.ones(len(X))
    exact = np.sqrt(weights)[:, None] * X.astype(np.float64)
    values = linalg.svd(exact, compute_uv=False)
    for rank in (10, 40, X.shape[1]):
        model = LowRank(rank).fit(X, sample_weight=weights)
        V = model.components_.astype(np.float64)
        tail, whole = (values[rank:] ** 2).sum(), (values**2).sum()
        np.testing.assert_allclose(
            ((exact - exact @ V.T @ V) ** 2).sum(), tail, rtol=1e-6, atol=1e-12 * whole
        )
        stored = np.sqrt(weights)[:, None] * (X - model.compress().reconstruct()).astype(np.float64)
        np.testing.assert_allclose((stored**2).sum(), tail, rtol=1e-6, atol=1e-10 * whole)
