"""Results of compressed tables -> one figure of all methods, figures of their own for ablations, table, CSV.

Reads records, never computes a result. A panel shows a measure against the compression ratio: every cell
faded, through the best of each method at each budget a line, and the Pareto front as a grey band. In the
panel of the error by frequency stand the fits by frequency, in all others the plain ones.
"""

import io
import json
import os
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dpq_ref.compressed import write_atomically
from dpq_ref.metrics import METRICS, Metric
from figures.plot import pareto, ratio_axis
from figures.style import RC, STYLES, read_records, save_figure, style_of, to_csv

Row = dict[str, Any]

PANELS = (
    "relative_error",
    "weighted_relative_error",
    "neighbour_overlap",
    "eigenspace_overlap",
    "word_similarity",
    "analogies_add",
    "fit_seconds",
    "lookup_microseconds",
)
COSTS = ("fit_seconds", "lookup_microseconds")  # without a front
LEAST_ERROR = 1e-5  # that is drawn: half precision is far below
LOGARITHMIC = ("relative_error", "weighted_relative_error", "fit_seconds", "lookup_microseconds")


@dataclass(frozen=True)
class Cell:
    """One method with one set of parameters, over its seeds.

    Attributes
    ----------
    method : str
    parameters : dict
    ratio : float, mean compression ratio
    values : dict of metric to (mean, standard deviation over seeds)
    bits : dict, by part, of the first seed
    n_seeds : int
    """

    method: str
    parameters: dict[str, Any]
    ratio: float
    values: dict[str, tuple[float, float]]
    bits: dict[str, int]
    n_seeds: int = 1

    @property
    def weighted(self) -> bool:
        """Whether it was fitted by frequency."""
        return bool(self.parameters.get("weighted"))

    @property
    def budget(self) -> float:
        """Ratio or bits an entry that were asked for, or else the ratio that there is."""
        return float(self.parameters.get("ratio", self.parameters.get("n_bits", self.ratio)))

    @property
    def text(self) -> str:
        """Parameters as text, without those that the figures show otherwise."""
        hidden = ("figure", "weighted", "ratio")
        return " ".join(f"{k}={v}" for k, v in sorted(self.parameters.items()) if k not in hidden)


def values_of(record: dict[str, Any]) -> dict[str, float]:
    """All that a record measures, by name."""
    seconds = record["seconds"]
    cost = {name: record[name] for name in ("flops_per_lookup", "bytes_per_lookup", "file_bytes")}
    times = {"fit_seconds": seconds["fit"], "lookup_microseconds": 1e3 * seconds["lookup"]}  # of 1,000 words
    return record["metrics"] | times | cost


def cells_of(records: Iterable[dict[str, Any]]) -> list[Cell]:
    """Gather records over seeds, in their order."""
    groups: dict[tuple[str, str], list[dict[str, Any]]] = defaultdict(list)
    for record in records:
        run = record["specification"]
        groups[run["method"], json.dumps(run["parameters"], sort_keys=True)].append(record)
    cells = []
    for (method, parameters), group in groups.items():
        values = [values_of(record) for record in group]
        cells.append(
            Cell(
                method,
                json.loads(parameters),
                float(np.mean([record["compression_ratio"] for record in group])),
                {name: _spread([v[name] for v in values if name in v]) for name in values[0]},
                group[0]["bits"],
                len(group),
            )
        )
    return cells


def _spread(values: list[float]) -> tuple[float, float]:
    return float(np.mean(values)), float(np.std(values, ddof=1)) if len(values) > 1 else 0.0


def shown(cells: Iterable[Cell], metric: str) -> list[Cell]:
    """Cells of a panel: of each method those fitted as the metric weighs, or else all."""
    cells = [cell for cell in cells if metric in cell.values]
    wanted = metric.startswith("weighted_")
    fitting = {cell.method for cell in cells if cell.weighted == wanted}
    return [cell for cell in cells if cell.weighted == wanted or cell.method not in fitting]


def best_of_each_budget(cells: Iterable[Cell], metric: Metric) -> list[Cell]:
    """Best cell of each budget, by rising ratio."""
    sign = 1 if metric.better == "higher" else -1
    best: dict[float, Cell] = {}
    for cell in cells:
        old = best.get(cell.budget)
        if old is None or sign * cell.values[metric.name][0] > sign * old.values[metric.name][0]:
            best[cell.budget] = cell
    return sorted(best.values(), key=lambda cell: cell.ratio)


def draw(folder: str | os.PathLike) -> list[Path]:
    """Draw all figures of a folder of results of tables, and write its CSV and its table.

    Parameters
    ----------
    folder : path-like
        With `runs/*.json`.

    Returns
    -------
    list of Path
        results.csv, table.txt; comparison and each figure that the grid names, as .png, .svg, .pdf and .csv.
    """
    import matplotlib

    matplotlib.use("Agg")
    from rich.console import Console

    folder = Path(folder)
    records = read_records(folder)
    cells = cells_of(records)
    main = [cell for cell in cells if "figure" not in cell.parameters]
    written = [folder / "results.csv", folder / "table.txt"]
    rows = [row_of(record) for record in records]
    columns = dict.fromkeys(name for row in rows for name in row)
    write_atomically(written[0], to_csv(rows, columns).encode())
    console = Console(file=io.StringIO(), width=240, record=True)
    for table in tables_of(main):
        console.print(table)
    write_atomically(written[1], console.export_text().encode())
    counts = sorted({cell.n_seeds for cell in cells})
    seeds = (
        f"{counts[0]} seed{'s' if counts[-1] > 1 else ''}"
        if len(counts) == 1
        else f"{counts[0]} to {counts[-1]} seeds"
    )
    run = records[0]
    size = f"{run['provenance']['rows']:,} x {run['provenance']['columns']}"
    title = f"{run['specification']['dataset']}, {size}, {seeds}"
    with matplotlib.rc_context(RC):
        if main:
            written += _comparison(folder / "comparison", main, title)
        for name in sorted({c.parameters["figure"] for c in cells if "figure" in c.parameters}):
            own = [cell for cell in cells if cell.parameters.get("figure") == name]
            written += _detail(folder / name, own, title)
    return written


def row_of(record: dict[str, Any]) -> Row:
    """Row of the CSV: what was run, its bits, and a column a metric."""
    run = record["specification"]
    row = {
        "dataset": run["dataset"],
        "method": run["method"],
        "parameters": " ".join(f"{k}={v}" for k, v in sorted(run["parameters"].items())),
        "seed": run["seed"],
        "bits": sum(record["bits"].values()),
        "parts": " ".join(f"{part}={bits}" for part, bits in record["bits"].items()),
        "compression_ratio": round(record["compression_ratio"], 4),
    }
    return row | {name: float(f"{value:.6g}") for name, value in values_of(record).items()}


def tables_of(cells: list[Cell]) -> list[Any]:
    """Build a table a budget, the methods by rising error, for `rich` to print."""
    from rich.table import Table

    columns = {
        "relative_error": "error",
        "weighted_relative_error": "by freq.",
        "neighbour_overlap": "neighb.",
        "eigenspace_overlap": "eigensp.",
        "word_similarity": "simil.",
        "analogies_add": "analogy",
        "fit_seconds": "fit s",
        "lookup_microseconds": "look-up µs",
        "flops_per_lookup": "FLOPs",
    }
    budgets: dict[float, list[Cell]] = defaultdict(list)
    for cell in cells:
        budgets[float(cell.parameters.get("ratio", 0))].append(cell)
    tables = []
    for budget in sorted(budgets):
        title = f"ratio {budget:g} or more" if budget else "sizes of their own"
        table = Table(title=title, title_justify="left")
        for header in ("method", "parameters"):
            table.add_column(header, no_wrap=True)
        present = {k: v for k, v in columns.items() if any(k in cell.values for cell in cells)}
        for header in ("ratio", *present.values()):
            table.add_column(header, justify="right", no_wrap=True)
        table.add_column("bits by part", no_wrap=True)
        for cell in sorted(budgets[budget], key=lambda c: c.values["relative_error"][0]):
            name = style_of(cell.method)[0] + (", by frequency" if cell.weighted else "")
            numbers = [f"{cell.values[k][0]:.3g}" if k in cell.values else "" for k in present]
            total = sum(cell.bits.values())
            parts = " ".join(f"{part} {100 * b / total:.1f}%" for part, b in cell.bits.items())
            table.add_row(name, cell.text, f"{cell.ratio:.1f}", *numbers, parts)
        tables.append(table)
    return tables


def _comparison(stem: Path, cells: list[Cell], title: str) -> list[Path]:
    """All methods, a panel a measure."""
    from matplotlib import pyplot

    metrics = [METRICS[name] for name in PANELS if any(name in cell.values for cell in cells)]
    columns = 4
    height = -(-len(metrics) // columns)
    figure, panels = pyplot.subplots(height, columns, figsize=(11, 2.7 * height), squeeze=False)
    table: list[Row] = []
    handles: dict[str, Any] = {}
    registered = sorted({cell.method for cell in cells} - set(STYLES))
    for axes, metric in zip(panels.ravel(), metrics, strict=False):
        there = shown(cells, metric.name)
        front = pareto([_Point(c.ratio, c.values[metric.name][0], c) for c in there], metric.better)
        if metric.name not in COSTS:
            at, means = [p.ratio for p in front], [p.mean for p in front]
            axes.plot(at, means, color="0.6", lw=6, alpha=0.35, zorder=0)
        for method in sorted({cell.method for cell in there}, key=[*STYLES, *registered].index):
            mine = [cell for cell in there if cell.method == method]
            label, colour, marker = style_of(method)
            line = best_of_each_budget(mine, metric)
            axes.plot(
                [c.ratio for c in mine],
                [c.values[metric.name][0] for c in mine],
                marker,
                color=colour,
                alpha=0.25,
                ms=3,
                mew=0,
            )
            drawn = axes.errorbar(
                [c.ratio for c in line],
                [c.values[metric.name][0] for c in line],
                [c.values[metric.name][1] for c in line],
                color=colour,
                marker=marker,
                ms=3.5,
                lw=0.9,
                elinewidth=0.7,
            )
            handles.setdefault(label, drawn)
        table += [
            {
                "metric": metric.name,
                "method": c.method,
                "parameters": c.text,
                "weighted": c.weighted,
                "compression_ratio": round(c.ratio, 4),
                "mean": float(f"{c.values[metric.name][0]:.6g}"),
                "spread": float(f"{c.values[metric.name][1]:.3g}"),
                "pareto": any(p.cell is c for p in front),
            }
            for c in there
        ]
        _axes(axes, metric)
    for axes in panels.ravel()[len(metrics) :]:
        axes.axis("off")
    figure.suptitle(title, y=1.0, fontsize=10)
    figure.tight_layout()
    figure.supxlabel("compression ratio (32 bits an entry over the bits stored)", fontsize=9, y=0.0)
    order = sorted(handles, key=[style_of(m)[0] for m in [*STYLES, *registered]].index)
    figure.legend(
        [handles[k] for k in order], order, loc="upper center", bbox_to_anchor=(0.5, -0.02), ncols=5
    )
    return save_figure(figure, stem, table)


@dataclass(frozen=True)
class _Point:
    """What a Pareto front needs of a cell."""

    ratio: float
    mean: float
    cell: Cell


def _axes(axes: Any, metric: Metric) -> None:
    ratio_axis(axes)
    if metric.name in LOGARITHMIC:
        axes.set_yscale("log")
    if metric.name.endswith("relative_error"):
        axes.set_ylim(bottom=max(axes.get_ylim()[0], LEAST_ERROR))
    axes.set_title(f"{metric.label}{f' ({metric.unit})' if metric.unit else ''}", fontsize=8.5)
    arrow = "↑" if metric.better == "higher" else "↓"
    axes.set_ylabel(f"{arrow} better", fontsize=7, color="0.4", labelpad=1)
    axes.tick_params(labelsize=7)


def _detail(stem: Path, cells: list[Cell], title: str) -> list[Path]:
    """One method by itself: against the one number that is swept, or else against the ratio."""
    from matplotlib import pyplot

    names = {name for cell in cells for name in cell.parameters} - {"ratio", "figure", "weighted"}
    swept = [
        name
        for name in sorted(names)
        if len({str(cell.parameters.get(name)) for cell in cells}) > 1
        and all(isinstance(cell.parameters.get(name), int) for cell in cells)
        and not any(isinstance(cell.parameters.get(name), bool) for cell in cells)
    ]
    x = swept[0] if swept else None
    wanted = ("word_similarity", "neighbour_overlap", "relative_error") if x else PANELS[:3]
    metrics = [METRICS[name] for name in wanted if any(name in c.values for c in cells)]
    figure, panels = pyplot.subplots(1, len(metrics), figsize=(3.3 * len(metrics), 2.8), squeeze=False)
    lines: dict[str, list[Cell]] = defaultdict(list)
    for cell in cells:
        rest = {k: v for k, v in cell.parameters.items() if k not in ("figure", x)}
        if x is None:
            rest.pop("ratio", None)
        text = ", ".join(f"{k} {v}" for k, v in rest.items())
        lines[text].append(cell)
    colours = pyplot.get_cmap("viridis")(np.linspace(0, 0.85, len(lines)))
    table: list[Row] = []
    for axes, metric in zip(panels[0], metrics, strict=True):
        for (text, line), colour, marker in zip(lines.items(), colours, "osv^D<>Pp*hX" * 9, strict=False):
            line = sorted(line, key=lambda c: c.parameters[x] if x else c.ratio)
            at = [c.parameters[x] if x else c.ratio for c in line]
            means, spreads = zip(*(c.values[metric.name] for c in line), strict=True)
            axes.errorbar(at, means, spreads, color=colour, marker=marker, ms=4, lw=1, capsize=2, label=text)
            table += [
                {
                    "metric": metric.name,
                    "method": c.method,
                    "line": text,
                    x or "compression_ratio": round(a, 4),
                    "mean": float(f"{m:.6g}"),
                    "spread": float(f"{s:.3g}"),
                }
                for c, a, m, s in zip(line, at, means, spreads, strict=True)
            ]
        if x:
            axes.set_title(metric.label, fontsize=8.5)
            axes.set_xlabel(x)
            arrow = "↑" if metric.better == "higher" else "↓"
            axes.set_ylabel(f"{arrow} better", fontsize=7, color="0.4", labelpad=1)
        else:
            _axes(axes, metric)
            axes.set_xlabel("compression ratio")
    figure.suptitle(f"{style_of(cells[0].method)[0]}: {title}", y=1.02, fontsize=10)
    figure.tight_layout()
    panels[0, -1].legend(loc="upper left", bbox_to_anchor=(1.02, 1.0))
    return save_figure(figure, stem, table)
