"""The primitives of `reference` for a GPU, on CuPy arrays.

What CuPy's array functions do about as fast as a kernel is written with them; the rest starts kernels of the
folder `cuda`. Nothing is added by atomics, so the same call on the same GPU gives the same bits. Indices are
checked before each launch, for which the host waits: out of range they are an error here, too. A step of
training waits for nothing: its indices are checked on the host (`backend.trusted_indices`).
"""

import cupy as xp
import numpy as np
from numpy.typing import NDArray

from dpq_ref.kernels import shapes
from dpq_ref.kernels.cuda import device, sums
from dpq_ref.kernels.cuda.device import check_range
from dpq_ref.kernels.cuda.dpq import (
    dot_responses,
    euclidean_responses,
    nearest_code,
    sx_backward,
    sx_codes,
    sx_statistics,
    vq_codes,
    vq_statistics,
)
from dpq_ref.kernels.cuda.packed import (
    canonical_code,
    decode,
    decode_packed,
    hamming,
    hamming_nearest,
    pack_codes,
    pack_prefix,
    unpack_codes,
    unpack_levels,
    unpack_prefix,
)
from dpq_ref.kernels.cuda.recurrent import lstm, lstm_backward, lstm_cell, lstm_cell_backward
from dpq_ref.kernels.reference import BLOCK, CENTRE, WIDTH, Array, Integers, scalar_like

__all__ = [
    "canonical_code",
    "check_range",
    "decode",
    "decode_packed",
    "dot_responses",
    "euclidean_responses",
    "hamming",
    "hamming_nearest",
    "lstm",
    "lstm_backward",
    "lstm_cell",
    "lstm_cell_backward",
    "nearest_code",
    "pack_codes",
    "pack_prefix",
    "scalar_like",
    "sx_backward",
    "sx_codes",
    "sx_statistics",
    "unpack_codes",
    "unpack_levels",
    "unpack_prefix",
    "vq_codes",
    "vq_statistics",
    "xp",
]

device.require()

# --- Rows of a table ------------------------------------------------------------------------------------


def distinct(ids: Integers) -> tuple[Integers, Integers, Integers]:
    """As `reference.distinct`."""
    rows, inverse, counts = xp.unique(ids, return_inverse=True, return_counts=True)
    return rows, inverse.reshape(ids.shape), counts


def gather(table: Array, ids: Integers) -> Array:
    """As `reference.gather`."""
    check_range("ids", ids, len(table))
    shapes.check_shape("ids", ids, ids.size)
    return table[ids]


def scatter_add(ids: Integers, rows: Array, n_rows: int) -> Array:
    """As `reference.scatter_add`, in the order of the batch: ids are sorted, none are added by atomics."""
    check_range("ids", ids, n_rows)
    shapes.check_shape("ids", ids, len(rows))
    return sums.by_segment(rows, *sums.segments(ids, n_rows))


# --- Responses ----------------------------------------------------------------------------------------------


def dot_responses_backward(d_responses: Array, query: Array, keys: Array) -> tuple[Array, Array]:
    """As `reference.dot_responses_backward`, by cuBLAS."""
    d_r, q = d_responses.swapaxes(0, 1), query.swapaxes(0, 1)  # (D, b, K), (D, b, s)
    d_query = xp.matmul(d_r, keys).swapaxes(0, 1)
    d_keys = xp.matmul(d_r.swapaxes(1, 2), q)
    if len(keys) == 1:
        d_keys = d_keys.sum(axis=0, keepdims=True)
    return xp.ascontiguousarray(d_query), d_keys


def batch_norm(responses: Array, counts: Array, epsilon: float) -> tuple[Array, Array, Array]:
    """As `reference.batch_norm`."""
    mean, variance = (
        xp.zeros(responses.shape[2], responses.dtype),
        xp.ones(responses.shape[2], responses.dtype),
    )
    total = responses.shape[1] * float(counts.sum(dtype=np.float64))
    if total:
        weights = (counts.astype(np.float64) / total)[:, None, None]
        mean = (weights * responses).sum(axis=(0, 1)).astype(responses.dtype)
        centred = responses - mean
        variance = (weights * centred * centred).sum(axis=(0, 1)).astype(responses.dtype)
    return batch_norm_apply(responses, mean, variance, epsilon), mean, variance


def batch_norm_backward(
    d_normalized: Array, normalized: Array, variance: Array, counts: Array, epsilon: float
) -> Array:
    """As `reference.batch_norm_backward`."""
    deviation = xp.sqrt(variance + scalar_like(variance, epsilon))
    total = normalized.shape[1] * float(counts.sum(dtype=np.float64))
    if total == 0:
        return d_normalized / deviation
    m1 = (d_normalized.sum(axis=(0, 1), dtype=np.float64) / total).astype(variance.dtype)
    product = (d_normalized.astype(np.float64) * normalized).sum(axis=(0, 1))
    m2 = (product / total).astype(variance.dtype)
    weights = counts.astype(variance.dtype)[:, None, None]
    return (d_normalized - weights * (m1 + normalized * m2)) / deviation


def batch_norm_apply(responses: Array, mean: Array, variance: Array, epsilon: float) -> Array:
    """As `reference.batch_norm_apply`."""
    return (responses - mean) / xp.sqrt(variance + scalar_like(variance, epsilon))


# --- From responses to codes and back ---------------------------------------------------------------------


def softmax(logits: Array, temperature: float) -> Array:
    """As `reference.softmax`."""
    scaled = (logits - logits.max(axis=2, keepdims=True)) / scalar_like(logits, temperature)
    exponentials = xp.exp(scaled)
    return exponentials / exponentials.sum(axis=2, keepdims=True)


def softmax_backward(d_probabilities: Array, probabilities: Array, temperature: float) -> Array:
    """As `reference.softmax_backward`."""
    shapes.check_shape("d_probabilities", d_probabilities, *probabilities.shape)
    expected = (probabilities * d_probabilities).sum(axis=2, keepdims=True)
    return probabilities * (d_probabilities - expected) / scalar_like(probabilities, temperature)


def argmax_code(responses: Array) -> Integers:
    """As `reference.argmax_code`."""
    b, D, K = responses.shape
    codes = xp.empty((b, D), np.int32)
    device.each("argmax_code", b * D, *device.inputs(responses.dtype, responses), b * D, K, codes)
    return codes


def code_distances(query: Array, keys: Array, codes: Integers) -> Array:
    """As `reference.code_distances`."""
    b, D, s = query.shape
    shapes.check_book("keys", keys, D, s)
    shapes.check_shape("codes", codes, b, D)
    check_range("codes", codes, keys.shape[1])
    distances = xp.empty((b, D), query.dtype)
    arrays = *device.inputs(query.dtype, query, keys), *device.inputs(np.int32, codes)
    device.each("code_distances", b * D, *arrays, b, D, keys.shape[1], s, len(keys), distances)
    return distances


def sum_by_code(codes: Integers, rows: Array, n_codes: int) -> Array:
    """As `reference.sum_by_code`, in the order of the batch."""
    shapes.check_shape("codes", codes, *rows.shape[:2])
    check_range("codes", codes, n_codes)
    return sums.by_code(*sums.segments_of_codes(codes, n_codes), rows).astype(rows.dtype)


def codebook_errors(query: Array, keys: Array, codes: Integers, counts: Array) -> tuple[np.floating, Array]:
    """As `reference.codebook_errors`."""
    b, D, s = query.shape
    shapes.check_book("keys", keys, D, s)
    shapes.check_shape("codes", codes, b, D)
    shapes.check_shape("counts", counts, b)
    residual = decode(codes, keys) - query
    weighted = counts[:, None, None] * residual
    total = (weighted * residual).sum(dtype=np.float64).astype(query.dtype)  # on the GPU, 0-d
    return total, sum_by_code(codes, weighted, keys.shape[1])


def count_codes(codes: Integers, counts: Array, n_codes: int) -> Array:
    """As `reference.count_codes`."""
    b, D = codes.shape
    shapes.check_shape("counts", counts, b)
    check_range("codes", codes, n_codes)
    weights = xp.broadcast_to(counts.astype(np.float64)[:, None, None], (b, D, 1))
    return sums.by_code(*sums.segments_of_codes(codes, n_codes), weights)[:, :, 0].astype(counts.dtype)


def sum_packed(packed: NDArray[np.uint8], n_bits: int, ids: Integers, n_groups: int, terms: Array) -> Array:
    """As `reference.sum_packed`."""
    shapes.check_shape("terms", terms, len(terms), n_groups, terms.shape[-1])
    codes = unpack_codes(packed, n_bits, ids, n_groups)
    check_range("codes", codes, terms.shape[2])
    sums = xp.zeros((len(terms), ids.size), terms.dtype)
    for j in range(n_groups):
        sums += terms[:, j, codes[:, j]]
    return sums


def combine(coefficients: Array, basis: Array) -> Array:
    """As `reference.combine`."""
    (b, k), w = coefficients.shape, basis.shape[1]
    shapes.check_shape("basis", basis, k, w)
    out = xp.empty((b, w), coefficients.dtype)
    device.each("combine", out.size, *device.inputs(coefficients.dtype, coefficients, basis), b, k, w, out)
    return out


# --- k-means in all groups at once ------------------------------------------------------------------------


def point_tiles(points: Array) -> tuple[Array, Array]:
    """As `reference.point_tiles`; no kernel here is the faster for it."""
    n, D, s = points.shape
    centre = points[:: max(1, n // CENTRE)].mean(axis=0, dtype=np.float64).astype(points.dtype)
    rows = xp.zeros((-(-n // WIDTH) * WIDTH, D, s + 1), points.dtype)
    rows[:n, :, :s] = points - centre
    rows[:, :, s] = 1
    return xp.ascontiguousarray(rows.reshape(-1, WIDTH, D, s + 1).transpose(0, 2, 3, 1)), centre


def kmeans_sums(
    points: Array, keys: Array, weights: Array, tiles: tuple[Array, Array] | None = None
) -> tuple[Integers, Array, Array]:
    """As `reference.kmeans_sums`; the points are read as they are, not in tiles."""
    n, D, s = points.shape
    shapes.check_shape("keys", keys, D, keys.shape[1], s)
    shapes.check_shape("weights", weights, n)
    codes = nearest_code(points, keys)
    where = sums.segments_of_codes(codes, keys.shape[1])
    counts = sums.by_code(*where, xp.ones((n, D, 1), points.dtype), weights)[:, :, 0]
    return codes, sums.by_code(*where, points, weights), counts


def plus_plus(points: Array, weights: Array, uniforms: Array) -> Integers:
    """As `reference.plus_plus`, the next row of all groups at once, by arrays of n x D x trials."""
    n, D, _ = points.shape
    shapes.check_shape("weights", weights, n)
    shapes.check_shape("uniforms", uniforms, D, *uniforms.shape[1:3])
    K, shares = uniforms.shape[1], weights.astype(np.float64)[:, None]
    groups, rows = xp.arange(D)[:, None], xp.empty((D, K), np.int32)
    nearest = xp.ones((n, D), points.dtype)
    for k in range(K):
        draws = uniforms[:, k]  # (D, trials)
        cumulative = xp.cumsum(shares * nearest, axis=0)  # (n, D)
        total = cumulative[-1][:, None]
        below = (cumulative[:, :, None] <= draws * total).sum(axis=0)
        drawn = xp.minimum(xp.where(total > 0, below, (draws * n).astype(np.int64)), n - 1)
        distances = -euclidean_responses(points, points[drawn, groups])  # (n, D, trials)
        if k:
            distances = xp.minimum(nearest[:, :, None], distances)
            left = distances.transpose(1, 2, 0).astype(np.float64) @ shares[:, 0]
            best = left.argmin(axis=1)[:, None]
        else:
            best = xp.zeros((D, 1), np.int64)
        rows[:, k] = xp.take_along_axis(drawn, best, axis=1)[:, 0]
        nearest = xp.take_along_axis(distances, best[None], axis=2)[:, :, 0]
    return rows


def multiply(rows: Array, matrix: Array) -> Array:
    """As `reference.multiply`, by cuBLAS."""
    shapes.check_shape("matrix", matrix, rows.shape[1], matrix.shape[1])
    return rows @ matrix


def cross(left: Array, right: Array, weights: Array) -> Array:
    """As `reference.cross`, by cuBLAS in float64, a block of rows at a time."""
    n, p = left.shape
    shapes.check_shape("right", right, n, right.shape[1])
    shapes.check_shape("weights", weights, n)
    out = xp.zeros((p, right.shape[1]), np.float64)
    step = max(1, BLOCK // max(p, right.shape[1], 1))
    for i in range(0, n, step):
        block = slice(i, i + step)
        weighted = weights[block, None] * left[block]
        out += weighted.T.astype(np.float64) @ right[block].astype(np.float64)
    return out


def sign_products(
    rows: Array,
    rotation: Array,
    weights: Array,
    below: NDArray[np.bool_] | None = None,
    product: Array | None = None,
) -> tuple[Array, np.float64]:
    """As `reference.sign_products`."""
    n, p = rows.shape
    shapes.check_shape("rotation", rotation, p, rotation.shape[1])
    shapes.check_shape("weights", weights, n)
    rotated = rows @ rotation
    if below is not None:
        shapes.check_shape("below", below, *rotated.shape)
        below[...] = rotated < 0
    signs = xp.where(rotated < 0, -1, 1).astype(rows.dtype)
    rest = xp.square(signs - rotated).sum(axis=1, dtype=np.float64)
    return cross(rows, signs, weights), (weights.astype(np.float64) * rest).sum()


def sides(rows: Array, planes: Array) -> NDArray[np.uint8]:
    """As `reference.sides`."""
    shapes.check_shape("planes", planes, rows.shape[1], planes.shape[1])
    return (combine(rows, planes) >= 0).astype(np.uint8)


# --- Codes of which a row is the sum ------------------------------------------------------------------------


def beam_step(
    codes: Integers, scores: Array, linear: Array, pairs: Array, width: int
) -> tuple[Integers, Array]:
    """As `reference.beam_step`, by arrays."""
    (b, B, m), K = codes.shape, linear.shape[1]
    shapes.check_shape("scores", scores, b, B)
    shapes.check_shape("linear", linear, b, K)
    shapes.check_shape("pairs", pairs, m, K, K)
    check_range("codes", codes, K)
    costs = scores[:, :, None] + linear[:, None]
    for c in range(m):
        costs += pairs[c][codes[:, :, c]]
    costs = costs.reshape(b, B * K)
    best = xp.argsort(costs, axis=1, kind="stable")[:, :width]
    begun = xp.take_along_axis(codes, (best // K)[:, :, None], axis=1)
    longer = xp.concatenate([begun, (best % K)[:, :, None]], axis=2).astype(np.int32)
    return longer, xp.take_along_axis(costs, best, axis=1)


def conditional_modes(codes: Integers, linear: Array, pairs: Array, sweeps: int) -> tuple[Integers, Array]:
    """As `reference.conditional_modes`, by arrays."""
    b, M = codes.shape
    K = linear.shape[2]
    shapes.check_shape("linear", linear, b, M, K)
    shapes.check_shape("pairs", pairs, M, K, M, K)
    check_range("codes", codes, K)
    codes, scores, rows = codes.astype(np.int32), xp.zeros(b, linear.dtype), xp.arange(b)
    for _ in range(sweeps):
        for m in range(M):
            costs = linear[:, m].copy()
            for other in range(M):
                if other != m:
                    costs += pairs[other][codes[:, other], m]
            codes[:, m] = costs.argmin(axis=1)
    for m in range(M):
        scores += linear[:, m][rows, codes[:, m]]
        for other in range(m):
            scores += pairs[other][codes[:, other], m, codes[:, m]]
    return codes, scores


# --- Loss, batch norm of columns, pooling and the optimizer -----------------------------------------------


def cross_entropy(
    logits: Array, labels: Integers, weights: Array, smoothing: float, out: Array | None = None
) -> tuple[Array, Array]:
    """As `reference.cross_entropy`, a block of threads to a row."""
    b, C = logits.shape
    shapes.check_shape("labels", labels, b)
    shapes.check_shape("weights", weights, b)
    check_range("labels", labels, C)
    losses, out = xp.empty(b, logits.dtype), xp.empty((b, C), logits.dtype) if out is None else out
    shapes.check_shape("out", out, b, C)
    x, w = device.inputs(logits.dtype, logits, weights)
    numbers = 1 - smoothing, smoothing / C if C else 0
    device.launch("cross_entropy", b, x, *device.inputs(np.int64, labels), w, *numbers, b, C, losses, out)
    return losses, out


def column_norm(
    x: Array, gamma: Array, beta: Array, epsilon: float, floor: float
) -> tuple[Array, Array, Array]:
    """As `reference.column_norm`."""
    n = max(len(x), 1)
    exact = x.sum(axis=0, dtype=np.float64) / n
    mean, variance = (m.astype(x.dtype) for m in (exact, xp.square(x - exact).sum(axis=0) / n))
    return column_norm_apply(x, mean, variance, gamma, beta, epsilon, floor), mean, variance


def column_norm_backward(
    d_y: Array,
    y: Array,
    x: Array,
    mean: Array,
    variance: Array,
    gamma: Array,
    epsilon: float,
    floor: float,
) -> tuple[Array, Array, Array]:
    """As `reference.column_norm_backward`."""
    deviation, n = xp.sqrt(variance + scalar_like(variance, epsilon)), x.dtype.type(max(len(x), 1))
    z = (x - mean) / deviation
    d = xp.where(y > floor, d_y, x.dtype.type(0))
    d_gamma = (d.astype(np.float64) * z).sum(axis=0).astype(x.dtype)
    d_beta = d.sum(axis=0, dtype=np.float64).astype(x.dtype)
    return gamma * (d - d_beta / n - z * (d_gamma / n)) / deviation, d_gamma, d_beta


def column_norm_apply(
    x: Array, mean: Array, variance: Array, gamma: Array, beta: Array, epsilon: float, floor: float
) -> Array:
    """As `reference.column_norm_apply`."""
    y = gamma * ((x - mean) / xp.sqrt(variance + scalar_like(variance, epsilon))) + beta
    return xp.maximum(y, scalar_like(y, floor))


def mean_pool(table: Array, ids: Integers, mask: NDArray[np.bool_]) -> Array:
    """As `reference.mean_pool`."""
    check_range("ids", ids, len(table))
    (b, t), w = ids.shape, table.shape[1]
    shapes.check_shape("mask", mask, b, t)
    pooled = xp.empty((b, w), table.dtype)
    arrays = *device.inputs(table.dtype, table), *device.inputs(np.int64, ids), *device.inputs(np.bool_, mask)
    device.each("mean_pool", pooled.size, *arrays, b, t, w, pooled)
    return pooled


def mean_pool_backward(d_pooled: Array, ids: Integers, mask: NDArray[np.bool_], n_rows: int) -> Array:
    """As `reference.mean_pool_backward`, in the order of the batch."""
    check_range("ids", ids, n_rows)
    b, t = ids.shape
    shapes.check_shape("mask", mask, b, t)
    shapes.check_shape("d_pooled", d_pooled, b, d_pooled.shape[1])
    share = d_pooled / xp.maximum(mask.sum(axis=1), 1).astype(d_pooled.dtype)[:, None]
    order, starts = sums.segments(xp.where(mask, ids, n_rows).reshape(-1), n_rows)  # the others come last
    return sums.by_segment(share, order // max(t, 1), starts)


def squared_norm(array: Array) -> np.float64:
    """As `reference.squared_norm`, all of it in float64."""
    return xp.square(array, dtype=np.float64).sum()


def adam(
    parameter: Array,
    gradient: Array,
    first: Array,
    second: Array,
    step: int,
    learning_rate: float,
    beta1: float,
    beta2: float,
    epsilon: float,
    rows: Integers | None = None,
    out: tuple[Array, Array, Array] | None = None,
) -> tuple[Array, Array, Array]:
    """As `reference.adam`, in place of `out`."""
    (n, w), b = parameter.shape, len(parameter) if rows is None else rows.size
    if rows is not None:
        check_range("rows", rows, n)
        (rows,) = device.inputs(np.int64, rows)
    shapes.check_shape("gradient", gradient, b, w)
    olds = parameter, first, second
    out = tuple(xp.empty((n, w), old.dtype) for old in olds) if out is None else out
    for name, old, new in zip(("parameter", "first", "second"), olds, out, strict=True):
        shapes.check_shape(name, old, n, w)
        shapes.check_shape("out", new, n, w)
        if new is not old:
            new[...] = old
    rate, unbias = learning_rate / (1 - beta1**step), 1 / (1 - beta2**step)
    numbers = rate, beta1, 1 - beta1, beta2, 1 - beta2, unbias, epsilon
    device.each("adam", b * w, rows, *device.inputs(parameter.dtype, gradient), b, w, *numbers, *out)
    return out
