"""Choose a kernel set: `numpy` (the reference), `numba` (the default) or `cupy`.

A kernel set is a module with the functions of `dpq_ref.kernels.reference` and `xp`, its array module.
Nothing falls back silently: a back end that is not there is an error that names what to install.
"""

import importlib
from functools import cache
from types import ModuleType
from typing import Any

import numpy as np

MODULES = {"numpy": "reference", "numba": "cpu"}


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

    Examples
    --------
    >>> from dpq_ref import backend
    >>> backend.get("numpy").__name__
    'dpq_ref.kernels.reference'
    """
    if isinstance(name, ModuleType):
        return name
    name = "numba" if name is None else name
    if name == "cupy":
        raise ImportError("backend='cupy' is not part of this version; it takes 'numpy' or 'numba'")
    if name not in MODULES:
        raise ValueError(f"backend={name!r}; it takes 'numpy', 'numba' or 'cupy'")
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
    return array.get() if hasattr(array, "get") else np.asarray(array)


def one_blas_thread() -> Any:
    """Context of one BLAS thread: on a busy machine two were 20 times slower than one."""
    return _blas().limit(limits=1, user_api="blas")


@cache
def _blas() -> Any:
    import scipy.linalg  # noqa: F401 (it has a BLAS of its own, which must be there to be found)
    from threadpoolctl import ThreadpoolController

    return ThreadpoolController()  # finding the libraries takes milliseconds
