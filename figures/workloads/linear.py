"""Low rank and iterative quantization, beside scikit-learn, NumPy and faiss."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from baselines import ITQ, LowRank
from figures.speed import Call, Work
from figures.workloads.tables import made_up, squared_error

ITERATIONS = 50


def low_rank(n: int, dim: int, rank: int, svd: bool = True) -> Work:
    """Find the best approximation of a rank, as right vectors and coefficients."""
    from sklearn.utils.extmath import randomized_svd

    X = made_up(n, dim)

    def agree() -> None:
        double = X.astype(np.float64)
        values = np.linalg.eigvalsh(double.T @ double)[::-1]
        model = LowRank(rank).fit(X)
        error = squared_error(X, model.inverse_transform(model.coefficients_))
        exact = values[rank:].sum() / values.sum()
        assert error <= (1 + 1e-6) * exact, f"our error is {error / exact - 1:.1e} above the smallest"

    peers: dict[str, Call] = {"scikit-learn": lambda: randomized_svd(X, rank, random_state=0)}
    if svd:
        peers["numpy"] = lambda: np.linalg.svd(X, full_matrices=False)
    return Work(
        f"{n:,} x {dim}, rank {rank}",
        lambda: LowRank(rank).fit(X),
        peers,
        agree,
        operations=n * dim * (dim + 2.0 * rank),  # the Gram matrix is symmetric
    )


def itq(n: int, dim: int, n_bits: int) -> Work:
    """50 iterations on all rows, and their bits."""
    import faiss

    X = made_up(n, dim)

    def ours() -> ITQ:
        return ITQ(n_bits, max_iter=ITERATIONS, random_state=0).fit(X)

    def theirs() -> Any:
        transform = faiss.ITQTransform(dim, n_bits, True)
        transform.itq.max_iter, transform.max_train_per_dim = ITERATIONS, n
        transform.train(X)
        return transform.apply(X)

    def agree() -> None:
        plain = _loss(*_itq(X, n_bits))
        model = ours()
        loss = _loss((X - model.mean_) @ model.components_.T, model.rotation_)
        assert abs(loss / plain - 1) < 0.01, f"our loss is {loss / plain:.4f} of that in plain NumPy"
        found = theirs()
        kept = [float(np.abs(rows).mean()) for rows in (found / np.linalg.norm(found, axis=1)[:, None],)]
        assert kept[0] > 0.5 / np.sqrt(n_bits), "faiss did not rotate"

    return Work(
        f"{n:,} x {dim} to {n_bits} bits",
        ours,
        {"faiss": theirs, "numpy": lambda: _itq(X, n_bits)},
        agree,
        operations=n * (4.0 * ITERATIONS * n_bits**2 + dim**2 + 2.0 * dim * n_bits),
    )


def _itq(X: NDArray, n_bits: int) -> tuple[NDArray, NDArray]:
    """As it is written in the paper: principal components and their rotation."""
    centred = X - X.mean(axis=0)
    V = centred @ np.linalg.eigh(centred.T @ centred)[1][:, ::-1][:, :n_bits]
    R = np.linalg.qr(np.random.default_rng(0).standard_normal((n_bits, n_bits)))[0].astype(X.dtype)
    for _ in range(ITERATIONS):
        U, _, W = np.linalg.svd(V.T @ np.sign(V @ R))
        R = U @ W
    return V, R


def _loss(V: NDArray, R: NDArray) -> float:
    """|sign(V R) - V R|^2."""
    rotated = V @ R
    return float(np.sum((np.sign(rotated) - rotated) ** 2, dtype=np.float64))
