"""A row is a combination of directions: low rank, rotations, linear decoders of codes."""

from collections.abc import Callable, Mapping
from functools import cached_property
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from dpq_ref.backend import to_numpy
from dpq_ref.compressed.base import KINDS, Compressed
from dpq_ref.compressed.dense import DenseTable
from dpq_ref.compressed.files import StoredArray, as_stored
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
    bound : (1,), optional
        Clip rows to [-bound, bound]: the hard tanh of near-lossless binarization, at the table's scale.

    Examples
    --------
    >>> FactoredTable(np.ones((1000, 1), np.float32), np.ones((1, 10), np.float32)).bits()
    {'values': 32000, 'basis': 320}
    """

    kind = "factored"
    read = ("left", "right", "offset", "bound", "_basis")

    def __init__(
        self,
        left: Compressed | Array,
        right: Compressed | Array,
        offset: Array | None = None,
        bound: Array | None = None,
    ):
        self.left = left if isinstance(left, Compressed) else DenseTable(left)
        self.right = right if isinstance(right, Compressed) else DenseTable(right)
        self.offset = None if offset is None else as_stored(offset)
        self.bound = None if bound is None else as_stored(bound)
        self.vocab_size, self.dim, self.dtype = self.left.vocab_size, self.right.dim, self.left.dtype
        if (
            self.left.dim != self.right.vocab_size
            or self.left.dtype != self.right.dtype
            or any(
                (array.dtype, array.shape) != (self.dtype, (self.dim if name == "offset" else 1,))
                for name, array in self._vectors.items()
            )
        ):
            parts = ", ".join(f"{t.dtype} {t.vocab_size} x {t.dim}" for t in (self.left, self.right))
            end = "".join(f", {name} {array.dtype} {array.shape}" for name, array in self._vectors.items())
            raise ValueError(f"factors {parts}{end} do not make a table")

    @property
    def _vectors(self) -> dict[str, Array]:
        vectors = {"offset": self.offset, "bound": self.bound}
        return {name: array for name, array in vectors.items() if array is not None}

    def arrays(self) -> dict[str, np.ndarray]:  # noqa: D102
        sides = (("left", self.left), ("right", self.right))
        arrays = {f"{side}.{k}": array for side, table in sides for k, array in table.arrays().items()}
        return arrays | self._vectors

    def config(self) -> dict[str, Any]:  # noqa: D102
        left, right = ({"kind": table.kind} | table.config() for table in (self.left, self.right))
        return {"left": left, "right": right}

    @classmethod
    def from_stored(cls, arrays: dict[str, np.ndarray], config: dict[str, Any]) -> Self:  # noqa: D102
        rest = dict(config)

        def side(name: str) -> Compressed:
            mine = [key for key in arrays if key.startswith(f"{name}.")]
            own = dict(rest.pop(name))
            parts = {key.removeprefix(f"{name}."): arrays.pop(key) for key in mine}
            return KINDS[own.pop("kind")].from_stored(parts, own)

        return cls(side("left"), side("right"), **arrays, **rest)

    def _attach(self, stored: dict[str, StoredArray]) -> None:
        super()._attach(stored)
        for side, table in (("left.", self.left), ("right.", self.right)):
            mine = (name for name in stored if name.startswith(side))
            table._attach({name.removeprefix(side): stored[name] for name in mine})

    def _check(self, stored: Mapping[str, StoredArray], ids: Integers) -> None:
        for name in self._vectors:  # the right is checked where it is reconstructed
            stored[name].check()
        if left := self.left._stored:
            self.left._check(left, ids)

    def bits(self) -> dict[str, int]:
        """Those of the left, and all of the right as "basis"; an "offset" and a "bound" if there are any."""
        vectors = {name: 8 * array.nbytes for name, array in self._vectors.items()}
        return self.left.bits() | {"basis": sum(self.right.bits().values())} | vectors

    def flops_per_lookup(self, weights: Array | None = None) -> float:
        """Those of the left, and 2 k dim."""
        offset = 0 if self.offset is None else self.dim
        return self.left.flops_per_lookup(weights) + 2 * self.right.vocab_size * self.dim + offset

    def bytes_per_lookup(self, weights: Array | None = None) -> float:
        """One row of the left, the whole basis, the offset, the bound."""
        vectors = sum(array.nbytes for array in self._vectors.values())
        return self.left.bytes_per_lookup(weights) + sum(self.right.bits().values()) / 8 + vectors

    def _products_with(self, queries: Array) -> Callable[[Integers], Array]:
        if self.bound is not None:
            return super()._products_with(queries)
        products = self.left._products_with(queries @ self._basis.T)
        offset = self.offset
        return products if offset is None else lambda ids: products(ids) + (queries @ offset)[:, None]

    @property
    def _entries_per_row(self) -> int:
        return max(self.left._entries_per_row, self.dim)

    @property
    def _entries_per_product(self) -> int:
        return self._entries_per_row if self.bound is not None else self.left._entries_per_product

    @property
    def _entries_per_query(self) -> int:
        return self.left._entries_per_query

    @cached_property
    def _is_rotation(self) -> bool:
        """Whether rows are as long as their coefficients, to the rounding of float32."""
        if self._vectors:
            return False
        basis = to_numpy(self._basis).astype(np.float64)
        return bool(np.linalg.norm(basis @ basis.T - np.eye(len(basis)), 2) < 1e-6)

    def _squares(self, ids: Integers) -> NDArray[np.float64]:
        return self.left._squares(ids) if self._is_rotation else super()._squares(ids)

    @cached_property
    def _basis(self) -> Array:
        return self.right.reconstruct()

    def _rows(self, ids: Integers) -> Array:
        rows = self.kernels.combine(self.left._rows(ids), self._basis)
        if self.offset is not None:
            rows += self.offset
        return rows if self.bound is None else self.kernels.xp.clip(rows, -self.bound, self.bound, out=rows)
