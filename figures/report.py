"""Results -> one self-contained page: tables that sort, the figures, the commands and the environment."""

import base64
import os
from collections.abc import Iterable
from html import escape
from pathlib import Path
from statistics import fmean, stdev
from string import Template
from typing import Any

from dpq_ref.metrics import METRICS, Metric
from figures import matched
from figures.records import Record, read_all
from figures.rows import rows_of, text_of
from figures.style import STYLES, style_of

TEMPLATE = Path(__file__).with_suffix(".html")


def report(folder: str | os.PathLike, figures: Iterable[Path]) -> str:
    """Page of a folder of results.

    Parameters
    ----------
    folder : path-like
        With `runs/*.json`.
    figures : iterable of Path
        Drawn from it; of these the .svg are shown, and the .csv behind each can be saved from the page.

    Returns
    -------
    str
        HTML that loads nothing from elsewhere.

    Raises
    ------
    FileNotFoundError
        If there are no results.
    """
    records = read_all(folder)
    done = [record for record in records if "error" not in record]
    failed = [record for record in records if "error" in record]
    names = sorted({record["specification"]["dataset"] for record in records})
    seeds = {record["specification"]["seed"] for record in records}
    summary = f"{_count(len(done), 'run')} of {_count(len(seeds), 'seed')}"
    return Template(TEMPLATE.read_text(encoding="utf8")).substitute(
        title=escape(f"Embedding compression: {', '.join(names)}"),
        summary=summary + (f", and {_count(len(failed), 'run')} that failed." if failed else "."),
        table=_table(done),
        matched=_matched(done),
        failures=_failures(failed),
        figures="\n".join(_figure(path) for path in figures if path.suffix == ".svg"),
        commands=escape("\n".join(_distinct(record.get("command", "not recorded") for record in records))),
        environment=_environment(records),
    )


def _table(records: list[Record]) -> str:
    """Row a method and its parameters, column a metric; what the registry does not know is left out."""
    groups: dict[tuple[str, str], list[Record]] = {}
    for record in records:
        run = record["specification"]
        text = text_of(run["parameters"])
        groups.setdefault((run["method"], text), []).append(record)
    shown = [m for m in METRICS.values() if any(m.name in record["metrics"] for record in records)]
    head = [("method", "text"), ("parameters", "text"), ("seeds", ""), ("ratio", ""), ("bits", "")]
    head += [(_heading(metric), "") for metric in shown] + [("seconds to fit", "")]
    lines = []
    order = {method: i for i, method in enumerate(STYLES)}

    def place(entry: tuple[tuple[str, str], list[Record]]) -> tuple[Any, ...]:
        (method, text), group = entry
        return order.get(method, len(order)), method, group[0]["compression_ratio"], text

    for (method, text), group in sorted(groups.items(), key=place):
        label = style_of(method)[0]
        cells = [_cell(label, label, "text"), _cell(text, text, "text"), _cell(len(group), str(len(group)))]
        cells.append(_number([record["compression_ratio"] for record in group], ".1f"))
        cells.append(_number([sum(record["bits"].values()) for record in group], ",.0f"))
        for metric in shown:
            values = [r["metrics"][metric.name] for r in group if metric.name in r["metrics"]]
            cells.append(_number(values, ".4g", spread=True))
        seconds = (record.get("seconds", {}).get("fit") for record in group)
        cells.append(_number([value for value in seconds if value is not None], ".3g"))
        lines.append(f"<tr>{''.join(cells)}</tr>")
    columns = (f'<th class="{kind}"><button>{escape(name)}</button></th>' for name, kind in head)
    return f"<table><thead><tr>{''.join(columns)}</tr></thead><tbody>{''.join(lines)}</tbody></table>"


def _heading(metric: Metric) -> str:
    unit = f" ({metric.unit})" if metric.unit else ""
    return f"{metric.label}{unit} {'↑' if metric.better == 'higher' else '↓'}"


def _number(values: list[float], style: str, *, spread: bool = False) -> str:
    if not values:
        return _cell("", "")
    text = f"{fmean(values):{style}}"
    if spread and len(values) > 1:
        text += f" ± {stdev(values):.2g}"
    return _cell(fmean(values), text)


def _cell(value: Any, text: str, kind: str = "") -> str:
    return f'<td class="{kind}" data-value="{escape(str(value))}">{escape(text)}</td>'


def _matched(records: list[Record]) -> str:
    """Table a metric of the methods at equal bits."""
    tables = []
    for title, header, lines in matched.grids(matched.match(rows_of(records))):
        head = "".join(
            f'<th class="{"" if i else "text"}">{escape(name)}</th>' for i, name in enumerate(header)
        )
        body = (
            "".join(f'<td class="{"" if i else "text"}">{escape(entry)}</td>' for i, entry in enumerate(line))
            for line in lines
        )
        rows = "".join(f"<tr>{line}</tr>" for line in body)
        tables.append(
            f"<div class='wide'><table><caption>{escape(title)}</caption><thead><tr>{head}</tr></thead>"
            f"<tbody>{rows}</tbody></table></div>"
        )
    told = (
        "<h2>At equal bits</h2><p>Each method with the most bits within a budget, and more than half of it. "
        "A star marks the best.</p>"
    )
    return told + "\n".join(tables) if tables else ""


def _failures(failed: list[Record]) -> str:
    if not failed:
        return ""
    items = (
        f"<li><details><summary>{escape(name)}: {escape(error.splitlines()[-1])}</summary>"
        f"<pre>{escape(error)}</pre></details></li>"
        for name, error in ((record["name"], record["error"]) for record in failed)
    )
    return f"<h2>Runs that failed</h2><ul>{''.join(items)}</ul>"


def _figure(path: Path) -> str:
    name, table = escape(path.stem.replace("_", " ")), path.with_suffix(".csv")
    saved = f'<a download="{escape(table.name)}" href="{_data(table, "text/csv")}">its numbers (CSV)</a>'
    picture = f'<img alt="{name}" src="{_data(path, "image/svg+xml")}">'
    return f"<figure><div class='wide'>{picture}</div><figcaption>{name}: {saved}</figcaption></figure>"


def _data(path: Path, kind: str) -> str:
    return f"data:{kind};base64,{base64.b64encode(path.read_bytes()).decode()}"


def _environment(records: list[Record]) -> str:
    """Each entry with its values, several where the runs differ."""
    found = [record["environment"] for record in records if "environment" in record]
    names = _distinct(name for environment in found for name in environment)
    pairs = ((name, _distinct(str(environment.get(name)) for environment in found)) for name in names)
    return "".join(f"<dt>{escape(name)}</dt><dd>{escape(', '.join(values))}</dd>" for name, values in pairs)


def _distinct(values: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(values))


def _count(n: int, what: str) -> str:
    return f"{n:,} {what}{'' if n == 1 else 's'}"
