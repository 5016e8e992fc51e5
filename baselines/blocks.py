"""Words in blocks within a budget: the start, ranks, and the two refinements of GroupReduce.

Sizes are in numbers stored. A block p of n_p words has rank r_p, and takes r_p (n_p + d) of them; one of rank
d is dense, and takes n_p d. So a word takes as many as its block has ranks.
"""

import numpy as np
from numpy.typing import NDArray

from baselines.low_rank import right_vectors
from baselines.rows import Rows
from baselines.rows import blocks as slices
from dpq_ref.backend import one_blas_thread
from dpq_ref.kernels.reference import Array, Integers
from dpq_ref.progress import told

HALVINGS = 40  # of the range of the Lagrange multiplier, on a logarithmic scale


def blocks_by_frequency(frequencies: Array, n_blocks: int) -> Integers:
    """Block of each word: by falling frequency, ties in the order of the table, equally many in each.

    Examples
    --------
    >>> blocks_by_frequency(np.array([1, 5, 2, 5, 1]), 2)
    array([1, 0, 0, 0, 1])
    """
    order = np.argsort(-frequencies, kind="stable")
    blocks = np.empty(len(frequencies), np.int64)
    for p, words in enumerate(np.array_split(order, n_blocks)):
        blocks[words] = p
    return blocks


def numbers(counts: Integers, ranks: Integers, d: int) -> Integers:
    """Numbers that each block stores: r (n_p + d); n_p d where the rank is d, a dense block."""
    return np.where(ranks == d, counts * d, ranks * (counts + d))


def ranks_within_budget(counts: Integers, d: int, shares: Array, budget: int) -> Integers:
    """Ranks max(1, floor(t share)), with the largest t that fits; what is left over goes on in that order.

    Parameters
    ----------
    counts : (c,)
        Words of each block.
    d : int
    shares : (c,), at least 0
    budget : int
        Numbers; at least those of rank 1.

    Returns
    -------
    (c,), d for a dense block: from where r (n_p + d) >= n_p d

    Examples
    --------
    >>> ranks_within_budget(np.array([100, 100]), 10, np.array([3.0, 1.0]), 800)
    array([5, 2])
    """
    largest = (counts * d - 1) // (counts + d)  # the last that takes less than the rows themselves
    ranks = np.where(largest < 1, d, 1)
    with np.errstate(divide="ignore"):
        steps = [
            (r / share, r, p)
            for p, share in enumerate(np.asarray(shares, np.float64))
            for r in range(2, int(largest[p]) + 2)
        ]
    for _, r, p in sorted(steps):
        rank = r if r <= largest[p] else d
        taller = np.where(np.arange(len(ranks)) == p, rank, ranks)
        if int(numbers(counts, taller, d).sum()) <= budget:
            ranks = taller
    return ranks


def fit_blocks(
    X: Array, weights: Array, blocks: Integers, ranks: Integers
) -> tuple[list[Array | None], Integers]:
    """Right vectors of each block, (r_p, d) float64, or None; and the ranks, d where dense takes no more."""
    d, counts = X.shape[1], np.bincount(blocks, minlength=len(ranks))
    ranks = np.where(ranks * (counts + d) >= counts * d, d, ranks)
    bases: list[Array | None] = []
    for p, rank in enumerate(ranks):
        words = np.flatnonzero(blocks == p)
        q = weights[words]
        q = q if q.any() else np.ones(len(q))
        bases.append(None if rank == d else right_vectors(Rows(X, words), q, rank)[1][:rank])
    return bases, ranks


def residuals(X: Array, bases: list[Array | None]) -> NDArray[np.float64]:
    """Squared error of each row with the best coefficients in each block, |a|^2 - |V^T a|^2, (n, c)."""
    errors = np.zeros((len(X), len(bases)))
    with one_blas_thread:
        for block in told("errors in each block", slices(*X.shape)):
            rows = X[block].astype(np.float64)
            norms = np.einsum("ij,ij->i", rows, rows)
            for p, basis in enumerate(bases):
                if basis is not None:
                    Z = rows @ basis.T
                    errors[block, p] = np.maximum(norms - np.einsum("ij,ij->i", Z, Z), 0)
    return errors


# --- Refinement within the budget -----------------------------------------------------------------------


def move(errors: Array, blocks: Integers, ranks: Integers, d: int, budget: int, fraction: float) -> Integers:
    """One round of moves to the block of the smallest error, smallest first, as long as all fits.

    A word takes as many numbers as its block has ranks, so what one move releases the next may spend.

    Parameters
    ----------
    errors : (n, c)
    blocks : (n,)
    ranks : (c,)
    d : int
    budget : int
        Numbers.
    fraction : float
        Of the words with a better block, how many may move; one at least.

    Returns
    -------
    (n,)
    """
    every = np.arange(len(blocks))
    best = errors.argmin(axis=1)
    least = errors[every, best]
    candidates = np.flatnonzero(least < errors[every, blocks])
    candidates = candidates[np.argsort(least[candidates], kind="stable")]
    blocks, counts = blocks.copy(), np.bincount(blocks, minlength=len(ranks))
    left = budget - int(numbers(counts, ranks, d).sum())
    moves, spare = max(1, int(fraction * len(candidates))), counts - fewest(ranks, d)
    for i, a, b in zip(candidates, blocks[candidates], best[candidates], strict=True):
        if spare[a] > 0 and ranks[b] - ranks[a] <= left:
            blocks[i] = b
            spare[a] -= 1
            spare[b] += 1
            left -= ranks[b] - ranks[a]
            moves -= 1
            if moves == 0:
                break
    return blocks


def assign(losses: Array, blocks: Integers, ranks: Integers, d: int, budget: int) -> Integers:
    """Block of the smallest loss + lambda rank for each word, lambda >= 0 the smallest at which all fits.

    A block that would keep fewer words than its rank keeps those that lose least by it.

    Parameters
    ----------
    losses : (n, c)
        Weighted errors.
    blocks : (n,)
        As it is now: where nothing fits, and where nothing is gained, it stays.
    ranks : (c,)
    d : int
    budget : int
        Numbers.

    Returns
    -------
    (n,)
    """
    every, least = np.arange(len(blocks)), fewest(ranks, d)

    def attempt(multiplier: float) -> Integers | None:
        """Blocks at this lambda, or None if they do not fit."""
        costs = losses + multiplier * ranks
        own = costs[every, blocks]
        found = costs.argmin(axis=1)
        gain = own - costs[every, found]
        found = np.where(gain > 0, found, blocks)
        counts = np.bincount(found, minlength=len(ranks))
        while (counts < least).any():  # ends: words only come back, and where all are back it holds
            p = int(np.argmax(counts < least))
            gone = np.flatnonzero((blocks == p) & (found != p))
            back = gone[np.argsort(gain[gone], kind="stable")[: least[p] - counts[p]]]
            found[back] = p
            counts = np.bincount(found, minlength=len(ranks))
        return found if numbers(counts, ranks, d).sum() <= budget else None

    found = attempt(0.0)
    high = float(losses.max())
    if found is not None or high == 0:
        return blocks if found is None else found
    found, low = attempt(high), high * 2.0**-60
    for _ in range(HALVINGS):
        middle = np.sqrt(low * high)
        tried = attempt(middle)
        if tried is None:
            low = middle
        else:
            found, high = tried, middle
    return blocks if found is None else found


def fewest(ranks: Integers, d: int) -> Integers:
    """Words that each block must keep: as many as its rank, one if it is dense."""
    return np.where(ranks == d, 1, ranks)
