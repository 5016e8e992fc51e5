"""What the paper leaves open about codebooks: other starts, moving averages, restarts. All off by default."""

from typing import Any

import numpy as np

from dpq_ref import backend as backends
from dpq_ref import checks, quantize
from dpq_ref.kernels.reference import Array
from dpq_ref.kmeans import KMeans
from dpq_ref.layers.initial import glorot


def initial(
    init: Any, shapes: dict[str, tuple[int, ...]], rng: np.random.Generator, dtype: np.dtype
) -> dict[str, Array]:
    """Draw the parameters of an embedding layer, or take its table or queries from a given one.

    Parameters
    ----------
    init : "glorot", float, or (vocab_size, dim) array
        Glorot uniform, fans of a codebook as released: D' * K and s; uniform in (-init, init); or a table.
    shapes : dict
        "query" (n, D*s_q), "keys" (D', K, s_q), "values" (D', K, s); or "table" (n, d).
    rng : numpy.random.Generator
    dtype : float32 or float64

    Raises
    ------
    ValueError
        If `init` is none of these, or a table whose rows do not make the queries.
    """
    if backends.on_device(init):
        init = backends.to_numpy(init)
    if isinstance(init, str) and init != "glorot":
        raise ValueError(f"init={init!r}; it takes 'glorot', a number or a table")
    if np.ndim(init) == 0 and not isinstance(init, str):
        if not 0 < init < np.inf:
            raise ValueError(f"init={init}; it takes 'glorot', a finite number above 0 or a table")
        return {name: rng.uniform(-init, init, shape).astype(dtype) for name, shape in shapes.items()}
    arrays = {name: glorot(rng, shape, dtype) for name, shape in shapes.items()}
    if not isinstance(init, str):
        rows = "table" if "table" in shapes else "query"
        table, (n, width) = checks.as_table(init, "init"), shapes[rows]
        repeats = width // table.shape[1]  # each group of an additive layer sees the whole row
        fits = repeats and table.shape == (n, width // repeats)
        if not fits or shapes.get("keys") != shapes.get("values"):
            raise ValueError(
                f"init has shape {table.shape}, which does not make queries of shape {(n, width)}; "
                "it takes (vocab_size, dim), and query_width at its default"
            )
        arrays[rows] = np.tile(table, (1, repeats)).astype(dtype)
    return arrays


def kmeans_start(params: dict[str, Array], n_codes: int, kernels: Any, rng: np.random.Generator) -> None:
    """Put centroids of the queries in place of the keys, and of the values where these are as wide."""
    books, _, width = params["keys"].shape
    groups = params["query"].shape[1] // width
    points = params["query"].reshape(-1, 1 if books == 1 else groups, width)
    centroids = KMeans(n_codes, kernels=kernels, rng=rng).fit(points).centroids
    for name in ("keys", "values"):
        if name in params and params[name].shape == centroids.shape:
            params[name] = centroids.copy()


class Upkeep:
    """Keys of DPQ-VQ that follow their queries by moving averages, and start again where nobody picks them.

    Parameters
    ----------
    keys : (D or 1, K, s), changed in place
    ema_decay : float or None
        Each key becomes the quotient of two moving averages, the sum of the queries that picked it over their
        number (van den Oord, Vinyals, Kavukcuoglu, 2017, appendix A.1). None: no averages.
    restart_after : int or None
        Batches without a pick after which a key moves onto a random query of the batch. None: never.
    kernels : kernel set
    rng : numpy.random.Generator
    """

    def __init__(
        self,
        keys: Array,
        *,
        ema_decay: float | None,
        restart_after: int | None,
        kernels: Any,
        rng: np.random.Generator,
    ):
        self.keys, self.kernels, self.rng = keys, kernels, rng
        self.ema_decay, self.restart_after = ema_decay, restart_after
        self.counts = kernels.xp.zeros(keys.shape[:2], keys.dtype)
        self.sums = kernels.xp.zeros_like(keys)
        self.idle = kernels.xp.zeros(keys.shape[:2], np.int64)

    @property
    def buffers(self) -> dict[str, Array]:
        """Averages and counts, changed in place by whoever goes on from a checkpoint."""
        return {"counts": self.counts, "sums": self.sums, "idle": self.idle}

    def update(self, tape: quantize.Tape) -> None:
        """Move the keys after a batch."""
        K = self.keys.shape[1]
        counts = self.kernels.xp.asarray(tape.counts)
        usage = quantize.tie(self.kernels.count_codes(tape.codes, counts, K), self.keys)
        if self.ema_decay is not None:
            weighted = counts[:, None, None] * tape.query
            sums = quantize.tie(self.kernels.sum_by_code(tape.codes, weighted, K), self.keys)
            self._follow(usage, sums, self.ema_decay)
        if self.restart_after is not None and tape.counts.any():  # padding alone says nothing about any key
            self._restart(usage, tape, self.restart_after)

    def _follow(self, usage: Array, sums: Array, decay: float) -> None:
        kept, new = self.keys.dtype.type(decay), self.keys.dtype.type(1 - decay)
        self.counts = kept * self.counts + new * usage
        self.sums = kept * self.sums + new * sums
        # The quotient of a key that was not picked stays as it is; after many such batches it would be 0 / 0.
        where = self.kernels.xp.where
        picked = (usage > 0)[..., None]
        self.keys[...] = where(picked, self.sums / where(picked, self.counts[..., None], new), self.keys)

    def _restart(self, usage: Array, tape: quantize.Tape, after: int) -> None:
        self.idle = self.kernels.xp.where(usage > 0, 0, self.idle + 1)
        kept = np.flatnonzero(tape.counts)
        for book, code in zip(*np.nonzero(backends.to_numpy(self.idle) >= after), strict=True):
            group = self.rng.integers(tape.query.shape[1]) if len(self.keys) == 1 else book
            self.keys[book, code] = tape.query[self.rng.choice(kept), group]
            self.idle[book, code] = self.counts[book, code] = 0
            self.sums[book, code] = 0
