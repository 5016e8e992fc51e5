"""Nearest neighbours and codes of words, of tiny trainings."""

import json

import numpy as np
import pytest
from click.testing import CliRunner

from dpq_ref.cli import main
from dpq_ref.compressed import load
from dpq_ref.datasets.language import load_language
from dpq_ref.tasks import recipe


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Corpus, and a training with each embedding."""
    root = tmp_path_factory.mktemp("neighbours")
    (root / "corpus").mkdir()
    rng = np.random.default_rng(0)
    for split, n in (("train", 400), ("valid", 60), ("test", 50)):
        words = ("w" + "abcdefghijklmnopqrst"[i] for i in rng.integers(0, 20, n))
        (root / f"corpus/{split}.txt").write_text(" ".join(words) + "\n")
    plan = {"n_hidden": 6, "batch_size": 2, "n_steps": 5, "epochs": 1}
    for kind, settings in (("full", {}), ("dpq-sx", {"n_groups": 2, "n_codes": 4})):
        made = recipe.Recipe("lm", {"kind": kind, **settings}, plan=plan)
        recipe.run(made, root / "corpus", root / kind)
    return root


def run(*arguments):
    return CliRunner().invoke(main, ["neighbours", *map(str, arguments)])


def test_neighbours_by_hand(root):
    words = ["--word", "wc", "--word", "wk", "-k", "3"]
    done = run(root / "full", root / "dpq-sx", "--data", root / "corpus", *words, "--output", root / "w.json")
    assert done.exit_code == 0, done.output
    rows = json.loads((root / "w.json").read_text())
    assert [(r["word"], r["embedding"]["kind"]) for r in rows] == [
        (word, kind) for word in ("wc", "wk") for kind in ("full", "dpq-sx")
    ]
    vocabulary = list(load_language(root / "corpus").vocabulary)
    for row in rows:
        table = load(root / row["embedding"]["kind"] / "embedding.safetensors")
        vectors, i = table.reconstruct().astype(np.float64), vocabulary.index(row["word"])
        cosines = vectors @ vectors[i] / np.linalg.norm(vectors, axis=1)
        cosines[i] = -np.inf
        near = [vocabulary.index(word) for word in row["neighbours"]]
        np.testing.assert_allclose(cosines[near], np.sort(cosines)[::-1][:3], atol=1e-12)
        assert row.get("code") == (table.codes[i].tolist() if row["embedding"]["kind"] != "full" else None)
        assert f"| {row['word']} |" in done.output
    assert run(root / "full", "--data", root / "corpus").exit_code == 0  # words of its choice


def test_bad_input(root, tmp_path):
    done = run(root / "full", "--data", root / "corpus", "--word", "nowhere")
    assert done.exit_code == 1
    assert "words: nowhere not in the vocabulary" in done.output
    (tmp_path / "empty").mkdir()
    done = run(tmp_path / "empty", "--data", root / "corpus")
    assert done.exit_code == 1
    assert "has not come to its end" in done.output
    for split in ("train", "valid", "test"):
        (tmp_path / f"{split}.txt").write_text("wa wb wc\n")
    done = run(root / "full", "--data", tmp_path)
    assert done.exit_code == 1
    assert "it takes what the training had" in done.output
