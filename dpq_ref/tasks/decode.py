"""Search for a translation, word by word: the likeliest word at each step, or a beam of hypotheses.

A model has `start(source, lengths, vectors)`, the state before the first word, and `step(words, state)`, the
log probabilities of the next one and the state after; a state has `select(rows)`. Sentences that have ended
leave the batch.
"""

from typing import Any, Protocol

import numpy as np

from dpq_ref import checks
from dpq_ref.datasets.documents import Sequences
from dpq_ref.datasets.pairs import END, START
from dpq_ref.kernels.reference import Array, Integers

BATCH = 32  # sentences, as released
LENGTH_FACTOR = 2  # target words a source word, as released


class Model(Protocol):
    """What can translate."""

    def table(self) -> Array:
        """Vectors of all words of the source."""

    def start(self, source: Integers, lengths: Integers, vectors: Array) -> Any:
        """State before the first word."""

    def step(self, words: Integers, state: Any) -> tuple[Array, Any]:
        """Log probabilities of the next word, (b, n), and the state after the words (b,)."""


def translate(
    model: Model,
    sources: Sequences,
    *,
    vectors: Array | None = None,
    width: int = 1,
    alpha: float = 0.0,
) -> list[Integers]:
    """Translate sentences.

    They come in batches of 32 as they stand, and no translation is longer than twice the longest sentence of
    its batch, as in tensorflow/nmt.

    Parameters
    ----------
    model : Model
    sources : Sequences
        Word ids.
    vectors : (vocab_size, dim), optional
        Of the source words, in place of the model's: a reconstructed table.
    width, alpha
        As in `beam`; a width of 1 is greedy.

    Returns
    -------
    list of integer arrays
        Word ids of each translation, without its end symbol.
    """
    vectors = model.table() if vectors is None else vectors
    translations = []
    for start in range(0, len(sources), BATCH):
        rows = np.arange(start, min(start + BATCH, len(sources)))
        lengths = sources.lengths[rows]
        state = model.start(sources.pad(rows, value=END), lengths, vectors)
        limits = np.full(len(rows), LENGTH_FACTOR * lengths.max())
        translations += (
            greedy(model, state, limits) if width == 1 else beam(model, state, limits, width, alpha)
        )
    return translations


def greedy(model: Model, state: Any, limits: Integers) -> list[Integers]:
    """Take the likeliest word at each step, the lowest id of several.

    Parameters
    ----------
    model : Model
    state
        Of b sentences, as `model.start` makes it.
    limits : (b,) integers
        Most words of each translation; one that reaches it ends there.

    Returns
    -------
    list of b integer arrays
        Words up to the end symbol, without it.
    """
    limits = np.asarray(limits, np.int64)
    output = np.full((len(limits), limits.max(initial=0)), END)
    sentences, words = np.arange(len(limits)), np.full(len(limits), START)
    for i in range(output.shape[1]):
        going = np.flatnonzero((words != END) & (limits[sentences] > i))
        if not len(going):
            break
        if len(going) < len(sentences):
            sentences, words, state = sentences[going], words[going], state.select(going)
        log_probabilities, state = model.step(words, state)
        words = log_probabilities.argmax(axis=1)
        output[sentences, i] = words
    return [_cut(row) for row in output]


def beam(model: Model, state: Any, limits: Integers, width: int, alpha: float = 0.0) -> list[Integers]:
    """Beam search: of all ways to go on, keep the best few at each step.

    A hypothesis Y has the score log P(Y) / ((5 + |Y|) / 6)^alpha, |Y| its words and its end symbol (Wu et
    al., *Google's Neural Machine Translation System*, 2016, section 7, without the coverage). Ended ones
    stay in the beam, and are crowded out by better ones. A beam of 1 is greedy.

    Parameters
    ----------
    model, state, limits
        As in `greedy`.
    width : int
        Hypotheses kept of each sentence.
    alpha : float
        Of the length penalty; 0 is none, more favours longer translations.

    Returns
    -------
    list of b integer arrays
        The best of each sentence, as in `greedy`.
    """
    limits, k = np.asarray(limits, np.int64), checks.positive("width", width)
    sentences, state = np.arange(len(limits)), state.select(np.repeat(np.arange(len(limits)), k))
    output = np.full((len(limits), k, limits.max(initial=0)), END)
    words, lengths = np.full((len(limits), k), START), np.zeros((len(limits), k), np.int64)
    totals = np.full((len(limits), k), -np.inf)  # float64, so that sums keep apart what float32 tells apart
    totals[:, 0] = 0  # all start alike: one is enough
    for i in range(output.shape[2]):
        going = np.flatnonzero((words != END).any(axis=1) & (limits[sentences] > i))
        if not len(going):
            break
        if len(going) < len(sentences):
            sentences, words, lengths, totals = (a[going] for a in (sentences, words, lengths, totals))
            state = state.select((going[:, None] * k + np.arange(k)).ravel())
        n, ended = len(going), words == END
        log_probabilities, state = model.step(words.ravel(), state)
        candidates = log_probabilities.reshape(n, k, -1).astype(np.float64)
        candidates[ended] = -np.inf
        candidates[ended, END] = 0  # what has ended goes on by its end symbol, at no cost
        candidates += totals[:, :, None]
        lengths = lengths + ~ended
        scores = candidates / (((5 + lengths) / 6) ** alpha)[:, :, None]

        chosen = _best(scores.reshape(n, -1), k)
        totals = np.take_along_axis(candidates.reshape(n, -1), chosen, axis=1)
        parents, words = np.divmod(chosen, candidates.shape[2])
        lengths = np.take_along_axis(lengths, parents, axis=1)
        history = np.take_along_axis(output[sentences], parents[:, :, None], axis=1)
        history[:, :, i] = words
        output[sentences] = history
        state = state.select((np.arange(n)[:, None] * k + parents).ravel())
    return [_cut(row[0]) for row in output]


def _best(scores: Array, k: int) -> Integers:
    """Columns of the k largest of each row, the largest first, of equals the first; changes `scores`."""
    rows, chosen = np.arange(len(scores)), np.empty((len(scores), k), np.int64)
    for i in range(k):
        chosen[:, i] = scores.argmax(axis=1)
        scores[rows, chosen[:, i]] = -np.inf
    return chosen


def _cut(words: Integers) -> Integers:
    ends = np.flatnonzero(words == END)
    return words[: ends[0]] if len(ends) else words
