"""Layers by name: what belongs to a network, its state, and what a state must have."""

import numpy as np
import pytest

from dpq_ref.layers import BatchNorm, BidirectionalLSTM, Dropout
from dpq_ref.network import Network


def network():
    inner = Network({"norm": BatchNorm(2), "dropout": Dropout(0.5, rng=1)})
    return Network({"inner": inner, "both": BidirectionalLSTM(2, 3), "dropout": Dropout(0.5, rng=2)})


def test_what_belongs_to_it_however_deep():
    made = network()
    lstm = {
        f"both.{way}.{name}"
        for way in ("forward", "backward")
        for name in ("input_weight", "hidden_weight", "bias")
    }
    assert set(made.params) == lstm | {"inner.norm.gamma", "inner.norm.beta"}
    assert set(made.buffers) == {"inner.norm.mean", "inner.norm.variance"}
    assert set(made.generators) == {"inner.dropout", "dropout"}
    assert made.generators["inner.dropout"] is made.layers["inner"].layers["dropout"].rng


def test_state_is_a_copy_and_comes_back():
    made, other = network(), network()
    for array in (made.params | made.buffers).values():
        array += 1
    state = made.state()
    for array in made.params.values():
        array += 1
    other.load_state(state)
    for name, array in state.items():
        np.testing.assert_array_equal(other.state()[name], array)
    assert (made.params["inner.norm.beta"] == 2).all()


def test_layers_that_stay():
    made, state = network(), network().state()
    state = {name: array + 1 for name, array in state.items() if not name.startswith("both.")}
    before = made.state()
    made.load_state(state, without=["both"])
    assert all((made.params[name] == before[name]).all() for name in made.params if name.startswith("both."))
    assert (made.params["inner.norm.beta"] == 1).all()


@pytest.mark.parametrize("change", [{"both.forward.bias": np.zeros(3)}, {"both.forward.bias": None}])
def test_what_does_not_fit_changes_nothing(change):
    made = network()
    state = {name: array + 1 for name, array in made.state().items()} | change
    state = {name: array for name, array in state.items() if array is not None}
    before = made.state()
    with pytest.raises(ValueError, match=r"state\['both.forward.bias'\] has shape .*; it takes \(12,\)"):
        made.load_state(state)
    for name, array in made.state().items():
        np.testing.assert_array_equal(array, before[name])
