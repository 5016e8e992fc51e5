"""Nearest keys and k-means on the CPU: distances by matrix products, as exact as by differences.

|q - k|^2 / 2 = |q|^2 / 2 + (|k|^2 / 2 - <q, k>): the bracket ranks the keys, and for a tile of WIDTH rows it
is one matrix product with keys that have |k|^2 / 2 as one coordinate more. In floating point it has an error,
which has a bound. Rows whose two best keys differ by more than that have their code; the few others, and
whatever is not finite, are looked at again by direct differences. So codes are those of the reference, bit by
bit, far off centre too.
"""

from contextlib import nullcontext
from typing import Any

import numpy as np
from numba import prange

from dpq_ref.backend import one_blas_thread
from dpq_ref.kernels import loops
from dpq_ref.kernels.reference import CENTRE, WIDTH, Array, Integers, check_range

KEYS = 64  # keys of a matrix product: their scores for a tile stay in the cache
NARROW = 16  # columns up to which BLAS does not think of sharing a product among threads
UNROLL = 8  # keys that are compared at a time
BAND = 16  # rows of a tile that are transposed at a time: a line of the cache
CHUNKS = 16  # the most partial sums over points


def nearest_code(query: Array, keys: Array) -> Integers:
    """As `reference.nearest_code`."""
    b, D, s = query.shape
    loops.check_book("keys", keys, D, s)
    codes = np.empty((b, D), np.int32)
    with np.errstate(invalid="ignore", over="ignore"):
        centre = keys.mean(axis=1, dtype=np.float64).astype(query.dtype)
    arrays = loops.inputs(query.dtype, query, keys, *_book(keys, centre), centre)
    with _blas_of(s):
        _nearest_code(*arrays, codes)
    return codes


def _blas_of(width: int) -> Any:
    """Context in which a product for a tile stays on its thread; narrow ones do of themselves."""
    return one_blas_thread if width >= NARROW else nullcontext()


def _book(keys: Array, centre: Array) -> tuple[Array, Array]:
    """Make what ranks keys: the matrix of a product, and its error.

    Returns
    -------
    book : (D or 1, ceil(K / 8) 8, s + 1)
        (-(k - centre), |k - centre|^2 / 2); the keys that are added score infinity.
    reach : (D or 1,)
        The largest |k - centre|; infinite, and so all codes by differences, if it is not finite.
    """
    D, K, s = keys.shape
    with np.errstate(invalid="ignore", over="ignore"):
        around = keys.astype(np.float64) - centre[:, None]
        squares = np.einsum("jkc,jkc->jk", around, around)
        book = np.zeros((D, -(-K // UNROLL) * UNROLL, s + 1), centre.dtype)
        book[:, :K, :s] = -around
        book[:, :K, s] = squares / 2
        book[:, K:, s] = np.inf
        reach = np.sqrt(squares.max(axis=1)).astype(centre.dtype)
    reach[~np.isfinite(book[:, :K]).all(axis=(1, 2))] = np.inf
    return book, reach


@loops.parallel
def _nearest_code(query, keys, book, reach, centre, codes):
    b, D, s = query.shape
    for block in prange(-(-b // WIDTH)):
        start = block * WIDTH
        tiles = np.empty((D, s + 1, WIDTH), query.dtype)
        tiles[:, s] = 1
        _load(query, start, centre, tiles)
        scores = np.empty((min(KEYS, book.shape[1]), WIDTH), query.dtype)
        floats, integers = np.empty((3, WIDTH), query.dtype), np.empty((D + 1, WIDTH), np.int32)
        room, best, lowest, seen = floats[0], floats[1], floats[2], integers[D]
        for j in range(D):
            g = min(j, len(keys) - 1)
            _room(tiles[j], reach[g], room)
            _rank(book[g], tiles[j], room, scores, best, integers[j], lowest, seen)
            _settle(query, start, j, keys, g, integers[j])
        for i in range(min(WIDTH, b - start)):
            for j in range(D):
                codes[start + i, j] = integers[j, i]


@loops.fused
def _load(x, start, centre, tiles):
    """Transpose a tile of rows about the centre, group by group; what is beyond the last row stays.

    BAND rows at a time, each from its first column to its last, as memory is read ahead.
    """
    n = min(WIDTH, len(x) - start)
    D, s = x.shape[1:]
    shared = len(centre) == 1
    rows, columns, middle = x.ravel(), tiles.ravel(), centre.ravel()
    for band in range(0, n, BAND):
        end = min(band + BAND, n)
        quads = end - end % 4 if s >= 4 else band
        for j in range(D):
            m = 0 if shared else j * s
            for more in range(0, s, 4):
                c = min(more, s - 4)  # the last ones over some again
                to = (j * (s + 1) + c) * WIDTH
                at = (start * D + j) * s + c
                for i in range(band, quads, 4):
                    loops.turn_4(columns, to + i, WIDTH, rows, at + i * D * s, D * s, middle, m + c)
            for i in range(quads, end):
                for c in range(s):
                    tiles[j, c, i] = x[start + i, j, c] - middle[m + c]


@loops.fused
def _room(q, reach, room):
    """By how much scores may be wrong.

    With u half of eps, r = |q - centre| and R = reach, taking the centre off, the score, and the direct
    distance to compare with are each off by less than (s + 3) / 2 u (r + R)^2, half the distances compared.
    """
    s = len(q) - 1
    room[:] = 0
    for c in range(s):
        for i in range(WIDTH):
            room[i] += q[c, i] * q[c, i]
    eps, tiny = np.finfo(q.dtype).eps, np.finfo(q.dtype).tiny  # tiny: products that underflow
    for i in range(WIDTH):
        r = np.sqrt(room[i]) + reach
        room[i] = q.dtype.type(2 * (s + 4) * eps) * (r * r) + tiny


@loops.fused
def _rank(book, q, room, scores, best, code, lowest, seen):
    """code[i] = the key of the lowest score, or -1 if another may be as low."""
    for first in range(0, len(book), KEYS):
        some = scores[: min(KEYS, len(book) - first)]
        np.dot(book[first : first + len(some)], q, some)
        _least(some, lowest)
        _count(some, lowest, room, seen)
        if first == 0:
            best[:] = np.inf
            code[:] = -1
        _merge(first, room, lowest, seen, best, code)


@loops.fused
def _least(scores, lowest):
    lowest[:] = np.inf
    for k in range(0, len(scores), UNROLL):
        for i in range(WIDTH):
            a = min(min(scores[k, i], scores[k + 1, i]), min(scores[k + 2, i], scores[k + 3, i]))
            b = min(min(scores[k + 4, i], scores[k + 5, i]), min(scores[k + 6, i], scores[k + 7, i]))
            lowest[i] = min(lowest[i], min(a, b))


@loops.fused
def _merge(first, room, lowest, seen, best, code):
    """Lowest scores of the keys from `first` on, beside those before."""
    for i in range(WIDTH):
        k = np.int32(first) + (seen[i] & np.int32(65535))
        alone = k if seen[i] >> np.int32(16) == 1 else np.int32(-1)
        beside = np.int32(-1) if lowest[i] <= best[i] + room[i] else code[i]
        code[i] = alone if lowest[i] + room[i] < best[i] else beside
        best[i] = min(lowest[i], best[i])


@loops.fused
def _count(scores, lowest, room, seen):
    """seen[i] = 65536 m + k, if m scores are within room of the lowest, k the sum of their places."""
    seen[:] = 0
    for k in range(0, len(scores), UNROLL):
        one = np.int32(65536 + k)
        none = np.int32(0)
        for i in range(WIDTH):
            x = lowest[i] + room[i]
            n = one if scores[k, i] <= x else none
            n += one + np.int32(1) if scores[k + 1, i] <= x else none
            n += one + np.int32(2) if scores[k + 2, i] <= x else none
            n += one + np.int32(3) if scores[k + 3, i] <= x else none
            n += one + np.int32(4) if scores[k + 4, i] <= x else none
            n += one + np.int32(5) if scores[k + 5, i] <= x else none
            n += one + np.int32(6) if scores[k + 6, i] <= x else none
            n += one + np.int32(7) if scores[k + 7, i] <= x else none
            seen[i] += n


@loops.serial
def _settle(query, start, j, keys, g, code):
    """Codes that scores did not settle, by direct differences."""
    for i in range(min(WIDTH, len(query) - start)):
        if code[i] < 0:
            code[i] = 0
            best = np.inf
            for k in range(keys.shape[1]):
                distance = _distance(query, start + i, j, keys, g, k)
                if not distance >= best and best == best:  # a NaN wins, the first one
                    best = distance
                    code[i] = k


@loops.serial
def _distance(query, i, j, keys, g, k):
    """|query[i, j] - keys[g, k]|^2 by direct differences, in order."""
    total = query.dtype.type(0)
    for c in range(query.shape[2]):
        difference = query[i, j, c] - keys[g, k, c]
        total += difference * difference
    return total


def code_distances(query: Array, keys: Array, codes: Integers) -> Array:
    """As `reference.code_distances`."""
    b, D, s = query.shape
    loops.check_book("keys", keys, D, s)
    loops.check_shape("codes", codes, b, D)
    check_range("codes", codes, keys.shape[1])
    distances = np.empty((b, D), query.dtype)
    _code_distances(*loops.inputs(query.dtype, query, keys), *loops.inputs(np.int32, codes), distances)
    return distances


@loops.parallel
def _code_distances(query, keys, codes, distances):
    for i in prange(len(query)):
        for j in range(query.shape[1]):
            distances[i, j] = _distance(query, i, j, keys, min(j, len(keys) - 1), codes[i, j])


def point_tiles(points: Array) -> tuple[Array, Array]:
    """As `reference.point_tiles`."""
    n, D, s = points.shape
    centre = points[:: max(1, n // CENTRE)].mean(axis=0, dtype=np.float64).astype(points.dtype)
    tiles = np.empty((-(-n // WIDTH), D, s + 1, WIDTH), points.dtype)
    _point_tiles(*loops.inputs(points.dtype, points, centre), tiles)
    return tiles, centre


@loops.parallel
def _point_tiles(points, centre, tiles):
    s = points.shape[2]
    for block in prange(len(tiles)):
        tiles[block, :, :s] = 0
        tiles[block, :, s] = 1
        _load(points, block * WIDTH, centre, tiles[block])


def kmeans_sums(
    points: Array, keys: Array, weights: Array, tiles: tuple[Array, Array] | None = None
) -> tuple[Integers, Array, Array]:
    """As `reference.kmeans_sums`."""
    n, D, s = points.shape
    K = keys.shape[1]
    loops.check_shape("keys", keys, D, K, s)
    loops.check_book("keys", keys, D, s)
    loops.check_shape("weights", weights, n)
    rows, centre = point_tiles(points) if tiles is None else tiles
    loops.check_shape("tiles", rows, -(-n // WIDTH), D, s + 1, WIDTH)
    codes = np.empty((n, D), np.int32)
    chunks = max(1, min(CHUNKS, len(rows), n // (8 * K)))  # their sums take less than the points
    sums, counts = np.zeros((chunks, D, K, s)), np.zeros((chunks, D, K))
    arrays = loops.inputs(points.dtype, points, rows, keys, *_book(keys, centre))
    with _blas_of(s):
        _kmeans_sums(*arrays, *loops.inputs(np.float64, weights), codes, sums, counts)
    return codes, sums.sum(axis=0), counts.sum(axis=0)


@loops.parallel
def _kmeans_sums(points, tiles, keys, book, reach, weights, codes, sums, counts):
    D, s = points.shape[1:]
    for chunk in prange(len(sums)):
        scores = np.empty((min(KEYS, book.shape[1]), WIDTH), points.dtype)
        floats, integers = np.empty((3, WIDTH), points.dtype), np.empty((D + 1, WIDTH), np.int32)
        room, best, lowest, seen = floats[0], floats[1], floats[2], integers[D]
        for block in range(len(tiles) * chunk // len(sums), len(tiles) * (chunk + 1) // len(sums)):
            for j in range(D):
                q = tiles[block, j]
                _room(q, reach[j], room)
                _rank(book[j], q, room, scores, best, integers[j], lowest, seen)
                _settle(points, block * WIDTH, j, keys, j, integers[j])
            _add(points, block * WIDTH, weights, integers, codes, sums[chunk], counts[chunk])


@loops.fused
def _add(points, start, weights, code, codes, sums, counts):
    """Rows of a tile to the sums of their codes, row by row as they lie in memory."""
    D, s = points.shape[1:]
    K = counts.shape[1]
    x, flat = points.ravel(), sums.ravel()
    for i in range(min(WIDTH, len(points) - start)):
        w = weights[start + i]
        for j in range(D):
            k = code[j, i]
            codes[start + i, j] = k
            counts[j, np.uint32(k)] += w  # unsigned: no test for indices from the end
            at, to = ((start + i) * D + j) * s, (j * K + k) * s
            for c in range(0, s - 3, 4):
                loops.add_4(flat, to + c, x, at + c, w)
            for c in range(s - s % 4, s):
                flat[to + c] += w * x[at + c]


def plus_plus(points: Array, weights: Array, uniforms: Array) -> Integers:
    """As `reference.plus_plus`; a thread owns groups, whose points stay in the cache."""
    n, D, s = points.shape
    loops.check_shape("weights", weights, n)
    loops.check_shape("uniforms", uniforms, D, *uniforms.shape[1:3])
    rows = np.empty(uniforms.shape[:2], np.int32)
    arrays = loops.inputs(points.dtype, points), loops.inputs(np.float64, weights, uniforms)
    _plus_plus(*arrays[0], *arrays[1], rows)
    return rows


@loops.parallel
def _plus_plus(points, weights, uniforms, rows):
    n, D, s = points.shape
    _, K, trials = uniforms.shape
    for j in prange(D):
        x = np.empty((s, n), points.dtype)
        for i in range(n):
            for c in range(s):
                x[c, i] = points[i, j, c]
        nearest = np.ones(n, points.dtype)
        distances = np.empty((trials, n), points.dtype)
        cumulative = np.empty(n)
        for k in range(K):
            total = 0.0
            for i in range(n):
                total += weights[i] * nearest[i]
                cumulative[i] = total
            best, least = 0, np.inf
            for t in range(trials):
                if total > 0:
                    row = np.searchsorted(cumulative, uniforms[j, k, t] * total, side="right")
                else:  # no point is off, or none has weight: evenly
                    row = int(uniforms[j, k, t] * n)
                row = min(row, n - 1)
                left = _left(x, row, weights, nearest, distances[t]) if k else 0.0
                if t == 0 or left < least:
                    best, least = t, left
                    rows[j, k] = row
            if k == 0:
                nearest[:] = np.inf
                _left(x, rows[j, k], weights, nearest, distances[best])
            nearest[:] = distances[best]


@loops.summed
def _left(x, row, weights, nearest, distance):
    """Fill distance with the squares to the nearest key, one more at a row; their weighted sum."""
    s, n = x.shape
    distance[:] = 0
    for c in range(s):
        y = x[c, row]
        for i in range(n):
            distance[i] += (x[c, i] - y) * (x[c, i] - y)
    total = 0.0
    for i in range(n):
        distance[i] = min(distance[i], nearest[i])
        total += weights[i] * np.float64(distance[i])
    return total
