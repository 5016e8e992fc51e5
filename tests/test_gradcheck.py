"""The gradient checker, with it every gradient of the embedding layers, and a check that does without it."""

from itertools import product

import numpy as np
import pytest

from dpq_ref.gradcheck import Check, check_embedding, directional
from dpq_ref.layers.embedding import DPQEmbedding, FullEmbedding, RowSparse
from dpq_ref.quantize import EPSILON

BOUND = 1e-6  # usual are 1e-9 and less
IDS = np.array([[4, 4, 1, 7], [0, 4, 9, 11], [7, 4, 0, 2]])


def make(method="sx", **options):
    """Layer of 13 rows in float64, away from its initial values so that no gradient is small."""
    options = {"n_groups": 3, "n_codes": 5, "backend": "numpy"} | options
    layer = DPQEmbedding(13, 12, method=method, dtype=np.float64, rng=3, **options)
    rng = np.random.default_rng(8)
    for array in layer.params.values():
        array += 0.7 * rng.standard_normal(array.shape)
    return layer


def worst(layer, ids=IDS, **options):
    checks = check_embedding(layer, ids, **options)
    assert set(checks) == set(layer.trainable if isinstance(layer, DPQEmbedding) else layer.params)
    for name, check in checks.items():
        assert check.error < BOUND, (name, check)
    return max(check.error for check in checks.values())


def cases():
    # 4 occurs in IDS, 5 does not.
    common = list(product([False, True], [False, True], [False, True], [None, 4, 5]))
    for shared, additive, batch_norm, padding_id in common:
        options = {"shared": shared, "additive": additive, "batch_norm": batch_norm, "padding_id": padding_id}
        for temperature, query_width in product([1.0, 0.4], [None, 3]):
            yield {"method": "sx", "temperature": temperature, "query_width": query_width} | options
        for alpha, beta in ((1.0, 0.0), (0.3, 0.8)):
            yield {"method": "vq", "codebook_weight": alpha, "commitment_weight": beta} | options


@pytest.mark.parametrize("options", list(cases()), ids=lambda o: "-".join(str(v) for v in o.values()))
def test_every_gradient_of_every_variant(options):
    worst(make(**options))


@pytest.mark.parametrize("options", [o for i, o in enumerate(cases()) if i % 7 == 0])
def test_gradients_of_the_numba_kernels(options):
    worst(make(backend="numba", **options))


@pytest.mark.parametrize("method", ["sx", "vq"])
@pytest.mark.parametrize(
    "ids",
    [
        np.array(6),
        np.array([6]),
        np.array([3, 1, 4, 1, 5]),
        np.array([[3, 1, 4, 1], [5, 9, 2, 6], [5, 3, 5, 8]]),
        np.arange(24).reshape(2, 3, 4) % 13,
        np.repeat([2, 8], [1, 99]),
        np.repeat([2, 8], [1, 99]).astype(np.uint8),
    ],
    ids=lambda ids: f"{ids.dtype}{ids.shape}",
)
def test_any_shape_of_ids(method, ids):
    worst(make(method, commitment_weight=0.2), ids)


@pytest.mark.parametrize("batch_norm", [False, True])
@pytest.mark.parametrize("method", ["sx", "vq"])
def test_a_batch_of_padding_only(method, batch_norm):
    layer = make(method, padding_id=4, batch_norm=batch_norm, commitment_weight=0.2)
    worst(layer, np.full((2, 3), 4))
    if method == "vq":
        assert not layer.grads["keys"].any()


@pytest.mark.parametrize("method", ["sx", "vq"])
@pytest.mark.parametrize("n_groups, n_codes", [(1, 2), (12, 3), (2, 33), (1, 7)])
def test_odd_sizes(method, n_groups, n_codes):
    worst(make(method, n_groups=n_groups, n_codes=n_codes, shared=n_groups == 12))


@pytest.mark.parametrize("trainable", [["query"], ["keys", "values"], []])
def test_only_what_is_trainable_is_checked(trainable):
    assert set(check_embedding(make(trainable=trainable), IDS)) == set(trainable)


def test_the_full_table():
    for backend in ("numpy", "numba"):
        worst(FullEmbedding(13, 12, dtype=np.float64, backend=backend))


# --- The checker sees what is wrong -----------------------------------------------------------------------


def tamper(layer, change):
    """Let `change` at the gradients after each backward."""
    backward = layer.backward

    def wrong(d_output):
        backward(d_output)
        change(layer.grads, d_output)

    layer.backward = wrong
    return layer


@pytest.mark.parametrize("name", ["query", "keys", "values"])
@pytest.mark.parametrize("kind", ["scale", "entry", "sign"])
def test_a_wrong_gradient_is_seen(name, kind):
    def change(grads, d_output):
        array = grads[name].values if name == "query" else grads[name]
        if kind == "entry":
            array.flat[abs(array).argmax()] *= 1.001
        else:
            array *= 1.0001 if kind == "scale" else -1

    checks = check_embedding(tamper(make(), change), IDS)
    assert [n for n, check in checks.items() if check.error > BOUND] == [name]


def test_a_row_too_many_and_a_row_missing_are_seen():
    def add(grads, d_output):
        query = grads["query"]
        rows = np.append(query.rows, 12)
        grads["query"] = RowSparse(rows, np.append(query.values, query.values[:1], axis=0), 13)

    def drop(grads, d_output):
        grads["query"] = RowSparse(grads["query"].rows[1:], grads["query"].values[1:], 13)

    for change in (add, drop):
        assert check_embedding(tamper(make(), change), IDS)["query"].error > BOUND


@pytest.mark.parametrize("method", ["sx", "vq"])
def test_a_missing_gradient_is_seen(method):
    layer = tamper(make(method), lambda grads, d_output: grads.pop("keys"))
    with pytest.raises(AssertionError, match="keys"):
        check_embedding(layer, IDS)


@pytest.mark.parametrize("name", ["d_output", "ids", "query", "keys", "values"])
@pytest.mark.parametrize("when", ["forward", "backward"])
def test_a_changed_input_is_seen(name, when):
    layer, ids = make(), IDS.copy()
    original = getattr(layer, when)

    def wrong(argument, *rest, **options):
        result = original(argument, *rest, **options)
        if name == "ids":
            ids[0, 0] = 6
        elif name == "d_output" and when == "backward":
            argument[0, 0, 0] += 1
        elif name in layer.params:
            layer.params[name][0] += 1
        return result

    setattr(layer, when, wrong)
    if name == "d_output" and when == "forward":
        check_embedding(layer, ids)  # forward does not see it
    else:
        with pytest.raises(AssertionError, match=name):
            check_embedding(layer, ids)


def test_a_replaced_parameter_is_seen():
    layer = make()
    tamper(layer, lambda grads, d_output: layer.params.update(keys=layer.params["keys"] + 1))
    with pytest.raises(AssertionError, match="keys"):
        check_embedding(layer, IDS)


def test_a_gradient_without_batch_norm_is_not_that_with_it(monkeypatch):
    from dpq_ref.kernels import reference

    monkeypatch.setattr(reference, "batch_norm_backward", lambda d, out, variance, *_: d / np.sqrt(variance))
    checks = check_embedding(make(), IDS)
    assert checks["query"].error > BOUND and checks["keys"].error > BOUND
    assert checks["values"].error < BOUND


@pytest.mark.parametrize(
    "options", [{"gumbel": True}, {"method": "vq", "ema_decay": 0.9}, {"method": "vq", "restart_after": 3}]
)
def test_extras_without_a_surrogate_are_refused(options):
    with pytest.raises(ValueError, match="surrogate"):
        check_embedding(make(**options), IDS)


def test_a_layer_in_float32_is_refused():
    with pytest.raises(TypeError, match="float64"):
        check_embedding(DPQEmbedding(13, 12, n_groups=3, n_codes=5, backend="numpy"), IDS)


def test_the_error_is_relative_to_the_larger_slope():
    assert Check(1.0, 1.0).error == 0
    assert Check(0.0, 0.0).error == 0
    assert Check(2.0, 1.0).error == Check(1.0, 2.0).error == 0.5
    assert Check(0.0, 1e-9).error == 1
    assert Check(1.0, -1.0).error == 2


def test_the_slope_is_exact_for_a_polynomial_of_degree_4():
    x = np.random.default_rng(0).standard_normal(7)
    check = directional(lambda x: float((x**4).sum()), x, 4 * x**3, np.random.default_rng(1), step=0.1)
    assert check.error < 1e-12
    zero = directional(lambda x: float(np.sin(x).sum()), np.zeros(3), np.ones(3), np.random.default_rng(1))
    assert zero.error < 1e-12


# --- Without the checker: entry by entry, with a loss written out for these two layers alone ---------------


def slopes(loss, x):
    """Central differences of every entry."""
    result = np.empty_like(x)
    for index in np.ndindex(x.shape):
        values = []
        for h in (1e-5, -1e-5):
            moved = x.copy()
            moved[index] += h
            values.append(loss(moved))
        result[index] = (values[0] - values[1]) / 2e-5
    return result


def test_sx_entry_by_entry():
    layer = make("sx", n_groups=2, n_codes=3, temperature=0.6, padding_id=0)
    ids = [4, 1, 4, 0, 7, 4]
    g = np.random.default_rng(2).standard_normal((6, 12))
    output = layer.forward(ids)
    layer.backward(g)
    query, keys, values = (layer.params[n].copy() for n in ("query", "keys", "values"))

    def normalised(query, keys):
        r = np.zeros((6, 2, 3))
        for t, i in enumerate(ids):
            for j in range(2):
                for k in range(3):
                    r[t, j, k] = query[i, 6 * j : 6 * j + 6] @ keys[j, k]
        for k in range(3):
            kept = [r[t, j, k] for t in range(6) if ids[t] != 0 for j in range(2)]
            r[:, :, k] = (r[:, :, k] - np.mean(kept)) / np.sqrt(np.var(kept) + EPSILON)
        return r

    def soft(query, keys):
        total, r = 0.0, normalised(query, keys)
        for t in range(6):
            for j in range(2):
                p = np.exp(r[t, j] / 0.6)
                total += (p / p.sum()) @ values[j] @ g[t, 6 * j : 6 * j + 6]
        return total

    codes = normalised(query, keys).argmax(axis=2)

    def hard(values):
        picked = np.array([[values[j, codes[t, j]] for j in range(2)] for t in range(6)])
        return (picked.reshape(6, 12) * g).sum()

    np.testing.assert_array_equal(output, [np.r_[values[0, a], values[1, b]] for a, b in codes])
    close = {"rtol": 1e-6, "atol": 1e-8}
    np.testing.assert_allclose(
        layer.grads["query"].to_dense(), slopes(lambda x: soft(x, keys), query), **close
    )
    np.testing.assert_allclose(layer.grads["keys"], slopes(lambda x: soft(query, x), keys), **close)
    np.testing.assert_allclose(layer.grads["values"], slopes(hard, values), **close)


def test_vq_entry_by_entry():
    layer = make(
        "vq", n_groups=2, n_codes=3, shared=True, padding_id=0, codebook_weight=0.5, commitment_weight=0.25
    )
    ids = [4, 1, 4, 0, 7, 4]
    g = np.random.default_rng(2).standard_normal((6, 12))
    layer.forward(ids)
    layer.backward(g)
    query, keys = layer.params["query"].copy(), layer.params["keys"].copy()
    r = np.zeros((6, 2, 3))
    for t, i in enumerate(ids):
        for j in range(2):
            for k in range(3):
                r[t, j, k] = -((query[i, 6 * j : 6 * j + 6] - keys[0, k]) ** 2).sum()
    kept = r[np.array(ids) != 0].reshape(10, 3)
    codes = ((r - kept.mean(axis=0)) / np.sqrt(kept.var(axis=0) + EPSILON)).argmax(axis=2)

    def mean_square(query, keys):
        total = 0.0
        for t, i in enumerate(ids):
            for j in range(2):
                if i != 0:
                    total += ((keys[0, codes[t, j]] - query[i, 6 * j : 6 * j + 6]) ** 2).sum()
        return total / (5 * 12)

    assert layer.codebook_loss == pytest.approx(0.75 * mean_square(query, keys), rel=1e-12)
    through = np.zeros((13, 12))
    for t, i in enumerate(ids):
        through[i] += g[t]
    close = {"rtol": 1e-6, "atol": 1e-8}
    commitment = slopes(lambda x: 0.25 * mean_square(x, keys), query)
    np.testing.assert_allclose(layer.grads["query"].to_dense(), through + commitment, **close)
    np.testing.assert_allclose(
        layer.grads["keys"], slopes(lambda x: 0.5 * mean_square(query, x), keys), **close
    )
