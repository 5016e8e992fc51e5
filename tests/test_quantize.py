"""DPQ-SX and DPQ-VQ as pure functions: what must hold for any data."""

import numpy as np
import pytest

from dpq_ref import backend, quantize
from dpq_ref.quantize import EPSILON, codes_of, sx_backward, sx_forward, vq_backward, vq_forward


@pytest.fixture(params=["numpy", "numba"])
def kernels(request):
    return backend.get(request.param)


@pytest.fixture
def rng():
    return np.random.default_rng(5)


def draw(rng, b=40, D=3, K=5, s=4, shared=False, width=None, dtype=np.float64):
    """Query, keys, values, and counts with a padding row among them."""
    books = 1 if shared else D
    query = (2 * rng.standard_normal((b, D, s)) + 1).astype(dtype)
    # Norms far apart: with equal ones a forgotten |k|^2 would not show.
    keys = (rng.uniform(0.3, 2, (books, K, 1)) * rng.standard_normal((books, K, s)) + 1).astype(dtype)
    values = rng.standard_normal((books, K, width or s)).astype(dtype)
    counts = rng.integers(1, 6, b).astype(dtype)
    if b > 2:
        counts[2] = 0
    return query, keys, values, counts


def forward(kernels, method, query, keys, values, counts, **options):
    if method == "sx":
        return sx_forward(kernels, query, keys, values, counts, **options)
    return vq_forward(kernels, query, keys, counts, **options)


def backward(kernels, method, d_output, tape):
    """Gradients of query, keys and, for SX, values."""
    return (sx_backward if method == "sx" else vq_backward)(kernels, d_output, tape)


def picked_by_hand(codes, values):
    """Values of codes, token by token, (b, D, s)."""
    return np.array([[values[j if len(values) > 1 else 0, c] for j, c in enumerate(row)] for row in codes])


def score_by_hand(method, query, keys):
    """Responses by brute force, (b, D, K)."""
    keys = np.broadcast_to(keys, (query.shape[1], *keys.shape[1:]))
    if method == "sx":
        return np.einsum("ijc,jkc->ijk", query, keys)
    return -((query[:, :, None, :] - keys) ** 2).sum(axis=3)


# --- Forward ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("additive", [False, True])
@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("batch_norm", [False, True])
@pytest.mark.parametrize("method", ["sx", "vq", "gumbel"])
def test_output_is_the_decode_of_the_codes_bit_by_bit(
    kernels, rng, method, batch_norm, shared, additive, dtype
):
    query, keys, values, counts = draw(rng, shared=shared, dtype=dtype)
    options = {"batch_norm": batch_norm, "additive": additive}
    if method == "gumbel":
        method, options["noise"] = "sx", rng.gumbel(size=(40, 3, 5)).astype(dtype)
    output, tape = forward(kernels, method, query, keys, values, counts, **options)
    picked = picked_by_hand(tape.codes, values if method == "sx" else keys)
    np.testing.assert_array_equal(output, picked.mean(axis=1) if additive else picked.reshape(40, -1))
    assert output.dtype == dtype
    assert tape.codes.min() >= 0 and tape.codes.max() < 5


@pytest.mark.parametrize("batch_norm", [False, True])
@pytest.mark.parametrize("method", ["sx", "vq"])
def test_ties_go_to_the_smallest_code(kernels, rng, method, batch_norm):
    query, keys, values, counts = draw(rng)
    keys[:, 3] = keys[:, 1]
    keys[:, 4] = keys[:, 0]
    _, tape = forward(kernels, method, query, keys, values, counts, batch_norm=batch_norm)
    assert set(np.unique(tape.codes)) == {0, 1, 2}


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("method", ["sx", "vq"])
def test_without_batch_norm_the_code_is_the_brute_force_best_in_training_and_evaluation(
    kernels, rng, method, shared
):
    query, keys, values, counts = draw(rng, b=300, shared=shared)
    _, tape = forward(kernels, method, query, keys, values, counts, batch_norm=False)
    np.testing.assert_array_equal(tape.codes, score_by_hand(method, query, keys).argmax(axis=2))
    np.testing.assert_array_equal(tape.codes, codes_of(kernels, method, query, keys))
    assert tape.statistics is None


@pytest.mark.parametrize("method", ["sx", "vq"])
def test_evaluation_normalises_with_the_statistics_given(kernels, rng, method):
    query, keys, _, _ = draw(rng, b=300)
    mean, variance = 3 * rng.standard_normal(5), rng.uniform(0.1, 9, 5)
    scores = (score_by_hand(method, query, keys) - mean) / np.sqrt(variance + EPSILON)
    codes = codes_of(kernels, method, query, keys, (mean, variance))
    np.testing.assert_array_equal(codes, scores.argmax(axis=2))
    assert (codes != codes_of(kernels, method, query, keys)).any()


def test_batch_norm_leaves_mean_0_and_the_shrunken_variance_over_the_kept_tokens(kernels, rng):
    query, keys, values, counts = draw(rng)
    _, tape = sx_forward(kernels, query, keys, values, counts)
    weights = (counts / counts.sum() / 3)[:, None, None]
    scores = score_by_hand("sx", query, keys)
    mean = (weights * scores).sum(axis=(0, 1))
    variance = (weights * (scores - mean) ** 2).sum(axis=(0, 1))
    np.testing.assert_allclose(tape.statistics[0], mean, rtol=1e-12)
    np.testing.assert_allclose(tape.statistics[1], variance, rtol=1e-12)
    normalized = kernels.batch_norm(kernels.dot_responses(query, keys), counts, EPSILON)[0]
    np.testing.assert_array_equal(tape.codes, normalized.argmax(axis=2))
    np.testing.assert_allclose((weights * normalized).sum(axis=(0, 1)), 0, atol=1e-13)
    second_moment = (weights * normalized**2).sum(axis=(0, 1))
    np.testing.assert_allclose(second_moment, variance / (variance + EPSILON), rtol=1e-12)


def test_codes_of_vq_with_batch_norm_are_those_of_the_normalised_distances(kernels, rng):
    query, keys, values, counts = draw(rng, b=300)
    _, tape = vq_forward(kernels, query, keys, counts)
    weights = (counts / counts.sum() / 3)[:, None, None]
    scores = score_by_hand("vq", query, keys)
    centred = scores - (weights * scores).sum(axis=(0, 1))
    scores = centred / np.sqrt((weights * centred**2).sum(axis=(0, 1)) + EPSILON)
    np.testing.assert_array_equal(tape.codes, scores.argmax(axis=2))


@pytest.mark.parametrize("batch_norm", [False, True])
def test_codes_do_not_depend_on_the_temperature(kernels, rng, batch_norm):
    query, keys, values, counts = draw(rng)
    outputs, tapes = zip(
        *(
            sx_forward(kernels, query, keys, values, counts, batch_norm=batch_norm, temperature=t)
            for t in (0.1, 1, 10)
        ),
        strict=True,
    )
    for output, tape in zip(outputs[1:], tapes[1:], strict=True):
        np.testing.assert_array_equal(tape.codes, tapes[0].codes)
        np.testing.assert_array_equal(output, outputs[0])
    g = rng.standard_normal(outputs[0].shape)
    d_keys = [sx_backward(kernels, g, tape)[1] for tape in tapes]
    assert abs(d_keys[1] - d_keys[2]).max() > 0.01


def test_a_constant_added_to_all_responses_of_a_group_changes_nothing(kernels, rng):
    # <q, k + v> = <q, k> + <q, v>: the same for all k.
    query, keys, values, counts = draw(rng)
    g = rng.standard_normal((40, 12))
    moved = keys + rng.standard_normal((3, 1, 4))
    tapes = [sx_forward(kernels, query, k, values, counts, batch_norm=False)[1] for k in (keys, moved)]
    np.testing.assert_array_equal(tapes[0].codes, tapes[1].codes)
    for a, b in zip(*(sx_backward(kernels, g, tape) for tape in tapes), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-12)


def test_shared_vq_with_batch_norm_ignores_the_norm_of_a_centroid(kernels, rng):
    query, keys, _, counts = draw(rng, b=200, shared=True)
    _, tape = vq_forward(kernels, query, keys, counts)
    without_norm = 2 * score_by_hand("sx", query, keys) - (query**2).sum(axis=2)[:, :, None]
    normalized = kernels.batch_norm(without_norm, counts, EPSILON)[0]
    np.testing.assert_array_equal(tape.codes, normalized.argmax(axis=2))


def test_shared_sx_with_batch_norm_ignores_the_length_of_a_key(kernels, rng):
    query, keys, _, counts = draw(rng, b=200, shared=True)
    scaled = keys * rng.uniform(0.2, 5, (1, 5, 1))
    codes = [
        kernels.batch_norm(kernels.dot_responses(query, k), counts, 0.0)[0].argmax(axis=2)
        for k in (keys, scaled)
    ]
    np.testing.assert_array_equal(*codes)


def test_one_group_without_batch_norm_is_plain_vector_quantization(kernels, rng):
    query, keys, _, counts = draw(rng, D=1)
    output, tape = vq_forward(kernels, query, keys, counts, batch_norm=False)
    distances = ((query[:, 0, None] - keys[0]) ** 2).sum(axis=2)
    np.testing.assert_array_equal(output, keys[0, distances.argmin(axis=1)])
    expected = (counts * distances.min(axis=1)).sum() / (counts.sum() * 4)
    assert tape.loss == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("method", ["sx", "vq"])
def test_additive_with_one_group_is_the_ordinary_layer(kernels, rng, method):
    arrays = draw(rng, D=1)
    g = rng.standard_normal((40, 4))
    results = []
    for additive in (False, True):
        output, tape = forward(kernels, method, *arrays, additive=additive)
        results.append([output, *backward(kernels, method, g, tape)])
    for plain, mean in zip(*results, strict=True):
        np.testing.assert_array_equal(plain, mean)


@pytest.mark.parametrize("shared", [False, True])
def test_planted_codes_are_recovered(kernels, rng, shared):
    _, keys, _, _ = draw(rng, shared=shared)
    codes = rng.integers(0, 5, (60, 3))
    query = picked_by_hand(codes, keys)
    _, tape = vq_forward(kernels, query, keys, np.ones(60), batch_norm=False)
    np.testing.assert_array_equal(tape.codes, codes)
    assert tape.loss == 0
    assert not vq_backward(kernels, rng.standard_normal((60, 12)), tape)[1].any()


def test_the_codebook_loss_by_hand(kernels):
    # One group of width 2: the first two queries go to (0, 0) and (4, 4), the third is padding.
    query = np.array([[[1.0, 0.0]], [[4.0, 2.0]], [[9.0, 9.0]]])
    keys = np.array([[[0.0, 0.0], [4.0, 4.0]]])
    counts = np.array([3.0, 1.0, 0.0])
    _, tape = vq_forward(
        kernels, query, keys, counts, batch_norm=False, codebook_weight=2.0, commitment_weight=0.5
    )
    assert tape.loss == pytest.approx(2.5 * (3 * 1 + 1 * 4) / 8)
    d_query, d_keys = vq_backward(kernels, np.zeros((3, 2)), tape)
    np.testing.assert_allclose(d_keys, [[[2 * 2 / 8 * -3, 0], [0, 2 * 2 / 8 * 2]]])
    np.testing.assert_allclose(d_query[:, 0], [[0.5 * 2 / 8 * 3, 0], [0, 0.5 * 2 / 8 * -2], [0, 0]])


# --- Backward ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch_norm", [False, True])
def test_values_get_the_gradient_of_their_tokens_and_unused_ones_none(kernels, rng, batch_norm):
    query, keys, values, counts = draw(rng, b=6, K=9)
    g = rng.standard_normal((6, 12))
    _, tape = sx_forward(kernels, query, keys, values, counts, batch_norm=batch_norm)
    d_values = sx_backward(kernels, g, tape)[2]
    np.testing.assert_allclose(d_values.sum(axis=1), g.reshape(6, 3, 4).sum(axis=0), rtol=1e-12, atol=1e-14)
    for j in range(3):
        unused = np.setdiff1d(np.arange(9), tape.codes[:, j])
        assert len(unused) and not d_values[j, unused].any()


def test_gradients_of_the_logits_sum_to_0(kernels, rng):
    # Without batch norm d_keys[j,k] = sum_i delta[i,j,k] q[i,j], so it sums to 0 over k.
    query, keys, values, counts = draw(rng)
    _, tape = sx_forward(kernels, query, keys, values, counts, batch_norm=False, temperature=0.7)
    _, d_keys, _ = sx_backward(kernels, rng.standard_normal((40, 12)), tape)
    assert abs(d_keys).max() > 0.1
    np.testing.assert_allclose(d_keys.sum(axis=1), 0, atol=1e-11)


def test_batch_norm_takes_the_mean_and_the_variance_out_of_the_gradient(kernels, rng):
    query, keys, values, counts = draw(rng)
    query, counts = np.delete(query, 2, axis=0), np.delete(counts, 2)  # every token is kept
    # A query coordinate that is 1 throughout: its d_keys, summed over groups, is sum_ij d_r[i,j,k].
    query[:, :, 0] = 1
    g = rng.standard_normal((39, 12))
    _, tape = sx_forward(kernels, query, keys, values, counts)
    d_keys = sx_backward(kernels, g, tape)[1]
    assert abs(d_keys).max() > 0.1
    np.testing.assert_allclose(d_keys[:, :, 0].sum(axis=0), 0, atol=1e-11)

    normalized, _, variance = kernels.batch_norm(kernels.dot_responses(query, keys), counts, EPSILON)
    delta = rng.standard_normal(normalized.shape)
    d_responses = kernels.batch_norm_backward(delta, normalized, variance, counts, EPSILON)
    np.testing.assert_allclose(d_responses.sum(axis=(0, 1)), 0, atol=1e-11)
    left = (d_responses * normalized).sum(axis=(0, 1))
    right = (delta * normalized).sum(axis=(0, 1)) * EPSILON / (variance + EPSILON) ** 1.5
    np.testing.assert_allclose(left, right, rtol=1e-6, atol=1e-11)


def test_vq_hands_the_gradient_to_the_query_as_it_is(kernels, rng):
    query, keys, _, counts = draw(rng)
    g = rng.standard_normal((40, 12))
    _, tape = vq_forward(kernels, query, keys, counts)
    np.testing.assert_array_equal(vq_backward(kernels, g, tape)[0], g.reshape(40, 3, 4))
    g = rng.standard_normal((40, 4))
    _, tape = vq_forward(kernels, query, keys, counts, additive=True)
    np.testing.assert_array_equal(vq_backward(kernels, g, tape)[0], np.stack([g / 3] * 3, axis=1))


def test_the_codebook_gradient_vanishes_for_unused_codes_and_at_the_mean_of_the_queries(kernels, rng):
    query, keys, _, counts = draw(rng, b=6, K=9)
    _, tape = vq_forward(kernels, query, keys, counts, batch_norm=False)
    d_keys = vq_backward(kernels, np.zeros((6, 12)), tape)[1]
    used = kernels.count_codes(tape.codes, counts, 9) > 0
    assert abs(d_keys[used]).min() > 0 and not d_keys[~used].any()

    # Two well separated clusters with their means as centroids; 3 of 4 tokens are in one place.
    query = np.array([-5.0, -8, 5, 9])[:, None, None] + np.zeros((4, 1, 2))
    counts = np.array([3.0, 1, 1, 3])
    keys = np.array([[[-5.75, -5.75], [8, 8]]])
    _, tape = vq_forward(kernels, query, keys, counts, batch_norm=False)
    np.testing.assert_array_equal(tape.codes[:, 0], [0, 0, 1, 1])
    np.testing.assert_allclose(vq_backward(kernels, np.zeros((4, 2)), tape)[1], 0, atol=1e-15)


@pytest.mark.parametrize("batch_norm", [False, True])
@pytest.mark.parametrize("method", ["sx", "vq"])
def test_the_shared_gradient_is_the_sum_of_the_tied_ones(kernels, rng, method, batch_norm):
    query, keys, values, counts = draw(rng, shared=True)
    g = rng.standard_normal((40, 12))
    tied = [np.repeat(a, 3, axis=0) for a in (keys, values)]
    out1, tape1 = forward(kernels, method, query, keys, values, counts, batch_norm=batch_norm)
    out3, tape3 = forward(kernels, method, query, *tied, counts, batch_norm=batch_norm)
    np.testing.assert_array_equal(out1, out3)
    shared, unshared = backward(kernels, method, g, tape1), backward(kernels, method, g, tape3)
    np.testing.assert_allclose(shared[0], unshared[0], rtol=1e-12, atol=1e-14)
    for one, three in zip(shared[1:], unshared[1:], strict=True):
        assert one.shape[0] == 1 and three.shape[0] == 3
        np.testing.assert_allclose(one, three.sum(axis=0, keepdims=True), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("how", ["repeated", "counted"])
def test_a_batch_twice_over_has_the_same_statistics_and_codebook_loss(kernels, rng, how):
    query, keys, _, counts = draw(rng)
    _, once = vq_forward(kernels, query, keys, counts, commitment_weight=0.3)
    if how == "repeated":
        _, twice = vq_forward(
            kernels, np.tile(query, (2, 1, 1)), keys, np.tile(counts, 2), commitment_weight=0.3
        )
    else:
        _, twice = vq_forward(kernels, query, keys, 2 * counts, commitment_weight=0.3)
    assert twice.loss == pytest.approx(once.loss, rel=1e-12)
    for a, b in zip(once.statistics, twice.statistics, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-12)
    d_keys = [vq_backward(kernels, np.zeros((len(t.query), 12)), t)[1] for t in (once, twice)]
    np.testing.assert_allclose(*d_keys, rtol=1e-10, atol=1e-14)


def test_the_weights_scale_the_codebook_loss(kernels, rng):
    query, keys, _, counts = draw(rng)
    g = rng.standard_normal((40, 12))

    def run(alpha, beta):
        _, tape = vq_forward(kernels, query, keys, counts, codebook_weight=alpha, commitment_weight=beta)
        return tape.loss, *vq_backward(kernels, g, tape)

    loss, d_query, d_keys = run(1, 0)
    residual = query - picked_by_hand(vq_forward(kernels, query, keys, counts)[1].codes, keys)
    assert loss == pytest.approx(np.average((residual**2).mean(axis=(1, 2)), weights=counts), rel=1e-12)
    loss3, d_query3, d_keys3 = run(3, 0)
    assert loss3 == pytest.approx(3 * loss)
    np.testing.assert_allclose(d_keys3, 3 * d_keys, rtol=1e-12)
    np.testing.assert_array_equal(d_query3, d_query)
    loss0, _, d_keys0 = run(0, 0)
    assert loss0 == 0 and not d_keys0.any()
    _, d_query1, _ = run(0, 1)
    _, d_query5, d_keys5 = run(0, 5)
    assert not d_keys5.any()
    np.testing.assert_allclose(d_query5 - d_query, 5 * (d_query1 - d_query), rtol=1e-10, atol=1e-13)


# --- Counts and padding -----------------------------------------------------------------------------------


@pytest.mark.parametrize("additive", [False, True])
@pytest.mark.parametrize("batch_norm", [False, True])
@pytest.mark.parametrize("method", ["sx", "vq"])
def test_rows_with_counts_equal_the_plain_computation_on_every_token(
    kernels, rng, method, batch_norm, additive
):
    query, keys, values, _ = draw(rng, b=7)
    rows = rng.permutation(np.repeat(np.arange(7), [1, 1, 30, 5, 2, 9, 12]))
    counts, kept = np.bincount(rows).astype(float), (rows != 3).astype(float)
    counts[3] = 0  # padding
    g = rng.standard_normal((60, 4 if additive else 12))
    g_rows = np.zeros((7, g.shape[1]))
    np.add.at(g_rows, rows, g)
    options = {"batch_norm": batch_norm, "additive": additive}
    if method == "vq":
        options |= {"commitment_weight": 0.4}
    out, tape = forward(kernels, method, query, keys, values, counts, **options)
    token_out, token_tape = forward(kernels, method, query[rows], keys, values, kept, **options)
    np.testing.assert_array_equal(out[rows], token_out)
    assert tape.loss == pytest.approx(token_tape.loss, rel=1e-12)
    if batch_norm:
        for a, b in zip(tape.statistics, token_tape.statistics, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-12)
    d_query, *d_books = backward(kernels, method, g_rows, tape)
    d_tokens, *d_token_books = backward(kernels, method, g, token_tape)
    summed = np.zeros_like(d_query)
    np.add.at(summed, rows, d_tokens)
    np.testing.assert_allclose(d_query, summed, rtol=1e-9, atol=1e-12)
    for a, b in zip(d_books, d_token_books, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("method", ["sx", "vq"])
def test_padding_does_not_touch_what_the_others_get(kernels, rng, method):
    query, keys, values, counts = draw(rng)  # row 2 is padding
    moved = query.copy()
    moved[2] += 100
    tapes = [forward(kernels, method, q, keys, values, counts)[1] for q in (query, moved)]
    others = np.arange(40) != 2
    np.testing.assert_array_equal(tapes[0].codes[others], tapes[1].codes[others])
    assert tapes[0].loss == pytest.approx(tapes[1].loss, rel=1e-12)
    for a, b in zip(tapes[0].statistics, tapes[1].statistics, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-12)


@pytest.mark.parametrize("method", ["sx", "vq"])
def test_a_batch_of_padding_has_no_statistics_and_no_loss(kernels, rng, method):
    query, keys, values, counts = draw(rng, b=2)
    output, tape = forward(kernels, method, query, keys, values, 0 * counts)
    assert tape.statistics is None and tape.loss == 0
    np.testing.assert_array_equal(tape.codes, score_by_hand(method, query, keys).argmax(axis=2))
    gradients = backward(kernels, method, rng.standard_normal((2, 12)), tape)
    assert all(np.isfinite(gradient).all() for gradient in gradients)
    if method == "vq":
        assert not gradients[1].any()


@pytest.mark.parametrize("additive", [False, True])
@pytest.mark.parametrize("batch_norm", [False, True])
@pytest.mark.parametrize("method", ["sx", "vq"])
def test_a_batch_of_nothing(kernels, rng, method, batch_norm, additive):
    query, keys, values, counts = draw(rng, b=0)
    output, tape = forward(
        kernels, method, query, keys, values, counts, batch_norm=batch_norm, additive=additive
    )
    assert output.shape == (0, 4 if additive else 12)
    d_query, *d_books = backward(kernels, method, output, tape)
    assert d_query.shape == query.shape
    assert [d.shape for d in d_books] == [a.shape for a in (keys, values)][: len(d_books)]
    assert not any(d.any() for d in d_books)


@pytest.mark.parametrize("method", ["sx", "vq"])
def test_nothing_that_goes_in_is_changed(kernels, rng, method):
    arrays = draw(rng, shared=True)
    g = rng.standard_normal((40, 12))
    before = [a.copy() for a in (*arrays, g)]
    output, tape = forward(kernels, method, *arrays)
    held = output.copy()
    backward(kernels, method, g, tape)
    for a, b in zip((*arrays, g, output), (*before, held), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("batch_norm", [False, True])
@pytest.mark.parametrize("method", ["sx", "vq"])
def test_the_code_of_a_row_in_evaluation_does_not_depend_on_the_rows_beside_it(
    kernels, rng, method, batch_norm
):
    query, keys, _, _ = draw(rng, b=500, s=16, K=32, dtype=np.float32)
    statistics = (np.zeros(32, np.float32), np.ones(32, np.float32)) if batch_norm else None
    codes = codes_of(kernels, method, query, keys, statistics)
    np.testing.assert_array_equal(codes[::-7], codes_of(kernels, method, query[::-7], keys, statistics))
    alone = [codes_of(kernels, method, query[i : i + 1], keys, statistics)[0] for i in range(20)]
    np.testing.assert_array_equal(codes[:20], alone)


def test_the_width_of_queries_is_free_in_sx(kernels, rng):
    query, keys, values, counts = draw(rng, s=3, width=7)
    output, tape = sx_forward(kernels, query, keys, values, counts)
    assert output.shape == (40, 21)
    shapes = [gradient.shape for gradient in sx_backward(kernels, output, tape)]
    assert shapes == [(40, 3, 3), (3, 5, 3), (3, 5, 7)]


def test_compose_backward_is_the_transpose_of_compose(kernels, rng):
    for additive, dim in ((False, 12), (True, 4)):
        codes, values = rng.integers(0, 5, (6, 3)), rng.standard_normal((3, 5, 4))
        g = rng.standard_normal((6, dim))
        d_picked = quantize.compose_backward(g, 3, additive)
        left = (g * quantize.compose(kernels, codes, values, additive)).sum()
        assert left == pytest.approx((d_picked * picked_by_hand(codes, values)).sum())
