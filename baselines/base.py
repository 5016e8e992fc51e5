"""The one interface of all baselines: a scikit-learn transformer that ends in a `Compressed` table.

A table is compressed in three words::

    quantizer = ProductQuantizer(n_groups=50, n_codes=32).fit(table, sample_weight=counts)
    quantizer.compress().save("table.safetensors")
    quantizer.transform(new_rows)

What decides the size of the result (`size_parameters`) is given, or follows from a budget: `bits=`, or
`ratio=`, how many times smaller than 32 bits an entry. Then it comes as close to the budget as it can
without exceeding it.

Everything is learned in the dtype of the table. What `compress` stores is float32 whatever that dtype was,
as in all published compression ratios.

Tables, codes and what is learned are arrays of the host; what comes from a device is copied from there. With
`backend="cupy"`, where a method takes it, the kernels run on the device.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable
from fractions import Fraction
from numbers import Real
from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import NDArray
from sklearn.base import BaseEstimator, TransformerMixin
from sklearn.utils.validation import validate_data

from dpq_ref import checks
from dpq_ref.backend import on_device, to_numpy
from dpq_ref.compressed import Compressed
from dpq_ref.kernels.reference import Array


class Compressor(TransformerMixin, BaseEstimator, ABC):
    """A method that compresses an embedding table.

    A subclass validates in `fit` through `_table`, `_weights`, `_size`, and in `transform` through `_rows`.

    Attributes
    ----------
    size_parameters : tuple of str
        Parameters that decide the size; None stands for "as the budget says". Where there are none, a budget
        is only held against the size.
    """

    size_parameters: ClassVar[tuple[str, ...]] = ()
    bits: int | None
    ratio: float | None

    @abstractmethod
    def _sizes(self, n: int, d: int, budget: int) -> Iterable[dict[str, Any]]:
        """Values of the size parameters to choose from, those that are given held fixed."""

    @abstractmethod
    def _bits(self, *shape: Any, **size: Any) -> int:
        """Bits of the result for a table of shape n, d, or the most that it can have."""

    @abstractmethod
    def fit(self, X: Any, y: Any = None, sample_weight: Any = None) -> Self:
        """Learn from a table.

        Parameters
        ----------
        X : (n, d) array_like
            The embedding table, a row a word. float32 and float64 stay as they are; the rest becomes float32.
        y : ignored
        sample_weight : (n,) array_like, optional
            Frequencies of the words, at least 0 and not all 0: the squared error of a row counts that often.
        """

    @abstractmethod
    def transform(self, X: Any) -> np.ndarray:
        """Codes or coefficients of rows, (n, d) -> (n, ...)."""

    @abstractmethod
    def inverse_transform(self, Z: Any) -> Array:
        """Rows of codes or coefficients, (n, ...) -> (n, d)."""

    @abstractmethod
    def compress(self) -> Compressed:
        """Compressed form of the table that this was fitted on."""

    def __sklearn_tags__(self) -> Any:
        """Add for scikit-learn that `transform` does not keep the dtype: codes are integers."""
        tags = super().__sklearn_tags__()
        tags.transformer_tags.preserves_dtype = []
        return tags

    def _table(self, X: Any) -> Array:
        """Check the table in `fit`: (n, d), finite."""
        return self._check(X, reset=True)

    def _rows(self, X: Any) -> Array:
        """Check rows in `transform`: (n, d), finite, with the d of `fit`."""
        return self._check(X, reset=False)

    def _check(self, X: Any, reset: bool) -> Array:
        """Scikit-learn sees to shape, dtype and feature names; `as_table` counts what is not finite."""
        dtypes = [np.float32, np.float64]
        X = to_numpy(X) if on_device(X) else X  # a data frame has names, which are checked
        X = checks.as_table(validate_data(self, X, reset=reset, dtype=dtypes, ensure_all_finite=False))
        largest = max(X.max(), -X.min()) if X.dtype == np.float64 else 0
        if largest > np.finfo(np.float32).max:
            raise ValueError(
                f"X has an entry of magnitude {largest:g}, beyond the range of float32, which is stored"
            )
        return X

    def _size(self, n: int, d: int) -> dict[str, Any]:
        """Size parameters for a table of n x d: as given, or the most bits that the budget allows.

        Raises
        ------
        ValueError
            If neither or both are given, or the budget is below every choice: the message has the nearest.
        """
        given = {name: getattr(self, name) for name in self.size_parameters}
        free = [name for name, value in given.items() if value is None]
        all_given = given | {"bits": self.bits, "ratio": self.ratio}
        stated = ", ".join(f"{k}={v}" for k, v in all_given.items() if v is not None) or "nothing is given"
        budgets = (self.bits is not None) + (self.ratio is not None)
        if budgets > 1 or (given and budgets != bool(free)):
            takes = f"{' and '.join(given)}, or one of bits and ratio in place of any of them"
            raise ValueError(f"{stated}; it takes {takes if given else 'one of bits and ratio, or none'}")
        if not budgets:
            return given
        budget = self._budget(n, d)
        sizes = [(self._bits(n, d, **size), size) for size in self._sizes(n, d, budget)]
        within = [entry for entry in sizes if entry[0] <= budget]
        if not within:
            least, size = min(sizes, key=lambda entry: entry[0])
            raise ValueError(
                f"{stated} cannot be met for a table of {n} x {d}: the nearest are {least} bits, "
                f"ratio {32 * n * d / least:.2f}"
                + (f" ({', '.join(f'{k}={v}' for k, v in size.items())})" if size else "")
            )
        return max(within, key=lambda entry: entry[0])[1]

    def _budget(self, n: int, d: int) -> int:
        """Bits that the result may have."""
        if self.bits is not None:
            return checks.positive("bits", self.bits)
        if not isinstance(self.ratio, Real) or not 0 < self.ratio < np.inf:
            raise ValueError(f"ratio={self.ratio}; it takes a number above 0")
        return int(Fraction(32 * n * d) / Fraction(float(self.ratio)))

    @staticmethod
    def _check_width(Z: np.ndarray, width: int) -> None:
        """Check codes or coefficients in `inverse_transform`: (n, width)."""
        if Z.ndim != 2 or Z.shape[1] != width:
            raise ValueError(f"Z has shape {Z.shape}; it takes (rows, {width})")

    @staticmethod
    def _weights(sample_weight: Any, n: int) -> NDArray[np.float64]:
        """Check weights, (n,) float64; none given: all 1."""
        return checks.as_weights(sample_weight, n, "sample_weight")
