"""Importing the package and asking for help load next to nothing."""

import subprocess
import sys

import pytest

import dpq_ref
from dpq_ref import compressed

HEAVY = ("numpy", "numba", "cupy", "scipy", "sklearn", "matplotlib", "pandas", "rich", "joblib")


def loaded(code: str) -> set[str]:
    """Top-level modules in sys.modules of a new process after some code."""
    code += "\nimport sys; print('|', *{name.split('.')[0] for name in sys.modules})"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(run.stdout.rsplit("|", 1)[1].split())


def test_import_loads_no_package():
    assert not loaded("import dpq_ref").intersection(HEAVY)


def test_help_loads_no_package():
    code = "from dpq_ref.cli import main\nmain(['--help'], standalone_mode=False)"
    assert not loaded(code).intersection(HEAVY)


def test_the_numpy_back_end_needs_no_numba():
    code = (
        "import dpq_ref\n"
        "layer = dpq_ref.DPQEmbedding(50, 8, n_groups=4, n_codes=4, backend='numpy')\n"
        "layer.backward(layer.forward([1, 2, 3]))"
    )
    assert "numba" not in loaded(code)


def test_every_public_name_is_there():
    for name in dpq_ref.__all__:
        assert getattr(dpq_ref, name).__doc__
    assert set(dpq_ref.__all__) <= set(dir(dpq_ref))
    kinds = {name for name in compressed.__all__ if name.endswith("Table")}
    assert kinds and kinds <= set(dpq_ref.__all__)
    with pytest.raises(AttributeError, match="nonsense"):
        _ = dpq_ref.nonsense
