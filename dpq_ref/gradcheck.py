"""Are the gradients right? Finite differences along random directions, in float64.

A straight-through gradient is not the derivative of the hard forward pass, which is flat almost everywhere.
It is the exact derivative of something else, its *surrogate*. `surrogates` states that for each parameter of
an embedding layer, token by token and in the plainest NumPy, without the layer's distinct ids, counts or
kernels; `check_embedding` holds the layer's gradients to it.

==========  ===============================================================================================
DPQ-SX      query, keys: <g, softmax-weighted mean of the values>, batch norm differentiated
            values: <g, hard output>, codes held
DPQ-VQ      query: <g, query in place of the output>, and the commitment loss, codes and keys held
            keys: the codebook loss, codes and queries held
full        table: <g, output>
==========  ===============================================================================================
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from dpq_ref.kernels.reference import Array, Integers
from dpq_ref.layers.embedding import DPQEmbedding, FullEmbedding, RowSparse
from dpq_ref.quantize import EPSILON

Loss = Callable[[Array], float]


@dataclass(frozen=True)
class Check:
    """Slope of a loss along one random direction.

    Attributes
    ----------
    analytic : float, <gradient, direction>
    numeric : float, from finite differences
    """

    analytic: float
    numeric: float

    @property
    def error(self) -> float:
        """Difference, relative to the larger of the two (0 if both are 0)."""
        scale = max(abs(self.analytic), abs(self.numeric))
        return abs(self.analytic - self.numeric) / scale if scale else 0.0


def directional(loss: Loss, x: Array, gradient: Array, rng: np.random.Generator, step: float = 1e-4) -> Check:
    """Compare a gradient with the slope of its loss along a random direction.

    The slope is the central difference of fourth order, (8 (f(h) - f(-h)) - (f(2h) - f(-2h))) / 12h.

    Parameters
    ----------
    loss : callable
        Array like x -> float; must not change its argument.
    x : array, float64
    gradient : array, shape of x
    rng : numpy.random.Generator
    step : float
        h, times the root mean square of x (or 1 if x is 0).

    Returns
    -------
    Check

    Raises
    ------
    TypeError
        If x is not float64: in less the differences are noise.

    Examples
    --------
    >>> x = np.array([1.0, 2.0])
    >>> directional(lambda x: float((x**3).sum()), x, 3 * x**2, np.random.default_rng(0)).error < 1e-9
    True
    >>> directional(lambda x: float((x**3).sum()), x, 2 * x**2, np.random.default_rng(0)).error < 1e-9
    False
    """
    if x.dtype != np.float64:
        raise TypeError(f"x must be float64, got {x.dtype}")
    direction = rng.standard_normal(x.shape)
    scale = float(np.sqrt(np.mean(x**2))) if x.size else 0.0
    h = step * (scale or 1.0)
    f = [loss(x + k * h * direction) for k in (1, -1, 2, -2)]
    numeric = (8 * (f[0] - f[1]) - (f[2] - f[3])) / (12 * h)
    return Check(float((gradient * direction).sum()), float(numeric))


def surrogates(layer: Any, ids: Integers, d_output: Array) -> dict[str, Loss]:
    """State what each gradient of an embedding layer is the exact gradient of.

    Parameters
    ----------
    layer : FullEmbedding or DPQEmbedding, float64
    ids : (...,) integers
    d_output : (..., dim)
        Upstream gradient g, held constant.

    Returns
    -------
    dict of callables
        For each parameter, that parameter's array -> float, the others as they are in the layer.
    """
    tokens, g = ids.ravel(), d_output.reshape(-1, layer.dim)
    if isinstance(layer, FullEmbedding):
        return {"table": lambda table: float((g * table[tokens]).sum())}
    D, K = layer.n_groups, layer.n_codes
    fixed = {name: array.copy() for name, array in layer.params.items()}
    kept = np.ones(len(tokens)) if layer.padding_id is None else (tokens != layer.padding_id).astype(float)
    g_picked = np.repeat(g[:, None] / D, D, axis=1) if layer.additive else g.reshape(len(g), D, -1)

    def queries(table: Array) -> Array:
        return table[tokens].reshape(len(tokens), D, -1)

    def full(book: Array) -> Array:
        return np.broadcast_to(book, (D, *book.shape[1:]))

    def logits(q: Array, keys: Array) -> Array:
        if layer.method == "sx":
            r = np.einsum("tjc,jkc->tjk", q, full(keys))
        else:
            r = -((q[:, :, None] - full(keys)) ** 2).sum(axis=3)
        if not layer.batch_norm or not kept.any():
            return r
        weight = kept[:, None, None] / (kept.sum() * D)
        mean = (weight * r).sum(axis=(0, 1))
        variance = (weight * (r - mean) ** 2).sum(axis=(0, 1))
        return (r - mean) / np.sqrt(variance + EPSILON)

    codes = logits(queries(fixed["query"]), fixed["keys"]).argmax(axis=2)
    one_hot = np.eye(K)[codes]

    if layer.method == "sx":

        def output(assignment: Array, values: Array) -> float:
            return float((g_picked * np.einsum("tjk,jkc->tjc", assignment, full(values))).sum())

        def soft(query: Array, keys: Array) -> float:
            p = np.exp(logits(queries(query), keys) / layer.temperature)
            return output(p / p.sum(axis=2, keepdims=True), fixed["values"])

        return {
            "query": lambda query: soft(query, fixed["keys"]),
            "keys": lambda keys: soft(fixed["query"], keys),
            "values": lambda values: output(one_hot, values),
        }

    def mean_square(query: Array, keys: Array) -> float:
        residual = np.einsum("tjk,jkc->tjc", one_hot, full(keys)) - queries(query)
        entries = max(kept.sum() * residual[0].size, 1.0)
        return float((kept[:, None, None] * residual**2).sum() / entries)

    alpha, beta = layer.codebook_weight, layer.commitment_weight

    def straight_through(query: Array) -> float:
        return float((g_picked * queries(query)).sum()) + beta * mean_square(query, fixed["keys"])

    return {"query": straight_through, "keys": lambda keys: alpha * mean_square(fixed["query"], keys)}


def check_embedding(
    layer: Any, ids: Integers, *, seed: int = 0, n_directions: int = 3, d_output: Array | None = None
) -> dict[str, Check]:
    """Check every gradient of an embedding layer, for a random upstream gradient, against its surrogate.

    Parameters
    ----------
    layer : FullEmbedding or DPQEmbedding, float64
        Without Gumbel noise, moving averages or restarts, which have no surrogate.
    ids : (...,) integers
    seed : int
    n_directions : int
        Random directions tried for each parameter; the one with the largest error is returned.
    d_output : (..., dim), optional
        Upstream gradient; drawn by default.

    Returns
    -------
    dict of Check

    Raises
    ------
    ValueError
        If the layer has an extra that has no surrogate.
    AssertionError
        If an input or a parameter was changed, or a gradient is missing.

    Examples
    --------
    >>> layer = DPQEmbedding(20, 12, n_groups=3, n_codes=4, dtype=np.float64)
    >>> checks = check_embedding(layer, np.array([[1, 2, 1], [5, 7, 1]]))
    >>> max(check.error for check in checks.values()) < 1e-7
    True
    """
    if isinstance(layer, DPQEmbedding) and (layer.gumbel or layer.ema_decay or layer.restart_after):
        raise ValueError("gumbel, ema_decay and restart_after have no surrogate to check against")
    rng = np.random.default_rng(seed)
    if d_output is None:
        d_output = rng.standard_normal((*ids.shape, layer.dim))
    inputs = layer.params | {"ids": ids, "d_output": d_output}
    before = {name: array.copy() for name, array in inputs.items()}
    layer.forward(ids, train=True)
    layer.backward(d_output)
    for name, array in inputs.items():
        if layer.params.get(name, array) is not array or not np.array_equal(before[name], array):
            raise AssertionError(f"forward or backward changed {name}")
    expected = getattr(layer, "trainable", set(layer.params))
    if set(layer.grads) != expected:
        raise AssertionError(f"gradients of {sorted(layer.grads)}, expected {sorted(expected)}")
    losses = surrogates(layer, ids, d_output)
    worst = {}
    for name, gradient in layer.grads.items():
        dense = gradient.to_dense() if isinstance(gradient, RowSparse) else gradient
        tries = [directional(losses[name], layer.params[name], dense, rng) for _ in range(n_directions)]
        worst[name] = max(tries, key=lambda check: check.error)
    return worst
