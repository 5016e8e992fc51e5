"""Layers with hand-written gradients: each backward stands right below its forward."""

from dpq_ref.layers.dense import Dense, Relu
from dpq_ref.layers.embedding import CodeUsage, DPQEmbedding, FullEmbedding, RowSparse
from dpq_ref.layers.loss import softmax_cross_entropy
from dpq_ref.layers.low_rank import BlockEmbedding, LowRankEmbedding, rank_kept
from dpq_ref.layers.norm import BatchNorm

__all__ = [
    "BatchNorm",
    "BlockEmbedding",
    "CodeUsage",
    "DPQEmbedding",
    "Dense",
    "FullEmbedding",
    "LowRankEmbedding",
    "Relu",
    "RowSparse",
    "rank_kept",
    "softmax_cross_entropy",
]
