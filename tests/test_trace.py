"""Traces: DPQ's against the layer and the checker of gradients, and what shows them."""

import io
import re
from html.parser import HTMLParser
from itertools import product
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from scipy import linalg

from baselines import ITQ, GroupReduce, blocks, low_rank
from baselines.itq import itq_rotation, procrustes
from baselines.product import principal_groups
from dpq_ref import DPQEmbedding, quantize, trace
from dpq_ref.cli import main
from dpq_ref.gradcheck import check_embedding, surrogates
from dpq_ref.kernels import reference
from dpq_ref.kmeans import KMeans
from dpq_ref.trace import grid, softmax, steps
from dpq_ref.trace.examples import OPTIONS, example

IDS = np.array([4, 4, 1, 7, 0, 4, 9, 11])


def make(method="sx", **options):
    """Layer of 13 rows in float64, away from its initial values so that no gradient is small."""
    options = {"n_groups": 3, "n_codes": 5, "backend": "numpy"} | options
    layer = DPQEmbedding(13, 12, method=method, dtype=np.float64, rng=3, **options)
    rng = np.random.default_rng(8)
    for array in layer.params.values():
        array += 0.7 * rng.standard_normal(array.shape)
    return layer


def arrays_of(found):
    """Arrays by name; each name comes once."""
    assert len({step.name for step in found}) == len(found)
    return {step.name: step.array for step in found}


def holds(found):
    for step in found:
        for claim in step.checks:
            assert claim.holds, (step.name, claim)
    return [step.name for step in found if step.checks]


def traced(layer, ids=IDS, **options):
    g = np.random.default_rng(5).standard_normal((len(ids), layer.dim))
    return getattr(trace, layer.method)(layer, ids, g, **options), g


def cases():
    common = list(product([False, True], [False, True], [False, True], [None, 4]))
    for shared, additive, batch_norm, padding_id in common:
        options = {"shared": shared, "additive": additive, "batch_norm": batch_norm, "padding_id": padding_id}
        yield {"method": "sx"} | options
        yield {"method": "sx", "temperature": 0.4, "query_width": 3} | options
        yield {"method": "vq"} | options
        yield {"method": "vq", "codebook_weight": 0.3, "commitment_weight": 0.8} | options


def agrees_with_the_layer(layer, ids=IDS):
    before = {name: array.copy() for name, array in (layer.params | layer.buffers).items()}
    found, g = traced(layer, ids)
    for name, array in (layer.params | layer.buffers).items():
        np.testing.assert_array_equal(array, before[name])  # a trace changes nothing
    of = arrays_of(found)
    output = layer.forward(ids)
    _, _, _, tape = layer._batch
    layer.backward(g)
    close = {"rtol": 1e-10, "atol": 1e-13}
    np.testing.assert_array_equal(of["output"], output)
    np.testing.assert_array_equal(of["codes"], tape.codes)
    np.testing.assert_array_equal(of["counts"], tape.counts)
    np.testing.assert_array_equal(of["rows"][of["inverse"]], ids)
    assert ("mean" in of) == ("variance" in of) == ("normalised" in of) == (tape.statistics is not None)
    if "mean" in of:
        np.testing.assert_array_equal(of["mean"], tape.statistics[0])
        np.testing.assert_array_equal(of["variance"], tape.statistics[1])
        np.testing.assert_allclose(layer.running_mean, 0.01 * of["mean"], rtol=1e-12)
        np.testing.assert_allclose(layer.running_variance, 0.99 + 0.01 * of["variance"], rtol=1e-12)
    assert of["loss"] == pytest.approx((g * output).sum(), rel=1e-12)
    np.testing.assert_array_equal(of["rows"], layer.grads["query"].rows)
    np.testing.assert_allclose(of["d_table"], layer.grads["query"].values, **close)
    for name in ("keys", "values") if layer.method == "sx" else ("keys",):
        np.testing.assert_allclose(of[f"d_{name}"], layer.grads[name], **close)
        assert of[f"d_{name}"].shape == layer.params[name].shape
    if layer.method == "vq":
        assert of["codebook_loss"] == pytest.approx(layer.codebook_loss, rel=1e-12)
        assert of["total_loss"] == pytest.approx(layer.codebook_loss + of["loss"], rel=1e-12)
    checked = holds(found)
    backward = [step.name for step in found if step.phase == "backward"]
    assert checked == [name for name in backward if name.startswith("d_")]
    assert all(step.formula for step in found if step.name.startswith("d_"))
    return found


@pytest.mark.parametrize("options", list(cases()), ids=lambda o: "-".join(str(v) for v in o.values()))
def test_the_trace_is_what_the_layer_does(options):
    agrees_with_the_layer(make(**options))


@pytest.mark.parametrize("batch_norm", [False, True])
@pytest.mark.parametrize("method", ["sx", "vq"])
@pytest.mark.parametrize(
    "ids, options",
    [
        ([6], {}),
        ([6] * 7, {}),
        ([6], {"n_groups": 1}),
        (IDS, {"n_groups": 1}),
        (IDS, {"n_codes": 2}),
        ([6] * 3, {"n_codes": 2, "n_groups": 1}),
        ([4, 4], {"padding_id": 4}),
        (IDS, {"n_groups": 12, "shared": True}),
    ],
)
def test_edges(method, batch_norm, ids, options):
    agrees_with_the_layer(make(method, batch_norm=batch_norm, **options), np.array(ids))


@pytest.mark.parametrize("method", ["sx", "vq"])
def test_any_shape_of_ids_and_the_numba_layer(method):
    layer = make(method, backend="numba", n_codes=4)
    ids = IDS.reshape(2, 4)
    g = np.random.default_rng(5).standard_normal((8, 12))
    of = arrays_of(getattr(trace, method)(layer, ids, g))
    assert np.abs(of["output"] - layer.forward(ids).reshape(8, 12)).max() == 0
    layer.backward(g.reshape(2, 4, 12))
    np.testing.assert_allclose(of["d_keys"], layer.grads["keys"], rtol=1e-9, atol=1e-13)


@pytest.mark.parametrize("method", ["sx", "vq"])
def test_the_trace_agrees_with_the_checker(method):
    layer = make(method)
    found, g = traced(layer)
    of = arrays_of(found)
    losses = surrogates(layer, IDS, g)
    checks = check_embedding(layer, IDS, d_output=g)
    assert all(check.error < 1e-6 for check in checks.values())
    for name in ("keys", "values") if method == "sx" else ("keys",):
        h = 1e-5 * np.eye(layer.params[name].size)[7].reshape(layer.params[name].shape)
        slope = (losses[name](layer.params[name] + h) - losses[name](layer.params[name] - h)) / 2e-5
        assert of[f"d_{name}"].flat[7] == pytest.approx(slope, rel=1e-5, abs=1e-9)


def test_sx_between_the_ends():
    """Responses, softmax and the soft output, in loops."""
    layer = make("sx", temperature=0.6)
    of = arrays_of(traced(layer)[0])
    keys, values = layer.params["keys"], layer.params["values"]
    for i, row in enumerate(of["rows"]):
        for j in range(3):
            q = layer.params["query"][row, 4 * j : 4 * j + 4]
            r = [q @ keys[j, k] for k in range(5)]
            x = (r - of["mean"]) / np.sqrt(of["variance"] + quantize.EPSILON)
            p = np.exp(x / 0.6) / np.exp(x / 0.6).sum()
            np.testing.assert_allclose(of["query"][i, j], q)
            np.testing.assert_allclose(of["responses"][i, j], r)
            np.testing.assert_allclose(of["normalised"][i, j], x)
            np.testing.assert_allclose(of["softmax"][i, j], p)
            np.testing.assert_allclose(of["soft"][i, j], p @ values[j])
            np.testing.assert_array_equal(of["picked"][i, j], values[j, x.argmax()])
            np.testing.assert_allclose(of["d_softmax"][i, j], values[j] @ of["d_picked"][i, j])


def test_vq_between_the_ends():
    layer = make("vq", commitment_weight=0.5, batch_norm=False)
    of = arrays_of(traced(layer)[0])
    for i, row in enumerate(of["rows"]):
        for j in range(3):
            q = layer.params["query"][row, 4 * j : 4 * j + 4]
            r = [-((q - key) ** 2).sum() for key in layer.params["keys"][j]]
            np.testing.assert_allclose(of["responses"][i, j], r)
            assert of["codes"][i, j] == np.argmax(r)
            np.testing.assert_allclose(of["residual"][i, j], layer.params["keys"][j, np.argmax(r)] - q)


def test_a_row_stands_for_several_tokens():
    found, g = traced(make(), words=tuple("aabcdaef"))
    of = arrays_of(found)
    assert of["counts"].tolist() == [1, 1, 3, 1, 1, 1]
    np.testing.assert_allclose(of["d_rows"][2], g[[0, 1, 5]].sum(axis=0))
    assert next(step.labels for step in found if step.name == "counts") == tuple("dbacef")
    padded = arrays_of(traced(make(padding_id=4))[0])
    assert padded["counts"].tolist() == [1, 1, 0, 1, 1, 1]


@pytest.mark.parametrize("method", ["sx", "vq"])
def test_what_is_connected_and_cut_is_said(method):
    found, g = traced(make(method, batch_norm=False))
    said = next(step for step in found if step.connects)
    assert said.name == {"sx": "soft", "vq": "d_query"}[method]
    assert "→ query" in said.connects and "output → codes → responses;" in said.cuts + ";"
    assert "normalised" not in said.connects + said.cuts
    if method == "vq":
        assert "codebook_loss → query" in said.cuts
        weighted = traced(make(method, commitment_weight=0.1))[0]
        assert "keys, query" in next(step.connects for step in weighted if step.connects)


@pytest.mark.parametrize(
    "kernel, name",
    [
        ("softmax_backward", "d_normalised"),
        ("batch_norm_backward", "d_responses"),
        ("dot_responses_backward", "d_keys"),
        ("sum_by_code", "d_values"),
    ],
)
def test_a_wrong_gradient_fails_its_check(kernel, name, monkeypatch):
    right = getattr(reference, kernel)

    def wrong(*arguments):
        found = right(*arguments)
        return tuple(1.001 * x for x in found) if isinstance(found, tuple) else 1.001 * found

    monkeypatch.setattr(reference, kernel, wrong)
    found, _ = traced(make())
    failed = [step.name for step in found if not all(claim.holds for claim in step.checks)]
    assert failed[0] == name
    plain = " ".join(trace.text(found).plain.split())
    assert plain.count("✗") == len(failed) and "is above 1e-06" in plain
    assert trace.summary(found) == f"{9 - len(failed)} of 9 checks hold" + "s" * (len(failed) == 8)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"method": "vq"}, "layer has method='vq'; it takes 'sx'"),
        ({"gumbel": True}, "gumbel"),
    ],
)
def test_layers_that_have_no_trace(options, message):
    with pytest.raises(ValueError, match=message):
        trace.sx(make(**options), IDS, np.ones((8, 12)))


def test_bad_arguments():
    layer, g = make(), np.ones((8, 12))
    with pytest.raises(TypeError, match="layer computes in float32; it takes float64"):
        trace.sx(DPQEmbedding(13, 12, n_groups=3, n_codes=5, backend="numpy"), IDS, g)
    with pytest.raises(ValueError, match="ids is empty"):
        trace.sx(layer, [], np.ones((0, 12)))
    with pytest.raises(IndexError, match="ids must lie in"):
        trace.sx(layer, IDS + 5, g)
    with pytest.raises(ValueError, match="d_output has shape"):
        trace.sx(layer, IDS, g[:3])
    with pytest.raises(ValueError, match="d_output has 1 entry that is NaN"):
        trace.sx(layer, IDS, np.where(np.arange(96).reshape(8, 12) == 3, np.nan, g))
    with pytest.raises(ValueError, match="words has 2"):
        trace.sx(layer, IDS, g, words=["a", "b"])


def test_a_trace_keeps_its_arrays():
    layer, ids, weights = make(), IDS.copy(), np.arange(1.0, 9)
    found = trace.sx(layer, ids, np.ones((8, 12)))
    table = trace.kmeans(np.eye(8)[:, :4], weights, n_groups=2, n_codes=3)
    before = [step.array.copy() for step in (*found, *table)]
    for array in (*layer.params.values(), ids, weights):
        array += 1
    for step, array in zip((*found, *table), before, strict=True):
        np.testing.assert_array_equal(step.array, array, err_msg=step.name)


# --- The classical methods ----------------------------------------------------------------------------------


def data(n=40, d=8, seed=0):
    rng = np.random.default_rng(seed)
    X = rng.standard_normal((n, d)) @ rng.standard_normal((d, d))
    return X, np.ceil(500 / np.arange(1, n + 1))


CLASSICAL = {
    "kmeans": lambda X, q, **o: trace.kmeans(X, q, **({"n_groups": 2, "n_codes": 5} | o)),
    "opq": lambda X, q, **o: trace.opq(X, q, **({"n_groups": 2, "n_codes": 5} | o)),
    "itq": lambda X, q, **o: trace.itq(X, q, **({"n_bits": 4} | o)),
    "group_reduce": lambda X, q, **o: trace.group_reduce(X, q, **({"n_blocks": 3, "ratio": 2} | o)),
}


def falling(found):
    """All checks hold, and no error is above the one before."""
    checked = holds(found)
    errors = [s.array.item() for s in found if s.name.startswith("error_") and not s.name[6:].isdecimal()]
    of = arrays_of(found)
    if "error_moved" in of:
        errors = [of["error"].item(), of["error_next"].item()]
    scale = sum(float((s.array**2).sum()) for s in found if s.name in ("table", "signs"))
    assert all(b <= a + 1e-9 * scale for a, b in zip(errors, errors[1:], strict=False)), errors
    return checked


def test_one_iteration_of_kmeans_is_that_of_the_package():
    X, q = data()
    found = trace.kmeans(X, q, n_groups=2, n_codes=5, seed=3)
    of = arrays_of(found)
    points = X.reshape(40, 2, 4)
    fitted = KMeans(5, max_iter=1, kernels=reference, rng=np.random.default_rng(0))
    fitted.fit(points, q, of["codebook"])
    np.testing.assert_allclose(of["codebook_update"], fitted.centroids, rtol=1e-12)
    np.testing.assert_array_equal(of["codes_next"], fitted.codes)
    assert of["error_next"] == pytest.approx(fitted.objective[0].sum(), rel=1e-12)
    for i in range(40):
        for j in range(2):
            distances = ((points[i, j] - of["codebook"][j]) ** 2).sum(axis=1)
            np.testing.assert_allclose(of["distances"][i, j], distances)
            assert of["codes"][i, j] == distances.argmin()
    assert of["error_assign"] == pytest.approx(q @ of["distances"].min(axis=2).sum(axis=1))
    assert of["error_assign"] > of["error_update"] > of["error_next"]
    assert abs(of["d_codebook"]).max() > 1 and abs(of["d_codebook_update"]).max() < 1e-10
    assert falling(found) == [
        "codes",
        "d_codebook",
        "d_codebook_update",
        "error_update",
        "error_next",
    ]


def test_one_iteration_of_opq():
    X, q = data()
    found = trace.opq(X, q, n_groups=2, n_codes=5, seed=3)
    of = arrays_of(found)
    np.testing.assert_array_equal(of["rotation"], principal_groups(X, q, np.array([4, 4])))
    np.testing.assert_allclose(of["rotated"], X @ of["rotation"])
    Y = np.concatenate([of["codebook_update"][j, of["codes"][:, j]] for j in range(2)], axis=1)
    np.testing.assert_array_equal(of["quantized"], Y)
    np.testing.assert_allclose(of["product"], X.T @ np.diag(q) @ Y)
    np.testing.assert_allclose(of["rotation_update"], procrustes(of["product"]))
    np.testing.assert_allclose(of["left"] @ np.diag(of["singular"]) @ of["right"], of["product"], atol=1e-9)
    errors = [q @ ((X @ of[R] - Y) ** 2).sum(axis=1) for R in ("rotation", "rotation_update")]
    np.testing.assert_allclose([of["error_update"], of["error_rotation"]], errors)
    rotated = (X @ of["rotation_update"]).reshape(40, 2, 4)
    np.testing.assert_array_equal(of["codes_next"], reference.nearest_code(rotated, of["codebook_update"]))
    assert of["error_assign"] > of["error_update"] > of["error_rotation"] > of["error_next"]
    assert "rotation_update" in falling(found)


def test_one_iteration_of_itq_is_that_of_the_baseline():
    X, q = data()
    found = trace.itq(X, q, n_bits=4, seed=3)
    of = arrays_of(found)
    fitted = ITQ(4, random_state=0).fit(X, sample_weight=q)
    np.testing.assert_allclose(of["mean"], fitted.mean_, atol=1e-12)
    np.testing.assert_allclose(of["components"], fitted.components_, atol=1e-9)
    R, objective = itq_rotation(of["projected"], q, of["rotation"], 1)
    np.testing.assert_allclose(of["rotation_update"], R, atol=1e-10)
    assert of["error_next"] == pytest.approx(objective[0])
    np.testing.assert_array_equal(of["signs"], np.where(of["projected"] @ of["rotation"] < 0, -1, 1))
    assert of["error_signs"] == pytest.approx(q @ ((of["signs"] - of["rotated"]) ** 2).sum(axis=1))
    assert of["error_signs"] > of["error_rotation"] > of["error_next"]
    falling(found)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("n, n_blocks, ratio", [(40, 3, 2), (60, 2, 3), (40, 5, 1.5), (40, 1, 4)])
def test_group_reduce_is_that_of_the_baseline(n, n_blocks, ratio, seed):
    X, q = data(n, seed=seed)
    found = trace.group_reduce(X, q, n_blocks=n_blocks, ratio=ratio)
    of = arrays_of(found)
    falling(found)
    start = GroupReduce(n_blocks=n_blocks, ratio=ratio, refinement="none").fit(X, sample_weight=q)
    np.testing.assert_array_equal(of["blocks"], start.blocks_)
    np.testing.assert_array_equal(of["ranks"], start.ranks_)
    assert of["error"] == pytest.approx(start.objective_[0], rel=1e-9)
    for p, (left, right) in enumerate(start.factors_):
        assert (right is None) == (f"basis_{p}" not in of)
        if right is not None:
            np.testing.assert_allclose(of[f"basis_{p}"], right, atol=1e-9)
            np.testing.assert_allclose(of[f"coefficients_{p}"], left, atol=1e-9)
            rest = X[of["blocks"] == p] - left @ right
            assert of[f"error_{p}"] == pytest.approx(q[of["blocks"] == p] @ (rest**2).sum(axis=1))
    refined = GroupReduce(n_blocks=n_blocks, ratio=ratio, max_iter=1).fit(X, sample_weight=q)
    assert of["error_next"] == pytest.approx(refined.objective_[-1], rel=1e-9)
    if len(refined.objective_) == 2:
        np.testing.assert_array_equal(of["blocks_moved"], refined.blocks_)
    assert of["numbers_moved"].sum() <= of["budget"]


@pytest.mark.parametrize(
    "method, options",
    [
        ("kmeans", {"n_groups": 1}),
        ("kmeans", {"n_groups": 8, "n_codes": 2}),
        ("kmeans", {"n_codes": 40}),
        ("opq", {"n_groups": 1, "n_codes": 2}),
        ("opq", {"n_groups": 8}),
        ("opq", {"n_codes": 40}),
        ("itq", {"n_bits": 1}),
        ("itq", {"n_bits": 8}),
        ("group_reduce", {"n_blocks": 40, "ratio": 0.9}),
        ("group_reduce", {"n_blocks": 1, "ratio": 0.5}),
    ],
)
@pytest.mark.parametrize(
    "kind", ["plain", "equal weights", "some without weight", "equal rows", "zero", "1e8"]
)
def test_edges_of_the_classical_methods(method, options, kind):
    X, q = data()
    X = {"equal rows": X[:1] + 0 * X, "zero": 0 * X, "1e8": 1e8 * X}.get(kind, X)
    some, half = np.arange(40) % 3 > 0, np.arange(40) < 20
    q = {"equal weights": None, "some without weight": some * q, "half without weight": half * q}.get(kind, q)
    falling(CLASSICAL[method](X, q, **options))


@pytest.mark.parametrize(
    "method, options, message",
    [
        ("kmeans", {"n_groups": 3}, "n_groups=3 does not divide dim=8"),
        ("kmeans", {"n_groups": 0}, "n_groups=0"),
        ("opq", {"n_codes": 41}, "n_codes=41 needs at least 41 rows, got 40"),
        ("opq", {"n_codes": 1}, "n_codes=1"),
        ("itq", {"n_bits": 9}, "n_bits=9"),
        ("itq", {"n_bits": 0}, "n_bits=0"),
        ("group_reduce", {"n_blocks": 41}, "n_blocks=41"),
        ("group_reduce", {"ratio": np.nan}, "ratio=nan"),
        ("group_reduce", {"ratio": 0}, "ratio=0"),
        ("group_reduce", {"ratio": 1e6}, "ratio=1e.06 leaves -3 numbers"),
    ],
)
def test_bad_arguments_of_the_classical_methods(method, options, message):
    X, q = data()
    with pytest.raises(ValueError, match=message):
        CLASSICAL[method](X, q, **options)
    with pytest.raises(ValueError, match="X has 1 entry that is NaN"):
        CLASSICAL[method](np.where(X == X[3, 3], np.nan, X), q)
    with pytest.raises(ValueError, match="weights"):
        CLASSICAL[method](X, -q)


@pytest.mark.parametrize(
    "method, where, name, wrong, failed",
    [
        ("kmeans", reference, "nearest_code", lambda codes: codes[::-1], "codes"),
        ("kmeans", reference, "sum_by_code", lambda sums: 1.01 * sums, "d_codebook"),
        ("opq", linalg, "svd", lambda found: (found[0], found[1], -found[2]), "rotation_update"),
        ("opq", linalg, "svd", lambda found: (found[0], found[1], 1.01 * found[2]), "right"),
        ("itq", linalg, "svd", lambda found: (found[0][::-1], *found[1:]), "rotation_update"),
        ("group_reduce", low_rank, "right_vectors", lambda found: (found[0], found[1][::-1]), "basis_1"),
        ("group_reduce", blocks, "assign", lambda moved: 0 * moved, "numbers_moved"),
    ],
)
def test_a_wrong_step_fails_its_check(method, where, name, wrong, failed, monkeypatch):
    right = getattr(where, name)
    monkeypatch.setattr(where, name, lambda *arguments, **options: wrong(right(*arguments, **options)))
    found = CLASSICAL[method](*data())
    red = [step.name for step in found if not all(claim.holds for claim in step.checks)]
    assert red and red[0] == failed


@pytest.mark.parametrize(
    "method, phases",
    [
        ("kmeans", ["start", "assign", "update", "next"]),
        ("opq", ["start", "rotate", "assign", "update", "Procrustes rotation", "next"]),
        ("itq", ["components", "signs", "Procrustes rotation", "next"]),
        ("group_reduce", ["blocks", "block 0", "block 1", "block 2", "refinement"]),
    ],
)
def test_the_parts_of_an_iteration(method, phases):
    found = CLASSICAL[method](*data())
    assert list(dict.fromkeys(step.phase for step in found)) == phases


def test_blocks_without_weight_have_factors():
    X, q = data()
    q[20:] = 0
    of = arrays_of(trace.group_reduce(X, q, n_blocks=4, ratio=2))
    assert of["blocks"][-1] == 3 and of["ranks"][3] == 1
    _, vectors = low_rank.right_vectors(X[of["blocks"] == 3], np.ones(10))
    np.testing.assert_allclose(of["basis_3"], vectors[:1])


def test_a_round_that_does_not_help_is_not_taken():
    moved, after = trace.blocks._refitted([], 1.0, 2.0)
    assert (moved.array, after.array) == (2.0, 1.0) and "not taken" in after.note
    assert all(claim.holds for claim in after.checks)


def test_claims_see_what_is_wrong():
    assert not steps.no_higher(1.1, 1.0, "error", 1.0).holds
    assert not steps.orthogonal(np.eye(3) + 1e-9, "R").holds
    turns = steps.rotations(3, np.random.default_rng(0))
    assert all(steps.orthogonal(Q, "Q").holds for Q in turns)
    assert not any(np.allclose(Q, np.eye(3)) for Q in turns)
    best = np.diag([3.0, 2.0, 1.0])
    assert steps.unbeaten(lambda R: -float((best * R).sum()), np.eye(3), turns, "rotations").holds
    assert not steps.unbeaten(lambda R: -float((best * R).sum()), turns[0], [np.eye(3)], "rotations").holds


# --- What shows a trace -------------------------------------------------------------------------------------


class Page(HTMLParser):
    """Tags are closed in their order; text, headings and cells are kept."""

    def __init__(self, page):
        super().__init__()
        self.open, self.text, self.ids, self.links, self.cells = [], [], [], [], 0
        self.feed(page)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        assert not {"src", "onload"} & set(attrs) and tag not in ("script", "link", "img")
        if tag not in ("meta",):
            self.open.append(tag)
        self.ids += [attrs["id"]] if "id" in attrs else []
        self.links += [attrs["href"]] if "href" in attrs else []
        self.cells += tag == "td"

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


@pytest.fixture(scope="module", params=list(OPTIONS))
def shown(request):
    return example(request.param, **({"tokens": "3 1 3 0 2"} if request.param in ("sx", "vq") else {}))


def test_every_step_is_in_the_text(shown):
    title, found = shown
    plain = trace.text(found, title, show=trace.Show(3, 2, 4)).plain
    assert max(map(len, plain.splitlines())) <= 80
    assert plain.startswith(title[:20])
    flat = " ".join(plain.split())
    for n, step in enumerate(found):
        shape = " × ".join(map(str, step.array.shape)) or "number"
        assert f"\n{n + 1:2} {step.name}  ({shape})\n" in plain
        for said in (step.formula, step.note, step.connects, step.cuts):
            assert " ".join(said.split()) in flat
        for claim in step.checks:
            assert f"✓ {claim.text}" in flat
    assert plain.endswith(trace.summary(found))
    assert all(f"── {phase} " in plain for phase in {step.phase for step in found})


def test_the_page_is_whole_and_alone(shown):
    title, found = shown
    page = trace.html(found, title)
    assert not re.search("https?:|//[a-z]|@import|url\\(", page)
    read = Page(page)
    text = " ".join("".join(read.text).split())
    assert read.ids == [step.name for step in found]
    assert read.links == [f"#{name}" for name in read.ids]
    for step in found:
        for said in (step.formula, step.note, step.connects, *(claim.text for claim in step.checks)):
            assert " ".join(said.split()) in text
    assert trace.summary(found) in text


def test_what_is_written_is_escaped():
    found, _ = traced(make(), words=["<b>", *"&bcdefg"])
    page = trace.html(found, "<i>")
    assert "&lt;b&gt;" in page and "<b>" not in page and "<i>" not in page
    Page(page)


def test_the_arrays_are_those_of_the_steps(shown):
    _, found = shown
    with np.load(io.BytesIO(trace.npz(found))) as arrays:
        assert arrays.files == [step.name for step in found]
        for step in found:
            np.testing.assert_array_equal(arrays[step.name], step.array)
            assert arrays[step.name].dtype == step.array.dtype


def test_axes_and_labels_fit_their_arrays(shown):
    _, found = shown
    for step in found:
        assert len(step.axes) == np.ndim(step.array), step.name
        assert set(step.axes) <= set(grid.AXES)
        first = [n for axis, n in zip(step.axes, step.array.shape, strict=True) if axis in "ti"]
        assert not step.labels or first == [len(step.labels)], step.name
        assert step.array.dtype.kind == "i" or step.array.dtype == np.float64, step.name


def test_how_much_is_shown():
    array = np.arange(4 * 3 * 20.0).reshape(4, 3, 20)
    step = trace.Step("a", "", array, axes="ijk", labels=tuple("wxyz"), picked=np.full((4, 3), 1))
    g = grid.grid(step, trace.Show(2, 2, 3))
    assert g.heads == ["k=0", "k=1", "k=2"]
    assert [label for label, *_ in g.lines] == ["w j=0", "  j=1", "x j=0", "  j=1"]
    assert [cells for _, cells, _ in g.lines][1] == ["20", "21", "22"]
    assert all(marked == [False, True, False] for *_, marked in g.lines)
    assert g.left_out == "2 of 4 rows, 2 of 3 groups, 3 of 20 codes shown"
    for width in (40, 80, 100):
        plain = trace.text([step], show=trace.Show(9, 9, 99), width=width).plain
        lines = [line for line in plain.splitlines() if "*" in line]
        assert len(lines) == 12 and width - 8 < max(map(len, lines)) <= width
        assert "of 20 codes shown" in plain
    assert grid.grid(step, trace.Show(9, 9, 99)).left_out == ""
    with pytest.raises(ValueError, match="groups=0"):
        trace.Show(groups=0)
    with pytest.raises(ValueError, match="width=10"):
        trace.text([step], width=10)


def test_long_words_leave_room_for_numbers():
    found, _ = traced(make(), words=["w" * 60] * 8)
    plain = trace.text(found, width=60).plain
    assert max(map(len, plain.splitlines())) <= 60 and "wwwwwwwwwww…" in plain


def test_numbers_are_written_alike():
    for values, written in (
        ([1, -2], ["1", "-2"]),
        ([0.5, -0.0], ["0.5000", "0.0000"]),
        ([2e-7, 1e-9], ["2.000e-07", "1.000e-09"]),
        ([3e7, 0.5], ["3.000e+07", "5.000e-01"]),
        ([np.nan, 0.5], ["nan", "5.000e-01"]),
    ):
        write = grid.number_format(np.array(values))
        assert [write(x) for x in values] == written


def test_a_claim_of_nan_does_not_hold():
    claim = steps.slope(lambda x: float("nan"), np.ones(2), np.ones(2), np.random.default_rng(0))
    assert not claim.holds


def test_soft_values_of_a_shared_codebook(rng):
    p, values = rng.random((5, 3, 4)), rng.random((1, 4, 2))
    np.testing.assert_allclose(softmax.mean_value(p, values), np.einsum("ijk,kc->ijc", p, values[0]))


# --- The command --------------------------------------------------------------------------------------------


def run(*arguments, **options):
    return CliRunner().invoke(main, ["trace", *map(str, arguments)], **options)


@pytest.mark.parametrize("method", list(OPTIONS))
def test_the_command_prints_every_step_without_colour(method):
    tokens = ["--tokens", "3 1 3"] if method in ("sx", "vq") else []
    done = run("--method", method, *tokens)
    assert done.exit_code == 0, done.output
    _, found = example(method, **({"tokens": "3 1 3"} if tokens else {}))
    assert all(f"\n{n + 1:2} {step.name}  (" in done.output for n, step in enumerate(found))
    assert "\x1b" not in done.output and "✗" not in done.output
    assert max(map(len, done.output.splitlines())) <= 80
    assert run("--method", method, *tokens).output == done.output


def test_the_readme_shows_what_is_printed():
    readme = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf8")
    (shown,) = re.findall(r"```text\n(21 soft.*?)```", readme, re.DOTALL)
    assert shown in run("--tokens", "1 2 3 1 4").output  # four distinct, as in the words by default


def test_colour_on_a_terminal():
    done = run("--tokens", "3 1 3", env={"FORCE_COLOR": "1", "COLUMNS": "100", "TERM": "xterm"}, color=True)
    assert "\x1b[" in done.output and "\x1b[1;33m" in done.output  # what is picked
    assert 80 < max(len(re.sub("\x1b[^m]*m", "", line)) for line in done.output.splitlines()) <= 100


def test_the_command_writes_files(tmp_path):
    page, arrays = tmp_path / "t.html", tmp_path / "t.npz"
    done = run(
        "--tokens", "3 1 3", "--html", page, "--npz", arrays, "--shared", "--no-batch-norm", "--dim", 8
    )
    assert done.exit_code == 0, done.output
    title, found = example("sx", tokens="3 1 3", shared=True, batch_norm=False, dim=8)
    assert done.output == f"{title}\n{trace.summary(found)}\n{page}\n{arrays}\n"
    assert page.read_text(encoding="utf8") == trace.html(found, title)
    with np.load(arrays) as loaded:
        np.testing.assert_array_equal(loaded["d_table"], arrays_of(found)["d_table"])


def test_words_of_the_corpus(tmp_path, monkeypatch):
    from dpq_ref import datasets

    class Corpus:
        vocabulary = ("<pad>", "<unk>", "the", "code", *(f"w{i}" for i in range(100, 300)))

    monkeypatch.setattr(datasets, "load_builtin", lambda progress: Corpus)
    done = run("--tokens", "The code  the <pad>", "--show-rows", 2)
    assert done.exit_code == 0, done.output
    assert re.search("the +code +the +<pad>\n +2 +3 +2 +0\n", done.output)
    assert "2 of 3 rows shown" in done.output
    assert "0 for padding" in done.output
    done = run("--tokens", "the quick code and")
    assert done.exit_code == 1
    assert "tokens: 'quick', 'and' not in the vocabulary" in done.output


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--tokens", " "], "tokens is empty"),
        (["--tokens", "99999999"], "tokens: 99999999 is too large"),
        (["--temperature", "nan"], "temperature=nan"),
        (["--temperature", "0"], "temperature=0.0"),
        (["--temperature", "inf"], "temperature=inf"),
        (["--method", "vq", "--commitment-weight", "-1"], "commitment_weight=-1.0"),
        (["--method", "vq", "--codebook-weight", "nan"], "codebook_weight=nan"),
        (["--method", "vq", "--temperature", "1"], "temperature: method='vq' does not have it"),
        (["--commitment-weight", "1"], "commitment_weight: method='sx' does not have it"),
        (["--n-groups", "4"], "n_groups=4 does not divide dim=6"),
        (["--n-codes", "1"], "--n-codes"),
        (["--n-codes", "70000"], "n_codes=70000"),
        (["--show-groups", "0"], "--show-groups"),
        (["--method", "pq"], "--method"),
        (["--method", "kmeans", "--tokens", "the"], "tokens: method='kmeans' does not have it"),
        (["--method", "opq", "--n-codes", "17"], "n_codes=17 needs at least 17 rows, got 16"),
        (["--method", "itq", "--n-bits", "5"], "n_bits=5"),
        (["--method", "group-reduce", "--ratio", "nan"], "ratio=nan"),
        (["--method", "group-reduce", "--ratio", "50"], "ratio=50 leaves 1 numbers"),
        (["--html", "/nowhere/at/all.html"], "/nowhere/at"),
    ],
)
def test_clear_errors(arguments, message):
    done = run(
        *(["--tokens", "3 1 3"] if "--tokens" not in arguments and "--method" not in arguments else []),
        *arguments,
    )
    assert done.exit_code in (1, 2)
    assert message in done.output
    assert "Traceback" not in done.output


def test_a_check_that_fails_is_an_error(monkeypatch):
    right = reference.softmax_backward
    monkeypatch.setattr(reference, "softmax_backward", lambda *arguments: -right(*arguments))
    done = run("--tokens", "3 1 3")
    assert done.exit_code == 1 and "Error: 4 of 9 checks hold" in done.output


def test_help_says_what_one_gets():
    done = run("--help")
    assert done.exit_code == 0
    for said in ("formula", "finite differences", "connects", "--html", "--npz", "--show-rows", "ids as"):
        assert said in " ".join(done.output.split())
