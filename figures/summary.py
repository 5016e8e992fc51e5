"""Table of results as text: a task's metric by bits, or all measures of compressed tables by budget."""

import io
from collections import defaultdict
from collections.abc import Iterable
from typing import Any

from baselines import METHODS
from dpq_ref.metrics import METRICS
from figures.rows import Cell, Row, cells_of

MEASURES = {  # of compressed tables: header
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


def text(tables: Iterable[Any], *, width: int = 240) -> str:
    """Tables of `rich`, or lines, as text."""
    from rich.console import Console

    console = Console(file=io.StringIO(), width=width, record=True)
    for table in tables:
        console.print(table, soft_wrap=isinstance(table, str))
    return console.export_text()


def task_table(rows: Iterable[Row], metric: str) -> Any:
    """Table of a task's metric against bits, for `rich` to print."""
    from rich.table import Table

    cells = cells_of(rows, metric)
    full = next((cell.mean for cell in cells if cell.method == "full"), None)
    label = f"{METRICS[metric].label.removeprefix('test ')} {METRICS[metric].unit}".strip()
    table = Table(title=None)
    for header in ("method", "parameters", "bits", "ratio", label, "±", "to full", "seconds"):
        table.add_column(header, justify="left" if header in ("method", "parameters") else "right")
    for cell in cells:
        table.add_row(
            cell.style.label,
            cell.parameters,
            "" if cell.bits is None else f"{cell.bits:,.0f}",
            f"{cell.ratio:.1f}",
            f"{cell.mean:.2f}",
            f"{cell.spread:.2f}",
            "" if full is None else f"{cell.mean - full:+.2f}",
            "" if cell.seconds is None else f"{cell.seconds:.1f}",
        )
    return table


def verdict(rows: Iterable[Row]) -> str:
    """In a line each: DPQ-SX against the full table, and the best offline method of its bits or fewer.

    The offline ones are those of `baselines`: they compress a trained table.
    """
    cells = cells_of(rows, "test_accuracy")
    full = next((cell for cell in cells if cell.method == "full"), None)
    lines = []
    for dpq in cells:
        if dpq.method != "dpq-sx" or full is None:
            continue
        rivals = [c for c in cells if c.method in METHODS and c.ratio >= dpq.ratio]
        line = f"DPQ-SX ({dpq.parameters}, ratio {dpq.ratio:.1f}): "
        line += f"{dpq.mean - full.mean:+.2f} points to the full embedding"
        if rivals:
            best = max(rivals, key=lambda c: c.mean)
            name = f"{best.style.label} ({best.parameters}, ratio {best.ratio:.1f})"
            line += f"; {dpq.mean - best.mean:+.2f} to the best offline method of that ratio or more, {name}"
        lines.append(line + ".")
    return "\n".join(lines)


def budget_tables(rows: list[Row]) -> list[Any]:
    """Build a table a budget, the methods by rising error, for `rich` to print."""
    from rich.table import Table

    of = {name: {(c.method, c.parameters): c for c in cells_of(rows, name)} for name in MEASURES}
    of = {name: found for name, found in of.items() if found}
    cells = {key: cell for found in of.values() for key, cell in found.items()}
    budgets: dict[float, list[Cell]] = defaultdict(list)
    for cell in cells.values():
        budgets[float(cell.settings.get("ratio", 0))].append(cell)

    def place(cell: Cell) -> tuple[float, str, str]:
        first = next(iter(of.values())).get((cell.method, cell.parameters))
        return first.mean if first else float("inf"), cell.label, cell.parameters

    tables = []
    for budget in sorted(budgets):
        title = f"ratio {budget:g} or more" if budget else "sizes of their own"
        table = Table(title=title, title_justify="left")
        for header in ("method", "parameters"):
            table.add_column(header, no_wrap=True)
        for header in ("ratio", *(MEASURES[name] for name in of)):
            table.add_column(header, justify="right", no_wrap=True)
        table.add_column("bits by part", no_wrap=True)
        for cell in sorted(budgets[budget], key=place):
            key = cell.method, cell.parameters
            numbers = [f"{found[key].mean:.3g}" if key in found else "" for found in of.values()]
            shown = cell.parameters_but("figure", "weighted", "ratio")
            table.add_row(cell.label, shown, f"{cell.ratio:.1f}", *numbers, _shares(cell.parts))
        tables.append(table)
    return tables


def _shares(parts: str) -> str:
    """Bits by part as shares of all.

    Examples
    --------
    >>> _shares("codes=30, codebooks=10")
    'codes 75.0% codebooks 25.0%'
    """
    bits = {name: int(n) for name, _, n in (part.partition("=") for part in parts.split(", ") if part)}
    return " ".join(f"{name} {100 * n / sum(bits.values()):.1f}%" for name, n in bits.items())
