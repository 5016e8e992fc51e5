"""Scalar quantization: every entry on its own, on levels that all entries share.

A. May, J. Zhang, T. Dao, C. Re, *On the Downstream Performance of Compressed Word Embeddings*, NeurIPS 2019:
uniform levels from -r to r, with the clip r that makes the squared error smallest.
"""

from typing import Any, Self

import numpy as np
from sklearn.utils.validation import check_is_fitted

from baselines.base import Compressor
from dpq_ref import checks
from dpq_ref.compressed import ScalarTable, uniform_levels
from dpq_ref.kernels.reference import Array, Integers

GRID = 32  # clips that are tried before the search
TOLERANCE = 1e-4  # of the search, relative to the clip: the error is off by the square of that
BLOCK = 1 << 15  # entries at a time, so that they stay in the cache


class UniformQuantizer(Compressor):
    """Uniform quantization with the optimal clip (May et al. 2019).

    An entry goes to the nearest of the levels -r + 2 r j / (2^b - 1), j = 0 ... 2^b - 1; what is beyond r, to
    the last. It stores n d b bits, and 32 of r.

    Parameters
    ----------
    n_bits : int
        b, from 1 to 16.

    Attributes
    ----------
    clip_ : float
        r, a float32.
    codes_ : (n, d) uint8 or uint16
        Levels of the table.

    Notes
    -----
    The released code stops its search at an absolute tolerance of 0.01, so its result depends on the scale of
    the table: at 1e-3 of the scale its error is 18 % larger. Here the tolerance is relative.

    Examples
    --------
    >>> import numpy as np
    >>> from baselines import UniformQuantizer
    >>> table = np.random.default_rng(0).uniform(-1, 1, (1000, 10)).astype(np.float32)
    >>> quantizer = UniformQuantizer(n_bits=2).fit(table)
    >>> round(quantizer.clip_, 2)
    0.75
    >>> quantizer.transform(np.full((1, 10), 0.3))
    array([[2, 2, 2, 2, 2, 2, 2, 2, 2, 2]], dtype=uint8)
    >>> quantizer.compress().bits()
    {'codes': 20000, 'scales': 32}
    """

    def __init__(self, n_bits: int = 8):
        self.n_bits = n_bits

    def fit(self, X: Any, y: Any = None, sample_weight: Any = None) -> Self:
        """Search the clip.

        Parameters
        ----------
        X : (n, d) array_like
        y : ignored
        sample_weight : (n,) array_like, optional
            Frequencies of the words.

        Raises
        ------
        ValueError
            If n_bits is not from 1 to 16, or an entry is NaN or infinite.
        """
        X = self._table(X)
        weights = self._weights(sample_weight, len(X))
        n_bits = checks.positive("n_bits", self.n_bits)
        if n_bits > 16:
            raise ValueError(f"n_bits={n_bits}; it takes at most 16")
        self.clip_ = float(np.float32(optimal_clip(X, weights, n_bits)))
        self.codes_ = nearest_level(X, self.clip_, n_bits)
        return self

    def transform(self, X: Any) -> Integers:
        """Nearest level of each entry, (n, d) -> (n, d) uint8, or uint16 for more than 8 bits."""
        check_is_fitted(self)
        return nearest_level(self._rows(X), self.clip_, self.n_bits)

    def inverse_transform(self, Z: Any) -> Array:
        """Values of levels, (n, d) integers in [0, 2**b) -> (n, d) float32."""
        check_is_fitted(self)
        levels = uniform_levels(self.clip_, self.n_bits)
        codes = checks.as_ids(Z, len(levels))
        self._check_width(codes, self.n_features_in_)
        return levels[codes]

    def compress(self) -> ScalarTable:
        """Levels of the table, and the clip."""
        check_is_fitted(self)
        return ScalarTable.from_codes(self.codes_, self.clip_, self.n_bits)


def nearest_level(X: Array, clip: float, n_bits: int) -> Integers:
    """Index of the nearest level, (n, d) -> (n, d) uint8 or uint16; of a clip of 0 all levels are 0."""
    top = (1 << n_bits) - 1
    codes = np.zeros(X.shape, np.min_scalar_type(top))
    if clip == 0:
        return codes
    step = max(1, BLOCK // X.shape[1])
    for i in range(0, len(X), step):
        position = (X[i : i + step] / np.float64(clip) + 1) * (top / 2)
        codes[i : i + step] = np.clip(np.rint(position), 0, top)
    return codes


def squared_error(X: Array, weights: Array, clip: float, n_bits: int) -> float:
    """Weighted squared error of the uniform quantizer with this clip.

    Levels are symmetric, so |x| in steps of the quantizer is all that matters: then the cells are [j, j + 1),
    each with its level in the middle, and the last has no end.

    Parameters
    ----------
    X : (n, d)
    weights : (n,)
    clip : float, above 0
    n_bits : int

    Returns
    -------
    float
    """
    last = (1 << (n_bits - 1)) - 1
    width = 2 * clip / ((1 << n_bits) - 1)
    rows = max(1, BLOCK // X.shape[1])
    total = 0.0
    for i in range(0, len(X), rows):
        position = X[i : i + rows] * X.dtype.type(1 / width)
        np.abs(position, out=position)
        cell = np.floor(position)
        np.minimum(cell, last, out=cell)
        position -= cell
        position -= X.dtype.type(0.5)
        squares = np.einsum("ij,ij->i", position, position)
        total += float((weights[i : i + rows] * squares).sum())
    return total * width**2


def optimal_clip(X: Array, weights: Array, n_bits: int) -> float:
    """Clip of the smallest weighted squared error.

    The best clip is at least the mean of |x|: where the error is stationary, r = sum |x| t / sum t^2, t in
    (0, 1] being the level of |x| in units of r; t rises with |x|, so sum |x| t >= mean |x| sum t (Chebyshev's
    sum inequality), and sum t >= sum t^2. With one bit t = 1, and the clip is that mean. The error may have
    more minima than one, so clips from the mean to max |x| are tried first; then golden section with
    parabolic steps (Brent) goes on about the best of them.

    Parameters
    ----------
    X : (n, d)
    weights : (n,), not all 0
    n_bits : int

    Returns
    -------
    float
    """
    from scipy.optimize import minimize_scalar

    if not weights.all():
        X, weights = X[weights > 0], weights[weights > 0]
    largest = float(max(X.max(), -X.min()))
    row_means = np.abs(X).mean(axis=1, dtype=np.float64)
    mean = min(float(np.average(row_means, weights=weights)), largest)
    if n_bits == 1 or mean == largest:
        return mean

    def error(clip: float) -> float:
        return squared_error(X, weights, clip, n_bits)

    grid = largest * np.geomspace(mean / largest, 1, GRID)
    errors = [error(clip) for clip in grid]
    best = int(np.argmin(errors))
    bounds = grid[max(best - 1, 0)], grid[min(best + 1, GRID - 1)]
    found = minimize_scalar(error, bounds=bounds, method="bounded", options={"xatol": TOLERANCE * bounds[0]})
    return float(found.x) if found.fun < errors[best] else float(grid[best])
