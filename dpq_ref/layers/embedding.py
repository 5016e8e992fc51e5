"""Embedding layers: the full table, and DPQ in its place (Chen, Li, Sun, ICML 2020, section 2).

Both have the same head `(vocab_size, dim, ...)`, `forward(ids, train)`, `backward(d_output)`, and arrays by
name in `params` and `grads`. A batch works on its distinct ids: a word that comes a hundred times costs as
much as one that comes once.

Ids are numbers of the host, where they are checked and the distinct ones found: on a device somebody would
have to wait for how many there are. What is computed with them is where the kernels are.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dpq_ref import backend as backends
from dpq_ref import checks, quantize
from dpq_ref.compressed import Compressed, DenseTable, ProductTable
from dpq_ref.kernels.reference import Array, Integers
from dpq_ref.layers import codebook
from dpq_ref.metrics import CodeUsage, code_usage

EXPORT_BLOCK = 8192  # rows quantized at a time on export


@dataclass(frozen=True)
class RowSparse:
    """Gradient of a table that is zero outside some rows.

    Attributes
    ----------
    rows : (r,) integers, sorted and distinct
    values : (r, w)
    n_rows : int, rows of the table

    Examples
    --------
    >>> import numpy as np
    >>> RowSparse(np.array([2]), np.array([[5.0, 6.0]]), 3).to_dense()
    array([[0., 0.],
           [0., 0.],
           [5., 6.]])
    """

    rows: Integers
    values: Array
    n_rows: int

    def to_dense(self) -> Array:
        """Whole gradient, (n_rows, w)."""
        shape = (self.n_rows, self.values.shape[1])
        dense = backends.array_module(self.values).zeros(shape, self.values.dtype)
        dense[self.rows] = self.values
        return dense


class TableLayer:
    """Base of the layers that stand for a table: ids to distinct rows, and the gradient back to these.

    A subclass fills `params`, and computes the rows of distinct ids only: `forward` is `_distinct`, its rows,
    `_spread`; `backward` is `_last_batch`, `_collect`, its gradients. With a `mask` of the ids, (b, t) bool,
    the output is the mean of the rows kept of each text, (b, dim), and there is no array of (b, t, dim); the
    mask must stay as it is until `backward`.

    Parameters
    ----------
    vocab_size, dim : int
    padding_id : int or None
    dtype : float32 or float64
    backend : {"numba", "numpy", "cupy"} or None

    Attributes
    ----------
    params, grads : dict of arrays by name
    kernels : kernel set
    """

    def __init__(self, vocab_size: int, dim: int, padding_id: int | None, dtype: Any, backend: str | None):
        self.vocab_size = checks.positive("vocab_size", vocab_size)
        self.dim = checks.positive("dim", dim)
        if padding_id is not None:
            checks.as_ids(checks.positive("padding_id", padding_id, least=0), vocab_size, "padding_id")
        self.padding_id = padding_id
        self.dtype = checks.as_real(dtype)
        self.kernels = backends.get(backend)
        self.params: dict[str, Array] = {}
        self.grads: dict[str, Any] = {}
        self._batch: Any = None

    def _ids(self, ids: Any) -> Integers:
        """Ids on the host, checked."""
        return backends.to_numpy(checks.as_ids(ids, self.vocab_size))

    def _distinct(self, ids: Any) -> tuple[Any, Any, Any]:
        """Distinct rows, where each id is among them (of its shape), how often each comes; on the host."""
        ids = self._ids(ids)
        rows, inverse, counts = backends.on_host(self.kernels).distinct(ids.ravel())
        return rows, inverse.reshape(ids.shape), counts

    def _spread(self, output: Array, inverse: Integers, mask: Any) -> Array:
        inverse = self.kernels.xp.asarray(inverse)
        if mask is not None:
            return self.kernels.mean_pool(output, inverse, self.kernels.xp.asarray(mask))
        return self.kernels.gather(output, inverse.ravel()).reshape(*inverse.shape, self.dim)

    def _collect(self, d_output: Any, inverse: Integers, mask: Any, n_rows: int) -> Array:
        shape = (*(inverse.shape if mask is None else inverse.shape[:1]), self.dim)
        xp = self.kernels.xp
        d_output, inverse = xp.asarray(d_output, self.dtype), xp.asarray(inverse)
        if d_output.shape != shape:
            raise ValueError(f"d_output must have the output's shape {shape}, got {d_output.shape}")
        if mask is not None:
            return self.kernels.mean_pool_backward(d_output, inverse, xp.asarray(mask), n_rows)
        return self.kernels.scatter_add(inverse.ravel(), d_output.reshape(inverse.size, self.dim), n_rows)

    def _last_batch(self) -> Any:
        if self._batch is None:
            raise RuntimeError("backward() needs a forward(ids, train=True) before it")
        return self._batch


class FullEmbedding(TableLayer):
    """Embedding table without compression.

    Parameters
    ----------
    vocab_size, dim : int
    padding_id : int, optional
        Accepted so that the layers are interchangeable; a row like any other here.
    rng : int or numpy.random.Generator
    dtype : float32 or float64
    backend : {"numba", "numpy", "cupy"}, optional
    init : "glorot", float, or (vocab_size, dim) array
        Glorot uniform; uniform in (-init, init); or the table to start from.

    Attributes
    ----------
    params : {"table": (vocab_size, dim)}
    grads : {"table": RowSparse}, after `backward`

    Examples
    --------
    >>> layer = FullEmbedding(100, 8)
    >>> layer.forward([[3, 3], [7, 0]]).shape
    (2, 2, 8)
    """

    def __init__(
        self,
        vocab_size: int,
        dim: int,
        *,
        padding_id: int | None = None,
        rng: int | np.random.Generator = 0,
        dtype: Any = np.float32,
        backend: str | None = None,
        init: Any = "glorot",
    ):
        super().__init__(vocab_size, dim, padding_id, dtype, backend)
        host = codebook.initial(init, {"table": (vocab_size, dim)}, np.random.default_rng(rng), self.dtype)
        self.params = {"table": self.kernels.xp.asarray(host["table"])}

    def forward(self, ids: Any, train: bool = True, mask: NDArray[np.bool_] | None = None) -> Array:
        """Rows of the table.

        Parameters
        ----------
        ids : (...,) integers in [0, vocab_size)
        train : bool
            Keep what `backward` needs.
        mask : (b, t) bool, optional
            Pool the rows of ids (b, t): the mean of those kept.

        Returns
        -------
        (..., dim); with a mask (b, dim)

        Raises
        ------
        TypeError, IndexError
            If ids are not integers, or out of range.
        """
        ids = self._ids(ids)
        self._batch = (ids.copy(), mask) if train else None  # the caller may write to its own
        return self._spread(self.params["table"], ids, mask)

    def backward(self, d_output: Array) -> None:
        """Fill `grads` from the gradient of the output, of its shape."""
        ids, mask = self._last_batch()
        rows, inverse, _ = self._distinct(ids)
        values = self._collect(d_output, inverse, mask, len(rows))
        self.grads = {"table": RowSparse(self.kernels.xp.asarray(rows), values, self.vocab_size)}

    def export(self) -> Compressed:
        """Artefact with the table as it is, of ratio 1 in float32."""
        return DenseTable(backends.to_numpy(self.params["table"]).copy())


class DPQEmbedding(TableLayer):
    """Embedding that learns K-way D-dimensional codes while the task trains (paper, section 2).

    Parameters
    ----------
    vocab_size, dim : int
    n_groups : int
        D, the digits of a code. It divides `dim`, unless `additive`.
    n_codes : int
        K, the values of a digit, from 2 to 65,536.
    method : {"sx", "vq"}
        Softmax with keys and values apart, or nearest key with one codebook for both.
    shared : bool
        One codebook for all groups.
    additive : bool
        Values as wide as the output; the output is their mean over the groups.
    query_width : int, optional
        Width of a query and key, SX only; by default that of a value.
    batch_norm : bool
        Batch norm of the responses, as released: the statistics of the batch in training, running ones
        (momentum 0.99) in evaluation.
    temperature : float
        Of the softmax in the backward of SX.
    codebook_weight, commitment_weight : float
        Of the codebook loss of VQ; its gradient is part of `backward`.
    padding_id : int, optional
        A token that enters neither the batch-norm statistics nor the codebook loss. None: all do.
    rng : int or numpy.random.Generator
        Draws the initial parameters and the Gumbel noise.
    dtype : float32 or float64
    backend : {"numba", "numpy", "cupy"}, optional
    trainable : iterable of {"query", "keys", "values"}, optional
        Parameters that get gradients; by default all.
    init : "glorot", float, or (vocab_size, dim) array
        Glorot uniform; uniform in (-init, init); or a table to start from: its rows become the queries.
    kmeans : bool
        Start the codebooks from k-means of the initial queries.
    gumbel : bool
        Training draws codes with Gumbel noise, SX only; one draw for each distinct id of a batch.
    ema_decay : float, optional
        VQ: the keys follow moving averages of their queries with this decay, in place of a gradient.
    restart_after : int, optional
        VQ: a key that no kept token picked in so many batches in a row restarts at a random query.

    Attributes
    ----------
    params : dict
        "query" (vocab_size, D*s), "keys" (D or 1, K, s), and for SX "values" (D or 1, K, s).
    grads : dict
        After `backward`: "query" a RowSparse, the others arrays.
    running_mean, running_variance : (K,)
        Of the responses, used in evaluation.
    codebook_loss : float
        Of the last training batch, weights included (VQ; 0 for SX).

    Raises
    ------
    ValueError, TypeError
        For arguments that do not fit together; the message names them.

    Examples
    --------
    >>> import numpy as np
    >>> layer = DPQEmbedding(1000, 12, n_groups=4, n_codes=8)
    >>> output = layer.forward([[1, 2, 3], [3, 2, 2]])
    >>> layer.backward(np.ones_like(output))
    >>> layer.grads["query"].rows
    array([1, 2, 3])
    >>> round(layer.export().compression_ratio, 1)  # 12,000 bits of codes, 3,072 of values
    25.5
    """

    def __init__(
        self,
        vocab_size: int,
        dim: int,
        *,
        n_groups: int,
        n_codes: int,
        method: str = "sx",
        shared: bool = False,
        additive: bool = False,
        query_width: int | None = None,
        batch_norm: bool = True,
        temperature: float = 1.0,
        codebook_weight: float = 1.0,
        commitment_weight: float = 0.0,
        padding_id: int | None = None,
        rng: int | np.random.Generator = 0,
        dtype: Any = np.float32,
        backend: str | None = None,
        trainable: Iterable[str] | None = None,
        init: Any = "glorot",
        kmeans: bool = False,
        gumbel: bool = False,
        ema_decay: float | None = None,
        restart_after: int | None = None,
    ):
        super().__init__(vocab_size, dim, padding_id, dtype, backend)
        self.n_groups = checks.positive("n_groups", n_groups)
        self.n_codes = checks.number_of_codes(n_codes)
        width = dim if additive else checks.group_width(dim, n_groups)
        self.query_width = width if query_width is None else checks.positive("query_width", query_width)
        names = ("query", "keys", "values") if method == "sx" else ("query", "keys")
        trainable = frozenset(names if trainable is None else trainable)
        for holds, message in (
            (method in ("sx", "vq"), f"method={method!r}; it takes 'sx' or 'vq'"),
            (temperature > 0, f"temperature={temperature}; it takes a number above 0"),
            (
                codebook_weight >= 0 and commitment_weight >= 0,
                f"codebook_weight={codebook_weight}, commitment_weight={commitment_weight}; "
                "both take 0 or more",
            ),
            (
                method == "sx" or self.query_width == width,
                f"query_width={query_width}: the queries of method='vq' are as wide as its values, {width}",
            ),
            (not gumbel or method == "sx", "gumbel=True needs method='sx'"),
            (ema_decay is None or method == "vq", "ema_decay needs method='vq'"),
            (
                ema_decay is None or 0 < ema_decay < 1,
                f"ema_decay={ema_decay}; it takes a number between 0 and 1",
            ),
            (restart_after is None or method == "vq", "restart_after needs method='vq'"),
            (trainable <= set(names), f"trainable={sorted(trainable)}; method={method!r} has {names}"),
            (
                "keys" in trainable or (ema_decay is None and restart_after is None),
                f"trainable={sorted(trainable)} holds the keys still; ema_decay and restart_after move them",
            ),
        ):
            if not holds:
                raise ValueError(message)
        if restart_after is not None:
            checks.positive("restart_after", restart_after)
        self.method = method
        self.shared = shared
        self.additive = additive
        self.batch_norm = batch_norm
        self.temperature = temperature
        self.codebook_weight = codebook_weight
        self.commitment_weight = commitment_weight
        self.trainable = trainable
        self.gumbel = gumbel
        self.ema_decay = ema_decay
        self.restart_after = restart_after
        self.rng = np.random.default_rng(rng)
        self.codebook_loss = 0.0

        books, xp = 1 if shared else n_groups, self.kernels.xp
        shapes = {
            "query": (vocab_size, n_groups * self.query_width),
            "keys": (books, n_codes, self.query_width),
            "values": (books, n_codes, width),
        }
        host = codebook.initial(init, shapes, self.rng, self.dtype)
        self.params = {name: xp.asarray(host[name]) for name in names}
        if kmeans:
            codebook.kmeans_start(self.params, n_codes, self.kernels, self.rng)
        self.running_mean = xp.zeros(n_codes, self.dtype)
        self.running_variance = xp.ones(n_codes, self.dtype)
        self._upkeep = codebook.Upkeep(
            self.params["keys"],
            ema_decay=ema_decay,
            restart_after=restart_after,
            kernels=self.kernels,
            rng=self.rng,
        )

    @property
    def statistics(self) -> quantize.Statistics | None:
        """Running mean and variance (K,) that evaluation normalises with, or None without batch norm."""
        return (self.running_mean, self.running_variance) if self.batch_norm else None

    @property
    def buffers(self) -> dict[str, Array]:
        """What training changes without a gradient: statistics, and what averages and restarts keep."""
        buffers = {}
        if self.batch_norm:
            buffers = {"running_mean": self.running_mean, "running_variance": self.running_variance}
        if self.ema_decay is not None or self.restart_after is not None:
            buffers |= self._upkeep.buffers
        return buffers

    def _query(self, rows: Integers) -> Array:
        query = self.kernels.gather(self.params["query"], self.kernels.xp.asarray(rows))
        return query.reshape(len(rows), self.n_groups, self.query_width)

    def forward(self, ids: Any, train: bool = True, mask: NDArray[np.bool_] | None = None) -> Array:
        """Embed ids.

        Parameters
        ----------
        ids : (...,) integers in [0, vocab_size)
        train : bool
            True: batch statistics, which also move the running ones, and what `backward` needs is kept.
            False: running statistics; the output is that of the exported artefact, bit by bit.
        mask : (b, t) bool, optional
            Pool the rows of ids (b, t): the mean of those kept. Statistics are of all ids, as without.

        Returns
        -------
        (..., dim); with a mask (b, dim)

        Raises
        ------
        TypeError, IndexError
            If ids are not integers, or out of range.
        """
        rows, inverse, counts = self._distinct(ids)
        if not train:
            self._batch = None
            output = quantize.compose(self.kernels, self._codes(rows), self._values, self.additive)
            return self._spread(output, inverse, mask)
        counts = counts.astype(self.dtype)
        if self.padding_id is not None:
            counts[rows == self.padding_id] = 0
        output, tape = self._train_forward(self._query(rows), counts)
        if tape.statistics is not None:
            kept, new = self.dtype.type(quantize.MOMENTUM), self.dtype.type(1 - quantize.MOMENTUM)
            self.running_mean = kept * self.running_mean + new * tape.statistics[0]
            self.running_variance = kept * self.running_variance + new * tape.statistics[1]
        self.codebook_loss = tape.loss
        self._batch = rows, inverse, mask, tape
        return self._spread(output, inverse, mask)

    def _train_forward(self, query: Array, counts: Array) -> tuple[Array, quantize.Tape]:
        p = self.params
        if self.method == "vq":
            return quantize.vq_forward(
                self.kernels,
                query,
                p["keys"],
                counts,
                batch_norm=self.batch_norm,
                additive=self.additive,
                codebook_weight=0.0 if self.ema_decay else self.codebook_weight,
                commitment_weight=self.commitment_weight,
            )
        noise = None
        if self.gumbel:
            drawn = self.rng.gumbel(size=(len(query), self.n_groups, self.n_codes))
            noise = self.kernels.xp.asarray(drawn.astype(self.dtype))
        return quantize.sx_forward(
            self.kernels,
            query,
            p["keys"],
            p["values"],
            counts,
            batch_norm=self.batch_norm,
            temperature=self.temperature,
            additive=self.additive,
            noise=noise,
        )

    def backward(self, d_output: Array) -> None:
        """Fill `grads` from the gradient of the output, of its shape.

        For VQ they include the gradient of the codebook loss. Moving averages and restarts happen here, too.

        Raises
        ------
        ValueError
            If `d_output` does not have the shape of the last output.
        RuntimeError
            If the last `forward` was not in training mode.
        """
        rows, inverse, mask, tape = self._last_batch()
        d_rows = self._collect(d_output, inverse, mask, len(rows))
        step = quantize.sx_backward if self.method == "sx" else quantize.vq_backward
        d_query, *d_books = step(self.kernels, d_rows, tape)
        d_query = d_query.reshape(len(rows), self.n_groups * self.query_width)
        grads = {
            "query": RowSparse(self.kernels.xp.asarray(rows), d_query, self.vocab_size),
            **dict(zip(("keys", "values"), d_books, strict=False)),
        }
        if self.ema_decay is not None:
            del grads["keys"]
        if self.ema_decay is not None or self.restart_after is not None:
            self._upkeep.update(tape)
        self.grads = {name: grads[name] for name in grads if name in self.trainable}

    @property
    def _values(self) -> Array:
        return self.params["values" if self.method == "sx" else "keys"]

    def _codes(self, rows: Integers) -> Integers:
        return quantize.codes_of(
            self.kernels, self.method, self._query(rows), self.params["keys"], self.statistics
        )

    def codes(self, ids: Any) -> Integers:
        """Codes in evaluation mode.

        Parameters
        ----------
        ids : (...,) integers in [0, vocab_size)

        Returns
        -------
        (..., D) int32 in [0, K)
        """
        rows, inverse, _ = self._distinct(ids)
        return self._codes(rows)[self.kernels.xp.asarray(inverse)]

    def all_codes(self) -> Integers:
        """Codes of all rows in evaluation mode, (vocab_size, D) int32 on the host."""
        n, step = self.vocab_size, EXPORT_BLOCK
        blocks = [self.codes(np.arange(i, min(i + step, n))) for i in range(0, n, step)]
        return np.concatenate([backends.to_numpy(block) for block in blocks])

    def code_usage(self) -> CodeUsage:
        """Use of the codes by all rows of the table, in evaluation mode, group by group."""
        return code_usage(self.all_codes(), self.n_codes)

    def export(self) -> Compressed:
        """Artefact with packed codes and values, all that is needed after training (paper, section 2)."""
        values = backends.to_numpy(self._values).copy()
        return ProductTable.from_codes(self.all_codes(), values, additive=self.additive)
