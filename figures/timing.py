"""How long a baseline takes to compress a table, compilation apart."""

import time
from contextlib import suppress
from typing import Any

from dpq_ref.compressed import Compressed
from dpq_ref.kernels.reference import Array, Integers

FEW = 512  # rows that kernels are compiled on
ONCE = {"max_iter": 1, "steps": 1, "epochs": 1}


def timed_fit(
    estimator: Any, X: Array, weights: Array | Integers | None = None
) -> tuple[Compressed, dict[str, float]]:
    """Table of an estimator, and the seconds of `compile` and of `fit`.

    First comes one iteration on a few rows. Where these cannot have the size that is asked for, some
    compilation may count as fitting.
    """
    from sklearn.base import clone

    start = time.perf_counter()
    trial, some = clone(estimator), slice(None, None, max(1, len(X) // FEW))
    trial.set_params(**{name: n for name, n in ONCE.items() if name in trial.get_params()})
    with suppress(ValueError):
        trial.fit(X[some], sample_weight=None if weights is None else weights[some]).compress()
    compiled = time.perf_counter()
    table = estimator.fit(X, sample_weight=weights).compress()
    return table, {"compile": compiled - start, "fit": time.perf_counter() - compiled}
