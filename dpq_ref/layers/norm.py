"""Batch norm (Ioffe, Szegedy, ICML 2015) and layer norm (Ba, Kiros, Hinton, 2016), with scale and shift."""

from typing import Any

import numpy as np

from dpq_ref.backend import array_module
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
    dtype : float32 or float64

    Attributes
    ----------
    params, grads : {"gamma": (width,), "beta": (width,)}
    buffers : {"mean": (width,), "variance": (width,)}
        Running statistics.
    """

    def __init__(self, width: int, *, dtype: Any = np.float32):
        self.params = {"gamma": np.ones(width, dtype), "beta": np.zeros(width, dtype)}
        self.grads: dict[str, Array] = {}
        self.buffers = {"mean": np.zeros(width, dtype), "variance": np.ones(width, dtype)}

    def forward(self, x: Array, train: bool = True) -> Array:
        """Normalise (b, width)."""
        if train:
            mean = x.mean(axis=0)
            centred = x - mean
            variance = array_module(x).einsum("ij,ij->j", centred, centred) / x.dtype.type(len(x))
            for name, new in (("mean", mean), ("variance", variance)):
                self.buffers[name] += x.dtype.type(1 - MOMENTUM) * (new - self.buffers[name])
        else:
            centred, variance = x - self.buffers["mean"], self.buffers["variance"]
        self._deviation = array_module(x).sqrt(variance + x.dtype.type(EPSILON))
        centred /= self._deviation
        self._normalized = centred
        y = self.params["gamma"] * centred
        y += self.params["beta"]
        return y

    def backward(self, d_output: Array) -> Array:
        """Fill `grads`; return the gradient of the input, batch statistics differentiated."""
        gamma = array_module(d_output).einsum("ij,ij->j", d_output, self._normalized)
        self.grads = {"gamma": gamma, "beta": d_output.sum(axis=0)}
        n = d_output.dtype.type(len(d_output))
        d_x = self._normalized * (self.grads["gamma"] / -n)
        d_x += d_output
        d_x -= self.grads["beta"] / n
        d_x *= self.params["gamma"] / self._deviation
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
        self._deviation = array_module(x).sqrt(variance + LAYER_EPSILON)
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
