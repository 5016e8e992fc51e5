"""Dense layer and rectifier."""

from typing import Any

import numpy as np

from dpq_ref.backend import array_module
from dpq_ref.kernels.reference import Array
from dpq_ref.layers.initial import glorot


class Dense:
    """Affine map y = x W + b, Glorot uniform.

    Parameters
    ----------
    n_inputs, n_outputs : int
    rng : numpy.random.Generator
    dtype : float32 or float64

    Attributes
    ----------
    params, grads : {"weight": (n_inputs, n_outputs), "bias": (n_outputs,)}
    """

    def __init__(self, n_inputs: int, n_outputs: int, *, rng: np.random.Generator, dtype: Any = np.float32):
        weight = glorot(rng, (n_inputs, n_outputs), np.dtype(dtype))
        self.params = {"weight": weight, "bias": np.zeros(n_outputs, dtype)}
        self.grads: dict[str, Array] = {}

    def forward(self, x: Array, train: bool = True) -> Array:
        """Map (b, n_inputs) to (b, n_outputs)."""
        self._x = x
        y = x @ self.params["weight"]
        y += self.params["bias"]
        return y

    def backward(self, d_output: Array) -> Array:
        """Fill `grads`; return the gradient of the input, d_x = d_y W^T."""
        self.grads = {"weight": self._x.T @ d_output, "bias": d_output.sum(axis=0)}
        return d_output @ self.params["weight"].T


class Relu:
    """Rectifier y = max(x, 0)."""

    params: dict[str, Array] = {}
    grads: dict[str, Array] = {}

    def forward(self, x: Array, train: bool = True) -> Array:
        """Keep what is positive."""
        self._positive = x > 0
        return array_module(x).maximum(x, 0)

    def backward(self, d_output: Array) -> Array:
        """Pass the gradient where the input was positive."""
        return d_output * self._positive
