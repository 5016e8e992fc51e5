"""Figures of records of one kind: compressed after training, grids of K and D, cost of a training step."""

from collections import defaultdict
from pathlib import Path
from typing import Any

from dpq_ref.metrics import METRICS
from figures import plot_heat
from figures.paper import configuration, ours, over_seeds, whether
from figures.paper_results import kind_of, metric_of, records_in
from figures.plot_paper import measured
from figures.rows import cells_of, text_of
from figures.style import make_panels, perplexity_axis, ratio_axis, save_figure, style_of

Row = dict[str, Any]


def draw(folder: Path, output: Path, tables: dict[str, list[Row]]) -> list[Path]:
    """Draw all figures for which there are records in a folder.

    Parameters
    ----------
    folder, output : Path
    tables : dict
        Rows of the tables by name.

    Returns
    -------
    list of Path
    """
    written = []
    for stem, records in records_in(folder, "*-compressed.json"):
        written += _compressed(output / stem, records, tables[stem])
    for stem, records in records_in(folder, "grid-*.json"):
        written += _heat_maps(output / stem, records)
    for stem, records in records_in(folder, "cost-*.json"):
        written += _cost(output / stem, records)
    return written


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
        points = sorted(map(measured, line))
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
        perplexity_axis(axes)
    axes.set_xlabel("compression ratio of the table (32 bits an entry over the bits stored)")
    axes.set_ylabel(METRICS[metric].axis)
    axes.set_title(f"{rows[0]['data']}, {rows[0]['model']}")
    axes.legend(loc="upper left", bbox_to_anchor=(1.01, 1.0))
    return save_figure(figure, stem, table)


def _heat_maps(stem: Path, records: list[Row]) -> list[Path]:
    """Metric by K and D, a panel a method and sharing, means over seeds."""
    metric = metric_of(records[0])
    names = ("n_codes", "n_groups", "shared")
    rows = [
        {"dataset": stem.name, "method": r["method"], "parameters": text_of({k: r[k] for k in names})}
        | {
            "seed": r["seed"],
            "bits": None,
            "compression_ratio": r.get("compression_ratio", 1),
            "seconds": None,
        }
        | {"metric": metric, "value": r[metric]}
        for r in records
    ]
    return plot_heat.draw(stem, stem.name.removeprefix("grid-"), cells_of(rows, metric), metric)


def _cost(stem: Path, records: list[Row]) -> list[Path]:
    """Time and memory of a training step by K, a line for each D, as multiples of the full embedding's."""
    figure, panels = make_panels(2)
    names = {"time_to_full": "time of a step", "memory_to_full": "memory of a step"}
    lines = defaultdict(list)
    for record in records:
        if record["method"] != "full":
            lines[record["method"], record["n_groups"]].append(record)
    dashes = dict(zip(sorted({n_groups for _, n_groups in lines}), (":", "--", "-", "-."), strict=False))
    for axes, (key, label) in zip(panels, names.items(), strict=True):
        for (method, n_groups), line in sorted(lines.items()):
            title, colour, marker = style_of(method)
            at, values = zip(*sorted((record["n_codes"], record[key]) for record in line), strict=True)
            look = {"color": colour, "marker": marker, "ls": dashes[n_groups], "ms": 4, "lw": 1}
            axes.plot(at, values, label=f"{title} D={n_groups}", **look)
        axes.axhline(1, color=style_of("full")[1], lw=0.8)
        axes.set_xscale("log", base=2)
        axes.set_xticks(at, map(str, at))
        axes.set_ylim(0, 1.2 * max(1, *(record[key] for record in records)))
        axes.set_xlabel("codes of a group K")
        axes.set_ylabel(f"{label} / full embedding's", fontsize=8)
    panels[0].legend()
    figure.suptitle(f"LSTM {records[0]['model']}, {records[0]['environment']['processor']}", fontsize=9)
    figure.tight_layout()
    keys = ("method", "n_codes", "n_groups", *names)
    return save_figure(figure, stem, [{k: record.get(k, "") for k in keys} for record in records])
