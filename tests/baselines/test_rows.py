"""Blocks of rows: the same results as in one piece, and no copy of the table."""

import tracemalloc

import numpy as np
import pytest

from baselines import IIQ, GroupReduce, LowRank, ProductQuantizer, UniformQuantizer
from baselines import rows as module
from baselines.low_rank import right_vectors
from baselines.rows import Rows, blocks, sample
from dpq_ref import checks
from dpq_ref.compressed import base
from dpq_ref.metrics import geometry, relative_error

METHODS = {
    "product": ProductQuantizer(4, 16, rows_per_code=16, random_state=0),
    "product, uneven groups": ProductQuantizer(5, 16, rows_per_code=16, random_state=0),
    "low rank": LowRank(rank=3),
    "uniform": UniformQuantizer(n_bits=4),
    "iiq": IIQ(n_bits=16, max_train_rows=200, max_iter=5, random_state=0),
    "group reduce": GroupReduce(ratio=8, max_iter=2),
}


def small_blocks(monkeypatch, entries):
    for where in (module, base, checks, geometry):
        monkeypatch.setattr(where, "BLOCK", entries)
    monkeypatch.setattr("baselines.levels.BATCH", entries)
    monkeypatch.setattr("dpq_ref.kernels.packed.PACKED", 8 * entries)


def table(n=500, d=16, dtype=np.float64):
    rng = np.random.default_rng(0)
    return (rng.standard_normal((n, d)) @ np.diag(0.85 ** np.arange(d)) + 0.3).astype(dtype)


@pytest.mark.parametrize("ids", [None, np.array([4, 0, 4, 2]), np.array([], np.int64)])
@pytest.mark.parametrize("centre", [None, np.array([1.0, -2.0, 0.5])])
def test_rows_are_those_of_the_array(ids, centre, rng):
    X = rng.standard_normal((5, 3))
    expected = (X if ids is None else X[ids]) - (0 if centre is None else centre)
    rows = Rows(X, ids, centre)
    assert rows.shape == expected.shape and len(rows) == len(expected) and rows.dtype == X.dtype
    for part in (slice(None), slice(1, 3), slice(2, 99)):
        np.testing.assert_array_equal(rows[part], expected[part])


@pytest.mark.parametrize("n", [0, 1, 7, 8, 100])
@pytest.mark.parametrize(
    ("width", "multiple"), [(1, 1), (3, 4), (10**9, 1), (10**9, 5), (module.BLOCK // 8, 4)]
)
def test_blocks_cover_every_row_once(n, width, multiple):
    slices = blocks(n, width, multiple)
    assert [i for rows in slices for i in range(n)[rows]] == list(range(n))
    assert all((rows.stop - rows.start) % multiple == 0 for rows in slices[:-1])
    assert all(rows.stop - rows.start <= max(multiple, module.BLOCK // width) for rows in slices)


def test_sample():
    rng = np.random.default_rng(0)
    weights = np.r_[np.zeros(50), np.ones(50)]
    some = sample(weights, 20, 5, rng)
    assert len(some) == 20 == len(set(some)) and (some >= 50).all()
    assert len(sample(weights, 70, 5, rng)) == 50  # no more have weight
    assert sample(weights, 100, 5, rng) is None  # all
    assert sample(weights, 20, 51, rng) is None  # too few have weight


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_right_vectors_of_rows_are_those_of_their_array(dtype, monkeypatch, rng):
    X, ids, weights = table(dtype=dtype), rng.permutation(500)[:300], rng.random(300)
    centre = X.mean(axis=0)
    monkeypatch.setattr(module, "BLOCK", 1000)
    values, vectors = right_vectors(Rows(X, ids, centre), weights, 3)
    _, expected, right = np.linalg.svd(np.sqrt(weights)[:, None] * (X[ids] - centre).astype(np.float64))
    tolerance = 1e-4 if dtype == np.float32 else 1e-9
    np.testing.assert_allclose(values, expected, rtol=tolerance)
    np.testing.assert_allclose(np.abs((vectors[:3] * right[:3]).sum(axis=1)), 1, rtol=tolerance)


@pytest.mark.parametrize("name", METHODS)
def test_small_blocks_change_nothing(name, monkeypatch):
    """But for rounding of sums in float64."""
    whole = METHODS[name].fit(table()).compress()
    small_blocks(monkeypatch, 160)
    parts = METHODS[name].fit(table()).compress()
    np.testing.assert_allclose(parts.reconstruct(), whole.reconstruct(), rtol=1e-5, atol=1e-6)
    assert parts.bits() == whole.bits()


@pytest.mark.parametrize("name", METHODS)
def test_a_mapped_table_is_never_held_as_a_whole(name, monkeypatch, tmp_path):
    """All that is made on the way, judging included, takes less than the table."""
    small_blocks(monkeypatch, 1 << 13)
    np.save(tmp_path / "x.npy", table(40_000, 64, np.float32))
    X = np.load(tmp_path / "x.npy", mmap_mode="r")
    METHODS[name].fit(X[:1000]).compress().lookup(0)  # compiled
    tracemalloc.start()
    made = METHODS[name].fit(X).compress()
    error = relative_error(X, made)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert 0 < error < 1
    assert peak < 0.75 * X.nbytes
