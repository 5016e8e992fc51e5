"""Tables in blocks: every row by hand, honest bits, one small header however many blocks."""

import json

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file

from dpq_ref import backend
from dpq_ref.compressed import BlockTable, FactoredTable, base, load, uniform_levels
from dpq_ref.compressed.blocks import ranks_within


def parts(n=60, c=4, dim=9, dtype=np.float32, ranks=None, seed=0):
    """Blocks in a random order, and factors; the last block is dense."""
    rng = np.random.default_rng(seed)
    ranks = ranks or [*(1 + np.arange(c - 1) % (dim - 1)), dim]
    block_of_word = rng.permutation(np.arange(n) % c)
    lefts = [rng.standard_normal(((block_of_word == p).sum(), r)).astype(dtype) for p, r in enumerate(ranks)]
    rights = [None if r == dim else rng.standard_normal((r, dim)).astype(dtype) for r in ranks]
    return block_of_word, lefts, rights


def coded(n=60, c=4, dim=9, n_bits=3, ranks=None, seed=0):
    """Blocks, factors as codes, scales."""
    rng = np.random.default_rng(seed)
    block_of_word, lefts, rights = parts(n, c, dim, ranks=ranks)
    lefts = [rng.integers(0, 1 << n_bits, f.shape) for f in lefts]
    rights = [None if f is None else rng.integers(0, 1 << n_bits, f.shape) for f in rights]
    return block_of_word, lefts, rights, rng.uniform(1, 2, (c, 2)).astype(np.float32)


def by_hand(block_of_word, lefts, rights):
    rows, seen = [], [0] * len(lefts)
    for p in block_of_word:
        left = lefts[p][seen[p]]
        rows.append(left if rights[p] is None else left @ rights[p])
        seen[p] += 1
    return np.array(rows)


def decoded(lefts, rights, scales, n_bits):
    levels = uniform_levels(n_bits)
    return (
        [levels[f] * s for f, s in zip(lefts, scales[:, 0], strict=True)],
        [None if f is None else levels[f] * s for f, s in zip(rights, scales[:, 1], strict=True)],
    )


SHAPES = [(60, 4, 9), (61, 1, 7), (5, 5, 3), (100, 20, 30), (300, 70, 8), (40, 3, 299)]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("kernels", ["numpy", "numba"])
def test_rows_by_hand(shape, dtype, kernels, tmp_path, monkeypatch):
    get = backend.get
    monkeypatch.setattr(backend, "get", lambda name=None: get(kernels))
    block_of_word, lefts, rights = parts(*shape, dtype=dtype)
    table = BlockTable.from_factors(block_of_word, lefts, rights)
    assert table.dtype == dtype
    rtol = 1e-5 if dtype == np.float32 else 1e-12
    np.testing.assert_allclose(
        table.reconstruct(), by_hand(block_of_word, lefts, rights), rtol=rtol, atol=10 * rtol
    )
    table.save(tmp_path / "table")
    np.testing.assert_array_equal(load(tmp_path / "table").reconstruct(), table.reconstruct())


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("n_bits", [1, 3, 8, 16])
def test_codes_by_hand(shape, n_bits, tmp_path):
    block_of_word, lefts, rights, scales = coded(*shape, n_bits=n_bits)
    table = BlockTable.from_factors(block_of_word, lefts, rights, scales, n_bits=n_bits)
    expected = by_hand(block_of_word, *decoded(lefts, rights, scales, n_bits))
    np.testing.assert_allclose(table.reconstruct(), expected, rtol=1e-4, atol=1e-5)
    table.save(tmp_path / "table")
    np.testing.assert_array_equal(load(tmp_path / "table").reconstruct(), table.reconstruct())


@pytest.mark.parametrize("n_bits", [None, 8])
def test_a_row_is_the_same_bit_by_bit_in_any_batch(n_bits, monkeypatch):
    if n_bits:
        block_of_word, lefts, rights, scales = coded(500, 7, 33, n_bits)
        table = BlockTable.from_factors(block_of_word, lefts, rights, scales, n_bits=n_bits)
    else:
        table = BlockTable.from_factors(*parts(500, 7, 33))
    whole = table.reconstruct()
    ids = np.random.default_rng(0).integers(0, 500, (20, 30))
    np.testing.assert_array_equal(table.lookup(ids), whole[ids])
    for i in (0, 250, 499):
        np.testing.assert_array_equal(table.lookup(i), whole[i])
    assert table.lookup(np.empty((2, 0), int)).shape == (2, 0, 33)
    monkeypatch.setattr(base, "BLOCK", 100)
    np.testing.assert_array_equal(table.reconstruct(), whole)


def test_one_block_is_a_low_rank_table():
    rng = np.random.default_rng(0)
    left, right = rng.standard_normal((50, 4)), rng.standard_normal((4, 9))
    table, low_rank = BlockTable.from_factors(np.zeros(50, int), [left], [right]), FactoredTable(left, right)
    np.testing.assert_array_equal(table.reconstruct(), low_rank.reconstruct())
    assert sum(table.bits().values()) == sum(low_rank.bits().values())
    assert table.flops_per_lookup() == low_rank.flops_per_lookup()
    assert table.bytes_per_lookup() == low_rank.bytes_per_lookup()


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("n_bits", [None, 5])
def test_bits_are_the_formula_and_the_file(shape, n_bits, tmp_path):
    n, c, dim = shape
    if n_bits:
        block_of_word, lefts, rights, scales = coded(*shape, n_bits)
        table = BlockTable.from_factors(block_of_word, lefts, rights, scales, n_bits=n_bits)
    else:
        block_of_word, lefts, rights = parts(*shape)
        table = BlockTable.from_factors(block_of_word, lefts, rights)
    counts = np.bincount(block_of_word)
    numbers = sum(
        m * dim if right is None else left.shape[1] * (m + dim)
        for m, left, right in zip(counts, lefts, rights, strict=True)
    )
    expected = {"factors": 32 * numbers} if n_bits is None else {"codes": n_bits * numbers, "scales": 64 * c}
    if c > 1:
        expected["blocks"] = n * int(np.ceil(np.log2(c)))
    assert table.bits() == expected
    table.save(tmp_path / "table")
    stored = sum(expected.values()) / 8
    assert stored <= (tmp_path / "table").stat().st_size <= stored + 4096
    assert load(tmp_path / "table").bits() == expected


def test_header_of_many_blocks_is_small(tmp_path):
    table = BlockTable.from_factors(*parts(500, 500, 130, ranks=[129] * 500))
    table.save(tmp_path / "table")
    assert (tmp_path / "table").stat().st_size - (1 + 4 / 8192) * sum(table.bits().values()) / 8 < 4096


@pytest.mark.parametrize("n_bits", [None, 4])
def test_factors_of_a_block_make_its_rows(n_bits):
    if n_bits:
        block_of_word, lefts, rights, scales = coded(n_bits=n_bits)
        table = BlockTable.from_factors(block_of_word, lefts, rights, scales, n_bits=n_bits)
    else:
        block_of_word, lefts, rights = parts()
        table = BlockTable.from_factors(block_of_word, lefts, rights)
    for p in range(4):
        left, right = table.block(p)
        rows = left if right is None else backend.get().combine(left, right)
        np.testing.assert_array_equal(rows, table.lookup(np.flatnonzero(block_of_word == p)))
        if not n_bits:
            np.testing.assert_array_equal(left, lefts[p])
            assert (right is None) == (rights[p] is None)
    again = BlockTable.from_factors(block_of_word, *zip(*map(table.block, range(4)), strict=True))
    np.testing.assert_array_equal(again.reconstruct(), table.reconstruct())


def test_retrained_factors_go_back():
    block_of_word, lefts, rights = parts()
    lefts[1] *= 2
    rights[0] += 1
    table = BlockTable.from_factors(block_of_word, lefts, rights)
    np.testing.assert_allclose(table.reconstruct(), by_hand(block_of_word, lefts, rights), atol=1e-5)


@pytest.mark.parametrize("n_bits", [None, 8])
def test_work_of_a_look_up_is_the_mean_over_words(n_bits):
    block_of_word = np.array([0, 0, 0, 1])
    if n_bits:
        lefts, rights = [np.ones((3, 2), int), np.ones((1, 10), int)], [np.ones((2, 10), int), None]
        table = BlockTable.from_factors(block_of_word, lefts, rights, np.ones((2, 2), np.float32), n_bits=8)
    else:
        lefts, rights = [np.ones((3, 2)), np.ones((1, 10))], [np.ones((2, 10)), None]
        table = BlockTable.from_factors(
            block_of_word, [f.astype(np.float32) for f in lefts], [rights[0].astype(np.float32), None]
        )
    entry, scale = (1, 4) if n_bits else (4, 0)
    low_rank, dense = 2 * 11 * entry + 2 * scale, 10 * entry + scale
    assert table.flops_per_lookup() == 0.75 * 40
    assert table.bytes_per_lookup() == 0.75 * low_rank + 0.25 * dense + 1 / 8
    assert table.flops_per_lookup(np.array([0, 0, 1, 3])) == 0.25 * 40
    assert table.bytes_per_lookup(np.array([0, 0, 1, 3])) == 0.25 * low_rank + 0.75 * dense + 1 / 8


@pytest.mark.parametrize("seed", range(5))
def test_ranks_within(seed):
    blocks = np.random.default_rng(seed).integers(0, 6, 50)
    expected = [int((blocks[:i] == p).sum()) for i, p in enumerate(blocks)]
    np.testing.assert_array_equal(ranks_within(blocks, np.bincount(blocks, minlength=6)), expected)


def test_factors_that_do_not_fit():
    block_of_word, lefts, rights = parts()
    for wrong in (
        [lefts[0][1:], *lefts[1:]],  # a row too few
        [lefts[0].astype(np.float64), *lefts[1:]],
        [*lefts[:3], lefts[3][:, :8]],  # dense, a column too few
        [*lefts[:2], lefts[1], lefts[3]],  # another rank
    ):
        with pytest.raises(
            ValueError, match="block . has 15 words of 9; factors float.. .* do not make them"
        ):
            BlockTable.from_factors(block_of_word, wrong, rights)
    with pytest.raises(ValueError, match=r"block 3 .*\(15, 9\) and float32 \(9, 9\)"):  # dense with a basis
        BlockTable.from_factors(block_of_word, lefts, [*rights[:3], np.eye(9, dtype=np.float32)])
    with pytest.raises(IndexError, match=r"block_of_word must lie in \[0, 4\), got 4"):
        BlockTable.from_factors(block_of_word + 1, lefts, rights)
    with pytest.raises(TypeError, match="codes must be integers"):
        BlockTable.from_factors(block_of_word, lefts, rights, np.ones((4, 2), np.float32), n_bits=3)
    _, lefts, rights, scales = coded()
    with pytest.raises(IndexError, match=r"codes must lie in \[0, 4\)"):
        BlockTable.from_factors(block_of_word, lefts, rights, scales, n_bits=2)
    with pytest.raises(ValueError, match="do not make 60 x 9"):
        BlockTable.from_factors(block_of_word, lefts, rights, n_bits=3)


@pytest.mark.parametrize(
    "change",
    [
        {"vocab_size": 61},
        {"vocab_size": 70},
        {"dim": 10},
        {"ranks": [1, 2, 3]},
        {"ranks": [1, 2, 4, 9]},
        {"ranks": [1, 2, 3, 10]},
        {"n_bits": 8},
        {"n_bits": 17},
    ],
)
def test_a_file_with_another_head_is_refused(change, tmp_path):
    table = BlockTable.from_factors(*parts())
    path = tmp_path / "table"
    table.save(path)
    with safe_open(path, "numpy") as file:
        config = json.loads(file.metadata()["dpq_ref"])
    config = {k: v for k, v in config.items() if k not in ("format", "kind", "crc32")}
    arrays = load_file(path)
    del arrays["checksums"]
    BlockTable.from_stored(arrays, config).lookup([0])
    with pytest.raises(ValueError, match="do not make|not one of"):
        BlockTable.from_stored(arrays, config | change).lookup([0])


def test_a_block_that_is_not_there():
    block_of_word, lefts, rights = parts(c=3)
    table = BlockTable.from_factors(block_of_word, lefts, rights)
    table.packed[:] = 255  # block 3 of 0, 1, 2
    with pytest.raises(ValueError, match="block 3 of a word is not one of 3"):
        BlockTable.from_stored(table.arrays(), table.config()).lookup([0])


def test_scores_are_inner_products_with_all_rows():
    plain, codes = parts(ranks=[9, 3, 1, 2]), coded(ranks=[9, 3, 1, 2])
    for table in (BlockTable.from_factors(*plain), BlockTable.from_factors(*codes, n_bits=3)):
        queries = np.random.default_rng(1).standard_normal((5, table.dim))
        expected = queries @ table.reconstruct().astype(np.float64).T
        np.testing.assert_allclose(table.scores(queries), expected, atol=1e-4)
