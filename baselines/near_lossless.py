"""Near-lossless binarization: hyperplanes learned by an autoencoder of one matrix.

J. Tissier, C. Gravier, A. Habrard, *Near-Lossless Binarization of Word Embeddings*, AAAI 2019.
"""

from collections.abc import Iterable, Iterator
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from baselines.binary import BinaryCoder, Bits, Float64, random_frame, sides
from baselines.rows import blocks
from dpq_ref import checks
from dpq_ref.compressed import FactoredTable, ScalarTable
from dpq_ref.kernels.reference import Array, Integers
from dpq_ref.optim import SGD
from dpq_ref.trainer import train

SPREAD = 0.7  # root mean square of the entries in training: the hard tanh cuts at 1.4 of it
DECAY = 0.95  # of the learning rate, an epoch


class NearLosslessBinarizer(BinaryCoder):
    """Near-lossless binarization (Tissier, Gravier, Habrard 2019): an autoencoder with bits in the middle.

    A row x becomes the bits b = step(W x), ties to 1, and these the row y = hardtanh(W^T b + bias). Gradient
    descent lowers the mean of |x - y|^2 / 2 over a batch plus lambda / 2 |W^T W - 1|^2. The step has no
    gradient: W learns as decoder and through the second term, which ties what it decodes to what it encodes.

    The hard tanh ends at 1, and with W^T W near 1 the entries of W^T b have a size of their own, about
    sqrt(c / d) / 2. So rows are trained on at a root mean square of 0.7, and afterwards the least-squares
    scale brings y back. Bits do not depend on the scale: the encoder has no bias.

    Parameters
    ----------
    n_bits : int, optional
        c, any number; 256 in the paper.
    bits, ratio : int, float, optional
        A budget in place of `n_bits`: the largest c that it allows.
    decoder : {"tied", "least_squares"}
        W^T and the hard tanh, as in the paper; or the best linear decoder of the same bits, which takes as
        much room.
    regularization : float
        lambda, at least 0.
    learning_rate : float
        It falls by 5 % an epoch.
    batch_size, epochs : int
        The paper's 5 epochs are 27,000 steps on its 400,000 rows: a small table takes more epochs.
    random_state : int, numpy.random.Generator or None
        Of the start, a random W with W^T W = 1 or W W^T = 1, and of the batches.

    Attributes
    ----------
    weight_ : (c, d)
        W.
    bias_ : (d,)
    scale_ : float
        Scale of y.
    objective_ : (epochs,) float64
        Mean loss of the batches of each epoch.
    codes_, decoder_, offset_ : as in `BinaryCoder`

    Notes
    -----
    With frequencies q an epoch draws row i n q_i / sum q times, rounded at random to the integer below or
    above (systematic sampling): the gradient is that of the weighted loss, its size that of the plain one.

    The released code sums the error over the batch, where this one takes the mean, and multiplies it by the
    slope of tanh rather than of the hard tanh. At its rate the sum overshoots from about 100 bits on.

    Examples
    --------
    >>> import numpy as np
    >>> from baselines import NearLosslessBinarizer
    >>> table = np.random.default_rng(0).standard_normal((1000, 8)).astype(np.float32)
    >>> coder = NearLosslessBinarizer(n_bits=16, random_state=0).fit(table)
    >>> coder.compress().bits()
    {'codes': 16000, 'basis': 4096, 'offset': 256, 'bound': 32}
    """

    def __init__(
        self,
        n_bits: int | None = None,
        *,
        bits: int | None = None,
        ratio: float | None = None,
        decoder: str = "tied",
        regularization: float = 1.0,
        learning_rate: float = 1e-3,
        batch_size: int = 75,
        epochs: int = 5,
        random_state: Any = None,
    ):
        self.n_bits = n_bits
        self.bits = bits
        self.ratio = ratio
        self.decoder = decoder
        self.regularization = regularization
        self.learning_rate = learning_rate
        self.batch_size = batch_size
        self.epochs = epochs
        self.random_state = random_state

    def fit(self, X: Any, y: Any = None, sample_weight: Any = None) -> Self:
        """Train the autoencoder, and settle the decoder.

        Parameters
        ----------
        X : (n, d) array_like
        y : ignored
        sample_weight : (n,) array_like, optional
            Frequencies of the words.

        Raises
        ------
        ValueError
            If not exactly one of n_bits and a budget is given, a parameter is out of its range, or an entry
            is NaN or infinite.
        FloatingPointError
            If the training diverges.
        """
        from threadpoolctl import threadpool_limits

        X = self._table(X)
        n, d = X.shape
        weights = self._weights(sample_weight, n)
        batch_size, epochs = self._check_training()
        n_bits = self._number_of_bits(n, d)
        rng = np.random.default_rng(self.random_state)
        shares = weights / weights.max()
        shares /= shares.sum()
        size = np.sqrt(shares @ np.einsum("ij,ij->i", X, X, dtype=np.float64) / d)
        factor = X.dtype.type(SPREAD / size if size else 1)
        model = TiedAutoencoder(random_frame(n_bits, d, rng).astype(X.dtype), self.regularization)
        ids, steps = batches(shares, batch_size, rng), -(-n // batch_size)
        losses: list[float] = []
        with threadpool_limits(1, "blas"):
            train(
                model,
                (factor * X[rows] for rows in ids),
                SGD(model.params, self.learning_rate),
                steps=epochs * steps,
                schedule=lambda step: self.learning_rate * DECAY ** ((step - 1) // steps),
                evaluate_every=steps,
                evaluate=lambda step, loss: losses.append(loss),
            )
        self.weight_, self.bias_ = model.params["weight"], model.params["bias"]
        self.objective_ = np.array(losses)
        if self.decoder == "tied":
            self._decode_by_weight(X, shares)
        else:
            self._decode_by_least_squares(X, shares)
        return self

    def _decode_by_weight(self, X: Array, weights: Float64) -> None:
        """Fold bits of 0 and 1, and the best scale, into what decodes signs."""
        self.codes_ = self._code(X)
        along, square = 0.0, 0.0
        for rows in blocks(*X.shape):
            y = np.clip(self.codes_[rows] @ self.weight_ + self.bias_, -1, 1)
            along += float(weights[rows] @ np.einsum("ij,ij->i", X[rows], y, dtype=np.float64))
            square += float(weights[rows] @ np.einsum("ij,ij->i", y, y, dtype=np.float64))
        self.scale_ = max(along / square, 0.0) if square else 0.0
        half = self.weight_.astype(np.float64) / 2
        self.decoder_ = (self.scale_ * half).astype(np.float32)
        self.offset_ = (self.scale_ * (self.bias_ + half.sum(axis=0))).astype(np.float32)

    def _decoded(self, codes: Integers) -> FactoredTable:
        bound = np.array([self.scale_], np.float32) if self.decoder == "tied" else None
        return FactoredTable(ScalarTable.from_codes(codes, 1), self.decoder_, self.offset_, bound)

    def _code(self, X: Array) -> Bits:
        return sides(X, np.ascontiguousarray(self.weight_.T))

    def _check_training(self) -> tuple[int, int]:
        if self.decoder not in ("tied", "least_squares"):
            raise ValueError(f"decoder={self.decoder!r}; it takes 'tied' or 'least_squares'")
        if not 0 <= self.regularization < np.inf:
            raise ValueError(f"regularization={self.regularization}; it takes a number of at least 0")
        if not 0 < self.learning_rate < np.inf:
            raise ValueError(f"learning_rate={self.learning_rate}; it takes a number above 0")
        return checks.positive("batch_size", self.batch_size), checks.positive("epochs", self.epochs)

    def _sizes(self, n: int, d: int, budget: int) -> Iterable[dict[str, int]]:
        return super()._sizes(n, d, budget - self._bits_of_bound)

    def _bits(self, n: int, d: int, **size: int) -> int:
        return super()._bits(n, d, **size) + self._bits_of_bound

    @property
    def _bits_of_bound(self) -> int:
        return 32 if self.decoder == "tied" else 0


class TiedAutoencoder:
    """Rows to bits by W, bits to rows by its transpose.

    Parameters
    ----------
    weight : (c, d)
        W, updated in place.
    regularization : float
        lambda.
    """

    def __init__(self, weight: Array, regularization: float):
        self.params = {"weight": weight, "bias": np.zeros(weight.shape[1], weight.dtype)}
        self.grads: dict[str, Array] = {}
        self.regularization = weight.dtype.type(regularization)

    def loss_and_gradients(self, batch: Array) -> float:
        """Loss of rows (b, d), and its gradient where the bits stay as they are.

        With u = W^T bits + bias, y = hardtanh(u) and G = W^T W - 1, the loss is
        mean over rows of |x - y|^2 / 2, and lambda / 2 |G|^2.
        """
        weight, bias = self.params["weight"], self.params["bias"]
        bits = (batch @ weight.T >= 0).astype(weight.dtype)
        u = bits @ weight + bias
        error = np.clip(u, -1, 1) - batch
        d_u = np.where(np.abs(u) < 1, error, 0) / len(batch)
        G = weight.T @ weight - np.eye(len(bias), dtype=weight.dtype)
        self.grads = {
            "weight": bits.T @ d_u + 2 * self.regularization * (weight @ G),
            "bias": d_u.sum(axis=0),
        }
        return float(np.vdot(error, error) / len(batch) + self.regularization * np.vdot(G, G)) / 2


def batches(shares: Float64, batch_size: int, rng: np.random.Generator) -> Iterator[NDArray[np.int64]]:
    """Ids of rows, endlessly: each epoch has n, row i about n times its share, in random order.

    Parameters
    ----------
    shares : (n,)
        At least 0, of sum 1.
    batch_size : int
        The last batch of an epoch may be smaller.
    """
    n = len(shares)
    ends = np.cumsum(shares)
    ends *= n / ends[-1]
    ends[-1] = n
    while True:
        ids = rng.permutation(np.searchsorted(np.floor(ends + rng.uniform()), np.arange(n), side="right"))
        for start in range(0, n, batch_size):
            yield ids[start : start + batch_size]
