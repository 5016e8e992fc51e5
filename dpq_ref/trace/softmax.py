"""DPQ-SX in training, one array after the other: what `quantize.sx_forward` and `sx_backward` do.

The steps are those of `dpq_ref.kernels.reference`, in the order of the mathematics. Forward picks a value by
its code, which has no derivative; backward goes another way. Each gradient stands beside a finite difference
of what it is the exact gradient of (see `dpq_ref.gradcheck`).

T. Chen, L. Li, Y. Sun, *Differentiable Product Quantization for End-to-End Embedding Compression*, ICML 2020,
section 2.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from dpq_ref.gradcheck import surrogates
from dpq_ref.kernels import reference as kernels
from dpq_ref.kernels.reference import Array, Integers
from dpq_ref.layers.embedding import DPQEmbedding
from dpq_ref.quantize import EPSILON, tie
from dpq_ref.trace.batch import batch, checked, normalised, outputs, table_gradient, upstream
from dpq_ref.trace.steps import Step, Steps, slope


def sx(
    layer: DPQEmbedding, ids: Any, d_output: Any, *, words: Sequence[str] | None = None, seed: int = 0
) -> list[Step]:
    """Trace one training step of DPQ-SX; the layer stays as it is.

    Parameters
    ----------
    layer : DPQEmbedding of method "sx", float64, without Gumbel noise
    ids : (t,) integers, at least one
    d_output : (t, dim)
        g, the gradient that comes from above: the loss is sum of g * output.
    words : t strings, optional
        Names of the tokens; the ids by default.
    seed : int
        Of the directions of the finite differences.

    Returns
    -------
    list of Step

    Raises
    ------
    ValueError, TypeError, IndexError
        If the layer is of another method or dtype, or draws at random; for bad ids or d_output.

    Examples
    --------
    >>> layer = DPQEmbedding(10, 6, n_groups=2, n_codes=4, dtype=np.float64, backend="numpy")
    >>> steps = sx(layer, [3, 1, 3], np.ones((3, 6)))
    >>> {step.name: step.array for step in steps}["counts"]
    array([1., 2.])
    >>> all(claim.holds for step in steps for claim in step.checks)
    True
    """
    return list(_sx(*checked(layer, "sx", ids, d_output, words), np.random.default_rng(seed)))


def _sx(layer: DPQEmbedding, ids: Integers, g: Array, words: tuple, rng: Any) -> Steps[None]:
    keys, values, tau = layer.params["keys"], layer.params["values"], layer.temperature
    rows, inverse, counts, query, names = yield from batch(layer, ids, words)
    responses = kernels.dot_responses(query, keys)
    one = "0" if layer.shared else "j"
    yield Step(
        "responses",
        f"responses[i,j,k] = ⟨query[i,j], keys[{one},k]⟩",
        responses,
        "How well each key answers a query.",
        "ijk",
        names,
        picked=None if layer.batch_norm else kernels.argmax_code(responses),
    )
    logits, variance = yield from normalised(layer, responses, counts, names)
    codes = kernels.argmax_code(logits)
    of = "responses" if variance is None else "normalised"
    p = kernels.softmax(logits, tau)
    divided = "" if tau == 1 else f" / {tau:g}"
    yield Step(
        "softmax",
        f"softmax[i,j,k] = exp({of}[i,j,k]{divided}) / Σₗ exp({of}[i,j,l]{divided})",
        p,
        "Forward does without it; backward will not.",
        "ijk",
        names,
        picked=codes,
    )
    picked, _ = yield from outputs(layer, codes, of, inverse, g, words, names)

    d_picked = yield from upstream(layer, g, inverse, picked, names, rng)
    losses = surrogates(layer, ids, g)
    d_values = tie(kernels.sum_by_code(codes, d_picked, layer.n_codes), values)
    yield Step(
        "d_values",
        f"d_values[{one},k] = Σ d_picked[i,j] over all {'i, j' if layer.shared else 'i'} with codes[i,j] = k",
        d_values,
        "The usual derivative of the output, codes held. A value that nobody picked gets 0.",
        "jkc",
        checks=(slope(losses["values"], values, d_values, rng),),
        phase="backward",
    )

    def of_softmax(p: Array) -> float:
        return float((d_picked * mean_value(p, values)).sum())

    def of_logits(x: Array) -> float:
        return of_softmax(kernels.softmax(x, tau))

    def of_responses(r: Array) -> float:
        return of_logits(r if variance is None else kernels.batch_norm(r, counts, EPSILON)[0])

    yield Step(
        "soft",
        f"soft[i,j] = Σₖ softmax[i,j,k] values[{one},k]",
        mean_value(p, values),
        "Straight through: the codes have no derivative, so backward pretends that this mean of all values, "
        "not the picked one, was the output.",
        "ijc",
        names,
        phase="backward",
        connects=f"g → soft → softmax → {'' if variance is None else 'normalised → '}responses → query, keys",
        cuts=f"output → codes → {of}; and soft → values",
    )
    d_p = kernels.dot_responses(d_picked, values)
    yield Step(
        "d_softmax",
        f"d_softmax[i,j,k] = ⟨d_picked[i,j], values[{one},k]⟩",
        d_p,
        "What each value would change in the loss.",
        "ijk",
        names,
        (slope(of_softmax, p, d_p, rng),),
        "backward",
    )
    d = kernels.softmax_backward(d_p, p, tau)
    yield Step(
        f"d_{of}",
        f"d_{of} = softmax (d_softmax − Σₗ softmax[i,j,l] d_softmax[i,j,l]){divided}",
        d,
        "",
        "ijk",
        names,
        (slope(of_logits, logits, d, rng),),
        "backward",
    )
    if variance is not None:
        d = kernels.batch_norm_backward(d, logits, variance, counts, EPSILON)
        yield Step(
            "d_responses",
            "d_responses = (d_normalised − counts[i] (m₁[k] + normalised m₂[k])) "
            f"/ √(variance[k] + {EPSILON:g}),  "
            "m₁ = Σᵢⱼ d_normalised / N,  m₂ = Σᵢⱼ d_normalised normalised / N",
            d,
            "Mean and variance depend on the responses, too: hence m₁ and m₂.",
            "ijk",
            names,
            (slope(of_responses, responses, d, rng),),
            "backward",
        )
    d_query, d_keys = kernels.dot_responses_backward(d, query, keys)
    yield Step(
        "d_keys",
        f"d_keys[{one},k] = Σ{'ᵢⱼ' if layer.shared else 'ᵢ'} d_responses[i,j,k] query[i,j]",
        d_keys,
        "All keys learn, through the softmax, not only those picked.",
        "jkc",
        checks=(slope(losses["keys"], keys, d_keys, rng),),
        phase="backward",
    )
    yield Step(
        "d_query",
        f"d_query[i,j] = Σₖ d_responses[i,j,k] keys[{one},k]",
        d_query,
        "",
        "ijc",
        names,
        (slope(lambda q: of_responses(kernels.dot_responses(q, keys)), query, d_query, rng),),
        "backward",
    )
    yield table_gradient(layer, rows, d_query, losses["query"], names, rng)


def mean_value(p: Array, values: Array) -> Array:
    """Mean of the values by a soft assignment, (b, D, K), (D or 1, K, s) -> (b, D, s).

    Examples
    --------
    >>> mean_value(np.array([[[0.25, 0.75]]]), np.array([[[0.0, 4.0], [8.0, 0.0]]]))
    array([[[6., 1.]]])
    """
    return np.matmul(p[:, :, None], values)[:, :, 0]
