r"""Differentiable Product Quantization, forward and backward: section 2 of the paper, as pure functions.

T. Chen, L. Li, Y. Sun, *Differentiable Product Quantization for End-to-End Embedding Compression*, ICML 2020.

A row of the table is cut into D queries. Each query picks one of K keys, its code; the values of the D codes,
side by side, are the output. Only codes and values are kept after training. Picking is not differentiable:

* **DPQ-SX** has keys and values apart and picks by dot product. Forward takes the picked value; backward
  pretends that the output was the softmax-weighted mean of all values, so queries and keys learn.
* **DPQ-VQ** has one codebook for both and picks the nearest key. Backward hands the gradient of the output to
  the query as it is; the codebook learns from a loss of its own that pulls it towards its queries.

========  ==========================================  ===========================================
moves     DPQ-SX                                      DPQ-VQ
========  ==========================================  ===========================================
query     task loss, through the softmax              task loss as it is; commitment loss
keys      task loss, through the softmax              codebook loss (or moving averages)
values    task loss, only the picked rows             are the keys
========  ==========================================  ===========================================

The rows of a batch are distinct ids; `counts[i]` tells how many tokens row i stands for, 0 for padding, which
enters neither the batch-norm statistics nor the codebook loss. Upstream gradients arrive summed over those
tokens. Arrays: query (b, D, s), keys and values (D or 1, K, s), codes (b, D), output (b, D*s). They are where
the kernels are, but for the counts: these are the host's, which need not wait to know whether any is kept.

Batch norm of the responses is that of the released code: one mean and one variance per code, pooled over
batch and groups. With it the code of DPQ-VQ is not always the nearest key.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from dpq_ref.kernels.reference import Array, Integers, Statistics

EPSILON = 1e-3  # batch norm, as released
MOMENTUM = 0.99  # of the running statistics, as released


@dataclass(frozen=True)
class Tape:
    """What `forward` hands to `backward`; whatever else the backward of DPQ-SX needs, it computes again.

    Attributes
    ----------
    codes : (b, D) int32
    query : (b, D, s_q)
    keys, values : (D or 1, K, s_q), (D or 1, K, s)
    counts : (b,) float, on the host
    additive : bool
    statistics : mean (K,) and variance (K,) of the batch, or None without batch norm or kept tokens
    temperature : float (SX)
    noise : (b, D, K) or None (SX)
    pull : (D, K, s), sum of picked keys less queries by code, each counted (VQ)
    loss : scalar, the codebook loss with its weights (VQ)
    codebook_weight, commitment_weight : float (VQ)
    """

    codes: Integers
    query: Array
    keys: Array
    values: Array
    counts: Array
    additive: bool
    statistics: Statistics | None = None
    temperature: float = 1.0
    noise: Array | None = None
    pull: Any = None
    loss: Any = 0.0
    codebook_weight: float = 1.0
    commitment_weight: float = 0.0


def codes_of(
    kernels: Any, method: str, query: Array, keys: Array, statistics: Statistics | None = None
) -> Integers:
    """Codes in evaluation: the key with the largest response (paper, section 2).

    Parameters
    ----------
    kernels : kernel set
    method : {"sx", "vq"}
    query : (b, D, s)
    keys : (D or 1, K, s)
    statistics : running mean and variance (K,) of the responses, or None for no batch norm

    Returns
    -------
    (b, D) int32
    """
    if method == "sx":
        return kernels.sx_codes(query, keys, statistics, EPSILON)
    if statistics is None:
        return kernels.nearest_code(query, keys)
    return kernels.vq_codes(query, keys, statistics, EPSILON)


def compose(kernels: Any, codes: Integers, values: Array, additive: bool) -> Array:
    """Output from codes: values side by side, or their mean over the groups when additive, (b, dim)."""
    picked = kernels.decode(codes, values)
    b, D, s = picked.shape
    return picked.mean(axis=1) if additive else picked.reshape(b, D * s)


def compose_backward(d_output: Array, n_groups: int, additive: bool) -> Array:
    """Gradient of the picked values: the slice of each group, or an equal share when additive, (b, D, s)."""
    if additive:
        share = d_output[:, None, :] / d_output.dtype.type(n_groups)
        return share.repeat(n_groups, axis=1)
    b, dim = d_output.shape
    return d_output.reshape(b, n_groups, dim // n_groups)


def sx_forward(
    kernels: Any,
    query: Array,
    keys: Array,
    values: Array,
    counts: Array,
    *,
    batch_norm: bool = True,
    temperature: float = 1.0,
    additive: bool = False,
    noise: Array | None = None,
) -> tuple[Array, Tape]:
    """DPQ-SX in training (paper, section 2): output and what the backward needs.

    Parameters
    ----------
    kernels : kernel set
    query : (b, D, s_q)
    keys : (D or 1, K, s_q)
    values : (D or 1, K, s)
    counts : (b,) float, on the host
    batch_norm : bool
    temperature : float
    additive : bool
    noise : (b, D, K) or None
        Gumbel noise; the code is then a draw from the softmax rather than its maximum.

    Returns
    -------
    output : (b, D*s), additive (b, s)
    tape : Tape
    """
    # Without one kept token there are no statistics.
    there = kernels.xp.asarray(counts)
    statistics = kernels.sx_statistics(query, keys, there) if batch_norm and counts.any() else None
    codes = kernels.sx_codes(query, keys, statistics, EPSILON, noise)
    tape = Tape(
        codes,
        query,
        keys,
        values,
        counts,
        additive,
        statistics=statistics,
        temperature=temperature,
        noise=noise,
    )
    return compose(kernels, codes, values, additive), tape


def sx_backward(kernels: Any, d_output: Array, tape: Tape) -> tuple[Array, Array, Array]:
    """Gradients of DPQ-SX: values through the hard codes, queries and keys through the softmax.

    Parameters
    ----------
    kernels : kernel set
    d_output : (b, D*s), additive (b, s)
    tape : Tape

    Returns
    -------
    d_query : (b, D, s_q)
    d_keys : (D or 1, K, s_q)
    d_values : (D or 1, K, s)
    """
    d_picked = compose_backward(d_output, tape.codes.shape[1], tape.additive)
    d_values = tie(kernels.sum_by_code(tape.codes, d_picked, tape.values.shape[1]), tape.values)
    d_query, d_keys = kernels.sx_backward(
        d_picked,
        tape.query,
        tape.keys,
        tape.values,
        kernels.xp.asarray(tape.counts),
        tape.statistics,
        EPSILON,
        tape.temperature,
        tape.noise,
    )
    return d_query, d_keys, d_values


def vq_forward(
    kernels: Any,
    query: Array,
    keys: Array,
    counts: Array,
    *,
    batch_norm: bool = True,
    additive: bool = False,
    codebook_weight: float = 1.0,
    commitment_weight: float = 0.0,
) -> tuple[Array, Tape]:
    """DPQ-VQ in training (paper, section 2): output and what the backward needs.

    The codebook loss is (alpha + beta) times the mean of (K_j[c] - q)^2 over the kept tokens, groups and
    coordinates; alpha moves the keys only, beta the queries only.

    Parameters
    ----------
    kernels : kernel set
    query : (b, D, s)
    keys : (D or 1, K, s)
    counts : (b,) float, on the host
    batch_norm, additive : bool
    codebook_weight, commitment_weight : float
        alpha and beta.

    Returns
    -------
    output : (b, D*s), additive (b, s)
    tape : Tape
    """
    there = kernels.xp.asarray(counts)
    statistics = kernels.vq_statistics(query, keys, there) if batch_norm and counts.any() else None
    codes = codes_of(kernels, "vq", query, keys, statistics)
    total, pull = kernels.codebook_errors(query, keys, codes, there)
    tape = Tape(
        codes,
        query,
        keys,
        keys,
        counts,
        additive,
        statistics=statistics,
        pull=pull,
        loss=(codebook_weight + commitment_weight) * total.astype(float) / entries(query, counts),
        codebook_weight=codebook_weight,
        commitment_weight=commitment_weight,
    )
    return compose(kernels, codes, keys, additive), tape


def vq_backward(kernels: Any, d_output: Array, tape: Tape) -> tuple[Array, Array]:
    """Gradients of DPQ-VQ, those of the codebook loss among them.

    Parameters
    ----------
    kernels : kernel set
    d_output : (b, D*s), additive (b, s)
    tape : Tape

    Returns
    -------
    d_query : (b, D, s)
    d_keys : (D or 1, K, s)
    """
    real = tape.query.dtype.type
    of_mean = 2 / entries(tape.query, tape.counts)  # from half the gradient of a sum
    d_query = compose_backward(d_output, tape.codes.shape[1], tape.additive)
    if tape.commitment_weight:
        residual = kernels.decode(tape.codes, tape.keys) - tape.query
        counts = kernels.xp.asarray(tape.counts)[:, None, None]
        d_query = d_query - real(tape.commitment_weight * of_mean) * counts * residual
    return d_query, real(tape.codebook_weight * of_mean) * tie(tape.pull, tape.keys)


def entries(query: Array, counts: Array) -> float:
    """Numbers that the codebook loss is the mean of, those of padding left out; 1 where there are none."""
    return max(float(counts.sum(dtype=np.float64)) * query.shape[1] * query.shape[2], 1.0)


def tie(per_group: Array, codebook: Array) -> Array:
    """Sum over the groups that share a codebook: (D, K, s) -> shape of the codebook."""
    return per_group if len(codebook) > 1 else per_group.sum(axis=0, keepdims=True)
