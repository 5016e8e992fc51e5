"""What the Numba kernels share: how they are compiled, how arrays come in, vectors, and an exponential."""

from typing import Any

import numpy as np
from llvmlite import ir
from numba import extending, float64, njit, types
from numba.core import cgutils
from numpy.typing import DTypeLike, NDArray

from dpq_ref.kernels import reference
from dpq_ref.kernels.shapes import check_book as check_book
from dpq_ref.kernels.shapes import check_shape as check_shape

# The NumPy error model: x / 0 is inf or NaN as in the reference, and no test for it stops vectorisation.
OPTIONS: dict[str, Any] = {"cache": True, "nogil": True, "error_model": "numpy"}
serial: Any = njit(**OPTIONS)
parallel: Any = njit(**OPTIONS, parallel=True)
# A product and its sum in one rounding; every lane of a vector does the same.
fused: Any = njit(**OPTIONS, fastmath={"contract"})
# And sums in vector registers, in an order that is the compiler's. A function of its own would have two,
# alone and optimised once more in its caller, and the cache would decide which one runs. So it is
# made part of its caller.
SUMMED = {"contract", "reassoc", "nsz"}
summed: Any = njit(**OPTIONS, fastmath=SUMMED, forceinline=True)
parallel_summed: Any = njit(**OPTIONS, parallel=True, fastmath=SUMMED)
inlined: Any = njit(inline="always", error_model="numpy")  # a call counts references to its arrays
_intrinsic: Any = extending.intrinsic
LINE = 64  # bytes of a line of the cache


def inputs(dtype: DTypeLike, *arrays: NDArray) -> list[NDArray]:
    """Aligned, in C order, of one dtype and read-only.

    So a kernel compiles once per dtype, memory-mapped tables included, and one that wrote to its input would
    not compile at all.
    """
    views = []
    for array in arrays:
        flags = array.flags
        if array.dtype != dtype or not (flags.c_contiguous and flags.aligned):
            array = np.require(array.astype(dtype, casting="same_kind", copy=False), requirements=["C", "A"])
        if array.flags.writeable:
            array = array.view()
            array.setflags(write=False)
        views.append(array)
    return views


def check_range(name: str, indices: NDArray, size: int) -> None:
    """As `reference.check_range`, in one pass over indices of one axis."""
    if not within(*inputs(np.int64, indices), int(size)):
        reference.check_range(name, indices, size)


@serial
def within(indices, size):
    """Whether all indices of one axis lie in [0, size)."""
    least = most = 0
    for i in indices:
        least, most = min(least, i), max(most, i)
    return least >= 0 and (most < size or indices.size == 0)


@_intrinsic
def load_word(typing, stream, byte):
    """64 bits of a stream of bytes from a byte on, the first one lowest; nothing is checked."""

    def generate(context, builder, signature, arguments):
        pointer = _pointer(context, builder, signature, arguments, 0)
        return builder.load(builder.bitcast(pointer, ir.IntType(64).as_pointer()), align=1)

    return types.int64(stream, types.intp), generate


def _vector_copy(least: int) -> Any:
    @_intrinsic
    def copy(typing, to, start, source, at, n):
        """to[start : start + n] = source[at : at + n] for least <= n <= 2 least; nothing is checked.

        In vectors from both ends, which overlap in the middle. Both arrays have one axis, are in C order and
        of one dtype.
        """

        def generate(context, builder, signature, arguments):
            entry = context.get_value_type(to.dtype)
            lanes, align = min(least, 8), context.get_abi_sizeof(entry)
            vector = ir.VectorType(entry, lanes).as_pointer()
            target, origin = (_pointer(context, builder, signature, arguments, i) for i in (0, 2))
            steps = [ir.Constant(arguments[4].type, c) for c in range(0, least, lanes)]
            last = builder.sub(arguments[4], ir.Constant(arguments[4].type, lanes))
            for place in steps + [builder.sub(last, step) for step in steps]:
                load, store = (builder.bitcast(builder.gep(p, [place]), vector) for p in (origin, target))
                builder.store(builder.load(load, align=align), store, align=align)
            return context.get_dummy_value()

        return types.void(to, types.intp, source, types.intp, types.intp), generate

    return copy


copy_1, copy_2, copy_4, copy_8, copy_16 = (_vector_copy(least) for least in (1, 2, 4, 8, 16))


@_intrinsic
def _stream_line(typing, to, start, source, at):
    """64 bytes from source[at] to to[start], which lies on a line of the cache: past it, to memory."""

    def generate(context, builder, signature, arguments):
        entry = context.get_value_type(to.dtype)
        align = context.get_abi_sizeof(entry)
        vector = ir.VectorType(entry, LINE // align).as_pointer()
        target, origin = (
            builder.bitcast(_pointer(context, builder, signature, arguments, i), vector) for i in (0, 2)
        )
        store = builder.store(builder.load(origin, align=align), target, align=LINE)
        store.set_metadata("nontemporal", builder.module.add_metadata([ir.Constant(ir.IntType(32), 1)]))
        return context.get_dummy_value()

    return types.void(to, types.intp, source, types.intp), generate


@_intrinsic
def prefetch(typing, array, i):
    """Ask for the line of the cache that holds an entry of an array of one axis."""

    def generate(context, builder, signature, arguments):
        byte, word = ir.IntType(8).as_pointer(), ir.IntType(32)
        function = builder.module.declare_intrinsic(
            "llvm.prefetch", [byte], ir.FunctionType(ir.VoidType(), [byte, word, word, word])
        )
        line = builder.bitcast(_pointer(context, builder, signature, arguments, 0), byte)
        builder.call(function, [line, word(0), word(3), word(1)])  # to be read, kept, data
        return context.get_dummy_value()

    return types.void(array, types.intp), generate


@_intrinsic
def fence(typing):
    """Let all that was written before, past the caches too, be seen before what is written after."""

    def generate(context, builder, signature, arguments):
        builder.fence("seq_cst")
        return context.get_dummy_value()

    return types.void(), generate


@_intrinsic
def add_4(typing, to, start, source, at, weight):
    """to[start : start + 4] += weight source[at : at + 4] in the dtype of `to`, float64; nothing is checked.

    Both have one axis and are in C order.
    """

    def generate(context, builder, signature, arguments):
        four = ir.VectorType(ir.DoubleType(), 4)
        target, origin = (_pointer(context, builder, signature, arguments, i) for i in (0, 2))
        target = builder.bitcast(target, four.as_pointer())
        entry = context.get_value_type(source.dtype)
        size = context.get_abi_sizeof(entry)
        x = builder.load(builder.bitcast(origin, ir.VectorType(entry, 4).as_pointer()), align=size)
        x = builder.fpext(x, four) if source.dtype != float64 else x
        w = builder.insert_element(ir.Constant(four, ir.Undefined), arguments[4], ir.IntType(32)(0))
        w = builder.shuffle_vector(w, w, ir.Constant(ir.VectorType(ir.IntType(32), 4), [0] * 4))
        product = builder.fmul(w, x, flags=["contract"])
        total = builder.fadd(builder.load(target, align=8), product, flags=["contract"])
        builder.store(total, target, align=8)
        return context.get_dummy_value()

    return types.void(to, types.intp, source, types.intp, float64), generate


@_intrinsic
def add_line(typing, to, start, source, at):
    """Add 64 bytes of numbers from source[at] on to those from to[start] on; nothing is checked.

    Both have one axis, are in C order and of one dtype.
    """

    def generate(context, builder, signature, arguments):
        entry = context.get_value_type(to.dtype)
        align = context.get_abi_sizeof(entry)
        vector = ir.VectorType(entry, LINE // align).as_pointer()
        target, origin = (
            builder.bitcast(_pointer(context, builder, signature, arguments, i), vector) for i in (0, 2)
        )
        total = builder.fadd(builder.load(target, align=align), builder.load(origin, align=align))
        builder.store(total, target, align=align)
        return context.get_dummy_value()

    return types.void(to, types.intp, source, types.intp), generate


@_intrinsic
def turn_4(typing, to, start, stride, source, at, step, centre, c):
    """to[start + stride b + a] = source[at + step a + b] - centre[c + b] for a and b below 4.

    Nothing is checked; all have one axis, are in C order and of one dtype.
    """

    def generate(context, builder, signature, arguments):
        entry = context.get_value_type(to.dtype)
        vector, align = ir.VectorType(entry, 4).as_pointer(), context.get_abi_sizeof(entry)

        def addresses(first, between):
            pointer = _pointer(context, builder, signature, arguments, first)
            for _ in range(4):
                yield builder.bitcast(pointer, vector)
                pointer = cgutils.gep_inbounds(builder, pointer, between)

        def mixed(one, two, *places):
            mask = ir.Constant(ir.VectorType(ir.IntType(32), 4), list(places))
            return builder.shuffle_vector(one, two, mask)

        middle = builder.bitcast(_pointer(context, builder, signature, arguments, 6), vector)
        middle = builder.load(middle, align=align)
        rows = [builder.load(pointer, align=align) for pointer in addresses(3, arguments[5])]
        one, two, three, four = (builder.fsub(row, middle) for row in rows)
        columns = []
        for places in (0, 4, 1, 5), (2, 6, 3, 7):
            upper, lower = mixed(one, two, *places), mixed(three, four, *places)
            columns += [mixed(upper, lower, 0, 1, 4, 5), mixed(upper, lower, 2, 3, 6, 7)]
        for column, pointer in zip(columns, addresses(0, arguments[2]), strict=True):
            builder.store(column, pointer, align=align)
        return context.get_dummy_value()

    integers = types.intp, types.intp
    return types.void(to, *integers, source, *integers, centre, types.intp), generate


def _pointer(context, builder, signature, arguments, i):
    """Address of an entry: arguments i and i + 1 are an array of one axis and an index."""
    array = context.make_array(signature.args[i])(context, builder, arguments[i])
    return cgutils.gep_inbounds(builder, array.data, arguments[i + 1])


@serial
def first_line(to):
    """Entries of an array before the first that lies on a line of the cache."""
    return min(to.size, -to.ctypes.data % LINE // to.itemsize)


@serial
def stream(to, source, start, stop):
    """to[start : stop] = source[start : stop] in whole lines past the cache; returns where the last one ends.

    `start` lies on a line. No line is read before it is written, and none pushed out of the cache for it.
    Others may read them after a `fence`.
    """
    lanes = LINE // to.itemsize
    while start + lanes <= stop:
        _stream_line(to, start, source, start)
        start += lanes
    return start


def exp(x: Any) -> Any:
    """exp(x) for x <= 0 in arithmetic that LLVM vectorises, which it does not do with calls of exp.

    With x = n ln 2 + r and |r| <= ln(2) / 2, exp(x) = 2^n exp(r), and exp(r) is its Taylor polynomial:
    relative error 1e-14 in float64, 2e-7 in float32.
    """
    raise NotImplementedError("for compiled code")


@extending.overload(exp, jit_options={"error_model": "numpy"})
def _exp_of(x):
    return _exp_double if x == float64 else _exp_single


def _exp_double(x):
    shifted = x * 1.4426950408889634 + 6755399441055744.0  # + 1.5 * 2^52: rounds, with n in the lowest bits
    n = shifted - 6755399441055744.0
    r = x - n * 0.693147180369123816490 - n * 1.90821492927058770002e-10  # ln 2 in two parts: n ln 2 is exact
    p = 1 / 39916800
    p = p * r + 1 / 3628800
    p = p * r + 1 / 362880
    p = p * r + 1 / 40320
    p = p * r + 1 / 5040
    p = p * r + 1 / 720
    p = p * r + 1 / 120
    p = p * r + 1 / 24
    p = p * r + 1 / 6
    p = p * r + 0.5
    p = p * r + 1
    p = p * r + 1
    power = np.int64((np.float64(shifted).view(np.int64) + 1023) << 52).view(np.float64)  # 2^n
    return 0.0 if x < -708.0 else p * power


def _exp_single(x):
    f = np.float32
    shifted = x * f(1.44269504) + f(12582912.0)  # + 1.5 * 2^23
    n = shifted - f(12582912.0)
    r = x - n * f(0.693359375) - n * f(-2.12194440e-4)
    p = f(1 / 5040)
    p = p * r + f(1 / 720)
    p = p * r + f(1 / 120)
    p = p * r + f(1 / 24)
    p = p * r + f(1 / 6)
    p = p * r + f(0.5)
    p = p * r + f(1)
    p = p * r + f(1)
    power = np.int32((f(shifted).view(np.int32) + np.int32(127)) << np.int32(23)).view(np.float32)
    return f(0) if x < f(-87) else p * power
