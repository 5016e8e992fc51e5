"""Rows compared by their bits, without a row being decoded."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from dpq_ref.compressed.base import Compressed
from dpq_ref.compressed.factored import FactoredTable
from dpq_ref.compressed.scalar import ScalarTable


def hamming_similarity(table: Compressed, ids: Any, others: Any = None) -> NDArray[np.float64]:
    """Cosine between the signs of rows, 1 - 2 h / c, h being how many of c bits differ.

    For bits of random hyperplanes the angle of the rows is about pi h / c: the cosine of the signs is not
    the cosine of the rows, but ranks pairs alike.

    Parameters
    ----------
    table : ScalarTable of one bit, or FactoredTable with one on its left
    ids : (b,) integers
    others : (m,) integers, optional
        All rows if not given.

    Returns
    -------
    (b, m) float64

    Raises
    ------
    TypeError, ValueError
        If the table has no bits, or an entry has more than one.

    Examples
    --------
    >>> signs = ScalarTable.from_codes(np.array([[0, 1, 1, 0], [1, 0, 1, 0]]), 1)
    >>> hamming_similarity(signs, [0], [0, 1])
    array([[1., 0.]])
    """
    bits = table.left if isinstance(table, FactoredTable) else table
    if not isinstance(bits, ScalarTable):
        raise TypeError(f"table must have bits, a ScalarTable or a FactoredTable with one, got {table}")
    return 1 - 2 * bits.hamming(ids, others) / bits.dim
