"""Sums over ids, in the order of the batch: ids are sorted, and a thread adds up what one of them has.

Atomics would be faster where ids repeat much, but add in another order each time; so there are none.
"""

from typing import Any

import cupy as xp

from dpq_ref.kernels.cuda.device import each, inputs
from dpq_ref.kernels.reference import Array, Integers


def segments(ids: Integers, n_rows: int) -> tuple[Any, Any]:
    """Where each id comes, in order: it is at order[starts[id] : starts[id + 1]].

    Parameters
    ----------
    ids : (m,) integers in [0, n_rows)
    n_rows : int

    Returns
    -------
    order : (m,) int64
    starts : (n_rows + 1,) int64
    """
    ids = ids.astype(xp.int32 if n_rows < 1 << 31 else xp.int64)  # half the bytes are sorted in half the time
    order = xp.argsort(ids, kind="stable")
    return order, xp.searchsorted(ids[order], xp.arange(n_rows + 1, dtype=ids.dtype)).astype(xp.int64)


def by_segment(rows: Array, order: Integers, starts: Integers) -> Array:
    """Sum rows[order[t]] over segments, in the dtype of the rows, (m, w) -> (n, w)."""
    n, w = starts.size - 1, rows.shape[1]
    out = xp.empty((n, w), rows.dtype)
    each("segment_sums", out.size, *inputs(rows.dtype, rows), *inputs(xp.int64, order, starts), n, w, out)
    return out


def segments_of_codes(codes: Integers, n_codes: int) -> tuple[Any, Any]:
    """As `segments`: group j and code k are id j K + k, row i and group j come at i D + j."""
    ids = codes + n_codes * xp.arange(codes.shape[1], dtype=xp.int64)
    return segments(ids.reshape(-1), codes.shape[1] * n_codes)


def by_code(order: Integers, starts: Integers, rows: Array, weights: Array | None = None) -> Array:
    """Sum the rows of each code, weighted, over `segments_of_codes`, (b, D, s), (b,) -> (D, K, s) float64."""
    (_, D, s), n = rows.shape, starts.size - 1
    out = xp.empty((D, n // D, s), xp.float64)
    if weights is not None:
        (weights,) = inputs(xp.float64, weights)
    arrays = *inputs(rows.dtype, rows), *inputs(xp.int64, order, starts), weights
    each("segment_sums_double", out.size, *arrays, n, s, D, out)
    return out
