"""Checks of shapes at the door of a kernel."""

from typing import Any


def check_shape(name: str, array: Any, *shape: int) -> None:
    """Raise ValueError unless an array has a shape."""
    if array.shape != shape:
        raise ValueError(f"{name} must have shape {shape}, got {array.shape}")


def check_book(name: str, book: Any, n_groups: int, width: int) -> None:
    """Raise ValueError unless a codebook fits, be it one per group or shared."""
    if book.ndim != 3 or book.shape[0] not in (1, n_groups) or book.shape[1] < 1 or book.shape[2] != width:
        raise ValueError(f"{name} must have shape ({n_groups} or 1, K, {width}), got {book.shape}")
