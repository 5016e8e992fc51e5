"""Data, one shape for each task: text classification, language modelling, translation."""

import os

from dpq_ref.datasets.builtin import load_builtin
from dpq_ref.datasets.download import fetch_dataset
from dpq_ref.datasets.folder import load_folder
from dpq_ref.datasets.language import LanguageDataset, load_builtin_language, load_language, unroll
from dpq_ref.datasets.pairs import Buckets, SentencePairs, TranslationBatch
from dpq_ref.datasets.text import Documents, TextDataset, tokenize
from dpq_ref.datasets.translation import TranslationDataset, load_translation

__all__ = [
    "Buckets",
    "Documents",
    "LanguageDataset",
    "SentencePairs",
    "TextDataset",
    "TranslationBatch",
    "TranslationDataset",
    "fetch_dataset",
    "load",
    "load_builtin",
    "load_builtin_language",
    "load_folder",
    "load_language",
    "load_translation",
    "tokenize",
    "unroll",
]


def load(name_or_path: str | os.PathLike[str]) -> TextDataset:
    """Load a text classification set with default settings.

    Parameters
    ----------
    name_or_path : str or path
        ``"builtin"``, or a folder as `load_folder` reads it (a folder of that name is ``"./builtin"``).

    Returns
    -------
    TextDataset
        The data set.

    Raises
    ------
    FileNotFoundError, ValueError
        As in `load_folder`.
    """
    return load_builtin() if name_or_path == "builtin" else load_folder(name_or_path)
