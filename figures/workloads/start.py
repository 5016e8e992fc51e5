"""From nothing to a result: what a new process takes, beside processes that only import."""

import subprocess
import sys

from figures.speed import Call, Work

FIRST = """
import dpq_ref
dpq_ref.DPQEmbedding(10_000, 300, n_groups=50, n_codes=32).forward(range(700))
"""
CODE = {
    "help": "from dpq_ref.cli import main\nmain(['--help'], standalone_mode=False)",
    "first forward of DPQ": FIRST,
}
BARRED = {"sklearn", "torch"}  # what the core never imports


def start(what: str) -> Work:
    """Run new processes; our kernels have been compiled before."""

    def process(code: str) -> Call:
        return lambda: subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)

    def agree() -> None:
        process(f"{CODE[what]}\nimport sys\nassert not {BARRED} & {{*sys.modules}}")()

    # The second is what Numba imports before it loads any kernel from its cache, SciPy's BLAS included.
    packages = ("numpy", "torch") if what == "help" else ("numba", "numba.np.arraymath", "torch")
    peers = {f"import {package}": process(f"import {package}") for package in packages}
    return Work(what, process(CODE[what]), peers, agree)
