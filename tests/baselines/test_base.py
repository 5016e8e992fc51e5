"""What all compressors have in common: scikit-learn's own checks, errors, weights, artefacts."""

import inspect

import numpy as np
import pytest
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.utils.estimator_checks import parametrize_with_checks

import baselines
from baselines import REGISTRY, HalfPrecision, KMeansQuantizer, LowRank, ProductQuantizer, UniformQuantizer
from dpq_ref.compressed import load

HEADER = 2000  # bytes at most beside the arrays of a file

SMALL = {
    "product": ProductQuantizer(n_groups=1, n_codes=2, random_state=0),
    "optimized-product": baselines.OptimizedProductQuantizer(1, 2, random_state=0),
    "residual": baselines.ResidualQuantizer(2, 2, random_state=0),
    "additive": baselines.AdditiveQuantizer(1, 2, random_state=0),
    "low-rank": LowRank(1),
    "group-reduce": baselines.GroupReduce(bits=40_000, n_blocks=1),
    "uniform": UniformQuantizer(3),
    "kmeans-scalar": KMeansQuantizer(3),
    "half": HalfPrecision(),
    "pruning": baselines.MagnitudePruning(0.3),
    "sign": baselines.SignQuantizer(),
    "hyperplanes": baselines.RandomHyperplanes(1, random_state=0),
    "itq": baselines.ITQ(1, random_state=0),
    "iiq": baselines.IIQ(1, random_state=0),
    "compositional": baselines.CompositionalCodes(2, 2, steps=5, refit=True, random_state=0),
    "kd-codes": baselines.KDCodes(2, 2, steps=5, refit=True, random_state=0),
    "dpq": baselines.DPQReconstruction(1, 2, steps=5, random_state=0),
    "near-lossless": baselines.NearLosslessBinarizer(
        4, epochs=30, batch_size=20, learning_rate=0.2, random_state=0
    ),
}
EXPECTED_FAILURES = {
    "product": {
        "check_sample_weight_equivalence_on_dense_data": "k-means++ draws other rows where rows are repeated "
        "than where they have weights; from one start both are equal (tests/test_kmeans.py)",
    },
    "optimized-product": {
        "check_sample_weight_equivalence_on_dense_data": "as in product quantization, which it starts from",
    },
    "residual": {
        "check_sample_weight_equivalence_on_dense_data": "as in product quantization: k-means++",
    },
    "additive": {
        "check_sample_weight_equivalence_on_dense_data": "as in product quantization: k-means++",
    },
    "low-rank": {},
    "group-reduce": {},
    "uniform": {},
    "kmeans-scalar": {},
    "half": {},
    "pruning": {
        "check_sample_weight_equivalence_on_dense_data": "the density is a share of the rows of the table, "
        "and repeated rows are more of them",
    },
    "sign": {},
    "hyperplanes": {},
    "itq": {},
    "iiq": {},
    "compositional": {
        "check_sample_weight_equivalence_on_dense_data": "batches are random; repeated rows enter them apart",
    },
    "kd-codes": {
        "check_sample_weight_equivalence_on_dense_data": "batches are random; repeated rows enter them apart",
    },
    "dpq": {
        "check_sample_weight_equivalence_on_dense_data": "batches are random; repeated rows enter them apart",
    },
    "near-lossless": {
        "check_sample_weight_equivalence_on_dense_data": "batches are drawn: what they hold differs",
    },
}
EXACT = [
    "product",
    "uniform",
    "kmeans-scalar",
    "half",
    "pruning",
    "sign",
    "hyperplanes",
    "itq",
    "iiq",
    "dpq",
    "near-lossless",
]  # those that end in codes: decoding is the same bit by bit


def method_of(estimator):
    return next(name for name, cls in REGISTRY.items() if type(estimator) is cls)


def table(n=200, d=8, seed=0, dtype=np.float32):
    return np.random.default_rng(seed).standard_normal((n, d)).astype(dtype)


def test_every_method_is_tried_here():
    assert set(SMALL) == set(REGISTRY) == set(EXPECTED_FAILURES)


@parametrize_with_checks(
    list(SMALL.values()), expected_failed_checks=lambda estimator: EXPECTED_FAILURES[method_of(estimator)]
)
def test_manners_of_scikit_learn(estimator, check):
    check(estimator)


def test_names_of_the_package():
    assert set(dir(baselines)) == set(baselines.__all__)
    for name in baselines.__all__:
        getattr(baselines, name)
    with pytest.raises(AttributeError, match="Quantiser"):
        baselines.Quantiser  # noqa: B018


@pytest.mark.parametrize("cls", REGISTRY.values())
def test_init_only_stores(cls):
    parameters = {name: object() for name in inspect.signature(cls).parameters}
    assert {name: getattr(cls(**parameters), name) for name in parameters} == parameters


@pytest.mark.parametrize("method", SMALL)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("shape", [(2, 1), (2, 7), (40, 1), (100, 7), (99, 8), (101, 9), (50, 300)])
def test_file_holds_the_table_bit_by_bit(method, dtype, shape, tmp_path):
    X = table(*shape, dtype=dtype)
    model = clone(SMALL[method]).fit(X)
    compressed = model.compress()
    compressed.save(tmp_path / "table")
    loaded = load(tmp_path / "table")
    assert loaded.bits() == compressed.bits()
    np.testing.assert_array_equal(loaded.reconstruct(), compressed.reconstruct())
    stored = sum(compressed.bits().values()) / 8
    assert stored <= (tmp_path / "table").stat().st_size <= stored + HEADER
    decoded = model.inverse_transform(model.transform(X))
    assert decoded.shape == compressed.reconstruct().shape == shape
    if method in EXACT:
        np.testing.assert_array_equal(compressed.reconstruct(), decoded.astype(np.float32))
    else:
        np.testing.assert_allclose(compressed.reconstruct(), decoded, atol=1e-5)


@pytest.mark.parametrize("method", SMALL)
@pytest.mark.parametrize("layout", ["fortran", "strided", "reversed", "list", "float16", "int"])
def test_any_layout_gives_the_same(method, layout):
    X = np.rint(4 * table())
    Y = {
        "fortran": np.asfortranarray(X),
        "strided": np.repeat(np.repeat(X, 2, 0), 3, 1)[::2, ::3],
        "reversed": X[::-1].copy()[::-1],
        "list": X.tolist(),
        "float16": X.astype(np.float16),
        "int": X.astype(np.int32),
    }[layout]
    straight, other = (clone(SMALL[method]).fit(T).compress().reconstruct() for T in (X, Y))
    np.testing.assert_allclose(straight, other, atol=1e-5)


@pytest.mark.parametrize("method", SMALL)
def test_dtype_is_kept_while_learning_and_float32_is_stored(method):
    for dtype in (np.float32, np.float64):
        model = clone(SMALL[method]).fit(table(dtype=dtype))
        assert model.compress().dtype == np.float32
        for name in ("codebooks_", "components_", "coefficients_"):
            assert getattr(model, name, np.empty(0, dtype)).dtype == dtype


@pytest.mark.parametrize("method", SMALL)
def test_inputs_stay_as_they_are(method):
    X, weights = table(), np.arange(200.0)
    clone(SMALL[method]).fit(X, sample_weight=weights).transform(X)
    np.testing.assert_array_equal(X, table())
    np.testing.assert_array_equal(weights, np.arange(200.0))


@pytest.mark.parametrize("method", SMALL)
def test_proportions_of_the_weights_matter_and_nothing_else(method):
    X, weights = table(), np.random.default_rng(1).integers(1, 100, 200)
    once, scaled = (
        clone(SMALL[method]).fit(X, sample_weight=w).compress().reconstruct()
        for w in (weights, weights * 2**20)
    )
    np.testing.assert_allclose(once, scaled, rtol=1e-6, atol=1e-6)
    plain, equal = (
        clone(SMALL[method]).fit(X, sample_weight=w).compress().reconstruct()
        for w in (None, np.full(200, 4.0))
    )
    np.testing.assert_allclose(plain, equal, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("method", SMALL)
def test_one_row_of_all_the_weight_is_exact(method):
    X, weights = table(), np.zeros(200)
    weights[17] = 3
    X[17] = np.sign(X[17])  # one clip can hold it
    Z = clone(SMALL[method]).fit(X, sample_weight=weights).compress().lookup(17)
    np.testing.assert_allclose(Z, X[17], atol=1e-6)


@pytest.mark.parametrize("method", SMALL)
def test_gaussian_error_is_at_most_that_of_zeros(method):
    X = table(1000)
    error = ((X - clone(SMALL[method]).fit(X).compress().reconstruct()) ** 2).sum()
    assert 0 < error < (X**2).sum()


@pytest.mark.parametrize("method", SMALL)
@pytest.mark.parametrize(
    ("weights", "message"),
    [
        (np.ones(199), r"shape \(199,\); for 200 rows it takes \(200,\)"),
        (np.ones((200, 1)), r"shape \(200, 1\)"),
        (np.r_[np.ones(198), -2, -3], r"2 of 200 are not, the first -2\.0 in row 198"),
        (np.r_[np.nan, np.ones(199)], "1 of 200 are not, the first nan in row 0"),
        (np.zeros(200), "zero in all rows"),
    ],
)
def test_bad_weights(method, weights, message):
    with pytest.raises(ValueError, match=f"sample_weight.*{message}"):
        clone(SMALL[method]).fit(table(), sample_weight=weights)


@pytest.mark.parametrize("method", SMALL)
def test_nan_is_counted_and_placed(method):
    X = table()
    X[5, 1] = X[9, 0] = np.nan
    X[7, 7] = np.inf
    for call in (clone(SMALL[method]).fit, clone(SMALL[method]).fit(table()).transform):
        with pytest.raises(ValueError, match="3 entries that are NaN or infinite, the first in row 5"):
            call(X)


@pytest.mark.parametrize("method", SMALL)
def test_not_fitted(method):
    model = clone(SMALL[method])
    for call in (model.compress, lambda: model.transform(table()), lambda: model.inverse_transform(table())):
        with pytest.raises(NotFittedError):
            call()
