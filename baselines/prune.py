"""Magnitude pruning: the largest entries stay, the others become zero.

S. Han, J. Pool, J. Tran, W. J. Dally, *Learning both Weights and Connections for Efficient Neural Networks*,
NeurIPS 2015; with shared values and Huffman coding: S. Han, H. Mao, W. J. Dally, *Deep Compression*, ICLR
2016.
"""

from collections.abc import Iterable
from numbers import Real
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from sklearn.utils.validation import check_is_fitted

from baselines.base import Compressor
from baselines.levels import in_order, lloyd, nearest_of
from baselines.scalar import as_float32
from dpq_ref import checks
from dpq_ref.compressed import SparseTable
from dpq_ref.compressed.sparse import sparse_bits
from dpq_ref.kernels.reference import Array

MAX_ITER = 300  # of Lloyd's algorithm
TRIALS = 16  # of a density whose Huffman code fits the budget


class MagnitudePruning(Compressor):
    """Keep the share rho of all entries that have the largest magnitude.

    With frequencies q those of the largest q x^2 stay: no other choice of as many has a smaller weighted
    error, which is the sum of what is dropped. Where the entries are is stored and counted, as a bitmap or as
    columns and counts of rows, so at rho = 0.1 and d = 300 a table is 7.7 times smaller, not 10 times.

    Parameters
    ----------
    density : float, optional
        rho, above 0, at most 1.
    bits, ratio : int, float, optional
        A budget in place of `density`: the most entries that it allows.
    n_codes : int, optional
        K: values become codes into K values by k-means, started evenly from the least to the largest.
    huffman : bool
        Code these codes by how often each comes.

    Attributes
    ----------
    density_ : float
        Share of the entries that stay.
    threshold_ : float
        Magnitude of the smallest of them, if its word has the mean frequency.
    codebook_ : (K,) float32, or None
        Sorted.

    Examples
    --------
    >>> import numpy as np
    >>> from baselines import MagnitudePruning
    >>> model = MagnitudePruning(0.5).fit([[3.0, -0.1, 1.0], [0.2, -2.0, 0.0]])
    >>> model.compress().reconstruct()
    array([[ 3.,  0.,  1.],
           [ 0., -2.,  0.]], dtype=float32)
    >>> model.compress().bits()
    {'values': 96, 'bitmap': 6}
    """

    size_parameters = ("density",)

    def __init__(
        self,
        density: float | None = None,
        *,
        bits: int | None = None,
        ratio: float | None = None,
        n_codes: int | None = None,
        huffman: bool = False,
    ):
        self.density = density
        self.bits = bits
        self.ratio = ratio
        self.n_codes = n_codes
        self.huffman = huffman

    def fit(self, X: Any, y: Any = None, sample_weight: Any = None) -> Self:
        """Choose what stays.

        Parameters
        ----------
        X : (n, d) array_like
        y : ignored
        sample_weight : (n,) array_like, optional
            Frequencies of the words. Only their proportions matter.

        Raises
        ------
        ValueError
            If the density is not from above 0 to 1, the budget cannot be met, or an entry is NaN or beyond
            float32.
        """
        X = self._table(X)
        weights = self._weights(sample_weight, len(X))
        if self.n_codes is not None:
            checks.number_of_codes(self.n_codes)
        elif self.huffman:
            raise ValueError("huffman=True codes the values of a codebook; it takes n_codes")
        density = self._size(*X.shape)["density"]
        if not isinstance(density, Real) or not 0 < float(density) <= 1:
            raise ValueError(f"density={density}; it takes a number above 0 and at most 1")
        values = as_float32(X)
        magnitudes = np.abs(X)
        if weights.min() < weights.max():
            magnitudes = magnitudes * np.sqrt(weights / weights.mean())[:, None]
        pruned = self._prune(values, magnitudes, weights, _count(float(density), X.size))
        if self.huffman and self.density is None:
            pruned = self._fill(pruned, self._budget(*X.shape), values, magnitudes, weights)
        table, self.threshold_ = pruned
        self.density_ = table.n_entries / X.size
        self._pruned_, self.codebook_ = table, table.arrays().get("codebook")
        return self

    def transform(self, X: Any) -> Array:
        """Rows with what is below the threshold set to zero, the rest as it is stored, (n, d) -> (n, d)."""
        check_is_fitted(self)
        X = self._rows(X)
        values = as_float32(X)
        if self.codebook_ is not None:
            values = self.codebook_[nearest_of(values, self.codebook_)]
        return np.where(np.abs(X) >= self.threshold_, values, np.float32(0))

    def inverse_transform(self, Z: Any) -> Array:
        """Rows as they are, (n, d) -> (n, d) float32."""
        check_is_fitted(self)
        Z = checks.as_table(Z, "Z")
        self._check_width(Z, self.n_features_in_)
        return as_float32(Z)

    def compress(self) -> SparseTable:
        """Entries of the table, and where they are."""
        check_is_fitted(self)
        return self._pruned_

    def _prune(
        self, values: NDArray[np.float32], magnitudes: Array, weights: Array, n_kept: int
    ) -> tuple[SparseTable, float]:
        """Table of the largest entries, and the magnitude of the smallest of them."""
        kept, threshold = largest(magnitudes, n_kept)
        entries = values[kept]
        if self.n_codes is None:
            return SparseTable.from_entries(kept, entries), threshold
        start = np.linspace(entries.min(), entries.max(), self.n_codes, dtype=np.float64)
        q = np.repeat(weights / weights.max(), kept.sum(axis=1))
        codebook = lloyd(*in_order(entries, q), start, MAX_ITER)[0].astype(np.float32)
        codes = nearest_of(entries, codebook)
        return SparseTable.from_entries(kept, codes, codebook, huffman=self.huffman), threshold

    def _fill(
        self,
        least: tuple[SparseTable, float],
        budget: int,
        values: NDArray[np.float32],
        magnitudes: Array,
        weights: Array,
    ) -> tuple[SparseTable, float]:
        """As many entries as fit a budget with their Huffman code, from as many as would fit without."""
        best, stop = least, values.size + 1
        for _ in range(TRIALS):
            n_kept, bits = best[0].n_entries, best[0].bits()
            each = (bits["values"] + bits.get("columns", 0)) / n_kept
            more = min(n_kept + int((budget - sum(bits.values())) / each), values.size)
            if more >= stop:
                more = (n_kept + stop) // 2
            if more == n_kept:
                break
            tried = self._prune(values, magnitudes, weights, more)
            if sum(tried[0].bits().values()) <= budget:
                best = tried
            else:
                stop = more
        return best

    def _sizes(self, n: int, d: int, budget: int) -> Iterable[dict[str, float]]:
        low, high = 1, n * d + 1
        while high - low > 1:
            middle = (low + high) // 2
            fits = self._bits(n, d, density=middle / (n * d)) <= budget
            low, high = (middle, high) if fits else (low, middle)
        yield {"density": low / (n * d)}

    def _bits(self, n: int, d: int, **size: float) -> int:
        return sparse_bits(n, d, _count(size["density"], n * d), self.n_codes, self.huffman)


def largest(magnitudes: Array, n_kept: int) -> tuple[NDArray[np.bool_], float]:
    """Where the largest numbers are; of those that tie at the border, the first in order of rows.

    Returns
    -------
    kept : bool of the same shape, n_kept of them True
    threshold : the smallest of them
    """
    threshold = np.partition(magnitudes, magnitudes.size - n_kept, axis=None)[-n_kept]
    kept = magnitudes > threshold
    ties = np.flatnonzero(magnitudes == threshold)
    kept.ravel()[ties[: n_kept - np.count_nonzero(kept)]] = True
    return kept, float(threshold)


def _count(density: float, size: int) -> int:
    return max(1, int(density * size + 0.5))
