"""Losses: each returns its value and the gradient of what it was given."""

from typing import Any

import numpy as np

from dpq_ref import backend as backends
from dpq_ref import checks
from dpq_ref.kernels.reference import Array, Integers

LOGITS = 1 << 23  # at a time: 32 MiB in float32


def softmax_cross_entropy(logits: Array, labels: Integers) -> tuple[Any, Array]:
    """Mean over the batch of -log softmax(logits)[label].

    Parameters
    ----------
    logits : (b, C)
    labels : (b,) integers in [0, C)
        On the host, where they are checked.

    Returns
    -------
    loss : scalar
    d_logits : (b, C), (softmax - one-hot) / b

    Examples
    --------
    >>> loss, d_logits = softmax_cross_entropy(np.zeros((1, 2)), np.array([0]))
    >>> round(float(loss), 4), d_logits
    (0.6931, array([[-0.5,  0.5]]))
    """
    xp = backends.array_module(logits)
    hit = xp.arange(len(logits)), xp.asarray(checks.as_ids(labels, logits.shape[1], "labels"))
    shifted = logits - logits.max(axis=1, keepdims=True)
    exponentials = xp.exp(shifted)
    total = exponentials.sum(axis=1, keepdims=True)
    losses = xp.log(total[:, 0]) - shifted[hit]
    d_logits = exponentials / total
    d_logits[hit] -= 1
    return losses.mean(), d_logits / logits.dtype.type(len(logits))


class SoftmaxOutput:
    """Output layer over a vocabulary, with its loss: logits x W^T + bias, never more than a block of them.

    Parameters
    ----------
    vocab_size, dim : int
    own : bool
        Whether W is a parameter of this layer, or comes with each call: the vectors of an embedding layer.
    init : float
        W starts uniform in (-init, init), the bias at 0.
    smoothing : float in [0, 1)
        Of the labels in training: part of the target that is spread over all words.
    rng : int or numpy.random.Generator
    dtype : float32 or float64
    backend : {"numba", "numpy", "cupy"} or kernel set, optional

    Attributes
    ----------
    params, grads : {"weight": (vocab_size, dim), "bias": (vocab_size,)}
        Without "weight" if it is not its own.
    d_weight : (vocab_size, dim)
        Gradient of W after `loss`.

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
        own: bool = True,
        init: float = 0.1,
        smoothing: float = 0.0,
        rng: int | np.random.Generator = 0,
        dtype: Any = np.float32,
        backend: Any = None,
    ):
        self.vocab_size = checks.positive("vocab_size", vocab_size)
        self.dim = checks.positive("dim", dim)
        if not 0 <= smoothing < 1:
            raise ValueError(f"smoothing={smoothing}; it takes a number from 0 to below 1")
        self.smoothing = smoothing
        self.dtype = checks.as_real(dtype)
        self.kernels = backends.get(backend)
        xp = self.kernels.xp
        self.params: dict[str, Array] = {"bias": xp.zeros(vocab_size, self.dtype)}
        if own:
            drawn = np.random.default_rng(rng).uniform(-init, init, (vocab_size, dim))
            self.params["weight"] = xp.asarray(drawn.astype(self.dtype))
        self.grads: dict[str, Array] = {}

    def loss(
        self, x: Array, labels: Integers, weights: Array, weight: Array | None = None
    ) -> tuple[Array, Array]:
        """Cross-entropy in training; fills `grads` and `d_weight` for the weighted sum of the losses.

        Parameters
        ----------
        x : (b, dim)
        labels : (b,) integers in [0, vocab_size)
        weights : (b,)
            Of each loss in the sum; 0 for padding.
        weight : (vocab_size, dim), optional
            W, if it is not the layer's own.

        Returns
        -------
        losses : (b,)
            Not weighted.
        d_x : (b, dim)
        """
        own, weight = weight is None, self._weight(weight)
        xp = self.kernels.xp
        labels = xp.asarray(checks.as_ids(labels, self.vocab_size, "labels"))
        weights = xp.asarray(weights, self.dtype)
        losses, d_x = xp.empty(len(x), self.dtype), xp.empty_like(x)
        self.d_weight, d_bias = xp.zeros_like(weight), xp.zeros_like(self.params["bias"])
        for block in self._blocks(len(x)):
            logits = self.logits(x[block], weight)
            losses[block], d_logits = self.kernels.cross_entropy(
                logits, labels[block], weights[block], self.smoothing, out=logits
            )
            d_x[block] = d_logits @ weight
            d_weight = d_logits.T @ x[block]
            if block.start:
                self.d_weight += d_weight
            else:  # nothing to add to, in most uses the only block
                self.d_weight = d_weight
            d_bias += d_logits.sum(axis=0)
        self.grads = {"bias": d_bias, **({"weight": self.d_weight} if own else {})}
        return losses, d_x

    def losses(self, x: Array, labels: Integers, weight: Array | None = None) -> Array:
        """Cross-entropy in evaluation, without smoothing.

        Parameters
        ----------
        x : (b, dim)
        labels : (b,) integers in [0, vocab_size)
        weight : (vocab_size, dim), optional
            W, by default the layer's own.

        Returns
        -------
        (b,)
        """
        xp = self.kernels.xp
        losses, labels = xp.empty(len(x), self.dtype), xp.asarray(labels)
        for block in self._blocks(len(x)):
            logits = self.logits(x[block], weight)
            shifted = logits - logits.max(axis=1, keepdims=True)
            hit = shifted[xp.arange(len(shifted)), labels[block]]
            losses[block] = xp.log(xp.exp(shifted).sum(axis=1)) - hit
        return losses

    def logits(self, x: Array, weight: Array | None = None) -> Array:
        """Logits x W^T + bias in evaluation, (b, dim) -> (b, vocab_size)."""
        logits = x @ self._weight(weight).T
        logits += self.params["bias"]
        return logits

    def _weight(self, weight: Array | None) -> Array:
        if weight is None and "weight" not in self.params:
            raise ValueError("weight=None; this layer has none of its own")
        return self.params["weight"] if weight is None else weight

    def _blocks(self, n_rows: int) -> list[slice]:
        rows = max(1, LOGITS // self.vocab_size)
        return [slice(i, i + rows) for i in range(0, n_rows, rows)]
