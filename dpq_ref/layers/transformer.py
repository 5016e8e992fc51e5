"""The Transformer (Vaswani et al., *Attention Is All You Need*, NeurIPS 2017) between two embeddings.

An encoder takes the word vectors of the source, a decoder those of the target shifted by one and what the
encoder made; a projection to the vocabulary follows. Word vectors times sqrt(width), plus positions.

The layer norm stands before each sub-layer and once at the end, x + f(norm(x)), not after the sum as in the
paper: so it trains at a constant rate, without warm-up (Xiong et al., ICML 2020). Dropout where the paper has
it (section 5.4): on each f before it is added, and on the sum of word vectors and positions.

Letters: `b` sequences of the batch, `t` places of each, `u` places of the source.
"""

from typing import Any, NamedTuple

import numpy as np

from dpq_ref import checks
from dpq_ref.backend import array_module
from dpq_ref.kernels.reference import Array, Integers
from dpq_ref.layers.attention import KeysValues, MultiHeadAttention
from dpq_ref.layers.dense import Dense, Relu
from dpq_ref.layers.dropout import Dropout
from dpq_ref.layers.norm import LayerNorm
from dpq_ref.network import Network


def positions(length: int, width: int, *, start: int = 0, dtype: Any = np.float32) -> Array:
    """Sinusoids of geometric wavelengths (section 3.5), the same for every sequence.

    Entry 2i of place p is sin(p / 10000^(2i / width)), entry 2i + 1 the cosine.

    Parameters
    ----------
    length, width : int
    start : int
        First place.
    dtype : float32 or float64

    Returns
    -------
    (length, width)

    Examples
    --------
    >>> positions(2, 4, dtype=np.float64).round(4)
    array([[0.    , 1.    , 0.    , 1.    ],
           [0.8415, 0.5403, 0.01  , 1.    ]])
    """
    angles = np.arange(start, start + length)[:, None] / 10000.0 ** (np.arange(0, width, 2) / width)
    encoding = np.empty((length, width), dtype)
    encoding[:, 0::2] = np.sin(angles)
    encoding[:, 1::2] = np.cos(angles[:, : width // 2])
    return encoding


class FeedForward(Network):
    """The same two dense layers with a rectifier between them at every place, max(0, x W1 + b1) W2 + b2.

    Parameters
    ----------
    width, hidden : int
    rng : numpy.random.Generator
    dtype : float32 or float64
    """

    def __init__(self, width: int, hidden: int, *, rng: np.random.Generator, dtype: Any = np.float32):
        self.layers = {
            "inner": Dense(width, hidden, rng=rng, dtype=dtype),
            "relu": Relu(),
            "outer": Dense(hidden, width, rng=rng, dtype=dtype),
        }

    def forward(self, x: Array, train: bool = True) -> Array:
        """Map (b, t, width) to (b, t, width)."""
        flat = x.reshape(-1, x.shape[-1])
        for layer in self.layers.values():
            flat = layer.forward(flat, train)
        return flat.reshape(x.shape)

    def backward(self, d_output: Array) -> Array:
        """Fill `grads`; return the gradient of the input."""
        flat = d_output.reshape(-1, d_output.shape[-1])
        for layer in reversed(self.layers.values()):
            flat = layer.backward(flat)
        return flat.reshape(d_output.shape)


class EncoderLayer(Network):
    """Self-attention, then feed-forward.

    Parameters
    ----------
    width, n_heads, hidden : int
    keep : float
        Probability that dropout keeps an entry.
    rng : numpy.random.Generator
        Draws the parameters, then the dropout.
    dtype : float32 or float64
    """

    def __init__(
        self, width: int, n_heads: int, hidden: int, *, keep: float, rng: np.random.Generator, dtype: Any
    ):
        self.norm1, self.norm2 = LayerNorm(width, dtype=dtype), LayerNorm(width, dtype=dtype)
        self.dropout1, self.dropout2 = Dropout(keep, rng=rng), Dropout(keep, rng=rng)
        self.attention = MultiHeadAttention(width, n_heads, rng=rng, dtype=dtype)
        self.feed_forward = FeedForward(width, hidden, rng=rng, dtype=dtype)
        self.layers = {
            "norm1": self.norm1,
            "attention": self.attention,
            "dropout1": self.dropout1,
            "norm2": self.norm2,
            "feed_forward": self.feed_forward,
            "dropout2": self.dropout2,
        }

    def forward(self, x: Array, lengths: Any, train: bool = True) -> Array:
        """Map (b, t, width), of which the first `lengths` places count, to (b, t, width)."""
        normed = self.norm1.forward(x, train)
        attended = self.attention.forward(normed, normed, lengths, train=train)
        x = x + self.dropout1.forward(attended, train)
        fed = self.feed_forward.forward(self.norm2.forward(x, train), train)
        return x + self.dropout2.forward(fed, train)

    def backward(self, d_output: Array) -> Array:
        """Fill `grads`; return the gradient of the input."""
        d = self.feed_forward.backward(self.dropout2.backward(d_output))
        d = d_output + self.norm2.backward(d)
        d_query, d_memory = self.attention.backward(self.dropout1.backward(d))
        return d + self.norm1.backward(d_query + d_memory)


class DecoderLayer(Network):
    """Causal self-attention, attention over what the encoder made, then feed-forward.

    Parameters are those of `EncoderLayer`.
    """

    def __init__(
        self, width: int, n_heads: int, hidden: int, *, keep: float, rng: np.random.Generator, dtype: Any
    ):
        self.norm1, self.norm2, self.norm3 = (LayerNorm(width, dtype=dtype) for _ in range(3))
        self.dropout1, self.dropout2, self.dropout3 = (Dropout(keep, rng=rng) for _ in range(3))
        self.self_attention = MultiHeadAttention(width, n_heads, rng=rng, dtype=dtype)
        self.attention = MultiHeadAttention(width, n_heads, rng=rng, dtype=dtype)
        self.feed_forward = FeedForward(width, hidden, rng=rng, dtype=dtype)
        self.layers = {
            "norm1": self.norm1,
            "self_attention": self.self_attention,
            "dropout1": self.dropout1,
            "norm2": self.norm2,
            "attention": self.attention,
            "dropout2": self.dropout2,
            "norm3": self.norm3,
            "feed_forward": self.feed_forward,
            "dropout3": self.dropout3,
        }

    def forward(self, x: Array, memory: Array, lengths: Any, train: bool = True) -> Array:
        """Map (b, t, width), given a memory (b, u, width) and its lengths, to (b, t, width)."""
        normed = self.norm1.forward(x, train)
        own = self.self_attention.forward(normed, normed, causal=True, train=train)
        x = x + self.dropout1.forward(own, train)
        attended = self.attention.forward(self.norm2.forward(x, train), memory, lengths, train=train)
        x = x + self.dropout2.forward(attended, train)
        fed = self.feed_forward.forward(self.norm3.forward(x, train), train)
        return x + self.dropout3.forward(fed, train)

    def backward(self, d_output: Array) -> tuple[Array, Array]:
        """Fill `grads`; return the gradients of the input and of the memory."""
        d = self.feed_forward.backward(self.dropout3.backward(d_output))
        d = d_output + self.norm3.backward(d)
        d_query, d_memory = self.attention.backward(self.dropout2.backward(d))
        d = d + self.norm2.backward(d_query)
        d_query, d_own = self.self_attention.backward(self.dropout1.backward(d))
        return d + self.norm1.backward(d_query + d_own), d_memory

    def forward_step(
        self, x: Array, own: KeysValues, memory: KeysValues, lengths: Any
    ) -> tuple[Array, KeysValues]:
        """Evaluate one more place, (b, 1, width), given those before it; return its output and them all."""
        normed = self.norm1.forward(x, False)
        own = own.append(self.self_attention.keys_values(normed))
        x = x + self.self_attention.forward_step(normed, own)
        x = x + self.attention.forward_step(self.norm2.forward(x, False), memory, lengths)
        return x + self.feed_forward.forward(self.norm3.forward(x, False), False), own


class _Stack(Network):
    """What encoder and decoder share: word vectors with their positions, n layers, layer norm."""

    _layer: Any

    def __init__(
        self,
        n_layers: int,
        width: int,
        n_heads: int,
        hidden: int,
        *,
        keep: float = 1.0,
        rng: int | np.random.Generator = 0,
        dtype: Any = np.float32,
    ):
        rng = np.random.default_rng(rng)
        self.dropout = Dropout(keep, rng=rng)
        self.stack = [
            self._layer(width, n_heads, hidden, keep=keep, rng=rng, dtype=dtype)
            for _ in range(checks.positive("n_layers", n_layers))
        ]
        self.norm = LayerNorm(width, dtype=dtype)
        layers = {"dropout": self.dropout} | {str(i): layer for i, layer in enumerate(self.stack)}
        super().__init__(layers | {"norm": self.norm})

    def _embed(self, words: Array, start: int = 0) -> Array:
        _, t, width = words.shape
        places = positions(t, width, start=start, dtype=words.dtype)
        return words * width**0.5 + array_module(words).asarray(places)

    def _embed_backward(self, d: Array) -> Array:
        return d * d.shape[-1] ** 0.5


class Encoder(_Stack):
    """Word vectors of a source with their positions, n layers, layer norm.

    Parameters
    ----------
    n_layers, width, n_heads, hidden : int
        The paper's base model: 6, 512, 8, 2048.
    keep : float in (0, 1]
        Probability that dropout keeps an entry; the paper's base model: 0.9.
    rng : int or numpy.random.Generator
    dtype : float32 or float64

    Attributes
    ----------
    params, grads : dict
        Those of all layers, as "0.attention.query".

    Raises
    ------
    TypeError, ValueError
        For sizes that do not fit together.
    """

    _layer = EncoderLayer

    def forward(self, words: Array, lengths: Any, train: bool = True) -> Array:
        """Encode word vectors (b, t, width), of which the first `lengths` (b,) places count."""
        x = self.dropout.forward(self._embed(words), train)
        for layer in self.stack:
            x = layer.forward(x, lengths, train)
        return self.norm.forward(x, train)

    def backward(self, d_output: Array) -> Array:
        """Fill `grads`; return the gradient of the word vectors."""
        d = self.norm.backward(d_output)
        for layer in reversed(self.stack):
            d = layer.backward(d)
        return self._embed_backward(self.dropout.backward(d))


class DecoderState(NamedTuple):
    """What a decoder keeps from one place to the next.

    Attributes
    ----------
    own : tuple of KeysValues, one a layer
        Of the places so far.
    memory : tuple of KeysValues, one a layer
        Of what the encoder made.
    lengths : (b,) integers
        Of the memory.
    """

    own: tuple[KeysValues, ...]
    memory: tuple[KeysValues, ...]
    lengths: Integers

    def select(self, rows: Integers) -> "DecoderState":
        """Take sequences of the batch, repeated or in another order, as a beam search wants them."""
        own, memory = (tuple(part.select(rows) for part in parts) for parts in (self.own, self.memory))
        return DecoderState(own, memory, self.lengths[rows])


class Decoder(_Stack):
    """Word vectors of a target with their positions, n layers over a memory, layer norm.

    What stands beyond the end of a target changes nothing before it.

    Parameters, attributes and errors are those of `Encoder`.

    Examples
    --------
    >>> words = np.ones((2, 5, 8), np.float32)
    >>> encoder, decoder = Encoder(2, 8, 4, 16), Decoder(2, 8, 4, 16)
    >>> memory = encoder.forward(words, [5, 3])
    >>> at_once = decoder.forward(words, memory, [5, 3])
    >>> state = decoder.start(memory, [5, 3])
    >>> for t in range(5):
    ...     output, state = decoder.forward_step(words[:, t : t + 1], state)
    >>> np.allclose(output, at_once[:, 4:], atol=1e-5)
    True
    """

    _layer = DecoderLayer

    def forward(self, words: Array, memory: Array, lengths: Any, train: bool = True) -> Array:
        """Decode word vectors (b, t, width), given a memory (b, u, width) and its lengths (b,)."""
        x = self.dropout.forward(self._embed(words), train)
        for layer in self.stack:
            x = layer.forward(x, memory, lengths, train)
        return self.norm.forward(x, train)

    def backward(self, d_output: Array) -> tuple[Array, Array]:
        """Fill `grads`; return the gradients of the word vectors and of the memory."""
        d = self.norm.backward(d_output)
        d_memory: Any = 0
        for layer in reversed(self.stack):
            d, d_more = layer.backward(d)
            d_memory = d_memory + d_more
        return self._embed_backward(self.dropout.backward(d)), d_memory

    def start(self, memory: Array, lengths: Any) -> DecoderState:
        """State before the first place."""
        own = tuple(layer.self_attention.keys_values(memory[:, :0]) for layer in self.stack)
        projected = tuple(layer.attention.keys_values(memory) for layer in self.stack)
        return DecoderState(own, projected, np.asarray(lengths))

    def forward_step(self, words: Array, state: DecoderState) -> tuple[Array, DecoderState]:
        """Evaluate one more place, as `forward` would in evaluation.

        Parameters
        ----------
        words : (b, 1, width)
        state : DecoderState
            Not changed.

        Returns
        -------
        output : (b, 1, width)
        state : DecoderState
        """
        x, own = self._embed(words, start=state.own[0].keys.shape[2]), []
        for layer, places, memory in zip(self.stack, state.own, state.memory, strict=True):
            x, more = layer.forward_step(x, places, memory, state.lengths)
            own.append(more)
        return self.norm.forward(x, False), state._replace(own=tuple(own))
