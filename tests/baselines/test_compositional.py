"""Codes learned by gradient descent: gradients by finite differences, what is stored, what is learned."""

import os
from pathlib import Path

import numpy as np
import pytest
from sklearn.base import clone

from baselines import CompositionalCodes, DPQReconstruction, KDCodes, ProductQuantizer
from baselines.coders import GumbelCoder, KDCoder, gumbel, initial, least_squares, one_hot
from baselines.reconstruction import EVALUATIONS, Reconstruction, batches, scale_of
from dpq_ref import backend
from dpq_ref.compressed import load
from dpq_ref.gradcheck import directional
from dpq_ref.layers.embedding import DPQEmbedding

M, K, DIM, HIDDEN = 3, 4, 5, 7
METHODS = {
    "compositional": CompositionalCodes(4, 4, steps=60, random_state=0),
    "compositional, refit": CompositionalCodes(4, 4, steps=60, refit=True, random_state=0),
    "kd": KDCodes(4, 4, steps=60, random_state=0),
    "kd, map": KDCodes(4, 4, code_width=3, steps=60, refit=True, random_state=0),
    "dpq-vq": DPQReconstruction(4, 4, steps=60, kmeans=False, random_state=0),
    "dpq-sx": DPQReconstruction(4, 4, method="sx", steps=60, kmeans=False, random_state=0),
    "dpq-vq, shared": DPQReconstruction(4, 4, shared=True, steps=60, random_state=0),
}
each_method = pytest.mark.parametrize("model", METHODS.values(), ids=METHODS)


def table(n=300, d=8, seed=0, dtype=np.float32):
    return np.random.default_rng(seed).standard_normal((n, d)).astype(dtype)


def planted(n=1000, d=16, n_groups=4, n_codes=4, seed=0):
    """Rows that are sums of one row of each codebook, and nothing else."""
    rng = np.random.default_rng(seed)
    books = rng.standard_normal((n_groups, n_codes, d))
    codes = rng.integers(0, n_codes, (n, n_groups))
    return books[np.arange(n_groups), codes].sum(axis=1).astype(np.float32)


def error(model, X, weights=None):
    weights = np.ones(len(X)) if weights is None else weights
    difference = X.astype(np.float64) - model.compress().reconstruct()
    return (weights[:, None] * difference**2).sum()


# --- Gradients --------------------------------------------------------------------------------------------


def make_coder(kind, rng, name="numpy", temperature=0.7):
    shapes = {"logits": (DIM, M * K), "logits_bias": (M * K,), "codebooks": (M * K, DIM)}
    if kind == "gumbel":
        shapes |= {"hidden": (DIM, HIDDEN), "hidden_bias": (HIDDEN,), "logits": (HIDDEN, M * K)}
    elif kind == "kd, map":
        shapes |= {"codebooks": (M * K, 2), "basis": (2, DIM)}
    params = {name: rng.standard_normal(shape) for name, shape in shapes.items()}
    return (GumbelCoder if kind == "gumbel" else KDCoder)(
        params,
        rng.standard_normal((9, DIM)),
        n_groups=M,
        temperature=temperature,
        kernels=backend.get(name),
        rng=rng,
    )


def assert_gradient(coder, name, value, rng):
    """The gradient of one parameter is the slope of `value()`."""

    def loss(array):
        before, coder.params[name] = coder.params[name], array
        result = value()
        coder.params[name] = before
        return result

    check = directional(loss, coder.params[name], coder.grads[name], rng)
    assert check.numeric != 0 and check.error < 1e-7, (name, check)


@pytest.mark.parametrize("name", ["numpy", "numba"])
def test_gradients_of_compositional_codes(name, rng):
    coder = make_coder("gumbel", rng, name)
    noise, g = gumbel(rng, (9, M * K), np.float64), rng.standard_normal((9, DIM))
    coder.forward(coder.rows, noise)
    coder.backward(g)
    assert coder.grads.keys() == coder.params.keys()
    for parameter in coder.params:
        assert_gradient(coder, parameter, lambda: float((g * coder.forward(coder.rows, noise)).sum()), rng)


@pytest.mark.parametrize("name", ["numpy", "numba"])
@pytest.mark.parametrize("kind", ["kd", "kd, map"])
def test_gradients_of_kd_codes(kind, name, rng):
    coder = make_coder(kind, rng, name)
    x, g = coder.rows, rng.standard_normal((9, DIM))
    coder.forward(x)
    coder.backward(g)
    assert coder.grads.keys() == coder.params.keys()
    codes, books = coder.codes(x), coder.params["codebooks"].copy()

    def mapped(total):
        return float((g * (total @ coder.params["basis"] if kind == "kd, map" else total)).sum())

    def hard():
        picked = coder.params["codebooks"].reshape(M, K, -1)[np.arange(M), codes]
        return mapped(picked.sum(axis=1))

    def soft():
        logits = (x @ coder.params["logits"] + coder.params["logits_bias"]).reshape(9, M, K) / 0.7
        p = np.exp(logits) / np.exp(logits).sum(axis=2, keepdims=True)
        return mapped(np.einsum("bmk,mkw->bmw", p, books.reshape(M, K, -1)).sum(axis=1))

    for parameter in coder.params:
        assert_gradient(coder, parameter, soft if parameter.startswith("logits") else hard, rng)


@pytest.mark.parametrize("kind", ["gumbel", "kd"])
def test_loss_is_half_the_squared_error_and_has_these_gradients(kind, rng):
    coder, ids = make_coder(kind, rng), np.array([3, 3, 0, 8])

    def loss():
        coder.rng = np.random.default_rng(5)  # the same noise each time
        return coder.loss_and_gradients(ids)

    x = coder.rows[ids]
    by_hand = loss()
    coder.rng = np.random.default_rng(5)
    np.testing.assert_allclose(by_hand, ((coder.forward(x) - x) ** 2).sum() / 2 / 4)
    for parameter in coder.params if kind == "gumbel" else ["codebooks"]:
        loss()
        assert_gradient(coder, parameter, loss, rng)


@pytest.mark.parametrize("kind", ["gumbel", "kd", "kd, map"])
def test_training_at_a_low_temperature_is_the_hard_table(kind, rng):
    coder = make_coder(kind, rng, temperature=1e-6)
    output = (
        coder.forward(coder.rows, np.zeros((9, M * K))) if kind == "gumbel" else coder.forward(coder.rows)
    )
    np.testing.assert_allclose(
        output, coder.table(coder.codes(coder.rows)).reconstruct(), rtol=1e-9, atol=1e-12
    )


def test_noise_decides_where_it_is_large(rng):
    coder, codes = make_coder("gumbel", rng), rng.integers(0, K, (9, M))
    output = coder.forward(coder.rows, 1e3 * np.eye(K)[codes].reshape(9, M * K))
    np.testing.assert_allclose(output, coder.table(codes).reconstruct(), rtol=1e-9, atol=1e-12)
    assert (coder.forward(coder.rows) != coder.forward(coder.rows)).all()


def test_a_code_is_that_of_the_largest_logit(rng):
    coder = make_coder("gumbel", rng)
    p, x = coder.params, coder.rows
    z = np.tanh(x @ p["hidden"] + p["hidden_bias"]) @ p["logits"] + p["logits_bias"]
    logits = np.log(np.log1p(np.exp(z)) + 1e-8).reshape(9, M, K)
    np.testing.assert_array_equal(coder.codes(x), logits.argmax(axis=2))


@pytest.mark.parametrize("kind", ["gumbel", "kd", "kd, map"])
def test_hard_error_is_that_of_the_table(kind, rng):
    coder, weights = make_coder(kind, rng), rng.random(9)
    rows = coder.table(coder.codes(coder.rows)).reconstruct()
    np.testing.assert_allclose(coder.reconstruct(coder.rows), rows, rtol=1e-12)
    expected = (weights[:, None] * (rows - coder.rows) ** 2).sum()
    np.testing.assert_allclose(coder.squared_error(weights), expected, rtol=1e-12)


def test_large_scores_do_not_overflow(rng):
    coder = make_coder("gumbel", rng)
    coder.params["logits"] *= 1e4
    loss = coder.loss_and_gradients(np.arange(9))
    assert np.isfinite(loss) and all(np.isfinite(g).all() for g in coder.grads.values())


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_gumbel_noise(dtype, rng):
    noise = gumbel(rng, (200_000,), dtype)
    assert noise.dtype == dtype and np.isfinite(noise).all()
    np.testing.assert_allclose(noise.mean(), np.euler_gamma, atol=0.01)
    np.testing.assert_allclose(noise.var(), np.pi**2 / 6, rtol=0.02)


@pytest.mark.parametrize("method", ["sx", "vq"])
def test_reconstruction_moves_the_values_down_the_error(method, rng):
    rows = rng.standard_normal((20, 6))
    layer = DPQEmbedding(
        20, 6, n_groups=2, n_codes=3, method=method, init=rows, batch_norm=False, dtype=np.float64
    )
    model, ids = Reconstruction(layer, rows), np.array([1, 4, 4, 7])
    name = "values" if method == "sx" else "keys"
    codes = layer.codes(ids)

    def loss():
        picked = layer.params[name][np.arange(2), codes].reshape(4, 6)
        return float(((picked - rows[ids]) ** 2).mean())

    found = model.loss_and_gradients(ids)  # queries are the rows: the codebook loss is the error once more
    np.testing.assert_allclose(found, loss() * (2 if method == "vq" else 1))
    assert_gradient(layer, name, loss, rng)


# --- The stream of rows, and the refit ----------------------------------------------------------------------


def test_equal_weights_make_epochs():
    stream = batches(np.full(10, 3.0), 5, np.random.default_rng(0))
    for _ in range(4):
        epoch = np.concatenate([next(stream), next(stream)])
        np.testing.assert_array_equal(np.sort(epoch), np.arange(10))


def test_rows_come_by_weight():
    weights = np.array([0, 5.0, 1, 0, 0.25, 100, 1e-3, 0])
    share = 8 * weights / weights.sum()
    stream = batches(weights, 8, np.random.default_rng(0))
    counts = np.array([np.bincount(next(stream), minlength=8) for _ in range(5000)])
    assert (np.floor(share) <= counts).all() and (counts <= np.ceil(share)).all()
    np.testing.assert_allclose(counts.mean(axis=0), share, atol=0.03)


@pytest.mark.parametrize("sparse", [False, True])
def test_least_squares(sparse, rng):
    rows, start = rng.standard_normal((50, 3)), rng.standard_normal((6, 3))
    weights = rng.integers(0, 5, 50).astype(float)
    codes = rng.integers(0, 2, (50, 3))
    inputs = one_hot(codes, 2) if sparse else rng.standard_normal((50, 6))
    dense = inputs.toarray() if sparse else inputs
    root = np.sqrt(weights)[:, None]
    best = np.linalg.lstsq(root * dense, root * rows)[0]
    found = least_squares(inputs, rows, weights, start)
    np.testing.assert_allclose(dense @ found, dense @ best, atol=1e-6)


def test_one_hot():
    expected = [[1, 0, 0, 0, 0, 1], [0, 1, 0, 1, 0, 0]]
    np.testing.assert_array_equal(one_hot(np.array([[0, 2], [1, 0]]), 3).toarray(), expected)


def test_a_refit_never_raises_the_error_and_is_the_least():
    X, weights = table(), np.random.default_rng(1).integers(1, 50, 300).astype(float)
    for method in ("compositional, refit", "kd, map"):
        model = clone(METHODS[method]).fit(X, sample_weight=weights)
        assert model.objective_[-1] < model.objective_[:-1].min()
        coder = model._coder(model.parameters_, X)
        before = error(model, X, weights)
        coder.refit(model.codes_, weights)
        assert before * (1 - 1e-5) < error(model, X, weights) <= before * (1 + 1e-6)


# --- What is stored -----------------------------------------------------------------------------------------


@each_method
def test_the_artefact_alone_is_the_model(model, tmp_path):
    X = table()
    model = clone(model).fit(X)
    compressed = model.compress()
    assert 0 <= model.codes_.min() and model.codes_.max() < 4 and model.codes_.shape == (300, 4)
    np.testing.assert_array_equal(model.inverse_transform(model.codes_), compressed.reconstruct())
    compressed.save(tmp_path / "table")
    rows = load(tmp_path / "table").lookup([5, 299, 5])
    np.testing.assert_array_equal(rows, compressed.reconstruct()[[5, 299, 5]])
    assert not any("hidden" in name or "logits" in name for name in compressed.arrays())


@each_method
@pytest.mark.parametrize("weighted", [False, True])
def test_objective_is_the_error_of_what_is_stored(model, weighted):
    X = 37 * table()
    weights = np.random.default_rng(1).zipf(1.5, 300).clip(0, 1000).astype(float) if weighted else None
    model = clone(model).fit(X, sample_weight=weights)
    np.testing.assert_allclose(model.objective_.min(), error(model, X, weights), rtol=1e-5)
    assert len(model.objective_) == 1 + EVALUATIONS + getattr(model, "refit", False)
    assert model.objective_.min() < model.objective_[0] or model.kmeans


@each_method
def test_bits_are_those_of_the_formula(model):
    X = table()
    model = clone(model).fit(X)
    formula = model._bits(300, 8, n_groups=4, n_codes=4)
    assert sum(model.compress().bits().values()) == formula
    by_hand = {
        "compositional": 300 * 4 * 2 + 32 * 4 * 4 * 8,
        "compositional, refit": 300 * 4 * 2 + 32 * 4 * 4 * 8,
        "kd": 300 * 4 * 2 + 32 * 4 * 4 * 8,
        "kd, map": 300 * 4 * 2 + 32 * (4 * 4 * 3 + 3 * 8),
        "dpq-vq": 300 * 4 * 2 + 32 * 4 * 8,
        "dpq-sx": 300 * 4 * 2 + 32 * 4 * 8,
        "dpq-vq, shared": 300 * 4 * 2 + 32 * 4 * 2,
    }
    method = next(name for name, other in METHODS.items() if repr(other) == repr(model))
    assert formula == by_hand[method]


@each_method
def test_a_row_has_the_same_code_in_any_batch(model):
    X = 37 * table()
    model = clone(model).fit(X)
    codes = model.transform(X)
    alone = np.concatenate([model.transform(X[i : i + 1]) for i in range(300)])
    np.testing.assert_array_equal(codes, alone)
    if getattr(model, "method", "") != "sx":
        np.testing.assert_array_equal(codes, model.codes_)


@each_method
def test_seed(model):
    X = table()
    rows = [clone(model).set_params(random_state=s).fit(X).compress().reconstruct() for s in (3, 3, 4)]
    np.testing.assert_array_equal(rows[0], rows[1])
    assert (rows[0] != rows[2]).any()


@pytest.mark.slow
@each_method
@pytest.mark.parametrize("power", [-90, 40])
def test_scale_of_the_table_changes_nothing(model, power):
    factor = np.float32(2.0**power)
    rows = [clone(model).fit(X).compress().reconstruct() for X in (table(), factor * table())]
    np.testing.assert_array_equal(rows[0] * factor, rows[1])


def test_scale():
    assert scale_of(np.full((3, 2), 5.0), np.ones(3)) == 4.0
    assert scale_of(np.full((3, 2), -6.0), np.ones(3)) == 8.0
    assert scale_of(np.float32([[1e30], [1.2]]), np.array([0.0, 1])) == 1.0
    assert scale_of(np.zeros((2, 2)), np.ones(2)) == 1.0


# --- What is learned ----------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model", "bound"), [(CompositionalCodes(6, 4), 0.1), (KDCodes(6, 4), 0.1)], ids=["compositional", "kd"]
)
def test_planted_sums_are_found(model, bound):
    X = planted()
    model = clone(model).set_params(steps=1500, random_state=0).fit(X)
    assert error(model, X) < bound * ((X - X.mean(axis=0)) ** 2).sum()


def test_vq_without_a_start_comes_near_product_quantization():
    X = table(2000, 12, dtype=np.float64)
    pq = ProductQuantizer(4, 16, random_state=0).fit(X)
    model = DPQReconstruction(4, 16, kmeans=False, steps=800, random_state=0).fit(X)
    assert error(model, X) < 1.03 * error(pq, X)


@pytest.mark.parametrize("method", ["vq", "sx"])
def test_vq_from_k_means_is_never_worse_than_it(method):
    X, weights = table(500, 12), np.random.default_rng(0).zipf(1.6, 500).clip(0, 100).astype(float)
    model = DPQReconstruction(4, 16, method=method, steps=400, random_state=0).fit(X, sample_weight=weights)
    pq = ProductQuantizer(4, 16, random_state=0).fit(X, sample_weight=weights)
    if method == "vq":
        np.testing.assert_allclose(model.objective_[0], error(pq, X, weights), rtol=0.05)
        assert error(model, X, weights) < model.objective_[0]
    else:
        nearest = X - model.inverse_transform(model.transform(X))
        assert (weights[:, None] * nearest**2).sum() < error(model, X, weights)


@pytest.mark.slow
def test_weights_move_the_error():
    X = planted(600, seed=1) + table(600, 16)
    weights = np.where(np.arange(600) < 60, 50.0, 1.0)
    models = {CompositionalCodes(4, 4): 0.9, KDCodes(4, 4): 0.95, DPQReconstruction(4, 16, kmeans=False): 0.9}
    for model, bound in models.items():
        model.set_params(steps=400, batch_size=32, random_state=0)
        plain, weighted = clone(model).fit(X), clone(model).fit(X, sample_weight=weights)
        assert error(weighted, X, weights) < bound * error(plain, X, weights)


@pytest.mark.skipif(
    "DPQ_REF_DATA" not in os.environ, reason="DPQ_REF_DATA does not name the folder of tables"
)
@pytest.mark.slow
def test_word_vectors():
    X = np.load(Path(os.environ["DPQ_REF_DATA"]) / "embeddings/glove-6b-50d-5k.npz")["vectors"]
    pq = error(ProductQuantizer(10, 64, random_state=0).fit(X), X)
    total = (X.astype(np.float64) ** 2).sum()
    assert error(DPQReconstruction(10, 64, random_state=0).fit(X), X) < pq
    for model in (CompositionalCodes(ratio=16), KDCodes(ratio=16)):
        model.set_params(random_state=0).fit(X)
        assert 16 <= model.compress().compression_ratio < 17
        assert error(model, X) < 0.18 * total


# --- Edges --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "model", [CompositionalCodes(2, 4), KDCodes(2, 4), DPQReconstruction(1, 4, kmeans=False)], ids=str
)
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize(
    "X",
    [
        np.ones((1, 3)),
        table(3, 7),
        table(2, 299),
        np.zeros((6, 2)),
        np.full((50, 4), -7.0),
        table(40, 1),
        np.repeat(table(3, 5), 20, axis=0),
        np.asfortranarray(table(30, 2) @ table(2, 9)),
    ],
    ids=[
        "one row",
        "fewer rows than codes",
        "299",
        "zeros",
        "constant",
        "one column",
        "duplicates",
        "rank 2",
    ],
)
def test_degenerate_tables(model, X, dtype):
    model = clone(model).set_params(steps=25, random_state=0).fit(X.astype(dtype))
    rows = model.compress().reconstruct()
    assert rows.shape == X.shape and np.isfinite(rows).all() and np.isfinite(model.objective_).all()


def test_rows_without_weight_do_not_count_but_are_coded():
    X, weights = table(), np.r_[np.ones(299), 0]
    X[299] = 1e15
    for model in (CompositionalCodes(4, 4), KDCodes(4, 4), DPQReconstruction(4, 4)):
        model.set_params(steps=40, random_state=0).fit(X, sample_weight=weights)
        rows = model.compress().reconstruct()
        assert np.isfinite(rows).all() and np.abs(rows).max() < 10


def test_fewer_rows_than_codes_have_no_k_means():
    with pytest.raises(ValueError, match="n_codes=16 needs at least 16 rows, got n_samples=10"):
        DPQReconstruction(4, 16).fit(table(10))


@pytest.mark.parametrize(
    ("model", "n", "d"),
    [
        (CompositionalCodes(ratio=8), 2000, 30),
        (CompositionalCodes(n_groups=5, ratio=16), 2000, 30),
        (CompositionalCodes(n_codes=32, bits=100_000), 2000, 30),
        (KDCodes(ratio=8, code_width=10), 2000, 30),
        (KDCodes(bits=60_000), 2000, 7),
        (DPQReconstruction(ratio=16), 2000, 30),
        (DPQReconstruction(ratio=4, shared=True, kmeans=False), 2000, 30),
        (DPQReconstruction(n_codes=8, ratio=16), 2000, 30),
        (DPQReconstruction(ratio=20), 1000, 299),
    ],
    ids=str,
)
def test_budget(model, n, d):
    model = clone(model).set_params(steps=1, random_state=0).fit(table(n, d))
    budget = model.bits or int(32 * n * d / model.ratio)
    size = {"n_groups": model.codes_.shape[1], "n_codes": model.codebooks_.shape[1]}
    stored = sum(model.compress().bits().values())
    assert stored == model._bits(n, d, **size) <= budget
    if model.n_groups is None and not isinstance(model, DPQReconstruction):
        assert model._bits(n, d, **size | {"n_groups": size["n_groups"] + 1}) > budget
    if isinstance(model, DPQReconstruction):
        assert d % size["n_groups"] == 0


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (CompositionalCodes(4, 4, temperature=0), "temperature=0; it takes a number above 0"),
        (CompositionalCodes(4, 4, hidden=0), "hidden=0"),
        (CompositionalCodes(4, 4, learning_rate=np.nan), "learning_rate=nan"),
        (CompositionalCodes(4, 4, clip_norm=-1.0), r"clip_norm=-1\.0"),
        (CompositionalCodes(4, 1), "n_codes=1"),
        (CompositionalCodes(0, 4), "n_groups=0"),
        (CompositionalCodes(4), "n_groups=4; it takes n_groups and n_codes, or one of bits and ratio"),
        (CompositionalCodes(ratio=1000), "ratio=1000 cannot be met for a table of 300 x 8: the nearest are"),
        (KDCodes(4, 4, steps=0), "steps=0"),
        (KDCodes(4, 4, code_width=0), "code_width=0"),
        (KDCodes(4, 4, batch_size=0), "batch_size=0"),
        (DPQReconstruction(3, 4), "n_groups=3 does not divide dim=8; divisors near 3: 2, 4"),
        (DPQReconstruction(n_groups=3, ratio=4), "n_groups=3 does not divide dim=8; divisors near 3: 2, 4"),
        (DPQReconstruction(4, 4, method="pq"), "method='pq'; it takes 'sx' or 'vq'"),
        (DPQReconstruction(4, 4, temperature=-1), "temperature=-1"),
    ],
    ids=lambda x: x[:20] if isinstance(x, str) else None,
)
def test_bad_parameters(model, message):
    with pytest.raises(ValueError, match=message):
        model.fit(table())


@each_method
def test_bad_codes(model):
    model = clone(model).set_params(steps=1).fit(table())
    with pytest.raises(IndexError, match=r"\[0, 4\), got 4"):
        model.inverse_transform(np.full((2, 4), 4))
    with pytest.raises(TypeError, match="codes must be integers"):
        model.inverse_transform(np.ones((2, 4)))
    with pytest.raises(ValueError, match=r"Z has shape \(2, 3\); it takes \(rows, 4\)"):
        model.inverse_transform(np.ones((2, 3), int))


def test_initial_parameters(rng):
    weight, bias = initial(rng, (300, 500), np.float32), initial(rng, (4,), np.float64)
    limit = np.sqrt(6 / 800)
    assert weight.dtype == np.float32 and 0.99 * limit < np.abs(weight).max() <= limit
    np.testing.assert_array_equal(bias, np.zeros(4))
