"""Registry of what is measured: name, unit, which direction is better, and the function where there is one.

Figures and tables take their labels from here.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from dpq_ref.kernels.reference import Array, Integers


@dataclass(frozen=True)
class Metric:
    """One thing that is measured.

    Attributes
    ----------
    name : str
    label : str, for axes and headers
    unit : str, "" for a plain number
    better : {"higher", "lower"}
    function : callable or None, if it comes out of a whole training
    """

    name: str
    label: str
    unit: str
    better: str
    function: Callable[..., Any] | None = None

    @property
    def axis(self) -> str:
        """Label with unit and direction."""
        unit = f" ({self.unit})" if self.unit else ""
        return f"{self.label}{unit}, {self.better} is better"


def accuracy(predicted: Any, labels: Any) -> float:
    """Share of right answers in percent.

    Parameters
    ----------
    predicted, labels : (n,) integers

    Examples
    --------
    >>> accuracy(np.array([0, 1, 2, 2]), np.array([0, 1, 2, 0]))
    75.0
    """
    return 100.0 * float(np.mean(predicted == labels))


def relative_error(table: Array, other: Array, weights: Array | None = None) -> float:
    """Squared error of a reconstruction over the squared norm of the table, rows weighted.

    Parameters
    ----------
    table, other : (n, dim)
    weights : (n,), optional

    Examples
    --------
    >>> relative_error(np.array([[2.0, 0.0]]), np.array([[1.0, 0.0]]))
    0.25
    """
    w = np.ones(len(table)) if weights is None else weights
    norm = float(w @ np.square(table, dtype=np.float64).sum(axis=1))
    return float(w @ np.square(table - other, dtype=np.float64).sum(axis=1)) / norm


@dataclass(frozen=True)
class CodeUsage:
    """How evenly each group uses its codes, over the rows of a table.

    Attributes
    ----------
    used : (D,) share of the K codes that at least one row has
    perplexity : (D,) exp of the entropy of the codes, from 1 (one code only) to K (all equally often)
    largest : (D,) share of the rows that have the commonest code
    """

    used: Array
    perplexity: Array
    largest: Array


def code_usage(codes: Integers, n_codes: int) -> CodeUsage:
    """Use of the codes, group by group.

    Parameters
    ----------
    codes : (n, D) integers in [0, n_codes)
    n_codes : int

    Examples
    --------
    >>> usage = code_usage(np.array([[0, 1], [0, 2]]), 4)
    >>> usage.used, usage.perplexity, usage.largest
    (array([0.25, 0.5 ]), array([1., 2.]), array([1. , 0.5]))
    """
    counts = np.stack([np.bincount(group, minlength=n_codes) for group in codes.T])
    share = counts / counts.sum(axis=1, keepdims=True)
    entropy = -np.where(counts > 0, share * np.log(np.where(counts > 0, share, 1)), 0).sum(axis=1)
    return CodeUsage((counts > 0).mean(axis=1), np.exp(entropy), share.max(axis=1))


METRICS = {
    metric.name: metric
    for metric in (
        Metric("accuracy", "test accuracy", "%", "higher", accuracy),
        Metric("accuracy_best_test", "best test accuracy of all evaluations", "%", "higher", accuracy),
        Metric("accuracy_validation", "validation accuracy", "%", "higher", accuracy),
        Metric("relative_error", "relative squared error", "", "lower", relative_error),
        Metric("weighted_relative_error", "relative squared error by frequency", "", "lower", relative_error),
        Metric("codes_used", "codes used", "share", "higher"),
        Metric("code_perplexity", "perplexity of the codes", "codes", "higher"),
    )
}
