"""Product quantization: k-means in each group and nothing else; and with the rotation that suits it."""

import os
from pathlib import Path

import numpy as np
import pytest
from scipy.linalg import orthogonal_procrustes
from sklearn.cluster import KMeans as SklearnKMeans

from baselines import OptimizedProductQuantizer, ProductQuantizer
from baselines.product import expected_error, principal_groups
from dpq_ref.compressed import load
from dpq_ref.kmeans import KMeans


def table(n=500, d=12, seed=0, dtype=np.float32):
    return np.random.default_rng(seed).standard_normal((n, d)).astype(dtype)


def spread(n=1000, d=12, seed=0, dtype=np.float32):
    """Variances that fall fast, in directions that are no columns."""
    rng = np.random.default_rng(seed)
    mixed = np.linalg.qr(rng.standard_normal((d, d)))[0]
    return (rng.standard_normal((n, d)) * 0.7 ** np.arange(d) @ mixed + 0.3).astype(dtype)


def frequencies(n, seed=1):
    return np.random.default_rng(seed).zipf(1.5, n).clip(max=10**4) - 1.0  # many zeros


def squared(X, Y, weights=1.0):
    return float((weights * ((X - Y).astype(np.float64) ** 2).sum(axis=1)).sum())


DEGENERATE = {
    "two rows": table(2),
    "one column": table(d=1),
    "7 columns": table(d=7),
    "299 columns": table(60, 299),
    "zeros": np.zeros((50, 12), np.float32),
    "constant": np.full((50, 12), 3, np.float32),
    "constant columns": table() * (np.arange(12) % 3 == 0) + np.float32(5),
    "three distinct rows": np.tile(table(3), (20, 1)),
    "rank 2": table(100, 2) @ table(2, 12),
    "huge": table() * np.float32(1e15),
    "tiny": table() * np.float32(1e-15),
    "far off centre": table() + np.float32(1000),
    "Fortran": np.asfortranarray(table()),
    "float16": table().astype(np.float16),
    "float64": table(dtype=np.float64),
}


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
        ({"n_groups": 13}, ValueError, "n_groups=13; a table of 12 columns takes at most 12"),
        ({"n_groups": 13, "n_codes": None, "ratio": 2}, ValueError, "n_groups=13; a table of 12 columns"),
        ({"n_groups": 0}, ValueError, "n_groups=0"),
        (
            {"n_codes": None},
            ValueError,
            "n_groups=3; it takes n_groups and n_codes, or one of bits and ratio",
        ),
        (
            {"n_groups": None},
            ValueError,
            "n_codes=8; it takes n_groups and n_codes, or one of bits and ratio",
        ),
        ({"ratio": 2}, ValueError, "n_groups=3, n_codes=8, ratio=2; it takes"),
        ({"n_groups": None, "bits": 10, "ratio": 2}, ValueError, "n_codes=8, bits=10, ratio=2; it takes"),
        (
            {"n_codes": None, "bits": 10},
            ValueError,
            "n_groups=3, bits=10 cannot be met for a table of 500 x 12",
        ),
        ({"n_codes": 2.5, "n_groups": None, "bits": 10**5}, TypeError, r"n_codes=2\.5"),
        ({"n_groups": None, "ratio": 0}, ValueError, "ratio=0"),
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


# --- Groups that are not equally wide, and budgets --------------------------------------------------------


@pytest.mark.parametrize(("d", "n_groups"), [(7, 2), (7, 3), (7, 6), (12, 5), (299, 37), (5, 4)])
@pytest.mark.parametrize("n_codes", [2, 5, 16])
def test_ragged_groups(d, n_groups, n_codes, tmp_path):
    X = table(300, d)
    model = ProductQuantizer(n_groups, n_codes, random_state=0).fit(X)
    blocks = np.array_split(np.arange(d), n_groups)  # the same convention: the first are the wider
    assert model.codebooks_.shape == (n_groups, n_codes, len(blocks[0]))
    error, by_hand = 0.0, np.empty_like(X)
    for j, block in enumerate(blocks):
        book = model.codebooks_[j, :, : len(block)]
        assert not model.codebooks_[j, :, len(block) :].any()
        distances = ((X[:, None, block] - book) ** 2).sum(axis=2)
        np.testing.assert_array_equal(model.codes_[:, j], distances.argmin(axis=1))
        error += distances.min(axis=1).sum(dtype=np.float64)
        by_hand[:, block] = book[model.codes_[:, j]]
    np.testing.assert_allclose(model.objective_[-1], error, rtol=1e-5)
    np.testing.assert_array_equal(model.transform(X), model.codes_)
    np.testing.assert_array_equal(model.inverse_transform(model.codes_), by_hand)
    compressed = model.compress()
    code_bits = {2: 1, 5: 3, 16: 4}[n_codes]
    assert compressed.bits() == {"codes": 300 * n_groups * code_bits, "codebooks": 32 * n_codes * d}
    compressed.save(tmp_path / "table")
    np.testing.assert_array_equal(load(tmp_path / "table").reconstruct(), by_hand)
    np.testing.assert_array_equal(load(tmp_path / "table").lookup([3, 299, 3]), by_hand[[3, 299, 3]])


@pytest.mark.parametrize("method", [ProductQuantizer, OptimizedProductQuantizer])
@pytest.mark.parametrize(("n", "d"), [(30_522, 384), (5050, 50), (400_000, 300), (100, 7)])
@pytest.mark.parametrize("ratio", [1.5, 4, 8, 16, 32, 64])
def test_budget_takes_what_is_expected_to_be_best(method, n, d, ratio):
    budget = 32 * n * d / ratio
    rotation = 32 * d * d if method is OptimizedProductQuantizer else 0

    def bits(n_groups, n_codes):
        return n * n_groups * int(np.log2(n_codes)) + 32 * n_codes * d + rotation

    powers = [k for k in (2, 4, 8, 16, 32, 64, 128, 256) if k <= n]
    choices = [(j, k) for j in range(1, d + 1) for k in powers if bits(j, k) <= budget]
    model = method(ratio=ratio)
    if not choices:
        with pytest.raises(ValueError, match=rf"ratio={ratio} cannot be met .* {bits(1, 2)} bits"):
            model._size(n, d)
        return
    size = model._size(n, d)
    assert (size["n_groups"], size["n_codes"]) in choices
    errors = {choice: expected_error(d, n_groups=choice[0], n_codes=choice[1]) for choice in choices}
    assert expected_error(d, **size) == min(errors.values())
    assert size == method(bits=int(budget))._size(n, d)
    for given in ({"n_groups": 1}, {"n_codes": 2}):
        size = method(ratio=ratio, **given)._size(n, d)
        ((name, value),) = given.items()
        assert size[name] == value
        free = [j for j, k in choices if k == 2] if name == "n_codes" else [k for j, k in choices if j == 1]
        assert max(free) == size["n_codes" if name == "n_groups" else "n_groups"]


@pytest.mark.parametrize(("s", "n_codes"), [(1, 2), (1, 16), (2, 16), (2, 256), (4, 16), (6, 256), (12, 64)])
def test_expected_error_is_near_that_of_gaussian_columns(s, n_codes):
    X = np.random.default_rng(0).standard_normal((30_000, s))
    model = ProductQuantizer(1, n_codes, random_state=0, max_iter=15).fit(X)
    expected = expected_error(s, n_groups=1, n_codes=n_codes)
    assert 0.95 < expected / (model.objective_[-1] / squared(X, 0)) < 1.35


def test_expected_error_of_ragged_groups_is_the_mean_over_the_columns():
    errors = [expected_error(s, n_groups=1, n_codes=16) for s in (3, 2)]
    expected = (2 * 3 * errors[0] + 3 * 2 * errors[1]) / 12
    np.testing.assert_allclose(expected_error(12, n_groups=5, n_codes=16), expected)
    assert 0 < expected_error(400, n_groups=1, n_codes=65_536) < 1


@pytest.mark.parametrize("cls", [ProductQuantizer, OptimizedProductQuantizer])
@pytest.mark.parametrize("name", DEGENERATE)
@pytest.mark.parametrize("weighted", [False, True])
def test_degenerate_tables(cls, name, weighted):
    X = DEGENERATE[name]
    n, d = X.shape
    weights = np.arange(n) % 3.0 if weighted else None
    model = cls(min(5, d), min(8, n), random_state=0).fit(X, sample_weight=weights)
    Y = model.compress().reconstruct()
    assert np.isfinite(Y).all() and np.isfinite(model.objective_).all()
    error, whole = squared(X, Y, 1 if weights is None else weights), squared(X, 0)
    np.testing.assert_allclose(error, model.objective_[-1], rtol=1e-3, atol=1e-11 * whole)
    if name in ("two rows", "zeros", "constant", "three distinct rows"):
        assert error <= 1e-12 * whole
    np.testing.assert_array_equal(model.transform(X), model.codes_)


# --- The rotation -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("n_groups", [4, 5])
def test_rotation_starts_from_product_quantization_and_is_never_worse(weighted, n_groups):
    X = spread()
    weights = frequencies(1000) if weighted else np.ones(1000)
    start = ProductQuantizer(n_groups, 16, random_state=3).fit(X, sample_weight=weights)
    model = OptimizedProductQuantizer(n_groups, 16, init="pq", random_state=3)
    model.fit(X, sample_weight=weights)
    np.testing.assert_array_equal(model.objective_[: start.n_iter_], start.objective_)
    errors = [squared(X, m.compress().reconstruct(), weights) for m in (start, model)]
    assert errors[1] < 0.8 * errors[0]
    np.testing.assert_allclose(errors[1], model.objective_[-1], rtol=1e-5)


@pytest.mark.parametrize("init", ["pq", "parametric"])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_rotation_is_orthogonal_and_error_never_rises(init, weighted, dtype):
    X = spread(dtype=dtype)
    weights = frequencies(1000) if weighted else None
    model = OptimizedProductQuantizer(3, 16, init=init, random_state=0, max_iter=50)
    model.fit(X, sample_weight=weights)
    rounding = 1e-6 if dtype == np.float32 else 1e-12
    assert (model.objective_[1:] <= model.objective_[:-1] * (1 + rounding)).all()
    assert model.rotation_.dtype == dtype
    np.testing.assert_allclose(model.rotation_.T @ model.rotation_, np.eye(12), atol=3 * rounding)


@pytest.mark.parametrize("init", ["pq", "parametric"])
def test_rotation_is_what_decaying_directions_need(init):
    X = spread(4000, 16)
    plain = ProductQuantizer(4, 16, random_state=0).fit(X).objective_[-1]
    model = OptimizedProductQuantizer(4, 16, init=init, random_state=0, max_iter=40).fit(X)
    assert model.objective_[-1] < 0.7 * plain


def test_rotation_step_is_weighted_procrustes():
    X, weights = spread(300, dtype=np.float64), np.random.default_rng(2).integers(0, 4, 300)
    model = OptimizedProductQuantizer(3, 8, random_state=0, max_iter=1, inner_iter=1)
    model.fit(X, sample_weight=weights)
    Y = model._joined(model.codes_, model.codebooks_)
    rotation = model._procrustes(X, weights, Y)
    oracle, _ = orthogonal_procrustes(np.repeat(X, weights, axis=0), np.repeat(Y, weights, axis=0))
    np.testing.assert_allclose(rotation, oracle, atol=1e-10)
    best = squared(X @ rotation, Y, weights)
    rng = np.random.default_rng(0)
    for step in (1e-3, 1e-2, 0.1, 1):
        for _ in range(20):
            other = np.linalg.qr(rotation + step * rng.standard_normal((12, 12)))[0]
            for turned in (other, -other, other * np.sign(np.diag(other.T @ rotation))):
                assert squared(X @ turned, Y, weights) >= best


@pytest.mark.parametrize("weighted", [False, True])
def test_parametric_start_does_not_see_how_the_table_is_turned(weighted):
    X, weights = spread(dtype=np.float64), frequencies(1000) if weighted else None
    turn = np.linalg.qr(np.random.default_rng(5).standard_normal((12, 12)))[0]
    straight, turned = (
        OptimizedProductQuantizer(3, 16, init="parametric", random_state=0, max_iter=3)
        .fit(T, sample_weight=weights)
        .objective_
        for T in (X, X @ turn)
    )
    np.testing.assert_allclose(straight, turned, rtol=1e-8)


@pytest.mark.parametrize("widths", [[2, 2, 2, 2], [3, 3, 2], [8], [1] * 8])
@pytest.mark.parametrize("weighted", [False, True])
def test_principal_directions_are_dealt_out_evenly(widths, weighted):
    X = spread(500, 8, dtype=np.float64)
    weights = frequencies(500) if weighted else np.ones(500)
    directions = principal_groups(X, weights, np.array(widths))
    np.testing.assert_allclose(directions.T @ directions, np.eye(8), atol=1e-12)
    covariance = directions.T @ np.cov(X.T, aweights=weights, ddof=0) @ directions
    variances = np.diag(covariance)
    np.testing.assert_allclose(covariance, np.diag(variances), atol=1e-12 * variances.max())
    groups = np.split(variances, np.cumsum(widths)[:-1])
    assert all((np.diff(group) <= 1e-12).all() for group in groups)
    if widths == [2, 2, 2, 2]:  # the first four open the groups; then the smallest product takes the largest
        falling = np.sort(variances)[::-1]
        for group, pair in zip(groups, [(0, 7), (1, 6), (2, 5), (3, 4)], strict=True):
            np.testing.assert_allclose(group, falling[list(pair)], rtol=1e-9)


def test_rows_are_rotated_back():
    X, new = spread(), spread(50, seed=1)
    model = OptimizedProductQuantizer(3, 8, random_state=0).fit(X)
    distances = (((new @ model.rotation_).reshape(50, 3, 1, 4) - model.codebooks_) ** 2).sum(axis=3)
    np.testing.assert_array_equal(model.transform(new), distances.argmin(axis=2))
    np.testing.assert_array_equal(model.transform(X), model.codes_)
    rotated = np.concatenate([model.codebooks_[j, model.codes_[:, j]] for j in range(3)], axis=1)
    np.testing.assert_allclose(model.inverse_transform(model.codes_), rotated @ model.rotation_.T, atol=1e-5)
    np.testing.assert_array_equal(model.compress().reconstruct(), model.inverse_transform(model.codes_))
    for i in range(5):  # a row is coded the same in any batch
        np.testing.assert_array_equal(model.transform(X[i : i + 1])[0], model.codes_[i])


@pytest.mark.parametrize(("d", "n_groups"), [(12, 3), (7, 3)])
def test_rotation_in_the_file(d, n_groups, tmp_path):
    X = spread(300, d)
    model = OptimizedProductQuantizer(n_groups, 16, random_state=0).fit(X)
    compressed = model.compress()
    assert compressed.bits() == {"codes": 1200 * n_groups, "codebooks": 512 * d, "basis": 32 * d * d}
    compressed.save(tmp_path / "table")
    np.testing.assert_array_equal(load(tmp_path / "table").reconstruct(), compressed.reconstruct())
    np.testing.assert_array_equal(compressed.reconstruct(), model.inverse_transform(model.codes_))


def test_rotation_from_one_seed():
    first, again, other = (OptimizedProductQuantizer(3, 8, random_state=s).fit(spread()) for s in (0, 0, 1))
    np.testing.assert_array_equal(first.codebooks_, again.codebooks_)
    np.testing.assert_array_equal(first.rotation_, again.rotation_)
    assert (first.codebooks_ != other.codebooks_).any()


def test_rotation_ends_early_once_nothing_is_gained():
    model = OptimizedProductQuantizer(2, 4, random_state=0, max_iter=10**6).fit(spread(100, 4))
    assert model.n_iter_ < 1000


@pytest.mark.parametrize(
    ("parameters", "error", "message"),
    [
        ({"init": "pca"}, ValueError, "init='pca'; it takes 'parametric' or 'pq'"),
        ({"inner_iter": 0}, ValueError, "inner_iter=0"),
        ({"max_iter": 0}, ValueError, "max_iter=0"),
        ({"n_groups": 13}, ValueError, "n_groups=13; a table of 12 columns"),
        ({"n_groups": None, "ratio": 30}, ValueError, "ratio=30 cannot be met"),
    ],
)
def test_bad_parameters_of_the_rotation(parameters, error, message):
    with pytest.raises(error, match=message):
        OptimizedProductQuantizer(**{"n_groups": 3, "n_codes": 8} | parameters).fit(table())


def test_a_sample_of_rows(monkeypatch):
    """Learned from K rows_per_code rows with weight, and codes of all; no sample where there are no more."""
    X = np.random.default_rng(0).standard_normal((600, 6)).astype(np.float32)
    seen = []
    fit = KMeans.fit
    monkeypatch.setattr(
        KMeans, "fit", lambda self, points, *more: seen.append(points) or fit(self, points, *more)
    )
    weights = np.r_[np.ones(500), np.zeros(100)]
    parameters = {"n_groups": 3, "n_codes": 8, "random_state": 0}
    sampled = ProductQuantizer(rows_per_code=20, **parameters).fit(X, sample_weight=weights)
    rows = {row.tobytes() for row in seen[0].reshape(-1, 6)}
    assert len(rows) == 160 and rows <= {row.tobytes() for row in X[:500]}
    np.testing.assert_array_equal(sampled.codes_, sampled.transform(X))
    whole, same = (ProductQuantizer(rows_per_code=r, **parameters).fit(X) for r in (None, 75))
    np.testing.assert_array_equal(whole.codebooks_, same.codebooks_)
    with pytest.raises(ValueError, match="rows_per_code=0"):
        ProductQuantizer(rows_per_code=0, **parameters).fit(X)
