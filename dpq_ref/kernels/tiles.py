"""DPQ for the CPU without any array of b x D x K: the steps of `reference`, a tile at a time.

A tile is WIDTH rows of one group, transposed, so that all loops run along the rows; a block of rows goes
through all groups while it is in the cache. Responses are never stored: the backward computes them again.

Batch norm folds into the keys: the normalised response is <q, K[k] / sigma[k]> - mean[k] / sigma[k], one more
coordinate whose query is 1 (`_fold`). The part of the backward that goes through the statistics is linear in
the responses, so it needs no second look at them (`_through_statistics`).
"""

import numpy as np
from numba import prange

from dpq_ref.backend import one_blas_thread
from dpq_ref.kernels import loops
from dpq_ref.kernels.reference import (
    Array,
    Integers,
    Statistics,
    dot_responses,
    euclidean_responses,
    scalar_like,
)
from dpq_ref.kernels.registers import QUERIES, ROWS, distance_rows, product_rows

WIDTH = 128  # rows of a tile, fewer at the end of a batch
CHUNKS = 8  # the most partial sums over a batch


def _chunks(b: int) -> int:
    """Partial sums over a batch, whatever the number of threads."""
    return min(CHUNKS, -(-b // WIDTH))


@one_blas_thread
def sx_statistics(query: Array, keys: Array, counts: Array) -> Statistics:
    """As `reference.sx_statistics`."""
    return _statistics(query, keys, counts, euclidean=False)


@one_blas_thread
def vq_statistics(query: Array, keys: Array, counts: Array) -> Statistics:
    """As `reference.vq_statistics`."""
    return _statistics(query, keys, counts, euclidean=True)


def _statistics(query: Array, keys: Array, counts: Array, *, euclidean: bool) -> Statistics:
    """Mean and variance of responses, by their moments about those of the first row: so no digits go.

    With u = q - q0 the difference from the first row's response is <u, k>, and of distances
    <u, 2 (k - q0)> - <u, u>.
    """
    b, D, s = query.shape
    K = keys.shape[1]
    loops.check_book("keys", keys, D, s)
    loops.check_shape("counts", counts, b)
    total = counts.sum(dtype=np.float64)
    if total == 0:
        return np.zeros(K, query.dtype), np.ones(K, query.dtype)
    first_row, double = query[:1].astype(np.float64), keys.astype(np.float64)
    if euclidean:
        shift, book = euclidean_responses(first_row, double)[0], 2 * (double - first_row.swapaxes(0, 1))
    else:
        shift, book = dot_responses(first_row, double)[0], double
    sums = np.zeros((_chunks(b), 2, D, K))
    _moments(*loops.inputs(query.dtype, query, book, counts), euclidean, sums)
    first, second = sums.sum(axis=0) / total
    mean = (shift + first).mean(axis=0)
    around = shift - mean
    variance = (second + 2 * first * around + around * around).mean(axis=0)
    return mean.astype(query.dtype), variance.astype(query.dtype)


@loops.parallel
def _moments(query, book, counts, euclidean, sums):
    """sums[chunk, :, j, k] = sum of counts[i] y and of counts[i] y^2, y = <u, book[j, k]> (- <u, u>)."""
    b, D, s = query.shape
    for chunk in prange(len(sums)):
        for block in range(*_blocks(b, chunk, len(sums))):
            start = block * WIDTH
            n = min(WIDTH, b - start)
            w = _width(n)
            u = np.empty((s, w), query.dtype)
            y = np.empty((book.shape[1], w), query.dtype)
            weights = np.zeros(w, query.dtype)
            weights[:n] = counts[start : start + n]
            for j in range(D):
                _load(query, start, n, j, u)
                for c in range(s):
                    centre = query[0, j, c]
                    for i in range(w):
                        u[c, i] -= centre
                np.dot(book[min(j, len(book) - 1)], u, y)
                if euclidean:
                    norm = np.zeros(w, query.dtype)
                    for c in range(s):
                        for i in range(w):
                            norm[i] += u[c, i] * u[c, i]
                    for k in range(len(y)):
                        for i in range(w):
                            y[k, i] -= norm[i]
                _add_moments(y, weights, sums[chunk, :, j])


@loops.summed
def _add_moments(x, weights, sums):
    for k in range(len(x)):
        first = second = x.dtype.type(0)
        for i in range(len(weights)):
            y = weights[i] * x[k, i]
            first += y
            second += y * x[k, i]
        sums[0, k] += first
        sums[1, k] += second


@loops.fused
def _blocks(b, chunk, n_chunks):
    """First and last block of a chunk."""
    n = (b + WIDTH - 1) // WIDTH
    return n * chunk // n_chunks, n * (chunk + 1) // n_chunks


@loops.fused
def _width(n):
    """Of the tile of n rows."""
    return (n + QUERIES - 1) // QUERIES * QUERIES


def sx_codes(
    query: Array, keys: Array, statistics: Statistics | None, epsilon: float, noise: Array | None = None
) -> Integers:
    """As `reference.sx_codes`."""
    b, D, s = query.shape
    loops.check_book("keys", keys, D, s)
    codes = np.empty((b, D), np.int32)
    book, none = _fold(keys, statistics, epsilon), np.empty(0, query.dtype)
    _codes(*loops.inputs(query.dtype, query, book, none, none, _noise(noise, query, keys)), codes)
    return codes


def vq_codes(query: Array, keys: Array, statistics: Statistics, epsilon: float) -> Integers:
    """As `reference.vq_codes`."""
    b, D, s = query.shape
    loops.check_book("keys", keys, D, s)
    _check_statistics(statistics, keys.shape[1])
    mean, variance = statistics
    codes = np.empty((b, D), np.int32)
    scale = 1 / np.sqrt(variance + scalar_like(variance, epsilon))
    _codes(*loops.inputs(query.dtype, query, keys, mean, scale, _noise(None, query, keys)), codes)
    return codes


@loops.parallel
def _codes(query, book, mean, scale, noise, codes):
    """By dot products with a folded book or, where there are means, by distances to the keys."""
    b, D, s = query.shape
    K = book.shape[1]
    for block in prange(-(-b // WIDTH)):
        start = block * WIDTH
        n = min(WIDTH, b - start)
        w, at_once = _width(n), min(ROWS, K)
        q = np.ones((s + 1, w), query.dtype)
        rows = np.empty((at_once, w), query.dtype)
        best = np.empty(w, query.dtype)
        code = np.empty(w, np.int32)
        for j in range(D):
            g = min(j, len(book) - 1)
            _load(query, start, n, j, q)
            best[:] = -np.inf
            code[:] = 0
            for first in range(0, K, at_once):
                first = min(first, K - at_once)  # codes seen before change nothing
                if len(mean):
                    distance_rows(book[g], first, q, rows)
                else:
                    product_rows(book[g], first, q, rows)
                if len(mean):
                    for r in range(at_once):
                        row, k = rows[r], first + r
                        for i in range(w):
                            row[i] = (-row[i] - mean[k]) * scale[k]
                if len(noise):
                    for r in range(at_once):
                        for i in range(n):
                            rows[r, i] += noise[start + i, j, first + r]
                _keep_largest(rows, first, best, code)
            for i in range(n):
                codes[start + i, j] = code[i]


@loops.serial
def _keep_largest(rows, first, best, code):
    if len(rows) == ROWS:
        for i in range(len(best)):
            _keep(rows, first, ROWS, best, code, i)
    else:
        for i in range(len(best)):
            _keep(rows, first, len(rows), best, code, i)


@loops.inlined
def _keep(rows, first, n, best, code, i):
    top, k = best[i], code[i]
    for r in range(n):
        larger = not rows[r, i] <= top and top == top  # the first NaN wins
        top = rows[r, i] if larger else top
        k = np.int32(first + r) if larger else k
    best[i], code[i] = top, k


@loops.fused
def _load(x, start, n, j, tile):
    """Group j of n rows, transposed; the rest of the tile is 0."""
    _, D, s = x.shape
    w = tile.shape[1]
    rows, columns, zeros = x.ravel(), tile.ravel(), np.zeros(4, tile.dtype)
    quads = n - n % 4 if s >= 4 else 0
    for i in range(0, quads, 4):
        for c in range(0, s, 4):
            c = min(c, s - 4)  # the last ones over some again
            loops.turn_4(columns, c * w + i, w, rows, ((start + i) * D + j) * s + c, D * s, zeros, 0)
    for c in range(s):
        for i in range(quads, n):
            tile[c, i] = x[start + i, j, c]
        for i in range(n, w):
            tile[c, i] = 0


@one_blas_thread
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
    """As `reference.sx_backward`; all matrix products of a tile are BLAS's."""
    b, D, s = query.shape
    loops.check_book("keys", keys, D, s)
    loops.check_book("values", values, D, d_picked.shape[2])
    loops.check_shape("values", values, len(values), keys.shape[1], values.shape[2])
    loops.check_shape("d_picked", d_picked, b, D, d_picked.shape[2])
    loops.check_shape("counts", counts, b)
    book = _fold(keys, statistics, epsilon)
    d_query = np.empty((b, D, s), query.dtype)
    d_book = np.zeros((_chunks(b), *book.shape))
    moments = np.zeros((_chunks(b), len(book), s + 1, s + 1))
    arrays = (d_picked, query, book, book.swapaxes(1, 2), values, counts, _noise(noise, query, keys))
    rate = scalar_like(query, 1 / float(scalar_like(query, temperature)))
    normalised = statistics is not None
    _sx_backward(*loops.inputs(query.dtype, *arrays), rate, normalised, d_query, d_book, moments)
    d_book, moments = d_book.sum(axis=0), moments.sum(axis=0)
    if statistics is None:
        return d_query, d_book[:, :, :s].astype(query.dtype)
    return _through_statistics(d_query, d_book, moments, query, book, counts, statistics[1], epsilon)


@loops.parallel
def _sx_backward(
    d_picked, query, book, turned, values, counts, noise, rate, normalised, d_query, d_book, moments
):
    """Add up over rows i: d[i,j,k] (q[i,j], 1), and the moments counts[i] (q[i,j], 1) (q[i,j], 1)."""
    b, D, s = query.shape
    K = book.shape[1]
    for chunk in prange(len(d_book)):
        partial = np.empty((K, s + 1), query.dtype)
        squares = np.empty((s + 1, s + 1), query.dtype)
        for block in range(*_blocks(b, chunk, len(d_book))):
            start = block * WIDTH
            n = min(WIDTH, b - start)
            w = _width(n)
            q = np.ones((s + 1, w), query.dtype)
            weighted, d_q = np.empty((s + 1, w), query.dtype), np.empty((s + 1, w), query.dtype)
            g = np.empty((d_picked.shape[2], w), query.dtype)
            x, d = np.empty((K, w), query.dtype), np.empty((K, w), query.dtype)
            weights = np.zeros(w, query.dtype)
            weights[:n] = counts[start : start + n]
            for j in range(D):
                shared = min(j, len(book) - 1)
                _load(query, start, n, j, q)
                _load(d_picked, start, n, j, g)  # 0 beyond n, and so is all that follows from it
                np.dot(book[shared], q, x)
                if len(noise):
                    for i in range(n):
                        for k in range(K):
                            x[k, i] += noise[start + i, j, k]
                np.dot(values[min(j, len(values) - 1)], g, d)
                _soften(x, d, rate)
                np.dot(turned[shared], d, d_q)
                _store(d_q[:s], d_query, start, n, j)
                np.dot(d, q.T, partial)
                _add_to(d_book[chunk, shared], partial)
                if normalised:
                    for c in range(s + 1):
                        for i in range(w):
                            weighted[c, i] = weights[i] * q[c, i]
                    np.dot(weighted, q.T, squares)
                    _add_to(moments[chunk, shared], squares)


@loops.fused
def _store(tile, x, start, n, j):
    """Transposed back, the first n columns of a tile to group j."""
    _, D, s = x.shape
    w = tile.shape[1]
    rows, columns, zeros = x.ravel(), tile.ravel(), np.zeros(4, tile.dtype)
    quads = n - n % 4 if s >= 4 else 0
    for i in range(0, quads, 4):
        for c in range(0, s, 4):
            c = min(c, s - 4)
            loops.turn_4(rows, ((start + i) * D + j) * s + c, D * s, columns, c * w + i, w, zeros, 0)
    for i in range(quads, n):
        for c in range(s):
            x[start + i, j, c] = tile[c, i]


@loops.fused
def _add_to(total, partial):
    for k in range(len(partial)):
        for c in range(partial.shape[1]):
            total[k, c] += partial[k, c]


@loops.fused
def _soften(x, d, rate):
    """From logits x and the gradients d of their softmax to the gradients of the logits, in place of d."""
    K, w = x.shape
    top = x[0].copy()
    total = np.zeros(w, x.dtype)
    expected = np.zeros(w, x.dtype)
    for k in range(1, K):
        for i in range(w):
            top[i] = top[i] if top[i] >= x[k, i] else x[k, i]
    for k in range(K):
        for i in range(w):
            x[k, i] = loops.exp((x[k, i] - top[i]) * rate)
        for i in range(w):
            total[i] += x[k, i]
            expected[i] += x[k, i] * d[k, i]
    for i in range(w):
        expected[i] /= total[i]
        total[i] = rate / total[i]
    for k in range(K):
        for i in range(w):
            d[k, i] = (x[k, i] * total[i]) * (d[k, i] - expected[i])


def _fold(keys: Array, statistics: Statistics | None, epsilon: float) -> Array:
    """Keys that answer with the normalised response to a query and a 1, (D or 1, K, s + 1)."""
    if statistics is None:
        return np.concatenate([keys, np.zeros_like(keys[:, :, :1])], axis=2)
    _check_statistics(statistics, keys.shape[1])
    mean, variance = (x.astype(np.float64) for x in statistics)
    scale = 1 / np.sqrt(variance + epsilon)
    constant = np.broadcast_to(-mean * scale, keys.shape[:2])
    return np.concatenate([keys * scale[:, None], constant[:, :, None]], axis=2).astype(keys.dtype)


def _check_statistics(statistics: Statistics, n_codes: int) -> None:
    for name, array in zip(("mean", "variance"), statistics, strict=True):
        loops.check_shape(name, array, n_codes)


def _noise(noise: Array | None, query: Array, keys: Array) -> Array:
    b, D, _ = query.shape
    if noise is None:
        return np.empty((0, 0, 0), query.dtype)
    loops.check_shape("noise", noise, b, D, keys.shape[1])
    return noise


def _through_statistics(
    d_query: Array,
    d_book: Array,
    moments: Array,
    query: Array,
    book: Array,
    counts: Array,
    variance: Array,
    epsilon: float,
) -> tuple[Array, Array]:
    """Take the part out that goes through mean and variance, as `reference.batch_norm_backward`.

    Of the gradient of a response goes counts[i] (m1[k] + m2[k] x[i,j,k]), with m1 and m2 the means of the
    gradient and of the gradient times the normalised response x = <book[j,k], (q[i,j], 1)>. That is linear in
    the query: counts[i] <pull[j,k], (q[i,j], 1)>.
    """
    _, D, s = query.shape
    scale = 1 / np.sqrt(variance.astype(np.float64) + epsilon)
    total = D * counts.sum(dtype=np.float64)
    if total:
        m1 = d_book[:, :, s].sum(axis=0) / total
        m2 = (d_book * book).sum(axis=(0, 2)) / total
        pull = book * m2[:, None]
        pull[:, :, s] += m1
        d_book = d_book - pull @ moments
        through = book[:, :, :s].swapaxes(1, 2) @ pull  # (D or 1, s, s + 1)
        _subtract(*loops.inputs(query.dtype, query, through, counts), d_query)
    return d_query, (d_book[:, :, :s] * scale[:, None]).astype(query.dtype)


@loops.parallel
def _subtract(query, through, counts, d_query):
    """d_q[i,j] -= counts[i] through[j] (q[i,j], 1)."""
    b, D, s = query.shape
    for block in prange(-(-b // WIDTH)):
        start = block * WIDTH
        n = min(WIDTH, b - start)
        w = _width(n)
        q = np.ones((s + 1, w), query.dtype)
        d_q, moved = np.empty((s, w), query.dtype), np.empty((s, w), query.dtype)
        weights = np.zeros(w, query.dtype)
        weights[:n] = counts[start : start + n]
        for j in range(D):
            _load(query, start, n, j, q)
            _load(d_query, start, n, j, d_q)
            np.dot(through[min(j, len(through) - 1)], q, moved)
            for c in range(s):
                for i in range(w):
                    d_q[c, i] -= weights[i] * moved[c, i]
            _store(d_q, d_query, start, n, j)
