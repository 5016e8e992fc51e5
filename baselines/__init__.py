"""Classical ways to shrink an embedding table, all with the interface of `baselines.base.Compressor`.

Names are resolved when first asked for, since importing scikit-learn takes a second.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from baselines.base import Compressor
    from baselines.binary import RandomHyperplanes, SignQuantizer
    from baselines.compositional import CompositionalCodes, KDCodes
    from baselines.group_reduce import GroupReduce
    from baselines.itq import IIQ, ITQ
    from baselines.low_rank import LowRank
    from baselines.near_lossless import NearLosslessBinarizer
    from baselines.product import OptimizedProductQuantizer, ProductQuantizer
    from baselines.prune import MagnitudePruning
    from baselines.reconstruction import DPQReconstruction
    from baselines.residual import AdditiveQuantizer, ResidualQuantizer
    from baselines.scalar import HalfPrecision, KMeansQuantizer, UniformQuantizer

    REGISTRY: dict[str, type[Compressor]]

__all__ = [
    "REGISTRY",
    "AdditiveQuantizer",
    "CompositionalCodes",
    "Compressor",
    "DPQReconstruction",
    "GroupReduce",
    "HalfPrecision",
    "IIQ",
    "ITQ",
    "KDCodes",
    "KMeansQuantizer",
    "LowRank",
    "MagnitudePruning",
    "OptimizedProductQuantizer",
    "NearLosslessBinarizer",
    "ProductQuantizer",
    "RandomHyperplanes",
    "ResidualQuantizer",
    "SignQuantizer",
    "UniformQuantizer",
]

METHODS = {  # name of the method: module, class
    "product": ("product", "ProductQuantizer"),
    "optimized-product": ("product", "OptimizedProductQuantizer"),
    "residual": ("residual", "ResidualQuantizer"),
    "additive": ("residual", "AdditiveQuantizer"),
    "low-rank": ("low_rank", "LowRank"),
    "group-reduce": ("group_reduce", "GroupReduce"),
    "uniform": ("scalar", "UniformQuantizer"),
    "kmeans-scalar": ("scalar", "KMeansQuantizer"),
    "half": ("scalar", "HalfPrecision"),
    "pruning": ("prune", "MagnitudePruning"),
    "sign": ("binary", "SignQuantizer"),
    "hyperplanes": ("binary", "RandomHyperplanes"),
    "itq": ("itq", "ITQ"),
    "iiq": ("itq", "IIQ"),
    "compositional": ("compositional", "CompositionalCodes"),
    "kd-codes": ("compositional", "KDCodes"),
    "dpq": ("reconstruction", "DPQReconstruction"),
    "near-lossless": ("near_lossless", "NearLosslessBinarizer"),
}
MODULES = {"Compressor": "base", **{cls: module for module, cls in METHODS.values()}}


def __getattr__(name: str) -> Any:
    if name in MODULES:
        return getattr(importlib.import_module(f"baselines.{MODULES[name]}"), name)
    if name == "REGISTRY":
        return {method: __getattr__(cls) for method, (_, cls) in METHODS.items()}
    raise AttributeError(f"module 'baselines' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
