"""Kernel sets: one module per back end, all with the names and signatures of `reference`."""
