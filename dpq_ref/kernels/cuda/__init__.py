"""CUDA kernels, and the Python that starts them, for `dpq_ref.kernels.gpu`."""
