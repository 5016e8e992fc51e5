"""A grid (TOML) of methods x parameters x seeds -> results, one JSON a run. Never plots.

A method trained from scratch ("full", "dpq-sx", "dpq-vq") trains the classifier with its embedding. One of
`CONTINUED` takes the trained "full" classifier of its seed, puts its own layer in place of the table, and
trains the whole network on for as many steps again. An offline one (those of `baselines.REGISTRY`) compresses
the table of that classifier, whose other layers stay as they are. All end in a `Compressed` table and are
judged on it by the same code, at the best validation step.

Finished runs wait in `OUTPUT/.work` until all are there, so an interrupted job goes on where it was.
"""

import itertools
import json
import os
import platform
import resource
import shutil
import subprocess
import sys
import threading
import time
import tomllib
import traceback
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import lru_cache
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from dpq_ref import datasets
from dpq_ref.compressed import Compressed, ProductTable, write_atomically
from dpq_ref.kernels.reference import Array, Integers
from dpq_ref.layers import BlockEmbedding, DPQEmbedding, FullEmbedding, LowRankEmbedding, rank_kept
from dpq_ref.metrics import CodeUsage, accuracy, code_usage, relative_error
from dpq_ref.optim import Adam
from dpq_ref.schedules import CyclicallyAnnealedRate
from dpq_ref.tasks.classify import PADDING, Plan, TextClassifier, train

GRIDS = Path(__file__).parent / "grids"


def full_table(table: Array, counts: Integers) -> FullEmbedding:
    """Layer of "full-continued": the table as it is, to tell what training on alone brings."""
    layer = FullEmbedding(*table.shape, dtype=table.dtype)
    layer.params["table"][:] = table
    return layer


def low_rank_factors(table: Array, counts: Integers, *, reduction: float) -> LowRankEmbedding:
    """Layer of "low-rank-in-network": the two best factors of a size (Acharya et al., 2019)."""
    n, d = table.shape
    return LowRankEmbedding.from_table(table, rank_kept(n, d, reduction))


def group_reduce_factors(table: Array, counts: Integers, **parameters: Any) -> BlockEmbedding:
    """Layer of "group-reduce-in-network": blocks and factors of GroupReduce (P. Chen et al., 2018)."""
    from baselines import GroupReduce

    return BlockEmbedding.from_table(GroupReduce(**parameters).fit(table, sample_weight=counts).compress())


# Trained full table, word counts, parameters of the run -> layer in its place.
CONTINUED: dict[str, Callable[..., Any]] = {
    "full-continued": full_table,
    "low-rank-in-network": low_rank_factors,
    "group-reduce-in-network": group_reduce_factors,
}
FROM_SCRATCH = ("full", "dpq-sx", "dpq-vq")
TRAINED = (*FROM_SCRATCH, *CONTINUED)


def calr(plan: Plan) -> CyclicallyAnnealedRate:
    """Cyclically annealed rate of a plan, as Acharya et al. fine-tune: five epochs, down to decay^3.

    An epoch of the schedule is a fifth of the plan, whatever that is of the data, and one triangle: peaks of
    1, 0.1, 0.01, 1 and 0.1 times the rate of the plan.
    """
    epoch, rate = max(2, plan.steps // 5), plan.learning_rate
    return CyclicallyAnnealedRate(epoch, epoch // 2, high=rate, low=rate * 1e-3, decay=0.1)


def _schedule(plan: Plan, name: str) -> CyclicallyAnnealedRate | None:
    if name not in ("constant", "calr"):
        raise ValueError(f"schedule={name!r}; it takes 'constant' or 'calr'")
    return calr(plan) if name == "calr" else None


@dataclass(frozen=True)
class Grid:
    """What to run.

    Attributes
    ----------
    name : str
    dataset : str
        Name of the data for tables and figures.
    data : str
        "builtin" or a folder that `datasets.load` reads.
    seeds : tuple of int
    dim, hidden : int
    plan : Plan
    methods : tuple of (method, parameters)
    max_documents : int or None
        Of the built-in corpus.
    """

    name: str
    dataset: str
    data: str
    seeds: tuple[int, ...]
    dim: int
    hidden: int
    plan: Plan
    methods: tuple[tuple[str, dict[str, Any]], ...]
    max_documents: int | None = None


@dataclass(frozen=True)
class Run:
    """One cell of a grid."""

    method: str
    parameters: dict[str, Any]
    seed: int

    @property
    def name(self) -> str:
        """File name without its ending."""
        parts = [self.method, *(f"{k}={v}" for k, v in sorted(self.parameters.items())), f"seed={self.seed}"]
        return "_".join(parts)


def read_grid(path: str | os.PathLike, data: str | None = None) -> Grid:
    """Read a grid file; a list among a method's parameters stands for each of its entries.

    Parameters
    ----------
    path : path-like
    data : str, optional
        Folder in place of the grid's own data; one in place of the built-in corpus gives its name, too.

    Raises
    ------
    ValueError
        If a key is missing or unknown, or the grid has no "full" method for its offline ones.
    """
    content = tomllib.loads(Path(path).read_text(encoding="utf8"))
    methods = []
    for entry in content.pop("method", []):
        axes = {k: v if isinstance(v, list) else [v] for k, v in entry.items() if k != "name"}
        cells = itertools.product(*axes.values())
        methods += [(entry["name"], dict(zip(axes, cell, strict=True))) for cell in cells]
    if data is not None:
        if content.get("data") == "builtin":
            content["dataset"] = Path(data).resolve().name
        content["data"] = data
    try:
        plan = Plan(**content.pop("plan"))
        grid = Grid(plan=plan, methods=tuple(methods), seeds=tuple(content.pop("seeds")), **content)
    except (TypeError, KeyError) as error:
        raise ValueError(f"grid {path}: {error}") from error
    if "full" not in {method for method, _ in methods}:
        raise ValueError(f"grid {path}: it needs the method 'full', which the offline methods compress")
    return grid


@lru_cache(maxsize=1)
def _data(grid_data: str, max_documents: int | None, show: bool = False) -> datasets.TextDataset:
    if grid_data == "builtin":
        return datasets.load_builtin(max_documents=max_documents, progress=show)
    return datasets.load(grid_data)


def run_grid(grid: Grid, output: str | os.PathLike, *, jobs: int | None = None) -> list[dict[str, Any]]:
    """Run every cell of a grid, in parallel, taking up what is there; a failed run does not stop the rest.

    Parameters
    ----------
    grid : Grid
    output : path-like
        Folder; its `runs` are replaced once all are done.
    jobs : int, optional
        Processes of one thread each; by default as many as there are cores.

    Returns
    -------
    list of dict
        The records, in the order of the grid; a failed one has "error" in place of its results.
    """
    from joblib import Parallel, delayed, parallel_config
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    output = Path(output)
    work = output / ".work"
    data = _data(grid.data, grid.max_documents, sys.stderr.isatty())
    (work / "runs").mkdir(parents=True, exist_ok=True)
    runs = [Run(method, parameters, seed) for method, parameters in grid.methods for seed in grid.seeds]
    records = {run.name: _finished(work, grid, run, data.sha256) for run in runs}
    todo = [run for run in runs if records[run.name] is None]
    # One counter of steps a run, in a file that the workers share with this process.
    steps = np.memmap(work / "steps", np.int64, "w+", shape=len(runs))
    slots = {run.name: i for i, run in enumerate(runs)}
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    finished = threading.Event()
    with Progress(*columns, transient=True) as bar, parallel_config("loky", inner_max_num_threads=1):
        task = bar.add_task("", total=sum(_cost(grid, run) for run in todo))

        def show() -> None:
            while not finished.wait(0.5):
                bar.update(task, completed=int(steps.sum()), description=_tally(records))

        watcher = threading.Thread(target=show, daemon=True)
        watcher.start()
        try:
            # The offline runs compress what the full ones learnt.
            for phase in (lambda run: run.method == "full", lambda run: run.method != "full"):
                calls = (delayed(_run_safely)(grid, run, work, slots[run.name]) for run in todo if phase(run))
                for record in Parallel(jobs or os.cpu_count(), return_as="generator_unordered")(calls):
                    records[record["name"]] = record
                    bar.console.print(_line(record), highlight=False, soft_wrap=True)
        finally:
            finished.set()
            watcher.join()
    _publish(work, output / "runs", runs)
    return [record for record in records.values() if record is not None]


def _tally(records: dict[str, Any]) -> str:
    return f"{sum(record is not None for record in records.values())} of {len(records)} runs"


def _cost(grid: Grid, run: Run) -> int:
    """Return the steps that a run counts for in the progress bar."""
    return grid.plan.steps if run.method in TRAINED else max(1, grid.plan.steps // 20)


def _line(record: dict[str, Any]) -> str:
    if "error" in record:
        return f"{record['name']}: failed: {record['error'].splitlines()[-1]}"
    percent, ratio = record["metrics"]["accuracy"], record["compression_ratio"]
    return f"{record['name']}: {percent:.2f} % at ratio {ratio:.1f}, {record['seconds']['fit']:.1f} s"


def _publish(work: Path, final: Path, runs: list[Run]) -> None:
    """Put the finished runs in place of the last job's."""
    shutil.rmtree(final, ignore_errors=True)
    final.mkdir()
    for run in runs:
        shutil.move(work / "runs" / f"{run.name}.json", final / f"{run.name}.json")
    shutil.rmtree(work)


def _specification(grid: Grid, run: Run, sha256: str) -> dict[str, Any]:
    """All that decides a run's result but the program and the machine."""
    specification = {"dataset": grid.dataset, "sha256": sha256, "dim": grid.dim, "hidden": grid.hidden}
    return specification | {"plan": asdict(grid.plan), **asdict(run)}


def _finished(work: Path, grid: Grid, run: Run, sha256: str) -> dict[str, Any] | None:
    """Record of a run if it is there, whole, without error and of the same specification."""
    try:
        record = json.loads((work / "runs" / f"{run.name}.json").read_text(encoding="utf8"))
    except (OSError, ValueError):
        return None
    same = record.get("specification") == _specification(grid, run, sha256) and "error" not in record
    return record if same and (run.method != "full" or _checkpoint(work, run.seed).is_file()) else None


def _checkpoint(work: Path, seed: int) -> Path:
    return work / f"full_seed={seed}.npz"


def _full_state(work: Path, seed: int) -> dict[str, Array]:
    with np.load(_checkpoint(work, seed)) as file:
        return dict(file)


def _run_safely(grid: Grid, run: Run, work: Path, slot: int) -> dict[str, Any]:
    """Run one cell in a worker and write its record; an error becomes one."""
    steps = np.memmap(work / "steps", np.int64, "r+")

    def on_step(step: int) -> None:
        steps[slot] = step

    data = _data(grid.data, grid.max_documents)
    specification = _specification(grid, run, data.sha256)
    record = {"name": run.name, "specification": specification, "provenance": data.provenance}
    try:
        record |= execute(grid, run, data, work, on_step)
    except Exception:
        record["error"] = traceback.format_exc()
    steps[slot] = _cost(grid, run)
    record["environment"] = environment()
    write_atomically(work / "runs" / f"{run.name}.json", json.dumps(record, indent=1).encode())
    return record


def execute(
    grid: Grid, run: Run, data: datasets.TextDataset, work: Path, on_step: Callable[[int], None]
) -> dict[str, Any]:
    """Train or compress, and measure.

    Parameters
    ----------
    grid : Grid
    run : Run
    data : TextDataset
    work : Path
        Where the full classifiers are kept for the offline methods.
    on_step : callable
        Called with each finished step.

    Returns
    -------
    dict
        bits by part, compression_ratio, metrics, seconds, and by method evaluations and code_usage.
    """
    measure = _train if run.method in TRAINED else _compress
    record = measure(grid, run, data, work, on_step)
    record["process_peak_memory_bytes"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return record


def _embedding(run: Run, vocab_size: int, dim: int) -> Any:
    if run.method == "full":
        return FullEmbedding(vocab_size, dim, padding_id=PADDING, rng=run.seed)
    method = run.method.removeprefix("dpq-")
    return DPQEmbedding(vocab_size, dim, method=method, padding_id=PADDING, rng=run.seed, **run.parameters)


def _continued(grid: Grid, run: Run, data: datasets.TextDataset, work: Path) -> TextClassifier:
    """Full classifier of the seed, with the method's layer in place of its table."""
    state = _full_state(work, run.seed)
    parameters = {k: v for k, v in run.parameters.items() if k != "schedule"}
    embedding = CONTINUED[run.method](state["embedding.table"], data.counts, **parameters)
    model = TextClassifier(embedding, len(data.label_names), hidden=grid.hidden)
    model.load_head(state)
    return model


def _train(
    grid: Grid, run: Run, data: datasets.TextDataset, work: Path, on_step: Callable[[int], None]
) -> dict[str, Any]:
    n, classes = len(data.vocabulary), len(data.label_names)
    continued = run.method in CONTINUED
    start = time.perf_counter()
    # A step of a model that is thrown away, so that compilation does not count as training.
    few = _continued(grid, run, data, work) if continued else None
    compile_kernels(few or TextClassifier(_embedding(run, 8, grid.dim), classes, hidden=8))
    compiled = time.perf_counter() - start

    options: dict[str, Any] = {"rng": run.seed}
    if continued:
        model = _continued(grid, run, data, work)
        schedule = _schedule(grid.plan, run.parameters.get("schedule", "constant"))
        # Texts in another order than the full classifier saw them in.
        options = {"rng": np.random.default_rng([run.seed, 1]), "schedule": schedule, "evaluate_start": True}
    else:
        model = TextClassifier(_embedding(run, n, grid.dim), classes, hidden=grid.hidden, rng=run.seed)
    embedding = model.embedding

    def keep(model: TextClassifier) -> Any:
        if isinstance(embedding, FullEmbedding):
            return model.state()
        usage = embedding.code_usage() if isinstance(embedding, DPQEmbedding) else None
        return embedding.export(), usage, model.state()

    outcome = train(model, data, grid.plan, keep=keep, on_step=on_step, **options)
    record: dict[str, Any] = {
        "bits": {"table": 32 * n * grid.dim},
        "compression_ratio": 1.0,
        "metrics": {
            "accuracy": outcome.accuracy,
            "accuracy_best_test": outcome.accuracy_best_test,
            "accuracy_validation": outcome.accuracy_validation,
        },
        "seconds": {"compile": compiled, "fit": outcome.train_seconds},
        "best_step": outcome.best_step,
        "evaluations": outcome.evaluations,
    }
    if run.method == "full":
        np.savez(_checkpoint(work, run.seed), **outcome.snapshot)
    if isinstance(embedding, FullEmbedding):
        return record
    table, usage, state = outcome.snapshot
    # What counts is what the artefact does: the layer's own accuracy must come out of it again.
    model.load_head(state)
    exported = accuracy(
        model.predict(data.test, table=table.reconstruct(), max_tokens=grid.plan.max_tokens), data.test.labels
    )
    if exported != outcome.accuracy:
        raise AssertionError(f"the artefact has accuracy {exported}, the layer had {outcome.accuracy}")
    record |= _size(table)
    return record if usage is None else record | {"code_usage": _usage(usage)}


def _compress(
    grid: Grid, run: Run, data: datasets.TextDataset, work: Path, on_step: Callable[[int], None]
) -> dict[str, Any]:
    from baselines import REGISTRY

    state = _full_state(work, run.seed)
    full = state["embedding.table"]
    parameters = dict(run.parameters)
    weights = data.counts if parameters.pop("weighted", False) else None
    estimator = REGISTRY[run.method](**parameters)
    if "random_state" in estimator.get_params():
        estimator.set_params(random_state=run.seed)
    start = time.perf_counter()
    table = estimator.fit(full, sample_weight=weights).compress()
    fit = time.perf_counter() - start

    embedding = FullEmbedding(1, grid.dim)
    model = TextClassifier(embedding, len(data.label_names), hidden=grid.hidden)
    model.load_head(state)
    rows = table.reconstruct()
    metrics = {
        name: accuracy(model.predict(split, table=rows, max_tokens=grid.plan.max_tokens), split.labels)
        for name, split in (("accuracy", data.test), ("accuracy_validation", data.validation))
    }
    metrics["relative_error"] = relative_error(full, rows)
    metrics["weighted_relative_error"] = relative_error(full, rows, data.counts.astype(np.float64))
    record = _size(table) | {"metrics": metrics, "seconds": {"fit": fit}}
    if isinstance(table, ProductTable):
        record["code_usage"] = _usage(code_usage(table.codes, table.n_codes))
    return record


def _size(table: Compressed) -> dict[str, Any]:
    return {"bits": table.bits(), "compression_ratio": table.compression_ratio}


def _usage(usage: CodeUsage) -> dict[str, list[float]]:
    return {k: v.tolist() for k, v in asdict(usage).items()}


def compile_kernels(model: TextClassifier) -> None:
    """Train one step and evaluate, so that all kernels are compiled."""
    ids = np.array([[1, 2, 0], [3, 4, 5]]) % model.embedding.vocab_size
    model.loss_and_gradients((ids, np.zeros(2, np.int64)))
    Adam(model.params).step(model.grads)
    model.table()


@lru_cache(maxsize=1)
def environment() -> dict[str, Any]:
    """Versions, processor and commit that results come from."""
    packages = ("numpy", "numba", "scipy", "scikit-learn", "dpq-ref")
    here = Path(__file__).parent
    git = subprocess.run(["git", "rev-parse", "HEAD"], cwd=here, capture_output=True, text=True, check=False)
    return {
        "python": platform.python_version(),
        **{package: metadata.version(package) for package in packages},
        "backend": "numba",
        "threads_per_run": 1,
        "processor": _processor(),
        "system": f"{platform.system()} {platform.machine()}",
        "commit": git.stdout.strip() or None,
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf8").splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
