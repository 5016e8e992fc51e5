"""Text classification data, all in one shape: a built-in corpus, and folders of csv or tsv files."""

import os

from dpq_ref.datasets.builtin import load_builtin
from dpq_ref.datasets.folder import load_folder
from dpq_ref.datasets.text import Documents, TextDataset, tokenize

__all__ = ["Documents", "TextDataset", "load", "load_builtin", "load_folder", "tokenize"]


def load(name_or_path: str | os.PathLike[str]) -> TextDataset:
    """Load a data set with default settings.

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
