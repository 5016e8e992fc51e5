"""Tables of word vectors: GloVe, word2vec and fastText, in text or binary.

In text a word and its numbers make a line. Compiled loops take the lines that are plain; whatever is not goes
to Python, which is exact or says what is wrong. So a number is what `float` makes of its digits, rounded to
float32.
"""

import os
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dpq_ref import checks
from dpq_ref.datasets.digits import read_lines
from dpq_ref.datasets.files import most_bytes, read_blocks

__all__ = ["LONGEST_WORD", "ends_in_number", "read_binary_table", "read_text_table"]

BLOCK = 1 << 22  # bytes read at a time
LONGEST_LINE = 1 << 24  # bytes
LONGEST_WORD = 1 << 12  # bytes, in word2vec's binary format
BYTE_ORDER_MARK = b"\xef\xbb\xbf"
DIGITS = b" 0123456789+-.eE"
NUMBER = re.compile(rb"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?")
LAST_NUMBER = re.compile(rf"[ \t]({NUMBER.pattern.decode()}|nan|inf)\Z", re.IGNORECASE)


def read_text_table(path: str | os.PathLike[str]) -> tuple[list[str], NDArray[np.float32]]:
    r"""Read a table from text: a word and d numbers a line, between single spaces.

    The last d fields are the numbers, so a word may have spaces in it, as some of GloVe's do; but it does not
    end in a number after a space, since that is a line with one number too many. A first line of two integers
    is the header of word2vec and fastText.

    Parameters
    ----------
    path : path-like
        UTF-8, plain or packed (``.gz``, ``.xz``, ``.zst``); lines end in ``\n`` or ``\r\n``.

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
        number of numbers, or one that is none or not finite; the message has the line and the column of the
        number, the first being 1.

    Notes
    -----
    Held are the table, its words, and a few blocks of BLOCK bytes, packed or not. A last line without an end
    counts as one: whether digits are missing from its last number, nobody can tell.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no file {path}")
    words: list[str] = []
    table = np.empty(0, np.float32)
    stated = dim = None
    number = 0  # of the lines before
    for block in _whole_lines(path):
        if dim is None:
            block = block.removeprefix(BYTE_ORDER_MARK)
        starts = _line_starts(block)
        if dim is None:
            fields = bytes(block[: starts[1]]).split()
            if len(fields) == 2 and fields[0].isdigit() and fields[1].isdigit():
                stated, dim = map(int, fields)
                starts, number = starts[1:], 1
            else:
                dim = len(fields) - 1
            if dim < 1:
                raise ValueError(f"{path}, line 1: takes a word and numbers, got {bytes(block[:60])!r}")
        # d numbers take 2 d bytes: no header makes a table that is larger than its file.
        lengths = np.diff(starts)
        if len(lengths) and lengths.min() < 2 * dim:
            i = int((lengths < 2 * dim).argmax())
            found = len(bytes(block[starts[i] : starts[i + 1]]).split()[1:])
            raise ValueError(f"{path}, line {number + 1 + i}: {found} numbers, takes {dim}")
        if not len(lengths):
            continue
        # The system moves pages of a large array rather than copy it: there is never a second one.
        table.resize((len(words) + len(starts) - 1, dim), refcheck=False)
        vectors = table[len(words) :]
        ends = read_lines(np.frombuffer(block, np.uint8), starts, vectors)
        for i, (start, end) in enumerate(zip(starts.tolist(), ends.tolist(), strict=False)):
            number += 1
            if end < 0:
                line = bytes(block[start : starts[i + 1]])
                end, vectors[i] = _line(f"{path}, line {number}", line, dim)
                end += start
            try:
                word = block[start:end].decode()
            except UnicodeDecodeError as error:
                raise ValueError(f"{path}, line {number}: {error}") from error
            if ends_in_number(word):
                raise ValueError(
                    f"{path}, line {number}: more than {dim} numbers: {word[-40:]!r} before them"
                )
            words.append(word)
    if not words or (stated is not None and len(words) != stated):
        raise ValueError(
            f"{path}: {len(words)} rows{'' if stated is None else f', and its header says {stated}'}"
        )
    return words, table


def _whole_lines(path: Path) -> Iterator[bytearray]:
    """Whole lines, about BLOCK bytes at a time, the last with an end of line too."""
    rest, number = bytearray(), 1
    for content in read_blocks(path, BLOCK):
        end = content.rfind(b"\n") + 1
        rest += memoryview(content)[: end or None]
        if end:
            number += rest.count(b"\n")
            yield rest
            rest = bytearray(memoryview(content)[end:])
        elif len(rest) > LONGEST_LINE:
            raise ValueError(f"{path}, line {number}: more than {LONGEST_LINE} bytes")
    if rest:
        yield rest + b"\n"


def _line_starts(block: bytearray) -> NDArray[np.int64]:
    """Where lines start, and the end of the last."""
    starts, at = [0], block.find(b"\n") + 1
    while at:
        starts.append(at)
        at = block.find(b"\n", at) + 1
    return np.array(starts)


def _line(where: str, line: bytes, dim: int) -> tuple[int, NDArray[np.float32]]:
    """End of the word, and the numbers, of a line that is not plain."""
    word, *fields = line.rstrip().rsplit(b" ", dim)
    if len(fields) != dim:
        raise ValueError(f"{where}: {len(fields)} numbers, takes {dim}, between single spaces")
    plain = not line[len(word) :].rstrip().translate(None, DIGITS)  # `float` takes more: 1_000, nan
    try:
        with np.errstate(over="ignore"):
            row = np.array([float(field) for field in fields]).astype(np.float32)
        if plain and np.isfinite(row).all():
            return len(word), row
    except ValueError:
        pass
    large = float(np.finfo(np.float32).max)
    bad = (c for c, field in enumerate(fields) if not NUMBER.fullmatch(field) or abs(float(field)) > large)
    column = next(bad)
    what = fields[column][:40].decode(errors="replace")
    raise ValueError(f"{where}, column {column + 1}: {what!r} is no number, or not one of float32")


def ends_in_number(word: str) -> bool:
    """Whether a word ends in a blank and a number, which text cannot tell from the numbers of its row.

    Examples
    --------
    >>> [ends_in_number(word) for word in ("area 51", "5", "6 feet", "not nan")]
    [True, False, False, True]
    """
    return (" " in word or "\t" in word) and LAST_NUMBER.search(word) is not None


def read_binary_table(path: str | os.PathLike[str]) -> tuple[list[str], NDArray[np.float32]]:
    """Read word2vec's binary format: "rows columns", then each row as its word, a space, and float32 numbers.

    Line ends after a row are passed over.

    Parameters
    ----------
    path : path-like
        Plain or packed (``.gz``, ``.xz``, ``.zst``).

    Returns
    -------
    words : list of str
    vectors : (n, d) float32

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        If it is damaged, a word is not UTF-8, or a number is not finite.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no file {path}")
    words: list[str] = []
    data, at, before = bytearray(), 0, 0  # what is held, how much of it is read, and what came before it
    n = d = -1
    for block in read_blocks(path, BLOCK):
        before += at
        del data[:at]
        data += block
        at = 0
        if n < 0:
            head = re.match(rb"([0-9]{1,18}) +([0-9]{1,18}) *\n", data)
            if not head and len(data) < 64:
                continue
            if not head or not int(head[2]):
                raise ValueError(f"{path}: takes 'rows columns' in its first line, got {bytes(data[:40])!r}")
            n, d = map(int, head.groups())
            if n * (4 * d + 1) > most_bytes(path):
                raise ValueError(f"{path} is too small for the {n} rows of {d} numbers of its header")
            vectors, at = np.empty((n, d), np.float32), head.end()
        while len(words) < n:
            space = data.find(b" ", at, at + LONGEST_WORD)
            if space < 0 and len(data) - at >= LONGEST_WORD:
                raise ValueError(f"{path}, row {len(words)}, byte {before + at}: no word")
            end = space + 1 + 4 * d
            if space < 0 or end > len(data):
                break
            try:
                word = data[at:space].lstrip(b"\n").decode()
            except UnicodeDecodeError as error:
                raise ValueError(f"{path}, row {len(words)}, byte {before + at}: {error}") from error
            vectors[len(words)] = np.frombuffer(data, "<f4", d, space + 1)
            words.append(word)
            at = end
        if len(words) == n:
            if data[at:].strip(b"\n"):
                raise ValueError(f"{path}: more than the {n} rows of its header, from byte {before + at} on")
            at = len(data)
    if n < 0:
        raise ValueError(f"{path}: takes 'rows columns' in its first line, got {bytes(data)!r}")
    if len(words) < n:
        raise ValueError(f"{path} ends in row {len(words)} of the {n} of its header")
    try:
        return words, checks.as_table(vectors, "the table")
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
