"""What a run keeps of its table for the figures that look inside: singular values, neighbours of words."""

from typing import Any

import numpy as np

from dpq_ref.datasets import TextDataset
from dpq_ref.kernels.reference import Array
from dpq_ref.metrics.geometry import nearest, one_thread, unit_rows
from figures.neighbours import usual_words

N_WORDS = 5
N_NEIGHBOURS = 8


def inside(rows: Array, data: TextDataset, full: Array | None = None) -> dict[str, Any]:
    """Singular values of a table, and what is near to some words.

    Parameters
    ----------
    rows : (n, d)
        The table, of the words of the data.
    data : TextDataset
    full : (n, d), optional
        The table that this one was made from (or that one itself).

    Returns
    -------
    dict
        singular_values (min(n, d)), falling; neighbours, by word the nearest words by cosine; and with `full`
        neighbourhoods, by word where it and its neighbours in `full` are now, (k + 1, 2): see `positions`.
    """
    words = content_words(data.vocabulary)
    index = {word: i for i, word in enumerate(data.vocabulary)}
    ids, k = np.array([index[word] for word in words], np.int64), min(N_NEIGHBOURS, len(rows) - 1)
    found: dict[str, Any] = {"singular_values": rounded(singular_values(rows))}
    near = nearest(rows, ids, k)
    found["neighbours"] = {
        word: [data.vocabulary[i] for i in others] for word, others in zip(words, near, strict=True)
    }
    if full is not None:
        around = np.c_[ids, nearest(full, ids, k)]
        found["neighbourhoods"] = {
            word: rounded(positions(rows[near], full[near])) for word, near in zip(words, around, strict=True)
        }
    return found


def content_words(vocabulary: Any) -> list[str]:
    """Choose words as `usual_words`, more frequent ones, and none of them a function word.

    Examples
    --------
    >>> content_words(["the", "table", "of", "codes"])
    ['codes']
    """
    from sklearn.feature_extraction.text import ENGLISH_STOP_WORDS

    of_content = [word for word in vocabulary if len(word) > 1 and word not in ENGLISH_STOP_WORDS]
    return usual_words(of_content, N_WORDS, first=8)


@one_thread
def singular_values(rows: Array) -> Array:
    """Singular values of a table, (min(n, d),), falling."""
    triangle = np.linalg.qr(rows.astype(np.float64), mode="r")  # of their singular values, and much smaller
    return np.linalg.svd(triangle, compute_uv=False)


def positions(rows: Array, full: Array) -> Array:
    """Project unit vectors on the plane in which those of the full table vary most (principal components).

    Parameters
    ----------
    rows, full : (m, d)
        Vectors of the same words, now and in the full table.

    Returns
    -------
    (m, 2) float64
    """
    before = unit_rows(full)
    centre = before.mean(axis=0)
    _, _, axes = np.linalg.svd(before - centre, full_matrices=False)
    axes = axes[:2] * np.sign(axes[:2].sum(axis=1, keepdims=True))  # an SVD leaves the sign open
    return (unit_rows(rows) - centre) @ axes.T


def rounded(array: Any) -> list[Any]:
    """Five digits of each number: enough for a figure, small in a file."""
    return np.vectorize(lambda x: float(f"{x:.5g}"), otypes=[float])(array).tolist()
