"""The artefact that every method ends in: look-up, honest bits, and one file.

A file is plain safetensors: named arrays, and the configuration as JSON in the metadata under "dpq_ref", with
a SHA-256 over configuration and arrays. Bits are those of the arrays as stored; codes are packed at
ceil(log2 K) bits, so a file has `sum(bits) / 8` bytes and a header. The words of the rows may stand beside;
they are the same whatever the method, and no bits of the table.

A table is made on the host, and files come from there. `on` gives the same one on a device, for its look-ups.
"""

import copy
import hashlib
import json
import os
import secrets
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from functools import cached_property, partial
from itertools import pairwise
from pathlib import Path
from typing import Any, BinaryIO, ClassVar, Self

import numpy as np
from numpy.typing import NDArray

from dpq_ref import backend as backends
from dpq_ref import checks
from dpq_ref.kernels.reference import BLOCK, Array, Integers

FORMAT = 1
KINDS: dict[str, type["Compressed"]] = {}  # by name, each entered when its class is made
DTYPES = {  # of safetensors
    **{"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2", "U8": "u1", "I8": "i1", "U16": "<u2"},
    **{"I16": "<i2", "U32": "<u4", "I32": "<i4", "U64": "<u8", "I64": "<i8", "BOOL": "?"},
}
QUERIES = 256  # at a time
FEW = 4  # queries below which NumPy's dot products are faster than kernels that share a row
ROWS = 1 << 16  # at most, of a block of a search: memory that is used again costs no page faults
FIRST = 32  # values for each that is kept, from which a first bar for all values is found
WORDS = "words.text", "words.lengths"  # arrays of a file: UTF-8 end to end, and the bytes of each word


class Compressed(ABC):
    """A compressed embedding table of `vocab_size` rows and `dim` columns.

    Attributes
    ----------
    vocab_size, dim : int
    dtype : dtype of what `lookup` returns
    words : list of str or None
        The rows by name. Set, they are kept by `save`; of a word that comes twice the first row counts.

    Examples
    --------
    >>> from dpq_ref.compressed import DenseTable
    >>> table = DenseTable(np.float32([[0, 2], [1, 0], [3, 1]]))
    >>> table.words = ["up", "right", "far"]
    >>> table["right"], "down" in table
    (array([1., 0.], dtype=float32), False)
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
    _stored_words: tuple[np.ndarray, np.ndarray] | None = None  # of a file, until they are asked for
    _mapped: str | None = None  # the file that the arrays are left in

    def __init_subclass__(cls) -> None:  # noqa: D105
        KINDS[cls.kind] = cls

    def __reduce_ex__(self, protocol: Any) -> Any:
        """Pickle a mapped table as its path: other processes map it, too."""
        return super().__reduce_ex__(protocol) if self._mapped is None else (_map, (self._mapped,))

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
        table = copy.copy(self)
        table._backend = backends.get(backend)
        for name in self.read:
            setattr(table, name, _moved(getattr(self, name), table._backend))
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
            If ids are not integers, or out of range, or if `out` does not fit.
        """
        ids = checks.as_ids(ids, self.vocab_size)
        if type(ids) is not np.ndarray and backends.on_device(ids) and self.kernels.xp is np:
            raise TypeError("ids are on a device, and the table is not: table.on('cupy') is")
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
            yield slice(start, stop), self.kernels.xp.arange(start, stop)

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
        stored = self._stored_words  # read once: another thread may be here too
        if stored is not None:
            text, lengths = stored
            ends = [0, *np.cumsum(lengths, dtype=np.int64).tolist()]
            if ends[-1] != len(text):
                raise ValueError(f"words of {ends[-1]} bytes in a text of {len(text)}")
            self._vocabulary = [text[a:b].tobytes().decode() for a, b in pairwise(ends)]
            self._stored_words = None  # after the others are there
        return self._vocabulary

    @words.setter
    def words(self, words: Iterable[str] | None) -> None:
        vocabulary = None if words is None else list(words)
        if vocabulary is not None and len(vocabulary) != self.vocab_size:
            raise ValueError(f"{len(vocabulary)} words for {self.vocab_size} rows")
        self._vocabulary = vocabulary  # before the others are gone
        self._stored_words = self._mapped = None
        self.__dict__.pop("_ids", None)

    @cached_property
    def _ids(self) -> dict[str, int]:
        if self.words is None:
            raise ValueError("the table has no words; set `words`, or look up ids")
        return {word: i for i, word in reversed(list(enumerate(self.words)))}

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
        try:
            return self._ids[word]
        except KeyError:
            raise KeyError(f"no word {word!r}") from None

    def __getitem__(self, word: str) -> Array:
        """Row of a word, (dim,); errors as in `id_of`."""
        return self.lookup(self.id_of(word))

    def __contains__(self, word: object) -> bool:
        """Whether there is a row for a word."""
        return word in self._ids

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
        names = range(self.vocab_size) if self.words is None else self.words
        found = zip(ids[0].tolist(), cosines[0].tolist(), strict=True)
        return [(names[i], cosine) for i, cosine in found if i != own][:n]

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
            If a word has no UTF-8.
        """
        arrays = {name: as_stored(array) for name, array in (self.arrays() | self._word_arrays()).items()}
        config = self.config()
        head = {"format": FORMAT, "kind": self.kind, "sha256": _digest(self.kind, config, arrays)}
        metadata = {"dpq_ref": json.dumps(head | config)}
        write_atomically(path, lambda file: _write_tensors(file, arrays, metadata))

    def _word_arrays(self) -> dict[str, np.ndarray]:
        if self.words is None:
            return {}
        encoded = checks.utf8(self.words)
        text, lengths = np.frombuffer(b"".join(encoded), np.uint8), np.array([*map(len, encoded)], np.uint32)
        return dict(zip(WORDS, (text, lengths), strict=True))

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


def load(path: str | os.PathLike, *, mapped: bool = False) -> Compressed:
    """Read a file that `Compressed.save` wrote.

    Parameters
    ----------
    path : path-like
    mapped : bool
        Leave the arrays in the file and read what is looked up: at once for any size, and shared by all
        processes that do so; pickled, the table is its path. Then only the header is checked: names, types,
        shapes and places of the arrays, and that they and the configuration make a table. The checksum, which
        takes every byte, is not: a damaged number goes unseen; a damaged code may, too, or be refused when it
        is looked up. So it is not the default, however large the file.

    Returns
    -------
    Compressed

    Raises
    ------
    FileNotFoundError
    ValueError
        If the file is not one of ours, cut off, altered, or of a newer format.

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
    from safetensors import SafetensorError, safe_open

    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no file {path}")
    try:
        with safe_open(path, framework="numpy") as file:
            metadata = file.metadata() or {}
            read = partial(map_tensor, path) if mapped else file.get_tensor
            arrays = {name: read(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
    except (SafetensorError, AttributeError, TypeError, KeyError) as error:  # the last: dtypes NumPy lacks
        raise ValueError(f"{path} is damaged or not a safetensors file: {error}") from error
    try:
        config = json.loads(metadata["dpq_ref"])
        digest, version, kind = config.pop("sha256"), config.pop("format"), config.pop("kind")
    except (KeyError, TypeError, AttributeError, ValueError, RecursionError) as error:
        raise ValueError(f"{path} holds no compressed table of dpq_ref: {error!r} in its metadata") from error
    if version != FORMAT or kind not in list(KINDS):
        raise ValueError(
            f"{path} has format {version!r}, kind {kind!r}; this version reads {FORMAT}, {sorted(KINDS)}"
        )
    if not mapped and digest != _digest(kind, config, arrays):
        raise ValueError(f"{path} is damaged: its contents do not match their checksum")
    words = {name: arrays.pop(name) for name in WORDS if name in arrays}
    try:
        table = KINDS[kind].from_stored(arrays, config)
        if words:
            text, lengths = (words[name] for name in WORDS)
            takes = (np.uint8, np.uint32, (table.vocab_size,), 1)
            if (text.dtype, lengths.dtype, lengths.shape, text.ndim) != takes:
                raise ValueError(f"words {text.dtype} {text.shape}, {lengths.dtype} {lengths.shape}")
            table._stored_words = text, lengths
        table._mapped = str(path.resolve()) if mapped else None
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(f"{path} is not a valid {kind!r} table: {error}") from error
    return table


def _map(path: str) -> Compressed:
    return load(path, mapped=True)


def _write_tensors(file: BinaryIO, arrays: dict[str, np.ndarray], metadata: dict[str, str]) -> None:
    """Write safetensors; the library's own way goes through a file of its own, which a kill would leave."""
    header: dict[str, Any] = {"__metadata__": metadata}
    names = {np.dtype(dtype): name for name, dtype in DTYPES.items()}
    end = 0
    wide_first = dict(sorted(arrays.items(), key=lambda item: (-item[1].itemsize, item[0])))  # all aligned
    for name, array in wide_first.items():
        start, end = end, end + array.nbytes
        header[name] = {"dtype": names[array.dtype], "shape": array.shape, "data_offsets": [start, end]}
    head = json.dumps(header, separators=(",", ":")).encode()
    head += b" " * (-len(head) % 8)
    file.write(len(head).to_bytes(8, "little") + head)
    file.writelines(array.data for array in wide_first.values())


def map_tensor(path: str | os.PathLike, name: str) -> np.ndarray:
    """Map a tensor of a safetensors file that the library has opened, read-only; bfloat16 as uint16."""
    with open(path, "rb") as file:
        size = int.from_bytes(file.read(8), "little")
        entry = json.loads(file.read(size))[name]
    dtype, shape = np.dtype(DTYPES[entry["dtype"]]), tuple(entry["shape"])
    if 0 in shape:
        return np.empty(shape, dtype)
    return np.memmap(path, dtype, "r", 8 + size + entry["data_offsets"][0], shape)


def as_stored(array: np.ndarray) -> np.ndarray:
    """Array on the host, in C order and little-endian, as it is written; a view if it is that already."""
    array = backends.to_numpy(array) if backends.on_device(array) else array  # a mapped one stays that
    return np.ascontiguousarray(array, array.dtype.newbyteorder("<"))


def _moved(value: Any, kernels: Any) -> Any:
    """Move what look-ups read to where a kernel set has its arrays."""
    if value is None or isinstance(value, (int, float)):
        return value
    if isinstance(value, list):
        return [_moved(part, kernels) for part in value]
    return (
        value.on(kernels) if isinstance(value, Compressed) else kernels.xp.asarray(backends.to_numpy(value))
    )


def _digest(kind: str, config: dict[str, Any], arrays: dict[str, np.ndarray]) -> str:
    """SHA-256 of kind, configuration and arrays."""
    digest = hashlib.sha256(json.dumps([kind, config], sort_keys=True).encode())
    for name, array in sorted(arrays.items()):
        digest.update(f"{name} {array.dtype.str} {array.shape}".encode())
        digest.update(array.data)
    return digest.hexdigest()


def write_atomically(path: str | os.PathLike, content: bytes | Callable[[BinaryIO], Any]) -> None:
    """Write a file whole or not at all: a reader sees what was there before, and then all of the new one.

    It is written beside its place as `.NAME.xxxxxxxx.part`, and moved there. Should the process be killed,
    that one is left; nothing reads it, and it may be deleted.

    Parameters
    ----------
    path : path-like
        A link stays a link, to the new file.
    content : bytes or callable
        What the file holds, or what writes that to an open file.

    Raises
    ------
    OSError
        If it cannot be written; then no part of it is left.
    """
    path = Path(os.path.realpath(path))
    temporary = path.with_name(f".{path.name[:100]}.{secrets.token_hex(4)}.part")
    try:
        with temporary.open("xb") as file:
            if callable(content):
                content(file)
            else:
                file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException as error:
        with suppress(OSError):
            temporary.unlink()
        if isinstance(error, OSError) and error.errno:
            error.filename, error.filename2 = str(path), None  # the name that the user knows
        raise
