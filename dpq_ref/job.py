"""A training in a folder: it can be stopped at any step, and goes on as if it had not been.

config.json     what is trained; another configuration does not go on from here
metrics.jsonl   one line per evaluation, while it runs
checkpoints/    the last two, each with the whole state: model, optimizer, generators, history
best.npz        state of the model at the best evaluation
result.json     what came out, and all that it came from; at the end, as is
embedding.safetensors   the embedding of the best evaluation, compressed
"""

import json
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from dpq_ref import backend as backends
from dpq_ref import checkpoint
from dpq_ref.compressed import Compressed, write_atomically
from dpq_ref.environment import environment
from dpq_ref.kernels.reference import Array, Integers
from dpq_ref.layers import DPQEmbedding
from dpq_ref.metrics import METRICS, code_changes
from dpq_ref.network import Network
from dpq_ref.optim import Optimizer
from dpq_ref.trainer import History, train


@dataclass
class Progress:
    """How far a training has come.

    Attributes
    ----------
    evaluations : list of dict
        step, loss (mean since the last one), learning_rate, minutes (of training so far) and what `evaluate`
        returned. Of a model with a DPQ embedding also codes_changed, the share since the last evaluation or
        the start, and means over the groups of the share of codes in use, codes_used, and their
        code_perplexity.
    best_step : int
        Of the best evaluation, the earliest of several; 0 before the first one.
    done : bool
        All steps, or no further improvement: otherwise time was up.
    history : History
    codes : (vocab_size, D) integers or None
        Of the DPQ embedding at the last evaluation or the start.
    result : dict or None
        What is in result.json, if the training had come to its end before.
    """

    evaluations: list[dict[str, float]] = field(default_factory=list)
    best_step: int = 0
    done: bool = False
    history: History = field(default_factory=History)
    codes: Integers | None = None
    result: dict[str, Any] | None = None

    @property
    def best(self) -> dict[str, float]:
        """The best evaluation; empty before the first one."""
        return next((e for e in self.evaluations if e["step"] == self.best_step), {})


def fit(
    folder: str | os.PathLike,
    model: Network,
    optimizer: Optimizer,
    batches: Callable[[int], Iterator[Any]],
    *,
    config: dict[str, Any],
    steps: int,
    evaluate: Callable[[], dict[str, float]],
    metric: str,
    evaluate_every: int,
    schedule: Callable[[int], float] | None = None,
    clip_norm: float | None = None,
    patience: int | None = None,
    checkpoint_minutes: float = 5,
    max_minutes: float | None = None,
    on_start: Callable[[int], None] | None = None,
    on_step: Callable[[int], None] | None = None,
) -> Progress:
    """Train a model in a folder, or go on with the training that is there.

    Parameters
    ----------
    folder : path
    model : Network
        As it starts; its state is replaced by that of the last checkpoint, if there is one.
    optimizer : Optimizer
        Of the model's parameters.
    batches : callable
        Number of steps done before -> the batches from there on.
    config : dict
        JSON-able; whatever decides on the numbers of this training.
    steps : int
    evaluate : callable
        -> metrics by name, of the model as it is.
    metric : str
        The one, of these and of `dpq_ref.metrics.METRICS`, by which the best evaluation is chosen.
    evaluate_every : int
        Steps between evaluations; there is one after the last step, too.
    schedule, clip_norm
        As in `dpq_ref.trainer.train`.
    patience : int, optional
        Evaluations without a better one after which to stop.
    checkpoint_minutes : float
        Between checkpoints; there is one after each evaluation, too.
    max_minutes : float, optional
        Of this call: stop with a checkpoint when they are over.
    on_start : callable, optional
        Called with the number of all steps.
    on_step : callable, optional
        Called with the number of each finished step.

    Returns
    -------
    Progress

    Raises
    ------
    ValueError
        If the folder holds a training of another configuration, or its checkpoints are damaged.
    FloatingPointError
        If the loss or a gradient is NaN or infinite; it names step and parameter.
    """
    environment()  # kept from here on: at the end the working tree may be another
    folder = Path(folder)
    _claim(folder, config if patience is None else config | {"patience": patience})
    if on_start:
        on_start(steps)
    embedding: Any = getattr(model, "embedding", None)
    progress = _restore(folder, model, optimizer)
    if progress.codes is None and isinstance(embedding, DPQEmbedding):
        progress.codes = embedding.all_codes()
    started = saved = time.monotonic()
    sign = {"higher": 1, "lower": -1}[METRICS[metric].better]

    def judge(step: int, loss: float) -> None:
        found = {"step": step, "loss": loss, "learning_rate": optimizer.learning_rate}
        found |= {"minutes": progress.history.seconds / 60} | evaluate()
        if progress.codes is not None:
            codes = embedding.all_codes()
            found |= code_changes(codes, progress.codes, embedding.n_codes)
            progress.codes = codes
        better = not progress.best or sign * found[metric] > sign * progress.best[metric]
        progress.evaluations.append(found)
        if better:
            progress.best_step = step
            checkpoint.write(folder / "best.npz", model.state(), {"step": step})
        _log(folder, progress)

    def after(step: int) -> bool:
        nonlocal saved
        judged = bool(progress.evaluations) and progress.evaluations[-1]["step"] == step
        worse = sum(e["step"] > progress.best_step for e in progress.evaluations)
        progress.done = step == steps or (patience is not None and judged and worse >= patience)
        now = time.monotonic()
        late = max_minutes is not None and now - started >= 60 * max_minutes
        if judged or late or now - saved >= 60 * checkpoint_minutes:
            _save(folder, model, optimizer, progress)
            saved = now
        if on_step:
            on_step(step)
        return progress.done or late

    if progress.done and (folder / "result.json").is_file():
        progress.result = json.loads((folder / "result.json").read_text(encoding="utf8"))
    if not progress.done:
        train(
            model,
            batches(len(progress.history.losses)),
            optimizer,
            steps=steps,
            schedule=schedule,
            clip_norm=clip_norm,
            evaluate_every=evaluate_every,
            evaluate=judge,
            on_step=after,
            history=progress.history,
        )
    return progress


def best(folder: str | os.PathLike) -> dict[str, Array]:
    """State of the model at the best evaluation of a training."""
    return checkpoint.read(Path(folder) / "best.npz")[0]


def finish(
    folder: str | os.PathLike,
    progress: Progress,
    found: dict[str, Any],
    table: Compressed,
    provenance: dict[str, Any],
) -> dict[str, Any]:
    """Write the result of a training, and its compressed embedding.

    Parameters
    ----------
    folder : path
    progress : Progress
    found : dict
        Test metrics and whatever else the task has to say, JSON-able.
    table : Compressed
    provenance : dict
        Of the data.

    Returns
    -------
    dict
        `found`, with minutes of training, size of the table, configuration, evaluations and environment.
    """
    folder = Path(folder)
    table.save(folder / "embedding.safetensors")
    result = {
        **found,
        "compression_ratio": table.compression_ratio,
        "bits": table.bits(),
        "minutes": progress.history.seconds / 60,
        "best_step": progress.best_step,
        "steps": len(progress.history.losses),
        "evaluations": progress.evaluations,
        "config": json.loads((folder / "config.json").read_text(encoding="utf8")),
        "data": provenance,
        "environment": environment(),
    }
    write_atomically(folder / "result.json", json.dumps(result, indent=1).encode())
    return result


def _claim(folder: Path, config: dict[str, Any]) -> None:
    """Write the configuration of a new training, or make sure that it is that of the one in the folder."""
    path, config = folder / "config.json", json.loads(json.dumps(config))
    folder.mkdir(parents=True, exist_ok=True)
    if not path.exists():
        write_atomically(path, json.dumps(config, indent=2).encode())
        return
    there = json.loads(path.read_text(encoding="utf8"))
    keys = sorted(k for k in there.keys() | config.keys() if there.get(k) != config.get(k))
    if keys:
        differences = "; ".join(f"{k} {there.get(k)!r} there, {config.get(k)!r} here" for k in keys)
        raise ValueError(f"{folder} holds another training ({differences}); choose another folder")


def _log(folder: Path, progress: Progress) -> None:
    lines = "".join(json.dumps(evaluation) + "\n" for evaluation in progress.evaluations)
    write_atomically(folder / "metrics.jsonl", lines.encode())


def _save(folder: Path, model: Network, optimizer: Optimizer, progress: Progress) -> None:
    arrays = {f"model.{name}": array for name, array in model.state().items()}
    for name, state in optimizer.state.items():
        arrays |= {f"optimizer.{name}.{i}": backends.to_numpy(array) for i, array in enumerate(state)}
    arrays["losses"] = np.array(progress.history.losses)
    if progress.codes is not None:
        arrays["codes"] = progress.codes.astype(np.min_scalar_type(progress.codes.max()))
    meta = {
        "optimizer_steps": optimizer.steps,
        "generators": {name: rng.bit_generator.state for name, rng in model.generators.items()},
        "evaluations": progress.evaluations,
        "best_step": progress.best_step,
        "done": progress.done,
        "seconds": progress.history.seconds,
    }
    checkpoint.save(folder / "checkpoints", len(progress.history.losses), arrays, meta)


def _restore(folder: Path, model: Network, optimizer: Optimizer) -> Progress:
    found = checkpoint.latest(folder / "checkpoints")
    if found is None:
        return Progress()
    arrays, meta = found
    model.load_state({n.removeprefix("model."): a for n, a in arrays.items() if n.startswith("model.")})
    for name, state in optimizer.state.items():
        for i, array in enumerate(state):
            array[...] = backends.array_module(array).asarray(arrays[f"optimizer.{name}.{i}"])
    optimizer.steps = meta["optimizer_steps"]
    for name, rng in model.generators.items():
        rng.bit_generator.state = meta["generators"][name]
    history = History(arrays["losses"].tolist(), meta["seconds"])
    codes: Any = arrays.get("codes")
    progress = Progress(meta["evaluations"], meta["best_step"], meta["done"], history, codes)
    _log(folder, progress)
    return progress
