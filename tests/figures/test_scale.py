"""Growth of time and memory, and the figures of speed."""

import csv

import numpy as np
import pytest
from click.testing import CliRunner

from figures import plot_speed, scale


def test_exponent_of_powers():
    x = np.array([3.0, 10, 40, 100, 1000])
    for power in (0.5, 1, 2):
        assert scale.exponent(x, 7 * x**power) == pytest.approx(power)
    assert scale.exponent(x, 5 + x) == pytest.approx(1, abs=0.2)  # what a call costs at least


def test_memory_is_that_of_the_arrays_of_a_call(monkeypatch):
    monkeypatch.setattr(scale, "call_of", lambda work, n: lambda: np.add(np.ones(n), np.ones(n)))
    row = scale.measure("sum", "n", 1_000_000, runs=2)
    assert row["megabytes"] == pytest.approx(24, rel=0.01)  # two arrays and their sum
    assert row["runs"] == 2 and row["milliseconds"] > 0


@pytest.mark.parametrize("work", dict.fromkeys(work for work, _, _ in scale.SERIES))
def test_each_work_runs(work):
    tiny = {"n": 300} if not work.startswith("dpq") else {"tokens": 40}
    scale.call_of(work, **tiny)()


def test_step_of_dpq_makes_no_array_of_all_responses():
    """Tokens, groups and codes at once would take eight times what is measured here."""
    sizes = {"tokens": 2048, "n_groups": 64, "n_codes": 64}
    for method in ("sx", "vq"):
        call = scale.call_of(f"dpq-{method}", **sizes)
        scale.call_of(f"dpq-{method}", tokens=40)()  # compiled
        peak = peak_of(call)
        assert peak < 2048 * 64 * 64 * 4 / 2


def peak_of(call):
    import tracemalloc

    tracemalloc.start()
    call()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return peak


def test_draws_what_it_measured(tmp_path, monkeypatch):
    sizes = [16, 32, 64]
    monkeypatch.setattr(scale, "SERIES", [(work, "tokens", sizes) for work in ("dpq-sx", "look-up")])
    done = CliRunner().invoke(scale.main, ["--runs", "1", "--output", str(tmp_path)])
    assert done.exit_code == 0, done.output
    rows = list(csv.DictReader((tmp_path / "scale.csv").open()))
    assert [(r["work"], r["value"]) for r in rows] == [
        (work, str(n)) for work in ("dpq-sx", "look-up") for n in sizes
    ]
    assert (tmp_path / "scale.png").stat().st_size > 1000


def test_speed_is_drawn(tmp_path):
    (tmp_path / "speed.csv").write_text(
        "name,shape,threads,peer,ratio,goal,over_floor,floor_goal\n"
        "look_up,700,1,faiss,2.5,2,4,3\nlook_up,700,1,torch,0.9,,4,3\nlook_up,700,2,faiss,3,2,5,3\n"
        "start,help,1,,,,,\n"
    )
    done = CliRunner().invoke(plot_speed.main, ["--results", str(tmp_path)])
    assert done.exit_code == 0, done.output
    ratios = list(csv.DictReader((tmp_path / "ratios.csv").open()))
    assert [(r["peer"], r["ratio"]) for r in ratios] == [("faiss", "2.5"), ("torch", "0.9"), ("faiss", "3")]
    floors = list(csv.DictReader((tmp_path / "floors.csv").open()))
    assert [(r["threads"], r["over_floor"]) for r in floors] == [("1", "4"), ("2", "5")]
    assert not (tmp_path / "memory.csv").exists()


def test_memory_is_drawn(tmp_path):
    (tmp_path / "speed.csv").write_text(
        "name,shape,threads,peer,ratio,goal,over_floor,floor_goal,ours_mb,peer_mb\n"
        "text,700,1,pandas,2.5,,,,8,9\ntext,700,2,pandas,2,,,,8,0.0\nstart,help,1,,,,,,3,\nx,7,1,y,3,,,,,\n"
    )
    done = CliRunner().invoke(plot_speed.main, ["--results", str(tmp_path)])
    assert done.exit_code == 0, done.output
    rows = list(csv.DictReader((tmp_path / "memory.csv").open()))
    assert [(r["threads"], r["ours_mb"], r["peer_mb"]) for r in rows] == [("1", "8", "9"), ("2", "8", "0.0")]
    assert (tmp_path / "memory.png").stat().st_size > 1000
