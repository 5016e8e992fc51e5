"""Signs and random hyperplanes: angles, the best decoder, and what a scale is for."""

import os
from pathlib import Path

import numpy as np
import pytest

from baselines import ITQ, RandomHyperplanes, SignQuantizer, UniformQuantizer
from baselines.binary import linear_decoder, sides
from dpq_ref.compressed import ScalarTable
from dpq_ref.compressed.hamming import hamming_similarity


def table(n=300, d=9, seed=0, dtype=np.float64):
    rng = np.random.default_rng(seed)
    return (rng.standard_normal((n, d)) @ np.diag(0.8 ** np.arange(d)) + 0.3).astype(dtype)


def frequencies(n, seed=1):
    return np.random.default_rng(seed).zipf(1.5, n).clip(max=10**5).astype(float)


def error(X, model, weights=1.0):
    return float((weights * ((X - model.compress().reconstruct()) ** 2).sum(axis=1)).sum())


# --- Signs ----------------------------------------------------------------------------------------------


def test_one_scale_is_uniform_quantization_with_one_bit():
    X, weights = table(dtype=np.float32), frequencies(300)
    for w in (None, weights):
        signs = SignQuantizer().fit(X, sample_weight=w)
        uniform = UniformQuantizer(1).fit(X, sample_weight=w)
        np.testing.assert_array_equal(signs.codes_, uniform.codes_)
        np.testing.assert_allclose(
            signs.compress().reconstruct(), uniform.compress().reconstruct(), rtol=1e-6
        )
        assert signs.compress().bits() == uniform.compress().bits()


@pytest.mark.parametrize("scale", ["table", "column", "row"])
@pytest.mark.parametrize("weighted", [False, True])
def test_no_other_scale_is_better(scale, weighted):
    X = table()
    weights = frequencies(300) if weighted else np.ones(300)
    model = SignQuantizer(scale).fit(X, sample_weight=weights if weighted else None)
    axes = {"table": (0, 1), "column": 0, "row": 1}[scale]
    shape = model.scales_.shape
    by_hand = np.average(
        np.abs(X), axis=axes, weights=np.broadcast_to(weights[:, None], X.shape), keepdims=True
    )
    np.testing.assert_allclose(model.scales_, by_hand, rtol=1e-6)
    signs, best = np.where(X < 0, -1, 1), error(X, model, weights)
    np.testing.assert_allclose(model.compress().reconstruct(), signs * by_hand, rtol=1e-6)
    rng = np.random.default_rng(2)
    for step in (1e-3, 0.1):
        scales = model.scales_ * (1 + step * rng.standard_normal(shape))
        assert best < (weights[:, None] * (X - signs * scales) ** 2).sum()


def test_more_scales_lose_less_and_cost_more():
    X = table(dtype=np.float32)
    models = [SignQuantizer(scale).fit(X) for scale in ("table", "column", "row")]
    assert error(X, models[0]) > max(error(X, models[1]), error(X, models[2]))
    bits = [sum(model.compress().bits().values()) for model in models]
    assert bits == [300 * 9 + 32, 300 * 9 + 32 * 9, 300 * 9 + 32 * 300]


def test_gaussian_error_of_one_scale():
    X = np.random.default_rng(0).standard_normal((4000, 100))
    np.testing.assert_allclose(error(X, SignQuantizer().fit(X)) / X.size, 1 - 2 / np.pi, rtol=0.01)


@pytest.mark.parametrize("scale", ["table", "column", "row"])
def test_planted_signs_are_exact(scale):
    rng = np.random.default_rng(0)
    shape = {"table": (1, 1), "column": (1, 7), "row": (50, 1)}[scale]
    X = (rng.choice([-1, 1], (50, 7)) * rng.uniform(1, 2, shape)).astype(np.float32)
    model = SignQuantizer(scale).fit(X)
    np.testing.assert_allclose(model.compress().reconstruct(), X, rtol=1e-7)


def test_zeros_are_positive_and_a_zero_table_exact():
    X = np.float32([[0.0, -0.0, -1e-30], [0, 0, 0]])
    np.testing.assert_array_equal(SignQuantizer().fit_transform(X), [[1, 1, 0], [1, 1, 1]])
    for scale in ("table", "column", "row"):
        assert not SignQuantizer(scale).fit(np.zeros((4, 3))).compress().reconstruct().any()


def test_codes_of_new_rows_take_the_mean_of_the_row_scales():
    X, weights = table(), frequencies(300)
    model = SignQuantizer("row").fit(X, sample_weight=weights)
    one = SignQuantizer("table").fit(X, sample_weight=weights)
    rows = model.inverse_transform(np.eye(9, dtype=int))
    np.testing.assert_array_equal(rows, one.scales_ * (2 * np.eye(9) - 1))


def test_a_budget_is_kept_or_refused():
    X = table(dtype=np.float32)
    assert SignQuantizer("row", ratio=6).fit(X).compress().compression_ratio >= 6
    with pytest.raises(ValueError, match="ratio=8 cannot be met .* nearest are 12300 bits, ratio 7.02"):
        SignQuantizer("row", ratio=8).fit(X)
    with pytest.raises(ValueError, match="scale='group'; it takes 'table', 'column' or 'row'"):
        SignQuantizer("group").fit(X)


# --- Random hyperplanes ---------------------------------------------------------------------------------


@pytest.mark.parametrize("degrees", [0, 10, 45, 90, 135, 180])
def test_a_bit_differs_with_probability_angle_over_pi(degrees):
    angle, c = np.deg2rad(degrees), 40_000
    rng = np.random.default_rng(degrees)
    basis = np.linalg.qr(rng.standard_normal((20, 2)))[0].T
    X = np.float64([[1, 0], [np.cos(angle), np.sin(angle)]]) @ basis * [[3.0], [0.2]]
    codes = sides(X, rng.standard_normal((20, c)))
    share, p = (codes[0] != codes[1]).mean(), degrees / 180
    assert abs(share - p) <= 4 * np.sqrt(p * (1 - p) / c) + 1e-4


def test_the_hamming_distance_gives_the_angle():
    X = table(40, 20)
    codes = sides(X, np.random.default_rng(0).standard_normal((20, 8192)))
    cosine = X @ X.T / np.linalg.norm(X, axis=1) / np.linalg.norm(X, axis=1)[:, None]
    similarity = hamming_similarity(ScalarTable.from_codes(codes, 1), np.arange(40))
    np.testing.assert_allclose((1 - similarity) / 2, np.arccos(cosine.clip(-1, 1)) / np.pi, atol=0.03)
    signs = 2.0 * codes - 1
    np.testing.assert_allclose(similarity, signs @ signs.T / 8192, atol=1e-12)


def test_the_length_of_a_row_does_not_matter_and_the_mean_does():
    X = table()
    coder = RandomHyperplanes(n_bits=70, random_state=0).fit(X)
    scaled = X * 2.0 ** np.random.default_rng(0).integers(-9, 9, (300, 1))
    np.testing.assert_array_equal(coder.transform(scaled), coder.codes_)
    np.testing.assert_array_equal(coder.codes_, (X @ coder.hyperplanes_ >= 0))
    assert (coder.transform(X - X.mean(axis=0)) != coder.codes_).any()


def test_bits_of_a_row_do_not_depend_on_the_rows_beside_it():
    rng = np.random.default_rng(0)
    planes, X = rng.standard_normal((33, 100)), rng.standard_normal((100, 33))
    X -= (X * planes.T).sum(axis=1, keepdims=True) / (planes**2).sum(axis=0)[:, None] * planes.T
    X, planes = X.astype(np.float32), planes.astype(np.float32)  # row i is in plane i: its bit is rounding
    codes = sides(X, planes)
    for rows in (*(slice(i, i + 1) for i in range(100)), slice(3, 60), slice(None, None, -1)):
        np.testing.assert_array_equal(sides(X[rows], planes), codes[rows])


def test_seeds():
    X = table()
    a, b, c = (RandomHyperplanes(n_bits=20, random_state=seed).fit(X) for seed in (0, 0, 1))
    np.testing.assert_array_equal(a.decoder_, b.decoder_)
    assert (a.codes_ != c.codes_).any()


def test_more_bits_lose_less():
    X = table(2000, 16)
    errors = [error(X, RandomHyperplanes(n_bits=c, random_state=0).fit(X)) for c in (1, 8, 64, 512)]
    assert (np.diff(errors) < 0).all() and errors[-1] < 0.05 * errors[0]


# --- The decoder ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("shape", [(300, 9, 20), (30, 9, 50), (2, 3, 4), (1, 3, 4), (40, 1, 7)])
def test_decoder_is_that_of_weighted_least_squares(shape, weighted):
    n, d, c = shape
    X, codes = table(n, d), np.random.default_rng(3).integers(0, 2, (n, c)).astype(np.uint8)
    weights = frequencies(n) if weighted else np.ones(n)
    decoder, offset = linear_decoder(codes, X, weights)
    signs = np.c_[2.0 * codes - 1, np.ones(n)]
    root = np.sqrt(weights)[:, None]
    found = np.linalg.lstsq(root * signs, root * X, rcond=None)[0]
    np.testing.assert_allclose(signs @ np.r_[decoder, offset[None]], signs @ found, atol=1e-7)


def test_bits_that_are_constant_or_repeated_do_no_harm():
    X = table(dtype=np.float32)
    codes = sides(X, np.random.default_rng(0).standard_normal((9, 5)).astype(np.float32))
    padded = np.c_[codes, codes, 1 - codes, np.ones((300, 1)), np.zeros((300, 1))].astype(np.uint8)
    (A, o), (B, p) = (linear_decoder(bits, X, np.ones(300)) for bits in (codes, padded))
    np.testing.assert_allclose((2.0 * codes - 1) @ A + o, (2.0 * padded - 1) @ B + p, atol=1e-9)
    assert np.abs(B).max() <= np.abs(A).max()


def test_rows_without_weight_do_not_move_the_decoder():
    X, weights = table(), frequencies(300)
    weights[200:] = 0
    X[200:] *= 1e6
    a = RandomHyperplanes(n_bits=20, random_state=0).fit(X, sample_weight=weights)
    b = RandomHyperplanes(n_bits=20, random_state=0).fit(X[:200], sample_weight=weights[:200])
    np.testing.assert_allclose(a.decoder_, b.decoder_, atol=1e-6)
    np.testing.assert_allclose(a.offset_, b.offset_, atol=1e-6)


@pytest.mark.parametrize("cls", [RandomHyperplanes, ITQ])
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize(
    "X",
    [
        np.full((20, 7), 0.1),
        np.zeros((20, 7)),
        np.repeat([[1, 2, 3, 4, 5, 6, 7], [7, 6, 5, 4, 3, 2, 1]], 10, axis=0),
        np.outer(np.arange(-10, 10), np.ones(7)) * [1, 0, 1, 1, 1, 1, 0],
        np.ones((1, 7)),
    ],
    ids=["constant", "zeros", "two rows", "rank one", "one row"],
)
def test_degenerate_tables(cls, X, dtype):
    X = np.asfortranarray(X.astype(dtype))
    model = cls(n_bits=5, random_state=0).fit(X)
    decoded = model.compress().reconstruct()
    assert np.isfinite(decoded).all()
    few = len(np.unique(X, axis=0)) <= 2  # one hyperplane tells them apart
    np.testing.assert_allclose(decoded, X, atol=1e-5 if few else 5)


@pytest.mark.parametrize(("n", "d"), [(400, 7), (50, 299), (40, 1)])
@pytest.mark.parametrize("cls", [RandomHyperplanes, ITQ])
def test_bits(cls, n, d):
    X = table(n, d, dtype=np.float32)
    for c in sorted({1, d // 2 + 1, d}):
        bits = cls(n_bits=c, random_state=0).fit(X).compress().bits()
        assert bits == {"codes": n * c, "basis": 32 * c * d, "offset": 32 * d}
    budget = 5 * n + 32 * 6 * d + n // 2
    for model in (cls(bits=budget, random_state=0), cls(ratio=32 * n * d / budget, random_state=0)):
        used = sum(model.fit(X).compress().bits().values())
        assert used <= budget
        assert model.codes_.shape[1] == min(
            5 if n > 32 * d else (budget - 32 * d) // (n + 32 * d), model._most(d) or n
        )


@pytest.mark.parametrize(
    ("parameters", "error", "message"),
    [
        ({}, ValueError, "nothing is given; it takes n_bits, or one of bits and ratio"),
        ({"n_bits": 4, "ratio": 2}, ValueError, "n_bits=4, ratio=2; it takes"),
        ({"n_bits": 0}, ValueError, "n_bits=0"),
        ({"n_bits": 3.0}, TypeError, r"n_bits=3\.0"),
        ({"ratio": 100}, ValueError, r"cannot be met for a table of 300 x 9: the nearest are 876 bits"),
    ],
)
@pytest.mark.parametrize("cls", [RandomHyperplanes, ITQ])
def test_bad_parameters(cls, parameters, error, message):
    with pytest.raises(error, match=message):
        cls(**parameters).fit(table())


def test_bad_codes():
    model = RandomHyperplanes(n_bits=4, random_state=0).fit(table())
    with pytest.raises(IndexError, match=r"\[0, 2\), got 2"):
        model.inverse_transform([[0, 1, 2, 0]])
    with pytest.raises(ValueError, match=r"Z has shape \(1, 3\); it takes \(rows, 4\)"):
        model.inverse_transform([[0, 1, 1]])


@pytest.mark.skipif(
    "DPQ_REF_DATA" not in os.environ, reason="DPQ_REF_DATA does not name the folder of tables"
)
def test_word_vectors_at_equal_bits_learned_planes_are_better():
    X = np.load(Path(os.environ["DPQ_REF_DATA"]) / "embeddings/glove-6b-300d-3k.npz")["vectors"]
    drawn, learned = (cls(n_bits=64, random_state=0).fit(X) for cls in (RandomHyperplanes, ITQ))
    assert error(X, learned) < error(X, drawn) < ((X - X.mean(axis=0)) ** 2).sum()
