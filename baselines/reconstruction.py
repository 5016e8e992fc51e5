"""Codes learned by gradient descent: what such methods share, and DPQ trained to reconstruct a table.

The rows of the table are the examples. It is scaled by a power of two to a root mean square near 1, so that a
learning rate means the same for any table, and scaled back at the end without rounding. What counts is the
hard error, that of what is stored, measured on the whole table: no other row will ever be asked for. The
parameters with the smallest are kept.
"""

from abc import abstractmethod
from collections.abc import Iterable, Iterator
from numbers import Real
from typing import Any, Self

import numpy as np
from sklearn.utils.validation import check_is_fitted

from baselines.base import Compressor
from baselines.product import BYTE, expected_error
from dpq_ref import backend, checks
from dpq_ref.compressed import Compressed, ProductTable
from dpq_ref.kernels.reference import BLOCK, Array, Integers
from dpq_ref.kmeans import KMeans
from dpq_ref.layers.embedding import DPQEmbedding
from dpq_ref.optim import Adam
from dpq_ref.trainer import train

EVALUATIONS = 20  # of the whole table, spread over the training


class LearnedCodes(Compressor):
    """A method that learns codes by gradient descent; all run through `dpq_ref.trainer.train`, with Adam.

    Attributes
    ----------
    codes_ : (n, D) int32
        Codes of the table.
    objective_ : (evaluations,) float64
        Weighted squared error of the whole table, decoded from codes: before the first step, and then 20
        times. The smallest is that of the result.
    scale_ : float
        Power of two that the table was divided by.
    """

    size_parameters = ("n_groups", "n_codes")
    n_groups: int | None
    n_codes: int | None
    steps: int
    batch_size: int
    learning_rate: float
    clip_norm: float | None
    random_state: Any
    backend: str | None

    @abstractmethod
    def _model(
        self, rows: Array, weights: Array, n_groups: int, n_codes: int, rng: np.random.Generator
    ) -> Any:
        """Model of the scaled rows: `params`, `loss_and_gradients(ids)`, hard `squared_error(weights)`."""

    @abstractmethod
    def _finish(self, model: Any, rows: Array, weights: Array) -> None:
        """Keep the codes of a trained model, and what decodes them in units of the table."""

    @abstractmethod
    def _artefact(self, codes: Integers, dtype: Any) -> Compressed:
        """Codes beside all that decodes them."""

    def fit(self, X: Any, y: Any = None, sample_weight: Any = None) -> Self:
        """Learn codes and codebooks.

        Parameters
        ----------
        X : (n, d) array_like
        y : ignored
        sample_weight : (n,) array_like, optional
            Frequencies of the words. A row enters the batches in proportion, so the loss is on average the
            weighted one; in n draws row i comes n q_i times, rounded up or down.

        Raises
        ------
        ValueError
            If a parameter does not fit the table, the budget cannot be met, or an entry is NaN or infinite.
        """
        from threadpoolctl import threadpool_limits

        X = self._table(X)
        weights = self._weights(sample_weight, len(X))
        size = self._size(*X.shape)
        n_groups = checks.positive("n_groups", size["n_groups"])
        n_codes = checks.number_of_codes(size["n_codes"])
        batch_size = checks.positive("batch_size", self.batch_size)
        above_zero("learning_rate", self.learning_rate)
        if self.clip_norm is not None:
            above_zero("clip_norm", self.clip_norm)
        rng = np.random.default_rng(self.random_state)
        largest = weights.max()
        weights = weights / largest
        self.scale_ = scale_of(X, weights)
        rows = X / X.dtype.type(self.scale_)
        with threadpool_limits(1, "blas"):  # on a busy machine two threads were 20 times slower than one
            model = self._model(rows, weights, n_groups, n_codes, rng)
            self.objective_ = self._train(model, weights, batches(weights, batch_size, rng))
            self._finish(model, rows, weights)
        self.objective_ *= largest * self.scale_**2
        return self

    def _train(self, model: Any, weights: Array, stream: Iterator[Integers]) -> Array:
        """Train, and leave in the model the parameters with the smallest error; returns all errors."""
        steps = checks.positive("steps", self.steps)
        found: list[float] = []
        best: dict[str, Array] = {}

        def evaluate(step: int = 0, loss: float = 0.0) -> None:
            found.append(model.squared_error(weights))
            if found[-1] == min(found):
                best.update({name: array.copy() for name, array in model.params.items()})

        evaluate()
        train(
            model,
            stream,
            Adam(model.params, self.learning_rate, backend=self.backend),
            steps=steps,
            schedule=lambda step: self.learning_rate * (1 - (step - 1) / steps),
            clip_norm=self.clip_norm,
            evaluate_every=-(-steps // EVALUATIONS),
            evaluate=evaluate,
        )
        for name, array in model.params.items():
            array[:] = best[name]
        return np.array(found)

    def inverse_transform(self, Z: Any) -> Array:
        """Rows of codes, (n, D) integers in [0, K) -> (n, d), decoded as the stored table is."""
        check_is_fitted(self)
        Z = backend.to_numpy(Z)
        self._check_width(Z, self.codes_.shape[1])
        return self._artefact(Z, self.codebooks_.dtype).reconstruct()

    def compress(self) -> Compressed:
        """Codes and codebooks of the table."""
        check_is_fitted(self)
        return self._artefact(self.codes_, np.float32)


def batches(weights: Array, size: int, rng: np.random.Generator) -> Iterator[Integers]:
    """Numbers of rows, without end: in each n draws row i comes n q_i times, rounded up or down.

    Systematic sampling, then shuffled: unbiased, and equal weights give every row once in an epoch.

    Parameters
    ----------
    weights : (n,)
        At least 0, not all 0; q_i is their share.
    size : int
        Of a batch; it may reach into the next epoch.
    rng : numpy.random.Generator

    Examples
    --------
    >>> stream = batches(np.array([1.0, 0.0, 1.0, 2.0]), 4, np.random.default_rng(0))
    >>> np.bincount(next(stream)).tolist()
    [1, 0, 1, 2]
    """
    n, last = len(weights), np.flatnonzero(weights)[-1]
    ends = np.cumsum(weights) / weights.sum() * n
    waiting = np.empty(0, np.int64)
    while True:
        while len(waiting) < size:
            drawn = np.searchsorted(ends, rng.random() + np.arange(n), side="right")
            waiting = np.concatenate([waiting, rng.permutation(np.minimum(drawn, last))])
        yield waiting[:size]
        waiting = waiting[size:]


def squared_error(rows: Array, table: Compressed, weights: Array) -> float:
    """Weighted squared error of a table, sum_i w_i |x_i - table[i]|^2, in float64."""
    total, step = 0.0, max(1, BLOCK // rows.shape[1])
    kept = np.flatnonzero(weights)
    for i in range(0, len(kept), step):
        ids = kept[i : i + step]
        error = np.subtract(rows[ids], table.lookup(ids), dtype=np.float64)
        total += float(weights[ids] @ (error * error).sum(axis=1))
    return total


def scale_of(X: Array, weights: Array) -> float:
    """Power of two nearest to the weighted root mean square of the entries; 1 where that is 0."""
    X, weights = X[weights > 0], weights[weights > 0]
    largest = float(np.abs(X).max())
    if largest == 0:
        return 1.0
    mean = weights @ ((X / largest) ** 2).mean(axis=1, dtype=np.float64) / weights.sum()
    return float(2.0 ** np.round(np.log2(largest) + np.log2(mean) / 2))


def above_zero(name: str, value: float) -> None:
    """Check a finite number above 0 (ValueError)."""
    if not isinstance(value, Real) or not 0 < value < np.inf:
        raise ValueError(f"{name}={value!r}; it takes a number above 0")


class DPQReconstruction(LearnedCodes):
    """A DPQ embedding layer whose task is the table itself (Chen, Li, Sun, ICML 2020, section 2).

    The loss is the mean squared error of the entries of a batch, to which DPQ-VQ adds its codebook loss.
    Queries start as the rows of the table. Those of DPQ-VQ stay there: handed to the query as it is, the
    gradient of the output would drive it away from its row for as long as there is an error. So it is k-means
    of each group by stochastic gradients. Those of DPQ-SX are trained. There is no batch norm.

    It stores n D ceil(log2 K) bits of codes and 32 K d of codebooks, 32 K d / D if they are shared.

    Parameters
    ----------
    n_groups : int, optional
        D; it must divide d. A budget chooses among the divisors.
    n_codes : int, optional
        K, from 2 to 65,536.
    bits, ratio : int, float, optional
        A budget in place of either or both: of the divisors of d and the powers of two up to 256 and n those
        of least expected error, as for product quantization.
    method : {"vq", "sx"}
    shared : bool
        One codebook for all groups.
    kmeans : bool
        Start the codebooks from weighted k-means of the rows, which takes n >= K: the result of DPQ-VQ is
        then never worse than product quantization from the same start. Otherwise Glorot uniform, as in
        training on a task.
    temperature : float
        Of the softmax in the backward of DPQ-SX.
    steps, batch_size : int
    learning_rate : float
        Of the first step; it falls linearly to 0.
    clip_norm : float, optional
        Largest norm of all gradients together.
    random_state : int, numpy.random.Generator or None
    backend : {"numpy", "numba", "cupy"} or None
        Kernels to run on; None means "numba".

    Attributes
    ----------
    codebooks_ : (D or 1, K, s)
    codes_ : (n, D) int32
        Codes of the table. For DPQ-SX they are those of the trained queries, and `transform`, which has
        none for its rows, takes the nearest values.
    objective_ : (evaluations,) float64
    scale_ : float
        See `LearnedCodes`.

    Examples
    --------
    >>> import numpy as np
    >>> from baselines import DPQReconstruction
    >>> table = np.random.default_rng(0).standard_normal((500, 8)).astype(np.float32)
    >>> model = DPQReconstruction(n_groups=4, n_codes=16, steps=200, random_state=0).fit(table)
    >>> bool(model.objective_.min() < model.objective_[0])
    True
    >>> model.compress().bits()
    {'codes': 8000, 'codebooks': 4096}
    """

    def __init__(
        self,
        n_groups: int | None = None,
        n_codes: int | None = None,
        *,
        bits: int | None = None,
        ratio: float | None = None,
        method: str = "vq",
        shared: bool = False,
        kmeans: bool = True,
        temperature: float = 1.0,
        steps: int = 8000,
        batch_size: int = 256,
        learning_rate: float = 0.03,
        clip_norm: float | None = None,
        random_state: Any = None,
        backend: str | None = None,
    ):
        self.n_groups = n_groups
        self.n_codes = n_codes
        self.bits = bits
        self.ratio = ratio
        self.method = method
        self.shared = shared
        self.kmeans = kmeans
        self.temperature = temperature
        self.steps = steps
        self.batch_size = batch_size
        self.learning_rate = learning_rate
        self.clip_norm = clip_norm
        self.random_state = random_state
        self.backend = backend

    def transform(self, X: Any) -> Integers:
        """Codes of rows: the nearest value in each group, (n, d) -> (n, D) int32."""
        check_is_fitted(self)
        X = self._rows(X).astype(self.codebooks_.dtype, copy=False)
        points = X.reshape(len(X), self.codes_.shape[1], -1)
        kernels = backend.get(self.backend)
        return backend.to_numpy(kernels.nearest_code(*map(kernels.xp.asarray, (points, self.codebooks_))))

    def _model(
        self, rows: Array, weights: Array, n_groups: int, n_codes: int, rng: np.random.Generator
    ) -> "Reconstruction":
        n, d = rows.shape
        layer = DPQEmbedding(
            n,
            d,
            n_groups=n_groups,
            n_codes=n_codes,
            method=self.method,
            shared=self.shared,
            batch_norm=False,
            temperature=self.temperature,
            rng=rng,
            dtype=rows.dtype,
            backend=self.backend,
            trainable=["keys"] if self.method == "vq" else None,
            init=rows,
        )
        if self.kmeans:
            books, _, width = layer.params["keys"].shape
            points = rows.reshape(-1, books, width)
            each = np.repeat(weights, len(points) // n)
            centroids = KMeans(n_codes, kernels=layer.kernels, rng=rng).fit(points, each).centroids
            for name in layer.params.keys() - {"query"}:
                layer.params[name][:] = centroids
        return Reconstruction(layer, rows)

    def _finish(self, model: Any, rows: Array, weights: Array) -> None:
        table = model.layer.export()
        self.codes_, self.codebooks_ = table.codes, table.values * table.dtype.type(self.scale_)

    def _artefact(self, codes: Integers, dtype: Any) -> ProductTable:
        return ProductTable.from_codes(codes, self.codebooks_.astype(dtype, copy=False))

    def _sizes(self, n: int, d: int, budget: int) -> Iterable[dict[str, int]]:
        divisors = [k for k in range(1, d + 1) if d % k == 0]
        powers = [1 << b for b in range(1, BYTE + 1) if b == 1 or 1 << b <= n]
        sizes = [
            {"n_groups": n_groups, "n_codes": n_codes}
            for n_groups in (divisors if self.n_groups is None else [self.n_groups])
            for n_codes in (powers if self.n_codes is None else [self.n_codes])
        ]
        within = [size for size in sizes if self._bits(n, d, **size) <= budget]
        return [min(within, key=lambda size: expected_error(d, **size))] if within else sizes

    def _bits(self, n: int, d: int, *, n_groups: int, n_codes: int) -> int:
        width = checks.group_width(d, n_groups)
        return n * n_groups * (n_codes - 1).bit_length() + 32 * n_codes * (width if self.shared else d)


class Reconstruction:
    """An embedding layer that learns the rows of a table: mean squared error of the entries of a batch.

    Parameters
    ----------
    layer : DPQEmbedding
    rows : (n, dim)

    Examples
    --------
    >>> rows = np.eye(4, dtype=np.float32)
    >>> model = Reconstruction(DPQEmbedding(4, 4, n_groups=2, n_codes=3), rows)
    >>> bool(model.loss_and_gradients(np.array([0, 2])) > 0), sorted(model.grads)
    (True, ['keys', 'query', 'values'])
    """

    def __init__(self, layer: DPQEmbedding, rows: Array):
        self.layer, self.rows = layer, layer.kernels.xp.asarray(rows)
        self.params = {name: layer.params[name] for name in layer.trainable}

    @property
    def grads(self) -> dict[str, Any]:
        """Gradients of the last batch."""
        return self.layer.grads

    def loss_and_gradients(self, ids: Integers) -> Any:
        """Error of a batch, and the codebook loss; the gradient of the mean square is 2 / (b d) the error."""
        xp = self.layer.kernels.xp
        error = self.layer.forward(ids) - self.rows[xp.asarray(ids)]
        self.layer.backward(error * error.dtype.type(2 / error.size))
        return xp.square(error, dtype=np.float64).mean() + self.layer.codebook_loss

    def squared_error(self, weights: Array) -> float:
        """Weighted squared error of the table as it would be stored."""
        return squared_error(backend.to_numpy(self.rows), self.layer.export(), weights)
