"""Embedding tables in files: words and vectors in, whatever the format, and out again.

=====================  =========================================================================
name ends in           format
=====================  =========================================================================
.txt .vec, others      text: a word and its numbers a line (GloVe, word2vec, fastText); .gz, .xz
.bin                   word2vec, binary
.npz                   arrays `words` and `vectors`
.npy                   one array, without words
.safetensors           a tensor of a checkpoint, without words; or a compressed table of ours
=====================  =========================================================================
"""

import mmap
import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from dpq_ref import checks
from dpq_ref.compressed import load, map_tensor, write_atomically
from dpq_ref.datasets.files import read_text
from dpq_ref.datasets.vectors import read_text_table
from dpq_ref.datasets.words import read_npz_table
from dpq_ref.kernels.reference import Array

__all__ = ["WordVectors", "read_table", "read_words", "write_table"]

EMBEDDING = re.compile(r"embed|\bwte\b|lookup", re.IGNORECASE)
NO_VOCABULARY = re.compile(r"position|token_type|segment|norm", re.IGNORECASE)
REALS = {"F64", "F32", "F16", "BF16"}  # of safetensors
LONGEST_WORD = 1 << 12  # bytes, in word2vec's binary format


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
        Which one of a safetensors checkpoint. By default the one of two axes whose name says embedding, and
        not that of positions or segments.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError, TypeError
        If it is damaged, has no table or several, or an entry is not finite; the message names the place.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no file {path}")
    if tensor is not None and path.suffix != ".safetensors":
        raise ValueError(f"tensor={tensor!r}: {path} is no .safetensors file")
    if path.suffix == ".safetensors":
        return _read_safetensors(path, tensor)
    if path.suffix == ".npy":
        return WordVectors(None, _read_npy(path), str(path))
    read: Any = {".npz": read_npz_table, ".bin": _read_word2vec}.get(path.suffix, read_text_table)
    words, vectors = read(path)
    return WordVectors(words, vectors, str(path))


def read_words(path: str | os.PathLike) -> list[str]:
    """Read words, one a line, UTF-8, plain or packed (``.gz``, ``.xz``).

    Raises
    ------
    FileNotFoundError, ValueError
        If there is no such file, or it is damaged or not UTF-8.
    """
    lines = read_text(Path(path)).split("\n")
    return [line.removesuffix("\r") for line in (lines[:-1] if lines[-1] == "" else lines)]


def _read_npy(path: Path) -> Array:
    try:
        return checks.as_table(np.lib.format.open_memmap(path, mode="r"), "the array")
    except Exception as error:  # a header may make NumPy raise nearly anything
        raise ValueError(f"{path}: {error}") from error


def _read_word2vec(path: Path) -> tuple[list[str], Array]:
    """Header "rows columns", then each row as its word, a space, and float32 numbers; maybe line ends."""
    with path.open("rb") as file:
        try:
            n, d = map(int, file.readline(64).split())
        except ValueError as error:
            raise ValueError(f"{path}: takes 'rows columns' in its first line") from error
        at, size = file.tell(), os.fstat(file.fileno()).st_size
        if n < 0 or d < 1 or n * (4 * d + 1) > size:
            raise ValueError(f"{path}: {size} bytes do not hold the {n} rows of {d} numbers of its header")
        words, vectors = [], np.empty((n, d), np.float32)
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            for i in range(n):
                space = data.find(b" ", at, at + LONGEST_WORD)
                end = space + 1 + 4 * d
                if space < 0 or end > size:
                    raise ValueError(f"{path}: row {i}, byte {at}: no word and {d} numbers")
                try:
                    words.append(data[at:space].lstrip(b"\n").decode())
                except UnicodeDecodeError as error:
                    raise ValueError(f"{path}: row {i}, byte {at}: {error}") from error
                vectors[i] = np.frombuffer(data[space + 1 : end], "<f4")
                at = end
            if data[at:].strip(b"\n"):
                raise ValueError(f"{path}: {size - at} bytes after the {n} rows of its header")
    try:
        return words, checks.as_table(vectors, "the table")
    except ValueError as error:
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
        stored = map_tensor(path, tensor)
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
        Float32 in .bin.

    Raises
    ------
    ValueError
        For another ending, or words that the format cannot hold.
    """
    path = Path(path)
    writers: Any = {".txt": _text, ".vec": _text, ".bin": _word2vec, ".npz": _npz, ".npy": _npy}
    if path.suffix not in writers:
        raise ValueError(f"{path}: its ending is the format, one of {', '.join(writers)}")
    vectors = checks.as_table(vectors, "vectors")
    if path.suffix != ".npy":
        if words is None:
            raise ValueError(f"{path}: the table has no words, which this format needs; .npy does not")
        if len(words) != len(vectors):
            raise ValueError(f"{len(words)} words for {len(vectors)} rows")
    header = f"{vectors.shape[0]} {vectors.shape[1]}\n" if path.suffix == ".vec" else ""
    write_atomically(path, writers[path.suffix](words, vectors, header))


def _text(words: Sequence[str], vectors: Array, header: str) -> bytes:
    _refuse(words, lambda word: not re.fullmatch(r"[^ \t\n\r\f\v]([^\n\r]*[^ \t\n\r\f\v])?", word))
    if not header:  # then a reader takes the width from the first line
        _refuse(words[:1], lambda word: re.search(r"[ \t\f\v]", word))
    # The shortest digits that make the same number.
    lines = (f"{w} {' '.join(map(str, row))}\n" for w, row in zip(words, vectors, strict=True))
    return "".join([header, *lines]).encode()


def _word2vec(words: Sequence[str], vectors: Array, header: str) -> bytes:
    _refuse(words, lambda word: not word or re.search(r"[ \n]", word) or len(word.encode()) >= LONGEST_WORD)
    rows = vectors.astype("<f4")
    if not np.isfinite(rows).all():
        raise ValueError("an entry is beyond the range of float32")
    body = b"".join(w.encode() + b" " + r.tobytes() + b"\n" for w, r in zip(words, rows, strict=True))
    return f"{rows.shape[0]} {rows.shape[1]}\n".encode() + body


def _refuse(words: Iterable[str], bad: Any) -> None:
    for row, word in enumerate(words):
        if bad(word):
            raise ValueError(f"row {row}: the word {word!r} does not go into this format; .npz takes it")


def _npz(words: Sequence[str], vectors: Array, header: str) -> bytes:
    from io import BytesIO

    _refuse(words, lambda word: word.endswith("\0"))
    content = BytesIO()
    np.savez(content, words=np.array(words, np.str_), vectors=vectors)
    return content.getvalue()


def _npy(words: Sequence[str] | None, vectors: Array, header: str) -> bytes:
    from io import BytesIO

    content = BytesIO()
    np.save(content, vectors)
    return content.getvalue()
