"""What the contract does not see of the kernels for a GPU: launches, twins, the order of threads."""

import os
import runpy
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

HERE = Path(__file__).parent
contract = runpy.run_path(str(HERE / "test_contract.py"))
gpu, check, Draw, CONTRACT = (contract[name] for name in ("gpu", "check", "Draw", "CONTRACT"))

device, dpq = gpu.device, gpu.sx_codes.__globals__
each_dtype = pytest.mark.parametrize("dtype", [np.float32, np.float64], ids=lambda t: t.__name__)
needs_compiler = contract["needs_compiler"]


def test_every_kernel_says_what_it_takes():
    """The declarations are read by a pattern: it finds all of them, and knows all their types."""
    files = {path.stem: path.read_text(encoding="utf8") for path in device.FOLDER.glob("*.cu")}
    assert sum(text.count("\nKERNEL(") for text in files.values()) == len(device.kernels())
    for name, kernel in device.kernels().items():
        declared = files[kernel.file].split(f"\n{name}(")[1].split(")")[0]
        assert len(kernel.parameters) == declared.count(",") + 1
        assert {kind for _, kind, _ in kernel.parameters} <= {"REAL", *device.TYPES}, name
        assert kernel.threads in (64, 128, 256)


def test_arguments_are_held_to_the_declaration():
    table, out = np.zeros((4, 3)), np.empty((2, 3))
    good = [table, np.array([0, 1]), np.array([0, 1, 2]), 2, 3, out]
    for at, bad, message in (
        (0, table.astype(np.float16), "arrays of float32 or of float64, got .*float16"),
        (0, table.astype(np.float32), "arrays of float32 or of float64, got .*float32.*float64"),
        (0, np.asfortranarray(table), "rows of segment_sums must be float64 in C order, got float64, not"),
        (1, np.array([0, 1], np.int32), "order of segment_sums must be int64 in C order, got int32"),
    ):
        with pytest.raises(TypeError, match=message):
            device.launch("segment_sums", 1, *good[:at], bad, *good[at + 1 :])
    with pytest.raises(TypeError, match="segment_sums takes 6 arguments, got 5"):
        device.launch("segment_sums", 1, *good[:5])
    with pytest.raises(OverflowError):
        device.launch("segment_sums", 1, *good[:4], 1 << 31, out)
    with pytest.raises(TypeError, match="an array of int64 is needed, got float64"):
        gpu.mean_pool(table, np.zeros((2, 2)), np.ones((2, 2), bool))


@needs_compiler
@each_dtype
@pytest.mark.parametrize("bytes_of_a_block", [0, 5000, 12000, 48 << 10])
@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("noisy", [False, True])
def test_whatever_fits_into_shared_memory(dtype, bytes_of_a_block, shared, noisy, monkeypatch):
    """All keys at once, some at a time, or none: tiles, and their twins without."""
    monkeypatch.setitem(dpq, "SHARED", bytes_of_a_block)
    monkeypatch.setitem(dpq, "BLOCK", 100 * 5 * 37)  # twins take more than one block of rows
    d = Draw(dtype, 150)
    query, d_picked = d.query(), d.real(150, 5, 6)
    keys, values = d.real(1 if shared else 5, 37, 3), d.real(1 if shared else 5, 37, 6)
    noise = d.real(150, 5, 37) if noisy else None
    counts = d.counts()
    for name in ("sx_statistics", "vq_statistics"):
        check(gpu, name, (query, keys, counts))
    check(gpu, "nearest_code", (query, keys))
    for statistics in (None, (d.real(37), d.positive(37))):
        check(gpu, "sx_codes", (query, keys, statistics, 1e-3, noise))
        check(gpu, "sx_backward", (d_picked, query, keys, values, counts, statistics, 1e-3, 0.7, noise))
    check(gpu, "vq_codes", (query, keys, statistics, 1e-3))
    nothing = np.zeros_like(counts)
    check(gpu, "sx_statistics", (query, keys, nothing))
    check(gpu, "sx_backward", (d_picked, query, keys, values, nothing, statistics, 1e-3, 0.7, noise))


@needs_compiler
@pytest.mark.parametrize(("s", "v"), [(0, 2), (2, 0)])
def test_queries_or_values_without_a_column(s, v):
    d = Draw(np.float32, 9)
    query, keys, values, d_picked = d.real(9, 5, s), d.real(5, 4, s), d.real(5, 4, v), d.real(9, 5, v)
    statistics = d.real(4), d.positive(4)
    for name in ("sx_statistics", "vq_statistics"):
        check(gpu, name, (query, keys, d.counts() + 1))
    for name in ("sx_codes", "vq_codes"):
        check(gpu, name, (query, keys, statistics, 1e-3))
    check(gpu, "decode", (d.below(4, 9, 5), values))
    check(gpu, "sx_backward", (d_picked, query, keys, values, d.counts(), statistics, 1e-3, 0.7))


@needs_compiler
@each_dtype
@pytest.mark.parametrize("name", CONTRACT)
def test_order_of_threads_and_number_of_blocks(name, dtype, monkeypatch):
    """What depends on either is a race, or a loop that does not go on over the grid: the same bits."""
    results = []
    for order, blocks in (("forwards", 3), ("backwards", 3), ("forwards", 1), ("backwards", 1000)):
        monkeypatch.setenv("CUDA_ON_HOST_ORDER", order)
        monkeypatch.setenv("CUDA_ON_HOST_BLOCKS", str(blocks))
        arguments = CONTRACT[name].arguments(Draw(dtype, 150))
        results.append(contract["as_tuple"](getattr(gpu, name)(*arguments)))
    for other in results[1:]:
        for x, y in zip(results[0], other, strict=True):
            assert x is None or x.tobytes() == y.tobytes()


@needs_compiler
def test_a_barrier_that_not_all_threads_reach():
    """The host's CUDA ends the program, as a GPU would hang or go on wrongly."""
    run = f"""
import runpy, sys
import numpy as np
host = runpy.run_path({str(HERE / "host" / "cupy_on_host.py")!r})
code = open({str(device.FOLDER / "grid.cuh")!r}).read()
code += "KERNEL(THREADS)\\nuneven(int n) {{ if ((int)threadIdx.x < n) __syncthreads(); }}"
uneven = host["RawModule"](code, ("-DREAL=float",)).get_function("uneven")
uneven((1,), (64,), [np.int32(sys.argv[1])])
"""
    for n, ends in ((0, 0), (64, 0), (7, -6)):
        done = subprocess.run([sys.executable, "-c", run, str(n)], capture_output=True, text=True)
        assert done.returncode == ends, done.stderr
    assert "57 of 64 threads ended" in done.stderr


def test_largest_code_beyond_the_values_of_a_damaged_stream():
    stream = np.full(6, 255, np.uint8)
    with pytest.raises(IndexError, match=r"codes must lie in \[0, 11\), got 15"):
        gpu.decode_packed(stream, 4, np.array([1, 0]), 5, np.zeros((5, 11, 2)))


SANITIZED = """
import runpy, sys
contract = runpy.run_path(sys.argv[1])
for dtype in contract["DTYPES"]:
    for b in (0, 1, 40, 131):
        for name, row in contract["CONTRACT"].items():
            contract["check"](contract["gpu"], name, row.arguments(contract["Draw"](dtype, b)))
print("all rows")
"""


@pytest.mark.slow
@needs_compiler
def test_sanitizers_find_nothing():
    """Every row of the contract, compiled with the address and the undefined-behaviour sanitizer."""
    command = ["g++", "-print-file-name=libasan.so"]
    library = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    if not Path(library).is_absolute():
        pytest.skip("g++ has no address sanitizer here")
    environment = os.environ | {
        "CUDA_ON_HOST_FLAGS": "-g -fsanitize=address,undefined -fno-sanitize-recover=all",
        "LD_PRELOAD": library,
        "ASAN_OPTIONS": "detect_leaks=0",
    }
    command = [sys.executable, "-c", SANITIZED, str(HERE / "test_contract.py")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout == "all rows\n", done.stderr[-3000:]
