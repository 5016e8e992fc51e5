"""A stand-in for CuPy whose arrays are NumPy's and whose CUDA is compiled by g++ (cuda_on_host.h).

`kernel_set()` is `dpq_ref.kernels.gpu` on top of it: the same code, file by file, but for `import cupy`.
"""

import ctypes
import hashlib
import importlib
import os
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any
from unittest import mock

import numpy as np

HEADER = Path(__file__).with_name("cuda_on_host.h")
BUILDS = Path(__file__).parents[3] / "build" / "cuda_on_host"
FLAGS = ("-std=c++17", "-O1", "-ffp-contract=off", "-Wall", "-Wextra", "-Werror", "-fPIC", "-shared")
ENTRY = """
extern "C" void {0}_on_host(int blocks, int threads, int bytes, void** arguments) {{
    host::run({0}, blocks, threads, bytes, arguments);
}}"""
BLOCKS = 3  # the most that run: grid-stride loops do the rest


class RawModule:
    """As CuPy's: compiled when a function is asked for."""

    def __init__(self, code: str, options: tuple[str, ...] = ()):
        names = re.findall(r"^KERNEL\(\w+\)\s+(\w+)\(", code, re.MULTILINE)
        entries = "\n".join(ENTRY.format(name) for name in names)
        self.code = f'#include "{HEADER.name}"\n{code}\n{entries}\n'
        self.defines = [option for option in options if option.startswith("-D")]

    def get_function(self, name: str) -> Any:
        entry = self.library()[f"{name}_on_host"]

        def run(grid: tuple[int], block: tuple[int], arguments: Any, *, shared_mem: int = 0) -> None:
            held = [a.ctypes.data_as(ctypes.c_void_p) if isinstance(a, np.ndarray) else a for a in arguments]
            boxes = [x if isinstance(x, ctypes.c_void_p) else np.array(x) for x in held]
            places = [ctypes.addressof(x) if isinstance(x, ctypes.c_void_p) else x.ctypes.data for x in boxes]
            blocks = min(grid[0], int(os.environ.get("CUDA_ON_HOST_BLOCKS", BLOCKS)))
            entry(blocks, block[0], shared_mem, (ctypes.c_void_p * len(places))(*places))

        return run

    def library(self) -> ctypes.CDLL:
        """Compiled once for this code, this header and these flags."""
        flags = (*FLAGS, *os.environ.get("CUDA_ON_HOST_FLAGS", "").split(), *self.defines)
        text = "\n".join((self.code, HEADER.read_text(encoding="utf8"), *flags))
        path = BUILDS / f"{hashlib.sha256(text.encode()).hexdigest()[:16]}.so"
        if not path.exists():
            BUILDS.mkdir(parents=True, exist_ok=True)
            part = path.with_suffix(f".{os.getpid()}")
            command = ["g++", *flags, "-I", str(HEADER.parent), "-x", "c++", "-", "-o", str(part)]
            done = subprocess.run(command, input=self.code, capture_output=True, text=True)
            if done.returncode:
                raise RuntimeError(done.stderr)
            part.replace(path)
        return ctypes.CDLL(str(path))


def stand_in() -> Any:
    """NumPy under the name of CuPy, and the few names that are CuPy's alone."""
    cupy: Any = ModuleType("cupy")
    cupy.__dict__.update({name: value for name, value in vars(np).items() if not name.startswith("__")})
    cupy.asnumpy, cupy.RawModule = np.asarray, RawModule
    runtime = SimpleNamespace(getDeviceCount=lambda: 1, CUDARuntimeError=RuntimeError)
    cupy.cuda = SimpleNamespace(runtime=runtime)
    return cupy


def kernel_set() -> ModuleType:
    """A copy of `dpq_ref.kernels.gpu` and its modules on the stand-in; others see nothing of it."""

    def ours(name: str) -> bool:
        return name == "dpq_ref.kernels.gpu" or name.startswith("dpq_ref.kernels.cuda")

    package = importlib.import_module("dpq_ref.kernels")
    before = {name: value for name, value in vars(package).items() if name in ("gpu", "cuda")}
    with mock.patch.dict(sys.modules):
        for name in filter(ours, list(sys.modules)):
            del sys.modules[name]
        sys.modules["cupy"] = stand_in()
        try:
            return importlib.import_module("dpq_ref.kernels.gpu")
        finally:
            for name in ("gpu", "cuda"):
                vars(package).pop(name, None)
            vars(package).update(before)
