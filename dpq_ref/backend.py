"""Choose a kernel set: `numpy` (the reference), `numba` (the default) or `cupy`; and move arrays.

A kernel set is a module with the functions of `dpq_ref.kernels.reference` and `xp`, its array module.
Nothing falls back silently: a back end that is not there is an error that names what to install.

Arrays enter a back end by `xp.asarray`, and leave it by `to_numpy`. Whoever reads a number of a device waits
for all work before it, so that a step of training reads none.
"""

import ctypes
import importlib
import sys
from collections.abc import Iterator
from contextlib import ContextDecorator, contextmanager
from contextvars import ContextVar
from functools import cache
from threading import Lock
from types import ModuleType
from typing import Any

import numpy as np

MODULES = {"numpy": "reference", "numba": "cpu", "cupy": "gpu"}


def get(name: Any = None) -> Any:
    """Kernel set of a back end.

    Parameters
    ----------
    name : {"numpy", "numba", "cupy"}, None or a kernel set
        None means "numba"; a kernel set, that of another layer say, is itself.

    Returns
    -------
    module

    Raises
    ------
    ValueError
        For an unknown name.
    ImportError
        If the back end cannot be had; the message says how to get it.
    RuntimeError
        For "cupy" where there is no GPU.

    Examples
    --------
    >>> from dpq_ref import backend
    >>> backend.get("numpy").__name__
    'dpq_ref.kernels.reference'
    """
    if isinstance(name, ModuleType):
        return name
    name = "numba" if name is None else name
    if name not in MODULES:
        raise ValueError(f"backend={name!r}; it takes 'numpy', 'numba' or 'cupy'")
    if name == "cupy":
        try:
            importlib.import_module("cupy")
        except ImportError as error:
            raise ImportError(f"backend='cupy' needs CuPy: {_wheel(_cuda_of_driver())}") from error
    return importlib.import_module(f"dpq_ref.kernels.{MODULES[name]}")


def set_threads(n_threads: int) -> None:
    """Set how many threads the Numba kernels use; the results are the same for any number.

    Parameters
    ----------
    n_threads : int
        From 1 to the environment variable NUMBA_NUM_THREADS (default: the number of cores).
    """
    import numba

    numba.set_num_threads(n_threads)


def to_numpy(array: Any) -> np.ndarray:
    """Array on the host, whatever back end it is on."""
    return array.get() if on_device(array) else np.asarray(array)


def on_device(array: Any) -> bool:
    """Whether an array is one of a device."""
    return hasattr(type(array), "__cuda_array_interface__")


def array_module(array: Any) -> Any:
    """Array module that an array is of: NumPy, or that of a device."""
    return sys.modules[type(array).__module__.partition(".")[0]]


TRUSTED = ContextVar("TRUSTED", default=False)


@contextmanager
def trusted_indices() -> Iterator[None]:
    """Let kernels of a device not wait to look at indices: the host has checked them, or kernels made them.

    Inside, one that is out of range is no error, and may read or write anywhere.
    """
    token = TRUSTED.set(True)
    try:
        yield
    finally:
        TRUSTED.reset(token)


def on_host(kernels: Any) -> Any:
    """Kernel set for what stays on the host beside a kernel set: itself, or the default beside a device's."""
    return kernels if kernels.xp is np else get()


class _OneBlasThread(ContextDecorator):
    """BLAS on one thread, for kernels whose own threads call it: each large product would ask for more.

    The numbers of before come back when the last of all that are in it ends.
    """

    def __init__(self) -> None:
        self._lock, self._inside = Lock(), 0
        self._before: list[tuple[Any, int]] = []

    def __enter__(self) -> None:
        with self._lock:
            if not self._inside:
                self._before = [(library, library.get_num_threads()) for library in _blas()]
                for library, _ in self._before:
                    library.set_num_threads(1)
            self._inside += 1

    def __exit__(self, *error: object) -> None:
        with self._lock:
            self._inside -= 1
            if not self._inside:
                for library, n_threads in self._before:
                    library.set_num_threads(n_threads)


one_blas_thread = _OneBlasThread()


@cache
def _blas() -> list[Any]:
    """All BLAS of the process, that of SciPy among them: Numba's products are its."""
    import scipy.linalg.cython_blas  # noqa: F401
    from threadpoolctl import ThreadpoolController

    return ThreadpoolController().select(user_api="blas").lib_controllers


def _cuda_of_driver() -> int:
    """Newest CUDA that the driver of this machine runs, its first number; 0 without a driver."""
    version = ctypes.c_int(0)
    try:
        ctypes.CDLL("libcuda.so.1").cuDriverGetVersion(ctypes.byref(version))
    except (OSError, AttributeError):
        return 0
    return version.value // 1000


def _wheel(cuda: int) -> str:
    """How to install CuPy for a version of CUDA, or for which ones it comes."""
    for_13, for_12 = (
        "pip install 'dpq-ref[gpu13]' (cupy-cuda13x)",
        "pip install 'dpq-ref[gpu12]' (cupy-cuda12x)",
    )
    if cuda == 0:
        return f"{for_13} for CUDA 13, {for_12} for CUDA 12; this machine has no driver of NVIDIA"
    if cuda < 12:
        return f"{for_12}, and a newer driver: that of this machine is for CUDA {cuda}"
    return for_13 if cuda >= 13 else for_12
