"""K-means in all groups at once: k-means++ seeding (Arthur, Vassilvitskii, 2007), then Lloyd's iterations.

In many dimensions all points are about equally far from each other, and nearer to the mean of all: centroids
that start as points draw no others to them. There, seeding and the first iterations take place in the
principal directions.

The k-means of product quantization (Jegou, Douze, Schmid, 2011, section II-B) and of codebooks that start
from data. Points are (n, D, s); each of the D groups has centroids of its own.

Points are moved to where the kernels are, where centroids and codes are, too. Draws, and the few points that
codes without weight move to, are the host's.
"""

from typing import Any

import numpy as np

from dpq_ref.backend import array_module, to_numpy
from dpq_ref.kernels.reference import BLOCK, Array, Integers
from dpq_ref.progress import told

WIDE = 32  # directions that seeding uses at most
FIRST = 10  # iterations in these
SEEDS = 16  # rows a code, drawn at random, that seeding looks at


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
    objective : list of (D,) float64, on the host
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
        asarray = self.kernels.xp.asarray
        points, weights = asarray(points), asarray(np.ones(n) if weights is None else weights, np.float64)
        if start is not None:
            self.centroids = self.kernels.xp.array(start, points.dtype)
        elif points.shape[2] > WIDE:
            narrow = KMeans(self.n_codes, kernels=self.kernels, rng=self.rng, max_iter=FIRST)
            codes = narrow.fit(principal(points, weights, WIDE), weights).codes
            counts = self.kernels.count_codes(codes, weights, self.n_codes)
            sums = self._sums(codes, points, weights)
            self.centroids = _means(sums, counts, points[: self.n_codes].swapaxes(0, 1))
        else:
            self.centroids = self._seed(points, weights)
        tiles = self.kernels.point_tiles(points)
        self.codes, sums, counts = self.kernels.kmeans_sums(points, self.centroids, weights, tiles)
        gains: list[Array] = []
        for _ in told("k-means", range(self.max_iter)):
            before = self.centroids
            self.centroids = _means(sums, counts, before)
            if not counts.all():
                distances = self.kernels.code_distances(points, before, self.codes)
                self._revive(points, weights, distances)
            moved = not self.kernels.xp.array_equal(self.centroids, before)
            if moved:
                self.codes, sums, counts = self.kernels.kmeans_sums(points, self.centroids, weights, tiles)
            gains.append(_gain(sums, counts, self.centroids))
            if not moved:
                break
        distances = self._distances(points)
        left = self._error(weights, distances)
        self.objective = [left + to_numpy(gains[-1] - gain) for gain in gains]
        while self._revive(points, weights, distances):  # each time one more point has no error: it ends
            self.codes = self.kernels.nearest_code(points, self.centroids)
            distances = self._distances(points)
            self.objective[-1] = self._error(weights, distances)
        return self

    def _seed(self, points: Array, weights: Array) -> Array:
        """k-means++ among SEEDS rows a code, with as many trials as scikit-learn's."""
        D, trials = points.shape[1], 2 + int(np.log(self.n_codes))
        xp, rows = self.kernels.xp, np.flatnonzero(to_numpy(weights))
        if len(rows) > SEEDS * self.n_codes:
            rows = xp.asarray(np.sort(self.rng.choice(rows, SEEDS * self.n_codes, replace=False)))
            points, weights = points[rows], weights[rows]
        uniforms = xp.asarray(self.rng.random((D, self.n_codes, trials)))
        drawn = self.kernels.plus_plus(points, weights, uniforms)
        return points[drawn, xp.arange(D)[:, None]]

    def _sums(self, codes: Integers, points: Array, weights: Array) -> Array:
        """Weighted sum of the points of each code, (D, K, s) float64."""
        n, D, s = points.shape
        sums = self.kernels.xp.zeros((D, self.n_codes, s))
        step = max(1, BLOCK // (D * s))
        for i in range(0, n, step):
            block = weights[i : i + step, None, None] * points[i : i + step]
            sums += self.kernels.sum_by_code(codes[i : i + step], block, self.n_codes)
        return sums

    def _distances(self, points: Array) -> Array:
        """Squared distances to the centroids, (n, D)."""
        return self.kernels.code_distances(points, self.centroids, self.codes)

    def _error(self, weights: Array, distances: Array) -> Array:
        """Weighted sum of squared distances of each group, (D,), on the host."""
        return to_numpy(self.kernels.xp.einsum("i,ij->j", weights, distances))

    def _revive(self, points: Array, weights: Array, distances: Array) -> bool:
        """Move each code without weight to one of the points that are worst off; tell whether any moved."""
        dead = to_numpy(self.kernels.count_codes(self.codes, weights, self.n_codes) == 0)
        moved, asarray = False, self.kernels.xp.asarray
        for j in np.flatnonzero(dead.any(axis=1)):
            error = to_numpy(weights * distances[:, j])
            worst = np.argsort(-error, kind="stable")[: dead[j].sum()]
            worst = worst[error[worst] > 0]
            codes = np.flatnonzero(dead[j])[: len(worst)]
            self.centroids[j, asarray(codes)] = points[asarray(worst), j]
            moved |= len(worst) > 0
        return moved


def _means(sums: Array, counts: Array, centroids: Array) -> Array:
    """Weighted means, rounded once: that of equal points is that point. A code without weight stays."""
    where, alive = array_module(counts).where, (counts > 0)[..., None]
    return where(alive, sums / where(alive, counts[..., None], 1), centroids).astype(centroids.dtype)


def _gain(sums: Array, counts: Array, centroids: Array) -> Array:
    """Tell what the centroids take off the weighted sum of squares of the points, (D,)."""
    double, einsum = centroids.astype(np.float64), array_module(counts).einsum
    return 2 * einsum("jkc,jkc->j", double, sums) - einsum("jk,jkc,jkc->j", counts, double, double)


def principal(points: Array, weights: Array, width: int) -> Array:
    """Coordinates of points in the first principal directions of each group, (n, D, s) -> (n, D, width)."""
    from scipy import linalg
    from threadpoolctl import threadpool_limits

    (n, D, s), xp = points.shape, array_module(points)
    q = weights / weights.sum()
    out = xp.empty((n, D, width), points.dtype)
    step = max(1, BLOCK // s)
    for j in range(D):
        group = points[:, j]
        mean, covariance = xp.einsum("i,ij->j", q, group), xp.zeros((s, s))
        with threadpool_limits(1, "blas"):
            for i in range(0, n, step):
                centred = xp.sqrt(q[i : i + step, None]) * (group[i : i + step] - mean)
                covariance += centred.T @ centred
            directions = linalg.eigh(to_numpy(covariance), subset_by_index=(s - width, s - 1))[1]
            directions = xp.asarray(directions)
            for i in range(0, n, step):
                out[i : i + step, j] = (group[i : i + step] - mean) @ directions
    return out
