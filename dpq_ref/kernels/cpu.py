"""The primitives of `reference` for the CPU, as explicit loops compiled by Numba.

Each primitive is two functions. The public one checks shapes and indices at the door, allocates the result
and calls the private one, which is nothing but the loops. Sizes are run-time arguments and nothing compiles
at import, so the next process finds the compiled kernels in the cache.

The result does not depend on the number of threads, bit by bit: every thread owns the rows, the groups or the
columns that it writes. Where a sum runs over the batch as well, each block of ROWS rows has its own partial
sum, and the partial sums are added in the order of the batch.
"""

import numpy as np
from numba import prange
from numpy.typing import NDArray

from dpq_ref.kernels import loops, reference
from dpq_ref.kernels.clusters import code_distances, kmeans_sums, nearest_code, plus_plus, point_tiles
from dpq_ref.kernels.columns import column_norm, column_norm_apply, column_norm_backward
from dpq_ref.kernels.packed import (
    decode_packed,
    hamming,
    hamming_nearest,
    pack_codes,
    pack_prefix,
    sum_packed,
    unpack_codes,
    unpack_levels,
    unpack_prefix,
)
from dpq_ref.kernels.products import cross, multiply, sides, sign_products
from dpq_ref.kernels.recurrent import lstm, lstm_backward, lstm_cell, lstm_cell_backward
from dpq_ref.kernels.reference import (
    Array,
    Integers,
    batch_norm,
    batch_norm_apply,
    batch_norm_backward,
    canonical_code,
    check_range,
    dot_responses,
    dot_responses_backward,
    euclidean_responses,
    scalar_like,
    squared_norm,
    xp,
)
from dpq_ref.kernels.tiles import sx_backward, sx_codes, sx_statistics, vq_codes, vq_statistics

# Not below: from the modules beside this one; or from the reference, where NumPy is as fast, or for the parts
# of what `tiles` does without storing a response.
__all__ = [
    "batch_norm",
    "batch_norm_apply",
    "batch_norm_backward",
    "canonical_code",
    "check_range",
    "code_distances",
    "column_norm",
    "column_norm_apply",
    "column_norm_backward",
    "cross",
    "decode_packed",
    "dot_responses",
    "dot_responses_backward",
    "euclidean_responses",
    "hamming",
    "hamming_nearest",
    "kmeans_sums",
    "lstm",
    "lstm_backward",
    "lstm_cell",
    "lstm_cell_backward",
    "multiply",
    "nearest_code",
    "pack_codes",
    "pack_prefix",
    "plus_plus",
    "point_tiles",
    "scalar_like",
    "sides",
    "sign_products",
    "squared_norm",
    "sum_packed",
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

ROWS = 64  # rows of a block: the vector axis of the tiles, and the grain of the partial sums
PARTS = 16  # of rows that as many tokens have, in sums by id
SPARSE = 64  # numbers to an id, beyond which to sort ids takes less than to count through them
GROUPS = 8  # groups that a thread owns in sums over the batch

# --- Rows of a table ------------------------------------------------------------------------------------


def distinct(ids: Integers) -> tuple[Integers, Integers, Integers]:
    """As `reference.distinct`, by counting where the ids lie close enough together, without a sort."""
    low = int(ids.min()) if ids.size else 0
    span = int(ids.max()) - low + 1 if ids.size else 0
    if span > SPARSE * ids.size:
        return reference.distinct(ids)
    place, inverse = np.zeros(span, np.int64), np.empty(ids.shape, np.int64)
    rows, counts = (np.empty(min(span, ids.size), np.int64) for _ in range(2))
    n = _distinct(*loops.inputs(np.int64, ids.reshape(-1)), low, place, inverse.reshape(-1), rows, counts)
    return rows[:n].astype(ids.dtype), inverse, counts[:n].copy()


@loops.serial
def _distinct(ids, low, place, inverse, rows, counts):
    for i in range(ids.size):
        place[ids[i] - low] += 1
    n = 0
    for r in range(place.size):
        if place[r]:
            rows[n] = r + low
            counts[n] = place[r]
            place[r] = n
            n += 1
    for i in range(ids.size):
        inverse[i] = place[ids[i] - low]
    return n


def gather(table: Array, ids: Integers) -> Array:
    """As `reference.gather`."""
    check_range("ids", ids, len(table))
    loops.check_shape("ids", ids, ids.size)
    out = np.empty((ids.size, table.shape[1]), table.dtype)
    _gather(*loops.inputs(table.dtype, table), *loops.inputs(np.int64, ids), out)
    return out


@loops.parallel
def _gather(table, ids, out):
    for i in prange(ids.size):
        for c in range(table.shape[1]):
            out[i, c] = table[ids[i], c]


def scatter_add(ids: Integers, rows: Array, n_rows: int) -> Array:
    """As `reference.scatter_add`; every thread owns ids, whose sums stay in the cache."""
    check_range("ids", ids, n_rows)
    loops.check_shape("ids", ids, len(rows))
    (ids,) = loops.inputs(np.int64, ids)
    stops = np.cumsum(np.bincount(ids, minlength=n_rows))
    order = np.empty_like(ids)
    _by_id(ids, stops.copy(), order)
    out = np.zeros((n_rows, rows.shape[1]), rows.dtype)
    _scatter_add(*loops.inputs(np.int64, order, stops), *loops.inputs(rows.dtype, rows), out)
    return out


@loops.serial
def _by_id(ids, stops, order):
    for i in range(ids.size - 1, -1, -1):
        stops[ids[i]] -= 1
        order[stops[ids[i]]] = i


@loops.parallel
def _scatter_add(order, stops, rows, out):
    b = order.size
    for part in prange(PARTS):  # of about as many rows each, but an id is whole
        first = np.searchsorted(stops, b * part // PARTS, side="right")
        end = np.searchsorted(stops, b * (part + 1) // PARTS, side="right")
        for r in range(first, end):
            for i in order[stops[r - 1] if r else 0 : stops[r]]:
                for c in range(rows.shape[1]):
                    out[r, c] += rows[i, c]


# --- From responses to codes and back -------------------------------------------------------------------


def softmax(logits: Array, temperature: float) -> Array:
    """As `reference.softmax`."""
    probabilities = np.empty(logits.shape, logits.dtype)
    rate = scalar_like(logits, 1 / float(scalar_like(logits, temperature)))
    _softmax(*loops.inputs(logits.dtype, logits), rate, probabilities)
    return probabilities


@loops.parallel
def _softmax(logits, rate, probabilities):
    b, D, K = logits.shape
    for i in prange(b):
        for j in range(D):
            largest = logits[i, j, 0]
            for k in range(1, K):
                x = logits[i, j, k]
                largest = largest if largest >= x else x
            for k in range(K):
                probabilities[i, j, k] = loops.exp((logits[i, j, k] - largest) * rate)
            total = 0.0
            for k in range(K):
                total += probabilities[i, j, k]
            scale = logits.dtype.type(1 / total)
            for k in range(K):
                probabilities[i, j, k] *= scale


def softmax_backward(d_probabilities: Array, probabilities: Array, temperature: float) -> Array:
    """As `reference.softmax_backward`."""
    loops.check_shape("d_probabilities", d_probabilities, *probabilities.shape)
    d_logits = np.empty(probabilities.shape, probabilities.dtype)
    d, p = loops.inputs(probabilities.dtype, d_probabilities, probabilities)
    _softmax_backward(d, p, scalar_like(p, temperature), d_logits)
    return d_logits


@loops.parallel
def _softmax_backward(d, p, temperature, d_logits):
    b, D, K = p.shape
    for i in prange(b):
        for j in range(D):
            expected = p.dtype.type(0)
            for k in range(K):
                expected += p[i, j, k] * d[i, j, k]
            for k in range(K):
                d_logits[i, j, k] = p[i, j, k] * (d[i, j, k] - expected) / temperature


def argmax_code(responses: Array) -> Integers:
    """As `reference.argmax_code`; the inner loop runs along the groups, where nothing is carried over."""
    codes = np.zeros(responses.shape[:2], np.int32)
    _argmax_code(*loops.inputs(responses.dtype, responses), codes)
    return codes


@loops.parallel
def _argmax_code(responses, codes):
    b, D, K = responses.shape
    for i in prange(b):
        r = np.empty((K, D), responses.dtype)
        for j in range(D):
            for k in range(K):
                r[k, j] = responses[i, j, k]
        best = np.full(D, -np.inf, responses.dtype)
        for k in range(K):
            for j in range(D):
                larger = not r[k, j] <= best[j] and best[j] == best[j]  # the first NaN wins
                best[j] = r[k, j] if larger else best[j]
                codes[i, j] = k if larger else codes[i, j]


def decode(codes: Integers, values: Array) -> Array:
    """As `reference.decode`."""
    b, D = codes.shape
    s = values.shape[2]
    loops.check_book("values", values, D, s)
    check_range("codes", codes, values.shape[1])
    out = np.empty((b, D, s), values.dtype)
    _decode(*loops.inputs(np.int32, codes), *loops.inputs(values.dtype, values), out)
    return out


@loops.parallel
def _decode(codes, values, out):
    b, D = codes.shape
    for i in prange(b):
        for j in range(D):
            g = min(j, len(values) - 1)
            for c in range(values.shape[2]):
                out[i, j, c] = values[g, codes[i, j], c]


def sum_by_code(codes: Integers, rows: Array, n_codes: int) -> Array:
    """As `reference.sum_by_code`."""
    b, D, s = rows.shape
    loops.check_shape("codes", codes, b, D)
    check_range("codes", codes, n_codes)
    out = np.zeros((D, n_codes, s))
    _sum_by_code(*loops.inputs(np.int32, codes), *loops.inputs(rows.dtype, rows), out)
    return out.astype(rows.dtype)


@loops.parallel
def _sum_by_code(codes, rows, out):
    b, D, s = rows.shape
    for block in prange((D + GROUPS - 1) // GROUPS):
        start = block * GROUPS
        stop = min(start + GROUPS, D)
        for i in range(b):
            for j in range(start, stop):
                for c in range(s):
                    out[j, codes[i, j], c] += rows[i, j, c]


def codebook_errors(query: Array, keys: Array, codes: Integers, counts: Array) -> tuple[np.floating, Array]:
    """As `reference.codebook_errors`."""
    b, D, s = query.shape
    loops.check_book("keys", keys, D, s)
    loops.check_shape("codes", codes, b, D)
    loops.check_shape("counts", counts, b)
    check_range("codes", codes, keys.shape[1])
    total, pull = np.zeros(D), np.zeros((D, *keys.shape[1:]))
    (c,), arrays = loops.inputs(np.int32, codes), loops.inputs(query.dtype, query, keys, counts)
    _codebook_errors(c, *arrays, total, pull)
    return query.dtype.type(total.sum()), pull.astype(query.dtype)


@loops.parallel_summed
def _codebook_errors(codes, query, keys, counts, total, pull):
    b, D, s = query.shape
    for block in prange((D + GROUPS - 1) // GROUPS):
        for i in range(b):
            for j in range(block * GROUPS, min((block + 1) * GROUPS, D)):
                g, k = min(j, len(keys) - 1), codes[i, j]
                distance = query.dtype.type(0)
                for c in range(s):
                    residual = keys[g, k, c] - query[i, j, c]
                    distance += residual * residual
                    pull[j, k, c] += counts[i] * residual
                total[j] += np.float64(counts[i] * distance)


def count_codes(codes: Integers, counts: Array, n_codes: int) -> Array:
    """As `reference.count_codes`."""
    b, D = codes.shape
    loops.check_shape("counts", counts, b)
    check_range("codes", codes, n_codes)
    out = np.zeros((D, n_codes))
    _count_codes(*loops.inputs(np.int32, codes), *loops.inputs(np.float64, counts), out)
    return out.astype(counts.dtype)


@loops.serial
def _count_codes(codes, counts, out):
    b, D = codes.shape
    for i in range(b):
        for j in range(D):
            out[j, codes[i, j]] += counts[i]


def combine(coefficients: Array, basis: Array) -> Array:
    """As `reference.combine`; four rows of the basis at a time, added in the same order."""
    b, k = coefficients.shape
    loops.check_shape("basis", basis, k, basis.shape[1])
    out = np.zeros((b, basis.shape[1]), coefficients.dtype)
    _combine(*loops.inputs(coefficients.dtype, coefficients, basis), out)
    return out


@loops.parallel
def _combine(coefficients, basis, out):
    k, w = basis.shape
    for i in prange(len(out)):
        quads = k - k % 4
        for m in range(0, quads, 4):
            c0, c1 = coefficients[i, m], coefficients[i, m + 1]
            c2, c3 = coefficients[i, m + 2], coefficients[i, m + 3]
            for c in range(w):
                total = (out[i, c] + c0 * basis[m, c]) + c1 * basis[m + 1, c]
                out[i, c] = (total + c2 * basis[m + 2, c]) + c3 * basis[m + 3, c]
        for m in range(quads, k):
            for c in range(w):
                out[i, c] += coefficients[i, m] * basis[m, c]


# --- Codes of which a row is the sum --------------------------------------------------------------------


def beam_step(
    codes: Integers, scores: Array, linear: Array, pairs: Array, width: int
) -> tuple[Integers, Array]:
    """As `reference.beam_step`."""
    b, B, m = codes.shape
    K = linear.shape[1]
    loops.check_shape("scores", scores, b, B)
    loops.check_shape("linear", linear, b, K)
    loops.check_shape("pairs", pairs, m, K, K)
    check_range("codes", codes, K)
    width = min(width, B * K)
    longer, best = np.empty((b, width, m + 1), np.int32), np.empty((b, width), linear.dtype)
    floats = loops.inputs(linear.dtype, scores, linear, pairs)
    _beam_step(*loops.inputs(np.int32, codes), *floats, longer, best)
    return longer, best


@loops.parallel
def _beam_step(codes, scores, linear, pairs, longer, best):
    b, B, m = codes.shape
    K = linear.shape[1]
    width = best.shape[1]
    for i in prange(b):
        costs = np.empty(K, linear.dtype)
        place = np.empty(width, np.int64)
        found = 0
        for beginning in range(B):
            score = scores[i, beginning]
            for k in range(K):
                costs[k] = score + linear[i, k]
            for c in range(m):
                code = codes[i, beginning, c]
                for k in range(K):
                    costs[k] += pairs[c, code, k]
            for k in range(K):
                if found == width and not costs[k] < best[i, width - 1]:
                    continue
                t = min(found, width - 1)  # insert; what is worse moves on by one
                found = min(found + 1, width)
                while t > 0 and best[i, t - 1] > costs[k]:
                    best[i, t] = best[i, t - 1]
                    place[t] = place[t - 1]
                    t -= 1
                best[i, t] = costs[k]
                place[t] = beginning * K + k
        for t in range(width):
            for c in range(m):
                longer[i, t, c] = codes[i, place[t] // K, c]
            longer[i, t, m] = place[t] % K


def conditional_modes(codes: Integers, linear: Array, pairs: Array, sweeps: int) -> tuple[Integers, Array]:
    """As `reference.conditional_modes`, ROWS rows at a time, which share the pairs of a code in the cache."""
    b, M = codes.shape
    K = linear.shape[2]
    loops.check_shape("linear", linear, b, M, K)
    loops.check_shape("pairs", pairs, M, K, M, K)
    check_range("codes", codes, K)
    codes, scores = codes.astype(np.int32, order="C"), np.empty(b, linear.dtype)
    _conditional_modes(*loops.inputs(linear.dtype, linear, pairs), int(sweeps), codes, scores)
    return codes, scores


@loops.parallel
def _conditional_modes(linear, pairs, sweeps, codes, scores):
    b, M, K = linear.shape
    for block in prange((b + ROWS - 1) // ROWS):
        costs = np.empty(K, linear.dtype)
        for _ in range(sweeps):
            for m in range(M):
                for i in range(block * ROWS, min((block + 1) * ROWS, b)):
                    for k in range(K):
                        costs[k] = linear[i, m, k]
                    for other in range(M):
                        if other != m:
                            code = codes[i, other]
                            for k in range(K):
                                costs[k] += pairs[other, code, m, k]
                    smallest = 0
                    for k in range(1, K):
                        if costs[k] < costs[smallest]:
                            smallest = k
                    codes[i, m] = smallest
        for i in range(block * ROWS, min((block + 1) * ROWS, b)):
            score = linear.dtype.type(0)
            for m in range(M):
                score += linear[i, m, codes[i, m]]
                for other in range(m):
                    score += pairs[other, codes[i, other], m, codes[i, m]]
            scores[i] = score


# --- Loss ---------------------------------------------------------------------------------------------


def cross_entropy(
    logits: Array, labels: Integers, weights: Array, smoothing: float, out: Array | None = None
) -> tuple[Array, Array]:
    """As `reference.cross_entropy`, row by row: a row stays in the cache from its maximum on."""
    b, C = logits.shape
    loops.check_shape("labels", labels, b)
    loops.check_shape("weights", weights, b)
    check_range("labels", labels, C)
    losses, out = np.empty(b, logits.dtype), np.empty((b, C), logits.dtype) if out is None else out
    loops.check_shape("out", out, b, C)
    hit, rest = scalar_like(logits, 1 - smoothing), scalar_like(logits, smoothing / C if C else 0)
    largest = logits.max(axis=1, initial=-np.inf)
    inputs = loops.inputs(np.int64, labels) + loops.inputs(logits.dtype, weights, largest)
    if out is not logits:
        out[:] = logits
    _cross_entropy(*inputs, hit, rest, losses, out)
    return losses, out


@loops.summed
def _sum(x):
    """Sum of a row in vector registers, hence in another order than theirs."""
    total = x.dtype.type(0)
    for k in range(x.size):
        total += x[k]
    return total


@loops.parallel
def _cross_entropy(labels, weights, largest, hit, rest, losses, rows):
    """From logits to gradients in one array: two might overlap, and then no loop is vectorised."""
    b, C = rows.shape
    for i in prange(b):
        top = largest[i]
        loss = -hit * (rows[i, labels[i]] - top)
        if rest > 0:
            loss -= rest * (_sum(rows[i]) - C * np.float64(top))
        for k in range(C):
            rows[i, k] = loops.exp(rows[i, k] - top)
        total = _sum(rows[i])
        losses[i] = np.log(total) + loss
        scale, shift = rows.dtype.type(weights[i] / total), rest * weights[i]
        for k in range(C):
            rows[i, k] = rows[i, k] * scale - shift
        rows[i, labels[i]] -= hit * weights[i]


# --- Pooling and the optimizer --------------------------------------------------------------------------


def mean_pool(table: Array, ids: Integers, mask: NDArray[np.bool_]) -> Array:
    """As `reference.mean_pool`; the rows of a text are added up where they stand."""
    check_range("ids", ids, len(table))
    b, t = ids.shape
    loops.check_shape("mask", mask, b, t)
    pooled = np.empty((b, table.shape[1]), table.dtype)
    _mean_pool(
        *loops.inputs(table.dtype, table), *loops.inputs(np.int64, ids), *loops.inputs(np.bool_, mask), pooled
    )
    return pooled


@loops.parallel
def _mean_pool(table, ids, mask, pooled):
    """Four rows at a time: so many reads from far memory are under way at once, and one sum is widened."""
    b, t = ids.shape
    w = table.shape[1]
    for i in prange(b):
        total = np.zeros(w)
        kept = np.empty(t, np.int64)
        length = 0
        for u in range(t):
            if mask[i, u]:
                kept[length] = ids[i, u]
                length += 1
        quads = length - length % 4
        for u in range(0, quads, 4):
            r0, r1, r2, r3 = kept[u], kept[u + 1], kept[u + 2], kept[u + 3]
            for c in range(w):
                total[c] += np.float64((table[r0, c] + table[r1, c]) + (table[r2, c] + table[r3, c]))
        for u in range(quads, length):
            row = kept[u]
            for c in range(w):
                total[c] += table[row, c]
        for c in range(w):
            pooled[i, c] = total[c] / max(length, 1)


def mean_pool_backward(d_pooled: Array, ids: Integers, mask: NDArray[np.bool_], n_rows: int) -> Array:
    """As `reference.mean_pool_backward`; every thread owns rows, about as many tokens to each."""
    check_range("ids", ids, n_rows)
    b, t = ids.shape
    loops.check_shape("mask", mask, b, t)
    loops.check_shape("d_pooled", d_pooled, b, d_pooled.shape[1])
    length = mask.sum(axis=1)
    starts, texts = np.zeros(n_rows + 1, np.int64), np.empty(length.sum(), np.int64)
    _texts_of_rows(*loops.inputs(np.int64, ids), *loops.inputs(np.bool_, mask), starts, texts)
    bounds = np.searchsorted(starts[:-1], np.linspace(0, texts.size, PARTS + 1)[1:-1])
    out = np.empty((n_rows, d_pooled.shape[1]), d_pooled.dtype)
    share = d_pooled / np.maximum(length, 1).astype(d_pooled.dtype)[:, None]
    _mean_pool_backward(*loops.inputs(out.dtype, share), starts, texts, np.r_[0, bounds, n_rows], out)
    return out


@loops.serial
def _texts_of_rows(ids, mask, starts, texts):
    """texts[starts[r] : starts[r + 1]]: those that row r is kept in, in their order."""
    b, t = ids.shape
    for i in range(b):
        for u in range(t):
            if mask[i, u]:
                starts[ids[i, u] + 1] += 1
    for r in range(starts.size - 1):
        starts[r + 1] += starts[r]
    end = starts.copy()
    for i in range(b):
        for u in range(t):
            if mask[i, u]:
                texts[end[ids[i, u]]] = i
                end[ids[i, u]] += 1


@loops.parallel
def _mean_pool_backward(share, starts, texts, bounds, out):
    for chunk in prange(bounds.size - 1):
        for r in range(bounds[chunk], bounds[chunk + 1]):
            for c in range(out.shape[1]):
                out[r, c] = 0
            stop = starts[r + 1]
            quads = stop - (stop - starts[r]) % 4
            for k in range(starts[r], quads, 4):  # added in their order, with one way to the sum and back
                i0, i1, i2, i3 = texts[k], texts[k + 1], texts[k + 2], texts[k + 3]
                for c in range(out.shape[1]):
                    two = (out[r, c] + share[i0, c]) + share[i1, c]
                    out[r, c] = (two + share[i2, c]) + share[i3, c]
            for k in range(quads, stop):
                i = texts[k]
                for c in range(out.shape[1]):
                    out[r, c] += share[i, c]


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
    (n, w), every = parameter.shape, rows is None
    rows = np.empty(0, np.int64) if rows is None else rows
    check_range("rows", rows, n)
    loops.check_shape("gradient", gradient, n if every else rows.size, w)
    if out is None:
        new = np.empty((3, n, w), parameter.dtype)
        out = new[0], new[1], new[2]
    for name, old, to in zip(("parameter", "first", "second"), (parameter, first, second), out, strict=True):
        loops.check_shape(name, old, n, w)
        loops.check_shape("out", to, n, w)
        if to is not old:
            to[:] = old
    rate, unbias = learning_rate / (1 - beta1**step), 1 / (1 - beta2**step)
    numbers = np.array([rate, beta1, 1 - beta1, beta2, 1 - beta2, unbias, epsilon]).astype(parameter.dtype)
    arrays = *loops.inputs(np.int64, rows), *loops.inputs(parameter.dtype, gradient)
    _adam(*arrays, every, *numbers, *out)
    return out


@loops.parallel
def _adam(rows, gradient, every, rate, beta1, rest1, beta2, rest2, unbias, epsilon, parameter, first, second):
    for i in prange(len(gradient)):
        r = np.int64(i) if every else rows[i]
        for c in range(gradient.shape[1]):
            m = beta1 * first[r, c] + rest1 * gradient[i, c]
            v = beta2 * second[r, c] + rest2 * (gradient[i, c] * gradient[i, c])
            parameter[r, c] -= rate * m / (np.sqrt(v * unbias) + epsilon)
            first[r, c] = m
            second[r, c] = v
