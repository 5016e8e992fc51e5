"""Differentiable Product Quantization in plain NumPy (Chen, Li, Sun, ICML 2020).

Names resolve when they are first used: importing the package imports nothing else. The reading path:
`kernels.reference` (the arithmetic), `quantize` (the method), `layers.embedding` (the layer), `gradcheck`
(why the gradients are right), `compressed` (what is kept).
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dpq_ref.compressed import Compressed, DenseTable, FactoredTable, ProductTable, ScalarTable, load
    from dpq_ref.layers import DPQEmbedding, FullEmbedding, RowSparse
    from dpq_ref.optim import SGD, Adagrad, Adam

__version__ = "0.1.0"

_HOMES = {
    "Compressed": "compressed",
    "DenseTable": "compressed",
    "FactoredTable": "compressed",
    "ProductTable": "compressed",
    "ScalarTable": "compressed",
    "load": "compressed",
    "DPQEmbedding": "layers",
    "FullEmbedding": "layers",
    "RowSparse": "layers",
    "Adagrad": "optim",
    "Adam": "optim",
    "SGD": "optim",
}

__all__ = [
    "SGD",
    "Adagrad",
    "Adam",
    "Compressed",
    "DPQEmbedding",
    "DenseTable",
    "FactoredTable",
    "FullEmbedding",
    "ProductTable",
    "RowSparse",
    "ScalarTable",
    "load",
]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(f"dpq_ref.{_HOMES[name]}"), name)
    raise AttributeError(f"module 'dpq_ref' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
