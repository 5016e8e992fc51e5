"""Where the levels of scalar quantization go: the optimal clip of uniform ones, and Lloyd's algorithm.

Both look at all entries of a table at once, as numbers on a line with weights. J. Max, *Quantizing for
Minimum Distortion*, IRE Transactions on Information Theory 1960; S. Lloyd, *Least Squares Quantization in
PCM*, IEEE Transactions on Information Theory 1982.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from dpq_ref.kernels.reference import Array, Integers
from dpq_ref.progress import told

Numbers = NDArray[np.float64]

GRID = 64  # clips that are tried before the search
STEPS = 20  # of golden section: the bracket shrinks to 7e-5 of itself, and the error is off by the square
BLOCK = 1 << 15  # entries at a time, so that they stay in the cache
BATCH = 1 << 17  # entries that are put into bins at a time
OCTAVES = 32  # that the bins span; smaller entries share one


# --- Uniform levels -------------------------------------------------------------------------------------


def nearest_level(X: Array, clips: Any, n_bits: int, rng: np.random.Generator | None = None) -> Integers:
    """Index of the nearest of the levels -r + 2 r j / (2^b - 1); what is beyond r goes to the last.

    Parameters
    ----------
    X : (n, d)
    clips : r, a number or (1 or n, 1 or d)
        Where it is 0, all levels are 0, and the index is one in the middle.
    n_bits : int
        b.
    rng : numpy.random.Generator, optional
        Rounds at random instead, up with the probability that keeps the mean (inside the clip).

    Returns
    -------
    (n, d) uint8 or uint16
    """
    top = (1 << n_bits) - 1
    codes = np.empty(X.shape, np.min_scalar_type(top))
    clips = np.broadcast_to(np.where(clips, clips, np.inf).astype(np.float64), X.shape)
    step = max(1, BLOCK // X.shape[1])
    for i in range(0, len(X), step):
        position = (X[i : i + step] / clips[i : i + step] + 1) * (top / 2)
        rounded = np.rint(position) if rng is None else np.floor(position + rng.random(position.shape))
        codes[i : i + step] = np.clip(rounded, 0, top)
    return codes


def squared_errors(magnitudes: Numbers, weights: Numbers, clips: Numbers, n_bits: int) -> Numbers:
    """Weighted squared errors of uniform quantizers, one for each row of numbers.

    Levels are symmetric, so |x| in steps of the quantizer is all that matters: then the cells are [j, j + 1),
    each with its level in the middle, and the last has no end.

    Parameters
    ----------
    magnitudes : (m, p), at least 0
    weights : (p,)
    clips : (m,), above 0
    n_bits : int

    Returns
    -------
    (m,)
    """
    last = (1 << (n_bits - 1)) - 1
    width = 2 * clips / ((1 << n_bits) - 1)
    position = magnitudes / width[:, None]
    cell = np.floor(position)
    np.minimum(cell, last, out=cell)
    position -= cell
    position -= 0.5
    position *= position
    return np.einsum("ij,j->i", position, weights) * width**2


def best_clips(magnitudes: Numbers, weights: Numbers, n_bits: int) -> Numbers:
    """Clip of the smallest weighted squared error, for each row of numbers.

    The best clip is at least the mean of |x|: where the error is stationary, r = sum |x| t / sum t^2, t in
    (0, 1] being the level of |x| in units of r; t rises with |x|, so sum |x| t >= mean |x| sum t (Chebyshev's
    sum inequality), and sum t >= sum t^2. With one bit t = 1, and the clip is that mean. The error may have
    more minima than one, so clips from the mean to max |x| are tried first; then golden section goes on about
    the best of them. All is in units of max |x|, so the result scales with the numbers.

    Parameters
    ----------
    magnitudes : (m, p), at least 0
    weights : (p,), not all 0
    n_bits : int

    Returns
    -------
    (m,), 0 for a row of zeros
    """
    largest = magnitudes.max(axis=1)
    magnitudes = magnitudes / np.where(largest > 0, largest, 1)[:, None]
    mean = np.minimum(np.einsum("ij,j->i", magnitudes, weights) / weights.sum(), 1)
    if n_bits == 1:
        return mean * largest

    def error(clips: Numbers) -> Numbers:
        return squared_errors(magnitudes, weights, clips, n_bits)

    lowest = np.where(largest > 0, np.maximum(mean, 1e-150), 1)
    grid = lowest ** np.linspace(1, 0, GRID)[:, None]
    errors = np.array([error(clips) for clips in grid])
    at, every = errors.argmin(axis=0), np.arange(len(largest))
    best, least = grid[at, every], errors[at, every]
    low, high = grid[np.maximum(at - 1, 0), every], grid[np.minimum(at + 1, GRID - 1), every]
    golden = (np.sqrt(5) - 1) / 2
    a, b = high - golden * (high - low), low + golden * (high - low)
    error_a, error_b = error(a), error(b)
    for _ in range(STEPS):
        left = error_a < error_b
        low, high = np.where(left, low, a), np.where(left, b, high)
        inner = np.where(left, high - golden * (high - low), low + golden * (high - low))
        error_inner = error(inner)
        a, b = np.where(left, inner, b), np.where(left, a, inner)
        error_a, error_b = np.where(left, error_inner, error_b), np.where(left, error_a, error_inner)
    for clips, found in ((a, error_a), (b, error_b)):
        best, least = np.where(found < least, clips, best), np.minimum(found, least)
    return best * largest


def optimal_clips(X: Array, weights: Numbers, n_bits: int, scale: str = "table") -> Numbers:
    """Clip of the smallest weighted squared error: of the table, of each column, or of each row.

    Parameters
    ----------
    X : (n, d)
    weights : (n,), not all 0
    n_bits : int
    scale : {"table", "column", "row"}

    Returns
    -------
    (1, 1), (1, d) or (n, 1)
    """
    if scale == "row":
        step = max(1, BLOCK // X.shape[1])
        ones = np.ones(X.shape[1])
        blocks = (np.abs(X[i : i + step].astype(np.float64)) for i in range(0, len(X), step))
        return np.concatenate([best_clips(block, ones, n_bits) for block in blocks])[:, None]
    if not weights.all():
        X, weights = X[weights > 0], weights[weights > 0]
    parts = [X] if scale == "table" else [X[:, j : j + 1] for j in range(X.shape[1])]
    return np.array([[best_clips(*in_bins(part, weights, n_bits), n_bits)[0] for part in parts]])


def in_bins(X: Array, weights: Numbers, n_bits: int) -> tuple[Numbers, Numbers]:
    """Numbers |x| and their weights, many replaced by the means of narrow bins.

    Entries that go to one level have the error of their mean, and a constant that no clip changes. So only
    bins that a border of cells cuts are not exact, and there both levels are nearly as good. A bin has the
    entries whose exponent and leading binary digits are the same: 32 bins or more to a step of the quantizer,
    up to 11 bits; beyond, fewer, for errors far below those of float32.

    Parameters
    ----------
    X : (n, w)
    weights : (n,)
    n_bits : int

    Returns
    -------
    magnitudes : (1, p)
    weights : (p,)
    """
    n, w = X.shape
    if X.size <= BLOCK:
        return np.abs(X.reshape(1, -1).astype(np.float64)), np.repeat(weights, w)
    largest = float(max(X.max(), -X.min()))
    digits = min(max(n_bits + 5, 10), 16)
    shift, lowest = 23 - digits, (127 - OCTAVES) << digits
    mass, sums = np.zeros((2, (OCTAVES + 1) << digits))
    step = max(1, BATCH // w)
    for i in told("clip", range(0, n, step)):
        x = np.abs(X[i : i + step].astype(np.float64)).ravel() / (largest or 1)
        q = np.repeat(weights[i : i + step], w)
        bins = np.maximum((x.astype(np.float32).view(np.int32) >> shift) - lowest, 0)
        mass += np.bincount(bins, q, len(mass))
        sums += np.bincount(bins, q * x, len(mass))
    filled = mass > 0
    return (sums[filled] / mass[filled] * largest)[None], mass[filled]


# --- Levels anywhere ------------------------------------------------------------------------------------


def nearest_of(values: Array, levels: Array) -> Integers:
    """Index of the nearest of sorted levels, the lower of two that are as near, (...) -> (...) integers."""
    borders = (levels[1:].astype(np.float64) + levels[:-1]) / 2
    found = np.empty(values.shape, np.min_scalar_type(len(levels) - 1))
    step = max(1, BATCH // max(1, values[:1].size))
    for i in range(0, len(values), step):
        found[i : i + step] = np.searchsorted(borders, values[i : i + step])
    return found


def in_order(X: Array, weights: NDArray) -> tuple[NDArray[np.float32], Numbers | None]:
    """Entries that have weight, sorted, and their weights; None if these are all the same.

    Parameters
    ----------
    X : any shape
        Rounded to float32, as levels are when they are stored.
    weights : at least 0, of a shape that broadcasts to that of X

    Returns
    -------
    values : (p,) float32
    weights : (p,) float64, or None
    """
    values = np.ascontiguousarray(X, np.float32).ravel()
    if weights.min() == weights.max():
        return np.sort(values), None
    # Value and place in one integer: sorting those is ten times as fast as argsort.
    bits = values.view(np.uint32)
    ordered = np.where(bits >> 31, ~bits, bits | np.uint32(1 << 31))  # integers in the order of the floats
    keys = ordered.astype(np.uint64) << np.uint64(32) | np.arange(values.size, dtype=np.uint64)
    keys.sort()
    place = (keys & np.uint64(0xFFFFFFFF)).astype(np.int64)
    q = np.broadcast_to(weights, X.shape)[np.unravel_index(place, X.shape)].astype(np.float64)
    return values[place[q > 0]], q[q > 0]


def lloyd(
    values: NDArray[np.float32], weights: Numbers | None, start: Array, max_iter: int
) -> tuple[Numbers, Numbers]:
    """k-means on the line: a border lies half way between two levels, a level at the mean of its cell.

    Sums over cells are differences of running sums, so an iteration takes K log p steps. An empty cell takes
    the entry farthest from the mean in the cell of the largest weight times squared width, which can only
    make the error smaller. It ends when no entry changes its cell.

    Parameters
    ----------
    values : (p,), sorted
    weights : (p,), above 0, optional
    start : (K,), sorted
        Levels to start from; the error is never above theirs.
    max_iter : int

    Returns
    -------
    levels : (K,) sorted, each the mean of its cell, but those of cells that nothing can fill
    objective : (iterations,) weighted squared error after each, falling
    """
    levels: Numbers = np.array(start, np.float64)
    centre = np.average(values, weights=weights)  # near the values, so that the squares do not cancel
    moved = np.subtract(values, centre, dtype=np.float64)
    total = np.einsum("i,i->", moved, moved if weights is None else moved * weights)
    moved *= 1 if weights is None else weights
    running = np.concatenate([[0.0], np.cumsum(moved)])
    running_mass = None if weights is None else np.concatenate([[0.0], np.cumsum(weights)])
    del moved

    def cells(levels: Numbers) -> NDArray[np.int64]:
        borders = (levels[1:] + levels[:-1]) / 2
        below = borders.astype(np.float32)  # rounded down: the same cells, and no copy of all values
        below = np.where(below > borders, np.nextafter(below, np.float32(-np.inf)), below)
        return np.concatenate([[0], np.searchsorted(values, below, side="right"), [len(values)]])

    stops = np.empty(0, np.int64)
    objective: list[float] = []
    for _ in range(max_iter):
        before, stops = stops, cells(levels)
        if np.array_equal(before, stops):
            break
        filled = np.diff(stops) > 0
        mass = np.diff(stops if running_mass is None else running_mass[stops])[filled]
        sums = np.diff(running[stops])[filled]
        error = max(float(total - (sums**2 / mass).sum()), 0.0)
        if objective and error >= objective[-1]:
            break
        objective.append(error)
        levels[filled] = centre + sums / mass
        if not filled.all():
            first, last = values[stops[:-1][filled]], values[stops[1:][filled] - 1]
            width = last.astype(np.float64) - first
            widest = np.argsort(-mass * width**2, kind="stable")[: len(levels) - int(filled.sum())]
            widest = widest[width[widest] > 0]
            means = levels[filled][widest]
            ends = np.where(means - first[widest] > last[widest] - means, first[widest], last[widest])
            levels[np.flatnonzero(~filled)[: len(ends)]] = ends
            levels.sort()
    stops = cells(levels)
    filled = np.diff(stops) > 0
    starts = stops[:-1][filled]
    if weights is None:
        levels[filled] = np.add.reduceat(values, starts, dtype=np.float64) / np.diff(stops)[filled]
    else:
        levels[filled] = np.add.reduceat(values * weights, starts) / np.add.reduceat(weights, starts)
    return levels, np.array(objective)
