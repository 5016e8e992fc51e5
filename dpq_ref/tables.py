"""Embedding tables in files: words and vectors in, whatever the format, and out again.

=====================  =========================================================================
name ends in           format
=====================  =========================================================================
.txt .vec, others      text: a word and its numbers a line (GloVe, word2vec, fastText)
.bin                   word2vec, binary
.npz                   arrays `words` and `vectors`
.npy                   one array, without words
.safetensors           a tensor of a checkpoint, without words; or a compressed table of ours
=====================  =========================================================================

Text and .bin may be packed: .gz, .xz, .zst at the end of the name.
"""

import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from dpq_ref import checks
from dpq_ref.compressed import load, read_tensors, write_atomically
from dpq_ref.datasets.files import PACKED, read_text
from dpq_ref.datasets.vectors import LONGEST_WORD, ends_in_number, read_binary_table, read_text_table
from dpq_ref.datasets.words import read_npz_table
from dpq_ref.kernels.reference import Array

__all__ = ["WordVectors", "read_table", "read_words", "write_table"]

EMBEDDING = re.compile(r"embed|\bwte\b|lookup", re.IGNORECASE)
NO_VOCABULARY = re.compile(r"position|token_type|segment|norm", re.IGNORECASE)
ARRAYS = ".npz", ".npy", ".safetensors"
TEXT_WORD = re.compile(r"[^ \t\n\r\f\v]([^\n\r]*[^ \t\n\r\f\v])?")
LONGEST_HEADER = 10_000  # bytes of an .npy's, as NumPy has it
REALS = {"F64", "F32", "F16", "BF16"}  # of safetensors


class WordVectors(NamedTuple):
    """Embedding table.

    Attributes
    ----------
    words : list of str or None
        A word that comes twice has two rows.
    vectors : (n, d) float32 or float64, finite
    source : str
        Where they come from: the file, and the tensor in it.
    """

    words: list[str] | None
    vectors: Array
    source: str


def read_table(path: str | os.PathLike, *, tensor: str | None = None) -> WordVectors:
    """Read an embedding table.

    Parameters
    ----------
    path : path-like
        The format follows from its name, as in the table above.
    tensor : str, optional
        Which one of a safetensors checkpoint, or array of an .npz. By default the one of two axes whose name
        says embedding, and not that of positions or segments; and of an .npz the array `vectors`.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError, TypeError
        If it is damaged, has no table or several, or an entry is not finite; the message names the place.
    ModuleNotFoundError
        For .zst, if Python has no Zstandard.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no file {path}")
    packed = path.suffix in PACKED
    ending = Path(path.stem).suffix if packed else path.suffix
    if packed and ending in ARRAYS:
        raise ValueError(f"{path}: unpack it first; read packed are text and .bin")
    if tensor is not None and ending not in (".safetensors", ".npz"):
        raise ValueError(f"tensor={tensor!r}: {path} is no .safetensors file and no .npz")
    if ending == ".safetensors":
        return _read_safetensors(path, tensor)
    if ending == ".npz":
        source = str(path) if tensor is None else f"{path}: {tensor}"
        return WordVectors(*read_npz_table(path, tensor), source)
    if ending == ".npy":
        return WordVectors(None, _read_npy(path), str(path))
    read = read_binary_table if ending == ".bin" else read_text_table
    return WordVectors(*read(path), str(path))


def read_words(path: str | os.PathLike) -> list[str]:
    """Read words, one a line, UTF-8, plain or packed (``.gz``, ``.xz``, ``.zst``).

    Raises
    ------
    FileNotFoundError, ValueError
        If there is no such file, or it is damaged or not UTF-8.
    """
    lines = read_text(Path(path)).split("\n")
    return [line.removesuffix("\r") for line in (lines[:-1] if lines[-1] == "" else lines)]


def _read_npy(path: Path) -> Array:
    try:
        with path.open("rb") as file:
            start = file.read(12)  # NumPy makes room for a header before it looks at its length
        if start[6:7] > b"\1" and (header := int.from_bytes(start[8:], "little")) > LONGEST_HEADER:
            raise ValueError(f"a header of {header} bytes")
        array = np.lib.format.open_memmap(path, mode="r")
        size = path.stat().st_size
        if array.size and array.offset + array.nbytes != size:
            raise ValueError(f"{size} bytes, and its header takes {array.offset + array.nbytes}")
        return checks.as_table(array, "the array")
    except Exception as error:  # a header may make NumPy raise nearly anything
        raise ValueError(f"{path}: {error}") from error


def _read_safetensors(path: Path, tensor: str | None) -> WordVectors:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy") as file:
            if tensor is None and "dpq_ref" in (file.metadata() or {}):
                table = load(path)
                return WordVectors(table.words, table.reconstruct(), str(path))
            slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
            found = {name: (part.get_dtype(), part.get_shape()) for name, part in slices.items()}
    except SafetensorError as error:
        raise ValueError(f"{path} is damaged or not a safetensors file: {error}") from error
    tables = {n: shape for n, (dtype, shape) in found.items() if dtype in REALS and len(shape) == 2}
    if tensor is None:
        guesses = [n for n in tables if EMBEDDING.search(n) and not NO_VOCABULARY.search(n)]
        if len(guesses) != 1:
            what = "several tensors" if guesses else "no tensor"
            names = ", ".join(f"{n} {tuple(tables[n])}" for n in guesses or tables) or "none"
            raise ValueError(f"{path}: {what} by the name of an embedding; tensors that can be one: {names}")
        (tensor,) = guesses
    elif tensor not in tables:
        raise ValueError(f"{path}: no table {tensor!r}; it has {', '.join(tables) or 'none'}")
    try:
        stored = read_tensors(path, mapped=True)[0][tensor]
        if found[tensor][0] == "BF16":
            stored = (stored.astype(np.uint32) << 16).view(np.float32)
        vectors = checks.as_table(stored, "the tensor")
    except ValueError as error:
        raise ValueError(f"{path}, {tensor}: {error}") from error
    return WordVectors(None, vectors, f"{path}: {tensor}")


def write_table(path: str | os.PathLike, words: Sequence[str] | None, vectors: Array) -> None:
    """Write an embedding table, whole or not at all; what is read again is the same, bit by bit.

    Parameters
    ----------
    path : path-like
        Its ending is the format: .txt (GloVe), .vec (fastText and word2vec: the same with a header), .bin
        (word2vec), .npz, or .npy, which leaves the words out.
    words : n strings
    vectors : (n, d)
        Float32 in .bin; float64 in text is read again as float32.

    Raises
    ------
    ValueError
        For another ending, or words that the format cannot hold.
    OSError
        If it cannot be written.
    """
    path = Path(path)
    writers: Any = {".txt": _text, ".vec": _fasttext, ".bin": _word2vec, ".npz": _npz, ".npy": _npy}
    if path.suffix not in writers:
        raise ValueError(f"{path}: its ending is the format, one of {', '.join(writers)}")
    vectors = checks.as_table(vectors, "vectors")
    if path.suffix != ".npy":
        if words is None:
            raise ValueError(
                f"{path}: the table has no words, which this format needs; give them, or take .npy"
            )
        if len(words) != len(vectors):
            raise ValueError(f"{len(words)} words for {len(vectors)} rows")
        checks.utf8(words)
    write_atomically(path, lambda file: writers[path.suffix](file, words, vectors))


def _text(file: BinaryIO, words: Sequence[str], vectors: Array, header: str = "") -> None:
    """Each number as the shortest digits that make it again."""
    _refuse(words, lambda word: not TEXT_WORD.fullmatch(word) or ends_in_number(word))
    if not header:  # then a reader takes the width from the first line, and passes over a byte order mark
        _refuse(words[:1], lambda word: re.search(r"[ \t\f\v]", word) or word.startswith("\ufeff"))
    file.write(header.encode())
    file.writelines(
        f"{w} {' '.join(map(str, row))}\n".encode() for w, row in zip(words, vectors, strict=True)
    )


def _fasttext(file: BinaryIO, words: Sequence[str], vectors: Array) -> None:
    _text(file, words, vectors, f"{vectors.shape[0]} {vectors.shape[1]}\n")


def _word2vec(file: BinaryIO, words: Sequence[str], vectors: Array) -> None:
    _refuse(words, lambda word: not word or re.search(r"[ \n]", word) or len(word.encode()) >= LONGEST_WORD)
    rows = vectors.astype("<f4", copy=False)
    if not np.isfinite(rows).all():
        raise ValueError("an entry is beyond the range of float32")
    file.write(f"{rows.shape[0]} {rows.shape[1]}\n".encode())
    file.writelines(w.encode() + b" " + r.tobytes() + b"\n" for w, r in zip(words, rows, strict=True))


def _npz(file: BinaryIO, words: Sequence[str], vectors: Array) -> None:
    _refuse(words, lambda word: word.endswith("\0"))
    try:
        np.savez(file, words=np.array(words, np.str_), vectors=vectors)
    except ValueError as error:  # of an archive that is closed after an interrupt
        raise error.__context__ or error from None


def _npy(file: BinaryIO, words: Sequence[str] | None, vectors: Array) -> None:
    np.lib.format.write_array_header_1_0(file, np.lib.format.header_data_from_array_1_0(vectors))
    file.write(vectors.data)  # `tofile` would not say why it fails


def _refuse(words: Iterable[str], bad: Any) -> None:
    for row, word in enumerate(words):
        if bad(word):
            raise ValueError(f"row {row}: the word {word!r} does not go into this format; .npz takes it")
