"""The bench: made-up works of known duration, on a made-up clock."""

import csv
import json
import sys
from functools import partial

import numpy as np
import pytest
from click.testing import CliRunner

from dpq_ref.environment import environment
from figures import speed, workloads
from figures.workloads.kernels import ARGUMENTS

GRID = """
[[work]]
name = "sleep"
milliseconds = [2, 4]
threads = [1]
goals = { slow = 2.5 }
goal_ms = 3.5
floor_goal = 3
"""


class Clock:
    """Time that passes only in what is timed: the machine's own would make the test a matter of luck."""

    def __init__(self):
        self.now = 0.0

    def pass_by(self, seconds):
        self.now += seconds

    def perf_counter(self):
        return self.now

    def process_time(self):
        return self.now / 4


@pytest.mark.parametrize("runs", [1, 3])
def test_ratios_and_floor(tmp_path, monkeypatch, runs):
    clock = Clock()

    def sleep(milliseconds):
        nap = {factor: partial(clock.pass_by, factor * milliseconds / 1e3) for factor in (1, 3, 0.5)}
        return speed.Work(f"{milliseconds} ms", nap[1], {"slow": nap[3], "fast": nap[0.5]}, traffic=1e6)

    monkeypatch.setattr(workloads, "sleep", sleep, raising=False)
    monkeypatch.setattr(speed, "rates", lambda: (1e9, 1e9))
    monkeypatch.setattr(speed, "time", clock)
    (tmp_path / "grid.toml").write_text(GRID)
    arguments = ["--grid", str(tmp_path / "grid.toml"), "--runs", str(runs), "--output", str(tmp_path)]
    done = CliRunner().invoke(speed.main, arguments)
    assert done.exit_code == 0, done.output
    rows = list(csv.DictReader((tmp_path / "speed.csv").open()))
    assert [(r["shape"], r["peer"], r["goal"]) for r in rows] == [
        (f"{n} ms", peer, goal) for n in (2, 4) for peer, goal in (("slow", "2.5"), ("fast", ""))
    ]
    for row in rows:
        assert (row["ours_goal_ms"], row["floor_goal"], int(row["runs"])) == ("3.5", "3", runs)
        ours, ratio = float(row["shape"].split()[0]), {"slow": 3, "fast": 0.5}[row["peer"]]
        expected = {"ours_ms": ours, "peer_ms": ratio * ours, "ratio": ratio, "ours_cpu_ms": ours / 4}
        expected |= {"peer_cpu_ms": ratio * ours / 4, "floor_ms": 1, "over_floor": ours}
        assert {name: float(row[name]) for name in expected} == pytest.approx(expected)


def write_before(folder, rows, processor=None):
    (folder / "before.csv").write_text("name,shape,threads,peer,ratio\n" + rows)
    machine = {"processor": processor or environment()["processor"]}
    (folder / "before.json").write_text(json.dumps({"environment": machine}))


@pytest.mark.parametrize(
    ("factor", "processor", "code"), [(0.6, None, 0), (0.4, None, 1), (0.4, "another", 0)]
)
def test_falls_are_seen(tmp_path, monkeypatch, factor, processor, code):
    """Ours takes so much of the peer's time that the ratio is 60 or 40 % of what it was, twice."""
    clock = Clock()

    def sleep(milliseconds):
        peer = partial(clock.pass_by, milliseconds / 1e3)
        return speed.Work("nap", partial(clock.pass_by, milliseconds / 1e3 / factor / 10), {"slow": peer})

    monkeypatch.setattr(workloads, "sleep", sleep, raising=False)
    monkeypatch.setattr(speed, "time", clock)
    (tmp_path / "grid.toml").write_text('[[work]]\nname = "sleep"\nmilliseconds = 3\n')
    write_before(tmp_path, "sleep,nap,1,slow,10\nsleep,other,1,slow,99\n", processor)
    arguments = ["--grid", str(tmp_path / "grid.toml"), "--against", str(tmp_path / "before.csv")]
    done = CliRunner().invoke(speed.main, arguments)
    assert done.exit_code == code, done.output
    assert ("less than half" in done.output) == bool(code)
    assert ("another processor" in done.output) == (processor is not None)


def test_one_slow_moment_is_no_fall(tmp_path, monkeypatch):
    clock, calls = Clock(), []

    def sleep(milliseconds):
        calls.append(milliseconds)
        ours = milliseconds / 1e3 * (20 if len(calls) == 1 else 1)
        return speed.Work("nap", partial(clock.pass_by, ours), {"slow": partial(clock.pass_by, 0.03)})

    monkeypatch.setattr(workloads, "sleep", sleep, raising=False)
    monkeypatch.setattr(speed, "time", clock)
    (tmp_path / "grid.toml").write_text('[[work]]\nname = "sleep"\nmilliseconds = 3\n')
    write_before(tmp_path, "sleep,nap,1,slow,10\n")
    arguments = ["--grid", str(tmp_path / "grid.toml"), "--against", str(tmp_path / "before.csv")]
    done = CliRunner().invoke(speed.main, arguments)
    assert done.exit_code == 0 and len(calls) == 2, done.output


@pytest.mark.skipif(sys.platform != "linux", reason="memory is read from /proc")
def test_memory_of_each_side_where_it_is_asked_for(tmp_path, monkeypatch):
    def ones(n):
        kept = []  # by the first call, for those to come

        def ours():
            if not kept:
                kept.append(np.ones(n, np.uint8))

        return speed.Work(f"{n}", ours, {"twice": lambda: np.ones(2 * n, np.uint8)}, ours)

    monkeypatch.setattr(workloads, "ones", ones, raising=False)
    work = '[[work]]\nname = "ones"\nn = 20_000_000\n'
    (tmp_path / "grid.toml").write_text(f"{work}{work}memory = {{ n = 10 }}\n")
    arguments = ["--grid", str(tmp_path / "grid.toml"), "--runs", "1", "--output", str(tmp_path)]
    done = CliRunner().invoke(speed.main, arguments)
    assert done.exit_code == 0, done.output
    without, row = csv.DictReader((tmp_path / "speed.csv").open())
    assert without["ours_mb"] == without["peer_mb"] == ""
    assert float(row["ours_mb"]) == pytest.approx(20, abs=4)
    assert float(row["peer_mb"]) == pytest.approx(40, abs=4)


@pytest.mark.parametrize("of", ARGUMENTS)
def test_kernels_agree(of):
    workloads.kernel(of).agree()


def test_what_disagrees_is_not_timed(tmp_path, monkeypatch):
    def disagree():
        raise AssertionError("another answer")

    work = speed.Work("", lambda: pytest.fail("timed"), agree=disagree)
    monkeypatch.setattr(workloads, "sleep", lambda **_: work, raising=False)
    (tmp_path / "grid.toml").write_text(GRID)
    with pytest.raises(AssertionError, match="another answer"):
        speed.run(tmp_path / "grid.toml", runs=1, on_row=pytest.fail)
