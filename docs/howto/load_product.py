"""Look up rows of a product table with NumPy and safetensors alone."""

import json

import numpy as np
from safetensors import safe_open


class ProductFile:
    """Table of kind "product": a row is D codes into codebooks."""

    def __init__(self, path):
        with safe_open(path, framework="numpy") as file:
            about = json.loads(file.metadata()["dpq_ref"])
            kind = about["format"], about["kind"]
            if kind != (2, "product"):
                raise ValueError(f"{path} holds format and kind {kind}; it takes (2, 'product')")
            self.codes, self.values = file.get_tensor("codes"), file.get_tensor("values")
        self.n, self.D = about["vocab_size"], about["n_groups"]
        self.additive = about["additive"]
        self.n_bits = (self.values.shape[-2] - 1).bit_length()  # ceil(log2 K)

    def lookup(self, ids):
        """Rows of ids, (...,) -> (..., dim)."""
        ids = np.asarray(ids)
        if ids.size and not 0 <= ids.min() <= ids.max() < self.n:
            raise IndexError(f"ids must lie in [0, {self.n})")
        number = ids.reshape(-1, 1) * self.D + np.arange(self.D)  # in the stream
        bit = number[..., None] * self.n_bits + np.arange(self.n_bits)  # lowest first
        codes = ((self.codes[bit // 8] >> (bit % 8)) & 1) @ (1 << np.arange(self.n_bits))
        if self.values.ndim == 2:  # (K, dim): groups that are not equally wide
            columns = np.array_split(np.arange(self.values.shape[1]), self.D)
            group = np.repeat(np.arange(self.D), [len(c) for c in columns])
            rows = self.values[codes[:, group], np.arange(len(group))]
        else:  # (D or 1, K, s)
            book = np.arange(self.D) if len(self.values) > 1 else 0
            rows = self.values[book, codes]
            if self.additive:
                rows = rows.mean(axis=1)
            else:
                rows = rows.reshape(len(rows), self.D * rows.shape[2])
        return rows.reshape(*ids.shape, rows.shape[-1])
