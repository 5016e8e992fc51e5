"""Models of translation, sequence to sequence: the paper's, recurrent with attention, and the Transformer.

Both read the source through the embedding that may be compressed, and the target so far through a full one.
Loss of a batch: the cross-entropies of all target tokens, summed, over the number of its sentences.

Letters: `b` sentences of the batch, `u` places of the source, `t` of the target, `e` width of an embedding,
`h` width of the output.
"""

from typing import Any, NamedTuple

import numpy as np
import scipy.special

from dpq_ref.backend import array_module, to_numpy
from dpq_ref.datasets.pairs import SentencePairs, TranslationBatch
from dpq_ref.kernels.reference import Array, Integers
from dpq_ref.layers import (
    LSTM,
    BidirectionalLSTM,
    Decoder,
    Dropout,
    Encoder,
    FullEmbedding,
    LuongAttention,
    SoftmaxOutput,
    length_mask,
)
from dpq_ref.layers.attention import Mask
from dpq_ref.layers.recurrent import State
from dpq_ref.network import Network

EVALUATION_BATCH = 32  # sentences


class Translator(Network):
    """What both models share: two embeddings, a softmax over the target vocabulary, the loss.

    The words of the source are embedded, not the padding behind them: it enters neither batch norm nor
    codebook loss of a DPQ layer, by its place, whatever its id.

    A subclass has `_run`, `_run_backward`, `_start` and `_step`, from vectors to vectors.

    Parameters
    ----------
    embedding, target : layer
        From ids of source and target to vectors.
    output : SoftmaxOutput
    layers : dict
        All others, by name.
    embed_padding : bool
        Embed the padding of the source, too, as released.
    """

    def __init__(
        self,
        embedding: Any,
        target: FullEmbedding,
        output: SoftmaxOutput,
        layers: dict[str, Any],
        *,
        embed_padding: bool,
    ):
        super().__init__({"embedding": embedding, "target": target, **layers, "output": output})
        self.move(embedding.kernels)
        self.embedding, self.target, self.output = embedding, target, output
        self.kernels = embedding.kernels
        self.embed_padding = embed_padding

    def _run(self, x: Array, lengths: Integers, y: Array, train: bool) -> Array:
        """Source (b, u, e), its lengths (b,), target so far (b, t, e) -> what predicts, (b, t, h)."""
        raise NotImplementedError

    def _run_backward(self, d_output: Array) -> tuple[Array, Array]:
        """Fill the `grads` of the layers between; return the gradients of source and target vectors."""
        raise NotImplementedError

    def _start(self, x: Array, lengths: Integers) -> Any:
        """State before the first target word."""
        raise NotImplementedError

    def _step(self, y: Array, state: Any) -> tuple[Array, Any]:
        """One more target word, (b, e), in evaluation: what predicts the next one, (b, h), and the state."""
        raise NotImplementedError

    def loss_and_gradients(self, batch: TranslationBatch) -> Any:
        """Loss of a batch in training mode, that of the codebooks included; fills `grads`."""
        source, targets, xp = batch.source, batch.targets, self.kernels.xp
        b = len(source)
        kept, real = length_mask(batch.source_lengths, *source.shape), _real(batch)
        if self.embed_padding:
            kept = np.ones_like(kept)
        x = xp.zeros((*source.shape, self.embedding.dim), self.embedding.dtype)
        places, words = (tuple(map(xp.asarray, np.nonzero(mask))) for mask in (kept, real))
        x[places] = self.embedding.forward(source[kept])
        hidden = self._run(x, batch.source_lengths, self.target.forward(batch.inputs), train=True)
        weights = np.full(real.sum(), 1 / b, hidden.dtype)
        losses, d_real = self.output.loss(hidden[words], targets[real], weights)

        d_hidden = xp.zeros_like(hidden)
        d_hidden[words] = d_real
        d_x, d_y = self._run_backward(d_hidden)
        self.embedding.backward(d_x[places])
        self.target.backward(d_y)
        return losses.sum(dtype=np.float64) / b + getattr(self.embedding, "codebook_loss", 0.0)

    def table(self) -> Array:
        """Vectors of all words of the source in evaluation, (vocab_size, dim)."""
        return self.embedding.forward(np.arange(self.embedding.vocab_size), train=False)

    def _look_up(self, vectors: Array, source: Integers) -> Array:
        vectors, ids = map(self.kernels.xp.asarray, (vectors, source.ravel()))
        return self.kernels.gather(vectors, ids).reshape(*source.shape, -1)

    def losses(self, batch: TranslationBatch, vectors: Array) -> Array:
        """Cross-entropy of each target token, sentence after sentence, in evaluation.

        Parameters
        ----------
        batch : TranslationBatch
        vectors : (vocab_size, dim)
            Of the source words: `table()`, or a reconstructed one.

        Returns
        -------
        (batch.target_lengths.sum(),), on the host
        """
        y, real = self.target.forward(batch.inputs, train=False), _real(batch)
        words = tuple(map(self.kernels.xp.asarray, np.nonzero(real)))
        hidden = self._run(self._look_up(vectors, batch.source), batch.source_lengths, y, train=False)
        return to_numpy(self.output.losses(hidden[words], batch.targets[real]))

    def perplexity(self, pairs: SentencePairs, *, vectors: Array | None = None) -> float:
        """Perplexity exp(mean loss of a target token), the end of a sentence included; nothing is cut."""
        vectors = self.table() if vectors is None else vectors
        order = np.argsort(pairs.target.lengths, kind="stable")  # less padding
        parts = [order[i : i + EVALUATION_BATCH] for i in range(0, len(order), EVALUATION_BATCH)]
        losses = np.concatenate([self.losses(pairs.batch(rows), vectors) for rows in parts])
        return float(np.exp(losses.mean(dtype=np.float64)))

    def start(self, source: Integers, lengths: Integers, vectors: Array) -> Any:
        """State of decoding before the first word.

        Parameters
        ----------
        source : (b, u) integers
        lengths : (b,) integers
        vectors : (vocab_size, dim)
            As in `losses`.

        Returns
        -------
        state
            Its `select(rows)` takes sentences, repeated or in another order.
        """
        return self._start(self._look_up(vectors, source), lengths)

    def step(self, words: Integers, state: Any) -> tuple[Array, Any]:
        """Log probabilities of the next word.

        Parameters
        ----------
        words : (b,) integers
            The last ones, at first the start symbol.
        state
            Not changed.

        Returns
        -------
        log_probabilities : (b, target vocabulary), on the host
        state
        """
        hidden, state = self._step(self.target.forward(words, train=False), state)
        return scipy.special.log_softmax(to_numpy(self.output.logits(hidden)), axis=1), state


def _real(batch: TranslationBatch) -> Mask:
    """Target tokens that are no padding, (b, t)."""
    return length_mask(batch.target_lengths, *batch.targets.shape)


class DecoderLSTM(LSTM):
    """LSTM that goes one step at a time, then back, with a stack as that of `LuongAttention`.

    Parameters and attributes are those of `LSTM`.
    """

    def begin(self) -> None:
        """Forget all steps."""
        self._steps: list[tuple[Array, ...]] = []
        self._steps_back: list[tuple[Array, ...]] = []

    def step(self, x: Array, state: State, train: bool = True) -> State:
        """State after one more step, given the input (b, n_inputs) and the state before."""
        hidden, cell = state
        p = self.params
        gates = x @ p["input_weight"] + hidden @ p["hidden_weight"] + p["bias"]
        activations, new, output = self.kernels.lstm_cell(gates, cell)
        if train:
            self._steps.append((x, hidden, activations, cell, new))
        return output, new

    def step_backward(self, d_state: State) -> tuple[Array, State]:
        """Gradients of the input and of the state before, for the last step that has had none yet."""
        x, hidden, activations, cell, new = self._steps.pop()
        d_gates, d_cell = self.kernels.lstm_cell_backward(*d_state, activations, cell, new)
        self._steps_back.append((x, hidden, d_gates))
        d_hidden = d_gates @ self.params["hidden_weight"].T
        return d_gates @ self.params["input_weight"].T, (d_hidden, d_cell)

    def backward_weights(self) -> None:
        """Fill `grads`, summed over all steps."""
        concatenate = self.kernels.xp.concatenate
        x, hidden, d_gates = (concatenate(arrays) for arrays in zip(*self._steps_back, strict=True))
        self.grads = {
            "input_weight": x.T @ d_gates,
            "hidden_weight": hidden.T @ d_gates,
            "bias": d_gates.sum(axis=0),
        }
        self.begin()


class Memory(NamedTuple):
    """What `LuongAttention` attends to.

    Attributes
    ----------
    places : (b, u, m)
    keys : (b, u, h)
    mask : (b, 1, u) bool
    """

    places: Array
    keys: Array
    mask: Mask

    def select(self, rows: Integers) -> "Memory":
        """Take sentences of the batch."""
        rows = array_module(self.places).asarray(rows)
        return Memory(self.places[rows], self.keys[rows], self.mask[rows])


class DecoderAttention(LuongAttention):
    """Luong's attention whose memory can be taken out, and put back for other sentences of the batch."""

    @property
    def memory(self) -> Memory:
        """As `set_memory` made it."""
        return Memory(self._memory, self._keys, self._mask)

    @memory.setter
    def memory(self, memory: Memory) -> None:
        self._memory, self._keys, self._mask = memory


class AttentionState(NamedTuple):
    """What the recurrent decoder keeps from one word to the next.

    Attributes
    ----------
    memory : Memory
    fed : (b, h)
        Output of the attention, which the next step reads beside its word.
    cells : (State, State)
        Of both layers.
    """

    memory: Memory
    fed: Array
    cells: tuple[State, State]

    def select(self, rows: Integers) -> "AttentionState":
        """Take sentences of the batch, repeated or in another order."""
        there = array_module(self.fed).asarray(rows)
        first, second = ((hidden[there], cell[there]) for hidden, cell in self.cells)
        return AttentionState(self.memory.select(rows), self.fed[there], (first, second))


class AttentionTranslator(Translator):
    """The paper's model, that of tensorflow/nmt: a bidirectional LSTM, and two LSTMs with Luong's attention.

    The two layers of the decoder start from the last state of the way forward and of the way back. Each step
    reads a word and the output of the attention of the step before ("input feeding"), which is also what
    the softmax sees. As in tensorflow/nmt that output is linear, without the tanh of Luong, Pham and
    Manning; scores are scaled by one learned number; dropout is on the inputs of all cells; forget gates
    start with a bias of 1, all weights uniform.

    Otherwise than there, both ways of the encoder share one dropout, and the softmax has a bias.

    Parameters
    ----------
    embedding : layer
        From source ids (...,) to vectors (..., dim).
    vocab_size : int
        Of the target.
    n_hidden : int
        Cells of an LSTM, and width of the target embedding.
    keep : float in (0, 1]
        Probability of an entry to be kept by the dropouts.
    init : float
        Weights start uniform in (-init, init); those of `embedding` are its own affair.
    embed_padding : bool
        Embed the padding of the source, too, so that it enters the statistics and the codebook loss of a DPQ
        layer, as released.
    rng : int or numpy.random.Generator
        Draws the weights and the dropouts.
    """

    def __init__(
        self,
        embedding: Any,
        vocab_size: int,
        *,
        n_hidden: int = 512,
        keep: float = 0.8,
        init: float = 0.1,
        embed_padding: bool = False,
        rng: int | np.random.Generator = 0,
    ):
        rng, h, dtype = np.random.default_rng(rng), n_hidden, embedding.dtype
        options: dict[str, Any] = {"init": init, "rng": rng, "dtype": dtype, "backend": embedding.kernels}
        self.encoder = BidirectionalLSTM(embedding.dim, h, forget_bias=1.0, **options)
        self.cells = [DecoderLSTM(n, h, forget_bias=1.0, **options) for n in (2 * h, h)]
        self.attention = DecoderAttention(h, 2 * h, tanh=False, rng=rng, dtype=dtype)
        for name in ("memory", "output"):
            weight = self.attention.params[name]
            weight[:] = rng.uniform(-init, init, weight.shape)
        self.dropouts = [Dropout(keep, rng=rng) for _ in range(3)]
        layers = {"encoder": self.encoder, "attention": self.attention}
        layers |= {f"decoder{i}": cell for i, cell in enumerate(self.cells, 1)}
        layers |= {f"dropout{i}": dropout for i, dropout in enumerate(self.dropouts)}
        target, output = FullEmbedding(vocab_size, h, **options), SoftmaxOutput(vocab_size, h, **options)
        super().__init__(embedding, target, output, layers, embed_padding=embed_padding)

    def _run(self, x: Array, lengths: Integers, y: Array, train: bool) -> Array:
        state = self._encode(x, lengths, train)
        b, t, h = y.shape
        # The masks of all steps at once: the dropouts see ones, the cells their products.
        xp = self.kernels.xp
        ones = (xp.ones((t, b, n), y.dtype) for n in (2 * h, h))
        self._masks = [
            dropout.forward(one, train) for dropout, one in zip(self.dropouts[1:], ones, strict=True)
        ]
        for cell in self.cells:
            cell.begin()
        output = xp.empty_like(y)
        for i in range(t):
            state = self._advance(y[:, i], state, [mask[i] for mask in self._masks], train)
            output[:, i] = state.fed
        return output

    def _encode(self, x: Array, lengths: Integers, train: bool) -> AttentionState:
        places = self.encoder.forward(self.dropouts[0].forward(x, train), train, lengths=lengths)
        self.attention.set_memory(places, lengths)
        fed = self.kernels.xp.zeros((len(x), self.encoder.n_hidden), x.dtype)
        return AttentionState(self.attention.memory, fed, self.encoder.states)

    def _advance(self, y: Array, state: AttentionState, masks: list[Any], train: bool) -> AttentionState:
        """One step of the decoder, attending to the memory that is set."""
        x = self.kernels.xp.concatenate([y, state.fed], axis=1) * masks[0]
        first = self.cells[0].step(x, state.cells[0], train)
        second = self.cells[1].step(first[0] * masks[1], state.cells[1], train)
        fed = self.attention.forward(second[0][:, None], train)[:, 0]
        return AttentionState(state.memory, fed, (first, second))

    def _run_backward(self, d_output: Array) -> tuple[Array, Array]:
        xp = self.kernels.xp
        d_y, d_fed = xp.empty_like(d_output), xp.zeros_like(d_output[:, 0])
        d_first, d_second = ((xp.zeros_like(d_fed), xp.zeros_like(d_fed)) for _ in self.cells)
        for i in reversed(range(d_output.shape[1])):
            d_query = self.attention.backward((d_output[:, i] + d_fed)[:, None])[:, 0]
            d_x, d_second = self.cells[1].step_backward((d_second[0] + d_query, d_second[1]))
            d_x *= self._masks[1][i]
            d_x, d_first = self.cells[0].step_backward((d_first[0] + d_x, d_first[1]))
            d_x *= self._masks[0][i]
            d_y[:, i], d_fed = xp.split(d_x, 2, axis=1)
        for cell in self.cells:
            cell.backward_weights()
        d_x = self.encoder.backward(self.attention.backward_memory(), d_states=(d_first, d_second))
        return self.dropouts[0].backward(d_x), d_y

    def _start(self, x: Array, lengths: Integers) -> AttentionState:
        return self._encode(x, lengths, train=False)

    def _step(self, y: Array, state: AttentionState) -> tuple[Array, AttentionState]:
        self.attention.memory = state.memory
        state = self._advance(y, state, [1, 1], train=False)
        return state.fed, state


class TransformerTranslator(Translator):
    """The Transformer of `dpq_ref.layers.transformer` (Vaswani et al., NeurIPS 2017, layer norm first).

    Parameters
    ----------
    embedding : layer
        From source ids (...,) to vectors (..., dim); dim is the width of the model. Its vectors are
        multiplied by sqrt(dim), so that they should start with variance 1 / dim, as the target's do.
    vocab_size : int
        Of the target.
    n_layers, n_heads, hidden : int
        Of encoder and decoder; the defaults are the paper's base model.
    keep : float in (0, 1]
        Probability of an entry to be kept by the dropouts.
    smoothing : float
        Of the labels in training.
    embed_padding : bool
        As in `AttentionTranslator`.
    rng : int or numpy.random.Generator
        Draws the weights and the dropouts.
    """

    def __init__(
        self,
        embedding: Any,
        vocab_size: int,
        *,
        n_layers: int = 6,
        n_heads: int = 8,
        hidden: int = 2048,
        keep: float = 0.9,
        smoothing: float = 0.1,
        embed_padding: bool = False,
        rng: int | np.random.Generator = 0,
    ):
        rng, width, dtype = np.random.default_rng(rng), embedding.dim, embedding.dtype
        self.encoder = Encoder(n_layers, width, n_heads, hidden, keep=keep, rng=rng, dtype=dtype)
        self.decoder = Decoder(n_layers, width, n_heads, hidden, keep=keep, rng=rng, dtype=dtype)
        init = (3 / width) ** 0.5  # variance 1 / width
        options: dict[str, Any] = {"init": init, "rng": rng, "dtype": dtype, "backend": embedding.kernels}
        layers = {"encoder": self.encoder, "decoder": self.decoder}
        target = FullEmbedding(vocab_size, width, **options)
        output = SoftmaxOutput(vocab_size, width, smoothing=smoothing, **options)
        super().__init__(embedding, target, output, layers, embed_padding=embed_padding)

    def _run(self, x: Array, lengths: Integers, y: Array, train: bool) -> Array:
        return self.decoder.forward(y, self.encoder.forward(x, lengths, train), lengths, train)

    def _run_backward(self, d_output: Array) -> tuple[Array, Array]:
        d_y, d_memory = self.decoder.backward(d_output)
        return self.encoder.backward(d_memory), d_y

    def _start(self, x: Array, lengths: Integers) -> Any:
        return self.decoder.start(self.encoder.forward(x, lengths, False), lengths)

    def _step(self, y: Array, state: Any) -> tuple[Array, Any]:
        output, state = self.decoder.forward_step(y[:, None], state)
        return output[:, 0], state
