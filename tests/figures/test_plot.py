"""Figures from rows alone: which there are, their numbers, their width, and that they repeat."""

import csv

import pytest
from matplotlib.image import imread

from dpq_ref.metrics import METRICS
from figures import matched, plot, plot_heat, plot_quality, style
from figures.inputs import read_csv
from figures.rows import Cell, cells_of

HEAD = "method,parameters,seed,compression_ratio,relative_error,neighbour_overlap,lookup_microseconds,seconds"
TABLES = f"""{HEAD}
product,n_codes=4 n_groups=2,0,30,.5,.2,1,2
product,n_codes=4 n_groups=4,0,20,.3,.4,2,3
product,n_codes=16 n_groups=2,0,22,.35,.35,2,4
product,n_codes=16 n_groups=4,0,10,.1,.6,3,5
product,n_codes=16 n_groups=4,1,10,.3,.6,3,7
product,n_codes=4 n_groups=2 weighted=True,0,30,.6,.2,1,2
mine,n_codes=4 n_groups=2,0,30,.55,.2,9,
"""


@pytest.fixture(scope="module", autouse=True)
def coarse():
    """Figures of few pixels, quickly drawn."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(style.RC, "figure.dpi", 50)
        yield


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    """Folder of the figures of that CSV, and the paths that were written."""
    folder = tmp_path_factory.mktemp("toy")
    (folder / "toy.csv").write_text(TABLES)
    return folder / "out", plot.draw(folder / "toy.csv", folder / "out")


def table(path):
    return list(csv.DictReader(path.open(encoding="utf8")))


def test_drawn_from_what_was_written_all_is_the_same_to_the_byte(drawn, tmp_path):
    folder, paths = drawn
    stems = ("comparison", "time", "codes_and_groups")
    figures = [f"{stem}.{end}" for stem in stems for end in ("png", "svg", "pdf", "csv")]
    texts = ["results.csv", "table.txt", "matched_bits.txt", "matched_bits.csv"]
    assert [path.name for path in paths] == texts + figures
    again = plot.draw(folder / "results.csv", tmp_path / "again")
    for one, other in zip(paths, again, strict=True):
        assert one.read_bytes() == other.read_bytes(), one.name


def test_time_stands_beside_the_error_of_the_same_runs(drawn):
    rows = table(drawn[0] / "time.csv")
    found = {(r["time"], r["method"], r["compression_ratio"]): r for r in rows}
    row = found["fit_seconds", "product", "10.0"]
    assert (float(row["time_mean"]), float(row["mean"])) == (6.0, 0.2)
    assert ("lookup_microseconds", "mine", "30.0") in found
    assert ("fit_seconds", "mine", "30.0") not in found  # its time is not known
    assert not any("weighted" in r["parameters"] for r in rows)  # the panel is of the plain error


def test_heat_maps_are_of_methods_with_several_k_and_d(drawn):
    rows = table(drawn[0] / "codes_and_groups.csv")
    assert {r["method"] for r in rows} == {"product"}
    assert {(r["n_codes"], r["n_groups"]): float(r["relative_error"]) for r in rows} == {
        ("4", "2"): 0.5,
        ("4", "4"): 0.3,
        ("16", "2"): 0.35,
        ("16", "4"): 0.2,
    }
    cells = cells_of(read_csv(drawn[0] / "results.csv"), "relative_error")
    narrow = [cell for cell in cells if cell.settings["n_groups"] == 2]
    assert plot_heat.on_grids(narrow) == []


@pytest.mark.parametrize("n_methods", [3, 24])
def test_a_figure_is_as_wide_as_a_column_with_its_legend(tmp_path, n_methods):
    methods = list(style.STYLES)[:n_methods]
    cells = [Cell(m, f"k={k}", None, 4.0 * k, (90 / k, 91 / k)) for m in methods for k in (1, 2, 3)]
    paths = plot_quality.draw(tmp_path / "accuracy", "toy", cells, "test_accuracy")
    with_rc = imread(paths[0])
    assert with_rc.shape[1] / 100 == pytest.approx(style.COLUMN, abs=0.25)  # 100 dpi: without RC
    assert [float(r["mean"]) for r in table(paths[-1])][:2] == [90.5, 45.25]


@pytest.mark.parametrize(
    ("metric", "name"),
    [("test_perplexity", "perplexity"), ("test_bleu", "bleu"), ("test_accuracy", "accuracy")],
)
def test_each_task_has_its_figure(tmp_path, metric, name):
    (tmp_path / "a.csv").write_text(f"method,compression_ratio,{metric}\nfull,1,50\nmine,8,40\nmine,16,30\n")
    paths = plot.draw([tmp_path / "a.csv"], tmp_path / "out")
    assert {path.stem for path in paths} == {"results", "table", name}
    text = (tmp_path / "out" / "table.txt").read_text(encoding="utf8")
    assert METRICS[metric].label.removeprefix("test ") in text and "-10.00" in text


def test_results_without_a_folder_need_an_output(tmp_path):
    (tmp_path / "a.csv").write_text("method,compression_ratio,test_bleu\nmine,8,40\n")
    with pytest.raises(ValueError, match="output: it takes a folder"):
        plot.draw(tmp_path / "a.csv")


def test_the_lines_of_side_by_side_are_told_apart():
    cells = [Cell("dpq-sx", f"n_codes=4 temperature={t}", None, 8.0, (1.0,)) for t in (0.1, 1.0)]
    cells.append(Cell("full", "", None, 1.0, (1.0,)))
    assert plot_quality.line_labels(cells) == [
        "DPQ-SX (8.0x) temperature=0.1",
        "DPQ-SX (8.0x) temperature=1.0",
        "full embedding",
    ]


def test_what_is_drawn_as_quality_is_registered():
    assert set(matched.QUALITY) <= set(METRICS)
