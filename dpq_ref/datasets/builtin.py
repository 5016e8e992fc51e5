"""The built-in corpus: documentation strings, labelled by the package they are from.

The docstrings of the Python standard library, NumPy, SciPy, scikit-learn, Matplotlib and Numba are on every
machine that runs this package, so there is a real text classification task without a download. Sources are
parsed with `ast` and never imported. Another version of a package is another corpus: compare runs by
``TextDataset.sha256``.

To keep the task honest, the split goes by file, equal texts are taken once, and the packages' names are taken
out.
"""

from __future__ import annotations

import ast
import hashlib
import importlib.metadata
import importlib.util
import inspect
import json
import os
import platform
import re
import sysconfig
import warnings
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from dpq_ref.datasets.files import cache_folder
from dpq_ref.datasets.text import SPLITS, Documents, TextDataset, build_dataset, subset, tokenize

__all__ = ["load_builtin", "read_docstrings"]

MIN_COUNT = 3
MIN_CHARACTERS = 80

# Any change to what comes out of read_docstrings needs a new number here, or old caches stay in use.
_FORMAT = 1

# Class -> name under which Python finds the package; the standard library is found by sysconfig.
_PACKAGES = {
    "numpy": "numpy",
    "scipy": "scipy",
    "scikit-learn": "sklearn",
    "matplotlib": "matplotlib",
    "numba": "numba",
}

# Test folders are left out: 15,500 documents stay of 18,000, but 95 per cent of the tokens. What goes is
# notes on single bugs and sample data, and the files that are wrong on purpose. Some distributions do not
# ship the tests of the standard library at all, and reading would take twice as long.
_SKIPPED_FOLDERS = {"site-packages", "dist-packages", "__pycache__", "test", "tests", "idle_test"}

# Words that name a package, to be left out: all that hold one of the six names (numpydoc, matplotlibrc,
# cpython, pythonic), and the usual abbreviations and import names. "learn" goes only as part of scikit-learn.
_NAME_PARTS = ("numpy", "scipy", "sklearn", "scikit", "matplotlib", "numba", "python")
_ABBREVIATIONS = {"np", "sp", "mpl", "mplot", "plt", "pyplot", "pylab", "nb"}
_SCIKIT_LEARN = re.compile(r"scikit[\W_]?learn", re.IGNORECASE)


def load_builtin(
    *, max_documents: int | None = None, refresh: bool = False, progress: bool = False
) -> TextDataset:
    """Load the docstrings of six packages, labelled by package.

    The first call reads some 2,400 source files, which takes about 20 s; later ones a cache, 0.2 s. The cache
    lies in the folder named by the environment variable ``DPQ_REF_CACHE``, or else in the user's cache
    folder, one file for each set of versions.

    Parameters
    ----------
    max_documents : int, optional
        Take at most so many documents in all, each split and class in proportion, always the same ones. The
        vocabulary is that of the part.
    refresh : bool, default False
        Read the sources even if there is a cache.
    progress : bool, default False
        Show a progress bar while sources are read.

    Returns
    -------
    TextDataset
        Six classes; about 70, 10 and 20 per cent of the files in train, validation and test; words that come
        less than three times in training are ``"<unk>"``. ``provenance`` has the versions and counts.

    Raises
    ------
    ModuleNotFoundError
        If one of the packages is not installed.
    ValueError
        If `max_documents` is below 3.
    """
    versions = {"python": platform.python_version()}
    for label, module in _PACKAGES.items():
        try:
            versions[label] = importlib.metadata.version(label)
        except importlib.metadata.PackageNotFoundError as error:
            raise ModuleNotFoundError(f"the built-in corpus needs {label}", name=module) from error
    key = hashlib.sha256(json.dumps([_FORMAT, versions]).encode()).hexdigest()[:16]
    file = cache_folder() / f"builtin-{key}.npz"

    whole = None if refresh else _load(file)
    if whole is None:
        whole = read_docstrings(_folders(), provenance={"versions": versions}, progress=progress)
        try:
            _save(whole, file)
        except OSError as error:
            warnings.warn(f"the built-in corpus is not cached: {error}", stacklevel=2)
    return subset(whole, max_documents, min_count=MIN_COUNT)


def read_docstrings(
    folders: Mapping[str, Path],
    *,
    provenance: Mapping[str, Any] | None = None,
    progress: bool = False,
) -> TextDataset:
    """Read the docstrings of all Python files below some folders.

    Documents are the docstrings of modules, classes and functions that have 80 characters or more once
    cleaned by `inspect.cleandoc`, without words that name a package. Of documents with the same tokens the
    first is kept, by class, path and line; where they have different classes, none is. Folders of tests are
    left out.

    Parameters
    ----------
    folders : mapping of str to path
        Folder of each class.
    provenance : mapping, optional
        Taken over into the data set.
    progress : bool, default False
        Show a progress bar.

    Returns
    -------
    TextDataset
        The whole corpus, with every training word in its vocabulary. Added to ``provenance``: files read,
        files skipped because they do not parse, documents dropped as duplicates or as of two classes,
        documents kept.
    """
    files = [(label, folder, path) for label, folder in folders.items() for path in _sources(folder)]
    found: dict[tuple[str, ...], tuple[str, str]] = {}  # tokens -> class and split, in order of first sight
    two_classes: set[tuple[str, ...]] = set()
    n_found = n_skipped = 0
    for label, folder, path in _with_bar(files) if progress else files:
        try:
            texts = list(_docstrings(path.read_bytes()))
        except (SyntaxError, ValueError, RecursionError):  # ValueError: a null byte, before Python 3.11.4
            n_skipped += 1
            continue
        split = _split_of(label, path.relative_to(folder).as_posix())
        for text in texts:
            tokens = tuple(t for t in tokenize(_SCIKIT_LEARN.sub(" ", text)) if not _names_a_package(t))
            n_found += 1
            if found.setdefault(tokens, (label, split))[0] != label:
                two_classes.add(tokens)

    names = list(folders)
    splits: dict[str, list[tuple[tuple[str, ...], int]]] = {split: [] for split in SPLITS}
    for tokens, (label, split) in found.items():
        if tokens not in two_classes:
            splits[split].append((tokens, names.index(label)))
    n_kept = sum(map(len, splits.values()))
    counts = {
        "files": len(files),
        "files_skipped": n_skipped,
        "duplicates_dropped": n_found - n_kept,
        "texts_of_two_classes": len(two_classes),
        "documents": {split: len(splits[split]) for split in SPLITS},
    }
    return build_dataset(
        "builtin", splits, min_count=1, label_names=names, provenance={**(provenance or {}), **counts}
    )


def _folders() -> dict[str, Path]:
    """Return the folder of each class, importing none of them."""
    folders = {"python": Path(sysconfig.get_path("stdlib"))}
    for label, module in _PACKAGES.items():
        spec = importlib.util.find_spec(module)
        if spec is None or spec.origin is None:
            raise ModuleNotFoundError(f"the built-in corpus needs {label}", name=module)
        folders[label] = Path(spec.origin).parent
    return folders


def _sources(folder: Path) -> list[Path]:
    """Return the Python files below a folder, sorted by path relative to it."""
    sources = []
    for path in folder.rglob("*.py"):
        relative = path.relative_to(folder)
        if _SKIPPED_FOLDERS.isdisjoint(relative.parts):
            sources.append((relative.as_posix(), path))
    return [path for _, path in sorted(sources)]


def _docstrings(source: bytes) -> Iterator[str]:
    """Yield the cleaned docstrings of a module that are long enough, in the order of their lines."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # invalid escapes in other people's strings
        stack: list[ast.AST] = [ast.parse(source)]
    while stack:
        node = stack.pop()
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            text = inspect.cleandoc(ast.get_docstring(node, clean=False) or "")
            if len(text) >= MIN_CHARACTERS:
                yield text
        # Definitions are statements, and statements are never inside expressions: those need no visit.
        children = [
            child
            for block in ("body", "handlers", "orelse", "finalbody", "cases")
            for child in getattr(node, block, ())
        ]
        stack.extend(reversed(children))


def _names_a_package(token: str) -> bool:
    return token in _ABBREVIATIONS or any(part in token for part in _NAME_PARTS)


def _split_of(label: str, path: str) -> str:
    """Return the split of a file; it depends on nothing but its class and path."""
    hashed = hashlib.sha256(f"{label}/{path}".encode()).digest()
    percent = int.from_bytes(hashed[:8], "big") * 100 >> 64
    return "train" if percent < 70 else "validation" if percent < 80 else "test"


def _with_bar(files: list[tuple[str, Path, Path]]) -> Iterator[tuple[str, Path, Path]]:
    from rich.console import Console
    from rich.progress import track

    return iter(track(files, description="reading docstrings", console=Console(stderr=True)))


def _save(dataset: TextDataset, file: Path) -> None:
    """Write a data set in one step: a reader sees the old file or the new one, never half of one."""
    facts = {
        "name": dataset.name,
        "vocabulary": dataset.vocabulary,
        "label_names": dataset.label_names,
        "provenance": dataset.provenance,
        "sha256": dataset.sha256,
    }
    arrays = {"facts": np.frombuffer(json.dumps(facts).encode("ascii"), np.uint8), "counts": dataset.counts}
    for split in SPLITS:
        documents = dataset.split(split)
        arrays |= {f"{split}_{a}": getattr(documents, a) for a in ("tokens", "offsets", "labels")}
    file.parent.mkdir(parents=True, exist_ok=True)
    unfinished = file.with_suffix(f".{os.getpid()}.tmp")
    try:
        with unfinished.open("wb") as stream:
            np.savez_compressed(stream, **arrays)  # type: ignore[arg-type]
        os.replace(unfinished, file)
    finally:
        unfinished.unlink(missing_ok=True)


def _load(file: Path) -> TextDataset | None:
    """Return the data set in a file, or None where there is none or a damaged one."""
    try:
        with file.open("rb") as stream, np.load(stream, allow_pickle=False) as arrays:
            facts = json.loads(arrays["facts"].tobytes())
            splits = {
                split: Documents(*(arrays[f"{split}_{a}"] for a in ("tokens", "offsets", "labels")))
                for split in SPLITS
            }
            dataset = TextDataset(
                name=facts["name"],
                vocabulary=tuple(facts["vocabulary"]),
                label_names=tuple(facts["label_names"]),
                counts=arrays["counts"],
                provenance=facts["provenance"],
                **splits,
            )
    except (OSError, EOFError, KeyError, TypeError, ValueError, zipfile.BadZipFile, zlib.error):
        return None
    return dataset if dataset.sha256 == facts["sha256"] else None
