"""One style for all figures, and how they are written.

A colour and a dash a family of methods (colours of Okabe and Ito and of Tol, told apart by the colour-blind),
a marker a method of it: in grey, dash and marker together still tell the method. One that is not listed gets
a style of its own among those that are not either.
"""

import csv
import io
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

from dpq_ref.compressed import write_atomically

COLUMN, PAGE = 3.3, 7.0  # widths in inches of a column and of a page in print


class Style(NamedTuple):
    """How a method is shown."""

    label: str
    colour: str
    marker: Any

    @property
    def dash(self) -> Any:
        """Line style of its family."""
        return DASHES[self.colour]


DASHES: dict[str, Any] = {  # of each colour
    "#000000": "-",
    "#0072B2": "-",
    "#D55E00": "-",
    "#009E73": (0, (5, 1.5)),
    "#CC79A7": (0, (6, 1.5, 1, 1.5)),
    "#E69F00": (0, (1, 1.2)),
    "#56B4E9": (0, (3, 1, 1, 1, 1, 1)),
    "#8C510A": (0, (1, 3)),
    "#882255": (0, (9, 3)),
    # Of methods without a style of their own:
    "#332288": (0, (2, 1)),
    "#999933": (0, (7, 1, 3, 1)),
    "#661100": (0, (3, 3)),
    "#44AA99": (0, (1, 0.6)),
    "#777777": (0, (4, 1, 1, 1)),
}
OTHERS = tuple(DASHES)[-5:], (">", "h", (4, 1, 0), "8", (6, 1, 0), (3, 1, 0), "H")
STYLES = {
    "full": Style("full embedding", "#000000", "*"),
    "full-continued": Style("full embedding, trained on", "#000000", "P"),
    "dpq-sx": Style("DPQ-SX", "#0072B2", "o"),
    "dpq-vq": Style("DPQ-VQ", "#D55E00", "s"),
    "product": Style("product quantization", "#009E73", "^"),
    "optimized-product": Style("optimized product q.", "#009E73", "s"),
    "residual": Style("residual quantization", "#009E73", "o"),
    "additive": Style("additive quantization", "#009E73", "P"),
    "low-rank": Style("low rank", "#CC79A7", "D"),
    "group-reduce": Style("GroupReduce", "#CC79A7", "s"),
    "low-rank-in-network": Style("low rank, in the network", "#CC79A7", "d"),
    "group-reduce-in-network": Style("GroupReduce, in the network", "#CC79A7", "p"),
    "uniform": Style("uniform scalar", "#E69F00", "v"),
    "kmeans-scalar": Style("k-means scalar", "#E69F00", "o"),
    "half": Style("half precision", "#E69F00", "X"),
    "sign": Style("sign", "#56B4E9", "X"),
    "hyperplanes": Style("random hyperplanes", "#56B4E9", "v"),
    "itq": Style("ITQ", "#56B4E9", "s"),
    "iiq": Style("IIQ", "#56B4E9", "o"),
    "near-lossless": Style("near-lossless binarization", "#56B4E9", "P"),
    "pruning": Style("pruning", "#8C510A", "<"),
    "compositional": Style("compositional codes", "#882255", "o"),
    "kd-codes": Style("KD codes", "#882255", "^"),
    "dpq": Style("DPQ, trained to reconstruct", "#0072B2", "p"),
}
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


def style_of(method: str) -> Style:
    """Style of a method by itself."""
    return styles([method])[method]


def styles(methods: Iterable[str]) -> dict[str, Style]:
    """Styles of methods that are shown together; those not listed are told apart, in the order of names."""
    methods = set(methods)
    colours, markers = OTHERS
    others = {
        method: Style(method, colours[i % len(colours)], markers[i % len(markers)])
        for i, method in enumerate(sorted(methods - set(STYLES)))
    }
    return {method: STYLES.get(method) or others[method] for method in methods}


def to_csv(rows: Iterable[dict[str, Any]], columns: Iterable[str]) -> str:
    """Rows as CSV text; of a row only those columns."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(columns), lineterminator="\n", extrasaction="ignore")
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


def ratio_axis(axes: Any) -> None:
    """Make the x axis of what is drawn one of ratios: logarithmic, or linear where they are much alike."""
    low, high = axes.dataLim.intervalx
    if high >= 4 * low:
        axes.set_xscale("log", base=2)
        axes.xaxis.set_major_formatter(lambda x, _: f"{x:g}")
    elif low == high:
        axes.set_xticks([low], [f"{low:.3g}"])


def make_panels(n: int) -> tuple[Any, list[Any]]:
    """Figure of n panels, up to three in a row."""
    from matplotlib import pyplot

    columns = 2 if n == 4 else min(n, 3)
    height = -(-n // columns)
    figure, panels = pyplot.subplots(height, columns, figsize=(3.6 * columns, 2.9 * height), squeeze=False)
    for axes in panels.ravel()[n:]:
        axes.remove()
    return figure, list(panels.ravel()[:n])


def log_axis(axis: Any) -> None:
    """Make an axis of what is drawn logarithmic; with plain numbers, where they are no two decades apart."""
    from matplotlib.ticker import LogLocator, NullFormatter

    low, high = axis.get_data_interval()
    axis.axes.set(**{f"{axis.axis_name}scale": "log"})
    axis.set_minor_formatter(NullFormatter())
    if high < 100 * low:
        axis.set_major_locator(LogLocator(subs=(1, 2, 5) if high > 5 * low else (1, 1.5, 2, 3, 4, 5, 7)))
        axis.set_major_formatter(lambda value, _: f"{value:g}")


def perplexity_axis(axes: Any) -> None:
    """Make the y axis logarithmic, with plain numbers, where perplexities are far apart."""
    from matplotlib.ticker import LogLocator, NullLocator

    low, high = axes.dataLim.intervaly
    if high >= 2.5 * low:
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 1.2, 1.5, 2, 3, 5, 7)))
        axes.yaxis.set_major_formatter(lambda y, _: f"{y:g}")
        axes.yaxis.set_minor_locator(NullLocator())
