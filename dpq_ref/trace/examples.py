"""Small inputs to trace: a batch of words in a layer drawn at random, and a generated table."""

from typing import Any

import numpy as np

from dpq_ref import checks
from dpq_ref.kernels.reference import Array
from dpq_ref.layers.embedding import DPQEmbedding
from dpq_ref.trace.blocks import group_reduce
from dpq_ref.trace.lloyd import kmeans
from dpq_ref.trace.nearest import vq
from dpq_ref.trace.rotation import itq, opq
from dpq_ref.trace.softmax import sx
from dpq_ref.trace.steps import Step

TOKENS = "the value of the code"
MOST = 1_000_000  # rows of the table of given ids

_LAYER = ("tokens", "dim", "n_groups", "n_codes", "shared", "additive", "batch_norm")
OPTIONS = {
    "sx": (*_LAYER, "query_width", "temperature"),
    "vq": (*_LAYER, "codebook_weight", "commitment_weight"),
    "kmeans": ("rows", "dim", "n_groups", "n_codes"),
    "opq": ("rows", "dim", "n_groups", "n_codes"),
    "itq": ("rows", "dim", "n_bits"),
    "group-reduce": ("rows", "dim", "n_blocks", "ratio"),
}


def example(method: str, seed: int = 0, **options: Any) -> tuple[str, list[Step]]:
    """Trace a small example of a method.

    Parameters
    ----------
    method : a key of `OPTIONS`
    seed : int
    options
        Of the method, those named in `OPTIONS`.

    Returns
    -------
    title, steps

    Raises
    ------
    ValueError
        For an option that the method does not have, or one out of range.

    Examples
    --------
    >>> title, steps = example("vq", tokens="3 1 3")
    >>> title
    'DPQ-VQ, one training step: 3 tokens, 2 distinct; D = 2 groups, K = 4 codes; table 4 × 6'
    """
    if method not in OPTIONS:
        raise ValueError(f"method={method!r}; it takes {', '.join(map(repr, OPTIONS))}")
    for name, value in options.items():
        if name not in OPTIONS[method]:
            raise ValueError(
                f"{name}: method={method!r} does not have it; it has {', '.join(OPTIONS[method])}"
            )
        if isinstance(value, float) and not np.isfinite(value):
            raise ValueError(f"{name}={value}; it takes a finite number")
    return (of_layer if method in ("sx", "vq") else of_table)(method, seed=seed, **options)


def ids_of(tokens: str) -> tuple[list[int], list[str], int]:
    """Look words up in the built-in corpus.

    Parameters
    ----------
    tokens : str
        Words between spaces; where all are numbers, ids.

    Returns
    -------
    ids, words, vocabulary size

    Raises
    ------
    ValueError
        If there is none, or a word is not in the corpus.

    Examples
    --------
    >>> ids_of("4 2 4")
    ([4, 2, 4], ['id 4', 'id 2', 'id 4'], 5)
    """
    words = tokens.lower().split()
    if not words:
        raise ValueError("tokens is empty; it takes words or ids")
    if all(word.isdecimal() for word in words):
        ids = list(map(int, words))
        if max(ids) >= MOST:
            raise ValueError(f"tokens: {max(ids)} is too large for an id; it takes less than {MOST}")
        return ids, [f"id {i}" for i in ids], max(ids) + 1
    from dpq_ref.datasets import load_builtin

    vocabulary = load_builtin(progress=True).vocabulary
    number = {word: i for i, word in enumerate(vocabulary)}
    unknown = [word for word in words if word not in number]
    if unknown:
        raise ValueError(
            f"tokens: {', '.join(map(repr, unknown))} not in the vocabulary of the built-in corpus; "
            f"it takes its words, as {', '.join(map(repr, vocabulary[100:104]))}, or ids as numbers alone"
        )
    return [number[word] for word in words], words, len(vocabulary)


def of_layer(
    method: str,
    *,
    tokens: str = TOKENS,
    dim: int = 6,
    n_groups: int = 2,
    n_codes: int = 4,
    seed: int = 0,
    **options: Any,
) -> tuple[str, list[Step]]:
    """Trace a batch through DPQ with random parameters in (-1, 1); id 0 is padding.

    Parameters
    ----------
    method : {"sx", "vq"}
    tokens : str
        As in `ids_of`.
    dim, n_groups, n_codes : int
    seed : int
    options
        Further ones of `DPQEmbedding`.

    Returns
    -------
    title, steps
    """
    ids, words, n = ids_of(tokens)
    layer = DPQEmbedding(
        n,
        dim,
        n_groups=n_groups,
        n_codes=n_codes,
        method=method,
        padding_id=0,
        rng=seed,
        dtype=np.float64,
        backend="numpy",
        init=1.0,
        **options,
    )
    g = np.random.default_rng([seed, 1]).standard_normal((len(ids), dim))
    steps = (sx if method == "sx" else vq)(layer, ids, g, words=words, seed=seed)
    title = (
        f"DPQ-{method.upper()}, one training step: {len(ids)} tokens, {len(set(ids))} distinct; "
        f"D = {n_groups} groups, K = {n_codes} codes; table {n} × {dim}"
    )
    return title, steps


def of_table(
    method: str,
    *,
    rows: int | None = None,
    dim: int | None = None,
    n_groups: int = 2,
    n_codes: int = 3,
    n_bits: int = 3,
    n_blocks: int = 3,
    ratio: float = 2.0,
    seed: int = 0,
) -> tuple[str, list[Step]]:
    """Trace one iteration of a classical method on a generated table.

    Parameters
    ----------
    method : {"kmeans", "opq", "itq", "group-reduce"}
    rows, dim : int, optional
        Of the table; by default 24 x 6 for GroupReduce, and 16 x 4.
    n_groups, n_codes : int
        Of k-means and OPQ.
    n_bits : int
        Of ITQ.
    n_blocks, ratio : int, float
        Of GroupReduce.
    seed : int

    Returns
    -------
    title, steps
    """
    usual = (24, 6) if method == "group-reduce" else (16, 4)
    rows, dim = usual[0] if rows is None else rows, usual[1] if dim is None else dim
    X, weights = generated(rows, dim, seed)
    if method == "itq":
        title = f"Iterative quantization, one iteration: {n_bits} bits a row"
        steps = itq(X, weights, n_bits=n_bits, seed=seed)
    elif method == "group-reduce":
        title = f"GroupReduce, start and one round: {n_blocks} blocks, {ratio:g} times smaller"
        steps = group_reduce(X, weights, n_blocks=n_blocks, ratio=ratio, seed=seed)
    else:
        name = "k-means" if method == "kmeans" else "Optimized product quantization"
        title = f"{name}, one iteration: D = {n_groups} groups, K = {n_codes} codes"
        trace = kmeans if method == "kmeans" else opq
        steps = trace(X, weights, n_groups=n_groups, n_codes=n_codes, seed=seed)
    return f"{title}; table {rows} × {dim}", steps


def generated(n: int, d: int, seed: int) -> tuple[Array, Array]:
    """Table whose directions differ in variance, turned, and frequencies as those of words.

    Examples
    --------
    >>> table, weights = generated(4, 2, 0)
    >>> table.shape, weights.tolist()
    ((4, 2), [100.0, 50.0, 33.0, 25.0])
    """
    checks.positive("rows", n), checks.positive("dim", d)
    rng = np.random.default_rng(seed)
    turned = np.linalg.qr(rng.standard_normal((d, d)))[0]
    return rng.standard_normal((n, d)) * 0.7 ** np.arange(d) @ turned, np.maximum(
        100 // np.arange(1.0, n + 1), 1
    )
