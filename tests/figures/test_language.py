"""A tiny language model, compressed and trained on."""

import json

import numpy as np
import pytest
from click.testing import CliRunner

from dpq_ref.cli import main
from dpq_ref.datasets.language import load_language
from dpq_ref.layers import BlockEmbedding, FixedEmbedding, LowRankEmbedding
from dpq_ref.tasks import recipe
from figures import language, paper, paper_results

GRID = """
seeds = [0]
[[method]]
name = "half"
[[method]]
name = "low-rank"
rank = 3
matrices = ["embedding", "both"]
retrain = [0, 2]
[[method]]
name = "product"
n_groups = 2
n_codes = 4
weighted = true
retrain = [0, 1]
[[method]]
name = "group-reduce"
ratio = 1.5
n_blocks = 2
weighted = true
retrain = 1
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Corpus, trained model and the results of the grid."""
    root = tmp_path_factory.mktemp("language")
    (root / "corpus").mkdir()
    rng = np.random.default_rng(0)
    for split, n in (("train", 600), ("valid", 100), ("test", 90)):
        text = " ".join(f"w{i}" for i in rng.zipf(1.5, n) % 30)
        (root / f"corpus/{split}.txt").write_text(text + "\n")
    (root / "grid.toml").write_text(GRID)
    plan = {"n_hidden": 6, "batch_size": 2, "n_steps": 5, "epochs": 2}
    recipe.run(recipe.Recipe("lm", {"kind": "full"}, plan=plan), root / "corpus", root / "model")
    arguments = ["compress-lm", root / "model", "--data", root / "corpus", "--grid", root / "grid.toml"]
    done = CliRunner().invoke(main, [*map(str, arguments), "--output", str(root / "out"), "--jobs", "1"])
    assert done.exit_code == 0, done.output
    return root


@pytest.fixture(scope="module")
def records(folder):
    return {p.stem: json.loads(p.read_text()) for p in (folder / "out/runs").glob("*.json")}


def test_half_precision_is_the_model_itself_nearly(folder, records):
    result = json.loads((folder / "model/result.json").read_text())
    found = records["half_seed=0"]
    assert found["compression_ratio"] == 2
    assert found["metrics"]["test_perplexity"] == pytest.approx(result["test_perplexity"], rel=1e-3)


def test_training_on_does_not_end_worse_on_validation(records):
    assert len(records) == 8
    for name, record in records.items():
        start, *later = record["evaluations"]
        assert len(later) == record["specification"]["parameters"].get("retrain", 0), name
        best = min(e["validation_perplexity"] for e in (start, *later))
        assert record["metrics"]["validation_perplexity"] == pytest.approx(best)
        assert np.isfinite(record["metrics"]["test_perplexity"])


def test_sizes_of_one_and_of_both_matrices(records):
    """Low rank 3 of n x 6: 3 (n + 6) floats each."""
    n = round(records["low-rank_matrices=embedding_rank=3_retrain=0_seed=0"]["bits"]["embedding.values"] / 96)
    for name, factor in (("embedding", 1), ("both", 2)):
        for retrain in (0, 2):
            record = records[f"low-rank_matrices={name}_rank=3_retrain={retrain}_seed=0"]
            assert sum(record["bits"].values()) == factor * 32 * 3 * (n + 6)
            assert record["compression_ratio"] == pytest.approx(6 * n / (3 * (n + 6)))


def test_rows_are_what_the_tables_of_the_paper_read(folder, records):
    found = json.loads((folder / "out/compressed.json").read_text())
    assert len(found) == len(records)
    for row in found:
        assert row["retrained"] is (row["epochs"] > 0)
        assert "retrain" not in row["parameters"]
        assert row["test_perplexity"] in [r["metrics"]["test_perplexity"] for r in records.values()]


def test_rows_go_to_the_results_of_the_paper_by_the_preset_of_the_model(folder, tmp_path):
    with pytest.raises(ValueError, match="is that of no preset"):
        paper_results.add(folder / "out", tmp_path / "results")
    rows = json.loads((folder / "out/compressed.json").read_text())
    assert {row["preset"] for row in rows} == {None}
    content = json.dumps([row | {"preset": "ptb-small-full"} for row in rows])
    (tmp_path / "compressed.json").write_text(content)
    path = paper_results.add(tmp_path, tmp_path / "results")
    assert path == tmp_path / "results/ptb-small-compressed.json"
    assert path.read_text() == content
    made = paper.make(tmp_path / "results", tmp_path / "drawn")
    assert "ptb-small-compressed.png" in [path.name for path in made]


def test_layers(folder):
    _, _, state = language.read(str(folder / "model"), str(folder / "corpus"))
    from baselines import GroupReduce, LowRank, ProductQuantizer

    X = state["embedding.table"]
    for method, kind in (
        (LowRank(rank=2), LowRankEmbedding),
        (GroupReduce(ratio=1.5, n_blocks=2), BlockEmbedding),
        (ProductQuantizer(2, 4, random_state=0), FixedEmbedding),
    ):
        table = method.fit(X).compress()
        layer = language.layer_of(table)
        assert type(layer) is kind
        np.testing.assert_allclose(
            layer.forward(np.arange(len(X))), table.reconstruct(), rtol=1e-5, atol=1e-7
        )


def test_other_models_and_corpora_are_refused(folder, tmp_path):
    with pytest.raises(FileNotFoundError):
        language.read(str(tmp_path), str(folder / "corpus"))
    (tmp_path / "other").mkdir()
    for split in ("train", "valid", "test"):
        (tmp_path / f"other/{split}.txt").write_text("a b c\n" * 40)
    with pytest.raises(ValueError, match="was not trained on"):
        language.read(str(folder / "model"), str(tmp_path / "other"))
    made = recipe.Recipe(
        "lm",
        {"kind": "low-rank", "rank": 2},
        plan={"n_hidden": 4, "batch_size": 2, "n_steps": 4, "epochs": 1},
    )
    recipe.run(made, folder / "corpus", tmp_path / "low")
    with pytest.raises(ValueError, match="no language model with full tables"):
        language.read(str(tmp_path / "low"), str(folder / "corpus"))
    assert load_language(folder / "corpus").name == "corpus"
