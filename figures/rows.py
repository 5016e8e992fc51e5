"""Results as rows, one a metric and run, and as cells over seeds: what compares runs is drawn from these."""

import ast
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from figures.records import Record
from figures.style import STYLES, Style, style_of, styles

RUN = ("dataset", "method", "parameters", "seed", "bits", "compression_ratio", "seconds")
COLUMNS = (*RUN[:-1], "metric", "value", "seconds")

Row = dict[str, Any]


@dataclass(frozen=True)
class Cell:
    """One method with one set of parameters, judged by one metric, over its seeds.

    Attributes
    ----------
    method : str
    parameters : str
    bits : float or None, mean
    ratio : float, mean compression ratio
    values : tuple of float, one a seed
    seconds : float or None, mean time to fit
    parts : str, bits by part
    look : Style or None, among the methods shown with it
    """

    method: str
    parameters: str
    bits: float | None
    ratio: float
    values: tuple[float, ...]
    seconds: float | None = None
    parts: str = ""
    look: Style | None = None

    @property
    def style(self) -> Style:
        """How it is drawn."""
        return self.look or style_of(self.method)

    @property
    def mean(self) -> float:
        """Mean over the seeds."""
        return float(np.mean(self.values))

    @property
    def spread(self) -> float:
        """Standard deviation over the seeds (n - 1); 0 for one seed."""
        return float(np.std(self.values, ddof=1)) if len(self.values) > 1 else 0.0

    @cached_property
    def settings(self) -> dict[str, Any]:
        """Parameters by name."""
        pairs = (pair.partition("=") for pair in self.parameters.split())
        return {name: _parsed(value) for name, _, value in pairs}

    @property
    def weighted(self) -> bool:
        """Whether words were weighed by frequency."""
        return self.settings.get("weighted") is True

    @property
    def budget(self) -> float:
        """Ratio or bits an entry that were asked for, or else the ratio that there is."""
        return float(self.settings.get("ratio", self.settings.get("n_bits", self.ratio)))

    @property
    def place(self) -> tuple[Any, ...]:
        """Key to sort by: method in the order of styles, then by rising ratio."""
        order = list(STYLES).index(self.method) if self.method in STYLES else len(STYLES)
        return order, self.method, self.weighted, self.ratio, self.parameters

    @property
    def label(self) -> str:
        """Name of the method, and whether it went by frequency."""
        return self.style.label + (", by frequency" if self.weighted else "")

    def parameters_but(self, *hidden: str) -> str:
        """Parameters as text without some."""
        return text_of({name: value for name, value in self.settings.items() if name not in hidden})


def _parsed(value: str) -> Any:
    try:
        return ast.literal_eval(value)
    except (ValueError, SyntaxError):
        return value


def text_of(parameters: dict[str, Any]) -> str:
    """Parameters as text, sorted by name."""
    return " ".join(f"{k}={v}" for k, v in sorted(parameters.items()))


def rows_of(records: Iterable[Record]) -> list[Row]:
    """Rows of records without error."""
    rows = []
    for record in records:
        run, seconds = record["specification"], record.get("seconds", {})
        row = {
            "dataset": run["dataset"],
            "method": run["method"],
            "parameters": text_of(run["parameters"]),
            "seed": run["seed"],
            "bits": sum(record["bits"].values()),
            "parts": ", ".join(f"{part}={bits}" for part, bits in record["bits"].items()),
            "compression_ratio": round(record["compression_ratio"], 4),
            "seconds": float(f"{seconds['fit']:.6g}") if "fit" in seconds else None,
        }
        costs = ("flops_per_lookup", "bytes_per_lookup", "file_bytes")
        values = record["metrics"] | {name: record[name] for name in costs if name in record}
        if "lookup" in seconds:
            values["lookup_microseconds"] = 1e3 * seconds["lookup"]  # of 1,000 words
        if usage := record.get("code_usage"):
            values["codes_used"] = np.mean(usage["used"])
            values["code_perplexity"] = np.mean(usage["perplexity"])
        rows += [row | {"metric": metric, "value": float(f"{value:.8g}")} for metric, value in values.items()]
    return rows


def run_of(row: Row) -> tuple[Any, ...]:
    """Tell what a row is of: data set, method, parameters and seed."""
    return row["dataset"], row["method"], row["parameters"], row["seed"]


def by_run(rows: Iterable[Row]) -> list[Row]:
    """Rows with a column a metric, one a run, as results with many metrics are written."""
    runs: dict[tuple[Any, ...], Row] = {}
    for row in rows:
        own = {name: row[name] for name in (*RUN, "parts") if name in row}
        runs.setdefault(run_of(row), own)[row["metric"]] = row["value"]
    return list(runs.values())


def cells_of(rows: Iterable[Row], metric: str) -> list[Cell]:
    """Rows of one metric, gathered over seeds, by method and rising ratio; `fit_seconds` is a column."""
    rows = list(rows)
    looks = styles(row["method"] for row in rows)
    if metric == "fit_seconds":
        runs = {run_of(row): row for row in rows if row["seconds"] is not None}
        rows = [row | {"metric": metric, "value": row["seconds"]} for row in runs.values()]
    groups: dict[tuple[str, str], list[Row]] = defaultdict(list)
    for row in rows:
        if row["metric"] == metric:
            groups[row["method"], row["parameters"]].append(row)
    cells = [
        Cell(
            *key,
            _mean(row["bits"] for row in group),
            float(np.mean([row["compression_ratio"] for row in group])),
            tuple(row["value"] for row in group),
            _mean(row["seconds"] for row in group),
            group[0].get("parts", ""),
            looks[key[0]],
        )
        for key, group in groups.items()
    ]
    return sorted(cells, key=lambda cell: cell.place)


def _mean(values: Iterable[float | None]) -> float | None:
    found = [value for value in values if value is not None]
    return float(np.mean(found)) if found else None


def pareto(cells: Iterable[Cell], better: str) -> list[Cell]:
    """Cells that no other beats in both ratio and mean, by rising ratio."""
    sign = 1 if better == "higher" else -1
    front: list[Cell] = []
    for cell in sorted(cells, key=lambda c: (-c.ratio, -sign * c.mean)):
        if not front or sign * cell.mean > sign * front[-1].mean:
            front.append(cell)
    return front[::-1]
