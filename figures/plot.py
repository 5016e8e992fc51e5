"""Results -> one CSV, tables, and figures with the CSV behind each. Never computes a result.

Which figures there are follows from what is in the rows; each kind has a module `plot_*` of its own.
"""

import os
from collections.abc import Sequence
from pathlib import Path

from dpq_ref.compressed import write_atomically
from figures import (
    matched,
    plot_ablation,
    plot_codes,
    plot_comparison,
    plot_heat,
    plot_inside,
    plot_neighbours,
    plot_quality,
    plot_time,
    summary,
)
from figures.inputs import read
from figures.rows import COLUMNS, Row, by_run, cells_of
from figures.style import RC, to_csv


def draw(results: str | os.PathLike | Sequence[str | os.PathLike], output: Path | None = None) -> list[Path]:
    """Draw all figures of results, and write their CSV and their tables.

    Parameters
    ----------
    results : path-like, or sequence of path-like
        Folders with `runs/*.json` and CSV files, of one data set.
    output : Path, optional
        Folder for what is written; by default that of the results, if it is one.

    Returns
    -------
    list of Path
        results.csv, table.txt, matched_bits.txt and .csv, and for each figure .png, .svg, .pdf and .csv.

    Raises
    ------
    ValueError
        If the results are of several data sets, or there are several and no output.
    """
    import matplotlib

    matplotlib.use("Agg")

    paths = [results] if isinstance(results, (str, os.PathLike)) else list(results)
    if output is None and (len(paths) > 1 or not Path(paths[0]).is_dir()):
        raise ValueError("output: it takes a folder, where the results are not one folder")
    folder = output or Path(paths[0])
    rows, records = read(paths)
    datasets = sorted({row["dataset"] for row in rows})
    if len(datasets) > 1:
        raise ValueError(
            f"results of {len(datasets)} data sets ({'; '.join(datasets)}); a figure shows one, "
            "`dpq-ref rank` compares over several"
        )
    folder.mkdir(parents=True, exist_ok=True)
    title = title_of(rows)
    main = [row for row in rows if _figure_of(row) is None]
    tasks = [metric for metric in matched.TASKS if cells_of(rows, metric)]
    written = _tables(folder, rows, main, tasks)
    with matplotlib.rc_context(RC):
        for metric in tasks:
            name = matched.TASKS[metric]
            written += plot_quality.draw(folder / name, title, cells_of(main, metric), metric)
        for metric, name in (("relative_error", "reconstruction"), ("eigenspace_overlap",) * 2):
            if tasks and (cells := cells_of(main, metric)):
                written += plot_quality.draw(folder / name, title, cells, metric)
        if not tasks:
            written += plot_comparison.draw(folder / "comparison", title, main)
        for name in sorted(filter(None, set(map(_figure_of, rows)))):
            own = [row for row in rows if _figure_of(row) == name]
            written += plot_ablation.draw(folder / name, title, own)
        present = [metric for metric in matched.QUALITY if cells_of(main, metric)]
        for metric in present[:1]:
            written += plot_time.draw(folder / "time", title, main, metric)
            if cells := plot_heat.on_grids(cells_of(main, metric)):
                written += plot_heat.draw(folder / "codes_and_groups", title, cells, metric)
        if any("code_usage" in record for record in records):
            written += plot_codes.draw(folder / "code_usage", records)
        written += plot_inside.draw(folder, records) + plot_neighbours.draw(folder, records)
    return written


def title_of(rows: list[Row]) -> str:
    """Name the data set, and how many seeds the methods have."""
    counts: dict[tuple[str, str], set[int]] = {}
    for row in rows:
        counts.setdefault((row["method"], row["parameters"]), set()).add(row["seed"])
    low, high = min(map(len, counts.values())), max(map(len, counts.values()))
    seeds = f"{low} to {high}" if low < high else str(low)
    return f"{rows[0]['dataset']}, {seeds} seed{'s' if high > 1 else ''}"


def _figure_of(row: Row) -> str | None:
    """Name the figure of its own that a run is for."""
    found = (word.partition("=") for word in row["parameters"].split())
    return next((value for name, _, value in found if name == "figure"), None)


def _tables(folder: Path, rows: list[Row], main: list[Row], tasks: list[str]) -> list[Path]:
    """Write results.csv, table.txt, and what there is at equal bits."""
    runs = by_run(rows)
    wide = runs, dict.fromkeys(name for run in runs for name in run)
    contents = {"results.csv": to_csv(rows, COLUMNS) if tasks else to_csv(*wide)}
    if tasks:
        parts = [summary.task_table(rows, metric) for metric in tasks]
        contents["table.txt"] = summary.text([*parts, summary.verdict(rows)], width=140)
    else:
        contents["table.txt"] = summary.text(summary.budget_tables(main))
    if matches := matched.match(main):
        contents["matched_bits.txt"] = summary.text(matched.text_tables(matches))
        table = matched.table(matches)
        contents["matched_bits.csv"] = to_csv(table, table[0])
    for name, content in contents.items():
        write_atomically(folder / name, content.encode())
    return [folder / name for name in contents]
