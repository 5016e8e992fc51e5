"""Layers with hand-written gradients: each backward stands right below its forward."""

from dpq_ref.layers.dense import Dense, Relu
from dpq_ref.layers.embedding import CodeUsage, DPQEmbedding, FullEmbedding, RowSparse
from dpq_ref.layers.loss import softmax_cross_entropy
from dpq_ref.layers.norm import BatchNorm

__all__ = [
    "BatchNorm",
    "CodeUsage",
    "DPQEmbedding",
    "Dense",
    "FullEmbedding",
    "Relu",
    "RowSparse",
    "softmax_cross_entropy",
]
