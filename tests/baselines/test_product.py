"""Product quantization: k-means in each group and nothing else."""

import os
from pathlib import Path

import numpy as np
import pytest
from sklearn.cluster import KMeans as SklearnKMeans

from baselines import ProductQuantizer


def table(n=500, d=12, seed=0, dtype=np.float32):
    return np.random.default_rng(seed).standard_normal((n, d)).astype(dtype)


def test_error_is_the_sum_of_independent_k_means():
    X = table(800)
    model = ProductQuantizer(4, 16, random_state=0, max_iter=100).fit(X)
    error = ((X - model.compress().reconstruct()).astype(np.float64) ** 2).sum()
    np.testing.assert_allclose(model.objective_[-1], error, rtol=1e-6)
    oracle = [
        SklearnKMeans(16, n_init=3, random_state=0).fit(X[:, 3 * j : 3 * j + 3]).inertia_ for j in range(4)
    ]
    assert 0.98 < error / sum(oracle) < 1.04


def test_codes_are_the_nearest_centroids():
    X, new = table(), table(50, seed=1)
    model = ProductQuantizer(3, 8, random_state=0).fit(X)
    distances = ((new.reshape(50, 3, 1, 4) - model.codebooks_) ** 2).sum(axis=3)
    np.testing.assert_array_equal(model.transform(new), distances.argmin(axis=2))
    np.testing.assert_array_equal(model.transform(X), model.codes_)
    assert model.codes_.dtype == np.int32 and model.codes_.min() == 0 and model.codes_.max() == 7
    by_hand = np.concatenate([model.codebooks_[j, model.codes_[:, j]] for j in range(3)], axis=1)
    np.testing.assert_array_equal(model.inverse_transform(model.codes_), by_hand)


@pytest.mark.parametrize("n_codes", [4, 16, 64])
def test_planted_table_is_exact_from_any_seed_and_in_any_order(n_codes):
    rng = np.random.default_rng(0)
    planted = rng.standard_normal((3, n_codes, 4)).astype(np.float32)
    codes = np.concatenate([rng.permuted(np.tile(np.arange(n_codes), (3, 1)), axis=1).T for _ in range(10)])
    X = planted[np.arange(3), codes].reshape(len(codes), 12)
    for seed in range(20):
        model = ProductQuantizer(3, n_codes, random_state=seed, backend="numpy").fit(X)
        np.testing.assert_array_equal(model.compress().reconstruct(), X)
        assert all({*map(bytes, model.codebooks_[j])} == {*map(bytes, planted[j])} for j in range(3))
    order = rng.permutation(len(X))
    permuted = ProductQuantizer(3, n_codes, random_state=0).fit(X[order])
    np.testing.assert_array_equal(permuted.compress().reconstruct(), X[order])
    np.testing.assert_array_equal(permuted.transform(X)[order], permuted.codes_)


@pytest.mark.parametrize(("n_groups", "n_codes"), [(1, 2), (3, 5), (4, 256), (12, 17)])
def test_bits(n_groups, n_codes):
    X = table(300)
    bits = ProductQuantizer(n_groups, n_codes, random_state=0, max_iter=1).fit(X).compress().bits()
    code_bits = {2: 1, 5: 3, 17: 5, 256: 8}[n_codes]
    assert bits == {"codes": 300 * n_groups * code_bits, "codebooks": 32 * n_codes * 12}


def test_seed_decides():
    X = table()
    first, again, other = (ProductQuantizer(3, 8, random_state=s).fit(X) for s in (0, 0, 1))
    np.testing.assert_array_equal(first.codebooks_, again.codebooks_)
    assert (first.codebooks_ != other.codebooks_).any()


def test_weights_draw_the_centroids():
    X, weights = table(), np.ones(500)
    weights[:50] = 1000
    plain, weighted = (
        (
            (X - ProductQuantizer(3, 16, random_state=0).fit(X, sample_weight=w).compress().reconstruct())
            ** 2
        ).sum(1)
        for w in (None, weights)
    )
    assert weighted[:50].sum() < 0.6 * plain[:50].sum()
    assert weighted.sum() > plain.sum()


def test_backends_end_equally_well():
    errors = [
        ProductQuantizer(3, 16, random_state=0, backend=b).fit(table()).objective_[-1]
        for b in ("numpy", None)
    ]
    np.testing.assert_allclose(*errors, rtol=0.03)


def test_float64_rows_are_coded_as_float32_ones():
    X = table()
    model = ProductQuantizer(3, 8, random_state=0).fit(X)
    np.testing.assert_array_equal(model.transform(X.astype(np.float64)), model.codes_)


@pytest.mark.parametrize(
    ("parameters", "error", "message"),
    [
        ({"n_groups": 5}, ValueError, "n_groups=5 does not divide dim=12; divisors near 5: 4, 6"),
        ({"n_groups": 0}, ValueError, "n_groups=0"),
        ({"n_groups": 2.0}, TypeError, r"n_groups=2\.0"),
        ({"n_codes": 501}, ValueError, "n_codes=501 needs at least 501 rows, got n_samples=500"),
        ({"n_codes": 1}, ValueError, "n_codes=1"),
        ({"max_iter": 0}, ValueError, "max_iter=0"),
        ({"backend": "torch"}, ValueError, "backend='torch'"),
    ],
)
def test_bad_parameters(parameters, error, message):
    with pytest.raises(error, match=message):
        ProductQuantizer(**{"n_groups": 3, "n_codes": 8} | parameters).fit(table())


def test_bad_codes():
    model = ProductQuantizer(3, 8, random_state=0).fit(table())
    with pytest.raises(IndexError, match=r"\[0, 8\), got 8"):
        model.inverse_transform([[0, 1, 8]])
    with pytest.raises(TypeError, match="integers"):
        model.inverse_transform([[0.0, 1.0, 2.0]])
    with pytest.raises(ValueError, match=r"Z has shape \(1, 2\); it takes \(rows, 3\)"):
        model.inverse_transform([[0, 1]])


@pytest.mark.skipif(
    "DPQ_REF_DATA" not in os.environ, reason="DPQ_REF_DATA does not name the folder of tables"
)
def test_word_vectors_as_well_as_scikit_learn():
    path = Path(os.environ["DPQ_REF_DATA"]) / "embeddings/glove-6b-300d-3k.npz"
    X = np.load(path)["vectors"][:, :24]
    model = ProductQuantizer(4, 32, random_state=0, max_iter=100).fit(X)
    oracle = sum(SklearnKMeans(32, random_state=0).fit(X[:, 6 * j : 6 * j + 6]).inertia_ for j in range(4))
    assert abs(model.objective_[-1] / oracle - 1) < 0.02
