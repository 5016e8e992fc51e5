"""DPQ-VQ in training, one array after the other: what `quantize.vq_forward` and `vq_backward` do.

As in `softmax`. T. Chen, L. Li, Y. Sun, *Differentiable Product Quantization for End-to-End Embedding
Compression*, ICML 2020, section 2.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from dpq_ref.gradcheck import surrogates
from dpq_ref.kernels import reference as kernels
from dpq_ref.kernels.reference import Array, Integers
from dpq_ref.layers.embedding import DPQEmbedding
from dpq_ref.quantize import entries, tie
from dpq_ref.trace.batch import batch, checked, normalised, outputs, table_gradient, upstream
from dpq_ref.trace.steps import Step, Steps, slope


def vq(
    layer: DPQEmbedding, ids: Any, d_output: Any, *, words: Sequence[str] | None = None, seed: int = 0
) -> list[Step]:
    """Trace one training step of DPQ-VQ; the layer stays as it is.

    Parameters
    ----------
    layer : DPQEmbedding of method "vq", float64, without moving averages and restarts
    ids, d_output, words, seed
        As in `sx`. The loss is sum of g * output, and the codebook loss.

    Returns
    -------
    list of Step

    Raises
    ------
    ValueError, TypeError, IndexError
        As in `sx`.

    Examples
    --------
    >>> layer = DPQEmbedding(10, 6, n_groups=2, n_codes=4, method="vq", dtype=np.float64, backend="numpy")
    >>> steps = vq(layer, [3, 1, 3], np.ones((3, 6)))
    >>> [step.name for step in steps if step.phase == "backward"]
    ['d_rows', 'd_picked', 'd_query', 'd_keys', 'd_table']
    """
    return list(_vq(*checked(layer, "vq", ids, d_output, words), np.random.default_rng(seed)))


def _vq(layer: DPQEmbedding, ids: Integers, g: Array, words: tuple, rng: Any) -> Steps[None]:
    keys, alpha, beta = layer.params["keys"], layer.codebook_weight, layer.commitment_weight
    rows, inverse, counts, query, names = yield from batch(layer, ids, words)
    responses = kernels.euclidean_responses(query, keys)
    one = "0" if layer.shared else "j"
    yield Step(
        "responses",
        f"responses[i,j,k] = −|query[i,j] − keys[{one},k]|²",
        responses,
        "The nearest key has the largest, marked."
        + " After batch norm it may be another." * layer.batch_norm,
        "ijk",
        names,
        picked=kernels.argmax_code(responses),
    )
    logits, variance = yield from normalised(layer, responses, counts, names)
    of = "responses" if variance is None else "normalised"
    codes = kernels.argmax_code(logits)
    picked, loss = yield from outputs(layer, codes, of, inverse, g, words, names)
    n = entries(query, counts)
    residual = picked - query
    total, pull = kernels.codebook_errors(query, keys, codes, counts)
    yield Step(
        "residual",
        "residual[i,j] = picked[i,j] − query[i,j]",
        residual,
        "",
        "ijc",
        names,
    )
    yield Step(
        "codebook_loss",
        f"codebook_loss = (α + β) Σᵢⱼ counts[i] |residual[i,j]|² / M,  M = {n:g}",
        np.array((alpha + beta) * float(total) / n),
        f"M: kept tokens × groups × width. α = {alpha:g} is the part that moves keys, β = {beta:g} "
        "(commitment) the part that moves queries.",
    )
    yield Step("total_loss", "total_loss = loss + codebook_loss", np.array(loss + (alpha + beta) * total / n))

    d_picked = yield from upstream(layer, g, inverse, picked, names, rng)
    losses = surrogates(layer, ids, g)
    d_query, d_keys = d_picked, 2 * alpha / n * tie(pull, keys)
    if beta:
        d_query = d_picked - 2 * beta / n * counts[:, None, None] * residual

    def straight_through(q: Array) -> float:
        return float((d_picked * q).sum() + beta * kernels.codebook_errors(q, keys, codes, counts)[0] / n)

    yield Step(
        "d_query",
        "d_query[i,j] = d_picked[i,j]" + " − 2 β counts[i] residual[i,j] / M" * (beta > 0),
        d_query,
        "Straight through: backward pretends that the query itself was the output, and hands the gradient on "
        "as it is." + " The commitment loss pulls the query towards its key." * (beta > 0),
        "ijc",
        names,
        (slope(straight_through, query, d_query, rng),),
        "backward",
        connects="g → query; codebook_loss → keys" + ", query" * (beta > 0),
        cuts=f"output → codes → {of}; g → keys" + "; codebook_loss → query" * (beta == 0),
    )
    yield Step(
        "d_keys",
        f"d_keys[{one},k] = 2 α / M · Σ counts[i] residual[i,j] over all {'i, j' if layer.shared else 'i'} "
        "with codes[i,j] = k",
        d_keys,
        "From the codebook loss alone: a key goes towards the queries that picked it. The others get 0.",
        "jkc",
        checks=(slope(losses["keys"], keys, d_keys, rng),),
        phase="backward",
    )
    yield table_gradient(layer, rows, d_query, losses["query"], names, rng)
