"""Errors, cosines and neighbours against the plain formula, in loops."""

import numpy as np
import pytest

from dpq_ref.compressed import DenseTable
from dpq_ref.metrics import (
    METRICS,
    judge,
    mean_cosine,
    mean_squared_error,
    neighbour_overlap,
    relative_error,
)
from dpq_ref.metrics import geometry as module

SHAPES = [(60, 7), (7, 60), (20, 1), (1, 299), (12, 12)]


def pair(n, d, seed=0, dtype=np.float64):
    rng = np.random.default_rng(seed)
    table = rng.standard_normal((n, d)) + 0.3
    return table.astype(dtype), (table + 0.5 * rng.standard_normal((n, d))).astype(dtype), rng.random(n)


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    monkeypatch.setattr(module, "BLOCK", 40)


def test_a_compressed_table_is_as_its_rows():
    X, Y, w = pair(60, 7, dtype=np.float32)
    for metric in (relative_error, mean_squared_error):
        assert metric(X, DenseTable(Y), w) == metric(X, Y, w)
        with pytest.raises(ValueError, match=r"other has shape \(59, 7\); for this table it takes \(60, 7\)"):
            metric(X, DenseTable(Y[:59]))
        Y[50, 3] = np.inf
        with pytest.raises(ValueError, match="other has an entry that is NaN or infinite"):
            metric(X, DenseTable(Y))
        Y[50, 3] = 0


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_errors_and_cosines(shape, dtype):
    X, Y, w = pair(*shape, dtype=dtype)
    x, y = X.astype(np.float64), Y.astype(np.float64)
    squares, norms = ((x - y) ** 2).sum(axis=1), (x**2).sum(axis=1)
    cosines = (x * y).sum(axis=1) / np.sqrt(norms * (y**2).sum(axis=1))
    for weights, v in ((None, np.ones(len(X))), (w, w)):
        expected = v @ squares / v.sum() / shape[1]
        np.testing.assert_allclose(mean_squared_error(X, Y, weights), expected, rtol=1e-12)
        np.testing.assert_allclose(relative_error(X, Y, weights), v @ squares / (v @ norms), rtol=1e-12)
        np.testing.assert_allclose(mean_cosine(X, Y, weights), v @ cosines / v.sum(), rtol=1e-12)


def test_float64_of_float32_tables():
    X = np.full((1000, 3), 4096.0, np.float32)
    Y = X + np.float32(2**-11)
    assert mean_squared_error(X, Y) == pytest.approx(2**-22, rel=1e-9)


@pytest.mark.parametrize("function", [mean_squared_error, relative_error, mean_cosine])
def test_weights(function):
    X, Y, w = pair(30, 5)
    for scale in (1e-300, 7.0, 1e300):
        np.testing.assert_allclose(function(X, Y, scale * w), function(X, Y, w), rtol=1e-12)
    np.testing.assert_allclose(function(X, Y, np.full(30, 3)), function(X, Y), rtol=1e-12)
    w[10:] = 0
    np.testing.assert_allclose(function(X, Y, w), function(X[:10], Y[:10], w[:10]), rtol=1e-12)
    repeated = np.repeat(np.arange(10), 3)
    np.testing.assert_allclose(
        function(X[repeated], Y[repeated]), function(X[:10], Y[:10], np.full(10, 3)), rtol=1e-12
    )


def test_cosine_of_zero_rows():
    X = np.array([[1.0, 1.0], [0.0, 0.0], [0.0, 0.0], [2.0, 0.0]])
    Y = np.array([[1.0, 1.0], [0.0, 0.0], [1.0, 0.0], [0.0, 0.0]])
    assert mean_cosine(X, Y, [1, 0, 0, 0]) == pytest.approx(1)
    assert [mean_cosine(X, Y, np.eye(4)[i]) for i in (1, 2, 3)] == [1, 0, 0]


@pytest.mark.parametrize("scale", [1e-130, 1e-30, 1.0, 1e30, 1e130])
def test_scale(scale):
    X, Y, w = pair(30, 5)
    assert mean_cosine(scale * X, Y) == pytest.approx(mean_cosine(X, Y), rel=1e-12)
    assert relative_error(scale * X, scale * Y) == pytest.approx(relative_error(X, Y), rel=1e-12)
    assert neighbour_overlap(X, scale * X) == 1


def test_a_table_is_like_itself():
    X, _, w = pair(40, 6)
    found = judge(X, X, w)
    assert found["mean_squared_error"] == found["relative_error"] == 0
    assert found["relative_pip_loss"] < 1e-14
    for name in ("mean_cosine", "weighted_mean_cosine", "neighbour_overlap", "eigenspace_overlap"):
        assert found[name] == pytest.approx(1, abs=1e-12)
    assert found["delta_1"] < 1e-12 and found["delta_2"] < 1e-12


# --- Neighbours -----------------------------------------------------------------------------------------


def overlap_in_loops(X, Y, k):
    def neighbours(T):
        T = T / np.maximum(np.linalg.norm(T, axis=1, keepdims=True), 1e-300)
        found = []
        for i in range(len(T)):
            cosines = [round(float(T[i] @ row), 9) for row in T]
            ranked = sorted((j for j in range(len(T)) if j != i), key=lambda j: (-cosines[j], j))
            found.append(set(ranked[:k]))
        return found

    return np.mean([len(a & b) / k for a, b in zip(neighbours(X), neighbours(Y), strict=True)])


@pytest.mark.parametrize("shape", [(60, 7), (30, 40), (20, 1)])
@pytest.mark.parametrize("k", [1, 3, 10])
def test_neighbours(shape, k):
    X, Y, _ = pair(*shape)
    assert neighbour_overlap(X, Y, k) == pytest.approx(overlap_in_loops(X, Y, k), abs=1e-12)
    assert neighbour_overlap(X, Y, shape[0] - 1) == 1


@pytest.mark.parametrize("block", [40, 1000, 1 << 22])
def test_neighbours_with_ties_and_zero_rows(block, monkeypatch):
    monkeypatch.setattr(module, "BLOCK", block)
    rng = np.random.default_rng(3)
    X = rng.standard_normal((50, 5))
    Y = X[rng.integers(0, 4, 50)] * rng.random((50, 1)).round(1)  # four directions, and zeros
    assert (Y == 0).all(axis=1).any()
    for k in (1, 5, 20):
        assert neighbour_overlap(X, Y, k) == pytest.approx(overlap_in_loops(X, Y, k), abs=1e-12)


def test_neighbours_need_not_have_the_same_width_and_stay_under_rotation():
    X, _, _ = pair(50, 6)
    rotation = np.linalg.qr(np.random.default_rng(1).standard_normal((9, 6)))[0]
    assert neighbour_overlap(X, X @ rotation.T) == 1
    assert neighbour_overlap(X, X[:, :3]) < 1


def test_sample_of_queries(monkeypatch):
    monkeypatch.setattr(module, "BLOCK", 10_000)
    X, Y, _ = pair(300, 5)
    whole = neighbour_overlap(X, Y)
    parts = [neighbour_overlap(X, Y, n_queries=60, random_state=seed) for seed in range(30)]
    assert parts[3] == neighbour_overlap(X, Y, n_queries=60, random_state=3)
    assert len(set(parts)) > 10
    assert abs(np.mean(parts) - whole) < 4 * np.std(parts) / np.sqrt(30)


# --- Doors ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("function", [mean_squared_error, relative_error, mean_cosine])
@pytest.mark.parametrize(
    ("weights", "message"),
    [
        (np.ones(4), r"weights has shape \(4,\); for 5 rows it takes \(5,\)"),
        ([1, 1, -2, 1, 1], "1 of 5 are not, the first -2.0 in row 2"),
        ([1, 1, np.nan, 1, 1], "the first nan in row 2"),
        (np.zeros(5), "zero in all rows"),
    ],
)
def test_bad_weights(function, weights, message):
    with pytest.raises(ValueError, match=message):
        function(np.ones((5, 2)), np.ones((5, 2)), weights)


@pytest.mark.parametrize("function", [mean_squared_error, relative_error, mean_cosine, neighbour_overlap])
def test_bad_tables(function):
    X = np.ones((5, 2))
    with pytest.raises(ValueError, match="other has shape"):
        function(X, np.ones((4, 2)))
    with pytest.raises(ValueError, match="table has no rows"):
        function(X[:0], X[:0])
    with pytest.raises(ValueError, match="other has 1 entry that is NaN"):
        function(X, np.where(np.arange(10).reshape(5, 2) == 3, np.nan, X))
    with pytest.raises(ValueError, match="table has entries beyond"):
        function(1e200 * X, X)


def test_doors():
    X = np.ones((5, 2))
    with pytest.raises(ValueError, match=r"other has shape \(5, 3\); for this table it takes \(5, 2\)"):
        mean_squared_error(X, np.ones((5, 3)))
    with pytest.raises(ValueError, match="needs a norm"):
        relative_error(0 * X, X)
    with pytest.raises(ValueError, match="needs a norm"):
        relative_error(np.diag([0.0, 1.0]), np.eye(2), [1, 0])
    with pytest.raises(ValueError, match="k=5; a row of a table of 5 rows has 4 neighbours"):
        neighbour_overlap(X, X, 5)
    with pytest.raises(TypeError, match="k=2.0"):
        neighbour_overlap(X, X, 2.0)
    with pytest.raises(ValueError, match="n_queries=0"):
        neighbour_overlap(X, X, 2, n_queries=0)


@pytest.mark.parametrize("layout", ["half", "fortran", "strided"])
def test_layouts(layout):
    X, Y, w = pair(30, 6, dtype=np.float32)
    make = {
        "half": lambda T: T.astype(np.float16),
        "fortran": np.asfortranarray,
        "strided": lambda T: np.repeat(T, 2, axis=1)[:, ::2],
    }[layout]
    plain = judge(make(X).astype(np.float32).copy(), make(Y).astype(np.float32).copy(), w)
    assert judge(make(X), make(Y), w) == plain


# --- All at once ----------------------------------------------------------------------------------------


def test_judge_gives_what_the_functions_give():
    X, Y, w = pair(40, 6)
    found = judge(X, Y, w, random_state=5)
    for name, value in found.items():
        function = METRICS[name].function
        if name == "isotropy":
            expected = function(Y)
        elif name.startswith("weighted_"):
            expected = function(X, Y, w)
        elif name.startswith("delta_"):
            expected = getattr(function(X, Y), name)
        elif name == "neighbour_overlap":
            expected = function(X, Y, random_state=5)
        else:
            expected = function(X, Y)
        assert value == expected
    assert set(judge(X, Y)) == {name for name in found if not name.startswith("weighted_")}


def test_judge_leaves_out_what_is_not_defined():
    X, Y, w = pair(40, 6)
    narrow = judge(X, Y[:, :4], w)
    assert set(judge(X, Y)) - set(narrow) == {"mean_squared_error", "relative_error", "mean_cosine"}
    assert set(judge(X, Y)) - set(judge(X[:10], Y[:10])) == {"neighbour_overlap"}
    assert all(np.isfinite(list(narrow.values())))


@pytest.mark.parametrize(
    "make",
    [
        lambda rng: np.ones((1, 1)),
        lambda rng: rng.standard_normal((1, 7)),
        lambda rng: rng.standard_normal((30, 1)),
        lambda rng: np.ones((30, 4)),
        lambda rng: rng.standard_normal((3, 5))[rng.integers(0, 3, 30)],
        lambda rng: rng.standard_normal((40, 299)),
        lambda rng: rng.standard_normal((40, 2)) @ rng.standard_normal((2, 9)),
    ],
)
def test_degenerate_tables_have_numbers(make):
    rng = np.random.default_rng(0)
    X = make(rng)
    for other in (X, np.zeros_like(X), X + rng.standard_normal(X.shape), -X, np.ones((len(X), 3))):
        found = judge(X, other, rng.random(len(X)))
        assert np.isfinite(list(found.values())).all()
        assert 0 <= found["eigenspace_overlap"] <= 1 and 0 <= found["isotropy"] <= 1


def test_registry():
    for name, metric in METRICS.items():
        assert metric.name == name and metric.label and metric.better in ("higher", "lower")
        assert metric.axis.endswith("is better")
