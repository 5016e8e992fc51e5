"""Text classification data: the one shape that every loader returns.

Text becomes tokens, tokens become ids in a vocabulary learnt on the training split, and each of the three
splits is a `Documents`.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dpq_ref.datasets.documents import Documents

__all__ = [
    "PAD",
    "SPLITS",
    "UNK",
    "Documents",
    "TextDataset",
    "build_dataset",
    "digest",
    "subset",
    "tokenize",
]

PAD, UNK = "<pad>", "<unk>"
SPLITS = ("train", "validation", "test")

_TOKEN = re.compile(r"[^\W\d_]+|\d+|[^\w\s]")


def tokenize(text: str) -> list[str]:
    r"""Split lower-cased text into words, numbers and single punctuation marks.

    A token is the longest run of letters (``\w`` without ``\d`` and ``_``), or the longest run of decimal
    digits (``\d``), or one character that is neither ``\w`` nor white space. An underscore separates and is
    dropped, as is white space. All classes are those of `re` for Unicode text.

    Parameters
    ----------
    text : str
        Any text; may be empty.

    Returns
    -------
    list of str
        The tokens in order; none holds white space or an underscore.

    Examples
    --------
    >>> tokenize("Don't use n_samples=10e3...")
    ['don', "'", 't', 'use', 'n', 'samples', '=', '10', 'e', '3', '.', '.', '.']
    """
    return _TOKEN.findall(text.lower())


@dataclass(frozen=True, eq=False)
class TextDataset:
    """A text classification data set: vocabulary, classes and three splits.

    Parameters
    ----------
    name : str
        Short name for tables and figures.
    vocabulary : tuple of str, length n
        Word of each id. Id 0 is ``"<pad>"``, 1 is ``"<unk>"``, then training words by falling count, ties by
        word.
    label_names : tuple of str
        Name of each class.
    train, validation, test : Documents
        The splits.
    counts : int64 array of shape (n,)
        How often each id comes in `train`; ``counts[0]`` is 0.
    provenance : dict
        Where the data came from and how it was made; JSON-able.

    Attributes
    ----------
    sha256 : str
        Hex digest of vocabulary, label names and the arrays of the three splits: equal digests, equal data.
    """

    name: str
    vocabulary: tuple[str, ...]
    label_names: tuple[str, ...]
    train: Documents
    validation: Documents
    test: Documents
    counts: NDArray[np.int64]
    provenance: dict[str, Any]
    sha256: str = field(init=False)

    def __post_init__(self) -> None:
        """Compute the digest."""
        arrays = [getattr(self.split(s), a) for s in SPLITS for a in ("tokens", "offsets", "labels")]
        object.__setattr__(self, "sha256", digest([self.vocabulary, self.label_names], arrays))

    def split(self, name: str) -> Documents:
        """Return the split called `name`.

        Parameters
        ----------
        name : {"train", "validation", "test"}
            Which one.

        Returns
        -------
        Documents
            ``self.train``, ``self.validation`` or ``self.test``.

        Raises
        ------
        ValueError
            If there is no such split.
        """
        if name not in SPLITS:
            raise ValueError(f"split={name!r}; takes one of {', '.join(SPLITS)}")
        return getattr(self, name)


def build_dataset(
    name: str,
    splits: Mapping[str, Sequence[tuple[str | Sequence[str], int]]],
    *,
    min_count: int,
    label_names: Sequence[str],
    provenance: Mapping[str, Any],
) -> TextDataset:
    """Build a data set from texts, with a vocabulary learnt on the training split.

    Parameters
    ----------
    name : str
        Name of the data set.
    splits : mapping of {"train", "validation", "test"} to sequences of (text, label)
        A text is a string, which is tokenized, or a sequence of tokens, taken as they are. A label is the
        number of its class. A token ``"<unk>"`` has id 1.
    min_count : int
        Words that come less often in training become ``"<unk>"``.
    label_names : sequence of str
        Name of each class.
    provenance : mapping
        Kept with the data set.

    Returns
    -------
    TextDataset
        The data set.

    Raises
    ------
    ValueError
        If a split is missing or unknown, a label is no class, a token is ``"<pad>"``, or `min_count` is below
        1.

    Examples
    --------
    >>> data = build_dataset(
    ...     "tiny",
    ...     {"train": [("b a b", 0), ("c!", 1)], "validation": [], "test": [(["a", "c"], 1)]},
    ...     min_count=1, label_names=["x", "y"], provenance={},
    ... )
    >>> data.vocabulary
    ('<pad>', '<unk>', 'b', '!', 'a', 'c')
    >>> data.test.pad([0])
    array([[4, 5]], dtype=int32)
    >>> data.counts
    array([0, 0, 2, 1, 1, 1])
    """
    if set(splits) != set(SPLITS):
        raise ValueError(f"splits has {sorted(splits)}; takes {', '.join(SPLITS)}")
    ids: defaultdict[str, int] = defaultdict()
    ids.default_factory = ids.__len__  # a new word gets the next id
    ids[PAD], ids[UNK]
    raw: dict[str, Documents] = {}
    for split in SPLITS:
        tokens: list[int] = []
        offsets, labels = [0], []
        for text, label in splits[split]:
            if not 0 <= label < len(label_names):
                raise ValueError(f"{split}: label {label!r} is outside 0..{len(label_names) - 1}")
            tokens.extend(map(ids.__getitem__, tokenize(text) if isinstance(text, str) else text))
            offsets.append(len(tokens))
            labels.append(label)
        raw[split] = Documents(
            np.array(tokens, np.int32), np.array(offsets, np.int64), np.array(labels, np.int32)
        )
        if 0 in raw[split].tokens:
            raise ValueError(f"{split}: the token {PAD!r} stands for padding and cannot come in a document")
    return _with_vocabulary(name, tuple(ids), raw, min_count, tuple(label_names), dict(provenance))


def subset(dataset: TextDataset, max_documents: int | None, *, min_count: int) -> TextDataset:
    """Return a smaller data set with a vocabulary learnt anew on what is left of its training split.

    Each split keeps its share of the documents (validation and test rounded down, but at least one unless
    empty), evenly spaced, so that sorted data keep their mix of classes and the choice is always the same.

    Parameters
    ----------
    dataset : TextDataset
        The whole. Words it has already as ``"<unk>"`` stay so.
    max_documents : int or None
        Most documents in the three splits together; None keeps all.
    min_count : int
        Words that come less often in the kept training documents become ``"<unk>"``.

    Returns
    -------
    TextDataset
        The part; its provenance is that of `dataset` with ``"max_documents"`` added when documents were left
        out.

    Raises
    ------
    ValueError
        If `max_documents` is below 3 or `min_count` below 1.
    """
    if max_documents is not None and max_documents < 3:
        raise ValueError(f"max_documents={max_documents}; takes 3 or more, one for each split")
    splits = {name: dataset.split(name) for name in SPLITS}
    provenance = dict(dataset.provenance)
    total = sum(map(len, splits.values()))
    if max_documents is not None and max_documents < total:
        keep = {name: min(len(d), max(1, max_documents * len(d) // total)) for name, d in splits.items()}
        keep["train"] = min(len(dataset.train), max_documents - keep["validation"] - keep["test"])
        splits = {
            name: d.take(np.arange(keep[name]) * len(d) // max(1, keep[name])) for name, d in splits.items()
        }
        provenance["max_documents"] = max_documents
    return _with_vocabulary(
        dataset.name, dataset.vocabulary, splits, min_count, dataset.label_names, provenance
    )


def _with_vocabulary(
    name: str,
    words: tuple[str, ...],
    splits: Mapping[str, Documents],
    min_count: int,
    label_names: tuple[str, ...],
    provenance: dict[str, Any],
) -> TextDataset:
    """Renumber ids over `words`, of which 0 is padding and 1 unknown, by frequency in training."""
    if min_count < 1:
        raise ValueError(f"min_count={min_count}; takes 1 or more")
    old_counts = np.bincount(splits["train"].tokens, minlength=len(words))
    kept = [i for i in range(2, len(words)) if old_counts[i] >= min_count]
    kept.sort(key=lambda i: (-old_counts[i], words[i]))
    new_id = np.ones(len(words), np.int32)
    new_id[0] = 0
    new_id[kept] = np.arange(2, len(kept) + 2)
    renumbered = {s: Documents(new_id[d.tokens], d.offsets, d.labels) for s, d in splits.items()}
    return TextDataset(
        name=name,
        vocabulary=(PAD, UNK, *(words[i] for i in kept)),
        label_names=label_names,
        counts=np.bincount(renumbered["train"].tokens, minlength=len(kept) + 2),
        provenance=provenance,
        **renumbered,
    )


def digest(lists: Sequence[Sequence[str]], arrays: Sequence[NDArray]) -> str:
    """Hex digest of the data of a set, the same on every machine.

    Parameters
    ----------
    lists : sequence of sequences of str
        Vocabularies and the like.
    arrays : sequence of arrays
        Ids, offsets and labels.

    Returns
    -------
    str
        SHA-256 of the lists as JSON and of the little-endian bytes of each array, with their lengths.
    """
    hashed = hashlib.sha256()
    # JSON keeps the borders between strings, and is ASCII even for half a surrogate pair.
    parts = [json.dumps(lists).encode("ascii")]
    parts += [a.astype(a.dtype.newbyteorder("<")).tobytes() for a in arrays]
    for part in parts:
        hashed.update(len(part).to_bytes(8, "little"))
        hashed.update(part)
    return hashed.hexdigest()
