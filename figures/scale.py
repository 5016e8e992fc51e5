"""How time and memory grow: each work with one of its sizes from small to large, and the exponent fitted.

`python -m figures.scale` writes scale.csv, scale.json (machine, versions) and the figure. Time: the median of
some calls, one thread. Memory: the most that the arrays made by one call take together (tracemalloc). An
exponent is the slope of the logarithms over the larger half of the sizes, where what a call costs at least no
longer counts.
"""

import json
import time
import tracemalloc
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import click
import numpy as np
from threadpoolctl import threadpool_limits

from baselines import LowRank, ProductQuantizer
from dpq_ref import DPQEmbedding
from dpq_ref.compressed import ProductTable, write_atomically
from dpq_ref.environment import environment
from figures.style import RC, save_figure

SEED = 0
DPQ = {"tokens": 4096, "dim": 256, "n_groups": 32, "n_codes": 32}
TABLE = {"n": 20_000, "tokens": 4096, "dim": 64, "n_groups": 16, "n_codes": 32}
SERIES: list[tuple[str, str, Any]] = [  # work, the size that grows, its values
    *(("dpq-sx", *axis) for axis in (
        ("tokens", [2**i for i in range(8, 17)]),
        ("dim", [2**i for i in range(6, 12)]),
        ("n_groups", [2**i for i in range(1, 8)]),
        ("n_codes", [2**i for i in range(1, 10)]),
    )),
    *(("dpq-vq", *axis) for axis in (
        ("tokens", [2**i for i in range(8, 17)]),
        ("n_codes", [2**i for i in range(1, 10)]),
    )),
    ("product quantization, fit", "n", [10_000, 30_000, 100_000, 300_000]),
    ("product quantization, encode", "n", [10_000, 100_000, 1_000_000, 4_000_000]),
    ("product quantization, encode", "n_codes", [2**i for i in range(2, 11)]),
    ("look-up", "tokens", [2**i for i in range(8, 21)]),
    ("low rank", "n", [10_000, 100_000, 1_000_000, 4_000_000]),
]  # fmt: skip


def call_of(work: str, **sizes: int) -> Callable[[], Any]:
    """One call of a work at a size; whatever it needs is made beforehand."""
    rng = np.random.default_rng(SEED)
    if work.startswith("dpq"):
        s = DPQ | sizes
        method = work[-2:]
        layer = DPQEmbedding(
            s["tokens"], s["dim"], n_groups=s["n_groups"], n_codes=s["n_codes"], method=method, init=1.0
        )
        ids = rng.permutation(s["tokens"])  # all distinct: the most work for so many tokens
        d_output = rng.standard_normal((s["tokens"], s["dim"]), np.float32)

        def step() -> None:
            layer.forward(ids)
            layer.backward(d_output)

        return step
    s = TABLE | sizes
    if work == "look-up":
        codes = rng.integers(0, s["n_codes"], (s["n"], s["n_groups"]))
        values = rng.standard_normal((s["n_groups"], s["n_codes"], s["dim"] // s["n_groups"]), np.float32)
        table, ids = ProductTable.from_codes(codes, values), rng.integers(0, s["n"], s["tokens"])
        return lambda: table.lookup(ids)
    rows = rng.standard_normal((s["n"], s["dim"]), np.float32)
    if work == "low rank":
        return lambda: LowRank(rank=8).fit(rows)
    quantizer = ProductQuantizer(n_groups=s["n_groups"], n_codes=s["n_codes"], max_iter=2, random_state=SEED)
    if work.endswith("fit"):
        return lambda: quantizer.fit(rows)
    quantizer.fit(rows[:20_000])
    return lambda: quantizer.transform(rows)


def measure(work: str, axis: str, value: int, runs: int) -> dict[str, Any]:
    """Milliseconds and megabytes of one call."""
    call = call_of(work, **{axis: value})
    call()  # compiles and imports, whose memory is not the work's
    tracemalloc.start()
    call()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    seconds: list[float] = []
    while len(seconds) < runs and sum(seconds) < 5:
        start = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - start)
    return {
        "work": work, "axis": axis, "value": value, "milliseconds": 1e3 * float(np.median(seconds)),
        "megabytes": peak / 1e6, "runs": len(seconds),
    }  # fmt: skip


def exponent(values: Iterable[float], costs: Iterable[float]) -> float:
    """Slope of the logarithms over the larger half of the values, by least squares.

    Examples
    --------
    >>> round(exponent([1, 2, 4, 8], [9, 20, 80, 320]), 3)
    2.0
    """
    x, y = np.log(list(values)), np.log(list(costs))
    half = len(x) // 2
    return float(np.polyfit(x[half:], y[half:], 1)[0])


def draw(rows: list[dict[str, Any]], output: Path) -> list[Path]:
    """Time above, memory below; a column for each size that grows."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot
    from matplotlib.ticker import NullFormatter

    axes_of: dict[str, dict[str, list[dict[str, Any]]]] = {}
    for row in rows:
        axes_of.setdefault(row["axis"], {}).setdefault(row["work"], []).append(row)
    works = list(dict.fromkeys(row["work"] for row in rows))
    with pyplot.rc_context(RC):
        figure, panels = pyplot.subplots(
            2, len(axes_of), figsize=(2.8 * len(axes_of), 5.4), sharex="col", sharey="row", squeeze=False
        )
        for (axis, lines), column in zip(axes_of.items(), panels.T, strict=True):
            for axes, cost in zip(column, ("milliseconds", "megabytes"), strict=True):
                for work, line in lines.items():
                    values, costs = [r["value"] for r in line], [r[cost] for r in line]
                    label = f"{work}: {exponent(values, costs):.2f}"
                    colour = f"C{works.index(work)}"
                    axes.plot(values, costs, "o-", ms=3, lw=1, color=colour, label=label)
                axes.set_xscale("log")
                axes.set_yscale("log")
                for ticks in (axes.xaxis, axes.yaxis):
                    ticks.set_minor_formatter(NullFormatter())
                axes.legend(fontsize=6, title="exponent", title_fontsize=6, handlelength=1)
            column[1].set_xlabel({"n": "rows of the table", "tokens": "tokens, all distinct"}.get(axis, axis))
        panels[0, 0].set_ylabel("milliseconds")
        panels[1, 0].set_ylabel("megabytes")
        return save_figure(figure, output / "scale", rows)


@click.command()
@click.option("--runs", type=click.IntRange(1), default=7, show_default=True, help="Timed calls, at most.")
@click.option(
    "--output", type=click.Path(path_type=Path), default=Path("figures/results/speed"), show_default=True
)
def main(runs: int, output: Path) -> None:
    """Measure how time and memory grow with the sizes of each work, and draw it."""
    rows = []
    with threadpool_limits(1):
        import numba

        numba.set_num_threads(1)
        for work, axis, values in SERIES:
            for value in values:
                rows.append(measure(work, axis, value, runs))
                click.echo(
                    "{work}, {axis} {value}: {milliseconds:.2f} ms, {megabytes:.2f} MB".format(**rows[-1])
                )
    output.mkdir(parents=True, exist_ok=True)
    write_atomically(output / "scale.json", json.dumps(environment(), indent=1).encode())
    for path in draw(rows, output):
        click.echo(path)


if __name__ == "__main__":
    main()
