"""One style for all figures, and how they are read from results and written.

A colour a family of methods (those of Okabe and Ito and of Tol, told apart by the colour-blind), a marker a
method. A method without a style of its own appears in grey, under its name.
"""

import csv
import io
import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from dpq_ref.compressed import write_atomically

STYLES = {  # method: label, colour, marker
    "full": ("full embedding", "#000000", "*"),
    "full-continued": ("full embedding, trained on", "#000000", "P"),
    "dpq-sx": ("DPQ-SX", "#0072B2", "o"),
    "dpq-vq": ("DPQ-VQ", "#D55E00", "s"),
    "product": ("product quantization", "#009E73", "^"),
    "optimized-product": ("optimized product q.", "#009E73", "s"),
    "residual": ("residual quantization", "#009E73", "o"),
    "additive": ("additive quantization", "#009E73", "P"),
    "low-rank": ("low rank", "#CC79A7", "D"),
    "group-reduce": ("GroupReduce", "#CC79A7", "s"),
    "low-rank-in-network": ("low rank, in the network", "#CC79A7", "d"),
    "group-reduce-in-network": ("GroupReduce, in the network", "#CC79A7", "p"),
    "uniform": ("uniform scalar", "#E69F00", "v"),
    "kmeans-scalar": ("k-means scalar", "#E69F00", "o"),
    "half": ("half precision", "#E69F00", "X"),
    "sign": ("sign", "#56B4E9", "X"),
    "hyperplanes": ("random hyperplanes", "#56B4E9", "v"),
    "itq": ("ITQ", "#56B4E9", "s"),
    "iiq": ("IIQ", "#56B4E9", "o"),
    "near-lossless": ("near-lossless binarization", "#56B4E9", "P"),
    "pruning": ("pruning", "#8C510A", "<"),
    "compositional": ("compositional codes", "#882255", "o"),
    "kd-codes": ("KD codes", "#882255", "^"),
    "dpq": ("DPQ, trained to reconstruct", "#0072B2", "p"),
}
OTHER = "#777777", "x"
RC: Any = {
    "figure.figsize": (5.5, 4.0),
    "figure.dpi": 200,
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.25,
    "legend.frameon": False,
    "legend.fontsize": 7.5,
    "svg.hashsalt": "dpq-ref",
    "svg.fonttype": "path",
    "pdf.fonttype": 42,
    "savefig.bbox": "tight",
}


def style_of(method: str) -> tuple[str, str, str]:
    """Label, colour and marker of a method."""
    return STYLES.get(method, (method, *OTHER))


def read_records(folder: str | os.PathLike) -> list[dict[str, Any]]:
    """Read the records of a folder of results that have no error; as `read_all`."""
    return [record for record in read_all(folder) if "error" not in record]


def read_all(folder: str | os.PathLike) -> list[dict[str, Any]]:
    """Read the records of all runs in a folder of results.

    Raises
    ------
    FileNotFoundError
        If there is none.
    """
    paths = sorted(Path(folder, "runs").glob("*.json"))
    records = [json.loads(path.read_text(encoding="utf8")) for path in paths]
    if not records:
        raise FileNotFoundError(f"no results: {Path(folder, 'runs')} has no .json file")
    return records


def to_csv(rows: Iterable[dict[str, Any]], columns: Iterable[str]) -> str:
    """Rows as CSV text."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(columns), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def save_figure(figure: Any, stem: Path, table: list[dict[str, Any]]) -> list[Path]:
    """Write a figure as PNG, SVG and PDF, and the numbers that it shows as CSV."""
    from matplotlib import pyplot

    paths = []
    undated = {".png": {"Software": None}, ".svg": {"Date": None}, ".pdf": {"CreationDate": None}}
    for ending, metadata in undated.items():
        content = io.BytesIO()
        figure.savefig(content, format=ending[1:], metadata=metadata)
        paths.append(stem.with_suffix(ending))
        write_atomically(paths[-1], content.getvalue())
    pyplot.close(figure)
    paths.append(stem.with_suffix(".csv"))
    write_atomically(paths[-1], to_csv(table, table[0]).encode())
    return paths


def make_panels(n: int) -> tuple[Any, list[Any]]:
    """Figure of n panels, up to three in a row."""
    from matplotlib import pyplot

    columns = 2 if n == 4 else min(n, 3)
    height = -(-n // columns)
    figure, panels = pyplot.subplots(height, columns, figsize=(3.6 * columns, 2.9 * height), squeeze=False)
    for axes in panels.ravel()[n:]:
        axes.remove()
    return figure, list(panels.ravel()[:n])


def perplexity_axis(axes: Any) -> None:
    """Make the y axis logarithmic, with plain numbers, where perplexities are far apart."""
    from matplotlib.ticker import LogLocator, NullLocator

    low, high = axes.dataLim.intervaly
    if high >= 2.5 * low:
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 1.2, 1.5, 2, 3, 5, 7)))
        axes.yaxis.set_major_formatter(lambda y, _: f"{y:g}")
        axes.yaxis.set_minor_locator(NullLocator())
