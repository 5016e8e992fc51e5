"""The kernels for a GPU through NVIDIA's compiler, which needs none: `make nvrtc`, in its own environment."""

import ast
import re
from pathlib import Path

import pytest

KERNELS = Path(__file__).parents[2] / "dpq_ref" / "kernels"
FOLDER = KERNELS / "cuda"
SOURCES = [KERNELS / "gpu.py", *sorted(FOLDER.glob("*.py"))]
ARCHITECTURES = ["sm_80", "sm_90", "sm_100"]

USED = re.compile(
    r"Compiling entry function '(\w+)'.*?(\d+) bytes spill stores, (\d+) bytes spill loads"
    r".*?Used (\d+) registers",
    re.DOTALL,
)

pytestmark = pytest.mark.nvrtc


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("real", ["float", "double"])
@pytest.mark.parametrize("file", sorted(path.stem for path in FOLDER.glob("*.cu")))
def test_kernels_compile_without_a_warning(file, real, architecture):
    """To machine code; `-s` shows how many registers each kernel takes.

    None spills more of them to memory than a few numbers around a call, as of a division's rare cases.
    """
    from cupy.cuda import nvrtc

    from dpq_ref.kernels.cuda import device

    options = (*device.OPTIONS, f"-DREAL={real}", f"--gpu-architecture={architecture}", "--ptxas-options=-v")
    program = nvrtc.createProgram(device.source(file), f"{file}.cu", [], [])
    try:
        nvrtc.compileProgram(program, options)
    finally:
        log = nvrtc.getProgramLog(program)
        assert not re.search("warning|error", log), log
    assert nvrtc.getCUBIN(program)[:4] == b"\x7fELF"
    found = USED.findall(log)
    assert {name for name, *_ in found} == {name for name, k in device.kernels().items() if k.file == file}
    for name, stores, loads, registers in found:
        print(f"{architecture} {real:6} {name:20} {registers:>3} registers")  # noqa: T201
        assert max(int(stores), int(loads)) <= 100, name


def attributes_of_xp(path):
    return {
        node.attr
        for node in ast.walk(ast.parse(path.read_text(encoding="utf8")))
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "xp"
    }


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.name)
def test_cupy_has_what_is_taken_from_it(path):
    import cupy

    assert [name for name in sorted(attributes_of_xp(path)) if not hasattr(cupy, name)] == []
