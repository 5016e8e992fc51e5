"""Figure of a DPQ with one group, two wide: what `figures.geometry` found."""

import json
from pathlib import Path
from typing import Any

import click
import numpy as np

from figures.style import RC, save_figure

Row = dict[str, Any]
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00")  # a code each
MARKERS = ("o", "s", "^", "D", "v")
SHOWN = 0  # word whose gradient is followed from the output to the query
WHEN = {"before": "before training", "after": "after training"}


def draw(result: dict[str, Any], stem: Path) -> list[Path]:
    """Draw cells, queries, keys, values and gradients, before and after.

    Parameters
    ----------
    result : dict
        Of `geometry.json`.
    stem : Path

    Returns
    -------
    list of Path
    """
    from matplotlib import pyplot

    targets = np.array(result["targets"])
    table: list[Row] = []
    figure, grid = pyplot.subplots(2, 3, figsize=(7.2, 5), layout="constrained")
    for axes, when in zip(grid, WHEN, strict=True):
        sx, vq = (
            {name: value if name == "cells" else np.array(value) for name, value in result[m][when].items()}
            for m in ("dpq-sx", "dpq-vq")
        )
        _queries(axes[0], sx)
        _values(axes[1], sx, targets)
        _queries(axes[2], vq)
        axes[2].plot(*targets.T, "x", color="0.35", ms=3, mew=0.7, zorder=1)
        picked = vq["keys"][vq["codes"][SHOWN]]
        _arrow(axes[2], picked, -vq["d_output"][SHOWN], "black")
        axes[2].plot(*np.array([picked, vq["query"][SHOWN]]).T, ":", color="black", lw=0.8)
        axes[0].set_ylabel(WHEN[when])
        for method, state in (("dpq-sx", sx), ("dpq-vq", vq)):
            table += _rows(method, when, state, targets)
    titles = "DPQ-SX: queries and keys", "DPQ-SX: values and targets", "DPQ-VQ: queries and keys = values"
    for axes, title in zip(grid[0], titles, strict=True):
        axes.set_title(title, fontsize=8)
    figure.supxlabel(
        "regions: cells; symbols: words by their code; numbers: keys and values; crosses: targets\n"
        "arrows: against the gradient; black: that of one word, at its output and where it reaches the query",
        fontsize=7.5,
    )
    return save_figure(figure, stem, table)


def _queries(axes: Any, state: Row) -> None:
    """Cells, keys with their numbers, queries by code, and where the gradient moves them."""
    from matplotlib.colors import ListedColormap

    side = float(state["side"])
    codes = np.array([list(map(int, row)) for row in state["cells"]])
    look: Row = {"cmap": ListedColormap(COLOURS), "vmin": 0, "vmax": len(COLOURS) - 1}
    axes.imshow(codes, extent=(-side, side, -side, side), origin="lower", alpha=0.18, **look)
    edges = (np.arange(len(codes)) + 0.5) / len(codes) * 2 * side - side
    for code in range(len(state["keys"])):
        axes.contour(edges, edges, codes == code, levels=[0.5], colors="0.5", linewidths=0.5)
    for i, (query, code) in enumerate(zip(state["query"], state["codes"], strict=True)):
        _arrow(axes, query, -state["d_query"][i], "black" if i == SHOWN else COLOURS[code])
        axes.plot(
            *query, MARKERS[code], color=COLOURS[code], ms=3, mec="black", mew=0.8 if i == SHOWN else 0.2
        )
    _numbered(axes, state["keys"])
    _square(axes, side)


def _values(axes: Any, state: Row, targets: np.ndarray) -> None:
    """Targets by the code of their word, values with their numbers, and where the gradient moves them."""
    for target, code in zip(targets, state["codes"], strict=True):
        axes.plot(*target, MARKERS[code], color=COLOURS[code], ms=3, mec="black", mew=0.2)
    n_words = np.bincount(state["codes"], minlength=len(state["values"]))
    for value, d_value, n, colour in zip(state["values"], state["d_values"], n_words, COLOURS, strict=True):
        _arrow(axes, value, -d_value / max(n, 1), colour)  # to the mean of the targets
    _arrow(axes, state["values"][state["codes"][SHOWN]], -state["d_output"][SHOWN], "black")
    _numbered(axes, state["values"])
    _square(axes, 1.6)


def _arrow(axes: Any, start: np.ndarray, step: np.ndarray, colour: str) -> None:
    """Draw a gradient step: thin, and strong if black."""
    strong = colour == "black"
    look: Row = {"arrowstyle": "->", "color": colour, "lw": 1.2 if strong else 0.6, "mutation_scale": 6}
    look |= {"shrinkA": 0, "shrinkB": 0, "zorder": 3 if strong else 2}
    axes.annotate("", start + step, start, arrowprops=look)


def _numbered(axes: Any, points: np.ndarray) -> None:
    """Draw the codes as numbers in circles."""
    for code, point in enumerate(points):
        axes.plot(*point, "o", ms=8, color="white", mec=COLOURS[code], mew=1.2, zorder=4)
        axes.text(*point, str(code), fontsize=6.5, ha="center", va="center_baseline", zorder=5)


def _square(axes: Any, side: float) -> None:
    axes.set(xlim=(-side, side), ylim=(-side, side), aspect="equal")
    axes.tick_params(labelsize=6)
    axes.grid(False)


def _rows(method: str, when: str, state: Row, targets: np.ndarray) -> list[Row]:
    """Rows of the CSV: each point with the step that its gradient asks for, and a word's code."""
    kinds = [("query", state["query"], state["d_query"]), ("target", targets, None)]
    kinds += [(name, state[name], state[f"d_{name}"]) for name in ("keys", "values") if name in state]
    return [
        {"method": method, "when": when, "kind": kind, "index": i}
        | {"code": int(state["codes"][i]) if kind in ("query", "target") else i}
        | {"x": x, "y": y, "minus_gradient_x": "", "minus_gradient_y": ""}
        | ({} if steps is None else {"minus_gradient_x": -steps[i][0], "minus_gradient_y": -steps[i][1]})
        for kind, points, steps in kinds
        for i, (x, y) in enumerate(points)
    ]


@click.command()
@click.option(
    "--results",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    default="figures/results/geometry",
    show_default=True,
)
def main(results: Path) -> None:
    """Draw geometry.json of a folder of results, into the same folder."""
    import matplotlib

    matplotlib.use("Agg")
    result = json.loads((results / "geometry.json").read_text(encoding="utf8"))
    with matplotlib.rc_context(RC):
        for path in draw(result, results / "geometry"):
            click.echo(path)


if __name__ == "__main__":
    main()
