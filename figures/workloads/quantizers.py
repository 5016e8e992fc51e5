"""Product quantization, beside faiss and scikit-learn: learn codebooks, and give rows their codes."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from baselines import OptimizedProductQuantizer, ProductQuantizer
from figures.speed import Call, Work
from figures.workloads.tables import made_up, squared_error

ITERATIONS = 25
ROOM = 1.001  # of the error of faiss
ALL = 1 << 30  # points of a code: faiss takes 256 at most otherwise


def product(n: int, dim: int, n_groups: int, n_codes: int, sklearn: bool = False) -> Work:
    """25 iterations on all rows, and their codes."""
    X = made_up(n, dim)
    found: dict[str, Any] = {}

    def ours() -> None:
        model = ProductQuantizer(n_groups, n_codes, max_iter=ITERATIONS, random_state=0).fit(X)
        found["ours"] = squared_error(X, model.inverse_transform(model.codes_))

    def theirs() -> None:
        quantizer, codes = _faiss(X, n_groups, n_codes, ALL)
        found["faiss"] = squared_error(X, quantizer.decode(codes))

    peers = {"faiss": lambda: _faiss(X, n_groups, n_codes, ALL)}
    if sklearn:
        peers["scikit-learn"] = _sklearn(X, n_groups, n_codes)
    return Work(
        _shape(n, dim, n_groups, n_codes),
        lambda: ProductQuantizer(n_groups, n_codes, max_iter=ITERATIONS, random_state=0).fit(X),
        peers,
        _no_worse(found, ours, theirs),
        operations=2.0 * ITERATIONS * n * dim * n_codes,
    )


def product_sampled(n: int, dim: int, n_groups: int, n_codes: int) -> Work:
    """25 iterations on 256 rows a code, the default of faiss, and the codes of all rows."""
    X = made_up(n, dim)
    found: dict[str, Any] = {}

    def fit() -> ProductQuantizer:
        return ProductQuantizer(n_groups, n_codes, rows_per_code=256, random_state=0).fit(X)

    def ours() -> None:
        model = fit()
        found["ours"] = squared_error(X, model.inverse_transform(model.codes_))

    def theirs() -> None:
        quantizer, codes = _faiss(X, n_groups, n_codes, 256)
        found["faiss"] = squared_error(X, quantizer.decode(codes))

    return Work(
        _shape(n, dim, n_groups, n_codes),
        fit,
        {"faiss": lambda: _faiss(X, n_groups, n_codes, 256)},
        _no_worse(found, ours, theirs),
        operations=2.0 * (ITERATIONS * min(n, 256 * n_codes) + n) * dim * n_codes,
    )


def product_codes(n: int, dim: int, n_groups: int, n_codes: int) -> Work:
    """Codes of rows, with the codebooks of faiss on both sides."""
    X = made_up(n, dim)
    quantizer, _ = _faiss(X[: 32 * n_codes], n_groups, n_codes, ALL, iterations=5)
    model = ProductQuantizer(n_groups, n_codes, max_iter=1, random_state=0).fit(X[: 32 * n_codes])
    faiss_books = _faiss_module().vector_to_array(quantizer.centroids).reshape(model.codebooks_.shape)
    model.codebooks_ = faiss_books
    index = _faiss_module().IndexPQ(dim, n_groups, _bits(n_codes))  # a quantizer alone cannot be pickled
    index.pq, index.is_trained = quantizer, True

    def agree() -> None:
        codes = model.transform(X)
        theirs = _unpacked(index.sa_encode(X), n_groups, n_codes)
        assert (codes == theirs).mean() > 0.999, f"{(codes != theirs).mean():.2%} of the codes differ"

    return Work(
        _shape(n, dim, n_groups, n_codes),
        lambda: model.transform(X),
        {"faiss": lambda: index.sa_encode(X)},
        agree,
        operations=2.0 * n * dim * n_codes,
    )


def rotated_product(n: int, dim: int, n_groups: int, n_codes: int) -> Work:
    """Optimized product quantization, from the table to codes, at the defaults of either side."""
    X = made_up(n, dim)
    found: dict[str, Any] = {}

    def fit() -> OptimizedProductQuantizer:
        return OptimizedProductQuantizer(n_groups, n_codes, random_state=0).fit(X)

    def faiss_fit() -> NDArray:
        faiss = _faiss_module()
        matrix = faiss.OPQMatrix(dim, n_groups)
        matrix.pq = faiss.ProductQuantizer(dim, n_groups, _bits(n_codes))
        matrix.train(X)
        quantizer, codes = _faiss(matrix.apply(X), n_groups, n_codes, 256)
        return matrix.reverse_transform(quantizer.decode(codes))

    def ours() -> None:
        model = fit()
        found["ours"] = squared_error(X, model.inverse_transform(model.codes_))

    def theirs() -> None:
        found["faiss"] = squared_error(X, faiss_fit())

    return Work(_shape(n, dim, n_groups, n_codes), fit, {"faiss": faiss_fit}, _no_worse(found, ours, theirs))


def _shape(n: int, dim: int, n_groups: int, n_codes: int) -> str:
    return f"{n:,} x {dim}, D {n_groups}, K {n_codes}"


def _no_worse(found: dict[str, float], *calls: Call) -> Call:
    def agree() -> None:
        for call in calls:
            call()
        ratio = found["ours"] / found["faiss"]
        assert ratio <= ROOM, f"our error is {ratio:.4f} of that of faiss"

    return agree


def _faiss_module() -> Any:
    import faiss

    return faiss


def _bits(n_codes: int) -> int:
    return (n_codes - 1).bit_length()


def _faiss(X: NDArray, n_groups: int, n_codes: int, points: int, iterations: int = ITERATIONS) -> Any:
    """Quantizer of faiss, trained on so many points a code, and the codes of all rows."""
    quantizer = _faiss_module().ProductQuantizer(X.shape[1], n_groups, _bits(n_codes))
    quantizer.cp.niter, quantizer.cp.max_points_per_centroid = iterations, points
    quantizer.cp.min_points_per_centroid = 1
    quantizer.train(X)
    return quantizer, quantizer.compute_codes(X)


def _unpacked(packed: NDArray[np.uint8], n_groups: int, n_codes: int) -> NDArray[np.integer]:
    """Codes of the packed bytes of faiss, in which each row starts a byte, (n, D)."""
    bits = np.unpackbits(packed, axis=1, bitorder="little")[:, : n_groups * _bits(n_codes)]
    return bits.reshape(len(packed), n_groups, -1) @ (1 << np.arange(_bits(n_codes)))


def _sklearn(X: NDArray, n_groups: int, n_codes: int) -> Call:
    from sklearn.cluster import KMeans

    def fit() -> list[Any]:
        return [
            KMeans(n_codes, n_init=1, max_iter=ITERATIONS, random_state=0).fit(np.ascontiguousarray(group))
            for group in np.split(X, n_groups, axis=1)
        ]

    return fit
