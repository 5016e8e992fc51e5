"""A large table in use: a file opened, rows by id, nearest rows; beside faiss and uncompressed tables."""

import tempfile
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dpq_ref import ProductTable, load
from figures.speed import Work

BEST = 10


def search(n: int, dim: int, n_groups: int, n_codes: int, queries: int) -> Work:
    """Find the rows of the largest cosines with queries.

    All values of a group are equally long, so rows are too, and the largest inner product, which faiss looks
    for, is the largest cosine.
    """
    from dpq_ref.faiss_index import to_faiss

    table = _table(n, dim, n_groups, n_codes)
    X = np.random.default_rng(1).standard_normal((queries, dim), np.float32)
    X /= np.linalg.norm(X, axis=1, keepdims=True)
    index, rows = to_faiss(table, inner_product=True), table.reconstruct()

    def numpy_search() -> tuple[NDArray, NDArray]:
        products = X @ rows.T
        best = np.argpartition(-products, BEST, axis=1)[:, :BEST]
        found = np.take_along_axis(products, best, axis=1)
        order = np.argsort(-found, axis=1)
        return np.take_along_axis(found, order, axis=1), np.take_along_axis(best, order, axis=1)

    def agree() -> None:
        ids, cosines = table.search(X, BEST)
        for products, others in (index.search(X, BEST), numpy_search()):
            np.testing.assert_allclose(cosines, products, atol=2e-6)
            assert (ids == others).mean() > 0.99  # but for what rounds to the same

    return Work(
        f"top {BEST} of {queries:,} in {n:,} x {dim}, D {n_groups}, K {n_codes}",
        lambda: table.search(X, BEST),
        {"faiss": lambda: index.search(X, BEST), "NumPy, uncompressed": numpy_search},
        agree,
    )


def gather(n: int, dim: int, n_groups: int, n_codes: int, ids: int) -> Work:
    """Look up rows anywhere in a table that no cache holds."""
    table = _table(n, dim, n_groups, n_codes)
    rows, some = table.reconstruct(), np.random.default_rng(1).integers(0, n, ids)

    def agree() -> None:
        np.testing.assert_array_equal(table.lookup(some), rows[some])

    return Work(
        f"{ids:,} of {n:,} x {dim}, D {n_groups}, K {n_codes}",
        lambda: table.lookup(some),
        {"NumPy, uncompressed": lambda: rows[some]},
        agree,
    )


def open_file(n: int, dim: int, n_groups: int, n_codes: int) -> Work:
    """Open a file of a table with words, and look up one."""
    import gensim

    from dpq_ref.faiss_index import _faiss, to_faiss

    folder = tempfile.TemporaryDirectory()
    ours, theirs, index = (Path(folder.name, name) for name in ("ours", "gensim", "faiss"))
    table, word, row = _table(n, dim, n_groups, n_codes), f"word{n // 3}", n // 3
    table.words = [f"word{i}" for i in range(n)]
    table.save(ours)
    full = gensim.models.KeyedVectors(dim)
    full.add_vectors(table.words, table.reconstruct())
    full.save(str(theirs))
    _faiss().write_index(to_faiss(table), str(index))
    expected = table[word]

    def by_gensim() -> NDArray:
        return gensim.models.KeyedVectors.load(str(theirs), mmap="r")[word]

    def by_faiss() -> NDArray:
        return _faiss().read_index(str(index)).reconstruct(row)

    def agree() -> None:
        assert folder.name  # held, or the files are gone
        for found in (load(ours)[word], by_gensim(), by_faiss()):
            np.testing.assert_array_equal(found, expected)

    return Work(
        f"one word of {n:,} x {dim}, D {n_groups}, K {n_codes}",
        lambda: load(ours)[word],
        {"gensim, mapped": by_gensim, "faiss, by row": by_faiss},
        agree,
    )


def _table(n: int, dim: int, n_groups: int, n_codes: int) -> ProductTable:
    rng = np.random.default_rng(0)
    values = rng.standard_normal((n_groups, n_codes, dim // n_groups), np.float32)
    values /= np.linalg.norm(values, axis=2, keepdims=True) * np.float32(n_groups**0.5)
    return ProductTable.from_codes(rng.integers(0, n_codes, (n, n_groups), np.int32), values)
