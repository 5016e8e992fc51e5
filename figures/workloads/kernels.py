"""Each hot kernel beside its definition in the reference."""

from collections.abc import Callable
from typing import Any

import numpy as np

from dpq_ref.kernels import cpu, reference
from dpq_ref.quantize import EPSILON
from figures.speed import Work

B, D, K, S = 500, 25, 32, 12  # rows of a batch, groups, codes, width of a group
WORDS = 2000


def kernel(of: str) -> Work:
    """One kernel at the size of a small training step; both results must be close."""
    arguments = ARGUMENTS[of](np.random.default_rng(0))
    ours, theirs = getattr(cpu, of), getattr(reference, of)

    def agree() -> None:
        for mine, other in zip(_arrays(ours(*arguments)), _arrays(theirs(*arguments)), strict=True):
            np.testing.assert_allclose(mine, other, rtol=1e-3, atol=1e-4 * np.abs(other).max())

    return Work(of, lambda: ours(*arguments), {"reference": lambda: theirs(*arguments)}, agree)


def _arrays(result: Any) -> tuple[Any, ...]:
    return result if isinstance(result, tuple) else (result,)


def _real(rng: np.random.Generator, *shape: int) -> np.ndarray:
    return rng.standard_normal(shape).astype(np.float32)


def _queries(rng: np.random.Generator) -> tuple[Any, ...]:
    return _real(rng, B, D, S), _real(rng, D, K, S)


def _counts(rng: np.random.Generator) -> np.ndarray:
    return rng.integers(1, 9, B).astype(np.float32)


def _statistics(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    return _real(rng, K), rng.uniform(1, 2, K).astype(np.float32)


def _codes(rng: np.random.Generator) -> np.ndarray:
    return rng.integers(0, K, (B, D)).astype(np.int32)


def _sx_backward(rng: np.random.Generator) -> tuple[Any, ...]:
    query, keys = _queries(rng)
    return _real(rng, B, D, S), query, keys, _real(rng, D, K, S), _counts(rng), _statistics(rng), EPSILON, 1.0


def _packed(rng: np.random.Generator) -> tuple[Any, ...]:
    return reference.pack_codes(rng.integers(0, K, (WORDS, D)), 5), 5, rng.integers(0, WORDS, B), D


ARGUMENTS: dict[str, Callable[[np.random.Generator], tuple[Any, ...]]] = {
    "sx_statistics": lambda rng: (*_queries(rng), _counts(rng)),
    "sx_codes": lambda rng: (*_queries(rng), _statistics(rng), EPSILON),
    "sx_backward": _sx_backward,
    "vq_statistics": lambda rng: (*_queries(rng), _counts(rng)),
    "vq_codes": lambda rng: (*_queries(rng), _statistics(rng), EPSILON),
    "codebook_errors": lambda rng: (*_queries(rng), _codes(rng), _counts(rng)),
    "nearest_code": _queries,
    "decode": lambda rng: (_codes(rng), _real(rng, D, K, S)),
    "unpack_codes": _packed,
    "sum_by_code": lambda rng: (_codes(rng), _real(rng, B, D, S), K),
    "gather": lambda rng: (_real(rng, WORDS, D * S), rng.integers(0, WORDS, B)),
    "scatter_add": lambda rng: (rng.integers(0, WORDS, B), _real(rng, B, D * S), WORDS),
    "hamming": lambda rng: tuple(rng.integers(0, 1 << 64, (n, 4), np.uint64) for n in (30, 800)),
    "lstm_cell": lambda rng: (_real(rng, 20, 800), _real(rng, 20, 200)),
    "cross_entropy": lambda rng: (
        _real(rng, 70, WORDS),
        rng.integers(0, WORDS, 70),
        np.ones(70, np.float32),
        0.1,
    ),
    "adam": lambda rng: (
        *(_real(rng, B, D * S) for _ in range(3)),
        np.abs(_real(rng, B, D * S)),
        3,
        1e-2,
        0.9,
        0.99,
        1e-8,
    ),
}
