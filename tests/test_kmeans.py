"""k-means against scikit-learn's Lloyd, definitions written out in NumPy, and planted tables."""

import numpy as np
import pytest
from sklearn.cluster import KMeans as SklearnKMeans

from dpq_ref import backend
from dpq_ref.kmeans import KMeans, principal

BACKENDS = ["numpy", "numba"]


def fit(points, n_codes, *, weights=None, start=None, seed=0, name="numba", max_iter=25):
    kmeans = KMeans(n_codes, kernels=backend.get(name), rng=np.random.default_rng(seed), max_iter=max_iter)
    return kmeans.fit(points, weights, start)


def normal(*shape, seed=0, dtype=np.float32):
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


def weighted_means(points, codes, weights, n_codes):
    """Centroids by their definition; NaN for a code without weight."""
    with np.errstate(invalid="ignore"):
        return np.array(
            [
                [
                    (weights[mine, None] * points[mine, j].astype(np.float64)).sum(0) / weights[mine].sum()
                    for mine in (codes[:, j] == k for k in range(n_codes))
                ]
                for j in range(points.shape[1])
            ]
        )


@pytest.mark.parametrize("name", BACKENDS)
@pytest.mark.parametrize("weighted", [False, True])
def test_lloyd_equals_scikit_learn(name, weighted):
    points = normal(300, 2, 3, dtype=np.float64)
    start = points[:7].swapaxes(0, 1)
    weights = np.random.default_rng(1).uniform(0.1, 5, 300) if weighted else None
    ours = fit(points, 7, weights=weights, start=start, name=name, max_iter=200)
    for j in range(2):
        oracle = SklearnKMeans(7, init=start[j], n_init=1, max_iter=200, tol=0)
        oracle.fit(points[:, j], sample_weight=weights)
        np.testing.assert_array_equal(ours.codes[:, j], oracle.labels_)
        np.testing.assert_allclose(ours.centroids[j], oracle.cluster_centers_, rtol=1e-12, atol=1e-13)
        np.testing.assert_allclose(ours.objective[-1][j], oracle.inertia_, rtol=1e-10)


def test_seeding_is_as_good_as_that_of_scikit_learn():
    points = normal(2000, 1, 8)
    ours = [fit(points, 32, seed=seed).objective[-1][0] for seed in range(4)]
    theirs = [SklearnKMeans(32, n_init=1, random_state=seed).fit(points[:, 0]).inertia_ for seed in range(4)]
    assert abs(np.mean(ours) / np.mean(theirs) - 1) < 0.02


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("weighted", [False, True])
def test_at_the_end_centroids_are_the_means_of_their_points(dtype, weighted):
    points = normal(500, 3, 2, dtype=dtype)
    weights = np.random.default_rng(1).integers(0, 4, 500).astype(float) if weighted else np.ones(500)
    kmeans = fit(points, 6, weights=weights, max_iter=300)
    assert len(kmeans.objective) < 300
    means = weighted_means(points, kmeans.codes, weights, 6)
    np.testing.assert_allclose(
        kmeans.centroids, means, rtol=(1 if dtype == np.float32 else 8) * np.finfo(dtype).eps, atol=0
    )
    squares = (points[:, :, None].astype(np.float64) - kmeans.centroids) ** 2
    distances = squares.sum(axis=3)
    np.testing.assert_array_equal(kmeans.codes, distances.argmin(axis=2))
    np.testing.assert_allclose(kmeans.objective[-1], weights @ distances.min(axis=2), rtol=1e-6)


def test_objective_never_rises():
    kmeans = fit(normal(1000, 4, 3), 20, max_iter=100)
    objective = np.array(kmeans.objective)
    assert (objective[1:] <= objective[:-1] * (1 + 1e-6)).all()
    assert (objective[-1] < objective[0]).all()


def test_integer_weights_equal_repeated_points():
    points = normal(100, 2, 3, dtype=np.float64)
    counts = np.random.default_rng(1).integers(0, 5, 100)
    start = points[:5].swapaxes(0, 1)
    weighted = fit(points, 5, weights=counts, start=start)
    repeated = fit(np.repeat(points, counts, axis=0), 5, start=start)
    np.testing.assert_allclose(weighted.centroids, repeated.centroids, rtol=1e-12)
    np.testing.assert_allclose(weighted.objective, repeated.objective, rtol=1e-12)


def test_groups_are_independent():
    points = normal(300, 3, 2)
    start = points[:8].swapaxes(0, 1)
    together = fit(points, 8, start=start)
    for j in range(3):
        alone = fit(points[:, j : j + 1], 8, start=start[j : j + 1], max_iter=len(together.objective))
        np.testing.assert_array_equal(together.centroids[j], alone.centroids[0])


def test_permuted_points_permute_the_codes():
    points = normal(300, 2, 3)
    start = points[:8].swapaxes(0, 1)
    order = np.random.default_rng(1).permutation(300)
    straight, permuted = fit(points, 8, start=start), fit(points[order], 8, start=start)
    np.testing.assert_array_equal(straight.codes[order], permuted.codes)
    np.testing.assert_allclose(straight.centroids, permuted.centroids, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("n_codes", [4, 16, 64])
def test_planted_centroids_are_found_bit_by_bit_from_any_seed(n_codes):
    planted = normal(3, n_codes, 5)
    codes = np.random.default_rng(1).integers(0, n_codes, (20 * n_codes, 3))
    points = planted[np.arange(3), codes]
    for seed in range(20):
        kmeans = fit(points, n_codes, seed=seed, name="numpy")
        assert not np.any(kmeans.objective[-1])
        np.testing.assert_array_equal(kmeans.centroids[np.arange(3), kmeans.codes], points)


@pytest.mark.parametrize("name", BACKENDS)
def test_more_codes_than_distinct_points(name):
    points = np.repeat(normal(3, 2, 4), 5, axis=0)
    kmeans = fit(points, 10, name=name)
    np.testing.assert_array_equal(kmeans.centroids[np.arange(2), kmeans.codes], points)


@pytest.mark.parametrize("max_iter", [1, 2, 25])
def test_no_centroid_is_left_dead(max_iter):
    points = normal(200, 3, 2)
    far = np.full((3, 30, 2), 1e3, np.float32)  # all codes but one of each group start dead
    far[:, 0] = 0
    kmeans = fit(points, 30, start=far, max_iter=max_iter)
    for j in range(3):
        assert len(np.unique(kmeans.codes[:, j])) == 30


def test_dead_codes_that_went_to_equal_points_try_again():
    points = np.repeat(np.float32([0, 1, 2, 50, 100]), 10)[:, None, None]
    start = np.float32([[0, 1e6, 1e6, 1e6, 1e6]])[:, :, None]  # after one iteration four codes are at 100
    kmeans = fit(points, 5, start=start, max_iter=1)
    assert len(np.unique(kmeans.codes)) == 5
    np.testing.assert_array_equal(kmeans.codes, fit(points, 5, start=kmeans.centroids).codes)


def test_no_centroid_is_spent_on_points_without_weight():
    points = normal(200, 1, 2)
    weights = np.r_[np.zeros(180), np.ones(20)]
    points[:180] += 100
    start = np.concatenate([points[-20:], points[-5:]]).swapaxes(0, 1)  # 5 codes more than there is use for
    for kmeans in (fit(points, 20, weights=weights), fit(points, 25, weights=weights, start=start)):
        assert kmeans.objective[-1] == 0
        assert (np.abs(kmeans.centroids) < 50).all()


def test_one_heavy_point_becomes_a_centroid():
    points = normal(200, 1, 2)
    weights = np.ones(200)
    weights[17] = 1e12
    kmeans = fit(points, 4, weights=weights)
    centroid = kmeans.centroids[0, kmeans.codes[17, 0]]
    np.testing.assert_allclose(centroid, points[17, 0], rtol=1e-6)


def test_inputs_stay_as_they_are_and_any_layout_is_taken():
    points = np.asfortranarray(normal(100, 2, 3))
    weights, before = np.arange(100), points.copy()
    start = np.zeros((2, 4, 3), np.float32)
    first = fit(points, 4, weights=weights, start=start)
    np.testing.assert_array_equal(points, before)
    assert not start.any()
    strided = np.repeat(before, 2, axis=0)[::2]
    np.testing.assert_array_equal(first.codes, fit(strided, 4, weights=weights, start=start).codes)


def test_backends_agree():
    points = normal(400, 3, 4)
    a, b = fit(points, 16, name="numpy"), fit(points, 16, name="numba")
    np.testing.assert_allclose(np.sum(a.objective[-1]), np.sum(b.objective[-1]), rtol=0.02)


# --- Points wider than the directions that seeding uses ---------------------------------------------------


def test_wide_points_start_better_than_at_points():
    points = normal(1000, 1, 100)  # all about equally far from each other
    ours = [fit(points, 64, seed=seed).objective[-1][0] for seed in range(3)]
    theirs = [
        SklearnKMeans(64, n_init=1, max_iter=25, random_state=seed).fit(points[:, 0]).inertia_
        for seed in range(3)
    ]
    assert max(ours) < 0.995 * min(theirs)


@pytest.mark.parametrize("name", BACKENDS)
def test_wide_planted_centroids_are_found_bit_by_bit(name):
    planted = normal(2, 16, 40)
    codes = np.random.default_rng(1).integers(0, 16, (300, 2))
    points = planted[np.arange(2), codes]
    kmeans = fit(points, 16, name=name)
    np.testing.assert_array_equal(kmeans.centroids[np.arange(2), kmeans.codes], points)


@pytest.mark.parametrize("n_points", [12, 40])
def test_wide_points_in_few_directions_or_places(n_points):
    flat = normal(n_points, 2, 3) @ normal(3, 50)
    assert fit(flat, n_points).objective[-1].max() == 0
    repeated = np.repeat(flat, 3, axis=0)
    assert fit(repeated, n_points + 5).objective[-1].max() == 0
    assert np.isfinite(fit(np.ones((n_points, 1, 50), np.float32), 4).centroids).all()


def test_wide_points_without_weight_have_no_say():
    points, weights = normal(300, 2, 40), np.r_[np.ones(200), np.zeros(100)]
    weighted, alone = fit(points, 8, weights=weights), fit(points[:200], 8)
    np.testing.assert_allclose(weighted.centroids, alone.centroids, atol=1e-5)


@pytest.mark.parametrize("weighted", [False, True])
def test_principal_directions(weighted):
    points = normal(200, 2, 40, dtype=np.float64) + 5
    weights = np.random.default_rng(1).integers(0, 4, 200) if weighted else np.ones(200)
    coordinates = principal(points, weights, 10)
    for j in range(2):
        repeated = np.repeat(points[:, j], weights.astype(int), axis=0)
        centred = points[:, j] - repeated.mean(axis=0)
        _, values, vectors = np.linalg.svd(repeated - repeated.mean(axis=0))
        expected = centred @ vectors[:10][::-1].T  # rising, signs free
        np.testing.assert_allclose(np.abs(coordinates[:, j]), np.abs(expected), atol=1e-8)
        spread = (weights[:, None] * coordinates[:, j] ** 2).sum(axis=0)
        np.testing.assert_allclose(spread, values[:10][::-1] ** 2, rtol=1e-8)


def test_fewer_points_than_codes():
    with pytest.raises(ValueError, match="n_codes=4 needs at least 4 rows, got n_samples=3"):
        fit(normal(3, 1, 1), 4)
