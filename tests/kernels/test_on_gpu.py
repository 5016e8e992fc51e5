"""On a GPU, beside the contract, `make gpu-test`: gradients, training, the same bits again, memory."""

import os
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from dpq_ref import Adam, DPQEmbedding, FullEmbedding, backend
from dpq_ref.layers.embedding import RowSparse

pytestmark = pytest.mark.gpu

CONTRACT = Path(__file__).parent / "test_contract.py"
IDS = np.random.default_rng(0).integers(0, 30, (4, 7))
LAYERS = {
    "full": lambda **to: FullEmbedding(30, 12, **to),
    "sx": lambda **to: DPQEmbedding(30, 12, n_groups=3, n_codes=4, **to),
    "sx-shared": lambda **to: DPQEmbedding(30, 12, n_groups=3, n_codes=4, shared=True, **to),
    "vq": lambda **to: DPQEmbedding(30, 12, n_groups=3, n_codes=4, method="vq", commitment_weight=0.3, **to),
    "vq-plain": lambda **to: DPQEmbedding(30, 12, n_groups=3, n_codes=4, method="vq", batch_norm=False, **to),
}


def steps(kind, name, n, dtype):
    """Outputs, gradients and parameters of some steps of training, all on the host."""
    layer, left = LAYERS[kind](dtype=dtype, rng=np.random.default_rng(1), backend=name), []
    optimizer, rng = Adam(layer.params, 0.01, backend=name), np.random.default_rng(2)
    for _ in range(n):
        output = layer.forward(IDS)
        layer.backward(layer.kernels.xp.asarray(rng.standard_normal(output.shape).astype(dtype)))
        gradients = [layer.grads[key] for key in sorted(layer.grads)]
        dense = [g.to_dense() if isinstance(g, RowSparse) else g for g in gradients]
        left += [backend.to_numpy(x) for x in (output, *dense)]
        optimizer.step(layer.grads)
    return left + [backend.to_numpy(layer.params[key]) for key in sorted(layer.params)]


@pytest.mark.parametrize("kind", LAYERS)
def test_gradients_are_those_of_the_reference(kind):
    """Which finite differences have checked."""
    for x, y in zip(steps(kind, "cupy", 1, np.float64), steps(kind, "numpy", 1, np.float64), strict=True):
        np.testing.assert_allclose(x, y, rtol=0, atol=1e-10 * abs(y).max())


@pytest.mark.parametrize("kind", LAYERS)
def test_ten_steps_of_training(kind):
    first, second = steps(kind, "cupy", 10, np.float32), steps(kind, "cupy", 10, np.float32)
    for x, again, y in zip(first, second, steps(kind, "numba", 10, np.float32), strict=True):
        assert x.tobytes() == again.tobytes()
        np.testing.assert_allclose(x, y, rtol=0, atol=1e-3 * abs(y).max())


@pytest.mark.parametrize("name", runpy.run_path(str(CONTRACT))["CONTRACT"])
def test_the_same_bits_again_and_again(name):
    """Of inputs so large that all of the GPU takes part."""
    contract = runpy.run_path(str(CONTRACT))
    arguments = contract["CONTRACT"][name].arguments(contract["Draw"](np.float32, 20_000))
    results = [contract["as_tuple"](getattr(contract["device"], name)(*arguments)) for _ in range(3)]
    for other in results[1:]:
        for x, y in zip(results[0], other, strict=True):
            assert x is None or x.tobytes() == y.tobytes()


ROWS = """
import runpy, sys
contract = runpy.run_path(sys.argv[1])
for dtype in contract["DTYPES"]:
    for name, row in contract["CONTRACT"].items():
        contract["check"](contract["device"], name, row.arguments(contract["Draw"](dtype, 131)))
print("all rows")
"""


@pytest.mark.parametrize("tool", ["memcheck", "racecheck", "synccheck"])
def test_compute_sanitizer_finds_nothing(tool):
    program = shutil.which("compute-sanitizer")
    if program is None:
        pytest.skip("compute-sanitizer is not installed")
    command = [program, "--tool", tool, "--error-exitcode", "9", sys.executable, "-c", ROWS, str(CONTRACT)]
    done = subprocess.run(command, env=os.environ.copy(), capture_output=True, text=True)
    assert done.returncode == 0 and "all rows" in done.stdout, done.stdout[-3000:] + done.stderr[-3000:]
