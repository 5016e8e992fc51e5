"""Nearest neighbours and codes of some words, in the embeddings of finished trainings."""

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dpq_ref.compressed import ProductTable, load
from dpq_ref.metrics.geometry import nearest
from dpq_ref.tasks.recipe import load_data

Row = dict[str, Any]


def usual_words(words: Sequence[str], n: int, first: int = 64) -> list[str]:
    """Choose n words, of letters alone, of a vocabulary from frequent to rare.

    The first is the 64th, or whichever is asked for, each next one twice as far down.

    Examples
    --------
    >>> [len(word) for word in usual_words(["x" * i for i in range(1, 300)], 3)]
    [64, 128, 256]
    """
    known = [word for word in words if word.isalpha()]
    return list(dict.fromkeys(known[min(first * 2**i, len(known)) - 1] for i in range(n if known else 0)))


def neighbours(
    folders: Sequence[str | os.PathLike], data: str, words: Sequence[str] = (), *, k: int = 8
) -> list[Row]:
    """Nearest words by cosine, and the code, of some words in the embedding of each training.

    Parameters
    ----------
    folders : sequence of path
        Of finished `dpq-ref train`, all on one data.
    data : str
        Its folder, or "builtin".
    words : sequence of str, optional
        By default some from frequent to rare.
    k : int

    Returns
    -------
    list of dict
        word, embedding (kind and parameters), seed, neighbours (k words), code (D integers; none of a full
        embedding).

    Raises
    ------
    FileNotFoundError
        If a training has not come to its end.
    ValueError
        If a word is not in the vocabulary, or the training had other data.
    """
    found: dict[str, list[Row]] = {}
    for folder in map(Path, folders):
        if not (folder / "result.json").is_file():
            raise FileNotFoundError(f"no {folder / 'result.json'}: the training has not come to its end")
        config = json.loads((folder / "result.json").read_text(encoding="utf8"))["config"]
        vocabulary = _vocabulary(config, data)
        index = {word: i for i, word in enumerate(vocabulary)}
        words = words or usual_words(vocabulary, 7)
        if unknown := [word for word in words if word not in index]:
            raise ValueError(f"words: {', '.join(unknown)} not in the vocabulary of {data}")
        ids = np.array([index[word] for word in words])
        table = load(folder / "embedding.safetensors")
        near = nearest(table.reconstruct(), ids, min(k, len(vocabulary) - 1))
        codes = table.codes[ids].tolist() if isinstance(table, ProductTable) else [None] * len(ids)
        for word, others, code in zip(words, near, codes, strict=True):
            row = {"word": word, "embedding": config["embedding"], "seed": config["seed"]}
            row |= {"neighbours": [vocabulary[i] for i in others]} | ({"code": code} if code else {})
            found.setdefault(word, []).append(row)
    return [row for rows in found.values() for row in rows]


def _vocabulary(config: dict[str, Any], path: str) -> Sequence[str]:
    """Words whose vectors a training learns, from frequent to rare."""
    data = load_data(config["task"], path, *([config["languages"]] if "languages" in config else []))
    if data.sha256 != config["data_sha256"]:
        raise ValueError(f"data={path!r}; it takes what the training had, and this is not the same")
    return data.source_vocabulary if config["task"] == "translate" else data.vocabulary
