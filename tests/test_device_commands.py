"""The commands with `--backend cupy`, on the stand-in: what comes out is what `--backend numpy` gives."""

import json
import sys
from dataclasses import replace

import numpy as np
import pytest
import stand_in_cupy
from click.testing import CliRunner
from stand_in_gpu import install

from dpq_ref import backend
from dpq_ref.cli import main
from dpq_ref.tasks import recipe
from dpq_ref.tasks.recipe import Recipe

GRID = """
name = "toy"
dataset = "toy"
data = "set by --data"
seeds = [0]
dim = 6
hidden = 5

[plan]
steps = 8
batch_size = 16
learning_rate = 1e-2
evaluate_every = 4

[[method]]
name = "full"

[[method]]
name = "dpq-sx"
n_groups = 3
n_codes = 4
additive = [false, true]

[[method]]
name = "dpq-vq"
n_groups = 3
n_codes = 4

[[method]]
name = "product"
n_groups = 3
n_codes = 4

[[method]]
name = "uniform"
n_bits = 2

[[method]]
name = "full-continued"

[[method]]
name = "low-rank-in-network"
reduction = 0.5
schedule = "calr"

[[method]]
name = "group-reduce-in-network"
ratio = 1.6
n_blocks = 2
"""
VECTORS = np.random.default_rng(0).standard_normal((60, 8)).astype(np.float32)


@pytest.fixture(autouse=True)
def gpu(monkeypatch):
    return install(monkeypatch)


def run(*arguments):
    done = CliRunner().invoke(main, [str(x) for x in arguments], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.output


@pytest.fixture
def texts(tmp_path):
    folder, rng = tmp_path / "texts", np.random.default_rng(0)
    folder.mkdir()
    for split, n in (("train", 120), ("test", 40)):
        lines = [f"{i % 2}\tw{i % 2} w{rng.integers(2, 9)} w{rng.integers(2, 9)}" for i in range(n)]
        (folder / f"{split}.tsv").write_text("\n".join(lines) + "\n")
    (folder / "grid.toml").write_text(GRID)
    return folder


def numbers(found):
    """What does not tell of the machine, the time or the back end."""
    if isinstance(found, dict):
        left_out = ("environment", "minutes", "seconds", "command", "process_peak_memory_bytes", "backend")
        return {k: numbers(v) for k, v in found.items() if k not in left_out}
    return [numbers(x) for x in found] if isinstance(found, list) else found


def test_compare(texts, tmp_path, monkeypatch):
    monkeypatch.setattr("dpq_ref.cli._draw", lambda *results, output=None: None)
    found = {}
    for name in ("cupy", "numpy"):
        output = tmp_path / name
        grid = texts / "grid.toml"
        run("compare", "--grid", grid, "--data", texts, "--output", output, "--jobs", 1, "--backend", name)
        found[name] = {path.name: json.loads(path.read_text()) for path in (output / "runs").iterdir()}
    assert len(found["cupy"]) == 9
    for name, record in found["cupy"].items():
        assert "error" not in record, record["error"]
        assert numbers(record) == numbers(found["numpy"][name])
        said = {key: record["environment"][key] for key in ("backend", "device", "driver", "cupy")}
        assert said == {
            "backend": "cupy",
            "device": "stand-in",
            "driver": "CUDA 13.0",
            "cupy": stand_in_cupy.__version__,
        }
        assert record["specification"]["backend"] == "cupy"


@pytest.fixture
def corpora(tmp_path, texts):
    rng = np.random.default_rng(0)
    corpus, pairs = tmp_path / "corpus", tmp_path / "pairs"
    corpus.mkdir()
    pairs.mkdir()
    for split, n in (("train", 200), ("valid", 60), ("test", 50)):
        (corpus / f"{split}.txt").write_text(" ".join(f"w{i}" for i in rng.integers(0, 20, n)) + "\n")
    words = [f"w{i}" for i in range(6)]
    for language in ("de", "ed"):
        (pairs / f"vocab.{language}").write_text("\n".join(["<unk>", "<s>", "</s>", *words]) + "\n")
    for split, n in (("train", 40), ("tst2012", 5), ("tst2013", 5)):
        lines = [[words[i] for i in rng.integers(0, 6, 4)] for _ in range(n)]
        (pairs / f"{split}.de").write_text("".join(" ".join(line) + "\n" for line in lines))
        (pairs / f"{split}.ed").write_text("".join(" ".join(line[::-1]) + "\n" for line in lines))
    return {"lm": corpus, "translate": pairs, "classify": texts}


DPQ = {"n_groups": 2, "n_codes": 4}
LM = {"n_hidden": 6, "batch_size": 2, "n_steps": 4, "epochs": 2, "keep": 0.7}
SMALL = {"n_layers": 1, "n_heads": 2, "hidden": 8}
TASKS = {
    "lm-sx": Recipe("lm", {"kind": "dpq-sx", **DPQ}, plan=LM),
    "lm-vq-tied": Recipe("lm", {"kind": "dpq-vq", **DPQ}, plan=LM, output="tied"),
    "classify": Recipe("classify", {"kind": "dpq-vq", **DPQ}, plan={"steps": 6, "evaluate_every": 3}),
    "attention": Recipe(
        "translate",
        {"kind": "dpq-sx", **DPQ},
        model="attention",
        languages=("de", "ed"),
        network={"dim": 8},
        plan={"steps": 3, "batch_size": 10, "evaluate_every": 2},
    ),
    "transformer": Recipe(
        "translate",
        {"kind": "full"},
        model="transformer",
        languages=("de", "ed"),
        network={"dim": 8} | SMALL,
        plan={"steps": 3, "batch_size": 10, "evaluate_every": 2},
    ),
}


@pytest.mark.parametrize("name", TASKS)
def test_tasks_stopped_and_taken_up_again(name, corpora, tmp_path):
    """A training that stops after every step, and goes on from arrays of the host, ends as NumPy's."""
    made = TASKS[name]
    if made.task == "translate":
        pytest.importorskip("sacrebleu")
    data = corpora[made.task]
    whole = recipe.run(replace(made, backend="numpy"), data, tmp_path / "whole")
    made, result = replace(made, backend="cupy"), None
    steps = 0
    while result is None:
        result = recipe.run(made, data, tmp_path / "parts", max_minutes=0 if steps < 3 else None)
        steps += 1
    assert steps > 2
    assert numbers(result) == numbers(whole)
    assert result["environment"]["device"] == "stand-in"
    a, b = (np.load(tmp_path / folder / "best.npz") for folder in ("whole", "parts"))
    for array in a.files:
        np.testing.assert_array_equal(a[array], b[array])


def test_train_command(corpora, tmp_path):
    arguments = ("--data", corpora["classify"], "--steps", 2, "--backend", "cupy")
    run("train", "classify", *arguments, "--output", tmp_path / "run")
    assert json.loads((tmp_path / "run/result.json").read_text())["config"]["backend"] == "cupy"


def test_compress_and_evaluate(tmp_path):
    table = tmp_path / "table.npz"
    np.savez(table, words=np.array([f"w{i}" for i in range(len(VECTORS))]), vectors=VECTORS)
    tables, said = {}, {}
    for name in ("cupy", "numpy"):
        path = tmp_path / f"{name}.safetensors"
        options = ("--method", "opq", "--ratio", 4, "--backend", name, "--json")
        told = run("compress", table, "-o", path, *options)
        tables[name] = path.read_bytes()
        said[name] = run("evaluate", path, table, "--json", "--backend", name)
        assert json.loads(told)["backend"] == name
    assert tables["cupy"] == tables["numpy"]
    assert said["cupy"] == said["numpy"]
    options = ("--method", "low-rank", "--ratio", 4, "--backend", "cupy", "--json")
    told = run("compress", table, "-o", tmp_path / "low.safetensors", *options)
    assert json.loads(told)["backend"] == "numba"  # what has no kernels for a GPU says where it ran


def test_without_cupy_commands_say_so_at_once(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "cupy", None)
    np.save(tmp_path / "table.npy", VECTORS)
    commands = (
        ("compare", "--backend", "cupy"),
        ("train", "lm", "--backend", "cupy"),
        ("compress", tmp_path / "table.npy", "-o", tmp_path / "x.safetensors", "--backend", "cupy"),
    )
    for command in commands:
        done = CliRunner().invoke(main, list(map(str, command)))
        assert done.exit_code == 2
        assert "backend='cupy' needs CuPy: pip install" in " ".join(done.output.split())
    with pytest.raises(ImportError, match="needs CuPy"):
        backend.get("cupy")
