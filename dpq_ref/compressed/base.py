"""The artefact that every method ends in: look-up, honest bits, and one file.

A file is plain safetensors: named arrays, and the configuration as JSON in the metadata under "dpq_ref", with
a SHA-256 over configuration and arrays. Bits are those of the arrays as stored; codes are packed at
ceil(log2 K) bits, so a file has `sum(bits) / 8` bytes and a header. The words of the rows may stand beside;
they are the same whatever the method, and no bits of the table.
"""

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

from dpq_ref import checks
from dpq_ref.kernels.reference import BLOCK, Array, Integers

FORMAT = 1
KINDS: dict[str, type["Compressed"]] = {}  # by name, each entered when its class is made
DTYPES = {  # of safetensors
    **{"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2", "U8": "u1", "I8": "i1", "U16": "<u2"},
    **{"I16": "<i2", "U32": "<u4", "I32": "<i4", "U64": "<u8", "I64": "<i8", "BOOL": "?"},
}
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
    vocab_size: int
    dim: int
    dtype: np.dtype
    _vocabulary: list[str] | None = None
    _stored_words: tuple[np.ndarray, np.ndarray] | None = None  # of a file, until they are asked for

    def __init_subclass__(cls) -> None:  # noqa: D105
        KINDS[cls.kind] = cls

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
        out : (..., dim) of the table's dtype in C order, optional
            Where they go. A large array made anew may cost more than the rows in it.

        Returns
        -------
        (..., dim)

        Raises
        ------
        TypeError, IndexError, ValueError
            If ids are not integers, or out of range, or if `out` does not fit.
        """
        ids = checks.as_ids(ids, self.vocab_size)
        shape = (*ids.shape, self.dim)
        if out is None:
            return self._rows(ids.ravel()).reshape(shape)
        if out.shape != shape or out.dtype != self.dtype or not out.flags.carray:
            got = f"{out.dtype} {out.shape}, strides {out.strides}"
            raise ValueError(f"out must be {self.dtype} {shape} in C order and writeable, got {got}")
        self._rows_into(ids.ravel(), out.reshape(ids.size, self.dim))
        return out

    def reconstruct(self) -> Array:
        """Whole table, (vocab_size, dim)."""
        table = np.empty((self.vocab_size, self.dim), self.dtype)
        for ids in self._blocks():
            table[ids] = self._rows(ids)
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
        queries = np.asarray(queries, self.dtype)
        if queries.ndim != 2 or queries.shape[1] != self.dim:
            raise ValueError(f"queries must have shape (b, {self.dim}), got {queries.shape}")
        return self._scores(queries)

    def _scores(self, queries: Array) -> Array:
        scores = np.empty((len(queries), self.vocab_size), self.dtype)
        for ids in self._blocks():
            scores[:, ids] = queries @ self._rows(ids).T
        return scores

    def _blocks(self) -> Iterator[Integers]:
        """Ids of rows, as many at a time as fit."""
        step = max(1, BLOCK // self._entries_per_row)
        for start in range(0, self.vocab_size, step):
            yield np.arange(start, min(start + step, self.vocab_size))

    @property
    def _entries_per_row(self) -> int:
        """Entries of the largest array on the way to a row."""
        return self.dim

    @property
    def words(self) -> list[str] | None:  # noqa: D102
        stored = self._stored_words  # read once: another thread may be here too
        if stored is not None:
            text, lengths = stored
            ends = [0, *np.cumsum(lengths, dtype=np.int64).tolist()]
            if ends[-1] != len(text):
                raise ValueError(f"words of {ends[-1]} bytes in a text of {len(text)}")
            self.words = [text[a:b].tobytes().decode() for a, b in pairwise(ends)]
        return self._vocabulary

    @words.setter
    def words(self, words: Iterable[str] | None) -> None:
        vocabulary = None if words is None else list(words)
        if vocabulary is not None and len(vocabulary) != self.vocab_size:
            raise ValueError(f"{len(vocabulary)} words for {self.vocab_size} rows")
        self._vocabulary = vocabulary  # before the others are gone
        self._stored_words = None
        self.__dict__.pop("_ids", None)

    @cached_property
    def _ids(self) -> dict[str, int]:
        if self.words is None:
            raise ValueError("the table has no words; set `words`, or look up ids")
        return {word: i for i, word in reversed(list(enumerate(self.words)))}

    @cached_property
    def _norms(self) -> Array:
        """Lengths of all rows, (vocab_size,)."""
        norms = np.empty(self.vocab_size, self.dtype)
        for ids in self._blocks():
            norms[ids] = np.linalg.norm(self._rows(ids), axis=1)
        return norms

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
        vector = self.lookup(own) if own is not None else np.asarray(query, self.dtype)
        scores = self.scores(vector[None])[0]
        lengths = self._norms * np.linalg.norm(vector)
        cosines = np.divide(scores, lengths, out=np.zeros_like(scores), where=lengths > 0)
        if own is not None:
            cosines[own] = -np.inf
        n = min(checks.positive("n", n), self.vocab_size - (own is not None))
        best = np.argsort(-cosines, kind="stable")[:n].tolist()
        names = range(self.vocab_size) if self.words is None else self.words
        return [(names[i], float(cosines[i])) for i in best]

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


def load(path: str | os.PathLike, *, mapped: bool = False) -> Compressed:
    """Read a file that `Compressed.save` wrote.

    Parameters
    ----------
    path : path-like
    mapped : bool
        Leave the arrays in the file and read what is looked up: at once for any size, and shared by all
        processes that do so. Then only the header is checked: names, types, shapes and places of the arrays,
        and that they and the configuration make a table. The checksum, which takes every byte, is not: a
        damaged number goes unseen; a damaged code may, too, or be refused when it is looked up.

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
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(f"{path} is not a valid {kind!r} table: {error}") from error
    return table


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
    """Array in C order and little-endian, as it is written; a view if it is that already."""
    return np.ascontiguousarray(array, array.dtype.newbyteorder("<"))


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
