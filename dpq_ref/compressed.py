"""The artefact that every method ends in: look-up, honest bits, and one file.

A file is plain safetensors: named arrays, and the configuration as JSON in the metadata under "dpq_ref", with
a SHA-256 over configuration and arrays. Bits are those of the arrays as stored; codes are packed at
ceil(log2 K) bits, so a file has `sum(bits) / 8` bytes and a header.
"""

import hashlib
import json
import os
import tempfile
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import NDArray

from dpq_ref import backend, checks
from dpq_ref.kernels.reference import Array, Integers

FORMAT = 1
LOOKUP_BLOCK = 1 << 16  # rows decoded at a time by `reconstruct`


class Compressed(ABC):
    """A compressed embedding table of `vocab_size` rows and `dim` columns.

    Attributes
    ----------
    vocab_size, dim : int
    dtype : dtype of what `lookup` returns
    """

    kind: ClassVar[str]
    vocab_size: int
    dim: int
    dtype: np.dtype

    @abstractmethod
    def arrays(self) -> dict[str, np.ndarray]:
        """Arrays that are stored, by name."""

    @abstractmethod
    def config(self) -> dict[str, Any]:
        """Numbers and switches that are stored beside the arrays; with these, the arguments of the class."""

    @abstractmethod
    def bits(self) -> dict[str, int]:
        """Bits stored, by part."""

    @abstractmethod
    def _rows(self, ids: Integers) -> Array:
        """Rows of valid ids (b,), as (b, dim)."""

    def lookup(self, ids: Any) -> Array:
        """Rows of the table, computed from what is stored.

        Parameters
        ----------
        ids : (...,) integers in [0, vocab_size)

        Returns
        -------
        (..., dim)

        Raises
        ------
        TypeError, IndexError
            If ids are not integers, or out of range.
        """
        ids = checks.as_ids(ids, self.vocab_size)
        return self._rows(ids.ravel()).reshape(*ids.shape, self.dim)

    def reconstruct(self) -> Array:
        """Whole table, (vocab_size, dim)."""
        table = np.empty((self.vocab_size, self.dim), self.dtype)
        for start in range(0, self.vocab_size, LOOKUP_BLOCK):
            stop = min(start + LOOKUP_BLOCK, self.vocab_size)
            table[start:stop] = self._rows(np.arange(start, stop))
        return table

    @property
    def compression_ratio(self) -> float:
        """32 bits an entry of the full table over the bits stored (that of the paper; nothing left out)."""
        return 32 * self.vocab_size * self.dim / sum(self.bits().values())

    def save(self, path: str | os.PathLike) -> None:
        """Write the file whole or not at all.

        Parameters
        ----------
        path : path-like
        """
        from safetensors.numpy import save

        arrays = {name: as_stored(array) for name, array in self.arrays().items()}
        config = self.config()
        head = {"format": FORMAT, "kind": self.kind, "sha256": _digest(self.kind, config, arrays)}
        write_atomically(path, save(arrays, {"dpq_ref": json.dumps(head | config)}))

    def __repr__(self) -> str:  # noqa: D105
        return (
            f"{type(self).__name__}(vocab_size={self.vocab_size}, dim={self.dim}, "
            f"bits={sum(self.bits().values())}, compression_ratio={self.compression_ratio:.2f})"
        )


class ProductTable(Compressed):
    """Rows of D codes into values: what DPQ and product quantization store.

    Parameters
    ----------
    codes : (bytes,) uint8, packed as by `kernels.reference.pack_codes`
    values : (D or 1, K, s); additive (D or 1, K, dim)
    vocab_size, n_groups : int
    additive : bool
        A row is the mean of the D values rather than their concatenation.

    Examples
    --------
    >>> import numpy as np
    >>> values = np.float32([[[1], [2]], [[3], [4]]])
    >>> table = ProductTable.from_codes(np.array([[0, 1], [1, 1]]), values)
    >>> table.lookup([1, 0])
    array([[2., 4.],
           [1., 4.]], dtype=float32)
    >>> table.bits()
    {'codes': 4, 'codebooks': 128}
    """

    kind = "product"

    def __init__(
        self,
        codes: NDArray[np.uint8],
        values: Array,
        *,
        vocab_size: int,
        n_groups: int,
        additive: bool = False,
    ):
        self.vocab_size = checks.positive("vocab_size", vocab_size, least=0)
        self.n_groups = checks.positive("n_groups", n_groups)
        self.additive = bool(additive)
        self.n_codes, self.n_bits = _codes_and_bits(values)
        self.packed, self.values = as_stored(codes), as_stored(values)
        self.dim = values.shape[2] * (1 if additive else n_groups)
        self.dtype = checks.as_real(self.values.dtype)
        if (
            codes.dtype != np.uint8
            or codes.shape != (-(-self.bits()["codes"] // 8),)
            or len(values) not in (1, n_groups)
        ):
            raise ValueError(
                f"codes {codes.dtype} {codes.shape} and values {values.shape} do not make "
                f"{vocab_size} rows of {n_groups} groups"
            )

    @classmethod
    def from_codes(cls, codes: Integers, values: Array, *, additive: bool = False) -> Self:
        """Pack codes beside their values.

        Parameters
        ----------
        codes : (vocab_size, D) integers in [0, K)
        values : (D or 1, K, s); additive (D or 1, K, dim)
        additive : bool

        Raises
        ------
        TypeError, IndexError, ValueError
            If codes are not integers, not in [0, K), or do not fit the values.
        """
        n_codes, n_bits = _codes_and_bits(values)
        packed = backend.get().pack_codes(checks.as_ids(codes, n_codes, "codes"), n_bits)
        return cls(packed, values, vocab_size=codes.shape[0], n_groups=codes.shape[1], additive=additive)

    @property
    def codes(self) -> Integers:
        """Unpacked codes, (vocab_size, D) int32."""
        return self._codes(np.arange(self.vocab_size))

    def arrays(self) -> dict[str, np.ndarray]:  # noqa: D102
        return {"codes": self.packed, "values": self.values}

    def config(self) -> dict[str, Any]:  # noqa: D102
        return {"vocab_size": self.vocab_size, "n_groups": self.n_groups, "additive": self.additive}

    def bits(self) -> dict[str, int]:
        """Codes, n D ceil(log2 K) bits, and the codebooks."""
        codes = self.vocab_size * self.n_groups * self.n_bits
        return {"codes": codes, "codebooks": 8 * self.values.nbytes}

    def _codes(self, ids: Integers) -> Integers:
        return backend.get().unpack_codes(self.packed, self.n_bits, ids, self.n_groups)

    def _rows(self, ids: Integers) -> Array:
        from dpq_ref.quantize import compose

        return compose(backend.get(), self._codes(ids), self.values, self.additive)


def _codes_and_bits(values: Array) -> tuple[int, int]:
    """K and the bits of a code, from the values."""
    if values.ndim != 3 or values.shape[2] < 1:
        raise ValueError(f"values must have shape (D or 1, K, s), got {values.shape}")
    n_codes = checks.number_of_codes(values.shape[1])
    return n_codes, (n_codes - 1).bit_length()


class LowRankTable(Compressed):
    """Rows as combinations of k directions, left @ right: truncated singular value decomposition.

    Parameters
    ----------
    left : (vocab_size, k)
    right : (k, dim)

    Examples
    --------
    >>> import numpy as np
    >>> LowRankTable(np.ones((1000, 1), np.float32), np.ones((1, 10), np.float32)).bits()
    {'factors': 32320}
    """

    kind = "low_rank"

    def __init__(self, left: Array, right: Array):
        if left.ndim != 2 or right.ndim != 2 or left.shape[1] != right.shape[0] or left.dtype != right.dtype:
            raise ValueError(
                f"factors {left.dtype} {left.shape} and {right.dtype} {right.shape} do not make a table"
            )
        self.left, self.right = as_stored(left), as_stored(right)
        self.vocab_size, self.dim, self.dtype = len(left), right.shape[1], checks.as_real(self.left.dtype)

    def arrays(self) -> dict[str, np.ndarray]:  # noqa: D102
        return {"left": self.left, "right": self.right}

    def config(self) -> dict[str, Any]:  # noqa: D102
        return {}

    def bits(self) -> dict[str, int]:
        """32 k (n + d) bits."""
        return {"factors": 8 * (self.left.nbytes + self.right.nbytes)}

    def _rows(self, ids: Integers) -> Array:
        return self.left[ids] @ self.right


class ScalarTable(Compressed):
    """Every entry on one of 2**b levels, evenly spaced from -clip to clip.

    Parameters
    ----------
    codes : (bytes,) uint8, packed
    clip : (1,) float32
    vocab_size, dim, n_bits : int

    Examples
    --------
    >>> import numpy as np
    >>> table = ScalarTable.from_codes(np.array([[0, 1, 3]]), 3.0, 2)
    >>> table.lookup(0)
    array([-3., -1.,  3.], dtype=float32)
    >>> table.bits()
    {'codes': 6, 'scales': 32}
    """

    kind = "scalar"

    def __init__(self, codes: NDArray[np.uint8], clip: Array, *, vocab_size: int, dim: int, n_bits: int):
        self.packed, self.clip = as_stored(codes), as_stored(clip)
        self.vocab_size = checks.positive("vocab_size", vocab_size, least=0)
        self.dim = checks.positive("dim", dim)
        self.n_bits = _number_of_bits(n_bits)
        self.dtype = self.clip.dtype
        if (
            codes.dtype != np.uint8
            or codes.shape != (-(-self.bits()["codes"] // 8),)
            or self.clip.dtype != np.float32
            or self.clip.shape != (1,)
        ):
            raise ValueError(
                f"codes {codes.dtype} {codes.shape} and clip {clip.dtype} {clip.shape} do not make "
                f"{vocab_size} x {dim} of {n_bits} bits"
            )

    @classmethod
    def from_codes(cls, codes: Integers, clip: float, n_bits: int) -> Self:
        """Pack levels.

        Parameters
        ----------
        codes : (vocab_size, dim) integers in [0, 2**n_bits)
        clip : float, at least 0
        n_bits : int from 1 to 16

        Raises
        ------
        TypeError, IndexError, ValueError
            If codes are not integers, or a number is out of its range.
        """
        codes = checks.as_ids(codes, 1 << _number_of_bits(n_bits), "codes")
        packed = backend.get().pack_codes(codes, n_bits)
        n, dim = codes.shape
        return cls(packed, np.array([clip], np.float32), vocab_size=n, dim=dim, n_bits=n_bits)

    def arrays(self) -> dict[str, np.ndarray]:  # noqa: D102
        return {"codes": self.packed, "clip": self.clip}

    def config(self) -> dict[str, Any]:  # noqa: D102
        return {"vocab_size": self.vocab_size, "dim": self.dim, "n_bits": self.n_bits}

    def bits(self) -> dict[str, int]:
        """Codes, n d b bits, and 32 of the clip."""
        return {"codes": self.vocab_size * self.dim * self.n_bits, "scales": 8 * self.clip.nbytes}

    def _rows(self, ids: Integers) -> Array:
        levels = uniform_levels(self.clip[0], self.n_bits)
        return levels[backend.get().unpack_codes(self.packed, self.n_bits, ids, self.dim)]


def _number_of_bits(n_bits: int) -> int:
    if checks.positive("n_bits", n_bits) > 16:
        raise ValueError(f"n_bits={n_bits}; it takes at most 16")
    return n_bits


def uniform_levels(clip: float, n_bits: int) -> NDArray[np.float32]:
    """Levels -r + 2 r j / (2**b - 1), j = 0 ... 2**b - 1, in float32 (May et al., NeurIPS 2019)."""
    top = (1 << n_bits) - 1
    return (np.float64(clip) * (2 * np.arange(top + 1) / top - 1)).astype(np.float32)


KINDS = {cls.kind: cls for cls in (ProductTable, LowRankTable, ScalarTable)}


def load(path: str | os.PathLike) -> Compressed:
    """Read a file that `Compressed.save` wrote.

    Parameters
    ----------
    path : path-like

    Returns
    -------
    Compressed

    Raises
    ------
    FileNotFoundError
    ValueError
        If the file is not one of ours, cut off, altered, or of a newer format.

    Examples
    --------
    >>> import tempfile
    >>> table = ProductTable.from_codes(np.array([[0, 1], [1, 1]]), np.ones((2, 2, 3), np.float32))
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     table.save(folder + "/table.safetensors")
    ...     load(folder + "/table.safetensors")
    ProductTable(vocab_size=2, dim=6, bits=388, compression_ratio=0.99)
    """
    from safetensors import SafetensorError, safe_open

    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no file {path}")
    try:
        with safe_open(path, framework="numpy") as file:
            metadata = file.metadata() or {}
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
    except (SafetensorError, AttributeError, TypeError) as error:  # the latter two: dtypes that NumPy lacks
        raise ValueError(f"{path} is damaged or not a safetensors file: {error}") from error
    try:
        config = json.loads(metadata["dpq_ref"])
        digest, version, kind = config.pop("sha256"), config.pop("format"), config.pop("kind")
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise ValueError(f"{path} holds no compressed table of dpq_ref: {error!r} in its metadata") from error
    if version != FORMAT or kind not in list(KINDS):
        raise ValueError(
            f"{path} has format {version!r}, kind {kind!r}; this version reads {FORMAT}, {sorted(KINDS)}"
        )
    if digest != _digest(kind, config, arrays):
        raise ValueError(f"{path} is damaged: its contents do not match their checksum")
    try:
        return KINDS[kind](**arrays, **config)
    except TypeError as error:
        raise ValueError(f"{path} is not a valid {kind!r} table: {error}") from error


def as_stored(array: np.ndarray) -> np.ndarray:
    """Array in C order and little-endian, as it is written; a view if it is that already."""
    return np.ascontiguousarray(array, array.dtype.newbyteorder("<"))


def _digest(kind: str, config: dict[str, Any], arrays: dict[str, np.ndarray]) -> str:
    """SHA-256 of kind, configuration and arrays."""
    digest = hashlib.sha256(json.dumps([kind, config], sort_keys=True).encode())
    for name, array in sorted(arrays.items()):
        digest.update(f"{name} {array.dtype.str} {array.shape}".encode())
        digest.update(array.data)
    return digest.hexdigest()


def write_atomically(path: str | os.PathLike, content: bytes) -> None:
    """Write a file through a temporary one beside it, so that a reader sees all of it or none."""
    path = Path(path)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
