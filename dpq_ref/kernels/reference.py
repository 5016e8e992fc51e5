"""Every primitive in plain NumPy: the definition that the other kernel sets must equal.

Read this file from top to bottom and you have read all the arithmetic of Differentiable Product
Quantization (Chen, Li, Sun, ICML 2020; "the paper"). Each backward stands right below its forward.

Letters: `b` rows of the batch, `D` groups, `K` codes per group, `s` width of a group, `n` rows of a table,
`w` width of a row. Arrays are float32 or float64; codes and ids are integers. A shared codebook has 1 in
place of D in its first axis. Nothing here changes its inputs or keeps state.

Two habits explain the loops:

* Responses add up one coordinate after the other, in order, never through a matrix product. So the response
  of a row does not depend on the rows beside it, and a code is the same in any batch, bit by bit.
* Moments and sums by code run in float64 and are rounded once; `scatter_add` adds in the order of the batch.
"""

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.floating]
Integers = NDArray[np.integer]

xp = np
BLOCK = 1 << 22  # entries of the largest array that a blocked loop makes
WIDTH = 128  # points of a tile
CENTRE = 1024  # points that the centre of all is taken from, about


def check_range(name: str, indices: Integers, size: int) -> None:
    """Raise IndexError unless all indices lie in [0, size)."""
    if indices.size and (indices.min() < 0 or indices.max() >= size):
        bad = indices.min() if indices.min() < 0 else indices.max()
        raise IndexError(f"{name} must lie in [0, {size}), got {bad}")


# --- Rows of a table ------------------------------------------------------------------------------------


def distinct(ids: Integers) -> tuple[Integers, Integers, Integers]:
    """Distinct ids of a batch, so that a repeated id is computed once.

    Parameters
    ----------
    ids : (b,) integers

    Returns
    -------
    rows : (u,) sorted distinct ids
    inverse : (b,) with rows[inverse] == ids
    counts : (u,) how often each comes
    """
    rows, inverse, counts = np.unique(ids, return_inverse=True, return_counts=True)
    return rows, inverse.reshape(ids.shape), counts


def gather(table: Array, ids: Integers) -> Array:
    """Rows of a table: out[i] = table[ids[i]], (n, w), (b,) -> (b, w)."""
    check_range("ids", ids, len(table))
    return table[ids]


def scatter_add(ids: Integers, rows: Array, n_rows: int) -> Array:
    """Sum of the rows of each id, the backward of `gather`: out[r] = sum of rows[i] with ids[i] = r.

    Parameters
    ----------
    ids : (b,) integers in [0, n_rows)
    rows : (b, w)
    n_rows : int

    Returns
    -------
    (n_rows, w), added up in the order of the batch
    """
    check_range("ids", ids, n_rows)
    out = np.zeros((n_rows, rows.shape[1]), rows.dtype)
    np.add.at(out, ids, rows)
    return out


# --- Responses: how well each key answers a query (paper, section 2) -----------------------------------


def dot_responses(query: Array, keys: Array) -> Array:
    """Dot products of queries and keys, r[i,j,k] = <q[i,j], K[j,k]> (DPQ-SX).

    Parameters
    ----------
    query : (b, D, s)
    keys : (D or 1, K, s)

    Returns
    -------
    (b, D, K)
    """
    (b, D, s), K = query.shape, keys.shape[1]
    responses = np.zeros((b, D, K), query.dtype)
    for c in range(s):
        responses += query[:, :, None, c] * keys[None, :, :, c]
    return responses


def dot_responses_backward(d_responses: Array, query: Array, keys: Array) -> tuple[Array, Array]:
    """Gradients of `dot_responses`.

    d_q[i,j] = sum_k d_r[i,j,k] K[j,k]; d_K[j,k] = sum_i d_r[i,j,k] q[i,j], summed over j when shared.

    Returns
    -------
    d_query : (b, D, s)
    d_keys : (D or 1, K, s)
    """
    d_r = d_responses.swapaxes(0, 1)  # (D, b, K)
    q = query.swapaxes(0, 1)  # (D, b, s)
    d_query = np.matmul(d_r, keys).swapaxes(0, 1)
    d_keys = np.matmul(d_r.swapaxes(1, 2), q)
    if len(keys) == 1:
        d_keys = d_keys.sum(axis=0, keepdims=True)
    return np.ascontiguousarray(d_query), d_keys


def euclidean_responses(query: Array, keys: Array) -> Array:
    """Negative squared distances of queries and keys, r[i,j,k] = -|q[i,j] - K[j,k]|^2 (DPQ-VQ).

    By direct differences: |q|^2 - 2 q.k + |k|^2 loses digits, and with them codes, once data is off centre.
    It has no backward: DPQ-VQ passes its gradient straight through.

    Parameters
    ----------
    query : (b, D, s)
    keys : (D or 1, K, s)

    Returns
    -------
    (b, D, K)
    """
    (b, D, s), K = query.shape, keys.shape[1]
    responses = np.zeros((b, D, K), query.dtype)
    for c in range(s):
        difference = query[:, :, None, c] - keys[None, :, :, c]
        responses -= difference * difference
    return responses


# --- Batch norm of the responses (released code of the paper) ---------------------------------------------


def batch_norm(responses: Array, counts: Array, epsilon: float) -> tuple[Array, Array, Array]:
    """Batch norm with one mean and one variance per code, pooled over batch and groups; no scale, no shift.

    With N = D * sum(counts): mu[k] = sum_ij counts[i] r[i,j,k] / N, var[k] likewise (biased, two passes), and
    out[i,j,k] = (r[i,j,k] - mu[k]) / sqrt(var[k] + epsilon).

    Parameters
    ----------
    responses : (b, D, K)
    counts : (b,)
        How often each row comes in the batch. A row with count 0 (padding) is normalised
        with statistics that it does not enter. If all are 0: mean 0 and variance 1.
    epsilon : float

    Returns
    -------
    normalized : (b, D, K)
    mean, variance : (K,)
    """
    total = responses.shape[1] * counts.sum(dtype=np.float64)
    if total == 0:
        mean = np.zeros(responses.shape[2], responses.dtype)
        variance = np.ones_like(mean)
    else:
        weights = counts.astype(np.float64) / total
        mean = np.einsum("i,ijk->k", weights, responses).astype(responses.dtype)
        centred = responses - mean
        variance = np.einsum("i,ijk,ijk->k", weights, centred, centred).astype(responses.dtype)
    return batch_norm_apply(responses, mean, variance, epsilon), mean, variance


def batch_norm_backward(
    d_normalized: Array, normalized: Array, variance: Array, counts: Array, epsilon: float
) -> Array:
    """Gradient of `batch_norm`, its batch statistics differentiated.

    d_normalized[i] is the sum over the counts[i] tokens of row i, and so is the result:
    d_r = (d - counts[i] * (m1[k] + out[i,j,k] * m2[k])) / sqrt(var[k] + epsilon),
    where m1 = sum_ij d / N and m2 = sum_ij d * out / N.

    Parameters
    ----------
    d_normalized, normalized : (b, D, K)
    variance : (K,)
    counts : (b,)
    epsilon : float

    Returns
    -------
    (b, D, K)
    """
    deviation = np.sqrt(variance + scalar_like(variance, epsilon))
    total = normalized.shape[1] * counts.sum(dtype=np.float64)
    if total == 0:
        return d_normalized / deviation
    m1 = (d_normalized.sum(axis=(0, 1), dtype=np.float64) / total).astype(variance.dtype)
    product = np.einsum("ijk,ijk->k", d_normalized, normalized, dtype=np.float64)
    m2 = (product / total).astype(variance.dtype)
    weights = counts.astype(variance.dtype)[:, None, None]
    return (d_normalized - weights * (m1 + normalized * m2)) / deviation


def batch_norm_apply(responses: Array, mean: Array, variance: Array, epsilon: float) -> Array:
    """Normalise with given statistics: (r[i,j,k] - mean[k]) / sqrt(variance[k] + epsilon)."""
    return (responses - mean) / np.sqrt(variance + scalar_like(variance, epsilon))


def scalar_like(like: Array, value: float) -> np.floating:
    """Round a Python float to the dtype of an array, so that every kernel set adds the same number."""
    return like.dtype.type(value)


# --- From responses to codes and back ---------------------------------------------------------------------


def softmax(logits: Array, temperature: float) -> Array:
    """Soft assignment p[i,j,k] = exp(x[i,j,k] / tau) / sum_l exp(x[i,j,l] / tau), (b, D, K) -> (b, D, K)."""
    scaled = (logits - logits.max(axis=2, keepdims=True)) / scalar_like(logits, temperature)
    exponentials = np.exp(scaled)
    return exponentials / exponentials.sum(axis=2, keepdims=True)


def softmax_backward(d_probabilities: Array, probabilities: Array, temperature: float) -> Array:
    """Gradient of `softmax`: d_x = p (d_p - sum_l p[l] d_p[l]) / tau, (b, D, K) -> (b, D, K)."""
    expected = (probabilities * d_probabilities).sum(axis=2, keepdims=True)
    return probabilities * (d_probabilities - expected) / scalar_like(probabilities, temperature)


def argmax_code(responses: Array) -> Integers:
    """Code with the largest response, (b, D, K) -> (b, D) int32; ties to the smallest k, NaN is largest."""
    return responses.argmax(axis=2).astype(np.int32)


Statistics = tuple[Array, Array]  # mean (K,), variance (K,)


def sx_statistics(query: Array, keys: Array, counts: Array) -> Statistics:
    """Mean and variance of the responses of DPQ-SX, as `batch_norm` takes them.

    Parameters
    ----------
    query : (b, D, s)
    keys : (D or 1, K, s)
    counts : (b,)

    Returns
    -------
    mean, variance : (K,)
    """
    _, mean, variance = batch_norm(dot_responses(query, keys), counts, 1.0)
    return mean, variance


def sx_codes(
    query: Array, keys: Array, statistics: Statistics | None, epsilon: float, noise: Array | None = None
) -> Integers:
    """Codes of DPQ-SX: the largest response, after batch norm with given statistics where there are any.

    Parameters
    ----------
    query : (b, D, s)
    keys : (D or 1, K, s)
    statistics : mean and variance (K,), or None for no batch norm
    epsilon : float
    noise : (b, D, K), optional
        Added to the responses.

    Returns
    -------
    (b, D) int32, ties to the smallest k
    """
    logits = dot_responses(query, keys)
    if statistics is not None:
        logits = batch_norm_apply(logits, *statistics, epsilon)
    return argmax_code(logits if noise is None else logits + noise)


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
    """Gradients of queries and keys of DPQ-SX: of the values' mean by the softmax of the responses.

    p = softmax(normalised responses + noise); d_p[i,j,k] = <d_picked[i,j], V[j,k]>; from there back through
    softmax, batch norm and dot product.

    Parameters
    ----------
    d_picked : (b, D, s_v)
        Gradient of the picked values.
    query : (b, D, s)
    keys, values : (D or 1, K, s), (D or 1, K, s_v)
    counts : (b,)
    statistics : mean and variance (K,) of this batch, or None for no batch norm
    epsilon, temperature : float
    noise : (b, D, K), optional

    Returns
    -------
    d_query : (b, D, s)
    d_keys : (D or 1, K, s)
    """
    logits = dot_responses(query, keys)
    if statistics is not None:
        logits = batch_norm_apply(logits, *statistics, epsilon)
    probabilities = softmax(logits if noise is None else logits + noise, temperature)
    d = softmax_backward(dot_responses(d_picked, values), probabilities, temperature)
    if statistics is not None:
        d = batch_norm_backward(d, logits, statistics[1], counts, epsilon)
    return dot_responses_backward(d, query, keys)


def vq_statistics(query: Array, keys: Array, counts: Array) -> Statistics:
    """Mean and variance of the responses of DPQ-VQ, as `sx_statistics`."""
    _, mean, variance = batch_norm(euclidean_responses(query, keys), counts, 1.0)
    return mean, variance


def vq_codes(query: Array, keys: Array, statistics: Statistics, epsilon: float) -> Integers:
    """Codes of DPQ-VQ: the largest response after batch norm with given statistics.

    Without batch norm it is the nearest key, `nearest_code`.

    Parameters
    ----------
    query : (b, D, s)
    keys : (D or 1, K, s)
    statistics : mean and variance (K,)
    epsilon : float

    Returns
    -------
    (b, D) int32, ties to the smallest k
    """
    return argmax_code(batch_norm_apply(euclidean_responses(query, keys), *statistics, epsilon))


def nearest_code(query: Array, keys: Array) -> Integers:
    """Nearest key of each query, block by block: never more than BLOCK distances at a time.

    Parameters
    ----------
    query : (b, D, s)
    keys : (D or 1, K, s)

    Returns
    -------
    (b, D) int32, ties to the smallest k
    """
    b, D, _ = query.shape
    codes = np.empty((b, D), np.int32)
    step = max(1, BLOCK // (D * keys.shape[1]))
    for i in range(0, b, step):
        codes[i : i + step] = argmax_code(euclidean_responses(query[i : i + step], keys))
    return codes


def code_distances(query: Array, keys: Array, codes: Integers) -> Array:
    """Squared distances of queries to the keys of their codes, by direct differences.

    Parameters
    ----------
    query : (b, D, s)
    keys : (D or 1, K, s)
    codes : (b, D) integers in [0, K)

    Returns
    -------
    (b, D)
    """
    distances = np.zeros(codes.shape, query.dtype)
    for difference in np.moveaxis(query - decode(codes, keys), 2, 0):
        distances += difference * difference
    return distances


def decode(codes: Integers, values: Array) -> Array:
    """Values of codes, out[i,j] = V[j, codes[i,j]].

    Parameters
    ----------
    codes : (b, D) integers in [0, K)
    values : (D or 1, K, s)

    Returns
    -------
    (b, D, s)
    """
    check_range("codes", codes, values.shape[1])
    groups = np.arange(codes.shape[1]) if len(values) > 1 else 0
    return values[groups, codes]


def sum_by_code(codes: Integers, rows: Array, n_codes: int) -> Array:
    """Sum of the rows of each code, the backward of `decode` and the update step of k-means.

    Parameters
    ----------
    codes : (b, D) integers in [0, n_codes)
    rows : (b, D, s)
    n_codes : int

    Returns
    -------
    (D, K, s): out[j,k] = sum of rows[i,j] with codes[i,j] = k
    """
    check_range("codes", codes, n_codes)
    _, D, s = rows.shape
    out = np.zeros((D, n_codes, s))
    np.add.at(out, (np.arange(D), codes), rows)
    return out.astype(rows.dtype)


def codebook_errors(query: Array, keys: Array, codes: Integers, counts: Array) -> tuple[np.floating, Array]:
    """Squared distances of the queries from the keys that they picked, and half the gradient of their sum.

    Parameters
    ----------
    query : (b, D, s)
    keys : (D or 1, K, s)
    codes : (b, D) integers in [0, K)
    counts : (b,)

    Returns
    -------
    total : scalar, sum of counts[i] |keys[j,k] - query[i,j]|^2 with k = codes[i,j]
    pull : (D, K, s): pull[j,k] = sum of counts[i] (keys[j,k] - query[i,j]) with codes[i,j] = k
    """
    residual = decode(codes, keys) - query
    weighted = counts[:, None, None] * residual
    total = (weighted * residual).sum(dtype=np.float64)
    return query.dtype.type(total), sum_by_code(codes, weighted, keys.shape[1])


def count_codes(codes: Integers, counts: Array, n_codes: int) -> Array:
    """Weight of each code: out[j,k] = sum of counts[i] with codes[i,j] = k, (b, D), (b,) -> (D, K)."""
    check_range("codes", codes, n_codes)
    weights = np.broadcast_to(counts[:, None], codes.shape)
    return sum_by_code(codes, weights[:, :, None], n_codes)[:, :, 0]


def combine(coefficients: Array, basis: Array) -> Array:
    """Combine the rows of a basis, out[i] = sum over m of coefficients[i,m] basis[m], m in order.

    A matrix product whose rows do not depend on the rows beside them, bit by bit: a row of a table is the
    same in any batch.

    Parameters
    ----------
    coefficients : (b, k)
    basis : (k, w)

    Returns
    -------
    (b, w)
    """
    out = np.zeros((len(coefficients), basis.shape[1]), coefficients.dtype)
    for m, row in enumerate(basis):
        out += coefficients[:, m, None] * row
    return out


# --- k-means in all groups at once ------------------------------------------------------------------------


def point_tiles(points: Array) -> tuple[Array, Array]:
    """Points as a step of k-means on the CPU reads them again and again: transposed, about their centre.

    Parameters
    ----------
    points : (n, D, s)

    Returns
    -------
    tiles : (ceil(n / WIDTH), D, s + 1, WIDTH)
        tiles[t,j,c,i] = points[WIDTH t + i,j,c] - centre[j,c], 0 beyond n; tiles[t,j,s] = 1.
    centre : (D, s)
        The mean of about CENTRE points, evenly spaced.
    """
    n, D, s = points.shape
    centre = points[:: max(1, n // CENTRE)].mean(axis=0, dtype=np.float64).astype(points.dtype)
    rows = np.zeros((-(-n // WIDTH) * WIDTH, D, s + 1), points.dtype)
    rows[:n, :, :s] = points - centre
    rows[:, :, s] = 1
    return np.ascontiguousarray(rows.reshape(-1, WIDTH, D, s + 1).transpose(0, 2, 3, 1)), centre


def kmeans_sums(
    points: Array, keys: Array, weights: Array, tiles: tuple[Array, Array] | None = None
) -> tuple[Integers, Array, Array]:
    """One step of Lloyd's: the nearest key of each point, and the sums that its means are made of.

    Parameters
    ----------
    points : (n, D, s)
    keys : (D, K, s)
    weights : (n,)
    tiles : what `point_tiles` makes of the points, optional
        To save time where the same points come again. Not needed here.

    Returns
    -------
    codes : (n, D) int32
    sums : (D, K, s) float64
        sums[j,k] = sum of weights[i] points[i,j] with codes[i,j] = k
    counts : (D, K) float64
        Likewise of the weights.
    """
    codes = nearest_code(points, keys)
    sums = np.zeros(keys.shape)
    step = max(1, BLOCK // points[:1].size) if len(points) else 1
    for i in range(0, len(points), step):
        weighted = weights[i : i + step, None, None].astype(np.float64) * points[i : i + step]
        sums += sum_by_code(codes[i : i + step], weighted, keys.shape[1])
    return codes, sums, count_codes(codes, weights.astype(np.float64), keys.shape[1])


def plus_plus(points: Array, weights: Array, uniforms: Array) -> Integers:
    """Rows to start k-means from: each next is drawn by its weighted squared distance to those there are.

    Of several draws the one that lowers the sum of these most is kept (Arthur, Vassilvitskii 2007, section
    7). The first is drawn by weight; where all weighted distances are 0, evenly.

    Parameters
    ----------
    points : (n, D, s)
    weights : (n,)
    uniforms : (D, K, trials) in [0, 1)
        What draws are made of.

    Returns
    -------
    (D, K) int32
    """
    n, D, _ = points.shape
    rows = np.empty(uniforms.shape[:2], np.int32)
    for j, group in enumerate(points.swapaxes(0, 1)):
        nearest = np.ones(n, points.dtype)
        for k, draws in enumerate(uniforms[j]):
            cumulative = np.cumsum(weights * nearest, dtype=np.float64)
            drawn = np.searchsorted(cumulative, draws * cumulative[-1], side="right")
            drawn = np.minimum(drawn if cumulative[-1] > 0 else (draws * n).astype(int), n - 1)
            distances = -euclidean_responses(group[:, None], group[None, drawn])[:, 0].T  # (trials, n)
            if k:
                distances = np.minimum(nearest, distances)
            best = (distances @ weights.astype(np.float64)).argmin() if k else 0
            rows[j, k], nearest = drawn[best], distances[best]
    return rows


def multiply(rows: Array, matrix: Array) -> Array:
    """Matrix product, (n, p), (p, q) -> (n, q); `combine` is one whose rows do not depend on others."""
    return rows @ matrix


def cross(left: Array, right: Array, weights: Array) -> Array:
    """Weighted sum over rows, sum_i weights[i] left[i]^T right[i].

    Parameters
    ----------
    left : (n, p)
    right : (n, q)
    weights : (n,)

    Returns
    -------
    (p, q) float64
    """
    return (weights[:, None] * left).T.astype(np.float64) @ right


def sign_products(
    rows: Array,
    rotation: Array,
    weights: Array,
    below: NDArray[np.bool_] | None = None,
    product: Array | None = None,
) -> tuple[Array, np.float64]:
    """Rows times the signs of what a rotation makes of them: a step of iterative quantization.

    Parameters
    ----------
    rows : (n, p)
    rotation : (p, q)
    weights : (n,)
    below : (n, q) bool, optional
        Is made to tell where rows @ rotation < 0.
    product : (p, q) float64, optional
        That of the signs that `below` comes with: few change from step to step. Not needed here.

    Returns
    -------
    product : (p, q) float64
        sum_i weights[i] rows[i]^T b[i], b = 1 where rows @ rotation >= 0, else -1.
    loss : float64
        sum_i weights[i] |b[i] - rows[i] rotation|^2
    """
    rotated = rows @ rotation
    signs = np.where(rotated < 0, -1, 1).astype(rows.dtype)
    if below is not None:
        below[:] = rotated < 0
    rest = np.square(signs - rotated).sum(axis=1, dtype=np.float64)
    return cross(rows, signs, weights), np.dot(weights.astype(np.float64), rest)


def sides(rows: Array, planes: Array) -> NDArray[np.uint8]:
    """On which side of planes through 0 rows lie, (n, d), (d, c) -> (n, c): 1 where `combine` is >= 0."""
    return (combine(rows, planes) >= 0).astype(np.uint8)


# --- Codes of which a row is the sum ------------------------------------------------------------------------
#
# |x - sum_m C_m[k_m]|^2 = |x|^2 + sum_m linear[m,k_m] + sum_{l<m} pairs[l,k_l,m,k_m], where
# linear[m,k] = |C_m[k]|^2 - 2 <x, C_m[k]> and pairs[l,k,m,j] = 2 <C_l[k], C_m[j]>.


def beam_step(
    codes: Integers, scores: Array, linear: Array, pairs: Array, width: int
) -> tuple[Integers, Array]:
    """One code more for each of the best beginnings of a row, and of all that follow the best again.

    Parameters
    ----------
    codes : (b, B, m) integers in [0, K)
        B beginnings of m codes.
    scores : (b, B)
        What they have of the sum above.
    linear : (b, K)
        Of the next code.
    pairs : (m, K, K)
        pairs[l,a,k] of code l being a and the next k.
    width : int

    Returns
    -------
    codes : (b, min(width, B K), m + 1) int32
    scores : (b, min(width, B K)), rising; ties to the smaller beginning, then to the smaller code
    """
    check_range("codes", codes, linear.shape[1])
    costs = scores[:, :, None] + linear[:, None]
    for pair, column in zip(pairs, np.moveaxis(codes, 2, 0), strict=True):
        costs += pair[column]
    costs = costs.reshape(len(codes), scores.shape[1] * linear.shape[1])
    best = np.argsort(costs, axis=1, kind="stable")[:, :width]
    beginning, code = np.divmod(best, linear.shape[1])
    begun = np.take_along_axis(codes, beginning[:, :, None], axis=1)
    longer = np.concatenate([begun, code[:, :, None]], axis=2).astype(np.int32)
    return longer, np.take_along_axis(costs, best, axis=1)


def conditional_modes(codes: Integers, linear: Array, pairs: Array, sweeps: int) -> tuple[Integers, Array]:
    """Improve codes one after the other, each the best beside all others (Besag 1986).

    Parameters
    ----------
    codes : (b, M) integers in [0, K)
    linear : (b, M, K)
    pairs : (M, K, M, K)
    sweeps : int
        How often all codes have their turn.

    Returns
    -------
    codes : (b, M) int32, ties to the smallest k
    scores : (b,), the sum above
    """
    b, M, K = linear.shape
    check_range("codes", codes, K)
    codes = codes.astype(np.int32)
    for _ in range(sweeps):
        for m in range(M):
            costs = linear[:, m].copy()
            for other in range(M):
                if other != m:
                    costs += pairs[other, codes[:, other], m]
            codes[:, m] = costs.argmin(axis=1)
    scores = np.zeros(b, linear.dtype)
    for m in range(M):
        scores += linear[np.arange(b), m, codes[:, m]]
        for other in range(m):
            scores += pairs[other, codes[:, other], m, codes[:, m]]
    return codes, scores


# --- Codes as bits ------------------------------------------------------------------------------------------


def pack_codes(codes: Integers, n_bits: int) -> NDArray[np.uint8]:
    """Pack codes into one stream of bits, row after row, with no gap anywhere.

    Code number m (row i, group j, m = i * D + j) takes the bits m * n_bits to (m + 1) * n_bits - 1 of the
    stream, lowest bit first; bit t of the stream is bit t % 8 of byte t // 8. The last byte is filled with 0.

    Parameters
    ----------
    codes : (n, D) integers in [0, 2**n_bits)
    n_bits : int from 1 to 16

    Returns
    -------
    (ceil(n * D * n_bits / 8),) uint8
    """
    check_range("codes", codes, 1 << n_bits)
    flat = codes.ravel().astype(np.uint16)
    bits = (flat[:, None] >> np.arange(n_bits, dtype=np.uint16)) & 1
    return np.packbits(bits.astype(np.uint8).ravel(), bitorder="little")


def unpack_codes(packed: NDArray[np.uint8], n_bits: int, ids: Integers, n_groups: int) -> Integers:
    """Codes of some rows, straight from the packed stream.

    Parameters
    ----------
    packed : (bytes,) uint8, from `pack_codes`
    n_bits : int from 1 to 16
    ids : (b,) integers, the rows wanted
    n_groups : int

    Returns
    -------
    (b, D) int32
    """
    check_range("ids", ids, packed.size * 8 // (n_bits * n_groups))
    number = ids.astype(np.int64)[:, None] * n_groups + np.arange(n_groups)
    position = number[:, :, None] * n_bits + np.arange(n_bits)
    bits = (packed[position >> 3] >> (position & 7).astype(np.uint8)) & 1
    return (bits.astype(np.int32) << np.arange(n_bits, dtype=np.int32)).sum(axis=2, dtype=np.int32)


def unpack_levels(
    packed: NDArray[np.uint8], n_bits: int, levels: Array, ids: Integers, n_groups: int
) -> Array:
    """Levels of the codes of some rows, as `unpack_codes`, levels (2**n_bits,) -> (b, D)."""
    return levels[unpack_codes(packed, n_bits, ids, n_groups)]


def decode_packed(
    packed: NDArray[np.uint8],
    n_bits: int,
    ids: Integers,
    n_groups: int,
    values: Array,
    out: Array | None = None,
) -> Array:
    """Rows of a compressed table: `decode` of `unpack_codes`, the values of a row side by side.

    Parameters
    ----------
    packed : (bytes,) uint8, from `pack_codes`
    n_bits : int from 1 to 16
    ids : (b,) integers, the rows wanted
    n_groups : int
    values : (D or 1, K, s)
    out : (b, D*s), optional
        Where they go, in C order.

    Returns
    -------
    (b, D*s)
    """
    rows = decode(unpack_codes(packed, n_bits, ids, n_groups), values)
    out = np.empty((len(ids), n_groups * values.shape[2]), values.dtype) if out is None else out
    out[:] = rows.reshape(out.shape)
    return out


def sum_packed(packed: NDArray[np.uint8], n_bits: int, ids: Integers, n_groups: int, terms: Array) -> Array:
    """Add up the terms that the codes of rows pick: products with queries, and no row is decoded.

    <q, row i> is the sum over groups j of <q_j, values[j, codes[i, j]]>: with those as terms, n rows take n D
    additions in place of n D s products (the asymmetric distances of Jegou, Douze, Schmid 2011, section III).

    Parameters
    ----------
    packed, n_bits, ids, n_groups
        As in `decode_packed`.
    terms : (q, D, K)

    Returns
    -------
    (q, b) terms[:, 0, codes[i, 0]] + terms[:, 1, codes[i, 1]] + ..., in this order
    """
    codes = unpack_codes(packed, n_bits, ids, n_groups)
    sums = np.zeros((len(terms), len(ids)), terms.dtype)
    for j in range(n_groups):
        sums += terms[:, j, codes[:, j]]
    return sums


def canonical_code(lengths: Integers) -> Integers:
    """Prefix code whose words have given lengths: in order of length, then of number, each is the next.

    Parameters
    ----------
    lengths : (K,) integers from 0 to 62; what has length 0 has no word

    Returns
    -------
    (K,) int64, words as binary numbers, their first bit highest; 0 where there is none

    Raises
    ------
    ValueError
        If the lengths are out of range, or too short to tell the words apart (Kraft's inequality).
    """
    words = np.zeros(len(lengths), np.int64)
    next_word = length = 0
    for k in np.argsort(lengths, kind="stable"):
        if lengths[k] == 0:
            continue
        if not 0 < lengths[k] <= 62 or next_word >> length:
            raise ValueError(f"lengths from {lengths.min()} to {lengths.max()} do not make a prefix code")
        next_word <<= int(lengths[k]) - length
        length = int(lengths[k])
        words[k] = next_word
        next_word += 1
    return words


def pack_prefix(codes: Integers, lengths: Integers) -> NDArray[np.uint8]:
    """Pack codes as words of the canonical prefix code, one after the other, each from its first bit on.

    Bit t of the stream is bit t % 8 of byte t // 8. The last byte is filled with 0.

    Parameters
    ----------
    codes : (m,) integers in [0, K) whose length is not 0
    lengths : (K,) as in `canonical_code`

    Returns
    -------
    (bytes,) uint8
    """
    check_range("codes", codes, len(lengths))
    words, widths = canonical_code(lengths)[codes], lengths.astype(np.int64)[codes]
    if not widths.all():
        raise ValueError(f"code {codes[widths == 0][0]} has no word")
    starts = np.cumsum(widths) - widths
    bits = np.zeros(widths.sum(), np.uint8)
    for t in range(widths.max(initial=0)):
        longer = widths > t
        bits[starts[longer] + t] = words[longer] >> (widths[longer] - 1 - t) & 1
    return np.packbits(bits, bitorder="little")


def unpack_prefix(packed: NDArray[np.uint8], lengths: Integers, n_codes: int) -> Integers:
    """First codes of a stream of `pack_prefix`: read bits until they are a word.

    Parameters
    ----------
    packed : (bytes,) uint8
    lengths : (K,) as in `canonical_code`
    n_codes : int

    Returns
    -------
    (n_codes,) int32

    Raises
    ------
    ValueError
        If the stream ends before, or has bits that are no word.
    """
    words = canonical_code(lengths)
    number = {(int(lengths[k]), int(words[k])): k for k in np.flatnonzero(lengths)}
    bits = np.unpackbits(packed, bitorder="little").tolist()
    codes = np.empty(n_codes, np.int32)
    t = 0
    for i in range(n_codes):
        length = word = 0
        while (length, word) not in number:
            if t == len(bits) or length == lengths.max():
                raise ValueError(f"the stream has {i} codes; {n_codes} are asked for")
            length, word, t = length + 1, 2 * word + bits[t], t + 1
        codes[i] = number[length, word]
    return codes


def hamming(words: NDArray[np.uint64], others: NDArray[np.uint64]) -> Integers:
    """In how many bits rows of words differ.

    Parameters
    ----------
    words : (b, W) uint64
    others : (m, W) uint64

    Returns
    -------
    (b, m) int32
    """
    out = np.zeros((len(words), len(others)), np.int32)
    for column, other in zip(words.T, others.T, strict=True):
        out += np.bitwise_count(column[:, None] ^ other)
    return out


def hamming_nearest(
    words: NDArray[np.uint64], others: NDArray[np.uint64], k: int
) -> tuple[Integers, Integers]:
    """Rows that differ from each row of words in the fewest bits.

    Parameters
    ----------
    words : (b, W) uint64
    others : (m, W) uint64
    k : int, at most m

    Returns
    -------
    ids : (b, k) int32, nearest first, ties to the smallest
    distances : (b, k) int32
    """
    distances = hamming(words, others)
    ids = np.argsort(distances, axis=1, kind="stable")[:, :k].astype(np.int32)
    return ids, np.take_along_axis(distances, ids, axis=1)


# --- Recurrence and loss ------------------------------------------------------------------------------------


def lstm_cell(gates: Array, cell: Array) -> tuple[Array, Array, Array]:
    """One step of a long short-term memory, from its affine map on (Zaremba et al. 2014, without peepholes).

    i, f, o = sigmoid(gates), g = tanh(gates); c' = f c + i g; h = o tanh(c')

    Parameters
    ----------
    gates : (b, 4h)
        W x + U h + bias, in the order input i, forget f, candidate g, output o.
    cell : (b, h)
        c, of the step before.

    Returns
    -------
    activations : (b, 4h)
        i, f, g, o.
    cell : (b, h)
        c'.
    hidden : (b, h)
    """
    i, f, g, o = np.split(gates, 4, axis=1)
    one = gates.dtype.type(1)
    with np.errstate(over="ignore"):  # exp of a large number is infinity, and its gate 0, as it should
        i, f, o = (one / (one + np.exp(-x)) for x in (i, f, o))
    g = np.tanh(g)
    new = f * cell + i * g
    return np.concatenate([i, f, g, o], axis=1), new, o * np.tanh(new)


def lstm_cell_backward(
    d_hidden: Array, d_cell: Array, activations: Array, cell: Array, new: Array
) -> tuple[Array, Array]:
    """Gradient of `lstm_cell`.

    With t = tanh(c') and e = d_c' + d_h o (1 - t^2):
    d_gates = (e g i (1 - i), e c f (1 - f), e i (1 - g^2), d_h t o (1 - o)); d_c = e f

    Parameters
    ----------
    d_hidden, d_cell : (b, h)
        Gradients of h and of c'.
    activations : (b, 4h)
    cell, new : (b, h)
        c and c'.

    Returns
    -------
    d_gates : (b, 4h)
    d_cell : (b, h)
        Gradient of c.
    """
    i, f, g, o = np.split(activations, 4, axis=1)
    one = activations.dtype.type(1)
    t = np.tanh(new)
    e = d_cell + d_hidden * o * (one - t * t)
    d_gates = (
        e * g * i * (one - i),
        e * cell * f * (one - f),
        e * i * (one - g * g),
        d_hidden * t * o * (one - o),
    )
    return np.concatenate(d_gates, axis=1), e * f


def lstm(
    gates: Array, hidden_weight: Array, hidden: Array, cell: Array, alive: NDArray[np.bool_]
) -> tuple[Array, Array, Array]:
    """All steps of a long short-term memory, each `lstm_cell` after the product with the hidden state.

    Parameters
    ----------
    gates : (t, b, 4h)
        W x + bias of each step.
    hidden_weight : (h, 4h)
        U.
    hidden, cell : (b, h)
        Before the first step.
    alive : (t, b) bool
        Where a sequence goes on; where it does not, its state stays.

    Returns
    -------
    activations : (t, b, 4h)
    hiddens, cells : (t + 1, b, h)
        Before the first step, and after each.
    """
    activations = np.empty(gates.shape, gates.dtype)
    hiddens, cells = (np.empty((len(gates) + 1, *state.shape), gates.dtype) for state in (hidden, cell))
    hiddens[0], cells[0] = hidden, cell
    for i in range(len(gates)):
        affine = gates[i] + hiddens[i] @ hidden_weight
        activations[i], new, output = lstm_cell(affine, cells[i])
        hiddens[i + 1] = np.where(alive[i, :, None], output, hiddens[i])
        cells[i + 1] = np.where(alive[i, :, None], new, cells[i])
    return activations, hiddens, cells


def lstm_backward(
    d_hiddens: Array,
    d_hidden: Array,
    d_cell: Array,
    activations: Array,
    cells: Array,
    hidden_weight: Array,
    alive: NDArray[np.bool_],
) -> tuple[Array, Array, Array]:
    """Gradient of `lstm`.

    Parameters
    ----------
    d_hiddens : (t, b, h)
        Of the hidden state after each step where the sequence is alive.
    d_hidden, d_cell : (b, h)
        Of the state after the last step, beside that.
    activations, cells, hidden_weight, alive
        As there.

    Returns
    -------
    d_gates : (t, b, 4h)
    d_hidden, d_cell : (b, h)
        Of the state before the first step.
    """
    d_gates, zero = np.empty(activations.shape, activations.dtype), activations.dtype.type(0)
    for i in reversed(range(len(d_gates))):
        on = alive[i, :, None]
        through = np.where(on, d_hiddens[i] + d_hidden, zero), np.where(on, d_cell, zero)
        d_gates[i], d_before = lstm_cell_backward(*through, activations[i], cells[i], cells[i + 1])
        d_hidden = np.where(on, d_gates[i] @ hidden_weight.T, d_hidden)
        d_cell = np.where(on, d_before, d_cell)
    return d_gates, d_hidden.copy(), d_cell.copy()


def cross_entropy(
    logits: Array, labels: Integers, weights: Array, smoothing: float, out: Array | None = None
) -> tuple[Array, Array]:
    """Cross-entropy of softmax(logits) with smoothed labels, and the gradient of its weighted sum.

    The target is q[k] = (1 - smoothing) [k = label] + smoothing / C (Szegedy et al., CVPR 2016, section 7).

    Parameters
    ----------
    logits : (b, C)
    labels : (b,) integers in [0, C)
    weights : (b,)
    smoothing : float
    out : (b, C), optional
        Where d_logits goes, in C order; it may be `logits`.

    Returns
    -------
    losses : (b,)
        -sum_k q[k] log softmax(logits)[k], not weighted.
    d_logits : (b, C)
        weights (softmax(logits) - q)
    """
    check_range("labels", labels, logits.shape[1])
    real, rows, C = logits.dtype.type, np.arange(len(logits)), logits.shape[1]
    shifted = logits - logits.max(axis=1, keepdims=True, initial=-np.inf)
    exponentials = np.exp(shifted)
    total = exponentials.sum(axis=1, keepdims=True)
    hit, rest = real(1 - smoothing), real(smoothing / C)
    losses = np.log(total[:, 0]) - hit * shifted[rows, labels]
    if smoothing:
        losses -= rest * shifted.sum(axis=1)
    d_logits = exponentials / total - rest
    d_logits[rows, labels] -= hit
    return losses, np.multiply(d_logits, weights[:, None], out=out)


# --- Batch norm of the columns of a dense network -----------------------------------------------------------


def column_norm(
    x: Array, gamma: Array, beta: Array, epsilon: float, floor: float
) -> tuple[Array, Array, Array]:
    """Batch norm of each column by itself, with scale and shift (Ioffe, Szegedy, ICML 2015, algorithm 1).

    y = max(gamma (x - mean) / sqrt(variance + epsilon) + beta, floor)

    Parameters
    ----------
    x : (b, w)
    gamma, beta : (w,)
    epsilon : float
    floor : float
        0 with a rectifier behind, -inf without.

    Returns
    -------
    y : (b, w)
    mean, variance : (w,)
        Of the rows, the variance biased and about the mean; 0 where there are none.
    """
    n = max(len(x), 1)
    exact = x.sum(axis=0, dtype=np.float64) / n
    centred = x - exact
    mean, variance = (m.astype(x.dtype) for m in (exact, np.einsum("ij,ij->j", centred, centred) / n))
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
    """Gradient of `column_norm`, its mean and variance differentiated.

    With d = d_y where y > floor, else 0; deviation = sqrt(variance + epsilon); z = (x - mean) / deviation:
    d_gamma = sum_i d[i] z[i]; d_beta = sum_i d[i]; d_x = gamma (d - d_beta / b - z d_gamma / b) / deviation

    Parameters
    ----------
    d_y, y, x : (b, w)
    mean, variance : (w,)
        These and y as `column_norm` found them.
    gamma : (w,)
    epsilon, floor : float

    Returns
    -------
    d_x : (b, w)
    d_gamma, d_beta : (w,)
    """
    deviation, n = np.sqrt(variance + scalar_like(variance, epsilon)), x.dtype.type(max(len(x), 1))
    z = (x - mean) / deviation
    d = np.where(y > floor, d_y, x.dtype.type(0))
    d_gamma = np.einsum("ij,ij->j", d, z, dtype=np.float64).astype(x.dtype)
    d_beta = d.sum(axis=0, dtype=np.float64).astype(x.dtype)
    return gamma * (d - d_beta / n - z * (d_gamma / n)) / deviation, d_gamma, d_beta


def column_norm_apply(
    x: Array, mean: Array, variance: Array, gamma: Array, beta: Array, epsilon: float, floor: float
) -> Array:
    """`column_norm` with given statistics, (b, w) -> (b, w)."""
    y = gamma * ((x - mean) / np.sqrt(variance + scalar_like(variance, epsilon))) + beta
    return np.maximum(y, scalar_like(y, floor))


# --- Pooling and the optimizer ------------------------------------------------------------------------------


def mean_pool(table: Array, ids: Integers, mask: NDArray[np.bool_]) -> Array:
    """Mean of the rows kept of each text: out[i] = sum_t mask[i,t] table[ids[i,t]] / max(sum_t mask[i,t], 1).

    Parameters
    ----------
    table : (n, w)
    ids : (b, t) integers in [0, n)
    mask : (b, t) bool
        A text with no kept token gives zeros.

    Returns
    -------
    (b, w), summed in float64
    """
    check_range("ids", ids, len(table))
    kept = np.where(mask[:, :, None], table[ids], table.dtype.type(0))
    length = np.maximum(mask.sum(axis=1), 1)[:, None]
    return (kept.sum(axis=1, dtype=np.float64) / length).astype(table.dtype)


def mean_pool_backward(d_pooled: Array, ids: Integers, mask: NDArray[np.bool_], n_rows: int) -> Array:
    """Gradient of `mean_pool`: d_table[r] = sum of d_out[i] / max(length[i], 1) over kept ids[i,t] = r.

    Parameters
    ----------
    d_pooled : (b, w)
    ids : (b, t) integers in [0, n_rows)
    mask : (b, t) bool
    n_rows : int

    Returns
    -------
    (n_rows, w), added up in the order of the batch
    """
    check_range("ids", ids, n_rows)
    length = mask.sum(axis=1)
    share = d_pooled / np.maximum(length, 1).astype(d_pooled.dtype)[:, None]
    return scatter_add(ids[mask], np.repeat(share, length, axis=0), n_rows)


def squared_norm(array: Array) -> np.float64:
    """Sum of squares: each row in its own precision, and all in float64 if that overflows.

    Parameters
    ----------
    array : (..., w)

    Returns
    -------
    scalar
    """
    with np.errstate(over="ignore", invalid="ignore"):
        total = np.vecdot(array, array).sum(dtype=np.float64)
    return total if np.isfinite(total) else np.square(array, dtype=np.float64).sum()


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
    """One step of Adam (Kingma, Ba, ICLR 2015, algorithm 1), on all rows or on some.

    m = beta1 m + (1 - beta1) g; v = beta2 v + (1 - beta2) g^2;
    x = x - rate * (m / (1 - beta1^t)) / (sqrt(v / (1 - beta2^t)) + epsilon)

    Parameters
    ----------
    parameter, first, second : (n, w)
    gradient : (n, w), or (b, w) of some rows
    step : int
        t, 1 in the first step.
    learning_rate, beta1, beta2, epsilon : float
    rows : (b,) distinct integers in [0, n), optional
        The rows that move; the others stay as they are, moments included.
    out : three arrays (n, w) in C order, optional
        Where the results go; they may be `parameter`, `first` and `second`.

    Returns
    -------
    parameter, first, second : (n, w)
    """
    real, where = parameter.dtype.type, slice(None) if rows is None else rows
    if rows is not None:
        check_range("rows", rows, len(parameter))
    m = real(beta1) * first[where] + real(1 - beta1) * gradient
    v = real(beta2) * second[where] + real(1 - beta2) * (gradient * gradient)
    rate = real(learning_rate / (1 - beta1**step))
    root = np.sqrt(v * real(1 / (1 - beta2**step)))
    moved = parameter[where] - rate * m / (root + real(epsilon)), m, v
    out = (np.empty_like(parameter), np.empty_like(first), np.empty_like(second)) if out is None else out
    for array, old, new in zip(out, (parameter, first, second), moved, strict=True):
        if array is not old:
            array[:] = old
        array[where] = new
    return out
