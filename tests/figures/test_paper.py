"""The paper's tables beside ours, with made-up results."""

import csv
import json
import re
from dataclasses import asdict

import numpy as np
import pytest
from click.testing import CliRunner

from dpq_ref.cli import main
from dpq_ref.layers import make_embedding
from dpq_ref.tasks import classify, recipe
from figures import paper, paper_results, style


def made_up(name, seed=0, value=100.0, minutes=(1.0, 2.0, 4.0), processor="some processor"):
    """Result of a preset; `minutes` after each of three evaluations."""
    settings = recipe.presets()[name]
    task = {"lm": "perplexity", "classify": "accuracy", "translate": "bleu"}[settings["task"]]
    released = "test_accuracy_best" if task == "accuracy" else f"test_{task}_last"
    counts = json.loads(json.dumps(paper_results.paper()["data"][paper_results.place(name)[0]]["counts"]))
    for unit in counts.values():
        unit.setdefault("train", 640)
    evaluations = [
        {"step": 10 * (i + 1), "minutes": m, f"validation_{task}": value + 20 - 7 * i}
        for i, m in enumerate(minutes)
    ]
    return {
        f"test_{task}": value,
        released: value + 1,
        "protocol": f"protocol of {task}",
        "compression_ratio": 1.0 if settings["embedding"]["kind"] == "full" else 12.3456,
        "minutes": minutes[-1],
        "steps": 30,
        "evaluations": evaluations,
        "config": json.loads(json.dumps(paper_results._config(name))) | {"seed": seed, "data_sha256": "00"},
        "data": counts,
        "environment": {"processor": processor},
    }


def trained(folder, result):
    """Folder of a training with that result."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "result.json").write_text(json.dumps(result))
    return folder


def run(*arguments):
    return CliRunner().invoke(main, ["paper", *map(str, arguments)])


def read_csv(path):
    return list(csv.DictReader(path.open()))


def read_markdown(path):
    """Rows of each table."""
    tables = {}
    for block in path.read_text().split("\n## ")[1:]:
        title, *lines = block.splitlines()
        rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line[:1] == "|"]
        tables[title] = [dict(zip(rows[0], row, strict=True)) for row in rows[2:]]
    return tables


RECORDS = [
    {"method": method, "parameters": {"ratio": ratio, "weighted": True}, "retrained": retrained, "seed": seed}
    | {"test_perplexity": 130.0 + ratio - 8 * retrained + seed, "compression_ratio": float(ratio)}
    for method in ("low-rank", "product", "made-up")
    for ratio in (4, 16)
    for retrained in (False, True)
    for seed in (0, 2)
]
GRID = [
    {"method": "dpq-sx", "shared": shared, "n_groups": D, "n_codes": K, "seed": seed}
    | {"test_perplexity": 100.0 + K + D + 10 * shared + 2 * seed}
    for shared in (False, True)
    for K, D in ((8, 10), (8, 25), (32, 25))
    for seed in (0, 1)
]


@pytest.fixture(scope="module", autouse=True)
def coarse():
    """Figures of few pixels, quickly drawn."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(style.RC, "figure.dpi", 30)
        yield


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """Runs of some presets, added by the command; compressed models and a grid."""
    folder, output = tmp_path_factory.mktemp("paper") / "results", tmp_path_factory.mktemp("output")
    runs = [
        made_up("ptb-small-full", value=110.0),
        made_up("ptb-small-sx", seed=0, value=104.0, minutes=(2.0, 4.0, 7.0)),
        made_up("ptb-small-sx", seed=3, value=107.0, minutes=(2.0, 4.0, 7.0)),
        made_up("ptb-medium-sx-50", value=83.0),
        made_up("wikitext-2-small-vq", value=120.0),
        made_up("ag-news-full", value=90.0),
        made_up("ag-news-vq", value=89.0, processor="another processor"),
    ]
    folders = [trained(output / str(i), result) for i, result in enumerate(runs)]
    folder.mkdir()
    (folder / "ptb-small-compressed.json").write_text(json.dumps(RECORDS))
    (folder / "grid-toy.json").write_text(json.dumps(GRID))
    added = [argument for path in folders for argument in ("--add", path)]
    done = run(*added, "--results", folder, "--output", output / "drawn")
    assert done.exit_code == 0, done.output
    assert (output / "drawn/tables.txt").read_text() in done.output
    return folder, output / "drawn"


# --- The paper's rows -----------------------------------------------------------------------------------


def test_every_number_has_a_mark():
    for part, line in paper_results.lines():
        assert part["data"] in paper_results.paper()["data"]
        assert {line["mark"], line["ratio_mark"]} <= {"paper", "code", "recalled", "recalled†", "derived"}
        assert (line["ratio"] == 1) == (line["method"] == "full")


def test_presets_are_those_of_the_rows():
    for part, line in paper_results.lines():
        if "preset" in line:
            settings = recipe.presets()[line["preset"]]
            assert settings["embedding"]["kind"] == line["method"]
            if settings["task"] == "lm":
                assert (part["data"], part["model"]) == (settings["folder"], f"LSTM {settings['model']}")
            elif settings["task"] == "classify":
                assert part["data"] == settings["folder"]
            else:
                assert part["data"].lower().endswith("-".join(settings["languages"]))
            if "layer" in line:
                assert line["layer"] == paper_results.layer_of(line["preset"])


def test_configurations_fit_the_printed_ratios():
    """Printed ratios are the strict ones times (d + 1) / d, by what is known of the paper."""
    for part, line in paper_results.lines():
        if "layer" not in line:
            continue
        n, dim = paper_results.paper()["data"][part["data"]]["n"], part["dim"]
        strict = paper_results.strict_ratio(n, dim, **line["layer"])
        if line["ratio_mark"] == "derived":
            assert round(strict, 2) == line["ratio"]
        elif "does not fit" in line.get("note", ""):
            assert strict == pytest.approx(line["ratio"], rel=0.01)
        else:
            assert round(strict * (dim + 1) / dim, 1) == line["ratio"], (part["data"], line)


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize(("n_groups", "n_codes"), [(4, 8), (2, 5), (12, 2)])
def test_strict_ratio_is_that_of_what_is_stored(shared, n_groups, n_codes):
    settings = {"n_groups": n_groups, "n_codes": n_codes, "shared": shared}
    table = make_embedding("dpq-sx", 40, 12, **settings).export()
    assert paper_results.strict_ratio(40, 12, **settings) == table.compression_ratio


# --- Tables ---------------------------------------------------------------------------------------------


def test_without_results_every_row_is_not_run(tmp_path):
    (tmp_path / "none").mkdir()
    written = paper.make(tmp_path / "none", tmp_path / "output")
    names = ["main", "language-model", "traditional"]
    assert [path.name for path in written] == ["tables.md", "tables.txt", *(f"table-{n}.csv" for n in names)]
    assert [len(read_csv(path)) for path in written[2:]] == [30, 18, 10]
    for rows in read_markdown(written[0]).values():
        for row in rows:
            assert row["ours"] == "not run"
            assert re.fullmatch(r"[\d.]+( to [\d.]+)? \[\w+†?\]", row["paper"])
            assert re.fullmatch(r"[\d.]+ \[\w+†?\]", row["paper's ratio"])
    with pytest.raises(FileNotFoundError, match="no folder .*nowhere"):
        paper.make(tmp_path / "nowhere", tmp_path / "output")


def test_rows_of_ours(results):
    rows = {(r["preset"], i): r for i, r in enumerate(read_csv(results[1] / "table-language-model.csv"))}
    row = next(r for (name, _), r in rows.items() if name == "ptb-small-sx")
    assert (row["ours"], row["released"], row["seeds"]) == ("105.5", "106.5", "2")
    assert float(row["spread"]) == pytest.approx(3 / np.sqrt(2), abs=1e-6)
    assert (row["compression_ratio"], row["minutes"]) == ("12.3456", "7.0")
    assert (row["processor"], row["protocol"]) == ("some processor", "protocol of perplexity")
    assert (row["paper"], row["paper_mark"], row["paper_ratio"]) == ("105.8", "recalled", "85.5")
    assert float(row["strict_ratio"]) == pytest.approx(85.10, abs=0.005)
    assert row["configuration"] == "K=8 D=25 shared"
    assert next(r for (name, _), r in rows.items() if name == "ptb-small-vq")["ours"] == "not run"
    assert all(r["ours"] == "not run" for (name, _), r in rows.items() if not name)
    (further,) = read_csv(results[1] / "table-further.csv")
    assert (further["data"], further["model"], further["method"]) == ("WikiText-2", "LSTM small", "DPQ-VQ")
    assert (further["ours"], further["paper"]) == ("120.0", "")


def test_rows_of_compressed_models(results):
    rows = read_csv(results[1] / "table-ptb-small-compressed.csv")
    assert [row["preset"] for row in rows[:3]] == ["ptb-small-full", "ptb-small-sx", ""]
    found = {(r["method"], r["configuration"]): float(r["ours"]) for r in rows[2:]}
    assert len(found) == 12
    for retrained, label in ((False, "as it is"), (True, "trained on")):
        for ratio in (4, 16):
            value = found[f"product quantization, {label}", f"ratio={ratio} weighted"]
            assert value == 131 + ratio - 8 * retrained


def test_text_and_markdown_agree_with_the_csv(results):
    tables = read_markdown(results[1] / "tables.md")
    files = ("main", "language-model", "traditional", "ptb-small-compressed", "further")
    notes = dict(re.findall(r"^(\d+)\. (.*)$", (results[1] / "tables.md").read_text(), re.M))
    text = (results[1] / "tables.txt").read_text()
    assert "…" not in text
    printed = [re.sub(r"\s+", " ", line) for line in re.split(r"[│┃\n]", text)]
    for (_, shown), name in zip(list(tables.items())[:-1], files, strict=True):
        rows = read_csv(results[1] / f"table-{name}.csv")
        assert len(shown) == len(rows)
        for cells, row in zip(shown, rows, strict=True):
            assert (cells["data"], cells["method"]) == (row["data"], row["method"])
            if row["ours"] == "not run":
                assert cells["ours"] == "not run"
                continue
            mean, _, spread = cells["ours"].partition(" ± ")
            assert float(mean) == pytest.approx(float(row["ours"]), abs=0.0051)
            assert bool(spread) == (row["seeds"] != "1")
            if spread:
                assert float(spread) == pytest.approx(float(row["spread"]), abs=0.0051)
            assert float(cells["ratio of ours"]) == pytest.approx(float(row["compression_ratio"]), abs=0.0051)
            numbered = [notes[number] for number in cells["notes"].split()] if "notes" in cells else []
            assert (f"Protocol: {row['protocol']}" in numbered) == bool(row["protocol"])
            assert (f"Processor: {row['processor']}" in numbered) == bool(row["processor"])
            for cell in cells.values():
                assert any(cell == line.strip() for line in printed), cell
    for note in notes.values():
        assert note in text.replace("\n", " ")


# --- What is taken, and what refused --------------------------------------------------------------------


def test_presets_are_told_by_what_a_training_writes(tmp_path, monkeypatch):
    """By the configurations that `dpq_ref.tasks.recipe` trains with."""
    from dpq_ref.tasks import language_model, seq2seq, translate

    def keep(folder, data, model, plan, *, config, **options):
        return config | {"plan": asdict(plan), "data_sha256": "00"}

    monkeypatch.setattr(classify, "fit", keep)
    monkeypatch.setattr(language_model, "train", keep)
    monkeypatch.setattr(translate, "train", keep)
    monkeypatch.setattr(language_model, "LanguageModel", lambda *arguments, **options: None)
    monkeypatch.setattr(seq2seq, "AttentionTranslator", lambda *arguments, **options: None)
    for split in ("train", "test"):
        (tmp_path / f"{split}.tsv").write_text("0\ta b\n1\tb c\n" * 20)
    for split in ("train", "valid", "test"):
        (tmp_path / f"{split}.txt").write_text("a b c\n")
    for stem in ("vocab", "train", "tst2012", "tst2013"):
        for language in ("en", "vi"):
            (tmp_path / f"{stem}.{language}").write_text("<unk>\n<s>\n</s>\n" if stem == "vocab" else "a\n")
    for name in recipe.presets():
        config = recipe.run(recipe.preset(name, seed=5), tmp_path, tmp_path / "run")
        made = made_up(name) | {"config": json.loads(json.dumps(config))}
        assert paper_results.preset_of(made) == name


def test_a_translator_is_judged_by_bleu(tmp_path):
    result = made_up("iwslt15-en-vi-full-narrow", value=17.0) | {"test_perplexity": 20.0}
    (tmp_path / "iwslt15-en-vi-full-narrow-seed0.json").write_text(json.dumps(result))
    paper.make(tmp_path, tmp_path / "out")
    (row,) = read_csv(tmp_path / "out/table-further.csv")
    assert (row["metric"], row["ours"], row["released"]) == ("test_bleu", "17.0", "18.0")
    assert (row["data"], row["model"]) == ("IWSLT15 En-Vi", "LSTM with attention, 128 wide")


def test_add(tmp_path):
    result = made_up("ptb-small-sx", seed=7)
    path = paper_results.add(trained(tmp_path / "a", result), tmp_path / "results")
    assert path == tmp_path / "results/ptb-small-sx-seed7.json"
    assert path.read_bytes() == (tmp_path / "a/result.json").read_bytes()
    assert paper_results.add(tmp_path / "a", tmp_path / "results") == path  # the same again
    other = trained(tmp_path / "b", result | {"test_perplexity": 99.0})
    with pytest.raises(FileExistsError, match="seed7.json is there, with another result; --force replaces"):
        paper_results.add(other, tmp_path / "results")
    assert json.loads(path.read_text()) == result
    paper_results.add(other, tmp_path / "results", force=True)
    assert json.loads(path.read_text())["test_perplexity"] == 99


def changed(result, *keys, value):
    """Copy of a result with one entry changed."""
    result = json.loads(json.dumps(result))
    inner = result
    for key in keys[:-1]:
        inner = inner[key]
    inner[keys[-1]] = value
    return result


@pytest.mark.parametrize(
    ("keys", "value", "message"),
    [
        (("config", "plan", "epochs"), 2, "ptb-small-sx but for plan.epochs 2, not 15"),
        (("config", "embedding", "n_codes"), 16, "ptb-small-sx but for embedding.n_codes 16, not 8"),
        (("config", "embedding", "temperature"), 0.5, "embedding.temperature 0.5, not None"),
        (("config", "output"), "tied", "output 'tied', not None"),
        (("data", "tokens", "test"), 50, "the data is not that of ptb-small-sx: tokens.test 50, not 82430"),
        (("data",), {}, "the data is not that of ptb-small-sx: tokens None, not"),
    ],
)
def test_results_of_no_preset_are_refused(keys, value, message, tmp_path):
    folder = trained(tmp_path / "run", changed(made_up("ptb-small-sx"), *keys, value=value))
    done = run("--add", folder, "--results", tmp_path / "results")
    assert done.exit_code == 1
    assert message in done.output
    assert not (tmp_path / "results").exists()


def test_bad_folders_are_refused(tmp_path):
    (tmp_path / "run").mkdir()
    done = run("--add", tmp_path / "run", "--results", tmp_path / "results")
    assert done.exit_code == 1
    assert "the training has not come to its end" in done.output
    whole = made_up("ptb-small-sx")
    part = {key: value for key, value in whole.items() if key != "data"}
    for content in ("{", "{}", json.dumps(part), json.dumps(whole)[:-9]):
        (tmp_path / "run/result.json").write_text(content)
        done = run("--add", tmp_path / "run", "--results", tmp_path / "results")
        assert done.exit_code == 1
        assert "Error: " + str(tmp_path / "run/result.json") in done.output
    done = run("--force", "--results", tmp_path / "run")
    assert done.exit_code == 2
    assert "it goes with --add" in done.output


def test_results_under_a_wrong_name_are_refused(tmp_path):
    (tmp_path / "ptb-small-vq-seed0.json").write_text(json.dumps(made_up("ptb-small-sx")))
    with pytest.raises(ValueError, match="vq-seed0.json has the result of ptb-small-sx-seed0"):
        paper_results.read_results(tmp_path)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("grid-a.json", [{"n_codes": 2, "value": 1.0}], "no metric in a record of n_codes, value"),
        ("nothing-compressed.json", RECORDS, "no preset begins with nothing-"),
    ],
)
def test_bad_records_are_refused(name, content, message, tmp_path):
    (tmp_path / name).write_text(json.dumps(content))
    with pytest.raises(ValueError, match=message):
        paper.make(tmp_path, tmp_path)


# --- Figures --------------------------------------------------------------------------------------------


def test_figures_are_those_of_what_is_there(results):
    folder, output = results
    names = {path.name for path in output.iterdir()}
    stems = ("epochs", "ratios", "minutes", "ptb-small-compressed", "grid-toy")
    tables = ("main", "language-model", "traditional", "ptb-small-compressed", "further")
    assert names == (
        {f"{stem}.{end}" for stem in stems for end in ("png", "svg", "pdf", "csv")}
        | {f"table-{name}.csv" for name in tables}
        | {"tables.md", "tables.txt"}
    )
    assert {path.suffix for path in folder.iterdir()} == {".json"}


def test_epochs(results):
    rows = read_csv(results[1] / "epochs.csv")
    ptb = [r for r in rows if (r["preset"], r["seed"]) == ("ptb-small-sx", "3")]
    assert [float(r["epoch"]) for r in ptb] == [5, 10, 15]
    assert [float(r["value"]) for r in ptb] == [127, 120, 113]
    news = [float(r["epoch"]) for r in rows if r["preset"] == "ag-news-full"]
    assert news == [1, 2, 3]  # 10 steps of 64 texts of 640


def test_ratios(results):
    rows = read_csv(results[1] / "ratios.csv")
    ours = {(r["data"], r["method"], float(r["value"])) for r in rows if not r["paper_mark"]}
    assert ("Penn Treebank", "dpq-sx", 105.5) in ours
    assert len(ours) == 6
    known = [r for r in rows if (r["data"], r["model"]) == ("AG News", "mean of words")]
    assert {float(r["value"]) for r in known if r["paper_mark"] == "recalled"} == {92.6, 92.5}


def test_minutes_of_an_epoch_are_medians_on_one_processor(results):
    rows = {r["preset"]: r for r in read_csv(results[1] / "minutes.csv")}
    assert set(rows) == {"ptb-small-full", "ptb-small-sx"}  # AG News: two processors
    # Three times ten steps in minutes 1, 1, 2 and 2, 2, 3; an epoch has two.
    assert float(rows["ptb-small-full"]["median_minutes"]) == pytest.approx(1 / 5)
    assert float(rows["ptb-small-sx"]["to_full"]) == pytest.approx(2)


def test_compressed_models_and_grid(results):
    rows = read_csv(results[1] / "ptb-small-compressed.csv")
    assert [r["line"] for r in rows[:2]] == ["full embedding", "DPQ-SX"]
    line = [r for r in rows if r["line"] == "low rank, weighted, trained on"]
    assert [(float(r["compression_ratio"]), float(r["test_perplexity"])) for r in line] == [
        (4, 127),
        (16, 139),
    ]
    rows = read_csv(results[1] / "grid-toy.csv")
    assert len(rows) == 6
    for r in rows:
        value = 101 + int(r["n_codes"]) + int(r["n_groups"]) + 10 * (r["parameters"] == "shared=True")
        assert (float(r["test_perplexity"]), r["seeds"]) == (value, "2")


def test_same_results_same_bytes(results, tmp_path):
    folders = [tmp_path / name for name in ("results", "first", "second")]
    folders[0].mkdir()
    for name in ("ptb-small-sx-seed3.json", "grid-toy.json"):
        (folders[0] / name).write_bytes((results[0] / name).read_bytes())
    first, second = (paper.make(folders[0], folder) for folder in folders[1:])
    assert [path.name for path in first] == [path.name for path in second]
    assert "minutes.png" not in [path.name for path in first]  # there is no full embedding beside
    for one, other in zip(first, second, strict=True):
        assert one.read_bytes() == other.read_bytes(), one.name


# --- Codes, costs, words --------------------------------------------------------------------------------


def watched(name, seed=0):
    """Result with what became of the codes at its three evaluations."""
    result = made_up(name, seed)
    for i, evaluation in enumerate(result["evaluations"]):
        evaluation |= {"codes_changed": 0.4 / (i + 1), "codes_used": 0.5, "code_perplexity": 2.0 + i}
    return result


def test_codes_by_epoch(tmp_path):
    (tmp_path / "ptb-small-sx-seed0.json").write_text(json.dumps(watched("ptb-small-sx")))
    (tmp_path / "ptb-small-vq-seed1.json").write_text(json.dumps(made_up("ptb-small-vq", 1)))
    assert "codes.png" in [path.name for path in paper.make(tmp_path, tmp_path / "out")]
    rows = read_csv(tmp_path / "out/codes.csv")
    found = {(r["quantity"], float(r["epoch"])): float(r["percent"]) for r in rows}
    assert len(found) == len(rows) == 6  # nothing of VQ, which was not watched
    assert found["codes_changed", 10.0] == pytest.approx(20)
    assert found["code_perplexity", 15.0] == pytest.approx(100 * 4 / 8)


def test_costs_of_a_step(tmp_path):
    processor = {"environment": {"processor": "some processor"}, "model": "small"}
    full = processor | {"method": "full", "time_to_full": 1.0, "memory_to_full": 1.0}
    records = [full] + [
        processor
        | {"method": m, "n_codes": K, "n_groups": D, "time_to_full": K / 8, "memory_to_full": 1 + D / 10}
        for m in ("dpq-sx", "dpq-vq")
        for K in (2, 8)
        for D in (10, 25)
    ]
    (tmp_path / "cost-small.json").write_text(json.dumps(records))
    assert "cost-small.png" in [path.name for path in paper.make(tmp_path, tmp_path / "out")]
    rows = read_csv(tmp_path / "out/cost-small.csv")
    assert len(rows) == 9
    assert [r["time_to_full"] for r in rows if (r["method"], r["n_groups"]) == ("dpq-vq", "25")] == [
        "0.25",
        "1.0",
    ]


def test_words_stand_below_the_tables(tmp_path):
    rows = [
        {"word": "state", "embedding": {"kind": "full"}, "seed": 0, "neighbours": ["city", "district"]},
        {"word": "state", "embedding": {"kind": "dpq-sx", "n_codes": 4, "n_groups": 2}, "seed": 0}
        | {"neighbours": ["city", "navy"], "code": [3, 0]},
    ]
    (tmp_path / "words-toy.json").write_text(json.dumps(rows))
    paper.make(tmp_path, tmp_path / "out")
    text = (tmp_path / "out/tables.md").read_text()
    assert "## Words and their codes: toy" in text
    assert "| state | DPQ-SX K=4 D=2 | city, navy | 3 0 |" in text


def test_dpq_of_a_comparison_becomes_a_grid(tmp_path):
    (tmp_path / "compared/runs").mkdir(parents=True)
    for method, parameters in (
        ("full", {}),
        ("dpq-sx", {"n_groups": 2, "n_codes": 4, "shared": True}),
        ("dpq-vq", {"n_groups": 4, "n_codes": 4}),
    ):
        record = {
            "specification": {"dataset": "toys", "method": method, "parameters": parameters, "seed": 0},
            "bits": {"all": 1},
            "compression_ratio": 3.0,
            "metrics": {"test_accuracy": 50.0, "relative_error": 1.0},
            "environment": {},
        }
        (tmp_path / f"compared/runs/{method}.json").write_text(json.dumps(record))
    done = run("--add", tmp_path / "compared", "--results", tmp_path / "results")
    assert done.exit_code == 0, done.output
    rows = read_csv(tmp_path / "results/grid-toys.csv")
    assert [(r["method"], r["parameters"], r["n_groups"]) for r in rows] == [
        ("dpq-sx", "shared=True", "2"),
        ("dpq-vq", "shared=False", "4"),
    ]
    for path in (tmp_path / "compared/runs").glob("dpq*"):
        path.unlink()
    done = run("--add", tmp_path / "compared", "--results", tmp_path / "results")
    assert done.exit_code == 1
    assert "no run of DPQ" in done.output
