"""What is drawn: folders of records, and CSV files, by which a method from elsewhere takes part."""

import csv
import math
import os
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from dpq_ref.metrics import METRICS
from figures.records import Record, read_records
from figures.rows import COLUMNS, RUN, Row, rows_of, run_of, text_of


def read(results: Sequence[str | os.PathLike], *, together: bool = True) -> tuple[list[Row], list[Record]]:
    """Rows and records of folders of results and CSV files, folders first.

    Parameters
    ----------
    results : sequence of path-like
    together : bool
        A CSV that names no data set has that of the others, or else one of its own, named as the file.

    Raises
    ------
    FileNotFoundError
        If a folder has none.
    ValueError
        If one of them is not what it should be, or has a run that another has, too.
    """
    paths = sorted(map(Path, results), key=lambda path: path.is_file())
    rows: list[Row] = []
    records: list[Record] = []
    owner: dict[tuple[Any, ...], Path] = {}
    for path in paths:
        if path.is_file():
            default = {row["dataset"] for row in rows} if together else set()
            new = read_csv(path, rows, dataset=default.pop() if len(default) == 1 else None)
        else:
            found = read_records(path)
            new = rows_of(found)
            records += found
        for row in new:
            run = (*run_of(row), row["metric"])
            if owner.setdefault(run, path) != path:
                raise ValueError(f"{path} has a run that {owner[run]} has, too: {', '.join(map(str, run))}")
        rows += new
    return rows, records


def read_csv(path: str | os.PathLike, others: Iterable[Row] = (), *, dataset: str | None = None) -> list[Row]:
    """Rows of a CSV file with `COLUMNS`, in any order; or a column a metric in place of metric and value.

    Needed are the method, its values, and a compression ratio, or bits where the other rows tell the size of
    the full table. Without a column of parameters, the ratio tells the runs of a method apart; a row without
    a seed takes the next one.

    Parameters
    ----------
    path : path-like
    others : iterable of dict
        Rows of the same data.
    dataset : str, optional
        Of rows that do not name it; by default the name of the file.

    Raises
    ------
    ValueError
        If a column is missing or unknown, or a row is not what it should be; the message has its line.
    """
    with open(path, encoding="utf-8-sig", newline="") as file:
        reader = csv.DictReader(file, restval="")
        try:
            metrics = _metric_columns(reader.fieldnames or ())
            given = _Defaults(dataset or Path(path).stem, others)
            rows: list[Row] = []
            seen: dict[tuple[Any, ...], int] = {}
            for line in reader:
                if None in line:
                    raise ValueError("more entries than columns")
                texts = {name: text.strip() for name, text in line.items()}
                wide = [texts | {"metric": name, "value": texts[name]} for name in metrics if texts[name]]
                for entry in wide if metrics else [texts]:
                    row = given.fill(entry)
                    key = (*run_of(row), row["metric"])
                    if key in seen:
                        raise ValueError(f"the same run and metric as in line {seen[key]}")
                    seen[key] = reader.line_num
                    rows.append(row)
        except (ValueError, csv.Error) as error:
            raise ValueError(f"{path}, line {max(reader.line_num, 1)}: {error}") from None
    if not rows:
        raise ValueError(f"{path} has no rows")
    return rows


def _metric_columns(names: Sequence[str]) -> list[str]:
    """Columns that are metrics; none, where a column says which metric a row is of."""
    if "method" not in names:
        raise ValueError(f"no column method; it takes {', '.join(COLUMNS)}")
    long = "metric" in names or "value" in names
    metrics = [] if long else [name for name in names if known(name)]
    allowed = COLUMNS if long else (*RUN, "parts", *metrics)
    if unknown := [name for name in names if name not in allowed]:
        raise ValueError(f"unknown column {', '.join(unknown)}; it takes {', '.join(COLUMNS)}, or metrics")
    if missing := [name for name in ("metric", "value") if name not in names] if not metrics else []:
        raise ValueError(f"no column {', '.join(missing)}; it takes {', '.join(COLUMNS)}, or metrics")
    return metrics


class _Defaults:
    """What a row of a CSV is taken to mean where it says nothing."""

    def __init__(self, dataset: str, others: Iterable[Row]) -> None:
        self.dataset = dataset
        self.full = {row["dataset"]: row["bits"] * row["compression_ratio"] for row in others if row["bits"]}
        self.seeds: dict[tuple[str, ...], int] = defaultdict(int)

    def fill(self, entry: dict[str, str]) -> Row:
        """Row of the texts of a line."""
        for name in ("method", "metric", "value"):
            if not entry[name]:
                raise ValueError(f"{name} is empty")
        if not known(entry["metric"]):
            raise ValueError(f"unknown metric {entry['metric']!r}; it takes one of {', '.join(METRICS)}")
        parameters = entry.get("parameters", "")
        if bad := [word for word in parameters.split() if not all(word.partition("="))]:
            raise ValueError(f"parameters: {bad[0]!r} is no name=value")
        dataset = entry.get("dataset") or self.dataset
        row: Row = {
            "dataset": dataset,
            "method": entry["method"],
            "parameters": text_of(dict(word.split("=", 1) for word in parameters.split())),
            "bits": _whole(entry, "bits", least=1),
            "compression_ratio": _number(entry, "compression_ratio", least=0),
            "metric": entry["metric"],
            "value": _number(entry, "value"),
            "seconds": _number(entry, "seconds", least=0),
            "parts": entry.get("parts", ""),
        }
        bits, ratio, full = row["bits"], row["compression_ratio"], self.full.get(dataset)
        if not ratio:
            if not (bits and full):
                raise ValueError(
                    "it takes a compression_ratio above 0, or bits beside other results of these data"
                )
            row["compression_ratio"] = round(full / bits, 4)
        elif not bits and full:
            row["bits"] = round(full / ratio)
        if "parameters" not in entry:
            row["parameters"] = f"ratio={row['compression_ratio']:g}"
        run = (dataset, row["method"], row["parameters"], row["metric"])
        seed = _whole(entry, "seed")
        row["seed"] = self.seeds[run] if seed is None else seed
        self.seeds[run] += 1
        return row


def _number(entry: dict[str, str], name: str, least: float = -math.inf) -> float | None:
    text = entry.get(name, "")
    if not text:
        return None
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not (math.isfinite(value) and value >= least):
        raise ValueError(
            f"{name}={text!r}; it takes a number" + (f" of {least:g} or more" if least > -math.inf else "")
        )
    return value


def _whole(entry: dict[str, str], name: str, least: float = -math.inf) -> int | None:
    value = _number(entry, name, least)
    if value is not None and value != int(value):
        raise ValueError(f"{name}={entry[name]!r}; it takes a whole number")
    return None if value is None else int(value)


def known(metric: str) -> bool:
    """Whether a metric is registered, as itself or as one of the sets that another is the mean of."""
    return metric in METRICS or metric.rpartition("_")[0] in METRICS
