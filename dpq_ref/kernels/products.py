"""Products of tall matrices on the CPU: each thread takes blocks of rows, and BLAS multiplies a block.

BLAS itself uses one thread. Sums over rows are taken in float64 from block to block, in
partial sums whose number does not depend on that of the threads.
"""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
from numba import get_num_threads, prange
from numpy.typing import NDArray

from dpq_ref.backend import one_blas_thread
from dpq_ref.kernels import loops
from dpq_ref.kernels.reference import Array

ROWS = 512  # of a block
CHUNKS = 8  # the most partial sums
FEW = 16  # at most the FEWth part of signs is few


@one_blas_thread
def multiply(rows: Array, matrix: Array) -> Array:
    """As `reference.multiply`."""
    loops.check_shape("matrix", matrix, rows.shape[1], matrix.shape[1])
    out = np.empty((len(rows), matrix.shape[1]), rows.dtype)
    _multiply(*loops.inputs(rows.dtype, rows, matrix), out)
    return out


@loops.parallel
def _multiply(rows, matrix, out):
    for block in prange(-(-len(rows) // ROWS)):
        start, stop = block * ROWS, min((block + 1) * ROWS, len(rows))
        np.dot(rows[start:stop], matrix, out[start:stop])


@one_blas_thread
def cross(left: Array, right: Array, weights: Array) -> Array:
    """As `reference.cross`; where left and right are one array, half of the products."""
    n, p = left.shape
    loops.check_shape("right", right, n, right.shape[1])
    loops.check_shape("weights", weights, n)
    if left is right:
        return _gram(left, weights)
    sums = np.zeros((_chunks(n, p), p, right.shape[1]))
    _cross(*loops.inputs(left.dtype, left, right, weights), sums)
    return sums.sum(axis=0)


@loops.parallel
def _cross(left, right, weights, sums):
    n, p = left.shape
    for chunk in prange(len(sums)):
        weighted = np.empty((ROWS, p), left.dtype)
        partial = np.empty(sums.shape[1:], left.dtype)
        first, last = _bounds(n, chunk, len(sums))
        for start in range(first, last, ROWS):
            m = min(ROWS, n - start)
            for i in range(m):
                for c in range(p):
                    weighted[i, c] = weights[start + i] * left[start + i, c]
            np.dot(weighted[:m].T, right[start : start + m], partial)
            _add(partial, sums[chunk])


def _gram(rows: Array, weights: Array) -> Array:
    """Numba has no product that is symmetric, so here Python's threads take the blocks."""
    roots = None if (weights == 1).all() else np.sqrt(weights).astype(rows.dtype)[:, None]

    def product(start: int) -> Array:
        block = slice(start, start + 4 * ROWS)
        some = rows[block] if roots is None else roots[block] * rows[block]
        return some.T @ some

    gram = np.zeros((rows.shape[1], rows.shape[1]))
    with ThreadPoolExecutor(get_num_threads()) as pool:
        for partial in pool.map(product, range(0, len(rows), 4 * ROWS)):
            gram += partial
    return gram


@one_blas_thread
def sign_products(
    rows: Array,
    rotation: Array,
    weights: Array,
    below: NDArray[np.bool_] | None = None,
    product: Array | None = None,
) -> tuple[Array, np.float64]:
    """As `reference.sign_products`; signs stay in the cache, and few that change need no matrix product."""
    n, p = rows.shape
    q = rotation.shape[1]
    loops.check_shape("rotation", rotation, p, q)
    loops.check_shape("weights", weights, n)
    if below is None:
        below, product = np.empty((n, q), np.bool_), None
    loops.check_shape("below", below, n, q)
    sums = np.zeros((_chunks(n, p), q, p))
    losses = np.zeros(len(sums))
    arrays = loops.inputs(rows.dtype, rows, rotation, weights)
    _sign_products(*arrays, product is None, below, sums, losses)
    change = sums.sum(axis=0).T
    return change if product is None else product + change, losses.sum()


@loops.parallel
def _sign_products(rows, rotation, weights, fresh, below, sums, losses):
    """Of new signs, or of new ones less those of before, transposed."""
    n = len(rows)
    for chunk in prange(len(sums)):
        rotated = np.empty((ROWS, rotation.shape[1]), rows.dtype)
        partial = np.empty(sums.shape[1:], rows.dtype)
        turned = np.empty(ROWS, np.int32)
        first, last = _bounds(n, chunk, len(sums))
        for start in range(first, last, ROWS):
            m = min(ROWS, n - start)
            block, steps = rows[start : start + m], rotated[:m]
            np.dot(block, rotation, steps)
            for i in range(m):
                loss, turned[i] = _to_steps(steps[i], weights[start + i], fresh, below[start + i])
                losses[chunk] += weights[start + i] * np.float64(loss)
            if turned[:m].sum() * FEW > steps.size:
                np.dot(steps.T, block, partial)
                _add(partial, sums[chunk])
            else:
                for row in np.flatnonzero(turned[:m]):
                    _add_few(steps[row], block[row], sums[chunk])


@loops.summed
def _to_steps(rotated, weight, fresh, below):
    """Weighted signs, less those of before, in place of a row; the squares of what it lacks, and how many."""
    loss, turned = rotated.dtype.type(0), np.int32(0)
    before = weight if not fresh else rotated.dtype.type(0)
    for j in range(len(rotated)):
        x = rotated[j]
        rest = abs(x) - rotated.dtype.type(1)
        loss += rest * rest
        step = (-weight if x < 0 else weight) - (-before if below[j] else before)
        turned += np.int32(step != 0)
        below[j] = x < 0
        rotated[j] = step
    return loss, turned


@loops.fused
def _add_few(steps, row, sums):
    for j in range(len(steps)):
        w = np.float64(steps[j])
        if w != 0:
            for c in range(len(row)):
                sums[j, c] += w * row[c]


@one_blas_thread
def sides(rows: Array, planes: Array) -> NDArray[np.uint8]:
    """As `reference.sides`, by a matrix product; what that leaves open, in order.

    With u half of eps, both that and the sum in order are off by less than d u |row| |plane|.
    """
    loops.check_shape("planes", planes, rows.shape[1], planes.shape[1])
    bits = np.empty((len(rows), planes.shape[1]), np.uint8)
    with np.errstate(over="ignore", invalid="ignore"):
        reach = np.sqrt((planes.astype(np.float64) ** 2).sum(axis=0).max(initial=0)).astype(rows.dtype)
    _sides(*loops.inputs(rows.dtype, rows, planes), reach, bits)
    return bits


@loops.parallel
def _sides(rows, planes, reach, bits):
    for block in prange(-(-len(rows) // ROWS)):
        start, stop = block * ROWS, min((block + 1) * ROWS, len(rows))
        scores = np.dot(rows[start:stop], planes)
        for i in range(start, stop):
            room = 2 * rows.shape[1] * np.finfo(rows.dtype).eps * reach * np.sqrt(_square(rows[i]))
            room += np.finfo(rows.dtype).tiny
            _compare(scores[i - start], rows.dtype.type(room), bits[i])
            for j in range(planes.shape[1]):
                if bits[i, j] > 1:
                    bits[i, j] = _in_order(rows, i, planes, j) >= 0


@loops.fused
def _compare(scores, room, bits):
    """1 or 0 as the score is above or below; 2 where it is not known, or not finite."""
    for j in range(len(scores)):
        bits[j] = 1 if scores[j] > room else 0 if scores[j] < -room else 2


@loops.serial
def _in_order(rows, i, planes, j):
    total = rows.dtype.type(0)
    for m in range(rows.shape[1]):
        total += rows[i, m] * planes[m, j]
    return total


@loops.summed
def _square(x):
    total = x.dtype.type(0)
    for c in range(len(x)):
        total += x[c] * x[c]
    return total


@loops.fused
def _add(partial, sums):
    for i in range(len(sums)):
        for j in range(sums.shape[1]):
            sums[i, j] += partial[i, j]


def _chunks(n: int, width: int) -> int:
    """Partial sums, of which all take less than the rows."""
    return max(1, min(CHUNKS, -(-n // ROWS), n // (4 * width)))


@loops.fused
def _bounds(n, chunk, n_chunks):
    """First row of a chunk, and of the next."""
    blocks = (n + ROWS - 1) // ROWS
    return blocks * chunk // n_chunks * ROWS, min(blocks * (chunk + 1) // n_chunks * ROWS, n)
