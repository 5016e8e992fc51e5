"""Results -> one CSV, a table, and figures with the CSV behind each. Never computes a result.

Hollow markers where the method weighs words by frequency; single runs faded behind their means.
"""

import io
import os
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from baselines import METHODS
from dpq_ref.compressed import write_atomically
from dpq_ref.metrics import METRICS
from figures import plot_inside, plot_neighbours
from figures.style import RC, STYLES, read_records, save_figure, style_of, to_csv

COLUMNS = (
    "dataset",
    "method",
    "parameters",
    "seed",
    "bits",
    "compression_ratio",
    "metric",
    "value",
    "seconds",
)
SAME = 1.2  # ratios within this factor are one size: methods are then shown side by side

Row = dict[str, Any]


@dataclass(frozen=True)
class Cell:
    """One method with one set of parameters, over its seeds.

    Attributes
    ----------
    method : str
    parameters : str
    bits : float, mean
    ratio : float, mean compression ratio
    values : tuple of float, one a seed
    seconds : float, mean
    """

    method: str
    parameters: str
    bits: float
    ratio: float
    values: tuple[float, ...]
    seconds: float

    @property
    def mean(self) -> float:
        """Mean over the seeds."""
        return float(np.mean(self.values))

    @property
    def spread(self) -> float:
        """Standard deviation over the seeds (n - 1); 0 for one seed."""
        return float(np.std(self.values, ddof=1)) if len(self.values) > 1 else 0.0

    @property
    def weighted(self) -> bool:
        """Whether words were weighed by frequency."""
        return "weighted=True" in self.parameters


def rows_of(records: Iterable[dict[str, Any]]) -> list[Row]:
    """Rows of the CSV, one a metric and run."""
    rows = []
    for record in records:
        run = record["specification"]
        row = {
            "dataset": run["dataset"],
            "method": run["method"],
            "parameters": " ".join(f"{k}={v}" for k, v in sorted(run["parameters"].items())),
            "seed": run["seed"],
            "bits": sum(record["bits"].values()),
            "compression_ratio": round(record["compression_ratio"], 4),
            "seconds": round(record["seconds"]["fit"], 3),
        }
        values = dict(record["metrics"])
        if usage := record.get("code_usage"):
            values["codes_used"] = np.mean(usage["used"])
            values["code_perplexity"] = np.mean(usage["perplexity"])
        rows += [
            row | {"metric": metric, "value": round(float(value), 6)} for metric, value in values.items()
        ]
    return rows


def cells_of(rows: Iterable[Row], metric: str) -> list[Cell]:
    """Rows of one metric, gathered over seeds, by method and rising ratio."""
    groups: dict[tuple[str, str], list[Row]] = defaultdict(list)
    for row in rows:
        if row["metric"] == metric:
            groups[row["method"], row["parameters"]].append(row)
    cells = [
        Cell(
            *key,
            bits=float(np.mean([r["bits"] for r in group])),
            ratio=float(np.mean([r["compression_ratio"] for r in group])),
            values=tuple(r["value"] for r in group),
            seconds=float(np.mean([r["seconds"] for r in group])),
        )
        for key, group in groups.items()
    ]
    order = {method: i for i, method in enumerate(STYLES)}
    return sorted(cells, key=lambda c: (order.get(c.method, len(order)), c.weighted, c.ratio, c.parameters))


def table_of(rows: Iterable[Row]) -> Any:
    """Table of accuracy against bits, for `rich` to print."""
    from rich.table import Table

    table = Table(title=None)
    for header in ("method", "parameters", "bits", "ratio", "accuracy %", "±", "to full", "seconds"):
        table.add_column(header, justify="left" if header in ("method", "parameters") else "right")
    cells = cells_of(rows, "test_accuracy")
    full = next(cell.mean for cell in cells if cell.method == "full")
    for cell in cells:
        table.add_row(
            style_of(cell.method)[0],
            cell.parameters,
            f"{cell.bits:,.0f}",
            f"{cell.ratio:.1f}",
            f"{cell.mean:.2f}",
            f"{cell.spread:.2f}",
            f"{cell.mean - full:+.2f}",
            f"{cell.seconds:.1f}",
        )
    return table


def verdict(rows: Iterable[Row]) -> str:
    """In a line each: DPQ-SX against the full table, and the best offline method of its bits or fewer.

    The offline ones are those of `baselines`: they compress a trained table.
    """
    cells = cells_of(rows, "test_accuracy")
    full = next(cell for cell in cells if cell.method == "full")
    lines = []
    for dpq in cells:
        if dpq.method != "dpq-sx":
            continue
        rivals = [c for c in cells if c.method in METHODS and c.ratio >= dpq.ratio]
        line = f"DPQ-SX ({dpq.parameters}, ratio {dpq.ratio:.1f}): "
        line += f"{dpq.mean - full.mean:+.2f} points to the full embedding"
        if rivals:
            best = max(rivals, key=lambda c: c.mean)
            name = f"{style_of(best.method)[0]} ({best.parameters}, ratio {best.ratio:.1f})"
            line += f"; {dpq.mean - best.mean:+.2f} to the best offline method of that ratio or more, {name}"
        lines.append(line + ".")
    return "\n".join(lines)


def pareto(cells: Iterable[Any], better: str) -> list[Any]:
    """Cells, or what else has a ratio and a mean, that no other beats in both, by rising ratio."""
    sign = 1 if better == "higher" else -1
    front: list[Any] = []
    for cell in sorted(cells, key=lambda c: (-c.ratio, -sign * c.mean)):
        if not front or sign * cell.mean > sign * front[-1].mean:
            front.append(cell)
    return front[::-1]


def draw(folder: str | os.PathLike) -> list[Path]:
    """Draw all figures of a folder of results, and write its CSV and its table.

    Parameters
    ----------
    folder : path-like
        With `runs/*.json`.

    Returns
    -------
    list of Path
        Files written: results.csv, table.txt, and for each figure .png, .svg, .pdf and .csv.
    """
    import matplotlib

    matplotlib.use("Agg")
    from rich.console import Console

    folder = Path(folder)
    records = read_records(folder)
    rows = rows_of(records)
    console = Console(file=io.StringIO(), width=140, record=True)
    console.print(table_of(rows))
    console.print(verdict(rows), soft_wrap=True)
    written = [folder / "results.csv", folder / "table.txt"]
    write_atomically(written[0], to_csv(rows, COLUMNS).encode())
    write_atomically(written[1], console.export_text().encode())
    with matplotlib.rc_context(RC):
        cells = cells_of(rows, "test_accuracy")
        ratios = [cell.ratio for cell in cells if not cell.method.startswith("full")]
        one_size = ratios and max(ratios) < SAME * min(ratios)
        draw_metric = _dots if one_size else _quality
        written += draw_metric(folder, rows, "test_accuracy", "accuracy")
        for metric, name in (("relative_error", "reconstruction"), ("eigenspace_overlap",) * 2):
            if cells_of(rows, metric):
                written += draw_metric(folder, rows, metric, name)
        if any("code_usage" in record for record in records):
            written += _usage(folder, records)
        written += plot_inside.draw(folder, records) + plot_neighbours.draw(folder, records)
    return written


def _quality(folder: Path, rows: list[Row], metric: str, name: str) -> list[Path]:
    """Metric against compression ratio, with its Pareto front."""
    from matplotlib import pyplot

    cells = cells_of(rows, metric)
    figure, axes = pyplot.subplots()
    for method in dict.fromkeys(cell.method for cell in cells):
        label, colour, marker = style_of(method)
        for weighted in (False, True):
            mine = [c for c in cells if (c.method, c.weighted) == (method, weighted)]
            if not mine:
                continue
            ratios, means = [c.ratio for c in mine], [c.mean for c in mine]
            for cell in mine:
                axes.plot(
                    [cell.ratio] * len(cell.values), cell.values, marker, color=colour, alpha=0.2, ms=4, mew=0
                )
            axes.errorbar(
                ratios,
                means,
                [c.spread for c in mine],
                zorder=4 if method.startswith("dpq") else 3,
                color=colour,
                marker=marker,
                mfc="white" if weighted else colour,
                ls=":" if weighted else "-",
                lw=1,
                ms=10 if method == "full" else 5,
                capsize=2,
                label=label + (", by frequency" if weighted else ""),
            )
            if method == "full":
                axes.axhline(means[0], color=colour, lw=0.8, ls="--", zorder=0)
    front = pareto(cells, METRICS[metric].better)
    band: Any = {"color": "0.6", "lw": 5, "alpha": 0.35, "zorder": 0, "label": "Pareto front"}
    axes.errorbar([c.ratio for c in front], [c.mean for c in front], **band)
    ratio_axis(axes)
    axes.set_xlabel("compression ratio of the table (32 bits an entry over the bits stored)")
    axes.set_ylabel(METRICS[metric].axis)
    if METRICS[metric].better == "lower":
        axes.set_yscale("log")
    else:
        _cut_below(axes, cells)
    n = len(cells[0].values)
    axes.set_title(f"{rows[0]['dataset']}, {n} seed{'s' if n > 1 else ''}")
    axes.legend(loc="upper left", bbox_to_anchor=(1.01, 1.0))
    return save_figure(figure, folder / name, _numbers(cells, front))


def ratio_axis(axes: Any) -> None:
    """Make the x axis of what is drawn one of ratios: logarithmic, or linear where they are much alike."""
    low, high = axes.dataLim.intervalx
    if high >= 4 * low:
        axes.set_xscale("log", base=2)
        axes.xaxis.set_major_formatter(lambda x, _: f"{x:g}")
    elif low == high:
        axes.set_xticks([low], [f"{low:.3g}"])


def _numbers(cells: list[Cell], front: list[Cell]) -> list[Row]:
    """Rows of the CSV behind a figure."""
    return [
        {
            "method": c.method,
            "parameters": c.parameters,
            "bits": round(c.bits),
            "compression_ratio": round(c.ratio, 4),
            "mean": round(c.mean, 6),
            "spread": round(c.spread, 6),
            "pareto": c in front,
        }
        for c in cells
    ]


def _dots(folder: Path, rows: list[Row], metric: str, name: str) -> list[Path]:
    """Metric of methods of one size, a line each."""
    from matplotlib import pyplot

    cells = cells_of(rows, metric)
    figure, axes = pyplot.subplots(figsize=(5.5, 0.3 * len(cells) + 0.9))
    for y, cell in enumerate(cells):
        _, colour, marker = style_of(cell.method)
        axes.plot(cell.values, [y] * len(cell.values), marker, color=colour, alpha=0.25, ms=4, mew=0)
        hollow = "white" if cell.weighted else colour
        axes.errorbar(
            cell.mean, y, xerr=cell.spread, color=colour, marker=marker, mfc=hollow, ms=6, capsize=2, lw=1
        )
        if cell.method == "full":
            axes.axvline(cell.mean, color="black", lw=0.8, ls="--", zorder=0)
    labels = [_label(cell) for cell in cells]
    axes.set_yticks(range(len(cells)), labels)
    axes.invert_yaxis()
    axes.set_xlabel(METRICS[metric].axis)
    n = len(cells[0].values)
    axes.set_title(f"{rows[0]['dataset']}, {n} seed{'s' if n > 1 else ''}", fontsize=9)
    return save_figure(figure, folder / name, _numbers(cells, pareto(cells, METRICS[metric].better)))


def _label(cell: Cell) -> str:
    """Name a method, how it was trained or weighed, and its ratio."""
    schedule = next((p.split("=")[1] for p in cell.parameters.split() if p.startswith("schedule=")), "")
    rate = {"calr": "annealed rate", "constant": "constant rate"}.get(schedule, schedule)
    parts = [style_of(cell.method)[0], "by frequency" if cell.weighted else "", rate]
    return ", ".join(filter(None, parts)) + (f" ({cell.ratio:.1f}x)" if cell.ratio > 1 else "")


def _cut_below(axes: Any, cells: list[Cell], points: float = 12.0) -> None:
    """End the axis some points below the best cell, and say what is lower."""
    best = max(cell.mean for cell in cells)
    below = [cell for cell in cells if cell.mean < best - points]
    if below:
        axes.set_ylim(best - points, best + points / 12)
        lines = ["below the axis:"]
        for cell in below:
            label = style_of(cell.method)[0] + (", by frequency" if cell.weighted else "")
            lines.append(f"{cell.mean:.1f} at {cell.ratio:.0f}, {label}")
        axes.text(0.02, 0.02, "\n".join(lines), transform=axes.transAxes, fontsize=6.5, va="bottom")


def _usage(folder: Path, records: list[dict[str, Any]]) -> list[Path]:
    """Perplexity of the codes of each group, groups sorted, mean over seeds."""
    from matplotlib import pyplot

    groups: dict[tuple[str, str, int], list[dict[str, Any]]] = defaultdict(list)
    for record in records:
        if "code_usage" in record:
            run = record["specification"]
            rest = {k: v for k, v in run["parameters"].items() if k not in ("n_groups", "n_codes", "shared")}
            text = " ".join(f"{k}={v}" for k, v in sorted(rest.items()))
            groups[run["method"], text, run["parameters"]["n_groups"]].append(record)
    panels = sorted({key[2] for key in groups})
    figure, axes = pyplot.subplots(1, len(panels), squeeze=False, figsize=(7.5, 2.8))
    table: list[Row] = []
    for (method, text, D), mine in groups.items():
        label, colour, marker = style_of(method)
        if sum((m, d) == (method, D) for m, _, d in groups) > 1:
            label = f"{label}, {text}"
        # Sorted within each run: a group has no meaning across seeds.
        perplexity = np.mean([np.sort(r["code_usage"]["perplexity"]) for r in mine], axis=0)
        used = np.mean([np.sort(r["code_usage"]["used"]) for r in mine], axis=0)
        panel = axes[0, panels.index(D)]
        share = (np.arange(D) + 0.5) / D
        weighted = "weighted=True" in text
        panel.plot(
            share,
            perplexity,
            color=colour,
            ls=":" if weighted else "-",
            marker=marker,
            markevery=max(1, D // 6),
            mfc="white" if weighted else colour,
            ms=4,
            label=label,
        )
        table += [
            {"method": method, "parameters": text, "n_groups": D, "rank": i, "perplexity": p, "used": u}
            for i, (p, u) in enumerate(zip(perplexity.round(4), used.round(4), strict=True))
        ]
    for D, panel in zip(panels, axes[0], strict=True):
        K = max(
            r["specification"]["parameters"]["n_codes"]
            for (*_, groups_of), mine in groups.items()
            if groups_of == D
            for r in mine
        )
        panel.axhline(K, color="black", lw=0.8, ls="--")
        panel.set_title(f"D = {D}, K = {K}")
        panel.set_ylim(0, K * 1.08)
    axes[0, 0].set_ylabel(f"{METRICS['code_perplexity'].label}\n(K: all equally often)")
    axes[0, len(panels) // 2].set_xlabel("groups, by rising perplexity (share of D)")
    handles: dict[str, Any] = {}
    for panel in axes[0]:
        for line, label in zip(*panel.get_legend_handles_labels(), strict=True):
            handles.setdefault(label, line)
    axes[0, -1].legend(handles.values(), handles, loc="upper left", bbox_to_anchor=(1.02, 1.0))
    return save_figure(figure, folder / "code_usage", table)
