"""Quality against bits, as wide as a column in print; methods of one size stand side by side.

Single runs are faded behind their means, with error bars over seeds, and the Pareto front is a grey band.
Hollow markers where the method weighs words by frequency.
"""

from collections import defaultdict
from pathlib import Path
from typing import Any

from dpq_ref.metrics import METRICS
from figures.rows import Cell, Row, pareto
from figures.style import COLUMN, log_axis, perplexity_axis, ratio_axis, save_figure

POINTS = 12.0  # an axis of percent ends so far below the best cell
SAME = 1.2  # ratios within this factor are one size


def draw(stem: Path, title: str, cells: list[Cell], metric: str) -> list[Path]:
    """Draw a metric of all cells, against the ratio unless they are of one size.

    Parameters
    ----------
    stem : Path
        Of the files, without their endings.
    title : str
    cells : list of Cell
    metric : str

    Returns
    -------
    list of Path
    """
    ratios = [cell.ratio for cell in cells if not cell.method.startswith("full")]
    one_size = ratios and max(ratios) < SAME * min(ratios)
    return (_side_by_side if one_size else _against_ratio)(stem, title, cells, metric)


def _against_ratio(stem: Path, title: str, cells: list[Cell], metric: str) -> list[Path]:
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(COLUMN, 2.4), layout="constrained")
    better = METRICS[metric].better
    front = pareto(cells, better)
    handles: dict[str, Any] = {}
    for method, weighted in dict.fromkeys((cell.method, cell.weighted) for cell in cells):
        mine = [c for c in cells if (c.method, c.weighted) == (method, weighted)]
        label, colour, marker = mine[0].style
        look: dict[str, Any] = {"color": colour, "marker": marker, "mfc": "white" if weighted else colour}
        for cell in mine:
            at = [cell.ratio] * len(cell.values)
            axes.plot(at, cell.values, marker=marker, ls="", color=colour, alpha=0.3, ms=3, mew=0)
        drawn = axes.errorbar(
            [c.ratio for c in mine],
            [c.mean for c in mine],
            [c.spread for c in mine],
            zorder=4 if method.startswith("dpq") else 3,
            ls=mine[0].style.dash,
            lw=0.9,
            ms=8 if method == "full" else 4,
            capsize=1.5,
            **look,
        )
        # Of a method that is only there hollow, the legend shows it so.
        handles.setdefault(label, drawn)
        if method == "full":
            axes.axhline(mine[0].mean, color=colour, lw=0.6, ls="--", zorder=0)
    band: dict[str, Any] = {"color": "0.6", "lw": 4, "alpha": 0.35, "zorder": 0}
    handles["Pareto front"], *_ = axes.plot([c.ratio for c in front], [c.mean for c in front], **band)
    if any(cell.weighted for cell in cells):
        handles["hollow: by frequency"], *_ = axes.plot([], [], "o", color="0.4", mfc="white", ms=4)
    ratio_axis(axes)
    axes.set_xlabel("compression ratio (32 bits an entry / bits stored)", fontsize=7)
    axes.set_ylabel(METRICS[metric].axis, fontsize=7)
    axes.tick_params(which="both", labelsize=7)
    notes = []
    if metric == "test_perplexity":
        perplexity_axis(axes)
    elif better == "lower":
        log_axis(axes.yaxis)
    elif METRICS[metric].unit == "%":
        notes = _cut_below(axes, cells)
    axes.set_title(title, fontsize=8)
    look = {"loc": "outside lower center", "ncols": 2, "fontsize": 6.5, "title_fontsize": 6, "borderpad": 0}
    figure.legend(handles.values(), handles, title="\n".join(notes) or None, alignment="left", **look)
    # Constrained layout keeps the size of the figure: the legend needs room of its own.
    rows = -(-len(handles) // 2) + 0.9 * len(notes)
    figure.set_figheight(2.4 + 0.135 * rows)
    return save_figure(figure, stem, numbers(cells, front))


def _cut_below(axes: Any, cells: list[Cell]) -> list[str]:
    """End the axis some points below the best cell; lines that say what is lower."""
    best = max(cell.mean for cell in cells)
    below = [cell for cell in cells if cell.mean < best - POINTS]
    if not below:
        return []
    axes.set_ylim(best - POINTS, best + POINTS / 12)
    return ["below the axis:", *(f"{c.label}: {c.mean:.1f} at {c.ratio:.0f}" for c in below)]


def numbers(cells: list[Cell], front: list[Cell]) -> list[Row]:
    """Rows of the CSV behind a figure."""
    return [
        {
            "method": c.method,
            "parameters": c.parameters,
            "bits": "" if c.bits is None else round(c.bits),
            "compression_ratio": round(c.ratio, 4),
            "mean": float(f"{c.mean:.8g}"),
            "spread": float(f"{c.spread:.4g}"),
            "seeds": len(c.values),
            "pareto": c in front,
        }
        for c in cells
    ]


def _side_by_side(stem: Path, title: str, cells: list[Cell], metric: str) -> list[Path]:
    """Metric of methods of one size, a line each under its name."""
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(COLUMN, 0.27 * len(cells) + 0.7), layout="constrained")
    for y, (cell, label) in enumerate(zip(cells, line_labels(cells), strict=True)):
        _, colour, marker = cell.style
        at = [y] * len(cell.values)
        axes.plot(cell.values, at, marker=marker, ls="", color=colour, alpha=0.3, ms=3, mew=0)
        look: dict[str, Any] = {
            "color": colour,
            "marker": marker,
            "mfc": "white" if cell.weighted else colour,
        }
        axes.errorbar(cell.mean, y, xerr=cell.spread, ms=4.5, capsize=1.5, lw=0.9, **look)
        at_left: dict[str, Any] = {"transform": axes.get_yaxis_transform(), "va": "bottom", "fontsize": 6.5}
        axes.text(0, y - 0.25, label, bbox={"fc": "white", "ec": "none", "pad": 0.5}, **at_left)
        if cell.method == "full":
            axes.axvline(cell.mean, color="black", lw=0.6, ls="--", zorder=0)
    axes.set_yticks([])
    axes.set_ylim(len(cells) - 0.5, -0.9)
    axes.spines.left.set_visible(False)
    axes.tick_params(labelsize=7)
    axes.set_xlabel(METRICS[metric].axis, fontsize=7)
    axes.set_title(title, fontsize=8)
    return save_figure(figure, stem, numbers(cells, pareto(cells, METRICS[metric].better)))


def line_labels(cells: list[Cell]) -> list[str]:
    """Name methods, how they were trained or weighed, in what those of one name differ, and their ratios."""
    groups: dict[str, list[Cell]] = defaultdict(list)
    for cell in cells:
        groups[_name(cell)].append(cell)
    labels = []
    for cell in cells:
        words = [set(other.parameters.split()) for other in groups[_name(cell)]]
        own = [w for w in cell.parameters.split() if w not in set.intersection(*words)]
        ratio = f"({cell.ratio:.1f}x)" if cell.ratio > 1 else ""
        labels.append(" ".join(filter(None, [_name(cell), ratio, *own])))
    return labels


def _name(cell: Cell) -> str:
    schedule = cell.settings.get("schedule", "")
    rate = {"calr": "annealed rate", "constant": "constant rate"}.get(schedule, schedule)
    return ", ".join(filter(None, [cell.label, rate]))
