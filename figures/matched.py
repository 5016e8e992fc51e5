"""Methods at equal bits: the value of each at the same few budgets, as a table.

A budget is a ratio, 32 bits an entry over the bits that a method may store. A method counts at it with the
most bits that it has within, unless that is half of them or fewer: then it has nothing to compare there.
"""

from collections.abc import Iterable
from typing import Any, NamedTuple

from dpq_ref.metrics import METRICS
from figures.plot_comparison import COSTS, PANELS
from figures.rows import Cell, Row, cells_of

BUDGETS = (2, 4, 8, 16, 32, 64, 128, 256)
NEARLY = 1.01  # a budget may be exceeded by a hundredth: scales beside codes of 8 bits
TASKS = {  # metric of a task: name of its figure
    "test_accuracy": "accuracy",
    "test_perplexity": "perplexity",
    "test_bleu": "bleu",
}
QUALITY = (*TASKS, *(name for name in PANELS if name not in COSTS))  # what methods are compared by


class Match(NamedTuple):
    """One metric at one budget: the methods' cells, best first."""

    metric: str
    budget: int
    cells: tuple[Cell, ...]


def within(cells: Iterable[Cell], budget: float, better: str) -> Cell | None:
    """Cell of the most bits within a budget and above half of it; of several of nearly one size the best."""
    cells = [cell for cell in cells if budget <= cell.ratio * NEARLY and cell.ratio < 2 * budget / NEARLY]
    if not cells:
        return None
    nearest = min(cell.ratio for cell in cells)
    return best_first((cell for cell in cells if cell.ratio <= nearest * NEARLY), better)[0]


def best_first(cells: Iterable[Cell], better: str) -> list[Cell]:
    """Cells by their means."""
    return sorted(cells, key=lambda cell: cell.mean, reverse=better == "higher")


def match(rows: list[Row]) -> list[Match]:
    """Compare methods at equal bits, by all metrics of quality that there are.

    Parameters
    ----------
    rows : list of dict
        Of one data set. The full embedding and figures of their own are left out.

    Returns
    -------
    list of Match
        At budgets at which there are two methods or more.
    """
    found = []
    for metric in QUALITY:
        better = METRICS[metric].better
        cells = [
            cell
            for cell in cells_of(rows, metric)
            if not cell.method.startswith("full") and "figure" not in cell.settings
        ]
        methods = dict.fromkeys(cell.method for cell in cells)
        for budget in BUDGETS:
            there = (within((c for c in cells if c.method == m), budget, better) for m in methods)
            if len(there_are := [cell for cell in there if cell]) > 1:
                found.append(Match(metric, budget, tuple(best_first(there_are, better))))
    return found


def table(matches: Iterable[Match]) -> list[Row]:
    """Rows of the CSV."""
    return [
        {
            "metric": metric,
            "budget": budget,
            "method": cell.method,
            "parameters": cell.parameters,
            "compression_ratio": round(cell.ratio, 4),
            "mean": float(f"{cell.mean:.8g}"),
            "spread": float(f"{cell.spread:.4g}"),
            "seeds": len(cell.values),
            "best": cell.mean == cells[0].mean,
        }
        for metric, budget, cells in matches
        for cell in cells
    ]


def grids(matches: Iterable[Match]) -> list[tuple[str, list[str], list[list[str]]]]:
    """Title, header and rows of a table a metric: methods down, budgets across, the best with a star."""
    of: dict[str, list[Match]] = {}
    for entry in matches:
        of.setdefault(entry.metric, []).append(entry)
    found = []
    for metric, entries in of.items():
        cells = sorted((cell for entry in entries for cell in entry.cells), key=lambda cell: cell.place)
        names = {cell.method: cell.style.label for cell in cells}
        shown = {
            (cell.method, entry.budget): _shown(cell, cell.mean == entry.cells[0].mean)
            for entry in entries
            for cell in entry.cells
        }
        budgets = [entry.budget for entry in entries]
        lines = [[label, *(shown.get((name, b), "") for b in budgets)] for name, label in names.items()]
        found.append((METRICS[metric].axis, ["method", *(f"ratio {b}" for b in budgets)], lines))
    return found


def _shown(cell: Cell, best: bool) -> str:
    noise = cell.spread < 1e-9 * abs(cell.mean)  # of the sum over seeds that are all equal
    spread = f" ± {0 if noise else cell.spread:.1g}" if len(cell.values) > 1 else ""
    return f"{cell.mean:.4g}{spread}{' *' if best else ''}"


def text_tables(matches: Iterable[Match]) -> list[Any]:
    """Tables for `rich` to print, and what they tell."""
    from rich.table import Table

    tables: list[Any] = []
    for title, header, lines in grids(matches):
        made = Table()
        for i, name in enumerate(header):
            made.add_column(name, justify="right" if i else "left", no_wrap=True)
        for line in lines:
            made.add_row(*line)
        tables += [title, made]  # a title of the table would be broken at its width
    told = "Each method with the most bits within the budget, and more than half of it. * best. ± over seeds."
    return [*tables, told]
