"""A trained language model whose tables are compressed, as they are or trained on in the network.

Train the full model, then compress: the other way round from DPQ, and what the paper compares it with (Chen,
Li, Sun, ICML 2020; P. Chen et al., *GroupReduce*, NeurIPS 2018, for the matrix of the softmax). With
`retrain` epochs the network trains on: through the factors of low rank and GroupReduce, and around the table
of any other method, which then stays as it is.
"""

import hashlib
import json
import os
import tempfile
import tomllib
from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np

from dpq_ref import job
from dpq_ref.compressed import BlockTable, Compressed, DenseTable, FactoredTable
from dpq_ref.datasets.language import LanguageDataset, load_language
from dpq_ref.kernels.reference import Array
from dpq_ref.layers import BlockEmbedding, FixedEmbedding, LowRankEmbedding
from dpq_ref.tasks.language_model import LanguageModel, Plan, train
from figures.paper_results import preset_of
from figures.sweep import Record, Run, Sweep, cells
from figures.tables import make_estimator

GRID = Path(__file__).parent / "grids" / "language.toml"
OWN = ("weighted", "matrices", "retrain")  # parameters of a run that are not the method's
PROTOCOL = (
    "trained on: the network and the factors of the tables, from a quarter of the first rate, halved each "
    "epoch; the better of before and after by validation."
)
MATRICES = {"embedding": "embedding.table", "output": "output.weight"}


@lru_cache(maxsize=1)
def read(source: str, path: str) -> tuple[LanguageDataset, Plan, dict[str, Array]]:
    """Corpus, plan and state of a finished training of the full model.

    Raises
    ------
    FileNotFoundError, ValueError
        If there is none in the folder, or it is of another model or corpus.
    """
    folder = Path(source)
    result = json.loads((folder / "result.json").read_text(encoding="utf8"))
    config, data = result["config"], load_language(path)
    if config["task"] != "lm" or config["embedding"] != {"kind": "full"} or config["output"] is not None:
        raise ValueError(f"{folder} is no language model with full tables: {config}")
    if config["data_sha256"] != data.sha256:
        raise ValueError(f"{folder} was not trained on {path}")
    return data, Plan(**config["plan"]), job.best(folder)


def sweep(grid: str | os.PathLike, source: str, path: str) -> tuple[Sweep, list[Run]]:
    """Read a grid file and a trained model: what to run.

    Parameters
    ----------
    grid : path-like
        TOML with `seeds` and a [[method]] for each, with its parameters. `weighted = true` fits by the counts
        of the words in training; `matrices` is "embedding" or "both"; `retrain` the epochs to train on.
    source : str
        Folder of a finished `dpq-ref train lm`, with the full embedding.
    path : str
        Folder of its corpus.
    """
    content = tomllib.loads(Path(grid).read_text(encoding="utf8"))
    data, plan, _ = read(source, path)
    digest = hashlib.sha256((Path(source) / "best.npz").read_bytes()).hexdigest()
    try:
        preset = preset_of(json.loads((Path(source) / "result.json").read_text(encoding="utf8")))
    except ValueError:  # it may be of none
        preset = None
    runs = [Run(*cell, seed) for cell in cells(content["method"]) for seed in content["seeds"]]
    specification = partial(_specification, data.name, data.sha256, preset, digest)
    steps = len(data.train) // plan.batch_size // plan.n_steps

    def cost(run: Run) -> int:
        return 1 + steps * run.parameters.get("retrain", 0)

    return Sweep(partial(execute, source, path), specification, _line, data.provenance, cost=cost), runs


def _specification(dataset: str, sha256: str, preset: str | None, model: str, run: Run) -> Record:
    own = {"method": run.method, "parameters": run.parameters, "seed": run.seed}
    return {"dataset": dataset, "sha256": sha256, "preset": preset, "model": model} | own


def _line(record: Record) -> str:
    return f"perplexity {record['metrics']['test_perplexity']:.2f} at ratio {record['compression_ratio']:.1f}"


def execute(source: str, path: str, run: Run, work: Path, on_step: Callable[[int], None]) -> Record:
    """Compress the tables of a trained model, train it on where that is asked, and judge it.

    Returns
    -------
    dict
        metrics (test_perplexity, validation_perplexity), compression_ratio of the compressed tables
        together, their bits, and the evaluations: before and while it is trained on.
    """
    data, plan, state = read(source, path)
    names = list(MATRICES) if run.parameters.get("matrices") == "both" else ["embedding"]
    method = replace(run, parameters={k: v for k, v in run.parameters.items() if k not in OWN[1:]})
    made: dict[str, Compressed] = {}
    for name in names:
        estimator, weights = make_estimator(method, data.counts.astype(np.float64))
        made[name] = estimator.fit(state[MATRICES[name]], sample_weight=weights).compress()
    layers: dict[str, Any] = {name: layer_of(table) for name, table in made.items()}
    rng = np.random.default_rng([run.seed, 1])
    model = LanguageModel(layers["embedding"], plan, table=layers.get("output"), rng=rng)
    model.load_state(state, without=["embedding", "table"])
    options = {"batch_size": plan.batch_size, "n_steps": plan.n_steps}
    found = {
        "test_perplexity": model.perplexity(data.test),
        "validation_perplexity": model.perplexity(data.validation, **options),
    }
    record: Record = {"evaluations": [{"step": 0, **found}]}
    if epochs := run.parameters.get("retrain", 0):
        # The rate that the full model ended with would move nothing; its first one unlearns.
        again = replace(plan, epochs=epochs, learning_rate=plan.learning_rate / 4, constant_epochs=1)
        with tempfile.TemporaryDirectory(dir=work) as folder:
            result = train(folder, data, model, again, config={"run": run.name}, on_step=on_step)
        assert result is not None
        record["evaluations"] += result["evaluations"]
        if result["validation_perplexity"] < found["validation_perplexity"]:
            found = {name: result[name] for name in found}
            made = {"embedding": model.embedding.export()}
            if model.table is not None:
                made["output"] = model.table.export()
    bits = {f"{name}.{part}": n for name, t in made.items() for part, n in t.bits().items()}
    full = sum(32 * t.vocab_size * t.dim for t in made.values())
    return record | {"metrics": found, "bits": bits, "compression_ratio": full / sum(bits.values())}


def rows(records: list[Record]) -> list[Record]:
    """One flat row per record that did not fail, as `figures.paper` reads them."""
    found = []
    for record in records:
        if "error" in record:
            continue
        run = record["specification"]
        epochs = run["parameters"].get("retrain", 0)
        found.append(
            {
                "preset": run["preset"],
                "method": run["method"],
                "parameters": {k: v for k, v in run["parameters"].items() if k != "retrain"},
                "retrained": bool(epochs),
                "epochs": epochs,
                "seed": run["seed"],
                "protocol": PROTOCOL if epochs else "",
                "compression_ratio": record["compression_ratio"],
                **record["metrics"],
                "environment": record["environment"],
            }
        )
    return found


def layer_of(table: Compressed) -> Any:
    """Layer that trains the factors of a table, or leaves it as it is."""
    if isinstance(table, BlockTable):
        return BlockEmbedding.from_table(table)
    if isinstance(table, FactoredTable) and {type(table.left), type(table.right)} == {DenseTable}:
        return LowRankEmbedding(table.left.reconstruct(), table.right.reconstruct())
    return FixedEmbedding(table)
