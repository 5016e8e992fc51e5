"""The artefact that every method ends in: look-up, honest bits, and one file.

A file is plain safetensors: named arrays, and the configuration as JSON in the metadata under "dpq_ref". Bits
are those of the arrays as stored; codes are packed at ceil(log2 K) bits, so a file has `sum(bits) / 8` bytes,
a header, and checksums, 4 bytes for each 8,192. The words of the rows may stand beside; they are the same
whatever the method, and no bits of the table.

Loaded, the arrays stay in the file. What a look-up reads is checked before it is first used, and no more.

A table is made on the host, and files come from there. `on` gives the same one on a device, for its look-ups.
"""

import json
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar, Self
from zlib import crc32

import numpy as np
from numpy.typing import NDArray

from dpq_ref import backend as backends
from dpq_ref import checks
from dpq_ref.compressed.files import (
    StoredArray,
    as_stored,
    checksums,
    read_tensors,
    with_checksums,
    write_atomically,
    write_tensors,
)
from dpq_ref.compressed.words import ARRAYS, StoredWords, arrays_of
from dpq_ref.kernels.reference import BLOCK, Array, Integers

FORMAT = 2
KINDS: dict[str, type["Compressed"]] = {}  # by name, each entered when its class is made
QUERIES = 256  # at a time
FEW = 4  # queries below which NumPy's dot products are faster than kernels that share a row
AT_ONCE = 1 << 24  # bytes of a file that `load` checks, milliseconds; of larger ones what is looked up
SUMS = "checksums"  # array of a file
ROWS = 1 << 16  # at most, of a block of a search: memory that is used again costs no page faults
FIRST = 32  # values for each that is kept, from which a first bar for all values is found


class Compressed(ABC):
    """A compressed embedding table of `vocab_size` rows and `dim` columns.

    Attributes
    ----------
    vocab_size, dim : int
    dtype : dtype of what `lookup` returns
    words : list of str or None
        The rows by name. Set, they are kept by `save`; of a word that comes twice the first row counts. Those
        of a file are decoded one by one as they are asked for, and all when this is read.

    Examples
    --------
    >>> from dpq_ref.compressed import DenseTable
    >>> table = DenseTable(np.float32([[0, 2], [1, 0], [3, 1]]))
    >>> table.words = ["up", "right", "far"]
    >>> table["right"], "down" in table, len(table), list(table)
    (array([1., 0.], dtype=float32), False, 3, ['up', 'right', 'far'])
    >>> [(word, round(cosine, 2)) for word, cosine in table.most_similar("right")]
    [('far', 0.95), ('up', 0.0)]
    """

    kind: ClassVar[str]
    read: ClassVar[tuple[str, ...]]  # attributes that look-ups read: arrays, tables, lists of them, None
    vocab_size: int
    dim: int
    dtype: np.dtype
    _backend: Any = None
    _vocabulary: list[str] | None = None
    _stored_words: StoredWords | None = None  # of a file
    _stored: Mapping[str, StoredArray] = MappingProxyType({})  # arrays of a file, until all is checked
    _mapped: str | None = None  # the file that the arrays are left in

    def __init_subclass__(cls) -> None:  # noqa: D105
        KINDS[cls.kind] = cls

    def __reduce_ex__(self, protocol: Any) -> Any:
        """Pickle a mapped table as its path: other processes map it, too."""
        return super().__reduce_ex__(protocol) if self._mapped is None else (load, (self._mapped,))

    def __getstate__(self) -> dict[str, Any]:
        """Check what is copied from a file: a part of a mapped table has no path to be pickled as."""
        self.check()
        return self.__dict__ | {"_stored": {}}

    @abstractmethod
    def arrays(self) -> dict[str, np.ndarray]:
        """Arrays that are stored, by name."""

    @abstractmethod
    def config(self) -> dict[str, Any]:
        """Numbers and switches that are stored beside the arrays; with these, the arguments of the class."""

    @classmethod
    def from_stored(cls, arrays: dict[str, np.ndarray], config: dict[str, Any]) -> Self:
        """Table of its `arrays` and `config`."""
        return cls(**arrays, **config)

    @property
    def kernels(self) -> Any:
        """Kernel set of the look-ups."""
        return self._backend or backends.get()

    def on(self, backend: Any) -> Self:
        """Give the same table with what look-ups read where a back end has its arrays.

        Parameters
        ----------
        backend : {"numba", "numpy", "cupy"} or kernel set

        Returns
        -------
        Compressed
            Its `lookup`, `reconstruct` and `scores` take arrays of the host and of the device, and return
            those of the device. All else is as before.

        Examples
        --------
        >>> from dpq_ref.compressed import DenseTable
        >>> DenseTable(np.eye(2)).on("numpy").lookup([1])
        array([[0., 1.]])
        """
        self.check()
        kernels = backends.get(backend)
        moved = {name: _moved(getattr(self, name), kernels) for name in self.read}
        table = object.__new__(type(self))
        table.__dict__.update(self.__dict__ | moved, _backend=kernels)
        return table

    @abstractmethod
    def bits(self) -> dict[str, int]:
        """Bits stored, by part."""

    @abstractmethod
    def flops_per_lookup(self, weights: Array | None = None) -> float:
        """Additions and multiplications that one row takes, the mean over rows; reading and copying are free.

        Parameters
        ----------
        weights : (vocab_size,), optional
            How often each row is asked for; matters where rows differ.
        """

    @abstractmethod
    def bytes_per_lookup(self, weights: Array | None = None) -> float:
        """Bytes of what is stored that a row reads, its mean over rows; weights as in `flops_per_lookup`."""

    @abstractmethod
    def _rows(self, ids: Integers) -> Array:
        """Rows of valid ids (b,), as (b, dim). A row does not depend on the rows beside it, bit by bit."""

    def _rows_into(self, ids: Integers, out: Array) -> None:
        """Write rows of valid ids (b,) to (b, dim)."""
        out[:] = self._rows(ids)

    def check(self) -> None:
        """Check all that is left in a file. What is looked up is checked in any case, once.

        What is read past the methods of this class, as from `arrays()`, is not checked before.

        Raises
        ------
        ValueError
            If a bit has changed since it was written.
        """
        if self._stored_words is not None:
            for part in self._stored_words.parts:
                part.check()
        for part in self._stored.values():
            part.check()
        self._stored = {}

    def _attach(self, stored: dict[str, StoredArray]) -> None:
        """Take arrays by name, of which no byte is checked yet."""
        self._stored = stored

    def _check(self, stored: Mapping[str, StoredArray], ids: Integers) -> None:
        """Check what rows of valid ids (b,) read of arrays of a file. By default that is all."""
        for part in stored.values():
            part.check()

    def lookup(self, ids: Any, out: Array | None = None) -> Array:
        """Rows of the table, computed from what is stored.

        Parameters
        ----------
        ids : (...,) integers in [0, vocab_size)
            Of a device only if the table is on it.
        out : (..., dim) of the table's dtype in C order, optional
            Where they go. A large array made anew may cost more than the rows in it.

        Returns
        -------
        (..., dim), where the table is

        Raises
        ------
        TypeError, IndexError, ValueError
            If ids are not integers, or out of range, or if `out` does not fit; if what they read in a file is
            damaged.
        """
        ids = checks.as_ids(ids, self.vocab_size)
        if type(ids) is not np.ndarray and backends.on_device(ids) and self.kernels.xp is np:
            raise TypeError("ids are on a device, and the table is not: table.on('cupy') is")
        if stored := self._stored:  # taken once: another thread may find that all is checked
            self._check(stored, ids.ravel())
        if self._backend is not None:
            ids = self._backend.xp.asarray(ids)
        shape = (*ids.shape, self.dim)
        if out is None:
            return self._rows(ids.ravel()).reshape(shape)
        whole = out.flags.c_contiguous if backends.on_device(out) else out.flags.carray
        if out.shape != shape or out.dtype != self.dtype or not whole:
            got = f"{out.dtype} {out.shape}, strides {out.strides}"
            raise ValueError(f"out must be {self.dtype} {shape} in C order and writeable, got {got}")
        self._rows_into(ids.ravel(), out.reshape(ids.size, self.dim))
        return out

    def reconstruct(self, out: Array | None = None) -> Array:
        """Whole table, (vocab_size, dim), made block by block.

        Parameters
        ----------
        out : (vocab_size, dim) of the table's dtype in C order, optional
            Where it goes: a mapped file, where it is larger than memory. Of the host, wherever the table is.
        """
        xp = self.kernels.xp
        table = xp.empty((self.vocab_size, self.dim), self.dtype) if out is None else out
        for rows, ids in self._blocks():
            if out is None or xp is np:
                self._rows_into(ids, table[rows])
            else:
                table[rows] = backends.to_numpy(self._rows(ids))
        return table

    def scores(self, queries: Any) -> Array:
        """Inner products of queries with all rows: the logits of an output layer that has this table.

        Parameters
        ----------
        queries : (b, dim)

        Returns
        -------
        (b, vocab_size)

        Raises
        ------
        ValueError
            If the queries are not as wide as the table.
        """
        queries = self._queries(queries)
        scores = self.kernels.xp.empty((len(queries), self.vocab_size), self.dtype)
        for some in self._query_blocks(len(queries)):
            products = self._products_with(queries[some])
            for rows, ids in self._blocks(max(self._entries_per_product, some.stop - some.start)):
                scores[some, rows] = products(ids)
        return scores

    def _queries(self, queries: Any) -> Array:
        queries = self.kernels.xp.asarray(queries, self.dtype)
        if queries.ndim != 2 or queries.shape[1] != self.dim:
            raise ValueError(f"queries must have shape (b, {self.dim}), got {queries.shape}")
        return queries

    def _products_with(self, queries: Array) -> Callable[[Integers], Array]:
        """Prepare for the inner products of queries (b, dim) with rows of valid ids (m,), (b, m).

        Rows that are equal have equal products, bit by bit. BLAS may round a row by its place.
        """
        xp = self.kernels.xp
        if len(queries) < FEW:
            einsum, stack = xp.einsum, xp.stack
            return lambda ids: stack([einsum("ij,j->i", self._rows(ids), query) for query in queries])
        columns = xp.ascontiguousarray(queries.T)
        return lambda ids: self.kernels.combine(self._rows(ids), columns).T

    def _blocks(self, width: int | None = None) -> Iterator[tuple[slice, Integers]]:
        """Rows and their ids, as many as fit at a time, `width` entries each, by default those of a row."""
        step = max(1, BLOCK // (self._entries_per_row if width is None else width))
        for start in range(0, self.vocab_size, step):
            stop = min(start + step, self.vocab_size)
            ids = self.kernels.xp.arange(start, stop)
            if stored := self._stored:
                self._check(stored, ids)
            yield slice(start, stop), ids

    def _query_blocks(self, n: int) -> list[slice]:
        """As many queries at a time as fit."""
        step = max(1, min(QUERIES, BLOCK // self._entries_per_query))
        return [slice(start, min(start + step, n)) for start in range(0, n, step)]

    @property
    def _entries_per_row(self) -> int:
        """Entries of the largest array on the way to a row."""
        return self.dim

    @property
    def _entries_per_product(self) -> int:
        """The same on the way to the products of `_products_with`."""
        return self._entries_per_row

    @property
    def _entries_per_query(self) -> int:
        """Entries of what `_products_with` makes of a query."""
        return self.dim

    @property
    def words(self) -> list[str] | None:  # noqa: D102
        if self._vocabulary is None and self._stored_words is not None:
            self._vocabulary = self._stored_words.all()
        return self._vocabulary

    @words.setter
    def words(self, words: Iterable[str] | None) -> None:
        own = None if words is None else list(words)
        if own is not None and len(own) != self.vocab_size:
            raise ValueError(f"{len(own)} words for {self.vocab_size} rows")
        self._vocabulary = own  # before the others are gone: another thread may be here, too
        self._stored_words = self._mapped = None
        self.__dict__.pop("_ids", None)

    @property
    def has_words(self) -> bool:
        """Whether rows have words; none is decoded to tell."""
        return self._vocabulary is not None or self._stored_words is not None

    @cached_property
    def _ids(self) -> dict[str, int]:
        """Rows of words that did not come from a file."""
        return {word: i for i, word in reversed(list(enumerate(self._vocabulary or [])))}

    def _row(self, word: object) -> int | None:
        if not self.has_words:
            raise ValueError("the table has no words; set `words`, or look up ids")
        stored = self._stored_words
        if stored is None:
            return self._ids.get(word)  # type: ignore[call-overload]
        return stored.row(word) if isinstance(word, str) else None

    @cached_property
    def _lengths(self) -> Array:
        """Of all rows, (vocab_size,), on the host; infinity for one of zeros, so that its cosines are 0."""
        lengths = np.empty(self.vocab_size, self.dtype)
        for rows, ids in self._blocks():
            lengths[rows] = np.sqrt(backends.to_numpy(self._squares(ids)))
        return np.where(lengths > 0, lengths, self.dtype.type(np.inf))

    def _squares(self, ids: Integers) -> NDArray[np.float64]:
        """Squared lengths of rows of valid ids (b,)."""
        rows = self._rows(ids)
        return self.kernels.xp.einsum("ij,ij->i", rows, rows, dtype=np.float64)

    def id_of(self, word: str) -> int:
        """Row of a word.

        Raises
        ------
        KeyError
            If it is not known.
        ValueError
            If the table has no words.
        """
        row = self._row(word)
        if row is None:
            raise KeyError(f"no word {word!r}")
        return row

    def word_of(self, row: int) -> str:
        """Word of a row in [0, vocab_size).

        Raises
        ------
        ValueError
            If the table has no words.
        """
        if not self.has_words:
            raise ValueError("the table has no words")
        words: Any = self._stored_words if self._vocabulary is None else self._vocabulary
        return words[row]

    def __getitem__(self, word: str) -> Array:
        """Row of a word, (dim,); errors as in `id_of`."""
        return self.lookup(self.id_of(word))

    def __contains__(self, word: object) -> bool:
        """Whether there is a row for a word."""
        return self._row(word) is not None

    def __len__(self) -> int:
        """Count the rows."""
        return self.vocab_size

    def __iter__(self) -> Iterator[str]:
        """Words of the rows, one by one."""
        return map(self.word_of, range(self.vocab_size))

    def search(self, queries: Any, n: int = 10) -> tuple[NDArray[np.int64], Array]:
        """Rows of the largest cosines with each query, all rows compared, block by block.

        No row is decoded where its codes tell the product: those of product quantization pick sums from a
        table of the query, factors take the query through the right one. Lengths of rows are found once.

        Parameters
        ----------
        queries : (b, dim)
        n : int

        Returns
        -------
        ids : (b, min(n, vocab_size)) int64
            By falling cosine, equal ones by id.
        cosines : the same shape
            0 with a row or a query of zeros.

        Raises
        ------
        ValueError
            If the queries are not as wide as the table, or not finite, or n is below 1.

        Examples
        --------
        >>> from dpq_ref.compressed import DenseTable
        >>> table = DenseTable(np.float32([[0, 2], [1, 0], [3, 4], [0, 1]]))
        >>> table.search([[0, 1]], 3)
        (array([[0, 3, 2]]), array([[1. , 1. , 0.8]], dtype=float32))
        """
        queries = backends.to_numpy(self._queries(queries))
        if not np.isfinite(queries).all():
            raise ValueError("queries must be finite")
        n = min(checks.positive("n", n), self.vocab_size)
        lengths = np.linalg.norm(queries.astype(np.float64), axis=1, keepdims=True)
        lengths, exponents = np.frexp(lengths)  # a power of two goes off without rounding
        queries = np.ldexp(queries, -exponents)
        best = np.zeros((len(queries), n), np.int64), np.full((len(queries), n), -np.inf, self.dtype)
        for some in self._query_blocks(len(queries)):
            products = self._products_with(self.kernels.xp.asarray(queries[some]))
            width = max(self._entries_per_product, some.stop - some.start, BLOCK // ROWS)
            for rows, ids in self._blocks(width):
                cosines = backends.to_numpy(products(ids)) / self._lengths[rows]
                for i, row in enumerate(cosines, some.start):
                    _keep_best(rows.start, row, *(array[i] for array in best))
        best[1][:] = best[1] / np.where(lengths > 0, lengths, 1)
        return best

    def most_similar(self, query: Any, n: int = 10) -> list[tuple[Any, float]]:
        """Rows of the largest cosine with a word or a vector.

        Parameters
        ----------
        query : str or (dim,)
            A word of the table is not its own neighbour.
        n : int

        Returns
        -------
        list of (str, float)
            Word, or id where the table has no words, and cosine; a row of zeros has cosine 0.

        Raises
        ------
        KeyError, ValueError
            If the word is not known, or the vector not as wide as the table.
        """
        own = self.id_of(query) if isinstance(query, str) else None
        vector = backends.to_numpy(query) if own is None else self.lookup(own)
        ids, cosines = self.search(vector[None], checks.positive("n", n) + (own is not None))
        found = zip(ids[0].tolist(), cosines[0].tolist(), strict=True)
        name = self.word_of if self.has_words else int
        return [(name(i), cosine) for i, cosine in found if i != own][:n]

    @property
    def compression_ratio(self) -> float:
        """32 bits an entry of the full table over the bits stored (that of the paper; nothing left out)."""
        return 32 * self.vocab_size * self.dim / max(1, sum(self.bits().values()))

    def save(self, path: str | os.PathLike) -> None:
        """Write the file whole or not at all.

        Parameters
        ----------
        path : path-like

        Raises
        ------
        OSError
            If it cannot be written; then the file of before is what it was.
        ValueError
            If a word has no UTF-8; if the table is left in another file, and that is damaged.
        """
        self.check()
        arrays = {name: as_stored(array) for name, array in (self.arrays() | self._word_arrays()).items()}
        sums, config = checksums(arrays), self.config()
        head = {"format": FORMAT, "kind": self.kind, "crc32": _header_sum(self.kind, config, arrays, sums)}
        metadata = {"dpq_ref": json.dumps(head | config)}
        write_atomically(path, lambda file: write_tensors(file, arrays | {SUMS: sums}, metadata))

    def _word_arrays(self) -> dict[str, np.ndarray]:
        if self._stored_words is not None:
            return {part.name: part.array for part in self._stored_words.parts}
        return {} if self._vocabulary is None else arrays_of(self._vocabulary)

    def __repr__(self) -> str:  # noqa: D105
        return (
            f"{type(self).__name__}(vocab_size={self.vocab_size}, dim={self.dim}, "
            f"bits={sum(self.bits().values())}, compression_ratio={self.compression_ratio:.2f})"
        )


def _keep_best(start: int, values: Array, best_ids: Integers, best: Array) -> None:
    """Let the best of the values of rows from `start` on, and their ids, into those found so far."""
    n = len(best)
    better = np.flatnonzero(values > best[-1])  # of equal ones the earlier stay
    for some in (FIRST * n, len(better)):  # the best of the first rule out most of the others
        if len(better) > n:
            least = np.partition(values[better[:some]], -n)[-n]
            better = better[values[better] >= least]
    if len(better):
        values, ids = np.r_[best, values[better]], np.r_[best_ids, start + better]
        order = np.argsort(-values, kind="stable")[:n]
        best[:], best_ids[:] = values[order], ids[order]


def load(path: str | os.PathLike, *, mapped: bool = True) -> Compressed:
    """Take a file that `Compressed.save` wrote.

    The header and all checksums are checked, and the arrays of a file of up to 16 MiB. Larger ones are there
    in milliseconds whatever their size: they are read, and checked, where they are looked up.

    Parameters
    ----------
    path : path-like
    mapped : bool
        Leave the arrays in the file. All processes that do so share them; pickled, the table is its path.
        Nobody may write into the file while it is used; to put another in its place, as `save` does, is fine.
        Otherwise the whole file is read into memory, and checked.

    Returns
    -------
    Compressed

    Raises
    ------
    FileNotFoundError
    ValueError
        If the file is not one of ours, cut off, altered, or of another format.

    Examples
    --------
    >>> import tempfile
    >>> from dpq_ref.compressed import ProductTable
    >>> table = ProductTable.from_codes(np.array([[0, 1], [1, 1]]), np.ones((2, 2, 3), np.float32))
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     table.save(folder + "/table.safetensors")
    ...     load(folder + "/table.safetensors")
    ProductTable(vocab_size=2, dim=6, bits=388, compression_ratio=0.99)
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no file {path}")
    arrays, metadata = read_tensors(path, mapped=mapped)
    try:
        config = json.loads(metadata["dpq_ref"])
        version, kind = config.pop("format"), config.pop("kind")
    except (KeyError, TypeError, AttributeError, ValueError, RecursionError) as error:
        raise ValueError(f"{path} holds no compressed table of dpq_ref: {error!r} in its metadata") from error
    if version != FORMAT or kind not in list(KINDS):
        raise ValueError(
            f"{path} has format {version!r}, kind {kind!r}; this version reads {FORMAT}, {sorted(KINDS)}"
        )
    stated, sums = config.pop("crc32", None), arrays.pop(SUMS, np.empty(0, np.uint32))
    if stated != _header_sum(kind, config, arrays, sums):
        raise ValueError(f"{path} is damaged: its header does not match its checksum")
    stored = with_checksums(path, arrays, sums)
    named = [stored.pop(name) for name in ARRAYS if name in stored]
    try:
        table = KINDS[kind].from_stored({name: part.array for name, part in stored.items()}, config)
        table._attach(stored)
        if named:
            table._stored_words = StoredWords(*named)
            if len(table._stored_words) != table.vocab_size:
                raise ValueError(f"{len(table._stored_words)} words")
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(f"{path} is not a valid {kind!r} table: {error}") from error
    if not mapped or sum(array.nbytes for array in arrays.values()) <= AT_ONCE:
        table.check()
    table._mapped = str(path.resolve()) if mapped else None
    return table


def _header_sum(kind: str, config: dict[str, Any], arrays: dict[str, Array], sums: Array) -> int:
    """CRC-32 of kind, configuration, types and shapes of the arrays, and of the checksums."""
    shapes = {name: [array.dtype.str, *array.shape] for name, array in arrays.items()}
    said = json.dumps([kind, config, shapes], sort_keys=True)
    return crc32(as_stored(sums).tobytes(), crc32(said.encode()))


def _moved(value: Any, kernels: Any) -> Any:
    """Move what look-ups read to where a kernel set has its arrays."""
    if value is None or isinstance(value, (int, float)):
        return value
    if isinstance(value, list):
        return [_moved(part, kernels) for part in value]
    return (
        value.on(kernels) if isinstance(value, Compressed) else kernels.xp.asarray(backends.to_numpy(value))
    )
