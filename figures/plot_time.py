"""Quality against time: to fit, and to look up a word. The larger the marker, the more bits."""

from pathlib import Path
from typing import Any

from dpq_ref.metrics import METRICS
from figures.plot_comparison import COSTS, LEAST_ERROR, LOGARITHMIC, best_of_each_budget, shown
from figures.rows import Cell, Row, cells_of
from figures.style import COLUMN, PAGE, log_axis, save_figure


def draw(stem: Path, title: str, rows: list[Row], metric: str) -> list[Path]:
    """Draw the best of each method at each budget but errors below `LEAST_ERROR`, a panel for each time.

    Parameters
    ----------
    stem : Path
        Of the files, without their endings.
    title : str
    rows : list of dict
    metric : str

    Returns
    -------
    list of Path
        None, where no time is in the rows.
    """
    from matplotlib import pyplot

    least = LEAST_ERROR if metric in LOGARITHMIC else float("-inf")
    cells = [cell for cell in shown(cells_of(rows, metric), metric) if cell.mean >= least]
    methods = dict.fromkeys(cell.method for cell in cells)
    best = {m: best_of_each_budget((c for c in cells if c.method == m), METRICS[metric]) for m in methods}
    panels = {}
    for cost in COSTS:
        times = {(c.method, c.parameters): c for c in cells_of(rows, cost) if c.mean > 0}
        pairs = {
            m: [(cell, times[m, cell.parameters]) for cell in line if (m, cell.parameters) in times]
            for m, line in best.items()
        }
        if any(pairs.values()):
            panels[cost] = pairs
    if not panels:
        return []
    ratios = [cell.ratio for line in best.values() for cell in line]
    wide = len(panels) > 1
    size = (PAGE, 3.4) if wide else (COLUMN, 2.9)
    figure, axes_of_all = pyplot.subplots(
        1, len(panels), figsize=size, sharey=True, squeeze=False, layout="constrained"
    )
    table: list[Row] = []
    handles: dict[str, Any] = {}
    for axes, (cost, pairs) in zip(axes_of_all[0], panels.items(), strict=True):
        for line in filter(None, pairs.values()):
            handles.setdefault(line[0][0].style.label, _method(axes, line, min(ratios)))
        log_axis(axes.xaxis)
        axes.set_xlabel(METRICS[cost].axis, fontsize=7)
        axes.tick_params(which="both", labelsize=7)
        table += [
            {
                "time": cost,
                "method": cell.method,
                "parameters": cell.parameters,
                "compression_ratio": round(cell.ratio, 4),
                "time_mean": float(f"{time.mean:.6g}"),
                "time_spread": float(f"{time.spread:.4g}"),
                "metric": metric,
                "mean": float(f"{cell.mean:.8g}"),
                "spread": float(f"{cell.spread:.4g}"),
            }
            for line in pairs.values()
            for cell, time in line
        ]
    first = axes_of_all[0, 0]
    if metric in LOGARITHMIC:
        log_axis(first.yaxis)
    first.set_ylabel(METRICS[metric].axis, fontsize=7)
    figure.suptitle(title, fontsize=9 if wide else 8)
    entries = handles.values(), handles
    look: dict[str, Any] = {"ncols": 4 if wide else 2, "fontsize": 7 if wide else 6.5, "title_fontsize": 6.5}
    hollow = any(cell.weighted for line in best.values() for cell in line)
    title = "the larger the marker, the more bits" + ("; hollow: by frequency" if hollow else "")
    figure.legend(*entries, title=title, loc="outside lower center", **look)
    return save_figure(figure, stem, table)


def _method(axes: Any, line: list[tuple[Cell, Cell]], least_ratio: float) -> Any:
    """Line of a method from many bits to few; returns its handle for the legend."""
    _, colour, marker = line[0][0].style
    axes.plot(
        [t.mean for _, t in line], [c.mean for c, _ in line], color=colour, ls=line[0][0].style.dash, lw=0.7
    )
    for cell, time in line:
        look: dict[str, Any] = {
            "color": colour,
            "marker": marker,
            "mfc": "white" if cell.weighted else colour,
        }
        size = 2.5 + 5 * (least_ratio / cell.ratio) ** 0.5
        axes.errorbar(time.mean, cell.mean, cell.spread or None, ms=size, elinewidth=0.5, mew=0.7, **look)
    return axes.plot([], [], color=colour, ls=line[0][0].style.dash, marker=marker, ms=4, lw=0.8)[0]
