"""GroupReduce: what must hold of blocks, ranks and refinement, and that the budget is never exceeded."""

import itertools
import os
from pathlib import Path

import numpy as np
import pytest
from sklearn.utils.estimator_checks import parametrize_with_checks

from baselines import GroupReduce, LowRank
from baselines.blocks import (
    assign,
    blocks_by_frequency,
    fit_blocks,
    move,
    numbers,
    ranks_within_budget,
    residuals,
)
from dpq_ref.compressed import load

OPTIONS = [
    {"ranks": ranks, "weighted_factors": weighted, "refinement": refinement}
    for ranks, weighted, refinement in itertools.product(
        ("frequency", "uniform"), (True, False), ("none", "moves", "lagrangian")
    )
]


def name(options):
    return " ".join(map(str, options.values()))


def table(n=400, d=24, seed=0, dtype=np.float64):
    rng = np.random.default_rng(seed)
    return (rng.standard_normal((n, d)) @ np.diag(0.85 ** np.arange(d)) + 0.3).astype(dtype)


def zipf(n, seed=1):
    return np.random.default_rng(seed).permutation(1e6 / np.arange(1, n + 1)).round()


def planted(n=4000, d=100, n_spaces=5, dim=8, noise=0.05, seed=0):
    """Zipf frequencies; words in random subspaces, which have nothing to do with the frequencies."""
    rng = np.random.default_rng(seed)
    spaces = rng.integers(0, n_spaces, n)
    bases = rng.standard_normal((n_spaces, dim, d)) / np.sqrt(d)
    rows = np.einsum("ik,ikd->id", rng.standard_normal((n, dim)), bases[spaces])
    return rows + noise * rng.standard_normal((n, d)) / np.sqrt(d), 1e6 / np.arange(1, n + 1), spaces


def formula(model, n, d):
    """Bits of section 4.4, from what was learnt."""
    c, b = model.n_blocks, model.factor_bits
    bits = n * int(np.ceil(np.log2(c))) + (64 * c if b < 32 else 0)
    for p, r in enumerate(model.ranks_):
        m = int((model.blocks_ == p).sum())
        bits += b * m * d if r == d else b * r * (m + d)
    return bits


def weighted_error(X, model, weights):
    return float(weights @ ((X - model.compress().reconstruct().astype(np.float64)) ** 2).sum(axis=1))


@parametrize_with_checks(
    [GroupReduce(bits=40_000, n_blocks=2, ranks="uniform", refinement="moves")],
    expected_failed_checks={
        "check_sample_weight_equivalence_on_dense_data": "blocks have equally many rows, and a row of "
        "weight 2 is one row",
    },
)
def test_manners_of_scikit_learn(estimator, check):
    check(estimator)


# --- Invariants of the method ---------------------------------------------------------------------------


@pytest.mark.parametrize("options", OPTIONS, ids=name)
@pytest.mark.parametrize("n_blocks", [1, 2, 5])
def test_error_of_each_block_is_the_tail_of_its_singular_values(options, n_blocks):
    X, counts = table(), zipf(400)
    model = GroupReduce(ratio=3, n_blocks=n_blocks, **options).fit(X, sample_weight=counts)
    weights = counts if options["weighted_factors"] else np.ones(400)
    total = 0.0
    for p, (left, right) in enumerate(model.factors_):
        mine = model.blocks_ == p
        rows, q = X[mine], weights[mine]
        if right is None:
            np.testing.assert_array_equal(left, rows)
            continue
        rank = model.ranks_[p]
        values = np.linalg.svd(np.sqrt(q)[:, None] * rows, compute_uv=False) ** 2
        error = q @ ((rows - left @ right) ** 2).sum(axis=1)
        np.testing.assert_allclose(error, values[rank:].sum(), rtol=1e-8, atol=1e-12 * values.sum())
        np.testing.assert_allclose(right @ right.T, np.eye(rank), atol=1e-12)
        np.testing.assert_allclose(left, rows @ right.T, rtol=0, atol=1e-14 * np.abs(left).max())
        total += error
    np.testing.assert_allclose(model.objective_[-1], total, rtol=1e-9)
    np.testing.assert_allclose(model.error_, weighted_error(X, model, weights), rtol=1e-5)
    np.testing.assert_allclose(model.error_, total, rtol=1e-5)


@pytest.mark.parametrize("weighted", [True, False])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("ratio", [1.5, 3, 10])
def test_one_block_is_low_rank(weighted, dtype, ratio):
    X, counts = table(dtype=dtype), zipf(400)
    model = GroupReduce(ratio=ratio, n_blocks=1, weighted_factors=weighted).fit(X, sample_weight=counts)
    low_rank = LowRank(ratio=ratio).fit(X, sample_weight=counts if weighted else None)
    np.testing.assert_array_equal(model.factors_[0][1], low_rank.components_)
    np.testing.assert_array_equal(model.factors_[0][0], low_rank.coefficients_)
    np.testing.assert_array_equal(model.compress().reconstruct(), low_rank.compress().reconstruct())
    assert sum(model.compress().bits().values()) == sum(low_rank.compress().bits().values())


@pytest.mark.parametrize("n_blocks", [1, 3])
def test_a_budget_for_the_whole_table_is_exact(n_blocks):
    X = table(dtype=np.float32)
    overhead = 400 * (n_blocks - 1).bit_length()
    model = GroupReduce(bits=32 * X.size + overhead, n_blocks=n_blocks).fit(X, sample_weight=zipf(400))
    np.testing.assert_array_equal(model.ranks_, 24)
    np.testing.assert_array_equal(model.compress().reconstruct(), X)
    assert model.objective_[-1] == model.error_ == 0
    assert sum(model.compress().bits().values()) == 32 * X.size + overhead


@pytest.mark.parametrize("options", OPTIONS, ids=name)
@pytest.mark.parametrize(("n_blocks", "ratio"), [(2, 5), (7, 2), (7, 5)])
@pytest.mark.parametrize("factor_bits", [32, 8])
def test_budget_holds_and_the_error_falls_in_every_round(options, n_blocks, ratio, factor_bits):
    X, counts, _ = planted(n=300, d=40)
    model = GroupReduce(ratio=ratio, n_blocks=n_blocks, factor_bits=factor_bits, **options)
    model.fit(X, sample_weight=counts)
    assert (model.bits_ <= 32 * X.size / ratio).all()
    assert (np.diff(model.objective_) < 0).all()
    assert len(model.bits_) == len(model.objective_) == model.n_iter_ <= 1 + model.max_iter
    assert options["refinement"] != "none" or model.n_iter_ == 1
    table = model.compress()
    assert sum(table.bits().values()) == model.bits_[-1] == formula(model, *X.shape)
    assert (np.bincount(model.blocks_) >= np.where(model.ranks_ == 40, 1, model.ranks_)).all()
    np.testing.assert_array_equal(table.block_of_word, model.blocks_)
    counts = np.bincount(model.blocks_)
    assert (numbers(counts, model.ranks_, 40) <= 40 * counts).all()


@pytest.mark.parametrize("options", OPTIONS, ids=name)
@pytest.mark.parametrize("scale", [2.0**-40, 1e-6, 3.7, 1e9])
def test_only_proportions_of_the_frequencies_matter(options, scale):
    X, counts = table(), zipf(400)
    a, b = (
        GroupReduce(ratio=4, n_blocks=4, factor_bits=8, **options).fit(X, sample_weight=q)
        for q in (counts, scale * counts)
    )
    np.testing.assert_array_equal(a.blocks_, b.blocks_)
    np.testing.assert_array_equal(a.ranks_, b.ranks_)
    np.testing.assert_allclose(a.compress().reconstruct(), b.compress().reconstruct(), atol=1e-6)
    np.testing.assert_allclose(
        a.objective_ * (scale if options["weighted_factors"] else 1), b.objective_, rtol=1e-9
    )


@pytest.mark.parametrize("options", OPTIONS, ids=name)
def test_a_permuted_table_has_permuted_blocks(options):
    X, counts = table(), zipf(400) + np.arange(400) / 1000  # no ties
    order = np.random.default_rng(2).permutation(400)
    a = GroupReduce(ratio=4, n_blocks=4, **options).fit(X, sample_weight=counts)
    b = GroupReduce(ratio=4, n_blocks=4, **options).fit(X[order], sample_weight=counts[order])
    np.testing.assert_array_equal(a.blocks_[order], b.blocks_)
    np.testing.assert_array_equal(a.ranks_, b.ranks_)
    np.testing.assert_allclose(
        a.compress().reconstruct()[order], b.compress().reconstruct(), rtol=0, atol=1e-5
    )


def test_equal_frequencies_keep_the_order_of_the_table():
    X = table(403)
    model = GroupReduce(ratio=4, n_blocks=5, refinement="none").fit(X)
    np.testing.assert_array_equal(model.blocks_, np.repeat(range(5), [81, 81, 81, 80, 80]))
    counts = np.tile([3, 9, 9, 3], 4)
    expected = np.tile([1, 0, 0, 1], 4)
    np.testing.assert_array_equal(blocks_by_frequency(counts, 2), expected)
    third = blocks_by_frequency(counts, 4)
    assert (np.diff(third[counts == 9]) >= 0).all() and (np.diff(third[counts == 3]) >= 0).all()


def test_equal_weights_in_each_block_are_the_plain_factors():
    X, blocks = table(), np.arange(400) % 4
    counts = np.array([1000.0, 100, 10, 1])[blocks]
    fits = [
        GroupReduce(ratio=4, n_blocks=4, weighted_factors=w, refinement="none").fit(X, sample_weight=counts)
        for w in (True, False)
    ]
    np.testing.assert_array_equal(fits[0].blocks_, blocks)
    np.testing.assert_allclose(*(m.compress().reconstruct() for m in fits), atol=1e-5)


@pytest.mark.parametrize("refinement", ["none", "moves", "lagrangian"])
def test_a_word_of_great_weight_is_exact(refinement):
    X, counts = table(), zipf(400)
    counts[7] = 1e14
    model = GroupReduce(ratio=8, n_blocks=4, refinement=refinement).fit(X, sample_weight=counts)
    np.testing.assert_allclose(model.compress().lookup(7), X[7], atol=1e-5)


# --- Ranks ----------------------------------------------------------------------------------------------


def brute_force_ranks(counts, d, shares, budget):
    """Largest t of all at which a rank rises, by trying each."""
    best = None
    for t in sorted({r / s for s in shares for r in range(1, d + 2)}):
        floors = np.floor(t * np.asarray(shares) * (1 + 1e-12)).astype(int)
        ranks = np.clip(floors, 1, np.minimum(counts, d))
        ranks = np.where(ranks * (counts + d) >= counts * d, d, ranks)
        if numbers(counts, ranks, d).sum() <= budget:
            best = ranks
    return best


@pytest.mark.parametrize("seed", range(8))
def test_ranks_are_those_of_the_largest_multiplier_and_more(seed):
    rng = np.random.default_rng(seed)
    c, d = int(rng.integers(1, 6)), int(rng.integers(2, 30))
    counts = rng.integers(5, 60, c)
    shares = np.sort(rng.uniform(0.5, 30, c))[::-1]
    least = int(numbers(counts, np.where(counts + d >= counts * d, d, 1), d).sum())
    for budget in np.linspace(least, (counts * d).sum(), 9).astype(int):
        ranks = ranks_within_budget(counts, d, shares, budget)
        by_force = brute_force_ranks(counts, d, shares, budget)
        assert numbers(counts, ranks, d).sum() <= budget
        assert (ranks >= by_force).all()
        # What is left does not pay for one more anywhere.
        for p in np.flatnonzero(ranks < d):
            more = ranks.copy()
            more[p] = d if (ranks[p] + 1) * (counts[p] + d) >= counts[p] * d else ranks[p] + 1
            assert numbers(counts, more, d).sum() > budget


def test_ranks_with_a_dense_head_are_spent_on_the_rest():
    X, counts = table(), np.r_[np.full(40, 1e9), np.ones(360)]
    model = GroupReduce(ratio=2, n_blocks=10, refinement="none").fit(X, sample_weight=counts)
    assert model.ranks_[0] == 24 and (model.ranks_[1:] > 1).all()
    assert model.bits_[0] > 0.95 * 32 * X.size / 2
    assert model.ranks_[1:].max() - model.ranks_[1:].min() <= 1


def test_uniform_ranks_are_as_equal_as_can_be():
    ranks = GroupReduce(ratio=4, n_blocks=5, ranks="uniform", refinement="none").fit(table()).ranks_
    assert ranks.max() - ranks.min() <= 1 and (np.diff(ranks) <= 0).all()


# --- Zeros and degenerate tables ------------------------------------------------------------------------


@pytest.mark.parametrize("options", OPTIONS, ids=name)
def test_words_that_never_occur(options):
    X, counts = table(), zipf(400)
    counts[np.random.default_rng(0).permutation(400)[:300]] = 0  # three blocks of four have none
    model = GroupReduce(ratio=4, n_blocks=4, factor_bits=8, **options).fit(X, sample_weight=counts)
    assert np.isfinite(model.compress().reconstruct()).all()
    assert (model.bits_ <= 32 * X.size / 4).all()
    rare = X[model.blocks_ == 3]
    rank = model.ranks_[3]
    tail = (np.linalg.svd(rare, compute_uv=False)[rank:] ** 2).sum()
    left, right = model.factors_[3]
    if counts[model.blocks_ == 3].sum() == 0:  # they count equally then
        np.testing.assert_allclose(((rare - left @ right) ** 2).sum(), tail, rtol=1e-8)


@pytest.mark.parametrize("options", OPTIONS, ids=name)
@pytest.mark.parametrize(
    "X",
    [
        np.zeros((60, 9)),
        np.full((60, 9), 0.5),
        table(60, 1),
        table(60, 7),
        table(4, 299),
        np.repeat(table(3, 9), 20, axis=0),
        table(60, 2) @ table(2, 9),
        table(60, 9).astype(np.float16),
        np.asfortranarray(table(60, 9)),
        table(60, 9) * [1, 0, 1, 0, 1, 1, 1, 1, 1],
    ],
    ids=["zeros", "constant", "d 1", "d 7", "d 299", "duplicates", "deficient", "half", "fortran", "empty"],
)
def test_degenerate_tables(options, X, tmp_path):
    n, d = X.shape
    model = GroupReduce(ratio=0.9, n_blocks=4, factor_bits=8, **options).fit(X, sample_weight=zipf(n))
    table = model.compress()
    table.save(tmp_path / "table")
    whole = load(tmp_path / "table").reconstruct()
    assert np.isfinite(whole).all()
    np.testing.assert_array_equal(table.lookup(np.arange(n)), whole)
    scale = max(np.abs(X).max(), 1e-9)
    np.testing.assert_allclose(whole, X, atol=0.02 * scale * np.sqrt(d))
    assert sum(table.bits().values()) / 8 <= (tmp_path / "table").stat().st_size
    decoded = model.inverse_transform(model.transform(X))
    assert decoded.shape == X.shape and np.isfinite(decoded).all()


def test_same_input_same_output():
    X, counts = table(dtype=np.float32), zipf(400)
    a, b = (GroupReduce(ratio=6, factor_bits=8).fit(X, sample_weight=counts).compress() for _ in range(2))
    for first, second in zip(a.arrays().values(), b.arrays().values(), strict=True):
        np.testing.assert_array_equal(first, second)


# --- Refinement -----------------------------------------------------------------------------------------


def test_planted_blocks_are_found_with_uniform_ranks():
    X, counts, spaces = planted(n=1500, d=60, n_spaces=4, dim=5, noise=0)
    budget = 32 * (4 * 5 * 60 + 5 * 1500) + 2 * 1500
    errors = {}
    for refinement in ("none", "moves", "lagrangian"):
        model = GroupReduce(
            bits=budget, n_blocks=4, ranks="uniform", refinement=refinement, max_iter=200, move_fraction=0.3
        ).fit(X, sample_weight=counts)
        np.testing.assert_array_equal(model.ranks_, 5)
        errors[refinement] = model.objective_[-1] / (counts @ (X**2).sum(axis=1))
    assert errors["none"] > 0.2
    assert min(errors["moves"], errors["lagrangian"]) < 0.1
    tails = [(LowRank(5).fit(X[spaces == s]).singular_values_[5:] ** 2).sum() for s in range(4)]
    assert sum(tails) < 1e-9 * (X**2).sum()  # what is planted is there to be found


def free_moves(X, weights, blocks, ranks, rounds=30):
    """Refinement without a budget, by hand: bits and error at its end."""
    for _ in range(rounds):
        errors = []
        for p, r in enumerate(ranks):
            V = np.linalg.svd(np.sqrt(weights[blocks == p])[:, None] * X[blocks == p], full_matrices=False)[2]
            errors.append(((X - X @ V[:r].T @ V[:r]) ** 2).sum(axis=1))
        errors = np.array(errors).T
        candidates = np.flatnonzero(errors.min(axis=1) < errors[np.arange(len(X)), blocks])
        candidates = candidates[errors[candidates].min(axis=1).argsort()][: max(1, len(candidates) // 10)]
        if not len(candidates):
            break
        keep = [i for i in candidates if (blocks == blocks[i]).sum() > ranks[blocks[i]]]
        blocks = blocks.copy()
        blocks[keep] = errors[keep].argmin(axis=1)
    counts = np.bincount(blocks, minlength=len(ranks))
    return (ranks * (counts + X.shape[1])).sum(), weights @ errors[np.arange(len(X)), blocks]


def test_free_moves_would_exceed_the_budget_and_ours_do_not():
    X, counts, _ = planted(n=1000, d=50, noise=0.3)
    budget = X.size / 8
    errors = {}
    for refinement in ("none", "moves", "lagrangian"):
        model = GroupReduce(ratio=8, n_blocks=5, refinement=refinement).fit(X, sample_weight=counts)
        assert (model.bits_ <= 32 * budget).all()
        errors[refinement] = model.objective_[-1]
        if refinement == "none":
            free_size, free_error = free_moves(X, counts, model.blocks_, model.ranks_)
    assert free_size > 1.5 * budget
    assert free_error < errors["lagrangian"] < errors["moves"] <= errors["none"]


def test_a_move_is_to_a_smaller_error_and_spends_what_another_released():
    errors = np.array([[4.0, 1, 9], [9, 4, 3.5], [4, 9, 0.5], [1, 1, 1], [2, 5, 5]] * 2 + [[9, 9, 0]] * 3)
    blocks, ranks, d = np.array([0, 1, 0, 1, 2] * 2 + [2] * 3), np.array([1, 2, 3]), 10
    used = int(numbers(np.bincount(blocks), ranks, d).sum())
    moved = move(errors, blocks, ranks, d, used, 1.0)
    # By the error after the move: rows 2 and 7 (0.5, to block 2, two numbers more each) do not fit, nor do 0
    # and 5 (1, to block 1); 4 and 9 (2, to block 0) release two each, of which 1 and 6 (3.5, to block 2) take
    # one each.
    np.testing.assert_array_equal(moved, [0, 2, 0, 1, 0] * 2 + [2] * 3)
    assert numbers(np.bincount(moved), ranks, d).sum() == used - 2
    moved = move(errors, blocks, ranks, d, used + 2, 1e-9)  # one at a time
    np.testing.assert_array_equal(np.flatnonzero(moved != blocks), [2])


def test_a_block_keeps_as_many_words_as_its_rank():
    errors = np.tile([1.0, 0.0], (6, 1))  # all had rather be in block 1
    blocks, ranks = np.array([0, 0, 0, 0, 1, 1]), np.array([3, 2])
    moved = move(errors, blocks, ranks, 9, 10**6, 1.0)
    assert np.bincount(moved).tolist() == [3, 3]
    losses = errors * np.array([[5.0], [4], [3], [2], [1], [1]])
    assigned = assign(losses, blocks, ranks, 9, 10**6)
    np.testing.assert_array_equal(assigned, [1, 0, 0, 0, 1, 1])  # the one that gains most
    dense = np.array([9, 2])
    assert np.bincount(assign(losses, blocks, dense, 9, 10**6)).tolist() == [1, 5]


@pytest.mark.parametrize("seed", range(5))
def test_assignment_is_the_best_of_its_size(seed):
    """No assignment of all 2^n with at most as many numbers has a smaller loss."""
    rng = np.random.default_rng(seed)
    losses, ranks, d = rng.exponential(size=(9, 2)) * [1, 2], np.array([3, 1]), 5
    blocks = np.array([0] * 4 + [1] * 5)
    for budget in range(int(numbers(np.array([4, 5]), ranks, d).sum()), 60, 3):
        found = assign(losses, blocks, ranks, d, budget)
        size = numbers(np.bincount(found, minlength=2), ranks, d).sum()
        assert size <= budget
        loss = losses[np.arange(9), found].sum()
        for other in itertools.product(range(2), repeat=9):
            other = np.array(other)
            counts = np.bincount(other, minlength=2)
            if (counts >= ranks).all() and numbers(counts, ranks, d).sum() <= size:
                assert losses[np.arange(9), other].sum() >= loss - 1e-12


@pytest.mark.parametrize("seed", range(3))
def test_assignment_spends_the_budget_though_blocks_must_keep_words(seed):
    rng = np.random.default_rng(seed)
    ranks, d = np.array([90, 8, 4, 2, *[1] * 16]), 300
    blocks = np.repeat(range(20), 100)
    # Weights over six decades; the head block is the best for nearly all words.
    losses = rng.exponential(size=(2000, 20)) * 1e6 / np.arange(1, 2001)[:, None] ** 1.5
    losses[:, 0] *= 0.1
    budget = int(numbers(np.bincount(blocks), ranks, d).sum())
    found = assign(losses, blocks, ranks, d, budget)
    size = numbers(np.bincount(found, minlength=20), ranks, d).sum()
    assert 0.995 * budget < size <= budget
    assert (np.bincount(found, minlength=20) >= ranks).all()
    every = np.arange(2000)
    assert losses[every, found].sum() < 0.9 * losses[every, blocks].sum()


def test_a_block_that_shrank_is_dense_once_that_takes_no_more():
    X, blocks = table(30, 10), np.repeat([0, 1], [9, 21])
    for rank, settled in ((4, 4), (5, 10)):  # 4 x 19 < 9 x 10 <= 5 x 19
        bases, ranks = fit_blocks(X, np.ones(30), blocks, np.array([rank, 3]))
        assert ranks.tolist() == [settled, 3]
        assert (bases[0] is None) == (settled == 10) and bases[1].shape == (3, 10)


def test_residuals():
    X = table(50, 9)
    V = np.linalg.qr(table(9, 3, seed=4))[0].T
    errors = residuals(X, [V, None])
    np.testing.assert_allclose(errors[:, 0], ((X - X @ V.T @ V) ** 2).sum(axis=1), rtol=1e-10)
    np.testing.assert_array_equal(errors[:, 1], 0)


# --- Quantized factors ----------------------------------------------------------------------------------


def test_error_of_quantized_factors_falls_to_that_of_exact_ones():
    X, counts = table(2000, 60, dtype=np.float32), zipf(2000)
    exact = GroupReduce(ratio=8).fit(X, sample_weight=counts)
    ranks, factors = exact.ranks_, exact.factors_
    errors = []
    for b in (2, 4, 8, 12, 16):  # the same ranks: a budget of as many numbers
        bits = b * int(numbers(np.bincount(exact.blocks_), ranks, 60).sum()) + 3 * 2000 + 64 * 5
        model = GroupReduce(bits=bits, factor_bits=b, refinement="none").fit(X, sample_weight=counts)
        if np.array_equal(model.ranks_, ranks):
            errors.append(model.error_ / model.objective_[-1])
        np.testing.assert_allclose(model.error_, weighted_error(X, model, counts), rtol=1e-5)
    assert len(errors) >= 3 and errors == sorted(errors, reverse=True)
    assert errors[-1] < 1 + 1e-5
    assert all(f[0].dtype == np.float32 for f in factors)


def test_bits_of_quantized_factors():
    X, counts = table(2000, 60), zipf(2000)
    model = GroupReduce(ratio=16, factor_bits=8, n_blocks=6).fit(X, sample_weight=counts)
    bits = model.compress().bits()
    size = int(numbers(np.bincount(model.blocks_), model.ranks_, 60).sum())
    assert bits == {"codes": 8 * size, "scales": 6 * 64, "blocks": 3 * 2000}
    four = GroupReduce(ratio=4, n_blocks=6).fit(X, sample_weight=counts)
    assert abs(sum(four.compress().bits().values()) / sum(bits.values()) - 4) < 0.1


def test_clips_weigh_errors_as_the_product_does():
    """Neither clip can be moved to a smaller error of the product, the other factor exact."""
    X, counts = table(800, 30), zipf(800)
    model = GroupReduce(ratio=25, factor_bits=3, n_blocks=2, refinement="none").fit(X, sample_weight=counts)
    p = int(np.flatnonzero(model.ranks_ < 30)[0])
    left, right = model.factors_[p]
    q = counts[model.blocks_ == p]

    def error(left, right):
        product = model.factors_[p][0] @ model.factors_[p][1]
        return q @ ((product - left @ right) ** 2).sum(axis=1)

    def rounded(factor, clip):
        return (np.rint((np.clip(factor / clip, -1, 1) + 1) * 3.5) / 3.5 - 1) * clip

    for side in (0, 1):
        clip = float(model._scales_[p, side])
        at = [
            error(rounded(left, s * clip), right) if side == 0 else error(left, rounded(right, s * clip))
            for s in (1, *np.linspace(0.3, 1.7, 57))
        ]
        assert at[0] <= min(at) * 1.002


# --- The interface --------------------------------------------------------------------------------------


@pytest.mark.parametrize("factor_bits", [32, 8])
def test_file_holds_the_table_bit_by_bit(factor_bits, tmp_path):
    X, counts = table(1000, 40, dtype=np.float32), zipf(1000)
    model = GroupReduce(ratio=6, n_blocks=20, factor_bits=factor_bits).fit(X, sample_weight=counts)
    compressed = model.compress()
    compressed.save(tmp_path / "table")
    loaded = load(tmp_path / "table")
    np.testing.assert_array_equal(loaded.reconstruct(), compressed.reconstruct())
    assert loaded.bits() == compressed.bits() and loaded.compression_ratio >= 6
    assert (tmp_path / "table").stat().st_size <= model.bits_[-1] / 8 + 4096
    flops = np.where(model.ranks_ == 40, 0, 80 * model.ranks_)[model.blocks_]
    np.testing.assert_allclose(loaded.flops_per_lookup(counts), np.average(flops, weights=counts))


def test_rows_go_to_the_block_that_fits_best():
    X, counts = table(), zipf(400)
    model = GroupReduce(ratio=4, n_blocks=4, ranks="uniform").fit(X, sample_weight=counts)
    new = table(30, seed=9)
    Z = model.transform(new)
    assert Z.shape == (30, 1 + model.ranks_.max())
    decoded = model.inverse_transform(Z)
    errors = [((new - new @ right.T @ right) ** 2).sum(axis=1) for _, right in model.factors_]
    np.testing.assert_allclose(((new - decoded) ** 2).sum(axis=1), np.min(errors, axis=0), rtol=1e-9)
    np.testing.assert_array_equal(Z[:, 0], np.argmin(errors, axis=0))
    for p, (_, right) in enumerate(model.factors_):
        mine = Z[Z[:, 0] == p, 1:]
        np.testing.assert_array_equal(mine[:, model.ranks_[p] :], 0)
        np.testing.assert_allclose(mine[:, : model.ranks_[p]], new[Z[:, 0] == p] @ right.T, atol=1e-12)


def test_rows_in_a_dense_block_are_themselves():
    X, counts = table(), np.r_[np.full(100, 1e9), np.ones(300)]
    model = GroupReduce(ratio=2.5, n_blocks=4, refinement="none").fit(X, sample_weight=counts)
    assert model.ranks_[0] == 24
    new = table(30, seed=9)
    np.testing.assert_array_equal(model.inverse_transform(model.transform(new)), new)


def test_bad_coefficients():
    model = GroupReduce(ratio=4, n_blocks=2, ranks="uniform").fit(table())
    Z = model.transform(table(5))
    with pytest.raises(ValueError, match=r"Z has shape \(5, 3\)"):
        model.inverse_transform(Z[:, :3])
    Z[0, 0] = 2
    with pytest.raises(IndexError, match=r"blocks in Z must lie in \[0, 2\), got 2"):
        model.inverse_transform(Z)
    Z[0, 0] = 0.5
    with pytest.raises(ValueError, match="some are not whole"):
        model.inverse_transform(Z)


@pytest.mark.parametrize(
    ("parameters", "error", "message"),
    [
        ({}, ValueError, "no budget is given; it takes one of bits and ratio"),
        ({"bits": 10**5, "ratio": 4}, ValueError, "bits=100000, ratio=4; it takes one of"),
        (
            {"ratio": 30},
            ValueError,
            r"ratio=30 cannot be met for a table of 400 x 24: .* 17840 bits, ratio 17\.22",
        ),
        ({"ratio": 0}, ValueError, "ratio=0"),
        (
            {"ratio": 4, "n_blocks": 401},
            ValueError,
            "n_blocks=401; a table of n_samples=400 takes at most 400",
        ),
        ({"ratio": 4, "n_blocks": 0}, ValueError, "n_blocks=0"),
        ({"ratio": 4, "ranks": "equal"}, ValueError, "ranks='equal'; it takes 'frequency', 'uniform'"),
        ({"ratio": 4, "refinement": None}, ValueError, "refinement=None; it takes 'none', 'moves'"),
        ({"ratio": 4, "max_iter": -1}, ValueError, "max_iter=-1"),
        ({"ratio": 4, "move_fraction": 0}, ValueError, "move_fraction=0; it takes a number above 0"),
        ({"ratio": 4, "factor_bits": 17}, ValueError, "factor_bits=17; it takes 32, or from 1 to 16"),
        ({"ratio": 4, "factor_bits": 8.0}, TypeError, r"factor_bits=8\.0"),
    ],
)
def test_bad_parameters(parameters, error, message):
    with pytest.raises(error, match=message):
        GroupReduce(**parameters).fit(table())


def test_the_smallest_budget_is_that_of_the_message():
    assert GroupReduce(bits=17840).fit(table()).ranks_.tolist() == [1] * 5
    with pytest.raises(ValueError, match="17840 bits"):
        GroupReduce(bits=17839).fit(table())


def test_beyond_float32():
    with pytest.raises(ValueError, match="float32"):
        GroupReduce(ratio=2).fit(1e60 * table())


@pytest.mark.skipif(
    "DPQ_REF_DATA" not in os.environ, reason="DPQ_REF_DATA does not name the folder of tables"
)
def test_blocks_beat_one_weighted_low_rank_on_word_vectors():
    X = np.load(Path(os.environ["DPQ_REF_DATA"]) / "embeddings/glove-6b-300d-3k.npz")["vectors"]
    counts = 1e6 / np.arange(1, len(X) + 1)
    plain, weighted = (LowRank(ratio=8).fit(X, sample_weight=q) for q in (None, counts))
    errors = [weighted_error(X, plain, counts), weighted_error(X, weighted, counts)]
    for refinement in ("none", "lagrangian"):
        model = GroupReduce(ratio=8, refinement=refinement, max_iter=3).fit(X, sample_weight=counts)
        assert (model.bits_ <= 32 * X.size / 8).all()
        errors.append(model.error_)
    assert errors == sorted(errors, reverse=True)
