"""Binary codes: signs, random hyperplanes, and what all codes of hyperplanes share.

A bit says on which side of a hyperplane a row lies; ties are on the side of 1. Rows are compared by how many
bits differ (`dpq_ref.compressed.hamming`). Apart from signs, the sources define codes and no way back to
vectors. Here a row is then a linear function of its signs, fitted by weighted least squares to the codes as
they are: among linear decoders none has a smaller error on the table.

M. Charikar, *Similarity Estimation Techniques from Rounding Algorithms*, STOC 2002. Hyperplanes that are
learned are in `baselines.itq` and `baselines.near_lossless`.
"""

from collections.abc import Iterable
from functools import partial
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from sklearn.utils.validation import check_is_fitted

from baselines.base import Compressor
from baselines.rows import blocks
from dpq_ref import backend, checks
from dpq_ref.backend import one_blas_thread
from dpq_ref.compressed import FactoredTable, ScalarTable
from dpq_ref.kernels.reference import Array, Integers
from dpq_ref.progress import told
from dpq_ref.resume import Shared, in_blocks, kept

Bits = NDArray[np.uint8]
Float64 = NDArray[np.float64]


class SignQuantizer(Compressor):
    """The sign of each entry, and the mean of |x|: scalar quantization with one bit.

    It stores n d bits and 32 of each scale. The mean is the best scale in squared error.

    Parameters
    ----------
    scale : {"table", "column", "row"}
        What has a scale of its own.
    bits, ratio : int, float, optional
        A budget that the result must keep.

    Attributes
    ----------
    scales_ : (1, 1), (1, d) or (n, 1) float32
        Means of |x| over the table, the columns or the rows; frequencies weight the rows.
    codes_ : (n, d) uint8
        1 where x >= 0.

    Examples
    --------
    >>> import numpy as np
    >>> from baselines import SignQuantizer
    >>> quantizer = SignQuantizer("row").fit([[1.0, -3.0], [0.0, 1.0]])
    >>> quantizer.compress().reconstruct()
    array([[ 2. , -2. ],
           [ 0.5,  0.5]], dtype=float32)
    >>> quantizer.compress().bits()
    {'codes': 4, 'scales': 64}
    """

    def __init__(self, scale: str = "table", *, bits: int | None = None, ratio: float | None = None):
        self.scale = scale
        self.bits = bits
        self.ratio = ratio

    def fit(self, X: Any, y: Any = None, sample_weight: Any = None) -> Self:
        """Take signs and means.

        Parameters
        ----------
        X : (n, d) array_like
        y : ignored
        sample_weight : (n,) array_like, optional
            Frequencies of the words.

        Raises
        ------
        ValueError
            If the scale is none of the three, the budget cannot be met, or an entry is NaN or infinite.
        """
        X = self._table(X)
        weights = self._weights(sample_weight, len(X))
        if self.scale not in ("table", "column", "row"):
            raise ValueError(f"scale={self.scale!r}; it takes 'table', 'column' or 'row'")
        self._size(*X.shape)
        magnitudes = np.abs(X)
        columns = weighted_mean(magnitudes, weights)
        self._mean = np.full((1, 1), columns.mean(), np.float32)
        self.scales_ = {
            "table": self._mean,
            "column": columns[None].astype(np.float32),
            "row": magnitudes.mean(axis=1, keepdims=True, dtype=np.float64).astype(np.float32),
        }[self.scale]
        self.codes_ = as_bits(X)
        return self

    def transform(self, X: Any) -> Bits:
        """Signs of the entries, (n, d) -> (n, d) uint8, 1 where x >= 0."""
        check_is_fitted(self)
        return as_bits(self._rows(X))

    def inverse_transform(self, Z: Any) -> Array:
        """Entries of signs, (n, d) of 0 and 1 -> (n, d) float32; scales of rows are unknown: their mean."""
        check_is_fitted(self)
        codes = backend.to_numpy(checks.as_ids(Z, 2))
        self._check_width(codes, self.n_features_in_)
        scales = self._mean if self.scale == "row" else self.scales_
        return ScalarTable.from_codes(codes, 1, scales).reconstruct()

    def compress(self) -> ScalarTable:
        """Signs and scales of the table."""
        check_is_fitted(self)
        return ScalarTable.from_codes(self.codes_, 1, self.scales_)

    def _sizes(self, n: int, d: int, budget: int) -> Iterable[dict[str, Any]]:
        return [{}]

    def _bits(self, n: int, d: int, **size: Any) -> int:
        return n * d + 32 * {"table": 1, "column": d, "row": n}[self.scale]


class BinaryCoder(Compressor):
    """A code of c bits a row with a linear decoder: it stores n c + 32 (c d + d) bits.

    A subclass sets what `_code` needs, and ends `fit` with `_decode_by_least_squares`.

    Attributes
    ----------
    codes_ : (n, c) uint8
        Bits of the table.
    decoder_ : (c, d) float32
    offset_ : (d,) float32
        A row is signs @ decoder_ + offset_, signs being -1 for 0.
    """

    size_parameters = ("n_bits",)
    n_bits: int | None
    codes_: Bits
    decoder_: NDArray[np.float32]
    offset_: NDArray[np.float32]

    def _code(self, X: Array) -> Bits:
        """Bits of rows, (n, d) -> (n, c). Those of a row do not depend on the rows beside it."""
        raise NotImplementedError

    def transform(self, X: Any) -> Bits:
        """Bits of rows, (n, d) -> (n, c) uint8."""
        check_is_fitted(self)
        return self._code(self._rows(X))

    def inverse_transform(self, Z: Any) -> Array:
        """Rows of bits, (n, c) of 0 and 1 -> (n, d) float32."""
        check_is_fitted(self)
        codes = backend.to_numpy(checks.as_ids(Z, 2))
        self._check_width(codes, len(self.decoder_))
        return self._decoded(codes).reconstruct()

    def compress(self) -> FactoredTable:
        """Bits and decoder of the table."""
        check_is_fitted(self)
        return self._decoded(self.codes_)

    def _decoded(self, codes: Integers) -> FactoredTable:
        return FactoredTable(ScalarTable.from_codes(codes, 1), self.decoder_, self.offset_)

    def _decode_by_least_squares(self, X: Array, weights: Float64) -> None:
        self.codes_ = self._code(X)
        learned = kept(
            "decoder", lambda: dict(zip("Ao", linear_decoder(self.codes_, X, weights), strict=True))
        )
        self.decoder_, self.offset_ = (learned[name].astype(np.float32) for name in "Ao")

    def _most(self, d: int) -> int | None:
        """Bits that a row of d entries can have; None: any number."""
        return None

    def _number_of_bits(self, n: int, d: int) -> int:
        n_bits = checks.positive("n_bits", self._size(n, d)["n_bits"])
        most = self._most(d)
        if most is not None and n_bits > most:
            raise ValueError(f"n_bits={n_bits}; a table of {d} columns takes at most {most}")
        return n_bits

    def _sizes(self, n: int, d: int, budget: int) -> Iterable[dict[str, int]]:
        within = max(1, (budget - 32 * d) // (n + 32 * d))
        most = self._most(d)
        return [{"n_bits": within if most is None else min(within, most)}]

    def _bits(self, n: int, d: int, **size: int) -> int:
        return n * size["n_bits"] + 32 * (size["n_bits"] * d + d)


class RandomHyperplanes(BinaryCoder):
    """Random hyperplanes: bits sign(x G), G Gaussian (Charikar 2002).

    Two rows at an angle a differ in a bit with probability a / pi. Rows are taken as they are; the mean is
    not subtracted. The table stores what decodes, not G: a seed gives it again.

    Parameters
    ----------
    n_bits : int, optional
        c, any number.
    bits, ratio : int, float, optional
        A budget in place of `n_bits`: the largest c that it allows.
    random_state : int, numpy.random.Generator or None
        Of G.

    Attributes
    ----------
    hyperplanes_ : (d, c)
        G.
    codes_, decoder_, offset_ : as in `BinaryCoder`

    Examples
    --------
    >>> import numpy as np
    >>> from baselines import RandomHyperplanes
    >>> table = np.random.default_rng(0).standard_normal((1000, 8)).astype(np.float32)
    >>> coder = RandomHyperplanes(n_bits=16, random_state=0).fit(table)
    >>> coder.transform(table[:2]).shape
    (2, 16)
    >>> coder.compress().bits()
    {'codes': 16000, 'basis': 4096, 'offset': 256}
    """

    def __init__(
        self,
        n_bits: int | None = None,
        *,
        bits: int | None = None,
        ratio: float | None = None,
        random_state: Any = None,
    ):
        self.n_bits = n_bits
        self.bits = bits
        self.ratio = ratio
        self.random_state = random_state

    def fit(self, X: Any, y: Any = None, sample_weight: Any = None) -> Self:
        """Draw hyperplanes, and fit the decoder.

        Parameters
        ----------
        X : (n, d) array_like
        y : ignored
        sample_weight : (n,) array_like, optional
            Frequencies of the words; only the decoder depends on them.

        Raises
        ------
        ValueError
            If not exactly one of n_bits and a budget is given, or an entry is NaN or infinite.
        """
        X = self._table(X)
        weights = self._weights(sample_weight, len(X))
        n_bits = self._number_of_bits(*X.shape)
        rng = np.random.default_rng(self.random_state)
        self.hyperplanes_ = rng.standard_normal((X.shape[1], n_bits)).astype(X.dtype)
        self._decode_by_least_squares(X, weights)
        return self

    def _code(self, X: Array) -> Bits:
        return sides(X, self.hyperplanes_)


# --- Hyperplanes ----------------------------------------------------------------------------------------


def sides(X: Array, planes: Array, mean: Array | None = None) -> Bits:
    """Bits of rows, 1 where (x - mean) planes >= 0, (n, d), (d, c), (d,) -> (n, c).

    A product of which each row is the same, bit by bit, whatever rows are beside it: so are the bits.
    """
    find = partial(_sides_of, Shared(X), planes, mean)
    return in_blocks("codes", find, blocks(len(X), max(planes.shape)), planes.shape[1], np.uint8)


def _sides_of(X: Shared, planes: Array, mean: Array | None, rows: slice) -> Bits:
    """Bits of some rows, perhaps on another machine."""
    block = X.array[rows] if mean is None else X.array[rows] - mean
    return backend.get().sides(block.astype(planes.dtype, copy=False), planes)


def weighted_mean(X: NDArray, weights: Float64) -> Float64:
    """Mean row, (n, d), (n,) -> (d,), in float64 without a copy of the table."""
    shares = weights / weights.max()
    return np.einsum("i,ij->j", shares, X) / shares.sum()


def random_frame(c: int, d: int, rng: np.random.Generator) -> Float64:
    """Random (c, d) with orthonormal columns, or rows if those are fewer; all alike likely (Haar)."""
    Q, R = np.linalg.qr(rng.standard_normal((max(c, d), min(c, d))))
    Q *= np.where(np.diag(R) < 0, -1.0, 1.0)
    return Q if c >= d else Q.T


def linear_decoder(codes: Bits, X: Array, weights: Float64) -> tuple[Float64, Float64]:
    """Fit the decoder A and the offset o that minimise sum_i q_i |x_i - s_i A - o|^2, s = 2 bits - 1.

    Where bits are constant or repeat each other it is the A of the smallest norm.

    Parameters
    ----------
    codes : (n, c) of 0 and 1
    X : (n, d)
    weights : (n,), not all 0

    Returns
    -------
    decoder : (c, d) float64
    offset : (d,) float64
    """
    from scipy import linalg

    shares = weights / weights.max()
    shares /= shares.sum()
    mean, mean_sign = weighted_mean(X, shares), 2 * weighted_mean(codes, shares) - 1
    centre = mean.astype(X.dtype)  # rounded, but what it is times the centred signs is 0
    c, d = codes.shape[1], X.shape[1]
    gram, cross, sums = np.zeros((c, c)), np.zeros((c, d)), backend.get().cross
    for rows in told("decoder", blocks(len(X), max(c, d))):
        signs, q = 2.0 * codes[rows] - (1 + mean_sign), shares[rows]
        gram += sums(signs, signs, q)  # in float64: bits that repeat must cancel
        cross += sums(signs.astype(X.dtype), X[rows] - centre, q.astype(X.dtype))
    with one_blas_thread:
        decoder = linalg.pinvh(gram) @ cross
    return decoder, mean - mean_sign @ decoder


def as_bits(X: Array) -> Bits:
    """1 where x >= 0, so for both zeros, uint8."""
    return (X >= 0).astype(np.uint8)
