r"""Text for language models: one long row of word ids per split, cut into batches.

As in the released code of Chen, Li and Sun (ICML 2020), which follows Zaremba, Sutskever and Vinyals (2014):
every line break is the word ``<eos>``, and words that never come in training are dropped.
"""

from __future__ import annotations

import os
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from dpq_ref import checks
from dpq_ref.datasets.builtin import load_builtin
from dpq_ref.datasets.files import read_text, sha256
from dpq_ref.datasets.text import SPLITS, digest

__all__ = ["EOS", "LanguageDataset", "load_builtin_language", "load_language", "unroll"]

EOS = "<eos>"

_DATA_FILE = re.compile(r"([^.]+\.)?(train|valid|validation|test)\.(txt|tokens)(\.gz|\.xz)?")


@dataclass(frozen=True, eq=False)
class LanguageDataset:
    """A corpus for language models: vocabulary and three splits.

    Parameters
    ----------
    name : str
        Name of the corpus.
    vocabulary : tuple of str, length n
        Word of each id: training words by falling count, ties by word.
    counts : int64 array of shape (n,)
        How often each id comes in `train`; never 0.
    train, validation, test : int32 arrays of shape (n_tokens,)
        Word ids of each split, end to end.
    provenance : dict
        Where the text came from; tokens and dropped words of each split; JSON-able.

    Attributes
    ----------
    sha256 : str
        Hex digest of vocabulary and splits: equal digests, equal data.
    """

    name: str
    vocabulary: tuple[str, ...]
    counts: NDArray[np.int64]
    train: NDArray[np.int32]
    validation: NDArray[np.int32]
    test: NDArray[np.int32]
    provenance: dict[str, Any]
    sha256: str = field(init=False)

    def __post_init__(self) -> None:
        """Compute the digest."""
        object.__setattr__(self, "sha256", digest([self.vocabulary], [getattr(self, s) for s in SPLITS]))


def load_language(path: str | os.PathLike[str]) -> LanguageDataset:
    r"""Load a corpus from a folder.

    Parameters
    ----------
    path : path
        A folder with one file for each split, named ``SPLIT.txt``, ``SPLIT.tokens``, ``NAME.SPLIT.txt`` or
        ``NAME.SPLIT.tokens``, where SPLIT is ``train``, ``valid`` (or ``validation``) or ``test`` and NAME
        has no point; plain or packed (``.gz``, ``.xz``), in UTF-8. Other files are passed over.

    Returns
    -------
    LanguageDataset
        Named after the folder. Words are what stands between white space, taken as they are; each line break
        is a word ``"<eos>"``, that of a blank line too. Words of validation and test that do not come in
        training are dropped, and counted in ``provenance["dropped"]``.

    Raises
    ------
    FileNotFoundError
        If a folder or file is missing; the message says what was looked for.
    ValueError
        If there are several files for a split, one is damaged, or a split has no word that comes in training.

    Examples
    --------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     for split, text in ("train", "a b a\n"), ("valid", "b\n"), ("test", "a c"):
    ...         _ = Path(folder, f"tiny.{split}.txt").write_text(text)
    ...     data = load_language(folder)
    >>> data.vocabulary, data.train, data.provenance["dropped"]
    (('a', '<eos>', 'b'), array([0, 2, 0, 1], dtype=int32), {'train': 0, 'validation': 0, 'test': 1})
    """
    folder = Path(path)
    files = _find(folder)
    number: defaultdict[str, int] = defaultdict()
    number.default_factory = number.__len__  # a new word gets the next id
    raw = {s: np.fromiter(map(number.__getitem__, _words(read_text(files[s]))), np.int32) for s in SPLITS}
    hashes = {files[s].name: sha256(files[s]) for s in SPLITS}
    return _with_vocabulary(folder.resolve().name, tuple(number), raw, {"sha256": hashes})


def load_builtin_language(*, max_documents: int | None = None) -> LanguageDataset:
    """Load the documents of the built-in corpus, one after the other, each with ``"<eos>"`` at its end.

    Parameters
    ----------
    max_documents : int, optional
        As in `load_builtin`, as is what the first call takes.

    Returns
    -------
    LanguageDataset
        Words that come less than three times in training are ``"<unk>"``.

    Raises
    ------
    ModuleNotFoundError, ValueError
        As in `load_builtin`.
    """
    data = load_builtin(max_documents=max_documents)
    # Id 0, padding, comes in no document: here it is <eos>.
    raw = {s: np.insert(data.split(s).tokens, data.split(s).offsets[1:], 0) for s in SPLITS}
    return _with_vocabulary(data.name, (EOS, *data.vocabulary[1:]), raw, data.provenance)


def unroll(ids: ArrayLike, batch_size: int, n_steps: int) -> tuple[NDArray[np.integer], NDArray[np.integer]]:
    """Cut a row of words into the batches of truncated back-propagation through time.

    The row becomes `batch_size` rows of equal length, each a contiguous part of it; batch i takes the i-th
    `n_steps` words of each. The state after batch i is thus the state before batch i + 1. What is left over
    at the end of each row, and of the whole, is not used.

    Parameters
    ----------
    ids : integer array of shape (n_tokens,)
        Word ids of a split.
    batch_size : int
        Rows side by side.
    n_steps : int
        Words of each row in a batch.

    Returns
    -------
    inputs, targets : arrays of shape (n_batches, batch_size, n_steps)
        ``targets`` is the word after each of ``inputs``; ``n_batches`` is
        ``(n_tokens // batch_size - 1) // n_steps``. Both are views of `ids`: nothing is copied.

    Raises
    ------
    TypeError
        If `ids` are not integers, or a size is none.
    ValueError
        If `ids` has not one axis, a size is below 1, or there is not enough for one batch.

    Examples
    --------
    >>> inputs, targets = unroll(np.arange(11), batch_size=2, n_steps=2)
    >>> inputs.tolist()
    [[[0, 1], [5, 6]], [[2, 3], [7, 8]]]
    >>> targets[0].tolist()
    [[1, 2], [6, 7]]
    """
    ids = np.asarray(ids)
    checks.positive("batch_size", batch_size)
    checks.positive("n_steps", n_steps)
    if ids.ndim != 1:
        raise ValueError(f"ids has shape {ids.shape}; takes one axis")
    if not np.issubdtype(ids.dtype, np.integer):
        raise TypeError(f"ids is {ids.dtype}; takes integers")
    length = len(ids) // batch_size
    n_batches = (length - 1) // n_steps
    if n_batches < 1:
        least = batch_size * (n_steps + 1)
        raise ValueError(
            f"{len(ids)} words for batches of {batch_size} x {n_steps} and their targets; "
            f"takes {least} or more"
        )
    rows = ids[: batch_size * length].reshape(batch_size, length)
    inputs, targets = (
        rows[:, shift : shift + n_batches * n_steps].reshape(batch_size, n_batches, n_steps).swapaxes(0, 1)
        for shift in (0, 1)
    )
    return inputs, targets


def _find(folder: Path) -> dict[str, Path]:
    """Return the file of each split."""
    if not folder.is_dir():
        raise FileNotFoundError(f"no folder {folder}")
    found: dict[str, list[Path]] = {split: [] for split in SPLITS}
    for file in sorted(folder.iterdir()):
        if match := _DATA_FILE.fullmatch(file.name):
            found["validation" if match[2] == "valid" else match[2]].append(file)
    for split, files in found.items():
        if not files:
            names = "valid or validation" if split == "validation" else split
            raise FileNotFoundError(
                f"{folder}: no file [NAME.]SPLIT.txt or [NAME.]SPLIT.tokens, plain, .gz or .xz, "
                f"where SPLIT is {names}"
            )
        if len(files) > 1:
            raise ValueError(f"{folder}: which is the {split} file: {', '.join(f.name for f in files)}?")
    return {split: files[0] for split, files in found.items()}


def _words(text: str) -> Iterator[str]:
    *lines, last = text.split("\n")  # not splitlines(): U+2028, U+0085 and others are no line breaks here
    for line in lines:
        yield from line.split()
        yield EOS
    yield from last.split()


def _with_vocabulary(
    name: str, words: tuple[str, ...], raw: Mapping[str, NDArray], provenance: Mapping[str, Any]
) -> LanguageDataset:
    """Renumber ids over `words` by frequency in training; those that do not come there are dropped."""
    counts = np.bincount(raw["train"], minlength=len(words))
    order = sorted(np.flatnonzero(counts), key=lambda i: (-counts[i], words[i]))
    new_id = np.full(len(words), -1, np.int32)
    new_id[order] = np.arange(len(order))
    splits = {}
    for split in SPLITS:
        ids = new_id[raw[split]]
        splits[split] = ids[ids >= 0]
        if not len(splits[split]):
            raise ValueError(f"{name}: the {split} split has no word that comes in training")
    return LanguageDataset(
        name=name,
        vocabulary=tuple(words[i] for i in order),
        counts=counts[order],
        provenance={
            **provenance,
            "tokens": {s: len(splits[s]) for s in SPLITS},
            "dropped": {s: len(raw[s]) - len(splits[s]) for s in SPLITS},
        },
        **splits,
    )
