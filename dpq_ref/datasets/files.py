"""Files, plain or packed, their digests, and the folder for what is kept between runs."""

import gzip
import hashlib
import importlib
import lzma
import math
import os
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

__all__ = ["PACKED", "cache_folder", "most_bytes", "most_unpacked", "read_blocks", "read_text", "sha256"]

PACKED = ".gz", ".xz", ".zst"
BLOCK = 1 << 20  # bytes read at a time
MOST = 100, 1 << 24  # a packed file may hold so many times its size, and always so many bytes
XZ_MEMORY = 1 << 27  # bytes; xz -9 takes half of it


def read_blocks(file: Path, size: int = BLOCK) -> Iterator[bytes]:
    """Read a file in blocks, unpacked where its name ends in ``.gz``, ``.xz`` or ``.zst``.

    Parameters
    ----------
    file : Path
    size : int
        Most bytes of a block, whatever the file unpacks to.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        If it is damaged, or unpacks to more than `most_bytes`.
    ModuleNotFoundError
        For ``.zst``, if Python has no Zstandard.
    """
    most: float = most_bytes(file)
    damage: Any = (EOFError, gzip.BadGzipFile, zlib.error, lzma.LZMAError)
    if file.suffix == ".zst":
        zstd = _zstd()
        damage += (zstd.ZstdError,)
    try:
        with file.open("rb") as packed:
            if file.suffix in PACKED and not packed.peek(1):
                raise EOFError("it is empty")
            if file.suffix == ".gz":
                blocks = _blocks(gzip.open(packed), size)
            elif file.suffix == ".xz":
                blocks = _decoded(packed, lambda: lzma.LZMADecompressor(memlimit=XZ_MEMORY), size)
            elif file.suffix == ".zst":
                blocks = _decoded(packed, zstd.ZstdDecompressor, size)
            else:
                blocks, most = _blocks(packed, size), math.inf
            for block in blocks:
                most -= len(block)
                if most < 0:
                    raise ValueError(f"{file} holds more than {MOST[0]} times its size; unpack it first")
                yield block
    except damage as error:
        raise ValueError(f"{file}: damaged: {error}") from error


def most_bytes(file: Path) -> int:
    """Bytes that a file may hold: its size, or packed what `most_unpacked` says of it."""
    size = file.stat().st_size
    return most_unpacked(size) if file.suffix in PACKED else size


def most_unpacked(size: int) -> int:
    """Bytes that so many packed ones may hold: 100 times as many, and always 16 MiB.

    No text and no table of real numbers comes near; a file made to fill the memory does.
    """
    times, least = MOST
    return max(times * size, least)


def _blocks(file: Any, size: int) -> Iterator[bytes]:
    while block := file.read(size):
        yield block


def _decoded(file: BinaryIO, make: Any, size: int) -> Iterator[bytes]:
    """Unpack streams one after the other; the libraries' own files take a damaged second one for the end."""
    packed = file.read(BLOCK)
    while packed:
        decoder = make()
        while not decoder.eof:
            if decoder.needs_input and not packed and not (packed := file.read(BLOCK)):
                raise EOFError("it is cut off")
            if block := decoder.decompress(packed, size):
                yield block
            packed = b""
        packed = decoder.unused_data or file.read(BLOCK)


def _zstd() -> Any:
    for library in ("compression.zstd", "backports.zstd"):  # the first since Python 3.14; the same names
        try:
            return importlib.import_module(library)
        except ModuleNotFoundError:
            pass
    message = ".zst needs Python 3.14 or the package backports.zstd: pip install 'dpq-ref[zstd]'"
    raise ModuleNotFoundError(message, name="backports.zstd")


def read_text(file: Path) -> str:
    """Read the whole text of a file in UTF-8, unpacked where its name ends in ``.gz``, ``.xz`` or ``.zst``.

    Parameters
    ----------
    file : Path

    Returns
    -------
    str
        Line ends stay as they are; a byte order mark goes.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        If it is damaged, not UTF-8, or unpacks to more than `most_bytes`.
    """
    content = b"".join(read_blocks(file))
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{file}: damaged or not UTF-8: {error}") from error


def sha256(file: Path) -> str:
    """Hex digest of a file as it is stored, packed or not.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    """
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def cache_folder() -> Path:
    """Folder that ``DPQ_REF_CACHE`` names, or else one in the user's cache folder; need not be there yet."""
    if folder := os.environ.get("DPQ_REF_CACHE"):
        return Path(folder)
    from platformdirs import user_cache_dir

    return Path(user_cache_dir("dpq-ref"))
