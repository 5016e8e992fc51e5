"""DPQ on a GPU: codes, statistics and gradients with the responses in shared memory only.

Each of the kernels has a plain twin for what does not fit there: a kernel without shared memory, or arrays, a
block of rows at a time.
"""

from collections.abc import Iterator
from typing import Any

import cupy as xp
import numpy as np

from dpq_ref.kernels.cuda.device import SHARED, constants, each, inputs, launch
from dpq_ref.kernels.reference import BLOCK, Array, Integers, Statistics, scalar_like
from dpq_ref.kernels.shapes import check_book, check_shape

ROWS, FEW, PACK, SLICE = constants("dpq", "ROWS", "FEW", "PACK", "SLICE")
CHUNKS = 16  # the most partial sums over a batch


def dot_responses(query: Array, keys: Array) -> Array:
    """As `reference.dot_responses`."""
    return _responses(query, keys, euclidean=False)


def euclidean_responses(query: Array, keys: Array) -> Array:
    """As `reference.euclidean_responses`."""
    return _responses(query, keys, euclidean=True)


def _responses(query: Array, keys: Array, *, euclidean: bool) -> Array:
    (b, D, s), K = query.shape, keys.shape[1]
    check_book("keys", keys, D, s)
    out = xp.empty((b, D, K), query.dtype)
    arrays = inputs(query.dtype, query, keys)
    each("responses", out.size, *arrays, euclidean, b, D, K, s, len(keys), out)
    return out


def sx_statistics(query: Array, keys: Array, counts: Array) -> Statistics:
    """As `reference.sx_statistics`, in one pass."""
    return _statistics(query, keys, counts, euclidean=False)


def vq_statistics(query: Array, keys: Array, counts: Array) -> Statistics:
    """As `reference.vq_statistics`, in one pass."""
    return _statistics(query, keys, counts, euclidean=True)


def _statistics(query: Array, keys: Array, counts: Array, *, euclidean: bool) -> Statistics:
    (b, D, s), K = query.shape, keys.shape[1]
    check_book("keys", keys, D, s)
    check_shape("counts", counts, b)
    mean, variance = xp.zeros(K, query.dtype), xp.ones(K, query.dtype)
    if b == 0:
        return mean, variance
    n_chunks = min(CHUNKS, -(-b // FEW))
    sums = xp.empty((n_chunks, 2, D, K), xp.float64)
    query, keys, weights = inputs(query.dtype, query, keys, counts)
    sizes = D, K, s, len(keys)
    shared = query.itemsize * ((FEW + 1) * (s + SLICE) + SLICE * s + FEW)
    blocks = n_chunks * D * -(-K // SLICE)
    if s and shared <= SHARED:
        launch(
            "tile_moments", blocks, query, keys, weights, euclidean, b, *sizes, n_chunks, sums, shared=shared
        )
    else:
        sums = _moments(query, keys, weights, euclidean=euclidean)
    total = counts.sum(dtype=xp.float64).reshape(1)
    launch("statistics", K, sums, total, query, keys, euclidean, len(sums), *sizes, mean, variance)
    return mean, variance


def _moments(query: Array, keys: Array, weights: Array, *, euclidean: bool) -> Array:
    """Compute what `tile_moments` does by arrays; a chunk is a block of rows."""
    origin, sums = query[:1], []
    for rows in _blocks(query, keys):
        u = query[rows] - origin
        if euclidean:
            y = dot_responses(u, 2 * (keys - origin.swapaxes(0, 1)))
            y -= (u * u).sum(axis=2, keepdims=True)
        else:
            y = dot_responses(u, keys)
        weighted = weights[rows, None, None].astype(xp.float64) * y
        sums.append(xp.stack([weighted.sum(axis=0), (weighted * y).sum(axis=0)]))
    return xp.stack(sums)


def _blocks(query: Array, keys: Array) -> Iterator[slice]:
    """Rows at a time of which all responses are BLOCK numbers at most."""
    b, D, _ = query.shape
    step = max(1, BLOCK // (D * keys.shape[1]))
    return (slice(start, min(start + step, b)) for start in range(0, b, step))


def sx_codes(
    query: Array, keys: Array, statistics: Statistics | None, epsilon: float, noise: Array | None = None
) -> Integers:
    """As `reference.sx_codes`."""
    return _codes(query, keys, statistics, epsilon, noise, euclidean=False)


def vq_codes(query: Array, keys: Array, statistics: Statistics, epsilon: float) -> Integers:
    """As `reference.vq_codes`."""
    return _codes(query, keys, statistics, epsilon, None, euclidean=True)


def nearest_code(query: Array, keys: Array) -> Integers:
    """As `reference.nearest_code`, by direct differences.

    Scores of matrix products would be written and read again, K numbers for the s of a query, and codes that
    they leave open would have to be looked at once more.
    """
    return _codes(query, keys, None, 0.0, None, euclidean=True)


def _codes(
    query: Array,
    keys: Array,
    statistics: Statistics | None,
    epsilon: float,
    noise: Array | None,
    *,
    euclidean: bool,
) -> Integers:
    (b, D, s), K = query.shape, keys.shape[1]
    check_book("keys", keys, D, s)
    codes = xp.empty((b, D), xp.int32)
    arrays = *inputs(query.dtype, query, keys), *_normaliser(statistics, K, epsilon), _noise(noise, b, D, K)
    sizes = b, D, K, s, len(keys)
    room = SHARED // query.itemsize - s * (ROWS + 1)
    staged = min(-(-K // PACK), room // (PACK * s) if s else 0) * PACK
    if staged > 0:
        shared = query.itemsize * s * (ROWS + 1 + staged)
        blocks = -(-b // ROWS) * D
        launch("tile_codes", blocks, *arrays, euclidean, *sizes, staged, codes, shared=shared)
    else:
        each("plain_codes", codes.size, *arrays, euclidean, *sizes, codes)
    return codes


def _normaliser(statistics: Statistics | None, n_codes: int, epsilon: float) -> tuple[Any, Any]:
    """Mean and deviation (K,), or nothing."""
    if statistics is None:
        return None, None
    mean, variance = statistics
    check_shape("mean", mean, n_codes)
    check_shape("variance", variance, n_codes)
    mean, variance = inputs(mean.dtype, mean, variance)
    return mean, xp.sqrt(variance + scalar_like(variance, epsilon))


def _noise(noise: Array | None, *shape: int) -> Any:
    if noise is None:
        return None
    check_shape("noise", noise, *shape)
    return inputs(noise.dtype, noise)[0]


def sx_backward(
    d_picked: Array,
    query: Array,
    keys: Array,
    values: Array,
    counts: Array,
    statistics: Statistics | None,
    epsilon: float,
    temperature: float,
    noise: Array | None = None,
) -> tuple[Array, Array]:
    """As `reference.sx_backward`; with batch norm two passes, each of which computes the responses again."""
    (b, D, s), (_, K, v) = query.shape, values.shape
    check_book("keys", keys, D, s)
    check_book("values", values, D, d_picked.shape[2])
    check_shape("values", values, len(values), keys.shape[1], v)
    check_shape("d_picked", d_picked, b, D, v)
    check_shape("counts", counts, b)
    normaliser, noise = _normaliser(statistics, K, epsilon), _noise(noise, b, D, K)
    arrays = inputs(query.dtype, d_picked, query, keys, values, counts)
    tau = scalar_like(query, temperature)
    padded = -(-K // PACK) * PACK
    shared = query.itemsize * ((FEW + 1) * (s + max(s, v) + 2 * padded) + padded * (s + v))
    if s and v and shared <= SHARED:
        d_query, d_keys = _tile_gradients(arrays, normaliser, noise, tau, shared)
    else:
        d_query, d_keys = _gradients(arrays, normaliser, noise, tau)
    d_keys = d_keys if len(keys) > 1 else d_keys.sum(axis=0, keepdims=True)
    return d_query, d_keys.astype(query.dtype)


def _tile_gradients(
    arrays: list[Array], normaliser: tuple[Any, Any], noise: Any, temperature: np.floating, shared: int
) -> tuple[Array, Array]:
    _, query, keys, values, counts = arrays
    (b, D, s), (_, K, v) = query.shape, values.shape
    n_chunks = min(CHUNKS, -(-b // FEW))
    sizes = temperature, b, D, K, s, v, len(keys), len(values), n_chunks
    pulls = None
    if normaliser[0] is not None:
        sums = xp.zeros((n_chunks, D, 2, K), xp.float64)
        launch("sx_sums", n_chunks * D, *arrays, *normaliser, noise, *sizes, sums, shared=shared)
        pulls = _means(sums.sum(axis=(0, 1)), D, counts)
    d_query, d_keys = xp.empty((b, D, s), query.dtype), xp.zeros((n_chunks, D, K, s), xp.float64)
    inner = *arrays, *normaliser, pulls, noise
    launch("sx_gradients", n_chunks * D, *inner, *sizes, d_query, d_keys, shared=shared)
    return d_query, d_keys.sum(axis=0)


def _means(sums: Array, n_groups: int, counts: Array) -> Array:
    """Divide sums over tokens and groups by their number; 0 where there are none."""
    total = n_groups * counts.sum(dtype=xp.float64)
    return (sums / xp.where(total == 0, xp.inf, total)).astype(counts.dtype)


def _gradients(
    arrays: list[Array], normaliser: tuple[Any, Any], noise: Any, temperature: np.floating
) -> tuple[Array, Array]:
    """Compute the same by arrays."""
    d_picked, query, keys, values, counts = arrays
    mean, deviation = normaliser

    def soften(rows: slice) -> tuple[Array, Array]:
        """Gradients of the normalised responses, and these."""
        x = dot_responses(query[rows], keys)
        x = x if mean is None else (x - mean) / deviation
        logits = x if noise is None else x + noise[rows]
        p = xp.exp((logits - logits.max(axis=2, keepdims=True)) / temperature)
        p /= p.sum(axis=2, keepdims=True)
        d = dot_responses(d_picked[rows], values)
        return p * (d - (p * d).sum(axis=2, keepdims=True)) / temperature, x

    if mean is not None:
        sums = xp.zeros((2, keys.shape[1]), xp.float64)
        for rows in _blocks(query, keys):
            d, x = soften(rows)
            sums += xp.stack(
                [d.sum(axis=(0, 1), dtype=xp.float64), (d * x).sum(axis=(0, 1), dtype=xp.float64)]
            )
        pulls = _means(sums, query.shape[1], counts)
    d_query, d_keys = (
        xp.empty(query.shape, query.dtype),
        xp.zeros((query.shape[1], *keys.shape[1:]), xp.float64),
    )
    for rows in _blocks(query, keys):
        d, x = soften(rows)
        if mean is not None:
            d = (d - counts[rows, None, None] * (pulls[0] + x * pulls[1])) / deviation
        d = d.swapaxes(0, 1)  # (D, rows, K)
        d_query[rows] = xp.matmul(d, keys).swapaxes(0, 1)
        d_keys += xp.matmul(d.swapaxes(1, 2), query[rows].swapaxes(0, 1))
    return d_query, d_keys
