"""From a table of word vectors to results and figures."""

import csv
import json

import numpy as np
import pytest
from click.testing import CliRunner
from scipy import stats

from baselines import ITQ, LowRank
from dpq_ref.cli import main
from dpq_ref.metrics import METRICS
from figures import tables
from figures.plot_comparison import best_of_each_budget
from figures.records import read_records
from figures.rows import Cell

GRID = """
dataset = "toy vectors"
seeds = [0, 1]

[[method]]
name = "low-rank"
rank = [1, 2]
weighted = [false, true]

[[method]]
name = "product"
ratio = [4, 8]

[[method]]
name = "itq"
n_bits = 5
seeds = [0]

[[method]]
name = "iiq"
figure = "removed"
n_bits = 3
n_removed = [0, 1, 2]

[[method]]
name = "low-rank"
figure = "weights"
rank = 3
weighted = [false, true]
"""
N, DIM = 300, 8


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A table, counts of all words but the last, word sets and a grid."""
    path = tmp_path_factory.mktemp("toy")
    rng = np.random.default_rng(0)
    vectors = (rng.standard_normal((N, DIM)) * np.arange(DIM, 0, -1)).astype(np.float32)
    words = np.array([f"w{i}" for i in range(N)])
    np.savez(path / "table.npz", words=words, vectors=vectors)
    (path / "counts.txt").write_text("".join(f"w{i} {1000 // (i + 1)}\n" for i in range(N - 1)))
    (path / "sets").mkdir()
    pairs = rng.integers(0, N, (80, 2))
    lines = [f"w{i}\tw{j}\t{s:.3f}\n" for (i, j), s in zip(pairs, rng.random(80), strict=True)]
    (path / "sets" / "PAIRS.tsv").write_text("".join(lines))
    (path / "sets" / "FEW.tsv").write_text("".join(lines[:10]))
    (path / "sets" / "questions-words.txt").write_text(": family\nw1 w2 w3 w4\nw5 w6 w7 w8\n")
    (path / "grid.toml").write_text(GRID)
    return path


def run(folder, output, *more):
    options = ["--grid", folder / "grid.toml", "--output", output, "--jobs", "1", *more]
    return CliRunner().invoke(main, list(map(str, ["compare-table", folder / "table.npz", *options])))


@pytest.fixture(scope="module")
def results(folder, tmp_path_factory):
    output = tmp_path_factory.mktemp("results") / "toy"
    result = run(folder, output, "--frequencies", folder / "counts.txt", "--word-sets", folder / "sets")
    assert result.exit_code == 0, result.output
    return output


@pytest.fixture(scope="module")
def records(results):
    return {record["name"]: record for record in read_records(results)}


def vectors_of(folder):
    with np.load(folder / "table.npz") as file:
        return file["vectors"]


def test_a_run_is_what_the_estimator_gives(folder, records):
    X = vectors_of(folder)
    counts = np.r_[1000 // np.arange(1, N), 1].clip(1)  # the word without a count counts once
    for weighted in (False, True):
        record = records[f"low-rank_rank=2_weighted={weighted}_seed=1"]
        table = LowRank(2).fit(X, sample_weight=counts if weighted else None).compress()
        errors = (
            ((X - table.reconstruct()).astype(float) ** 2).sum(axis=1),
            (X.astype(float) ** 2).sum(axis=1),
        )
        for name, w in (("relative_error", np.ones(N)), ("weighted_relative_error", counts)):
            np.testing.assert_allclose(record["metrics"][name], (w @ errors[0]) / (w @ errors[1]), rtol=1e-6)
        assert record["bits"] == table.bits() == {"values": 32 * 2 * N, "basis": 32 * 2 * DIM}
        assert record["file_bytes"] <= sum(table.bits().values()) / 8 + 4096
        assert record["flops_per_lookup"] == 2 * 2 * DIM
        assert 0 < record["seconds"]["lookup"] < 1 and 0 < record["seconds"]["fit"]


def test_a_table_in_text_is_the_same_table(folder):
    X = vectors_of(folder)
    lines = [f"w{i} {' '.join(map(repr, row.tolist()))}\n" for i, row in enumerate(X)]
    (folder / "table.txt").write_text("".join(lines))
    from_text, from_npz = (
        tables.read(tables.Paths(str(folder / f"table.{end}"), None, None)) for end in ("txt", "npz")
    )
    assert from_text.words == from_npz.words
    np.testing.assert_array_equal(from_text.vectors, from_npz.vectors.astype(np.float32))


def test_seeds_reach_the_methods(records):
    assert "itq_n_bits=5_seed=0" in records and "itq_n_bits=5_seed=1" not in records
    errors = {records[f"product_ratio=4_seed={seed}"]["metrics"]["relative_error"] for seed in (0, 1)}
    assert len(errors) == 2


def test_signs_are_compared_as_codes(folder, records):
    X = vectors_of(folder)
    signs = 2 * ITQ(5, random_state=0).fit(X).codes_.astype(int) - 1
    lines = [line.split("\t") for line in (folder / "sets" / "PAIRS.tsv").read_text().splitlines()]
    ids = np.array([[int(w[1:]) for w in line[:2]] for line in lines])
    scores = [float(line[2]) for line in lines]
    expected = stats.spearmanr((signs[ids[:, 0]] * signs[ids[:, 1]]).sum(axis=1), scores).statistic
    found = records["itq_n_bits=5_seed=0"]["metrics"]
    np.testing.assert_allclose(found["word_similarity"], expected, atol=1e-9)
    assert found["word_similarity_PAIRS"] == found["word_similarity"]  # the other set has too few pairs
    assert found["decoded_word_similarity"] != found["word_similarity"]
    assert "decoded_word_similarity" not in records["low-rank_rank=1_weighted=False_seed=0"]["metrics"]


def test_files(results):
    names = {path.name for path in results.iterdir()}
    figures = {
        f"{stem}.{end}"
        for stem in ("comparison", "removed", "time", "weights")
        for end in ("png", "svg", "pdf", "csv")
    }
    assert names == figures | {"runs", "results.csv", "table.txt", "matched_bits.txt", "matched_bits.csv"}
    rows = list(csv.DictReader((results / "results.csv").open()))
    assert {row["method"] for row in rows} == {"low-rank", "product", "itq", "iiq"}
    assert len(rows) == len(list((results / "runs").iterdir()))  # a row a run
    row = next(r for r in rows if r["method"] == "product" and r["parameters"] == "ratio=4")
    record = json.loads((results / "runs" / f"product_ratio=4_seed={row['seed']}.json").read_text())
    for name, value in record["metrics"].items():
        np.testing.assert_allclose(float(row[name]), value, rtol=1e-5)
    bits = sum(int(part.split("=")[1]) for part in row["parts"].split(", "))
    assert int(row["bits"]) == bits and float(row["compression_ratio"]) >= 4
    text = (results / "table.txt").read_text()
    assert "ratio 4 or more" in text and "low rank, by frequency" in text and "removed" not in text


def test_figures_show_the_fit_that_the_measure_weighs(results):
    rows = list(csv.DictReader((results / "comparison.csv").open()))
    of = {
        (r["metric"], "weighted=True" in r["parameters"])
        for r in rows
        if r["method"] == "low-rank" and r["metric"].endswith("relative_error")
    }
    assert of == {("relative_error", False), ("weighted_relative_error", True)}
    assert any(r["method"] == "itq" for r in rows if r["metric"] == "weighted_relative_error")
    errors = [r for r in rows if r["metric"] == "relative_error"]
    for row in errors:  # on the front if and only if no other is at least as small with less error
        beaten = any(
            float(o["compression_ratio"]) >= float(row["compression_ratio"])
            and float(o["mean"]) < float(row["mean"])
            for o in errors
        )
        assert (row["pareto"] == "True") == (not beaten)


def test_a_figure_of_its_own_is_drawn_over_what_is_swept(results):
    rows = list(csv.DictReader((results / "removed.csv").open()))
    assert sorted({int(r["n_removed"]) for r in rows}) == [0, 1, 2]
    rows = list(csv.DictReader((results / "weights.csv").open()))
    assert "compression_ratio" in rows[0] and len({r["line"] for r in rows}) == 2


@pytest.mark.slow
def test_drawn_again_it_is_the_same(results):
    before = {path: path.read_bytes() for path in results.glob("*.*") if path.suffix != ".png"}
    assert CliRunner().invoke(main, ["plot", str(results)]).exit_code == 0
    assert {path: path.read_bytes() for path in before} == before


def test_best_of_each_budget():
    def cell(ratio, budget, error):
        return Cell("m", f"ratio={budget}", None, ratio, (error,))

    cells = [cell(9, 8, 0.5), cell(8.1, 8, 0.4), cell(4, 4, 0.3)]
    best = best_of_each_budget(cells, METRICS["relative_error"])
    assert [c.ratio for c in best] == [4, 8.1]


def test_what_is_missing_is_named(folder, tmp_path):
    out = tmp_path / "out"
    result = run(folder, out)
    assert result.exit_code == 1 and "needs a list of frequencies" in result.output
    (tmp_path / "empty").mkdir()
    result = run(folder, out, "--frequencies", folder / "counts.txt", "--word-sets", tmp_path / "empty")
    assert result.exit_code == 1 and "no similarity sets" in result.output
    assert not out.exists()
    for text, message in (
        ("dataset = 'x'", "seeds"),
        ("dataset = 'x'\nseeds = [0]\nother = 1", "unknown other"),
    ):
        (tmp_path / "grid.toml").write_text(text)
        with pytest.raises(ValueError, match=message):
            tables.sweep(tmp_path / "grid.toml", tables.Paths(str(folder / "table.npz")))


def test_a_run_that_fails_is_told_and_the_rest_goes_on(folder, tmp_path):
    methods = '[[method]]\nname = "low-rank"\nrank = [1, 100]\n[[method]]\nname = "none"'
    (tmp_path / "grid.toml").write_text(f'dataset = "x"\nseeds = [0]\n{methods}')
    out = tmp_path / "out"
    options = ["--grid", tmp_path / "grid.toml", "--output", out, "--jobs", "1"]
    result = CliRunner().invoke(main, list(map(str, ["compare-table", folder / "table.npz", *options])))
    assert result.exit_code == 1 and "2 runs failed" in result.output
    assert "rank=100; a table of 300 x 8 takes at most 8" in result.output
    record = json.loads((out / "runs" / "none_seed=0.json").read_text())
    assert "no method 'none'" in record["error"]
    assert (out / "comparison.png").is_file()
