"""A grid (TOML) of methods x parameters x seeds -> results, one JSON a run. Never plots.

A method trained from scratch ("full", "dpq-sx", "dpq-vq") trains the classifier with its embedding. One of
`CONTINUED` takes the trained "full" classifier of its seed, puts its own layer in place of the table, and
trains the whole network on for as many steps again. An offline one (those of `baselines.REGISTRY`) compresses
the table of that classifier, whose other layers stay as they are. All end in a `Compressed` table and are
judged on it by the same code, at the best validation step.
"""

import os
import resource
import sys
import time
import tomllib
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np

from dpq_ref import datasets
from dpq_ref.backend import to_numpy
from dpq_ref.compressed import Compressed, ProductTable
from dpq_ref.kernels.reference import Array, Integers
from dpq_ref.layers import BlockEmbedding, DPQEmbedding, FullEmbedding, LowRankEmbedding, rank_kept
from dpq_ref.metrics import CodeUsage, accuracy, code_usage, judge
from dpq_ref.optim import Adam
from dpq_ref.schedules import CyclicallyAnnealedRate
from dpq_ref.tasks.classify import PADDING, Plan, TextClassifier, train
from figures.inside import inside, rounded
from figures.sweep import Record, Run, Sweep, cells
from figures.timing import timed_fit

GRIDS = Path(__file__).parent / "grids"


def full_table(table: Array, counts: Integers, *, backend: str | None) -> FullEmbedding:
    """Layer of "full-continued": the table as it is, to tell what training on alone brings."""
    layer = FullEmbedding(*table.shape, dtype=table.dtype, backend=backend)
    layer.params["table"][:] = layer.kernels.xp.asarray(table)
    return layer


def low_rank_factors(
    table: Array, counts: Integers, *, reduction: float, backend: str | None
) -> LowRankEmbedding:
    """Layer of "low-rank-in-network": the two best factors of a size (Acharya et al., 2019)."""
    n, d = table.shape
    return LowRankEmbedding.from_table(table, rank_kept(n, d, reduction), backend=backend)


def group_reduce_factors(
    table: Array, counts: Integers, *, backend: str | None, **parameters: Any
) -> BlockEmbedding:
    """Layer of "group-reduce-in-network": blocks and factors of GroupReduce (P. Chen et al., 2018)."""
    from baselines import GroupReduce

    blocks = GroupReduce(**parameters).fit(table, sample_weight=counts).compress()
    return BlockEmbedding.from_table(blocks, backend=backend)


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
    backend : {"numba", "numpy", "cupy"} or None
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
    backend: str | None = None


def read_grid(path: str | os.PathLike, data: str | None = None, backend: str | None = None) -> Grid:
    """Read a grid file; a list among a method's parameters stands for each of its entries.

    Parameters
    ----------
    path : path-like
    data : str, optional
        Folder in place of the grid's own data; one in place of the built-in corpus gives its name, too.
    backend : str, optional
        In place of the grid's own.

    Raises
    ------
    ValueError
        If a key is missing or unknown, or the grid has no "full" method for its offline ones.
    """
    content = tomllib.loads(Path(path).read_text(encoding="utf8"))
    methods = cells(content.pop("method", []))
    if data is not None:
        if content.get("data") == "builtin":
            content["dataset"] = Path(data).resolve().name
        content["data"] = data
    if backend is not None:
        content["backend"] = backend
    try:
        plan = Plan(**content.pop("plan"))
        grid = Grid(plan=plan, methods=methods, seeds=tuple(content.pop("seeds")), **content)
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


def run_grid(
    grid: Grid, output: str | os.PathLike, *, jobs: int | None = None, cluster: str | None = None
) -> list[Record]:
    """Run every cell of a grid; as `Sweep.__call__`."""
    data = _data(grid.data, grid.max_documents, sys.stderr.isatty())
    sweep = Sweep(
        partial(_execute, grid),
        partial(_specification, grid, data.sha256),
        _line,
        data.provenance,
        cost=partial(_cost, grid),
        phase=_phase,
        output_of=_left_by,
        backend=grid.backend,
    )
    runs = [Run(method, parameters, seed) for method, parameters in grid.methods for seed in grid.seeds]
    return sweep(runs, output, jobs=jobs, cluster=cluster)


def _phase(run: Run) -> int:
    """Full classifiers first: the others start from what they learnt."""
    return int(run.method != "full")


def _cost(grid: Grid, run: Run) -> int:
    """Return the steps that a run counts for in the progress bar."""
    return grid.plan.steps if run.method in TRAINED else max(1, grid.plan.steps // 20)


def _line(record: Record) -> str:
    percent, ratio = record["metrics"]["test_accuracy"], record["compression_ratio"]
    return f"{percent:.2f} % at ratio {ratio:.1f}, {record['seconds']['fit']:.1f} s"


def _specification(grid: Grid, sha256: str, run: Run) -> Record:
    """All that decides a run's result but the program and the machine."""
    specification = {"dataset": grid.dataset, "sha256": sha256, "dim": grid.dim, "hidden": grid.hidden}
    if grid.backend is not None:
        specification["backend"] = grid.backend
    return specification | {"plan": asdict(grid.plan), **asdict(run)}


def _left_by(run: Run, work: Path) -> Path | None:
    return _checkpoint(work, run.seed) if run.method == "full" else None


def _checkpoint(work: Path, seed: int) -> Path:
    return work / f"full_seed={seed}.npz"


def _full_state(work: Path, seed: int) -> dict[str, Array]:
    with np.load(_checkpoint(work, seed)) as file:
        return dict(file)


def _execute(grid: Grid, run: Run, work: Path, on_step: Callable[[int], None]) -> Record:
    return execute(grid, run, _data(grid.data, grid.max_documents), work, on_step)


def execute(
    grid: Grid, run: Run, data: datasets.TextDataset, work: Path, on_step: Callable[[int], None]
) -> Record:
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
        bits by part, compression_ratio, metrics, seconds, what `inside` keeps of the table, and by method
        evaluations, gradient_norms and code_usage.
    """
    measure = _train if run.method in TRAINED else _compress
    record = measure(grid, run, data, work, on_step)
    record["process_peak_memory_bytes"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return record


def _embedding(grid: Grid, run: Run, vocab_size: int) -> Any:
    common: dict[str, Any] = {"padding_id": PADDING, "rng": run.seed, "backend": grid.backend}
    if run.method == "full":
        return FullEmbedding(vocab_size, grid.dim, **common)
    method = run.method.removeprefix("dpq-")
    return DPQEmbedding(vocab_size, grid.dim, method=method, **common, **run.parameters)


def _continued(grid: Grid, run: Run, data: datasets.TextDataset, work: Path) -> TextClassifier:
    """Full classifier of the seed, with the method's layer in place of its table."""
    state = _full_state(work, run.seed)
    parameters = {k: v for k, v in run.parameters.items() if k != "schedule"}
    parameters["backend"] = grid.backend
    embedding = CONTINUED[run.method](state["embedding.table"], data.counts, **parameters)
    model = TextClassifier(embedding, len(data.label_names), hidden=grid.hidden)
    model.load_state(state, without=["embedding"])
    return model


def _train(
    grid: Grid, run: Run, data: datasets.TextDataset, work: Path, on_step: Callable[[int], None]
) -> dict[str, Any]:
    n, classes = len(data.vocabulary), len(data.label_names)
    continued = run.method in CONTINUED
    start = time.perf_counter()
    # A step of a model that is thrown away, so that compilation does not count as training.
    few = _continued(grid, run, data, work) if continued else None
    compile_kernels(few or TextClassifier(_embedding(grid, run, 8), classes, hidden=8))
    compiled = time.perf_counter() - start

    options: dict[str, Any] = {"rng": run.seed}
    if continued:
        model = _continued(grid, run, data, work)
        schedule = _schedule(grid.plan, run.parameters.get("schedule", "constant"))
        # Texts in another order than the full classifier saw them in.
        options = {"rng": np.random.default_rng([run.seed, 1]), "schedule": schedule, "evaluate_start": True}
    else:
        model = TextClassifier(_embedding(grid, run, n), classes, hidden=grid.hidden, rng=run.seed)
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
            "test_accuracy": outcome.accuracy,
            "test_accuracy_best": outcome.accuracy_best_test,
            "validation_accuracy": outcome.accuracy_validation,
        },
        "seconds": {"compile": compiled, "fit": outcome.train_seconds},
        "best_step": outcome.best_step,
        "evaluations": outcome.evaluations,
        "gradient_norms": {name: rounded(norms) for name, norms in outcome.gradient_norms.items()},
    }
    if run.method == "full":
        np.savez(_checkpoint(work, run.seed), **outcome.snapshot)
    # A DPQ table has a space of its own, in which nothing has moved from the full one.
    own = isinstance(embedding, DPQEmbedding)
    full = None if own else _full_state(work, run.seed)["embedding.table"]
    if isinstance(embedding, FullEmbedding):
        return record | inside(outcome.snapshot["embedding.table"], data, full)
    table, usage, state = outcome.snapshot
    # What counts is what the artefact does: the layer's own accuracy must come out of it again.
    model.load_state(state, without=["embedding"])
    rows = table.on(grid.backend).reconstruct()
    predicted = model.predict(data.test, table=rows, max_tokens=grid.plan.max_tokens)
    exported = accuracy(predicted, data.test.labels)
    if exported != outcome.accuracy:
        raise AssertionError(f"the artefact has accuracy {exported}, the layer had {outcome.accuracy}")
    record |= _size(table) | inside(to_numpy(rows), data, full)
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
    if grid.backend is not None and "backend" in estimator.get_params():  # the others are the host's
        estimator.set_params(backend=grid.backend)
    table, seconds = timed_fit(estimator, full, weights)

    embedding = FullEmbedding(1, grid.dim, backend=grid.backend)
    model = TextClassifier(embedding, len(data.label_names), hidden=grid.hidden)
    model.load_state(state, without=["embedding"])
    rows = table.reconstruct()
    metrics = {
        name: accuracy(model.predict(split, table=rows, max_tokens=grid.plan.max_tokens), split.labels)
        for name, split in (("test_accuracy", data.test), ("validation_accuracy", data.validation))
    }
    metrics |= judge(full, rows, data.counts, random_state=run.seed)
    record = _size(table) | {"metrics": metrics, "seconds": seconds}
    record |= inside(rows, data, full)
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
    Adam(model.params, backend=model.kernels).step(model.grads)
    model.table()
