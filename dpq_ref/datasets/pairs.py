"""Pairs of sentences: two sides of word ids, and batches of pairs of similar length, as in tensorflow/nmt."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from dpq_ref import checks
from dpq_ref.datasets.documents import Sequences

__all__ = ["END", "START", "UNKNOWN", "Buckets", "SentencePairs", "TranslationBatch"]

UNKNOWN, START, END = 0, 1, 2


@dataclass(frozen=True, eq=False)
class TranslationBatch:
    """Pairs of sentences as matrices, padded on the right with `END`.

    Parameters
    ----------
    source : int32 array of shape (b, S)
        Word ids; no symbol is added.
    source_lengths : int64 array of shape (b,)
        Words of each source sentence.
    inputs, targets : int32 arrays of shape (b, T)
        What the decoder reads, `START` and the target words; what it is to say, the words and `END`.
    target_lengths : int64 array of shape (b,)
        Words of each target sentence and one.
    """

    source: NDArray[np.int32]
    source_lengths: NDArray[np.int64]
    inputs: NDArray[np.int32]
    targets: NDArray[np.int32]
    target_lengths: NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class SentencePairs:
    """Sentences and their translations.

    Parameters
    ----------
    source, target : Sequences
        Word ids of the two sides, without start and end.
    references : tuple of str
        The target sentences as they stand in the file.

    Raises
    ------
    ValueError
        If the three are not of one length.
    """

    source: Sequences
    target: Sequences
    references: tuple[str, ...]

    def __post_init__(self) -> None:
        """Check that the sides match."""
        sizes = len(self.source), len(self.target), len(self.references)
        if len(set(sizes)) > 1:
            raise ValueError("{} source and {} target sentences and {} references".format(*sizes))

    def __len__(self) -> int:
        """Return the number of pairs."""
        return len(self.source)

    def batch(self, rows: ArrayLike, max_tokens: int | None = None) -> TranslationBatch:
        """Return some pairs as matrices.

        Parameters
        ----------
        rows : integer array of shape (b,)
            Numbers of pairs, in any order.
        max_tokens : int, optional
            Keep at most so many words of each sentence, the first ones.

        Returns
        -------
        TranslationBatch

        Raises
        ------
        TypeError, IndexError, ValueError
            As in `Sequences.pad`.
        """
        source, target = (side.pad(rows, max_tokens, value=END) for side in (self.source, self.target))
        chosen = np.asarray(rows, np.int64)
        column = np.full((len(chosen), 1), START, np.int32)
        return TranslationBatch(
            source=source,
            source_lengths=np.minimum(self.source.lengths[chosen], source.shape[1]),
            inputs=np.hstack([column, target]),
            targets=np.hstack([target, np.full_like(column, END)]),
            target_lengths=np.minimum(self.target.lengths[chosen], target.shape[1]) + 1,
        )


class Buckets:
    """Training batches of pairs of similar length, each pair once in an epoch, in another order each epoch.

    Pairs are put together as in tensorflow/nmt: sentences are cut, pairs with an empty side left out, and a
    pair whose longer side (the end symbol counts) has l tokens goes into bucket ``l // width``, where
    ``width = ceil(max_tokens / n_buckets)``; the longest go into one bucket more. The last batch of a bucket
    may be short. Unlike there, an epoch is shuffled as a whole, and so are its batches.

    Parameters
    ----------
    pairs : SentencePairs
    batch_size : int
        Pairs in a batch.
    max_tokens : int, default 50
        Keep at most so many words of each sentence.
    n_buckets : int, default 5
    seed : int, default 0
        With the number of an epoch gives its order.

    Attributes
    ----------
    batches_per_epoch : int
        The same for all epochs.

    Raises
    ------
    TypeError, ValueError
        If a number is no integer or below 1, or no pair has two sides.

    Examples
    --------
    >>> side = Sequences(np.arange(3, 9, dtype="i4"), np.array([0, 1, 4, 5, 6]))  # lengths 1, 3, 1, 1
    >>> pairs = SentencePairs(side, side, references=("d", "e f g", "h", "i"))
    >>> buckets = Buckets(pairs, batch_size=2, max_tokens=4, n_buckets=2)
    >>> sorted(buckets.batch(step).source.shape for step in range(buckets.batches_per_epoch))
    [(1, 1), (1, 3), (2, 1)]
    """

    def __init__(
        self,
        pairs: SentencePairs,
        batch_size: int,
        *,
        max_tokens: int = 50,
        n_buckets: int = 5,
        seed: int = 0,
    ) -> None:
        self.pairs = pairs
        self.batch_size = checks.positive("batch_size", batch_size)
        self.max_tokens = checks.positive("max_tokens", max_tokens)
        self.n_buckets = checks.positive("n_buckets", n_buckets)
        self.seed = checks.positive("seed", seed, least=0)
        source, target = pairs.source.lengths, pairs.target.lengths
        self._rows = np.flatnonzero((source > 0) & (target > 0))
        if not len(self._rows):
            raise ValueError(f"none of {len(pairs)} pairs has two sides")
        longer = np.maximum(np.minimum(source, max_tokens), np.minimum(target, max_tokens) + 1)[self._rows]
        width = -(-max_tokens // n_buckets)
        self._bucket = np.minimum(longer // width, n_buckets)
        ends = np.cumsum(np.bincount(self._bucket))
        starts = [np.arange(a, b, batch_size) for a, b in zip([0, *ends], ends, strict=False)]
        # Batch i of an epoch, before the batches are shuffled, is rows[bounds[i]:bounds[i + 1]].
        self._bounds = np.append(np.concatenate(starts), len(self._rows))
        self.batches_per_epoch = len(self._bounds) - 1
        self._epoch = -1

    def batch(self, step: int) -> TranslationBatch:
        """Return the batch of a step, counted from 0 through all epochs.

        Raises
        ------
        TypeError, ValueError
            If `step` is no integer or below 0.
        """
        epoch, i = divmod(checks.positive("step", step, least=0), self.batches_per_epoch)
        if epoch != self._epoch:
            rng = np.random.default_rng([self.seed, epoch])
            shuffled = rng.permutation(len(self._rows))
            by_bucket = shuffled[np.argsort(self._bucket[shuffled], kind="stable")]
            self._order = self._rows[by_bucket]
            self._batches = rng.permutation(self.batches_per_epoch)
            self._epoch = epoch
        j = self._batches[i]
        start, end = self._bounds[j : j + 2]
        return self.pairs.batch(self._order[start:end], self.max_tokens)
