"""One iteration of optimized product quantization and of iterative quantization: the rotations by Procrustes.

The methods are those of `baselines.product` and `baselines.itq`, where their sources and options are.
"""

from typing import Any

import numpy as np

from dpq_ref import checks
from dpq_ref.kernels import reference as kernels
from dpq_ref.kernels.reference import Array
from dpq_ref.trace import lloyd
from dpq_ref.trace.steps import Claim, Step, Steps, during, no_higher, orthogonal, rotations, unbeaten


def opq(X: Any, weights: Any = None, *, n_groups: int, n_codes: int, seed: int = 0) -> list[Step]:
    """Trace one iteration of optimized product quantization (Ge et al. 2013; Norouzi, Fleet 2013).

    Parameters and errors as in `kmeans`.

    Examples
    --------
    >>> X = np.random.default_rng(0).standard_normal((8, 4))
    >>> of = {step.name: step.array for step in opq(X, n_groups=2, n_codes=3)}
    >>> bool(of["error_update"] >= of["error_rotation"] >= of["error_next"])
    True
    """
    X, weights = lloyd.start(X, weights)
    lloyd.points_of(X, n_groups, n_codes)
    return list(_opq(X, weights, n_groups, n_codes, np.random.default_rng(seed)))


def itq(X: Any, weights: Any = None, *, n_bits: int, seed: int = 0) -> list[Step]:
    """Trace one iteration of iterative quantization (Gong, Lazebnik 2011).

    Parameters
    ----------
    X, weights
        As in `kmeans`.
    n_bits : int
        c, at most n and d.
    seed : int
        Of the rotation at the start, and of the checks.

    Returns
    -------
    list of Step

    Raises
    ------
    ValueError, TypeError
        If n_bits is out of range, or X or the weights are not finite.

    Examples
    --------
    >>> X = np.random.default_rng(0).standard_normal((8, 4))
    >>> of = {step.name: step.array for step in itq(X, n_bits=3)}
    >>> bool(of["error_signs"] >= of["error_rotation"] >= of["error_next"])
    True
    """
    X, weights = lloyd.start(X, weights)
    if checks.positive("n_bits", n_bits) > min(X.shape):
        raise ValueError(f"n_bits={n_bits}; a table of {len(X)} x {X.shape[1]} takes at most {min(X.shape)}")
    return list(_itq(X, weights, n_bits, np.random.default_rng(seed)))


def _procrustes(
    rows: Array,
    target: Array,
    weights: Array,
    before: tuple[str, float, Array],
    names: tuple[str, str],
    rng: Any,
) -> Steps[tuple[Array, float]]:
    """Orthogonal R of the smallest sum of q[i] |rows[i] R - target[i]|^2 (Schoenemann 1966)."""
    from scipy import linalg

    def error_of(R: Array) -> float:
        return float(weights @ np.square(rows @ R - target).sum(axis=1))

    scale = lloyd.squares(rows, weights) + lloyd.squares(target, weights)
    product = kernels.cross(rows, target, weights)
    left, singular, right = linalg.svd(product)
    R = left @ right
    yield Step(
        "product",
        f"product = Σᵢ q[i] {names[0]}[i]ᵀ {names[1]}[i]",
        product,
        f"|{names[0]} R|² is the same for every rotation R, so the error is smallest where ⟨R, product⟩ is "
        "largest.",
        "cl",
    )
    yield Step("singular", "product = left · diag(singular) · right", singular, "", "c")
    yield Step("left", "", left, "", "cl", checks=(orthogonal(left, "left"),))
    yield Step("right", "", right, "", "cl", checks=(orthogonal(right, "right"),))
    reached, most = float((R * product).sum()), float(singular.sum())
    others = [R @ Q for Q in rotations(len(R), rng)] + [before[2]]
    yield Step(
        "rotation_update",
        "rotation_update = left · right",
        R,
        "⟨R, product⟩ is at most the sum of the singular values; here it is just that.",
        "cl",
        checks=(
            orthogonal(R, "R"),
            Claim(
                f"⟨R, product⟩ = {reached:.6g}, sum of singular = {most:.6g}",
                abs(reached - most),
                1e-12 * most,
            ),
            unbeaten(error_of, R, others, "rotations"),
        ),
    )
    error = error_of(R)
    yield Step(
        "error_rotation",
        f"error_rotation = Σᵢ q[i] |{names[0]}[i] rotation_update − {names[1]}[i]|²",
        np.array(error),
        checks=(no_higher(error, before[1], before[0], scale),),
    )
    return R, error


def _opq(X: Array, weights: Array, n_groups: int, n_codes: int, rng: Any) -> Steps[None]:
    from baselines.product import principal_groups

    n, d = X.shape
    yield from during("start", lloyd.given(X, weights))
    R: Array = principal_groups(X, weights, np.full(n_groups, d // n_groups))
    rotated = kernels.multiply(X, R)
    yield Step(
        "rotation",
        "",
        R,
        "To start from: the principal directions, dealt out to the groups so that their variances have even "
        "products.",
        "cl",
        checks=(orthogonal(R, "R"),),
        phase="rotate",
    )
    yield Step("rotated", "rotated = table · rotation", rotated, "What is quantized.", "ic", phase="rotate")
    points = rotated.reshape(n, n_groups, -1)
    codebook = yield from during("rotate", lloyd.seeds(points, weights, n_codes, "rotated", rng))
    codes, error = yield from during("assign", lloyd.assign(points, weights, codebook))
    codebook, error = yield from during("update", lloyd.update(points, weights, codes, codebook, error, rng))
    target = kernels.decode(codes, codebook).reshape(n, d)
    yield Step(
        "quantized",
        "quantized[i] = codebook_update[j,codes[i,j]] of all j, side by side",
        target,
        "What the rotation is to bring the rows nearest to.",
        "ic",
        phase="Procrustes rotation",
    )
    before = ("error_update", error, R)
    R, error = yield from during(
        "Procrustes rotation", _procrustes(X, target, weights, before, ("table", "quantized"), rng)
    )
    rotated = kernels.multiply(X, R)
    yield Step("rotated_next", "rotated_next = table · rotation_update", rotated, "", "ic", phase="next")
    points = rotated.reshape(n, n_groups, -1)
    yield from during("next", lloyd.next_codes(points, weights, codebook, error, "error_rotation"))


def _itq(X: Array, weights: Array, n_bits: int, rng: Any) -> Steps[None]:
    from baselines.binary import random_frame
    from baselines.low_rank import right_vectors

    yield from during("components", lloyd.given(X, weights))
    mean = weights @ X / weights.sum()
    components = right_vectors(X - mean, weights)[1][:n_bits]
    V = kernels.multiply(X - mean, components.T)
    R: Array = random_frame(n_bits, n_bits, rng)
    yield from during("components", _principal(mean, components, V))
    yield from during("signs", _rotation(R))
    signs, error = yield from during("signs", _signs(V, R, weights, "rotation", ""))
    before = ("error_signs", error, R)
    R, error = yield from during(
        "Procrustes rotation", _procrustes(V, signs, weights, before, ("projected", "signs"), rng)
    )
    yield from during("next", _signs(V, R, weights, "rotation_update", "_next", error))


def _principal(mean: Array, components: Array, V: Array) -> Steps[None]:
    yield Step("mean", "mean = Σᵢ q[i] table[i] / Σᵢ q[i]", mean, "", "c")
    yield Step(
        "components",
        "first right singular vectors of √q (table − mean)",
        components,
        "A row a bit.",
        "lc",
        checks=(orthogonal(components, "C"),),
    )
    yield Step("projected", "projected = (table − mean) · componentsᵀ", V, "One number a bit.", "ic")


def _rotation(R: Array) -> Steps[None]:
    yield Step("rotation", "", R, "At random to start from.", "cl", checks=(orthogonal(R, "R"),))


def _signs(
    V: Array, R: Array, weights: Array, rotation: str, suffix: str, before: float | None = None
) -> Steps[tuple[Array, float]]:
    rotated = kernels.multiply(V, R)
    signs = np.where(rotated < 0, -1.0, 1.0)
    error = float(kernels.sign_products(V, R, weights)[1])
    least = float((4 * weights[:, None] * abs(rotated)).min())
    yield Step(f"rotated{suffix}", f"rotated{suffix} = projected · {rotation}", rotated, "", "ic")
    yield Step(
        f"signs{suffix}",
        f"signs{suffix} = 1 where rotated{suffix} ≥ 0, else −1",
        signs,
        "The bits that are kept; the best for this rotation.",
        "ic",
        checks=(Claim(f"another sign adds at least {least:.4g} to the error", -least, 0.0),),
    )
    yield Step(
        "error_next" if suffix else "error_signs",
        f"error{suffix or '_signs'} = Σᵢ q[i] |signs{suffix}[i] − rotated{suffix}[i]|²",
        np.array(error),
        "" if suffix else "What no turn may raise.",
        checks=() if before is None else (no_higher(error, before, "error_rotation", error + before),),
    )
    return signs, error
