"""Iterative quantization: what no iteration may break, and cubes that it must find."""

import os
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from baselines import IIQ, ITQ
from baselines.binary import random_frame
from baselines.itq import itq_rotation, procrustes
from dpq_ref.metrics import isotropy


def table(n=300, d=9, seed=0, dtype=np.float64):
    rng = np.random.default_rng(seed)
    return (rng.standard_normal((n, d)) @ np.diag(0.8 ** np.arange(d)) + 0.3).astype(dtype)


def frequencies(n, seed=1):
    return np.random.default_rng(seed).zipf(1.5, n).clip(max=10**5).astype(float)


def components(X, model):
    """V."""
    return (X - model.mean_) @ model.components_.T


def loss(V, B, R, weights=1.0):
    return (weights * ((B - V @ R) ** 2).sum(axis=1)).sum()


def signs(codes):
    return 2.0 * codes - 1


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize(("n", "d", "c"), [(300, 9, 9), (300, 9, 4), (300, 9, 1), (20, 40, 30), (40, 1, 1)])
def test_objective_never_rises_and_is_that_of_the_codes(n, d, c, weighted, dtype):
    X, weights = table(n, d, dtype=dtype), frequencies(n) if weighted else np.ones(n)
    model = ITQ(n_bits=c, random_state=0).fit(X, sample_weight=weights if weighted else None)
    eps = 1e-5 if dtype == np.float32 else 1e-10
    assert (np.diff(model.objective_) <= eps * model.objective_[0]).all()
    assert len(model.objective_) == model.n_iter_ <= 50
    V = components(X.astype(np.float64), model)
    np.testing.assert_allclose(
        model.objective_[-1], loss(V, signs(model.codes_), model.rotation_, weights), rtol=eps
    )


def test_rotation_and_components():
    X = table(500, 30)
    model = ITQ(n_bits=20, random_state=0).fit(X)
    assert np.abs(model.rotation_.T @ model.rotation_ - np.eye(20)).max() < 1e-12
    V = components(X, model)
    np.testing.assert_allclose(V.mean(axis=0), 0, atol=1e-12)
    np.testing.assert_allclose(np.linalg.norm(V @ model.rotation_), np.linalg.norm(V), rtol=1e-12)
    values = np.linalg.svd(X - X.mean(axis=0), compute_uv=False)
    np.testing.assert_allclose(np.linalg.norm(V, axis=0), values[:20], rtol=1e-6)
    np.testing.assert_array_equal(model.codes_, V @ model.rotation_ >= 0)  # B of this R, no older one


@pytest.mark.parametrize("weighted", [False, True])
def test_loss_identity_after_the_rotation_step(weighted):
    X, weights = table(), frequencies(300) if weighted else np.ones(300)
    models = [
        ITQ(n_bits=6, max_iter=t, random_state=0).fit(X, sample_weight=weights if weighted else None)
        for t in (1, 2, 3, 4)
    ]
    V = components(X, models[0])
    for before, after in pairwise(models):
        B = signs(before.codes_)
        values = np.linalg.svd(V.T @ (weights[:, None] * B), compute_uv=False)
        identity = weights.sum() * 6 + (weights[:, None] * V**2).sum() - 2 * values.sum()
        np.testing.assert_allclose(loss(V, B, after.rotation_, weights), identity, rtol=1e-10)
        assert after.objective_[-1] <= identity <= before.objective_[-1]
        np.testing.assert_array_equal(after.objective_[:-1], before.objective_)


def test_procrustes_is_the_best_rotation():
    rng = np.random.default_rng(0)
    V, B = rng.standard_normal((50, 5)), rng.choice([-1.0, 1.0], (50, 5))
    best = loss(V, B, procrustes(V.T @ B))
    assert all(best <= loss(V, B, random_frame(5, 5, rng)) for _ in range(200))
    R = random_frame(5, 5, rng)
    np.testing.assert_allclose(procrustes(V.T @ (V @ R)), R, atol=1e-12)


def test_random_rotations_are_orthogonal_and_turn_either_way():
    rng = np.random.default_rng(0)
    rotations = np.array([random_frame(3, 3, rng) for _ in range(2000)])
    np.testing.assert_allclose(
        rotations @ rotations.swapaxes(1, 2), np.broadcast_to(np.eye(3), (2000, 3, 3)), atol=1e-12
    )
    np.testing.assert_allclose(rotations.mean(axis=0), 0, atol=0.06)
    np.testing.assert_allclose((rotations**2).mean(axis=0), 1 / 3, atol=0.03)
    assert 900 < (np.linalg.det(rotations) > 0).sum() < 1100


@pytest.mark.parametrize("c", [2, 4, 8, 16])
def test_a_rotated_cube_is_found_by_the_best_of_20_starts(c):
    rng = np.random.default_rng(c)
    B = rng.choice([-1.0, 1.0], (1500, c))
    B = np.r_[B, -B]  # mean 0
    X = B @ random_frame(c, c, rng).T
    model = ITQ(n_bits=c, n_init=20, random_state=0).fit(X)
    assert model.objective_[-1] < 1e-15 * B.size
    agreement = np.abs(signs(model.codes_).T @ B) / len(B)  # bits up to order and sign
    np.testing.assert_allclose(np.sort(agreement, axis=1)[:, -1], 1, atol=1e-12)
    assert (np.sort(agreement.argmax(axis=1)) == np.arange(c)).all()
    np.testing.assert_allclose(model.compress().reconstruct(), X, atol=1e-5)


def test_a_single_start_often_sticks_and_more_starts_never_hurt():
    rng = np.random.default_rng(0)
    B = rng.choice([-1.0, 1.0], (600, 6))
    X = np.r_[B, -B] @ random_frame(6, 6, rng).T
    single = [ITQ(n_bits=6, random_state=seed).fit(X).objective_[-1] for seed in range(12)]
    assert 0 < sum(value > 1 for value in single) < 12
    for seed in range(4):
        several = ITQ(n_bits=6, n_init=5, random_state=seed).fit(X).objective_[-1]
        assert several <= single[seed]


def test_it_starts_from_the_rotation_it_is_given():
    rng = np.random.default_rng(0)
    B, R = rng.choice([-1.0, 1.0], (400, 8)), random_frame(8, 8, rng)
    near = np.linalg.qr(R + 0.05 * rng.standard_normal((8, 8)))
    start = near[0] * np.sign(np.diag(near[1]))
    rotation, objective = itq_rotation(B @ R.T, np.ones(400), start, 50)
    np.testing.assert_allclose(rotation, R, atol=1e-12)
    assert objective[-1] < 1e-20 and len(objective) < 5  # found, and seen to stay


def test_least_squares_decode_no_worse_than_the_rotation_turned_back():
    X, weights = table(), frequencies(300)
    for w in (np.ones(300), weights):
        model = ITQ(n_bits=5, random_state=0).fit(X, sample_weight=w)
        back = signs(model.codes_) @ model.rotation_.T @ model.components_
        centred = X - model.mean_
        s = (w[:, None] * back * centred).sum() / (w[:, None] * back**2).sum()
        closed = (w[:, None] * (centred - s * back) ** 2).sum()
        fitted = (w[:, None] * (X - model.compress().reconstruct()) ** 2).sum()
        assert fitted < closed


@pytest.mark.parametrize("cls", [ITQ, IIQ])
def test_weights_equal_repeated_rows(cls):
    X, counts = table(), np.random.default_rng(1).integers(0, 4, 300)
    weighted = cls(n_bits=6, random_state=0).fit(X, sample_weight=counts)
    repeated = cls(n_bits=6, random_state=0).fit(np.repeat(X, counts, axis=0))
    np.testing.assert_allclose(weighted.objective_, repeated.objective_, rtol=1e-9)
    np.testing.assert_allclose(weighted.rotation_, repeated.rotation_, atol=1e-9)
    np.testing.assert_allclose(weighted.decoder_, repeated.decoder_, atol=1e-6)


def test_seeds():
    X = table(dtype=np.float32)
    a, b, c = (ITQ(n_bits=8, random_state=seed).fit(X) for seed in (0, 0, 1))
    for name in ("rotation_", "codes_", "decoder_", "objective_"):
        np.testing.assert_array_equal(getattr(a, name), getattr(b, name))
    assert (a.codes_ != c.codes_).any()


def test_as_many_bits_as_columns_and_no_more():
    X = table(5, 9)  # fewer directions than bits
    model = ITQ(n_bits=9, random_state=0).fit(X)
    assert np.isfinite(model.objective_).all() and not model.components_[5:].any()
    with pytest.raises(ValueError, match="n_bits=10; a table of 9 columns takes at most 9"):
        ITQ(n_bits=10).fit(X)
    assert ITQ(ratio=0.4).fit(X).codes_.shape == (5, 9)


@pytest.mark.parametrize(
    ("parameters", "error", "message"),
    [({"max_iter": 0}, ValueError, "max_iter=0"), ({"n_init": 0}, ValueError, "n_init=0")],
)
def test_bad_parameters(parameters, error, message):
    with pytest.raises(error, match=message):
        ITQ(n_bits=2, **parameters).fit(table())


# --- Isotropic ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("weighted", [False, True])
def test_nothing_removed_is_itq_bit_by_bit(weighted):
    X, weights = table(400, 20, dtype=np.float32), frequencies(400) if weighted else None
    a = ITQ(n_bits=12, random_state=0).fit(X, sample_weight=weights)
    b = IIQ(n_bits=12, n_removed=0, random_state=0).fit(X, sample_weight=weights)
    for name in ("mean_", "components_", "rotation_", "objective_", "codes_", "decoder_", "offset_"):
        np.testing.assert_array_equal(getattr(a, name), getattr(b, name))


@pytest.mark.parametrize("m", [1, 2, 5, 8])
def test_the_strongest_directions_are_gone(m):
    X = table()
    model = IIQ(n_bits=6, n_removed=m, random_state=0).fit(X)
    _, values, vectors = np.linalg.svd(X - X.mean(axis=0), full_matrices=False)
    np.testing.assert_allclose(model.components_ @ vectors[:m].T, 0, atol=1e-7)
    V = components(X, model)
    remaining = np.r_[values[m:], np.zeros(9)][:6]
    np.testing.assert_allclose(np.linalg.norm(V, axis=0), remaining, rtol=1e-6, atol=1e-12)
    moved = X + np.random.default_rng(0).standard_normal((300, m)) @ vectors[:m]
    np.testing.assert_array_equal(model.transform(moved), model.codes_)
    by_hand = ITQ(n_bits=6, random_state=0).fit(
        (X - X.mean(axis=0)) @ (np.eye(9) - vectors[:m].T @ vectors[:m])
    )
    assert (np.diff(model.objective_) <= 1e-10 * model.objective_[0]).all()
    if m <= 3:  # then no direction is empty, and all are settled but for sign
        np.testing.assert_allclose(model.objective_, by_hand.objective_, rtol=1e-6)


@pytest.mark.parametrize(
    ("n", "d", "m"), [(2000, 300, 3), (400, 49, 0), (200, 64, 1), (2, 300, 1), (9, 1, 0)]
)
def test_how_many_are_removed_by_default(n, d, m):
    assert IIQ(n_bits=1, max_iter=1, random_state=0).fit(table(n, d, dtype=np.float32)).n_removed_ == m


def test_centring_and_removal_raise_isotropy_and_rotation_leaves_it():
    rng = np.random.default_rng(0)
    X = rng.standard_normal((2000, 10)) * 0.3 + 0.1
    X[:, 0] *= 4
    centred = X - X.mean(axis=0)
    model = IIQ(n_bits=9, n_removed=1, random_state=0).fit(X)
    V = components(X, model)
    assert isotropy(X) < isotropy(centred) < isotropy(V)
    np.testing.assert_allclose(isotropy(V @ model.rotation_), isotropy(V), rtol=1e-6)
    np.testing.assert_allclose(isotropy(X @ random_frame(10, 10, rng)), isotropy(X), rtol=1e-6)


@pytest.mark.parametrize(
    ("m", "error", "message"),
    [
        (-1, ValueError, "n_removed=-1"),
        (9, ValueError, "n_removed=9; a table of 300 x 9 takes at most 8"),
        (1.0, TypeError, "n_removed=1.0"),
    ],
)
def test_bad_number_removed(m, error, message):
    with pytest.raises(error, match=message):
        IIQ(n_bits=2, n_removed=m).fit(table())


# --- Others ---------------------------------------------------------------------------------------------


@pytest.mark.oracle
@pytest.mark.parametrize("c", [8, 16, 32])
def test_loss_is_no_higher_than_that_of_faiss(c):
    faiss = pytest.importorskip("faiss")
    X = table(4000, c)
    X -= X.mean(axis=0)
    vectors = np.linalg.svd(X, full_matrices=False)[2]
    V = (X @ vectors.T).astype(np.float32)
    ours, theirs = [], []
    for seed in range(5):
        matrix = faiss.ITQMatrix(c)
        matrix.max_iter, matrix.seed = 50, seed
        matrix.train(V)
        R = faiss.vector_to_array(matrix.A).reshape(c, c).T.astype(np.float64)
        np.testing.assert_allclose(R.T @ R, np.eye(c), atol=1e-5)
        theirs.append(((np.abs(V @ R) - 1) ** 2).sum())
        ours.append(ITQ(n_bits=c, random_state=seed).fit(X).objective_[-1])
    assert np.mean(ours) <= np.mean(theirs) * 1.005  # both from random starts
    assert min(ours) <= min(theirs) * 1.005
    # Its rotation, taken up from here, is at a fixed point already.
    _, objective = itq_rotation(V.astype(np.float64), np.ones(len(V)), R, 1)
    assert objective[0] <= theirs[-1] * (1 + 1e-6)


@pytest.mark.skipif(
    "DPQ_REF_DATA" not in os.environ, reason="DPQ_REF_DATA does not name the folder of tables"
)
def test_word_vectors_become_isotropic():
    X = np.load(Path(os.environ["DPQ_REF_DATA"]) / "embeddings/glove-6b-300d-3k.npz")["vectors"]
    values = [
        isotropy(components(X, IIQ(n_bits=128, n_removed=m, max_iter=5, random_state=0).fit(X)))
        for m in (0, 1, 3)
    ]
    assert isotropy(X) < values[0] < values[1] < values[2]


@pytest.mark.parametrize("method", [ITQ, IIQ])
def test_a_rotation_from_a_sample(method):
    """Rotation of the rows that are drawn; mean, components and decoder of all."""
    X, weights = table(600, dtype=np.float32), frequencies(600)
    weights[:100] = 0
    parameters = {"n_bits": 5, "random_state": 3}
    model = method(max_train_rows=150, **parameters).fit(X, sample_weight=weights)
    whole = method(**parameters).fit(X, sample_weight=weights)
    np.testing.assert_array_equal(model.components_, whole.components_)
    np.testing.assert_array_equal(model.mean_, whole.mean_)
    assert model.n_train_rows_ == 150 and whole.n_train_rows_ == 600 == len(model.codes_)
    drawn = np.random.default_rng(3).permutation(np.arange(100, 600))[:150]
    V = components(X[drawn], model)
    expected = loss(V, signs(model.codes_[drawn]), model.rotation_, weights[drawn])
    np.testing.assert_allclose(model.objective_[-1], expected, rtol=1e-4)
    assert np.abs(model.rotation_.T @ model.rotation_ - np.eye(5)).max() < 1e-12
    same = method(max_train_rows=600, **parameters).fit(X, sample_weight=weights)
    np.testing.assert_array_equal(same.codes_, whole.codes_)


@pytest.mark.parametrize(("value", "error"), [(8, ValueError), (0, ValueError), (2.5, TypeError)])
def test_a_sample_has_at_least_as_many_rows_as_columns(value, error):
    with pytest.raises(error, match=f"max_train_rows={value}; it takes an integer"):
        ITQ(n_bits=4, max_train_rows=value).fit(table(d=9))
