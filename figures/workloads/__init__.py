"""What `figures.speed` measures: each function makes a `Work` of some size, ours and that of peers."""

from figures.workloads.dpq import dpq, moving_averages
from figures.workloads.kernels import kernel

__all__ = ["dpq", "kernel", "moving_averages"]
