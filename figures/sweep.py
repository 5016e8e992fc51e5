"""Cells of a grid -> records, one JSON a run: in parallel, resumable, a failed run does not stop the rest.

Finished runs wait in `OUTPUT/.work` until all are there, so an interrupted job goes on where it was.
"""

import itertools
import json
import os
import shlex
import shutil
import sys
import threading
import traceback
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dpq_ref.compressed import write_atomically
from dpq_ref.environment import environment, of_backend
from dpq_ref.resume import on_cluster

Record = dict[str, Any]


@dataclass(frozen=True)
class Run:
    """One cell of a grid with one seed."""

    method: str
    parameters: dict[str, Any]
    seed: int

    @property
    def name(self) -> str:
        """File name without its ending."""
        parts = [self.method, *(f"{k}={v}" for k, v in sorted(self.parameters.items())), f"seed={self.seed}"]
        return "_".join(parts)


def cells(entries: Iterable[dict[str, Any]]) -> tuple[tuple[str, dict[str, Any]], ...]:
    """Methods with their parameters; a list among the parameters stands for each of its entries.

    Examples
    --------
    >>> cells([{"name": "product", "n_groups": [2, 4], "n_codes": 8}])
    (('product', {'n_groups': 2, 'n_codes': 8}), ('product', {'n_groups': 4, 'n_codes': 8}))
    """
    found = []
    for entry in entries:
        axes = {k: v if isinstance(v, list) else [v] for k, v in entry.items() if k != "name"}
        found += [
            (entry["name"], dict(zip(axes, cell, strict=True))) for cell in itertools.product(*axes.values())
        ]
    return tuple(found)


def command_line(arguments: list[str]) -> str:
    """Arguments of a process as one would type them; of absolute paths, which are of one machine, the end.

    Examples
    --------
    >>> command_line(["/home/me/bin/dpq-ref", "compare", "--data", "/home/me/ag_news", "--output", "a b"])
    "dpq-ref compare --data ag_news --output 'a b'"
    """
    return shlex.join(Path(word).name if os.path.isabs(word) else word for word in arguments)


@dataclass(frozen=True)
class Sweep:
    """What to do with the runs of a grid; all functions must be picklable.

    Attributes
    ----------
    execute : callable
        (run, folder to work in, called with each step) -> what the record gets.
    specification : callable
        Run -> all that decides its result but the program and the machine; a finished run is kept if that is
        still the same.
    line : callable
        Record without error -> a line that says how the run ended.
    provenance : dict
        What the data were made from.
    cost : callable
        Run -> the steps that it counts for.
    phase : callable
        Run -> number; those of a lower one are done first.
    output_of : callable
        (run, folder) -> a file that the run must leave in the folder for others, or None.
    backend : str or None
        That the runs compute on, for the records.
    """

    execute: Callable[[Run, Path, Callable[[int], None]], Record]
    specification: Callable[[Run], Record]
    line: Callable[[Record], str]
    provenance: Record
    cost: Callable[[Run], int] = lambda run: 1
    phase: Callable[[Run], int] = lambda run: 0
    output_of: Callable[[Run, Path], Path | None] = lambda run, work: None
    backend: str | None = None

    def __call__(
        self,
        runs: list[Run],
        output: str | os.PathLike,
        *,
        jobs: int | None = None,
        cluster: str | None = None,
    ) -> list[Record]:
        """Run all, taking up what is there.

        Parameters
        ----------
        runs : list of Run
        output : path-like
            Folder; its `runs` are replaced once all are done.
        jobs : int, optional
            Processes of one thread each; by default as many as there are cores, or all that a cluster has,
            or one for a device.
        cluster : str, optional
            Address of a Dask scheduler, as "dask://host:8786"; its workers see `output` under the same path.

        Returns
        -------
        list of dict
            The records, in the order of the runs; a failed one has "error" in place of its results.
        """
        from joblib import Parallel, delayed
        from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

        output = Path(output).resolve()
        work = output / ".work"
        (work / "runs").mkdir(parents=True, exist_ok=True)
        records = {run.name: self._finished(run, work) for run in runs}
        todo = [run for run in runs if records[run.name] is None]
        # One counter of steps a run, in a file that the workers share with this process.
        steps = np.memmap(work / "steps", np.int64, "w+", shape=max(1, len(runs)))
        slots = {run.name: i for i, run in enumerate(runs)}
        command = command_line(sys.argv)
        left = TextColumn("left"), TimeRemainingColumn()
        columns = TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn(), *left
        finished = threading.Event()
        n_jobs = jobs or (-1 if cluster else 1 if self.backend == "cupy" else os.cpu_count())
        with Progress(*columns, transient=True) as bar, _workers(cluster), warnings.catch_warnings():
            # A worker whose memory has grown ends, and another takes its place: nothing to warn of.
            warnings.filterwarnings("ignore", "A worker stopped")
            task = bar.add_task("", total=sum(self.cost(run) for run in todo))

            def show() -> None:
                while not finished.wait(0.5):
                    done = sum(record is not None for record in records.values())
                    text = f"{done} of {len(records)} runs"
                    bar.update(task, completed=int(steps.sum()), description=text)

            watcher = threading.Thread(target=show, daemon=True)
            watcher.start()
            try:
                for phase in sorted({self.phase(run) for run in todo}):
                    calls = [
                        delayed(self._run)(run, work, slots[run.name], command)
                        for run in todo
                        if self.phase(run) == phase
                    ]
                    for record in Parallel(n_jobs, return_as="generator_unordered")(calls):
                        records[record["name"]] = record
                        failed = "error" in record
                        end = f"failed: {record['error'].splitlines()[-1]}" if failed else self.line(record)
                        bar.console.print(f"{record['name']}: {end}", highlight=False, soft_wrap=True)
            finally:
                finished.set()
                watcher.join()
        _publish(work, output / "runs", runs)
        return [record for record in records.values() if record is not None]

    def _finished(self, run: Run, work: Path) -> Record | None:
        """Record of a run if it is there, whole, without error and of the same specification."""
        try:
            record = json.loads((work / "runs" / f"{run.name}.json").read_text(encoding="utf8"))
        except (OSError, ValueError):
            return None
        same = record.get("specification") == self.specification(run) and "error" not in record
        left = self.output_of(run, work)
        return record if same and (left is None or left.is_file()) else None

    def _run(self, run: Run, work: Path, slot: int, command: str) -> Record:
        """Run one cell in a worker and write its record; an error becomes one.

        A worker outlives a job that was killed, until its cell is done: the next job waits for it here.
        """
        import numba
        from filelock import FileLock

        from dpq_ref.backend import one_blas_thread, set_threads

        n_threads = numba.get_num_threads()
        set_threads(1)  # in this process, too, if it is the worker
        try:
            with FileLock(work / f"{run.name}.lock"), one_blas_thread:
                return self._finished(run, work) or self._measured(run, work, slot, command)
        finally:
            set_threads(n_threads)

    def _measured(self, run: Run, work: Path, slot: int, command: str) -> Record:
        steps = np.memmap(work / "steps", np.int64, "r+")

        def on_step(step: int) -> None:
            steps[slot] = step

        record = {"name": run.name, "specification": self.specification(run), "provenance": self.provenance}
        record["command"] = command
        try:
            record |= self.execute(run, work, on_step)
        except Exception:
            record["error"] = traceback.format_exc()
        steps[slot] = self.cost(run)
        record["environment"] = environment() | of_backend(self.backend) | {"threads_per_run": 1}
        write_atomically(work / "runs" / f"{run.name}.json", json.dumps(record, indent=1).encode())
        return record


@contextmanager
def _workers(cluster: str | None) -> Iterator[None]:
    """Where joblib runs what it is given: in processes of this machine, or on a Dask cluster."""
    from joblib import parallel_config

    if cluster is None:
        with parallel_config("loky", inner_max_num_threads=1):
            yield
    else:
        with on_cluster(cluster):
            yield


def _publish(work: Path, final: Path, runs: list[Run]) -> None:
    """Put the finished runs in place of the last job's, all of them at once."""
    asked = {f"{run.name}.json" for run in runs}
    for path in (work / "runs").iterdir():
        if path.name not in asked:  # of a grid that has been changed since
            path.unlink()
    shutil.rmtree(final, ignore_errors=True)
    (work / "runs").rename(final)
    shutil.rmtree(work)
