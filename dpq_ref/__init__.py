"""Differentiable Product Quantization in plain NumPy (Chen, Li, Sun, ICML 2020).

Names resolve when they are first used: importing the package imports nothing else. The reading path:
`kernels.reference` (the arithmetic), `quantize` (the method), `layers.embedding` (the layer), `gradcheck`
(why the gradients are right), `compressed` (what is kept).
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dpq_ref.compressed import (
        BlockTable,
        Compressed,
        DenseTable,
        FactoredTable,
        ProductTable,
        ScalarTable,
        SparseTable,
        load,
    )
    from dpq_ref.layers import (
        BlockEmbedding,
        DPQEmbedding,
        FixedEmbedding,
        FullEmbedding,
        LowRankEmbedding,
        RowSparse,
    )
    from dpq_ref.optim import SGD, Adagrad, Adam
    from dpq_ref.schedules import CyclicallyAnnealedRate

__version__ = "0.1.0"

_HOMES = {
    "BlockTable": "compressed",
    "Compressed": "compressed",
    "DenseTable": "compressed",
    "FactoredTable": "compressed",
    "ProductTable": "compressed",
    "ScalarTable": "compressed",
    "SparseTable": "compressed",
    "load": "compressed",
    "BlockEmbedding": "layers",
    "DPQEmbedding": "layers",
    "FixedEmbedding": "layers",
    "FullEmbedding": "layers",
    "LowRankEmbedding": "layers",
    "RowSparse": "layers",
    "Adagrad": "optim",
    "Adam": "optim",
    "SGD": "optim",
    "CyclicallyAnnealedRate": "schedules",
}

__all__ = [
    "SGD",
    "Adagrad",
    "Adam",
    "BlockEmbedding",
    "BlockTable",
    "Compressed",
    "CyclicallyAnnealedRate",
    "DPQEmbedding",
    "DenseTable",
    "FactoredTable",
    "FixedEmbedding",
    "FullEmbedding",
    "LowRankEmbedding",
    "ProductTable",
    "RowSparse",
    "ScalarTable",
    "SparseTable",
    "load",
]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(f"dpq_ref.{_HOMES[name]}"), name)
    raise AttributeError(f"module 'dpq_ref' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
