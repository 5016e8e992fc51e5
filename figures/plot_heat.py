"""A metric by the codes of a group K and the groups D, a panel a method and its other parameters."""

from pathlib import Path
from typing import Any

import numpy as np

from dpq_ref.metrics import METRICS
from figures.rows import Cell, Row, text_of
from figures.style import make_panels, save_figure

AXES = ("n_codes", "n_groups")


def on_grids(cells: list[Cell]) -> list[Cell]:
    """Cells of methods that have several K and several D, all else being equal."""
    panels: dict[tuple[str, str], list[Cell]] = {}
    for cell in cells:
        if all(isinstance(cell.settings.get(name), int) for name in AXES):
            panels.setdefault(_panel(cell), []).append(cell)
    wide = (p for p in panels.values() if all(len({c.settings[n] for c in p}) > 1 for n in AXES))
    return [cell for panel in wide for cell in panel]


def _panel(cell: Cell) -> tuple[str, str]:
    return cell.method, cell.parameters_but(*AXES)


def draw(stem: Path, title: str, cells: list[Cell], metric: str) -> list[Path]:
    """Draw one scale of colours over all panels, the better the brighter.

    Parameters
    ----------
    stem : Path
        Of the files, without their endings.
    title : str
    cells : list of Cell
        Of `on_grids`.
    metric : str

    Returns
    -------
    list of Path
    """
    columns, rows = (sorted({cell.settings[name] for cell in cells}) for name in reversed(AXES))
    panels = dict.fromkeys(map(_panel, cells))
    scale = [min(cell.mean for cell in cells), max(cell.mean for cell in cells)]
    colours = "viridis_r" if METRICS[metric].better == "lower" else "viridis"
    figure, axes_of_all = make_panels(len(panels))
    for axes, panel in zip(axes_of_all, panels, strict=True):
        mine = [cell for cell in cells if _panel(cell) == panel]
        grid = np.full((len(rows), len(columns)), np.nan)
        for cell in mine:
            grid[rows.index(cell.settings["n_codes"]), columns.index(cell.settings["n_groups"])] = cell.mean
        image = axes.imshow(grid, cmap=colours, vmin=scale[0], vmax=scale[1], origin="lower", aspect="auto")
        for (i, j), value in np.ndenumerate(grid):
            if np.isfinite(value):
                light = np.dot(image.cmap(image.norm(value))[:3], (0.3, 0.6, 0.1)) > 0.5
                ink = "black" if light else "white"
                number = f"{value:.1f}" if scale[1] >= 10 else f"{value:.3g}"
                axes.text(j, i, number, ha="center", va="center", fontsize=8, color=ink)
        axes.grid(False)
        axes.set_xticks(range(len(columns)), map(str, columns))
        axes.set_yticks(range(len(rows)), map(str, rows))
        axes.set_xlabel("groups D")
        axes.set_ylabel("codes of a group K")
        axes.set_title(", ".join(filter(None, (mine[0].style.label, _told(panel, panels)))), fontsize=9)
    figure.suptitle(f"{title}: {METRICS[metric].axis}", fontsize=10)
    figure.tight_layout()
    table: list[Row] = [
        {
            "method": cell.method,
            "parameters": _panel(cell)[1],
            **{name: cell.settings[name] for name in AXES},
            metric: float(f"{cell.mean:.8g}"),
            "spread": float(f"{cell.spread:.4g}"),
            "seeds": len(cell.values),
        }
        for cell in sorted(cells, key=lambda c: (c.method, _panel(c)[1], *(c.settings[n] for n in AXES)))
    ]
    return save_figure(figure, stem, table)


def _told(panel: tuple[str, str], panels: Any) -> str:
    """Parameters by which a panel differs from others of its method."""
    siblings = [set(text.split()) for method, text in panels if method == panel[0]]
    common = set.intersection(*siblings)
    return text_of(dict(word.split("=", 1) for word in panel[1].split() if word not in common))
