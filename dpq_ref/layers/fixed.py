"""A compressed table as a layer that stays as it is, while the network around it trains."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from dpq_ref.compressed import Compressed
from dpq_ref.kernels.reference import Array
from dpq_ref.layers.embedding import TableLayer


class FixedEmbedding(TableLayer):
    """Rows of a compressed table, without parameters.

    Parameters
    ----------
    table : Compressed
    backend : {"numba", "numpy", "cupy"} or kernel set, optional

    Examples
    --------
    >>> import numpy as np
    >>> from dpq_ref import DenseTable
    >>> layer = FixedEmbedding(DenseTable(np.eye(2, dtype=np.float32)))
    >>> layer.forward([1])
    array([[0., 1.]], dtype=float32)
    """

    def __init__(self, table: Compressed, *, backend: Any = None):
        super().__init__(table.vocab_size, table.dim, None, table.dtype, backend)
        self.rows = self.kernels.xp.asarray(table.reconstruct())
        self.table = table

    def forward(self, ids: Any, train: bool = True, mask: NDArray[np.bool_] | None = None) -> Array:
        """Rows, (...,) integers -> (..., dim); with a mask (b, t) the means of those kept, (b, dim)."""
        return self._spread(self.rows, self._ids(ids), mask)

    def backward(self, d_output: Array) -> None:
        """Do nothing: there is no parameter."""

    def export(self) -> Compressed:
        """Return the table."""
        return self.table
