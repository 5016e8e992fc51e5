"""A row is a combination of directions: low rank, rotations, linear decoders of codes."""

from functools import cached_property
from typing import Any, Self

import numpy as np

from dpq_ref import backend
from dpq_ref.compressed.base import KINDS, Compressed, as_stored
from dpq_ref.compressed.dense import DenseTable
from dpq_ref.kernels.reference import Array, Integers


class FactoredTable(Compressed):
    """Rows left @ right + offset, where the coefficients and the directions are tables themselves.

    With floats on the left it is a low-rank table; with codes of a product quantizer and a rotation on the
    right, optimized product quantization; with signs on the left, a binary code and its decoder.

    Parameters
    ----------
    left : Compressed or array, (vocab_size, k)
    right : Compressed or array, (k, dim)
    offset : (dim,), optional
    bounded : bool
        Clip rows to [-1, 1], the hard tanh of near-lossless binarization.

    Examples
    --------
    >>> FactoredTable(np.ones((1000, 1), np.float32), np.ones((1, 10), np.float32)).bits()
    {'values': 32000, 'basis': 320}
    """

    kind = "factored"

    def __init__(
        self,
        left: Compressed | Array,
        right: Compressed | Array,
        offset: Array | None = None,
        *,
        bounded: bool = False,
    ):
        self.left = left if isinstance(left, Compressed) else DenseTable(left)
        self.right = right if isinstance(right, Compressed) else DenseTable(right)
        self.offset = None if offset is None else as_stored(offset)
        self.bounded = bool(bounded)
        self.vocab_size, self.dim, self.dtype = self.left.vocab_size, self.right.dim, self.left.dtype
        if (
            self.left.dim != self.right.vocab_size
            or self.left.dtype != self.right.dtype
            or (
                self.offset is not None
                and (self.offset.dtype, self.offset.shape) != (self.dtype, (self.dim,))
            )
        ):
            parts = ", ".join(f"{t.dtype} {t.vocab_size} x {t.dim}" for t in (self.left, self.right))
            end = "" if offset is None else f", offset {offset.dtype} {offset.shape}"
            raise ValueError(f"factors {parts}{end} do not make a table")

    def arrays(self) -> dict[str, np.ndarray]:  # noqa: D102
        sides = (("left", self.left), ("right", self.right))
        arrays = {f"{side}.{k}": array for side, table in sides for k, array in table.arrays().items()}
        return arrays if self.offset is None else arrays | {"offset": self.offset}

    def config(self) -> dict[str, Any]:  # noqa: D102
        left, right = ({"kind": table.kind} | table.config() for table in (self.left, self.right))
        return {"left": left, "right": right, "bounded": self.bounded}

    @classmethod
    def from_stored(cls, arrays: dict[str, np.ndarray], config: dict[str, Any]) -> Self:  # noqa: D102
        rest, sides = dict(config), {}
        for side in ("left", "right"):
            mine = {name: arrays.pop(name) for name in list(arrays) if name.startswith(f"{side}.")}
            own = dict(rest.pop(side))
            sides[side] = KINDS[own.pop("kind")].from_stored(
                {name.removeprefix(f"{side}."): array for name, array in mine.items()}, own
            )
        return cls(**sides, **arrays, **rest)

    def bits(self) -> dict[str, int]:
        """Those of the left, and all of the right as "basis"; an "offset" if there is one."""
        bits = self.left.bits() | {"basis": sum(self.right.bits().values())}
        return bits if self.offset is None else bits | {"offset": 8 * self.offset.nbytes}

    def flops_per_lookup(self, weights: Array | None = None) -> float:
        """Those of the left, and 2 k dim."""
        offset = 0 if self.offset is None else self.dim
        return self.left.flops_per_lookup(weights) + 2 * self.right.vocab_size * self.dim + offset

    def bytes_per_lookup(self, weights: Array | None = None) -> float:
        """One row of the left, the whole basis, the offset."""
        offset = 0 if self.offset is None else self.offset.nbytes
        return self.left.bytes_per_lookup(weights) + sum(self.right.bits().values()) / 8 + offset

    @property
    def _entries_per_row(self) -> int:
        return max(self.left._entries_per_row, self.dim)

    @cached_property
    def _basis(self) -> Array:
        return self.right.reconstruct()

    def _rows(self, ids: Integers) -> Array:
        rows = backend.get().combine(self.left._rows(ids), self._basis)
        if self.offset is not None:
            rows += self.offset
        return np.clip(rows, -1, 1, out=rows) if self.bounded else rows


LowRankTable = FactoredTable
