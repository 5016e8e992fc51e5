r"""Word lists that judge a table: similarity, analogies, relations; word frequencies; tables in .npz.

All text is UTF-8, a line an item, plain or packed (``.gz``, ``.xz``, ``.zst``); lines end in ``\n`` or
``\r\n``. A word is looked up as it is and, where that is not known, lower-cased.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from dpq_ref import checks
from dpq_ref.datasets.files import MOST, most_unpacked, read_text

__all__ = [
    "Analogy",
    "Relation",
    "SimilarityPair",
    "counts_for",
    "read_analogies",
    "read_frequencies",
    "read_npz_table",
    "read_relations",
    "read_similarity",
    "weights_for",
]

PathLike = str | os.PathLike[str]
ZIPF = "zipf"


class SimilarityPair(NamedTuple):
    """Two words and how alike people find them."""

    first: str
    second: str
    score: float


class Analogy(NamedTuple):
    """a is to b as c is to d, in a section such as ``gram8-plural``."""

    section: str
    a: str
    b: str
    c: str
    d: str


class Relation(NamedTuple):
    """A concept, its category, and a word that stands in a relation to it."""

    concept: str
    category: str
    relation: str
    relatum: str


def read_similarity(path: PathLike) -> list[SimilarityPair]:
    """Read a similarity set, ``word<TAB>word<TAB>score`` a line.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        If the file is damaged, empty, or a line is none of these (naming file and line).
    """
    pairs = []
    for where, line in _lines(path):
        fields = _fields(where, line, 3, "word<TAB>word<TAB>score")
        try:
            score = float(fields[2])
        except ValueError:
            score = math.nan
        if not math.isfinite(score):
            raise ValueError(f"{where}: the score {fields[2][:40]!r} is no number")
        pairs.append(SimilarityPair(fields[0], fields[1], score))
    return _some(path, pairs, "pairs")


def read_analogies(path: PathLike) -> list[Analogy]:
    """Read analogies in the format of word2vec: ``: section``, then four words a line.

    Raises
    ------
    FileNotFoundError, ValueError
        As in `read_similarity`; a question before the first section is an error too.
    """
    questions, section = [], None
    for where, line in _lines(path):
        words = line.split()
        if line.startswith(":"):
            section = line[1:].strip()
        elif section is None:
            raise ValueError(f"{where}: a question before the first ': section'")
        elif len(words) != 4:
            raise ValueError(f"{where}: {len(words)} words, takes 4: {line[:60]!r}")
        else:
            questions.append(Analogy(section, *words))
    return _some(path, questions, "questions")


def read_relations(path: PathLike) -> list[Relation]:
    """Read relations in the format of BLESS: ``concept<TAB>category<TAB>relation<TAB>relatum`` a line.

    The part of speech at the end of concept and relatum (``-n``, ``-v``, ``-j``) is taken off; in the
    relation (``random-n``) it stays.

    Raises
    ------
    FileNotFoundError, ValueError
        As in `read_similarity`.
    """
    relations = []
    for where, line in _lines(path):
        fields = _fields(where, line, 4, "concept<TAB>category<TAB>relation<TAB>relatum")
        concept, relatum = (re.sub(r"(?<=.)-[nvj]$", "", fields[i]) for i in (0, 3))
        relations.append(Relation(concept, fields[1], fields[2], relatum))
    return _some(path, relations, "relations")


def read_frequencies(path: PathLike) -> dict[str, int]:
    """Read word frequencies, ``word count`` a line, cut at the last white space.

    Raises
    ------
    FileNotFoundError, ValueError
        As in `read_similarity`; a word that comes twice is an error too.
    """
    frequencies: dict[str, int] = {}
    for where, line in _lines(path):
        word, count = (line.rsplit(maxsplit=1) + [""])[:2]
        if not re.fullmatch("[0-9]{1,18}", count):
            raise ValueError(f"{where}: takes 'word count', got {line[:60]!r}, the count below 10**18")
        if word in frequencies:
            raise ValueError(f"{where}: {word!r} comes a second time")
        frequencies[word] = int(count)
    if not frequencies:
        raise ValueError(f"{path}: no frequencies")
    return frequencies


def counts_for(words: Iterable[str], frequencies: Mapping[str, int]) -> NDArray[np.int64]:
    """Count the words of a table, (n,): as is, then lower-cased, 0 where neither is known.

    Two words that differ in case alone may get the same count.

    Examples
    --------
    >>> counts_for(["the", "Paris", "May", "xyzzy"], {"the": 9, "paris": 2, "may": 3, "May": 1})
    array([9, 2, 1, 0])
    """
    found = [frequencies.get(word, frequencies.get(word.lower(), 0)) for word in words]
    return np.array(found, np.int64)


def weights_for(
    frequencies: PathLike, words: Sequence[str] | None, n: int, source: str = "the table"
) -> NDArray[np.float64]:
    """Weigh the rows of a table by how often their words come.

    Parameters
    ----------
    frequencies : path-like
        As for `read_frequencies`, or "zipf": row i has weight 1 / (i + 1), as rows in the order of their
        frequency would (G. K. Zipf, *Human Behavior and the Principle of Least Effort*, 1949).
    words : n str, or None
        Needed for all but "zipf". One that is not known counts once.
    n : int
    source : str
        What a message calls the table.

    Returns
    -------
    (n,) float64

    Raises
    ------
    FileNotFoundError, ValueError
        As in `read_frequencies`; and if there are no words.

    Examples
    --------
    >>> weights_for("zipf", None, 4).tolist()
    [1.0, 0.5, 0.3333333333333333, 0.25]
    """
    if frequencies == ZIPF:
        return 1 / np.arange(1, n + 1)
    if words is None:
        raise ValueError(
            f"{source} has no words, which frequencies in a file need; {ZIPF!r} takes the rows' order"
        )
    return np.maximum(counts_for(words, read_frequencies(frequencies)), 1).astype(np.float64)


def read_npz_table(
    path: PathLike, tensor: str | None = None
) -> tuple[list[str] | None, NDArray[np.floating]]:
    """Read a table from an .npz with ``words`` (n,) and ``vectors`` (n, d).

    Parameters
    ----------
    path : path-like
    tensor : str, optional
        Another array in place of both: a table without words.

    Returns
    -------
    words : list of str, or None
    vectors : (n, d) float32 or float64
        Half precision becomes float32.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        If it is no .npz, an array is missing, pickled or of the wrong shape, unpacks to more than 100 times
        its size, or a vector is not finite.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"no file {path}")
    names = ("words", "vectors") if tensor is None else (tensor,)
    try:
        # Not np.load, which would take a file that begins as an .npy for one, and make room for its header.
        with Path(path).open("rb") as file, np.lib.npyio.NpzFile(file, allow_pickle=False) as arrays:
            if missing := [name for name in names if name not in arrays]:
                has = f"it has {', '.join(arrays)}"
                raise ValueError(
                    f"no array {' and no '.join(missing)}; {has}, and --tensor (tensor=) names another"
                )
            *words, vectors = (_array(arrays, name, Path(path)) for name in names)
        if words and (words[0].dtype.kind != "U" or words[0].shape != vectors.shape[:1]):
            got = f"words {words[0].dtype} {words[0].shape} for vectors {vectors.shape}"
            raise ValueError(f"{got}; takes text (n,) for (n, d)")
        return words[0].tolist() if words else None, checks.as_table(vectors, names[-1])
    except Exception as error:  # a header may make NumPy and zipfile raise nearly anything
        raise ValueError(f"{path}: {error}") from error


def _array(arrays: np.lib.npyio.NpzFile, name: str, path: Path) -> np.ndarray:
    """Array of an .npz, if it is as large as it says; NumPy would make room for it first."""
    archive: Any = arrays.zip
    entry = archive.getinfo(f"{name}.npy")
    if entry.file_size > most_unpacked(min(entry.compress_size, path.stat().st_size)):
        raise ValueError(f"{name} holds more than {MOST[0]} times its size; save it unpacked first")
    with archive.open(entry) as file:
        read = {1: np.lib.format.read_array_header_1_0, 2: np.lib.format.read_array_header_2_0}
        shape, _, dtype = read[np.lib.format.read_magic(file)[0]](file)
        takes = file.tell() + math.prod(shape) * dtype.itemsize
    if not dtype.hasobject and takes != entry.file_size:  # less, and nothing would look at its checksum
        raise ValueError(f"{name} has {entry.file_size} bytes, and its header takes {takes}")
    return arrays[name]


def _lines(path: PathLike) -> Iterator[tuple[str, str]]:
    """Yield (file and line number, line without its end) of all lines that are not blank."""
    if not Path(path).is_file():
        raise FileNotFoundError(f"no file {path}")
    for number, line in enumerate(read_text(Path(path)).split("\n"), 1):
        if line.strip():
            yield f"{path}, line {number}", line.removesuffix("\r")


def _fields(where: str, line: str, count: int, form: str) -> list[str]:
    fields = [field.strip() for field in line.split("\t")]
    if len(fields) != count or not all(fields):
        raise ValueError(f"{where}: takes {form}, got {line[:60]!r}")
    return fields


def _some(path: PathLike, items: list[Any], what: str) -> list[Any]:
    if not items:
        raise ValueError(f"{path}: no {what}")
    return items
