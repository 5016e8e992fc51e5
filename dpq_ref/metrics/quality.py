"""Accuracy of a task, and how evenly a table uses its codes."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from dpq_ref.backend import to_numpy
from dpq_ref.kernels.reference import Array, Integers


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
    return 100.0 * float(np.mean(to_numpy(predicted) == to_numpy(labels)))


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
    counts = np.stack([np.bincount(group, minlength=n_codes) for group in to_numpy(codes).T])
    share = counts / counts.sum(axis=1, keepdims=True)
    entropy = -np.where(counts > 0, share * np.log(np.where(counts > 0, share, 1)), 0).sum(axis=1)
    return CodeUsage((counts > 0).mean(axis=1), np.exp(entropy), share.max(axis=1))


def code_changes(codes: Integers, before: Integers, n_codes: int) -> dict[str, float]:
    """Say how far codes have moved since they were last looked at, and how evenly they are used now.

    Parameters
    ----------
    codes, before : (n, D) integers in [0, n_codes)
    n_codes : int

    Returns
    -------
    dict
        codes_changed, a share of all n D; and means over the groups of codes_used and code_perplexity.

    Examples
    --------
    >>> code_changes(np.array([[0, 1], [0, 1]]), np.array([[0, 1], [3, 1]]), 4)
    {'codes_changed': 0.25, 'codes_used': 0.25, 'code_perplexity': 1.0}
    """
    usage = code_usage(codes, n_codes)
    return {
        "codes_changed": float((to_numpy(codes) != to_numpy(before)).mean()),
        "codes_used": float(usage.used.mean()),
        "code_perplexity": float(usage.perplexity.mean()),
    }
