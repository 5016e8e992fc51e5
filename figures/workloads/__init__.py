"""What `figures.speed` measures: each function makes a `Work` of some size, ours and that of peers."""

from figures.workloads.dpq import dpq
from figures.workloads.lookup import lookup
from figures.workloads.start import start
from figures.workloads.training import classifier, language_model

__all__ = ["classifier", "dpq", "language_model", "lookup", "start"]
