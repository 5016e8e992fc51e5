"""Product quantization: cut the columns into groups and run k-means in each.

H. Jegou, M. Douze, C. Schmid, *Product Quantization for Nearest Neighbor Search*, TPAMI 2011, section II-B.
"""

from typing import Any, Self

import numpy as np
from sklearn.utils.validation import check_is_fitted

from baselines.base import Compressor
from dpq_ref import backend, checks
from dpq_ref.compressed import ProductTable
from dpq_ref.kernels.reference import Array, Integers
from dpq_ref.kmeans import KMeans


class ProductQuantizer(Compressor):
    """Product quantization (Jegou, Douze, Schmid 2011): D independent k-means of K centroids.

    It stores n D ceil(log2 K) bits of codes and 32 K d of codebooks.

    Parameters
    ----------
    n_groups : int
        D; it divides d.
    n_codes : int
        K, from 2 to 65,536 and at most n.
    max_iter : int
        Lloyd's iterations at most; they stop early once no code changes.
    random_state : int, numpy.random.Generator or None
        Of the k-means++ seeding.
    backend : {"numpy", "numba", "cupy"} or None
        Kernels to run on; None means "numba".

    Attributes
    ----------
    codebooks_ : (D, K, s)
        Centroids, s = d / D. None is without rows, unless a group has fewer distinct subvectors than K.
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

    def __init__(
        self,
        n_groups: int = 8,
        n_codes: int = 256,
        *,
        max_iter: int = 25,
        random_state: Any = None,
        backend: str | None = None,
    ):
        self.n_groups = n_groups
        self.n_codes = n_codes
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
            If D does not divide d, there are fewer rows than codes, or an entry is NaN or infinite.
        """
        X = self._table(X)
        weights = self._weights(sample_weight, len(X))
        n_codes = checks.number_of_codes(self.n_codes)
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
        return backend.get(self.backend).decode(codes, self.codebooks_).reshape(len(codes), -1)

    def compress(self) -> ProductTable:
        """Codes and codebooks of the table."""
        check_is_fitted(self)
        return ProductTable.from_codes(self.codes_, self.codebooks_.astype(np.float32, copy=False))

    def _cut(self, X: Array) -> Array:
        """Rows as points of D groups, (n, d) -> (n, D, s)."""
        n_groups = checks.positive("n_groups", self.n_groups)
        return X.reshape(len(X), n_groups, checks.group_width(X.shape[1], n_groups))
