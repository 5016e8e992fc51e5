"""Ranks of methods over data sets: a table, and one figure.

A case is a metric of quality at a budget on a data set. Methods that are on every data set are ranked in the
cases that all of them are in, the best first; methods that tie share their mean rank.
"""

import os
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import rankdata

from dpq_ref.compressed import write_atomically
from dpq_ref.metrics import METRICS
from figures import matched, summary
from figures.inputs import read
from figures.rows import Row
from figures.style import COLUMN, RC, save_figure, styles, to_csv


def cases_of(rows: list[Row]) -> tuple[list[Row], list[str]]:
    """Rank of each method in each case.

    Parameters
    ----------
    rows : list of dict
        Of several data sets.

    Returns
    -------
    cases : list of dict
        dataset, metric, budget, method, compression_ratio, mean, rank.
    left_out : list of str
        Methods that are not on every data set.

    Raises
    ------
    ValueError
        If there is one data set, or no case of two methods that are on all.
    """
    of: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        of[row["dataset"]].append(row)
    if len(of) < 2:
        raise ValueError(f"results of one data set, {', '.join(of)}; ranks take several")
    matches = {dataset: matched.match(own) for dataset, own in of.items()}
    there = [{cell.method for entry in entries for cell in entry.cells} for entries in matches.values()]
    common = set.intersection(*there)
    cases: list[Row] = []
    for dataset, entries in matches.items():
        for metric, budget, cells in entries:
            mine = [cell for cell in cells if cell.method in common]
            if len(common) < 2 or len(mine) < len(common):
                continue
            sign = -1 if METRICS[metric].better == "higher" else 1
            ranks = rankdata([sign * cell.mean for cell in mine])
            cases += [
                {
                    "dataset": dataset,
                    "metric": metric,
                    "budget": budget,
                    "method": cell.method,
                    "compression_ratio": round(cell.ratio, 4),
                    "mean": float(f"{cell.mean:.8g}"),
                    "rank": float(rank),
                }
                for cell, rank in zip(mine, ranks, strict=True)
            ]
    if not cases:
        names = f"on all are {', '.join(sorted(common))}" if common else "none is on all"
        raise ValueError(f"no two methods meet at one budget on all of {', '.join(of)}: {names}")
    return cases, sorted(set.union(*there) - common)


def table_of(cases: list[Row]) -> list[Row]:
    """Mean rank of each method over all cases, its standard deviation, and the mean on each data set."""
    datasets = list(dict.fromkeys(case["dataset"] for case in cases))
    ranks: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for case in cases:
        ranks[case["method"]][case["dataset"]].append(case["rank"])
    table = []
    for method, of in ranks.items():
        every = [rank for own in of.values() for rank in own]
        row = {
            "method": method,
            "mean_rank": round(float(np.mean(every)), 4),
            "spread": round(float(np.std(every, ddof=1)), 4) if len(every) > 1 else 0.0,
            "cases": len(every),
        }
        row |= {name: round(float(np.mean(of[name])), 4) if name in of else "" for name in datasets}
        table.append(row)
    return sorted(table, key=lambda row: (row["mean_rank"], row["method"]))


def make(results: Sequence[str | os.PathLike], output: Path) -> list[Path]:
    """Rank the methods of several results, and draw it.

    Parameters
    ----------
    results : sequence of path-like
        Folders with `runs/*.json` and CSV files, of several data sets.
    output : Path

    Returns
    -------
    list of Path
        ranks.txt, ranks_cases.csv, and ranks as .png, .svg, .pdf and .csv.
    """
    import matplotlib

    matplotlib.use("Agg")
    rows, _ = read(results, together=False)
    cases, left_out = cases_of(rows)
    table = table_of(cases)
    output.mkdir(parents=True, exist_ok=True)
    contents = {"ranks.txt": text(table, left_out), "ranks_cases.csv": to_csv(cases, cases[0])}
    for name, content in contents.items():
        write_atomically(output / name, content.encode())
    with matplotlib.rc_context(RC):
        return [*(output / name for name in contents), *draw(output / "ranks", table)]


def text(table: list[Row], left_out: list[str]) -> str:
    """Write the table, and what it is of."""
    from rich.table import Table

    looks = styles(row["method"] for row in table)
    datasets = list(table[0])[4:]
    made = Table(title="mean rank; 1 is best")
    for i, name in enumerate(("method", "rank", "±", "cases", *datasets)):
        made.add_column(name, justify="right" if i else "left")
    for row in table:
        numbers = (f"{row[name]:.2f}" for name in ("mean_rank", "spread"))
        own = (f"{row[name]:.2f}" for name in datasets)
        made.add_row(looks[row["method"]].label, *numbers, str(row["cases"]), *own)
    lines = ["A case: a metric at one budget on one data set. ±: standard deviation over the cases."]
    if left_out:
        names = (style.label for _, style in sorted(styles(left_out).items()))
        lines.append(f"Not on every data set, and so not ranked: {'; '.join(names)}.")
    return summary.text([made, *lines], width=140)


def draw(stem: Path, table: list[Row]) -> list[Path]:
    """Draw the mean rank of each method, a point faded for each data set."""
    from matplotlib import pyplot

    looks = styles(row["method"] for row in table)
    datasets = list(table[0])[4:]
    size = COLUMN, 0.22 * len(table) + 0.17 * len(datasets) + 0.9
    figure, axes = pyplot.subplots(figsize=size, layout="constrained")
    handles: dict[str, Any] = {}
    for y, row in enumerate(table):
        _, colour, marker = looks[row["method"]]
        bars = {"xerr": row["spread"], "elinewidth": 0.8, "capsize": 2}
        axes.errorbar(row["mean_rank"], y, color=colour, marker=marker, ms=6, zorder=3, **bars)
        for name, sign in zip(datasets, "|x+1234" * 9, strict=False):
            (handles[name],) = axes.plot(row[name], y + 0.28, sign, color="0.35", ms=5, mew=0.9, ls="")
    axes.set_yticks(range(len(table)), [looks[row["method"]].label for row in table])
    axes.set_ylim(len(table) - 0.4, -0.5)
    axes.tick_params(labelsize=7)
    axes.set_xlabel(f"mean rank over {table[0]['cases']} cases, 1 is best", fontsize=7)
    figure.legend(handles.values(), handles, loc="outside lower center", ncols=1, fontsize=6.5)
    return save_figure(figure, stem, table)
