"""LSTM on a GPU: a kernel for a step, and cuBLAS for its product with the hidden state."""

import cupy as xp
import numpy as np
from numpy.typing import NDArray

from dpq_ref.kernels.cuda.device import each, inputs
from dpq_ref.kernels.reference import Array
from dpq_ref.kernels.shapes import check_shape


def lstm_cell(gates: Array, cell: Array) -> tuple[Array, Array, Array]:
    """As `reference.lstm_cell`."""
    b, h = cell.shape
    check_shape("gates", gates, b, 4 * h)
    activations, new, hidden = (xp.empty((b, w), gates.dtype) for w in (4 * h, h, h))
    affine, before = inputs(gates.dtype, gates, cell)
    each("lstm_step", b * h, affine, before, None, None, b, h, activations, new, hidden)
    return activations, new, hidden


def lstm_cell_backward(
    d_hidden: Array, d_cell: Array, activations: Array, cell: Array, new: Array
) -> tuple[Array, Array]:
    """As `reference.lstm_cell_backward`."""
    b, h = cell.shape
    check_shape("activations", activations, b, 4 * h)
    for name, array in (("d_hidden", d_hidden), ("d_cell", d_cell), ("new", new)):
        check_shape(name, array, b, h)
    d_gates, d_before = xp.empty((b, 4 * h), cell.dtype), xp.empty((b, h), cell.dtype)
    d_h, *arrays = inputs(cell.dtype, d_hidden, d_cell, activations, cell, new)
    each("lstm_step_backward", b * h, d_h, None, *arrays, None, b, h, d_gates, d_before)
    return d_gates, d_before


def lstm(
    gates: Array, hidden_weight: Array, hidden: Array, cell: Array, alive: NDArray[np.bool_]
) -> tuple[Array, Array, Array]:
    """As `reference.lstm`."""
    t, b, _ = gates.shape
    h = len(hidden_weight)
    for name, array, shape in (
        ("gates", gates, (t, b, 4 * h)),
        ("hidden_weight", hidden_weight, (h, 4 * h)),
        ("hidden", hidden, (b, h)),
        ("cell", cell, (b, h)),
        ("alive", alive, (t, b)),
    ):
        check_shape(name, array, *shape)
    activations = xp.empty(gates.shape, gates.dtype)
    hiddens, cells = (xp.empty((t + 1, b, h), gates.dtype) for _ in range(2))
    hiddens[0], cells[0] = hidden, cell
    (gates,), (on,) = inputs(gates.dtype, gates), inputs(np.bool_, alive)
    for i in range(t):
        affine = gates[i] + hiddens[i] @ hidden_weight
        before = affine, cells[i], hiddens[i], on[i]
        each("lstm_step", b * h, *before, b, h, activations[i], cells[i + 1], hiddens[i + 1])
    return activations, hiddens, cells


def lstm_backward(
    d_hiddens: Array,
    d_hidden: Array,
    d_cell: Array,
    activations: Array,
    cells: Array,
    hidden_weight: Array,
    alive: NDArray[np.bool_],
) -> tuple[Array, Array, Array]:
    """As `reference.lstm_backward`."""
    t, b, h = d_hiddens.shape
    for name, array, shape in (
        ("d_hidden", d_hidden, (b, h)),
        ("d_cell", d_cell, (b, h)),
        ("activations", activations, (t, b, 4 * h)),
        ("cells", cells, (t + 1, b, h)),
        ("hidden_weight", hidden_weight, (h, 4 * h)),
        ("alive", alive, (t, b)),
    ):
        check_shape(name, array, *shape)
    d_gates = xp.empty((t, b, 4 * h), activations.dtype)
    arrays = d_hiddens, d_hidden, d_cell, activations, cells
    above, d_hidden, d_cell, activations, cells = inputs(activations.dtype, *arrays)
    (on,) = inputs(np.bool_, alive)
    for i in reversed(range(t)):
        d_before = xp.empty((b, h), d_cell.dtype)
        given = d_hidden, above[i], d_cell, activations[i], cells[i], cells[i + 1], on[i]
        each("lstm_step_backward", b * h, *given, b, h, d_gates[i], d_before)
        d_hidden = xp.where(on[i, :, None], d_gates[i] @ hidden_weight.T, d_hidden)
        d_cell = d_before
    return d_gates, d_hidden.copy(), d_cell.copy()
