"""The reference against oracles that share nothing with it: loops by hand, SciPy, and finite differences."""

import numpy as np
import pytest
from scipy.spatial.distance import cdist
from scipy.special import softmax as scipy_softmax

from dpq_ref.kernels import reference as ref

rng = np.random.default_rng(7)
START = rng.bit_generator.state
SHARED = pytest.mark.parametrize("shared", [False, True])


@pytest.fixture(autouse=True)
def same_numbers_in_any_order():
    rng.bit_generator.state = START


def normal(*shape):
    return rng.standard_normal(shape)


def book(shared, D=4, K=5, s=3):
    return normal(1 if shared else D, K, s)


def assert_gradient(function, inputs, gradients, d_output):
    """The derivative of <function(inputs), d_output> along random directions, by central differences."""
    for _ in range(5):
        directions = [normal(*x.shape) for x in inputs]
        step = 1e-6
        ahead = function(*(x + step * v for x, v in zip(inputs, directions, strict=True)))
        behind = function(*(x - step * v for x, v in zip(inputs, directions, strict=True)))
        numeric = np.sum((ahead - behind) * d_output) / (2 * step)
        analytic = sum(np.sum(g * v) for g, v in zip(gradients, directions, strict=True))
        np.testing.assert_allclose(analytic, numeric, rtol=1e-6, atol=1e-7)


# --- Rows of a table ------------------------------------------------------------------------------------


def test_distinct_by_hand():
    rows, inverse, counts = ref.distinct(np.array([7, 2, 7, 7, 3]))
    assert rows.tolist() == [2, 3, 7]
    assert inverse.tolist() == [2, 0, 2, 2, 1]
    assert counts.tolist() == [1, 1, 3]


def test_gather_and_scatter_add_are_transposed():
    """<gather(T), R> = <T, scatter_add(R)>, with ids that repeat."""
    table, ids, rows = normal(6, 4), np.array([5, 0, 5, 5, 2]), normal(5, 4)
    np.testing.assert_array_equal(ref.gather(table, ids), [table[5], table[0], table[5], table[5], table[2]])
    summed = ref.scatter_add(ids, rows, 6)
    np.testing.assert_array_equal(summed[5], (rows[0] + rows[2]) + rows[3])
    np.testing.assert_array_equal(summed[[1, 3, 4]], 0)
    np.testing.assert_allclose(np.sum(ref.gather(table, ids) * rows), np.sum(table * summed))


# --- Responses ------------------------------------------------------------------------------------------


@SHARED
def test_responses_by_loops(shared):
    query, keys = normal(3, 4, 3), book(shared)
    dot, euclidean = ref.dot_responses(query, keys), ref.euclidean_responses(query, keys)
    for i in range(3):
        for j in range(4):
            for k in range(5):
                key = keys[0 if shared else j, k]
                assert dot[i, j, k] == pytest.approx(sum(query[i, j, c] * key[c] for c in range(3)))
                assert euclidean[i, j, k] == pytest.approx(
                    -sum((query[i, j, c] - key[c]) ** 2 for c in range(3))
                )


def test_euclidean_responses_by_scipy():
    query, keys = normal(6, 1, 9), normal(1, 7, 9)
    expected = -cdist(query[:, 0], keys[0], "sqeuclidean")
    np.testing.assert_allclose(ref.euclidean_responses(query, keys)[:, 0], expected)


@SHARED
def test_dot_responses_backward(shared):
    query, keys, d_responses = normal(3, 4, 3), book(shared), normal(3, 4, 5)
    gradients = ref.dot_responses_backward(d_responses, query, keys)
    assert_gradient(ref.dot_responses, [query, keys], gradients, d_responses)


# --- Batch norm -----------------------------------------------------------------------------------------

COUNTS = np.array([2.0, 0.0, 1.0, 3.0])


def test_batch_norm_by_hand():
    """Codes (1, 3) and (0, 4) of one group: means 2 and 2, variances 1 and 4."""
    responses = np.array([[[1.0, 0.0]], [[3.0, 4.0]]])
    normalized, mean, variance = ref.batch_norm(responses, np.ones(2), 0.0)
    np.testing.assert_array_equal(mean, [2, 2])
    np.testing.assert_array_equal(variance, [1, 4])
    np.testing.assert_array_equal(normalized, [[[-1, -1]], [[1, 1]]])


def test_batch_norm_with_counts_is_that_of_the_repeated_rows():
    responses, tokens = normal(4, 3, 5), COUNTS.astype(int)
    normalized, mean, variance = ref.batch_norm(responses, COUNTS, 1e-3)
    repeated = np.repeat(responses, tokens, axis=0)
    np.testing.assert_allclose(mean, repeated.mean(axis=(0, 1)))
    np.testing.assert_allclose(variance, repeated.var(axis=(0, 1)))
    plain, _, _ = ref.batch_norm(repeated, np.ones(len(repeated)), 1e-3)
    np.testing.assert_allclose(np.repeat(normalized, tokens, axis=0), plain)

    d_plain = normal(*plain.shape)
    tokens_of = np.repeat(np.arange(4), tokens)
    expected = ref.batch_norm_backward(d_plain, plain, variance, np.ones(len(plain)), 1e-3)
    d_normalized, d_responses = np.zeros((2, *responses.shape))
    np.add.at(d_normalized, tokens_of, d_plain)
    np.add.at(d_responses, tokens_of, expected)
    actual = ref.batch_norm_backward(d_normalized, normalized, variance, COUNTS, 1e-3)
    np.testing.assert_allclose(actual, d_responses, atol=1e-14)


def test_rows_of_count_0_do_not_enter():
    responses = normal(4, 3, 5)
    _, mean, variance = ref.batch_norm(responses, COUNTS, 1e-3)
    responses[1] += 100
    normalized, same_mean, same_variance = ref.batch_norm(responses, COUNTS, 1e-3)
    np.testing.assert_array_equal(mean, same_mean)
    np.testing.assert_array_equal(variance, same_variance)
    np.testing.assert_allclose(normalized[1], (responses[1] - mean) / np.sqrt(variance + 1e-3))


def test_batch_norm_of_padding_only():
    responses = normal(2, 3, 5)
    normalized, mean, variance = ref.batch_norm(responses, np.zeros(2), 0.0)
    np.testing.assert_array_equal(normalized, responses)
    np.testing.assert_array_equal(mean, 0)
    np.testing.assert_array_equal(variance, 1)


@pytest.mark.parametrize("counts", [COUNTS, np.ones(4), np.zeros(4)], ids=["counts", "ones", "zeros"])
def test_batch_norm_backward(counts):
    responses, d_normalized = 3 + normal(4, 3, 5), normal(4, 3, 5)
    normalized, _, variance = ref.batch_norm(responses, counts, 1e-3)
    gradient = ref.batch_norm_backward(d_normalized, normalized, variance, counts, 1e-3)
    assert_gradient(lambda r: ref.batch_norm(r, counts, 1e-3)[0], [responses], [gradient], d_normalized)


def test_two_passes_keep_the_variance_in_float32():
    """Spread 0.01 at 1000: E[x^2] - E[x]^2 in float32 would lose every digit of the variance."""
    responses = (1000 + 0.01 * normal(500, 2, 3)).astype(np.float32)
    _, _, variance = ref.batch_norm(responses, np.ones(500, np.float32), 1e-3)
    np.testing.assert_allclose(variance, responses.astype(np.float64).var(axis=(0, 1)), rtol=1e-3)


# --- From responses to codes and back -------------------------------------------------------------------


def test_softmax():
    logits, d_probabilities = 5 * normal(3, 2, 6), normal(3, 2, 6)
    probabilities = ref.softmax(logits, 0.5)
    np.testing.assert_allclose(probabilities, scipy_softmax(logits / 0.5, axis=2))
    np.testing.assert_allclose(ref.softmax(logits + 1e4, 0.5), probabilities, rtol=1e-9)
    gradient = ref.softmax_backward(d_probabilities, probabilities, 0.5)
    assert_gradient(lambda x: ref.softmax(x, 0.5), [logits], [gradient], d_probabilities)


def test_argmax_code_ties_and_nan():
    responses = np.array([[[1, 3, 3], [2, 2, 1]], [[1, np.nan, 5], [np.nan, 1, np.nan]]])
    assert ref.argmax_code(responses).tolist() == [[1, 0], [1, 0]]


@SHARED
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_nearest_code_far_off_centre(shared, dtype):
    """Data at 1000 with spread 1, against brute force in float64."""
    query, keys = (1000 + normal(200, 4, 3)).astype(dtype), (1000 + book(shared, K=20)).astype(dtype)
    codes = ref.nearest_code(query, keys)
    distances = ref.code_distances(query, keys, codes)
    for j in range(4):
        exact = cdist(query[:, j].astype(float), keys[0 if shared else j].astype(float), "sqeuclidean")
        assert (codes[:, j] == exact.argmin(axis=1)).all()
        np.testing.assert_allclose(distances[:, j], exact.min(axis=1), rtol=1e-5)


def test_nearest_code_in_blocks(monkeypatch):
    query, keys = normal(23, 4, 3), book(False)
    whole = ref.nearest_code(query, keys)
    for block in (1, 100, 200):
        monkeypatch.setattr(ref, "BLOCK", block)
        np.testing.assert_array_equal(ref.nearest_code(query, keys), whole)


@SHARED
def test_decode_and_sum_by_code(shared):
    codes, values, rows = rng.integers(0, 5, (9, 4)), book(shared), normal(9, 4, 3)
    out, sums = ref.decode(codes, values), np.zeros((4, 5, 3))
    for i in range(9):
        for j in range(4):
            np.testing.assert_array_equal(out[i, j], values[0 if shared else j, codes[i, j]])
            sums[j, codes[i, j]] += rows[i, j]
    np.testing.assert_array_equal(ref.sum_by_code(codes, rows, 5), sums)
    d_values = sums.sum(axis=0, keepdims=True) if shared else sums
    assert_gradient(lambda v: ref.decode(codes, v), [values], [d_values], rows)


def test_sum_by_code_adds_in_float64():
    """2^24 + 1 + 1 in float32 would stay 2^24."""
    rows = np.array([2**24, 1, 1], np.float32).reshape(3, 1, 1)
    assert ref.sum_by_code(np.zeros((3, 1), int), rows, 1).item() == 2**24 + 2


def test_count_codes_by_hand():
    codes = np.array([[0, 2], [1, 2], [0, 0]])
    counts = ref.count_codes(codes, np.array([1.0, 2.0, 4.0]), 3)
    assert counts.tolist() == [[5, 2, 0], [4, 0, 3]]


# --- Codes as bits --------------------------------------------------------------------------------------


def test_pack_by_hand():
    """Codes 5, 1, 6 at 3 bits, lowest bit first: 101 100 01|1 -> bits 0 to 7 are 0b10001101, bit 8 is 1."""
    packed = ref.pack_codes(np.array([[5, 1, 6]]), 3)
    assert packed.tolist() == [0b10_001_101, 0b1]


@pytest.mark.parametrize("n_bits", range(1, 17))
@pytest.mark.parametrize("n_groups", [1, 5, 8])
def test_pack_by_one_large_integer(n_bits, n_groups):
    """The stream as one integer: code number m stands at bit m * n_bits. And back, in any order of rows."""
    codes = rng.integers(0, 1 << n_bits, (11, n_groups))
    codes[3] = (1 << n_bits) - 1
    stream = sum(int(code) << m * n_bits for m, code in enumerate(codes.ravel()))
    packed = ref.pack_codes(codes, n_bits)
    assert packed.tobytes() == stream.to_bytes(-(-codes.size * n_bits // 8), "little")
    ids = np.array([10, 3, 0, 3, 7])
    unpacked = ref.unpack_codes(packed, n_bits, ids, n_groups)
    assert unpacked.dtype == np.int32
    np.testing.assert_array_equal(unpacked, codes[ids])


def test_second_row_starts_inside_a_byte():
    """Two rows of 15 codes at 2 bits: the second starts at bit 30, in the middle of byte 3."""
    codes = rng.integers(0, 4, (2, 15))
    packed = ref.pack_codes(codes, 2)
    assert packed.size == 8
    np.testing.assert_array_equal(ref.unpack_codes(packed, 2, np.array([1]), 15), codes[1:])


# --- Batch norm of columns --------------------------------------------------------------------------------


def test_column_norm_by_hand():
    """Columns (1, 3) and (0, 4): means 2 and 2, variances 1 and 4."""
    x, gamma, beta = np.array([[1.0, 0.0], [3.0, 4.0]]), np.array([10.0, 1.0]), np.array([0.5, 7.0])
    y, mean, variance = ref.column_norm(x, gamma, beta, 0.0, -np.inf)
    np.testing.assert_array_equal(mean, [2, 2])
    np.testing.assert_array_equal(variance, [1, 4])
    np.testing.assert_array_equal(y, [[-9.5, 6], [10.5, 8]])
    np.testing.assert_array_equal(ref.column_norm(x, gamma, beta, 0.0, 0.0)[0], [[0, 6], [10.5, 8]])
    np.testing.assert_array_equal(
        ref.column_norm_apply(x[:1] + 2, mean, variance, gamma, beta, 0.0, -np.inf), [[10.5, 7]]
    )


def test_column_norm_of_no_row_and_of_one():
    gamma, beta = normal(5), normal(5)
    y, mean, variance = ref.column_norm(np.zeros((0, 5)), gamma, beta, 1e-3, -np.inf)
    assert y.shape == (0, 5)
    np.testing.assert_array_equal([mean, variance], 0)
    y, _, _ = ref.column_norm(normal(1, 5), gamma, beta, 1e-3, -np.inf)
    np.testing.assert_array_equal(y, [beta])


@pytest.mark.parametrize("floor", [-np.inf, 0.0])
def test_column_norm_backward(floor):
    x, gamma, beta, d_y = 3 + normal(7, 5), normal(5), normal(5), normal(7, 5)
    y, mean, variance = ref.column_norm(x, gamma, beta, 1e-3, floor)
    assert (y == 0).any() == (floor == 0)
    gradients = ref.column_norm_backward(d_y, y, x, mean, variance, gamma, 1e-3, floor)
    assert_gradient(
        lambda *inputs: ref.column_norm(*inputs, 1e-3, floor)[0], [x, gamma, beta], gradients, d_y
    )


# --- Pooling and the optimizer --------------------------------------------------------------------------

MASK = np.array([[True, False, True], [False, False, False], [False, True, False]])


IDS = np.array([[3, 0, 1], [0, 0, 0], [2, 3, 2]])


def test_mean_pool():
    table, d_pooled = normal(4, 5), normal(3, 5)
    pooled = ref.mean_pool(table, IDS, MASK)
    np.testing.assert_allclose(pooled[0], (table[3] + table[1]) / 2)
    np.testing.assert_array_equal(pooled[1], 0)
    np.testing.assert_array_equal(pooled[2], table[3])
    gradient = ref.mean_pool_backward(d_pooled, IDS, MASK, 4)
    assert_gradient(lambda x: ref.mean_pool(x, IDS, MASK), [table], [gradient], d_pooled)


def test_padding_may_hold_anything():
    table = normal(4, 5)
    pooled = ref.mean_pool(table, IDS, MASK)
    table[[0, 2]] = np.nan
    np.testing.assert_array_equal(ref.mean_pool(table, IDS, MASK), pooled)


def test_adam_against_algorithm_1():
    """Three steps of one number each, as the paper writes them; the first moves by the learning rate."""
    x, m, v = 0.5, 0.0, 0.0
    arrays: tuple[ref.Array, ...] = np.full((1, 1), x), np.zeros((1, 1)), np.zeros((1, 1))
    for t, g in enumerate([0.3, -2.0, 0.1], start=1):
        m = 0.9 * m + 0.1 * g
        v = 0.99 * v + 0.01 * g * g
        x -= 0.05 * (m / (1 - 0.9**t)) / ((v / (1 - 0.99**t)) ** 0.5 + 1e-8)
        parameter, first, second = arrays
        arrays = ref.adam(parameter, np.full((1, 1), g), first, second, t, 0.05, 0.9, 0.99, 1e-8)
        np.testing.assert_allclose([a.item() for a in arrays], [x, m, v], rtol=1e-12)
        if t == 1:
            assert arrays[0].item() == pytest.approx(0.45)


@pytest.mark.parametrize("in_place", [False, True])
def test_adam_of_some_rows(in_place):
    """These move as if they were all there is; the others do not, and nothing does that was given."""
    x, m, v, g = normal(5, 3), normal(5, 3), normal(5, 3) ** 2, normal(2, 3)
    rows, hyper = np.array([3, 1]), (2, 0.1, 0.9, 0.99, 1e-8)
    expected = [array.copy() for array in (x, m, v)]
    for array, new in zip(expected, ref.adam(x[rows], g, m[rows], v[rows], *hyper), strict=True):
        array[rows] = new
    out = (x, m, v) if in_place else None
    before = x.copy()
    found = ref.adam(x, g, m, v, *hyper, rows=rows, out=out)
    for array, new in zip(found, expected, strict=True):
        np.testing.assert_array_equal(array, new)
    assert found[0] is x if in_place else (x == before).all()
