"""Codes as bits on a GPU: packed to whole numbers of bits, decoded, and compared bit by bit.

Prefix codes are read one after the other, so they go through the host.
"""

import cupy as xp
import numpy as np
from numpy.typing import NDArray

from dpq_ref.kernels import reference
from dpq_ref.kernels.cuda.device import check_range, constants, each, inputs, launch
from dpq_ref.kernels.reference import Array, Integers
from dpq_ref.kernels.shapes import check_book, check_shape

(PIECES,) = constants("packed", "PIECES")
QUERIES = 1 << 16  # and parts of the others, that together keep a GPU busy in `hamming_nearest`


def pack_codes(codes: Integers, n_bits: int) -> NDArray[np.uint8]:
    """As `reference.pack_codes`."""
    check_range("codes", codes, 1 << n_bits)
    packed = xp.empty(-(-codes.size * n_bits // 8), xp.uint8)
    each("pack_codes", packed.size, _int32(codes), codes.size, n_bits, packed.size, packed)
    return packed


def _int32(codes: Integers) -> Integers:
    """Take codes of any integer type, once they are known to be small."""
    return xp.ascontiguousarray(codes, xp.int32)


def unpack_codes(packed: NDArray[np.uint8], n_bits: int, ids: Integers, n_groups: int) -> Integers:
    """As `reference.unpack_codes`."""
    check_shape("ids", ids, ids.size)
    check_range("ids", ids, packed.size * 8 // (n_bits * n_groups))
    codes = xp.empty((ids.size, n_groups), xp.int32)
    arrays = *inputs(xp.uint8, packed), n_bits, ids.astype(xp.int64)
    each("unpack_codes", codes.size, *arrays, ids.size, n_groups, codes)
    return codes


def unpack_levels(
    packed: NDArray[np.uint8], n_bits: int, levels: Array, ids: Integers, n_groups: int
) -> Array:
    """As `reference.unpack_levels`."""
    check_shape("levels", levels, 1 << n_bits)
    return levels[unpack_codes(packed, n_bits, ids, n_groups)]


def decode(codes: Integers, values: Array) -> Array:
    """As `reference.decode`."""
    b, D = codes.shape
    check_book("values", values, D, values.shape[2])
    check_range("codes", codes, values.shape[1])
    out = xp.empty((b, D, values.shape[2]), values.dtype)
    _decode(_int32(codes), None, 0, None, values, b, D, out)
    return out


def decode_packed(
    packed: NDArray[np.uint8],
    n_bits: int,
    ids: Integers,
    n_groups: int,
    values: Array,
    out: Array | None = None,
) -> Array:
    """As `reference.decode_packed`; codes are unpacked where they are used."""
    check_shape("ids", ids, ids.size)
    check_range("ids", ids, packed.size * 8 // (n_bits * n_groups))
    _, K, s = values.shape
    check_book("values", values, n_groups, s)
    out = xp.empty((ids.size, n_groups * s), values.dtype) if out is None else out
    check_shape("out", out, ids.size, n_groups * s)
    (stream,), rows = inputs(xp.uint8, packed), ids.astype(xp.int64)
    largest = _decode(None, stream, n_bits, rows, values, ids.size, n_groups, out)
    if K < 1 << n_bits and (code := int(largest[0])) >= K:
        raise IndexError(f"codes must lie in [0, {K}), got {code}")
    return out


def _decode(codes, packed, n_bits, ids, values, b, D, out) -> Integers:
    """Start `decode`; returns where the largest code beyond the values is noted."""
    largest = xp.zeros(1, xp.int32)
    if out.size:
        books, K, s = values.shape
        (book,) = inputs(out.dtype, values)
        raw = book.reshape(-1).view(xp.uint8), out.reshape(-1).view(xp.uint8)
        sizes = b, D, K, s * out.itemsize, books
        launch("decode", -(-b * D // PIECES), codes, packed, n_bits, ids, raw[0], *sizes, largest, raw[1])
    return largest


def canonical_code(lengths: Integers) -> Integers:
    """As `reference.canonical_code`, on the host."""
    return xp.asarray(reference.canonical_code(xp.asnumpy(lengths)))


def pack_prefix(codes: Integers, lengths: Integers) -> NDArray[np.uint8]:
    """As `reference.pack_prefix`, on the host."""
    return xp.asarray(reference.pack_prefix(xp.asnumpy(codes), xp.asnumpy(lengths)))


def unpack_prefix(packed: NDArray[np.uint8], lengths: Integers, n_codes: int) -> Integers:
    """As `reference.unpack_prefix`, on the host."""
    return xp.asarray(reference.unpack_prefix(xp.asnumpy(packed), xp.asnumpy(lengths), n_codes))


def hamming(words: NDArray[np.uint64], others: NDArray[np.uint64]) -> Integers:
    """As `reference.hamming`."""
    b, W = words.shape
    check_shape("others", others, len(others), W)
    out = xp.empty((b, len(others)), xp.int32)
    each("hamming", out.size, *inputs(xp.uint64, words, others), b, len(others), W, out)
    return out


def hamming_nearest(
    words: NDArray[np.uint64], others: NDArray[np.uint64], k: int
) -> tuple[Integers, Integers]:
    """As `reference.hamming_nearest`: the nearest of each part of the others, and of these the nearest."""
    (b, W), m = words.shape, len(others)
    check_shape("others", others, m, W)
    k = min(int(k), m)
    parts = max(1, min(QUERIES // max(b, 1), m // max(4 * k, 1)))
    found = xp.empty((b, parts * k), xp.int64)
    if found.size:
        each("hamming_nearest", b * parts, *inputs(xp.uint64, words, others), b, m, W, k, parts, found)
    best = xp.sort(found, axis=1)[:, :k]
    return (best & 0xFFFFFFFF).astype(xp.int32), (best >> 32).astype(xp.int32)
