"""Attention against loops over single sequences and queries, finite differences, and what masks promise."""

import numpy as np
import pytest
import scipy.special

from dpq_ref.gradcheck import directional
from dpq_ref.layers.attention import (
    LuongAttention,
    MultiHeadAttention,
    length_mask,
    masked_softmax,
    masked_softmax_backward,
)

TOLERANCE = 1e-8
LENGTHS = np.array([5, 0, 1, 3])  # full, none, one, some of five places


def assert_slopes(loss, arrays, gradients, rng):
    """Each gradient is the slope of the loss in its array, which is changed in place and put back."""
    assert gradients.keys() == arrays.keys()
    for name, array in arrays.items():

        def changed(value, array=array):
            kept = array.copy()
            array[...] = value
            result = loss()
            array[...] = kept
            return result

        assert gradients[name].shape == array.shape
        assert directional(changed, array.copy(), gradients[name], rng).error < TOLERANCE, name


# --- Masks ----------------------------------------------------------------------------------------------


def test_masked_softmax_is_that_of_scipy_on_what_is_kept(rng):
    scores = 50 * rng.standard_normal((4, 3, 5))
    weights = masked_softmax(scores, length_mask(LENGTHS, 4, 5)[:, None])
    for b, length in enumerate(LENGTHS):
        expected = scipy.special.softmax(scores[b, :, :length], axis=1) if length else 0
        np.testing.assert_allclose(weights[b, :, :length], expected, rtol=1e-13)
        assert not weights[b, :, length:].any()


def test_masked_softmax_of_huge_scores_empty_memories_and_nan(rng):
    np.testing.assert_array_equal(masked_softmax(np.array([1e30, -1e30]), np.array([True, True])), [1, 0])
    np.testing.assert_array_equal(masked_softmax(np.array([7.0, np.nan]), np.array([True, False])), [1, 0])
    assert masked_softmax(np.zeros((2, 0)), np.ones((2, 0), bool)).shape == (2, 0)
    assert np.isnan(masked_softmax(np.array([1.0, np.nan]), np.array([True, True]))).all()  # not hidden
    for dtype in (np.float32, np.float64):
        assert masked_softmax(np.ones(3, dtype), np.ones(3, bool)).dtype == dtype


def test_masked_softmax_gradient(rng):
    scores, d_weights = rng.standard_normal((2, 4, 5))
    mask = length_mask(LENGTHS, 4, 5)
    d_scores = masked_softmax_backward(d_weights, masked_softmax(scores, mask))
    assert not d_scores[~mask].any()
    assert_slopes(
        lambda: float((d_weights * masked_softmax(scores, mask)).sum()),
        {"scores": scores},
        {"scores": d_scores},
        rng,
    )


@pytest.mark.parametrize(
    ("lengths", "error"), [([6], IndexError), ([-1], IndexError), ([1.0], TypeError), ([1, 2], ValueError)]
)
def test_lengths_that_do_not_fit_are_errors(lengths, error, rng):
    x = np.zeros((1, 5, 4), np.float32)
    with pytest.raises(error, match="lengths"):
        LuongAttention(4, 4, rng=rng).set_memory(x, lengths)
    with pytest.raises(error, match="lengths"):
        MultiHeadAttention(4, 2, rng=rng).forward(x, x, lengths)


# --- Luong ----------------------------------------------------------------------------------------------


def luong(rng, scaled=True, tanh=True, dtype=np.float64):
    attention = LuongAttention(4, 6, scaled=scaled, tanh=tanh, rng=rng, dtype=dtype)
    for array in attention.params.values():
        array += rng.standard_normal(array.shape).astype(dtype)
    query = rng.standard_normal((4, 3, 4)).astype(dtype)
    memory = rng.standard_normal((4, 5, 6)).astype(dtype)
    return attention, query, memory


def decode(attention, query, memory):
    """Decoder loop with input feeding: each query is added to the output before it."""
    attention.set_memory(memory, LENGTHS)
    outputs = [np.zeros_like(query[:, :1])]
    for i in range(query.shape[1]):
        outputs.append(attention.forward(query[:, i : i + 1] + outputs[-1]))
    return np.concatenate(outputs[1:], axis=1)


def decode_backward(attention, d_output):
    d_query, d_fed = np.empty_like(d_output), np.zeros_like(d_output[:, :1])
    for i in reversed(range(d_output.shape[1])):
        d_query[:, i : i + 1] = d_fed = attention.backward(d_output[:, i : i + 1] + d_fed)
    return d_query, attention.backward_memory()


@pytest.mark.parametrize("scaled", [True, False])
@pytest.mark.parametrize("tanh", [True, False])
def test_luong_by_hand(scaled, tanh, rng):
    attention, query, memory = luong(rng, scaled, tanh)
    p = attention.params
    attention.set_memory(memory, LENGTHS)
    output = attention.forward(query)
    for b, length in enumerate(LENGTHS):
        values = memory[b, :length]
        for q, y in zip(query[b], output[b], strict=True):
            scores = (p["scale"][0] if scaled else 1) * (values @ p["memory"]) @ q
            context = scipy.special.softmax(scores) @ values if length else np.zeros(6)
            expected = context @ p["output"][:6] + q @ p["output"][6:]
            np.testing.assert_allclose(y, np.tanh(expected) if tanh else expected, rtol=1e-12)


def test_luong_scale_starts_at_one(rng):
    np.testing.assert_array_equal(LuongAttention(4, 6, rng=rng).params["scale"], [1])


@pytest.mark.parametrize("scaled", [True, False])
@pytest.mark.parametrize("tanh", [True, False])
@pytest.mark.parametrize("order", ["C", "F"])
def test_luong_gradients_through_a_decoder_with_input_feeding(scaled, tanh, order, rng):
    attention, query, memory = luong(rng, scaled, tanh)
    query, memory = np.asarray(query, order=order), np.asarray(memory, order=order)
    d_output = np.asarray(rng.standard_normal(query.shape), order=order)
    inputs = {"query": query, "memory": memory, "d_output": d_output}
    before = {name: array.copy() for name, array in inputs.items()}
    decode(attention, query, memory)
    d_query, d_memory = decode_backward(attention, d_output)
    for name, array in inputs.items():
        np.testing.assert_array_equal(array, before[name])

    assert not d_memory[1].any() and not d_memory[2, 1:].any()
    assert_slopes(
        lambda: float((d_output * decode(attention, query, memory)).sum()),
        {"input query": query, "input memory": memory} | attention.params,
        {"input query": d_query, "input memory": d_memory} | attention.grads,
        rng,
    )


def test_luong_step_by_step_is_all_at_once(rng):
    attention, query, memory = luong(rng)
    d_output = rng.standard_normal(query.shape)
    attention.set_memory(memory, LENGTHS)
    at_once = [attention.forward(query), attention.backward(d_output), attention.backward_memory()]
    grads = attention.grads

    attention.set_memory(memory, LENGTHS)
    y = np.concatenate([attention.forward(query[:, i : i + 1]) for i in range(3)], axis=1)
    d = [attention.backward(d_output[:, i : i + 1]) for i in (2, 1, 0)]
    steps = [y, np.concatenate(d[::-1], axis=1), attention.backward_memory()]
    for a, b in zip(at_once, steps, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-11, atol=1e-14)
    for name, gradient in grads.items():
        np.testing.assert_allclose(attention.grads[name], gradient, rtol=1e-11, atol=1e-14)


def test_luong_backward_out_of_turn_is_an_error(rng):
    attention, query, memory = luong(rng)
    attention.set_memory(memory, LENGTHS)
    attention.forward(query, train=False)
    with pytest.raises(RuntimeError, match="0 forwards wait"):
        attention.backward_memory()
    with pytest.raises(RuntimeError, match="forward"):
        attention.backward(query)
    attention.forward(query)
    attention.forward(query)
    attention.backward(query)
    with pytest.raises(RuntimeError, match="1 forward"):
        attention.backward_memory()


# --- Several heads --------------------------------------------------------------------------------------


def multi_head(rng, dtype=np.float64):
    attention = MultiHeadAttention(6, 3, rng=rng, dtype=dtype)
    query = rng.standard_normal((4, 5, 6)).astype(dtype)
    memory = rng.standard_normal((4, 5, 6)).astype(dtype)
    return attention, query, memory


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("lengths", [LENGTHS, None])
def test_multi_head_by_hand(causal, lengths, rng):
    attention, query, memory = multi_head(rng)
    p = attention.params
    output = attention.forward(query, memory, lengths, causal=causal)
    for b in range(4):
        for t in range(5):
            seen = min(5 if lengths is None else lengths[b], t + 1 if causal else 5)
            heads = []
            for h in range(3):
                part = np.s_[:, 2 * h : 2 * h + 2]
                q = query[b, t] @ p["query"][part]
                k, v = memory[b, :seen] @ p["key"][part], memory[b, :seen] @ p["value"][part]
                heads.append(scipy.special.softmax(k @ q / np.sqrt(2)) @ v if seen else np.zeros(2))
            np.testing.assert_allclose(
                output[b, t], np.concatenate(heads) @ p["output"], rtol=1e-11, atol=1e-14
            )


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("lengths", [LENGTHS, None])
@pytest.mark.parametrize("order", ["C", "F"])
def test_multi_head_gradients(causal, lengths, order, rng):
    attention, query, memory = multi_head(rng)
    query, memory = np.asarray(query, order=order), np.asarray(memory, order=order)
    d_output = np.asarray(rng.standard_normal(query.shape), order=order)
    inputs = {"query": query, "memory": memory, "d_output": d_output}
    before = {name: array.copy() for name, array in inputs.items()}
    attention.forward(query, memory, lengths, causal=causal)
    d_query, d_memory = attention.backward(d_output)
    for name, array in inputs.items():
        np.testing.assert_array_equal(array, before[name])
    assert_slopes(
        lambda: float((d_output * attention.forward(query, memory, lengths, causal=causal)).sum()),
        {"input query": query, "input memory": memory} | attention.params,
        {"input query": d_query, "input memory": d_memory} | attention.grads,
        rng,
    )


def test_self_attention_gradient_is_the_sum_of_both(rng):
    attention, x, d_output = multi_head(rng)
    attention.forward(x, x, LENGTHS, causal=True)
    d_x = sum(attention.backward(d_output))
    loss = lambda: float((d_output * attention.forward(x, x, LENGTHS, causal=True)).sum())  # noqa: E731
    assert_slopes(loss, {"x": x}, {"x": d_x}, rng)


@pytest.mark.parametrize("kind", ["luong", "multi_head"])
def test_what_lies_beyond_a_length_changes_nothing(kind, rng):
    attention, query, memory = {"luong": luong, "multi_head": multi_head}[kind](rng)

    def run(memory):
        if kind == "multi_head":
            return attention.forward(query, memory, LENGTHS), *attention.backward(query)
        attention.set_memory(memory, LENGTHS)
        return attention.forward(query), attention.backward(query), attention.backward_memory()

    other = memory.copy()
    beyond = ~length_mask(LENGTHS, 4, 5)
    other[beyond] = 1e3 * rng.standard_normal(other[beyond].shape)
    for a, b in zip(run(memory), run(other), strict=True):
        np.testing.assert_array_equal(a, b)
        assert np.isfinite(a).all()
    assert not run(memory)[2][beyond].any()


def test_no_memory_at_all_gives_zeros(rng):
    attention, query, _ = multi_head(rng)
    assert not attention.forward(query, query, np.zeros(4, int)).any()
    assert not any(d.any() for d in attention.backward(query))
    assert attention.forward(query, query[:, :0]).shape == query.shape
    assert not attention.forward(query, query[:, :0]).any()
    assert attention.forward(query[:0], query[:0]).shape == (0, 5, 6)
    assert attention.backward(query[:0])[1].shape == (0, 5, 6)


def test_causal_attention_sees_nothing_later(rng):
    attention, x, other = multi_head(rng)
    y = attention.forward(x, x, causal=True)
    for t in range(5):
        changed = np.concatenate([x[:, : t + 1], other[:, t + 1 :]], axis=1)
        np.testing.assert_allclose(
            attention.forward(changed, changed, causal=True)[:, : t + 1], y[:, : t + 1]
        )


@pytest.mark.parametrize(("dtype", "tolerance"), [(np.float32, 2e-6), (np.float64, 1e-14)])
def test_place_by_place_is_the_full_forward(dtype, tolerance, rng):
    attention, x, memory = multi_head(rng, dtype)
    own, cross = attention.keys_values(x[:, :0]), attention.keys_values(memory)
    full, full_cross = attention.forward(x, x, causal=True), attention.forward(x, memory, LENGTHS)
    for t in range(5):
        step = x[:, t : t + 1]
        own = own.append(attention.keys_values(step))
        np.testing.assert_allclose(attention.forward_step(step, own)[:, 0], full[:, t], atol=tolerance)
        y = attention.forward_step(step, cross, LENGTHS)
        np.testing.assert_allclose(y[:, 0], full_cross[:, t], atol=tolerance)
    rows = np.array([2, 2, 0])
    np.testing.assert_allclose(
        attention.forward_step(x[rows, 4:], own.select(rows))[:, 0], full[rows, 4], atol=tolerance
    )


def test_float32_stays_float32(rng):
    attention, query, memory = luong(rng, dtype=np.float32)
    attention.set_memory(memory, LENGTHS)
    arrays = [attention.forward(query), attention.backward(query), attention.backward_memory()]
    heads, query, memory = multi_head(rng, np.float32)
    arrays += [heads.forward(query, memory, LENGTHS, causal=True), *heads.backward(query)]
    arrays += [heads.forward_step(query, heads.keys_values(memory))]
    for array in [*arrays, *attention.grads.values(), *heads.grads.values()]:
        assert array.dtype == np.float32


def test_multi_head_errors(rng):
    with pytest.raises(ValueError, match="n_heads=4 does not divide width=6"):
        MultiHeadAttention(6, 4, rng=rng)
    attention, query, memory = multi_head(rng)
    attention.forward(query, memory, train=False)
    with pytest.raises(RuntimeError, match="train=True"):
        attention.backward(query)
