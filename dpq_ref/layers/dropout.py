"""Dropout (Srivastava et al., JMLR 2014), with its own generator."""

import numpy as np

from dpq_ref.backend import array_module
from dpq_ref.kernels.reference import Array


class Dropout:
    """Set entries to zero at random and divide the others by the probability to be kept.

    Parameters
    ----------
    keep : float in (0, 1]
        Probability of an entry to be kept; 1 draws nothing and changes nothing.
    rng : int or numpy.random.Generator

    Examples
    --------
    >>> Dropout(0.5, rng=2).forward(np.ones(4))
    array([0., 2., 2., 2.])
    >>> Dropout(0.5, rng=0).forward(np.ones(4), train=False)
    array([1., 1., 1., 1.])
    """

    def __init__(self, keep: float, *, rng: int | np.random.Generator = 0):
        if not 0 < keep <= 1:
            raise ValueError(f"keep={keep}; it takes a probability above 0, at most 1")
        self.keep = keep
        self.rng = np.random.default_rng(rng)
        self.params: dict[str, Array] = {}
        self.grads: dict[str, Array] = {}
        self._mask: Array | None = None

    def forward(self, x: Array, train: bool = True) -> Array:
        """Drop entries of an array of any shape, in training."""
        if not train or self.keep == 1:
            self._mask = None
            return x
        kept = self.rng.random(x.shape, np.float32) < self.keep
        self._mask = array_module(x).asarray(kept) * x.dtype.type(1 / self.keep)
        return x * self._mask

    def backward(self, d_output: Array) -> Array:
        """Pass the gradient where the input was kept."""
        return d_output if self._mask is None else d_output * self._mask
