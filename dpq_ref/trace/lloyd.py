"""One iteration of k-means in all groups (Lloyd 1982; Jegou, Douze, Schmid 2011), and what OPQ takes of it.

As in all classical methods one part is held while the other becomes the best for it; so no turn raises the
error. Beside each turn stands a check that it has not, and where the best is known, that this is it.
"""

from typing import Any

import numpy as np

from dpq_ref import checks
from dpq_ref.kernels import reference as kernels
from dpq_ref.kernels.reference import Array, Integers
from dpq_ref.trace.steps import Claim, Step, Steps, during, no_higher, slope


def kmeans(X: Any, weights: Any = None, *, n_groups: int, n_codes: int, seed: int = 0) -> list[Step]:
    """Trace one iteration of k-means in all groups, that of product quantization (Jegou et al. 2011).

    Parameters
    ----------
    X : (n, d) array_like
    weights : (n,) array_like, optional
        Frequencies of the rows.
    n_groups, n_codes : int
    seed : int
        Of the k-means++ start, and of the directions of the checks.

    Returns
    -------
    list of Step

    Raises
    ------
    ValueError, TypeError
        If n_groups does not divide d, there are fewer rows than codes, or X or the weights are not finite.

    Examples
    --------
    >>> X = np.random.default_rng(0).standard_normal((8, 4))
    >>> of = {step.name: step.array for step in kmeans(X, n_groups=2, n_codes=3)}
    >>> bool(of["error_assign"] >= of["error_update"] >= of["error_next"])
    True
    """
    X, weights = start(X, weights)
    rng = np.random.default_rng(seed)
    return list(_kmeans(X, weights, points_of(X, n_groups, n_codes), n_codes, rng))


def start(X: Any, weights: Any) -> tuple[Array, Array]:
    """Check table and weights; errors as in `kmeans`."""
    X = checks.as_table(X).astype(np.float64)
    return X, checks.as_weights(weights, len(X)).copy()


def points_of(X: Array, n_groups: int, n_codes: int) -> Array:
    """Cut rows into groups, (n, d) -> (n, D, s); errors as in `kmeans`."""
    s = checks.group_width(X.shape[1], checks.positive("n_groups", n_groups))
    if checks.number_of_codes(n_codes) > len(X):
        raise ValueError(f"n_codes={n_codes} needs at least {n_codes} rows, got {len(X)}")
    return X.reshape(len(X), n_groups, s)


def given(X: Array, weights: Array) -> Steps[None]:
    """Show table and weights."""
    yield Step("table", "", X, "What is to be compressed, a word a row.", "ic")
    yield Step("weights", "", weights, "How often each word comes: q in the formulas.", "i")


def _kmeans(X: Array, weights: Array, points: Array, n_codes: int, rng: Any) -> Steps[None]:
    yield from during("start", given(X, weights))
    codebook = yield from during("start", seeds(points, weights, n_codes, "table", rng))
    codes, before = yield from during("assign", assign(points, weights, codebook))
    codebook, error = yield from during("update", update(points, weights, codes, codebook, before, rng))
    yield from during("next", next_codes(points, weights, codebook, error, "error_update"))


def seeds(points: Array, weights: Array, n_codes: int, of: str, rng: Any) -> Steps[Array]:
    """Draw a codebook to start from, (D, K, s)."""
    yield Step("points", f"points[i,j] = group j of row i of {of}", points, "", "ijc")
    n_groups = points.shape[1]
    drawn = kernels.plus_plus(points, weights, rng.random((n_groups, n_codes, 4)))
    codebook = points[drawn, np.arange(n_groups)[:, None]]
    yield Step(
        "codebook", "", codebook, "To start from: points that lie apart, drawn as k-means++ does.", "jkc"
    )
    return codebook


def squares(points: Array, weights: Array) -> float:
    """Weighted sum of the squares of points or rows: what errors round by."""
    return float(weights @ np.square(points).reshape(len(points), -1).sum(axis=1))


def squared_error(points: Array, weights: Array, codebook: Array, codes: Integers) -> float:
    """Sum of weights[i] |points[i,j] - codebook[j,codes[i,j]]|^2.

    Examples
    --------
    >>> points, codebook = np.array([[[1.0]], [[4.0]]]), np.array([[[1.0], [3.0]]])
    >>> squared_error(points, np.array([1.0, 5.0]), codebook, np.array([[0], [1]]))
    5.0
    """
    return float(kernels.codebook_errors(points, codebook, codes, weights)[0])


def assign(points: Array, weights: Array, codebook: Array) -> Steps[tuple[Integers, float]]:
    """Best codes for a codebook, (n, D), and the error."""
    distances = -kernels.euclidean_responses(points, codebook)
    codes = kernels.nearest_code(points, codebook)
    yield Step(
        "distances",
        "distances[i,j,k] = |points[i,j] − codebook[j,k]|²",
        distances,
        "The smallest of each row is marked.",
        "ijk",
        picked=codes,
    )
    chosen = np.arange(codebook.shape[1]) == codes[:, :, None]
    own = (distances * chosen).sum(axis=2, keepdims=True)
    rise = weights[:, None, None] * (distances - own)
    least = float(np.where(chosen, np.inf, rise).min())
    yield Step(
        "codes",
        "codes[i,j] = argminₖ distances[i,j,k]",
        codes,
        "The best codes for this codebook.",
        "ij",
        checks=(Claim(f"another code for a point adds at least {least:.4g} to the error", -least, 0.0),),
    )
    error = squared_error(points, weights, codebook, codes)
    yield Step(
        "error_assign",
        "error_assign = Σᵢⱼ q[i] |points[i,j] − codebook[j,codes[i,j]]|²",
        np.array(error),
        "What no turn may raise.",
    )
    return codes, error


def update(
    points: Array, weights: Array, codes: Integers, codebook: Array, before: float, rng: Any
) -> Steps[tuple[Array, float]]:
    """Best codebook for the codes, (D, K, s), and the error."""
    K = codebook.shape[1]
    sums = kernels.sum_by_code(codes, weights[:, None, None] * points, K)
    counts = kernels.count_codes(codes, weights, K)

    def error_of(codebook: Array) -> float:
        return squared_error(points, weights, codebook, codes)

    yield Step("counts", "counts[j,k] = Σ q[i] over i with codes[i,j] = k", counts, "", "jk")
    yield Step("sums", "sums[j,k] = Σ q[i] points[i,j] over i with codes[i,j] = k", sums, "", "jkc")
    gradient = 2 * (counts[:, :, None] * codebook - sums)
    yield Step(
        "d_codebook",
        "d_codebook = 2 (counts[j,k] codebook[j,k] − sums[j,k])",
        gradient,
        "Gradient of the error, codes held. The best codebook is where it is 0.",
        "jkc",
        checks=(slope(error_of, codebook, gradient, rng),),
    )
    means = np.divide(sums, counts[:, :, None], out=codebook.copy(), where=counts[:, :, None] > 0)
    yield Step(
        "codebook_update",
        "codebook_update[j,k] = sums[j,k] / counts[j,k]",
        means,
        "The means: the best codebook for these codes. A code without points stays.",
        "jkc",
    )
    rest = 2 * (counts[:, :, None] * means - sums)
    largest, scale = float(abs(rest).max()), float(abs(gradient).max() + abs(sums).max())
    yield Step(
        "d_codebook_update",
        "the same at codebook_update",
        rest,
        "",
        "jkc",
        checks=(
            Claim(f"0 but for rounding: at most {largest:.0e}", largest, 1e-12 * scale),
            slope(error_of, means, rest, rng),
        ),
    )
    error = error_of(means)
    yield Step(
        "error_update",
        "error_update = Σᵢⱼ q[i] |points[i,j] − codebook_update[j,codes[i,j]]|²",
        np.array(error),
        checks=(no_higher(error, before, "error_assign", squares(points, weights)),),
    )
    return means, error


def next_codes(points: Array, weights: Array, codebook: Array, before: float, name: str) -> Steps[None]:
    """Give new codes by the new codebook; the error falls again, or the iterations have come to their end."""
    codes = kernels.nearest_code(points, codebook)
    yield Step("codes_next", "codes again, by the new codebook", codes, "The next iteration begins.", "ij")
    error = squared_error(points, weights, codebook, codes)
    yield Step(
        "error_next",
        "the error with these",
        np.array(error),
        checks=(no_higher(error, before, name, squares(points, weights)),),
    )
