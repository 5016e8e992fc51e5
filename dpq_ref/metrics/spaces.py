"""What compression does to the space that a table spans, to its inner products and to its spectrum.

What depends on the Gram matrices X X^T alone (n x n, never formed) is computed in a basis that both tables
share: [X, Y] = Q [A, B], with Q orthonormal, by Householder QR in blocks. A and B have at most d + k rows and
X X^T - Y Y^T = Q (A A^T - B B^T) Q^T. The sums of squares X^T X would lose what is below 1e-8 of the whole.

A. May, J. Zhang, T. Dao, C. Re, *On the Downstream Performance of Compressed Word Embeddings*, NeurIPS 2019
(eigenspace overlap); Z. Yin, Y. Shen, *On the Dimensionality of Word Embedding*, NeurIPS 2018 (PIP loss);
J. Zhang, A. May, T. Dao, C. Re, *Low-Precision Random Fourier Features*, AISTATS 2019 (spectral bounds);
J. Mu, P. Viswanath, *All-but-the-Top*, ICLR 2018 (isotropy).
"""

from typing import Any, NamedTuple

import numpy as np

from dpq_ref.metrics.geometry import Float64, blocks, check_table, check_tables, one_thread


class SpectralBounds(NamedTuple):
    """Delta_1 and Delta_2 of a spectral approximation, both at least 0; Delta_1 is below 1."""

    delta_1: float
    delta_2: float


class SharedBasis(NamedTuple):
    """Two tables in one orthonormal basis, [X, Y] = Q [a, b]; what is measured in it needs Q no more.

    Attributes
    ----------
    a : (m, d)
    b : (m, k)
        m = min(n, d + k).
    eps : (float, float)
        Machine epsilon of each table's dtype: its numerical rank follows from it.
    """

    a: Float64
    b: Float64
    eps: tuple[float, float]

    @classmethod
    @one_thread
    def of(cls, table: Any, other: Any) -> "SharedBasis":
        """QR of [X, Y] without Q: a few thousand rows at a time go under the R of those before.

        The error of a column is about 1e-16 of that column, however small it is beside the others.
        """
        table, other = check_tables(table, other, same_width=False)
        d, width = table.shape[1], table.shape[1] + other.shape[1]
        r: Any = np.zeros((0, width))
        for rows in blocks(len(table), width, least=width):
            r = np.linalg.qr(np.concatenate([r, np.c_[table[rows], other[rows]]]), mode="r")
        return cls(r[:, :d], r[:, d:], (float(np.finfo(table.dtype).eps), float(np.finfo(other.dtype).eps)))

    @one_thread
    def pip_loss(self) -> float:
        """See `pip_loss`."""
        return float(np.linalg.norm(self.a @ self.a.T - self.b @ self.b.T))

    @one_thread
    def relative_pip_loss(self) -> float:
        """See `relative_pip_loss`."""
        norm = np.linalg.norm(self.a @ self.a.T)
        if norm == 0:
            raise ValueError("table is zero; a relative PIP loss needs a norm")
        return self.pip_loss() / float(norm)

    @one_thread
    def eigenspace_overlap(self) -> float:
        """See `eigenspace_overlap`."""
        u, _, r = _svd(self.a, self.eps[0])
        v, _, s = _svd(self.b, self.eps[1])
        if max(r, s) == 0:
            return 1.0
        return min(1.0, float(np.square(u[:, :r].T @ v[:, :s]).sum()) / max(r, s))

    @one_thread
    def spectral_bounds(self) -> SpectralBounds:
        """See `spectral_bounds`."""
        u, values, rank = _svd(self.a, self.eps[0])
        if rank == 0:
            raise ValueError("table is zero; spectral bounds need an eigenvalue above 0")
        least = values[rank - 1]
        spectrum = np.zeros(len(u))
        spectrum[:rank] = values[:rank]
        # Eigenvalues of H + l relative to G + l, as squares of singular values: nothing is subtracted.
        root = np.hypot(spectrum, least)[:, None]
        whitened = np.c_[u.T @ self.b, least * np.eye(len(u))] / root
        ratios = np.square(np.linalg.svd(whitened, compute_uv=False))
        return SpectralBounds(max(0.0, 1 - float(ratios.min())), max(0.0, float(ratios.max()) - 1))


def _svd(matrix: Float64, eps: float) -> tuple[Float64, Float64, int]:
    """Left singular vectors (m, m), singular values and numerical rank.

    A float32 table that has rank r but for rounding has further singular values of 0.2 to 2.2 eps of the
    largest (measured for widths of 4 to 300): below 4 sqrt(d) eps they count as zero.
    """
    vectors, values, _ = np.linalg.svd(matrix, full_matrices=True)
    floor = 4 * np.sqrt(matrix.shape[1]) * eps * values[0]
    return vectors, values, int((values > floor).sum())


def pip_loss(table: Any, other: Any) -> float:
    """Difference of all inner products between rows (Yin, Shen 2018), |X X^T - Y Y^T|_F.

    A rotation of either table does not change it. It counts pairs of rows, so it grows with n; published
    figures are often of the first 10,000 words.

    Parameters
    ----------
    table : (n, d)
    other : (n, k)

    Examples
    --------
    >>> round(pip_loss([[1.0], [2.0]], [[2.0], [4.0]]), 12)  # (4 - 1) |X X^T|
    15.0
    """
    return SharedBasis.of(table, other).pip_loss()


def relative_pip_loss(table: Any, other: Any) -> float:
    """PIP loss over |X X^T|_F: comparable between tables (ValueError for a table of zeros)."""
    return SharedBasis.of(table, other).relative_pip_loss()


def eigenspace_overlap(table: Any, other: Any) -> float:
    """How far the columns of both tables span the same space (May et al. 2019), from 0 to 1.

    E = |U^T V|_F^2 / max(rank X, rank Y), with U and V the left singular vectors of singular values that are
    not zero. For tables of full rank the divisor is max(d, k), as in the paper; with ranks, E is 1 for
    Y = X M, M invertible, for tables of any rank. Of two tables of zeros E is 1, of one it is 0. Subtracting
    the mean row changes E: tables are taken as they are, with all words. Where n <= d, E says nothing.

    Singular values below 4 sqrt(d) eps of the largest count as zero, with the eps of the table's dtype: a
    product of two factors in float32 has the rank of the factors.

    Parameters
    ----------
    table : (n, d)
    other : (n, k)

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> X = rng.standard_normal((100, 4))
    >>> round(eigenspace_overlap(X, X @ rng.standard_normal((4, 4))), 12)
    1.0
    >>> round(eigenspace_overlap(X, X[:, :3]), 12)
    0.75
    """
    return SharedBasis.of(table, other).eigenspace_overlap()


def spectral_bounds(table: Any, other: Any) -> SpectralBounds:
    """Smallest Delta_1, Delta_2 >= 0 with (1 - Delta_1)(G + l) <= H + l <= (1 + Delta_2)(G + l).

    G = X X^T, H = Y Y^T, l the smallest eigenvalue of G that is not zero, times the identity; A <= B says
    that B - A is positive semidefinite (Zhang et al. 2019; of tables: May et al. 2019).

    Parameters
    ----------
    table : (n, d)
    other : (n, k)

    Raises
    ------
    ValueError
        If the table is all zero.

    Examples
    --------
    >>> bounds = spectral_bounds([[1.0], [0.0]], [[2.0], [0.0]])
    >>> bounds.delta_1, round(bounds.delta_2, 12)  # (4 + 1) / (1 + 1) - 1
    (0.0, 1.5)
    """
    return SharedBasis.of(table, other).spectral_bounds()


@one_thread
def isotropy(table: Any) -> float:
    """How alike all directions are to a table (Mu, Viswanath 2018): min Z(c) / max Z(c), from 0 to 1.

    Z(c) = sum_i exp(c x_i), with c over the eigenvectors of X^T X and their negatives: an eigenvector's sign
    is arbitrary, and Z is not even.

    Parameters
    ----------
    table : (n, d)

    Examples
    --------
    >>> round(isotropy([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0], [0.0, -1.0]]), 12)
    1.0
    """
    X = check_table(table, "table")
    d = X.shape[1]
    gram = np.zeros((d, d))
    for rows in blocks(*X.shape):
        block = X[rows].astype(np.float64)
        gram += block.T @ block
    directions = np.linalg.eigh(gram)[1]
    peak, total = np.full(2 * d, -np.inf), np.zeros(2 * d)  # Z = total * exp(peak)
    for rows in blocks(len(X), 2 * d):
        along = X[rows] @ directions
        exponents = np.c_[along, -along]
        higher = np.maximum(peak, exponents.max(axis=0))
        total = total * np.exp(peak - higher) + np.exp(exponents - higher).sum(axis=0)
        peak = higher
    logs = peak + np.log(total)
    return float(np.exp(logs.min() - logs.max()))
