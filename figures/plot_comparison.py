"""All methods at once, a panel a measure, as wide as a page in print.

A panel shows a measure against the compression ratio: every cell faded, through the best of each method at
each budget a line, and the Pareto front as a grey band. In the panel of the error by frequency stand the fits
by frequency, in all others the plain ones.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from dpq_ref.metrics import METRICS, Metric
from figures.plot_quality import numbers
from figures.rows import Cell, Row, cells_of, pareto
from figures.style import PAGE, log_axis, ratio_axis, save_figure

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
LOGARITHMIC = ("relative_error", "weighted_relative_error", *COSTS)


def shown(cells: Iterable[Cell], metric: str) -> list[Cell]:
    """Cells of a panel: of each method those fitted as the metric weighs, or else all."""
    cells = list(cells)
    wanted = metric.startswith("weighted_")
    fitting = {cell.method for cell in cells if cell.weighted == wanted}
    return [cell for cell in cells if cell.weighted == wanted or cell.method not in fitting]


def best_of_each_budget(cells: Iterable[Cell], metric: Metric) -> list[Cell]:
    """Best cell of each budget, by rising ratio."""
    sign = 1 if metric.better == "higher" else -1
    best: dict[float, Cell] = {}
    for cell in cells:
        old = best.get(cell.budget)
        if old is None or sign * cell.mean > sign * old.mean:
            best[cell.budget] = cell
    return sorted(best.values(), key=lambda cell: cell.ratio)


def draw(stem: Path, title: str, rows: list[Row]) -> list[Path]:
    """Draw the panels for which there are rows.

    Parameters
    ----------
    stem : Path
        Of the files, without their endings.
    title : str
    rows : list of dict

    Returns
    -------
    list of Path
        None, where no measure of `PANELS` is in the rows.
    """
    from matplotlib import pyplot

    cells = {name: shown(cells_of(rows, name), name) for name in PANELS}
    metrics = [METRICS[name] for name in PANELS if cells[name]]
    if not metrics:
        return []
    columns = min(3, len(metrics))
    height = -(-len(metrics) // columns)
    size = PAGE * columns / 3, 1.9 * height + 0.9
    figure, panels = pyplot.subplots(height, columns, figsize=size, squeeze=False, layout="constrained")
    table: list[Row] = []
    handles: dict[str, Any] = {}
    for axes, metric in zip(panels.ravel(), metrics, strict=False):
        there = cells[metric.name]
        front = pareto(there, metric.better) if metric.name not in COSTS else []
        axes.plot([c.ratio for c in front], [c.mean for c in front], color="0.6", lw=5, alpha=0.35, zorder=0)
        for method in dict.fromkeys(cell.method for cell in there):
            handles.setdefault(method, _method(axes, [c for c in there if c.method == method], metric))
        table += [{"metric": metric.name, **row} for row in numbers(there, front)]
        axes_of(axes, metric)
    for axes in panels.ravel()[len(metrics) :]:
        axes.remove()
    figure.suptitle(title, fontsize=9)
    for axes in figure.axes[-columns:]:
        axes.set_xlabel("compression ratio", fontsize=7.5)
    order = dict.fromkeys(row["method"] for row in table)
    labels = {cell.method: cell.style.label for name in PANELS for cell in cells[name]}
    entries = [handles[method] for method in order], [labels[method] for method in order]
    figure.legend(*entries, loc="outside lower center", ncols=4 if columns == 3 else 2, fontsize=7)
    return save_figure(figure, stem, table)


def _method(axes: Any, cells: list[Cell], metric: Metric) -> Any:
    """Points and line of one method."""
    line, style = best_of_each_budget(cells, metric), cells[0].style
    at, means = [c.ratio for c in cells], [c.mean for c in cells]
    axes.plot(at, means, marker=style.marker, ls="", color=style.colour, alpha=0.25, ms=2.5, mew=0)
    return axes.errorbar(
        [c.ratio for c in line],
        [c.mean for c in line],
        [c.spread for c in line],
        color=style.colour,
        marker=style.marker,
        ls=style.dash,
        ms=3,
        lw=0.8,
        elinewidth=0.6,
    )


def axes_of(axes: Any, metric: Metric) -> None:
    """Scale and name the axes of a panel of a measure against the ratio."""
    ratio_axis(axes)
    if metric.name in LOGARITHMIC:
        log_axis(axes.yaxis)
    if metric.name.endswith("relative_error"):
        axes.set_ylim(bottom=max(axes.get_ylim()[0], LEAST_ERROR))
    head(axes, metric)


def head(axes: Any, metric: Metric) -> None:
    """Name the measure of a panel, and its direction."""
    axes.set_title(f"{metric.label}{f' ({metric.unit})' if metric.unit else ''}", fontsize=7.5)
    axes.set_ylabel(
        f"{'↑' if metric.better == 'higher' else '↓'} better", fontsize=6.5, color="0.4", labelpad=1
    )
    axes.tick_params(which="both", labelsize=6.5)
