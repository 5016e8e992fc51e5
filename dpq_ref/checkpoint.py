"""Checkpoints: arrays and a little JSON, in one file written whole or not at all; the last two are kept."""

import hashlib
import io
import json
import os
import warnings
from pathlib import Path
from typing import Any

import numpy as np

from dpq_ref.compressed.base import write_atomically
from dpq_ref.kernels.reference import Array

KEPT = 2
DIGEST = 32  # bytes


def write(path: str | os.PathLike, arrays: dict[str, Array], meta: dict[str, Any]) -> None:
    """Write arrays, and what can be JSON, to one .npz with a SHA-256 behind it."""
    buffer = io.BytesIO()
    named: Any = {f"array.{name}": array for name, array in arrays.items()}
    np.savez(buffer, meta=np.frombuffer(json.dumps(meta).encode(), np.uint8), **named)
    content = buffer.getvalue()
    write_atomically(path, content + hashlib.sha256(content).digest())


def read(path: str | os.PathLike) -> tuple[dict[str, Array], dict[str, Any]]:
    """Read what `write` wrote.

    Raises
    ------
    ValueError
        If a single bit of the file has changed.
    """
    file = Path(path).read_bytes()
    content, digest = file[:-DIGEST], file[-DIGEST:]
    if hashlib.sha256(content).digest() != digest:
        raise ValueError(f"{path} is damaged: its checksum does not fit")
    with np.load(io.BytesIO(content), allow_pickle=False) as npz:
        arrays = {name: npz[name] for name in npz.files}
    meta = json.loads(arrays.pop("meta").tobytes())
    return {name.removeprefix("array."): array for name, array in arrays.items()}, meta


def save(folder: str | os.PathLike, step: int, arrays: dict[str, Array], meta: dict[str, Any]) -> None:
    """Write the checkpoint of a step into a folder, and remove all but the last two.

    Examples
    --------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     for step in 1, 2, 3:
    ...         save(folder, step, {"x": np.full(2, step)}, {"step": step})
    ...     sorted(path.name for path in Path(folder).iterdir()), latest(folder)
    (['step-000000002.npz', 'step-000000003.npz'], ({'x': array([3, 3])}, {'step': 3}))
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    write(folder / f"step-{step:09d}.npz", arrays, meta)
    for old in _files(folder)[KEPT:]:
        old.unlink()


def latest(folder: str | os.PathLike) -> tuple[dict[str, Array], dict[str, Any]] | None:
    """Read the newest checkpoint of a folder that is whole, or None if there is none at all.

    Warns
    -----
    UserWarning
        For each damaged one that is passed over.

    Raises
    ------
    ValueError
        If there are checkpoints, and all are damaged.
    """
    files = _files(Path(folder))
    for path in files:
        try:
            return read(path)
        except ValueError as error:
            warnings.warn(f"{error}; going back to the one before it", stacklevel=2)
    if files:
        raise ValueError(
            f"all checkpoints are damaged: {', '.join(map(str, files))}; remove them to start anew"
        )
    return None


def _files(folder: Path) -> list[Path]:
    """Checkpoints, the newest first."""
    return sorted(folder.glob("step-*.npz"), reverse=True)
