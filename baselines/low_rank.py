"""Low rank: the truncated singular value decomposition, with or without word frequencies.

C. Eckart, G. Young, *The Approximation of One Matrix by Another of Lower Rank*, Psychometrika 1936. Weights
enter as in the blocks of GroupReduce (P. Chen, Si, Li, Chelba, Hsieh, NeurIPS 2018).
"""

from typing import Any, Self

import numpy as np
from sklearn.utils.validation import check_is_fitted

from baselines.base import Compressor
from dpq_ref import checks
from dpq_ref.compressed import LowRankTable
from dpq_ref.kernels.reference import BLOCK, Array


class LowRank(Compressor):
    """Truncated singular value decomposition: the best rows in a space of k dimensions.

    With frequencies q it minimises sum_i q_i |a_i - V u_i|^2: V has the first k right singular vectors of
    diag(sqrt q) A, and U = A V. It stores 32 k (n + d) bits.

    Parameters
    ----------
    rank : int, optional
        k.
    compression_ratio : float, optional
        In place of `rank`: the largest k with n d / (k (n + d)) at least this. Give exactly one of the two.

    Attributes
    ----------
    components_ : (k, d)
        The right vectors, orthonormal; the entry of largest magnitude of each is positive.
    coefficients_ : (n, k)
        Coefficients of the table, A V.
    singular_values_ : (min(n, d),) float64
        All those of diag(sqrt q) A, falling; the squared error is the sum of the squares from k on. Below
        1e-8 of the first they are rounding.

    Examples
    --------
    >>> import numpy as np
    >>> from baselines import LowRank
    >>> table = np.random.default_rng(0).standard_normal((400, 30)).astype(np.float32)
    >>> model = LowRank(compression_ratio=4).fit(table)
    >>> model.components_.shape, model.coefficients_.shape
    ((6, 30), (400, 6))
    >>> error = table - model.compress().reconstruct()
    >>> bool(np.isclose((error**2).sum(), (model.singular_values_[6:] ** 2).sum()))
    True
    """

    def __init__(self, rank: int | None = None, *, compression_ratio: float | None = None):
        self.rank = rank
        self.compression_ratio = compression_ratio

    def fit(self, X: Any, y: Any = None, sample_weight: Any = None) -> Self:
        """Find the right vectors and the coefficients of the table.

        Parameters
        ----------
        X : (n, d) array_like
        y : ignored
        sample_weight : (n,) array_like, optional
            Frequencies q of the words. Only their proportions matter.

        Raises
        ------
        ValueError
            If not exactly one of rank and compression_ratio is given, the rank is not from 1 to min(n, d), or
            an entry is NaN or infinite.
        """
        X = self._table(X)
        weights = self._weights(sample_weight, len(X))
        rank = self._rank(*X.shape)
        self.singular_values_, vectors = right_vectors(X, weights)
        self.components_ = vectors[:rank].astype(X.dtype)
        self.coefficients_ = X @ self.components_.T  # not diag(sqrt q)^-1 P S: that fails where q is 0
        return self

    def transform(self, X: Any) -> Array:
        """Coefficients of rows, X V, (n, d) -> (n, k)."""
        check_is_fitted(self)
        return self._rows(X) @ self.components_.T

    def inverse_transform(self, Z: Any) -> Array:
        """Rows of coefficients, (n, k) -> (n, d)."""
        check_is_fitted(self)
        Z = checks.as_table(Z, "Z")
        self._check_width(Z, len(self.components_))
        return Z @ self.components_

    def compress(self) -> LowRankTable:
        """Both factors of the table."""
        check_is_fitted(self)
        return LowRankTable(
            self.coefficients_.astype(np.float32, copy=False), self.components_.astype(np.float32, copy=False)
        )

    def _rank(self, n: int, d: int) -> int:
        if (self.rank is None) == (self.compression_ratio is None):
            raise ValueError(
                f"rank={self.rank}, compression_ratio={self.compression_ratio}; it takes exactly one of them"
            )
        rank = rank_for_ratio(self.compression_ratio, n, d) if self.rank is None else self.rank
        rank = checks.positive("rank", rank)
        if rank > min(n, d):
            raise ValueError(f"rank={rank}; a table of {n} x {d} takes at most {min(n, d)}")
        return rank


def rank_for_ratio(compression_ratio: Any, n: int, d: int) -> int:
    """Largest rank whose factors are that many times smaller than the table, floor(n d / (CR (n + d))).

    Raises
    ------
    ValueError
        If that is 0, or the ratio is not above 0.

    Examples
    --------
    >>> [rank_for_ratio(ratio, 400_000, 300) for ratio in (2, 4, 8, 16)]
    [149, 74, 37, 18]
    """
    if not compression_ratio > 0:
        raise ValueError(f"compression_ratio={compression_ratio}; it takes a number above 0")
    rank = int(n * d // (compression_ratio * (n + d)))
    if rank == 0:
        most = n * d / (n + d)
        raise ValueError(
            f"compression_ratio={compression_ratio} leaves rank 0; {n} x {d} takes at most {most:.2f}"
        )
    return rank


def right_vectors(X: Array, weights: Array) -> tuple[Array, Array]:
    """Singular values and right singular vectors of diag(sqrt q) A, in float64.

    A table of no fewer rows than columns goes through its Gram matrix, A^T diag(q) A: quick, and no copy. A
    singular value below about 1e-8 of the first is lost in it, and its vector is then any that completes the
    basis; that moves the approximation by about 1e-8 of the norm, which float32 does not show. At k = d
    nothing is lost at all, for V V^T = 1 however V is turned.

    Parameters
    ----------
    X : (n, d)
    weights : (n,)

    Returns
    -------
    values : (min(n, d),), falling
    vectors : (min(n, d), d), the entry of largest magnitude of each positive
    """
    from scipy import linalg
    from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

    n, d = X.shape
    root = np.sqrt(weights / weights.max())[:, None]
    with threadpool_limits(1, "blas"):  # on a busy machine two threads were 20 times slower than one
        if n >= d:
            gram = np.zeros((d, d))
            step = max(1, BLOCK // d)
            for i in range(0, n, step):
                block = root[i : i + step] * X[i : i + step]
                gram += block.T @ block
            values, vectors = linalg.eigh(gram)
            values, vectors = np.sqrt(np.maximum(values[::-1], 0)), vectors.T[::-1]
        else:
            _, values, vectors = linalg.svd(root * X, full_matrices=False)
    largest = np.abs(vectors).argmax(axis=1)
    vectors = vectors * np.sign(vectors[np.arange(len(vectors)), largest])[:, None]
    return values * np.sqrt(weights.max()), vectors
