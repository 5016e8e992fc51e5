"""Tables row by row: blocks of rows, some rows of a table, and a sample to learn from.

A table may be a mapped file, larger than memory. What goes through it by these makes no copy of it.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from dpq_ref.kernels.reference import BLOCK, Array, Integers


class Rows:
    """Rows of a table that are made when they are asked for: some of them, about a centre.

    Parameters
    ----------
    X : (n, d)
    ids : (m,) integers, optional
        Which; all by default.
    centre : (d,), optional
        Taken off each row.

    Examples
    --------
    >>> rows = Rows(np.eye(3), ids=np.array([2, 0]), centre=np.ones(3))
    >>> rows.shape, rows[1:]
    ((2, 3), array([[ 0., -1., -1.]]))
    """

    def __init__(self, X: Array, ids: Integers | None = None, centre: Array | None = None):
        self.X, self.ids, self.centre = X, ids, centre
        self.shape = (len(X) if ids is None else len(ids), X.shape[1])
        self.dtype = X.dtype

    def __len__(self) -> int:  # noqa: D105
        return self.shape[0]

    def __getitem__(self, rows: slice) -> Array:  # noqa: D105
        block = self.X[rows if self.ids is None else self.ids[rows]]
        return block if self.centre is None else block - self.centre


def blocks(n: int, width: int, multiple: int = 1) -> Sequence[slice]:
    """Cut n rows into slices of at most BLOCK entries, or of `multiple` rows; all but the last of multiples.

    Examples
    --------
    >>> blocks(10, BLOCK // 5, multiple=4)
    [slice(0, 4, None), slice(4, 8, None), slice(8, 10, None)]
    """
    step = max(1, BLOCK // width // multiple) * multiple
    return [slice(i, min(i + step, n)) for i in range(0, n, step)]


def sample(weights: NDArray[np.float64], most: int, least: int, rng: np.random.Generator) -> Integers | None:
    """Rows to learn from, `most` at random of those with weight.

    None, which is all, where there are no more than `most`, or fewer than `least` have weight.
    """
    rows = np.flatnonzero(weights)
    return None if len(weights) <= most or len(rows) < least else rng.permutation(rows)[:most]
