"""Errors at the door: each names the argument, what it got and what it takes.

Tables and weights come in on the host, wherever they were; ids stay where they are.
"""

from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dpq_ref.backend import array_module, on_device, to_numpy
from dpq_ref.kernels.reference import BLOCK
from dpq_ref.progress import told


def as_ids(ids: Any, vocab_size: int, name: str = "ids") -> NDArray[np.integer]:
    """Check ids of rows, or codes.

    Parameters
    ----------
    ids : array_like of integers, any shape
    vocab_size : int
    name : str
        What the messages call them.

    Returns
    -------
    array of integers, same shape; of a device if it was

    Raises
    ------
    TypeError
        If ids are not integers.
    IndexError
        If an id is negative or not below `vocab_size`.
    """
    there = type(ids) is not np.ndarray and on_device(ids)
    array = ids if there else np.asarray(ids)
    if array.size == 0 and not hasattr(ids, "dtype"):
        array = array.astype(np.int64)  # an empty list says nothing of its dtype
    if array.dtype.kind not in "iu":
        raise TypeError(f"{name} must be integers, got dtype {array.dtype}")
    if array.size:
        if there:
            low, high = array_module(array).stack([array.min(), array.max()]).get().tolist()  # waits once
        else:
            low, high = array.item(array.argmin()), array.item(array.argmax())
        if low < 0 or high >= vocab_size:
            raise IndexError(f"{name} must lie in [0, {vocab_size}), got {low if low < 0 else high}")
    return array


def as_table(table: Any, name: str = "X") -> NDArray[np.floating]:
    """Check an embedding table: two axes, float32 or float64 (anything else becomes float32), all finite.

    Raises
    ------
    TypeError
        If the entries are not real numbers.
    ValueError
        If there are not two axes, no columns, or an entry is NaN or infinite.
    """
    array = to_numpy(table)
    if array.dtype.kind not in "fiu":
        raise TypeError(f"{name} must hold real numbers, got dtype {array.dtype}")
    if array.ndim != 2 or array.shape[1] == 0:
        raise ValueError(f"{name} must have shape (rows, dim), got {array.shape}")
    double = array.dtype.newbyteorder("=") == np.float64
    array = array.astype(np.float64 if double else np.float32, copy=False)
    array = np.ascontiguousarray(array)
    count, step = 0, max(1, BLOCK // array.shape[1])
    for start in told("reading", range(0, len(array), step)):
        block = array[start : start + step]
        with np.errstate(over="ignore", invalid="ignore"):
            if np.isfinite(np.vdot(block, block)):  # one pass; only where it is not, each entry is looked at
                continue
        bad = ~np.isfinite(block)
        if not count and bad.any():
            row, column = divmod(start * array.shape[1] + int(bad.argmax()), array.shape[1])
        count += int(bad.sum())
    if count:
        entries = "entry that is" if count == 1 else "entries that are"
        raise ValueError(
            f"{name} has {count} {entries} NaN or infinite, the first in row {row}, column {column}"
        )
    return array


def utf8(words: Iterable[str]) -> list[bytes]:
    """Encode words (TypeError; ValueError that names the row: half of a surrogate pair has no UTF-8)."""
    encoded = []
    for row, word in enumerate(words):
        if not isinstance(word, str):
            raise TypeError(f"words must be str, got {type(word).__name__} in row {row}")
        try:
            encoded.append(word.encode())
        except UnicodeEncodeError as error:
            raise ValueError(f"row {row}: the word {word!r} has no UTF-8: {error.reason}") from error
    return encoded


def as_weights(weights: Any, n: int, name: str = "weights") -> NDArray[np.float64]:
    """Check the weights of n rows, (n,) float64; none given: all 1.

    Raises
    ------
    ValueError
        If they are not n finite numbers of at least 0, or all 0.
    """
    if weights is None:
        return np.ones(n)
    array = np.asarray(to_numpy(weights), np.float64)
    if array.shape != (n,):
        raise ValueError(f"{name} has shape {array.shape}; for {n} rows it takes ({n},)")
    bad = ~(np.isfinite(array) & (array >= 0))
    if bad.any():
        raise ValueError(
            f"{name} must be finite and at least 0; {int(bad.sum())} of {n} are not, "
            f"the first {array[bad][0]} in row {int(bad.argmax())}"
        )
    if not array.any():
        raise ValueError(f"{name} is zero in all rows; it takes at least one above 0")
    return array


def as_real(dtype: Any) -> np.dtype:
    """Check a dtype to compute in: float32 or float64 (ValueError; less makes codes unreachable)."""
    dtype = np.dtype(dtype)
    if dtype not in (np.float32, np.float64):
        raise ValueError(f"dtype={dtype.name}; it takes float32 or float64")
    return dtype


def positive(name: str, value: Any, least: int = 1) -> int:
    """Check an integer of at least `least` (TypeError, ValueError)."""
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)):
        raise TypeError(f"{name}={value!r}; it takes an integer")
    if value < least:
        raise ValueError(f"{name}={value}; it takes an integer of at least {least}")
    return int(value)


def number_of_codes(n_codes: Any) -> int:
    """Check K: from 2 to 65,536 (TypeError, ValueError)."""
    n_codes = positive("n_codes", n_codes, least=2)
    if n_codes > 1 << 16:
        raise ValueError(f"n_codes={n_codes}; it takes at most {1 << 16} (16 bits a code)")
    return n_codes


def group_width(dim: int, n_groups: int) -> int:
    """Width s = dim / n_groups of a group (ValueError that names the nearest divisors)."""
    if dim % n_groups:
        divisors = [k for k in range(1, dim + 1) if dim % k == 0]
        below = [k for k in divisors if k < n_groups][-1:]
        above = [k for k in divisors if k > n_groups][:1]
        near = ", ".join(map(str, below + above))
        raise ValueError(f"n_groups={n_groups} does not divide dim={dim}; divisors near {n_groups}: {near}")
    return dim // n_groups
