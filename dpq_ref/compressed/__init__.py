"""What every method ends in: a table that is looked up, counted in bits, and kept in one file."""

from dpq_ref.compressed.base import Compressed, load
from dpq_ref.compressed.blocks import BlockTable
from dpq_ref.compressed.dense import DenseTable, to_bfloat16
from dpq_ref.compressed.factored import FactoredTable
from dpq_ref.compressed.files import as_stored, read_tensors, write_atomically
from dpq_ref.compressed.hamming import hamming_similarity
from dpq_ref.compressed.product import ProductTable
from dpq_ref.compressed.scalar import ScalarTable, uniform_levels
from dpq_ref.compressed.sparse import SparseTable

__all__ = [
    "BlockTable",
    "Compressed",
    "DenseTable",
    "FactoredTable",
    "ProductTable",
    "ScalarTable",
    "SparseTable",
    "as_stored",
    "hamming_similarity",
    "load",
    "read_tensors",
    "to_bfloat16",
    "uniform_levels",
    "write_atomically",
]
