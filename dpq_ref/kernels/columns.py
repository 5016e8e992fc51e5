"""Batch norm of columns on the CPU: two passes over a batch, the first of which adds up.

Each block of ROWS rows has its own sums, in float64, and they are added in the order of the batch.
"""

import numpy as np
from numba import prange

from dpq_ref.kernels import loops
from dpq_ref.kernels.reference import Array, scalar_like

ROWS = 64


def column_norm(
    x: Array, gamma: Array, beta: Array, epsilon: float, floor: float
) -> tuple[Array, Array, Array]:
    """As `reference.column_norm`."""
    b, w = x.shape
    loops.check_shape("gamma", gamma, w)
    loops.check_shape("beta", beta, w)
    y, mean, variance = np.empty((b, w), x.dtype), np.zeros(w, x.dtype), np.zeros(w, x.dtype)
    if b:
        arrays, numbers = (
            loops.inputs(x.dtype, x, gamma, beta),
            (scalar_like(x, epsilon), scalar_like(x, floor)),
        )
        _column_norm(*arrays, *numbers, _sums(b, w), y, mean, variance)
    return y, mean, variance


@loops.parallel
def _column_norm(x, gamma, beta, epsilon, floor, sums, y, mean, variance):
    for block in prange(len(sums)):
        _add_moments(x[block * ROWS : (block + 1) * ROWS], x[0], sums[block, 0], sums[block, 1])
    _statistics(sums, x, mean, variance)
    rate = _rate(gamma, variance, epsilon)
    for block in prange(len(sums)):
        rows = slice(block * ROWS, (block + 1) * ROWS)
        _scale(x[rows], mean, rate, beta, floor, y[rows])


@loops.serial
def _add_moments(x, origin, first, second):
    """Add up x - origin and its square."""
    for i in range(len(x)):
        for c in range(x.shape[1]):
            d = np.float64(x[i, c]) - origin[c]
            first[c] += d
            second[c] += d * d


@loops.serial
def _statistics(sums, x, mean, variance):
    """Mean and variance from the moments about x[0].

    That is one of the rows, so its squared distance from the mean is at most b variances, and the difference
    below at least the (b + 1)-th part of what it is taken from.
    """
    b, w = x.shape
    _add_blocks(sums)
    for c in range(w):
        shift = sums[0, 0, c] / b
        mean[c] = x[0, c] + shift
        variance[c] = sums[0, 1, c] / b - shift * shift


@loops.serial
def _add_blocks(sums):
    """Add the sums of all blocks to those of the first."""
    for block in range(1, len(sums)):
        for k in range(2):
            for c in range(sums.shape[2]):
                sums[0, k, c] += sums[block, k, c]


@loops.serial
def _rate(gamma, variance, epsilon):
    return gamma / np.sqrt(variance + epsilon)


@loops.serial
def _scale(x, mean, rate, beta, floor, y):
    for i in range(len(x)):
        for c in range(x.shape[1]):
            z = (x[i, c] - mean[c]) * rate[c] + beta[c]
            y[i, c] = floor if z <= floor else z


def column_norm_backward(
    d_y: Array,
    y: Array,
    x: Array,
    mean: Array,
    variance: Array,
    gamma: Array,
    epsilon: float,
    floor: float,
) -> tuple[Array, Array, Array]:
    """As `reference.column_norm_backward`."""
    b, w = x.shape
    for name, array in (("d_y", d_y), ("y", y)):
        loops.check_shape(name, array, b, w)
    for name, array in (("mean", mean), ("variance", variance), ("gamma", gamma)):
        loops.check_shape(name, array, w)
    d_x, d_gamma, d_beta = np.empty((b, w), x.dtype), np.zeros(w, x.dtype), np.zeros(w, x.dtype)
    if b:
        arrays = loops.inputs(x.dtype, d_y, y, x, mean, variance, gamma)
        numbers = scalar_like(x, epsilon), scalar_like(x, floor)
        _column_norm_backward(*arrays, *numbers, _sums(b, w), d_x, d_gamma, d_beta)
    return d_x, d_gamma, d_beta


@loops.parallel
def _column_norm_backward(d_y, y, x, mean, variance, gamma, epsilon, floor, sums, d_x, d_gamma, d_beta):
    for block in prange(len(sums)):
        rows = slice(block * ROWS, (block + 1) * ROWS)
        _add_products(d_y[rows], y[rows], x[rows], mean, floor, sums[block, 0], sums[block, 1])
    _add_blocks(sums)
    rate, slope = _rate(gamma, variance, epsilon), np.empty_like(mean)
    shift = np.empty_like(mean)
    for c in range(len(mean)):
        deviation = np.sqrt(np.float64(variance[c] + epsilon))
        d_beta[c], d_gamma[c] = sums[0, 0, c], sums[0, 1, c] / deviation
        shift[c], slope[c] = d_beta[c] / len(x), d_gamma[c] / (len(x) * deviation)
    for block in prange(len(sums)):
        rows = slice(block * ROWS, (block + 1) * ROWS)
        _unscale(d_y[rows], y[rows], x[rows], mean, floor, shift, slope, rate, d_x[rows])


@loops.serial
def _add_products(d_y, y, x, mean, floor, first, second):
    """Add up d and d (x - mean)."""
    for i in range(len(x)):
        for c in range(x.shape[1]):
            d = np.float64(d_y[i, c]) if y[i, c] > floor else 0.0
            first[c] += d
            second[c] += d * (x[i, c] - mean[c])


@loops.serial
def _unscale(d_y, y, x, mean, floor, shift, slope, rate, d_x):
    for i in range(len(x)):
        for c in range(x.shape[1]):
            d = d_y[i, c] if y[i, c] > floor else d_y.dtype.type(0)
            d_x[i, c] = rate[c] * (d - shift[c] - (x[i, c] - mean[c]) * slope[c])


def column_norm_apply(
    x: Array, mean: Array, variance: Array, gamma: Array, beta: Array, epsilon: float, floor: float
) -> Array:
    """As `reference.column_norm_apply`."""
    b, w = x.shape
    for name, array in (("mean", mean), ("variance", variance), ("gamma", gamma), ("beta", beta)):
        loops.check_shape(name, array, w)
    y = np.empty((b, w), x.dtype)
    arrays = loops.inputs(x.dtype, x, mean, variance, gamma, beta)
    _column_norm_apply(*arrays, scalar_like(x, epsilon), scalar_like(x, floor), y)
    return y


@loops.parallel
def _column_norm_apply(x, mean, variance, gamma, beta, epsilon, floor, y):
    rate = _rate(gamma, variance, epsilon)
    for block in prange(-(-len(x) // ROWS)):
        rows = slice(block * ROWS, (block + 1) * ROWS)
        _scale(x[rows], mean, rate, beta, floor, y[rows])


def _sums(b: int, w: int) -> Array:
    """Two of each block and column."""
    return np.zeros((-(-b // ROWS), 2, w))
