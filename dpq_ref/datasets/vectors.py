"""Tables of word vectors in text: GloVe, word2vec and fastText, a word and its numbers a line.

Compiled loops take the lines that are plain; whatever is not goes to Python, which is exact or says what is
wrong. So a number is what `float` makes of its digits, rounded to float32.
"""

import gzip
import lzma
import os
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dpq_ref import checks
from dpq_ref.datasets.digits import read_lines

__all__ = ["read_text_table"]

BLOCK = 1 << 24  # bytes read at a time


def read_text_table(path: str | os.PathLike[str]) -> tuple[list[str], NDArray[np.float32]]:
    r"""Read a table from text: a word and d numbers a line, between single spaces.

    The last d fields are the numbers, so a word may have spaces in it, as some of GloVe's do. A first line of
    two integers is the header of word2vec and fastText.

    Parameters
    ----------
    path : path-like
        UTF-8, plain or packed (``.gz``, ``.xz``); lines end in ``\n`` or ``\r\n``.

    Returns
    -------
    words : list of str
    vectors : (n, d) float32

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        If it is damaged, not UTF-8 or empty, has other rows than its header says, or a line has another
        number of fields, one that is no number, or one that is not finite.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no file {path}")
    words: list[str] = []
    table = np.empty(0, np.float32)
    stated = dim = None
    number = 0  # of the lines before
    try:
        for block in _blocks(path):
            starts = _line_starts(block)
            if dim is None:
                fields = bytes(block[: starts[1]]).split()
                if len(fields) == 2 and fields[0].isdigit() and fields[1].isdigit():
                    stated, dim = map(int, fields)
                    starts, number = starts[1:], 1
                else:
                    dim = len(fields) - 1
                if dim < 1:
                    raise ValueError(f"line 1: takes a word and numbers, got {bytes(block[:60])!r}")
            # d numbers take 2 d bytes: no header makes a table that is larger than its file.
            lengths = np.diff(starts)
            if len(lengths) and lengths.min() < 2 * dim:
                i = int((lengths < 2 * dim).argmax())
                found = len(bytes(block[starts[i] : starts[i + 1]]).split()[1:])
                raise ValueError(f"line {number + 1 + i}: {found} numbers, takes {dim}")
            if not len(lengths):
                continue
            # The system moves pages of a large array rather than copy it: there is never a second one.
            table.resize((len(words) + len(starts) - 1, dim), refcheck=False)
            vectors = table[len(words) :]
            ends = read_lines(np.frombuffer(block, np.uint8), starts, vectors)
            for i, (start, end) in enumerate(zip(starts.tolist(), ends.tolist(), strict=False)):
                number += 1
                if end < 0:
                    end, vectors[i] = _line(number, bytes(block[start : starts[i + 1]]), dim)
                    end += start
                words.append(block[start:end].decode())
        if not words or (stated is not None and len(words) != stated):
            raise ValueError(
                f"{len(words)} rows{'' if stated is None else f', and its header says {stated}'}"
            )
        return words, checks.as_table(table, "vectors")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}, line {number}: {error}") from error
    except (ValueError, EOFError, gzip.BadGzipFile, lzma.LZMAError, zlib.error) as error:
        raise ValueError(f"{path}: {error}") from error


def _blocks(path: Path) -> Iterator[bytearray]:
    """Whole lines, about BLOCK bytes at a time, the last with an end of line too."""
    opener: Any = {".gz": gzip.open, ".xz": lzma.open}.get(path.suffix, open)
    rest = bytearray()
    with opener(path, "rb") as file:
        while content := file.read(BLOCK):
            end = content.rfind(b"\n") + 1
            rest += content[:end] if end else content
            if end:
                yield rest
                rest = bytearray(content[end:])
    if rest:
        yield rest + b"\n"


def _line_starts(block: bytearray) -> NDArray[np.int64]:
    """Where lines start, and the end of the last."""
    starts, at = [0], block.find(b"\n") + 1
    while at:
        starts.append(at)
        at = block.find(b"\n", at) + 1
    return np.array(starts)


def _line(number: int, line: bytes, dim: int) -> tuple[int, NDArray[np.float32]]:
    """End of the word, and the numbers, of a line that is not plain."""
    word, *fields = line.rstrip().rsplit(b" ", dim)
    if len(fields) != dim:
        raise ValueError(f"line {number}: {len(fields)} numbers, takes {dim}")
    try:
        with np.errstate(over="ignore"):
            return len(word), np.array([float(field) for field in fields]).astype(np.float32)
    except ValueError as error:
        raise ValueError(f"line {number}: {error}") from error
