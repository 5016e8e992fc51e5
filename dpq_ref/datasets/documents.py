"""Sequences of word ids, end to end in one array: nothing is padded before a batch is asked for."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import ArrayLike, NDArray

__all__ = ["Documents", "Sequences"]


@dataclass(frozen=True, eq=False)
class Sequences:
    """Sequences of word ids, end to end.

    Parameters
    ----------
    tokens : int32 array of shape (n_tokens,)
        Word ids of all sequences, one after the other.
    offsets : int64 array of shape (n + 1,)
        Sequence ``i`` is ``tokens[offsets[i]:offsets[i + 1]]``; may be empty.

    Raises
    ------
    TypeError
        If an array has another dtype.
    ValueError
        If the offsets do not rise from 0 to the number of tokens.

    Examples
    --------
    >>> sequences = Sequences(np.array([5, 3, 2], "i4"), np.array([0, 2, 2, 3]))
    >>> len(sequences)
    3
    >>> sequences.pad([0, 1])
    array([[5, 3],
           [0, 0]], dtype=int32)
    """

    tokens: NDArray[np.int32]
    offsets: NDArray[np.int64]

    def __post_init__(self) -> None:
        """Check dtypes and offsets."""
        _check("tokens", self.tokens, np.int32)
        _check("offsets", self.offsets, np.int64)
        offsets = self.offsets
        rise = np.all(np.diff(offsets) >= 0)
        if not (len(offsets) and rise and offsets[0] == 0 and offsets[-1] == len(self.tokens)):
            raise ValueError(f"offsets must rise from 0 to {len(self.tokens)}, the number of tokens")

    def __len__(self) -> int:
        """Return the number of sequences."""
        return len(self.offsets) - 1

    @cached_property
    def lengths(self) -> NDArray[np.int64]:
        """Number of tokens of each sequence, (n,)."""
        return np.diff(self.offsets)

    def pad(self, rows: ArrayLike, max_tokens: int | None = None, *, value: int = 0) -> NDArray[np.int32]:
        """Return some sequences as one matrix, padded on the right.

        Parameters
        ----------
        rows : integer array of shape (b,)
            Numbers of sequences, in any order, repeats allowed.
        max_tokens : int, optional
            Keep at most so many tokens of each sequence, the first ones.
        value : int, default 0
            Id to pad with.

        Returns
        -------
        int32 array of shape (b, T)
            T is the length of the longest sequence chosen, after truncation, and at least 1.

        Raises
        ------
        TypeError
            If `rows` are not integers.
        IndexError
            If a row is negative or not below ``len(self)``.
        ValueError
            If `rows` has not one axis, or `max_tokens` is below 1.
        """
        if max_tokens is not None and max_tokens < 1:
            raise ValueError(f"max_tokens={max_tokens}; takes 1 or more")
        starts, lengths = self._spans(rows)
        if max_tokens is not None:
            lengths = np.minimum(lengths, max_tokens)
        columns = np.arange(max(1, lengths.max(initial=0)))
        inside = columns < lengths[:, None]
        padded = np.full(inside.shape, value, np.int32)
        padded[inside] = self.tokens[(starts[:, None] + columns)[inside]]
        return padded

    def _spans(self, rows: ArrayLike) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        chosen = np.asarray(rows)
        if chosen.ndim != 1:
            raise ValueError(f"rows has shape {chosen.shape}; takes one axis")
        if chosen.size == 0:
            chosen = chosen.astype(np.int64)  # [] arrives as float64
        if not np.issubdtype(chosen.dtype, np.integer):
            raise TypeError(f"rows is {chosen.dtype}; takes integers")
        outside = (chosen < 0) | (chosen >= len(self))
        if outside.any():
            raise IndexError(f"row {chosen[outside][0]} is outside 0..{len(self) - 1}")
        starts = self.offsets[chosen]
        return starts, self.offsets[chosen.astype(np.int64) + 1] - starts


@dataclass(frozen=True, eq=False)
class Documents(Sequences):
    """Labelled documents as word ids, end to end.

    Parameters
    ----------
    tokens : int32 array of shape (n_tokens,)
        Word ids of all documents, one after the other.
    offsets : int64 array of shape (n_docs + 1,)
        Document ``i`` is ``tokens[offsets[i]:offsets[i + 1]]``; may be empty.
    labels : int32 array of shape (n_docs,)
        Class of each document.

    Raises
    ------
    TypeError
        If an array has another dtype.
    ValueError
        If the offsets do not cut `tokens` into as many documents as there are labels.
    """

    labels: NDArray[np.int32]

    def __post_init__(self) -> None:
        """Check dtypes, offsets and labels."""
        super().__post_init__()
        _check("labels", self.labels, np.int32)
        if len(self.labels) != len(self):
            raise ValueError(
                f"{len(self.offsets)} offsets for {len(self.labels)} labels; takes one more than labels"
            )

    def take(self, rows: ArrayLike) -> Documents:
        """Return some documents as `Documents` of their own, in the order of `rows`.

        Parameters
        ----------
        rows : integer array of shape (b,)
            Document numbers, in any order, repeats allowed.

        Returns
        -------
        Documents
            Copies of the b documents.

        Raises
        ------
        TypeError, IndexError, ValueError
            As in `pad`.
        """
        starts, lengths = self._spans(rows)
        offsets = np.concatenate([[0], np.cumsum(lengths)])
        # Position j of the result lies in document i: move it by where i was less where i is now.
        source = np.arange(offsets[-1]) + np.repeat(starts - offsets[:-1], lengths)
        return Documents(self.tokens[source], offsets, self.labels[np.asarray(rows, np.int64)])


def _check(name: str, array: NDArray, dtype: type) -> None:
    if not isinstance(array, np.ndarray) or array.dtype != dtype:
        got = getattr(array, "dtype", type(array).__name__)
        raise TypeError(f"{name} is {got}; takes an array of {np.dtype(dtype)}")
    if array.ndim != 1:
        raise ValueError(f"{name} has shape {array.shape}; takes one axis")
