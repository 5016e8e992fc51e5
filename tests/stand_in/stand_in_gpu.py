"""A kernel set on the stand-in for CuPy: the functions of the reference, on unwrapped arrays.

It refuses arrays of the host, as kernels of a GPU do. `install` puts both in place while a test runs.
"""

import functools
import importlib.util
import inspect
import sys
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest import mock

import numpy as np
import stand_in_cupy

from dpq_ref.kernels import reference


def _on_the_device(function: Any) -> Any:
    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        unwrapped = [stand_in_cupy._unwrap(x, function.__name__) for x in args]
        named = {name: stand_in_cupy._unwrap(x, function.__name__) for name, x in kwargs.items()}
        found = function(*unwrapped, **named)
        out = kwargs.get("out")
        if isinstance(out, tuple):
            return out
        if out is None:
            return stand_in_cupy._wrap(found)
        return (*stand_in_cupy._wrap(found[:-1]), out) if isinstance(found, tuple) else out

    return call


gpu = ModuleType("dpq_ref.kernels.gpu")
for _name, _function in vars(reference).items():
    if inspect.isfunction(_function):
        setattr(gpu, _name, _on_the_device(_function))
gpu.xp = stand_in_cupy  # type: ignore[attr-defined]
gpu.BLOCK = reference.BLOCK  # type: ignore[attr-defined]


def install(monkeypatch: Any) -> ModuleType:
    """Let `backend="cupy"` be the stand-in; returns the kernel set."""
    monkeypatch.setitem(sys.modules, "cupy", stand_in_cupy)
    monkeypatch.setitem(sys.modules, "dpq_ref.kernels.gpu", gpu)
    return gpu


def host(x: Any) -> Any:
    """Arrays of the device, in whatever they stand, on the host: for comparisons."""
    if isinstance(x, stand_in_cupy.ndarray):
        return x._host
    if isinstance(x, dict):
        return {name: host(value) for name, value in x.items()}
    if isinstance(x, (list, tuple)):
        return [host(value) for value in x]
    if hasattr(x, "values") and hasattr(x, "rows"):  # RowSparse
        return [host(x.rows), host(x.values), x.n_rows]
    return x


def same(x: Any, y: Any) -> None:
    """Assert that both hold the same numbers, bit by bit, of the same types."""
    x, y = host(x), host(y)
    if isinstance(x, dict):
        assert x.keys() == y.keys()
        x, y = list(x.values()), [y[name] for name in x]
    if isinstance(x, list):
        assert len(x) == len(y)
        for a, b in zip(x, y, strict=True):
            same(a, b)
        return
    np.testing.assert_array_equal(x, y)
    assert np.asarray(x).dtype == np.asarray(y).dtype


@functools.cache
def compiled() -> ModuleType:
    """`dpq_ref.kernels.gpu` itself on the stand-in, its CUDA compiled by g++: it waits where it would."""
    path = Path(__file__).parents[1] / "kernels" / "host" / "cupy_on_host.py"
    spec = importlib.util.spec_from_file_location("cupy_on_host", path)
    assert spec and spec.loader
    on_host = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(on_host)

    class RawModule(on_host.RawModule):  # type: ignore[name-defined, misc]
        """Kernels that take the stand-in's arrays."""

        def get_function(self, name: str) -> Any:
            run = super().get_function(name)

            def call(grid: Any, block: Any, arguments: Any, **options: Any) -> None:
                run(grid, block, [stand_in_cupy._unwrap(x, name) for x in arguments], **options)

            return call

    with mock.patch.object(on_host, "stand_in", lambda: stand_in_cupy):
        stand_in_cupy.RawModule = RawModule  # type: ignore[attr-defined]
        return on_host.kernel_set()
