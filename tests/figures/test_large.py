"""Tables larger than memory: what is measured, and the bound that each method keeps."""

import csv
import json
import os
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from dpq_ref import load
from figures import large

LINUX = pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory is read from /proc")


def test_the_table_does_not_depend_on_its_length(tmp_path):
    large.make_table(tmp_path / "a.npy", 100)
    X = np.load(tmp_path / "a.npy")
    assert X.shape == (100, large.DIM) and X.dtype == np.float32 and np.isfinite(X).all()
    energies = np.linalg.svd(X - X.mean(axis=0), compute_uv=False) ** 2
    assert energies[:60].sum() > 0.9 * energies.sum()  # structured


@pytest.mark.slow
def test_measures_once_and_draws(tmp_path, monkeypatch):
    runs = {"low rank": ["low-rank", "--parameter", "rank=3"], "half, all rows": ["half"]}
    monkeypatch.setattr(large, "RUNS", runs)
    monkeypatch.setattr(large, "HOLDS_ALL", {"half, all rows"})
    tables = []
    make = large.make_table
    monkeypatch.setattr(large, "make_table", lambda path, n: tables.append(n) or make(path, n))
    for _ in range(2):
        done = CliRunner().invoke(large.main, ["--rows", "500", "--output", str(tmp_path)])
        assert done.exit_code == 0, done.output
    assert tables == [500]  # what has its record is not measured again
    rows = list(csv.DictReader((tmp_path / "large.csv").open()))
    assert [row["run"] for row in rows] == [*runs] and all(float(row["minutes"]) > 0 for row in rows)
    assert [row["learned_from"] for row in rows] == ["all rows"] * 2
    record = json.loads(next((tmp_path / "measured").glob("*low-rank.json")).read_text())
    assert record["arguments"] == runs["low rank"] and record["numpy"] == np.__version__
    assert "table" not in record and "file" not in record
    assert (tmp_path / "large.png").stat().st_size > 1000


def test_a_run_that_fails_is_an_error(tmp_path):
    large.make_table(tmp_path / "t.npy", 10)
    with pytest.raises(RuntimeError, match="compress.* ended with 1"):
        large.compress(tmp_path / "t.npy", tmp_path / "t.safetensors", ["pq", "--ratio", "1000"])


@LINUX
@pytest.mark.slow
@pytest.mark.parametrize("run", [run for run in large.RUNS if run not in large.HOLDS_ALL])
def test_anonymous_memory_of_a_large_table(run, tmp_path_factory):
    """400,000 x 300, 480 MB: what a process makes is less than the table, and never a copy of it."""
    table, small = (tmp_path_factory.getbasetemp() / name for name in ("large.npy", "small.npy"))
    if not table.exists():
        large.make_table(small, 20_000)
        large.make_table(table, 400_000)
    for path in (small, table):  # compiling takes memory, too
        result = large.compress(path, path.with_suffix(".safetensors"), large.RUNS[run])
    assert result["relative_error"] < 0.5
    assert load(table.with_suffix(".safetensors")).vocab_size == 400_000
    assert result["anonymous_bytes"] < 0.95 * os.path.getsize(table)
