"""Files: written whole or not at all, mapped, and each block of an array checked before it is first used."""

import json
import os
import secrets
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO
from zlib import crc32

import numpy as np

from dpq_ref import backend as backends
from dpq_ref.kernels.reference import Integers

DTYPES = {  # of safetensors
    **{"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2", "U8": "u1", "I8": "i1", "U16": "<u2"},
    **{"I16": "<i2", "U32": "<u4", "I32": "<i4", "U64": "<u8", "I64": "<i8", "BOOL": "?"},
}
# Bytes under one checksum. In so many CRC-32 sees any three bits that change, and any 32 in a row
# (P. Koopman, *32-Bit Cyclic Redundancy Codes for Internet Applications*, DSN 2002).
BLOCK = 8192


class StoredArray:
    """An array of a file, left there or read, of which no byte is used before its block has been checked.

    Parameters
    ----------
    path : path-like
        For errors.
    name : str
    array : array in C order
    sums : (blocks,) uint32, CRC-32 of each BLOCK bytes, the last fewer
    """

    def __init__(self, path: str | os.PathLike, name: str, array: np.ndarray, sums: np.ndarray):
        self.path, self.name, self.array = path, name, array
        self._bytes, self._sums = _bytes(array), sums
        self._left = bytearray(b"\1" * len(sums))  # 0: checked
        self.done = not self._left

    def check(self, start: int = 0, stop: int | None = None) -> None:
        """Check the blocks of some bytes, by default of all.

        Raises
        ------
        ValueError
            If a bit of one has changed.
        """
        if not self.done:
            last = len(self._left) if stop is None else (stop - 1) // BLOCK + 1
            self._check(block for block in range(start // BLOCK, last) if self._left[block])

    def check_spans(self, starts: Integers, stops: Integers) -> None:
        """Check the blocks of many spans of bytes; starts and stops (b,), no span empty."""
        if self.done or not len(starts):
            return
        first, last = starts // BLOCK, (stops - 1) // BLOCK
        blocks = np.minimum(first[:, None] + np.arange((last - first).max() + 1), last[:, None])
        self._check(np.unique(blocks[np.frombuffer(self._left, bool)[blocks]]).tolist())

    def check_rows(self, ids: Integers, bits: int) -> None:
        """Check the blocks of rows of so many bits, one row after the other."""
        if not self.done:
            first = np.multiply(ids, bits, dtype=np.int64)
            self.check_spans(first // 8, (first + bits + 7) // 8)

    def _check(self, blocks: Any) -> None:
        block = None
        for block in blocks:
            start = block * BLOCK
            if crc32(self._bytes[start : start + BLOCK]) != self._sums[block]:
                raise ValueError(
                    f"{self.path} is damaged: {self.name!r} does not match its checksum from byte {start} on"
                )
            self._left[block] = 0
        if block is not None:
            self.done = 1 not in self._left


def checksums(arrays: dict[str, np.ndarray]) -> np.ndarray:
    """CRC-32 of each block of each array, by name: (blocks,) uint32."""
    parts = [_bytes(array) for _, array in sorted(arrays.items())]
    return np.array([crc32(p[i : i + BLOCK]) for p in parts for i in range(0, len(p), BLOCK)], np.uint32)


def with_checksums(
    path: str | os.PathLike, arrays: dict[str, np.ndarray], sums: np.ndarray
) -> dict[str, StoredArray]:
    """Arrays with their part of the checksums (ValueError where these are too few or too many)."""
    ends = np.cumsum([0, *(-(-array.nbytes // BLOCK) for _, array in sorted(arrays.items()))]).tolist()
    if sums.dtype != np.uint32 or sums.shape != (ends[-1],):
        raise ValueError(f"{path} is damaged: checksums {sums.dtype} {sums.shape} of {ends[-1]} blocks")
    return {
        name: StoredArray(path, name, arrays[name], sums[start:stop])
        for name, start, stop in zip(sorted(arrays), ends[:-1], ends[1:], strict=True)
    }


def _bytes(array: np.ndarray) -> Any:
    return array.reshape(-1).view(np.uint8)


def as_stored(array: np.ndarray) -> np.ndarray:
    """Array on the host, in C order and little-endian, as it is written; a view if it is that already."""
    array = backends.to_numpy(array) if backends.on_device(array) else array  # a mapped one stays that
    return np.ascontiguousarray(array, array.dtype.newbyteorder("<"))


def read_tensors(path: str | os.PathLike, *, mapped: bool) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Arrays and metadata of a safetensors file: bfloat16 as uint16, types that NumPy lacks left out.

    Parameters
    ----------
    path : path-like
    mapped : bool
        Leave the arrays in the file, read-only.

    Raises
    ------
    ValueError
        If it is not a safetensors file, or is cut off.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy") as file:  # it checks names, places and the length
            metadata = file.metadata() or {}
    except (SafetensorError, AttributeError, TypeError) as error:
        raise ValueError(f"{path} is damaged or not a safetensors file: {error}") from error
    with open(path, "rb") as file:
        size = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(size))
    header.pop("__metadata__", None)
    if not any(entry["data_offsets"][1] for entry in header.values()):
        data = np.empty(0, np.uint8)  # which cannot be mapped
    elif mapped:
        data = np.asarray(np.memmap(path, np.uint8, "r", 8 + size))
    else:
        data = np.fromfile(path, np.uint8, offset=8 + size)
    arrays = {}
    for name, entry in header.items():
        if entry["dtype"] not in DTYPES:
            continue
        start, stop = entry["data_offsets"]
        array = np.require(data[start:stop].view(DTYPES[entry["dtype"]]), requirements="A")
        arrays[name] = array.reshape(entry["shape"])
    return arrays, metadata


def write_tensors(file: BinaryIO, arrays: dict[str, np.ndarray], metadata: dict[str, str]) -> None:
    """Write safetensors; the library's own way goes through a file of its own, which a kill would leave."""
    header: dict[str, Any] = {"__metadata__": metadata}
    names = {np.dtype(dtype): name for name, dtype in DTYPES.items()}
    end = 0
    wide_first = dict(sorted(arrays.items(), key=lambda item: (-item[1].itemsize, item[0])))  # all aligned
    for name, array in wide_first.items():
        start, end = end, end + array.nbytes
        header[name] = {"dtype": names[array.dtype], "shape": array.shape, "data_offsets": [start, end]}
    head = json.dumps(header, separators=(",", ":")).encode()
    head += b" " * (-len(head) % 8)
    file.write(len(head).to_bytes(8, "little") + head)
    file.writelines(array.data for array in wide_first.values())


def write_atomically(path: str | os.PathLike, content: bytes | Callable[[BinaryIO], Any]) -> None:
    """Write a file whole or not at all: a reader sees what was there before, and then all of the new one.

    It is written beside its place as `.NAME.xxxxxxxx.part`, and moved there. Should the process be killed,
    that one is left; nothing reads it, and it may be deleted.

    Parameters
    ----------
    path : path-like
        A link stays a link, to the new file.
    content : bytes or callable
        What the file holds, or what writes that to an open file.

    Raises
    ------
    OSError
        If it cannot be written; then no part of it is left.
    """
    path = Path(os.path.realpath(path))
    temporary = path.with_name(f".{path.name[:100]}.{secrets.token_hex(4)}.part")
    try:
        with temporary.open("xb") as file:
            if callable(content):
                content(file)
            else:
                file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException as error:
        with suppress(OSError):
            temporary.unlink()
        if isinstance(error, OSError) and error.errno:
            error.filename, error.filename2 = str(path), None  # the name that the user knows
        raise
