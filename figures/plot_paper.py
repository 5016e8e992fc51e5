"""Figures of trainings by preset, from stored results: by epoch, by ratio, minutes, codes."""

from collections import defaultdict
from pathlib import Path
from textwrap import fill
from typing import Any

import numpy as np

from dpq_ref.metrics import METRICS
from figures.paper import configuration, ours
from figures.paper_results import kind_of, layer_of, lines, metric_of, place
from figures.plot_inside import DASHES, Curve, draw_codes
from figures.style import make_panels, perplexity_axis, ratio_axis, save_figure, style_of

Row = dict[str, Any]
Result = dict[str, Any]


def draw(output: Path, results: dict[str, list[Result]]) -> list[Path]:
    """Draw all figures for which there are results.

    Parameters
    ----------
    output : Path
    results : dict
        Of `read_results`.

    Returns
    -------
    list of Path
    """
    written = []
    if results:
        written += _ratios(output / "ratios", results)
    # The rest is about how a training goes on, of which one evaluation tells nothing.
    followed = {name: runs for name, runs in results.items() if len(runs[0]["evaluations"]) > 1}
    if followed:
        written += _epochs(output / "epochs", followed)
    if costs := _costs(followed):
        written += _minutes(output / "minutes", costs)
    if watched := _watched(followed):
        written += _codes(output / "codes", watched)
    return written


def _by_place(results: dict[str, list[Result]]) -> dict[tuple[str, str], list[str]]:
    """Presets of results, by data set and model."""
    places = defaultdict(list)
    for name in results:
        places[place(name)].append(name)
    return dict(places)


def _label(name: str) -> str:
    """Name the method of a preset, with its configuration, in lines that fit beside a panel."""
    return fill(" ".join((style_of(kind_of(name))[0], configuration(layer_of(name)))), 32)


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
    figure, panels = make_panels(len(places))
    table: list[Row] = []
    for axes, ((data, model), names) in zip(panels, places.items(), strict=True):
        metric = metric_of(results[names[0]][0]).replace("test", "validation")
        seen: list[str] = []
        for name in names:
            kind = kind_of(name)
            _, colour, _ = style_of(kind)
            dashes = DASHES[seen.count(kind) % len(DASHES)]
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
            axes.plot(at, np.mean(lines, axis=0), color=colour, ls=dashes, lw=1.3, label=_label(name))
        if metric == "validation_perplexity":
            perplexity_axis(axes)
        axes.set_title(f"{data}, {model}", fontsize=9)
        axes.set_xlabel("epoch")
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.set_ylabel(METRICS[metric].axis, fontsize=8)
        axes.legend()
    figure.tight_layout()
    return save_figure(figure, stem, table)


def _ratios(stem: Path, results: dict[str, list[Result]]) -> list[Path]:
    """Test metric against compression ratio: ours filled, the paper's rows of data set and model hollow."""
    places = _by_place(results)
    figure, panels = make_panels(len(places))
    table: list[Row] = []
    handles: dict[str, Any] = {}
    for axes, ((data, model), names) in zip(panels, places.items(), strict=True):
        metric = metric_of(results[names[0]][0])
        points = [
            (kind_of(name), configuration(layer_of(name)), "", *measured(ours(results[name], metric)))
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


def measured(row: Row) -> tuple[float, float, float]:
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
    figure, panels = make_panels(len(costs))
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


def _watched(results: dict[str, list[Result]]) -> dict[str, list[Result]]:
    """Results with what became of the codes, evaluation by evaluation."""
    found = {
        name: [r for r in runs if "codes_changed" in r["evaluations"][-1]] for name, runs in results.items()
    }
    return {name: runs for name, runs in found.items() if runs}


def _codes(stem: Path, results: dict[str, list[Result]]) -> list[Path]:
    """How codes settle, by epoch: a panel a data set and model, dashes tell presets of one method apart."""
    panels: dict[str, list[Curve]] = {}
    for (data, model), names in _by_place(results).items():
        curves = panels[f"{data}, {model}"] = []
        for i, name in enumerate(names):
            dash = [kind_of(other) for other in names[:i]].count(kind_of(name))
            curves += [
                Curve(
                    {"preset": name, "seed": run["config"]["seed"]},
                    [e["step"] * epochs_of(run) / run["steps"] for e in run["evaluations"]],
                    run["evaluations"],
                    layer_of(name)["n_codes"],
                    _label(name) if run is results[name][0] else None,
                    {"color": style_of(kind_of(name))[1], "ls": DASHES[dash % len(DASHES)]},
                )
                for run in results[name]
            ]
    return draw_codes(stem, panels, "epoch")
