"""Attention over a memory: Luong's, for a recurrent decoder, and the Transformer's, with several heads.

Luong, Pham, Manning, *Effective Approaches to Attention-based Neural Machine Translation*, EMNLP 2015.
Vaswani et al., *Attention Is All You Need*, NeurIPS 2017, section 3.2.

Letters: `b` sequences of the batch, `t` queries of each, `u` places of the memory, `h` width, of a head `s`.
Only the first `length` places of a memory count: the others get a weight of exactly 0. Where nothing counts
all weights are 0, and so is the context; never NaN.
"""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from dpq_ref import checks
from dpq_ref.backend import array_module
from dpq_ref.kernels.reference import Array, Integers
from dpq_ref.layers.initial import glorot

Mask = NDArray[np.bool_]


def length_mask(lengths: Any, n_sequences: int, n_places: int) -> Mask:
    """Places that count, (b, u) bool.

    Parameters
    ----------
    lengths : (b,) integers in [0, u]
    n_sequences, n_places : int, b and u

    Raises
    ------
    TypeError, IndexError, ValueError
        If lengths are not integers, out of range, or not one a sequence.

    Examples
    --------
    >>> length_mask([2, 0], 2, 3)
    array([[ True,  True, False],
           [False, False, False]])
    """
    lengths = checks.as_ids(lengths, n_places + 1, "lengths")
    if lengths.shape != (n_sequences,):
        raise ValueError(f"lengths has shape {lengths.shape}; for {n_sequences} sequences it takes one each")
    return np.arange(n_places) < lengths[:, None]


def masked_softmax(scores: Array, mask: Mask) -> Array:
    """Softmax over the last axis of what the mask keeps, 0 elsewhere; where it keeps nothing, all 0.

    Parameters
    ----------
    scores : (..., u)
    mask : bool, broadcast against scores
    """
    xp = array_module(scores)
    scores = xp.where(mask, scores, -np.inf)
    if not scores.shape[-1]:
        return scores
    top = scores.max(axis=-1, keepdims=True)
    scores -= xp.where(top == -np.inf, 0, top)
    weights = xp.exp(scores, out=scores)
    total = weights.sum(axis=-1, keepdims=True)
    weights /= xp.where(total == 0, 1, total)
    return weights


def masked_softmax_backward(d_weights: Array, weights: Array) -> Array:
    """Gradient of the scores, w (d_w - <d_w, w>): 0 wherever the weight is."""
    expected = d_weights[..., None, :] @ weights[..., None]
    return weights * (d_weights - expected[..., 0])


def _rows(x: Array) -> Array:
    """All leading axes as one."""
    return x.reshape(-1, x.shape[-1])


def _map(x: Array, weight: Array) -> Array:
    """Product x W, (b, t, i), (i, o) -> (b, t, o), in one piece: numpy would make it b small products."""
    return (_rows(x) @ weight).reshape(*x.shape[:-1], weight.shape[1])


class LuongAttention:
    """Luong's global attention, the "general" score, with its output layer and one learned scale.

    keys = memory W_m;  weights = masked softmax(g query keys^T);  context = weights memory;
    output = tanh([context, query] W_c).

    Keys, weights and context are those of tf.contrib.seq2seq.LuongAttention with `scale=True`, which
    tensorflow/nmt calls "scaled_luong"; the output is equation 5 of the paper.

    A decoder with input feeding, whose next query depends on this output, goes step by step, then back. Each
    forward puts what its backward needs on a stack; each backward takes the last of it::

        attention.set_memory(memory, lengths)
        for query in decoder:  output = attention.forward(query)
        for ... in reverse:    d_query = attention.backward(d_output)
        d_memory = attention.backward_memory()

    Parameters
    ----------
    width : int
        h, of a query and of the output.
    memory_width : int
        m, of a place of the memory: 2h for an encoder that reads both ways.
    scaled : bool
        Learn the scale g, 1 at first; otherwise it is 1.
    tanh : bool
        As in the paper; tensorflow/nmt leaves it out, so its output is linear.
    rng : numpy.random.Generator
    dtype : float32 or float64

    Attributes
    ----------
    params, grads : {"memory": (m, h), "output": (m + h, h), "scale": (1,)}

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> attention = LuongAttention(4, 8, rng=rng)
    >>> attention.set_memory(rng.standard_normal((2, 5, 8), np.float32), [5, 3])
    >>> attention.forward(rng.standard_normal((2, 1, 4), np.float32)).shape
    (2, 1, 4)
    """

    def __init__(
        self,
        width: int,
        memory_width: int,
        *,
        scaled: bool = True,
        tanh: bool = True,
        rng: np.random.Generator,
        dtype: Any = np.float32,
    ):
        dtype = np.dtype(dtype)
        self.params = {
            "memory": glorot(rng, (memory_width, width), dtype),
            "output": glorot(rng, (memory_width + width, width), dtype),
        }
        if scaled:
            self.params["scale"] = np.ones(1, dtype)
        self.grads: dict[str, Array] = {}
        self.tanh = tanh
        self._steps: list[tuple[Array, ...]] = []
        self._steps_back: list[tuple[Array, ...]] = []

    def set_memory(self, memory: Array, lengths: Any) -> None:
        """Take the memory that all forwards from now on attend to, and forget those before.

        Parameters
        ----------
        memory : (b, u, m)
        lengths : (b,) integers in [0, u]

        Raises
        ------
        TypeError, IndexError, ValueError
            If lengths do not fit.
        """
        mask = length_mask(lengths, *memory.shape[:2])
        self._mask = array_module(memory).asarray(mask)[:, None]
        self._memory, self._keys = memory, _map(memory, self.params["memory"])
        self._steps, self._steps_back = [], []

    def backward_memory(self) -> Array:
        """Fill `grads`; return the gradient of the memory, (b, u, m), summed over all queries.

        Raises
        ------
        RuntimeError
            Unless each forward has had its backward.
        """
        if self._steps or not self._steps_back:
            raise RuntimeError(
                f"backward_memory() comes last; {len(self._steps)} forwards wait for backward()"
            )
        # One product over all steps, where adding up step by step would write (b, u, m) numbers t times.
        xp = array_module(self._memory)
        joined = (xp.concatenate(arrays, axis=1) for arrays in zip(*self._steps_back, strict=True))
        both, dots, weights, d_sum, d_context, d_scores = joined
        memory, query = self._memory, both[..., self._memory.shape[2] :]
        d_keys = d_scores.swapaxes(1, 2) @ query
        if "scale" in self.params:
            d_keys *= self.params["scale"]
        self.grads = {"memory": _rows(memory).T @ _rows(d_keys), "output": _rows(both).T @ _rows(d_sum)}
        if "scale" in self.params:
            self.grads["scale"] = xp.vdot(d_scores, dots).reshape(1)
        return weights.swapaxes(1, 2) @ d_context + _map(d_keys, self.params["memory"].T)

    def forward(self, query: Array, train: bool = True) -> Array:
        """Attend to the memory, (b, t, h) -> (b, t, h); for a decoder step t = 1."""
        dots = query @ self._keys.swapaxes(1, 2)
        weights = masked_softmax(dots * self.params.get("scale", 1), self._mask)
        xp = array_module(query)
        both = xp.concatenate([weights @ self._memory, query], axis=2)
        output = _map(both, self.params["output"])
        if self.tanh:
            xp.tanh(output, out=output)
        if train:
            self._steps.append((both, dots, weights, output))
        return output

    def backward(self, d_output: Array) -> Array:
        """Gradient of the query of the last forward that has had none yet.

        Raises
        ------
        RuntimeError
            If there is none.
        """
        if not self._steps:
            raise RuntimeError("backward() needs a forward(query, train=True) before it")
        both, dots, weights, output = self._steps.pop()
        d_sum = d_output * (1 - output * output) if self.tanh else d_output
        d_both = _map(d_sum, self.params["output"].T)
        d_context, d_query = array_module(d_both).split(d_both, [self._memory.shape[2]], axis=2)
        d_scores = masked_softmax_backward(d_context @ self._memory.swapaxes(1, 2), weights)
        self._steps_back.append((both, dots, weights, d_sum, d_context, d_scores))
        return d_query + (d_scores * self.params.get("scale", 1)) @ self._keys


class KeysValues(NamedTuple):
    """A memory as the heads see it, kept so that a decoder projects each place once.

    Attributes
    ----------
    keys, values : (b, n_heads, u, s)
    """

    keys: Array
    values: Array

    def append(self, more: "KeysValues") -> "KeysValues":
        """Add places behind the others."""
        concatenate = array_module(self.keys).concatenate
        return KeysValues(*(concatenate(pair, axis=2) for pair in zip(self, more, strict=True)))

    def select(self, rows: Integers) -> "KeysValues":
        """Take sequences of the batch, repeated or in another order, as a beam search wants them."""
        rows = array_module(self.keys).asarray(rows)
        return KeysValues(self.keys[rows], self.values[rows])


class MultiHeadAttention:
    """Scaled dot-product attention in several heads, each of width s = width / n_heads.

    head = masked softmax(query W_q (memory W_k)^T / sqrt(s)) memory W_v;  output = [heads] W_o. No biases.

    Self-attention passes the same array as query and memory, and adds up both gradients.

    Parameters
    ----------
    width : int
    n_heads : int that divides width
    rng : numpy.random.Generator
    dtype : float32 or float64

    Attributes
    ----------
    params, grads : {"query", "key", "value", "output"}, (width, width) each

    Raises
    ------
    ValueError
        If n_heads does not divide width.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> x = rng.standard_normal((2, 5, 8), np.float32)
    >>> MultiHeadAttention(8, 2, rng=rng).forward(x, x, [5, 3], causal=True).shape
    (2, 5, 8)
    """

    def __init__(self, width: int, n_heads: int, *, rng: np.random.Generator, dtype: Any = np.float32):
        if checks.positive("width", width) % checks.positive("n_heads", n_heads):
            raise ValueError(f"n_heads={n_heads} does not divide width={width}")
        names = ("query", "key", "value", "output")
        self.params = {name: glorot(rng, (width, width), np.dtype(dtype)) for name in names}
        self.grads: dict[str, Array] = {}
        self.n_heads = n_heads
        self.scale = (width // n_heads) ** -0.5
        self._tape: tuple[Array, ...] | None = None

    def _split(self, x: Array) -> Array:
        """(b, t, h) -> (b, n_heads, t, s)."""
        b, t, h = x.shape
        return x.reshape(b, t, self.n_heads, h // self.n_heads).swapaxes(1, 2)

    def _merge(self, x: Array) -> Array:
        """(b, n_heads, t, s) -> (b, t, h)."""
        b, n_heads, t, s = x.shape
        return x.swapaxes(1, 2).reshape(b, t, n_heads * s)

    def keys_values(self, memory: Array) -> KeysValues:
        """Project a memory, (b, u, h), for `forward_step`."""
        return KeysValues(*(self._split(_map(memory, self.params[name])) for name in ("key", "value")))

    def forward_step(self, query: Array, cache: KeysValues, lengths: Any = None) -> Array:
        """Attend to what is projected already; nothing is kept for `backward`.

        A decoder's self-attention appends the place of its query first, and sees it and those before it.

        Parameters
        ----------
        query : (b, t, h)
        cache : KeysValues
        lengths : (b,) integers in [0, u], optional
            By default the whole memory counts.

        Returns
        -------
        (b, t, h)
        """
        return self._attend(query, cache, self._mask(query, cache, lengths, False))[0]

    def _mask(self, query: Array, cache: KeysValues, lengths: Any, causal: bool) -> Mask:
        """Broadcasts to (b, n_heads, t, u)."""
        b, _, u, _ = cache.keys.shape
        kept = length_mask(np.full(b, u) if lengths is None else lengths, b, u)[:, None, None]
        kept = kept & np.tri(query.shape[1], u, dtype=bool) if causal else kept
        return array_module(query).asarray(kept)

    def _attend(self, query: Array, cache: KeysValues, mask: Mask) -> tuple[Array, tuple[Array, ...]]:
        q = self._split(_map(query, self.params["query"]) * self.scale)
        weights = masked_softmax(q @ cache.keys.swapaxes(2, 3), mask)
        heads = self._merge(weights @ cache.values)
        return _map(heads, self.params["output"]), (q, *cache, weights, heads)

    def forward(
        self, query: Array, memory: Array, lengths: Any = None, *, causal: bool = False, train: bool = True
    ) -> Array:
        """Attend to a memory.

        Parameters
        ----------
        query : (b, t, h)
        memory : (b, u, h)
        lengths : (b,) integers in [0, u], optional
            By default the whole memory counts.
        causal : bool
            Query i sees the places up to i only.
        train : bool
            Keep what `backward` needs.

        Returns
        -------
        (b, t, h)

        Raises
        ------
        TypeError, IndexError, ValueError
            If lengths do not fit.
        """
        cache = self.keys_values(memory)
        output, tape = self._attend(query, cache, self._mask(query, cache, lengths, causal))
        self._tape = (query, memory, *tape) if train else None
        return output

    def backward(self, d_output: Array) -> tuple[Array, Array]:
        """Fill `grads`; return the gradients of the query and of the memory."""
        if self._tape is None:
            raise RuntimeError("backward() needs a forward(..., train=True) before it")
        query, memory, q, k, v, weights, heads = self._tape
        d_heads = self._split(_map(d_output, self.params["output"].T))
        d_scores = masked_softmax_backward(d_heads @ v.swapaxes(2, 3), weights)
        d_q = self._merge(d_scores @ k) * self.scale
        d_k = self._merge(d_scores.swapaxes(2, 3) @ q)  # q carries the scale
        d_v = self._merge(weights.swapaxes(2, 3) @ d_heads)
        products = {
            "query": (query, d_q),
            "key": (memory, d_k),
            "value": (memory, d_v),
            "output": (heads, d_output),
        }
        self.grads = {name: _rows(x).T @ _rows(d) for name, (x, d) in products.items()}
        d_memory = _map(d_k, self.params["key"].T) + _map(d_v, self.params["value"].T)
        return _map(d_q, self.params["query"].T), d_memory
