"""CSV files of anyone's: what is filled in, and what is refused with its line."""

import csv
import json

import pytest
from click.testing import CliRunner

from dpq_ref.cli import main
from figures.inputs import read, read_csv
from figures.rows import COLUMNS, cells_of
from figures.style import DASHES, OTHERS, RC, STYLES, styles, to_csv


@pytest.fixture
def folder(tmp_path):
    """Results of three runs: a full table of 3,200 bits, and two methods."""
    (tmp_path / "mine" / "runs").mkdir(parents=True)
    runs = [("full", {}, 3200, 90.0), ("product", {"n_codes": 4}, 320, 85.0), ("uniform", {}, 400, 80.0)]
    for method, parameters, bits, accuracy in runs:
        record = {
            "specification": {"dataset": "toy", "method": method, "parameters": parameters, "seed": 0},
            "bits": {"all": bits},
            "compression_ratio": 3200 / bits,
            "metrics": {"test_accuracy": accuracy},
            "seconds": {"fit": 2.0},
        }
        (tmp_path / "mine" / "runs" / f"{method}.json").write_text(json.dumps(record))
    return tmp_path / "mine"


def write(path, text):
    path.write_text(text, encoding="utf8")
    return path


def test_what_is_left_out_is_filled_in(folder, tmp_path):
    others, _ = read([folder])
    path = write(
        tmp_path / "codes.csv",
        "metric,value,method,compression_ratio,bits\n"
        "test_accuracy,70,a,8,\n"
        "test_accuracy, 72 ,a,8,\n"
        "\n"
        "test_accuracy,71,b,,640\n",
    )
    found = read_csv(path, others, dataset="toy")
    assert [(r["dataset"], r["method"], r["seed"], r["value"]) for r in found] == [
        ("toy", "a", 0, 70.0),
        ("toy", "a", 1, 72.0),
        ("toy", "b", 0, 71.0),
    ]
    assert [(r["bits"], r["compression_ratio"], r["seconds"]) for r in found] == [
        (400, 8.0, None),
        (400, 8.0, None),
        (640, 5.0, None),
    ]
    alone = read_csv(write(tmp_path / "own.csv", "method,metric,value,compression_ratio\na,test_bleu,1,8\n"))
    assert (alone[0]["dataset"], alone[0]["bits"]) == ("own", None)


def test_without_parameters_the_ratio_tells_runs_apart(tmp_path):
    path = write(
        tmp_path / "a.csv", "method,seed,compression_ratio,test_bleu\na,0,8,20\na,1,8,22\na,0,16,15\n"
    )
    cells = cells_of(read_csv(path), "test_bleu")
    assert [(c.parameters, c.values) for c in cells] == [("ratio=8", (20.0, 22.0)), ("ratio=16", (15.0,))]


def test_a_column_a_metric_is_the_same_as_a_line_a_metric(tmp_path):
    wide = "method,parameters,compression_ratio,relative_error,mean_cosine,seconds\n"
    wide += "a,k=1,8,.5,,3\nb,k=2,9,.4,.9,\n"
    long = (
        "method,parameters,compression_ratio,metric,value,seconds\n"
        "a,k=1,8,relative_error,0.5,3\nb,k=2,9,relative_error,0.4,\nb,k=2,9,mean_cosine,0.9,\n"
    )
    found, expected = (
        read_csv(write(tmp_path / name / "a.csv", text))
        for name, text in (("wide", wide), ("long", long))
        if not (tmp_path / name).mkdir()
    )
    assert found == expected and len(found) == 3


def test_a_csv_without_a_data_set_has_that_of_the_others(folder, tmp_path):
    first = write(tmp_path / "first.csv", "method,compression_ratio,test_bleu\na,8,20\n")
    second = write(tmp_path / "second.csv", "method,compression_ratio,test_bleu\nb,8,20\n")

    def datasets(*paths, **options):
        return [row["dataset"] for row in read(paths, **options)[0]][-2:]

    assert datasets(first, second, folder) == ["toy", "toy"]
    assert datasets(first, second) == ["first", "first"]
    assert datasets(first, second, together=False) == ["first", "second"]


def test_results_are_read_as_they_were_written(folder, tmp_path):
    rows, _ = read([folder])
    again = read_csv(write(tmp_path / "results.csv", to_csv(rows, COLUMNS)))
    assert [{k: r[k] for k in COLUMNS} for r in again] == [{k: r[k] for k in COLUMNS} for r in rows]


HEAD = "method,metric,value,compression_ratio"


@pytest.mark.parametrize(
    ("text", "line", "message"),
    [
        ("", 1, "no column method"),
        ("method,metric\n", 1, "no column value"),
        ("method,compression_ratio\n", 1, "no column metric, value"),
        ("method,value,metric,size\n", 1, "unknown column size"),
        ("method,compression_ratio,test_accurracy\n", 1, "unknown column test_accurracy"),
        (f"{HEAD}\na,accuracy,1,2\n", 2, "unknown metric 'accuracy'; it takes one of test_accuracy"),
        (f"{HEAD}\na,test_accuracy,1,2\n\n,test_accuracy,1,2\n", 4, "method is empty"),
        (f"{HEAD}\na,test_accuracy,,2\n", 2, "value is empty"),
        (f"{HEAD}\na,test_accuracy,one,2\n", 2, "value='one'; it takes a number"),
        (f"{HEAD}\na,test_accuracy,nan,2\n", 2, "value='nan'; it takes a number"),
        (f"{HEAD}\na,test_accuracy,1,-2\n", 2, "compression_ratio='-2'; it takes a number of 0 or more"),
        (f"{HEAD}\na,test_accuracy,1,\n", 2, "a compression_ratio above 0, or bits beside other results"),
        (f"{HEAD}\na,test_accuracy,1,2,3\n", 2, "more entries than columns"),
        (f"{HEAD},seed\na,test_accuracy,1,2,0.5\n", 2, "seed='0.5'; it takes a whole number"),
        (f"{HEAD},parameters\na,test_accuracy,1,2,k\n", 2, "parameters: 'k' is no name=value"),
        (
            f"{HEAD},seed\na,test_accuracy,1,2,0\na,test_accuracy,3,2,0\n",
            3,
            "the same run and metric as in line 2",
        ),
        ("method\n\udcff\n", 1, "utf-8"),
    ],
)
def test_what_is_wrong_is_refused_with_its_line(tmp_path, text, line, message):
    path = tmp_path / "bad.csv"
    path.write_bytes(text.encode("utf8", "surrogateescape"))
    with pytest.raises(ValueError, match=f"bad.csv, line {line}: .*{message}"):
        read_csv(path)


def test_a_csv_without_lines_is_refused(tmp_path):
    with pytest.raises(ValueError, match="bad.csv has no rows"):
        read_csv(write(tmp_path / "bad.csv", HEAD))


def test_a_run_that_is_there_twice_is_refused(folder, tmp_path):
    path = write(
        tmp_path / "a.csv",
        "dataset,method,parameters,seed,compression_ratio,test_accuracy\ntoy,product,n_codes=4,0,10,1\n",
    )
    with pytest.raises(ValueError, match="a.csv has a run that .*mine has, too: toy, product, n_codes=4, 0"):
        read([path, folder])


def test_a_csv_stands_among_the_runs_of_a_folder(folder, tmp_path, monkeypatch):
    monkeypatch.setitem(RC, "figure.dpi", 50)
    path = write(
        tmp_path / "codes.csv", "method,compression_ratio,test_accuracy\nmy codes,10,88\nyours,12,84\n"
    )
    output = tmp_path / "drawn"
    done = CliRunner().invoke(main, ["plot", str(path), str(folder), "--output", str(output)])
    assert done.exit_code == 0, done.output
    assert "my codes" in done.output
    drawn = {row["method"]: row for row in csv.DictReader((output / "accuracy.csv").open())}
    assert drawn["my codes"] == {
        "method": "my codes",
        "parameters": "ratio=10",
        "bits": "320",
        "compression_ratio": "10.0",
        "mean": "88.0",
        "spread": "0.0",
        "seeds": "1",
        "pareto": "True",
    }
    assert drawn["product"]["pareto"] == "False"
    assert [path.name for path in folder.iterdir()] == ["runs"]
    best = [r for r in csv.DictReader((output / "matched_bits.csv").open()) if r["best"] == "True"]
    assert [(r["budget"], r["method"]) for r in best] == [("8", "my codes")]


def test_one_figure_is_of_one_data_set(folder, tmp_path):
    path = write(tmp_path / "a.csv", "dataset,method,compression_ratio,test_accuracy\nother,a,10,1\n")
    done = CliRunner().invoke(main, ["plot", str(path), str(folder), "--output", str(tmp_path / "drawn")])
    assert done.exit_code == 1 and "2 data sets (other; toy)" in done.output and "rank" in done.output
    assert not (tmp_path / "drawn").exists()


def test_no_two_methods_look_alike():
    looks = [(style.marker, str(style.dash)) for style in STYLES.values()]
    assert len(set(looks)) == len(looks)
    own = styles([f"m{i}" for i in range(35)])
    assert len({(s.marker, s.dash) for s in own.values()}) == 35
    assert not {s.marker for s in own.values()} & {s.marker for s in STYLES.values()}
    assert all(own[name].label == name for name in own)
    assert len(set(map(str, DASHES.values()))) >= len(DASHES) - 2  # full and DPQ are drawn through
    assert {*OTHERS[0]} <= {*DASHES}
