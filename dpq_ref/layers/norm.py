"""Batch norm (Ioffe, Szegedy, ICML 2015) and layer norm (Ba, Kiros, Hinton, 2016), with scale and shift."""

from typing import Any

import numpy as np

from dpq_ref import backend as backends
from dpq_ref.kernels.reference import Array

EPSILON = 1e-3
MOMENTUM = 0.9  # at 0.99 the running statistics lag behind for the first 500 steps, all that some tasks take
LAYER_EPSILON = 1e-6  # that of tensor2tensor, where the Transformer comes from


class BatchNorm:
    """Batch norm of each column, y = gamma (x - mean) / sqrt(var + 1e-3) + beta.

    Training takes the (biased) statistics of the batch and moves the running ones by 10 %; evaluation takes
    the running ones.

    Parameters
    ----------
    width : int
    rectified : bool
        With a rectifier behind, max(y, 0), in the same passes.
    dtype : float32 or float64
    backend : {"numba", "numpy", "cupy"} or kernel set, optional

    Attributes
    ----------
    params, grads : {"gamma": (width,), "beta": (width,)}
    buffers : {"mean": (width,), "variance": (width,)}
        Running statistics.
    """

    def __init__(self, width: int, *, rectified: bool = False, dtype: Any = np.float32, backend: Any = None):
        self.floor = 0.0 if rectified else -np.inf
        self.kernels = backends.get(backend)
        ones, zeros = self.kernels.xp.ones, self.kernels.xp.zeros
        self.params = {"gamma": ones(width, dtype), "beta": zeros(width, dtype)}
        self.grads: dict[str, Array] = {}
        self.buffers = {"mean": zeros(width, dtype), "variance": ones(width, dtype)}

    def forward(self, x: Array, train: bool = True) -> Array:
        """Normalise (b, width), which like the output must in training stay as it is until `backward`."""
        settings = self.params["gamma"], self.params["beta"], EPSILON, self.floor
        if not train:
            return self.kernels.column_norm_apply(x, *self.buffers.values(), *settings)
        y, *statistics = self.kernels.column_norm(x, *settings)
        for running, new in zip(self.buffers.values(), statistics, strict=True):
            running += x.dtype.type(1 - MOMENTUM) * (new - running)
        self._tape = y, x, *statistics
        return y

    def backward(self, d_output: Array) -> Array:
        """Fill `grads`; return the gradient of the input, batch statistics differentiated."""
        d_x, d_gamma, d_beta = self.kernels.column_norm_backward(
            d_output, *self._tape, self.params["gamma"], EPSILON, self.floor
        )
        self.grads = {"gamma": d_gamma, "beta": d_beta}
        return d_x


class LayerNorm:
    """Layer norm over the last axis, y = gamma (x - mean) / sqrt(var + 1e-6) + beta.

    Each vector by itself, its (biased) variance in two passes; training and evaluation are the same.

    Parameters
    ----------
    width : int
    dtype : float32 or float64

    Attributes
    ----------
    params, grads : {"gamma": (width,), "beta": (width,)}

    Examples
    --------
    >>> LayerNorm(2, dtype=np.float64).forward(np.array([[1.0, 3.0], [50.0, 10.0]])).round(3)
    array([[-1.,  1.],
           [ 1., -1.]])
    """

    def __init__(self, width: int, *, dtype: Any = np.float32):
        self.params = {"gamma": np.ones(width, dtype), "beta": np.zeros(width, dtype)}
        self.grads: dict[str, Array] = {}

    def forward(self, x: Array, train: bool = True) -> Array:
        """Normalise (..., width)."""
        centred = x - x.mean(axis=-1, keepdims=True)
        variance = (centred * centred).mean(axis=-1, keepdims=True)
        self._deviation = backends.array_module(x).sqrt(variance + LAYER_EPSILON)
        self._normalized = centred / self._deviation
        return self.params["gamma"] * self._normalized + self.params["beta"]

    def backward(self, d_output: Array) -> Array:
        """Fill `grads`; return the gradient of the input, mean and variance differentiated."""
        leading = tuple(range(d_output.ndim - 1))
        self.grads = {
            "gamma": (d_output * self._normalized).sum(axis=leading),
            "beta": d_output.sum(axis=leading),
        }
        d = self.params["gamma"] * d_output
        mean_d = d.mean(axis=-1, keepdims=True)
        mean_dx = (d * self._normalized).mean(axis=-1, keepdims=True)
        return (d - mean_d - self._normalized * mean_dx) / self._deviation
