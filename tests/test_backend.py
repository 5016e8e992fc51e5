"""Choosing a kernel set."""

import re
import sys
from types import ModuleType, SimpleNamespace
from unittest import mock

import numba
import numpy as np
import pytest

from dpq_ref import backend
from dpq_ref.layers.embedding import DPQEmbedding


def test_each_name_is_its_module():
    assert backend.get("numpy").__name__ == "dpq_ref.kernels.reference"
    assert backend.get("numba").__name__ == "dpq_ref.kernels.cpu"
    assert backend.get() is backend.get(None) is backend.get("numba")
    for name in ("numpy", "numba"):
        assert backend.get(name).xp is np


@pytest.mark.parametrize("name", ["", "cuda", "NumPy", "torch"])
def test_an_unknown_name(name):
    with pytest.raises(ValueError, match=f"backend={name!r}; it takes"):
        backend.get(name)


def test_cupy_is_an_error_and_not_something_else(monkeypatch):
    monkeypatch.setitem(sys.modules, "cupy", None)
    with pytest.raises(ImportError, match="backend='cupy'"):
        backend.get("cupy")
    with pytest.raises(ImportError, match="cupy"):
        DPQEmbedding(10, 4, n_groups=2, n_codes=2, backend="cupy")


@pytest.mark.parametrize(
    ("cuda", "says"),
    [
        (13, "pip install 'dpq-ref[gpu13]' (cupy-cuda13x)"),
        (14, "pip install 'dpq-ref[gpu13]' (cupy-cuda13x)"),
        (12, "pip install 'dpq-ref[gpu12]' (cupy-cuda12x)"),
        (11, "is for CUDA 11"),
        (0, "cupy-cuda13x) for CUDA 13, pip install 'dpq-ref[gpu12]' (cupy-cuda12x) for CUDA 12"),
    ],
)
def test_which_cupy(cuda, says, monkeypatch):
    monkeypatch.setitem(sys.modules, "cupy", None)
    monkeypatch.setattr(backend, "_cuda_of_driver", lambda: cuda)
    with pytest.raises(ImportError, match=re.escape(says)):
        backend.get("cupy")


def test_cupy_without_a_gpu(monkeypatch):
    """Whether CuPy counts none or complains."""

    def complains():
        raise ArithmeticError("cudaErrorNoDevice")

    for count in (lambda: 0, complains):
        cupy = ModuleType("cupy")
        runtime = SimpleNamespace(getDeviceCount=count, CUDARuntimeError=ArithmeticError)
        cupy.cuda = SimpleNamespace(runtime=runtime)
        with mock.patch.dict(sys.modules, {"cupy": cupy}):
            with pytest.raises(RuntimeError, match="backend='cupy' finds no GPU"):
                backend.get("cupy")


def test_without_numba_the_default_is_an_error_and_not_numpy(monkeypatch):
    monkeypatch.setitem(sys.modules, "numba", None)
    monkeypatch.delitem(sys.modules, "dpq_ref.kernels.cpu", raising=False)
    with pytest.raises(ImportError, match="numba"):
        backend.get()
    assert backend.get("numpy").xp is np


def test_set_threads():
    before = numba.get_num_threads()
    try:
        backend.set_threads(1)
        assert numba.get_num_threads() == 1
        for n in (0, numba.config.NUMBA_NUM_THREADS + 1):
            with pytest.raises(ValueError, match="threads"):
                backend.set_threads(n)
    finally:
        numba.set_num_threads(before)


def test_to_numpy():
    array = np.arange(3)
    assert backend.to_numpy(array) is array
    np.testing.assert_array_equal(backend.to_numpy([1, 2]), [1, 2])

    class OnDevice:
        __cuda_array_interface__ = None

        def get(self):
            return array

    assert backend.to_numpy(OnDevice()) is array
