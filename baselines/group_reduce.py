"""GroupReduce: low rank by blocks of words of like frequency.

P. Chen, S. Si, Y. Li, C. Chelba, C.-J. Hsieh, *GroupReduce: Block-Wise Low-Rank Approximation for Neural
Language Model Shrinking*, NeurIPS 2018. There is no code of the authors. What the paper leaves open is chosen
here, and said below: how many words a block has, how ranks follow the budget, how refinement keeps to it, the
quantizer.

A word is nearly always reconstructed best in the block of the highest rank. So refinement that moves words
freely fills that block, and multiplies the size of the result; then its error says nothing. Here each state
that refinement goes through fits the budget.
"""

from collections.abc import Iterable
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from sklearn.utils.validation import check_is_fitted

from baselines.base import Compressor
from baselines.blocks import (
    assign,
    blocks_by_frequency,
    fit_blocks,
    move,
    numbers,
    ranks_within_budget,
    residuals,
)
from baselines.levels import nearest_level, optimal_clips
from baselines.rows import Rows
from baselines.rows import blocks as slices
from baselines.scalar import as_float32
from dpq_ref import checks
from dpq_ref.backend import one_blas_thread
from dpq_ref.compressed import BlockTable
from dpq_ref.kernels.reference import Array, Integers
from dpq_ref.progress import told

RANKS = ("frequency", "uniform")
REFINEMENTS = ("none", "moves", "lagrangian")


class GroupReduce(Compressor):
    """Low rank by blocks of words (P. Chen et al. 2018), within a budget.

    Words go by falling frequency, equal ones in the order of the table, into c blocks of equally many. Each
    block p has the factors of its own weighted low rank, U_p = A_p V_p; from where they would take as much
    as its rows, it has these instead, and is exact ("dense"). It stores
    b sum_p r_p (n_p + d) + n ceil(log2 c) bits, and 64 c of scales if b < 32.

    Parameters
    ----------
    bits, ratio : int, float
        The budget, one of both.
    n_blocks : int
        c.
    ranks : {"frequency", "uniform"}
        r_p = max(1, floor(t f_p)), f_p the mean frequency in block p, or as equal as can be; t is the largest
        that the budget allows. What is left over, blocks that come next and still fit take.
    weighted_factors : bool
        Frequencies count in the factors, the refinement and the clips; otherwise they only order the words
        and set the ranks.
    refinement : {"none", "moves", "lagrangian"}
        "moves" is that of the paper: words go to the block that reconstructs them best, those with the
        smallest error there first, some in each round; but only where the bits fit the budget, and the block
        that they leave keeps as many words as its rank. With ranks by frequency hardly a word can move.
        "lagrangian" gives each word the block of the smallest q e + lambda r, e its error there, lambda the
        smallest at which all fits. After each round the factors are fitted again, at the same ranks.
    max_iter : int
        Rounds of refinement at most; they stop early once the error falls no more.
    move_fraction : float
        Part of the words with a better block that "moves" may move in a round.
    factor_bits : int
        b, 32, or from 1 to 16: each factor on uniform levels, with the clip of the smallest weighted error.
        The ranks follow the budget at b bits.

    Attributes
    ----------
    blocks_ : (n,) int64
        Block of each word.
    ranks_ : (c,) int64
        d for a dense block.
    factors_ : list of c (left, right)
        U_p (n_p, r_p), rows in the order of the table, and V_p^T (r_p, d), before they are quantized. For a
        dense block its rows, and None.
    objective_ : (1 + rounds,) float64
        Weighted squared error, of exact factors, before refinement and after each round; it never rises.
    bits_ : (1 + rounds,) int64
        Bits of the artefact then; never above the budget.
    n_iter_ : int
        Entries of both.
    error_ : float
        Weighted squared error of the factors as they are stored.

    Notes
    -----
    Words without weight do not count in the factors of their block; where all words of a block have none,
    they count equally. To take words that were never seen as seen once, give ``np.maximum(counts, 1)``.

    For rows that are not in the table there is no frequency to go by: `transform` takes the block that fits
    best. So a row of the table may get another block from it than it has there.

    Examples
    --------
    >>> import numpy as np
    >>> from baselines import GroupReduce
    >>> table = np.random.default_rng(0).standard_normal((1000, 30)).astype(np.float32)
    >>> counts = 1e6 / np.arange(1, 1001)
    >>> model = GroupReduce(ratio=4, n_blocks=3).fit(table, sample_weight=counts)
    >>> model.ranks_
    array([18,  1,  1])
    >>> model.compress().bits()
    {'factors': 237792, 'blocks': 2000}
    """

    size_parameters = ()

    def __init__(
        self,
        *,
        bits: int | None = None,
        ratio: float | None = None,
        n_blocks: int = 5,
        ranks: str = "frequency",
        weighted_factors: bool = True,
        refinement: str = "lagrangian",
        max_iter: int = 20,
        move_fraction: float = 0.1,
        factor_bits: int = 32,
    ):
        self.bits = bits
        self.ratio = ratio
        self.n_blocks = n_blocks
        self.ranks = ranks
        self.weighted_factors = weighted_factors
        self.refinement = refinement
        self.max_iter = max_iter
        self.move_fraction = move_fraction
        self.factor_bits = factor_bits

    def fit(self, X: Any, y: Any = None, sample_weight: Any = None) -> Self:
        """Choose blocks, ranks and factors.

        Parameters
        ----------
        X : (n, d) array_like
        y : ignored
        sample_weight : (n,) array_like, optional
            Frequencies q of the words. Only their proportions matter. Without them, the table is taken to be
            in the order of falling frequency, and all words count equally.

        Raises
        ------
        ValueError
            If the budget is missing or below rank 1 in all blocks, there are more blocks than words, another
            parameter is out of range, or an entry is NaN or infinite.
        """
        X = self._table(X)
        frequencies = self._weights(sample_weight, len(X))
        n, d = X.shape
        self._check_parameters(n)
        self._size(n, d)
        unit = frequencies.max() if self.weighted_factors else 1.0
        frequencies = frequencies / frequencies.max()
        weights = frequencies if self.weighted_factors else np.ones(n)

        blocks = blocks_by_frequency(frequencies, self.n_blocks)
        counts = np.bincount(blocks)
        shares = np.ones(self.n_blocks)
        if self.ranks == "frequency":
            shares = np.bincount(blocks, frequencies) / counts
        budget = (self._budget(n, d) - self._overhead(n)) // self.factor_bits  # in numbers
        ranks = ranks_within_budget(counts, d, shares, budget)

        bases, ranks = fit_blocks(X, weights, blocks, ranks)
        errors = residuals(X, bases)
        objective = [float(weights @ errors[np.arange(n), blocks])]
        bits = [self._bits_of(np.bincount(blocks), ranks, d)]
        for _ in range(self.max_iter if self.refinement != "none" else 0):
            if self.refinement == "moves":
                moved = move(errors, blocks, ranks, d, budget, self.move_fraction)
            else:
                moved = assign(errors * weights[:, None], blocks, ranks, d, budget)
            if np.array_equal(moved, blocks):
                break
            found = fit_blocks(X, weights, moved, ranks)
            errors = residuals(X, found[0])
            error = float(weights @ errors[np.arange(n), moved])
            if not error < objective[-1]:
                break
            blocks, (bases, ranks) = moved, found
            objective.append(error)
            bits.append(self._bits_of(np.bincount(blocks), ranks, d))

        self.blocks_, self.ranks_ = blocks, ranks
        self.objective_, self.bits_ = np.array(objective) * unit, np.array(bits)
        self.n_iter_ = len(bits)
        self.factors_: list[tuple[Array, Array | None]] = []
        self._scales_ = np.ones((self.n_blocks, 2), np.float32)
        for p, basis in enumerate(bases):
            words = np.flatnonzero(blocks == p)
            right = None if basis is None else basis.astype(X.dtype)
            left = X[words] if right is None else _coefficients(Rows(X, words), right)
            self.factors_.append((left, right))
            if self.factor_bits < 32:
                self._scales_[p] = best_scales(left, right, weights[words], self.factor_bits)
        self.error_ = unit * self._stored_error(X, weights)
        return self

    def transform(self, X: Any) -> Array:
        """Block of the smallest error of each row, and the coefficients there, (n, d) -> (n, 1 + max r_p).

        Blocks of lower rank are filled up with zeros. In a dense block coefficients are the row itself. The
        factors are those before quantization.
        """
        check_is_fitted(self)
        X = self._rows(X)
        bases = [right for _, right in self.factors_]
        best = residuals(X, bases).argmin(axis=1)
        Z = np.zeros((len(X), 1 + int(self.ranks_.max())), X.dtype)
        Z[:, 0] = best
        for p, basis in enumerate(bases):
            rows = X[best == p]
            Z[best == p, 1 : 1 + self.ranks_[p]] = rows if basis is None else rows @ basis.T
        return Z

    def inverse_transform(self, Z: Any) -> Array:
        """Rows of blocks and coefficients, (n, 1 + max r_p) -> (n, d)."""
        check_is_fitted(self)
        Z = checks.as_table(Z, "Z")
        self._check_width(Z, 1 + int(self.ranks_.max()))
        if (Z[:, 0] % 1).any():
            raise ValueError("Z must have the numbers of blocks in its first column; some are not whole")
        blocks = checks.as_ids(Z[:, 0].astype(np.int64), self.n_blocks, "blocks in Z")
        rows = np.empty((len(Z), self.n_features_in_), Z.dtype)
        for p, (_, basis) in enumerate(self.factors_):
            coefficients = Z[blocks == p, 1 : 1 + self.ranks_[p]]
            rows[blocks == p] = coefficients if basis is None else coefficients @ basis
        return rows

    def compress(self) -> BlockTable:
        """Blocks of the words, and their factors."""
        check_is_fitted(self)
        b = None if self.factor_bits == 32 else self.factor_bits

        def stored(factor: Array | None, scale: np.float32) -> Any:
            if factor is None or b is None:
                return factor if factor is None else as_float32(factor)
            return nearest_level(factor, scale, b)

        pairs = list(zip(self.factors_, self._scales_, strict=True))
        lefts = [stored(left, scales[0]) for (left, _), scales in pairs]
        rights = [stored(right, scales[1]) for (_, right), scales in pairs]
        return BlockTable.from_factors(
            self.blocks_, lefts, rights, None if b is None else self._scales_, n_bits=b
        )

    def _check_parameters(self, n: int) -> None:
        if self.bits is None and self.ratio is None:
            raise ValueError("no budget is given; it takes one of bits and ratio")
        for name, choices in (("ranks", RANKS), ("refinement", REFINEMENTS)):
            if getattr(self, name) not in choices:
                raise ValueError(f"{name}={getattr(self, name)!r}; it takes {', '.join(map(repr, choices))}")
        if checks.positive("n_blocks", self.n_blocks) > min(n, 1 << 16):
            raise ValueError(
                f"n_blocks={self.n_blocks}; a table of n_samples={n} takes at most {min(n, 1 << 16)}"
            )
        checks.positive("max_iter", self.max_iter, least=0)
        if not 0 < self.move_fraction <= 1:
            raise ValueError(f"move_fraction={self.move_fraction}; it takes a number above 0, at most 1")
        if checks.positive("factor_bits", self.factor_bits) > 16 and self.factor_bits != 32:
            raise ValueError(f"factor_bits={self.factor_bits}; it takes 32, or from 1 to 16")

    def _overhead(self, n: int) -> int:
        """Bits of what is not a factor."""
        scales = 64 * self.n_blocks if self.factor_bits < 32 else 0
        return scales + n * (self.n_blocks - 1).bit_length()

    def _bits_of(self, counts: Integers, ranks: Integers, d: int) -> int:
        return self.factor_bits * int(numbers(counts, ranks, d).sum()) + self._overhead(int(counts.sum()))

    def _sizes(self, n: int, d: int, budget: int) -> Iterable[dict[str, Any]]:
        return [{}]

    def _bits(self, n: int, d: int, **size: Any) -> int:
        """Bits of rank 1 in all blocks, the least that there is."""
        counts = np.bincount(blocks_by_frequency(np.ones(n), self.n_blocks))
        return self._bits_of(counts, np.where(counts + d < counts * d, 1, d), d)

    def _stored_error(self, X: Array, weights: Array) -> float:
        table, error = self.compress(), 0.0
        for p in range(self.n_blocks):
            words, (left, right) = np.flatnonzero(self.blocks_ == p), table.block(p)
            for part in told("error as stored", slices(len(words), X.shape[1])):
                rows = left[part] if right is None else left[part] @ right
                difference = X[words[part]].astype(np.float64) - rows
                error += float(weights[words[part]] @ np.einsum("ij,ij->i", difference, difference))
        return error


def _coefficients(rows: Rows, right: Array) -> Array:
    """Coefficients of rows, A V, (n_p, d), (r, d) -> (n_p, r)."""
    left = np.empty((len(rows), len(right)), rows.dtype)
    with one_blas_thread:
        for part in told("coefficients", slices(*rows.shape)):
            left[part] = rows[part] @ right.T
    return left


def best_scales(
    left: Array, right: Array | None, weights: NDArray[np.float64], n_bits: int
) -> tuple[float, float]:
    """Clips of both factors that make the weighted error of their product smallest, the other one exact.

    The right vectors are orthonormal, so an error of U counts as it is, by the weight of its word, and one of
    a row of V^T by the weighted squares of its coefficients.
    """
    weights = weights if weights.any() else np.ones(len(weights))
    clip = float(optimal_clips(left, weights, n_bits).item())
    if right is None:
        return clip, 1.0
    energies = np.einsum("i,ij,ij->j", weights, left, left, dtype=np.float64)
    return clip, float(optimal_clips(right, energies if energies.any() else energies + 1, n_bits).item())
