"""What DPQ-SX and DPQ-VQ have in common: the batch, batch norm, the output, and the way back from it."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from dpq_ref import checks
from dpq_ref.backend import on_host, to_numpy
from dpq_ref.kernels import reference as kernels
from dpq_ref.kernels.reference import Array, Integers
from dpq_ref.layers.embedding import DPQEmbedding, RowSparse
from dpq_ref.quantize import EPSILON, compose, compose_backward
from dpq_ref.trace.steps import Step, Steps, slope

Inputs = tuple[DPQEmbedding, Integers, Array, tuple[str, ...]]


def checked(layer: DPQEmbedding, method: str, ids: Any, d_output: Any, words: Sequence[str] | None) -> Inputs:
    """Check what a trace starts from; errors as in `sx`."""
    if layer.method != method:
        raise ValueError(f"layer has method={layer.method!r}; it takes {method!r}")
    if layer.dtype != np.float64:
        raise TypeError(f"layer computes in {layer.dtype}; it takes float64, or differences are noise")
    if layer.gumbel or layer.ema_decay or layer.restart_after:
        raise ValueError("gumbel, ema_decay and restart_after have no surrogate to check against")
    if on_host(layer.kernels) is not layer.kernels:
        raise TypeError("layer is on a device; a trace takes one of the host, backend='numpy' say")
    ids = to_numpy(checks.as_ids(ids, layer.vocab_size)).flatten()
    if not ids.size:
        raise ValueError("ids is empty; it takes at least one")
    names = tuple(map(str, ids)) if words is None else tuple(words)
    if len(names) != len(ids):
        raise ValueError(f"words has {len(names)}; for {len(ids)} ids it takes as many")
    g = checks.as_table(d_output, "d_output").astype(np.float64)
    if g.shape != (len(ids), layer.dim):
        raise ValueError(f"d_output has shape {g.shape}; it takes {(len(ids), layer.dim)}")
    return layer, ids, g, names


def batch(layer: DPQEmbedding, ids: Integers, words: tuple) -> Steps[tuple[Any, ...]]:
    """Ids to distinct rows, how often each comes, its queries and its word."""
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
    said = "What queries are compared with" + ", and the values, too" * (layer.method == "vq")
    whose = "One codebook for all groups." if layer.shared else "A codebook for each group."
    yield Step("keys", "", layer.params["keys"].copy(), f"{said}. {whose}", "jkc")
    if layer.method == "sx":
        yield Step(
            "values", "", layer.params["values"].copy(), "What stands for a code in the output.", "jkc"
        )
    return rows, inverse, counts, query, names


def normalised(
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
        "So no code is picked by nearly all rows only because its responses are larger.",
        "ijk",
        names,
        picked=kernels.argmax_code(logits),
    )
    return logits, variance


def outputs(
    layer: DPQEmbedding,
    codes: Integers,
    of: str,
    inverse: Integers,
    g: Array,
    words: tuple,
    names: tuple,
) -> Steps[tuple[Array, float]]:
    """Take the values of the codes; the output of each token, and the loss <g, output>."""
    book = "values" if layer.method == "sx" else "keys"
    values = layer.params[book]
    yield Step(
        "codes",
        f"codes[i,j] = argmaxₖ {of}[i,j,k]",
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


def upstream(
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


def table_gradient(
    layer: DPQEmbedding, rows: Integers, d_query: Array, loss: Any, names: tuple, rng: Any
) -> Step:
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
