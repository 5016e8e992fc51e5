"""The DPQ in the plane: cells and gradients by their definitions, and its figure."""

import csv
import json

import numpy as np
import pytest
from click.testing import CliRunner

from figures import geometry, plot_geometry


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Result and figure of the two commands."""
    folder = tmp_path_factory.mktemp("geometry")
    for command, option in ((geometry.main, "--output"), (plot_geometry.main, "--results")):
        done = CliRunner().invoke(command, [option, str(folder)])
        assert done.exit_code == 0, done.output
    return folder


@pytest.fixture(scope="module")
def result(folder):
    return json.loads((folder / "geometry.json").read_text(encoding="utf8"))


def arrays(state):
    return {name: value if name == "cells" else np.array(value) for name, value in state.items()}


STATES = pytest.mark.parametrize(
    ("method", "when"), [(m, w) for m in ("dpq-sx", "dpq-vq") for w in ("before", "after")]
)


def responses(method, points, keys):
    """Of points (n, 2) to keys (K, 2), by the definition."""
    if method == "dpq-sx":
        return points @ keys.T
    return -np.square(points[:, None] - keys[None]).sum(axis=-1)


@STATES
def test_cells_are_where_the_response_of_a_key_is_largest(result, method, when):
    state = arrays(result[method][when])
    n = len(state["cells"])
    at = (np.arange(n) + 0.5) / n * 2 * state["side"] - state["side"]
    for y, row in zip(at, state["cells"], strict=True):
        found = responses(method, np.c_[at, np.full(n, y)], state["keys"])
        picked = found[np.arange(n), list(map(int, row))]
        assert (picked >= found.max(axis=1) - 1e-3).all()  # keys are rounded in the file
    np.testing.assert_array_equal(
        state["codes"], responses(method, state["query"], state["keys"]).argmax(axis=1)
    )
    assert max(np.abs(state["query"]).max(), np.abs(state["keys"]).max()) < state["side"]


@STATES
def test_gradients_by_hand(result, method, when):
    state, targets = arrays(result[method][when]), np.array(result["targets"])
    values = state["values"] if method == "dpq-sx" else state["keys"]
    d_output = values[state["codes"]] - targets
    np.testing.assert_allclose(state["d_output"], d_output, atol=1e-4)
    assert state["loss"] == pytest.approx((d_output**2).sum() / 2 / len(targets), rel=1e-3)
    if method == "dpq-vq":  # straight through: the query gets what the output got
        np.testing.assert_allclose(state["d_query"], d_output, atol=1e-4)
        return
    # Of soft = sum_k p_k v_k, p the softmax of the responses r: d soft / d r_k = p_k (v_k - soft).
    p = np.exp(responses(method, state["query"], state["keys"]))
    p /= p.sum(axis=1, keepdims=True)
    d_response = p * np.einsum("bs,bks->bk", d_output, values[None] - (p @ values)[:, None])
    np.testing.assert_allclose(state["d_query"], d_response @ state["keys"], atol=1e-3)


def test_training_brings_the_outputs_near_their_targets(result):
    for method in ("dpq-sx", "dpq-vq"):
        assert result[method]["after"]["loss"] < result[method]["before"]["loss"] / 4


def test_the_figure_has_its_numbers(folder, result):
    with (folder / "geometry.csv").open(encoding="utf8", newline="") as file:
        rows = list(csv.DictReader(file))
    n = len(result["targets"])
    assert len(rows) == 2 * (4 * n + 3 * geometry.K)
    first = rows[0]
    assert [first[k] for k in ("method", "when", "kind", "index")] == ["dpq-sx", "before", "query", "0"]
    assert float(first["minus_gradient_x"]) == -result["dpq-sx"]["before"]["d_query"][0][0]
    for ending in ("png", "svg", "pdf"):
        assert (folder / f"geometry.{ending}").stat().st_size > 1000
