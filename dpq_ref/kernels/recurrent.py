"""LSTM on the CPU: the cell, and all steps of a layer in one loop with the products of BLAS.

BLAS uses one thread: the product of a step is small, and to wait for another thread takes longer.
"""

import numpy as np
from numpy.typing import NDArray

from dpq_ref.backend import one_blas_thread
from dpq_ref.kernels import loops
from dpq_ref.kernels.reference import Array


@loops.serial
def _sigmoid(x):
    one = type(x)(1)
    e = loops.exp(-abs(x))
    return (one if x >= 0 else e) / (one + e)


@loops.serial
def _tanh(x):
    """tanh(x), with an absolute error of the order of the last digit."""
    one = type(x)(1)
    e = loops.exp(-(abs(x) + abs(x)))
    t = (one - e) / (one + e)
    return t if x >= 0 else -t


def lstm_cell(gates: Array, cell: Array) -> tuple[Array, Array, Array]:
    """As `reference.lstm_cell`; on one thread, for a step is too small to share."""
    b, h = cell.shape
    loops.check_shape("gates", gates, b, 4 * h)
    activations, new, hidden = (np.empty((b, w), gates.dtype) for w in (4 * h, h, h))
    _lstm_cell(*loops.inputs(gates.dtype, gates, cell), activations, new, hidden)
    return activations, new, hidden


@loops.serial
def _lstm_cell(gates, cell, activations, new, hidden):
    _step(gates, cell, activations, new, hidden)


@loops.serial
def _step(gates, cell, activations, new, hidden):
    b, h = cell.shape
    for n in range(b):
        for k in range(2 * h):
            activations[n, k] = _sigmoid(gates[n, k])
        for k in range(2 * h, 3 * h):
            activations[n, k] = _tanh(gates[n, k])
        for k in range(3 * h, 4 * h):
            activations[n, k] = _sigmoid(gates[n, k])
        for k in range(h):
            new[n, k] = activations[n, h + k] * cell[n, k] + activations[n, k] * activations[n, 2 * h + k]
        for k in range(h):
            hidden[n, k] = activations[n, 3 * h + k] * _tanh(new[n, k])


def lstm_cell_backward(
    d_hidden: Array, d_cell: Array, activations: Array, cell: Array, new: Array
) -> tuple[Array, Array]:
    """As `reference.lstm_cell_backward`."""
    b, h = cell.shape
    loops.check_shape("activations", activations, b, 4 * h)
    for name, array in (("d_hidden", d_hidden), ("d_cell", d_cell), ("new", new)):
        loops.check_shape(name, array, b, h)
    d_gates, d_before = np.empty((b, 4 * h), cell.dtype), np.empty((b, h), cell.dtype)
    _lstm_cell_backward(
        *loops.inputs(cell.dtype, d_hidden, d_cell, activations, cell, new), d_gates, d_before
    )
    return d_gates, d_before


@loops.serial
def _lstm_cell_backward(d_hidden, d_cell, activations, cell, new, d_gates, d_before):
    _step_backward(d_hidden, d_cell, activations, cell, new, d_gates, d_before)


@loops.serial
def _step_backward(d_hidden, d_cell, activations, cell, new, d_gates, d_before):
    b, h = cell.shape
    one = cell.dtype.type(1)
    for n in range(b):
        for k in range(h):
            d_before[n, k] = _tanh(new[n, k])
        for k in range(h):
            i, f = activations[n, k], activations[n, h + k]
            g, o, t = activations[n, 2 * h + k], activations[n, 3 * h + k], d_before[n, k]
            e = d_cell[n, k] + d_hidden[n, k] * o * (one - t * t)
            d_gates[n, k] = e * g * i * (one - i)
            d_gates[n, h + k] = e * cell[n, k] * f * (one - f)
            d_gates[n, 2 * h + k] = e * i * (one - g * g)
            d_gates[n, 3 * h + k] = d_hidden[n, k] * t * o * (one - o)
            d_before[n, k] = e * f


@one_blas_thread
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
        loops.check_shape(name, array, *shape)
    activations = np.empty(gates.shape, gates.dtype)
    hiddens, cells = (np.empty((t + 1, b, h), gates.dtype) for _ in range(2))
    hiddens[0], cells[0] = hidden, cell
    if gates.size:
        arrays = *loops.inputs(gates.dtype, gates, hidden_weight), *loops.inputs(np.bool_, alive)
        _lstm(*arrays, activations, hiddens, cells)
    return activations, hiddens, cells


@loops.serial
def _lstm(gates, hidden_weight, alive, activations, hiddens, cells):
    t, b, _ = gates.shape
    h = hiddens.shape[2]
    affine = np.empty((b, 4 * h), gates.dtype)  # activations over their gates would not be vectorised
    for i in range(t):
        np.dot(hiddens[i], hidden_weight, affine)
        for n in range(b):
            for k in range(4 * h):
                affine[n, k] += gates[i, n, k]
        _step(affine, cells[i], activations[i], cells[i + 1], hiddens[i + 1])
        for n in range(b):
            if not alive[i, n]:
                hiddens[i + 1, n] = hiddens[i, n]
                cells[i + 1, n] = cells[i, n]


@one_blas_thread
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
        loops.check_shape(name, array, *shape)
    real = activations.dtype
    d_gates = np.empty((t, b, 4 * h), real)
    d_hidden, d_cell = (np.array(state, real, order="C") for state in (d_hidden, d_cell))
    if d_gates.size:
        arrays = loops.inputs(real, d_hiddens, activations, cells, hidden_weight.T)
        _lstm_backward(*arrays, *loops.inputs(np.bool_, alive), d_hidden, d_cell, d_gates)
    return d_gates, d_hidden, d_cell


@loops.serial
def _lstm_backward(d_hiddens, activations, cells, turned, alive, d_hidden, d_cell, d_gates):
    t, b, h = d_hiddens.shape
    zero = d_hidden.dtype.type(0)
    before = np.empty((b, h), d_hidden.dtype)
    through = np.empty((2, b, h), d_hidden.dtype)
    for i in range(t - 1, -1, -1):
        for n in range(b):
            for k in range(h):
                through[0, n, k] = d_hiddens[i, n, k] + d_hidden[n, k] if alive[i, n] else zero
                through[1, n, k] = d_cell[n, k] if alive[i, n] else zero
        _step_backward(through[0], through[1], activations[i], cells[i], cells[i + 1], d_gates[i], before)
        np.dot(d_gates[i], turned, through[0])
        for n in range(b):
            for k in range(h):
                d_hidden[n, k] = through[0, n, k] if alive[i, n] else d_hidden[n, k]
                d_cell[n, k] = before[n, k] if alive[i, n] else d_cell[n, k]
