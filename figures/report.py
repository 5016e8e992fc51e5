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
from figures.style import STYLES, read_all, style_of

Record = dict[str, Any]
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
        text = " ".join(f"{k}={v}" for k, v in sorted(run["parameters"].items()))
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
        cells.append(_number([record["seconds"]["fit"] for record in group], ".3g"))
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
    names = _distinct(name for record in records for name in record["environment"])
    pairs = ((name, _distinct(str(record["environment"].get(name)) for record in records)) for name in names)
    return "".join(f"<dt>{escape(name)}</dt><dd>{escape(', '.join(values))}</dd>" for name, values in pairs)


def _distinct(values: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(values))


def _count(n: int, what: str) -> str:
    return f"{n:,} {what}{'' if n == 1 else 's'}"
