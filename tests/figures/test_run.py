"""From a grid to results and figures, on a folder of small texts."""

import contextlib
import csv
import json
import os
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
from click.testing import CliRunner
from matplotlib.figure import Figure

from dpq_ref.cli import main
from dpq_ref.tasks.classify import Plan
from figures import plot, run
from figures.inputs import read
from figures.plot_quality import line_labels
from figures.records import check
from figures.rows import COLUMNS, Cell, cells_of, pareto
from figures.style import ratio_axis, style_of
from figures.summary import verdict

GRID = """
name = "toy"
dataset = "toy"
data = "set by --data"
seeds = [0, 1]
dim = 12
hidden = 8

[plan]
steps = 30
batch_size = 16
learning_rate = 1e-2
evaluate_every = 10

[[method]]
name = "full"

[[method]]
name = "dpq-sx"
n_groups = [3, 6]
n_codes = 4

[[method]]
name = "product"
n_groups = 3
n_codes = 4
weighted = [false, true]

[[method]]
name = "uniform"
n_bits = 2
"""


CONTINUED = """
[[method]]
name = "full"

[[method]]
name = "full-continued"
schedule = ["constant", "calr"]

[[method]]
name = "low-rank-in-network"
reduction = 0.5
schedule = ["constant", "calr"]

[[method]]
name = "low-rank"
rank = 2

[[method]]
name = "group-reduce-in-network"
ratio = 1.6
n_blocks = 2
schedule = "calr"

[[method]]
name = "group-reduce"
ratio = 1.6
n_blocks = 2
weighted = true
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Texts of two classes in train.tsv and test.tsv, and the grid."""
    path = tmp_path_factory.mktemp("toy")
    rng = np.random.default_rng(0)
    for name, n in (("train", 200), ("test", 50)):
        words = [rng.choice(["ab", "ac", "ad"] if i % 2 else ["bb", "bc", "bd"], 5) for i in range(n)]
        lines = [f"{i % 2}\t{' '.join(w)}" for i, w in enumerate(words)]
        (path / f"{name}.tsv").write_text("\n".join(lines) + "\n", encoding="utf8")
    (path / "grid.toml").write_text(GRID, encoding="utf8")
    return path


@pytest.fixture(scope="module")
def results(folder, tmp_path_factory):
    """Output of the command on that grid."""
    output = tmp_path_factory.mktemp("results") / "toy"
    arguments = [
        "compare",
        "--grid",
        folder / "grid.toml",
        "--data",
        folder,
        "--output",
        output,
        "--jobs",
        "1",
    ]
    result = CliRunner().invoke(main, list(map(str, arguments)))
    assert result.exit_code == 0, result.output
    return output


def test_lists_of_a_grid_stand_for_each_of_their_entries(folder):
    grid = run.read_grid(folder / "grid.toml")
    assert [method for method, _ in grid.methods] == [
        "full",
        "dpq-sx",
        "dpq-sx",
        "product",
        "product",
        "uniform",
    ]
    assert grid.methods[2] == ("dpq-sx", {"n_groups": 6, "n_codes": 4})
    assert grid.plan.steps == 30


def test_a_folder_in_place_of_the_corpus_gives_its_name(tmp_path):
    grid = run.read_grid(run.GRIDS / "main.toml", str(tmp_path / "mine"))
    assert (grid.dataset, grid.data) == ("mine", str(tmp_path / "mine"))
    assert run.read_grid(run.GRIDS / "main.toml").dataset == "documentation"
    assert run.read_grid(run.GRIDS / "ag_news.toml", "x").dataset.startswith("AG News")


def test_data_that_are_not_there_leave_nothing_behind(tmp_path):
    output = tmp_path / "out"
    result = CliRunner().invoke(main, ["compare", "--data", str(tmp_path / "none"), "--output", str(output)])
    assert result.exit_code == 1 and "no folder" in result.output
    assert not output.exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("seeds", "sneeds"), "seeds"),
        (("steps", "stops"), "stops"),
        (('name = "full"', 'name = "dpq-vq"'), "full"),
    ],
)
def test_a_bad_grid_is_refused_by_name(folder, tmp_path, change, message):
    (tmp_path / "grid.toml").write_text(GRID.replace(*change), encoding="utf8")
    with pytest.raises(ValueError, match=message):
        run.read_grid(tmp_path / "grid.toml")


def test_results_have_all_runs_in_the_promised_columns(results):
    with open(results / "results.csv", encoding="utf8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert tuple(rows[0]) == COLUMNS
    accuracy = [row for row in rows if row["metric"] == "test_accuracy"]
    assert len(accuracy) == 12
    assert {row["method"] for row in rows} == {"full", "dpq-sx", "product", "uniform"}
    assert all(float(row["value"]) > 80 for row in accuracy if row["method"] in ("full", "dpq-sx"))
    product = next(row for row in accuracy if row["method"] == "product")
    n = 8  # <pad>, <unk> and six words
    assert int(product["bits"]) == n * 3 * 2 + 32 * 4 * 12
    assert float(product["compression_ratio"]) == pytest.approx(32 * n * 12 / int(product["bits"]), abs=1e-4)


def test_every_record_says_where_it_came_from(results):
    for path in (results / "runs").iterdir():
        record = json.loads(path.read_text(encoding="utf8"))
        check(record)
        assert len(record["specification"]["sha256"]) == 64
        assert sorted(record["provenance"]["sha256"]) == ["test.tsv", "train.tsv"]
        assert record["environment"]["numpy"] == np.__version__
        assert sum(record["bits"].values()) > 0 and record["process_peak_memory_bytes"] > 0


def test_figures_come_with_their_numbers_and_repeat_to_the_byte(results):
    names = {"accuracy", "reconstruction", "eigenspace_overlap", "code_usage", "code_changes", "gradients"}
    names |= {"spectra", "neighbours", "neighbourhoods"}
    before = {}
    for name in names:
        assert (results / f"{name}.png").read_bytes().startswith(b"\x89PNG")
        assert len((results / f"{name}.csv").read_text(encoding="utf8").splitlines()) > 1
        pdf = (results / f"{name}.pdf").read_bytes()
        assert pdf.startswith(b"%PDF")
        assert b"/FontFile2" in pdf and b"/Type3" not in pdf  # whole fonts, as publishers ask for
        before[name] = (results / f"{name}.svg").read_bytes(), pdf
    result = CliRunner().invoke(main, ["plot", str(results)])
    assert result.exit_code == 0, result.output
    after = {n: tuple((results / f"{n}{end}").read_bytes() for end in (".svg", ".pdf")) for n in names}
    assert after == before


def test_an_interrupted_job_goes_on_where_it_was(folder, tmp_path, monkeypatch):
    grid = run.read_grid(folder / "grid.toml", str(folder))
    executed = []

    def interrupted(*arguments):
        executed.append(arguments[1].name)
        if len(executed) == 5:
            raise KeyboardInterrupt
        return original(*arguments)

    original = run.execute
    monkeypatch.setattr(run, "execute", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run.run_grid(grid, tmp_path, jobs=1)
    first = list(executed)
    records = run.run_grid(grid, tmp_path, jobs=1)
    again = executed[len(first) :]
    assert not set(first[:4]) & set(again)
    assert sorted(set(first) | set(again)) == sorted(record["name"] for record in records)
    assert not (tmp_path / ".work").exists()
    assert len(list((tmp_path / "runs").iterdir())) == 12


def test_run_fills_a_folder_that_plot_draws_as_compare_does(folder, results, tmp_path):
    arguments = ["run", folder / "grid.toml", "--data", folder, "--output", tmp_path, "--jobs", "1"]
    done = CliRunner().invoke(main, list(map(str, arguments)))
    assert done.exit_code == 0, done.output
    assert f"next: dpq-ref plot {tmp_path}" in done.output
    assert [path.name for path in tmp_path.iterdir()] == ["runs"]
    assert CliRunner().invoke(main, ["plot", str(tmp_path)]).exit_code == 0
    assert (tmp_path / "accuracy.svg").read_bytes() == (results / "accuracy.svg").read_bytes()


@pytest.mark.slow
def test_a_job_killed_at_any_moment_loses_nothing_and_runs_nothing_twice(folder, tmp_path):
    """Twenty times: what is there stays to the byte, times included, and ends up in the results."""
    rng, kept, jobs = np.random.default_rng(0), {}, 0
    for _ in range(20):
        output = tmp_path / str(jobs)
        command = [sys.executable, "-c", "from dpq_ref.cli import main; main()", "run"]
        command += [folder / "grid.toml", "--jobs", "2", "--data", folder, "--output", output]
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(rng.uniform(1, 12))
        process.kill()
        process.wait()
        found = {path.name: path.read_text(encoding="utf8") for path in output.rglob("runs/*.json")}
        assert kept.items() <= found.items()
        assert all(json.loads(record)["metrics"] for record in found.values())
        kept = found
        if found and not (output / ".work").exists():  # done before it was killed
            assert len(found) == 12
            jobs, kept = jobs + 1, {}
    subprocess.run(command[:-1] + [tmp_path / str(jobs)], check=True, capture_output=True)
    found = {path.name: path.read_text(encoding="utf8") for path in (tmp_path / str(jobs) / "runs").iterdir()}
    assert len(found) == 12
    assert kept.items() <= found.items()


@pytest.mark.slow
def test_a_cluster_that_loses_a_worker_loses_no_run(folder, tmp_path):
    from distributed import LocalCluster

    grid, killed = run.read_grid(folder / "grid.toml", str(folder)), []
    with LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as cluster:
        address = cluster.scheduler_address.replace("tcp", "dask")

        def kill() -> None:
            while not list(tmp_path.glob(".work/runs/*.json")):
                time.sleep(0.05)
            killed.append(cluster.workers[0].pid)
            os.kill(killed[0], signal.SIGKILL)

        killer = threading.Thread(target=kill)
        killer.start()
        records = run.run_grid(grid, tmp_path, cluster=address)
        killer.join()
        assert cluster.workers[0].pid != killed[0]
    assert len(records) == 12
    assert not [record["name"] for record in records if "error" in record]
    assert len(list((tmp_path / "runs").iterdir())) == 12


@pytest.mark.parametrize("address", ["host:8786", "ray://host", "dask://"])
def test_a_cluster_needs_an_address(folder, tmp_path, address):
    arguments = ["run", folder / "grid.toml", "--data", folder, "--output", tmp_path, "--cluster", address]
    result = CliRunner().invoke(main, list(map(str, arguments)))
    assert result.exit_code == 1
    assert "dask://host:8786" in result.output


def test_an_interrupt_says_how_to_go_on(folder, tmp_path, monkeypatch):
    def interrupt(*arguments, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr(run, "run_grid", interrupt)
    arguments = ["compare", "--grid", str(folder / "grid.toml"), "--data", str(folder)]
    result = CliRunner().invoke(main, [*arguments, "--output", str(tmp_path)])
    assert result.exit_code == 130 and "goes on where it was" in result.output


def test_a_failed_run_is_recorded_and_stops_no_other(folder, tmp_path):
    (tmp_path / "grid.toml").write_text(GRID.replace("= 4\nweighted", "= 1\nweighted"), encoding="utf8")
    grid = run.read_grid(tmp_path / "grid.toml", str(folder))
    records = run.run_grid(grid, tmp_path / "out", jobs=1)
    failed = [record for record in records if "error" in record]
    assert len(records) == 12 and len(failed) == 4
    for record in failed:
        check(record)
    assert all("n_codes=1" in record["error"] for record in failed)


@pytest.fixture(scope="module")
def continued(folder, tmp_path_factory):
    """Records of the methods that go on from the full classifier, by name."""
    path = tmp_path_factory.mktemp("continued")
    # Few, slow steps: the full classifier is not done when the others take over.
    head = GRID[: GRID.index("[[method]]")].replace("1e-2", "1e-3").replace("= 30", "= 10")
    (path / "grid.toml").write_text(head + CONTINUED, encoding="utf8")
    grid = run.read_grid(path / "grid.toml", str(folder))
    first, again = ({r["name"]: r for r in run.run_grid(grid, path / o, jobs=1)} for o in ("a", "b"))
    assert not [r["error"] for r in first.values() if "error" in r]
    for name, record in first.items():
        assert record["metrics"] == again[name]["metrics"], name
    return first


@pytest.mark.parametrize("schedule", ["constant", "calr"])
@pytest.mark.parametrize("seed", [0, 1])
def test_training_goes_on_where_the_full_classifier_stopped(continued, schedule, seed):
    full = continued[f"full_seed={seed}"]["metrics"]
    record = continued[f"full-continued_schedule={schedule}_seed={seed}"]
    start = record["evaluations"][0]
    assert (start["step"], start["validation"]) == (0, full["validation_accuracy"])
    assert start["test"] == full["test_accuracy"]
    assert record["metrics"]["validation_accuracy"] >= full["validation_accuracy"]
    assert [e["step"] for e in record["evaluations"]] == [0, 10]
    assert record["compression_ratio"] == 1


@pytest.mark.parametrize(
    ("name", "offline"),
    [
        ("low-rank-in-network_reduction=0.5_schedule=constant", "low-rank_rank=2"),
        ("low-rank-in-network_reduction=0.5_schedule=calr", "low-rank_rank=2"),
        (
            "group-reduce-in-network_n_blocks=2_ratio=1.6_schedule=calr",
            "group-reduce_n_blocks=2_ratio=1.6_weighted=True",
        ),
    ],
)
@pytest.mark.parametrize("seed", [0, 1])
def test_training_in_the_network_starts_where_compression_ends(continued, name, offline, seed):
    record, alone = continued[f"{name}_seed={seed}"], continued[f"{offline}_seed={seed}"]
    start = record["evaluations"][0]
    assert start["validation"] == pytest.approx(alone["metrics"]["validation_accuracy"])
    assert start["test"] == pytest.approx(alone["metrics"]["test_accuracy"])
    assert sum(record["bits"].values()) == sum(alone["bits"].values())
    if offline.startswith("low-rank"):
        assert sum(record["bits"].values()) == 32 * 2 * (8 + 12)
    best = max(record["evaluations"], key=lambda e: e["validation"])
    assert (record["best_step"], record["metrics"]["test_accuracy"]) == (best["step"], best["test"])


def test_in_the_network_the_loss_falls_further(continued):
    full = continued["full_seed=0"]["evaluations"][-1]["loss"]
    for method in ("full-continued_", "low-rank-in-network_reduction=0.5_"):
        constant, annealed = (
            continued[f"{method}schedule={schedule}_seed=0"]["evaluations"][-1]["loss"]
            for schedule in ("constant", "calr")
        )
        assert constant < annealed < full


def test_the_annealed_rate_of_a_plan():
    rate = run.calr(Plan(steps=500, learning_rate=1e-3))
    peaks = [max(rate(step) for step in range(e * 100 + 1, e * 100 + 101)) for e in range(5)]
    assert peaks == pytest.approx([1e-3, 1e-4, 1e-5, 1e-3, 1e-4])
    assert run.calr(Plan(steps=1))(1) > 0


def test_an_unknown_schedule_is_refused_by_name(folder, tmp_path):
    head = GRID[: GRID.index("[[method]]")].replace("[0, 1]", "[0]")
    (tmp_path / "grid.toml").write_text(head + CONTINUED.replace("calr", "best"), encoding="utf8")
    records = run.run_grid(run.read_grid(tmp_path / "grid.toml", str(folder)), tmp_path / "out", jobs=1)
    errors = [record["error"] for record in records if "error" in record]
    assert len(errors) == 3
    assert all("schedule='best'; it takes 'constant' or 'calr'" in error for error in errors)


def test_pareto_front_by_hand():
    def cell(ratio, value):
        return Cell("product", "", 1.0, ratio, (value,), 1.0)

    cells = [cell(1, 90.0), cell(2, 91.0), cell(4, 80.0), cell(4, 85.0), cell(8, 85.0)]
    assert [(c.ratio, c.mean) for c in pareto(cells, "higher")] == [(2, 91.0), (8, 85.0)]
    assert [(c.ratio, c.mean) for c in pareto(cells, "lower")] == [(4, 80.0), (8, 85.0)]


def test_a_method_without_a_style_is_drawn_last_under_its_name():
    row = {"parameters": "", "bits": 1, "metric": "test_accuracy", "value": 1.0, "seconds": 1.0, "seed": 0}
    rows = [row | {"method": m, "compression_ratio": r} for m, r in (("mine", 2.0), ("uniform", 4.0))]
    cells = cells_of([*rows, row | {"method": "full", "compression_ratio": 1.0}], "test_accuracy")
    assert [cell.method for cell in cells] == ["full", "uniform", "mine"]
    assert style_of("mine")[0] == "mine"


def test_spread_is_the_standard_deviation_over_seeds():
    assert Cell("full", "", 1.0, 1.0, (1.0, 3.0), 1.0).spread == pytest.approx(np.sqrt(2))
    assert Cell("full", "", 1.0, 1.0, (1.0,), 1.0).spread == 0


def test_the_verdict_names_the_best_rival_of_equal_bits_or_fewer():
    def rows(method, ratio, *values):
        row = {"method": method, "parameters": f"at={ratio}", "bits": 1, "compression_ratio": ratio}
        return [
            row | {"metric": "test_accuracy", "value": v, "seconds": 1.0, "seed": i}
            for i, v in enumerate(values)
        ]

    cells = [
        *rows("full", 1.0, 90.0, 92.0),
        *rows("dpq-sx", 25.0, 90.0, 90.0),
        *rows("product", 24.0, 95.0, 95.0),
        *rows("product", 25.0, 80.0, 80.0),
        *rows("low-rank", 40.0, 85.0, 87.0),
        *rows("low-rank-in-network", 40.0, 91.0, 91.0),
        *rows("full-continued", 40.0, 92.0, 92.0),
        *rows("dpq-vq", 40.0, 93.0, 93.0),
    ]
    assert verdict(cells) == (
        "DPQ-SX (at=25.0, ratio 25.0): -1.00 points to the full embedding; "
        "+4.00 to the best offline method of that ratio or more, low rank (at=40.0, ratio 40.0)."
    )


@pytest.mark.parametrize(("ratios", "side_by_side"), [((10.0, 10.5), True), ((10.0, 20.0), False)])
def test_methods_of_one_size_are_drawn_side_by_side(tmp_path, ratios, side_by_side):
    (tmp_path / "runs").mkdir()
    for method, ratio in (("full", 1.0), *zip(("product", "low-rank"), ratios, strict=True)):
        record = {
            "specification": {
                "dataset": "d",
                "method": method,
                "parameters": {"schedule": "calr"},
                "seed": 0,
            },
            "bits": {"all": 1},
            "compression_ratio": ratio,
            "seconds": {"fit": 1.0},
            "metrics": {"test_accuracy": 90.0 - ratio},
        }
        (tmp_path / "runs" / f"{method}.json").write_text(json.dumps(record))
    plot.draw(tmp_path)
    rows = list(csv.DictReader((tmp_path / "accuracy.csv").open()))
    assert [(r["method"], float(r["mean"])) for r in rows] == [
        ("full", 89.0),
        ("product", 80.0),
        ("low-rank", 90.0 - ratios[1]),
    ]
    height, width = plot_size(tmp_path / "accuracy.png")
    assert (width > 2 * height) == side_by_side
    cell = cells_of(read([tmp_path])[0], "test_accuracy")[1]
    assert line_labels([cell]) == ["product quantization, annealed rate (10.0x)"]


def plot_size(path):
    """Height and width in pixels."""
    from matplotlib.image import imread

    return imread(path).shape[:2]


def test_no_results_is_an_error_that_says_so(tmp_path):
    result = CliRunner().invoke(main, ["plot", str(tmp_path)])
    assert result.exit_code == 1 and "no results" in result.output


@pytest.mark.parametrize(
    ("ratios", "scale"), [((10.1, 10.6), "linear"), ((9, 20), "linear"), ((4, 16), "log")]
)
def test_the_axis_of_ratios_has_ticks(ratios, scale):
    figure = Figure()
    axes = figure.subplots()
    axes.errorbar(ratios, (1, 2), (0.1, 0.1))
    ratio_axis(axes)
    figure.canvas.draw()
    low, high = axes.get_xlim()
    assert axes.get_xscale() == scale
    assert sum(low <= tick <= high for tick in axes.get_xticks()) >= 2
