"""The paper's tables (Chen, Li, Sun, ICML 2020) with ours beside them, from stored results alone."""

import io
import os
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from dpq_ref.compressed import write_atomically
from dpq_ref.metrics import METRICS
from figures.paper_results import (
    RELEASED,
    kind_of,
    layer_of,
    lines,
    metric_of,
    paper,
    place,
    presets,
    read_results,
    records_in,
    spread,
    strict_ratio,
)
from figures.style import RC, STYLES, style_of, to_csv

Row = dict[str, Any]
Result = dict[str, Any]

NOT_RUN = "not run"
LEFT = ("data", "model", "method", "parameters", "metric")  # columns of text
COLUMNS = (
    "data", "model", "method", "configuration", "metric", "paper", "paper_mark", "paper_ratio",
    "paper_ratio_mark", "strict_ratio", "preset", "ours", "spread", "released", "released_spread",
    "compression_ratio", "seeds", "minutes", "processor", "protocol", "trained_on", "note",
)  # fmt: skip
LEGEND = (
    "Paper's numbers: [paper] confirmed in its text; [code] read in released code; [recalled] widely quoted, "
    "not verified; † an independent second source prints the same number; [derived] follows by algebra. "
    "Strict ratio: 32 n d bits over those of codes and values, by the configuration. "
    "Ours: mean ± standard deviation over seeds; the ratio is that of the bits stored. "
    "As released: by the protocol of the released code."
)


def configuration(settings: dict[str, Any]) -> str:
    """Write parameters of a layer or method in a few characters.

    Examples
    --------
    >>> configuration({"n_groups": 25, "n_codes": 32, "shared": True})
    'K=32 D=25 shared'
    """
    letters = {"n_codes": "K", "n_groups": "D"}
    ordered = sorted(settings.items(), key=lambda item: (item[0] not in letters, item[0]))
    return " ".join(k if v is True else f"{letters.get(k, k)}={v}" for k, v in ordered if v is not False)


def _joined(texts: Iterable[Any]) -> str:
    return "; ".join(dict.fromkeys(str(text) for text in texts if text))


def ours(runs: list[Result], metric: str) -> Row:
    """Columns of our runs of one preset, or records of one method; of none: not run."""
    if not runs:
        return {"ours": NOT_RUN, "seeds": 0}
    mean, deviation = spread(run[metric] for run in runs)
    row = {"ours": round(mean, 6), "spread": round(deviation, 6), "seeds": len(runs)}
    released = [run[RELEASED[metric]] for run in runs if RELEASED[metric] in run]
    if len(released) == len(runs):
        mean, deviation = spread(released)
        row |= {"released": round(mean, 6), "released_spread": round(deviation, 6)}
    for key in ("compression_ratio", "minutes"):
        if all(key in run for run in runs):
            row[key] = round(spread(run[key] for run in runs)[0], 6)
    sizes = (
        f"{unit}: " + ", ".join(f"{split} {count:,}" for split, count in run["data"][unit].items())
        for run in runs
        for unit in ("tokens", "documents", "pairs")
        if unit in run.get("data", {})
    )
    return row | {
        "processor": _joined(run.get("environment", {}).get("processor") for run in runs),
        "protocol": _joined(run.get("protocol") for run in runs),
        "trained_on": _joined(sizes),
    }


def rows_of(table: dict[str, Any], results: dict[str, list[Result]]) -> list[Row]:
    """Rows of a table of the paper with ours beside them."""
    rows = []
    for part in table["parts"]:
        data = paper()["data"][part["data"]]
        for line in part["rows"]:
            layer, name = line.get("layer"), line.get("preset")
            label = ", ".join(filter(None, (style_of(line["method"])[0], line.get("detail"))))
            row = {"data": part["data"], "model": part["model"], "method": label, "metric": data["metric"]}
            row["configuration"] = configuration(layer or (layer_of(name) if name else {}))
            if "value" in line:
                values = line["value"] if isinstance(line["value"], list) else [line["value"]]
                row |= {"paper": " to ".join(map(str, values)), "paper_mark": line["mark"]}
                row |= {"paper_ratio": line["ratio"], "paper_ratio_mark": line["ratio_mark"]}
            if layer:
                row["strict_ratio"] = round(strict_ratio(data["n"], part["dim"], **layer), 6)
            row["preset"] = name
            row |= ours(results.get(name, []), data["metric"])
            row["note"] = [of["note"] for of in (line, part, data) if "note" in of]
            rows.append(row)
    return rows


def preset_row(name: str, runs: list[Result]) -> Row:
    """Row of our runs of a preset, without the paper's."""
    data, model = place(name)
    row = {"data": data, "model": model, "method": style_of(kind_of(name))[0]}
    row |= {"configuration": configuration(layer_of(name)), "metric": metric_of(runs[0]), "preset": name}
    return row | ours(runs, row["metric"])


def further(results: dict[str, list[Result]]) -> list[Row]:
    """Rows of results whose preset is in no table of the paper."""
    named = {line.get("preset") for _, line in lines()}
    return [preset_row(name, runs) for name, runs in results.items() if name not in named]


def compressed(stem: str, records: list[Row], results: dict[str, list[Result]]) -> list[Row]:
    """Rows of the models that were trained first and compressed then, below those of their presets."""
    start = stem.removesuffix("compressed")
    mine = [name for name in presets() if name.startswith(start)]
    if not mine:
        raise ValueError(f"{stem}.json: no preset begins with {start}")
    rows = [preset_row(name, results[name]) for name in mine if name in results]
    data, model = place(mine[0])
    metric = metric_of(records[0])
    common = {"data": data, "model": model, "metric": metric}
    for runs in over_seeds(records):
        label = f"{style_of(runs[0]['method'])[0]}, {whether(runs[0]['retrained'])}"
        own = {"method": label, "configuration": configuration(runs[0]["parameters"])}
        rows.append(common | own | ours(runs, metric))
    return rows


def whether(retrained: bool) -> str:
    """Say whether a compressed model was trained on."""
    return "trained on" if retrained else "as it is"


def over_seeds(records: list[Row]) -> list[list[Row]]:
    """Gather records that differ in their seed alone, by method in the order of styles and rising ratio."""
    groups = defaultdict(list)
    for record in records:
        groups[record["method"], configuration(record["parameters"]), record["retrained"]].append(record)
    order = [*STYLES, *sorted({record["method"] for record in records} - set(STYLES))]

    def key(runs: list[Row]) -> Any:
        first = runs[0]
        ratio = spread(run["compression_ratio"] for run in runs)[0]
        return order.index(first["method"]), first["retrained"], ratio, configuration(first["parameters"])

    return sorted(groups.values(), key=key)


def tables_of(folder: Path, results: dict[str, list[Result]]) -> dict[str, tuple[str, list[Row]]]:
    """Title and rows of all tables by name: the paper's, and those of ours that it has none for."""
    found = {name: (table["title"], rows_of(table, results)) for name, table in paper()["tables"].items()}
    for stem, records in records_in(folder, "*-compressed.json"):
        found[stem] = f"Compressed after training: {stem}", compressed(stem, records, results)
    if rows := further(results):
        found["further"] = "Runs that are not in the paper's tables", rows
    return found


def _cells(row: Row, number: dict[str, int]) -> dict[str, str]:
    """Cells of a row by header; its footnotes are numbered as they come."""

    def known(value: Any, mark: Any) -> str:
        return f"{value} [{mark}]" if value is not None else ""

    def measured(key: str, deviation: str) -> str:
        if isinstance(row.get(key), str):
            return row[key]
        text = f"{row[key]:.2f}" if key in row else ""
        return f"{text} ± {row[deviation]:.2f}" if row["seeds"] > 1 and text else text

    titles = {"protocol": "Protocol", "trained_on": "Data of ours", "processor": "Processor"}
    notes = row.get("note", []) + [f"{title}: {row[key]}" for key, title in titles.items() if row.get(key)]
    return {
        "data": row["data"],
        "model": row["model"],
        "method": row["method"],
        "parameters": row["configuration"],
        "metric": METRICS[row["metric"]].label,
        "paper": known(row.get("paper"), row.get("paper_mark")),
        "paper's ratio": known(row.get("paper_ratio"), row.get("paper_ratio_mark")),
        "strict ratio": f"{row['strict_ratio']:.2f}" if "strict_ratio" in row else "",
        "ours": measured("ours", "spread"),
        "as released": measured("released", "released_spread"),
        "ratio of ours": f"{row['compression_ratio']:.2f}" if "compression_ratio" in row else "",
        "seeds": str(row["seeds"] or ""),
        "minutes": f"{row['minutes']:.1f}" if "minutes" in row else "",
        "notes": " ".join(str(number.setdefault(note, len(number) + 1)) for note in notes),
    }


def _shown(rows: list[Row], number: dict[str, int]) -> list[dict[str, str]]:
    """Cells of all rows, without the columns that are empty."""
    cells = [_cells(row, number) for row in rows]
    used = [header for header in cells[0] if any(cell[header] for cell in cells)]
    return [{header: cell[header] for header in used} for cell in cells]


def markdown(tables: dict[str, tuple[str, list[Row]]], words: dict[str, list[Row]]) -> str:
    """All tables as Markdown, with footnotes, and below them the words of each file."""
    number: dict[str, int] = {}
    lines = ["# The paper's tables, and ours", "", LEGEND]
    for title, rows in tables.values():
        cells = _shown(rows, number)
        lines += ["", f"## {title}", "", f"| {' | '.join(cells[0])} |"]
        lines += [f"|{'|'.join('---' if header in LEFT else '---:' for header in cells[0])}|"]
        lines += [f"| {' | '.join(cell.values())} |" for cell in cells]
    lines += ["", "## Notes", "", *(f"{i}. {note}" for note, i in number.items())]
    for stem, rows in words.items():
        lines += ["", f"## Words and their codes: {stem.removeprefix('words-')}", "", words_table(rows)]
    return "\n".join(lines) + "\n"


def words_table(rows: list[Row]) -> str:
    """Words with their neighbours and codes in each embedding, as Markdown."""
    lines = ["| word | embedding | nearest by cosine | code |", "|---|---|---|---|"]
    for row in rows:
        settings = {k: v for k, v in row["embedding"].items() if k != "kind"}
        name = f"{style_of(row['embedding']['kind'])[0]} {configuration(settings)}".strip()
        code = " ".join(map(str, row.get("code", ())))
        lines.append(f"| {row['word']} | {name} | {', '.join(row['neighbours'])} | {code} |")
    return "\n".join(lines)


def text(tables: dict[str, tuple[str, list[Row]]]) -> str:
    """All tables as text, with footnotes."""
    from rich.console import Console
    from rich.table import Table

    number: dict[str, int] = {}
    console = Console(file=io.StringIO(), width=250, record=True)
    for title, rows in tables.values():
        table = Table(title=title, title_justify="left")
        cells = _shown(rows, number)
        for header in cells[0]:
            table.add_column(header, justify="left" if header in LEFT else "right", no_wrap=True)
        for i, (row, cell) in enumerate(zip(rows, cells, strict=True)):
            if i and (row["data"], row["model"]) != (rows[i - 1]["data"], rows[i - 1]["model"]):
                table.add_section()
            table.add_row(*(value.replace("[", r"\[") for value in cell.values()))
        console.print(table)
    for line in (*(f"{i}. {note}" for note, i in number.items()), LEGEND):
        console.print(line, markup=False, highlight=False)
    return "\n".join(line.rstrip() for line in console.export_text().splitlines()) + "\n"


def make(folder: str | os.PathLike, output: str | os.PathLike) -> list[Path]:
    """Write all tables, and draw all figures for which there are results.

    Parameters
    ----------
    folder : path
        Of results.
    output : path

    Returns
    -------
    list of Path
        tables.md, tables.txt, table-NAME.csv, and for each figure .png, .svg, .pdf and .csv.
    """
    import matplotlib

    from figures import plot_paper, plot_records

    folder, output = Path(folder), Path(output)
    results = read_results(folder)
    tables = tables_of(folder, results)
    output.mkdir(parents=True, exist_ok=True)
    words = dict(records_in(folder, "words-*.json"))
    files = {"tables.md": markdown(tables, words), "tables.txt": text(tables)}
    for name, (_, rows) in tables.items():
        flat = (row | {"note": " ".join(row.get("note", ()))} for row in rows)
        files[f"table-{name}.csv"] = to_csv(flat, COLUMNS)
    for name, content in files.items():
        write_atomically(output / name, content.encode())
    written = [output / name for name in files]
    matplotlib.use("Agg")
    with matplotlib.rc_context(RC):
        written += plot_paper.draw(output, results)
        written += plot_records.draw(folder, output, {stem: rows for stem, (_, rows) in tables.items()})
    return written
