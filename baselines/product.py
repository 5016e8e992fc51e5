"""Product quantization: cut the columns into groups and run k-means in each; and the rotation that suits it.

H. Jegou, M. Douze, C. Schmid, *Product Quantization for Nearest Neighbor Search*, TPAMI 2011, section II-B.
T. Ge, K. He, Q. Ke, J. Sun, *Optimized Product Quantization for Approximate Nearest Neighbor Search*, CVPR
2013; the same as *Cartesian K-Means*, M. Norouzi, D. Fleet, CVPR 2013.
"""

from collections.abc import Iterable
from functools import partial
from math import exp, lgamma
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from sklearn.utils.validation import check_is_fitted

from baselines.base import Compressor
from baselines.rows import blocks, sample
from dpq_ref import backend, checks
from dpq_ref.compressed import FactoredTable, ProductTable
from dpq_ref.compressed.product import group_columns
from dpq_ref.kernels.reference import BLOCK, Array, Integers
from dpq_ref.kmeans import KMeans
from dpq_ref.resume import Shared, in_blocks, kept

LLOYD = 25  # iterations of k-means
BYTE = 8  # bits of a code at most, where a budget decides


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
        A budget in place of either or both: the D and K, a power of two up to 256, that `expected_error`
        says are best.
    max_iter : int
        Lloyd's iterations at most; they stop early once no code changes.
    rows_per_code : int, optional
        Learn from a sample of K times as many rows (faiss takes 256), and give codes to all; by default from
        all rows.
    random_state : int, numpy.random.Generator or None
        Of the k-means++ seeding, and of the sample.
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
        Weighted squared error of the whole table, or of the sample, after each iteration.
    n_iter_ : int
    n_train_rows_ : int
        Rows that codebooks were learned from.

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
        max_iter: int = LLOYD,
        rows_per_code: int | None = None,
        random_state: Any = None,
        backend: str | None = None,
    ):
        self.n_groups = n_groups
        self.n_codes = n_codes
        self.bits = bits
        self.ratio = ratio
        self.max_iter = max_iter
        self.rows_per_code = rows_per_code
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
        kmeans = self._kmeans(n_codes, checks.positive("max_iter", self.max_iter))
        some = self._sample(weights, n_codes, kmeans.rng)

        def learn() -> dict[str, Any]:
            kmeans.fit(self._cut(X if some is None else X[some]), weights if some is None else weights[some])
            found = {"codebooks": kmeans.centroids, "objective": np.sum(kmeans.objective, axis=1)}
            return found | ({"codes": kmeans.codes} if some is None else {})

        learned = kept("codebooks", learn)
        self.codebooks_, self.objective_ = learned["codebooks"], learned["objective"]
        self.codes_ = learned["codes"] if some is None else self._nearest(X)
        self.n_train_rows_ = len(X) if some is None else len(some)
        self.n_iter_ = len(self.objective_)
        return self

    def transform(self, X: Any) -> Integers:
        """Codes of rows: the nearest centroid in each group, (n, d) -> (n, D) int32."""
        check_is_fitted(self)
        return self._nearest(self._rows(X))

    def inverse_transform(self, Z: Any) -> Array:
        """Rows of codes: their centroids side by side, (n, D) integers in [0, K) -> (n, d)."""
        check_is_fitted(self)
        n_groups, n_codes, _ = self.codebooks_.shape
        codes = checks.as_ids(Z, n_codes)
        self._check_width(codes, n_groups)
        return self._joined(codes, self.codebooks_)

    def compress(self) -> ProductTable:
        """Codes and codebooks of the table."""
        check_is_fitted(self)
        return ProductTable.from_codes(self.codes_, self._stored(self.codebooks_))

    def _settle(self, n: int, d: int) -> int:
        """Fix the groups, and return K."""
        size = self._size(n, d)
        self._columns = group_columns(d, self._groups(size["n_groups"], d))
        return checks.number_of_codes(size["n_codes"])

    @staticmethod
    def _groups(n_groups: Any, d: int) -> int:
        if checks.positive("n_groups", n_groups) > d:
            raise ValueError(f"n_groups={n_groups}; a table of {d} columns takes at most {d}")
        return n_groups

    def _kmeans(self, n_codes: int, max_iter: int) -> KMeans:
        rng = np.random.default_rng(self.random_state)
        return KMeans(n_codes, max_iter=max_iter, kernels=backend.get(self.backend), rng=rng)

    def _sample(
        self, weights: NDArray[np.float64], n_codes: int, rng: np.random.Generator
    ) -> Integers | None:
        """Rows to learn from, those without weight left out; None for all."""
        if self.rows_per_code is None:
            return None
        return sample(weights, n_codes * checks.positive("rows_per_code", self.rows_per_code), n_codes, rng)

    def _sizes(self, n: int, d: int, budget: int) -> Iterable[dict[str, int]]:
        all_groups, all_codes = range(1, d + 1), [1 << b for b in range(1, BYTE + 1) if b == 1 or 1 << b <= n]
        sizes = [
            {"n_groups": n_groups, "n_codes": n_codes}
            for n_groups in (all_groups if self.n_groups is None else [self._groups(self.n_groups, d)])
            for n_codes in (all_codes if self.n_codes is None else [checks.number_of_codes(self.n_codes)])
        ]
        within = [size for size in sizes if self._bits(n, d, **size) <= budget]
        return [min(within, key=lambda size: expected_error(d, **size))] if within else sizes

    def _bits(self, n: int, d: int, *, n_groups: int, n_codes: int) -> int:
        return n * n_groups * (n_codes - 1).bit_length() + 32 * n_codes * d

    def _cut(self, X: Array) -> Array:
        return cut(X, self._columns)

    def _nearest(self, X: Array, rotation: Array | None = None) -> Integers:
        """Codes of rows, rotated if there is a rotation, block by block."""
        books = self.codebooks_
        find = partial(_nearest_of, Shared(X), books, self._columns, rotation, self.backend)
        smallest = np.min_scalar_type(books.shape[1] - 1)
        return in_blocks("codes", find, blocks(*X.shape), len(books), np.int32, smallest)

    def _joined(self, codes: Integers, codebooks: Array) -> Array:
        """Centroids of codes side by side, (n, D) -> (n, d)."""
        rows = backend.get(self.backend).decode(codes, codebooks)
        return rows.reshape(len(codes), -1)[:, self._columns.ravel()]

    def _stored(self, codebooks: Array) -> Array:
        """Codebooks in float32, without the columns that there are not: (D, K, s), or else (K, d)."""
        codebooks = codebooks.astype(np.float32, copy=False)
        return codebooks if self._columns.all() else codebooks.swapaxes(0, 1)[:, self._columns]


class OptimizedProductQuantizer(ProductQuantizer):
    """Product quantization of rotated rows (Ge et al. 2013; Norouzi, Fleet 2013).

    It minimises sum_i q_i |x_i R - y_i|^2 over rotations R and rows y_i of D centroids, by turns: k-means
    gives centroids and codes; then R = U W^T, where X^T diag(q) Y = U S W^T. A row is in the end y_i R^T.
    It stores the bits of product quantization and 32 d^2 of rotation.

    Parameters
    ----------
    n_groups, n_codes, bits, ratio, random_state, backend
        As in `ProductQuantizer`.
    init : {"parametric", "pq"}
        "parametric" starts from the principal directions, dealt out so that the groups have even products of
        variances: optimal for a Gaussian, and on word vectors the better start by far. "pq" starts from R = 1
        and all of `ProductQuantizer` with the same seed, and never ends up worse than that.
    max_iter : int
        Rotations at most; they stop early once the error falls by less than a millionth.
    inner_iter : int
        Lloyd's iterations after each rotation.

    Attributes
    ----------
    rotation_ : (d, d)
        R, orthogonal: X @ rotation_ are the rows that are quantized.
    codebooks_ : (D, K, s)
        Centroids of rotated rows; as in `ProductQuantizer`.
    codes_ : (n, D) int32
    objective_ : (iterations,) float64
        Weighted squared error after each of Lloyd's iterations; but for rounding it never rises.
    n_iter_ : int
        Rotations found.

    Examples
    --------
    >>> import numpy as np
    >>> from baselines import OptimizedProductQuantizer, ProductQuantizer
    >>> rng = np.random.default_rng(0)
    >>> spread, mixed = 0.5 ** np.arange(8), np.linalg.qr(rng.standard_normal((8, 8)))[0]
    >>> table = (rng.standard_normal((1000, 8)) * spread @ mixed).astype(np.float32)
    >>> plain, turned = (
    ...     cls(n_groups=4, n_codes=16, random_state=0).fit(table)
    ...     for cls in (ProductQuantizer, OptimizedProductQuantizer)
    ... )
    >>> bool(turned.objective_[-1] < 0.2 * plain.objective_[-1])
    True
    >>> turned.compress().bits()
    {'codes': 16000, 'codebooks': 4096, 'basis': 2048}
    """

    def __init__(
        self,
        n_groups: int | None = None,
        n_codes: int | None = None,
        *,
        bits: int | None = None,
        ratio: float | None = None,
        init: str = "parametric",
        max_iter: int = 20,
        inner_iter: int = 4,
        random_state: Any = None,
        backend: str | None = None,
    ):
        super().__init__(
            n_groups,
            n_codes,
            bits=bits,
            ratio=ratio,
            max_iter=max_iter,
            random_state=random_state,
            backend=backend,
        )
        self.init = init
        self.inner_iter = inner_iter

    def fit(self, X: Any, y: Any = None, sample_weight: Any = None) -> Self:
        """Learn rotation and codebooks; parameters and errors as in `ProductQuantizer`."""
        X = self._table(X)
        weights = self._weights(sample_weight, len(X))
        n_codes = self._settle(*X.shape)
        max_iter = checks.positive("max_iter", self.max_iter)
        inner_iter = checks.positive("inner_iter", self.inner_iter)
        if self.init not in ("parametric", "pq"):
            raise ValueError(f"init={self.init!r}; it takes 'parametric' or 'pq'")
        learned = kept("rotation", lambda: self._learn(X, weights, n_codes, max_iter, inner_iter))
        self.codebooks_, self.objective_ = learned["codebooks"], learned["objective"]
        self.rotation_, self.n_iter_ = learned["rotation"].astype(X.dtype), int(learned["turns"])
        self.codes_ = self._nearest(X, self.rotation_)
        return self

    def _learn(
        self, X: Array, weights: NDArray[np.float64], n_codes: int, max_iter: int, inner_iter: int
    ) -> dict[str, Any]:
        """Take turns between codebooks and rotation."""
        from threadpoolctl import threadpool_limits

        with threadpool_limits(1, "blas"):
            rotation: Array = np.eye(X.shape[1])
            if self.init == "parametric":
                rotation = principal_groups(X, weights, self._columns.sum(axis=1))
            kmeans = self._kmeans(n_codes, LLOYD)
            multiply = kmeans.kernels.multiply
            kmeans.fit(self._cut(multiply(X, rotation.astype(X.dtype))), weights)
            objective, turns = list(kmeans.objective), 0
            kmeans.max_iter = inner_iter
            while turns < max_iter:
                turns += 1
                before = np.sum(objective[-1])
                rotation = self._procrustes(X, weights, self._joined(kmeans.codes, kmeans.centroids))
                kmeans.fit(self._cut(multiply(X, rotation.astype(X.dtype))), weights, kmeans.centroids)
                objective += kmeans.objective
                if np.sum(objective[-1]) >= (1 - 1e-6) * before:
                    break
        found = {"rotation": rotation, "codebooks": kmeans.centroids, "turns": np.array(turns)}
        return found | {"objective": np.sum(objective, axis=1)}

    def transform(self, X: Any) -> Integers:
        """Codes of rows: the nearest centroid of the rotated row in each group, (n, d) -> (n, D) int32."""
        check_is_fitted(self)
        return self._nearest(self._rows(X), self.rotation_)

    def inverse_transform(self, Z: Any) -> Array:
        """Rows of codes: their centroids side by side, rotated back, (n, D) integers in [0, K) -> (n, d)."""
        rows = super().inverse_transform(Z)
        return backend.get(self.backend).combine(rows, self.rotation_.T)

    def compress(self) -> FactoredTable:  # type: ignore[override]
        """Codes, codebooks and the rotation back."""
        left = super().compress()
        return FactoredTable(left, self.rotation_.T.astype(np.float32))

    def _bits(self, n: int, d: int, *, n_groups: int, n_codes: int) -> int:
        return super()._bits(n, d, n_groups=n_groups, n_codes=n_codes) + 32 * d * d

    def _procrustes(self, X: Array, weights: Array, Y: Array) -> Array:
        """Rotation that brings rows nearest to their centroids (Schoenemann 1966), float64."""
        from scipy import linalg

        shares = (weights / weights.max()).astype(X.dtype)
        product = backend.get(self.backend).cross(X, Y, shares)
        left, _, right = linalg.svd(product)
        return left @ right


def cut(X: Array, columns: NDArray[np.bool_]) -> Array:
    """Rows as points of D groups, (n, d), (D, s) -> (n, D, s)."""
    if columns.all():
        return X.reshape(len(X), *columns.shape)
    points = np.zeros((len(X), *columns.shape), X.dtype)
    points[:, columns] = X
    return points


def _nearest_of(
    X: Shared,
    codebooks: Array,
    columns: NDArray[np.bool_],
    rotation: Array | None,
    name: str | None,
    rows: slice,
) -> Integers:
    """Codes of some rows, perhaps on another machine."""
    kernels, some = backend.get(name), X.array[rows]
    if rotation is not None:
        some = kernels.combine(some.astype(rotation.dtype, copy=False), rotation)
    return kernels.nearest_code(cut(some, columns).astype(codebooks.dtype, copy=False), codebooks)


def expected_error(d: int, *, n_groups: int, n_codes: int) -> float:
    """Error of product quantization, relative to the table, if its entries were independent and Gaussian.

    Many codes for s entries leave z_s K^(-2/s) of their squares (Zador 1982), about
    z_s = 2 ((s + 2) / s)^(s/2 + 1) Gamma(s/2 + 1)^(2/s) / (s + 2), and one code leaves all of them.
    1 / (1 + (K^(2/s) - 1) / z_s) does both, and lies between in between.

    Parameters
    ----------
    d, n_groups, n_codes : int

    Examples
    --------
    >>> round(expected_error(12, n_groups=12, n_codes=2), 2)  # 1 - 2 / pi = 0.36 in truth
    0.48
    >>> expected_error(12, n_groups=5, n_codes=256) < expected_error(12, n_groups=10, n_codes=16)
    True
    """
    error = 0.0
    narrow, wider = divmod(d, n_groups)
    for s, groups in ((narrow + 1, wider), (narrow, n_groups - wider)):
        if s and groups:
            z = 2 * ((s + 2) / s) ** (s / 2 + 1) * exp(lgamma(s / 2 + 1) * 2 / s) / (s + 2)
            error += groups * s / (1 + (n_codes ** (2 / s) - 1) / z)
    return error / d


def principal_groups(X: Array, weights: Array, widths: Integers) -> NDArray[np.float64]:
    """Principal directions, dealt out to groups of even product of variances (Ge et al. 2013, section 3.2).

    In the order of falling variance, each goes to the group of smallest product that has room.

    Parameters
    ----------
    X : (n, d)
    weights : (n,)
    widths : (D,)
        Directions of each group, d in all.

    Returns
    -------
    (d, d) orthogonal: a column a direction, group after group
    """
    from scipy import linalg

    n, d = X.shape
    q = weights / weights.sum()
    mean, covariance = np.einsum("i,ij->j", q, X), np.zeros((d, d))
    step = max(1, BLOCK // d)
    for i in range(0, n, step):
        centred = np.sqrt(q[i : i + step, None]) * (X[i : i + step] - mean)
        covariance += centred.T @ centred
    variances, directions = linalg.eigh(covariance)
    least = max(1e-10 * variances[-1], np.finfo(float).tiny)
    logs = np.log(np.maximum(variances, least) / max(variances[0], least))  # none below 0: no product falls
    members: list[list[int]] = [[] for _ in widths]
    products = np.zeros(len(widths))
    for c in range(d - 1, -1, -1):
        room = np.array([len(m) for m in members]) < widths
        j = int(np.where(room, products, np.inf).argmin())
        members[j].append(c)
        products[j] += logs[c]
    return directions[:, [c for m in members for c in m]]
