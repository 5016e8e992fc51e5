"""Every entry by itself on one of 2**b levels."""

from collections.abc import Mapping
from functools import cached_property
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from dpq_ref import backend, checks
from dpq_ref.compressed.base import Compressed
from dpq_ref.compressed.files import StoredArray, as_stored
from dpq_ref.kernels.reference import BLOCK, Array, Integers


class ScalarTable(Compressed):
    """Every entry on one of 2**b levels, times the scale of the table, of its column, or of its row.

    Parameters
    ----------
    codes : (bytes,) uint8, packed
    scales : (1 or vocab_size, 1 or dim) float32, optional
        1 if there are none.
    levels : (2**b,) float32, optional
        Evenly spaced from -1 to 1 if there are none.
    vocab_size, dim, n_bits : int

    Examples
    --------
    >>> table = ScalarTable.from_codes(np.array([[0, 1, 3]]), 2, np.float32([[3]]))
    >>> table.lookup(0)
    array([-3., -1.,  3.], dtype=float32)
    >>> table.bits()
    {'codes': 6, 'scales': 32}

    With one bit and no scale, rows are signs, told apart by how many differ:

    >>> signs = ScalarTable.from_codes(np.array([[0, 1, 1], [1, 0, 1]]), 1)
    >>> signs.hamming([0], [0, 1])
    array([[0, 2]], dtype=int32)
    """

    kind = "scalar"
    read = ("packed", "scales", "_levels")
    dtype = np.dtype(np.float32)

    def __init__(
        self,
        codes: NDArray[np.uint8],
        scales: Array | None = None,
        levels: Array | None = None,
        *,
        vocab_size: int,
        dim: int,
        n_bits: int,
    ):
        self.packed = as_stored(codes)
        self.scales = None if scales is None else as_stored(scales)
        self.levels = None if levels is None else as_stored(levels)
        self.vocab_size = checks.positive("vocab_size", vocab_size, least=0)
        self.dim = checks.positive("dim", dim)
        self.n_bits = _number_of_bits(n_bits)
        shapes = [(i, j) for i in (1, vocab_size) for j in (1, dim)]
        if (
            codes.dtype != np.uint8
            or codes.shape != (-(-self.bits()["codes"] // 8),)
            or (scales is not None and (scales.dtype != np.float32 or scales.shape not in shapes))
            or (levels is not None and (levels.dtype != np.float32 or levels.shape != (1 << n_bits,)))
        ):
            parts = ", ".join(f"{k} {a.dtype} {a.shape}" for k, a in self.arrays().items())
            raise ValueError(f"{parts} do not make {vocab_size} x {dim} of {n_bits} bits")

    @classmethod
    def from_codes(
        cls, codes: Integers, n_bits: int, scales: Array | None = None, levels: Array | None = None
    ) -> Self:
        """Pack codes.

        Parameters
        ----------
        codes : (vocab_size, dim) integers in [0, 2**n_bits)
        n_bits : int from 1 to 16
        scales, levels : as in the class

        Raises
        ------
        TypeError, IndexError, ValueError
            If codes are not integers, or a number is out of its range.
        """
        codes = backend.to_numpy(checks.as_ids(codes, 1 << _number_of_bits(n_bits), "codes"))
        packed = backend.get().pack_codes(codes, n_bits)
        n, dim = codes.shape
        return cls(packed, scales, levels, vocab_size=n, dim=dim, n_bits=n_bits)

    @property
    def codes(self) -> Integers:
        """Unpacked codes, (vocab_size, dim) int32, on the host."""
        self.check()
        return backend.to_numpy(self._codes(self.kernels.xp.arange(self.vocab_size)))

    def hamming(self, ids: Any, others: Any = None) -> NDArray[np.int32]:
        """In how many columns the signs of rows differ; the cosine of their signs is 1 - 2 hamming / dim.

        Parameters
        ----------
        ids : (b,) integers
        others : (m,) integers, optional
            All rows if not given.

        Returns
        -------
        (b, m) int32

        Raises
        ------
        ValueError
            If an entry has more than one bit.
        """
        self._check_signs("hamming")
        rows = self._words if others is None else self._words[self._ids_of(others)]
        return backend.get().hamming(self._words[self._ids_of(ids)], rows)

    def nearest(self, ids: Any, k: int) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
        """Rows of the table that differ in the fewest columns from some of its rows, themselves among them.

        Parameters
        ----------
        ids : (b,) integers
        k : int, at most vocab_size

        Returns
        -------
        neighbours : (b, k) int32, nearest first, ties to the smallest
        distances : (b, k) int32, as `hamming`

        Raises
        ------
        ValueError
            If an entry has more than one bit, or k is out of range.
        """
        self._check_signs("nearest")
        if checks.positive("k", k) > self.vocab_size:
            raise ValueError(f"k={k}; a table of {self.vocab_size} rows takes at most that")
        words = self._words[self._ids_of(ids)]
        return backend.get().hamming_nearest(words, self._words, k)

    def _ids_of(self, ids: Any) -> Integers:
        return backend.to_numpy(checks.as_ids(ids, self.vocab_size))

    def _check_signs(self, name: str) -> None:
        if self.n_bits != 1:
            raise ValueError(f"{name}() needs n_bits=1, this table has {self.n_bits}")

    @cached_property
    def _words(self) -> NDArray[np.uint64]:
        """Signs of each row in 64-bit words, the last filled up with 0, (vocab_size, ceil(dim / 64))."""
        self.check()
        words = np.empty((self.vocab_size, -(-self.dim // 64)), np.uint64)
        step = max(1, BLOCK // self.dim)
        for start in range(0, self.vocab_size, step):
            stop = min(start + step, self.vocab_size)
            words[start:stop] = as_words(backend.to_numpy(self._codes(self.kernels.xp.arange(start, stop))))
        return words

    def arrays(self) -> dict[str, np.ndarray]:  # noqa: D102
        arrays = {"codes": self.packed, "scales": self.scales, "levels": self.levels}
        return {name: array for name, array in arrays.items() if array is not None}

    def config(self) -> dict[str, Any]:  # noqa: D102
        return {"vocab_size": self.vocab_size, "dim": self.dim, "n_bits": self.n_bits}

    def bits(self) -> dict[str, int]:
        """Codes, n d b bits; 32 of each scale, 32 of each level that is stored."""
        stored = {"scales": self.scales, "levels": self.levels}
        parts = {name: 8 * array.nbytes for name, array in stored.items() if array is not None}
        return {"codes": self.vocab_size * self.dim * self.n_bits} | parts

    def flops_per_lookup(self, weights: Array | None = None) -> float:
        """One multiplication an entry; none with one scale, which the levels take in."""
        return float(0 if self._one_scale else self.dim)

    def bytes_per_lookup(self, weights: Array | None = None) -> float:
        """Codes of a row, the levels, and its scales."""
        levels = 4 << self.n_bits if self.levels is not None or self._one_scale else 0
        scales = 0 if self.scales is None or self._one_scale else 4 * self.scales.shape[1]
        return self.dim * self.n_bits / 8 + levels + scales

    def _check(self, stored: Mapping[str, StoredArray], ids: Integers) -> None:
        stored["codes"].check_rows(ids, self.dim * self.n_bits)
        if self.levels is not None:
            stored["levels"].check()
        if self.scales is not None and len(self.scales) == self.vocab_size:
            stored["scales"].check_rows(ids, 32 * self.scales.shape[1])
        elif self.scales is not None:
            stored["scales"].check()

    @property
    def _one_scale(self) -> bool:
        return self.scales is None or self.scales.size == 1

    def _codes(self, ids: Integers) -> Integers:
        return self.kernels.unpack_codes(self.packed, self.n_bits, ids, self.dim)

    @cached_property
    def _levels(self) -> Array:
        """Levels, (2**b,): times the scale in float32, if there is but one; else in float64."""
        # In float64 and rounded once: the outermost levels are the scale itself.
        levels = uniform_levels(self.n_bits) if self.levels is None else self.levels.astype(np.float64)
        if self.scales is None or self._one_scale:
            levels = levels * (1.0 if self.scales is None else np.float64(self.scales.item()))
            return levels.astype(np.float32)
        return levels

    def _rows(self, ids: Integers) -> Array:
        rows = self.kernels.unpack_levels(self.packed, self.n_bits, self._levels, ids, self.dim)
        if self.scales is None or self._one_scale:
            return rows
        scales = self.scales if len(self.scales) == 1 else self.scales[ids]
        return (rows * scales).astype(np.float32)


def uniform_levels(n_bits: int) -> NDArray[np.float64]:
    """Levels -1 + 2 j / (2**b - 1), j = 0 ... 2**b - 1 (May et al., NeurIPS 2019)."""
    top = (1 << n_bits) - 1
    return 2 * np.arange(top + 1) / top - 1


def as_words(signs: Integers) -> NDArray[np.uint64]:
    """Rows of bits in 64-bit words, filled up with 0, (b, c) of 0 and 1 -> (b, ceil(c / 64))."""
    b, c = signs.shape
    packed = np.zeros((b, 8 * -(-c // 64)), np.uint8)
    packed[:, : -(-c // 8)] = np.packbits(signs.astype(np.uint8), axis=1, bitorder="little")
    return packed.view("<u8").astype(np.uint64, copy=False)


def _number_of_bits(n_bits: int) -> int:
    if checks.positive("n_bits", n_bits) > 16:
        raise ValueError(f"n_bits={n_bits}; it takes at most 16")
    return n_bits
