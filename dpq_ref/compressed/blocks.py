"""Words in blocks, each block with factors of its own: GroupReduce (P. Chen et al., NeurIPS 2018)."""

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from dpq_ref import backend, checks
from dpq_ref.compressed.base import Compressed
from dpq_ref.compressed.files import StoredArray, as_stored
from dpq_ref.compressed.scalar import uniform_levels
from dpq_ref.kernels.reference import Array, Integers

Factor = tuple[Array, Array | None]  # left (n_p, r) and right (r, dim); without right, left is (n_p, dim)


class BlockTable(Compressed):
    """Rows left_p[j] @ right_p, p the block of the word, j its rank among the words of that block.

    A block of rank dim is dense: its rows are stored as they are, without a basis. The j of a word is summed
    up from the blocks at the first look-up, since the rows of a block are in the order of the vocabulary: it
    takes no bits in the file.

    Parameters
    ----------
    factors : flat; float32 or float64, or uint8, codes of n_bits each as by `kernels.reference.pack_codes`
        left_0, right_0, left_1, right_1, ... Codes stand for `uniform_levels(n_bits)` times their scale.
    blocks : (bytes,) uint8, optional
        Block of each word, packed at ceil(log2 c) bits; absent for one block.
    scales : (c, 2) float32, optional
        Of left and right, with codes; a dense block has no use for its second.
    vocab_size, dim : int
    ranks : sequence of c int
    n_bits : int, optional
        With codes.

    Examples
    --------
    >>> left, right = np.ones((3, 1), np.float32), np.float32([[1, 2]])
    >>> table = BlockTable.from_factors([0, 1, 0, 0], [left, np.float32([[5, 6]])], [right, None])
    >>> table.reconstruct().tolist()
    [[1.0, 2.0], [5.0, 6.0], [1.0, 2.0], [1.0, 2.0]]
    >>> table.bits()
    {'factors': 224, 'blocks': 4}
    """

    kind = "blocks"
    read = ("factors", "block_of_word", "_index", "_rights")

    def __init__(
        self,
        factors: NDArray,
        blocks: NDArray[np.uint8] | None = None,
        scales: Array | None = None,
        *,
        vocab_size: int,
        dim: int,
        ranks: Sequence[int],
        n_bits: int | None = None,
    ):
        self.vocab_size = checks.positive("vocab_size", vocab_size, least=0)
        self.dim = checks.positive("dim", dim)
        self.ranks, self.n_bits = [checks.positive("ranks", r) for r in ranks], n_bits
        self.factors = as_stored(factors)
        self.packed = None if blocks is None else as_stored(blocks)
        self.scales = None if scales is None else as_stored(scales)
        self.dtype = np.dtype(np.float32) if n_bits else checks.as_real(self.factors.dtype)
        c = len(self.ranks)
        stored = None if blocks is None else (-(-vocab_size * _width(c) // 8),)
        if (
            (n_bits is not None and not 1 <= n_bits <= 16)
            or not 1 <= c <= 1 << 16
            or max(self.ranks) > dim
            or vocab_size * min(self.ranks) * (n_bits or 1) > factors.size * (8 if n_bits else 1)
            or (n_bits is not None and factors.dtype != np.uint8)
            or (blocks is None) != (c == 1)
            or (blocks is not None and (blocks.dtype != np.uint8 or blocks.shape != stored))
            or (scales is None) != (n_bits is None)
            or (scales is not None and (scales.dtype != np.float32 or scales.shape != (c, 2)))
        ):
            raise self._refused()

    def _refused(self) -> ValueError:
        parts = ", ".join(f"{k} {a.dtype} {a.shape}" for k, a in self.arrays().items())
        return ValueError(f"{parts} do not make {self.vocab_size} x {self.dim} of ranks {self.ranks}")

    @cached_property
    def block_of_word(self) -> NDArray[np.uint16]:
        """Block of each word, (vocab_size,)."""
        blocks = np.zeros(self.vocab_size, np.uint16)
        if self.packed is not None:
            if stored := self._stored:
                stored["blocks"].check()
            width, ids = _width(len(self.ranks)), np.arange(self.vocab_size)
            blocks[:] = backend.get().unpack_codes(self.packed, width, ids, 1)[:, 0]
        if (blocks >= len(self.ranks)).any():
            raise ValueError(f"block {blocks.max()} of a word is not one of {len(self.ranks)}")
        return blocks

    @cached_property
    def counts(self) -> NDArray[np.int64]:
        """Words of each block, (c,)."""
        return np.bincount(self.block_of_word, minlength=len(self.ranks))

    @cached_property
    def _index(self) -> NDArray[np.int64]:
        """How many words before each have its block, (vocab_size,)."""
        return ranks_within(self.block_of_word, self.counts)

    @cached_property
    def _starts(self) -> NDArray[np.int64]:
        """Where each factor starts, and where the last ends, (2 c + 1,)."""
        right = [0 if r == self.dim else r * self.dim for r in self.ranks]
        sizes = np.ravel([self.counts * self.ranks, right], order="F")
        starts = np.concatenate([[0], np.cumsum(sizes)])
        numbers = int(starts[-1])
        if self.factors.shape != (numbers if self.n_bits is None else -(-numbers * self.n_bits // 8),):
            raise self._refused()
        return starts

    @classmethod
    def from_factors(
        cls,
        block_of_word: Any,
        lefts: Sequence[Array],
        rights: Sequence[Array | None],
        scales: Array | None = None,
        *,
        n_bits: int | None = None,
    ) -> Self:
        """Table of the factors of each block.

        Parameters
        ----------
        block_of_word : (vocab_size,) integers in [0, c)
        lefts : c arrays (n_p, r_p)
            Rows in the order of the vocabulary.
        rights : c arrays (r_p, dim), r_p below dim, or None for a dense block, whose left is (n_p, dim)
        scales : (c, 2) float32, optional
        n_bits : int, optional
            With it, factors are codes in [0, 2**n_bits) (integers), and have scales.

        Raises
        ------
        TypeError, IndexError, ValueError
            If the factors are not of one dtype, or do not fit each other or the blocks.
        """
        c = len(lefts)
        block_of_word = checks.as_ids(block_of_word, max(c, 1), "block_of_word")
        counts = np.bincount(block_of_word, minlength=c)
        dim = next((f.shape[1] for f in rights if f is not None), lefts[0].shape[1])
        flat = []
        for p, (left, right) in enumerate(zip(lefts, rights, strict=True)):
            shape = (left.shape[1], dim)
            if (
                left.shape != (counts[p], dim if right is None else min(left.shape[1], dim - 1))
                or (right is not None and right.shape != shape)
                or (right is not None and right.dtype != lefts[0].dtype)
                or left.dtype != lefts[0].dtype
            ):
                parts = " and ".join(f"{f.dtype} {f.shape}" for f in (left, right) if f is not None)
                raise ValueError(
                    f"block {p} has {counts[p]} words of {dim}; factors {parts} do not make them"
                )
            flat += [left.ravel()] if right is None else [left.ravel(), right.ravel()]
        factors = np.concatenate(flat)
        if n_bits is not None:
            codes = checks.as_ids(factors, 1 << n_bits, "codes")
            factors = backend.get().pack_codes(codes[:, None], n_bits)
        packed = None if c == 1 else backend.get().pack_codes(block_of_word[:, None], _width(c))
        ranks = [left.shape[1] for left in lefts]
        n = len(block_of_word)
        return cls(factors, packed, scales, vocab_size=n, dim=dim, ranks=ranks, n_bits=n_bits)

    def block(self, p: int) -> Factor:
        """Factors of a block as they are looked up: left (n_p, r), right (r, dim).

        A dense block has its rows (n_p, dim) and None.
        """
        self.check()
        return self._left(p, self.kernels.xp.arange(self.counts[p])), self._rights[p]

    def arrays(self) -> dict[str, np.ndarray]:  # noqa: D102
        arrays = {"factors": self.factors, "blocks": self.packed, "scales": self.scales}
        return {name: array for name, array in arrays.items() if array is not None}

    def config(self) -> dict[str, Any]:  # noqa: D102
        size = {"vocab_size": self.vocab_size, "dim": self.dim, "ranks": self.ranks}
        return size if self.n_bits is None else size | {"n_bits": self.n_bits}

    def bits(self) -> dict[str, int]:
        """Factors, sum of r_p (n_p + dim) numbers, n_p dim of a dense block; scales; n ceil(log2 c)."""
        numbers = int(self._starts[-1])
        bits = (
            {"factors": 8 * self.factors.nbytes} if self.n_bits is None else {"codes": numbers * self.n_bits}
        )
        if self.scales is not None:
            bits["scales"] = 8 * self.scales.nbytes
        return bits if self.packed is None else bits | {"blocks": self.vocab_size * _width(len(self.ranks))}

    def flops_per_lookup(self, weights: Array | None = None) -> float:
        """2 r_p dim, nothing in a dense block; codes are read from a list of levels."""
        return self._mean([0 if r == self.dim else 2 * r * self.dim for r in self.ranks], weights)

    def bytes_per_lookup(self, weights: Array | None = None) -> float:
        """Block of the word, its coefficients, the basis of the block; with codes the scales."""
        entry = self.n_bits / 8 if self.n_bits else self.dtype.itemsize
        scale = 4 if self.n_bits else 0
        dense = self.dim * entry + scale
        each = [dense if r == self.dim else r * (1 + self.dim) * entry + 2 * scale for r in self.ranks]
        return self._mean(each, weights) + _width(len(self.ranks)) / 8

    def _mean(self, each: Sequence[float], weights: Array | None) -> float:
        """Mean over words of what each block has."""
        shares = np.bincount(self.block_of_word, weights, len(self.ranks))
        return float(np.average(each, weights=shares))

    def _check(self, stored: Mapping[str, StoredArray], ids: Integers) -> None:
        if self.scales is not None:
            stored["scales"].check()
        numbers = stored["factors"]
        if numbers.done:
            return
        block_of, ranks = self.block_of_word[ids].astype(np.int64), np.array(self.ranks)
        row = self._starts[2 * block_of] + self._index[ids] * ranks[block_of]
        rights = 2 * np.unique(block_of) + 1  # all of a right, of a dense block nothing
        rights = rights[self._starts[rights] < self._starts[rights + 1]]
        first, last = np.r_[row, self._starts[rights]], np.r_[row + ranks[block_of], self._starts[rights + 1]]
        bits = self.n_bits or 8 * self.factors.itemsize
        numbers.check_spans(first * bits // 8, (last * bits + 7) // 8)

    def _decoded(self, p: int, side: int, positions: Integers) -> Array:
        """Numbers that codes of a factor, left 0 or right 1, stand for."""
        assert self.n_bits is not None and self.scales is not None
        codes = self.kernels.unpack_codes(self.factors, self.n_bits, positions.ravel(), 1)
        levels = uniform_levels(self.n_bits) * np.float64(self.scales[p, side])
        return self.kernels.xp.asarray(levels.astype(np.float32))[codes].reshape(positions.shape)

    def _left(self, p: int, index: Integers) -> Array:
        rank, start, stop = self.ranks[p], self._starts[2 * p], self._starts[2 * p + 1]
        if self.n_bits is None:
            return self.factors[start:stop].reshape(-1, rank)[index]
        return self._decoded(p, 0, start + index[:, None] * rank + self.kernels.xp.arange(rank))

    def _right(self, p: int) -> Array | None:
        start, stop = self._starts[2 * p + 1 : 2 * p + 3]
        if self.ranks[p] == self.dim:
            return None
        right = (
            self.factors[start:stop] if self.n_bits is None else self._decoded(p, 1, np.arange(start, stop))
        )
        return right.reshape(-1, self.dim)

    @cached_property
    def _rights(self) -> list[Array | None]:
        return [self._right(p) for p in range(len(self.ranks))]

    def _products_with(self, queries: Array) -> Callable[[Integers], Array]:
        xp = self.kernels.xp
        columns = [queries.T if right is None else right @ queries.T for right in self._rights]

        def products(ids: Integers) -> Array:
            found = xp.empty((len(queries), len(ids)), self.dtype)
            block_of = self.block_of_word[ids]
            for p in backend.to_numpy(xp.unique(block_of)):
                mine = xp.flatnonzero(block_of == p)
                left = self._left(p, self._index[ids[mine]])
                found[:, mine] = self.kernels.combine(left, columns[p]).T
            return found

        return products

    def _rows(self, ids: Integers) -> Array:
        xp = self.kernels.xp
        rows = xp.empty((len(ids), self.dim), self.dtype)
        block_of = self.block_of_word[ids]
        for p in backend.to_numpy(xp.unique(block_of)):
            mine = xp.flatnonzero(block_of == p)
            left, right = self._left(p, self._index[ids[mine]]), self._rights[p]
            rows[mine] = left if right is None else self.kernels.combine(left, right)
        return rows


def ranks_within(block_of_word: Integers, counts: Integers) -> NDArray[np.int64]:
    """How many words before each have its block, (n,).

    Examples
    --------
    >>> ranks_within(np.array([0, 1, 0, 0, 1]), np.array([3, 2]))
    array([0, 0, 1, 2, 1])
    """
    order = np.argsort(block_of_word, kind="stable")
    index = np.empty(len(block_of_word), np.int64)
    index[order] = np.arange(len(order)) - np.repeat(np.cumsum(counts) - counts, counts)
    return index


def _width(n_blocks: int) -> int:
    """Bits of the block of a word."""
    return (n_blocks - 1).bit_length()
