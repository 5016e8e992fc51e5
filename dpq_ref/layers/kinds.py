"""Embedding layers by name, as the command line and the presets call them."""

import inspect
from typing import Any

import numpy as np

from dpq_ref.layers.embedding import DPQEmbedding, FullEmbedding
from dpq_ref.layers.low_rank import LowRankEmbedding

KINDS: dict[str, tuple[Any, dict[str, Any]]] = {
    "full": (FullEmbedding, {}),
    "dpq-sx": (DPQEmbedding, {"method": "sx"}),
    "dpq-vq": (DPQEmbedding, {"method": "vq"}),
    "low-rank": (LowRankEmbedding.random, {}),
}


def make_embedding(
    kind: str,
    vocab_size: int,
    dim: int,
    *,
    init: Any = "glorot",
    padding_id: int | None = None,
    rng: int | np.random.Generator = 0,
    dtype: Any = np.float32,
    backend: Any = None,
    **parameters: Any,
) -> Any:
    """Make an embedding layer that starts at random.

    Parameters
    ----------
    kind : {"full", "dpq-sx", "dpq-vq", "low-rank"}
    vocab_size, dim : int
    init, padding_id, rng, dtype, backend
        As in `DPQEmbedding`; a low-rank layer has no padding.
    **parameters
        Those of the layer: n_groups, n_codes, ... of DPQ; rank.

    Returns
    -------
    layer

    Raises
    ------
    ValueError, TypeError
        For an unknown kind, parameters that it does not take or that are missing or wrong.

    Examples
    --------
    >>> type(make_embedding("low-rank", 100, 8, rank=2)).__name__
    'LowRankEmbedding'
    """
    if kind not in KINDS:
        raise ValueError(f"kind={kind!r}; it takes one of {', '.join(KINDS)}")
    make, fixed = KINDS[kind]
    common = {"init": init, "rng": rng, "dtype": dtype, "backend": backend} | fixed
    if kind != "low-rank":
        common["padding_id"] = padding_id
    takes = inspect.signature(make).parameters
    own = {name: p.default for name, p in takes.items() if p.kind is p.KEYWORD_ONLY and name not in common}
    if unknown := parameters.keys() - own.keys():
        raise ValueError(f"kind={kind!r} does not take {', '.join(sorted(unknown))}")
    if (
        missing := {name for name, default in own.items() if default is inspect.Parameter.empty}
        - parameters.keys()
    ):
        raise ValueError(f"kind={kind!r} needs {', '.join(sorted(missing))}")
    return make(vocab_size, dim, **common, **parameters)
