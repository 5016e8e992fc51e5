"""What `figures.speed` measures: each function makes a `Work` of some size, ours and that of peers."""

from figures.workloads.dpq import dpq

__all__ = ["dpq"]
