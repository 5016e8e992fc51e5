"""A few entries, where they are, and zeros: what pruning stores.

S. Han, H. Mao, W. J. Dally, *Deep Compression*, ICLR 2016: shared values, and Huffman coding of their codes.
"""

import heapq
from functools import cached_property
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from dpq_ref import backend, checks
from dpq_ref.compressed.base import Compressed
from dpq_ref.compressed.files import as_stored
from dpq_ref.kernels.reference import Array, Integers


class SparseTable(Compressed):
    """Rows of zeros but for some entries, numbers or codes into a codebook.

    Where they are is stored as a bitmap, or as the column of each entry and how many there are in each row:
    whichever is smaller. The first look-up sums up the latter into pointers, and decodes Huffman codes, once.

    Parameters
    ----------
    values : (n_entries,) float32, or packed codes (bytes,) uint8
        Row after row.
    columns : (bytes,) uint8, optional
        ceil(log2 dim) bits an entry, packed.
    rows : (bytes,) uint8, optional
        Entries of each row, ceil(log2(dim + 1)) bits, packed.
    bitmap : (bytes,) uint8, optional
        A bit for each place, packed; in place of `columns` and `rows`.
    codebook : (K,) float32, optional
    lengths : (bytes,) uint8, optional
        Of the words of a canonical Huffman code, packed; then `values` is a stream of these.
    vocab_size, dim, n_entries : int

    Examples
    --------
    >>> table = SparseTable.from_entries(np.array([[True, False, False, True]]), np.float32([3, 4]))
    >>> table.lookup(0)
    array([3., 0., 0., 4.], dtype=float32)
    >>> table.bits()
    {'values': 64, 'bitmap': 4}
    """

    kind = "sparse"
    read = ("_columns", "_numbers")
    dtype = np.dtype(np.float32)

    def __init__(
        self,
        values: NDArray,
        columns: NDArray[np.uint8] | None = None,
        rows: NDArray[np.uint8] | None = None,
        bitmap: NDArray[np.uint8] | None = None,
        codebook: Array | None = None,
        lengths: NDArray[np.uint8] | None = None,
        *,
        vocab_size: int,
        dim: int,
        n_entries: int,
    ):
        self.vocab_size = checks.positive("vocab_size", vocab_size, least=0)
        self.dim = checks.positive("dim", dim)
        self.n_entries = checks.positive("n_entries", n_entries, least=0)
        given = {"values": values, "columns": columns, "rows": rows, "bitmap": bitmap}
        given |= {"codebook": codebook, "lengths": lengths}
        self._arrays = {name: as_stored(array) for name, array in given.items() if array is not None}
        self.huffman = lengths is not None
        n_codes = 0 if codebook is None else checks.number_of_codes(codebook.size)
        self._value_bits = (n_codes - 1).bit_length() if n_codes else 32
        bits = _placement(self.vocab_size, dim, n_entries)
        places = ["bitmap"] if bitmap is not None else ["columns", "rows"]
        sizes: dict[str, int] = {name: -(-bits[name] // 8) for name in places} | {"values": n_entries}
        if n_codes:
            sizes |= {"codebook": n_codes, "values": -(-n_entries * self._value_bits // 8)}
        if self.huffman:
            sizes |= {"lengths": -(-n_codes * _length_bits(n_codes) // 8), "values": values.size}
        floats = "codebook" if n_codes else "values"
        if {name: array.shape for name, array in self._arrays.items()} != {
            k: (v,) for k, v in sizes.items()
        } or any(
            array.dtype != (np.float32 if name == floats else np.uint8)
            for name, array in self._arrays.items()
        ):
            parts = ", ".join(f"{k} {a.dtype} {a.shape}" for k, a in self._arrays.items())
            raise ValueError(f"{parts} do not make {n_entries} entries of {vocab_size} x {dim}")

    @classmethod
    def from_entries(
        cls, kept: NDArray[np.bool_], values: NDArray, codebook: Array | None = None, *, huffman: bool = False
    ) -> Self:
        """Pack entries.

        Parameters
        ----------
        kept : (vocab_size, dim) bool
            Where they are.
        values : (n_entries,) float32, or with a codebook integers in [0, K)
            Row after row.
        codebook : (K,) float32, optional
        huffman : bool
            Code the codes by how often each comes.

        Raises
        ------
        TypeError, IndexError, ValueError
            If codes are not integers, or do not fit their codebook or their places.
        """
        (n, dim), k = kept.shape, len(values)
        if dim >= 1 << 16:
            raise ValueError(f"{dim} columns; a sparse table takes at most {(1 << 16) - 1}")
        if huffman and codebook is None:
            raise ValueError("huffman=True needs a codebook")
        if k != np.count_nonzero(kept):
            raise ValueError(f"{k} values do not fill {np.count_nonzero(kept)} places")
        kernels, arrays = backend.get(), {"values": values}
        bits = _placement(n, dim, k)
        if bits["columns"] + bits["rows"] < bits["bitmap"]:
            counts, columns = kept.sum(axis=1), np.nonzero(kept)[1]
            arrays["rows"] = kernels.pack_codes(counts[:, None], dim.bit_length())
            arrays["columns"] = kernels.pack_codes(columns[:, None], (dim - 1).bit_length())
        else:
            arrays["bitmap"] = np.packbits(kept, bitorder="little")
        if codebook is not None:
            n_codes = checks.number_of_codes(codebook.size)
            codes = checks.as_ids(values, n_codes, "codes")
            arrays["codebook"] = codebook
            if huffman:
                lengths = huffman_lengths(np.bincount(codes, minlength=n_codes))
                arrays["lengths"] = kernels.pack_codes(lengths[:, None], _length_bits(n_codes))
                arrays["values"] = kernels.pack_prefix(codes, lengths)
            else:
                arrays["values"] = kernels.pack_codes(codes[:, None], (n_codes - 1).bit_length())
        return cls(**arrays, vocab_size=n, dim=dim, n_entries=k)

    def arrays(self) -> dict[str, np.ndarray]:  # noqa: D102
        return dict(self._arrays)

    def config(self) -> dict[str, Any]:  # noqa: D102
        return {"vocab_size": self.vocab_size, "dim": self.dim, "n_entries": self.n_entries}

    def bits(self) -> dict[str, int]:
        """Values or codes of the entries, their places, the codebook, and the lengths of Huffman's words."""
        placement = _placement(self.vocab_size, self.dim, self.n_entries)
        stream = 8 * self._arrays["values"].size
        bits = {"values": stream if self.huffman else self.n_entries * self._value_bits}
        bits |= {name: placement[name] for name in placement if name in self._arrays}
        if "codebook" in self._arrays:
            bits["codebook"] = 32 * self._arrays["codebook"].size
        if self.huffman:
            n_codes = self._arrays["codebook"].size
            bits["code lengths"] = n_codes * _length_bits(n_codes)
        return bits

    def flops_per_lookup(self, weights: Array | None = None) -> float:
        """Nothing: entries are copied between zeros."""
        return 0.0

    def bytes_per_lookup(self, weights: Array | None = None) -> float:
        """Codes or values of a row's entries, their places, and of the codebook what they pick.

        Huffman codes cannot be read from the middle: theirs are the codes of ceil(log2 K) bits that the first
        look-up makes of them.
        """
        if self.vocab_size == 0:
            return 0.0
        counts = np.diff(self._starts).astype(np.float64)
        mean = float(np.average(counts, weights=weights))
        total = mean * self._value_bits / 8
        if "codebook" in self._arrays:
            picked = np.minimum(counts, self._arrays["codebook"].size)
            total += 4 * float(np.average(picked, weights=weights))
        if "bitmap" in self._arrays:
            return total + self.dim / 8
        return total + (mean * (self.dim - 1).bit_length() + self.dim.bit_length()) / 8

    @cached_property
    def _kept(self) -> NDArray[np.bool_]:
        """Bitmap, (vocab_size, dim)."""
        size = self.vocab_size * self.dim
        flat = np.unpackbits(self._arrays["bitmap"], count=size, bitorder="little").view(bool)
        return flat.reshape(self.vocab_size, self.dim)

    @cached_property
    def _starts(self) -> NDArray[np.int64]:
        """Where the entries of each row start, and where the last end, (vocab_size + 1,)."""
        for part in self._stored.values():  # all are read here or after this
            part.check()
        if "bitmap" in self._arrays:
            counts = self._kept.sum(axis=1)
        else:
            counts = self._unpack("rows", self.dim.bit_length(), self.vocab_size)
        starts = np.concatenate([[0], np.cumsum(counts, dtype=np.int64)])
        if starts[-1] != self.n_entries:
            raise ValueError(f"rows have {starts[-1]} entries, and n_entries={self.n_entries}")
        return starts

    @cached_property
    def _columns(self) -> Integers:
        """Column of each entry."""
        if "bitmap" in self._arrays:
            return np.nonzero(self._kept)[1].astype(np.int32)
        return self._unpack("columns", (self.dim - 1).bit_length(), self.n_entries)

    @cached_property
    def _numbers(self) -> NDArray[np.float32]:
        """Value of each entry."""
        values, n = self._arrays["values"], self.n_entries
        if "codebook" not in self._arrays:
            return values
        if self.huffman:
            n_codes = self._arrays["codebook"].size
            lengths = self._unpack("lengths", _length_bits(n_codes), n_codes)
            codes = backend.get().unpack_prefix(values, lengths, n)
        else:
            codes = self._unpack("values", self._value_bits, n)
        return self._arrays["codebook"][codes]

    def _unpack(self, name: str, n_bits: int, n: int) -> Integers:
        return backend.get().unpack_codes(self._arrays[name], n_bits, np.arange(n), 1)[:, 0]

    def _rows(self, ids: Integers) -> Array:
        ids, xp = backend.to_numpy(ids), self.kernels.xp  # which entries a row has, the host knows
        starts = self._starts[ids]
        counts = self._starts[ids + 1] - starts
        row = np.repeat(np.arange(len(ids)), counts)
        entry = np.arange(len(row)) + np.repeat(starts - (np.cumsum(counts) - counts), counts)
        rows, row, entry = xp.zeros((len(ids), self.dim), np.float32), xp.asarray(row), xp.asarray(entry)
        rows[row, self._columns[entry]] = self._numbers[entry]
        return rows


def sparse_bits(n: int, d: int, n_entries: int, n_codes: int | None = None, huffman: bool = False) -> int:
    """Bits of a sparse table; with Huffman coding, the most that it can have.

    Parameters
    ----------
    n, d, n_entries : int
    n_codes : int, optional
        Size of the codebook, if there is one.
    huffman : bool
    """
    placement = _placement(n, d, n_entries)
    places = min(placement["columns"] + placement["rows"], placement["bitmap"])
    if n_codes is None:
        return places + 32 * n_entries
    codes = n_entries * (n_codes - 1).bit_length()
    lengths = n_codes * _length_bits(n_codes) if huffman else 0
    return places + 32 * n_codes + lengths + (8 * -(-codes // 8) if huffman else codes)


def huffman_lengths(counts: Integers) -> NDArray[np.int64]:
    """Lengths of the words of a Huffman code: no prefix code has a shorter stream.

    D. A. Huffman, *A Method for the Construction of Minimum-Redundancy Codes*, Proceedings of the IRE 1952.

    Parameters
    ----------
    counts : (K,) integers, at least 0
        How often each code comes.

    Returns
    -------
    (K,) int64, 0 for codes that never come; 1 for the only one that does

    Examples
    --------
    >>> huffman_lengths(np.array([5, 1, 0, 2]))
    array([1, 2, 0, 2])
    """
    used = np.flatnonzero(counts).tolist()
    lengths = np.zeros(len(counts), np.int64)
    lengths[used] = len(used) == 1
    heap = [(int(counts[k]), k) for k in used]
    heapq.heapify(heap)
    joined: list[tuple[int, int, int]] = []  # node and its two parts, parts first
    while len(heap) > 1:
        (a_count, a), (b_count, b) = heapq.heappop(heap), heapq.heappop(heap)
        joined.append((len(counts) + len(joined), a, b))
        heapq.heappush(heap, (a_count + b_count, joined[-1][0]))
    depths = np.r_[lengths, np.zeros(len(joined), np.int64)]
    for node, a, b in reversed(joined):
        depths[a] = depths[b] = depths[node] + 1
    return depths[: len(counts)]


def _placement(n: int, d: int, n_entries: int) -> dict[str, int]:
    """Bits of either way to store where entries are."""
    return {"columns": n_entries * (d - 1).bit_length(), "rows": n * d.bit_length(), "bitmap": n * d}


def _length_bits(n_codes: int) -> int:
    """Bits of the length of a word: at most K - 1, and 62 is out of reach of any table."""
    return min(6, (n_codes - 1).bit_length())
