"""Speed beside peers: our call and theirs in turn in one process, once both have been seen to agree.

The grid (TOML) lists works of `figures.workloads` with their parameters and goals. For each there is one row
a peer and number of threads: medians of wall and processor time, the median of the ratios of neighbouring
runs, and the floor: operations over the rate of a large matrix product, or bytes over that of a copy,
whichever takes longer. Where an entry asks for it, the peak memory of each side, in a process of its own.
"""

import csv
import json
import os
import sys
import time
import tomllib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

import click
import numpy as np

from dpq_ref.compressed import write_atomically
from dpq_ref.environment import environment
from figures.memory import peak
from figures.style import to_csv
from figures.sweep import cells

# Otherwise the threads of one side, waiting in a loop for more, take the cores from the side that is timed.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

GRID = Path(__file__).parent / "grids" / "speed.toml"
COLUMNS = (
    "name", "shape", "threads", "peer", "ours_ms", "ours_goal_ms", "peer_ms", "ratio", "goal", "floor_ms",
    "over_floor", "floor_goal", "ours_cpu_ms", "peer_cpu_ms", "runs", "ours_mb", "peer_mb",
)  # fmt: skip
# Keys of an entry of the grid that are not parameters of the work.
OWN = ("threads", "runs", "goals", "goal_ms", "floor_goal", "memory")
FEW = 3  # runs of what is long; it is warm enough once it has been seen to agree

Row = dict[str, Any]
Call = Callable[[], Any]


@dataclass(frozen=True)
class Work:
    """The same thing, done by us and by others.

    Attributes
    ----------
    shape : str
    ours : callable
    peers : dict of callables
    agree : callable
        Raises AssertionError unless all sides compute the same.
    operations : float
        Of the matrix products that cannot be avoided: two for each product and sum.
    traffic : float
        Bytes that must be read or written.
    """

    shape: str
    ours: Call
    peers: dict[str, Call] = field(default_factory=dict)
    agree: Call = lambda: None
    operations: float = 0.0
    traffic: float = 0.0

    @property
    def sides(self) -> dict[str, Call]:
        """All calls by name, ours first."""
        return {"ours": self.ours, **self.peers}


def in_turn(calls: dict[str, Call], runs: int) -> dict[str, np.ndarray]:
    """Wall and processor seconds of each call, (2, runs), in turn so that a slow moment meets all."""
    seconds = {name: np.empty((2, runs)) for name in calls}
    for i in range(0 if runs <= FEW else -2, runs):  # the first two are to warm
        for name, call in calls.items():
            start = time.perf_counter(), time.process_time()
            call()
            seconds[name][:, max(i, 0)] = time.perf_counter() - start[0], time.process_time() - start[1]
    return seconds


@contextmanager
def threads_of_all(n: int) -> Iterator[None]:
    """Let Numba, BLAS, OpenMP and torch, of what is imported, use n threads."""
    import numba
    from threadpoolctl import threadpool_limits

    torch = sys.modules.get("torch")
    before = numba.get_num_threads()
    numba.set_num_threads(n)
    if torch:
        torch.set_num_threads(n)
    try:
        with threadpool_limits(n):
            yield
    finally:
        numba.set_num_threads(before)


def rates(runs: int = 15) -> tuple[float, float]:
    """Operations of a matrix product in float32, and bytes of a copy, in a second."""
    a = np.random.default_rng(0).standard_normal((1024, 1024)).astype(np.float32)
    source = np.ones(1 << 24, np.float32)
    target = np.empty_like(source)
    seconds = in_turn({"product": lambda: a @ a, "copy": lambda: np.copyto(target, source)}, runs)
    product, copy = (float(np.median(wall)) for wall, _ in seconds.values())
    return 2 * 1024**3 / product, 2 * source.nbytes / copy


def measure(
    name: str, work: Work, *, threads: int, runs: int, entry: dict[str, Any], mb: dict[str, float]
) -> list[Row]:
    """Rows of a work, with the goals of its entry in the grid and megabytes of its sides, where known.

    There is one row for each peer, or one alone.
    """
    with threads_of_all(threads):
        seconds = in_turn(work.sides, runs)
        floor = 0.0
        if work.operations or work.traffic:
            operations, copied = rates()
            floor = max(work.operations / operations, work.traffic / copied)
    ours, ours_cpu = np.median(seconds["ours"], axis=1).tolist()
    own = {"name": name, "shape": work.shape, "threads": threads, "runs": runs}
    own |= {"ours_ms": 1e3 * ours, "ours_cpu_ms": 1e3 * ours_cpu, "ours_goal_ms": entry.get("goal_ms")}
    own["ours_mb"] = mb.get("ours")
    if floor:
        own |= {"floor_ms": 1e3 * floor, "over_floor": ours / floor, "floor_goal": entry.get("floor_goal")}
    return [
        own
        | {
            "peer": peer,
            "peer_ms": 1e3 * float(np.median(seconds[peer][0])),
            "peer_cpu_ms": 1e3 * float(np.median(seconds[peer][1])),
            "ratio": float(np.median(seconds[peer][0] / seconds["ours"][0])),
            "goal": entry.get("goals", {}).get(peer),
            "peer_mb": mb.get(peer),
        }
        for peer in work.peers
    ] or [own]


def megabytes(small: Work, work: Work, threads: int) -> dict[str, float]:
    """Peak memory of each side of a work, once it has done a small one."""
    return {side: peak(small.sides[side], call, threads) / 1e6 for side, call in work.sides.items()}


def run(grid: Path, *, runs: int, on_row: Callable[[Row], None]) -> list[Row]:
    """Measure all works of a grid file.

    Parameters
    ----------
    grid : path
        TOML: [[work]] with the name of a function of `figures.workloads` and its parameters, lists standing
        for each of their entries; `threads`; `goals`, the ratio to reach by peer; `goal_ms`, the time to
        take at most; `floor_goal`, how many times the floor it may take; `runs`, at most; `memory`, to
        measure that, too: the parameters to change for a small work, which comes before (`figures.memory`).
    runs : int
    on_row : callable
        Called with each row.
    """
    from figures import workloads

    found = []
    for entry in tomllib.loads(grid.read_text(encoding="utf8"))["work"]:
        parameters = {k: v for k, v in entry.items() if k not in OWN}
        for name, cell in cells([parameters]):
            make, counts = getattr(workloads, name), entry.get("threads", [1])
            work, memory = make(**cell), {}
            if "memory" in entry:  # before all calls: what one keeps for the next counts
                small = make(**cell | entry["memory"])
                memory = {threads: megabytes(small, work, threads) for threads in counts}
            work.agree()
            for threads in counts:
                at_most = min(runs, entry.get("runs", runs))
                rows = measure(
                    name, work, threads=threads, runs=at_most, entry=entry, mb=memory.get(threads, {})
                )
                for row in rows:
                    on_row(row)
                found += rows
    return found


def key(row: Row) -> tuple[str, ...]:
    """Tell what a row is of."""
    return tuple(str(row.get(column, "")) for column in ("name", "shape", "threads", "peer"))


def slower(row: Row, against: Path) -> bool:
    """Whether a ratio has fallen to less than half since a speed.csv was written."""
    with against.open(newline="", encoding="utf8") as file:
        before = {key(old): float(old["ratio"]) for old in csv.DictReader(file) if old["ratio"]}
    return row.get("ratio", np.inf) < before.get(key(row), 0) / 2


@click.command()
@click.option("--grid", type=click.Path(exists=True, dir_okay=False, path_type=Path), default=GRID)
@click.option(
    "--runs", type=click.IntRange(1), default=15, show_default=True, help="Timed calls of each side."
)
@click.option(
    "--output", type=click.Path(path_type=Path), default=Path("figures/results/speed"), show_default=True
)
@click.option(
    "--against",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="A speed.csv of before, with its .json: write nothing; fail where a ratio fell by more than half.",
)
def main(grid: Path, runs: int, output: Path, against: Path | None) -> None:
    """Time our work beside that of peers; writes speed.csv, and speed.json with the machine and versions."""

    def tell(row: Row) -> None:
        peer = f"{row['ratio']:6.2f}x {row['peer']}" if "peer" in row else ""
        floor = f"{row['over_floor']:6.1f} x floor" if "over_floor" in row else ""
        mb = " and ".join(
            f"{row[side]:.1f} MB" for side in ("ours_mb", "peer_mb") if row.get(side) is not None
        )
        click.echo(
            f"{row['name']} {row['shape']}, {row['threads']} threads: "
            f"{row['ours_ms']:.2f} ms {peer} {floor} {mb}"
        )

    rows = run(grid, runs=runs, on_row=tell)
    if against:
        before = json.loads(against.with_suffix(".json").read_text(encoding="utf8"))["environment"]
        if before["processor"] != environment()["processor"]:
            click.echo(f"{against} is of another processor, {before['processor']}: nothing to compare with")
            return
        fallen = [row for row in rows if slower(row, against)]
        if fallen:  # a busy machine, perhaps: once more, and longer
            click.echo("Again, because of " + ", ".join(row["shape"] for row in fallen))
            again = {key(row) for row in run(grid, runs=4 * runs, on_row=tell) if slower(row, against)}
            fallen = [row for row in fallen if key(row) in again]
        for row in fallen:
            click.echo(f"{' '.join(key(row))}: less than half the ratio of {against}", err=True)
        sys.exit(bool(fallen))
    output.mkdir(parents=True, exist_ok=True)
    shown = ({k: round(v, 4) if isinstance(v, float) else v for k, v in row.items()} for row in rows)
    write_atomically(output / "speed.csv", to_csv(shown, COLUMNS).encode())
    record = {"environment": environment(), "peers": versions()}
    write_atomically(output / "speed.json", json.dumps(record, indent=1).encode())


def versions() -> dict[str, str]:
    """Versions of the peers that are installed."""
    found = {}
    for package in ("torch", "faiss-cpu", "nanopq", "vector-quantize-pytorch", "gensim", "pandas", "pyarrow"):
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


if __name__ == "__main__":
    main()
