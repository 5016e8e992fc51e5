"""Low rank: the truncated singular value decomposition, with or without word frequencies.

C. Eckart, G. Young, *The Approximation of One Matrix by Another of Lower Rank*, Psychometrika 1936. Weights
enter as in the blocks of GroupReduce (P. Chen, Si, Li, Chelba, Hsieh, NeurIPS 2018). The randomized solver:
N. Halko, P. G. Martinsson, J. A. Tropp, *Finding Structure with Randomness*, SIAM Review 2011.
"""

from collections.abc import Iterable, Iterator
from typing import Any, Self

import numpy as np
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_is_fitted

from baselines.base import Compressor
from baselines.rows import Rows, blocks
from baselines.scalar import as_float32
from dpq_ref import backend, checks
from dpq_ref.backend import one_blas_thread
from dpq_ref.compressed import FactoredTable
from dpq_ref.kernels.reference import Array
from dpq_ref.progress import told
from dpq_ref.resume import kept

OVERSAMPLING = 10  # directions that the randomized solver carries beyond the rank
GRAM_ROWS = 2048  # that the kernel takes at a time, where blocks of them end, too, no sum is another


class LowRank(Compressor):
    """Truncated singular value decomposition: the best rows in a space of k dimensions.

    With frequencies q it minimises sum_i q_i |a_i - V u_i|^2: V has the first k right singular vectors of
    diag(sqrt q) A, and U = A V. It stores 32 k (n + d) bits.

    Parameters
    ----------
    rank : int, optional
        k.
    bits, ratio : int, float, optional
        A budget in place of `rank`: the largest k that it allows.
    solver : {"exact", "randomized"}
        The exact one takes n d^2 operations, the randomized one about 4 n (k + 10) (power_iterations + 2):
        it is worth its error at a thousand columns and more, not at 300.
    power_iterations : int
        Of the randomized solver; the more, the closer to the exact one.
    random_state : int, RandomState, optional
        Of the randomized solver.

    Attributes
    ----------
    components_ : (k, d)
        The right vectors, orthonormal; the entry of largest magnitude of each is positive.
    coefficients_ : (n, k)
        Coefficients of the table, A V.
    singular_values_ : (min(n, d),) float64
        All those of diag(sqrt q) A, falling; the squared error is the sum of the squares from k on. Below
        1e-8 of the first they are rounding. The randomized solver has the first k.

    Examples
    --------
    >>> import numpy as np
    >>> from baselines import LowRank
    >>> table = np.random.default_rng(0).standard_normal((400, 30)).astype(np.float32)
    >>> model = LowRank(ratio=4).fit(table)
    >>> model.components_.shape, model.coefficients_.shape
    ((6, 30), (400, 6))
    >>> error = table - model.compress().reconstruct()
    >>> bool(np.isclose((error**2).sum(), (model.singular_values_[6:] ** 2).sum()))
    True
    """

    size_parameters = ("rank",)

    def __init__(
        self,
        rank: int | None = None,
        *,
        bits: int | None = None,
        ratio: float | None = None,
        solver: str = "exact",
        power_iterations: int = 4,
        random_state: Any = None,
    ):
        self.rank = rank
        self.bits = bits
        self.ratio = ratio
        self.solver = solver
        self.power_iterations = power_iterations
        self.random_state = random_state

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
            If not exactly one of rank and a budget is given, the rank is not from 1 to min(n, d), the solver
            is neither of the two, or an entry is NaN or infinite.
        """
        X = self._table(X)
        weights = self._weights(sample_weight, len(X))
        rank = self._rank(*X.shape)
        iterations = checks.positive("power_iterations", self.power_iterations, least=0)
        if self.solver == "exact":
            learned = kept("vectors", lambda: dict(zip("sV", right_vectors(X, weights, rank), strict=True)))
            self.singular_values_, vectors = learned["s"], learned["V"]
        elif self.solver == "randomized":
            rng = check_random_state(self.random_state)
            self.singular_values_, vectors = randomized_right_vectors(X, weights, rank, iterations, rng)
        else:
            raise ValueError(f"solver={self.solver!r}; it takes 'exact' or 'randomized'")
        self.components_ = vectors[:rank].astype(X.dtype)
        with one_blas_thread:
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

    def compress(self) -> FactoredTable:
        """Both factors of the table."""
        check_is_fitted(self)
        return FactoredTable(as_float32(self.coefficients_), as_float32(self.components_))

    def _rank(self, n: int, d: int) -> int:
        rank = checks.positive("rank", self._size(n, d)["rank"])
        if rank > min(n, d):
            raise ValueError(f"rank={rank}; a table of {n} x {d} takes at most {min(n, d)}")
        return rank

    def _sizes(self, n: int, d: int, budget: int) -> Iterable[dict[str, int]]:
        return ({"rank": rank} for rank in range(1, min(n, d) + 1))

    def _bits(self, n: int, d: int, **size: int) -> int:
        return 32 * size["rank"] * (n + d)


def right_vectors(X: Array | Rows, weights: Array, rank: int | None = None) -> tuple[Array, Array]:
    """Singular values and right singular vectors of diag(sqrt q) A.

    A table of no fewer rows than columns goes through its Gram matrix, A^T diag(q) A: quick, and no copy. A
    singular value below about 1e-8 of the first is lost in it, and its vector is then any that completes the
    basis; that moves the approximation by about 1e-8 of the norm, which float32 does not show. At k = d
    nothing is lost at all, for V V^T = 1 however V is turned.

    All that is in float64; of a float32 table it is in float32 where its first k vectors suffer no more than
    a millionth of the error that they leave (`_harmless`).

    Parameters
    ----------
    X : (n, d), or `Rows`
    weights : (n,)
    rank : int, optional
        The k of the vectors that are needed; all by default.

    Returns
    -------
    values : (min(n, d),), falling
    vectors : (min(n, d), d), the entry of largest magnitude of each positive
    """
    from scipy import linalg

    n, d = X.shape
    scale = float(weights.max())
    if n < d:
        with one_blas_thread:
            _, values, vectors = linalg.svd(np.sqrt(weights / scale)[:, None] * X[:], full_matrices=False)
        return values * np.sqrt(scale), _with_signs(vectors)
    shares = weights / scale
    if X.dtype == np.float32 and rank is not None:
        gram = _gram(X, shares.astype(np.float32), told("Gram matrix", blocks(n, d, GRAM_ROWS)))
        squares, vectors = _eigen(gram.astype(np.float32))
    if X.dtype != np.float32 or rank is None or not _harmless(squares, rank):
        squares, vectors = _eigen(_gram(X, shares, told("Gram matrix, exactly", blocks(n, d))))
    return np.sqrt(squares * scale), _with_signs(vectors)


def _gram(X: Array | Rows, weights: Array, slices: Iterable[slice]) -> Array:
    """A^T diag(q) A, computed in the dtype of the weights, summed in float64."""
    gram, cross = np.zeros((X.shape[1], X.shape[1])), backend.get().cross
    for rows in slices:
        block = X[rows].astype(weights.dtype, copy=False)
        gram += cross(block, block, weights[rows])
    return gram


def _eigen(gram: Array) -> tuple[Array, Array]:
    """Eigenvalues, falling and at least 0, and eigenvectors, as rows."""
    from scipy import linalg

    with one_blas_thread:
        values, vectors = linalg.eigh(gram, driver="evd")
    return np.maximum(values[::-1], 0).astype(np.float64), vectors.T[::-1]


def _harmless(squares: Array, rank: int) -> bool:
    """Whether rounding has raised the error of the first directions by less than a millionth.

    Where a Gram matrix is off by e between eigenvectors i and j, they turn by e / (l_i - l_j), which moves
    e^2 / (l_i - l_j) from one to the other, and never more than e.
    """
    kept, left = squares[:rank, None], squares[rank:]
    e = np.finfo(np.float32).eps / 2 * squares[0]
    with np.errstate(divide="ignore", invalid="ignore"):
        moved = np.fmin(e, e * e / (kept - left))
    return left.sum() > 0 and moved.sum() <= 1e-6 * left.sum()


def randomized_right_vectors(
    X: Array, weights: Array, rank: int, power_iterations: int, rng: np.random.RandomState
) -> tuple[Array, Array]:
    """First singular values and right singular vectors of B = diag(sqrt q) A, about (Halko et al. 2011).

    The range of (B^T B)^(p + 1) W, W Gaussian with a few columns more than the rank, holds them but for an
    error that falls with p; these are the best in that range. B is never made as a whole.

    Parameters
    ----------
    X : (n, d)
    weights : (n,)
    rank : int
    power_iterations : int
        p.
    rng : RandomState

    Returns
    -------
    values : (rank,), falling
    vectors : (rank, d), the entry of largest magnitude of each positive
    """
    from scipy import linalg

    d = X.shape[1]
    scale = float(weights.max())
    width = min(rank + OVERSAMPLING, *X.shape)

    def gram_times(Z: Array) -> Array:
        return sum((rows.T @ (rows @ Z) for rows in _weighted(X, weights / scale)), np.zeros((d, width)))

    with one_blas_thread:
        basis = linalg.qr(rng.standard_normal((d, width)), mode="economic")[0]
        for _ in range(power_iterations + 1):
            basis = linalg.qr(gram_times(basis), mode="economic")[0]
        values, turn = linalg.eigh(basis.T @ gram_times(basis))
    vectors = (basis @ turn).T[::-1][:rank]
    return np.sqrt(np.maximum(values[::-1][:rank], 0) * scale), _with_signs(vectors)


def _weighted(X: Array, weights: Array) -> Iterator[Array]:
    """Blocks of rows of diag(sqrt q) A, in float64."""
    for rows in told("products", blocks(*X.shape)):
        yield np.sqrt(weights[rows])[:, None] * X[rows]


def _with_signs(vectors: Array) -> Array:
    """Rows, each with the sign that makes its entry of largest magnitude positive."""
    largest = np.abs(vectors).argmax(axis=1)
    return vectors * np.sign(vectors[np.arange(len(vectors)), largest])[:, None]
