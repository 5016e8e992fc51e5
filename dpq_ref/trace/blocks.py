"""The start of GroupReduce (P. Chen et al. 2018) and one round of its refinement.

As in `baselines.group_reduce`, where its source is, and what the paper leaves open.
"""

from typing import Any

import numpy as np

from dpq_ref import checks
from dpq_ref.kernels.reference import Array, Integers
from dpq_ref.trace import lloyd
from dpq_ref.trace.steps import Claim, Step, Steps, during, no_higher, orthogonal, rotations, unbeaten


def group_reduce(X: Any, weights: Any = None, *, n_blocks: int, ratio: float, seed: int = 0) -> list[Step]:
    """Trace the start and one round of refinement of GroupReduce (P. Chen et al. 2018), as in `baselines`.

    Parameters
    ----------
    X, weights
        As in `kmeans`.
    n_blocks : int
    ratio : float
        The budget: how many times smaller than the table.
    seed : int
        Of the checks.

    Returns
    -------
    list of Step

    Raises
    ------
    ValueError, TypeError
        If there are more blocks than rows, rank 1 in all blocks exceeds the budget, or X or the weights are
        not finite.

    Examples
    --------
    >>> X = np.random.default_rng(0).standard_normal((24, 6))
    >>> steps = group_reduce(X, 1 / np.arange(1, 25), n_blocks=3, ratio=2)
    >>> {step.name: step.array for step in steps}["ranks"]
    array([3, 1, 1])
    """
    X, weights = lloyd.start(X, weights)
    if checks.positive("n_blocks", n_blocks) > len(X):
        raise ValueError(f"n_blocks={n_blocks}; a table of {len(X)} rows takes at most {len(X)}")
    if not 0 < ratio < np.inf:
        raise ValueError(f"ratio={ratio}; it takes a finite number above 0")
    return list(_group_reduce(X, weights, n_blocks, ratio, np.random.default_rng(seed)))


def _group_reduce(X: Array, weights: Array, n_blocks: int, ratio: float, rng: Any) -> Steps[None]:
    from baselines.blocks import (
        assign,
        blocks_by_frequency,
        fit_blocks,
        numbers,
        ranks_within_budget,
        residuals,
    )

    n, d = X.shape
    yield from during("blocks", lloyd.given(X, weights))
    blocks = blocks_by_frequency(weights, n_blocks)
    sizes = np.bincount(blocks)
    shares = np.bincount(blocks, weights) / sizes
    budget = int((32 * n * d / ratio - n * (n_blocks - 1).bit_length()) // 32)
    least = int(numbers(sizes, np.where(sizes + d < sizes * d, 1, d), d).sum())
    if least > budget:
        raise ValueError(f"ratio={ratio:g} leaves {budget} numbers; the least takes {least}")
    ranks = fit_blocks(X, weights, blocks, ranks_within_budget(sizes, d, shares, budget))[1]
    yield from during("blocks", _sizes(blocks, sizes, shares, ranks, numbers(sizes, ranks, d), d, budget))

    bases: list[Array | None] = []
    for p in range(n_blocks):
        rows, q = X[blocks == p], weights[blocks == p]
        words = tuple(f"i={i}" for i in np.flatnonzero(blocks == p))
        bases.append((yield from during(f"block {p}", _block(p, rows, q, words, int(ranks[p]), rng))))
    errors = residuals(X, bases)
    before = float(weights @ errors[np.arange(n), blocks])
    moved = assign(errors * weights[:, None], blocks, ranks, d, budget)
    found, ranks = fit_blocks(X, weights, moved, ranks)
    after = float(weights @ residuals(X, found)[np.arange(n), moved])
    stored = numbers(np.bincount(moved, minlength=n_blocks), ranks, d)
    direct = 0.0
    for p, basis in enumerate(bases):
        if basis is not None:
            rows = X[blocks == p]
            direct += float(weights[blocks == p] @ np.square(rows - rows @ basis.T @ basis).sum(axis=1))
    same = Claim(
        f"{before:.6g}, from the rows that the factors give {direct:.6g}",
        abs(before - direct),
        1e-12 * lloyd.squares(X, weights),
    )
    yield from during("refinement", _refinement(errors, before, same, blocks, moved, stored, budget))
    yield from during("refinement", _refitted(found, before, after))


def _sizes(
    blocks: Integers,
    sizes: Integers,
    shares: Array,
    ranks: Integers,
    stored: Integers,
    d: int,
    budget: int,
) -> Steps[None]:
    yield Step(
        "blocks", "words by falling q, equally many in each block", blocks, "The block of each word.", "i"
    )
    yield Step("sizes", "sizes[p] = number of words in block p", sizes, "", "p")
    yield Step("shares", "shares[p] = mean of q in block p", shares, "", "p")
    yield Step(
        "budget",
        "",
        np.array(budget),
        "Numbers that may be stored, of 32 bits each. The bits that tell blocks are taken off.",
    )
    yield Step(
        "ranks",
        "ranks[p] = max(1, ⌊t shares[p]⌋), with the largest t that fits the budget",
        ranks,
        f"Frequent words get a higher rank. {d} means all rows as they are: a factorization would take more.",
        "p",
    )
    yield Step(
        "numbers",
        f"numbers[p] = ranks[p] (sizes[p] + {d}), or sizes[p] · {d} as they are",
        stored,
        "",
        "p",
        checks=(_within(stored, budget),),
    )


def _within(stored: Integers, budget: int) -> Claim:
    return Claim(f"{stored.sum()} numbers, the budget is {budget}", float(stored.sum()), float(budget))


def _block(p: int, rows: Array, q: Array, words: tuple[str, ...], rank: int, rng: Any) -> Steps[Array | None]:
    """Best factors of one block, (r, d) of them; None where its rows are stored as they are."""
    from baselines.low_rank import right_vectors

    d = rows.shape[1]
    yield Step(f"rows_{p}", f"rows of the table in block {p}", rows, "", "ic", words)
    if rank == d:
        return None
    q = q if q.any() else np.ones(len(q))
    singular, vectors = right_vectors(rows, q)
    basis = vectors[:rank]

    def error_of(basis: Array) -> float:
        return float(q @ np.square(rows - rows @ basis.T @ basis).sum(axis=1))

    error, tail = error_of(basis), float(np.square(singular[rank:]).sum())
    others = [basis @ Q for Q in rotations(d, rng)]
    yield Step(
        f"weighted_{p}", f"weighted_{p}[i] = √q[i] rows_{p}[i]", np.sqrt(q)[:, None] * rows, "", "ic", words
    )
    yield Step(f"singular_{p}", f"singular values of weighted_{p}", singular, "", "c")
    yield Step(
        f"basis_{p}",
        f"right singular vectors of weighted_{p}, the first ranks[{p}]",
        basis,
        "",
        "lc",
        checks=(orthogonal(basis, "V"), unbeaten(error_of, basis, others, "bases")),
    )
    yield Step(
        f"coefficients_{p}",
        f"coefficients_{p} = rows_{p} · basis_{p}ᵀ",
        rows @ basis.T,
        "The best for this basis. Stored with it in place of the rows.",
        "il",
        words,
    )
    yield Step(
        f"error_{p}",
        f"error_{p} = Σᵢ q[i] |rows_{p}[i] − coefficients_{p}[i] · basis_{p}|²",
        np.array(error),
        checks=(
            Claim(
                f"{error:.6g}, sum of the other singular values' squares {tail:.6g}",
                abs(error - tail),
                1e-9 * float(np.square(singular).sum()),
            ),
        ),
    )
    return basis


def _refinement(
    errors: Array,
    before: float,
    same: Claim,
    blocks: Integers,
    moved: Integers,
    stored: Integers,
    budget: int,
) -> Steps[None]:
    yield Step(
        "errors",
        "errors[i,p] = |table[i]|² − |basis_p · table[i]|²",
        errors,
        "Of each word in each block. The block that it is in is marked.",
        "ip",
        picked=blocks,
    )
    yield Step(
        "error",
        "error = Σᵢ q[i] errors[i,blocks[i]]",
        np.array(before),
        "What no round may raise.",
        checks=(same,),
    )
    yield Step(
        "blocks_moved",
        "blocks_moved[i] = argminₚ q[i] errors[i,p] + λ ranks[p]",
        moved,
        f"With the smallest λ ≥ 0 at which all fits the budget. {int((moved != blocks).sum())} of "
        f"{len(blocks)} words move.",
        "i",
    )
    yield Step(
        "numbers_moved", "numbers, with these blocks", stored, "", "p", checks=(_within(stored, budget),)
    )


def _refitted(bases: list[Array | None], before: float, after: float) -> Steps[None]:
    for p, basis in enumerate(bases):
        if basis is not None:
            yield Step(f"basis_{p}_moved", f"basis of block {p}, fitted again", basis, "", "lc")
    yield Step("error_moved", "the error with these", np.array(after))
    kept = min(before, after)
    yield Step(
        "error_next",
        "error_next = min(error, error_moved)",
        np.array(kept),
        "The round is taken." if after < before else "The round is not taken, for the error does not fall.",
        checks=(no_higher(kept, before, "error", before),),
    )
