"""What `figures.speed` measures: each function makes a `Work` of some size, ours and that of peers."""

from figures.workloads.dpq import dpq_sx, dpq_vq, moving_averages
from figures.workloads.kernels import kernel
from figures.workloads.linear import itq, low_rank
from figures.workloads.lookup import lookup
from figures.workloads.quantizers import product, product_codes, product_sampled, rotated_product
from figures.workloads.reading import hamming, int8, text
from figures.workloads.search import gather, open_file, search
from figures.workloads.start import start
from figures.workloads.training import classifier, language_model

__all__ = [
    "classifier",
    "dpq_sx",
    "dpq_vq",
    "gather",
    "hamming",
    "int8",
    "itq",
    "kernel",
    "language_model",
    "lookup",
    "low_rank",
    "moving_averages",
    "open_file",
    "product",
    "product_codes",
    "product_sampled",
    "rotated_product",
    "search",
    "start",
    "text",
]
