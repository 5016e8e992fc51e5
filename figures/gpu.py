"""Speed on a GPU beside peers on the same one, and floors: `make gpu-bench`.

As `figures.speed`, whose tables and figures it shares, but timed by events of the device: what lies between
two of them is the work and the gaps between its kernels. Peers are called in turn with ours, after a warm-up,
once all have been seen to agree. The floor is operations over the rate of a large matrix product, or bytes
over that of a copy, whichever takes longer, both measured here. torch starts its work on the same stream, the
default one.
"""

import json
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import numpy as np

from dpq_ref import backend
from dpq_ref.compressed import write_atomically
from dpq_ref.environment import environment, of_backend
from figures import speed
from figures.speed import Call, Row, Work
from figures.style import to_csv
from figures.sweep import cells

GRID = Path(__file__).parent / "grids" / "gpu.toml"
WARM = 3  # calls that are not timed
SIDE = 8192  # of the matrices whose product gives the rate
COPIED = 1 << 28  # bytes of the copy that gives the rate


def in_turn(calls: dict[str, Call], runs: int) -> dict[str, np.ndarray]:
    """Milliseconds of each call between two events of the device, (runs,), in turn."""
    import cupy

    found = {name: np.empty(runs) for name in calls}
    for i in range(-WARM, runs):
        for name, call in calls.items():
            start, end = cupy.cuda.Event(), cupy.cuda.Event()
            start.record()
            call()
            end.record()
            end.synchronize()
            found[name][max(i, 0)] = cupy.cuda.get_elapsed_time(start, end)
    return found


def rates(runs: int, *, side: int = SIDE, copied: int = COPIED) -> dict[str, float]:
    """Operations of a matrix product in float32, and bytes read and written by a copy, in a second."""
    import cupy

    a, source = cupy.ones((side, side), np.float32), cupy.ones(copied, np.uint8)
    out, target = cupy.empty_like(a), cupy.empty_like(source)
    times = in_turn(
        {"product": lambda: cupy.matmul(a, a, out=out), "copy": lambda: cupy.copyto(target, source)}, runs
    )
    product, copy = (float(np.median(ms)) / 1e3 for ms in times.values())
    return {"operations_per_second": 2 * side**3 / product, "bytes_per_second": 2 * copied / copy}


def measure(name: str, work: Work, *, device: str, runs: int, rate: dict[str, float]) -> list[Row]:
    """Rows of a work, one for each peer, or one alone."""
    times = in_turn({"ours": work.ours, **work.peers}, runs)
    operations, copied = rate.values()
    floor = 1e3 * max(work.operations / operations, work.traffic / copied)
    ours = float(np.median(times["ours"]))
    own: Row = {"name": name, "shape": work.shape, "threads": device, "runs": runs, "ours_ms": ours}
    own |= {"floor_ms": floor, "over_floor": ours / floor}
    return [
        own
        | {
            "peer": peer,
            "peer_ms": float(np.median(times[peer])),
            "ratio": float(np.median(times[peer] / times["ours"])),
        }
        for peer in work.peers
    ] or [own]


def run(grid: Path, *, device: str, runs: int, rate: dict[str, float], on_row: Callable[[Row], None]) -> None:
    """Check and measure all works of a grid file, functions of `figures.workloads.gpu` with parameters."""
    from figures.workloads import gpu

    for name, cell in cells(tomllib.loads(grid.read_text(encoding="utf8"))["work"]):
        work = getattr(gpu, name)(**cell)
        work.agree()
        for row in measure(name, work, device=device, runs=runs, rate=rate):
            on_row(row)


@click.command()
@click.option("--grid", type=click.Path(exists=True, dir_okay=False, path_type=Path), default=GRID)
@click.option("--runs", type=click.IntRange(1), default=30, show_default=True, help="Timed calls each.")
@click.option(
    "--output", type=click.Path(path_type=Path), default=Path("figures/results/gpu"), show_default=True
)
def main(grid: Path, runs: int, output: Path) -> None:
    """Time work on a GPU; writes speed.csv, and speed.json with device, driver and versions."""
    try:
        backend.get("cupy")
    except (ImportError, RuntimeError) as error:
        raise click.ClickException(str(error)) from error
    about: dict[str, Any] = of_backend("cupy")
    rate, rows = rates(runs), []

    def tell(row: Row) -> None:
        peer = f", {row['ratio']:.2f}x {row['peer']}" if "peer" in row else ""
        click.echo(
            f"{row['name']} {row['shape']}: {row['ours_ms']:.3f} ms, {row['over_floor']:.1f} x floor{peer}"
        )
        rows.append({k: round(v, 4) if isinstance(v, float) else v for k, v in row.items()})

    run(grid, device=about["device"], runs=runs, rate=rate, on_row=tell)
    output.mkdir(parents=True, exist_ok=True)
    write_atomically(output / "speed.csv", to_csv(rows, speed.COLUMNS).encode())
    record = {"environment": environment() | about, "peers": speed.versions(), "rates": rate}
    write_atomically(output / "speed.json", json.dumps(record, indent=1).encode())


if __name__ == "__main__":
    main()
