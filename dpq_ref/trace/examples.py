"""Small inputs to trace: a batch of words in a layer drawn at random, and a generated table."""

from typing import Any

import numpy as np

from dpq_ref.layers.embedding import DPQEmbedding
from dpq_ref.trace import dpq
from dpq_ref.trace.steps import Step

TOKENS = "the value of the code"
MOST = 1_000_000  # rows of the table of given ids

_LAYER = ("tokens", "dim", "n_groups", "n_codes", "shared", "additive", "batch_norm")
OPTIONS = {
    "sx": (*_LAYER, "query_width", "temperature"),
    "vq": (*_LAYER, "codebook_weight", "commitment_weight"),
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
    'DPQ-VQ: 3 tokens, 2 of them distinct, D = 2 groups, K = 4 codes, table 4 × 6'
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
    return of_layer(method, seed=seed, **options)


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
    ([4, 2, 4], ['4', '2', '4'], 5)
    """
    words = tokens.lower().split()
    if not words:
        raise ValueError("tokens is empty; it takes words or ids")
    if all(word.isdecimal() for word in words):
        ids = list(map(int, words))
        if max(ids) >= MOST:
            raise ValueError(f"tokens: {max(ids)} is too large for an id; it takes less than {MOST}")
        return ids, words, max(ids) + 1
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
    steps = (dpq.sx if method == "sx" else dpq.vq)(layer, ids, g, words=words, seed=seed)
    title = (
        f"DPQ-{method.upper()}: {len(ids)} tokens, {len(set(ids))} of them distinct, D = {n_groups} groups, "
        f"K = {n_codes} codes, table {n} × {dim}"
    )
    return title, steps
