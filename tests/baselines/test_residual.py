"""Sums of codebooks: k-means where there is one, brute force where there are few codes, least squares."""

import itertools

import numpy as np
import pytest

from baselines import AdditiveQuantizer, ResidualQuantizer
from baselines.residual import expected_error
from dpq_ref import backend
from dpq_ref.compressed import load
from dpq_ref.kmeans import KMeans

CLASSES = [ResidualQuantizer, AdditiveQuantizer]


def table(n=400, d=8, seed=0, dtype=np.float32):
    rng = np.random.default_rng(seed)
    return (rng.standard_normal((n, d)) * 0.8 ** np.arange(d) + 0.3).astype(dtype)


def frequencies(n, seed=1):
    return np.random.default_rng(seed).zipf(1.5, n).clip(max=10**4) - 1.0  # many zeros


def squared(X, Y, weights=1.0):
    return float((weights * ((X - Y).astype(np.float64) ** 2).sum(axis=1)).sum())


def sums(model, codes):
    return model.mean_ + sum(book[codes[:, m]] for m, book in enumerate(model.codebooks_))


def optimal_errors(model, X):
    """The least error of each row over all K^M codes."""
    n_groups, n_codes, _ = model.codebooks_.shape
    every = np.array(list(itertools.product(range(n_codes), repeat=n_groups)))
    return ((X[:, None] - sums(model, every)) ** 2).sum(axis=2).min(axis=1)


# --- Residual quantization --------------------------------------------------------------------------------


@pytest.mark.parametrize("weighted", [False, True])
def test_one_codebook_is_k_means(weighted):
    X = table(dtype=np.float64)
    weights = frequencies(400) if weighted else np.ones(400)
    kmeans = KMeans(16, kernels=backend.get(), rng=np.random.default_rng(3)).fit(X[:, None], weights)
    model = ResidualQuantizer(1, 16, random_state=3).fit(X, sample_weight=weights)
    np.testing.assert_array_equal(model.codes_, kmeans.codes)
    np.testing.assert_allclose(model.mean_ + model.codebooks_[0], kmeans.centroids[0], atol=1e-12)
    np.testing.assert_allclose(model.objective_[-1], kmeans.objective[-1].sum())


@pytest.mark.parametrize("width", [1, 5])
@pytest.mark.parametrize("weighted", [False, True])
def test_error_falls_with_every_codebook(width, weighted):
    X, weights = table(), frequencies(400) if weighted else np.ones(400)
    errors = []
    for n_groups in range(1, 7):
        model = ResidualQuantizer(n_groups, 4, beam_width=width, random_state=0)
        model.fit(X, sample_weight=weights)
        errors.append(squared(X, model.compress().reconstruct(), weights))
    assert (np.diff(errors) < 0).all()
    np.testing.assert_allclose(model.objective_, errors, rtol=1e-4)  # stage by stage


def test_narrow_beam_is_greedy():
    X = table()
    model = ResidualQuantizer(4, 8, beam_width=1, random_state=0).fit(X)
    left, codes = X - model.mean_, []
    for book in model.codebooks_:
        codes.append(((left[:, None] - book) ** 2).sum(axis=2).argmin(axis=1))
        left = left - book[codes[-1]]
    np.testing.assert_array_equal(model.codes_, np.transpose(codes))


def test_wide_beam_is_optimal():
    X = table()
    model = ResidualQuantizer(3, 4, beam_width=16, random_state=0).fit(X)  # all beginnings are kept
    errors = ((X - model.inverse_transform(model.codes_)) ** 2).sum(axis=1)
    np.testing.assert_allclose(errors, optimal_errors(model, X), rtol=1e-4)
    narrow = ResidualQuantizer(3, 4, beam_width=1, random_state=0).fit(X)
    assert narrow.objective_[-1] > model.objective_[-1]


def test_beam_search_of_blocks(monkeypatch):
    X = table()
    whole = ResidualQuantizer(3, 4, random_state=0).fit(X)
    monkeypatch.setattr("baselines.residual.BLOCK", 64)
    blocks = ResidualQuantizer(3, 4, random_state=0).fit(X)
    np.testing.assert_array_equal(whole.codes_, blocks.codes_)
    np.testing.assert_array_equal(whole.codebooks_, blocks.codebooks_)
    whole, blocks = (AdditiveQuantizer(3, 4, random_state=0) for _ in range(2))
    blocks.fit(X)
    monkeypatch.undo()
    np.testing.assert_array_equal(whole.fit(X).codes_, blocks.codes_)


@pytest.mark.parametrize("cls", CLASSES)
def test_far_off_centre_is_as_good(cls):
    X = table()
    near, far = (cls(3, 8, random_state=0).fit(T).objective_[-1] for T in (X, X + np.float32(1000)))
    assert far < 1.02 * near


# --- Additive quantization --------------------------------------------------------------------------------


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_error_falls_with_every_turn(weighted, dtype):
    X = table(dtype=dtype)
    weights = frequencies(400) if weighted else np.ones(400)
    start = ResidualQuantizer(4, 8, random_state=0).fit(X, sample_weight=weights)
    model = AdditiveQuantizer(4, 8, random_state=0, max_iter=30).fit(X, sample_weight=weights)
    assert model.objective_[0] == start.objective_[-1]
    assert model.objective_[-1] < 0.9 * model.objective_[0]
    rounding = 1e-6 if dtype == np.float32 else 1e-12
    assert (model.objective_[1:] <= model.objective_[:-1] * (1 + rounding)).all()
    error = squared(X, model.compress().reconstruct(), weights)
    np.testing.assert_allclose(model.objective_[-1], error, rtol=1e-4)


@pytest.mark.parametrize("weighted", [False, True])
def test_codebooks_are_least_squares(weighted):
    X = table(dtype=np.float64)
    weights = frequencies(400) if weighted else np.ones(400)
    model = ResidualQuantizer(3, 5, random_state=0).fit(X, sample_weight=weights)
    codes = model.codes_
    additive = AdditiveQuantizer(3, 5, random_state=0)
    additive.mean_, additive.codebooks_, additive.codes_ = model.mean_, model.codebooks_, codes
    additive._fit_codebooks(X - model.mean_, weights)
    design = np.concatenate([np.eye(5)[codes[:, m]] for m in range(3)], axis=1)
    root = np.sqrt(weights)[:, None]
    oracle = np.linalg.lstsq(root * design, root * (X - model.mean_), rcond=None)[0]
    least = squared(X - model.mean_, design @ oracle, weights)
    np.testing.assert_allclose(squared(X, sums(additive, codes), weights), least, rtol=1e-9)
    assert least < 0.99 * squared(X, sums(model, codes), weights)


def test_weights_are_repetitions_in_the_codebooks():
    X, counts = table(dtype=np.float64), np.random.default_rng(1).integers(0, 4, 400)
    model = AdditiveQuantizer(3, 5, random_state=0, max_iter=1).fit(X)
    weighted, repeated = (AdditiveQuantizer(3, 5) for _ in range(2))
    for other, rows in ((weighted, slice(None)), (repeated, np.repeat(np.arange(400), counts))):
        other.mean_, other.codebooks_, other.codes_ = model.mean_, model.codebooks_, model.codes_[rows]
        other._fit_codebooks(X[rows], counts.astype(float) if other is weighted else np.ones(counts.sum()))
    np.testing.assert_allclose(weighted.codebooks_, repeated.codebooks_, atol=1e-8)


def test_a_search_never_makes_a_row_worse_and_often_ends_at_the_best():
    X = table(dtype=np.float64)
    model = AdditiveQuantizer(4, 4, random_state=0, max_iter=3, n_searches=8).fit(X)
    start = np.random.default_rng(0).integers(0, 4, (400, 4)).astype(np.int32)
    changes = model._changes(np.random.default_rng(1))
    assert changes.shape == (8, 4) and (changes >= 0).all() and (changes < 4).all() and changes.any()
    found = model._search(X - model.mean_, start, changes)
    before, after = (((X - sums(model, codes)) ** 2).sum(axis=1) for codes in (start, found))
    assert (after <= before + 1e-12).all()
    assert (after <= optimal_errors(model, X) + 1e-12).mean() > 0.8
    again = model._search(X - model.mean_, found, np.zeros((1, 4), int))
    np.testing.assert_array_equal(again, found)  # nothing changed: already the modes
    errors = ((X - model.inverse_transform(model.transform(X))) ** 2).sum(axis=1)
    assert (errors <= optimal_errors(model, X) + 1e-12).mean() > 0.95


@pytest.mark.parametrize("sweeps", [1, 2, 4])
def test_rows_left_out_are_at_their_modes(sweeps, monkeypatch):
    monkeypatch.setattr("baselines.residual.SWEEPS", sweeps)
    rng = np.random.default_rng(0)
    linear, pairs = rng.standard_normal((300, 6, 4)), rng.standard_normal((6, 4, 6, 4))
    pairs += pairs.transpose(2, 3, 0, 1)
    start = rng.integers(0, 4, (300, 6)).astype(np.int32)
    found = AdditiveQuantizer()._modes(start.copy(), linear, pairs)
    of_all_rows = backend.get().conditional_modes(start, linear, pairs, sweeps)
    np.testing.assert_array_equal(found[0], of_all_rows[0])
    np.testing.assert_array_equal(found[1], of_all_rows[1])


def test_planted_sums_are_found_from_one_of_four_seeds():
    rng = np.random.default_rng(0)
    planted, codes = rng.standard_normal((2, 4, 16)), rng.integers(0, 4, (1000, 2))
    X = planted[0][codes[:, 0]] + planted[1][codes[:, 1]]
    models = [AdditiveQuantizer(2, 4, random_state=s, max_iter=50).fit(X) for s in range(4)]
    assert min(model.objective_[-1] for model in models) < 1e-9 * squared(X, 0)
    assert min(model.objective_[0] for model in models) > 0.01 * squared(X, 0)


# --- Both -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cls", CLASSES)
@pytest.mark.parametrize(("n_groups", "n_codes"), [(1, 2), (3, 5), (4, 16)])
def test_artefact(cls, n_groups, n_codes, tmp_path):
    X = table(300)
    model = cls(n_groups, n_codes, random_state=0, max_iter=3).fit(X)
    assert model.codes_.shape == (300, n_groups) and model.codes_.dtype == np.int32
    np.testing.assert_allclose(model.inverse_transform(model.codes_), sums(model, model.codes_), atol=1e-6)
    compressed = model.compress()
    np.testing.assert_allclose(compressed.reconstruct(), sums(model, model.codes_), atol=1e-5)
    code_bits = {2: 1, 5: 3, 16: 4}[n_codes]
    assert compressed.bits() == {
        "codes": 300 * n_groups * code_bits,
        "codebooks": 32 * n_groups * n_codes * 8,
    }
    compressed.save(tmp_path / "table")
    np.testing.assert_array_equal(load(tmp_path / "table").reconstruct(), compressed.reconstruct())


@pytest.mark.parametrize("cls", CLASSES)
def test_codes_of_a_row_do_not_depend_on_the_rows_beside_it(cls):
    X, new = table(), table(100, seed=5)
    model = cls(4, 8, random_state=0).fit(X)
    codes = model.transform(new)
    for size in (1, 7):
        parts = [model.transform(new[i : i + size]) for i in range(0, 100, size)]
        np.testing.assert_array_equal(np.concatenate(parts), codes)
    if cls is ResidualQuantizer:
        np.testing.assert_array_equal(model.transform(X), model.codes_)


@pytest.mark.parametrize("cls", CLASSES)
def test_rows_without_weight_have_codes_but_no_say(cls):
    X, weights = table(dtype=np.float64), np.ones(400)
    weights[300:] = 0
    model, alone = (
        cls(3, 4, random_state=0).fit(X, sample_weight=weights),
        cls(3, 4, random_state=0).fit(X[:300]),
    )
    np.testing.assert_allclose(model.codebooks_, alone.codebooks_, atol=1e-9)
    np.testing.assert_array_equal(model.codes_[:300], alone.codes_)


@pytest.mark.parametrize("cls", CLASSES)
def test_seed_decides(cls):
    first, again, other = (cls(3, 8, random_state=s).fit(table()) for s in (0, 0, 1))
    np.testing.assert_array_equal(first.codebooks_, again.codebooks_)
    np.testing.assert_array_equal(first.codes_, again.codes_)
    np.testing.assert_array_equal(first.transform(table()), again.transform(table()))
    assert (first.codebooks_ != other.codebooks_).any()


@pytest.mark.parametrize("cls", CLASSES)
def test_backends_end_equally_well(cls):
    errors = [cls(3, 8, random_state=0, backend=b).fit(table()).objective_[-1] for b in ("numpy", None)]
    np.testing.assert_allclose(*errors, rtol=0.05)


DEGENERATE = {
    "two rows": table(2),
    "one column": table(d=1),
    "7 columns": table(d=7),
    "299 columns": table(60, 299),
    "zeros": np.zeros((50, 12), np.float32),
    "constant": np.full((50, 12), 3, np.float32),
    "constant columns": table() * (np.arange(8) % 3 == 0) + np.float32(5),
    "three distinct rows": np.tile(table(3), (20, 1)),
    "rank 2": table(100, 2) @ table(2, 12),
    "huge": table() * np.float32(1e15),
    "tiny": table() * np.float32(1e-15),
    "Fortran": np.asfortranarray(table()),
    "float16": table().astype(np.float16),
}


@pytest.mark.parametrize("cls", CLASSES)
@pytest.mark.parametrize("name", DEGENERATE)
@pytest.mark.parametrize("weighted", [False, True])
def test_degenerate_tables(cls, name, weighted):
    X = DEGENERATE[name]
    n = len(X)
    weights = np.arange(n) % 3.0 if weighted else np.ones(n)
    model = cls(3, min(8, n), random_state=0).fit(X, sample_weight=weights)
    Y = model.compress().reconstruct()
    assert np.isfinite(Y).all() and np.isfinite(model.objective_).all()
    error, whole = squared(X, Y, weights), squared(X, 0)
    np.testing.assert_allclose(error, model.objective_[-1], rtol=1e-3, atol=1e-11 * whole)
    if name in ("two rows", "zeros", "constant", "three distinct rows"):
        assert error <= 1e-11 * whole
    assert np.isfinite(model.inverse_transform(model.transform(X))).all()


@pytest.mark.parametrize("cls", CLASSES)
@pytest.mark.parametrize(("n", "d"), [(30_522, 384), (5050, 50), (100, 7)])
@pytest.mark.parametrize("ratio", [1.5, 8, 64])
def test_budget_takes_the_fewest_codebooks_that_are_expected_to_be_good(cls, n, d, ratio):
    budget = 32 * n * d / ratio
    choices = [(int(budget // (n * b + 32 * 2**b * d)), 1 << b) for b in range(1, 9) if 1 << b <= n]
    choices = [(m, k) for m, k in choices if m]
    model = cls(ratio=ratio)
    if not choices:
        with pytest.raises(ValueError, match=f"ratio={ratio} cannot be met"):
            model._size(n, d)
        return
    size = model._size(n, d)
    assert (size["n_groups"], size["n_codes"]) in choices
    errors = [expected_error(d, n_groups=m, n_codes=k) for m, k in choices]
    good = [m for (m, _), error in zip(choices, errors, strict=True) if error <= 1.02 * min(errors)]
    assert expected_error(d, **size) <= 1.02 * min(errors) and size["n_groups"] == min(good)
    two = cls(ratio=ratio, n_codes=2)._size(n, d)
    assert two == {"n_groups": dict(map(reversed, choices))[2], "n_codes": 2}
    one = cls(ratio=ratio, n_groups=1)._size(n, d)
    assert one == {"n_groups": 1, "n_codes": max(k for _, k in choices)}


@pytest.mark.parametrize("n_codes", [2, 4, 16, 64])
def test_expected_error_is_near_that_of_gaussian_rows(n_codes):
    X = np.random.default_rng(0).standard_normal((8000, 32))
    model = ResidualQuantizer(4, n_codes, random_state=0).fit(X)
    expected = expected_error(32, n_groups=4, n_codes=n_codes)
    assert 0.97 < expected / (model.objective_[-1] / squared(X, 0)) < 1.25


def test_one_row_of_codes_more_than_there_is_room_for():
    assert expected_error(1, n_groups=3, n_codes=256) > 0


@pytest.mark.parametrize("cls", CLASSES)
@pytest.mark.parametrize(
    ("parameters", "error", "message"),
    [
        ({"n_groups": 0}, ValueError, "n_groups=0"),
        ({"n_groups": 2.0}, TypeError, r"n_groups=2\.0"),
        ({"n_codes": 401}, ValueError, "n_codes=401 needs at least 401 rows, got n_samples=400"),
        ({"n_codes": 1}, ValueError, "n_codes=1"),
        ({"n_codes": None}, ValueError, "it takes n_groups and n_codes, or one of bits and ratio"),
        ({"n_codes": None, "bits": 10}, ValueError, "bits=10 cannot be met for a table of 400 x 8"),
        ({"n_codes": 2.5, "n_groups": None, "bits": 10**5}, TypeError, r"n_codes=2\.5"),
        ({"beam_width": 0}, ValueError, "beam_width=0"),
        ({"max_iter": 0}, ValueError, "max_iter=0"),
        ({"backend": "torch"}, ValueError, "backend='torch'"),
    ],
)
def test_bad_parameters(cls, parameters, error, message):
    with pytest.raises(error, match=message):
        cls(**{"n_groups": 3, "n_codes": 8} | parameters).fit(table())


def test_bad_number_of_searches():
    with pytest.raises(ValueError, match="n_searches=0"):
        AdditiveQuantizer(3, 8, n_searches=0).fit(table())


@pytest.mark.parametrize("cls", CLASSES)
def test_bad_codes(cls):
    model = cls(3, 8, random_state=0).fit(table())
    with pytest.raises(IndexError, match=r"\[0, 8\), got 8"):
        model.inverse_transform([[0, 1, 8]])
    with pytest.raises(ValueError, match=r"Z has shape \(1, 2\); it takes \(rows, 3\)"):
        model.inverse_transform([[0, 1]])
