"""Methods at equal bits, and their ranks over data sets, by hand."""

import csv

import pytest
from click.testing import CliRunner

from dpq_ref.cli import main
from figures import matched, rank, style
from figures.inputs import read_csv
from figures.rows import Cell


@pytest.fixture(autouse=True)
def coarse(monkeypatch):
    """Figures of few pixels, quickly drawn."""
    monkeypatch.setitem(style.RC, "figure.dpi", 30)


def cell(ratio, *values, method="a", parameters=""):
    return Cell(method, parameters, None, ratio, values)


@pytest.mark.parametrize(
    ("budget", "ratio"), [(8, None), (16, 16.0), (32, 31.9), (64, None), (4, 4.0), (2, None)]
)
def test_the_most_bits_within_a_budget(budget, ratio):
    cells = [cell(r, 1.0) for r in (4.0, 16.0, 20.0, 31.9, 40.0)]
    found = matched.within(cells, budget, "higher")
    assert (found and found.ratio) == ratio


def test_of_one_size_the_best_counts():
    cells = [cell(16.0, 1.0), cell(16.1, 3.0), cell(17.0, 9.0)]
    assert matched.within(cells, 16, "higher").values == (3.0,)
    assert matched.within(cells, 16, "lower").values == (1.0,)
    assert matched.within([], 16, "lower") is None


TOY = """method,parameters,compression_ratio,test_accuracy,relative_error
full,,1,95,
a,k=1,16,90,.5
a,k=2,16,91,.6
b,k=1,20,92,.4
c,k=1,40,99,.1
d,figure=own k=1,16,99,.1
e,k=1,8,80,
"""


def test_matches_by_hand(tmp_path):
    (tmp_path / "toy.csv").write_text(TOY)
    found = {(m.metric, m.budget): m.cells for m in matched.match(read_csv(tmp_path / "toy.csv"))}
    assert {key: [(c.method, c.mean) for c in cells] for key, cells in found.items()} == {
        ("test_accuracy", 16): [("b", 92.0), ("a", 91.0)],
        ("relative_error", 16): [("b", 0.4), ("a", 0.5)],
    }


def test_the_table_marks_the_best_and_tells_the_spread(tmp_path):
    text = "method,parameters,compression_ratio,test_accuracy\n"
    text += "a,k=1,16,90\na,k=1,16,92\nb,k=1,16,91\nb,k=1,16,91\nc,k=1,16,88.123456\n"
    (tmp_path / "toy.csv").write_text(text)
    matches = matched.match(read_csv(tmp_path / "toy.csv"))
    ((title, header, lines),) = matched.grids(matches)
    assert (title, header) == ("test accuracy (%), higher is better", ["method", "ratio 16"])
    assert lines == [["a", "91 ± 1 *"], ["b", "91 ± 0 *"], ["c", "88.12"]]
    rows = matched.table(matches)
    assert [(r["method"], r["best"], r["spread"], r["seeds"]) for r in rows] == [
        ("a", True, 1.414, 2),
        ("b", True, 0.0, 2),
        ("c", False, 0.0, 1),
    ]


ONE = "method,compression_ratio,test_accuracy,relative_error\n"
ONE += "a,16,90,.3\nb,16,80,.1\nc,16,85,.2\nx,16,99,.01\n"
TWO = "method,compression_ratio,relative_error\na,8,.1\nb,8,.1\nc,8,.2\na,16,.5\nb,17,.6\n"


@pytest.fixture
def two(tmp_path):
    """Results on two data sets."""
    for name, text in (("one", ONE), ("two", TWO)):
        (tmp_path / f"{name}.csv").write_text(text)
    return [str(tmp_path / "one.csv"), str(tmp_path / "two.csv")]


def test_ranks_by_hand(two, tmp_path):
    output = tmp_path / "ranks"
    done = CliRunner().invoke(main, ["rank", *two, "--output", str(output)])
    assert done.exit_code == 0, done.output
    assert "not ranked: x." in done.output
    # one: accuracy a c b, error b c a; two, ratio 8: a and b share 1 and 2, then c. At 16 c is missing.
    rows = list(csv.DictReader((output / "ranks.csv").open()))
    assert [(r["method"], float(r["mean_rank"]), int(r["cases"])) for r in rows] == [
        ("a", pytest.approx((1 + 3 + 1.5) / 3, abs=1e-4), 3),
        ("b", pytest.approx((3 + 1 + 1.5) / 3, abs=1e-4), 3),
        ("c", pytest.approx((2 + 2 + 3) / 3, abs=1e-4), 3),
    ]
    assert [(float(r["one"]), float(r["two"])) for r in rows] == [(2, 1.5), (2, 1.5), (2, 3)]
    cases = list(csv.DictReader((output / "ranks_cases.csv").open()))
    assert len(cases) == 9 and {(r["dataset"], r["budget"]) for r in cases} == {("one", "16"), ("two", "8")}


def test_ranks_of_a_case_sum_to_the_same(two):
    rows = [row for path in two for row in read_csv(path)]
    cases, left_out = rank.cases_of(rows)
    assert left_out == ["x"]
    of = {}
    for case in cases:
        of.setdefault((case["dataset"], case["metric"], case["budget"]), []).append(case["rank"])
    assert all(sum(ranks) == 1 + 2 + 3 for ranks in of.values())


def test_ranks_are_drawn_the_same_to_the_byte(two, tmp_path):
    first, second = (rank.make(two, tmp_path / name) for name in ("first", "second"))
    assert len(first) == 6
    for one, other in zip(first, second, strict=True):
        assert one.read_bytes() == other.read_bytes(), one.name


def test_what_cannot_be_ranked_says_why(two, tmp_path):
    done = CliRunner().invoke(main, ["rank", two[0], "--output", str(tmp_path / "out")])
    assert done.exit_code == 1 and "results of one data set, one; ranks take several" in done.output
    (tmp_path / "three.csv").write_text("method,compression_ratio,relative_error\na,64,.1\nz,64,.1\n")
    done = CliRunner().invoke(main, ["rank", *two, str(tmp_path / "three.csv")])
    assert done.exit_code == 1 and "no two methods meet at one budget" in done.output
    assert "on all are a" in done.output
    assert not (tmp_path / "out").exists()
