"""Dot products and distances of a few keys with a tile of queries, in vector registers.

As fast as BLAS, and every number is summed in the order of its coordinates, wherever in the tile it stands.
BLAS may round a row by its place, and codes must not depend on the batch.
"""

from typing import Any

from llvmlite import ir
from numba import extending, types
from numba.core import cgutils

from dpq_ref.kernels import loops

ROWS = 4  # keys at a time
VECTORS = 2  # of queries at a time
QUERIES = 32  # a tile holds a multiple of as many
BYTES = 64  # of a vector; LLVM takes several registers where they are narrower
CONTRACT = ("contract",)  # a product and its sum in one rounding
_intrinsic: Any = extending.intrinsic


@loops.serial
def product_rows(keys, first, q, out):
    """out[r, i] = <keys[first + r], q[:, i]>; at most ROWS rows."""
    if len(out) == ROWS:
        for i in range(0, q.shape[1], VECTORS * BYTES // q.itemsize):
            _products(keys, first, q, i, out, 0)
    else:
        for r in range(len(out)):
            for i in range(0, q.shape[1], VECTORS * BYTES // q.itemsize):
                _product(keys, first + r, q, i, out, r)


@loops.serial
def distance_rows(keys, first, q, out):
    """out[r, i] = |keys[first + r] - q[:, i]|^2 by direct differences; at most ROWS rows."""
    if len(out) == ROWS:
        for i in range(0, q.shape[1], VECTORS * BYTES // q.itemsize):
            _distances(keys, first, q, i, out, 0)
    else:
        for r in range(len(out)):
            for i in range(0, q.shape[1], VECTORS * BYTES // q.itemsize):
                _distance(keys, first + r, q, i, out, r)


def _block(n_rows: int, *, difference: bool) -> Any:
    """Block of `product_rows` or, with the squares of differences for products, of `distance_rows`."""

    @_intrinsic
    def kernel(typing, a, k, b, i, out, row):
        def generate(context, builder, signature, arguments):
            small, tile, result = (_Matrix(context, builder, signature, arguments, p) for p in (0, 2, 4))
            k, i, row = (arguments[p] for p in (1, 3, 5))
            sums = [[small.zero() for _ in range(VECTORS)] for _ in range(n_rows)]
            with cgutils.for_range(builder, small.width) as loop:
                columns = [tile.load(loop.index, i, v) for v in range(VECTORS)]
                for r in range(n_rows):
                    entry = small.spread(k, r, loop.index)
                    for total, column in zip(sums[r], columns, strict=True):
                        if difference:
                            step = builder.fsub(column, entry)
                            _add_product(builder, total, step, step)
                        else:
                            _add_product(builder, total, column, entry)
            for r in range(n_rows):
                for v in range(VECTORS):
                    result.store(builder.load(sums[r][v]), row, r, i, v)
            return context.get_dummy_value()

        return types.void(a, types.intp, b, types.intp, out, types.intp), generate

    return kernel


class _Matrix:
    """An array of two axes in C order, while code for it is written."""

    def __init__(self, context: Any, builder: Any, signature: Any, arguments: Any, p: int):
        self.builder = builder
        array = context.make_array(signature.args[p])(context, builder, arguments[p])
        self.data, self.width = array.data, cgutils.unpack_tuple(builder, array.shape)[1]
        self.real = context.get_value_type(signature.args[p].dtype)
        self.size = context.get_abi_sizeof(self.real)
        self.lanes = BYTES // self.size
        self.vector = ir.VectorType(self.real, self.lanes)

    def zero(self) -> Any:
        """Make a vector of zeros, which will have a register."""
        return cgutils.alloca_once_value(self.builder, ir.Constant(self.vector, None))

    def at(self, row: Any, column: Any) -> Any:
        """Address of an entry; nothing is checked."""
        return self.builder.gep(self.data, [self.builder.add(self.builder.mul(row, self.width), column)])

    def _vector(self, row: Any, column: Any, v: int) -> Any:
        place = self.at(row, self.builder.add(column, column.type(v * self.lanes)))
        return self.builder.bitcast(place, self.vector.as_pointer())

    def load(self, row: Any, column: Any, v: int) -> Any:
        """Read the v-th vector from an entry on."""
        return self.builder.load(self._vector(row, column, v), align=self.size)

    def store(self, value: Any, row: Any, r: int, column: Any, v: int) -> None:
        """Write the v-th vector from an entry on, r rows below."""
        place = self._vector(self.builder.add(row, row.type(r)), column, v)
        self.builder.store(value, place, align=self.size)

    def spread(self, row: Any, r: int, column: Any) -> Any:
        """Read an entry, r rows below, into all lanes of a vector."""
        entry = self.builder.load(self.at(self.builder.add(row, row.type(r)), column))
        none, first = ir.Constant(self.vector, ir.Undefined), ir.IntType(32)(0)
        lanes = ir.Constant(ir.VectorType(ir.IntType(32), self.lanes), None)
        return self.builder.shuffle_vector(self.builder.insert_element(none, entry, first), none, lanes)


def _add_product(builder: Any, total: Any, x: Any, y: Any) -> None:
    product = builder.fmul(x, y, flags=CONTRACT)
    builder.store(builder.fadd(builder.load(total), product, flags=CONTRACT), total)


_products, _product = _block(ROWS, difference=False), _block(1, difference=False)
_distances, _distance = _block(ROWS, difference=True), _block(1, difference=True)
