"""Near-lossless binarization: gradients with the bits held, draws by frequency, two decoders of one code."""

import numpy as np
import pytest

from baselines import NearLosslessBinarizer, near_lossless
from baselines.binary import random_frame, weighted_mean
from baselines.near_lossless import TiedAutoencoder, batches
from dpq_ref.trainer import train


def table(n=400, d=12, seed=0, dtype=np.float64):
    rng = np.random.default_rng(seed)
    return (rng.standard_normal((n, d)) @ np.diag(0.8 ** np.arange(d)) + 0.2).astype(dtype)


def frequencies(n, seed=1):
    return np.random.default_rng(seed).zipf(1.5, n).clip(max=10**5).astype(float)


def error(X, rows, weights=1.0):
    return float((weights * ((X - rows) ** 2).sum(axis=1)).sum())


@pytest.mark.parametrize(("c", "d"), [(20, 6), (4, 6), (1, 1)])
@pytest.mark.parametrize("regularization", [0.0, 0.7])
def test_gradients_with_the_bits_held(c, d, regularization):
    rng = np.random.default_rng(0)
    X, W, bias = rng.standard_normal((30, d)), 0.4 * rng.standard_normal((c, d)), rng.standard_normal(d)
    bits = (X @ W.T >= 0).astype(float)

    def loss(W, bias):
        y = np.clip(bits @ W + bias, -1, 1)
        return ((X - y) ** 2).sum() / (2 * len(X)) + regularization / 2 * ((W.T @ W - np.eye(d)) ** 2).sum()

    model = TiedAutoencoder(W, regularization)
    model.params["bias"] = bias
    np.testing.assert_allclose(model.loss_and_gradients(X), loss(W, bias), rtol=1e-12)
    u = np.abs(bits @ W + bias)
    assert c == 1 or (u < 1).any() and (u > 1).any() and (np.abs(u - 1) > 1e-4).all()  # both sides, no corner
    for name, shape in (("weight", W.shape), ("bias", bias.shape)):
        for _ in range(5):
            step = rng.standard_normal(shape)
            plus, minus = (
                loss(W + h * step, bias) if name == "weight" else loss(W, bias + h * step)
                for h in (1e-6, -1e-6)
            )
            np.testing.assert_allclose(
                (model.grads[name] * step).sum(), (plus - minus) / 2e-6, rtol=1e-6, atol=1e-7
            )


def test_the_decoder_by_hand():
    X, weights = table(), frequencies(400)
    for w in (np.ones(400), weights):
        model = NearLosslessBinarizer(n_bits=20, random_state=0, learning_rate=0.05).fit(X, sample_weight=w)
        bits = (X @ model.weight_.T >= 0).astype(float)
        np.testing.assert_array_equal(model.codes_, bits)
        y = np.clip(bits @ model.weight_ + model.bias_, -1, 1)
        assert (np.abs(y) == 1).any()
        np.testing.assert_allclose(model.compress().reconstruct(), model.scale_ * y, atol=1e-5)
        best = error(X, model.scale_ * y, w)
        assert all(best < error(X, model.scale_ * factor * y, w) for factor in (0.99, 1.01))
        assert np.abs(model.compress().reconstruct()).max() <= np.float32(model.scale_)


def test_loss_falls_and_reaches_orthogonality():
    X = table(2000, dtype=np.float32)
    for c in (30, 12, 5):
        model = NearLosslessBinarizer(n_bits=c, epochs=20, learning_rate=0.02, random_state=0).fit(X)
        assert model.objective_.shape == (20,)
        assert model.objective_[-1] < 0.9 * model.objective_[0]
        values = np.linalg.svd(model.weight_, compute_uv=False)
        assert (0.5 < values).all() and (values < 1.5).all()
    strong = NearLosslessBinarizer(n_bits=30, regularization=20, learning_rate=0.005, random_state=0).fit(X)
    np.testing.assert_allclose(strong.weight_.T @ strong.weight_, np.eye(12), atol=0.1)


@pytest.mark.parametrize(("decoder", "share"), [("tied", 0.6), ("least_squares", 0.95)])
def test_training_helps_the_bits(decoder, share):
    X = table(2000, 30, dtype=np.float32)
    before, after = (
        NearLosslessBinarizer(n_bits=8, decoder=decoder, epochs=20, learning_rate=rate, random_state=0).fit(X)
        for rate in (1e-9, 0.03)
    )
    assert error(X, after.compress().reconstruct()) < share * error(X, before.compress().reconstruct())


@pytest.mark.parametrize("weighted", [False, True])
def test_least_squares_decode_the_same_bits_no_worse(weighted):
    X, weights = table(), frequencies(400) if weighted else np.ones(400)
    tied, fitted = (
        NearLosslessBinarizer(n_bits=16, decoder=decoder, random_state=0).fit(X, sample_weight=weights)
        for decoder in ("tied", "least_squares")
    )
    np.testing.assert_array_equal(tied.codes_, fitted.codes_)
    rows = fitted.compress().reconstruct()
    centred = error(X, weighted_mean(X, weights), weights)
    assert error(X, rows, weights) < min(error(X, tied.compress().reconstruct(), weights), centred)
    assert fitted.compress().bits() == {"codes": 6400, "basis": 32 * 16 * 12, "offset": 32 * 12}
    assert tied.compress().bits() == fitted.compress().bits() | {"bound": 32}


@pytest.mark.parametrize("scale", [2.0**-40, 2.0**40])
def test_scale_of_the_table_does_not_matter(scale):
    X = table()
    a, b = (NearLosslessBinarizer(n_bits=16, random_state=0).fit(T) for T in (X, scale * X))
    np.testing.assert_array_equal(a.codes_, b.codes_)
    np.testing.assert_allclose(scale * a.compress().reconstruct(), b.compress().reconstruct(), rtol=1e-6)


def test_draws_follow_the_shares():
    shares = np.array([0.5, 0.0, 0.125, 0.3, 0.075, 0.0])
    stream = batches(shares, 4, np.random.default_rng(0))
    counts = np.zeros(6)
    for _ in range(3000):
        epoch = np.concatenate([next(stream), next(stream)])
        assert len(epoch) == 6
        counts += np.bincount(epoch, minlength=6)
        assert (np.abs(np.bincount(epoch, minlength=6) - 6 * shares) < 1).all()
    np.testing.assert_allclose(counts / counts.sum(), shares, atol=0.01)


def test_the_learning_rate_falls_by_the_epoch(monkeypatch):
    rates = []

    def spy(*args, schedule, **kwargs):
        rates.extend(schedule(step) for step in range(1, kwargs["steps"] + 1))
        return train(*args, schedule=schedule, **kwargs)

    monkeypatch.setattr(near_lossless, "train", spy)
    NearLosslessBinarizer(n_bits=4, epochs=3, random_state=0).fit(table())  # 400 rows, 6 batches of 75
    np.testing.assert_allclose(rates, np.repeat([1e-3, 0.95e-3, 0.95**2 * 1e-3], 6))


def test_equal_shares_make_each_epoch_a_permutation():
    for n, size in ((1, 75), (75, 75), (76, 75), (1000, 7)):
        stream = batches(np.full(n, 1 / n), size, np.random.default_rng(0))
        steps = -(-n // size)
        epochs = [np.concatenate([next(stream) for _ in range(steps)]) for _ in range(3)]
        for epoch in epochs:
            np.testing.assert_array_equal(np.sort(epoch), np.arange(n))
        assert n < 70 or (epochs[0] != epochs[1]).any()


def test_rows_without_weight_do_not_count():
    X, weights = table(), frequencies(400)
    weights[300:] = 0
    other = np.r_[X[:300], 1e3 * X[300:]]
    a, b = (
        NearLosslessBinarizer(n_bits=16, random_state=0).fit(T, sample_weight=weights) for T in (X, other)
    )
    for name in ("weight_", "bias_", "scale_", "decoder_"):
        np.testing.assert_array_equal(getattr(a, name), getattr(b, name))


def test_random_frames_are_orthonormal():
    rng = np.random.default_rng(0)
    for c, d in ((5, 3), (3, 5), (4, 4), (1, 1)):
        W = random_frame(c, d, rng)
        product = W.T @ W if c >= d else W @ W.T
        assert W.shape == (c, d)
        np.testing.assert_allclose(product, np.eye(min(c, d)), atol=1e-12)


def test_seeds():
    X = table(dtype=np.float32)
    a, b, c = (NearLosslessBinarizer(n_bits=16, random_state=seed).fit(X) for seed in (0, 0, 1))
    for name in ("weight_", "bias_", "objective_", "codes_", "decoder_"):
        np.testing.assert_array_equal(getattr(a, name), getattr(b, name))
    assert (a.codes_ != c.codes_).any()


@pytest.mark.parametrize("X", [np.zeros((20, 7)), np.full((20, 7), 0.1), np.ones((1, 7)), np.ones((20, 1))])
@pytest.mark.parametrize("decoder", ["tied", "least_squares"])
def test_degenerate_tables(X, decoder):
    model = NearLosslessBinarizer(n_bits=9, decoder=decoder, random_state=0).fit(np.asfortranarray(X))
    rows = model.compress().reconstruct()
    assert np.isfinite(rows).all() and error(X, rows) <= (X**2).sum()
    assert decoder == "tied" or error(X, rows) < 1e-9


@pytest.mark.parametrize("decoder", ["tied", "least_squares"])
def test_a_budget_is_used_up(decoder):
    X = table()
    for extra, tied in ((0, 4), (31, 4), (32, 5), (500, 5)):
        budget = 400 * 5 + 32 * (5 * 12 + 12) + extra
        model = NearLosslessBinarizer(bits=budget, decoder=decoder, epochs=1, random_state=0).fit(X)
        used = sum(model.compress().bits().values())
        assert budget - (400 + 32 * 12) < used <= budget
        assert len(model.weight_) == (tied if decoder == "tied" else 5)


@pytest.mark.parametrize(
    ("parameters", "error", "message"),
    [
        ({"decoder": "linear"}, ValueError, "decoder='linear'; it takes 'tied' or 'least_squares'"),
        ({"regularization": -1}, ValueError, "regularization=-1"),
        ({"regularization": np.nan}, ValueError, "regularization=nan"),
        ({"learning_rate": 0}, ValueError, "learning_rate=0"),
        ({"batch_size": 0}, ValueError, "batch_size=0"),
        ({"epochs": 2.5}, TypeError, r"epochs=2\.5"),
        ({"learning_rate": 1e6}, FloatingPointError, "step .* loss is"),
    ],
)
@pytest.mark.filterwarnings("ignore:overflow", "ignore:invalid value")
def test_bad_parameters(parameters, error, message):
    with pytest.raises(error, match=message):
        NearLosslessBinarizer(n_bits=8, random_state=0, **parameters).fit(table())
