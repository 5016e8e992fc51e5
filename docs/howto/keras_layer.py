"""A saved product table as a layer of Keras 3, with safetensors alone."""

import json

import keras
import numpy as np
from keras import ops
from safetensors import safe_open


class CompressedEmbedding(keras.layers.Layer):
    """Table of kind "product" of equally wide groups, and not additive; its codes are unpacked."""

    def __init__(self, path, **kwargs):
        super().__init__(**kwargs)
        with safe_open(path, framework="numpy") as file:
            about = json.loads(file.metadata()["dpq_ref"])
            if (about["format"], about["kind"], about.get("additive")) != (2, "product", False):
                raise ValueError(f"{path} holds {about}; it takes a product table, not additive")
            packed, values = file.get_tensor("codes"), file.get_tensor("values")
        if values.ndim != 3:
            raise ValueError(f"{path} has groups that are not equally wide")
        n, D = about["vocab_size"], about["n_groups"]
        values = np.broadcast_to(values, (D, *values.shape[1:]))  # a shared codebook is repeated
        K, s = values.shape[1:]
        n_bits = (K - 1).bit_length()
        bits = np.unpackbits(packed, count=n * D * n_bits, bitorder="little")
        codes = bits.reshape(n, D, n_bits) @ (1 << np.arange(n_bits))
        self.dim = D * s
        self.codes = self.add_weight(shape=(n, D), dtype="int32", trainable=False, name="codes")
        self.values = self.add_weight(
            shape=(D * K, s), dtype=values.dtype.name, trainable=False, name="values"
        )
        self.codes.assign(codes + K * np.arange(D))  # rows of values
        self.values.assign(values.reshape(D * K, s))

    def call(self, ids):
        """Rows of ids, (...,) -> (..., dim)."""
        picked = ops.take(self.values, ops.take(self.codes, ids, axis=0), axis=0)
        return ops.reshape(picked, (*ops.shape(ids), self.dim))
