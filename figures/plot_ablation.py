"""One method by itself: against the one number that is swept, or else against the ratio.

A grid asks for such a figure by `figure = "name"` among the parameters.
"""

from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from dpq_ref.metrics import METRICS
from figures.plot_comparison import PANELS, axes_of, head
from figures.rows import Cell, Row, cells_of
from figures.style import PAGE, save_figure


def draw(stem: Path, title: str, rows: list[Row]) -> list[Path]:
    """Draw the rows of one figure, a line for all that differs in nothing but what is swept.

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

    x = _swept(cell for name in PANELS for cell in cells_of(rows, name))
    wanted = ("word_similarity", "neighbour_overlap", "relative_error") if x else PANELS[:3]
    cells = {name: found for name in wanted if (found := cells_of(rows, name))}
    if not cells:
        return []
    figure, panels = pyplot.subplots(
        1, len(cells), figsize=(PAGE / 3 * len(cells), 2.4), squeeze=False, layout="constrained"
    )
    texts = dict.fromkeys(_line(cell, x) for name in cells for cell in cells[name])
    colours = dict(zip(texts, pyplot.get_cmap("viridis")(np.linspace(0, 0.85, len(texts))), strict=True))
    markers = dict(zip(texts, "osv^D<>Pp*hX" * 9, strict=False))
    names = _names(texts)
    table: list[Row] = []
    for axes, name in zip(panels[0], cells, strict=True):
        lines: dict[str, list[Cell]] = defaultdict(list)
        for cell in cells[name]:
            lines[_line(cell, x)].append(cell)
        for text, line in lines.items():
            line = sorted(line, key=lambda c: c.settings[x] if x else c.ratio)
            at = [c.settings[x] if x else c.ratio for c in line]
            means, spreads = [c.mean for c in line], [c.spread for c in line]
            look = {"color": colours[text], "marker": markers[text], "label": names[text]}
            axes.errorbar(at, means, spreads, ms=3.5, lw=0.9, capsize=2, **look)
            table += [
                {
                    "metric": name,
                    "method": c.method,
                    "line": text,
                    x or "compression_ratio": round(a, 4),
                    "mean": float(f"{c.mean:.8g}"),
                    "spread": float(f"{c.spread:.4g}"),
                }
                for c, a in zip(line, at, strict=True)
            ]
        if x:
            head(axes, METRICS[name])
        else:
            axes_of(axes, METRICS[name])
        axes.set_xlabel(x or "compression ratio", fontsize=7)
    method = next(iter(cells.values()))[0].style.label
    figure.suptitle(f"{method}: {title}", fontsize=9)
    figure.legend(*panels[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=2, fontsize=7)
    return save_figure(figure, stem, table)


def _swept(cells: Iterable[Cell]) -> str | None:
    """Name the parameter that takes several whole numbers, the first by name."""
    settings = [cell.settings for cell in cells]
    names = {name for own in settings for name in own} - {"ratio", "figure", "weighted"}
    values = {name: [own.get(name) for own in settings] for name in sorted(names)}
    swept = (n for n, v in values.items() if len(set(v)) > 1 and {type(value) for value in v} == {int})
    return next(swept, None)


def _line(cell: Cell, x: str | None) -> str:
    return cell.parameters_but("figure", x or "ratio")


def _names(texts: Iterable[str]) -> dict[str, str]:
    """Lines by what they do not all have in common."""
    words = {text: text.split() for text in texts}
    common = set.intersection(*map(set, words.values())) if len(words) > 1 else set()
    return {text: " ".join(w for w in own if w not in common) or "as it is" for text, own in words.items()}
