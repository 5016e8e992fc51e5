"""Codes into values: what DPQ, product quantization and additive codes store."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from dpq_ref import backend, checks
from dpq_ref.compressed.base import Compressed
from dpq_ref.compressed.files import StoredArray, as_stored
from dpq_ref.kernels.reference import Array, Integers


class ProductTable(Compressed):
    """Rows of D codes into values: what DPQ and product quantization store.

    Parameters
    ----------
    codes : (bytes,) uint8, packed as by `kernels.reference.pack_codes`
    values : (D or 1, K, s); additive (D or 1, K, dim); for groups that are not equally wide (K, dim)
        In the last, column c belongs to the group that has it in `group_columns(dim, D)`.
    vocab_size, n_groups : int
    additive : bool
        A row is the mean of the D values rather than their concatenation.

    Examples
    --------
    >>> import numpy as np
    >>> values = np.float32([[[1], [2]], [[3], [4]]])
    >>> table = ProductTable.from_codes(np.array([[0, 1], [1, 1]]), values)
    >>> table.lookup([1, 0])
    array([[2., 4.],
           [1., 4.]], dtype=float32)
    >>> table.bits()
    {'codes': 4, 'codebooks': 128}
    """

    kind = "product"
    read = ("packed", "_books", "_columns")

    def __init__(
        self,
        codes: NDArray[np.uint8],
        values: Array,
        *,
        vocab_size: int,
        n_groups: int,
        additive: bool = False,
    ):
        self.vocab_size = checks.positive("vocab_size", vocab_size, least=0)
        self.n_groups = checks.positive("n_groups", n_groups)
        self.additive = bool(additive)
        self.n_codes, self.n_bits = _codes_and_bits(values)
        self.packed, self.values = as_stored(codes), as_stored(values)
        self.dim = values.shape[-1] * (1 if additive or values.ndim == 2 else n_groups)
        self.dtype = checks.as_real(self.values.dtype)
        if (
            codes.dtype != np.uint8
            or codes.shape != (-(-self.bits()["codes"] // 8),)
            or (values.ndim == 3 and len(values) not in (1, n_groups))
            or (values.ndim == 2 and (additive or n_groups > self.dim))
        ):
            raise ValueError(
                f"codes {codes.dtype} {codes.shape} and values {values.shape} do not make "
                f"{vocab_size} rows of {n_groups} groups"
            )
        self._books, self._columns = self.values, None
        if values.ndim == 2:
            ragged = group_columns(self.dim, n_groups)
            self._columns = np.flatnonzero(ragged)
            books = np.zeros((self.n_codes, *ragged.shape), self.dtype)
            books[:, ragged] = self.values
            self._books = np.ascontiguousarray(books.swapaxes(0, 1))

    @classmethod
    def from_codes(cls, codes: Integers, values: Array, *, additive: bool = False) -> Self:
        """Pack codes beside their values.

        Parameters
        ----------
        codes : (vocab_size, D) integers in [0, K)
        values : as in the class
        additive : bool

        Raises
        ------
        TypeError, IndexError, ValueError
            If codes are not integers, not in [0, K), or do not fit the values.
        """
        n_codes, n_bits = _codes_and_bits(values)
        codes = backend.to_numpy(checks.as_ids(codes, n_codes, "codes"))
        packed = backend.get().pack_codes(codes, n_bits)
        return cls(packed, values, vocab_size=codes.shape[0], n_groups=codes.shape[1], additive=additive)

    @property
    def codes(self) -> Integers:
        """Unpacked codes, (vocab_size, D) int32, on the host."""
        self.check()
        return backend.to_numpy(self._codes(self.kernels.xp.arange(self.vocab_size)))

    def arrays(self) -> dict[str, np.ndarray]:  # noqa: D102
        return {"codes": self.packed, "values": self.values}

    def config(self) -> dict[str, Any]:  # noqa: D102
        return {"vocab_size": self.vocab_size, "n_groups": self.n_groups, "additive": self.additive}

    def bits(self) -> dict[str, int]:
        """Codes, n D ceil(log2 K) bits, and the codebooks."""
        codes = self.vocab_size * self.n_groups * self.n_bits
        return {"codes": codes, "codebooks": 8 * self.values.nbytes}

    def flops_per_lookup(self, weights: Array | None = None) -> float:
        """None; additive, the mean of D values of the row's width."""
        return float(self.n_groups * self.dim if self.additive else 0)

    def bytes_per_lookup(self, weights: Array | None = None) -> float:
        """Codes of a row and the values that they pick."""
        picked = self.dim * (self.n_groups if self.additive else 1)
        return self.n_groups * self.n_bits / 8 + picked * self.values.itemsize

    def _check(self, stored: Mapping[str, StoredArray], ids: Integers) -> None:
        stored["values"].check()
        stored["codes"].check_rows(ids, self.n_groups * self.n_bits)

    @property
    def _entries_per_row(self) -> int:
        return self.dim * (self.n_groups if self.additive else 1)

    @property
    def _entries_per_product(self) -> int:
        return self.n_groups

    @property
    def _entries_per_query(self) -> int:
        return self.n_groups * self.n_codes

    def _products_with(self, queries: Array) -> Callable[[Integers], Array]:
        """Asymmetric distances (Jegou, Douze, Schmid 2011, section III): the products of all codes, once."""
        if self.additive:
            parts = queries[:, None].repeat(self.n_groups, axis=1) / self.dtype.type(self.n_groups)
        elif self._columns is None:
            parts = queries
        else:
            parts = self.kernels.xp.zeros((len(queries), self.n_groups * self._books.shape[2]), self.dtype)
            parts[:, self._columns] = queries
        parts = parts.reshape(len(queries), self.n_groups, -1)
        return partial(self._sums, terms=self.kernels.dot_responses(parts, self._books))

    def _squares(self, ids: Integers) -> NDArray[np.float64]:
        if self.additive:  # the values of a row are not orthogonal
            return super()._squares(ids)
        xp = self.kernels.xp
        squares = xp.einsum("jkc,jkc->jk", self._books, self._books, dtype=np.float64)
        return self._sums(ids, xp.broadcast_to(squares, (1, self.n_groups, self.n_codes)))[0]

    def _sums(self, ids: Integers, terms: Array) -> Array:
        return self.kernels.sum_packed(self.packed, self.n_bits, ids, self.n_groups, terms)

    def _codes(self, ids: Integers) -> Integers:
        return self.kernels.unpack_codes(self.packed, self.n_bits, ids, self.n_groups)

    def _rows(self, ids: Integers) -> Array:
        if self.additive:
            from dpq_ref.quantize import compose

            return compose(self.kernels, self._codes(ids), self._books, additive=True)
        rows = self._decode(ids)
        return rows if self._columns is None else rows[:, self._columns]

    def _rows_into(self, ids: Integers, out: Array) -> None:
        if self.additive or self._columns is not None:
            super()._rows_into(ids, out)
        else:
            self._decode(ids, out)

    def _decode(self, ids: Integers, out: Array | None = None) -> Array:
        return self.kernels.decode_packed(self.packed, self.n_bits, ids, self.n_groups, self._books, out)


def group_columns(dim: int, n_groups: int) -> NDArray[np.bool_]:
    """Which columns of D equally wide groups there are, when D does not divide dim.

    The first dim mod D groups are ceil(dim / D) wide, the others lack their last column.

    Returns
    -------
    (D, ceil(dim / D)) bool, with dim True

    Examples
    --------
    >>> group_columns(5, 3)
    array([[ True,  True],
           [ True,  True],
           [ True, False]])
    """
    width = -(-dim // n_groups)
    columns = np.ones((n_groups, width), bool)
    if dim % n_groups:
        columns[dim % n_groups :, -1] = False
    return columns


def _codes_and_bits(values: Array) -> tuple[int, int]:
    """K and the bits of a code, from the values."""
    if values.ndim not in (2, 3) or values.shape[-1] < 1:
        raise ValueError(f"values must have shape (D or 1, K, s) or (K, dim), got {values.shape}")
    n_codes = checks.number_of_codes(values.shape[-2])
    return n_codes, (n_codes - 1).bit_length()
