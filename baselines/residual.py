"""Sums of codebooks: rows of M codes, each of which picks a row as wide as the table, and these add up.

Y. Chen, T. Guan, C. Wang, *Approximate Nearest Neighbor Search by Residual Vector Quantization*, Sensors
2010.
A. Babenko, V. Lempitsky, *Additive Quantization for Extreme Vector Compression*, CVPR 2014.
J. Martinez, J. Clement, H. H. Hoos, J. J. Little, *Revisiting Additive Quantization*, ECCV 2016.

Both subtract the mean of the table first, so that the products of rows and centroids, from which the squared
distances are put together, stay exact to rounding; the first codebook takes it in.
"""

from collections.abc import Iterable
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from sklearn.utils.validation import check_is_fitted

from baselines import product
from baselines.base import Compressor
from baselines.product import BYTE, LLOYD
from dpq_ref import backend, checks
from dpq_ref.compressed import ProductTable
from dpq_ref.kernels.reference import BLOCK, Array, Integers
from dpq_ref.kmeans import KMeans

RIDGE = 1e-6  # of the mean weight of a code
SWEEPS = 4  # of conditional modes, per search
PERTURBED = 4  # codes changed before a search
ROOM = 1.02  # of the least expected error, for fewer codebooks: the formula is not exact to that


class ResidualQuantizer(Compressor):
    """Residual quantization (Chen, Guan, Wang 2010): k-means, k-means on what it left, and so on.

    Codes are found by beam search, while learning as well: each stage extends the `beam_width` best
    beginnings of a row. It stores n M ceil(log2 K) bits of codes and 32 M K d of codebooks.

    Parameters
    ----------
    n_groups : int, optional
        M.
    n_codes : int, optional
        K, from 2 to 65,536 and at most n.
    bits, ratio : int, float, optional
        A budget in place of either or both. Of the K, powers of two up to 256, each with as many codebooks as
        the budget allows, it takes the one of fewest whose `expected_error` is within 2 % of the least.
    beam_width : int
    max_iter : int
        Lloyd's iterations of each stage.
    random_state : int, numpy.random.Generator or None
        Of the k-means++ seeding.
    backend : {"numpy", "numba", "cupy"} or None
        Kernels to run on; None means "numba".

    Attributes
    ----------
    mean_ : (d,)
        Weighted mean of the table.
    codebooks_ : (M, K, d)
        A row is the mean and the sum of its centroids.
    codes_ : (n, M) int32
        Codes of the table.
    objective_ : (M,) float64
        Weighted squared error after each stage; but for rounding it never rises.
    n_iter_ : int
        Lloyd's iterations of the stage that took the most.

    Examples
    --------
    >>> import numpy as np
    >>> from baselines import ResidualQuantizer
    >>> table = np.random.default_rng(0).standard_normal((1000, 8)).astype(np.float32)
    >>> quantizer = ResidualQuantizer(n_groups=4, n_codes=16, random_state=0).fit(table)
    >>> quantizer.transform(table[:2]).shape
    (2, 4)
    >>> quantizer.compress().bits()
    {'codes': 16000, 'codebooks': 16384}
    """

    size_parameters = ("n_groups", "n_codes")

    def __init__(
        self,
        n_groups: int | None = None,
        n_codes: int | None = None,
        *,
        bits: int | None = None,
        ratio: float | None = None,
        beam_width: int = 5,
        max_iter: int = 25,
        random_state: Any = None,
        backend: str | None = None,
    ):
        self.n_groups = n_groups
        self.n_codes = n_codes
        self.bits = bits
        self.ratio = ratio
        self.beam_width = beam_width
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
            If there are fewer rows than codes, the budget cannot be met, or an entry is NaN or infinite.
        """
        X, weights, n_groups, n_codes = self._door(X, sample_weight)
        rng = np.random.default_rng(self.random_state)
        self._learn(X, weights, n_groups, n_codes, checks.positive("max_iter", self.max_iter), rng)
        return self

    def transform(self, X: Any) -> Integers:
        """Codes of rows by beam search, (n, d) -> (n, M) int32."""
        check_is_fitted(self)
        return backend.to_numpy(self._best(self._centred(self._rows(X))))

    def inverse_transform(self, Z: Any) -> Array:
        """Rows of codes: the mean and the centroids summed up, (n, M) integers in [0, K) -> (n, d)."""
        check_is_fitted(self)
        n_groups, n_codes, _ = self.codebooks_.shape
        codes = checks.as_ids(Z, n_codes)
        self._check_width(codes, n_groups)
        return self.mean_ + backend.to_numpy(self._sum(codes))

    def compress(self) -> ProductTable:
        """Codes and codebooks of the table: M times the centroids, of which a row is the mean."""
        check_is_fitted(self)
        books = self.codebooks_.copy()
        books[0] += self.mean_
        books *= len(books)
        return ProductTable.from_codes(self.codes_, books.astype(np.float32, copy=False), additive=True)

    def _door(self, X: Any, sample_weight: Any) -> tuple[Array, NDArray[np.float64], int, int]:
        """Check what `fit` takes: table, weights, M, K."""
        X = self._table(X)
        weights = self._weights(sample_weight, len(X))
        checks.positive("beam_width", self.beam_width)
        size = self._size(*X.shape)
        n_groups = checks.positive("n_groups", size["n_groups"])
        return X, weights, n_groups, checks.number_of_codes(size["n_codes"])

    def _sizes(self, n: int, d: int, budget: int) -> Iterable[dict[str, int]]:
        sizes = []
        for b in range(1, BYTE + 1):
            n_codes = 1 << b if self.n_codes is None else checks.number_of_codes(self.n_codes)
            if b == 1 or (self.n_codes is None and n_codes <= n):
                n_groups = budget // self._bits(n, d, n_groups=1, n_codes=n_codes)
                if self.n_groups is not None:
                    n_groups = checks.positive("n_groups", self.n_groups)
                sizes.append({"n_groups": max(1, n_groups), "n_codes": n_codes})
        within = [size for size in sizes if self._bits(n, d, **size) <= budget]
        if not within:
            return sizes
        errors = [expected_error(d, **size) for size in within]
        enough = ROOM * min(errors)
        choices = zip(errors, within, strict=True)
        return [min(choices, key=lambda choice: (choice[0] > enough, choice[1]["n_groups"], choice[0]))[1]]

    def _bits(self, n: int, d: int, *, n_groups: int, n_codes: int) -> int:
        return n_groups * (n * (n_codes - 1).bit_length() + 32 * n_codes * d)

    def _learn(
        self,
        X: Array,
        weights: NDArray[np.float64],
        n_groups: int,
        n_codes: int,
        max_iter: int,
        rng: np.random.Generator,
    ) -> Array:
        """Find mean, codebooks and codes stage by stage; the centred table, where the kernels are."""
        self.mean_ = (np.einsum("i,ij->j", weights, X) / weights.sum()).astype(X.dtype)
        X = left = self._centred(X)
        self.codebooks_ = np.empty((0, n_codes, X.shape[1]), X.dtype)
        objective = []
        self.n_iter_ = 0
        beam = self._empty(X)
        for _ in range(n_groups):
            kmeans = KMeans(n_codes, kernels=backend.get(self.backend), rng=rng, max_iter=max_iter)
            book = backend.to_numpy(kmeans.fit(left[:, None], weights).centroids)
            self.codebooks_ = np.concatenate([self.codebooks_, book])
            self.n_iter_ = max(self.n_iter_, len(kmeans.objective))
            beam = self._extend(X, *beam)
            left = X - self._sum(beam[0][:, 0])
            objective.append(self._error(left, weights))
        self.codes_ = np.ascontiguousarray(backend.to_numpy(beam[0][:, 0]))
        self.objective_ = np.array(objective)
        return X

    def _centred(self, X: Array) -> Array:
        return self._there(X.astype(self.mean_.dtype, copy=False) - self.mean_)

    def _there(self, array: Any) -> Any:
        """Array where the kernels are."""
        return backend.get(self.backend).xp.asarray(array)

    def _empty(self, X: Array) -> tuple[Integers, Array]:
        """Beginnings of no code, one a row."""
        xp = backend.array_module(X)
        return xp.empty((len(X), 1, 0), np.int32), xp.zeros((len(X), 1), X.dtype)

    def _extend(self, X: Array, codes: Integers, scores: Array) -> tuple[Integers, Array]:
        """Extend the beginnings of all rows by the next code."""
        kernels = backend.get(self.backend)
        n, width, m = codes.shape
        xp, books = kernels.xp, self._there(self.codebooks_)
        book = books[m]
        n_codes, d = book.shape
        pairs = 2 * kernels.combine(books[:m].reshape(-1, d), book.T).reshape(m, n_codes, n_codes)
        norms = xp.einsum("kc,kc->k", book, book)
        wider = min(self.beam_width, width * n_codes)
        longer, best = xp.empty((n, wider, m + 1), np.int32), xp.empty((n, wider), X.dtype)
        step = max(1, BLOCK // (width * n_codes))
        for i in range(0, n, step):
            here = slice(i, i + step)
            linear = norms - 2 * kernels.combine(X[here], book.T)
            longer[here], best[here] = kernels.beam_step(
                codes[here], scores[here], linear, pairs, self.beam_width
            )
        return longer, best

    def _best(self, X: Array) -> Integers:
        """Best codes of centred rows by beam search."""
        beam = self._empty(X)
        for _ in self.codebooks_:
            beam = self._extend(X, *beam)
        return backend.array_module(X).ascontiguousarray(beam[0][:, 0])

    def _sum(self, codes: Integers) -> Array:
        """Sum the centroids of codes up, (n, M) -> (n, d), where the kernels are."""
        there = self._there(codes)
        books = self._there(self.codebooks_)
        rows: Array = backend.array_module(books).zeros((len(codes), books.shape[2]), books.dtype)
        for m in range(codes.shape[1]):
            rows += books[m, there[:, m]]
        return rows

    @staticmethod
    def _error(left: Array, weights: Array) -> float:
        squares = backend.array_module(left).einsum("ij,ij->i", left, left, dtype=np.float64)
        return float(weights @ backend.to_numpy(squares))


class AdditiveQuantizer(ResidualQuantizer):
    """Additive quantization (Babenko, Lempitsky 2014), learned by local search (LSQ; Martinez et al. 2016).

    It starts from residual quantization and improves by turns all codebooks at once, by least squares, and
    the codes: some codes of a row are changed, then each becomes the best beside the others (iterated
    conditional modes), and the row takes the result if it is better. It stores as many bits as residual
    quantization.

    Memory beside the table: 12 (M K)^2 bytes.

    Parameters
    ----------
    n_groups, n_codes, bits, ratio, beam_width, random_state, backend
        As in `ResidualQuantizer`.
    max_iter : int
        Turns at most; they stop early once the error falls by less than a millionth.
    n_searches : int
        Local searches of a row in each turn, and in `transform`.

    Attributes
    ----------
    mean_, codebooks_
        As in `ResidualQuantizer`.
    codes_ : (n, M) int32
        Codes of the table, the best that were found in all turns; `transform` finds others, a little worse.
    objective_ : (turns + 1,) float64
        Weighted squared error of residual quantization, then after each turn; but for rounding it never
        rises.
    n_iter_ : int
        Turns.

    Examples
    --------
    >>> import numpy as np
    >>> from baselines import AdditiveQuantizer
    >>> table = np.random.default_rng(0).standard_normal((1000, 8)).astype(np.float32)
    >>> quantizer = AdditiveQuantizer(n_groups=4, n_codes=16, random_state=0).fit(table)
    >>> bool(quantizer.objective_[-1] < 0.9 * quantizer.objective_[0])
    True
    """

    def __init__(
        self,
        n_groups: int | None = None,
        n_codes: int | None = None,
        *,
        bits: int | None = None,
        ratio: float | None = None,
        beam_width: int = 5,
        max_iter: int = 10,
        n_searches: int = 4,
        random_state: Any = None,
        backend: str | None = None,
    ):
        super().__init__(
            n_groups,
            n_codes,
            bits=bits,
            ratio=ratio,
            beam_width=beam_width,
            max_iter=max_iter,
            random_state=random_state,
            backend=backend,
        )
        self.n_searches = n_searches

    def fit(self, X: Any, y: Any = None, sample_weight: Any = None) -> Self:
        """Learn codebooks and codes; parameters and errors as in `ResidualQuantizer`."""
        from threadpoolctl import threadpool_limits

        X, weights, n_groups, n_codes = self._door(X, sample_weight)
        max_iter = checks.positive("max_iter", self.max_iter)
        checks.positive("n_searches", self.n_searches)
        rng = np.random.default_rng(self.random_state)
        X = self._learn(X, weights, n_groups, n_codes, LLOYD, rng)
        objective = [self.objective_[-1]]
        for self.n_iter_ in range(1, max_iter + 1):
            with threadpool_limits(1, "blas"):
                self._fit_codebooks(X, weights)
            self.codes_ = backend.to_numpy(self._search(X, self.codes_, self._changes(rng)))
            objective.append(self._error(X - self._sum(self.codes_), weights))
            if objective[-1] >= (1 - 1e-6) * objective[-2]:
                break
        self.objective_ = np.array(objective)
        self._of_transform = self._changes(rng)
        return self

    def transform(self, X: Any) -> Integers:
        """Codes of rows by beam search, then local search, (n, d) -> (n, M) int32."""
        check_is_fitted(self)
        X = self._centred(self._rows(X))
        return backend.to_numpy(self._search(X, self._best(X), self._of_transform))

    def _changes(self, rng: np.random.Generator) -> Integers:
        """How codes are changed before each search, (n_searches, M): one draw for all rows.

        So the codes of a row do not depend on the rows beside it.
        """
        n_groups, n_codes, _ = self.codebooks_.shape
        changes = rng.integers(1, n_codes, (self.n_searches, n_groups))
        order = rng.permuted(np.tile(np.arange(n_groups), (self.n_searches, 1)), axis=1)
        return np.where(order < PERTURBED, changes, 0)

    def _search(self, X: Array, codes: Integers, changes: Integers) -> Integers:
        """Improve the codes of centred rows."""
        kernels = backend.get(self.backend)
        xp, (n_groups, n_codes, d) = kernels.xp, self.codebooks_.shape
        flat = self._there(self.codebooks_).reshape(-1, d)
        pairs = 2 * kernels.combine(flat, flat.T).reshape(n_groups, n_codes, n_groups, n_codes)
        norms = xp.einsum("kc,kc->k", flat, flat)
        codes, changes = xp.array(codes), xp.asarray(changes)
        step = max(1, BLOCK // len(flat))
        for i in range(0, len(X), step):
            linear = norms - 2 * kernels.combine(X[i : i + step], flat.T)
            linear = linear.reshape(-1, n_groups, n_codes)
            best, scores = self._modes(codes[i : i + step], linear, pairs)
            for change in changes:
                other, others = self._modes((best + change) % n_codes, linear, pairs)
                better = others < scores
                best, scores = xp.where(better[:, None], other, best), xp.where(better, others, scores)
            codes[i : i + step] = best
        return codes

    def _modes(self, codes: Integers, linear: Array, pairs: Array) -> tuple[Integers, Array]:
        """Iterate conditional modes; a sweep leaves out the rows that the one before did not change."""
        kernels = backend.get(self.backend)
        modes, scores = kernels.conditional_modes(codes, linear, pairs, 1)
        rows = kernels.xp.arange(len(codes))
        for _ in range(SWEEPS - 1):
            rows = rows[(modes[rows] != codes[rows]).any(axis=1)]
            codes = modes.copy()
            modes[rows], scores[rows] = kernels.conditional_modes(codes[rows], linear[rows], pairs, 1)
        return modes, scores

    def _fit_codebooks(self, X: Array, weights: NDArray[np.float64]) -> None:
        """Weighted least squares for all codebooks at once, at fixed codes.

        A step of it: what is left of the rows is regressed on the codes, with a trace of ridge, for the
        codebooks are determined but for a shift of each. So it never raises the error, and a code that no row
        has stays.
        """
        from scipy import linalg, sparse

        n_groups, n_codes, d = self.codebooks_.shape
        n = len(X)
        columns = self.codes_ + n_codes * np.arange(n_groups)
        ones = sparse.csr_array(
            (np.ones(columns.size), columns.ravel(), np.arange(0, columns.size + 1, n_groups)),
            shape=(n, n_groups * n_codes),
        )
        weighted = (sparse.diags_array(weights) @ ones).T.tocsr()
        gram = (weighted @ ones).toarray()
        gram[np.diag_indices_from(gram)] += RIDGE * weights.sum() / n_codes
        step = weighted @ backend.to_numpy(X - self._sum(self.codes_)).astype(np.float64)
        step = linalg.cho_solve(linalg.cho_factor(gram, overwrite_a=True), step, overwrite_b=True)
        self.codebooks_ = (self.codebooks_ + step.reshape(self.codebooks_.shape)).astype(X.dtype)


def expected_error(d: int, *, n_groups: int, n_codes: int) -> float:
    """Error of residual quantization, relative to the table, if its entries were independent and Gaussian.

    In many dimensions K centroids are the corners of a simplex, and each stage takes E^2 K / (K - 1) of the d
    squares that are left, E the mean of the largest of K normal numbers, about Phi^-1((K - 3/8) / (K + 1/4))
    (Blom 1958). In few, what Zador's formula leaves is more than that.

    Parameters
    ----------
    d, n_groups, n_codes : int

    Examples
    --------
    >>> round(expected_error(50, n_groups=1, n_codes=2), 3)  # 1 - 2 / (50 pi) = 0.987 in truth
    0.986
    """
    from scipy.special import ndtri

    largest = float(ndtri((n_codes - 3 / 8) / (n_codes + 1 / 4)))
    left = 1 - largest**2 * n_codes / (n_codes - 1) / d
    return max(left, product.expected_error(d, n_groups=1, n_codes=n_codes)) ** n_groups
