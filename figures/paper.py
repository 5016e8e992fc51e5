"""The paper's tables (Chen, Li, Sun, ICML 2020) with ours beside them: from stored results, never computed.

The paper's rows are in paper.toml, each number with a mark of how well it is known. Ours are in a folder:

<preset>-seed<seed>.json  result.json of `dpq-ref train --preset`, as it is (`add`)
<start>-compressed.json   the full models of presets <start>-*, compressed after training: a list of records
                          of method, parameters, retrained, compression_ratio, seed, one metric of RELEASED
grid-<name>.json          a list of records of method, n_groups, n_codes, shared, one metric of RELEASED
"""

import io
import json
import os
import tomllib
from collections import defaultdict
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from dpq_ref.compressed import write_atomically
from dpq_ref.metrics import METRICS
from dpq_ref.tasks.recipe import preset
from dpq_ref.tasks.recipe import presets as read_presets
from figures.plot import ratio_axis
from figures.style import RC, STYLES, save_figure, style_of, to_csv

Row = dict[str, Any]
Result = dict[str, Any]

PAPER = Path(__file__).with_name("paper.toml")
RELEASED = {  # metric by the best validation: the same by the protocol of the released code
    "test_perplexity": "test_perplexity_last",
    "test_accuracy": "test_accuracy_best",
    "test_bleu": "test_bleu_last",
}
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


presets = cache(read_presets)


@cache
def paper() -> dict[str, Any]:
    """Read paper.toml: `data` and `tables`."""
    return tomllib.loads(PAPER.read_text(encoding="utf8"))


def lines() -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    """Parts of all tables of the paper, with each of their rows."""
    for table in paper()["tables"].values():
        for part in table["parts"]:
            for line in part["rows"]:
                yield part, line


def strict_ratio(n: int, dim: int, *, n_groups: int, n_codes: int, shared: bool = False) -> float:
    """32 n d over n D ceil(log2 K) + 32 K d bits; K d / D numbers if shared.

    Examples
    --------
    >>> round(strict_ratio(10_000, 650, n_groups=25, n_codes=32, shared=True), 2)
    162.93
    >>> round(strict_ratio(10_000, 650, n_groups=50, n_codes=128), 2)
    33.75
    """
    codes = n * n_groups * (n_codes - 1).bit_length()
    values = 32 * n_codes * dim // (n_groups if shared else 1)
    return 32 * n * dim / (codes + values)


# --- Results --------------------------------------------------------------------------------------------


def preset_of(result: Result) -> str:
    """Name the preset that a result is of, by its configuration and its data.

    Raises
    ------
    ValueError
        If there is none; the message says what differs from the nearest.
    """
    if not {"config", "data", "environment", "evaluations"} <= result.keys() or not RELEASED.keys() & result:
        raise ValueError("that is no result of dpq-ref train")
    differences = {name: list(_differences(result["config"], _config(name))) for name in presets()}
    nearest = min(differences, key=lambda name: len(differences[name]))
    if differences[nearest]:
        raise ValueError(
            f"no preset has this configuration; {nearest} but for {'; '.join(differences[nearest])}"
        )
    same = [name for name, found in differences.items() if not found]
    counts = {name: paper()["data"].get(place(name)[0], {}).get("counts", {}) for name in same}
    differences = {name: list(_differences(result["data"], counts[name])) for name in same}
    fitting = [name for name in same if not differences[name]]
    if not fitting:
        raise ValueError(f"the data is not that of {same[0]}: {'; '.join(differences[same[0]])}")
    if len(fitting) > 1:
        raise ValueError(f"configuration and data are those of {' and of '.join(fitting)}")
    return fitting[0]


@cache
def _config(name: str) -> dict[str, Any]:
    """Make the configuration of a preset, as `dpq-ref train` writes it but for the seed."""
    config = json.loads(json.dumps(preset(name).config))
    return {key: value for key, value in config.items() if key != "seed"}


def _differences(there: Any, wanted: Any, name: str = "") -> Iterator[str]:
    """Name what of `wanted` is not so `there`; parameters of layers may have nothing else."""
    if isinstance(wanted, dict) and isinstance(there, dict):
        extra = set(there) - set(wanted) if name in ("embedding", "network") else set()
        for key in [*wanted, *sorted(extra)]:
            yield from _differences(there.get(key), wanted.get(key), f"{name}.{key}".lstrip("."))
    elif there != wanted:
        yield f"{name} {there!r}, not {wanted!r}"


def add(folder: str | os.PathLike, results: str | os.PathLike, *, force: bool = False) -> Path:
    """Copy the result of a training by a preset to the results of the paper.

    Parameters
    ----------
    folder : path
        Of a finished `dpq-ref train`.
    results : path
    force : bool
        Replace the one that is there.

    Returns
    -------
    Path
        The copy.

    Raises
    ------
    FileNotFoundError
        If the training has no result.json.
    FileExistsError
        If another result of that preset and seed is there.
    ValueError
        If it is that of no preset.
    """
    source = Path(folder, "result.json")
    if not source.is_file():
        raise FileNotFoundError(f"no {source}: the training has not come to its end")
    content = source.read_bytes()
    name, result = _read(source)
    path = Path(results, f"{name}-seed{result['config']['seed']}.json")
    if path.exists() and path.read_bytes() != content and not force:
        raise FileExistsError(f"{path} is there, with another result; --force replaces it")
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, content)
    return path


def read_results(folder: str | os.PathLike) -> dict[str, list[Result]]:
    """Read the results of trainings by preset, in the order of presets, each by seed.

    Raises
    ------
    FileNotFoundError
        If there is no such folder.
    ValueError
        If a file is not named after what is in it, or no preset has its configuration any more.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"no folder {folder}")
    found: dict[str, list[Result]] = {name: [] for name in presets()}
    for path in sorted(folder.glob("*.json")):
        if path.name.startswith("grid-") or path.name.endswith("-compressed.json"):
            continue
        name, result = _read(path)
        if path.stem != (stem := f"{name}-seed{result['config']['seed']}"):
            raise ValueError(f"{path} has the result of {stem}")
        found[name].append(result)
    return {k: sorted(v, key=lambda r: r["config"]["seed"]) for k, v in found.items() if v}


def _read(path: Path) -> tuple[str, Result]:
    """Preset and content of a result."""
    try:
        result = json.loads(path.read_text(encoding="utf8"))
        return preset_of(result), result
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def _records(folder: Path, pattern: str) -> Iterator[tuple[str, list[Row]]]:
    """Name and records of each file of lists."""
    for path in sorted(folder.glob(pattern)):
        if records := json.loads(path.read_text(encoding="utf8")):
            yield path.stem, records


def metric_of(record: Row) -> str:
    """Name the test metric that a result or record has.

    Raises
    ------
    ValueError
        If it has none.
    """
    for metric in RELEASED:
        if metric in record:
            return metric
    raise ValueError(f"no metric in a record of {', '.join(record)}; it takes one of {', '.join(RELEASED)}")


def spread(values: Iterable[float]) -> tuple[float, float]:
    """Mean, and standard deviation (n - 1); 0 for one value."""
    values = list(values)
    return float(np.mean(values)), float(np.std(values, ddof=1)) if len(values) > 1 else 0.0


# --- Tables ---------------------------------------------------------------------------------------------


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


@cache
def place(name: str) -> tuple[str, str]:
    """Name data set and model of a preset, as the paper's rows do where it is in one."""
    for part, line in lines():
        if line.get("preset") == name:
            return part["data"], part["model"]
    settings = presets()[name]
    return settings["folder"], f"{'LSTM ' if settings['task'] == 'lm' else ''}{settings.get('model', '')}"


def kind_of(name: str) -> str:
    """Kind of the embedding of a preset."""
    return presets()[name]["embedding"]["kind"]


def layer_of(name: str) -> dict[str, Any]:
    """Parameters of the embedding of a preset."""
    return {k: v for k, v in presets()[name]["embedding"].items() if k != "kind"}


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
    for runs in _over_seeds(records):
        label = f"{style_of(runs[0]['method'])[0]}, {_whether(runs[0]['retrained'])}"
        own = {"method": label, "configuration": configuration(runs[0]["parameters"])}
        rows.append(common | own | ours(runs, metric))
    return rows


def _whether(retrained: bool) -> str:
    return "trained on" if retrained else "as it is"


def _over_seeds(records: list[Row]) -> list[list[Row]]:
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
    for stem, records in _records(folder, "*-compressed.json"):
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


def markdown(tables: dict[str, tuple[str, list[Row]]]) -> str:
    """All tables as Markdown, with footnotes."""
    number: dict[str, int] = {}
    lines = ["# The paper's tables, and ours", "", LEGEND]
    for title, rows in tables.values():
        cells = _shown(rows, number)
        lines += ["", f"## {title}", "", f"| {' | '.join(cells[0])} |"]
        lines += [f"|{'|'.join('---' if header in LEFT else '---:' for header in cells[0])}|"]
        lines += [f"| {' | '.join(cell.values())} |" for cell in cells]
    lines += ["", "## Notes", "", *(f"{i}. {note}" for note, i in number.items())]
    return "\n".join(lines) + "\n"


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
        tables.md, tables.txt, table-NAME.csv, and for each figure .png, .svg and .csv.
    """
    import matplotlib

    matplotlib.use("Agg")
    folder, output = Path(folder), Path(output)
    results = read_results(folder)
    tables = tables_of(folder, results)
    output.mkdir(parents=True, exist_ok=True)
    files = {"tables.md": markdown(tables), "tables.txt": text(tables)}
    for name, (_, rows) in tables.items():
        flat = (row | {"note": " ".join(row.get("note", ()))} for row in rows)
        files[f"table-{name}.csv"] = to_csv(flat, COLUMNS)
    for name, content in files.items():
        write_atomically(output / name, content.encode())
    written = [output / name for name in files]
    with matplotlib.rc_context(RC):
        if results:
            written += _epochs(output / "epochs", results)
            written += _ratios(output / "ratios", results)
        if costs := _costs(results):
            written += _minutes(output / "minutes", costs)
        for stem, records in _records(folder, "*-compressed.json"):
            written += _compressed(output / stem, records, tables[stem][1])
        for stem, records in _records(folder, "grid-*.json"):
            written += _heat_maps(output / stem, records)
    return written


# --- Figures --------------------------------------------------------------------------------------------


def _by_place(results: dict[str, list[Result]]) -> dict[tuple[str, str], list[str]]:
    """Presets of results, by data set and model."""
    places = defaultdict(list)
    for name in results:
        places[place(name)].append(name)
    return dict(places)


def _panels(n: int) -> tuple[Any, list[Any]]:
    """Figure of n panels, up to three in a row."""
    from matplotlib import pyplot

    columns = 2 if n == 4 else min(n, 3)
    height = -(-n // columns)
    figure, panels = pyplot.subplots(height, columns, figsize=(3.6 * columns, 2.9 * height), squeeze=False)
    for axes in panels.ravel()[n:]:
        axes.remove()
    return figure, list(panels.ravel()[:n])


def _label(name: str) -> str:
    """Name the method of a preset, with its configuration."""
    return " ".join((style_of(kind_of(name))[0], configuration(layer_of(name)))).strip()


def epochs_of(result: Result) -> float:
    """Epochs that a training took."""
    plan = result["config"]["plan"]
    if "epochs" in plan:
        return plan["epochs"]
    counts = result["data"].get("documents") or result["data"]["pairs"]
    return result["steps"] * plan["batch_size"] / counts["train"]


def _epochs(stem: Path, results: dict[str, list[Result]]) -> list[Path]:
    """Draw the validation metric by epoch: seeds faded, their mean a line."""
    places = _by_place(results)
    figure, panels = _panels(len(places))
    table: list[Row] = []
    for axes, ((data, model), names) in zip(panels, places.items(), strict=True):
        metric = metric_of(results[names[0]][0]).replace("test", "validation")
        seen: list[str] = []
        for name in names:
            kind = kind_of(name)
            _, colour, _ = style_of(kind)
            dashes = ("-", "--", ":", "-.")[seen.count(kind) % 4]
            seen.append(kind)
            lines = []
            for run in results[name]:
                at = [e["step"] * epochs_of(run) / run["steps"] for e in run["evaluations"]]
                values = [e[metric] for e in run["evaluations"]]
                lines.append(values)
                if len(results[name]) > 1:
                    axes.plot(at, values, color=colour, ls=dashes, lw=0.7, alpha=0.3)
                own = {"preset": name, "seed": run["config"]["seed"], "metric": metric}
                table += [
                    own | {"epoch": round(x, 4), "value": round(y, 6)}
                    for x, y in zip(at, values, strict=True)
                ]
            dot = "." if len(at) == 1 else None
            axes.plot(
                at, np.mean(lines, axis=0), color=colour, ls=dashes, lw=1.3, marker=dot, label=_label(name)
            )
        if metric == "validation_perplexity":
            _perplexity_axis(axes)
        axes.set_title(f"{data}, {model}", fontsize=9)
        axes.set_xlabel("epoch")
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.set_ylabel(METRICS[metric].axis, fontsize=8)
        axes.legend()
    figure.tight_layout()
    return save_figure(figure, stem, table)


def _perplexity_axis(axes: Any) -> None:
    """Make the y axis logarithmic, with plain numbers, where perplexities are far apart."""
    from matplotlib.ticker import LogLocator, NullLocator

    low, high = axes.dataLim.intervaly
    if high >= 2.5 * low:
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 1.2, 1.5, 2, 3, 5, 7)))
        axes.yaxis.set_major_formatter(lambda y, _: f"{y:g}")
        axes.yaxis.set_minor_locator(NullLocator())


def _ratios(stem: Path, results: dict[str, list[Result]]) -> list[Path]:
    """Test metric against compression ratio: ours filled, the paper's rows of data set and model hollow."""
    places = _by_place(results)
    figure, panels = _panels(len(places))
    table: list[Row] = []
    handles: dict[str, Any] = {}
    for axes, ((data, model), names) in zip(panels, places.items(), strict=True):
        metric = metric_of(results[names[0]][0])
        points = [
            (kind_of(name), configuration(layer_of(name)), "", *_point(ours(results[name], metric)))
            for name in names
        ]
        theirs = {  # a row that stands in several tables once
            (line["method"], line["ratio"], line["value"]): (line.get("detail", ""), line["mark"])
            for part, line in reversed([*lines()])
            if (part["data"], part["model"]) == (data, model) and not isinstance(line["value"], list)
        }
        points += [(method, *known, ratio, value, 0.0) for (method, ratio, value), known in theirs.items()]
        for point in points:
            method, _, mark, ratio, value, deviation = point
            label, colour, marker = style_of(method)
            look: dict[str, Any] = {"mfc": "white", "alpha": 0.6} if mark else {"mfc": colour, "zorder": 3}
            look |= {"color": colour, "marker": marker, "ms": 8 if method == "full" else 5, "ls": ""}
            drawn = axes.errorbar(ratio, value, deviation or None, capsize=2, **look)
            handles.setdefault(f"{label} (paper)" if mark else label, drawn)
            keys = ("method", "detail", "paper_mark", "compression_ratio", "value", "spread")
            table.append(
                {"data": data, "model": model, "metric": metric} | dict(zip(keys, point, strict=True))
            )
        ratio_axis(axes)
        axes.set_title(f"{data}, {model}", fontsize=9)
        axes.set_xlabel("compression ratio of the table")
        axes.set_ylabel(METRICS[metric].axis, fontsize=8)
    figure.tight_layout()
    title = "hollow: the paper's numbers, most of them recalled (marks in the table)"
    figure.legend(
        handles.values(), handles, title=title, loc="upper center", bbox_to_anchor=(0.5, 0.0), ncols=4
    )
    return save_figure(figure, stem, table)


def _point(row: Row) -> tuple[float, float, float]:
    """Ratio, mean and spread of a row of ours."""
    return row["compression_ratio"], row["ours"], row["spread"]


def _costs(results: dict[str, list[Result]]) -> list[tuple[str, str, dict[str, list[float]]]]:
    """Minutes of each epoch by preset, where DPQ and full were trained on one processor."""
    found = []
    for (data, model), names in _by_place(results).items():
        processors = dict.fromkeys(r["environment"]["processor"] for name in names for r in results[name])
        for processor in processors:
            epochs: dict[str, list[float]] = defaultdict(list)
            for name in names:
                for run in results[name]:
                    if run["environment"]["processor"] == processor:
                        at = np.array([(0, 0), *((e["step"], e["minutes"]) for e in run["evaluations"])])
                        rate = np.diff(at[:, 1]) / np.diff(at[:, 0])
                        epochs[name] += list(rate * run["steps"] / epochs_of(run))
            kinds = {kind_of(name) for name in epochs}
            if "full" in kinds and len(kinds) > 1:
                found.append((f"{data}, {model}", processor, dict(epochs)))
    return found


def _minutes(stem: Path, costs: list[tuple[str, str, dict[str, list[float]]]]) -> list[Path]:
    """Training minutes of an epoch: each faded, the median marked, and how many times that of full."""
    figure, panels = _panels(len(costs))
    table: list[Row] = []
    for axes, (title, processor, epochs) in zip(panels, costs, strict=True):
        full = next(np.median(minutes) for name, minutes in epochs.items() if kind_of(name) == "full")
        for y, (name, minutes) in enumerate(epochs.items()):
            _, colour, marker = style_of(kind_of(name))
            median = float(np.median(minutes))
            axes.plot(minutes, [y] * len(minutes), marker, color=colour, alpha=0.2, ms=4, mew=0)
            axes.plot(median, y, marker, color=colour, ms=7)
            axes.text(median, y - 0.3, f"{median / full:.2f}x", ha="center", fontsize=7)
            row = {"preset": name, "processor": processor, "intervals": len(minutes)}
            table.append(row | {"median_minutes": round(median, 6), "to_full": round(median / full, 6)})
        axes.set_yticks(range(len(epochs)), [_label(name) for name in epochs], fontsize=7.5)
        axes.set_ylim(len(epochs) - 0.5, -0.7)
        axes.set_xlim(0, 1.08 * max(map(max, epochs.values())))
        axes.set_title(f"{title}\n{processor}", fontsize=8)
        axes.set_xlabel("training minutes per epoch")
    figure.tight_layout()
    return save_figure(figure, stem, table)


def _compressed(stem: Path, records: list[Row], rows: list[Row]) -> list[Path]:
    """Metric against ratio of what was compressed after training: as it is hollow, trained on filled."""
    from matplotlib import pyplot

    figure, axes = pyplot.subplots()
    table: list[Row] = []
    metric = rows[0]["metric"]
    lines: dict[tuple[str, str, bool | None], list[Row]] = defaultdict(list)
    for row in rows:
        if row.get("preset"):
            lines[kind_of(row["preset"]), "", None].append(row)
    for runs in _over_seeds(records):
        # A line is what differs in numbers alone.
        settings = {k: v for k, v in runs[0]["parameters"].items() if isinstance(v, (bool, str))}
        lines[runs[0]["method"], configuration(settings), runs[0]["retrained"]].append(ours(runs, metric))
    variants: dict[str, list[str]] = defaultdict(list)
    for (method, variant, retrained), line in lines.items():
        label, colour, marker = style_of(method)
        if variant not in variants[method]:
            variants[method].append(variant)
        label = ", ".join(filter(None, (label, variant, "" if retrained is None else _whether(retrained))))
        points = sorted(map(_point, line))
        at, means, spreads = zip(*points, strict=True)
        axes.errorbar(
            at,
            means,
            spreads,
            color=colour,
            marker=marker,
            mfc="white" if retrained is False else colour,
            ls=("-", ":", "--", "-.")[variants[method].index(variant) % 4],
            lw=1,
            ms=9 if method == "full" else 5,
            capsize=2,
            zorder=4 if retrained is None else 3,
            label=label,
        )
        if method == "full":
            axes.axhline(points[0][1], color=colour, lw=0.8, ls="--", zorder=0)
        names = ("compression_ratio", metric, "spread")
        table += [{"line": label, **dict(zip(names, point, strict=True))} for point in points]
    ratio_axis(axes)
    if metric == "test_perplexity":
        _perplexity_axis(axes)
    axes.set_xlabel("compression ratio of the table (32 bits an entry over the bits stored)")
    axes.set_ylabel(METRICS[metric].axis)
    axes.set_title(f"{rows[0]['data']}, {rows[0]['model']}")
    axes.legend(loc="upper left", bbox_to_anchor=(1.01, 1.0))
    return save_figure(figure, stem, table)


def _heat_maps(stem: Path, records: list[Row]) -> list[Path]:
    """Metric by K and D, a panel a method and sharing, means over seeds; one scale of colours."""
    metric = metric_of(records[0])
    groups: dict[tuple[str, bool, int, int], list[float]] = defaultdict(list)
    for r in records:
        groups[r["method"], bool(r["shared"]), r["n_codes"], r["n_groups"]].append(r[metric])
    names = ("method", "shared", "n_codes", "n_groups")
    table: list[Row] = []
    for key, values in sorted(groups.items()):
        mean, deviation = spread(values)
        found = {metric: round(mean, 6), "spread": round(deviation, 6), "seeds": len(values)}
        table.append(dict(zip(names, key, strict=True)) | found)
    rows, columns = (sorted({row[name] for row in table}) for name in names[2:])
    kinds = dict.fromkeys((row["method"], row["shared"]) for row in table)
    scale = [min(row[metric] for row in table), max(row[metric] for row in table)]
    colours = "viridis_r" if metric == "test_perplexity" else "viridis"  # the better the brighter
    figure, panels = _panels(len(kinds))
    for axes, (method, shared) in zip(panels, kinds, strict=True):
        grid = np.full((len(rows), len(columns)), np.nan)
        for row in table:
            if (row["method"], row["shared"]) == (method, shared):
                grid[rows.index(row["n_codes"]), columns.index(row["n_groups"])] = row[metric]
        image = axes.imshow(grid, cmap=colours, vmin=scale[0], vmax=scale[1], origin="lower", aspect="auto")
        for (i, j), value in np.ndenumerate(grid):
            if np.isfinite(value):
                ink = "black" if np.dot(image.cmap(image.norm(value))[:3], (0.3, 0.6, 0.1)) > 0.5 else "white"
                axes.text(j, i, f"{value:.1f}", ha="center", va="center", fontsize=8, color=ink)
        axes.grid(False)
        axes.set_xticks(range(len(columns)), map(str, columns))
        axes.set_yticks(range(len(rows)), map(str, rows))
        axes.set_xlabel("groups D")
        axes.set_ylabel("codes of a group K")
        axes.set_title(f"{style_of(method)[0]}, {'shared' if shared else 'not shared'}", fontsize=9)
    figure.suptitle(f"{stem.name.removeprefix('grid-')}: {METRICS[metric].axis}", fontsize=10)
    figure.tight_layout()
    return save_figure(figure, stem, table)
