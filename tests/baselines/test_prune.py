"""Magnitude pruning: the largest stay, exactly as many as asked for, at an honest size."""

import numpy as np
import pytest
from sklearn.utils.estimator_checks import parametrize_with_checks

from baselines import MagnitudePruning
from baselines.levels import nearest_of
from baselines.prune import largest
from dpq_ref.compressed.sparse import sparse_bits

N, D = 120, 30


def table(n=N, d=D, seed=0, dtype=np.float32):
    return np.random.default_rng(seed).standard_t(5, (n, d)).astype(dtype)


def frequencies(n=N, seed=1):
    return np.random.default_rng(seed).zipf(1.5, n).clip(max=10**5).astype(float)


def error(X, model, weights=None):
    difference = (X.astype(np.float64) - model.compress().reconstruct()) ** 2
    return difference.sum() if weights is None else weights @ difference.sum(axis=1)


@pytest.mark.parametrize("density", [0.001, 0.1, 0.25, 0.5, 0.999])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_error_is_what_is_dropped(density, dtype):
    X = table(dtype=dtype)
    model = MagnitudePruning(density).fit(X)
    kept = model.compress().reconstruct() != 0
    count = int(density * X.size + 0.5)
    assert kept.sum() == count and model.density_ == count / X.size
    assert np.abs(X[kept]).min() == model.threshold_ >= np.abs(X[~kept]).max()
    squares = np.sort(X.astype(np.float64).ravel() ** 2)
    np.testing.assert_allclose(error(X, model), squares[: X.size - count].sum(), rtol=1e-5)


@pytest.mark.parametrize("density", [0.05, 0.5])
def test_weights_choose_the_least_weighted_error(density):
    X, weights = table(), frequencies()
    weights[:3] = 0
    model = MagnitudePruning(density).fit(X, sample_weight=weights)
    count = int(density * X.size + 0.5)
    costs = np.sort((weights[:, None] * X.astype(np.float64) ** 2).ravel())
    np.testing.assert_allclose(error(X, model, weights), costs[: X.size - count].sum(), rtol=1e-6)
    plain = MagnitudePruning(density).fit(X)
    assert error(X, model, weights) < error(X, plain, weights) and error(X, model) > error(X, plain)
    assert model.compress().n_entries == plain.compress().n_entries == count


def test_full_density_is_exact():
    for X in (table(), table(1, 1), table(2, 7), np.zeros((3, 2), np.float32)):
        np.testing.assert_array_equal(MagnitudePruning(1).fit(X).compress().reconstruct(), X)


def test_ties_are_settled_in_order_of_rows():
    X = np.float32([[1, -1, 2], [1, 1, -3], [-1, 0, 1]])
    kept = MagnitudePruning(5 / 9).fit(X).compress().reconstruct()
    np.testing.assert_array_equal(kept, np.float32([[1, -1, 2], [1, 0, -3], [0, 0, 0]]))
    kept, threshold = largest(np.ones((4, 3)), 5)
    np.testing.assert_array_equal(kept.ravel(), np.arange(12) < 5)
    assert threshold == 1


def test_honest_ratio():
    """Not 10 at a density of 0.1: 7.8 with indices of 9 bits, 7.75 with counts of rows, 7.6 with a bitmap."""
    X = table(1000, 300)
    compressed = MagnitudePruning(0.1).fit(X).compress()
    bits = compressed.bits()
    k = X.size // 10
    assert bits == {"values": 32 * k, "columns": 9 * k, "rows": 9 * 1000}
    assert round(32 * X.size / (bits["values"] + bits["columns"]), 1) == 7.8
    assert round(32 * X.size / (bits["values"] + X.size), 1) == 7.6
    assert round(compressed.compression_ratio, 2) == 7.75
    bitmap = MagnitudePruning(0.2).fit(X).compress().bits()
    assert bitmap == {"values": 64 * k, "bitmap": X.size}


@pytest.mark.parametrize("n_codes", [2, 5, 16, 256])
@pytest.mark.parametrize("weighted", [False, True])
def test_codebook_is_k_means_of_what_stays(n_codes, weighted):
    X, weights = table(), frequencies() if weighted else np.ones(N)
    model = MagnitudePruning(0.3, n_codes=n_codes).fit(X, sample_weight=weights)
    plain = MagnitudePruning(0.3).fit(X, sample_weight=weights).compress().reconstruct()
    decoded = model.compress().reconstruct()
    book = model.codebook_
    assert book.shape == (n_codes,) and book.dtype == np.float32 and (np.diff(book) >= 0).all()
    kept = plain != 0
    np.testing.assert_array_equal(decoded[~kept], 0)
    nearest = np.abs(plain[kept][:, None].astype(np.float64) - book).min(axis=1)
    np.testing.assert_allclose(np.abs(decoded - plain)[kept], nearest, atol=1e-6)
    if n_codes <= 16:  # converged
        q = np.repeat(weights, kept.sum(axis=1))
        codes = nearest_of(plain[kept], book)
        mass = np.bincount(codes, q, n_codes)
        sums = np.bincount(codes, q * plain[kept], n_codes)
        np.testing.assert_allclose(book[mass > 0], (sums / mass)[mass > 0], rtol=1e-5, atol=1e-6)


def test_huffman_changes_the_size_alone():
    X = table(300, 40)
    fixed = MagnitudePruning(0.2, n_codes=32).fit(X).compress()
    coded = MagnitudePruning(0.2, n_codes=32, huffman=True).fit(X).compress()
    np.testing.assert_array_equal(fixed.reconstruct(), coded.reconstruct())
    assert coded.bits()["values"] < fixed.bits()["values"] == 5 * fixed.n_entries
    assert coded.bits()["code lengths"] == 32 * 5
    assert sum(coded.bits().values()) < sum(fixed.bits().values())


@pytest.mark.parametrize("n_codes", [None, 3, 16])
@pytest.mark.parametrize("ratio", [1.5, 4, 8, 20])
def test_budget_is_kept_to_the_last_entry(n_codes, ratio):
    X = table()
    model = MagnitudePruning(ratio=ratio, n_codes=n_codes).fit(X)
    compressed, budget = model.compress(), int(32 * X.size / ratio)
    k = compressed.n_entries
    assert sum(compressed.bits().values()) <= budget
    assert k == X.size or sparse_bits(*X.shape, k + 1, n_codes) > budget
    again = MagnitudePruning(model.density_, n_codes=n_codes).fit(X).compress()
    np.testing.assert_array_equal(again.reconstruct(), compressed.reconstruct())


@pytest.mark.parametrize("ratio", [4, 8, 20])
@pytest.mark.parametrize("n_codes", [4, 32])
@pytest.mark.parametrize("weighted", [False, True])
def test_huffman_uses_what_it_saves(ratio, n_codes, weighted):
    X = table(400, 50)
    weights = frequencies(400) if weighted else None
    fixed = MagnitudePruning(ratio=ratio, n_codes=n_codes).fit(X, sample_weight=weights)
    coded = MagnitudePruning(ratio=ratio, n_codes=n_codes, huffman=True).fit(X, sample_weight=weights)
    budget, bits = int(32 * X.size / ratio), sum(coded.compress().bits().values())
    assert budget - 64 < bits <= budget or coded.density_ == 1
    assert coded.density_ >= fixed.density_ * (1.0 if n_codes == 4 else 1.02) or fixed.density_ == 1


def test_size_of_the_weights_does_not_matter():
    X, weights = table(), frequencies()
    one, other = (MagnitudePruning(0.2).fit(X, sample_weight=w) for w in (weights, 1024 * weights))
    np.testing.assert_array_equal(one.compress().reconstruct(), other.compress().reconstruct())
    assert one.threshold_ == other.threshold_


@pytest.mark.parametrize("n_codes", [None, 8])
def test_new_rows_are_cut_at_the_threshold(n_codes):
    X = table()
    model = MagnitudePruning(0.3, n_codes=n_codes).fit(X)
    np.testing.assert_array_equal(model.transform(X), model.compress().reconstruct())
    Z = model.transform(table(seed=3))
    assert Z.dtype == np.float32
    np.testing.assert_array_equal(Z != 0, np.abs(table(seed=3)) >= model.threshold_)
    np.testing.assert_array_equal(model.inverse_transform(Z), Z)


@pytest.mark.parametrize("huffman", [False, True])
@pytest.mark.parametrize("make", [np.zeros, np.ones])
@pytest.mark.parametrize("shape", [(1, 1), (1, 7), (5, 1), (6, 299)])
def test_constant_tables(make, shape, huffman):
    X = make(shape, np.float32)
    decoded = MagnitudePruning(1.0, n_codes=4, huffman=huffman).fit(X).compress().reconstruct()
    np.testing.assert_array_equal(decoded, X)


def test_same_again():
    X, weights = table(), frequencies()
    runs = [
        MagnitudePruning(ratio=10, n_codes=8, huffman=True).fit(X, sample_weight=weights).compress()
        for _ in range(2)
    ]
    for name, array in runs[0].arrays().items():
        np.testing.assert_array_equal(array, runs[1].arrays()[name])


@pytest.mark.parametrize(
    ("parameters", "error", "message"),
    [
        ({}, ValueError, "nothing is given; it takes density, or one of bits and ratio"),
        ({"density": 0}, ValueError, "density=0; it takes a number above 0"),
        ({"density": 1.5}, ValueError, r"density=1\.5"),
        ({"density": float("nan")}, ValueError, "density=nan"),
        ({"density": "much"}, ValueError, "density=much"),
        ({"density": 0.5, "ratio": 2}, ValueError, r"density=0\.5, ratio=2"),
        ({"density": 0.5, "n_codes": 1}, ValueError, "n_codes=1"),
        ({"density": 0.5, "n_codes": 4.0}, TypeError, r"n_codes=4\.0"),
        ({"density": 0.5, "huffman": True}, ValueError, "huffman=True.*it takes n_codes"),
        ({"bits": 100}, ValueError, "bits=100 cannot be met for a table of 120 x 30"),
    ],
)
def test_bad_parameters(parameters, error, message):
    with pytest.raises(error, match=message):
        MagnitudePruning(**parameters).fit(table())


def test_numbers_beyond_float32_are_refused():
    with pytest.raises(ValueError, match="beyond the range of float32"):
        MagnitudePruning(0.5).fit(np.full((3, 3), 1e39))


@parametrize_with_checks(
    [MagnitudePruning(0.4, n_codes=4, huffman=huffman) for huffman in (False, True)],
    expected_failed_checks=lambda _: {
        "check_sample_weight_equivalence_on_dense_data": "the density is a share of all rows"
    },
)
def test_manners_of_scikit_learn(estimator, check):
    check(estimator)


def test_huffman_code_of_what_comes_later_may_be_longer():
    """The largest entries are all one value, one bit each; those that follow take four."""
    X = np.random.default_rng(0).uniform(-1, 1, (200, 40)).astype(np.float32)
    X[:, :4] = 10
    for ratio in (14, 18, 22):
        compressed = MagnitudePruning(ratio=ratio, n_codes=16, huffman=True).fit(X).compress()
        assert compressed.n_entries > 1000
        budget = int(32 * X.size / ratio)
        assert budget - 64 < sum(compressed.bits().values()) <= budget
