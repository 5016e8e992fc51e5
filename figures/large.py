"""Tables larger than memory: time and peak memory of `dpq-ref compress` on a mapped .npy.

`python -m figures.large` makes a table of 400,000 x 300, compresses it by each method in a process of its
own, and draws what came out; `--rows 4000000` does the same with one of 4.8 GB. A run that has its record in
the output is not repeated. Memory is the largest anonymous resident memory (`figures.memory`, read fifty
times a second): what the process has made itself, all arrays, libraries and buffers. Pages of the table are
not in it: they belong to the file, and the system takes them back when it needs room.
"""

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import click
import numpy as np

from dpq_ref.compressed import write_atomically
from dpq_ref.environment import environment
from figures.memory import anonymous
from figures.style import RC, save_figure

DIM = 300
SEED = 0
INTERVAL = 0.02  # seconds between two looks at the memory
RUNS: dict[str, list[str]] = {  # label: arguments of `dpq-ref compress`
    "product quantization, 256 rows a code": ["pq", "--ratio", "16", "--parameter", "rows_per_code=256"],
    "product quantization, all rows": ["pq", "--ratio", "16", "--parameter", "rows_per_code=null"],
    "low rank": ["low-rank", "--ratio", "16"],
    "uniform scalar, 8 bits": ["scalar", "--parameter", "n_bits=8"],
    "IIQ, rotation from 131,072 rows": ["iiq", "--ratio", "32", "--parameter", "max_train_rows=131072"],
    "IIQ, all rows": ["iiq", "--ratio", "32", "--parameter", "max_train_rows=null"],
    "GroupReduce, 4 rounds": ["group-reduce", "--ratio", "16", "--parameter", "max_iter=4"],
}
HOLDS_ALL = {label for label in RUNS if label.endswith("all rows")}  # not for tables larger than memory


def make_table(path: Path, n: int) -> None:
    """Write an .npy of n rows, 64 clusters and 40 strong directions and noise, block by block."""
    rng = np.random.default_rng(SEED)
    directions = (
        rng.standard_normal((40, DIM), np.float32) / np.sqrt(np.arange(1, 41, dtype=np.float32))[:, None]
    )
    centres = rng.standard_normal((64, DIM), np.float32)
    header = {"descr": "<f4", "fortran_order": False, "shape": (n, DIM)}
    with path.open("wb") as file:
        np.lib.format.write_array_header_1_0(file, header)
        for start in range(0, n, 50_000):
            m = min(50_000, n - start)
            rows = rng.standard_normal((m, 40), np.float32) @ directions + centres[rng.integers(0, 64, m)]
            rows += np.float32(0.3) * rng.standard_normal((m, DIM), np.float32)
            file.write(rows.tobytes())


def compress(table: Path, output: Path, arguments: list[str]) -> dict[str, Any]:
    """Run `dpq-ref compress` in a process of its own: what it says, its seconds, its peak of memory."""
    method, *rest = arguments
    command = [sys.executable, "-c", "from dpq_ref.cli import main; main()", "compress", str(table)]
    command += ["--output", str(output), "--json", "--method", method, *rest]
    start, peak = time.perf_counter(), 0
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        while process.poll() is None:
            peak = max(peak, anonymous(process.pid))
            time.sleep(INTERVAL)
        said = process.stdout.read() if process.stdout else ""
    if process.returncode:
        raise RuntimeError(f"{' '.join(command)} ended with {process.returncode}")
    seconds = time.perf_counter() - start
    return json.loads(said) | {"seconds": round(seconds, 1), "anonymous_bytes": peak}


def draw(folder: Path) -> list[Path]:
    """Minutes on the left, memory on the right; a mark for each size of the table."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot
    from matplotlib.ticker import LogLocator, NullFormatter

    records = [json.loads(path.read_text(encoding="utf8")) for path in (folder / "measured").glob("*.json")]
    rows = [
        {
            "run": record["run"], "rows": record["rows"], "table_gb": record["table_bytes"] / 1e9,
            "minutes": record["seconds"] / 60, "anonymous_gb": record["anonymous_bytes"] / 1e9,
            "compression_ratio": record["compression_ratio"], "relative_error": record["relative_error"],
            "learned_from": record["learned_from"],
        }
        for record in records
    ]  # fmt: skip
    rows.sort(key=lambda row: (row["rows"], [*RUNS].index(row["run"])))
    sizes = sorted({row["rows"] for row in rows})
    shown = [run for run in RUNS if run in {row["run"] for row in rows}]
    with pyplot.rc_context(RC):
        figure, panels = pyplot.subplots(1, 2, figsize=(7.2, 2.9), sharey=True)
        for axes, cost, name in zip(
            panels, ("minutes", "anonymous_gb"), ("minutes", "anonymous memory at most, GB"), strict=True
        ):
            for i, n in enumerate(sizes):
                mine = [row for row in rows if row["rows"] == n]
                at = [-shown.index(row["run"]) for row in mine]
                style = {"marker": "os^D"[i % 4], "color": f"C{i}", "mfc": "white" if i == 0 else f"C{i}"}
                label = f"{n:,} rows, {mine[0]['table_gb']:.2g} GB"
                axes.plot([row[cost] for row in mine], at, ls="", label=label, **style)
                if cost == "anonymous_gb":
                    axes.axvline(mine[0]["table_gb"], color=f"C{i}", ls=("--", ":")[i % 2], lw=1)
            axes.set_xscale("log")
            axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axes.xaxis.set_major_formatter("{x:g}")
            axes.xaxis.set_minor_formatter(NullFormatter())
            axes.set_xlabel(name)
        panels[0].set_yticks(-np.arange(len(shown)), shown)
        panels[0].set_ylim(-len(shown) + 0.5, 0.5)
        figure.legend(
            *panels[0].get_legend_handles_labels(),
            loc="upper center",
            bbox_to_anchor=(0.6, 1.03),
            ncols=len(sizes),
        )
        return save_figure(figure, folder / "large", rows)


@click.command()
@click.option("--rows", type=click.IntRange(1), default=400_000, show_default=True, help="Of the table.")
@click.option(
    "--folder",
    type=click.Path(path_type=Path, file_okay=False, exists=True),
    help="Where the table is made, and removed; it takes 1,200 bytes a row. Default: that of the system.",
)
@click.option(
    "--output", type=click.Path(path_type=Path), default=Path("figures/results/large"), show_default=True
)
def main(rows: int, folder: Path | None, output: Path) -> None:
    """Measure time and memory of `dpq-ref compress` on a large table, and draw it."""
    (output / "measured").mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as place:
        table = Path(place, "table.npy")
        for i, (run, arguments) in enumerate(RUNS.items()):
            record = output / "measured" / f"{rows}-{i}-{arguments[0]}.json"
            if record.exists() or (run in HOLDS_ALL and 4 * DIM * rows > 1 << 30):
                continue
            if not table.exists():
                make_table(table, rows)
            result = compress(table, Path(place, "out.safetensors"), arguments)
            about = {"run": run, "arguments": arguments, "table_bytes": 4 * DIM * rows, **environment()}
            facts = {name: value for name, value in result.items() if name not in ("table", "file", "arrays")}
            write_atomically(record, json.dumps(about | facts, indent=1).encode())
            click.echo(f"{run}: {result['seconds'] / 60:.1f} min, {result['anonymous_bytes'] / 1e9:.2f} GB")
    for path in draw(output):
        click.echo(path)


if __name__ == "__main__":
    main()
