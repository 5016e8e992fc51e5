"""Layers with hand-written gradients: each backward stands right below its forward."""

from dpq_ref.layers.attention import LuongAttention, MultiHeadAttention, length_mask
from dpq_ref.layers.dense import Dense, Relu
from dpq_ref.layers.dropout import Dropout
from dpq_ref.layers.embedding import CodeUsage, DPQEmbedding, FullEmbedding, RowSparse
from dpq_ref.layers.fixed import FixedEmbedding
from dpq_ref.layers.kinds import make_embedding
from dpq_ref.layers.loss import SoftmaxOutput, softmax_cross_entropy
from dpq_ref.layers.low_rank import BlockEmbedding, LowRankEmbedding, rank_kept
from dpq_ref.layers.norm import BatchNorm
from dpq_ref.layers.recurrent import LSTM, BidirectionalLSTM
from dpq_ref.layers.transformer import Decoder, Encoder

__all__ = [
    "LSTM",
    "BatchNorm",
    "BidirectionalLSTM",
    "BlockEmbedding",
    "CodeUsage",
    "DPQEmbedding",
    "Decoder",
    "Dense",
    "Dropout",
    "Encoder",
    "FixedEmbedding",
    "FullEmbedding",
    "LowRankEmbedding",
    "LuongAttention",
    "MultiHeadAttention",
    "Relu",
    "RowSparse",
    "SoftmaxOutput",
    "length_mask",
    "make_embedding",
    "rank_kept",
    "softmax_cross_entropy",
]
