"""What compression does to the rows of a table: errors, directions, nearest neighbours.

All take the original `table` (n, d) and the `other` table (n, k), row by row the same words, and give float64
numbers. What compares entries needs k = d. Rows are read in blocks, so next to the two tables little memory
is needed; BLAS runs on one thread, so that a result does not depend on how many there are.
"""

from collections.abc import Iterator
from functools import partial, wraps
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dpq_ref import checks
from dpq_ref.compressed import Compressed
from dpq_ref.kernels.reference import BLOCK, Array
from dpq_ref.resume import Shared, stepwise

Float64 = NDArray[np.float64]

QUANTUM = 2.0**-40  # cosines closer than that are ties: equal rows tie whatever BLAS rounds
LARGEST = 1e140
N_NEIGHBOURS = 10
N_QUERIES = 1000


# --- Rows -----------------------------------------------------------------------------------------------


def one_thread(function: Any) -> Any:
    """BLAS on one thread: bitwise the same on a busy machine, and there often faster."""

    @wraps(function)
    def limited(*args: Any, **kwargs: Any) -> Any:
        from threadpoolctl import threadpool_limits

        with threadpool_limits(1, "blas"):
            return function(*args, **kwargs)

    return limited


def blocks(n: int, width: int, least: int = 1) -> Iterator[slice]:
    """Cut n rows into slices of at most BLOCK entries, or of `least` rows."""
    step = max(least, BLOCK // width)
    return (slice(i, min(i + step, n)) for i in range(0, n, step))


def unit_rows(rows: Array) -> Array:
    """Rows divided by their lengths, (b, d) -> (b, d); zero rows stay zero."""
    rows = rows.astype(np.float64)
    largest = np.abs(rows).max(axis=1, keepdims=True)
    rows /= np.where(largest > 0, largest, 1)  # now no square overflows or vanishes
    length = np.sqrt(np.einsum("ij,ij->i", rows, rows))[:, None]
    rows /= np.where(length > 0, length, 1)
    return rows


def check_table(table: Any, name: str) -> Array:
    """Check a table: rows, all finite, and so are the squares of the entries."""
    array = checks.as_table(table, name)
    if len(array) == 0:
        raise ValueError(f"{name} has no rows")
    if max(float(array.max()), -float(array.min())) > LARGEST:
        raise ValueError(f"{name} has entries beyond {LARGEST:g}; their squares overflow")
    return array


def check_tables(table: Any, other: Any, same_width: bool = True) -> tuple[Array, Array]:
    """Check both tables: n rows each, finite."""
    table, other = check_table(table, "table"), check_table(other, "other")
    if len(other) != len(table) or (same_width and other.shape != table.shape):
        takes = table.shape if same_width else (len(table), "any width")
        raise ValueError(f"other has shape {other.shape}; for this table it takes {takes}")
    return table, other


def _check_either(table: Any, other: Any) -> tuple[Array, Array | Compressed]:
    """Check both, as `check_tables`; what a compressed table holds is seen when it is looked up."""
    if not isinstance(other, Compressed):
        return check_tables(table, other)
    table, shape = check_table(table, "table"), (other.vocab_size, other.dim)
    if shape != table.shape:
        raise ValueError(f"other has shape {shape}; for this table it takes {table.shape}")
    return table, other


def _shares(weights: Any, n: int) -> Float64:
    """Check weights, (n,), and make them sum to 1; none given: all equal."""
    weights = checks.as_weights(weights, n)
    weights = weights / weights.max()
    return weights / weights.sum()


def _mean_square(table: Array, other: Array | Compressed | None, shares: Float64) -> float:
    """Mean over rows of the squared length of a row, or of the difference of two."""
    compared = Shared(other) if isinstance(other, np.ndarray) else other
    squares, total, parts = partial(_squares, Shared(table), compared), 0.0, list(blocks(*table.shape))
    for rows, found in zip(parts, stepwise("error", squares, parts), strict=True):
        total += float(shares[rows] @ found)
    if not np.isfinite(total):
        raise ValueError("other has an entry that is NaN or infinite")
    return total


def _squares(table: Shared, other: Shared | Compressed | None, rows: slice) -> Float64:
    """Squared lengths of some rows, or of their differences, perhaps on another machine."""
    x = table.array[rows].astype(np.float64)
    if isinstance(other, Compressed):
        x -= other.lookup(np.arange(rows.start, rows.stop))
    elif other is not None:
        x -= other.array[rows]
    return np.einsum("ij,ij->i", x, x)


def _cosines(table: Shared, other: Shared, rows: slice) -> Float64:
    x, y = unit_rows(table.array[rows]), unit_rows(other.array[rows])
    cosines = np.einsum("ij,ij->i", x, y)
    cosines[~(x.any(axis=1) | y.any(axis=1))] = 1
    return cosines


# --- Entries and directions -----------------------------------------------------------------------------


def mean_squared_error(table: Any, other: Any, weights: Any = None) -> float:
    """Mean squared difference of the entries, rows weighted: sum_i w_i |x_i - y_i|^2 / (d sum_i w_i).

    Parameters
    ----------
    table : (n, d)
    other : (n, d), or `Compressed`
        A compressed table is looked up block by block, and never held as a whole.
    weights : (n,), optional
        At least 0, not all 0.

    Examples
    --------
    >>> mean_squared_error([[2.0, 0.0], [0.0, 0.0]], [[1.0, 0.0], [0.0, 0.0]], weights=[3, 1])
    0.375
    """
    table, other = _check_either(table, other)
    return _mean_square(table, other, _shares(weights, len(table))) / table.shape[1]


def relative_error(table: Any, other: Any, weights: Any = None) -> float:
    """Squared error of a reconstruction over the squared norm of the table, rows weighted.

    Parameters
    ----------
    table : (n, d)
    other : (n, d), or `Compressed`
        As in `mean_squared_error`.
    weights : (n,), optional

    Raises
    ------
    ValueError
        If all rows of weight above 0 are zero.

    Examples
    --------
    >>> relative_error(np.array([[2.0, 0.0]]), np.array([[1.0, 0.0]]))
    0.25
    """
    table, other = _check_either(table, other)
    shares = _shares(weights, len(table))
    norm = _mean_square(table, None, shares)
    if norm == 0:
        raise ValueError("table is zero in all rows that count; a relative error needs a norm")
    return _mean_square(table, other, shares) / norm


def mean_cosine(table: Any, other: Any, weights: Any = None) -> float:
    """Mean cosine between a row and its reconstruction, rows weighted.

    A zero row has no direction: its cosine counts as 1 where both rows are zero, as 0 where one is.

    Parameters
    ----------
    table, other : (n, d)
    weights : (n,), optional

    Examples
    --------
    >>> round(mean_cosine([[3.0, 4.0], [0.0, 0.0]], [[3.0, -4.0], [0.0, 0.0]]), 12)
    0.36
    """
    table, other = check_tables(table, other)
    shares = _shares(weights, len(table))
    total = 0.0
    parts, cosines = list(blocks(*table.shape)), partial(_cosines, Shared(table), Shared(other))
    for rows, found in zip(parts, stepwise("cosines", cosines, parts), strict=True):
        total += float(shares[rows] @ found)
    return min(max(total, -1.0), 1.0)


# --- Neighbours -----------------------------------------------------------------------------------------


def neighbour_overlap(
    table: Any, other: Any, k: int = N_NEIGHBOURS, *, n_queries: int = N_QUERIES, random_state: int = 0
) -> float:
    """Share of the k nearest neighbours by cosine that stay, over a sample of the rows.

    The neighbours of a sampled row are sought among all other rows. Of ties, the smallest ids count; a zero
    row has cosine 0 with all.

    Parameters
    ----------
    table : (n, d)
    other : (n, d')
    k : int, below n
    n_queries : int
        Rows in the sample, drawn without repetition; all n where there are no more.
    random_state : int
        Which rows these are.

    Examples
    --------
    >>> angles = np.arange(12) * 0.1
    >>> circle = np.c_[np.cos(angles), np.sin(angles)]
    >>> neighbour_overlap(circle, -5 * circle, k=3)
    1.0
    """
    table, other = check_tables(table, other, same_width=False)
    n, k = len(table), checks.positive("k", k)
    if k >= n:
        raise ValueError(f"k={k}; a row of a table of {n} rows has {n - 1} neighbours")
    size = min(checks.positive("n_queries", n_queries), n)
    queries = np.sort(np.random.default_rng(random_state).choice(n, size, replace=False))
    before, after = nearest(table, queries, k), nearest(other, queries, k)
    return float(np.mean([np.isin(a, b).mean() for a, b in zip(before, after, strict=True)]))


@one_thread
def nearest(table: Array, queries: NDArray[np.integer], k: int) -> NDArray[np.int64]:
    """Ids of the k rows nearest to some rows by cosine, themselves left out.

    Parameters
    ----------
    table : (n, d)
    queries : (q,) ids
    k : int, below n

    Returns
    -------
    (q, k) ids, the nearest first, ties by id
    """
    sought = unit_rows(table[queries])
    best = np.full((len(queries), k), -np.inf)
    ids = np.full((len(queries), k), -1, np.int64)
    for rows in blocks(len(table), max(table.shape[1], len(queries))):
        cosines = quantised(sought @ unit_rows(table[rows]).T)
        inside = np.flatnonzero((queries >= rows.start) & (queries < rows.stop))
        cosines[inside, queries[inside] - rows.start] = -np.inf
        for q in np.flatnonzero((cosines > best[:, -1:]).any(axis=1)):
            new = np.flatnonzero(cosines[q] > best[q, -1])  # later ids lose ties
            values = np.concatenate([best[q], cosines[q, new]])
            order = np.argsort(-values, kind="stable")[:k]
            best[q], ids[q] = values[order], np.concatenate([ids[q], new + rows.start])[order]
    return ids


def quantised(cosines: Float64) -> Float64:
    """Cosines to 2^-40, in place: finer differences are rounding."""
    cosines /= QUANTUM
    np.rint(cosines, out=cosines)
    cosines *= QUANTUM
    return cosines
