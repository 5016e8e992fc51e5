"""Product tables as indices of faiss, which searches among their rows without decoding them, and back."""

from types import ModuleType
from typing import Any

import numpy as np

from dpq_ref.compressed import Compressed, DenseTable, FactoredTable, ProductTable

__all__ = ["from_faiss", "to_faiss"]


def to_faiss(table: Compressed, *, inner_product: bool = False) -> Any:
    """Index with the codes and the codebooks of a table: what it reconstructs are the rows.

    Parameters
    ----------
    table : ProductTable, or FactoredTable of one and a rotation (optimized product quantization)
        A shared codebook is repeated for each group, and float64 becomes float32. Tables that are additive,
        or whose groups are not equally wide, have no place in faiss's product quantizer.
    inner_product : bool
        Search for the largest inner product rather than the smallest distance.

    Returns
    -------
    faiss.IndexPQ, or faiss.IndexPreTransform around one for a rotated table
        K is the next power of two; codes from there on are never used.

    Raises
    ------
    ModuleNotFoundError
        If faiss is not installed.
    ValueError
        If the table has another form.

    Examples
    --------
    >>> import faiss  # doctest: +SKIP
    >>> faiss.write_index(to_faiss(table), "table.faiss")  # doctest: +SKIP
    """
    faiss = _faiss()
    table.check()
    if isinstance(table, FactoredTable):
        right = table.right.reconstruct().astype(np.float32)
        rotation = faiss.LinearTransform(table.dim, table.right.vocab_size, False)
        faiss.copy_array_to_vector(right.ravel(), rotation.A)
        rotation.set_is_orthonormal()
        rotation.is_trained = True
        if table.offset is not None or table.bound is not None or not rotation.is_orthonormal:
            raise ValueError("a factored table must have a rotation on its right, no offset and no bound")
        return faiss.IndexPreTransform(rotation, to_faiss(table.left, inner_product=inner_product))
    if not isinstance(table, ProductTable) or table.additive or table.values.ndim == 2:
        raise ValueError(f"{table} must be a ProductTable of equally wide groups, and not additive")
    D, K, s = table.n_groups, table.n_codes, table.values.shape[2]
    metric = faiss.METRIC_INNER_PRODUCT if inner_product else faiss.METRIC_L2
    index = faiss.IndexPQ(table.dim, D, table.n_bits, metric)
    centroids = np.zeros((D, 1 << table.n_bits, s), np.float32)
    centroids[:, :K] = table.values
    faiss.copy_array_to_vector(centroids.ravel(), index.pq.centroids)
    index.is_trained = True
    index.add_sa_codes(faiss.pack_bitstrings(table.codes, table.n_bits))  # rows begin at whole bytes
    return index


def from_faiss(index: Any) -> ProductTable | FactoredTable:
    """Table with the codes and the codebooks of an index.

    Parameters
    ----------
    index : faiss.IndexPQ, or faiss.IndexPreTransform of one rotation and one of these

    Returns
    -------
    ProductTable, or FactoredTable of it and the rotation

    Raises
    ------
    ModuleNotFoundError
        If faiss is not installed.
    ValueError
        If the index has another form.
    """
    faiss = _faiss()
    found = faiss.downcast_index(index)  # a view: `index` may be all that keeps it
    if isinstance(found, faiss.IndexPreTransform) and found.chain.size() == 1:
        rotation = faiss.downcast_VectorTransform(found.chain.at(0))
        if isinstance(rotation, faiss.LinearTransform) and rotation.is_orthonormal and not rotation.have_bias:
            right = faiss.vector_to_array(rotation.A).reshape(rotation.d_out, rotation.d_in)
            return FactoredTable(from_faiss(found.index), DenseTable(right))
    if not isinstance(found, faiss.IndexPQ):
        kind = type(found).__name__
        raise ValueError(
            f"index is {kind}; it takes IndexPQ, or IndexPreTransform of one rotation and IndexPQ"
        )
    pq = found.pq
    values = faiss.vector_to_array(pq.centroids).reshape(pq.M, pq.ksub, pq.dsub)
    packed = faiss.vector_to_array(found.codes).reshape(found.ntotal, pq.code_size)
    return ProductTable.from_codes(faiss.unpack_bitstrings(packed, pq.M, pq.nbits), values)


def _faiss() -> ModuleType:
    try:
        import faiss
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError("this needs faiss: pip install faiss-cpu", name=error.name) from error
    return faiss
