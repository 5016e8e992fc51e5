"""Losses: each returns its value and the gradient of what it was given."""

from typing import Any

import numpy as np

from dpq_ref import backend as backends
from dpq_ref import checks
from dpq_ref.kernels import reference
from dpq_ref.kernels.reference import Array, Integers

LOGITS = 1 << 22  # at a time: 16 MiB in float32


def softmax_cross_entropy(logits: Array, labels: Integers) -> tuple[float, Array]:
    """Mean over the batch of -log softmax(logits)[label].

    Parameters
    ----------
    logits : (b, C)
    labels : (b,) integers in [0, C)

    Returns
    -------
    loss : float
    d_logits : (b, C), (softmax - one-hot) / b

    Examples
    --------
    >>> loss, d_logits = softmax_cross_entropy(np.zeros((1, 2)), np.array([0]))
    >>> round(loss, 4), d_logits
    (0.6931, array([[-0.5,  0.5]]))
    """
    losses, d_logits = reference.cross_entropy(logits, labels, np.ones(len(logits), logits.dtype), 0.0)
    return float(losses.mean()), d_logits / logits.dtype.type(len(logits))


class SoftmaxOutput:
    """Output layer over a vocabulary, with its loss: logits x W^T + bias, never more than a block of them.

    Parameters
    ----------
    vocab_size, dim : int
    table : layer, optional
        An embedding layer whose vectors of all words are W, in place of a matrix: DPQ, low rank, or the
        embedding of the input.
    init : float
        W starts uniform in (-init, init), the bias at 0.
    smoothing : float in [0, 1)
        Of the labels in training: part of the target that is spread over all words.
    rng : int or numpy.random.Generator
    dtype : float32 or float64
    backend : {"numba", "numpy"}, optional

    Attributes
    ----------
    params, grads : {"weight": (vocab_size, dim), "bias": (vocab_size,)}
        Without "weight" where there is a `table`: it has its own.

    Examples
    --------
    >>> layer = SoftmaxOutput(100, 8)
    >>> x = np.random.default_rng(0).standard_normal((3, 8)).astype(np.float32)
    >>> losses, d_x = layer.loss(x, np.array([5, 6, 5]), np.ones(3))
    >>> losses.shape, d_x.shape
    ((3,), (3, 8))
    """

    def __init__(
        self,
        vocab_size: int,
        dim: int,
        *,
        table: Any = None,
        init: float = 0.1,
        smoothing: float = 0.0,
        rng: int | np.random.Generator = 0,
        dtype: Any = np.float32,
        backend: str | None = None,
    ):
        self.vocab_size = checks.positive("vocab_size", vocab_size)
        self.dim = checks.positive("dim", dim)
        if not 0 <= smoothing < 1:
            raise ValueError(f"smoothing={smoothing}; it takes a number from 0 to below 1")
        self.table = table
        self.smoothing = smoothing
        self.dtype = checks.as_real(dtype)
        self.kernels = backends.get(backend)
        self.params: dict[str, Array] = {"bias": np.zeros(vocab_size, self.dtype)}
        if table is None:
            rng = np.random.default_rng(rng)
            self.params["weight"] = rng.uniform(-init, init, (vocab_size, dim)).astype(self.dtype)
        self.grads: dict[str, Array] = {}

    def weight(self, train: bool = False) -> Array:
        """W, (vocab_size, dim); `train` as in the forward of an embedding."""
        if self.table is None:
            return self.params["weight"]
        return self.table.forward(np.arange(self.vocab_size), train)

    def loss(self, x: Array, labels: Integers, weights: Array) -> tuple[Array, Array]:
        """Cross-entropy in training; fills `grads`, and those of the `table`, for the weighted sum of losses.

        Parameters
        ----------
        x : (b, dim)
        labels : (b,) integers in [0, vocab_size)
        weights : (b,)
            Of each loss in the sum; 0 for padding.

        Returns
        -------
        losses : (b,)
            Not weighted.
        d_x : (b, dim)
        """
        weight = self.weight(train=True)
        weights = np.asarray(weights, self.dtype)
        losses, d_x = np.empty(len(x), self.dtype), np.empty_like(x)
        d_weight, d_bias = np.zeros_like(weight), np.zeros_like(self.params["bias"])
        for block in self._blocks(len(x)):
            logits = x[block] @ weight.T + self.params["bias"]
            losses[block], d_logits = self.kernels.cross_entropy(
                logits, labels[block], weights[block], self.smoothing
            )
            d_x[block] = d_logits @ weight
            d_weight += d_logits.T @ x[block]
            d_bias += d_logits.sum(axis=0)
        self.grads = {"bias": d_bias}
        if self.table is None:
            self.grads["weight"] = d_weight
        else:
            self.table.backward(d_weight)
        return losses, d_x

    def losses(self, x: Array, labels: Integers, weight: Array | None = None) -> Array:
        """Cross-entropy in evaluation, without smoothing.

        Parameters
        ----------
        x : (b, dim)
        labels : (b,) integers in [0, vocab_size)
        weight : (vocab_size, dim), optional
            To use in place of the layer's, a reconstructed table say.

        Returns
        -------
        (b,)
        """
        weight = self.weight() if weight is None else weight
        losses = np.empty(len(x), self.dtype)
        for block in self._blocks(len(x)):
            logits = x[block] @ weight.T + self.params["bias"]
            shifted = logits - logits.max(axis=1, keepdims=True)
            hit = shifted[np.arange(len(shifted)), labels[block]]
            losses[block] = np.log(np.exp(shifted).sum(axis=1)) - hit
        return losses

    def logits(self, x: Array) -> Array:
        """Logits x W^T + bias in evaluation, (b, dim) -> (b, vocab_size)."""
        return x @ self.weight().T + self.params["bias"]

    def _blocks(self, n_rows: int) -> list[slice]:
        rows = max(1, LOGITS // self.vocab_size)
        return [slice(i, i + rows) for i in range(0, n_rows, rows)]
