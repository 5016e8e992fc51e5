"""Product quantization: cut the columns into groups and run k-means in each.

H. Jegou, M. Douze, C. Schmid, *Product Quantization for Nearest Neighbor Search*, TPAMI 2011, section II-B.
"""

from collections.abc import Iterable
from typing import Any, Self

import numpy as np
from sklearn.utils.validation import check_is_fitted

from baselines.base import Compressor
from dpq_ref import backend, checks
from dpq_ref.compressed import ProductTable
from dpq_ref.compressed.product import group_columns
from dpq_ref.kernels.reference import Array, Integers
from dpq_ref.kmeans import KMeans


class ProductQuantizer(Compressor):
    """Product quantization (Jegou, Douze, Schmid 2011): D independent k-means of K centroids.

    It stores n D ceil(log2 K) bits of codes and 32 K d of codebooks.

    Parameters
    ----------
    n_groups : int, optional
        D, at most d. If it does not divide d, the first groups are one column wider than the last.
    n_codes : int, optional
        K, from 2 to 65,536 and at most n.
    bits, ratio : int, float, optional
        A budget in place of either or both. K is then the largest power of two up to 256 whose codebooks take
        no more than a quarter of it.
    max_iter : int
        Lloyd's iterations at most; they stop early once no code changes.
    random_state : int, numpy.random.Generator or None
        Of the k-means++ seeding.
    backend : {"numpy", "numba", "cupy"} or None
        Kernels to run on; None means "numba".

    Attributes
    ----------
    codebooks_ : (D, K, s)
        Centroids, s = ceil(d / D); 0 in the columns that a narrower group lacks. None is without rows, unless
        a group has fewer distinct subvectors than K.
    codes_ : (n, D) int32
        Codes of the table.
    objective_ : (n_iter_,) float64
        Weighted squared error of the whole table after each iteration.
    n_iter_ : int

    Examples
    --------
    >>> import numpy as np
    >>> from baselines import ProductQuantizer
    >>> table = np.random.default_rng(0).standard_normal((1000, 8)).astype(np.float32)
    >>> quantizer = ProductQuantizer(n_groups=4, n_codes=16, random_state=0).fit(table)
    >>> quantizer.transform(table[:2]).shape
    (2, 4)
    >>> quantizer.compress().bits()
    {'codes': 16000, 'codebooks': 4096}
    """

    size_parameters = ("n_groups", "n_codes")

    def __init__(
        self,
        n_groups: int | None = None,
        n_codes: int | None = None,
        *,
        bits: int | None = None,
        ratio: float | None = None,
        max_iter: int = 25,
        random_state: Any = None,
        backend: str | None = None,
    ):
        self.n_groups = n_groups
        self.n_codes = n_codes
        self.bits = bits
        self.ratio = ratio
        self.max_iter = max_iter
        self.random_state = random_state
        self.backend = backend

    def fit(self, X: Any, y: Any = None, sample_weight: Any = None) -> Self:
        """Learn codebooks.

        Parameters
        ----------
        X : (n, d) array_like
        y : ignored
        sample_weight : (n,) array_like, optional
            Frequencies of the words.

        Raises
        ------
        ValueError
            If D is above d, there are fewer rows than codes, the budget cannot be met, or an entry is NaN or
            infinite.
        """
        X = self._table(X)
        weights = self._weights(sample_weight, len(X))
        n_codes = self._settle(*X.shape)
        max_iter = checks.positive("max_iter", self.max_iter)
        kmeans = KMeans(
            n_codes,
            max_iter=max_iter,
            kernels=backend.get(self.backend),
            rng=np.random.default_rng(self.random_state),
        ).fit(self._cut(X), weights)
        self.codebooks_ = kmeans.centroids
        self.codes_ = kmeans.codes
        self.objective_ = np.sum(kmeans.objective, axis=1)
        self.n_iter_ = len(self.objective_)
        return self

    def transform(self, X: Any) -> Integers:
        """Codes of rows: the nearest centroid in each group, (n, d) -> (n, D) int32."""
        check_is_fitted(self)
        points = self._cut(self._rows(X)).astype(self.codebooks_.dtype, copy=False)
        return backend.get(self.backend).nearest_code(points, self.codebooks_)[0]

    def inverse_transform(self, Z: Any) -> Array:
        """Rows of codes: their centroids side by side, (n, D) integers in [0, K) -> (n, d)."""
        check_is_fitted(self)
        n_groups, n_codes, _ = self.codebooks_.shape
        codes = checks.as_ids(Z, n_codes)
        self._check_width(codes, n_groups)
        rows = backend.get(self.backend).decode(codes, self.codebooks_)
        return rows.reshape(len(codes), -1)[:, self._columns.ravel()]

    def compress(self) -> ProductTable:
        """Codes and codebooks of the table."""
        check_is_fitted(self)
        return ProductTable.from_codes(self.codes_, self._stored(self.codebooks_))

    def _settle(self, n: int, d: int) -> int:
        """Fix the groups, and return K."""
        size = self._size(n, d)
        n_groups = checks.positive("n_groups", size["n_groups"])
        if n_groups > d:
            raise ValueError(f"n_groups={n_groups}; a table of {d} columns takes at most {d}")
        self._columns = group_columns(d, n_groups)
        return checks.number_of_codes(size["n_codes"])

    def _sizes(self, n: int, d: int, budget: int) -> Iterable[dict[str, int]]:
        n_codes = self.n_codes or 2
        while self.n_codes is None and 2 * n_codes <= min(256, n) and 4 * 32 * 2 * n_codes * d <= budget:
            n_codes *= 2
        for n_groups in range(1, d + 1) if self.n_groups is None else [self.n_groups]:
            yield {"n_groups": n_groups, "n_codes": n_codes}

    def _bits(self, n: int, d: int, *, n_groups: int, n_codes: int) -> int:
        return n * n_groups * (n_codes - 1).bit_length() + 32 * n_codes * d

    def _cut(self, X: Array) -> Array:
        """Rows as points of D groups, (n, d) -> (n, D, s)."""
        if self._columns.all():
            return X.reshape(len(X), *self._columns.shape)
        points = np.zeros((len(X), *self._columns.shape), X.dtype)
        points[:, self._columns] = X
        return points

    def _stored(self, codebooks: Array) -> Array:
        """Codebooks in float32, without the columns that there are not: (D, K, s), or else (K, d)."""
        codebooks = codebooks.astype(np.float32, copy=False)
        return codebooks if self._columns.all() else codebooks.swapaxes(0, 1)[:, self._columns]
