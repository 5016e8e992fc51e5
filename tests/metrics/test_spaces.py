"""Eigenspace overlap, PIP loss, spectral bounds and isotropy against their n x n definitions."""

import subprocess
import sys

import numpy as np
import pytest
from scipy.linalg import eigh

from dpq_ref.metrics import (
    eigenspace_overlap,
    geometry,
    isotropy,
    pip_loss,
    relative_pip_loss,
    spectral_bounds,
)
from dpq_ref.metrics.spaces import SharedBasis

SHAPES = [((50, 6), (50, 6)), ((50, 6), (50, 3)), ((50, 3), (50, 6)), ((8, 5), (8, 7)), ((6, 9), (6, 9))]


@pytest.fixture(params=[1 << 22, 40], ids=["one block", "many blocks"])
def sized(request, monkeypatch):
    monkeypatch.setattr(geometry, "BLOCK", request.param)


def normal(n, d, seed=0):
    return np.random.default_rng(seed).standard_normal((n, d))


def rotation(d, seed=9):
    return np.linalg.qr(normal(d, d, seed))[0]


def with_spectrum(n, values, seed=0):
    return np.linalg.qr(normal(n, len(values), seed))[0] * values @ rotation(len(values))


def projector(X, tolerance=1e-9):
    u, s, _ = np.linalg.svd(X, full_matrices=False)
    u = u[:, s > tolerance * s[0]]
    return u @ u.T, u.shape[1]


# --- The shared basis -----------------------------------------------------------------------------------


@pytest.mark.usefixtures("sized")
@pytest.mark.parametrize("shapes", SHAPES)
def test_shared_basis_has_all_inner_products(shapes):
    X, Y = normal(*shapes[0]), normal(*shapes[1], seed=1)
    shared = SharedBasis.of(X, Y)
    both, joint = np.c_[X, Y], np.c_[shared.a, shared.b]
    np.testing.assert_allclose(joint.T @ joint, both.T @ both, atol=1e-12)
    assert len(joint) == min(both.shape)


# --- Eigenspace overlap ---------------------------------------------------------------------------------


@pytest.mark.usefixtures("sized")
@pytest.mark.parametrize("shapes", SHAPES)
def test_overlap_is_that_of_the_projectors(shapes):
    X, Y = normal(*shapes[0]), normal(*shapes[1], seed=1)
    (P, r), (Q, s) = projector(X), projector(Y)
    assert eigenspace_overlap(X, Y) == pytest.approx(np.trace(P @ Q) / max(r, s), abs=1e-12)
    assert eigenspace_overlap(Y, X) == pytest.approx(eigenspace_overlap(X, Y), abs=1e-12)


@pytest.mark.usefixtures("sized")
@pytest.mark.parametrize("rank", [6, 4, 1])
def test_overlap_with_the_same_space_is_1(rank):
    X = normal(50, rank) @ normal(rank, 6, 1)
    for Y in (X, -3 * X, 1e-20 * X, X @ normal(6, 6, 2), X @ normal(6, 9, 3)):
        assert eigenspace_overlap(X, Y) == pytest.approx(1, abs=1e-10)


@pytest.mark.parametrize("k", range(1, 9))
def test_overlap_of_a_truncated_table_is_k_over_d(k):
    X = with_spectrum(100, 0.5 ** np.arange(8))
    u, s, vt = np.linalg.svd(X, full_matrices=False)
    truncated = u[:, :k] * s[:k] @ vt[:k]
    assert eigenspace_overlap(X, truncated) == pytest.approx(k / 8, abs=1e-10)
    assert eigenspace_overlap(X, u[:, :k] * s[:k]) == pytest.approx(k / 8, abs=1e-10)  # k columns
    narrow = X.astype(np.float32), (u[:, :k] * s[:k]).astype(np.float32) @ vt[:k].astype(np.float32)
    assert eigenspace_overlap(*narrow) == pytest.approx(k / 8, abs=1e-5)


def test_overlap_with_one_direction_gone():
    X = normal(300, 10)
    v = rotation(10)[:, 0]
    assert eigenspace_overlap(X, X - np.outer(X @ v, v)) == pytest.approx(0.9, abs=1e-12)


@pytest.mark.parametrize(("n", "d", "k"), [(1000, 15, 15), (1000, 10, 25), (400, 10, 6)])
def test_overlap_of_unrelated_spaces(n, d, k):
    found = [eigenspace_overlap(normal(n, d, 2 * i), normal(n, k, 2 * i + 1)) for i in range(30)]
    assert np.mean(found) == pytest.approx(min(d, k) / n, rel=0.1)


def levels(X, clip, bits):
    top = 2**bits - 1
    return (np.clip(X, -clip, clip) / clip + 1) * top / 2


@pytest.mark.parametrize(
    ("bits", "optimal", "unclipped", "stochastic"),
    [(1, 0.2511, 0.2511, 0.6645), (2, 0.0626, 0.0882, 0.1821), (4, 0.0039, 0.0044, 0.0089)],
)
def test_overlap_of_a_uniform_table_with_its_quantised_form(bits, optimal, unclipped, stochastic):
    rng = np.random.default_rng(0)
    X = rng.uniform(-1, 1, (10_000, 10))
    top = 2**bits - 1
    clip = 1 - 2.0**-bits
    j = np.rint(levels(X, clip, bits))
    assert 1 - eigenspace_overlap(X, 2 * clip * j / top - clip) == pytest.approx(optimal, rel=0.03)
    assert optimal == pytest.approx(4.0**-bits, rel=0.01)
    j = np.rint(levels(X, 1, bits))
    assert 1 - eigenspace_overlap(X, 2 * j / top - 1) == pytest.approx(unclipped, rel=0.03)
    j = np.floor(levels(X, 1, bits) + rng.random(X.shape))
    assert 1 - eigenspace_overlap(X, 2 * j / top - 1) == pytest.approx(stochastic, rel=0.03)


@pytest.mark.parametrize("d", [10, 60])
@pytest.mark.parametrize("n", [200, 3000])
def test_overlap_of_a_uniform_table_is_flat_in_n_and_d(n, d):
    X = np.random.default_rng(n).uniform(-1, 1, (n, d))
    clip = 0.75
    Y = 2 * clip * np.rint(levels(X, clip, 2)) / 3 - clip
    assert 1 - eigenspace_overlap(X, Y) == pytest.approx(4.0**-2, rel=0.2)


def test_overlap_bound_of_stochastic_rounding():
    a, bits = 0.5645, 4
    bounds = [20 / (2**b - 1) ** 2 / a**4 for b in (1, 2, bits)]
    np.testing.assert_allclose(bounds, [197, 21.9, 0.875], rtol=5e-3)
    rng = np.random.default_rng(0)
    X = rng.uniform(-1, 1, (10_000, 10)) / np.sqrt(10)
    assert np.linalg.svd(X, compute_uv=False)[-1] / np.sqrt(10_000 / 10) > a
    clip = 1 / np.sqrt(10)
    Y = np.floor(levels(X, clip, bits) + rng.random(X.shape)) * 2 * clip / 15 - clip
    assert 1 - eigenspace_overlap(X, Y) < bounds[-1]


@pytest.mark.usefixtures("sized")
@pytest.mark.parametrize("k", [1, 5, 9])
def test_overlap_of_ill_conditioned_tables(k):
    """Singular values over ten decades: the Gram matrix keeps only the upper eight."""
    values = 10.0 ** -np.arange(10)
    u, v = np.linalg.qr(normal(400, 10))[0], rotation(10)
    keep = np.r_[:k]
    X, Y = u * values @ v, (u * values)[:, -k:] @ v[-k:]
    assert eigenspace_overlap(X, Y) == pytest.approx(k / 10, abs=1e-5)
    assert eigenspace_overlap(X, u[:, keep]) == pytest.approx(k / 10, abs=1e-5)


def test_overlap_takes_the_numerical_rank():
    X = normal(2000, 40).astype(np.float32)
    factors = normal(2000, 12, 1).astype(np.float32), normal(12, 40, 2).astype(np.float32)
    Y = factors[0] @ factors[1]
    assert np.linalg.matrix_rank(Y.astype(np.float64)) == 40  # rounding fills all directions
    P, _ = projector(X.astype(np.float64))
    u = np.linalg.qr(factors[0].astype(np.float64))[0]
    assert eigenspace_overlap(X, Y) == pytest.approx(np.square(P @ u).sum() / 40, abs=1e-6)
    assert eigenspace_overlap(Y, factors[0]) == pytest.approx(1, abs=1e-6)


def test_overlap_of_zeros():
    X = normal(20, 3)
    assert eigenspace_overlap(0 * X, 0 * X) == 1
    assert eigenspace_overlap(X, 0 * X) == eigenspace_overlap(0 * X, X) == 0


def test_overlap_is_the_risk_of_regression():
    """Fixed design y = U z, E[z z^T] = 1: the squared residual norm grows by d (1 - E)."""
    rng = np.random.default_rng(0)
    X, Y = normal(60, 6), normal(60, 4, 1) + np.c_[normal(60, 6)[:, :4]]
    u = np.linalg.qr(X)[0]
    residual = u @ rng.standard_normal((6, 40_000))
    v = np.linalg.qr(Y)[0]
    residual -= v @ (v.T @ residual)
    assert np.square(residual).sum(axis=0).mean() == pytest.approx(
        6 * (1 - eigenspace_overlap(X, Y)), rel=0.02
    )


# --- PIP loss -------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("sized")
@pytest.mark.parametrize("shapes", SHAPES)
def test_pip_loss(shapes):
    X, Y = normal(*shapes[0]), normal(*shapes[1], seed=1)
    expected = np.linalg.norm(X @ X.T - Y @ Y.T)
    assert pip_loss(X, Y) == pytest.approx(expected, rel=1e-12)
    assert relative_pip_loss(X, Y) == pytest.approx(expected / np.linalg.norm(X @ X.T), rel=1e-12)
    grams = [np.square(a.T @ b).sum() for a, b in ((X, X), (Y, Y), (X, Y))]
    assert pip_loss(X, Y) == pytest.approx(np.sqrt(grams[0] + grams[1] - 2 * grams[2]), rel=1e-9)


def test_pip_loss_does_not_turn():
    X, Y = normal(50, 6), normal(50, 4, 1)
    loss = pip_loss(X, Y)
    assert pip_loss(X @ rotation(6), Y @ rotation(4)) == pytest.approx(loss, rel=1e-12)
    assert pip_loss(X, X @ rotation(6)) < 1e-13 * np.linalg.norm(X @ X.T)  # the Gram identity gives 1e-8


@pytest.mark.parametrize("a", [0.0, 0.5, -1.0, 3.0, 1 + 1e-10])
def test_pip_loss_of_a_multiple(a):
    X = normal(50, 6)
    whole = np.linalg.norm(X @ X.T)
    assert pip_loss(X, a * X) == pytest.approx(abs(a * a - 1) * whole, rel=1e-5, abs=1e-13 * whole)


def test_pip_loss_of_a_direction_gone_is_its_square():
    X = with_spectrum(50, np.array([5.0, 2, 1, 0.01]))
    v = np.linalg.svd(X)[2][3]
    assert pip_loss(X, X - np.outer(X @ v, v)) == pytest.approx(0.01**2, rel=1e-9)


# --- Spectral bounds ------------------------------------------------------------------------------------


@pytest.mark.usefixtures("sized")
@pytest.mark.parametrize("shapes", SHAPES)
@pytest.mark.parametrize("scale", [0.3, 1.0, 4.0])
def test_spectral_bounds(shapes, scale):
    X, Y = normal(*shapes[0]), scale * normal(*shapes[1], seed=1)
    n = len(X)
    ridge = np.linalg.svd(X, compute_uv=False)[-1] ** 2 * np.eye(n)
    ratios = eigh(Y @ Y.T + ridge, X @ X.T + ridge, eigvals_only=True)
    low, high = spectral_bounds(X, Y)
    assert low == pytest.approx(max(0, 1 - ratios[0]), rel=1e-9, abs=1e-12)
    assert high == pytest.approx(max(0, ratios[-1] - 1), rel=1e-9, abs=1e-12)
    assert spectral_bounds(X @ rotation(X.shape[1]), Y) == pytest.approx((low, high), abs=1e-9)
    assert spectral_bounds(7 * X, 7 * Y) == pytest.approx((low, high), abs=1e-9)


def test_spectral_bounds_by_hand():
    X = np.diag([3.0, 2.0, 1.0])[:, :3]
    X = np.r_[X, np.zeros((5, 3))]
    Y = X * [0.0, 2.0, 1.0]
    low, high = spectral_bounds(X, Y)
    assert low == pytest.approx(1 - 1 / 10) and high == pytest.approx(17 / 5 - 1)


def test_spectral_bounds_take_the_smallest_eigenvalue_above_0():
    X = normal(40, 3) @ normal(3, 8, 1)
    least = np.linalg.svd(X, compute_uv=False)[2] ** 2
    ridge = least * np.eye(40)
    ratios = eigh(4 * X @ X.T + ridge, X @ X.T + ridge, eigvals_only=True)
    assert spectral_bounds(X, 2 * X) == pytest.approx((0, ratios[-1] - 1), abs=1e-9)


@pytest.mark.parametrize("function", [spectral_bounds, relative_pip_loss])
def test_zeros_have_none(function):
    with pytest.raises(ValueError, match="table is zero"):
        function(np.zeros((4, 2)), np.ones((4, 2)))


# --- Isotropy -------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("sized")
@pytest.mark.parametrize("shift", [0.0, 0.3])
def test_isotropy(shift):
    X = normal(80, 5) + shift
    c = np.linalg.eigh(X.T @ X)[1]
    z = np.exp(X @ np.c_[c, -c]).sum(axis=0)
    assert isotropy(X) == pytest.approx(z.min() / z.max(), rel=1e-10)


def test_isotropy_rises_by_centring_and_does_not_turn():
    X = 0.1 * normal(5000, 10) + 0.11
    shifted, centred = isotropy(X), isotropy(X - X.mean(axis=0))
    assert shifted < 0.6 and centred > 0.99
    for seed in range(5):
        assert isotropy(X @ rotation(10, seed)) == pytest.approx(shifted, rel=1e-9)
    assert isotropy(-X) == pytest.approx(shifted, rel=1e-9)


def test_isotropy_to_first_and_second_order():
    X = 1e-3 * (normal(500, 4) + [0.5, 0, 0, 0])
    n, total = len(X), np.linalg.norm(X.sum(axis=0))
    assert isotropy(X) == pytest.approx((n - total) / (n + total), abs=3e-5)
    X = 1e-2 * (X - X.mean(axis=0)) / 1e-3
    s = np.linalg.svd(X, compute_uv=False) ** 2
    assert isotropy(X) == pytest.approx((n + s[-1] / 2) / (n + s[0] / 2), abs=1e-6)


def test_isotropy_does_not_overflow():
    X = 1000 * normal(50, 3)
    assert 0 <= isotropy(X) < 1e-100
    assert isotropy(np.array([[800.0], [-800.0]])) == pytest.approx(1)
    assert isotropy(np.array([[800.0], [799.0]])) < 1e-300
    assert isotropy(np.zeros((4, 2))) == 1
    one = np.array([[0.6, 0.8]])
    assert isotropy(one) == pytest.approx(np.exp(-2))


# --- Size -----------------------------------------------------------------------------------------------

LARGE = """
import resource
import numpy as np
from dpq_ref.metrics import judge
rng = np.random.default_rng(0)
X = rng.standard_normal((400_000, 300), dtype=np.float32)
Y = np.sign(X)
found = judge(X, Y, rng.random(400_000))
assert len(found) == 13 and np.isfinite(list(found.values())).all(), found
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="memory is counted in KiB on Linux alone")
def test_400_000_words_in_4_GB():
    run = subprocess.run([sys.executable, "-c", LARGE], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert int(run.stdout) * 1024 < 4e9
