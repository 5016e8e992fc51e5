"""DPQ-SX and DPQ-VQ in training, one array after the other: what `quantize` does in two calls.

The steps are those of `dpq_ref.kernels.reference`, in the order of the mathematics. Forward picks a value by
its code, which has no derivative; backward goes another way. Each gradient stands beside a finite difference
of what it is the exact gradient of (see `dpq_ref.gradcheck`).

T. Chen, L. Li, Y. Sun, *Differentiable Product Quantization for End-to-End Embedding Compression*, ICML 2020,
section 2.
"""

from collections.abc import Generator, Sequence
from typing import Any, TypeVar

import numpy as np

from dpq_ref import checks
from dpq_ref.gradcheck import surrogates
from dpq_ref.kernels import reference as kernels
from dpq_ref.kernels.reference import Array, Integers
from dpq_ref.layers.embedding import DPQEmbedding, RowSparse
from dpq_ref.quantize import EPSILON, compose, compose_backward, entries, tie
from dpq_ref.trace.steps import Step, slope

T = TypeVar("T")
Steps = Generator[Step, None, T]
Inputs = tuple[DPQEmbedding, Integers, Array, tuple[str, ...]]


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
    return list(_sx(*_checked(layer, "sx", ids, d_output, words), np.random.default_rng(seed)))


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
    return list(_vq(*_checked(layer, "vq", ids, d_output, words), np.random.default_rng(seed)))


def _checked(layer: DPQEmbedding, method: str, ids: Any, d_output: Any, words: Any) -> Inputs:
    if layer.method != method:
        raise ValueError(f"layer has method={layer.method!r}; it takes {method!r}")
    if layer.dtype != np.float64:
        raise TypeError(f"layer computes in {layer.dtype}; it takes float64, or differences are noise")
    if layer.gumbel or layer.ema_decay or layer.restart_after:
        raise ValueError("gumbel, ema_decay and restart_after have no surrogate to check against")
    ids = checks.as_ids(ids, layer.vocab_size).ravel()
    if not ids.size:
        raise ValueError("ids is empty; it takes at least one")
    words = tuple(map(str, ids)) if words is None else tuple(words)
    if len(words) != len(ids):
        raise ValueError(f"words has {len(words)}; for {len(ids)} ids it takes as many")
    g = checks.as_table(d_output, "d_output").astype(np.float64)
    if g.shape != (len(ids), layer.dim):
        raise ValueError(f"d_output has shape {g.shape}; it takes {(len(ids), layer.dim)}")
    return layer, ids, g, words


# --- Forward ----------------------------------------------------------------------------------------------


def _batch(layer: DPQEmbedding, ids: Integers, words: tuple) -> Steps[tuple[Any, ...]]:
    """Ids to distinct rows, how often each comes, and its queries."""
    rows, inverse, counts = kernels.distinct(ids)
    counts = counts.astype(np.float64)
    padding = layer.padding_id is not None and layer.padding_id in rows
    if padding:
        counts[rows == layer.padding_id] = 0
    names = tuple(words[np.flatnonzero(inverse == i)[0]] for i in range(len(rows)))
    query = kernels.gather(layer.params["query"], rows).reshape(len(rows), layer.n_groups, -1)
    yield Step("ids", "", ids, "The batch: the number of each token.", "t", words)
    yield Step("rows", "rows = distinct ids", rows, "All work is done once a row.", "i", names)
    yield Step("inverse", "ids[t] = rows[inverse[t]]", inverse, "", "t", words)
    yield Step(
        "counts",
        "counts[i] = number of tokens t with inverse[t] = i",
        counts,
        "Tokens that a row stands for; it enters statistics and losses so many times."
        + " 0 for padding, which enters none." * padding,
        "i",
        names,
    )
    yield Step(
        "query",
        "query[i,j] = group j of row rows[i] of the table",
        query,
        "Each row is cut into D queries, one for each group.",
        "ijc",
        names,
    )
    keys, whose = layer.params["keys"], "One for all groups." if layer.shared else "One for each group."
    said = (
        "The codebook, keys and values at once" if layer.method == "vq" else "What queries are compared with"
    )
    yield Step("keys", "", keys, f"{said}. {whose}", "jkc")
    if layer.method == "sx":
        yield Step("values", "", layer.params["values"], "What stands for a code in the output.", "jkc")
    return rows, inverse, counts, query, names


def _normalised(
    layer: DPQEmbedding, responses: Array, counts: Array, names: tuple
) -> Steps[tuple[Array, Any]]:
    """Batch norm with the statistics of this batch, where it is on and there is a kept token."""
    if not (layer.batch_norm and counts.any()):
        return responses, None
    logits, mean, variance = kernels.batch_norm(responses, counts, EPSILON)
    yield Step(
        "mean",
        "mean[k] = Σᵢⱼ counts[i] responses[i,j,k] / N,  N = D Σᵢ counts[i]",
        mean,
        "One for each code, over batch and groups. The running mean moves towards it by 1 %.",
        "k",
    )
    yield Step(
        "variance",
        "variance[k] = Σᵢⱼ counts[i] (responses[i,j,k] − mean[k])² / N",
        variance,
        axes="k",
    )
    yield Step(
        "normalised",
        f"normalised[i,j,k] = (responses[i,j,k] − mean[k]) / √(variance[k] + {EPSILON:g})",
        logits,
        "Without it some codes would be larger than the others for nearly all rows, and picked always.",
        "ijk",
        names,
        picked=kernels.argmax_code(logits),
    )
    return logits, variance


def _output(
    layer: DPQEmbedding, codes: Integers, inverse: Integers, g: Array, words: tuple, names: tuple
) -> Steps[tuple[Array, float]]:
    """Take the values of the codes; the output of each token, and the loss <g, output>."""
    book = "values" if layer.method == "sx" else "keys"
    values = layer.params[book]
    yield Step(
        "codes",
        f"codes[i,j] = argmaxₖ {'normalised' if layer.batch_norm else 'responses'}[i,j,k]",
        codes,
        "The D digits of a row: all that is kept of it after training. No derivative passes here.",
        "ij",
        names,
    )
    picked = kernels.decode(codes, values)
    where = "0" if layer.shared else "j"
    yield Step("picked", f"picked[i,j] = {book}[{where},codes[i,j]]", picked, "", "ijc", names)
    output = kernels.gather(compose(kernels, codes, values, layer.additive), inverse)
    how = "their mean" if layer.additive else "side by side"
    yield Step("output", f"output[t] = picked[inverse[t],j] of all j, {how}", output, "", "tc", words)
    yield Step("g", "", g, "Gradient that comes from above, at random here.", "tc", words)
    loss = float((g * output).sum())
    yield Step("loss", "loss = Σ g · output", np.array(loss), "The simplest loss with this gradient.")
    return picked, loss


def _upstream(
    layer: DPQEmbedding, g: Array, inverse: Integers, picked: Array, names: tuple, rng: Any
) -> Steps[Array]:
    """Gradient of the output, token by token -> that of the picked values, row by row."""

    def joined(picked: Array) -> Array:
        return picked.mean(axis=1) if layer.additive else picked.reshape(len(picked), -1)

    def of_rows(rows: Array) -> float:
        return float((g * rows[inverse]).sum())

    rows = joined(picked)
    d_rows = kernels.scatter_add(inverse, g, len(rows))
    yield Step(
        "d_rows",
        "d_rows[i] = Σ g[t] over tokens t with inverse[t] = i",
        d_rows,
        "A row that stands for several tokens gets the sum of their gradients.",
        "ic",
        names,
        (slope(of_rows, rows, d_rows, rng),),
        "backward",
    )
    d_picked = compose_backward(d_rows, layer.n_groups, layer.additive)
    how = "d_rows[i] / D" if layer.additive else "group j of d_rows[i]"
    yield Step(
        "d_picked",
        f"d_picked[i,j] = {how}",
        d_picked,
        "",
        "ijc",
        names,
        (slope(lambda picked: of_rows(joined(picked)), picked, d_picked, rng),),
        "backward",
    )
    return d_picked


def _table(layer: DPQEmbedding, rows: Integers, d_query: Array, loss: Any, names: tuple, rng: Any) -> Step:
    """Gradient of the table of queries: that of its rows in the batch."""
    d_table = d_query.reshape(len(rows), -1)
    dense = RowSparse(rows, d_table, layer.vocab_size).to_dense()
    return Step(
        "d_table",
        "row rows[i] of the gradient of the table = d_query[i], side by side",
        d_table,
        "All other rows of it are 0.",
        "ic",
        names,
        (slope(loss, layer.params["query"], dense, rng),),
        "backward",
    )


# --- DPQ-SX -----------------------------------------------------------------------------------------------


def _sx(layer: DPQEmbedding, ids: Integers, g: Array, words: tuple, rng: Any) -> Steps[None]:
    keys, values, tau = layer.params["keys"], layer.params["values"], layer.temperature
    rows, inverse, counts, query, names = yield from _batch(layer, ids, words)
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
    logits, variance = yield from _normalised(layer, responses, counts, names)
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
    picked, _ = yield from _output(layer, codes, inverse, g, words, names)

    d_picked = yield from _upstream(layer, g, inverse, picked, names, rng)
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
    yield _table(layer, rows, d_query, losses["query"], names, rng)


def mean_value(p: Array, values: Array) -> Array:
    """Mean of the values by a soft assignment, (b, D, K), (D or 1, K, s) -> (b, D, s).

    Examples
    --------
    >>> mean_value(np.array([[[0.25, 0.75]]]), np.array([[[0.0, 4.0], [8.0, 0.0]]]))
    array([[[6., 1.]]])
    """
    return np.matmul(p[:, :, None], values)[:, :, 0]


# --- DPQ-VQ -----------------------------------------------------------------------------------------------


def _vq(layer: DPQEmbedding, ids: Integers, g: Array, words: tuple, rng: Any) -> Steps[None]:
    keys, alpha, beta = layer.params["keys"], layer.codebook_weight, layer.commitment_weight
    rows, inverse, counts, query, names = yield from _batch(layer, ids, words)
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
    logits, _ = yield from _normalised(layer, responses, counts, names)
    codes = kernels.argmax_code(logits)
    picked, loss = yield from _output(layer, codes, inverse, g, words, names)
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

    d_picked = yield from _upstream(layer, g, inverse, picked, names, rng)
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
        cuts=f"output → codes → {'normalised → ' * layer.batch_norm}responses; g → keys"
        + "; codebook_loss → query" * (beta == 0),
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
    yield _table(layer, rows, d_query, losses["query"], names, rng)
