"""Layer norm and the Transformer: formulas by hand, finite differences, step by step against all at once."""

import numpy as np
import pytest

from dpq_ref.gradcheck import directional
from dpq_ref.layers.norm import LayerNorm
from dpq_ref.layers.transformer import Decoder, DecoderLayer, Encoder, EncoderLayer, FeedForward, positions

TOLERANCE = 1e-8
LENGTHS = np.array([4, 0, 1, 3])  # full, none, one, some of four places


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


def shaken(layer, rng):
    """Parameters away from their start, where scales are 1 and biases 0."""
    for array in layer.params.values():
        array += 0.3 * rng.standard_normal(array.shape).astype(array.dtype)
    return layer


# --- Layer norm -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(5,), (4, 5), (2, 3, 5), (0, 5)])
@pytest.mark.parametrize("order", ["C", "F"])
def test_layer_norm_by_hand_and_its_gradients(shape, order, rng):
    layer = shaken(LayerNorm(5, dtype=np.float64), rng)
    x, d_output = (np.asarray(rng.standard_normal(shape), order=order) for _ in range(2))
    before = x.copy(), d_output.copy()
    y = layer.forward(x)
    for row, out in zip(x.reshape(-1, 5), y.reshape(-1, 5), strict=True):
        normalized = (row - row.mean()) / np.sqrt(row.var() + 1e-6)
        np.testing.assert_allclose(out, layer.params["gamma"] * normalized + layer.params["beta"], rtol=1e-12)
    d_x = layer.backward(d_output)
    np.testing.assert_array_equal(x, before[0])
    np.testing.assert_array_equal(d_output, before[1])
    loss = lambda: float((d_output * layer.forward(x)).sum())  # noqa: E731
    assert_slopes(loss, {"x": x} | layer.params, {"x": d_x} | layer.grads, rng)


def test_layer_norm_of_constants_and_far_from_zero(rng):
    layer = LayerNorm(64)
    assert not layer.forward(np.full((2, 64), 7, np.float32)).any()
    x = rng.standard_normal((3, 64))
    far = (x + 1e3).astype(np.float32)
    y = layer.forward(far)
    assert y.dtype == np.float32 and layer.backward(y).dtype == np.float32
    np.testing.assert_allclose(y, LayerNorm(64, dtype=np.float64).forward(far.astype(np.float64)), atol=1e-4)


# --- Positions, feed-forward ----------------------------------------------------------------------------


@pytest.mark.parametrize("width", [6, 7, 1])
def test_positions_by_hand(width):
    encoding = positions(5, width, dtype=np.float64)
    for p in range(5):
        for i in range(width):
            angle = p / 10000 ** ((i - i % 2) / width)
            assert encoding[p, i] == pytest.approx(np.cos(angle) if i % 2 else np.sin(angle), abs=1e-15)
    np.testing.assert_array_equal(positions(2, width, start=3, dtype=np.float64), encoding[3:])
    assert positions(0, width).shape == (0, width)


def test_feed_forward_by_hand(rng):
    layer = shaken(FeedForward(3, 5, rng=rng, dtype=np.float64), rng)
    p, x = layer.params, rng.standard_normal((2, 4, 3))
    inner = np.maximum(x @ p["inner.weight"] + p["inner.bias"], 0)
    np.testing.assert_allclose(layer.forward(x), inner @ p["outer.weight"] + p["outer.bias"], rtol=1e-12)


# --- Encoder, decoder -----------------------------------------------------------------------------------


def make(kind, rng, keep=1.0, dtype=np.float64):
    """Layer with half of its rectifiers on and half off, far from where they bend."""
    new = {
        "encoder layer": EncoderLayer,
        "decoder layer": DecoderLayer,
        "encoder": Encoder,
        "decoder": Decoder,
    }
    sizes = (6, 3, 10) if "layer" in kind else (2, 6, 3, 10)
    layer = shaken(new[kind](*sizes, keep=keep, rng=np.random.default_rng(1), dtype=dtype), rng)
    for name, array in layer.params.items():
        if name.endswith("inner.weight"):
            array /= 10
        if name.endswith("inner.bias"):
            array[:] = (-1) ** np.arange(10)
    return layer


@pytest.mark.parametrize("kind", ["encoder layer", "decoder layer", "encoder", "decoder"])
@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("keep", [1.0, 0.7])
def test_gradients(kind, order, keep, rng):
    layer = make(kind, rng, keep)
    inputs = {"words": np.asarray(rng.standard_normal((4, 4, 6)), order=order)}
    if "decoder" in kind:
        inputs["memory"] = np.asarray(rng.standard_normal((4, 4, 6)), order=order)
    d_output = np.asarray(rng.standard_normal((4, 4, 6)), order=order)
    before = {name: array.copy() for name, array in inputs.items()} | {"d": d_output.copy()}
    dropout = getattr(layer, "dropout", None) or layer.dropout1  # all of a layer share one generator
    start = dropout.rng.bit_generator.state

    def run():
        dropout.rng.bit_generator.state = start
        return layer.forward(*inputs.values(), LENGTHS)

    run()
    gradients = layer.backward(d_output)
    for name, array in (inputs | {"d": d_output}).items():
        np.testing.assert_array_equal(array, before[name])
    gradients = dict(zip(inputs, gradients if len(inputs) == 2 else [gradients], strict=True))
    loss = lambda: float((d_output * run()).sum())  # noqa: E731
    assert_slopes(loss, inputs | layer.params, gradients | layer.grads, rng)


def test_dropout_stands_where_the_paper_has_it(rng):
    encoder, decoder = make("encoder", rng, keep=0.5), make("decoder", rng, keep=0.5)
    x = rng.standard_normal((4, 4, 6))
    train, again = encoder.forward(x, LENGTHS), encoder.forward(x, LENGTHS)
    assert not np.allclose(train, again)
    np.testing.assert_array_equal(encoder.forward(x, LENGTHS, False), encoder.forward(x, LENGTHS, False))

    def droppings(layer):
        parts = [layer, *layer.stack]
        return sum(name.startswith("dropout") for part in parts for name in vars(part))

    assert (droppings(encoder), droppings(decoder)) == (1 + 2 * 2, 1 + 2 * 3)


def test_a_layer_without_effect_passes_its_input_on(rng):
    x = rng.standard_normal((4, 4, 6))
    encoder, decoder = make("encoder layer", rng), make("decoder layer", rng)
    for layer in (encoder, decoder):
        for name, array in layer.params.items():
            if name.endswith(("attention.output", "outer.weight", "outer.bias")):
                array[:] = 0
    np.testing.assert_array_equal(encoder.forward(x, LENGTHS), x)
    np.testing.assert_array_equal(decoder.forward(x, x, LENGTHS), x)


def test_word_vectors_are_scaled_and_get_their_positions(rng):
    encoder = Encoder(1, 6, 3, 10, rng=rng, dtype=np.float64)
    for name, array in encoder.params.items():
        if name.endswith(("attention.output", "outer.weight")):
            array[:] = 0
    x = rng.standard_normal((2, 4, 6))
    expected = LayerNorm(6, dtype=np.float64).forward(np.sqrt(6) * x + positions(4, 6, dtype=np.float64))
    np.testing.assert_allclose(encoder.forward(x, [4, 4]), expected, rtol=1e-12)


def test_what_lies_beyond_a_length_changes_nothing_before_it(rng):
    encoder, decoder = make("encoder", rng), make("decoder", rng)
    x, other, target = rng.standard_normal((3, 4, 4, 6))
    beyond = np.arange(4) >= LENGTHS[:, None]
    changed = np.where(beyond[..., None], other, x)
    y = encoder.forward(x, LENGTHS, False)
    np.testing.assert_allclose(encoder.forward(changed, LENGTHS, False)[~beyond], y[~beyond], rtol=1e-10)
    out = decoder.forward(target, y, LENGTHS, False)
    assert np.isfinite(out).all()
    np.testing.assert_array_equal(
        decoder.forward(target, np.where(beyond[..., None], other, y), LENGTHS, False), out
    )
    later = np.concatenate([target[:, :2], other[:, 2:]], axis=1)
    np.testing.assert_allclose(decoder.forward(later, y, LENGTHS, False)[:, :2], out[:, :2], rtol=1e-10)


@pytest.mark.parametrize(("dtype", "tolerance"), [(np.float32, 5e-6), (np.float64, 1e-13)])
def test_step_by_step_is_the_full_forward(dtype, tolerance, rng):
    decoder = make("decoder", rng, keep=0.7, dtype=dtype)
    words, memory = rng.standard_normal((2, 4, 4, 6)).astype(dtype)
    full = decoder.forward(words, memory, LENGTHS, train=False)
    state = decoder.start(memory, LENGTHS)
    for t in range(4):
        y, state = decoder.forward_step(words[:, t : t + 1], state)
        assert y.dtype == dtype
        np.testing.assert_allclose(y[:, 0], full[:, t], atol=tolerance)


def test_a_beam_of_reordered_sequences_is_the_full_forward(rng):
    decoder = make("decoder", rng)
    words, memory = rng.standard_normal((2, 4, 4, 6))
    history, rows = words[:, :0], np.arange(4)
    state = decoder.start(memory, LENGTHS)
    for choice in ([0, 0, 3, 3, 2], [1, 0, 2, 4, 4], [0, 1, 2, 3, 4]):
        state = state.select(np.array(choice))
        rows, history = rows[choice], history[choice]
        new = rng.standard_normal((5, 1, 6))
        history = np.concatenate([history, new], axis=1)
        kept = state
        y, state = decoder.forward_step(new, state)
        np.testing.assert_array_equal(decoder.forward_step(new, kept)[0], y)  # the state before is as it was
        full = decoder.forward(history, memory[rows], LENGTHS[rows], train=False)
        np.testing.assert_allclose(y[:, 0], full[:, -1], atol=1e-13)


def test_an_empty_batch_and_a_bad_size(rng):
    encoder, decoder = make("encoder", rng), make("decoder", rng)
    none = np.zeros((0, 4, 6))
    assert encoder.forward(none, np.zeros(0, int)).shape == encoder.backward(none).shape == (0, 4, 6)
    assert decoder.forward(none, none, np.zeros(0, int)).shape == decoder.backward(none)[1].shape == (0, 4, 6)
    with pytest.raises(ValueError, match="n_layers"):
        Encoder(0, 6, 3, 10)
    with pytest.raises(ValueError, match="n_heads"):
        Decoder(1, 6, 4, 10)


def test_float32_stays_float32(rng):
    encoder, decoder = make("encoder", rng, 0.9, np.float32), make("decoder", rng, 0.9, np.float32)
    x = rng.standard_normal((4, 4, 6)).astype(np.float32)
    arrays = [y := encoder.forward(x, LENGTHS), decoder.forward(x, y, LENGTHS)]
    arrays += [encoder.backward(x), *decoder.backward(x), *encoder.grads.values(), *decoder.grads.values()]
    assert {array.dtype for array in arrays} == {np.dtype(np.float32)}
