"""Translation data from a folder: the files of IWSLT'15 English-Vietnamese, in either direction.

Files and vocabularies are those of tensorflow/nmt, with which Chen, Li and Sun (ICML 2020) trained.
"""

from __future__ import annotations

import os
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dpq_ref.datasets.documents import Sequences
from dpq_ref.datasets.files import read_text, sha256
from dpq_ref.datasets.pairs import UNKNOWN, SentencePairs
from dpq_ref.datasets.text import SPLITS, digest

__all__ = ["TranslationDataset", "load_translation"]

_SYMBOLS = ("<unk>", "<s>", "</s>")
_STEMS = {"vocabulary": "vocab", "train": "train", "validation": "tst2012", "test": "tst2013"}


@dataclass(frozen=True, eq=False)
class TranslationDataset:
    """A translation data set: two languages, their vocabularies and three splits.

    Parameters
    ----------
    name : str
        Name of the data set.
    source, target : str
        The languages.
    source_vocabulary, target_vocabulary : tuple of str
        Word of each id; the first three are ``"<unk>"``, ``"<s>"`` and ``"</s>"``.
    source_counts : int64 array of shape (n,)
        How often each source id comes in `train`, before anything is cut.
    train, validation, test : SentencePairs
        The splits.
    provenance : dict
        Where the text came from; pairs and unknown words of each split; JSON-able.

    Attributes
    ----------
    sha256 : str
        Hex digest of vocabularies and splits: equal digests, equal data.
    """

    name: str
    source: str
    target: str
    source_vocabulary: tuple[str, ...]
    target_vocabulary: tuple[str, ...]
    source_counts: NDArray[np.int64]
    train: SentencePairs
    validation: SentencePairs
    test: SentencePairs
    provenance: dict[str, Any]
    sha256: str = field(init=False)

    def __post_init__(self) -> None:
        """Compute the digest."""
        splits = [getattr(self, s) for s in SPLITS]
        sides = [side for pairs in splits for side in (pairs.source, pairs.target)]
        lists = [self.source_vocabulary, self.target_vocabulary, *(pairs.references for pairs in splits)]
        arrays = [array for side in sides for array in (side.tokens, side.offsets)]
        object.__setattr__(self, "sha256", digest(lists, arrays))


def load_translation(
    path: str | os.PathLike[str], source: str = "en", target: str = "vi"
) -> TranslationDataset:
    """Load a translation data set from a folder.

    Parameters
    ----------
    path : path
        A folder with the files ``train``, ``tst2012`` (validation), ``tst2013`` (test) and ``vocab``, each
        for both languages (``train.en``), plain or packed (``.gz``, ``.xz``), in UTF-8. Sentences stand a
        line each, those of one language beside those of the other; words stand between white space and are
        taken as they are. Vocabularies have a word a line; where ``<unk>``, ``<s>`` and ``</s>`` do not come
        first, they are put there.
    source, target : str, default "en" and "vi"
        The languages, translated from and into.

    Returns
    -------
    TranslationDataset
        Named after the folder. Words that are not in the vocabulary have id 0. Empty sentences are kept.

    Raises
    ------
    FileNotFoundError
        If a folder or file is missing; the message says what was looked for.
    ValueError
        If a file comes more than once or is damaged, a vocabulary has an empty line or a word twice, or the
        two sides of a split have different numbers of lines.
    """
    folder = Path(path)
    if not folder.is_dir():
        raise FileNotFoundError(f"no folder {folder}")
    names = {part: [f"{stem}.{lang}" for lang in (source, target)] for part, stem in _STEMS.items()}
    files = {part: [_find(folder, name) for name in names[part]] for part in names}
    vocabularies = [_vocabulary(file) for file in files["vocabulary"]]
    splits, unknown = {}, {}
    for split in SPLITS:
        lines = [_lines(file) for file in files[split]]
        if len(lines[0]) != len(lines[1]):
            counts = [f"{file.name} has {len(x)}" for file, x in zip(files[split], lines, strict=True)]
            raise ValueError(f"{folder}: {' lines, '.join(counts)}; both take the same number")
        sides = [_ids(x, vocabulary) for x, vocabulary in zip(lines, vocabularies, strict=True)]
        splits[split] = SentencePairs(sides[0], sides[1], references=tuple(lines[1]))
        unknown[split] = [int((side.tokens == UNKNOWN).sum()) for side in sides]
    return TranslationDataset(
        name=folder.resolve().name,
        source=source,
        target=target,
        source_vocabulary=vocabularies[0],
        target_vocabulary=vocabularies[1],
        source_counts=np.bincount(splits["train"].source.tokens, minlength=len(vocabularies[0])),
        provenance={
            "sha256": {file.name: sha256(file) for pair in files.values() for file in pair},
            "pairs": {split: len(splits[split]) for split in SPLITS},
            "unknown": unknown,
        },
        **splits,
    )


def _find(folder: Path, name: str) -> Path:
    """Return the file of that name, plain or packed."""
    files = [file for packing in ("", ".gz", ".xz") if (file := folder / f"{name}{packing}").is_file()]
    if not files:
        raise FileNotFoundError(f"{folder}: no file {name}, plain, .gz or .xz")
    if len(files) > 1:
        raise ValueError(f"{folder}: which file: {', '.join(f.name for f in files)}?")
    return files[0]


def _lines(file: Path) -> list[str]:
    lines = read_text(file).split("\n")  # not splitlines(): U+2028, U+0085 and others come inside sentences
    if lines[-1] == "":
        lines.pop()
    return [line.removesuffix("\r") for line in lines]


def _vocabulary(file: Path) -> tuple[str, ...]:
    words = [line.strip() for line in _lines(file)]
    if "" in words:
        raise ValueError(f"{file}, line {words.index('') + 1}: no word")
    if tuple(words[:3]) != _SYMBOLS:
        words = [*_SYMBOLS, *words]
    word, count = Counter(words).most_common(1)[0]
    if count > 1:
        takes = f"each word once and {', '.join(_SYMBOLS)} first, or none of these"
        raise ValueError(f"{file}: {word!r} comes {count} times; takes {takes}")
    return tuple(words)


def _ids(lines: Sequence[str], vocabulary: Sequence[str]) -> Sequences:
    number = defaultdict(lambda: UNKNOWN, {word: i for i, word in enumerate(vocabulary)})
    tokens: list[int] = []
    offsets = [0]
    for line in lines:
        tokens.extend(map(number.__getitem__, line.split()))
        offsets.append(len(tokens))
    return Sequences(np.array(tokens, np.int32), np.array(offsets, np.int64))
