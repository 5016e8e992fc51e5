"""Low rank inside the network: a look-up of k numbers a word, and one linear map to their rows.

A. Acharya, R. Goel, A. Metallinou, I. Dhillon, *Online Embedding Compression for Text Classification using
Low Rank Matrix Factorization*, AAAI 2019: train with the full table, replace it by its two best factors, and
train the whole network on. No bias and no nonlinearity between the factors: at full rank nothing changes.

`BlockEmbedding` gives each block of words a layer of its own; with low-rank ones it is what the factors of
GroupReduce (P. Chen, Si, Li, Chelba, Hsieh, NeurIPS 2018) are retrained with.
"""

from collections.abc import Sequence
from fractions import Fraction
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from dpq_ref import backend as backends
from dpq_ref import checks
from dpq_ref.compressed import BlockTable, FactoredTable
from dpq_ref.compressed.blocks import ranks_within
from dpq_ref.kernels.reference import Array
from dpq_ref.layers.embedding import FullEmbedding, RowSparse, TableLayer


class LowRankEmbedding(TableLayer):
    """Table in two factors, left @ right, both trained.

    Parameters
    ----------
    left : (vocab_size, k) array_like, float32 or float64
    right : (k, dim) array_like
        Both are copied; right takes the dtype of left.
    backend : {"numba", "numpy", "cupy"}, optional

    Attributes
    ----------
    params : {"left": (vocab_size, k), "right": (k, dim)}
    grads : {"left": RowSparse, "right": (k, dim)}, after `backward`

    Raises
    ------
    TypeError, ValueError
        If the factors do not fit, or hold NaN or infinity.

    Examples
    --------
    >>> table = np.random.default_rng(0).standard_normal((100, 8), np.float32)
    >>> layer = LowRankEmbedding.from_table(table, rank_kept(100, 8, 0.5))
    >>> layer.params["left"].shape, layer.forward([[3, 3], [7, 0]]).shape
    ((100, 3), (2, 2, 8))
    >>> round(layer.export().compression_ratio, 2)
    2.47
    """

    def __init__(self, left: Any, right: Any, *, backend: str | None = None):
        left, right = checks.as_table(left, "left"), checks.as_table(right, "right")
        if left.shape[1] != len(right):
            raise ValueError(f"left {left.shape} and right {right.shape} do not make a table")
        super().__init__(len(left), right.shape[1], None, left.dtype, backend)
        factors = {"left": left, "right": right}
        self.params = {name: self.kernels.xp.array(x, self.dtype) for name, x in factors.items()}

    @classmethod
    def from_table(cls, table: Any, rank: int, *, backend: str | None = None) -> Self:
        """Start from the best factors of a table, those of its truncated singular value decomposition.

        Of A = U S V^T, left takes U S, which is A V, and right V^T. The paper's U and S V^T make the same
        table, but did worse when Adam trained them on, whose steps are large for the small entries of U.

        Parameters
        ----------
        table : (n, d) array_like, float32 or float64
        rank : int from 1 to min(n, d)
        backend : {"numba", "numpy", "cupy"}, optional

        Raises
        ------
        TypeError, ValueError
            If the table has NaN or infinity, or the rank is out of range.
        """
        table = checks.as_table(table, "table")
        _check_rank(rank, table.shape)
        return cls(*_best_factors(table, rank), backend=backend)

    @classmethod
    def random(
        cls,
        vocab_size: int,
        dim: int,
        *,
        rank: int,
        init: Any = "glorot",
        rng: int | np.random.Generator = 0,
        dtype: Any = np.float32,
        backend: Any = None,
    ) -> Self:
        """Start at random: left as the table of a `FullEmbedding`, right so that the product varies as much.

        Parameters
        ----------
        vocab_size, dim : int
        rank : int
        init : "glorot" or float
            As in `FullEmbedding`.
        rng : int or numpy.random.Generator
        dtype : float32 or float64
        backend : {"numba", "numpy", "cupy"} or kernel set, optional
        """
        rng = np.random.default_rng(rng)
        _check_rank(rank, (vocab_size, dim))
        table = FullEmbedding(vocab_size, dim, init=init, rng=rng, dtype=dtype, backend="numpy").params[
            "table"
        ]
        right = rng.uniform(-1, 1, (rank, dim)) * np.sqrt(3 / rank)
        return cls(table[:, :rank], right.astype(table.dtype), backend=backend)

    def forward(self, ids: Any, train: bool = True, mask: NDArray[np.bool_] | None = None) -> Array:
        """Rows of the product.

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
        rows, inverse, _ = self._distinct(ids)
        rows = self.kernels.xp.asarray(rows)
        left = self.kernels.gather(self.params["left"], rows)
        self._batch = (rows, inverse, mask, left) if train else None
        return self._spread(self.kernels.combine(left, self.params["right"]), inverse, mask)

    def backward(self, d_output: Array) -> None:
        """Fill `grads` from the gradient d of the output, (..., dim): d right^T and left^T d."""
        rows, inverse, mask, left = self._last_batch()
        d_rows = self._collect(d_output, inverse, mask, len(rows))
        d_left = RowSparse(rows, d_rows @ self.params["right"].T, self.vocab_size)
        self.grads = {"left": d_left, "right": left.T @ d_rows}

    def export(self) -> FactoredTable:
        """Artefact with both factors, 32 k (n + d) bits in float32."""
        left, right = (backends.to_numpy(self.params[name]).copy() for name in ("left", "right"))
        return FactoredTable(left, right)


def rank_kept(n: int, d: int, reduction: Any) -> int:
    """Rank that keeps a fraction p = 1 - reduction of an n x d table, k = floor(p n d / (n + d)).

    In exact arithmetic, with a float taken as the decimal number that it prints: k (n + d) <= p n d <
    (k + 1) (n + d). So p = 1 is not the table again: its factors would be larger.

    Parameters
    ----------
    n, d : int
    reduction : float, Fraction or decimal string, from 0 to below 1

    Raises
    ------
    ValueError
        If it is out of range, or so high that no rank is left.

    Examples
    --------
    >>> rank_kept(400_000, 300, 0.9), rank_kept(10_000, 200, 0.9), rank_kept(10_000, 1500, 0.9)
    (29, 19, 130)
    """
    n, d = checks.positive("n", n), checks.positive("d", d)
    try:
        kept = 1 - Fraction(str(reduction))
    except (ValueError, ZeroDivisionError):
        kept = Fraction(0)
    if not 0 < kept <= 1:
        raise ValueError(f"reduction={reduction}; it takes a number from 0 to below 1")
    rank = kept * n * d // (n + d)
    if rank == 0:
        most = 1 - Fraction(n + d, n * d)
        raise ValueError(
            f"reduction={reduction} leaves rank 0; a table of {n} x {d} takes at most {float(most):.4g}"
        )
    return rank


def _best_factors(table: Array, rank: int) -> tuple[Array, Array]:
    """Best left (n, k) and right (k, d): A V and V^T, V the first k right singular vectors, in float64.

    A table of no fewer rows than columns goes through its Gram matrix, A^T A, quick and good to about 1e-8.
    """
    from scipy import linalg
    from threadpoolctl import threadpool_limits

    exact, d = table.astype(np.float64), table.shape[1]
    with threadpool_limits(1, "blas"):
        if len(exact) >= d:
            right = linalg.eigh(exact.T @ exact, subset_by_index=(d - rank, d - 1))[1].T[::-1]
        else:
            right = linalg.svd(exact, full_matrices=False)[2][:rank]
        left = exact @ right.T
    return left.astype(table.dtype), right.astype(table.dtype)


def _check_rank(rank: int, shape: tuple[int, ...]) -> None:
    if checks.positive("rank", rank) > min(shape):
        raise ValueError(f"rank={rank}; a table of {shape} takes at most {min(shape)}")


class BlockEmbedding(TableLayer):
    """Words in blocks, each block with a layer of its own.

    The row of a word is the row of its block's layer at the word's index among the words of that block, in
    the order of the vocabulary.

    Parameters
    ----------
    block_of_word : (vocab_size,) integers
    blocks : sequence of LowRankEmbedding and FullEmbedding
        As many rows each as the block has words; of one dim, dtype and back end.

    Attributes
    ----------
    params, grads : dict
        Those of all blocks, as "block.name".

    Raises
    ------
    TypeError, IndexError, ValueError
        If blocks are not as said.

    Examples
    --------
    >>> layers = [LowRankEmbedding(np.eye(2), np.eye(2)), LowRankEmbedding([[5.0]], [[1.0, 2.0]])]
    >>> BlockEmbedding([0, 1, 0], layers).forward([0, 1, 2])
    array([[ 1.,  0.],
           [ 5., 10.],
           [ 0.,  1.]])
    """

    def __init__(self, block_of_word: Any, blocks: Sequence[Any]):
        block_of_word = checks.as_ids(block_of_word, len(blocks), "block_of_word")
        if block_of_word.ndim != 1 or not len(block_of_word):
            raise ValueError(f"block_of_word has shape {block_of_word.shape}; it takes (vocab_size,)")
        counts = np.bincount(block_of_word, minlength=len(blocks))
        first = blocks[0]
        for b, (layer, count) in enumerate(zip(blocks, counts, strict=True)):
            has = (layer.vocab_size, layer.dim, layer.dtype)
            if has != (count, first.dim, first.dtype) or layer.kernels is not first.kernels:
                raise ValueError(
                    f"blocks[{b}] has {has[0]} rows of {has[1]} {has[2]}; it takes {count} rows of "
                    f"{first.dim} {first.dtype}, and the kernels of all others"
                )
        super().__init__(len(block_of_word), first.dim, None, first.dtype, "numpy")
        self.kernels = first.kernels
        self.blocks = list(blocks)
        self.block_of_word = block_of_word
        self.index = ranks_within(block_of_word, counts)
        self.params = self._named("params")

    @classmethod
    def from_table(cls, table: BlockTable, *, backend: str | None = None) -> Self:
        """Start from compressed blocks, those of GroupReduce say: codes of factors become numbers.

        Parameters
        ----------
        table : BlockTable
        backend : {"numba", "numpy", "cupy"}, optional
        """
        layers: list[Any] = []
        for left, right in map(table.block, range(len(table.ranks))):
            if right is None:
                dense = FullEmbedding(*left.shape, dtype=left.dtype, backend=backend)
                dense.params["table"][:] = dense.kernels.xp.asarray(left)
                layers.append(dense)
            else:
                layers.append(LowRankEmbedding(left, right, backend=backend))
        return cls(table.block_of_word, layers)

    def _named(self, kind: str) -> dict[str, Any]:
        return {f"{b}.{k}": v for b, of in enumerate(self.blocks) for k, v in getattr(of, kind).items()}

    def forward(self, ids: Any, train: bool = True, mask: NDArray[np.bool_] | None = None) -> Array:
        """Rows, each from the layer of its block.

        Parameters
        ----------
        ids : (...,) integers in [0, vocab_size)
        train : bool
            Passed on to the blocks.
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
        rows, inverse, _ = self._distinct(ids)
        block = self.block_of_word[rows]
        members = [np.flatnonzero(block == b) for b in range(len(self.blocks))]
        xp = self.kernels.xp
        output = xp.empty((len(rows), self.dim), self.dtype)
        for layer, mine in zip(self.blocks, members, strict=True):
            output[xp.asarray(mine)] = layer.forward(self.index[rows[mine]], train)
        self._batch = (inverse, mask, members) if train else None
        return self._spread(output, inverse, mask)

    def backward(self, d_output: Array) -> None:
        """Fill `grads` from the gradient of the output, (..., dim)."""
        inverse, mask, members = self._last_batch()
        d_rows = self._collect(d_output, inverse, mask, sum(map(len, members)))
        for layer, mine in zip(self.blocks, members, strict=True):
            layer.backward(d_rows[self.kernels.xp.asarray(mine)])
        self.grads = self._named("grads")

    def export(self) -> BlockTable:
        """Artefact with the blocks of the words and the factors of the blocks.

        Raises
        ------
        ValueError
            If a low-rank block has full rank: it is smaller as a `FullEmbedding`.
        """
        params = [{k: backends.to_numpy(v) for k, v in layer.params.items()} for layer in self.blocks]
        lefts = [p["left"] if "left" in p else p["table"] for p in params]
        return BlockTable.from_factors(self.block_of_word, lefts, [p.get("right") for p in params])
