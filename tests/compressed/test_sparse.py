"""Sparse tables: what is where, bits by part, Huffman codes, files."""

import numpy as np
import pytest

from dpq_ref import backend
from dpq_ref.compressed import SparseTable, load
from dpq_ref.compressed.sparse import huffman_lengths, sparse_bits


def entries(n=37, dim=11, density=0.3, n_codes=None, seed=0):
    rng = np.random.default_rng(seed)
    kept = rng.random((n, dim)) < density
    if n_codes is None:
        return kept, rng.standard_normal(kept.sum()).astype(np.float32), None
    codes = np.minimum(rng.geometric(0.4, kept.sum()) - 1, n_codes - 1)
    return kept, codes, rng.standard_normal(n_codes).astype(np.float32)


def expected_table(kept, values, codebook):
    table = np.zeros(kept.shape, np.float32)
    table[kept] = values if codebook is None else codebook[values]
    return table


CASES = {
    "bitmap": ({"density": 0.5}, False),
    "columns": ({"density": 0.05, "dim": 300}, False),
    "codes": ({"density": 0.5, "n_codes": 5}, False),
    "codes-in-columns": ({"density": 0.02, "dim": 130, "n_codes": 16}, False),
    "huffman": ({"density": 0.5, "n_codes": 7}, True),
    "huffman-in-columns": ({"density": 0.02, "dim": 130, "n_codes": 300}, True),
    "huffman-of-two": ({"n_codes": 2}, True),
    "16-bits": ({"n_codes": 65_536}, True),
    "all": ({"density": 1.1}, False),
    "none": ({"density": 0.0}, False),
    "none-huffman": ({"density": 0.0, "n_codes": 3}, True),
    "one-column": ({"dim": 1, "density": 0.2}, False),
    "one-row": ({"n": 1, "dim": 1000, "density": 0.01}, False),
    "no-row": ({"n": 0}, False),
    "no-row-huffman": ({"n": 0, "n_codes": 4}, True),
}
cases = pytest.mark.parametrize(("parameters", "huffman"), CASES.values(), ids=CASES)


@cases
def test_lookup_and_file(parameters, huffman, tmp_path):
    kept, values, codebook = entries(**parameters)
    table = SparseTable.from_entries(kept, values, codebook, huffman=huffman)
    expected = expected_table(kept, values, codebook)
    table.save(tmp_path / "table")
    loaded = load(tmp_path / "table")
    assert loaded.bits() == table.bits() and loaded.config() == table.config()
    stored = sum(table.bits().values()) / 8
    assert stored <= (tmp_path / "table").stat().st_size <= stored + 2000
    for t in (table, loaded):
        assert t.lookup([]).shape == (0, kept.shape[1])
        np.testing.assert_array_equal(t.reconstruct(), expected, strict=True)
        if len(kept):
            ids = np.random.default_rng(1).integers(0, len(kept), (3, 5))
            np.testing.assert_array_equal(t.lookup(ids), expected[ids], strict=True)


@cases
def test_bits_by_part(parameters, huffman):
    kept, values, codebook = entries(**parameters)
    (n, dim), k = kept.shape, kept.sum()
    bits = SparseTable.from_entries(kept, values, codebook, huffman=huffman).bits()
    n_codes = 0 if codebook is None else len(codebook)
    fixed = k * (int(np.ceil(np.log2(n_codes))) if n_codes else 32)
    by_column = {
        "columns": k * int(np.ceil(np.log2(dim))),
        "rows": n * int(np.ceil(np.log2(dim + 1))),
    }
    where = by_column if sum(by_column.values()) < n * dim else {"bitmap": n * dim}
    found = {name: bits.pop(name) for name in ("columns", "rows", "bitmap") if name in bits}
    assert found == where
    if huffman:
        lengths = huffman_lengths(np.bincount(values, minlength=n_codes))
        assert bits.pop("values") == 8 * -(-lengths[values].sum() // 8) <= fixed + 7
        assert bits.pop("code lengths") <= 6 * n_codes
    else:
        assert bits.pop("values") == fixed
    assert bits == ({"codebook": 32 * n_codes} if n_codes else {})


@cases
def test_formula_is_an_upper_bound_and_exact_without_huffman(parameters, huffman):
    kept, values, codebook = entries(**parameters)
    n_codes = None if codebook is None else len(codebook)
    formula = sparse_bits(*kept.shape, int(kept.sum()), n_codes, huffman)
    found = sum(SparseTable.from_entries(kept, values, codebook, huffman=huffman).bits().values())
    assert found <= formula if huffman else found == formula


@pytest.mark.parametrize(("density", "where"), [(0.05, "columns"), (0.3, "bitmap")])
@pytest.mark.parametrize(("n_codes", "huffman"), [(None, False), (4, False), (4, True)])
def test_bytes_per_lookup(density, where, n_codes, huffman):
    dim = 300
    kept, values, codebook = entries(dim=dim, density=density, n_codes=n_codes)
    table = SparseTable.from_entries(kept, values, codebook, huffman=huffman)
    assert where in table.bits() and table.flops_per_lookup() == 0
    weights = np.random.default_rng(0).integers(0, 5, 37)
    of_row = []
    for row in kept:
        m = row.sum()
        values = 4 * m if n_codes is None else m * 2 / 8 + 4 * min(m, 4)
        of_row.append(values + (dim / 8 if where == "bitmap" else (m * 9 + 9) / 8))
    np.testing.assert_allclose(table.bytes_per_lookup(), np.mean(of_row))
    np.testing.assert_allclose(table.bytes_per_lookup(weights), np.average(of_row, weights=weights))
    assert SparseTable.from_entries(kept[:0], np.zeros(0, np.float32)).bytes_per_lookup() == 0


def optimal_total(counts):
    """Bits of the best prefix code: the sum of all nodes that Huffman's algorithm makes."""
    counts, total = sorted(c for c in counts if c), 0
    while len(counts) > 1:
        joined = counts[0] + counts[1]
        counts, total = sorted([joined, *counts[2:]]), total + joined
    return total


@pytest.mark.parametrize("seed", range(20))
def test_huffman_code_is_complete_and_as_short_as_can_be(seed):
    rng = np.random.default_rng(seed)
    counts = rng.integers(0, 2 ** rng.integers(1, 30), rng.integers(2, 60))
    counts[:2] += 1
    lengths = huffman_lengths(counts)
    assert ((lengths > 0) == (counts > 0)).all()
    assert sum(2.0 ** -lengths[counts > 0]) == 1
    assert counts @ lengths == optimal_total(counts.tolist())
    p = counts[counts > 0] / counts.sum()
    assert -(p * np.log2(p)).sum() <= counts @ lengths / counts.sum() <= -(p * np.log2(p)).sum() + 1


def test_words_of_fibonacci_counts_are_as_long_as_they_get():
    counts = np.ones(60, np.int64)
    for i in range(2, 60):
        counts[i] = counts[i - 1] + counts[i - 2]
    assert huffman_lengths(counts).max() == 59
    np.testing.assert_array_equal(huffman_lengths(np.array([0, 7, 0])), [0, 1, 0])
    assert not huffman_lengths(np.zeros(3, int)).any()


def test_both_back_ends_decode_the_same():
    kept, codes, codebook = entries(density=0.5, n_codes=9)
    table = SparseTable.from_entries(kept, codes, codebook, huffman=True)
    lengths = huffman_lengths(np.bincount(codes, minlength=9))
    for name in ("numpy", "numba"):
        stream = table.arrays()["values"]
        np.testing.assert_array_equal(backend.get(name).unpack_prefix(stream, lengths, len(codes)), codes)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"values": np.zeros(3, np.float32)}, "do not make"),
        ({"values": np.zeros(5, np.float64)}, "do not make"),
        ({"bitmap": np.zeros(3, np.uint8)}, "do not make"),
        ({"bitmap": None}, "do not make"),
        ({"columns": np.zeros(2, np.uint8)}, "do not make"),
        ({"codebook": np.zeros(4, np.float32)}, "do not make"),
        ({"lengths": np.zeros(1, np.uint8)}, "do not make"),
        ({"codebook": np.zeros(1, np.float32)}, "n_codes=1"),
        ({"n_entries": -1}, "n_entries=-1"),
        ({"dim": 0}, "dim=0"),
    ],
)
def test_parts_that_do_not_fit(change, message):
    parts = {"values": np.ones(5, np.float32), "bitmap": np.array([31], np.uint8)}
    sizes = {"vocab_size": 2, "dim": 4, "n_entries": 5}
    SparseTable(**parts, **sizes)
    with pytest.raises(ValueError, match=message):
        SparseTable(**parts | sizes | change)


def test_bitmap_with_another_number_of_entries():
    table = SparseTable(
        np.ones(5, np.float32), bitmap=np.array([63], np.uint8), vocab_size=2, dim=4, n_entries=5
    )
    with pytest.raises(ValueError, match="rows have 6 entries, and n_entries=5"):
        table.lookup(0)


def test_entries_that_do_not_fit():
    kept = np.eye(3, dtype=bool)
    with pytest.raises(ValueError, match="2 values do not fill 3 places"):
        SparseTable.from_entries(kept, np.ones(2, np.float32))
    with pytest.raises(IndexError, match=r"codes must lie in \[0, 2\), got 2"):
        SparseTable.from_entries(kept, np.array([0, 1, 2]), np.ones(2, np.float32))
    with pytest.raises(TypeError, match="codes must be integers"):
        SparseTable.from_entries(kept, np.ones(3), np.ones(2, np.float32))
    with pytest.raises(ValueError, match="huffman=True needs a codebook"):
        SparseTable.from_entries(kept, np.ones(3, np.float32), huffman=True)
    with pytest.raises(ValueError, match="65536 columns; a sparse table takes at most 65535"):
        SparseTable.from_entries(np.zeros((1, 65_536), bool), np.ones(0, np.float32))
