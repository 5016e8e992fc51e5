"""Figures of the paper's tasks, from stored results: by epoch, by ratio, minutes, heat maps of K and D."""

from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np

from dpq_ref.metrics import METRICS
from figures.paper import configuration, ours, over_seeds, whether
from figures.paper_results import kind_of, layer_of, lines, metric_of, place, records_in, spread
from figures.plot import ratio_axis
from figures.style import RC, save_figure, style_of

Row = dict[str, Any]
Result = dict[str, Any]


def draw(
    folder: Path, output: Path, results: dict[str, list[Result]], tables: dict[str, list[Row]]
) -> list[Path]:
    """Draw all figures for which there are results in a folder.

    Parameters
    ----------
    folder, output : Path
    results : dict
        Of `read_results`.
    tables : dict
        Rows of the tables by name.

    Returns
    -------
    list of Path
    """
    import matplotlib

    matplotlib.use("Agg")
    written = []
    with matplotlib.rc_context(RC):
        if results:
            written += _epochs(output / "epochs", results)
            written += _ratios(output / "ratios", results)
        if costs := _costs(results):
            written += _minutes(output / "minutes", costs)
        for stem, records in records_in(folder, "*-compressed.json"):
            written += _compressed(output / stem, records, tables[stem])
        for stem, records in records_in(folder, "grid-*.json"):
            written += _heat_maps(output / stem, records)
    return written


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
    for runs in over_seeds(records):
        # A line is what differs in numbers alone.
        settings = {k: v for k, v in runs[0]["parameters"].items() if isinstance(v, (bool, str))}
        lines[runs[0]["method"], configuration(settings), runs[0]["retrained"]].append(ours(runs, metric))
    variants: dict[str, list[str]] = defaultdict(list)
    for (method, variant, retrained), line in lines.items():
        label, colour, marker = style_of(method)
        if variant not in variants[method]:
            variants[method].append(variant)
        label = ", ".join(filter(None, (label, variant, "" if retrained is None else whether(retrained))))
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
