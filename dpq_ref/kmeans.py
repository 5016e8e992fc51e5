"""k-means in all groups at once: k-means++ seeding (Arthur, Vassilvitskii, 2007), then Lloyd's iterations.

The k-means of product quantization (Jegou, Douze, Schmid, 2011, section II-B) and of codebooks that start
from data. Points are (n, D, s); each of the D groups has centroids of its own.
"""

from typing import Any

import numpy as np

from dpq_ref.kernels.reference import Array


class KMeans:
    """Weighted k-means of D independent groups.

    Parameters
    ----------
    n_codes : int
        K.
    max_iter : int
        Lloyd's iterations at most; they stop early once no code changes.
    kernels : kernel set
    rng : numpy.random.Generator

    Attributes
    ----------
    centroids : (D, K, s)
    codes : (n, D) int32
    objective : list of (D,) float64
        Weighted sum of squared distances of each iteration's assignment; it never rises.
    """

    def __init__(self, n_codes: int, *, kernels: Any, rng: np.random.Generator, max_iter: int = 25):
        self.n_codes, self.kernels, self.rng, self.max_iter = n_codes, kernels, rng, max_iter

    def fit(self, points: Array, weights: Array | None = None) -> "KMeans":
        """Fit centroids.

        Parameters
        ----------
        points : (n, D, s)
        weights : (n,), optional
            At least 0, not all 0.

        Raises
        ------
        ValueError
            If there are fewer points than codes.
        """
        n = len(points)
        if n < self.n_codes:
            raise ValueError(
                f"n_codes={self.n_codes} needs at least {self.n_codes} rows, got {n}; lower n_codes or give more rows"
            )
        weights = np.ones(n, points.dtype) if weights is None else weights.astype(points.dtype)
        self.centroids = self._seed(points, weights)
        self.objective: list[Array] = []
        self.codes, distances = self.kernels.nearest_code(points, self.centroids)
        for _ in range(self.max_iter):
            self.centroids = self._means(points, weights, distances)
            before = self.codes
            self.codes, distances = self.kernels.nearest_code(points, self.centroids)
            self.objective.append((weights[:, None] * distances).sum(axis=0, dtype=np.float64))
            if np.array_equal(before, self.codes):
                break
        return self

    def _seed(self, points: Array, weights: Array) -> Array:
        """k-means++: each next centroid is a point drawn by its weighted squared distance to those there are.

        Of several draws the one that lowers the sum most is kept, as many as scikit-learn tries.
        """
        n, D, s = points.shape
        groups = np.arange(D)
        trials = 2 + int(np.log(self.n_codes))
        centroids = np.empty((D, self.n_codes, s), points.dtype)
        first = self._draw(np.repeat(weights[:, None], D, axis=1), 1)[0]
        centroids[:, 0] = points[first, groups]
        nearest = self.kernels.nearest_code(points, centroids[:, :1])[1]
        for k in range(1, self.n_codes):
            candidates = self._draw(weights[:, None] * nearest, trials)
            closer = [
                np.minimum(nearest, self.kernels.nearest_code(points, points[c, groups][:, None])[1])
                for c in candidates
            ]
            best = np.argmin([weights @ c for c in closer], axis=0)
            centroids[:, k] = points[candidates[best, groups], groups]
            nearest = np.choose(best, closer)
        return centroids

    def _draw(self, weights: Array, trials: int) -> np.ndarray:
        """Rows drawn by weight in each group, (n, D) -> (trials, D); evenly where all weights are 0."""
        cumulative = np.cumsum(weights, axis=0, dtype=np.float64)
        flat = cumulative[-1] <= 0
        cumulative[:, flat] = np.arange(1, len(weights) + 1)[:, None]
        targets = self.rng.random((trials, weights.shape[1])) * cumulative[-1]
        rows = [np.searchsorted(c, t, side="right") for c, t in zip(cumulative.T, targets.T, strict=True)]
        return np.minimum(np.stack(rows, axis=1), len(weights) - 1)

    def _means(self, points: Array, weights: Array, distances: Array) -> Array:
        """Weighted mean of each code's points; a code without points takes the point that is worst off."""
        sums = self.kernels.sum_by_code(self.codes, weights[:, None, None] * points, self.n_codes)
        counts = self.kernels.count_codes(self.codes, weights, self.n_codes)
        dead = counts == 0
        centroids = sums / np.where(dead, 1, counts)[:, :, None]
        for j in np.flatnonzero(dead.any(axis=1)):
            codes = np.flatnonzero(dead[j])
            error = weights * distances[:, j]
            worst = np.argsort(-error, kind="stable")[: len(codes)]
            # Where no point is off its centroid there is nothing to repair: any point will do.
            centroids[j, codes] = points[worst, j]
        return centroids.astype(points.dtype, copy=False)
