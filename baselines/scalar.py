"""Scalar quantization: every entry on its own, on levels that all entries share.

A. May, J. Zhang, T. Dao, C. Re, *On the Downstream Performance of Compressed Word Embeddings*, NeurIPS 2019:
uniform levels from -r to r, with the clip r that makes the squared error smallest; levels by k-means; and, to
compare with, the two floating-point formats of 16 bits.
"""

from abc import abstractmethod
from collections.abc import Iterable
from functools import partial
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from sklearn.utils.validation import check_is_fitted

from baselines.base import Compressor
from baselines.levels import in_order, lloyd, nearest_level, nearest_of, optimal_clips
from baselines.rows import blocks
from dpq_ref import checks
from dpq_ref.backend import to_numpy
from dpq_ref.compressed import DenseTable, ScalarTable, to_bfloat16, uniform_levels
from dpq_ref.kernels.reference import Array, Integers
from dpq_ref.resume import Shared, in_blocks, kept

SCALES = ("table", "column", "row")
FORMATS = ("float16", "bfloat16")


class ScalarQuantizer(Compressor):
    """Codes of b bits an entry, and a scale of the table, of each column or of each row."""

    size_parameters = ("n_bits",)
    n_bits: int | None
    scale: str
    codes_: Integers
    _bits_: int  # b
    _scales_: Array | None  # (1 or n, 1 or d) float32
    _levels_: Array | None  # in units of the scale

    @abstractmethod
    def _encode(self, X: Array, scales: Any) -> Integers:
        """Codes of rows whose scales are known."""

    def transform(self, X: Any) -> np.ndarray:
        """Codes of rows.

        Returns
        -------
        (n, d) uint8, or uint16 for more than 8 bits
            With scale="row" it is (n, 1 + d) float32, the scale of the row in front.
        """
        check_is_fitted(self)
        X = self._rows(X)
        if self.scale != "row":
            return self._encode(X, self._scales_)
        scales = as_float32(optimal_clips(X, np.ones(len(X)), self._bits_, "row"))
        return np.hstack([scales, self._encode(X, scales).astype(np.float32)])

    def inverse_transform(self, Z: Any) -> Array:
        """Rows of what `transform` gives, (n, d) or (n, 1 + d) -> (n, d) float32."""
        check_is_fitted(self)
        scales = self._scales_
        if self.scale == "row":
            Z = checks.as_table(Z, "Z").astype(np.float32, copy=False)
            self._check_width(Z, 1 + self.n_features_in_)
            scales, Z = Z[:, :1], Z[:, 1:].astype(np.int64)
        codes = to_numpy(checks.as_ids(Z, 1 << self._bits_))
        self._check_width(codes, self.n_features_in_)
        return ScalarTable.from_codes(codes, self._bits_, scales, self._levels_).reconstruct()

    def compress(self) -> ScalarTable:
        """Codes of the table, scales and levels."""
        check_is_fitted(self)
        return ScalarTable.from_codes(self.codes_, self._bits_, self._scales_, self._levels_)

    def _settle(self, X: Array) -> None:
        """Check the parameters of the class, and fix b."""
        if self.scale not in SCALES:
            raise ValueError(f"scale={self.scale!r}; it takes one of {', '.join(map(repr, SCALES))}")
        self._bits_ = checks.positive("n_bits", self._size(*X.shape)["n_bits"])
        if self._bits_ > 16:
            raise ValueError(f"n_bits={self._bits_}; it takes at most 16")

    def _sizes(self, n: int, d: int, budget: int) -> Iterable[dict[str, int]]:
        return ({"n_bits": n_bits} for n_bits in range(1, 17))

    def _bits(self, n: int, d: int, **size: int) -> int:
        return n * d * size["n_bits"] + 32 * {"table": 1, "column": d, "row": n}[self.scale]


class UniformQuantizer(ScalarQuantizer):
    """Uniform quantization with the optimal clip (May et al. 2019).

    An entry goes to the nearest of the levels -r + 2 r j / (2^b - 1), j = 0 ... 2^b - 1; what is beyond r, to
    the last. It stores n d b bits, and 32 of each r.

    Parameters
    ----------
    n_bits : int, optional
        b, from 1 to 16.
    bits, ratio : int, float, optional
        A budget in place of `n_bits`: the largest b that it allows.
    scale : {"table", "column", "row"}
        What has a clip of its own.
    rounding : {"nearest", "stochastic"}
        Stochastic rounding takes the clip of the nearest level, and rounds up with the probability that keeps
        the mean of entries inside it.
    random_state : int, numpy.random.Generator or None
        Of stochastic rounding.

    Attributes
    ----------
    clip_ : float, or (1, d) or (n, 1) float32
        r, a float32.
    codes_ : (n, d) uint8 or uint16
        Levels of the table.

    Notes
    -----
    The released code stops its search at an absolute tolerance of 0.01, so its result depends on the scale of
    the table: at 1e-3 of the scale its error is 18 % larger. Here the tolerance is relative.

    Examples
    --------
    >>> import numpy as np
    >>> from baselines import UniformQuantizer
    >>> table = np.random.default_rng(0).uniform(-1, 1, (1000, 10)).astype(np.float32)
    >>> quantizer = UniformQuantizer(n_bits=2).fit(table)
    >>> round(quantizer.clip_, 2)
    0.75
    >>> quantizer.transform(np.full((1, 10), 0.3))
    array([[2, 2, 2, 2, 2, 2, 2, 2, 2, 2]], dtype=uint8)
    >>> quantizer.compress().bits()
    {'codes': 20000, 'scales': 32}
    """

    def __init__(
        self,
        n_bits: int | None = None,
        *,
        bits: int | None = None,
        ratio: float | None = None,
        scale: str = "table",
        rounding: str = "nearest",
        random_state: Any = None,
    ):
        self.n_bits = n_bits
        self.bits = bits
        self.ratio = ratio
        self.scale = scale
        self.rounding = rounding
        self.random_state = random_state

    def fit(self, X: Any, y: Any = None, sample_weight: Any = None) -> Self:
        """Search the clips.

        Parameters
        ----------
        X : (n, d) array_like
        y : ignored
        sample_weight : (n,) array_like, optional
            Frequencies of the words; they do not matter to clips of rows.

        Raises
        ------
        ValueError
            If b is not from 1 to 16, the budget cannot be met, or an entry is NaN or beyond float32.
        """
        X = self._table(X)
        weights = self._weights(sample_weight, len(X))
        self._settle(X)
        if self.rounding not in ("nearest", "stochastic"):
            raise ValueError(f"rounding={self.rounding!r}; it takes 'nearest' or 'stochastic'")
        self._levels_ = None
        learned = kept("clips", lambda: {"clips": optimal_clips(X, weights, self._bits_, self.scale)})
        self._scales_ = as_float32(learned["clips"])
        self.clip_ = self._scales_.item() if self.scale == "table" else self._scales_
        self.codes_ = self._encode(X, self._scales_)
        return self

    def _encode(self, X: Array, scales: Any) -> Integers:
        rng = np.random.default_rng(self.random_state) if self.rounding == "stochastic" else None
        if rng is not None:  # a draw follows those of the rows before
            return nearest_level(X, scales, self._bits_, rng)
        find = partial(_levels_of, Shared(X), scales, self._bits_)
        return in_blocks(
            "codes", find, blocks(*X.shape), X.shape[1], np.min_scalar_type((1 << self._bits_) - 1)
        )


def _levels_of(X: Shared, scales: Array, n_bits: int, rows: slice) -> Integers:
    """Levels of some rows, perhaps on another machine."""
    return nearest_level(X.array[rows], scales if len(scales) == 1 else scales[rows], n_bits)


class KMeansQuantizer(ScalarQuantizer):
    """Levels by k-means over all entries, started from those of `UniformQuantizer`, so never worse.

    It stores n d b bits, 32 of each of the 2^b levels, and 32 of each scale, where columns or rows have their
    own: their optimal clips, in units of which the levels are learned, each entry with the weight of its
    squared scale.

    Parameters
    ----------
    n_bits : int, optional
        b, from 1 to 16.
    bits, ratio : int, float, optional
        A budget in place of `n_bits`: the largest b that it allows.
    scale : {"table", "column", "row"}
        Whether columns or rows have scales; "table" needs none.
    max_iter : int
        Lloyd's iterations at most; they stop early once no code changes.

    Attributes
    ----------
    levels_ : (2**b,) float32
        Sorted.
    codes_ : (n, d) uint8 or uint16
        Levels of the table.
    objective_ : (n_iter_,) float64
        Weighted squared error of the whole table after each iteration.
    n_iter_ : int

    Examples
    --------
    >>> import numpy as np
    >>> from baselines import KMeansQuantizer
    >>> table = np.random.default_rng(0).exponential(size=(1000, 10)).astype(np.float32)
    >>> quantizer = KMeansQuantizer(n_bits=1).fit(table)
    >>> quantizer.levels_.round(1)
    array([0.6, 2.6], dtype=float32)
    >>> quantizer.compress().bits()
    {'codes': 10000, 'levels': 64}
    """

    def __init__(
        self,
        n_bits: int | None = None,
        *,
        bits: int | None = None,
        ratio: float | None = None,
        scale: str = "table",
        max_iter: int = 300,
    ):
        self.n_bits = n_bits
        self.bits = bits
        self.ratio = ratio
        self.scale = scale
        self.max_iter = max_iter

    def fit(self, X: Any, y: Any = None, sample_weight: Any = None) -> Self:
        """Learn the levels.

        Parameters
        ----------
        X : (n, d) array_like
        y : ignored
        sample_weight : (n,) array_like, optional
            Frequencies of the words.

        Raises
        ------
        ValueError
            If b is not from 1 to 16, the budget cannot be met, or an entry is NaN or beyond float32.
        """
        X = self._table(X)
        weights = self._weights(sample_weight, len(X))
        self._settle(X)
        max_iter = checks.positive("max_iter", self.max_iter)
        clips = as_float32(optimal_clips(X, weights, self._bits_, self.scale))
        start = uniform_levels(self._bits_)
        importance = (weights / weights.max())[:, None]
        if self.scale == "table":
            start, self._scales_ = start * clips.item(), None
        else:
            importance, self._scales_ = importance * clips.astype(np.float64) ** 2, clips
        unit = importance.max() or 1.0  # 0 where all entries are
        levels, objective = lloyd(
            *in_order(self._units(X, self._scales_), importance / unit), start, max_iter
        )
        self.objective_ = objective * (unit * weights.max())
        self.n_iter_ = len(objective)
        self._levels_ = self.levels_ = levels.astype(np.float32)
        self.codes_ = self._encode(X, self._scales_)
        return self

    def _encode(self, X: Array, scales: Any) -> Integers:
        return nearest_of(self._units(X, scales), self.levels_)

    def _units(self, X: Array, scales: Array | None) -> Array:
        """Entries in units of their scale; 0 where that is 0."""
        return X if scales is None else X / np.where(scales, scales, np.inf)

    def _bits(self, n: int, d: int, **size: int) -> int:
        scales = {"table": 0, "column": d, "row": n}[self.scale]
        return n * d * size["n_bits"] + 32 * (scales + (1 << size["n_bits"]))


class HalfPrecision(Compressor):
    """The same numbers in 16 bits each: no method at all, and often hard to tell from the table.

    float16 has 11 significant bits and ends at 65,504; bfloat16 has 8, and the range of float32.

    Parameters
    ----------
    format : {"float16", "bfloat16"}
    bits, ratio : int, float, optional
        A budget changes nothing: one below 16 bits an entry is refused.

    Attributes
    ----------
    values_ : (n, d) float16, or uint16: the upper half of a float32
        Halves of the table.

    Examples
    --------
    >>> import numpy as np
    >>> from baselines import HalfPrecision
    >>> HalfPrecision("bfloat16").fit(np.array([[1.0, 0.3]])).compress().lookup(0)
    array([1.        , 0.30078125], dtype=float32)
    """

    def __init__(self, format: str = "float16", *, bits: int | None = None, ratio: float | None = None):
        self.format = format
        self.bits = bits
        self.ratio = ratio

    def fit(self, X: Any, y: Any = None, sample_weight: Any = None) -> Self:
        """Round the table.

        Parameters
        ----------
        X : (n, d) array_like
        y : ignored
        sample_weight : (n,) array_like, optional
            Checked; it changes nothing.

        Raises
        ------
        ValueError
            If the format is another, the budget is below it, or an entry is NaN, infinite, or beyond it.
        """
        X = self._table(X)
        self._weights(sample_weight, len(X))
        if self.format not in FORMATS:
            raise ValueError(f"format={self.format!r}; it takes one of {', '.join(map(repr, FORMATS))}")
        self._size(*X.shape)
        self.values_ = self._round(X)
        return self

    def transform(self, X: Any) -> np.ndarray:
        """Halves of rows, (n, d) -> (n, d) float16, or uint16 for bfloat16."""
        check_is_fitted(self)
        return self._round(self._rows(X))

    def inverse_transform(self, Z: Any) -> Array:
        """Rows of halves, (n, d) float16 or uint16 -> (n, d) float32."""
        check_is_fitted(self)
        Z = to_numpy(Z).astype(self.values_.dtype, casting="same_kind", copy=False)
        self._check_width(Z, self.n_features_in_)
        return DenseTable(Z).reconstruct()

    def compress(self) -> DenseTable:
        """Halves of the table."""
        check_is_fitted(self)
        return DenseTable(self.values_)

    def _round(self, X: Array) -> np.ndarray:
        with np.errstate(over="ignore"):
            values = X.astype(np.float16) if self.format == "float16" else to_bfloat16(X)
        _refuse_infinite(DenseTable(values).reconstruct(), X, self.format)
        return values

    def _sizes(self, n: int, d: int, budget: int) -> Iterable[dict[str, int]]:
        return [{}]

    def _bits(self, n: int, d: int, **size: int) -> int:
        return 16 * n * d


def as_float32(X: Array) -> NDArray[np.float32]:
    """Numbers as they are stored (ValueError if one is beyond float32)."""
    with np.errstate(over="ignore"):
        rounded = X.astype(np.float32, copy=False)
    _refuse_infinite(rounded, X, "float32")
    return rounded


def _refuse_infinite(rounded: Array, X: Array, name: str) -> None:
    bad = np.isinf(rounded)
    if bad.any():
        raise ValueError(
            f"X has {int(bad.sum())} entries beyond the range of {name}, the first "
            f"{X[bad][0]:g} in row {int(bad.any(axis=1).argmax())}; scale the table down"
        )
