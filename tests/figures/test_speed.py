"""The bench: made-up works of known duration."""

import csv
import time

import pytest
from click.testing import CliRunner

from figures import speed, workloads

GRID = """
[[work]]
name = "sleep"
milliseconds = [2, 4]
threads = [1]
goals = { slow = 2.5 }
floor_goal = 3
"""


def sleep(milliseconds):
    def nap(factor):
        return lambda: time.sleep(factor * milliseconds / 1e3)

    return speed.Work(f"{milliseconds} ms", nap(1), {"slow": nap(3), "fast": nap(0.5)}, traffic=1e6)


def test_ratios_and_floor(tmp_path, monkeypatch):
    monkeypatch.setattr(workloads, "sleep", sleep, raising=False)
    monkeypatch.setattr(speed, "rates", lambda: (1e9, 1e9))
    (tmp_path / "grid.toml").write_text(GRID)
    arguments = ["--grid", str(tmp_path / "grid.toml"), "--runs", "3", "--output", str(tmp_path)]
    done = CliRunner().invoke(speed.main, arguments)
    assert done.exit_code == 0, done.output
    rows = list(csv.DictReader((tmp_path / "speed.csv").open()))
    assert [(r["shape"], r["peer"], r["goal"]) for r in rows] == [
        (f"{n} ms", peer, goal) for n in (2, 4) for peer, goal in (("slow", "2.5"), ("fast", ""))
    ]
    for row in rows:
        assert float(row["ours_ms"]) >= float(row["shape"].split()[0])
        assert (float(row["ratio"]) > 1) == (row["peer"] == "slow")
        assert float(row["floor_ms"]) == 1
        assert float(row["over_floor"]) == pytest.approx(float(row["ours_ms"]), abs=1e-3)
        assert float(row["ours_cpu_ms"]) < float(row["ours_ms"])


def test_what_disagrees_is_not_timed(monkeypatch):
    def disagree():
        raise AssertionError("another answer")

    work = speed.Work("", lambda: pytest.fail("timed"), agree=disagree)
    with pytest.raises(AssertionError, match="another answer"):
        speed.measure("work", work, threads=1, runs=1, goals={}, floor_goal=None)
