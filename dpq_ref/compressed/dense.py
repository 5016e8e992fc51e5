"""A table as it is, in 32 bits an entry or in fewer."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dpq_ref.compressed.base import Compressed
from dpq_ref.compressed.files import StoredArray, as_stored
from dpq_ref.kernels.reference import Array, Integers

FORMATS = {"float64": np.float64, "float32": np.float32, "float16": np.float16, "bfloat16": np.uint16}


class DenseTable(Compressed):
    """Every entry by itself, as a floating-point number.

    Parameters
    ----------
    values : (vocab_size, dim) float64, float32, float16, or uint16: the upper half of a float32 (bfloat16)
        The halves are looked up as float32.

    Examples
    --------
    >>> DenseTable(np.float16([[1.5, 2.5]])).bits()
    {'values': 32}
    """

    kind = "dense"
    read = ("values",)

    def __init__(self, values: NDArray):
        self.values = as_stored(values)
        if values.ndim != 2 or values.shape[1] == 0 or self.values.dtype not in list(FORMATS.values()):
            got = f"values {values.dtype} {values.shape} do not make a table"
            raise ValueError(f"{got}; it takes two axes of {', '.join(FORMATS)}")
        self.vocab_size, self.dim = values.shape
        self.dtype = np.dtype(np.float64 if self.values.dtype == np.float64 else np.float32)

    def arrays(self) -> dict[str, np.ndarray]:  # noqa: D102
        return {"values": self.values}

    def config(self) -> dict[str, Any]:  # noqa: D102
        return {}

    def bits(self) -> dict[str, int]:
        """Bits of the format for each entry."""
        return {"values": 8 * self.values.nbytes}

    def flops_per_lookup(self, weights: Array | None = None) -> float:
        """Nothing: rows are copied."""
        return 0.0

    def bytes_per_lookup(self, weights: Array | None = None) -> float:
        """One row."""
        return float(self.dim * self.values.itemsize)

    def _check(self, stored: Mapping[str, StoredArray], ids: Integers) -> None:
        stored["values"].check_rows(ids, 8 * self.dim * self.values.itemsize)

    def _rows(self, ids: Integers) -> Array:
        rows = self.values[ids]
        if rows.dtype == np.uint16:
            return (rows.astype(np.uint32) << 16).view(np.float32)
        return rows.astype(self.dtype, copy=False)


def to_bfloat16(values: Array) -> NDArray[np.uint16]:
    """Upper halves of float32 numbers, rounded to the nearest, ties to even; finite numbers only.

    One beyond the largest becomes infinity, as in float16.
    """
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)
