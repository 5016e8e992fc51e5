"""Initial parameters."""

import numpy as np

from dpq_ref.kernels.reference import Array


def glorot(rng: np.random.Generator, shape: tuple[int, ...], dtype: np.dtype) -> Array:
    """Glorot uniform numbers, in (-a, a) with a = sqrt(6 / (fan_in + fan_out)).

    Parameters
    ----------
    rng : numpy.random.Generator
    shape : tuple of int
        Fan-out is the last axis, fan-in the product of the others, as in the released code of the paper.
    dtype : float32 or float64

    Returns
    -------
    array of that shape
    """
    limit = np.sqrt(6 / (np.prod(shape[:-1]) + shape[-1]))
    return rng.uniform(-limit, limit, shape).astype(dtype)
