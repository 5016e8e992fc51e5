"""The embedding layers: what they return is what they export, and every switch does what it says."""

import numpy as np
import pytest

from dpq_ref import quantize
from dpq_ref.compressed import load
from dpq_ref.layers import embedding
from dpq_ref.layers.embedding import DPQEmbedding, FullEmbedding, RowSparse

N, DIM = 30, 12

VARIANTS = {
    "sx": {},
    "sx-shared": {"shared": True},
    "sx-additive": {"additive": True},
    "sx-additive-shared": {"additive": True, "shared": True},
    "sx-narrow-queries": {"query_width": 2},
    "sx-no-norm": {"batch_norm": False},
    "sx-gumbel": {"gumbel": True, "temperature": 0.5},
    "sx-padding": {"padding_id": 3},
    "sx-kmeans": {"kmeans": True},
    "vq": {"method": "vq"},
    "vq-shared": {"method": "vq", "shared": True},
    "vq-additive": {"method": "vq", "additive": True, "commitment_weight": 0.3},
    "vq-no-norm": {"method": "vq", "batch_norm": False},
    "vq-average": {"method": "vq", "ema_decay": 0.8, "padding_id": 3},
    "vq-restart": {"method": "vq", "shared": True, "restart_after": 2},
    "vq-kmeans": {"method": "vq", "kmeans": True},
}
variants = pytest.mark.parametrize("options", VARIANTS.values(), ids=VARIANTS)


@pytest.fixture(params=["numpy", "numba"])
def backend_name(request):
    return request.param


@pytest.fixture
def rng():
    return np.random.default_rng(7)


def make(options=None, **more):
    """Small layer; NumPy kernels unless told otherwise."""
    settings = {
        "vocab_size": N,
        "dim": DIM,
        "n_groups": 4,
        "n_codes": 5,
        "backend": "numpy",
        "init": 0.5,
        "rng": 1,
    }
    return DPQEmbedding(**settings | (options or {}) | more)


def train(layer, rng, steps=5, rate=0.05):
    """Some steps of plain SGD on random upstream gradients."""
    for _ in range(steps):
        output = layer.forward(rng.integers(0, layer.vocab_size, (6, 7)))
        layer.backward(rng.standard_normal(output.shape).astype(layer.dtype))
        for name, gradient in layer.grads.items():
            dense = gradient.to_dense() if isinstance(gradient, RowSparse) else gradient
            layer.params[name] -= layer.dtype.type(rate) * dense


def values_of(layer):
    return layer.params["values" if layer.method == "sx" else "keys"]


def decode_by_hand(codes, values, additive):
    """Values of codes (b, D), token by token."""
    picked = np.array([[values[j if len(values) > 1 else 0, c] for j, c in enumerate(row)] for row in codes])
    return picked.mean(axis=1) if additive else picked.reshape(len(codes), -1)


# --- One meaning of a code --------------------------------------------------------------------------------


@variants
def test_training_returns_the_decode_of_its_codes(backend_name, rng, options):
    layer = make(options, backend=backend_name)
    train(layer, rng)
    output = layer.forward(rng.integers(0, N, (6, 7)))
    rows, inverse, _, tape = layer._batch
    expected = decode_by_hand(tape.codes, values_of(layer), layer.additive)[inverse].reshape(6, 7, DIM)
    np.testing.assert_array_equal(output, expected)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@variants
def test_evaluation_is_the_look_up_in_what_is_exported_and_in_its_file(
    backend_name, rng, tmp_path, options, dtype
):
    layer = make(options, backend=backend_name, dtype=dtype)
    train(layer, rng)
    table = layer.export()
    table.save(tmp_path / "table")
    loaded = load(tmp_path / "table")
    before = {name: array.copy() for name, array in layer.params.items()}
    whole = layer.forward(np.arange(N), train=False)
    assert whole.dtype == dtype and whole.shape == (N, DIM)
    assert len(np.unique(whole, axis=0)) > 5  # or the comparison says little
    np.testing.assert_array_equal(loaded.reconstruct(), whole)
    batches = [rng.integers(0, N, (3, 5)), rng.permutation(N), np.array(4), *np.arange(N)[:, None]]
    for ids in batches:
        output = layer.forward(ids, train=False)
        np.testing.assert_array_equal(output, whole[ids])
        np.testing.assert_array_equal(output, table.lookup(ids))
        np.testing.assert_array_equal(output, loaded.lookup(ids))
        np.testing.assert_array_equal(layer.codes(ids), loaded.codes[ids])
    codes = layer.codes(np.arange(N))
    np.testing.assert_array_equal(whole, decode_by_hand(codes, values_of(layer), layer.additive))
    assert codes.min() >= 0 and codes.max() < 5
    for name, array in layer.params.items():
        np.testing.assert_array_equal(array, before[name])


def test_additive_outputs_of_width_1_are_the_same_in_every_batch(backend_name, rng):
    layer = make(vocab_size=N, dim=1, n_groups=40, additive=True, backend=backend_name)
    train(layer, rng)
    whole = layer.forward(np.arange(N), train=False)
    np.testing.assert_array_equal(whole, layer.export().reconstruct())
    for i in range(N):
        np.testing.assert_array_equal(layer.forward([i], train=False)[0], whole[i])


def test_export_in_blocks_is_export_at_once(rng, monkeypatch):
    layer = make(vocab_size=100)
    train(layer, rng)
    whole = layer.export()
    monkeypatch.setattr(embedding, "EXPORT_BLOCK", 7)
    np.testing.assert_array_equal(layer.export().packed, whole.packed)


def test_an_export_does_not_change_with_the_layer(rng):
    layer = make({"method": "vq"})
    table = layer.export()
    before = table.reconstruct()
    train(layer, rng)
    np.testing.assert_array_equal(table.reconstruct(), before)


def test_the_same_seed_gives_the_same_bits(backend_name):
    runs = []
    for _ in range(2):
        layer = make({"gumbel": True}, backend=backend_name)
        train(layer, np.random.default_rng(3))
        runs.append([layer.forward(np.arange(N), train=False), *layer.params.values()])
    for a, b in zip(*runs, strict=True):
        np.testing.assert_array_equal(a, b)


# --- Repeated ids -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options", [{}, {"method": "vq", "commitment_weight": 0.5}, {"additive": True}], ids=str
)
@pytest.mark.parametrize("padding_id", [None, 3])
def test_repeated_ids_equal_the_plain_computation_on_every_token(backend_name, rng, options, padding_id):
    layer = make(options, backend=backend_name, padding_id=padding_id, dtype=np.float64)
    ids = rng.choice([3, 3, 3, 5, 5, 8, 20], (9, 10))
    tokens = ids.ravel()
    g = rng.standard_normal((9, 10, DIM))
    flat = g.reshape(90, DIM)
    output = layer.forward(ids)
    layer.backward(g)

    query = layer.params["query"][tokens].reshape(90, 4, -1)
    kept = np.ones(90) if padding_id is None else (tokens != padding_id).astype(float)
    if layer.method == "sx":
        plain, tape = quantize.sx_forward(
            layer.kernels, query, layer.params["keys"], layer.params["values"], kept, additive=layer.additive
        )
        d_query, *d_books = quantize.sx_backward(layer.kernels, flat, tape)
    else:
        plain, tape = quantize.vq_forward(
            layer.kernels, query, layer.params["keys"], kept, commitment_weight=0.5
        )
        d_query, *d_books = quantize.vq_backward(layer.kernels, flat, tape)
    np.testing.assert_array_equal(output.reshape(90, DIM), plain)
    assert layer.codebook_loss == pytest.approx(tape.loss, rel=1e-12)
    np.testing.assert_allclose(layer.running_mean, 0.01 * tape.statistics[0], rtol=1e-10)
    np.testing.assert_allclose(layer.running_variance, 0.99 + 0.01 * tape.statistics[1], rtol=1e-12)
    dense = np.zeros_like(layer.params["query"])
    np.add.at(dense, tokens, d_query.reshape(90, -1))
    np.testing.assert_allclose(layer.grads["query"].to_dense(), dense, rtol=1e-9, atol=1e-12)
    np.testing.assert_array_equal(layer.grads["query"].rows, np.unique(tokens))
    for name, d_book in zip(("keys", "values"), d_books, strict=False):
        np.testing.assert_allclose(layer.grads[name], d_book, rtol=1e-9, atol=1e-12)


def test_the_full_table_sums_the_gradient_of_a_repeated_id(backend_name, rng):
    layer = FullEmbedding(N, DIM, backend=backend_name, dtype=np.float64)
    ids = rng.integers(0, 8, (9, 10))
    g = rng.standard_normal((9, 10, DIM))
    np.testing.assert_array_equal(layer.forward(ids), layer.params["table"][ids])
    scratch = ids.copy()
    layer.forward(scratch)
    scratch[:] = 0  # the caller uses its array again
    layer.backward(g)
    dense = np.zeros((N, DIM))
    np.add.at(dense, ids, g)
    np.testing.assert_allclose(layer.grads["table"].to_dense(), dense, rtol=1e-12, atol=1e-14)


def test_row_sparse_to_dense():
    gradient = RowSparse(np.array([1, 4]), np.array([[1, 2], [3, 4]], np.float32), 6)
    dense = gradient.to_dense()
    assert dense.dtype == np.float32
    np.testing.assert_array_equal(dense, [[0, 0], [1, 2], [0, 0], [0, 0], [3, 4], [0, 0]])


# --- Gradients and state ----------------------------------------------------------------------------------


@variants
def test_every_trainable_array_gets_a_gradient_that_is_not_0(backend_name, rng, options):
    layer = make(options, backend=backend_name)
    output = layer.forward(rng.integers(0, N, (6, 7)))
    layer.backward(rng.standard_normal(output.shape))
    expected = set(layer.params) - ({"keys"} if layer.ema_decay else set())
    assert set(layer.grads) == expected
    for name, gradient in layer.grads.items():
        dense = gradient.to_dense() if name == "query" else gradient
        assert dense.shape == layer.params[name].shape and dense.dtype == np.float32
        assert np.isfinite(dense).all() and dense.any()


@pytest.mark.parametrize("trainable", [["query"], ["values"], ["keys", "query"], []], ids=str)
def test_what_is_not_trainable_gets_no_gradient(rng, trainable):
    layer = make(trainable=trainable)
    output = layer.forward(rng.integers(0, N, (6, 7)))
    layer.backward(np.ones_like(output))
    assert set(layer.grads) == set(trainable)


def test_gradients_are_those_of_the_last_batch_alone(rng):
    layer, fresh = make(), make()
    for ids in ([1, 2, 3], [7, 8]):
        output = layer.forward(ids)
        layer.backward(np.ones_like(output))
    fresh.forward([7, 8])
    fresh.backward(np.ones_like(output))
    np.testing.assert_array_equal(layer.grads["query"].rows, [7, 8])
    np.testing.assert_array_equal(layer.grads["values"], fresh.grads["values"])


def test_running_statistics_move_by_a_hundredth_and_in_training_only(backend_name, rng):
    layer = make(backend=backend_name, dtype=np.float64, padding_id=0)
    mean, variance = np.zeros(5), np.ones(5)
    for _ in range(3):
        ids = rng.integers(0, N, 50)
        kept = ids[ids != 0]
        query = layer.params["query"][kept].reshape(len(kept), 4, 3)
        r = np.einsum("ijc,jkc->ijk", query, layer.params["keys"]).reshape(-1, 5)
        mean, variance = 0.99 * mean + 0.01 * r.mean(axis=0), 0.99 * variance + 0.01 * r.var(axis=0)
        layer.forward(ids)
        np.testing.assert_allclose(layer.running_mean, mean, rtol=1e-10)
        np.testing.assert_allclose(layer.running_variance, variance, rtol=1e-12)
        for use in (layer.codes, layer.forward):
            use(ids, **({"train": False} if use == layer.forward else {}))
        layer.export()
        layer.code_usage()
        np.testing.assert_allclose(layer.running_mean, mean, rtol=1e-10)
        np.testing.assert_allclose(layer.running_variance, variance, rtol=1e-12)
    assert make(batch_norm=False).statistics is None


@pytest.mark.parametrize("method", ["sx", "vq"])
def test_the_amount_of_padding_does_not_matter(backend_name, rng, method):
    ids = rng.integers(1, N, 20)
    g = rng.standard_normal((20, DIM))
    results = []
    for amount in (0, 1, 300):
        layer = make(method=method, backend=backend_name, padding_id=0, dtype=np.float64)
        output = layer.forward(np.r_[ids, np.zeros(amount, int)])
        layer.backward(np.r_[g, np.zeros((amount, DIM))])
        results.append(
            [
                output[:20],
                layer.running_mean,
                layer.running_variance,
                layer.codebook_loss,
                layer.grads["keys"],
                layer.grads["query"].to_dense(),
            ]
        )
    for result in results[1:]:
        for a, b in zip(results[0], result, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-14)


def test_padding_counts_where_no_padding_id_is_given(rng):
    means = []
    for amount in (0, 300):
        layer = make()
        layer.forward(np.r_[np.arange(1, 20), np.zeros(amount, int)])
        means.append(layer.running_mean)
    assert abs(means[0] - means[1]).max() > 1e-4


@pytest.mark.parametrize("method", ["sx", "vq"])
def test_a_batch_of_padding_only_moves_no_statistics(rng, method):
    layer = make(method=method, padding_id=0)
    output = layer.forward([0, 0, 0])
    layer.backward(np.ones_like(output))
    assert not layer.running_mean.any() and (layer.running_variance == 1).all() and layer.codebook_loss == 0
    assert np.isfinite(layer.grads["query"].values).all()


@pytest.mark.parametrize("shape", [(0,), (0, 5), (2, 0)])
@variants
def test_an_empty_batch_is_no_error(backend_name, options, shape):
    layer = make(options, backend=backend_name)
    before = {name: array.copy() for name, array in layer.params.items()}
    for ids in [np.zeros(shape, int)] + ([[]] if shape == (0,) else []):
        assert layer.codes(ids).shape == (*shape, 4)
        assert layer.forward(ids, train=False).shape == (*shape, DIM)
        output = layer.forward(ids)
        assert output.shape == (*shape, DIM) and output.dtype == np.float32
        layer.backward(output)
        assert layer.codebook_loss == 0 and not layer.running_mean.any()
        for name, gradient in layer.grads.items():
            dense = gradient.to_dense() if name == "query" else gradient
            assert dense.shape == layer.params[name].shape and not dense.any()
    for name, array in layer.params.items():
        np.testing.assert_array_equal(array, before[name])


@pytest.mark.parametrize("shape", [(0,), (0, 5)])
def test_an_empty_batch_of_the_full_table_is_no_error(backend_name, shape):
    layer = FullEmbedding(N, DIM, backend=backend_name)
    output = layer.forward(np.zeros(shape, int))
    assert output.shape == (*shape, DIM)
    layer.backward(output)
    assert not layer.grads["table"].to_dense().any()


# --- Numbers of parameters --------------------------------------------------------------------------------


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("n_groups, n_codes", [(1, 2), (5, 32), (25, 7), (50, 128)])
def test_numbers_of_parameters(shared, n_groups, n_codes):
    n, d = 200, 50
    codebook = (1 if shared else n_groups) * n_codes * (d // n_groups)
    for method, books in (("sx", 2), ("vq", 1)):
        layer = DPQEmbedding(
            n, d, n_groups=n_groups, n_codes=n_codes, method=method, shared=shared, backend="numpy"
        )
        assert sum(array.size for array in layer.params.values()) == n * d + books * codebook
        assert layer.running_mean.size + layer.running_variance.size == 2 * n_codes
    full = FullEmbedding(n, d, backend="numpy")
    assert sum(array.size for array in full.params.values()) == n * d


# --- Initial values ---------------------------------------------------------------------------------------


def test_glorot_limits():
    layer = make(init="glorot", vocab_size=400, dim=60, n_codes=50)
    for name, limit in (
        ("query", (6 / 460) ** 0.5),
        ("keys", (6 / 215) ** 0.5),
        ("values", (6 / 215) ** 0.5),
    ):
        largest = abs(layer.params[name]).max()
        assert 0.99 * limit < largest <= limit, name
    assert abs(FullEmbedding(400, 60, backend="numpy").params["table"]).max() <= (6 / 460) ** 0.5


@pytest.mark.parametrize("init", [0.02, 1, np.float32(0.02)])
def test_a_number_is_the_limit_of_uniform_values(init):
    for array in make(init=init, vocab_size=300).params.values():
        assert 0.85 * init < abs(array).max() <= init * (1 + 1e-6)
        assert abs(array.mean()) < 0.2 * init


def test_a_table_becomes_the_queries(rng):
    table = rng.standard_normal((N, DIM))
    layer = make(init=table, dtype=np.float64)
    np.testing.assert_array_equal(layer.params["query"], table)
    assert not np.shares_memory(layer.params["query"], table)
    table32 = table.astype(np.float32)
    layer = make(init=table32)
    np.testing.assert_array_equal(layer.params["query"], table32)
    assert not np.shares_memory(layer.params["query"], table32)
    additive = make(init=table, dtype=np.float64, additive=True)
    np.testing.assert_array_equal(additive.params["query"].reshape(N, 4, DIM), np.stack([table] * 4, axis=1))


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("method", ["sx", "vq"])
def test_kmeans_starts_the_codebooks_at_means_of_queries(backend_name, rng, method, shared):
    centres = 5 * rng.standard_normal((1 if shared else 4, 5, 3))
    table = np.stack(
        [centres[j if len(centres) > 1 else 0, rng.integers(0, 5, 200)] for j in range(4)], axis=1
    )
    layer = make(
        method=method,
        shared=shared,
        backend=backend_name,
        vocab_size=200,
        init=table.reshape(200, DIM) + 0.01 * rng.standard_normal((200, DIM)),
        kmeans=True,
        dtype=np.float64,
    )
    for found, planted in zip(layer.params["keys"], centres, strict=True):
        distances = np.linalg.norm(found[:, None] - planted, axis=2)
        assert distances.min(axis=0).max() < 0.01  # each planted centre is found
    if method == "sx":
        np.testing.assert_array_equal(layer.params["values"], layer.params["keys"])
        assert not np.shares_memory(layer.params["values"], layer.params["keys"])
    else:
        # At the means of its queries the codebook loss has no gradient.
        layer.batch_norm = False
        output = layer.forward(np.arange(200))
        layer.backward(np.zeros_like(output))
        np.testing.assert_allclose(layer.grads["keys"], 0, atol=1e-12)


def test_kmeans_leaves_values_of_another_width_alone():
    layer, without = make(query_width=2, kmeans=True), make(query_width=2)
    np.testing.assert_array_equal(layer.params["values"], without.params["values"])
    assert (layer.params["keys"] != without.params["keys"]).any()


def test_kmeans_needs_as_many_rows_as_codes():
    with pytest.raises(ValueError, match="n_codes=9.*8"):
        make(vocab_size=8, n_codes=9, kmeans=True)
    make(vocab_size=8, n_codes=9, kmeans=True, shared=True)  # 8 rows are 32 queries of one codebook


# --- Extras -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shared", [False, True])
def test_moving_averages_by_hand(backend_name, rng, shared):
    layer = make(
        method="vq",
        shared=shared,
        ema_decay=0.7,
        padding_id=0,
        batch_norm=False,
        backend=backend_name,
        dtype=np.float64,
    )
    layer.params["keys"][:, 4] = 100  # never picked: stays where it is
    books = 1 if shared else 4
    counts, sums = np.zeros((books, 5)), np.zeros((books, 5, 3))
    for _ in range(4):
        keys = layer.params["keys"].copy()
        ids = rng.integers(0, 6, 40)
        new_counts, new_sums = np.zeros_like(counts), np.zeros_like(sums)
        for i in ids[ids != 0]:
            for j, q in enumerate(layer.params["query"][i].reshape(4, 3)):
                book = 0 if shared else j
                code = ((q - keys[book]) ** 2).sum(axis=1).argmin()
                new_counts[book, code] += 1
                new_sums[book, code] += q
        counts, sums = 0.7 * counts + 0.3 * new_counts, 0.7 * sums + 0.3 * new_sums
        seen = counts > 0
        keys[seen] = sums[seen] / counts[seen][:, None]
        output = layer.forward(ids)
        layer.backward(np.ones_like(output))
        np.testing.assert_allclose(layer.params["keys"], keys, rtol=1e-10)
        assert set(layer.grads) == {"query"} and layer.codebook_loss == 0
    assert (layer.params["keys"][:, 4] == 100).all() and seen[:, :4].sum() > 2


def test_an_idle_key_under_moving_averages_stays_where_it_is():
    # The averages decay below the smallest float; their quotient must not be taken from there.
    layer = make(method="vq", n_groups=1, n_codes=2, ema_decay=0.01, batch_norm=False)
    layer.params["query"][:2] = np.array([[5.3], [-5.7]]) * np.ones(DIM)
    layer.params["keys"][0] = np.array([[5.0], [-5.0]]) * np.ones(DIM)
    for i in [0] + 40 * [1]:
        layer.backward(layer.forward([i]))
    np.testing.assert_allclose(layer.params["keys"][0, :, 0], [5.3, -5.7], rtol=1e-5)


@pytest.mark.parametrize("shared", [False, True])
def test_only_idle_keys_restart_and_at_queries_of_the_batch(backend_name, rng, shared):
    layer = make(
        method="vq", shared=shared, restart_after=3, padding_id=0, batch_norm=False, backend=backend_name
    )
    far = 1000 + np.arange(3)
    layer.params["keys"][:, 2] = far
    layer.params["query"][0] = 50  # padding: nothing may restart here
    ids = np.r_[np.arange(1, 10), 0]
    query = layer.params["query"][ids[:-1]].reshape(9, 4, 3)
    for step in range(1, 4):
        keys = layer.params["keys"].copy()
        layer.backward(np.zeros_like(layer.forward(ids)))
        picked = np.array([np.bincount(c, minlength=5) > 0 for c in layer._batch[3].codes[1:].T])
        if step < 3:
            np.testing.assert_array_equal(layer.params["keys"], keys)
            layer.forward([0, 0])  # says nothing about any key
            layer.backward(np.zeros((2, DIM)))
    if shared:
        picked = picked.any(axis=0)[None]
    assert not picked[:, 2].any() and picked.any()
    np.testing.assert_array_equal(layer.params["keys"][picked], keys[picked])
    for book, code in np.argwhere(~picked):
        candidates = query.reshape(-1, 3) if shared else query[:, book]
        assert (candidates == layer.params["keys"][book, code]).all(axis=1).any()
    assert not layer._upkeep.idle.any()


def test_no_key_restarts_at_padding(backend_name):
    layer = make(method="vq", restart_after=1, padding_id=0, backend=backend_name)
    layer.backward(layer.forward([0, 3, 0]))
    query = layer.params["query"][3].reshape(4, 1, 3)
    # All but the one that was picked.
    assert (layer.params["keys"] == query).all(axis=2).sum(axis=1).tolist() == [4, 4, 4, 4]


def test_a_key_that_is_picked_in_time_does_not_restart():
    layer = make(
        method="vq",
        n_groups=1,
        n_codes=2,
        restart_after=3,
        batch_norm=False,
        trainable=["keys"],
        vocab_size=2,
    )
    layer.params["query"][:] = np.array([[5.3], [-5.7]]) * np.ones(DIM)
    layer.params["keys"][0] = np.array([[5.0], [-5.0]]) * np.ones(DIM)
    keys = layer.params["keys"].copy()
    for i in 4 * [0, 0, 1]:
        layer.backward(layer.forward([i]))
        np.testing.assert_array_equal(layer.params["keys"], keys)
    for i in 3 * [1]:
        layer.backward(layer.forward([i]))
    np.testing.assert_array_equal(layer.params["keys"][0, 1], keys[0, 1])
    np.testing.assert_array_equal(layer.params["keys"][0, 0], layer.params["query"][1])


def test_a_restart_forgets_the_moving_average():
    layer = make(method="vq", n_groups=1, n_codes=2, restart_after=2, ema_decay=0.9, batch_norm=False)
    layer.params["query"][:3] = np.array([[5.3], [-5.7], [-6.5]]) * np.ones(DIM)
    layer.params["keys"][0] = np.array([[5.0], [-5.0]]) * np.ones(DIM)
    for i in (0, 1, 1):
        layer.backward(layer.forward([i]))
    np.testing.assert_array_equal(layer.params["keys"][0, 0], layer.params["query"][1])
    layer.params["keys"][0, 0] = -7  # now the nearest to id 2
    layer.backward(layer.forward([2]))
    np.testing.assert_allclose(layer.params["keys"][0, 0], -6.5, rtol=1e-6)  # no trace of 5.3


@pytest.mark.parametrize("temperature", [1.0, 0.3])
def test_gumbel_codes_are_draws_from_the_softmax(backend_name, temperature):
    from scipy.stats import chisquare

    n = 20_000
    layer = make(
        gumbel=True,
        n_groups=1,
        batch_norm=False,
        vocab_size=n,
        backend=backend_name,
        temperature=temperature,
        dtype=np.float64,
    )
    layer.params["query"][:] = layer.params["query"][0]
    logits = layer.params["keys"][0] @ layer.params["query"][0]
    p = np.exp(logits) / np.exp(logits).sum()
    assert p.max() > 1.3 * p.min()
    layer.forward(np.arange(n))
    drawn = np.bincount(layer._batch[3].codes[:, 0], minlength=5)
    assert chisquare(drawn, n * p).pvalue > 0.01
    assert chisquare(drawn, np.full(5, n / 5)).pvalue < 1e-6
    layer.forward(np.arange(n))
    again = np.bincount(layer._batch[3].codes[:, 0], minlength=5)
    assert (again != drawn).any()
    # Evaluation draws nothing.
    assert (layer.codes(np.arange(n)) == logits.argmax()).all()


def test_code_usage_by_hand():
    layer = make(method="vq", n_groups=2, n_codes=4, dim=2, batch_norm=False, vocab_size=8)
    layer.params["keys"][:] = np.arange(4)[:, None]
    layer.params["query"][:, 0] = [0, 0, 1, 1, 2, 2, 3, 3]
    layer.params["query"][:, 1] = [1, 1, 1, 1, 1, 1, 2, 2.1]
    usage = layer.code_usage()
    np.testing.assert_allclose(usage.used, [1, 0.5])
    entropy = -(0.75 * np.log(0.75) + 0.25 * np.log(0.25))
    np.testing.assert_allclose(usage.perplexity, [4, np.exp(entropy)], rtol=1e-6)
    np.testing.assert_allclose(usage.largest, [0.25, 0.75])


# --- Bad input --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options, error, message",
    [
        ({"n_groups": 7}, ValueError, "n_groups=7 does not divide dim=12; divisors near 7: 6, 12"),
        ({"n_groups": 0}, ValueError, "n_groups=0"),
        ({"n_groups": 2.0}, TypeError, "n_groups=2.0"),
        ({"n_codes": 1}, ValueError, "n_codes=1"),
        ({"n_codes": 65_537}, ValueError, "n_codes=65537.*65536"),
        ({"n_codes": True}, TypeError, "n_codes=True"),
        ({"vocab_size": 0}, ValueError, "vocab_size=0"),
        ({"vocab_size": "many"}, TypeError, "vocab_size='many'"),
        ({"dim": 0}, ValueError, "dim=0"),
        ({"method": "pq"}, ValueError, "method='pq'.*'sx' or 'vq'"),
        ({"temperature": 0}, ValueError, "temperature=0"),
        ({"temperature": -1.0}, ValueError, "temperature=-1.0"),
        ({"temperature": np.nan}, ValueError, "temperature=nan"),
        ({"dtype": np.float16}, ValueError, "dtype=float16.*float32 or float64"),
        ({"dtype": int}, ValueError, "dtype=int64"),
        ({"backend": "jax"}, ValueError, "backend='jax'"),
        ({"padding_id": -1}, ValueError, "padding_id=-1"),
        ({"padding_id": N}, IndexError, "padding_id must lie in .0, 30., got 30"),
        ({"padding_id": 1.0}, TypeError, "padding_id=1.0"),
        ({"padding_id": [1, 2]}, TypeError, "padding_id"),
        ({"query_width": 0}, ValueError, "query_width=0"),
        ({"query_width": 2, "method": "vq"}, ValueError, "query_width=2.*3"),
        ({"codebook_weight": -1, "method": "vq"}, ValueError, "codebook_weight=-1"),
        ({"commitment_weight": -1, "method": "vq"}, ValueError, "commitment_weight=-1"),
        ({"gumbel": True, "method": "vq"}, ValueError, "gumbel"),
        ({"ema_decay": 0.9}, ValueError, "ema_decay"),
        ({"ema_decay": 1.0, "method": "vq"}, ValueError, "ema_decay=1.0"),
        ({"ema_decay": 0.0, "method": "vq"}, ValueError, "ema_decay=0.0"),
        ({"restart_after": 3}, ValueError, "restart_after"),
        ({"restart_after": 0, "method": "vq"}, ValueError, "restart_after=0"),
        ({"restart_after": 1.5, "method": "vq"}, TypeError, "restart_after=1.5"),
        ({"trainable": ["key"]}, ValueError, "trainable=.*key.*'keys'"),
        ({"trainable": "query"}, ValueError, "trainable="),
        ({"trainable": ["values"], "method": "vq"}, ValueError, "trainable="),
        ({"trainable": ["query"], "method": "vq", "ema_decay": 0.9}, ValueError, "trainable=.*ema_decay"),
        ({"init": "normal"}, ValueError, "init='normal'"),
        ({"init": 0.0}, ValueError, "init=0.0"),
        ({"init": -0.1}, ValueError, "init=-0.1"),
        ({"init": np.nan}, ValueError, "init=nan"),
        ({"init": np.zeros((N, DIM + 1))}, ValueError, r"init has shape \(30, 13\)"),
        ({"init": np.zeros((N, DIM)), "query_width": 2}, ValueError, "init.*query_width"),
        ({"init": np.full((N, DIM), np.nan)}, ValueError, "init has 360 entries that are NaN.*row 0"),
        ({"init": np.zeros((N, DIM), complex)}, TypeError, "init must hold real numbers"),
    ],
    ids=lambda value: str(value)[:40] if isinstance(value, dict) else "",
)
def test_bad_arguments_are_named(options, error, message):
    with pytest.raises(error, match=message):
        make(options)


@pytest.mark.parametrize(
    "ids, error, message",
    [
        ([1.0, 2.0], TypeError, "ids must be integers, got dtype float64"),
        ([True, False], TypeError, "ids must be integers, got dtype bool"),
        (["a"], TypeError, "ids must be integers"),
        (None, TypeError, "ids must be integers"),
        (np.zeros((0, 3)), TypeError, "ids must be integers, got dtype float64"),
        ([0, N], IndexError, r"ids must lie in \[0, 30\), got 30"),
        ([3, -1], IndexError, r"ids must lie in \[0, 30\), got -1"),
        (np.array([2**63], np.uint64), IndexError, "ids must lie in"),
    ],
    ids=str,
)
@pytest.mark.parametrize("kind", ["full", "sx", "vq"])
def test_bad_ids_are_an_error_everywhere(backend_name, kind, ids, error, message):
    if kind == "full":
        layer = FullEmbedding(N, DIM, backend=backend_name)
    else:
        layer = make(method=kind, backend=backend_name)
    uses = [layer.forward, lambda ids: layer.forward(ids, train=False)]
    if kind != "full":
        uses += [layer.codes, layer.export().lookup]
    for use in uses:
        with pytest.raises(error, match=message):
            use(ids)


@pytest.mark.parametrize("kind", ["full", "sx", "vq"])
def test_backward_needs_a_training_forward_and_a_gradient_of_the_right_shape(kind):
    layer = FullEmbedding(N, DIM, backend="numpy") if kind == "full" else make(method=kind)
    g = np.ones((2, 3, DIM))
    with pytest.raises(RuntimeError, match="forward"):
        layer.backward(g)
    layer.forward(np.ones((2, 3), int))
    for shape in ((2, 3), (6, DIM), (2, 3, DIM + 1), (3, 2, DIM), (1, 3, DIM), ()):
        with pytest.raises(ValueError, match=r"d_output must have the output's shape \(2, 3, 12\)"):
            layer.backward(np.ones(shape))
    layer.backward(g.tolist())
    layer.forward(np.ones((2, 3), int), train=False)
    with pytest.raises(RuntimeError, match="train=True"):
        layer.backward(g)
