"""Recipes, presets and the command `dpq-ref train`, on corpora of a few words."""

import json

import numpy as np
import pytest
from click.testing import CliRunner

from dpq_ref import job, load
from dpq_ref.cli import main
from dpq_ref.layers import FullEmbedding, LowRankEmbedding, make_embedding
from dpq_ref.tasks import recipe
from dpq_ref.tasks.language_model import SIZES
from dpq_ref.tasks.recipe import Recipe, preset, presets

TINY = {"n_hidden": 6, "batch_size": 2, "n_steps": 4, "epochs": 2}


@pytest.fixture
def corpus(tmp_path):
    """Three texts of twenty words."""
    folder, rng = tmp_path / "corpus", np.random.default_rng(0)
    folder.mkdir()
    for split, n in (("train", 300), ("valid", 60), ("test", 50)):
        (folder / f"{split}.txt").write_text(" ".join(f"w{i}" for i in rng.integers(0, 20, n)) + "\n")
    return folder


@pytest.fixture
def texts(tmp_path):
    """Two classes told apart by one word."""
    folder, rng = tmp_path / "texts", np.random.default_rng(0)
    folder.mkdir()
    for split, n in (("train", 200), ("test", 40)):
        lines = [f"{i % 2}\tw{i % 2} w{rng.integers(2, 9)} w{rng.integers(2, 9)}" for i in range(n)]
        (folder / f"{split}.tsv").write_text("\n".join(lines) + "\n")
    return folder


def test_every_preset_makes_its_layer_and_fits_its_task():
    """All parameters are known to the layer, and the ratios are those of the paper's table sizes."""
    for name in presets():
        made = preset(name)
        settings = dict(made.embedding)
        wide = {"classify": 300, "translate": made.network.get("dim", 512)}
        dim = wide.get(made.task) or SIZES[made.model].n_hidden
        make_embedding(settings.pop("kind"), 50, dim, **settings)
        recipe.whole_plan(made)
    layer = make_embedding(
        "dpq-sx", 10_000, 650, **{k: v for k, v in preset("ptb-medium-sx").embedding.items() if k != "kind"}
    )
    assert layer.export().compression_ratio == pytest.approx(162.93, abs=0.005)


@pytest.mark.parametrize(
    "settings",
    [
        {"embedding": {"kind": "full"}},
        {"embedding": {"kind": "dpq-sx", "n_groups": 2, "n_codes": 4}},
        {"embedding": {"kind": "dpq-vq", "n_groups": 3, "n_codes": 4, "shared": True}, "output": "tied"},
        {"embedding": {"kind": "low-rank", "rank": 2}},
        {"embedding": {"kind": "full"}, "output": {"kind": "dpq-sx", "n_groups": 2, "n_codes": 4}},
    ],
)
def test_language_model_stopped_after_every_step_equals_unbroken(settings, corpus, tmp_path):
    made = Recipe("lm", plan=TINY, **settings)
    whole = recipe.run(made, corpus, tmp_path / "whole")
    result = None
    while result is None:
        result = recipe.run(made, corpus, tmp_path / "parts", max_minutes=0)
    for key in ("test_perplexity", "test_perplexity_last", "validation_perplexity", "best_epoch", "bits"):
        assert result[key] == whole[key], key
    a, b = (load(tmp_path / folder / "embedding.safetensors") for folder in ("whole", "parts"))
    np.testing.assert_array_equal(a.reconstruct(), b.reconstruct())


@pytest.fixture
def pairs(tmp_path):
    """Sentences of four words and the same ones backwards."""
    folder, rng = tmp_path / "pairs", np.random.default_rng(0)
    folder.mkdir()
    words = [f"w{i}" for i in range(6)]
    for language in ("de", "ed"):
        (folder / f"vocab.{language}").write_text("\n".join(["<unk>", "<s>", "</s>", *words]) + "\n")
    for split, n in (("train", 40), ("tst2012", 5), ("tst2013", 5)):
        lines = [[words[i] for i in rng.integers(0, 6, 4)] for _ in range(n)]
        (folder / f"{split}.de").write_text("".join(" ".join(line) + "\n" for line in lines))
        (folder / f"{split}.ed").write_text("".join(" ".join(line[::-1]) + "\n" for line in lines))
    return folder


@pytest.mark.parametrize("model", ["attention", "transformer"])
def test_translator_stopped_after_every_step_equals_unbroken(model, pairs, tmp_path):
    pytest.importorskip("sacrebleu")
    network = {"dim": 8} | ({"n_layers": 1, "n_heads": 2, "hidden": 8} if model == "transformer" else {})
    made = Recipe(
        "translate",
        {"kind": "dpq-sx", "n_groups": 2, "n_codes": 4},
        model=model,
        languages=("de", "ed"),
        network=network,
        plan={"steps": 3, "batch_size": 10, "evaluate_every": 2},
    )
    whole = recipe.run(made, pairs, tmp_path / "whole")
    result = None
    while result is None:
        result = recipe.run(made, pairs, tmp_path / "parts", max_minutes=0)
    for key in ("test_bleu", "test_bleu_last", "validation_bleu", "test_perplexity", "bits"):
        assert result[key] == whole[key], key
    a, b = (np.load(tmp_path / folder / "best.npz") for folder in ("whole", "parts"))
    for name in a.files:
        np.testing.assert_array_equal(a[name], b[name])


def test_result_says_what_it_comes_from(corpus, tmp_path):
    result = recipe.run(Recipe("lm", {"kind": "full"}, plan=TINY, seed=3), corpus, tmp_path / "run")
    assert json.loads((tmp_path / "run/result.json").read_text()) == result
    assert result["config"]["seed"] == 3
    assert result["config"]["plan"]["epochs"] == 2
    assert len(result["evaluations"]) == 2
    assert result["test_perplexity"] > 1
    assert result["compression_ratio"] == 1
    assert set(result["data"]["sha256"]) == {"train.txt", "valid.txt", "test.txt"}
    assert {"python", "numpy", "processor", "commit"} <= set(result["environment"])


def test_another_embedding_leaves_the_rest_as_it_starts(corpus, tmp_path):
    """Seeds of the embedding and of the network are apart."""
    arrays = []
    for kind in ({"kind": "full"}, {"kind": "low-rank", "rank": 2}):
        plan = TINY | {"learning_rate": 0.0}
        recipe.run(Recipe("lm", kind, plan=plan), corpus, tmp_path / kind["kind"])
        arrays.append(np.load(tmp_path / kind["kind"] / "best.npz")["array.lstm2.hidden_weight"])
    np.testing.assert_array_equal(*arrays)


def run(*arguments):
    return CliRunner().invoke(main, ["train", *map(str, arguments)], catch_exceptions=False)


def test_command_trains_a_classifier(texts, tmp_path):
    arguments = ("classify", "--data", texts, "--embedding", "dpq-sx", "--n-groups", 50, "--n-codes", 4)
    done = run(*arguments, "--shared", "--steps", 60, "--output", tmp_path / "run")
    assert done.exit_code == 0, done.output
    result = json.loads((tmp_path / "run/result.json").read_text())
    assert result["test_accuracy"] == 100
    assert f"test_accuracy{' ' * 11} 100" in done.output
    again = run(*arguments, "--shared", "--steps", 60, "--output", tmp_path / "run")
    assert again.output == done.output
    other = run(*arguments, "--steps", 60, "--output", tmp_path / "run")
    assert other.exit_code == 1
    assert "holds another training" in other.output


def test_command_stops_in_time_and_goes_on(texts, tmp_path):
    arguments = ("classify", "--data", texts, "--steps", 2, "--output", tmp_path / "run")
    first = run(*arguments, "--max-minutes", 0)
    assert first.exit_code == 0
    assert "the same command goes on" in first.output
    assert not (tmp_path / "run/result.json").exists()
    assert "test_accuracy" in run(*arguments).output


def test_patience_ends_a_training_and_is_part_of_it(corpus, tmp_path):
    """At rate 0 nothing ever gets better than the first evaluation."""
    made = Recipe("lm", {"kind": "full"}, plan=TINY | {"epochs": 9, "learning_rate": 0.0})
    result = recipe.run(made, corpus, tmp_path / "run", patience=2)
    assert len(result["evaluations"]) == 3
    assert result["best_epoch"] == 1
    with pytest.raises(ValueError, match="patience 2 there, None here"):
        recipe.run(made, corpus, tmp_path / "run")


def test_command_trains_a_language_model(corpus, tmp_path):
    done = run("lm", "--data", corpus, "--epochs", 1, "--output", tmp_path / "run")
    assert done.exit_code == 1  # three hundred words are not enough for batches of 20 x 20
    assert "takes 420 or more" in done.output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--preset", "ptb-small-sx"), "--data: the folder of Penn Treebank"),
        (("--preset", "ptb"), "preset='ptb'; it takes one of ptb-small-full, "),
        (("lm", "--n-groups", 3), "kind='full' does not take n_groups"),
        (("classify", "--embedding", "dpq-vq", "--n-codes", 4), "kind='dpq-vq' needs n_groups"),
        (("classify", "--data", "/nowhere"), "/nowhere"),
        (("lm", "--embedding", "pq"), "'pq' is not one of 'full'"),
        (("translate",), "--data: a folder of sentence pairs"),
        (("translate", "--data", "/nowhere"), "/nowhere"),
        (("translate", "--direction", "envi"), "takes two languages"),
    ],
)
def test_bad_input_is_named(arguments, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = run(*arguments)
    assert done.exit_code != 0
    assert message in done.output
    assert not list(tmp_path.iterdir())


def test_help_and_list():
    assert "metrics.jsonl" in run().output
    assert len(run("--preset", "list").output.splitlines()) == len(presets())


def test_unknown_settings():
    with pytest.raises(ValueError, match="plan has no epoch; it takes n_hidden, "):
        recipe.run(Recipe("lm", {"kind": "full"}, plan={"epoch": 1}), "builtin", "nowhere")
    with pytest.raises(ValueError, match="task='x'; it takes one of lm"):
        recipe.run(Recipe("x", {"kind": "full"}), "builtin", "nowhere")
    with pytest.raises(ValueError, match="kind='pq'; it takes one of full"):
        make_embedding("pq", 3, 2)


def test_random_low_rank_varies_as_the_table():
    """Entries of the product have the variance of those of a full table."""
    low = LowRankEmbedding.random(2000, 60, rank=20, init=0.3).forward(np.arange(2000))
    full = FullEmbedding(2000, 60, init=0.3).params["table"]
    assert low.std() == pytest.approx(full.std(), rel=0.05)
    with pytest.raises(ValueError, match="rank=7; a table of \\(9, 6\\) takes at most 6"):
        LowRankEmbedding.random(9, 6, rank=7)


def test_a_finished_training_is_left_as_it_is(corpus, tmp_path, monkeypatch):
    made = Recipe("lm", {"kind": "full"}, plan=TINY)
    result = recipe.run(made, corpus, tmp_path / "run")
    before = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "run").iterdir()}
    monkeypatch.setattr(job, "finish", lambda *arguments: pytest.fail("there is nothing to do"))
    assert recipe.run(made, corpus, tmp_path / "run") == json.loads(json.dumps(result))
    changed = {p.name for p in (tmp_path / "run").iterdir() if p.stat().st_mtime_ns != before.get(p.name)}
    assert changed <= {"metrics.jsonl"}
