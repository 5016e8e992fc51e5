"""Rows of a compressed table, straight from its packed codes, beside decoders and uncompressed tables."""

from typing import Any

import numpy as np

from dpq_ref import ProductTable
from figures.speed import Work
from figures.workloads.zipf import VOCAB, zipf


def lookup(tokens: int, dim: int, n_groups: int, n_codes: int, out: bool = False) -> Work:
    """Look words up by Zipf's law; with `out`, all sides write where they wrote before."""
    import faiss
    import torch

    rng = np.random.default_rng(0)
    codes = rng.integers(0, n_codes, (VOCAB, n_groups))
    values = rng.standard_normal((n_groups, n_codes, dim // n_groups)).astype(np.float32)
    table, ids = ProductTable.from_codes(codes, values), zipf(tokens, rng).astype(np.int64)
    rows = np.empty((tokens, dim), np.float32)

    def ours() -> Any:
        return table.lookup(ids, out=rows if out else None)

    # faiss gets the codes of the ids in their order; torch has the whole table, and no codes.
    quantizer = faiss.ProductQuantizer(dim, n_groups, table.n_bits)
    faiss.copy_array_to_vector(values.ravel(), quantizer.centroids)
    whole, decoded = table.reconstruct(), np.empty_like(rows)
    theirs = quantizer.compute_codes(whole)[ids]
    full, index = torch.tensor(whole), torch.tensor(ids)
    selected = torch.empty(tokens, dim)

    def faiss_decode() -> Any:
        if not out:
            return quantizer.decode(theirs)
        quantizer.decode_c(faiss.swig_ptr(theirs), faiss.swig_ptr(decoded), tokens)
        return decoded

    def torch_lookup() -> Any:
        if not out:
            return torch.nn.functional.embedding(index, full)
        return torch.index_select(full, 0, index, out=selected)

    def agree() -> None:
        for call in (faiss_decode, torch_lookup):
            np.testing.assert_array_equal(ours(), np.asarray(call()))

    return Work(
        f"{tokens:,} ids, dim {dim}, D {n_groups}, K {n_codes}",
        ours,
        {"faiss": faiss_decode, "torch, uncompressed": torch_lookup},
        agree,
        traffic=tokens * (table.bytes_per_lookup() + rows.itemsize * dim),
    )
