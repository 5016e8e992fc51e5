"""Compressed tables: honest bits, files that come back whole or not at all."""

import json
import os

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import save as save_safetensors

from dpq_ref import backend
from dpq_ref.compressed import (
    BlockTable,
    DenseTable,
    FactoredTable,
    ProductTable,
    ScalarTable,
    base,
    files,
    load,
    to_bfloat16,
    uniform_levels,
)
from dpq_ref.compressed.product import group_columns

DTYPES = [np.float32, np.float64]


def product(n=37, D=3, K=5, s=4, *, shared=False, additive=False, dtype=np.float32, seed=0):
    rng = np.random.default_rng(seed)
    values = rng.standard_normal((1 if shared else D, K, s)).astype(dtype)
    return ProductTable.from_codes(rng.integers(0, K, (n, D)), values, additive=additive)


def low_rank(n=37, k=3, dim=11, dtype=np.float32):
    rng = np.random.default_rng(0)
    return FactoredTable(
        rng.standard_normal((n, k)).astype(dtype), rng.standard_normal((k, dim)).astype(dtype)
    )


def scalar(n=37, dim=11, n_bits=3, scales=(1, 1), levels=False):
    rng = np.random.default_rng(0)
    scales = None if scales is None else rng.uniform(1, 2, scales).astype(np.float32)
    levels = rng.standard_normal(1 << n_bits).astype(np.float32) if levels else None
    return ScalarTable.from_codes(rng.integers(0, 1 << n_bits, (n, dim)), n_bits, scales, levels)


def ragged(n=37, D=3, K=5, dim=11, dtype=np.float32):
    rng = np.random.default_rng(0)
    return ProductTable.from_codes(rng.integers(0, K, (n, D)), rng.standard_normal((K, dim)).astype(dtype))


def dense(n=37, dim=11, dtype=np.float32):
    return DenseTable(np.random.default_rng(0).standard_normal((n, dim)).astype(dtype))


def bfloat16():
    return DenseTable(to_bfloat16(dense().values))


def rotated():
    rotation = np.linalg.qr(np.random.default_rng(1).standard_normal((12, 12)))[0].astype(np.float32)
    return FactoredTable(product(), rotation)


def signs(bound=None):
    rng = np.random.default_rng(2)
    decoder = rng.standard_normal((70, 9)).astype(np.float32)
    return FactoredTable(scalar(dim=70, n_bits=1, scales=None), decoder, decoder[0], bound)


def in_blocks(n_bits=None):
    """Blocks of ranks 2, 1 and one that is dense."""
    rng = np.random.default_rng(3)
    block_of = rng.permutation(np.arange(37) % 3)
    shapes = [((block_of == p).sum(), r) for p, r in enumerate((2, 1, 5))]
    rights = [(2, 5), (1, 5), None]
    if n_bits is None:
        draw, scales = (lambda shape: rng.standard_normal(shape).astype(np.float32)), None
    else:
        draw, scales = (lambda shape: rng.integers(0, 1 << n_bits, shape)), np.ones((3, 2), np.float32)
    factors = [draw(s) for s in shapes], [None if s is None else draw(s) for s in rights]
    return BlockTable.from_factors(block_of, *factors, scales, n_bits=n_bits)


# n * D * bits is not a multiple of 8 in most of them; K is not a power of two in some.
TABLES = {
    "product": product,
    "product-shared": lambda: product(shared=True),
    "product-additive": lambda: product(additive=True, K=2),
    "product-additive-shared": lambda: product(additive=True, shared=True, dtype=np.float64),
    "product-one-row": lambda: product(n=1, D=1, K=2, s=1),
    "product-no-row": lambda: product(n=0),
    "product-7-groups": lambda: product(D=7, K=300),
    "product-16-bits": lambda: product(D=2, K=65_536, s=1),
    "low-rank": low_rank,
    "low-rank-double": lambda: low_rank(dtype=np.float64),
    "low-rank-one-row": lambda: low_rank(n=1),
    "low-rank-no-row": lambda: low_rank(n=0),
    "scalar": scalar,
    "scalar-1-bit": lambda: scalar(n=5, dim=7, n_bits=1),
    "scalar-16-bits": lambda: scalar(n_bits=16),
    "scalar-one-column": lambda: scalar(dim=1),
    "scalar-no-row": lambda: scalar(n=0),
    "scalar-no-scale": lambda: scalar(scales=None),
    "scalar-row-scales": lambda: scalar(scales=(37, 1)),
    "scalar-column-scales": lambda: scalar(scales=(1, 11), levels=True),
    "scalar-levels": lambda: scalar(scales=None, levels=True),
    "product-ragged": ragged,
    "product-ragged-double": lambda: ragged(D=4, K=2, dim=5, dtype=np.float64),
    "dense": dense,
    "dense-double": lambda: dense(dtype=np.float64),
    "dense-half": lambda: dense(dtype=np.float16),
    "dense-bfloat16": bfloat16,
    "dense-no-row": lambda: dense(n=0),
    "rotated": rotated,
    "signs": signs,
    "signs-bounded": lambda: signs(np.float32([1.5])),
    "blocks": in_blocks,
    "blocks-coded": lambda: in_blocks(n_bits=3),
    "both-sides-coded": lambda: FactoredTable(scalar(dim=3), scalar(n=3, dim=6, n_bits=8)),
}
tables = pytest.mark.parametrize("make", TABLES.values(), ids=TABLES)
one_of_each = pytest.mark.parametrize(
    "make", [product, ragged, low_rank, scalar, dense, rotated, signs, in_blocks]
)


def by_hand(table, codes):
    """Rows of a product table, value by value."""
    values = table.values
    rows = [[values[j if len(values) > 1 else 0, c] for j, c in enumerate(row)] for row in codes]
    return np.array([np.mean(row, axis=0) if table.additive else np.concatenate(row) for row in rows])


def same(a, b):
    assert type(a) is type(b) and a.config() == b.config() and a.dtype == b.dtype
    for name, array in a.arrays().items():
        np.testing.assert_array_equal(array, b.arrays()[name], strict=True)


# --- Bits -------------------------------------------------------------------------------------------------

# n, d, K, D, ratio shared, ratio unshared: 32 n d / (n D log2 K + 32 K d / D), or 32 K d for 32 K d / D.
CELLS = [
    (10_000, 200, 2, 10, "631.9", "567.4"),
    (10_000, 200, 8, 25, "85.10", "79.88"),
    (10_000, 200, 32, 25, "50.87", "43.99"),
    (10_000, 200, 128, 50, "18.20", "14.82"),
    (10_000, 650, 2, 50, "415.3", "384.0"),
    (10_000, 650, 8, 10, "656.9", "446.0"),
    (10_000, 650, 32, 25, "162.93", "108.6"),
    (10_000, 650, 32, 50, "82.76", "65.71"),
    (10_000, 650, 128, 50, "58.54", "33.75"),
    (10_000, 1500, 2, 10, "4379.6", "2449.0"),
    (10_000, 1500, 16, 50, "238.17", "173.4"),
    (10_000, 1500, 128, 25, "240.5", "60.81"),
    (33_278, 200, 128, 10, "88.32", "67.64"),
    (33_278, 650, 128, 50, "59.16", "48.37"),
    (33_278, 1500, 8, 25, "636.1", "554.7"),
    (17_191, 512, 32, 32, "101.8", "86.01"),
    (17_191, 512, 128, 128, "18.27", "16.09"),
    (7_709, 512, 32, 32, "101.1", "71.86"),
    (7_709, 512, 128, 128, "18.24", "14.03"),
    (69_322, 300, 16, 50, "47.99", "47.47"),
    (477_522, 300, 32, 100, "19.20", "19.18"),
    (612_530, 300, 16, 100, "24.00", "23.98"),
    (246_739, 300, 32, 50, "38.40", "38.21"),
    (268_414, 300, 16, 50, "48.00", "47.86"),
]


@pytest.mark.parametrize("n, d, K, D, shared, unshared", CELLS)
def test_compression_ratios_of_the_released_configurations(n, d, K, D, shared, unshared):
    n_bits = int(np.log2(K))
    packed = np.zeros(-(-n * D * n_bits // 8), np.uint8)
    for books, printed in ((1, shared), (D, unshared)):
        values = np.zeros((books, K, d // D), np.float32)
        table = ProductTable(packed, values, vocab_size=n, n_groups=D)
        assert table.bits() == {"codes": n * D * n_bits, "codebooks": 32 * K * d * books // D}
        digits = len(printed.split(".")[1])
        assert f"{table.compression_ratio:.{digits}f}" == printed


def test_bits_by_hand():
    assert product(n=10, D=4, K=9, s=6).bits() == {"codes": 10 * 4 * 4, "codebooks": 32 * 4 * 9 * 6}
    assert product(n=10, D=4, K=9, s=6, shared=True).bits()["codebooks"] == 32 * 9 * 6
    assert product(n=10, D=4, K=9, s=6, additive=True, dtype=np.float64).bits()["codebooks"] == 64 * 4 * 9 * 6
    assert low_rank(n=10, k=2, dim=7).bits() == {"values": 32 * 2 * 10, "basis": 32 * 2 * 7}
    assert ragged(n=10, D=4, K=9, dim=7).bits() == {"codes": 10 * 4 * 4, "codebooks": 32 * 9 * 7}
    assert dense(n=10, dim=7, dtype=np.float16).bits() == {"values": 16 * 70}
    assert scalar(scales=(37, 1), levels=True).bits() == {
        "codes": 37 * 11 * 3,
        "scales": 32 * 37,
        "levels": 32 * 8,
    }
    assert rotated().bits() == product().bits() | {"basis": 32 * 12 * 12}
    assert signs().bits() == {"codes": 37 * 70, "basis": 32 * 70 * 9, "offset": 32 * 9}
    assert scalar(n=10, dim=7, n_bits=3).bits() == {"codes": 210, "scales": 32}
    assert product(n=10, D=4, K=9, s=6).compression_ratio == 32 * 10 * 24 / (160 + 32 * 4 * 9 * 6)


@tables
def test_a_file_is_the_bits_and_a_header(tmp_path, make):
    table = make()
    table.save(tmp_path / "table")
    stored = sum(table.bits().values()) / 8
    assert stored <= (tmp_path / "table").stat().st_size <= stored + 4096
    assert sum(array.nbytes for array in table.arrays().values()) - stored < len(table.arrays())


# --- Look-up ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("additive", [False, True])
@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("K", [2, 5, 8, 300])
def test_a_product_table_is_its_codes_and_values(K, shared, additive, dtype):
    rng = np.random.default_rng(1)
    codes = rng.integers(0, K, (23, 3))
    codes[0], codes[-1] = K - 1, 0
    values = rng.standard_normal((1 if shared else 3, K, 4)).astype(dtype)
    table = ProductTable.from_codes(codes, values, additive=additive)
    assert (table.vocab_size, table.dim, table.dtype) == (23, 4 if additive else 12, dtype)
    np.testing.assert_array_equal(table.codes, codes)
    np.testing.assert_array_equal(table.lookup(np.arange(23)), by_hand(table, codes))


@pytest.mark.parametrize(("dim", "D"), [(11, 1), (11, 3), (11, 4), (11, 11), (12, 5), (7, 6)])
def test_a_ragged_table_has_groups_as_equal_as_can_be(dim, D):
    rng = np.random.default_rng(0)
    codes, values = rng.integers(0, 5, (23, D)), rng.standard_normal((5, dim)).astype(np.float32)
    rows = ProductTable.from_codes(codes, values).reconstruct()
    parts = np.array_split(np.arange(dim), D)  # the first dim mod D are one wider
    for j, columns in enumerate(parts):
        np.testing.assert_array_equal(rows[:, columns], values[codes[:, j]][:, columns])
        assert group_columns(dim, D)[j].sum() == len(columns)


def test_a_factored_table_is_the_product_of_its_sides():
    for table in (low_rank(), rotated(), signs(), TABLES["both-sides-coded"]()):
        rows = table.left.reconstruct().astype(np.float64) @ table.right.reconstruct()
        rows += 0 if table.offset is None else table.offset
        np.testing.assert_allclose(table.reconstruct(), rows, atol=1e-5)
        if table.offset is not None:
            bounded = FactoredTable(table.left, table.right, table.offset, np.float32([1.5]))
            np.testing.assert_allclose(bounded.reconstruct(), rows.clip(-1.5, 1.5), atol=1e-5)
            assert bounded.bits() == table.bits() | {"bound": 32}
            with pytest.raises(ValueError, match=r"bound float32 \(2,\) do not make a table"):
                FactoredTable(table.left, table.right, table.offset, np.float32([1, 2]))


def test_bfloat16_is_rounded_to_the_nearest():
    values = np.float32([1, 1 + 2**-8, 1 + 3 * 2**-8, 1 + 2**-8 + 2**-20, -3.14159, 1e-40, 0, -0.0, 3.4e38])
    expected = np.float32([1, 1, 1 + 4 * 2**-8, 1 + 2**-7, -3.140625, 2.0**-133, 0, -0.0, np.inf])
    rows = DenseTable(to_bfloat16(values[None])).lookup(0)
    np.testing.assert_allclose(rows, expected, rtol=1e-4)
    np.testing.assert_array_equal(np.signbit(rows), np.signbit(expected))


@tables
def test_a_row_is_the_same_in_any_batch(make):
    table = make()
    whole = table.reconstruct()
    for ids in ([0], [5, 3, 3], range(30)):
        if table.vocab_size > max(ids):
            np.testing.assert_array_equal(table.lookup(list(ids)), whole[list(ids)])


@tables
def test_scores_are_inner_products_with_all_rows(make):
    table = make()
    queries = np.random.default_rng(3).standard_normal((4, table.dim))
    expected = queries @ table.reconstruct().astype(np.float64).T
    scores = table.scores(queries)
    assert scores.dtype == table.dtype and scores.shape == (4, table.vocab_size)
    np.testing.assert_allclose(scores, expected, atol=1e-4 * np.sqrt(table.dim))
    assert table.scores(queries[:0]).shape == (0, table.vocab_size)
    for wrong in (queries[0], queries[:, 1:]):
        with pytest.raises(ValueError, match="queries must have shape"):
            table.scores(wrong)


@tables
def test_flops_and_bytes_of_a_row(make):
    table = make()
    stored = sum(table.bits().values()) / 8
    n = table.vocab_size
    assert 0 <= table.flops_per_lookup() and 0 < table.bytes_per_lookup()
    if n > 20:  # all rows read at least all that is stored, but what they share is read by each
        assert (
            table.bytes_per_lookup() * n >= (table.bits().get("codes", 0) + table.bits().get("values", 0)) / 8
        )
        assert table.bytes_per_lookup() <= stored + 4 * table.dim * getattr(table, "n_groups", 1) + 2**20


def test_flops_and_bytes_by_hand():
    assert (low_rank().flops_per_lookup(), low_rank().bytes_per_lookup()) == (2 * 3 * 11, 4 * 3 + 4 * 3 * 11)
    assert (product().flops_per_lookup(), product().bytes_per_lookup()) == (0, 3 * 3 / 8 + 4 * 12)
    additive = product(additive=True)
    assert (additive.flops_per_lookup(), additive.bytes_per_lookup()) == (3 * 4, 3 * 3 / 8 + 4 * 3 * 4)
    assert (scalar().flops_per_lookup(), scalar().bytes_per_lookup()) == (0, 11 * 3 / 8 + 4 * 8)
    rows = scalar(scales=(37, 1))
    assert (rows.flops_per_lookup(), rows.bytes_per_lookup()) == (11, 11 * 3 / 8 + 4)
    assert (dense().flops_per_lookup(), dense(dtype=np.float16).bytes_per_lookup()) == (0, 22)
    assert signs().flops_per_lookup() == 2 * 70 * 9 + 9
    assert signs().bytes_per_lookup() == 70 / 8 + 8 + 4 * (70 * 9 + 9)


@pytest.mark.parametrize("c", [1, 7, 64, 65, 130])
def test_hamming_counts_the_signs_that_differ(c):
    table = scalar(dim=c, n_bits=1, scales=None)
    rows = table.reconstruct()
    assert set(np.unique(rows)) <= {-1, 1}
    expected = (rows[:, None] != rows).sum(axis=2)
    np.testing.assert_array_equal(table.hamming(np.arange(37)), expected)
    np.testing.assert_array_equal(table.hamming([4, 4, 0], [1, 2]), expected[[4, 4, 0]][:, [1, 2]])
    np.testing.assert_allclose(rows @ rows.T / c, 1 - 2 * expected / c, atol=1e-6)
    assert table.hamming([]).shape == (0, 37)
    with pytest.raises(IndexError, match="ids must"):
        table.hamming([37])


def test_hamming_needs_signs():
    with pytest.raises(ValueError, match="n_bits=1, this table has 3"):
        scalar().hamming([0])


@pytest.mark.parametrize("n_bits", [1, 2, 3, 8, 16])
def test_a_scalar_table_is_evenly_spaced(n_bits):
    codes = np.random.default_rng(0).integers(0, 1 << n_bits, (9, 5))
    codes[0, 0], codes[0, 1] = 0, (1 << n_bits) - 1
    table = ScalarTable.from_codes(codes, n_bits, np.full((1, 1), 1.5, np.float32))
    expected = -1.5 + 3.0 * codes / ((1 << n_bits) - 1)
    np.testing.assert_allclose(table.reconstruct(), expected, rtol=1e-6, atol=1e-7)
    assert table.lookup(0)[0] == -1.5 and table.lookup(0)[1] == 1.5
    rng, codes = np.random.default_rng(1), table.codes
    for shape in ((9, 1), (1, 5), (9, 5)):
        scales = rng.uniform(0, 3, shape).astype(np.float32)
        scaled = ScalarTable.from_codes(codes, n_bits, scales)
        by_hand = (uniform_levels(n_bits)[codes] * scales).astype(np.float32)
        np.testing.assert_array_equal(scaled.reconstruct(), by_hand)


@tables
def test_look_up_takes_ids_of_any_shape(make):
    table = make()
    whole = table.reconstruct()
    assert whole.shape == (table.vocab_size, table.dim) and whole.dtype == table.dtype
    assert table.lookup([]).shape == (0, table.dim)
    assert table.lookup(np.zeros((2, 0, 3), int)).shape == (2, 0, 3, table.dim)
    if table.vocab_size:
        last = table.vocab_size - 1
        for ids in (last, [last], [[0, last], [last, 0]], np.array(last, np.uint8), np.int32([0, 0, last])):
            rows = table.lookup(ids)
            assert rows.shape == (*np.shape(ids), table.dim) and rows.dtype == table.dtype
            np.testing.assert_allclose(rows, whole[np.asarray(ids)], rtol=1e-5)


@tables
def test_look_up_where_it_is_told(make):
    table = make()
    ids = np.arange(table.vocab_size)[:, None]
    out = np.full((table.vocab_size, 1, table.dim), np.nan, table.dtype)
    assert table.lookup(ids, out=out) is out
    np.testing.assert_array_equal(out, table.lookup(ids))


@one_of_each
def test_where_it_is_told_must_fit(make):
    table = make()
    fits, frozen = np.zeros((2, table.dim), table.dtype), np.zeros((2, table.dim), table.dtype)
    frozen.flags.writeable = False
    wrong = (fits[:1], fits[:, 1:], np.asfortranarray(fits), fits.astype(np.float16), frozen)
    for out in wrong:
        with pytest.raises(ValueError, match="out must be"):
            table.lookup([0, 1], out=out)


@tables
@pytest.mark.parametrize(
    "ids, error",
    [
        ([-1], IndexError),
        ([37], IndexError),
        ([1.0], TypeError),
        ([True], TypeError),
        (np.zeros(0), TypeError),
        ("a", TypeError),
        (None, TypeError),
    ],
    ids=str,
)
def test_ids_are_checked(make, ids, error):
    with pytest.raises(error, match="ids must"):
        make().lookup(ids)


@one_of_each
def test_reconstruction_in_blocks_is_reconstruction_at_once(make, monkeypatch):
    table = make()
    whole = table.reconstruct()
    monkeypatch.setattr(base, "BLOCK", 5 * table.dim)
    np.testing.assert_array_equal(table.reconstruct(), whole)


@pytest.mark.parametrize(
    "name", ["product", "product-additive", "product-7-groups", "product-ragged", "scalar"]
)
def test_numpy_and_numba_look_up_the_same_bits(name, monkeypatch):
    table, get = TABLES[name](), backend.get
    whole = table.reconstruct()
    monkeypatch.setattr(backend, "get", lambda name=None: get("numpy"))
    np.testing.assert_array_equal(table.reconstruct(), whole)
    np.testing.assert_array_equal(TABLES[name]().arrays()["codes"], table.arrays()["codes"])


# --- Files ------------------------------------------------------------------------------------------------


@tables
def test_a_file_comes_back_the_same(tmp_path, make):
    table = make()
    table.save(tmp_path / "table")
    again = load(tmp_path / "table")
    same(table, again)
    np.testing.assert_array_equal(again.reconstruct(), table.reconstruct(), strict=True)
    assert again.bits() == table.bits() and repr(again) == repr(table)
    again.save(str(tmp_path / "again"))
    assert (tmp_path / "again").read_bytes() == (tmp_path / "table").read_bytes()


@tables
@pytest.mark.parametrize("at_once", [0, 1 << 24])
def test_a_mapped_file_is_the_same_table(tmp_path, monkeypatch, make, at_once):
    table, path = make(), tmp_path / "table"
    table.words = [f"w{i}" for i in range(table.vocab_size)]
    table.save(path)
    monkeypatch.setattr(base, "AT_ONCE", at_once)
    mapped = load(path)
    same(table, mapped)
    assert mapped.words == table.words
    np.testing.assert_array_equal(mapped.reconstruct(), table.reconstruct(), strict=True)
    mapped.save(tmp_path / "again")
    assert (tmp_path / "again").read_bytes() == path.read_bytes()


def test_a_mapped_file_is_read_where_it_is_looked_up(tmp_path, monkeypatch):
    path = tmp_path / "table"
    DenseTable(np.ones((2, 3), np.float32)).save(path)
    monkeypatch.setattr(base, "AT_ONCE", 0)
    mapped = load(path)
    with path.open("r+b") as file:
        content = path.read_bytes()
        file.seek(content.index(np.ones(6, np.float32).tobytes()) + 20)
        file.write(np.float32(5).tobytes())
    with pytest.raises(
        ValueError, match="table is damaged: 'values' does not match its checksum from byte 0 on"
    ):
        mapped.lookup(1)
    with pytest.raises(ValueError, match="read-only"):
        mapped.values[0] = 7
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ValueError, match="damaged"):
        load(path)


LAYOUTS = {
    "fortran": np.asfortranarray,
    "strided": lambda a: np.repeat(a, 2, axis=-1)[..., ::2],
    "reversed": lambda a: np.ascontiguousarray(a[::-1])[::-1],
    "big-endian": lambda a: a.astype(a.dtype.newbyteorder(">")),
    "read-only": lambda a: np.frombuffer(a.tobytes(), a.dtype).reshape(a.shape),
}


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_arrays_in_any_layout(tmp_path, layout, dtype):
    rng = np.random.default_rng(0)
    codes, values = rng.integers(0, 5, (9, 3)), rng.standard_normal((3, 5, 4)).astype(dtype)
    left, right = rng.standard_normal((9, 3)).astype(dtype), rng.standard_normal((3, 7)).astype(dtype)
    for plain, moved in (
        (ProductTable.from_codes(codes, values), ProductTable.from_codes(layout(codes), layout(values))),
        (FactoredTable(left, right), FactoredTable(layout(left), layout(right))),
        (ScalarTable.from_codes(codes, 3), ScalarTable.from_codes(layout(codes), 3)),
        (DenseTable(left), DenseTable(layout(left))),
        (FactoredTable(left, right, right[0]), FactoredTable(left, right, layout(right)[0])),
    ):
        np.testing.assert_array_equal(moved.reconstruct(), plain.reconstruct(), strict=True)
        moved.save(tmp_path / "table")
        same(load(tmp_path / "table"), plain)


@one_of_each
def test_a_file_cut_off_anywhere(tmp_path, make):
    path = tmp_path / "table"
    make().save(path)
    content = path.read_bytes()
    for length in {*range(0, len(content), 7), *range(12), len(content) - 1}:
        path.write_bytes(content[:length])
        with pytest.raises(ValueError, match="table"):
            load(path)
    path.write_bytes(content + b"\0")
    with pytest.raises(ValueError, match="table"):
        load(path)


def test_other_shapes_for_the_same_bytes(tmp_path):
    path = tmp_path / "table"
    product(K=6, s=4).save(path)
    content = path.read_bytes()
    for old, new in ((b"[3,6,4]", b"[3,8,3]"), (b'"F32"', b'"I32"'), (b'"values"', b'"valves"')):
        assert content.count(old) == 1
        path.write_bytes(content.replace(old, new))
        with pytest.raises(ValueError, match="damaged"):
            load(path)


def write(path, arrays, metadata):
    path.write_bytes(save_safetensors(arrays, metadata))


@pytest.mark.parametrize(
    "metadata",
    [None, {"format": "pt"}, *({"dpq_ref": text} for text in ("", "{", "3", "null", "[]", '"a"', "{}"))],
    ids=str,
)
def test_a_foreign_safetensors_file(tmp_path, metadata):
    write(tmp_path / "table", {"codes": np.zeros(3, np.uint8)}, metadata)
    with pytest.raises(ValueError, match="table holds no compressed table of dpq_ref"):
        load(tmp_path / "table")


@pytest.mark.parametrize(
    "content", [b"", b"hello", b"the cat sat on the mat\n" * 50, bytes(100), b"\xff" * 100]
)
def test_something_else_than_a_safetensors_file(tmp_path, content):
    (tmp_path / "table").write_bytes(content)
    with pytest.raises(ValueError, match="table is damaged"):
        load(tmp_path / "table")


def test_no_file(tmp_path):
    for path in (tmp_path / "missing", tmp_path, str(tmp_path / "missing" / "deeper")):
        with pytest.raises(FileNotFoundError, match="no file"):
            load(path)


def test_a_newer_format_and_an_unknown_kind(tmp_path, monkeypatch):
    monkeypatch.setattr(base, "FORMAT", 3)
    product().save(tmp_path / "newer")
    monkeypatch.undo()
    with pytest.raises(ValueError, match="newer has format 3, kind 'product'; this version reads 2"):
        load(tmp_path / "newer")
    monkeypatch.setattr(ProductTable, "kind", "sum")
    product().save(tmp_path / "unknown")
    with pytest.raises(
        ValueError, match="unknown has format 2, kind 'sum'; this version reads 2, .*'product'"
    ):
        load(tmp_path / "unknown")


def forge(path, table, arrays=None, **config):
    """File with other arrays and configuration than the table has, and the right checksums."""
    arrays, config = table.arrays() | (arrays or {}), table.config() | config
    sums = files.checksums(arrays)
    head = {"format": base.FORMAT, "kind": table.kind}
    head["crc32"] = base._header_sum(table.kind, config, arrays, sums)
    write(path, arrays | {"checksums": sums}, {"dpq_ref": json.dumps(head | config)})


@pytest.mark.parametrize(
    "changes",
    [
        {"vocab_size": 38},
        {"vocab_size": -1},
        {"vocab_size": 37.0},
        {"vocab_size": None},
        {"n_groups": 0},
        {"n_groups": 2},
        {"extra": 1},
        {"arrays": {"more": np.zeros(3)}},
        {"arrays": {"values": np.zeros((3, 1, 4), np.float32)}},
        {"arrays": {"values": np.zeros((3, 0, 4), np.float32)}},
        {"arrays": {"values": np.zeros((3, 9, 4), np.float32)}},
        {"arrays": {"values": np.zeros((2, 5, 4), np.float32)}},
        {"arrays": {"values": np.zeros((5, 2), np.float32)}},
        {"arrays": {"values": np.zeros((3, 5, 0), np.float32)}},
        {"arrays": {"values": np.zeros((3, 5, 4), np.float16)}},
        {"arrays": {"values": np.zeros((3, 5, 4), np.int32)}},
        {"arrays": {"codes": np.zeros((6, 7), np.uint8)}},
        {"arrays": {"codes": np.zeros(42, np.int8)}},
    ],
    ids=str,
)
def test_a_file_whose_parts_do_not_fit_together(tmp_path, changes):
    forge(tmp_path / "table", product())
    same(load(tmp_path / "table"), product())
    forge(tmp_path / "table", product(), **changes)
    with pytest.raises(ValueError):
        load(tmp_path / "table")


@pytest.mark.parametrize("backend_name", ["numpy", "numba"])
def test_codes_beyond_the_codebook_are_not_looked_up(tmp_path, monkeypatch, backend_name):
    get = backend.get
    monkeypatch.setattr(backend, "get", lambda name=None: get(backend_name))
    table = product()  # K = 5 takes 3 bits
    forge(tmp_path / "table", table, arrays={"codes": np.full_like(table.packed, 255)})
    with pytest.raises(IndexError, match=r"codes must lie in \[0, 5\), got 7"):
        load(tmp_path / "table").lookup([0])


@one_of_each
@pytest.mark.parametrize("where", ["os.replace", "os.fsync"])
def test_a_save_that_fails_leaves_what_was_there(tmp_path, monkeypatch, make, where):
    path = tmp_path / "table"
    path.write_bytes(b"before")

    def fail(*args):
        raise OSError("disk full")

    monkeypatch.setattr(where, fail)
    with pytest.raises(OSError, match="disk full"):
        make().save(path)
    monkeypatch.undo()
    assert os.listdir(tmp_path) == ["table"] and path.read_bytes() == b"before"
    make().save(path)
    assert os.listdir(tmp_path) == ["table"]
    same(load(path), make())


def test_a_file_is_plain_safetensors(tmp_path):
    table = product()
    table.save(tmp_path / "table")
    with safe_open(tmp_path / "table", framework="numpy") as file:
        assert set(file.keys()) == {"codes", "values", "checksums"}
        np.testing.assert_array_equal(file.get_tensor("values"), table.values)
        config = json.loads(file.metadata()["dpq_ref"])
    assert config["kind"] == "product" and config["vocab_size"] == 37 and config["n_groups"] == 3


# --- What the classes take --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "codes, error, message",
    [
        (np.array([[0, 5]]), IndexError, r"codes must lie in \[0, 5\), got 5"),
        (np.array([[0, -1]]), IndexError, r"codes must lie in \[0, 5\), got -1"),
        (np.array([[0.0, 1.5]]), TypeError, "codes must be integers"),
        (np.array([[0, 1, 2]]), ValueError, "do not make"),
    ],
)
def test_codes_are_checked(codes, error, message):
    with pytest.raises(error, match=message):
        ProductTable.from_codes(codes, np.zeros((2, 5, 3), np.float32))


@pytest.mark.parametrize("K, message", [(0, "n_codes=0"), (1, "n_codes=1"), (65_537, "n_codes=65537")])
def test_numbers_of_codes_that_do_not_fit(K, message):
    with pytest.raises(ValueError, match=message):
        ProductTable.from_codes(np.zeros((3, 2), int), np.zeros((2, K, 1), np.float32))


def test_levels_and_their_bits_are_checked():
    with pytest.raises(IndexError, match=r"codes must lie in \[0, 8\), got 8"):
        ScalarTable.from_codes(np.array([[8]]), 3)
    with pytest.raises(TypeError, match="codes must be integers"):
        ScalarTable.from_codes(np.array([[0.5]]), 3)
    for n_bits in (0, 17):
        with pytest.raises(ValueError, match=f"n_bits={n_bits}"):
            ScalarTable.from_codes(np.array([[0]]), n_bits)


def test_factors_are_checked():
    left, right = np.zeros((5, 2), np.float32), np.zeros((2, 3), np.float32)
    for other in (right[:1], right[0], right.astype(np.float64)):
        with pytest.raises(ValueError, match="do not make a table"):
            FactoredTable(left, other)
    with pytest.raises(ValueError, match="values int64"):
        FactoredTable(left.astype(int), right.astype(int))
    for offset in (np.zeros(2, np.float32), np.zeros(3)):
        with pytest.raises(ValueError, match="offset .* do not make a table"):
            FactoredTable(left, right, offset)


def test_scales_and_levels_are_checked():
    codes = np.zeros((5, 3), int)
    for scales in (np.zeros((3, 1), np.float32), np.zeros((1, 1)), np.zeros(3, np.float32)):
        with pytest.raises(ValueError, match="scales .* do not make 5 x 3 of 2 bits"):
            ScalarTable.from_codes(codes, 2, scales)
    for levels in (np.zeros(3, np.float32), np.zeros(4)):
        with pytest.raises(ValueError, match="levels .* do not make 5 x 3 of 2 bits"):
            ScalarTable.from_codes(codes, 2, None, levels)
    for values in (np.zeros((5, 0), np.float32), np.zeros(5, np.float32), np.zeros((5, 2), np.int32)):
        with pytest.raises(ValueError, match="do not make a table"):
            DenseTable(values)
