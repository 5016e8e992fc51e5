"""Files of text, plain or packed, their digests, and the folder for what is kept between runs."""

import gzip
import hashlib
import lzma
import os
import zlib
from pathlib import Path

__all__ = ["cache_folder", "read_text", "sha256"]


def read_text(file: Path) -> str:
    """Read the whole text of a file in UTF-8, packed where its name ends in ``.gz`` or ``.xz``.

    Parameters
    ----------
    file : Path

    Returns
    -------
    str
        Line ends stay as they are; a byte order mark goes.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        If it is damaged or not UTF-8.
    """
    content = file.read_bytes()
    try:
        if file.suffix == ".gz":
            content = gzip.decompress(content)
        elif file.suffix == ".xz":
            content = lzma.decompress(content)
        return content.decode("utf-8-sig")
    except (EOFError, UnicodeDecodeError, gzip.BadGzipFile, lzma.LZMAError, zlib.error) as error:
        raise ValueError(f"{file}: damaged or not UTF-8: {error}") from error


def sha256(file: Path) -> str:
    """Hex digest of a file as it is stored, packed or not.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    """
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def cache_folder() -> Path:
    """Folder that ``DPQ_REF_CACHE`` names, or else one in the user's cache folder; need not be there yet."""
    if folder := os.environ.get("DPQ_REF_CACHE"):
        return Path(folder)
    from platformdirs import user_cache_dir

    return Path(user_cache_dir("dpq-ref"))
