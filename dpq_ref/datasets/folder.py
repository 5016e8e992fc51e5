r"""A folder with train, test and perhaps validation: the csv sets of Zhang, Zhao and LeCun (2015), or as tsv.

csv: label first, then the text in one field or more, quoted, quotes inside doubled. A backslash stands for a
line break and escapes nothing. The sets' own readme has a line break as ``\n``, AG News in fact as ``\``
alone: what most backslashes of a file are holds for the whole file.

tsv: ``label<TAB>text``, cut at the first tab; nothing is quoted or escaped. Where a whole number stands
between label and text in every row of a file, such as the stars of some IMDB files, it is left out: it is no
text, and it tells the label.
"""

from __future__ import annotations

import csv
import io
import os
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from dpq_ref.datasets.files import read_text, sha256
from dpq_ref.datasets.text import SPLITS, TextDataset, build_dataset

__all__ = ["load_folder"]

_DATA_FILE = re.compile(r"(train|valid(?:ation)?|test)[^.]*\.(csv|tsv)(\.gz|\.xz)?")
_NUMBER = re.compile(r"[^\t]*\t-?[0-9]+\t")  # between label and text


def load_folder(
    path: str | os.PathLike[str], *, min_count: int = 2, validation_fraction: float = 0.1, seed: int = 0
) -> TextDataset:
    """Load a text classification set from a folder.

    Parameters
    ----------
    path : path
        A folder with one file ``train*``, one ``test*`` and, if there is one, a ``valid*``, each ``.csv`` or
        ``.tsv``, plain or packed (``.gz``, ``.xz``), in UTF-8. Of several test or validation files that one
        counts which has the format of the training file. ``classes.txt``, where there is one, names a class a
        line: the classes in numerical order, or sorted where the labels are no integers. Where its names are
        the labels themselves, they go by name.
    min_count : int, default 2
        Words that come less often in training become ``"<unk>"``.
    validation_fraction : float, default 0.1
        Part of the training documents to validate on, ``0 <= validation_fraction < 1``, where there is no
        file for that.
    seed : int, default 0
        Which documents these are.

    Returns
    -------
    TextDataset
        Named after the folder. Documents without a token are kept.

    Raises
    ------
    FileNotFoundError
        If a folder or file is missing; the message says what was looked for.
    ValueError
        If the choice of files is ambiguous, a file is damaged, a row has no label or no text field (naming
        file and line), a label does not come in training, or `classes.txt` does not fit the labels.

    Examples
    --------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     for file in "train.csv", "test.csv":
    ...         _ = Path(folder, file).write_text('"3","Title","its text"')
    ...     data = load_folder(folder, min_count=1)
    >>> data.label_names, [data.vocabulary[i] for i in data.test.pad([0])[0]]
    (('3',), ['title', 'its', 'text'])
    """
    if not 0 <= validation_fraction < 1:
        raise ValueError(f"validation_fraction={validation_fraction}; takes 0 <= validation_fraction < 1")
    folder = Path(path)
    files = _find(folder)
    rows = {split: _rows(file) for split, file in files.items()}
    if not rows["train"]:
        raise ValueError(f"{files['train']}: no documents")

    labels = {label for _, label, _ in rows["train"]}
    for split, file in files.items():
        for line, label, _ in rows[split]:
            if label not in labels:
                known = files["train"].name
                raise ValueError(f"{file}, line {line}: label {label!r} does not come in {known}")
    ordered, names = _classes(folder, labels)
    number = {label: i for i, label in enumerate(ordered)}

    if "validation" not in files:
        train = rows["train"]
        n_validation = min(round(validation_fraction * len(train)), len(train) - 1)
        shuffled = np.random.default_rng(seed).permutation(len(train))
        # Back in file order: a seed chooses documents, it does not order them.
        rows["train"] = [train[i] for i in np.sort(shuffled[n_validation:])]
        rows["validation"] = [train[i] for i in np.sort(shuffled[:n_validation])]
    return build_dataset(
        folder.resolve().name,
        {split: [(text, number[label]) for _, label, text in rows[split]] for split in rows},
        min_count=min_count,
        label_names=names,
        provenance={
            "sha256": {file.name: sha256(file) for file in files.values()},
            "min_count": min_count,
            "validation_fraction": None if "validation" in files else validation_fraction,
            "seed": seed,
            "documents": {split: len(rows[split]) for split in SPLITS},
        },
    )


def _find(folder: Path) -> dict[str, Path]:
    """Return the training, the test and, where there is one, the validation file."""
    if not folder.is_dir():
        raise FileNotFoundError(f"no folder {folder}")
    found: dict[str, dict[Path, str]] = {"train": {}, "test": {}, "validation": {}}
    for file in sorted(folder.iterdir()):
        if match := _DATA_FILE.fullmatch(file.name):
            found["validation" if match[1] == "valid" else match[1]][file] = match[2]
    if len(found["train"]) == 1:
        (form,) = found["train"].values()
        for split in ("test", "validation"):
            if len(found[split]) > 1:
                found[split] = {f: x for f, x in found[split].items() if x == form} or found[split]
    for split, files in found.items():
        if not files and split != "validation":
            raise FileNotFoundError(f"{folder}: no {split}*.csv or {split}*.tsv, plain, .gz or .xz")
        if len(files) > 1:
            raise ValueError(f"{folder}: which is the {split} file: {', '.join(f.name for f in files)}?")
    return {split: next(iter(files)) for split, files in found.items() if files}


def _classes(folder: Path, labels: set[str]) -> tuple[list[str], list[str]]:
    """Return the labels in the order of their ids, and their names."""
    integers = all(re.fullmatch(r"-?[0-9]+", label) for label in labels)
    ordered = sorted(labels, key=lambda label: (int(label) if integers else 0, label))
    file = folder / "classes.txt"
    if not file.exists():
        return ordered, ordered
    names = [line.strip() for line in read_text(file).rstrip().split("\n")]
    if set(names) == labels:
        ordered = names
    if len(names) != len(ordered):
        raise ValueError(f"{file}: {len(names)} names for {len(ordered)} labels ({', '.join(ordered[:20])})")
    return ordered, names


def _rows(file: Path) -> list[tuple[int, str, str]]:
    """Return (line number, label, text) of each document."""
    cut = _csv_rows if ".csv" in file.suffixes else _tsv_rows
    rows = []
    for line, label, *fields in cut(file):
        label = label.strip()
        if not label:
            raise ValueError(f"{file}, line {line}: no label")
        if not fields:
            raise ValueError(f"{file}, line {line}: no text field after the label {label[:40]!r}")
        rows.append((line, label, " ".join(fields)))
    return rows


def _tsv_rows(file: Path) -> Iterator[tuple]:
    lines = read_text(file).split("\n")  # not splitlines(): U+2028, U+0085 and others come inside texts
    if lines[-1] == "":
        lines.pop()
    numbered = all(_NUMBER.match(row) for row in lines)
    for line, row in enumerate(lines, 1):
        label, *fields = row.split("\t", 2 if numbered else 1)
        yield line, label, *fields[1 if numbered else 0 :]


def _csv_rows(file: Path) -> Iterator[tuple]:
    content = read_text(file)
    line_break = re.compile(r"\\n?" if 2 * content.count(r"\n") > content.count("\\") else r"\\")
    reader = csv.reader(io.StringIO(content, newline="\n"), strict=True)
    limit = csv.field_size_limit(len(content) + 1)  # the module stops at 131,072 characters otherwise
    line = 1
    try:
        for row in reader:
            yield line, *(line_break.sub(" ", column) for column in row or [""])
            line = reader.line_num + 1
    except csv.Error as error:
        raise ValueError(f"{file}, line {line}: {error}") from error
    finally:
        csv.field_size_limit(limit)
