"""Figures of neighbours before and after compression, from records alone: as a table, and in the plane."""

from pathlib import Path
from typing import Any

import numpy as np

from figures.plot_inside import Setting, middle_ratio, nearest_of_each, settings_with, title_of
from figures.style import save_figure, style_of

Row = dict[str, Any]
MOST = 4  # panels of a row
N_WORDS = 2  # rows of panels


def draw(folder: Path, records: list[Row]) -> list[Path]:
    """Draw both figures, of the first seed, if there are records of the full table and of another.

    Parameters
    ----------
    folder : Path
    records : list of dict
        Of runs, without those that failed.

    Returns
    -------
    list of Path
    """
    records = [record for record in records if record.get("neighbours")]
    runs = [record["specification"] for record in records]
    first = min((run["seed"] for run in runs if run["method"] == "full"), default=None)
    of_seed = [record for record, run in zip(records, runs, strict=True) if run["seed"] == first]
    settings = settings_with("neighbours", of_seed)
    others = [s for s in settings if not s.method.startswith("full")]
    if not others:
        return []
    full = next(s for s in settings if s.method == "full")
    others = nearest_of_each(others, middle_ratio(others), factor=2)
    written = _neighbours(folder / "neighbours", full, others)
    # A panel a family, of which the colour tells; the first of each.
    families = {style_of(s.method)[1]: s for s in others[::-1] if "neighbourhoods" in s.records[0]}
    if shown := [s for s in others if s in families.values()][:MOST]:
        written += _neighbourhoods(folder / "neighbourhoods", full, shown)
    return written


def shorten(word: str, length: int = 16) -> str:
    """Cut a word that is too long for its column.

    Examples
    --------
    >>> shorten("gradientboostingclassifier")
    'gradientboostin…'
    """
    return word if len(word) <= length else word[: length - 1] + "…"


def _kept(full: Row, record: Row, word: str) -> list[bool]:
    """Which neighbours of a word in a table are those of the full one, too."""
    return [other in full["neighbours"][word] for other in record["neighbours"][word]]


def _neighbours(stem: Path, full: Setting, others: list[Setting]) -> list[Path]:
    """Nearest words in the full table and in others: bold are those that were kept."""
    from matplotlib import pyplot

    before = full.records[0]
    words = list(before["neighbours"])
    k = max(map(len, before["neighbours"].values()))
    columns = [full, *others]
    figure = pyplot.figure(figsize=(1.05 * len(columns) + 0.3, 0.125 * (len(words) * (k + 2) + 2)))
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set(xlim=(-0.05, len(columns)), ylim=(len(words) * (k + 2) + 2, 0))
    axes.axis("off")
    table: list[Row] = []
    for x, setting in enumerate(columns):
        record = setting.records[0]
        label = style_of(setting.method)[0].replace(" ", "\n", 1)
        size = f"\n{setting.ratio:.1f}x" if setting.ratio > 1 else ""
        axes.text(x, 1.6, label + size, fontsize=7, va="bottom", linespacing=1.1)
        for i, word in enumerate(words):
            top = 2.5 + i * (k + 2)
            kept = _kept(before, record, word)
            head = word if setting is full else f"{sum(kept)} of {len(kept)}"
            axes.text(x, top, head, fontsize=7, va="center", style="normal" if setting is full else "italic")
            near = zip(record["neighbours"][word], kept, strict=True)
            for rank, (other, same) in enumerate(near, 1):
                bold = same and setting is not full
                look: Row = {"weight": "bold"} if bold else {"color": "0" if setting is full else "0.45"}
                shown = shorten(other)
                axes.text(x + 0.06, top + rank, shown, fontsize=6.5, va="center", **look)
                table.append(
                    setting.columns
                    | {"seed": record["specification"]["seed"], "word": word}
                    | {"rank": rank, "neighbour": other, "kept": same}
                )
            axes.axhline(top - 0.7, color="0.7", lw=0.6)
    note = "nearest by cosine; bold: of the same word in the full table, too"
    axes.text(0, len(words) * (k + 2) + 2, note, fontsize=7, va="center")
    return save_figure(figure, stem, table)


def _neighbourhoods(stem: Path, full: Setting, shown: list[Setting]) -> list[Path]:
    """Where words and their neighbours in the full table go: a panel a family of methods."""
    from matplotlib import pyplot

    before = full.records[0]
    words = list(before["neighbours"])[:N_WORDS]
    figure, grid = pyplot.subplots(
        len(words),
        len(shown),
        figsize=(2.2 * len(shown), 2.2 * len(words)),
        sharex="row",
        sharey="row",
        squeeze=False,
        layout="constrained",
    )
    table: list[Row] = []
    for panels, word in zip(grid, words, strict=True):
        start = np.array(before["neighbourhoods"][word])
        names = [word, *before["neighbours"][word]]
        for axes, setting in zip(panels, shown, strict=True):
            record = setting.records[0]
            colour = style_of(setting.method)[1]
            end = np.array(record["neighbourhoods"][word])
            kept = [True, *(name in record["neighbours"][word] for name in names[1:])]
            for i, (name, a, b, same) in enumerate(zip(names, start, end, kept, strict=True)):
                arrow = {"arrowstyle": "->", "color": colour, "lw": 0.8, "shrinkA": 0, "shrinkB": 1}
                axes.annotate("", b, a, arrowprops=arrow)
                look: Row = {
                    "marker": "o" if i else "*",
                    "mfc": "black" if same else "white",
                    "ms": 4 if i else 9,
                }
                axes.plot(*a, color="black", mew=0.8, **look)
                axes.plot(*b, alpha=0)  # within the limits of the axes
                if i:
                    axes.annotate(str(i), a, (2, 2), textcoords="offset points", fontsize=6)
                table.append(
                    setting.columns
                    | {"seed": record["specification"]["seed"], "word": word, "neighbour": name}
                    | {"x_full": a[0], "y_full": a[1], "x": b[0], "y": b[1], "kept": same}
                )
            axes.set(xticks=[], yticks=[])
            if word == words[0]:
                axes.set_title(title_of(setting), fontsize=8)
        lines = "\n".join(f"{i} {shorten(name)}" for i, name in enumerate(names[1:], 1))
        panels[0].text(-0.08, 0.5, f"★ {word}\n{lines}", fontsize=6.5, va="center", ha="right",
                       transform=panels[0].transAxes, linespacing=1.3)  # fmt: skip
    figure.supxlabel(
        "from the full table to the compressed one; filled: still a neighbour of ★", fontsize=7.5
    )
    return save_figure(figure, stem, table)
