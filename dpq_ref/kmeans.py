"""K-means in all groups at once: k-means++ seeding (Arthur, Vassilvitskii, 2007), then Lloyd's iterations.

In many dimensions all points are about equally far from each other, and nearer to the mean of all: centroids
that start as points draw no others to them. There, seeding and the first iterations take place in the
principal directions.

The k-means of product quantization (Jegou, Douze, Schmid, 2011, section II-B) and of codebooks that start
from data. Points are (n, D, s); each of the D groups has centroids of its own.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from dpq_ref.kernels.reference import BLOCK, Array, Integers

WIDE = 32  # directions that seeding uses at most
FIRST = 10  # iterations in these


class KMeans:
    """Weighted k-means of D independent groups.

    Parameters
    ----------
    n_codes : int
        K.
    max_iter : int
        Lloyd's iterations at most; they stop early once no code of a point with weight changes.
    kernels : kernel set
    rng : numpy.random.Generator

    Attributes
    ----------
    centroids : (D, K, s)
        Where a group has at least K distinct points of some weight, each is the nearest of one of them.
    codes : (n, D) int32
        The nearest centroid of each point.
    objective : list of (D,) float64
        Weighted sum of squared distances after each iteration; but for rounding it never rises.

    Examples
    --------
    >>> from dpq_ref import backend
    >>> points = np.float32([[0], [1], [10], [11]])[:, None]  # 4 points, 1 group, width 1
    >>> kmeans = KMeans(2, kernels=backend.get("numpy"), rng=np.random.default_rng(0)).fit(points)
    >>> sorted(kmeans.centroids.ravel().tolist())
    [0.5, 10.5]
    """

    codes: Integers

    def __init__(self, n_codes: int, *, kernels: Any, rng: np.random.Generator, max_iter: int = 25):
        self.n_codes, self.kernels, self.rng, self.max_iter = n_codes, kernels, rng, max_iter

    def fit(self, points: Array, weights: Array | None = None, start: Array | None = None) -> "KMeans":
        """Fit centroids.

        Parameters
        ----------
        points : (n, D, s)
        weights : (n,), optional
            At least 0, not all 0.
        start : (D, K, s), optional
            Centroids to start from; k-means++ otherwise, and where points are wider than 32, that in the
            first 32 principal directions and ten iterations there.

        Raises
        ------
        ValueError
            If there are fewer points than codes.
        """
        n = len(points)
        if n < self.n_codes:
            raise ValueError(
                f"n_codes={self.n_codes} needs at least {self.n_codes} rows, got n_samples={n}; "
                "lower n_codes or give more rows"
            )
        weights = np.ones(n) if weights is None else weights.astype(np.float64)
        if start is not None:
            self.centroids = start.astype(points.dtype)
        elif points.shape[2] > WIDE:
            narrow = KMeans(self.n_codes, kernels=self.kernels, rng=self.rng, max_iter=FIRST)
            self.codes = narrow.fit(principal(points, weights, WIDE), weights).codes
            self.centroids = points[: self.n_codes].swapaxes(0, 1).copy()
            self._move_to_means(points, weights)
        else:
            self.centroids = self._seed(points, weights)
        distances = self._assign(points)
        self.objective: list[Array] = []
        for _ in range(self.max_iter):
            before = self.codes
            self._move_to_means(points, weights)
            self._revive(points, weights, distances)
            distances = self._assign(points)
            self.objective.append(np.einsum("i,ij->j", weights, distances))
            if not (before != self.codes)[weights > 0].any():
                break
        while self._revive(points, weights, distances):  # each time one more point has no error: it ends
            distances = self._assign(points)
            self.objective[-1] = np.einsum("i,ij->j", weights, distances)
        return self

    def _seed(self, points: Array, weights: Array) -> Array:
        """k-means++: each next centroid is a point drawn by its weighted squared distance to those there are.

        Of several draws the one that lowers the sum most is kept, as many as scikit-learn tries.
        """
        D, s = points.shape[1:]
        groups = np.arange(D)
        trials = 2 + int(np.log(self.n_codes))
        weights = weights / weights.max()
        centroids = np.empty((D, self.n_codes, s), points.dtype)
        first = self._draw(np.repeat(weights[:, None], D, axis=1), 1)[0]
        centroids[:, 0] = points[first, groups]
        nearest = self.kernels.nearest_code(points, centroids[:, :1])[1]
        for k in range(1, self.n_codes):
            drawn = points[self._draw(weights[:, None] * nearest, trials), groups].swapaxes(0, 1)
            best = self.kernels.potentials(points, drawn, nearest, weights).argmin(axis=1)
            centroids[:, k] = drawn[groups, best]
            distances = self.kernels.nearest_code(points, centroids[:, k : k + 1])[1]
            np.minimum(nearest, distances, out=nearest)
        return centroids

    def _draw(self, weights: Array, trials: int) -> NDArray[np.integer]:
        """Rows drawn by weight in each group, (n, D) -> (trials, D); evenly where all weights are 0."""
        cumulative = np.cumsum(weights, axis=0, dtype=np.float64)
        flat = cumulative[-1] <= 0
        cumulative[:, flat] = np.arange(1, len(weights) + 1)[:, None]
        targets = self.rng.random((trials, weights.shape[1])) * cumulative[-1]
        rows = [np.searchsorted(c, t, side="right") for c, t in zip(cumulative.T, targets.T, strict=True)]
        return np.minimum(np.stack(rows, axis=1), len(weights) - 1)

    def _assign(self, points: Array) -> Array:
        """Set codes to the nearest centroids; squared distances (n, D)."""
        self.codes, distances = self.kernels.nearest_code(points, self.centroids)
        return distances

    def _move_to_means(self, points: Array, weights: Array) -> None:
        """Move each centroid to the weighted mean of its points, summed in float64 and rounded once.

        So the centroid of equal points is that point, bit by bit. A code without weight stays.
        """
        n, D, s = points.shape
        sums = np.zeros(self.centroids.shape)
        step = max(1, BLOCK // (D * s))
        for i in range(0, n, step):
            block = weights[i : i + step, None, None] * points[i : i + step]
            sums += self.kernels.sum_by_code(self.codes[i : i + step], block, self.n_codes)
        counts = self.kernels.count_codes(self.codes, weights, self.n_codes)
        alive = counts > 0
        self.centroids[alive] = sums[alive] / counts[alive, None]

    def _revive(self, points: Array, weights: Array, distances: Array) -> bool:
        """Move each code without weight to one of the points that are worst off; tell whether any moved."""
        dead = self.kernels.count_codes(self.codes, weights, self.n_codes) == 0
        moved = False
        for j in np.flatnonzero(dead.any(axis=1)):
            error = weights * distances[:, j]
            worst = np.argsort(-error, kind="stable")[: dead[j].sum()]
            worst = worst[error[worst] > 0]
            codes = np.flatnonzero(dead[j])[: len(worst)]
            self.centroids[j, codes] = points[worst, j]
            moved |= len(worst) > 0
        return moved


def principal(points: Array, weights: Array, width: int) -> Array:
    """Coordinates of points in the first principal directions of each group, (n, D, s) -> (n, D, width)."""
    from scipy import linalg
    from threadpoolctl import threadpool_limits

    n, D, s = points.shape
    q = weights / weights.sum()
    out = np.empty((n, D, width), points.dtype)
    step = max(1, BLOCK // s)
    for j in range(D):
        group = points[:, j]
        mean, covariance = np.einsum("i,ij->j", q, group), np.zeros((s, s))
        with threadpool_limits(1, "blas"):
            for i in range(0, n, step):
                centred = np.sqrt(q[i : i + step, None]) * (group[i : i + step] - mean)
                covariance += centred.T @ centred
            directions = linalg.eigh(covariance, subset_by_index=(s - width, s - 1))[1]
            for i in range(0, n, step):
                out[i : i + step, j] = (group[i : i + step] - mean) @ directions
    return out
