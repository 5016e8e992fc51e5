"""Layers with hand-written gradients: each backward stands right below its forward."""

from dpq_ref.layers.embedding import CodeUsage, DPQEmbedding, FullEmbedding, RowSparse

__all__ = ["CodeUsage", "DPQEmbedding", "FullEmbedding", "RowSparse"]
