"""Figures that look inside runs, from their records alone: codes, gradients, spectra.

Each is drawn where the records have what it shows.
"""

from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median_low
from typing import Any

import numpy as np

from figures.paper import configuration
from figures.style import STYLES, save_figure, style_of

Row = dict[str, Any]
DASHES: tuple[Any, ...] = ("-", "--", ":", "-.", (0, (5, 1, 1, 1, 1, 1)), (0, (1, 4)))
CODES = {
    "codes_changed": "codes changed since\nthe last evaluation, %",
    "code_perplexity": "perplexity of codes / K, %",
}
LAYERS = {  # of the classifier: colour, marker
    "embedding": ("#0072B2", "o"),
    "norm1": ("#E69F00", "v"),
    "dense1": ("#000000", "s"),
    "norm2": ("#CC79A7", "^"),
    "dense2": ("#D55E00", "D"),
}
ROUNDING = 1e-5  # of the largest norm or singular value: what stays below is rounding


@dataclass(frozen=True)
class Setting:
    """A method with one set of parameters: its records, one a seed."""

    method: str
    parameters: dict[str, Any]
    records: list[Row]

    @property
    def ratio(self) -> float:
        """Mean compression ratio."""
        return float(np.mean([record["compression_ratio"] for record in self.records]))

    @property
    def columns(self) -> Row:
        """What every CSV says of it."""
        parameters = configuration(self.parameters)
        return {"method": self.method, "parameters": parameters, "compression_ratio": round(self.ratio, 4)}


def settings_with(key: str, records: list[Row]) -> list[Setting]:
    """Gather records that have a key over seeds, in the order of styles and rising ratio."""
    found: dict[tuple[str, str], Setting] = {}
    for record in records:
        if key in record:
            run = record["specification"]
            name = run["method"], configuration(run["parameters"])
            found.setdefault(name, Setting(run["method"], run["parameters"], [])).records.append(record)
    order = {method: i for i, method in enumerate(STYLES)}
    return sorted(
        found.values(), key=lambda s: (order.get(s.method, len(order)), s.ratio, configuration(s.parameters))
    )


def nearest_of_each(settings: list[Setting], ratio: float, factor: float = np.inf) -> list[Setting]:
    """Take of each method the setting of the nearest ratio, if within a factor; of several the first."""
    best: dict[str, Setting] = {}
    for setting in settings:
        away = abs(np.log(setting.ratio / ratio))
        known = best.get(setting.method)
        if away <= np.log(factor) and (known is None or away < abs(np.log(known.ratio / ratio))):
            best[setting.method] = setting
    return list(best.values())


def middle_ratio(settings: list[Setting]) -> float:
    """Ratio at which methods are compared: the middle one of DPQ-SX, or of all that are not full."""
    smaller = [s for s in settings if s.ratio > 1] or settings
    return median_low([s.ratio for s in smaller if s.method == "dpq-sx"] or [s.ratio for s in smaller])


def draw(folder: Path, records: list[Row]) -> list[Path]:
    """Draw all figures for which there are records.

    Parameters
    ----------
    folder : Path
    records : list of dict
        Of runs, without those that failed.

    Returns
    -------
    list of Path
    """
    written: list[Path] = []
    watched = [r for r in records if any("codes_changed" in e for e in r.get("evaluations", ()))]
    if settings := settings_with("evaluations", watched):
        written += draw_codes(folder / "code_changes", _curves(settings), "step")
    if settings := settings_with("gradient_norms", records):
        written += _gradients(folder / "gradients", settings)
    if settings := settings_with("singular_values", records):
        written += _spectra(folder / "spectra", settings)
    return written


# --- Codes ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Curve:
    """Codes of one training.

    Attributes
    ----------
    columns : dict
        What the CSV says of it.
    at : list of float, where its evaluations are
    evaluations : list of dict, with the keys of CODES
    n_codes : int
    label : str or None
    look : dict, for `axes.plot`
    """

    columns: Row
    at: list[float]
    evaluations: list[Row]
    n_codes: int
    label: str | None
    look: Row = field(default_factory=dict)


def draw_codes(stem: Path, panels: dict[str, list[Curve]], unit: str) -> list[Path]:
    """Draw how codes settle: the share that changes from one evaluation to the next, and their use.

    Parameters
    ----------
    stem : Path
    panels : dict
        Title -> curves.
    unit : str
        What `Curve.at` counts.
    """
    from matplotlib import pyplot

    figure, grid = pyplot.subplots(
        2, len(panels), figsize=(3.6 * len(panels), 5), sharex="col", sharey="row", squeeze=False
    )
    table: list[Row] = []
    for column, (title, curves) in zip(grid.T, panels.items(), strict=True):
        for axes, key in zip(column, CODES, strict=True):
            for curve in curves:
                whole = curve.n_codes if key == "code_perplexity" else 1
                values = [100 * e[key] / whole for e in curve.evaluations]
                marker = "." if len(values) < 10 else None
                axes.plot(curve.at, values, label=curve.label, lw=1, marker=marker, **curve.look)
                table += [
                    curve.columns | {"quantity": key, unit: round(x, 4), "percent": round(y, 6)}
                    for x, y in zip(curve.at, values, strict=True)
                ]
        column[0].set_title(title, fontsize=9)
        column[1].set_xlabel(unit)
        column[1].legend(loc="upper center", bbox_to_anchor=(0.5, -0.22))
        column[1].xaxis.get_major_locator().set_params(integer=True)
    for row, label in zip(grid, CODES.values(), strict=True):
        row[0].set_ylabel(label, fontsize=8)
        row[0].set_ylim(0, 1.06 * max(axes.dataLim.y1 for axes in row))
    figure.tight_layout()
    return save_figure(figure, stem, table)


def _curves(settings: list[Setting]) -> dict[str, list[Curve]]:
    """Curves of all seeds by method: a dash a setting, all but the first seed faded."""
    panels: dict[str, list[Curve]] = defaultdict(list)
    for method in dict.fromkeys(s.method for s in settings):
        label, colour, _ = style_of(method)
        mine = [s for s in settings if s.method == method]
        told = {"n_groups", "n_codes"} if len(mine) == 1 else _differing(mine)
        for dash, setting in enumerate(mine):
            text = configuration({k: v for k, v in setting.parameters.items() if k in told})
            for i, record in enumerate(setting.records):
                look = {"color": colour, "ls": DASHES[dash % len(DASHES)], "alpha": 0.3 if i else 1}
                name = None if i else f"{text} ({setting.ratio:.1f}x)"
                panels[label].append(
                    Curve(
                        setting.columns | {"seed": record["specification"]["seed"]},
                        [e["step"] for e in record["evaluations"]],
                        record["evaluations"],
                        setting.parameters["n_codes"],
                        name,
                        look,
                    )
                )
    return panels


def _differing(settings: list[Setting]) -> set[str]:
    """Parameters that are not the same in all."""
    names = {name for s in settings for name in s.parameters}
    return {name for name in names if len({str(s.parameters.get(name)) for s in settings}) > 1}


# --- Gradients --------------------------------------------------------------------------------------------


def _gradients(stem: Path, settings: list[Setting]) -> list[Path]:
    """Norm of the gradient of each parameter, mean over seeds: a panel a method, at about one ratio.

    Gains, shifts and biases are thin. A bias before a batch norm has no gradient but rounding, and no line.
    """
    settings = [s for s in settings if s.method in ("full", "dpq-sx", "dpq-vq")]
    shown = nearest_of_each(settings, middle_ratio(settings))
    figure, panels = _row_of(len(shown))
    table: list[Row] = []
    handles: dict[str, Any] = {}
    for axes, setting in zip(panels, shown, strict=True):
        norms = {
            name: np.mean([record["gradient_norms"][name] for record in setting.records], axis=0)
            for name in setting.records[0]["gradient_norms"]
        }
        steps = norms.pop("step")
        largest = max(values.max() for values in norms.values())
        norms = {name: values for name, values in norms.items() if values.max() > ROUNDING * largest}
        seen: list[str] = []
        for name, values in norms.items():
            layer = name.partition(".")[0]
            colour, marker = LAYERS[layer]
            dash = seen.count(layer)
            thin = layer != "embedding" and not name.endswith("weight")
            (line,) = axes.plot(
                steps,
                values,
                color=colour,
                marker=None if thin else marker,
                markevery=(dash, max(3, len(steps) // 5)),
                ls=DASHES[(dash + (layer in ("norm1", "norm2"))) % len(DASHES)],
                lw=1.5 if layer == "embedding" else 0.6 if thin else 1,
                ms=3,
            )
            seen.append(layer)
            handles.setdefault(name, line)
            table += [
                setting.columns | {"parameter": name, "step": int(step), "norm": float(f"{value:.5g}")}
                for step, value in zip(steps, values, strict=True)
            ]
        axes.set_yscale("log")
        axes.set_xlabel("step")
        axes.set_title(title_of(setting), fontsize=9)
    panels[0].set_ylabel("norm of the gradient")
    figure.tight_layout()
    handles = dict(sorted(handles.items(), key=lambda item: [*LAYERS].index(item[0].partition(".")[0])))
    figure.legend(
        handles.values(), handles, loc="center left", bbox_to_anchor=(1, 0.5), handlelength=3.5, fontsize=7
    )
    return save_figure(figure, stem, table)


def _row_of(n: int) -> tuple[Any, list[Any]]:
    """Figure of n small panels side by side, on one y axis."""
    from matplotlib import pyplot

    figure, panels = pyplot.subplots(1, n, figsize=(2.4 * n + 0.4, 2.8), sharey=True, squeeze=False)
    return figure, list(panels[0])


def title_of(setting: Setting) -> str:
    """Name the method, with its ratio."""
    ratio = f", {setting.ratio:.1f}x" if setting.ratio > 1 else ""
    return style_of(setting.method)[0] + ratio


# --- Spectra ----------------------------------------------------------------------------------------------


def _spectra(stem: Path, settings: list[Setting]) -> list[Path]:
    """Singular values of the tables, first seed: a panel a class of ratios, a factor of four each."""
    full = [s for s in settings if s.method == "full"]
    classes: dict[int, list[Setting]] = defaultdict(list)
    for setting in settings:
        if setting.ratio > 1:
            classes[round(np.log2(setting.ratio) / 2)].append(setting)
    figure, panels = _row_of(len(classes) or 1)
    table: list[Row] = []
    handles: dict[str, Any] = {}
    for axes, number in zip(panels, sorted(classes) or [0], strict=True):
        shown = nearest_of_each(classes[number], 4.0**number)
        for i, setting in enumerate([*full, *shown]):
            label, colour, marker = style_of(setting.method)
            values = np.array(setting.records[0]["singular_values"])
            values = values[values > ROUNDING * values[0]]
            ranks = np.arange(1, len(values) + 1)
            marked = np.unique(np.geomspace(1, len(values), 6).astype(int) - 1)
            look: Row = {
                "lw": 1.8 if "dpq" in setting.method else 0.9,
                "marker": marker,
                "ms": 4,
                "markevery": list(marked),
            }
            if setting.method == "full":
                look = {"lw": 3, "alpha": 0.35}
            (line,) = axes.plot(ranks, values, color=colour, zorder=2 + i, **look)
            handles.setdefault(label, line)
            table += [
                {"panel": 4**number}
                | setting.columns
                | {"rank": int(rank), "singular_value": float(f"{value:.5g}")}
                for rank, value in zip(ranks, values, strict=True)
            ]
        axes.set_xscale("log")
        axes.set_yscale("log")
        ratios = [setting.ratio for setting in shown]
        if ratios:
            axes.set_title(" to ".join(dict.fromkeys(f"{f(ratios):.3g}x" for f in (min, max))), fontsize=9)
        axes.xaxis.set_major_formatter(lambda x, _: f"{x:g}")
        axes.set_xlabel("rank")
    panels[0].set_ylabel("singular value of the table")
    figure.tight_layout()
    order = {label: i for i, (label, *_) in enumerate(STYLES.values())}
    handles = dict(sorted(handles.items(), key=lambda item: order.get(item[0], len(order))))
    figure.legend(handles.values(), handles, loc="center left", bbox_to_anchor=(1, 0.5))
    return save_figure(figure, stem, table)
