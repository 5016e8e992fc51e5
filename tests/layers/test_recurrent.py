"""LSTM, one way and both ways: formula by hand, finite differences, states, lengths."""

import numpy as np
import pytest

from dpq_ref.gradcheck import directional
from dpq_ref.layers import LSTM, BidirectionalLSTM

TOLERANCE = 1e-8
B, T, N, H = 3, 5, 4, 6


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def by_hand(layer, x, hidden, cell, length):
    """One sequence (t, n), step by step, gate by gate."""
    W, U, bias = (layer.params[name] for name in ("input_weight", "hidden_weight", "bias"))
    h, output = layer.n_hidden, np.zeros((len(x), layer.n_hidden))
    for t in range(length):
        gates = x[t] @ W + hidden @ U + bias
        i, f, g, o = (gates[k * h : (k + 1) * h] for k in range(4))
        cell = sigmoid(f) * cell + sigmoid(i) * np.tanh(g)
        hidden = sigmoid(o) * np.tanh(cell)
        output[t] = hidden
    return output, hidden, cell


def random_layer(cls, rng, backend="numba", dtype=np.float64):
    layer = cls(N, H, rng=rng, dtype=dtype, backend=backend)
    for array in layer.params.values():
        array += rng.standard_normal(array.shape)
    return layer


def random_state(rng):
    return rng.standard_normal((B, H)), rng.standard_normal((B, H))


@pytest.mark.parametrize("backend", ["numpy", "numba"])
@pytest.mark.parametrize("lengths", [None, [5, 0, 3]])
def test_forward_by_hand(backend, lengths, rng):
    layer = random_layer(LSTM, rng, backend)
    x, state = rng.standard_normal((B, T, N)), random_state(rng)
    output = layer.forward(x, state=state, lengths=lengths)
    for i in range(B):
        length = T if lengths is None else lengths[i]
        expected = by_hand(layer, x[i], state[0][i], state[1][i], length)
        for actual, wanted in zip((output[i], layer.state[0][i], layer.state[1][i]), expected, strict=True):
            np.testing.assert_allclose(actual, wanted, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("lengths", [None, [5, 0, 3], [5, 5, 5]])
def test_gradients_of_everything(order, lengths, rng):
    """Input, parameters and both states before, from the outputs and both states after."""
    layer = random_layer(LSTM, rng)
    x, (hidden, cell) = np.asarray(rng.standard_normal((B, T, N)), order=order), random_state(rng)
    d_output, d_state = rng.standard_normal((B, T, H)), random_state(rng)

    def loss(**changed):
        state = changed.get("hidden", hidden), changed.get("cell", cell)
        output = layer.forward(changed.get("x", x), state=state, lengths=lengths)
        pairs = ((output, d_output), *zip(layer.state, d_state, strict=True))
        return float(sum((a * d).sum() for a, d in pairs))

    loss()
    before = [a.copy() for a in (x, d_output, *d_state)]
    d_x = layer.backward(d_output, d_state=d_state)
    for a, old in zip((x, d_output, *d_state), before, strict=True):
        np.testing.assert_array_equal(a, old)
    d_hidden, d_cell = layer.d_state
    grads = layer.grads
    for name, value, gradient in (("x", x, d_x), ("hidden", hidden, d_hidden), ("cell", cell, d_cell)):
        assert directional(lambda a, n=name: loss(**{n: a}), value, gradient, rng).error < TOLERANCE, name
    for name, gradient in grads.items():
        assert directional(
            with_parameter(layer.params, name, loss), layer.params[name], gradient, rng
        ).error < (TOLERANCE), name


def with_parameter(params, name, loss):
    def changed(array):
        kept, params[name] = params[name], array
        value = loss()
        params[name] = kept
        return value

    return changed


def test_state_carries_over(rng):
    """Two halves of a sequence are the whole; their gradients add up to those of the whole, in reverse."""
    layer = random_layer(LSTM, rng)
    x, d_output = rng.standard_normal((B, T, N)), rng.standard_normal((B, T, H))
    whole = layer.forward(x)
    d_x, grads = layer.backward(d_output), layer.grads
    first = layer.forward(x[:, :2])
    middle = layer.state
    second = layer.forward(x[:, 2:], state=middle)
    np.testing.assert_allclose(np.concatenate([first, second], axis=1), whole, rtol=1e-12)
    d_second, grads_second = layer.backward(d_output[:, 2:]), layer.grads
    d_middle = layer.d_state
    layer.forward(x[:, :2])
    d_first = layer.backward(d_output[:, :2], d_state=d_middle)
    np.testing.assert_allclose(np.concatenate([d_first, d_second], axis=1), d_x, rtol=1e-10, atol=1e-12)
    for name, gradient in grads.items():
        np.testing.assert_allclose(layer.grads[name] + grads_second[name], gradient, rtol=1e-10, atol=1e-12)


def test_padding_changes_nothing(rng):
    """Neither what stands beyond the length nor its upstream gradient matters."""
    layer = random_layer(LSTM, rng)
    x, d_output, lengths = rng.standard_normal((B, T, N)), rng.standard_normal((B, T, H)), [2, 5, 0]
    beyond = np.arange(T) >= np.array(lengths)[:, None]
    results = []
    for _ in range(2):
        output = layer.forward(x, lengths=lengths)
        assert not output[beyond].any()
        d_x = layer.backward(d_output)
        assert not d_x[beyond].any()
        results.append([output, *layer.state, d_x, *layer.grads.values()])
        x[beyond], d_output[beyond] = 99, -99
    for a, b in zip(*results, strict=True):
        np.testing.assert_array_equal(a, b)


def test_no_steps_leave_the_state_and_no_gradient(rng):
    layer, state = random_layer(LSTM, rng), random_state(rng)
    assert layer.forward(np.zeros((B, 0, N)), state=state).shape == (B, 0, H)
    np.testing.assert_array_equal(layer.state, state)
    assert layer.backward(np.zeros((B, 0, H)), d_state=state).shape == (B, 0, N)
    np.testing.assert_array_equal(layer.d_state, state)
    assert not any(gradient.any() for gradient in layer.grads.values())


def test_large_gates_saturate():
    layer = LSTM(1, 1)
    for name in ("input_weight", "bias"):
        layer.params[name][:] = 1e4
    assert layer.forward(np.ones((1, 3, 1), np.float32))[0, -1, 0] == pytest.approx(np.tanh(3))
    layer.params["input_weight"][:] = -2e4
    assert layer.forward(np.ones((1, 3, 1), np.float32))[0, -1, 0] == 0


def test_bad_shapes_and_order_of_calls_are_named():
    layer = LSTM(3, 2)
    with pytest.raises(ValueError, match=r"x must have shape \(b, t, 3\), got \(1, 2, 4\)"):
        layer.forward(np.zeros((1, 2, 4), np.float32))
    with pytest.raises(RuntimeError, match="forward"):
        layer.backward(np.zeros((1, 2, 2), np.float32))
    layer.forward(np.zeros((1, 2, 3), np.float32), train=False)
    with pytest.raises(RuntimeError, match="forward"):
        layer.backward(np.zeros((1, 2, 2), np.float32))


def test_float32_stays(rng):
    layer = LSTM(N, H)
    output = layer.forward(np.ones((B, T, N), np.float32), lengths=[5, 2, 0])
    arrays = [output, layer.backward(output), *layer.state, *layer.d_state, *layer.grads.values()]
    assert {a.dtype for a in arrays} == {np.dtype(np.float32)}


@pytest.mark.parametrize("lengths", [None, [5, 0, 3]])
def test_both_ways(lengths, rng):
    """The way back sees each sequence turned round, and its outputs stand at the steps they belong to."""
    layer = random_layer(BidirectionalLSTM, rng)
    x, d_output = rng.standard_normal((B, T, N)), rng.standard_normal((B, T, 2 * H))
    output = layer.forward(x, lengths=lengths)
    zero = np.zeros(H)
    for i in range(B):
        length = T if lengths is None else lengths[i]
        there, *_ = by_hand(layer.layers["forward"], x[i], zero, zero, length)
        back, hidden, _ = by_hand(layer.layers["backward"], x[i, :length][::-1], zero, zero, length)
        np.testing.assert_allclose(output[i, :, :H], there, rtol=1e-12, atol=1e-13)
        np.testing.assert_allclose(output[i, :length, H:], back[::-1], rtol=1e-12, atol=1e-13)
        assert not output[i, length:].any()
        np.testing.assert_allclose(layer.states[1][0][i], hidden, rtol=1e-12, atol=1e-13)

    d_states = random_state(rng), random_state(rng)

    def loss(x=x):
        output = layer.forward(x, lengths=lengths)
        pairs = ((output, d_output), *zip(sum(layer.states, ()), sum(d_states, ()), strict=True))
        return float(sum((a * d).sum() for a, d in pairs))

    loss()
    d_x = layer.backward(d_output, d_states=d_states)
    grads = layer.grads
    assert directional(loss, x, d_x, rng).error < TOLERANCE
    assert set(grads) == set(layer.params)
    for name, gradient in grads.items():
        way, _, key = name.partition(".")
        params = layer.layers[way].params
        assert directional(with_parameter(params, key, loss), params[key], gradient, rng).error < TOLERANCE
