"""Nearest rows from codes: what all rows decoded and compared say, in the same order."""

import numpy as np
import pytest

from dpq_ref.compressed import DenseTable, FactoredTable, ProductTable, base, load
from tests.compressed.test_tables import TABLES

RNG = np.random.default_rng(0)


def brute_force(table, query):
    """Cosines with all rows, decoded, in float64."""
    rows, query = table.reconstruct().astype(np.float64), query.astype(np.float64)
    lengths = np.linalg.norm(rows, axis=1) * np.linalg.norm(query)
    return np.divide(rows @ query, lengths, out=np.zeros(len(rows)), where=lengths > 0)


def whole(n=300, D=4, K=8, s=3, *, additive=False, shared=False, seed=0):
    """Table of 1 and -1, so that sums are exact and lengths equal; rows repeat, and some are zero."""
    rng = np.random.default_rng(seed)
    shape = 1 if shared else D, K, D * s if additive else s
    values = 2 * rng.integers(0, 2, shape).astype(np.float32) - 1
    values[:, 0] = 0
    codes = rng.integers(1, K, (n, D))
    codes[::7], codes[5::11] = codes[3], 0
    return ProductTable.from_codes(codes, values, additive=additive)


@pytest.mark.parametrize("name", TABLES)
@pytest.mark.parametrize("b", [1, 5])
def test_cosines_are_those_of_brute_force(name, b):
    table = TABLES[name]()
    queries = np.random.default_rng(b).standard_normal((b, table.dim)).astype(table.dtype)
    ids, cosines = table.search(queries, 4)
    assert ids.shape == cosines.shape == (b, min(4, table.vocab_size)) and cosines.dtype == table.dtype
    for query, found, values in zip(queries, ids, cosines, strict=True):
        expected = brute_force(table, query)
        np.testing.assert_allclose(values, expected[found], atol=2e-6)
        np.testing.assert_allclose(values, -np.sort(-expected)[: len(found)], atol=2e-6)
        assert len(set(found.tolist())) == len(found) and (np.diff(values) <= 0).all()


WHOLE = {
    "separate": whole(),
    "shared": whole(shared=True),
    "additive": whole(additive=True),
    "dense": DenseTable(whole(n=203).reconstruct()),
    "turned": FactoredTable(whole(n=120), np.eye(12, dtype=np.float32)[::-1] * 2),
}


@pytest.mark.parametrize("table", WHOLE.values(), ids=WHOLE)
@pytest.mark.parametrize("b", [1, 3, 40])
@pytest.mark.parametrize("block", [1 << 22, 700])
def test_rows_that_tie_come_in_the_order_of_their_ids(table, b, block, monkeypatch):
    """Also across blocks, and blocks of queries."""
    monkeypatch.setattr(base, "BLOCK", block)
    queries = np.random.default_rng(b).integers(-2, 3, (b, table.dim)).astype(np.float32)
    queries[0] = table.lookup(3)
    ids, cosines = table.search(queries, 60)
    for query, found, values in zip(queries, ids, cosines, strict=True):
        expected = np.round(brute_force(table, query), 6)  # equal in truth, whatever float64 rounds
        np.testing.assert_allclose(values, -np.sort(-expected)[:60], atol=2e-6)
        same = np.flatnonzero(np.diff(values) == 0)
        assert len(same) and (found[same] < found[same + 1]).all()
        if not (isinstance(table, ProductTable) and table.additive):  # whose lengths are not equal
            np.testing.assert_array_equal(found, np.argsort(-expected, kind="stable")[:60])


@pytest.mark.parametrize("rows", [1 << 16, 1000])
@pytest.mark.parametrize("n", [1, 3, 40])
def test_the_best_of_many_rows_that_tie(rows, n, monkeypatch):
    """What the first of them rule out, in each block, is worse than the best of all."""
    monkeypatch.setattr(base, "ROWS", rows)
    table = whole(n=5000)
    table.packed[:2400] = 0  # 1600 rows of zeros first (4 codes of 3 bits), so that the best come late
    query = table.lookup(3000)[None]
    expected = np.round(brute_force(table, query[0]), 6)
    ids, cosines = table.search(query, n)
    np.testing.assert_array_equal(ids[0], np.argsort(-expected, kind="stable")[:n])
    np.testing.assert_allclose(cosines[0], expected[ids[0]], atol=2e-6)


def test_a_query_does_not_depend_on_those_beside_it():
    table = whole(D=6, s=2)
    queries = RNG.standard_normal((70, 12)).astype(np.float32)
    ids, cosines = table.search(queries, 9)
    for i in (0, 17, 69):
        alone = table.search(queries[i : i + 1], 9)
        np.testing.assert_array_equal(ids[i], alone[0][0])
        np.testing.assert_array_equal(cosines[i], alone[1][0])


def test_equal_rows_tie_wherever_they_stand():
    """BLAS may round a row by its place."""
    rows = RNG.standard_normal((1, 301)).astype(np.float32).repeat(1003, axis=0)
    ids, cosines = DenseTable(rows).search(RNG.standard_normal((5, 301)), 1003)
    np.testing.assert_array_equal(ids, np.arange(1003)[None].repeat(5, axis=0))
    assert (cosines == cosines[:, :1]).all()


def test_zeros_have_no_direction():
    table = DenseTable(np.float32([[0, 0], [1, 0], [-1, 0]]))
    assert table.search(np.zeros((1, 2)), 3)[0].tolist() == [[0, 1, 2]]
    ids, cosines = table.search(np.float32([[2, 0]]), 3)
    assert ids.tolist() == [[1, 0, 2]] and cosines.tolist() == [[1, 0, -1]]
    assert table.search(np.zeros((0, 2)), 2)[0].shape == (0, 2)
    large = DenseTable(np.float32([[1e30, 1e30], [1e-30, 0]]))  # squares are beyond float32
    np.testing.assert_allclose(large.search(np.float32([[1e30, 0]]), 2)[1], [[1, np.sqrt(0.5)]], rtol=1e-6)


def test_what_it_takes():
    table = whole()
    for queries, takes in (
        (np.zeros(12), "shape"),
        (np.zeros((1, 11)), "shape"),
        ([[np.nan] * 12], "finite"),
    ):
        with pytest.raises(ValueError, match=takes):
            table.search(queries)
    with pytest.raises(ValueError, match="n=0"):
        table.search(np.zeros((1, 12)), 0)


def test_no_row_is_decoded_where_codes_tell(monkeypatch):
    for table in (whole(), whole(shared=True), WHOLE["turned"].left):
        monkeypatch.setattr(type(table), "_rows", None)
        assert table.search(np.ones((2, table.dim)), 2)[0].shape == (2, 2)


def test_a_rotation_keeps_lengths_and_nothing_else_does():
    turn = np.linalg.qr(RNG.standard_normal((12, 12)))[0].astype(np.float32)
    for basis, offset, keeps in ((turn, None, True), (1.001 * turn, None, False), (turn, turn[0], False)):
        table = FactoredTable(whole(n=50), basis.astype(np.float32), offset)
        assert table._is_rotation == keeps
        lengths = np.linalg.norm(table.reconstruct().astype(np.float64), axis=1)
        np.testing.assert_allclose(table._lengths[lengths > 1e-6], lengths[lengths > 1e-6], rtol=1e-6)


def test_a_mapped_table_is_pickled_as_its_path(tmp_path):
    import pickle

    table = whole(n=5000)
    table.words = [f"w{i}" for i in range(5000)]
    table.save(tmp_path / "t")
    mapped = load(tmp_path / "t")
    assert mapped.words == table.words  # decoded, and still a mapped one
    assert len(pickle.dumps(mapped)) < 500 < len(pickle.dumps(load(tmp_path / "t", mapped=False)))
    again = pickle.loads(pickle.dumps(mapped))
    np.testing.assert_array_equal(again.reconstruct(), table.reconstruct())
    mapped.words = [f"x{i}" for i in range(5000)]  # which the file does not have
    assert pickle.loads(pickle.dumps(mapped)).words == mapped.words
