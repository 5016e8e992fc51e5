"""Squared errors against those of faiss and nanopq: the same table, groups, codes and iterations.

faiss trains on all points here, on one thread. `pytest -s` prints the errors and their ratios.
"""

import os
from pathlib import Path

import numpy as np
import pytest

from baselines import AdditiveQuantizer, OptimizedProductQuantizer, ProductQuantizer, ResidualQuantizer

faiss = pytest.importorskip("faiss")
nanopq = pytest.importorskip("nanopq")
pytestmark = pytest.mark.oracle

ITERATIONS = 25
ROOM = 1.002  # of the median of five seeds, which is not exact either
REAL = {  # file: rows, so that five seeds take seconds
    "glove-6b-50d-5k": None,
    "glove-6b-300d-3k": None,
    "minilm-l6-v2-wordpiece-384d": 4000,
}


@pytest.fixture(autouse=True)
def one_thread():
    before = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(1)
    yield
    faiss.omp_set_num_threads(before)


def real_table(name):
    if "DPQ_REF_DATA" not in os.environ:
        pytest.skip("DPQ_REF_DATA does not name the folder of tables")
    X = np.load(Path(os.environ["DPQ_REF_DATA"]) / f"embeddings/{name}.npz")["vectors"].astype(np.float32)
    return X if REAL[name] is None else X[np.random.default_rng(0).permutation(len(X))[: REAL[name]]]


def synthetic_table(n, d, seed=0):
    """Clusters of several sizes whose variances fall, in directions that are no columns."""
    rng = np.random.default_rng(seed)
    centres = rng.standard_normal((200, d)) * 0.97 ** np.arange(d)
    X = centres[rng.zipf(1.3, n) % 200] + 0.7 * rng.standard_normal((n, d)) * 0.97 ** np.arange(d)
    return (X @ np.linalg.qr(rng.standard_normal((d, d)))[0]).astype(np.float32)


def squared(X, Y):
    return float(((X - Y).astype(np.float64) ** 2).sum() / (X.astype(np.float64) ** 2).sum())


def trained(quantizer, X, seed):
    """Train on all points and decode: faiss takes no more than 256 a centroid otherwise."""
    quantizer.cp.niter, quantizer.cp.seed = ITERATIONS, seed + 1
    quantizer.cp.max_points_per_centroid, quantizer.cp.min_points_per_centroid = 10**9, 1
    quantizer.train(X)
    return quantizer.decode(quantizer.compute_codes(X))


def bits(n_codes):
    return (n_codes - 1).bit_length()


def faiss_product(X, n_groups, n_codes, seed):
    return squared(X, trained(faiss.ProductQuantizer(X.shape[1], n_groups, bits(n_codes)), X, seed))


def faiss_optimized(X, n_groups, n_codes, seed):
    """As many rotations as ours, at four iterations as there."""
    matrix = faiss.OPQMatrix(X.shape[1], n_groups)
    matrix.pq = quantizer = faiss.ProductQuantizer(X.shape[1], n_groups, bits(n_codes))
    quantizer.cp.seed, quantizer.cp.min_points_per_centroid = seed + 1, 1
    matrix.max_train_points, matrix.niter = len(X), ITERATIONS
    matrix.train(X)
    rotated = matrix.apply(X)
    quantizer = faiss.ProductQuantizer(X.shape[1], n_groups, bits(n_codes))
    return squared(X, matrix.reverse_transform(trained(quantizer, rotated, seed)))


def faiss_residual(X, n_groups, n_codes, seed):
    quantizer = faiss.ResidualQuantizer(X.shape[1], n_groups, bits(n_codes))
    quantizer.max_beam_size, quantizer.train_type = 5, faiss.ResidualQuantizer.Train_default
    return squared(X, trained(quantizer, X, seed))


def nanopq_product(X, n_groups, n_codes, seed):
    quantizer = nanopq.PQ(M=n_groups, Ks=n_codes, verbose=False).fit(X, iter=ITERATIONS, seed=seed)
    return squared(X, quantizer.decode(quantizer.encode(X)))


def nanopq_optimized(X, n_groups, n_codes, seed):
    quantizer = nanopq.OPQ(M=n_groups, Ks=n_codes, verbose=False)
    quantizer.fit(X, parametric_init=True, pq_iter=4, rotation_iter=ITERATIONS, seed=seed)
    return squared(X, quantizer.decode(quantizer.encode(X)))


def ours(cls, **parameters):
    def error(X, n_groups, n_codes, seed):
        model = cls(n_groups, n_codes, max_iter=ITERATIONS, random_state=seed, **parameters).fit(X)
        return squared(X, model.compress().reconstruct())

    return error


METHODS = {
    "product": (ours(ProductQuantizer), [faiss_product, nanopq_product]),
    "optimized": (ours(OptimizedProductQuantizer), [faiss_optimized, nanopq_optimized]),
    "residual": (ours(ResidualQuantizer), [faiss_residual]),
}


def compare(X, method, n_groups, n_codes, seeds, label):
    """No higher than either, in the median."""
    mine, others = METHODS[method]
    medians = {
        f.__name__: np.median([f(X, n_groups, n_codes, seed) for seed in range(seeds)])
        for f in (mine, *others)
    }
    own = medians.pop("error")
    for name, other in medians.items():
        print(f"{label} {method} M={n_groups} K={n_codes}: {own:.5f}, {name} {other:.5f}, {own / other:.4f}")  # noqa: T201
    assert all(own <= ROOM * other for other in medians.values())


@pytest.mark.parametrize("name", REAL)
@pytest.mark.parametrize(
    ("method", "n_groups", "n_codes"),
    [
        ("product", 10, 16),
        ("product", 5, 256),
        ("optimized", 10, 16),
        ("residual", 6, 16),
        ("residual", 2, 256),
    ],
)
def test_real_tables(name, method, n_groups, n_codes):
    X = real_table(name)
    n_groups = {10: 12, 5: 6}[n_groups] if method != "residual" and X.shape[1] == 384 else n_groups
    compare(X, method, n_groups, n_codes, 5, name)


@pytest.mark.parametrize("method", METHODS)
def test_small_synthetic_table(method):
    compare(synthetic_table(3000, 32), method, 4, 16, 5, "3000 x 32")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("method", "n_groups", "n_codes"), [("product", 50, 64), ("optimized", 50, 16), ("residual", 4, 16)]
)
def test_large_synthetic_table(method, n_groups, n_codes):
    compare(synthetic_table(100_000, 300), method, n_groups, n_codes, 1, "100,000 x 300")


def test_local_search_is_near_that_of_faiss():
    """At 25 turns of 8 searches, as there."""
    X = synthetic_table(2000, 16)
    quantizer = faiss.LocalSearchQuantizer(16, 4, 4)
    quantizer.train(X)
    theirs = squared(X, quantizer.decode(quantizer.compute_codes(X)))
    own = ours(AdditiveQuantizer, n_searches=8)(X, 4, 16, 0)
    print(f"additive M=4 K=16: {own:.5f}, faiss {theirs:.5f}, {own / theirs:.4f}")  # noqa: T201
    assert own <= 1.02 * theirs
