"""Reading tables: rows of 8 bits an entry, nearest rows by bits, a table in text; beside faiss and others."""

import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from baselines import UniformQuantizer
from dpq_ref.compressed import ScalarTable
from dpq_ref.tables import WordVectors, read_table
from figures.speed import Work
from figures.workloads.tables import made_up


def int8(n: int, dim: int, rows: int) -> Work:
    """Decode some rows of a table of 8 bits an entry."""
    import faiss

    X = made_up(n, dim)
    table = UniformQuantizer(8).fit(X).compress()
    quantizer = faiss.ScalarQuantizer(dim, faiss.ScalarQuantizer.QT_8bit_uniform)
    quantizer.train(X)
    codes = quantizer.compute_codes(X)
    ids = np.random.default_rng(0).integers(0, n, rows)

    def agree() -> None:
        largest = np.abs(X).max()
        for found in (table.lookup(ids), quantizer.decode(codes[ids])):
            assert np.sqrt(np.mean((found - X[ids]) ** 2)) < largest / 255

    return Work(
        f"{rows:,} rows of {n:,} x {dim}",
        lambda: table.lookup(ids),
        {"faiss": lambda: quantizer.decode(codes[ids])},
        agree,
        traffic=5.0 * rows * dim,
    )


def hamming(n: int, n_bits: int, queries: int, k: int) -> Work:
    """Find the k rows that differ from each of some queries in the fewest bits."""
    import faiss

    bits = np.random.default_rng(0).integers(0, 2, (n, n_bits), np.uint8)
    table = ScalarTable.from_codes(bits, 1)
    packed = np.packbits(bits, axis=1, bitorder="little")
    ids = np.arange(queries)
    index = faiss.IndexBinaryFlat(n_bits)
    index.add(packed)

    def agree() -> None:
        ours, theirs = table.nearest(ids, k)[1], index.search(packed[ids], k)[0]
        np.testing.assert_array_equal(ours, theirs)

    return Work(
        f"top {k} of {queries:,} in {n:,} x {n_bits} bits",
        lambda: table.nearest(ids, k),
        {"faiss": lambda: index.search(packed[ids], k)},
        agree,
    )


def text(n: int, dim: int) -> Work:
    """Read a table in the text format of GloVe, a word and its numbers a line.

    gensim and we end with words and a matrix, pandas and pyarrow with columns. pyarrow takes all processors.
    """
    import gensim
    import pandas
    import pyarrow.csv

    X = made_up(n, dim)
    folder = tempfile.TemporaryDirectory()
    path = Path(folder.name) / "vectors.txt"
    with path.open("w", encoding="utf8") as file:
        for i, row in enumerate(X):
            file.write(f"word{i} {' '.join(f'{x:.5g}' for x in row)}\n")

    def ours() -> WordVectors:
        return read_table(path)

    def by_gensim() -> Any:
        return gensim.models.KeyedVectors.load_word2vec_format(path, no_header=True)

    def by_pandas() -> Any:
        return pandas.read_csv(
            path, sep=" ", header=None, quoting=3, engine="c", dtype=dict.fromkeys(range(1, dim + 1), "f4")
        )

    def by_pyarrow() -> Any:
        names = ["word", *map(str, range(dim))]
        return pyarrow.csv.read_csv(
            path,
            read_options=pyarrow.csv.ReadOptions(column_names=names),
            parse_options=pyarrow.csv.ParseOptions(delimiter=" ", quote_char=False),
            convert_options=pyarrow.csv.ConvertOptions(
                column_types=dict.fromkeys(names[1:], pyarrow.float32())
            ),
        )

    def agree() -> None:
        assert folder.name  # held, or the file is gone
        found = ours().vectors
        np.testing.assert_allclose(found, X, rtol=1e-4)
        np.testing.assert_allclose(found, by_gensim().vectors, rtol=3e-7)
        np.testing.assert_allclose(found, by_pandas().iloc[:, 1:].to_numpy(), rtol=3e-7)
        columns = by_pyarrow().columns[1:]
        np.testing.assert_allclose(found, np.column_stack([c.to_numpy() for c in columns]), rtol=3e-7)

    return Work(
        f"{n:,} x {dim}",
        ours,
        {"gensim": by_gensim, "pandas": by_pandas, "pyarrow": by_pyarrow},
        agree,
        traffic=float(path.stat().st_size),
    )
