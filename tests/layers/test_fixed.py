"""A compressed table as a layer: its rows, nothing to train, and itself again on export."""

import numpy as np
import pytest

from baselines import ProductQuantizer
from dpq_ref import FixedEmbedding


@pytest.fixture
def table(rng):
    return (
        ProductQuantizer(2, 4, random_state=0).fit(rng.standard_normal((30, 6)).astype(np.float32)).compress()
    )


@pytest.mark.parametrize("train", [False, True])
@pytest.mark.parametrize("shape", [(), (0,), (2, 3)])
def test_rows_are_those_of_the_table(table, train, shape, rng):
    layer, ids = FixedEmbedding(table), rng.integers(0, 30, shape)
    output = layer.forward(ids, train)
    np.testing.assert_array_equal(output, table.lookup(ids))
    layer.backward(output)
    assert layer.params == layer.grads == {}
    assert layer.export() is table
    assert (layer.vocab_size, layer.dim) == (30, 6)


@pytest.mark.parametrize(("ids", "error"), [([30], IndexError), ([-1], IndexError), ([0.5], TypeError)])
def test_bad_ids(table, ids, error):
    with pytest.raises(error, match="ids"):
        FixedEmbedding(table).forward(ids)
