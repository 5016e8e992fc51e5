"""Optimizers with one interface: made with the parameters, stepped with the gradients, updating in place.

A `RowSparse` gradient touches only its rows, moments included ("lazy" Adam, as in the released code of the
paper): a word that is not in the batch does not move.
"""

import math
from typing import Any

import numpy as np

from dpq_ref import backend as backends
from dpq_ref.kernels.reference import Array, Integers
from dpq_ref.layers.embedding import RowSparse


class Optimizer:
    """What all optimizers share: a parameter, its state, and only the rows that have a gradient.

    Parameters
    ----------
    params : dict of arrays, updated in place
    learning_rate : float, may be changed between steps
    backend : {"numba", "numpy", "cupy"} or kernel set, optional
    """

    initial_state: tuple[float, ...] = ()  # fill value of each array of state

    def __init__(self, params: dict[str, Array], learning_rate: float, *, backend: Any = None):
        self.params = params
        self.learning_rate = learning_rate
        self.kernels = backends.get(backend)
        self.steps = 0
        full_like = self.kernels.xp.full_like
        self.state = {k: [full_like(v, fill) for fill in self.initial_state] for k, v in params.items()}

    def step(self, grads: dict[str, Any]) -> None:
        """Move the parameters.

        Parameters
        ----------
        grads : dict of arrays or RowSparse
            Parameters that have no entry stay as they are.

        Raises
        ------
        KeyError
            For a gradient without a parameter.
        """
        self.steps += 1
        for name, gradient in grads.items():
            arrays = [_two_axes(array) for array in (self.params[name], *self.state[name])]
            if isinstance(gradient, RowSparse):
                self._update_rows(gradient, *arrays)
            else:
                self._update(_two_axes(gradient), *arrays)

    def _update_rows(self, gradient: RowSparse, *arrays: Array) -> None:
        """Move some rows of parameter and state, (n, w) each, in place."""
        rows = [self.kernels.gather(array, gradient.rows) for array in arrays]
        self._update(gradient.values, *rows)
        for array, new in zip(arrays, rows, strict=True):
            array[gradient.rows] = new

    def _update(self, gradient: Array, parameter: Array, *state: Array) -> None:
        """Move parameter and state, (r, w) each, in place."""
        raise NotImplementedError


class SGD(Optimizer):
    """Stochastic gradient descent, x = x - rate g.

    Examples
    --------
    >>> params = {"x": np.array([1.0, 2.0])}
    >>> SGD(params, learning_rate=0.5).step({"x": np.array([2.0, 0.0])})
    >>> params["x"]
    array([0., 2.])
    """

    def _update(self, gradient: Array, parameter: Array, *state: Array) -> None:
        parameter -= parameter.dtype.type(self.learning_rate) * gradient


class Adagrad(Optimizer):
    """Adagrad (Duchi, Hazan, Singer, JMLR 2011), a = a + g^2, x = x - rate g / (sqrt(a) + 1e-10)."""

    initial_state = (0.0,)

    def _update(self, gradient: Array, parameter: Array, *state: Array) -> None:
        real, (total,) = parameter.dtype.type, state
        total += gradient * gradient
        parameter -= real(self.learning_rate) * gradient / (self.kernels.xp.sqrt(total) + real(1e-10))


class Adam(Optimizer):
    """Adam (Kingma, Ba, ICLR 2015), row-sparse where the gradient is.

    Parameters
    ----------
    params : dict of arrays, updated in place
    learning_rate, beta1, beta2, epsilon : float
    backend : {"numba", "numpy", "cupy"} or kernel set, optional
    """

    initial_state = (0.0, 0.0)

    def __init__(
        self,
        params: dict[str, Array],
        learning_rate: float = 1e-3,
        *,
        beta1: float = 0.9,
        beta2: float = 0.999,
        epsilon: float = 1e-8,
        backend: Any = None,
    ):
        super().__init__(params, learning_rate, backend=backend)
        self.beta1, self.beta2, self.epsilon = beta1, beta2, epsilon

    def _update(self, gradient: Array, *arrays: Array, rows: Integers | None = None) -> None:
        parameter, first, second = arrays
        hyper = (self.steps, self.learning_rate, self.beta1, self.beta2, self.epsilon)
        self.kernels.adam(parameter, gradient, first, second, *hyper, rows=rows, out=arrays)

    def _update_rows(self, gradient: RowSparse, *arrays: Array) -> None:
        self._update(gradient.values, *arrays, rows=gradient.rows)


def gradient_norms(grads: dict[str, Any], *, backend: Any = None) -> dict[str, float]:
    """Euclidean norm of the gradient of each parameter.

    Parameters
    ----------
    grads : dict of arrays or RowSparse
    backend : {"numba", "numpy", "cupy"} or kernel set, optional

    Examples
    --------
    >>> gradient_norms({"x": np.array([3.0, 4.0]), "rows": RowSparse(np.array([1]), np.array([[2.0]]), 9)})
    {'x': 5.0, 'rows': 2.0}
    """
    squared_norm = backends.get(backend).squared_norm
    return {name: math.sqrt(squared_norm(_array(g))) for name, g in grads.items()}


def clip_global_norm(grads: dict[str, Any], clip_norm: float, *, backend: Any = None) -> Any:
    """Scale all gradients by one factor, in place, so that their norm together is at most a limit.

    R. Pascanu, T. Mikolov, Y. Bengio, *On the Difficulty of Training Recurrent Neural Networks*, ICML 2013.

    Parameters
    ----------
    grads : dict of arrays or RowSparse
        They stay as they are if the norm is within the limit or not finite.
    clip_norm : float above 0
    backend : {"numba", "numpy", "cupy"} or kernel set, optional

    Returns
    -------
    scalar
        The norm before; not finite if and only if a gradient is not. Nobody waits for that of a device.

    Raises
    ------
    ValueError
        If the limit is not above 0.

    Examples
    --------
    >>> grads = {"x": np.array([3.0]), "y": np.array([4.0])}
    >>> float(clip_global_norm(grads, 1.0)), grads
    (5.0, {'x': array([0.6]), 'y': array([0.8])})
    """
    if not clip_norm > 0:
        raise ValueError(f"clip_norm={clip_norm}; it takes a number above 0")
    kernels, arrays = backends.get(backend), [_array(g) for g in grads.values()]
    xp = kernels.xp
    norm = xp.sqrt(sum(kernels.squared_norm(array) for array in arrays))
    if clip_norm < np.inf:
        scale = xp.where(norm < np.inf, clip_norm / xp.maximum(norm, clip_norm), 1.0)[()]
        if not (isinstance(scale, float) and scale == 1):  # of the host, where it is known
            for array in arrays:
                array *= scale.astype(array.dtype)
    return norm


def _array(gradient: Any) -> Array:
    """Entries of a gradient that need not be zero."""
    return gradient.values if isinstance(gradient, RowSparse) else gradient


def _two_axes(array: Array) -> Array:
    """View with two axes."""
    return array.reshape(len(array), -1)
