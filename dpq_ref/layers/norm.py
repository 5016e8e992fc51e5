"""Batch norm with scale and shift (Ioffe, Szegedy, ICML 2015)."""

from typing import Any

import numpy as np

from dpq_ref.kernels.reference import Array

EPSILON = 1e-3
MOMENTUM = 0.9  # at 0.99 the running statistics lag behind for the first 500 steps, all that some tasks take


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
    state : {"mean": (width,), "variance": (width,)}
        Running statistics.
    """

    def __init__(self, width: int, *, dtype: Any = np.float32):
        self.params = {"gamma": np.ones(width, dtype), "beta": np.zeros(width, dtype)}
        self.grads: dict[str, Array] = {}
        self.state = {"mean": np.zeros(width, dtype), "variance": np.ones(width, dtype)}

    def forward(self, x: Array, train: bool = True) -> Array:
        """Normalise (b, width)."""
        if train:
            mean, variance = x.mean(axis=0), x.var(axis=0)
            for name, new in (("mean", mean), ("variance", variance)):
                self.state[name] += x.dtype.type(1 - MOMENTUM) * (new - self.state[name])
        else:
            mean, variance = self.state["mean"], self.state["variance"]
        self._deviation = np.sqrt(variance + x.dtype.type(EPSILON))
        self._normalized = (x - mean) / self._deviation
        return self.params["gamma"] * self._normalized + self.params["beta"]

    def backward(self, d_output: Array) -> Array:
        """Fill `grads`; return the gradient of the input, batch statistics differentiated."""
        self.grads = {"gamma": (d_output * self._normalized).sum(axis=0), "beta": d_output.sum(axis=0)}
        n = d_output.dtype.type(len(d_output))
        mean_d, mean_dx = self.grads["beta"] / n, self.grads["gamma"] / n
        return self.params["gamma"] * (d_output - mean_d - self._normalized * mean_dx) / self._deviation
