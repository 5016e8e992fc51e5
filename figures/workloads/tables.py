"""A made-up table with what matters to compression: words in clusters, variances that fall, an offset."""

import numpy as np
from numpy.typing import NDArray

CLUSTERS = 2000
FALL = 4.0  # how many times the spread of the first direction exceeds that of the last


def made_up(n: int, dim: int, seed: int = 0) -> NDArray[np.floating]:
    """Rows about cluster centres, drawn by Zipf's law, in directions that are no columns, (n, dim)."""
    rng = np.random.default_rng(seed)
    turn = np.linalg.qr(rng.standard_normal((dim, dim)))[0].astype(np.float32)
    turn *= np.float32(FALL) ** -np.linspace(0, 1, dim, dtype=np.float32)[:, None]
    centres = rng.standard_normal((CLUSTERS, dim), np.float32)
    rows = rng.standard_normal((n, dim), np.float32)
    rows += centres[rng.zipf(1.3, n) % CLUSTERS]
    return rows @ turn + rng.standard_normal(dim, np.float32) / 4


def squared_error(X: NDArray, Y: NDArray) -> float:
    """Sum of squares of X - Y over that of X."""
    return float(np.sum((X - Y) ** 2, dtype=np.float64) / np.sum(X**2, dtype=np.float64))
