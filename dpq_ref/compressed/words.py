"""The words of a file: decoded one by one, found by bisection, so that none is read that is not asked for."""

from bisect import bisect_left
from collections.abc import Sequence
from itertools import pairwise

import numpy as np

from dpq_ref import checks
from dpq_ref.compressed.files import StoredArray

ARRAYS = "words.text", "words.ends", "words.order"


class StoredWords:
    """Words by row, and rows by word.

    Parameters
    ----------
    text : (bytes,) uint8
        The words in UTF-8, end to end.
    ends : (n,) uint32, uint64 from 4 GiB on
        Where each ends.
    order : (n,) uint32
        Rows by their words, in the order of the bytes, those of a word that comes twice in their own.
    """

    def __init__(self, text: StoredArray, ends: StoredArray, order: StoredArray):
        self.text, self.ends, self.order = self.parts = text, ends, order
        n, total = ends.array.size, text.array.size
        if (
            (text.array.dtype, order.array.dtype) != (np.uint8, np.uint32)
            or ends.array.dtype != (np.uint64 if total >> 32 else np.uint32)
            or (text.array.ndim, ends.array.shape, order.array.shape) != (1, (n,), (n,))
        ):
            found = ", ".join(f"{part.name} {part.array.dtype} {part.array.shape}" for part in self.parts)
            raise ValueError(f"{found} do not make words")
        self._rows: dict[str, int] = {}  # of the words found so far

    def __len__(self) -> int:  # noqa: D105
        return self.order.array.size

    def __getitem__(self, row: int) -> str:
        """Word of a row in [0, n)."""
        return self._encoded(row).decode()

    def row(self, word: str) -> int | None:
        """First row of a word, None if there is none."""
        if word not in self._rows:
            try:
                encoded = word.encode()
            except UnicodeEncodeError:  # half of a surrogate pair, which no file has
                return None
            place = bisect_left(range(len(self)), encoded, key=lambda i: self._encoded(self._ordered(i)))
            if place == len(self) or self._encoded(row := self._ordered(place)) != encoded:
                return None
            self._rows[word] = row
        return self._rows[word]

    def all(self) -> list[str]:
        """Words of all rows."""
        self.text.check()
        self.ends.check()
        text, ends = self.text.array, [0, *self.ends.array.tolist()]
        if ends[-1] != len(text):
            raise ValueError(f"{self.text.path}: words of {ends[-1]} bytes in a text of {len(text)}")
        return [text[a:b].tobytes().decode() for a, b in pairwise(ends)]

    def _encoded(self, row: int) -> bytes:
        ends, size = self.ends.array, self.ends.array.itemsize
        self.ends.check(max(row - 1, 0) * size, (row + 1) * size)
        start, stop = ends.item(row - 1) if row else 0, ends.item(row)
        if start < stop:
            self.text.check(start, stop)
        return self.text.array[start:stop].tobytes()

    def _ordered(self, place: int) -> int:
        self.order.check(4 * place, 4 * place + 4)
        return self.order.array.item(place)


def arrays_of(words: Sequence[str]) -> dict[str, np.ndarray]:
    """Text, ends and order of words, as `StoredWords` takes them.

    Raises
    ------
    TypeError, ValueError
        If a word is not a str, or has no UTF-8.
    """
    encoded = checks.utf8(words)
    ends = np.cumsum([0, *map(len, encoded)], dtype=np.uint64)
    order = np.array(sorted(range(len(encoded)), key=encoded.__getitem__), np.uint32)
    width = np.uint64 if ends[-1] >> np.uint64(32) else np.uint32
    text = np.frombuffer(b"".join(encoded), np.uint8)
    return dict(zip(ARRAYS, (text, ends[1:].astype(width), order), strict=True))
