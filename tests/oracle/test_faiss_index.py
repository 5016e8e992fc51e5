"""Tables as indices of faiss: the same rows, the same neighbours as brute force, and back again."""

import numpy as np
import pytest

from baselines import OptimizedProductQuantizer
from dpq_ref import DenseTable, FactoredTable, ProductTable
from dpq_ref.faiss_index import from_faiss, to_faiss

faiss = pytest.importorskip("faiss")
pytestmark = pytest.mark.oracle


def product(K=16, D=4, s=3, n=200, shared=False, dtype=np.float32):
    rng = np.random.default_rng(K + D)
    codes = rng.integers(0, K, (n, D))
    codes[:2] = [[0], [K - 1]]
    values = rng.standard_normal((1 if shared else D, K, s)).astype(dtype)
    return ProductTable.from_codes(codes, values)


def rotated(k=12):
    rotation = np.linalg.qr(np.random.default_rng(0).standard_normal((12, 12)))[0][:k].astype(np.float32)
    return FactoredTable(product(s=k // 4), rotation)


def optimized():
    X = np.random.default_rng(0).standard_normal((300, 10)).astype(np.float32)
    return OptimizedProductQuantizer(5, 8, random_state=0).fit(X).compress()


@pytest.mark.parametrize("K", [2, 3, 5, 8, 16, 100, 256, 300, 2000, 65_536])
@pytest.mark.parametrize("D", [1, 3, 8])
def test_an_index_has_the_rows_of_the_table(K, D):
    table = product(K, D)
    index = to_faiss(table)
    np.testing.assert_array_equal(index.reconstruct_n(0, index.ntotal), table.reconstruct(), strict=True)
    again = from_faiss(index)
    assert again.dtype == table.dtype and again.n_bits == table.n_bits
    np.testing.assert_array_equal(again.codes, table.codes)
    np.testing.assert_array_equal(again.values[:, :K], table.values)
    assert not again.values[:, K:].any()
    if K == again.n_codes:
        np.testing.assert_array_equal(again.packed, table.packed)
    np.testing.assert_array_equal(again.reconstruct(), table.reconstruct())


@pytest.mark.parametrize("inner_product", [False, True])
@pytest.mark.parametrize("make", [product, lambda: product(K=5, D=3), rotated, lambda: rotated(8), optimized])
def test_search_is_that_of_brute_force(make, inner_product):
    table = make()
    rows = table.reconstruct().astype(np.float64)
    queries = np.random.default_rng(9).standard_normal((20, table.dim)).astype(np.float32)
    found, ids = to_faiss(table, inner_product=inner_product).search(queries, 5)
    if inner_product:
        scores = -queries @ rows.T
        found = -found
    else:
        if isinstance(table, FactoredTable):  # distances within the span of the rotation
            queries = queries @ table.right.values.T @ table.right.values
        scores = ((queries[:, None] - rows) ** 2).sum(axis=2)
    best = np.sort(scores, axis=1)[:, :5]
    np.testing.assert_allclose(found, best, rtol=1e-4, atol=1e-4)
    # Rows of equal codes are equally near: which of them comes first is left open.
    np.testing.assert_allclose(np.take_along_axis(scores, ids, axis=1), best, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("make", [rotated, lambda: rotated(8), optimized])
def test_a_rotation_stands_before_the_index(make, tmp_path):
    table = make()
    faiss.write_index(to_faiss(table), str(tmp_path / "index"))
    index = faiss.read_index(str(tmp_path / "index"))
    np.testing.assert_allclose(index.reconstruct_n(0, index.ntotal), table.reconstruct(), atol=1e-5)
    again = from_faiss(faiss.read_index(str(tmp_path / "index")))  # with nobody else to keep the index
    np.testing.assert_array_equal(again.left.codes, table.left.codes)
    np.testing.assert_array_equal(again.right.values, table.right.values)
    np.testing.assert_array_equal(again.reconstruct(), table.reconstruct())


def test_a_shared_codebook_is_repeated_and_float64_rounded():
    for table in (product(shared=True), product(shared=True, dtype=np.float64)):
        index = to_faiss(table)
        expected = table.reconstruct().astype(np.float32)
        np.testing.assert_array_equal(index.reconstruct_n(0, index.ntotal), expected)
        assert from_faiss(index).values.shape == (4, 16, 3)


def test_no_rows():
    table = ProductTable.from_codes(np.zeros((0, 3), int), np.ones((3, 4, 2), np.float32))
    index = to_faiss(table)
    assert index.ntotal == 0 and from_faiss(index).reconstruct().shape == (0, 6)


@pytest.mark.parametrize("recipe", ["PQ4x6", "PQ3x4", "OPQ3,PQ3x4", "PCAR6,PQ3x4", "OPQ2_6,PQ2x5np"])
def test_an_index_that_faiss_trained(recipe):
    X = np.random.default_rng(0).standard_normal((3000, 12)).astype(np.float32)
    index = faiss.index_factory(12, recipe)
    index.train(X)
    index.add(X[:100])
    if recipe.startswith("PCA"):
        with pytest.raises(ValueError, match="IndexPreTransform; it takes IndexPQ"):
            from_faiss(index)
        return
    table = from_faiss(index)
    np.testing.assert_allclose(table.reconstruct(), index.reconstruct_n(0, 100), atol=1e-5)


def test_what_has_no_place_in_faiss():
    codes = np.zeros((3, 2), int)
    ones = np.ones((2, 4, 3), np.float32)
    refused = [
        DenseTable(ones[0]),
        ProductTable.from_codes(codes, ones, additive=True),
        ProductTable.from_codes(codes, ones[0]),
        FactoredTable(product(), 2 * np.eye(12, dtype=np.float32)),
        FactoredTable(product(), np.eye(12, dtype=np.float32), np.ones(12, np.float32)),
        FactoredTable(DenseTable(np.ones((3, 12), np.float32)), np.eye(12, dtype=np.float32)),
    ]
    for table in refused:
        with pytest.raises(ValueError, match="must"):
            to_faiss(table)
    for index in (faiss.IndexFlatL2(4), faiss.index_factory(12, "L2norm,PQ3x4")):
        with pytest.raises(ValueError, match="it takes IndexPQ"):
            from_faiss(index)
