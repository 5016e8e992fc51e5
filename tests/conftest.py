"""Threads for the kernels, said before Numba is imported, and a generator for the tests."""

import os

import numpy as np
import pytest

# Four threads on any machine, so that 1, 2 and 4 can be compared; idle ones sleep rather than spin.
os.environ["NUMBA_NUM_THREADS"] = "4"
os.environ.setdefault("OMP_WAIT_POLICY", "passive")


@pytest.fixture
def rng():
    """Generator with a fixed seed."""
    return np.random.default_rng(0)
