"""Compile and start the CUDA kernels of this folder.

A kernel is compiled by NVRTC when it is first used, for float32 or float64 as its arrays are, and CuPy keeps
what came out on disk. Its C declaration is the one place that says what it takes: before each launch the
arguments are held to it, since a kernel that gets another array than it expects gives numbers, not an error.
"""

import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import cupy as xp
import numpy as np

from dpq_ref.backend import TRUSTED
from dpq_ref.kernels.reference import Integers

FOLDER = Path(__file__).parent
OPTIONS = ("--std=c++17", "--fmad=false")
SHARED = 48 << 10  # bytes of shared memory that a block has without asking for more
MOST_BLOCKS = 1 << 16  # the grid goes on from there by itself
TYPES = {
    "int": np.int32,
    "Index": np.int64,
    "Word": np.uint64,
    "Byte": np.uint8,
    "bool": np.bool_,
    "double": np.float64,
}
DECLARATION = re.compile(r"^KERNEL\((\w+)\)\s+(\w+)\(([^)]*)\)", re.MULTILINE)
PARAMETER = re.compile(r"\s*(const )?(\w+)(\*?) (\w+)\s*")
CONSTANT = re.compile(r"^#define (\w+) (\d+)\b", re.MULTILINE)


def require() -> None:
    """Raise RuntimeError unless CuPy finds a GPU."""
    try:
        found = xp.cuda.runtime.getDeviceCount()
    except xp.cuda.runtime.CUDARuntimeError as error:
        raise RuntimeError(f"backend='cupy' finds no GPU: {error}") from error
    if not found:
        raise RuntimeError("backend='cupy' finds no GPU")


@dataclass(frozen=True)
class Kernel:
    """Declaration of a kernel: its file without ending, threads of a block, and (name, C type, pointer)."""

    file: str
    threads: int
    parameters: tuple[tuple[str, str, bool], ...]


def source(file: str) -> str:
    """CUDA of a file, with what stands before each."""
    return "".join((FOLDER / name).read_text(encoding="utf8") for name in ("grid.cuh", f"{file}.cu"))


@cache
def kernels() -> dict[str, Kernel]:
    """All kernels by name."""
    found = {}
    for path in sorted(FOLDER.glob("*.cu")):
        code = source(path.stem)
        for threads, name, parameters in DECLARATION.findall(code):
            parts = (PARAMETER.fullmatch(p) for p in parameters.split(","))
            declared = tuple((part[4], part[2], part[3] == "*") for part in parts if part)
            found[name] = Kernel(path.stem, constants(path.stem, threads)[0], declared)
    return found


def constants(file: str, *names: str) -> list[int]:
    """Numbers that a file defines."""
    return [int(dict(CONSTANT.findall(source(file)))[name]) for name in names]


@cache
def _module(file: str, real: str) -> Any:
    return xp.RawModule(code=source(file), options=(*OPTIONS, f"-DREAL={real}"))


@cache
def _function(name: str, real: str) -> Any:
    return _module(kernels()[name].file, real).get_function(name)


def launch(name: str, blocks: int, *arguments: Any, shared: int = 0) -> None:
    """Start a kernel.

    Parameters
    ----------
    name : str
    blocks : int
        None is started if it is 0.
    *arguments
        As the kernel declares them: for a pointer an array of its type in C order, or None for null.
    shared : int
        Bytes of shared memory.

    Raises
    ------
    TypeError
        If an argument is not what the kernel declares.
    """
    kernel = kernels()[name]
    if len(arguments) != len(kernel.parameters):
        raise TypeError(f"{name} takes {len(kernel.parameters)} arguments, got {len(arguments)}")
    given = list(zip(kernel.parameters, arguments, strict=True))
    reals = {a.dtype for (_, kind, pointer), a in given if kind == "REAL" and pointer and a is not None}
    real = next(iter(reals), np.dtype(np.float32))
    if len(reals) > 1 or real not in (np.float32, np.float64):
        raise TypeError(f"{name} takes arrays of float32 or of float64, got {sorted(map(str, reals))}")
    checked = tuple(_checked(name, *parameter, real.type, a) for parameter, a in given)
    if blocks:
        function = _function(name, "float" if real == np.float32 else "double")
        function((min(blocks, MOST_BLOCKS),), (kernel.threads,), checked, shared_mem=shared)


def each(name: str, n: int, *arguments: Any) -> None:
    """Start a kernel with a thread for each of n numbers."""
    launch(name, -(-n // kernels()[name].threads), *arguments)


def _checked(name: str, parameter: str, kind: str, pointer: bool, real: Any, value: Any) -> Any:
    dtype = TYPES.get(kind, real)
    if not pointer:
        return dtype(value)  # OverflowError for integers that do not fit
    if value is None:
        return np.uint64(0)
    if value.dtype != dtype or not value.flags.c_contiguous:
        order = "" if value.flags.c_contiguous else ", not in C order"
        raise TypeError(
            f"{parameter} of {name} must be {np.dtype(dtype)} in C order, got {value.dtype}{order}"
        )
    return value


def inputs(dtype: Any, *arrays: Any) -> list[Any]:
    """Arrays as a kernel takes them: of one dtype and in C order; copies only where they are not."""
    for array in arrays:
        if not np.can_cast(array.dtype, dtype, "same_kind"):
            raise TypeError(f"an array of {np.dtype(dtype)} is needed, got {array.dtype}")
    return [xp.ascontiguousarray(array, dtype) for array in arrays]


def check_range(name: str, indices: Integers, size: int) -> None:
    """As `reference.check_range`; it waits for the GPU once, unless indices are trusted."""
    if indices.size and not TRUSTED.get():
        low, high = xp.stack([indices.min(), indices.max()]).tolist()
        if low < 0 or high >= size:
            raise IndexError(f"{name} must lie in [0, {size}), got {low if low < 0 else high}")
