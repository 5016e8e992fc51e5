"""Similarity of bits against SciPy's Hamming distance, packed words or not."""

import numpy as np
import pytest
from scipy.spatial.distance import cdist

from dpq_ref.compressed import DenseTable, FactoredTable, ScalarTable
from dpq_ref.compressed.hamming import hamming_similarity


@pytest.mark.parametrize("c", [1, 63, 64, 65, 75, 150, 300])
def test_hamming_similarity_is_the_cosine_of_the_signs(c):
    codes = np.random.default_rng(c).integers(0, 2, (30, c))
    signs = ScalarTable.from_codes(codes, 1)
    decoder = np.random.default_rng(0).standard_normal((c, 4)).astype(np.float32)
    for table in (signs, FactoredTable(signs, decoder)):
        found = hamming_similarity(table, [3, 0, 3], np.arange(20))
        np.testing.assert_allclose(found, 1 - 2 * cdist(codes[[3, 0, 3]], codes[:20], "hamming"), atol=1e-12)
        np.testing.assert_allclose(
            found, 1 - cdist(2 * codes[[3, 0, 3]] - 1, 2 * codes[:20] - 1, "cosine"), atol=1e-12
        )
        assert hamming_similarity(table, [0]).shape == (1, 30)


def test_scales_of_the_signs_do_not_matter():
    codes = np.random.default_rng(0).integers(0, 2, (10, 70))
    tables = [ScalarTable.from_codes(codes, 1, scales) for scales in (None, np.full((10, 1), 3, np.float32))]
    np.testing.assert_array_equal(*(hamming_similarity(table, np.arange(10)) for table in tables))


def test_tables_without_bits():
    dense = DenseTable(np.ones((3, 2), np.float32))
    for table in (dense, FactoredTable(dense, dense.values[:2])):
        with pytest.raises(TypeError, match="table must have bits, .* got (Dense|Factored)Table"):
            hamming_similarity(table, [0])
    with pytest.raises(ValueError, match="needs n_bits=1, this table has 2"):
        hamming_similarity(ScalarTable.from_codes(np.ones((2, 2), int), 2), [0])
    with pytest.raises(IndexError, match=r"\[0, 2\), got 2"):
        hamming_similarity(ScalarTable.from_codes(np.ones((2, 2), int), 1), [2])


@pytest.mark.parametrize("n, dim, k", [(1, 1, 1), (300, 70, 5), (700, 200, 700), (900, 3, 4)])
def test_nearest_rows_by_bits(n, dim, k):
    """Against a stable sort of all distances: many tie in three columns."""
    bits = np.random.default_rng(0).integers(0, 2, (n, dim))
    table, ids = ScalarTable.from_codes(bits, 1), np.arange(n)[::7]
    distances = (bits[ids, None] != bits).sum(axis=2)
    expected = np.argsort(distances, axis=1, kind="stable")[:, :k]
    neighbours, found = table.nearest(ids, k)
    np.testing.assert_array_equal(neighbours, expected)
    np.testing.assert_array_equal(found, np.take_along_axis(distances, expected, axis=1))


def test_nearest_rows_that_there_are_not():
    table = ScalarTable.from_codes(np.zeros((3, 4), int), 1)
    for k in (0, 4):
        with pytest.raises(ValueError, match=f"k={k}"):
            table.nearest([0], k)
    with pytest.raises(ValueError, match=r"nearest\(\) needs n_bits=1, this table has 2"):
        ScalarTable.from_codes(np.zeros((3, 4), int), 2).nearest([0], 1)
