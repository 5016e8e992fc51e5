"""Words as in text: what all workloads look up."""

import numpy as np

from dpq_ref.kernels.reference import Integers

VOCAB = 10_000  # that of Penn Treebank


def zipf(n: int, rng: np.random.Generator) -> Integers:
    """Words with the frequencies of text: the k-th comes 1 / k as often as the first, (n,) int32."""
    weights = 1 / np.arange(1, VOCAB + 1)
    return rng.choice(VOCAB, n, p=weights / weights.sum()).astype(np.int32)
