"""The bench of a GPU on the stand-in for CuPy: all works agree with the host, and the record is whole."""

import csv
import json
import sys
import tomllib
from functools import partial

import numpy as np
import pytest
import stand_in_cupy
from click.testing import CliRunner
from stand_in_gpu import install

from figures import gpu, plot_speed
from figures.sweep import cells
from figures.workloads import gpu as workloads

SMALL = """
[[work]]
name = "dpq_sx"
tokens = 40
dim = 12
n_groups = 3
n_codes = 4

[[work]]
name = "dpq_vq"
tokens = 40
dim = 12
n_groups = 3
n_codes = 4

[[work]]
name = "decode"
tokens = 30
dim = 12
n_groups = 3
n_codes = 4

[[work]]
name = "assignment"
n = 40
dim = 12
n_groups = 3
n_codes = 4
"""


@pytest.fixture
def device(monkeypatch):
    monkeypatch.setattr(gpu, "rates", partial(gpu.rates, side=16, copied=1 << 10))
    return install(monkeypatch)


def run(*arguments):
    return CliRunner().invoke(gpu.main, [str(x) for x in arguments])


def test_record_and_figures(device, tmp_path):
    (tmp_path / "grid.toml").write_text(SMALL)
    done = run("--grid", tmp_path / "grid.toml", "--runs", 2, "--output", tmp_path)
    assert done.exit_code == 0, done.output
    rows = list(csv.DictReader((tmp_path / "speed.csv").open()))
    assert [row["name"] for row in rows] == ["dpq_sx", "dpq_vq", "decode", "assignment"]
    assert [row["peer"] for row in rows] == ["", "", "copy", "matrix product"]
    for row in rows:
        assert row["threads"] == "stand-in"
        assert float(row["ours_ms"]) > 0
        assert float(row["over_floor"]) == pytest.approx(
            float(row["ours_ms"]) / float(row["floor_ms"]), rel=0.1
        )
    record = json.loads((tmp_path / "speed.json").read_text())
    assert record["environment"]["device"] == "stand-in"
    assert record["environment"]["cupy"] == stand_in_cupy.__version__
    assert record["rates"].keys() == {"operations_per_second", "bytes_per_second"}
    assert plot_speed.draw(tmp_path / "speed.csv", tmp_path)


def test_language_model_is_held_to_the_host(device):
    work = workloads.language_model("small", 3, n_hidden=8, batch_size=2)
    work.agree()
    assert work.ours() > 0


def test_what_differs_is_not_timed(device, monkeypatch):
    reference = device.nearest_code
    monkeypatch.setattr(device, "nearest_code", lambda query, keys: reference(query, keys) * 0)
    with pytest.raises(AssertionError):
        workloads.assignment(40, 12, 3, 4).agree()


def test_medians_of_made_up_times(device, monkeypatch):
    times = {"ours": np.array([2.0, 1.0, 9.0]), "slow": np.array([4.0, 3.0, 9.0])}
    monkeypatch.setattr(gpu, "in_turn", lambda calls, runs: times)
    work = workloads.Work("x", lambda: None, {"slow": lambda: None}, operations=1e6, traffic=1e3)
    rate = {"operations_per_second": 1e9, "bytes_per_second": 1e9}
    (row,) = gpu.measure("x", work, device="stand-in", runs=3, rate=rate)
    assert (row["ours_ms"], row["peer_ms"], row["ratio"]) == (2, 4, 2)
    assert row["floor_ms"] == 1 and row["over_floor"] == 2


def test_every_work_of_the_grid_is_there():
    works = cells(tomllib.loads(gpu.GRID.read_text())["work"])
    assert len(works) == 7
    assert all(callable(getattr(workloads, name)) for name, _ in works)


def test_without_a_gpu_it_is_an_error(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "cupy", None)
    done = run("--output", tmp_path / "out")
    assert done.exit_code == 1
    assert "backend='cupy' needs CuPy" in done.output
    assert not (tmp_path / "out").exists()
