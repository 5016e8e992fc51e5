"""A trace as text for a terminal, as one HTML page, and as arrays; each from the list of its steps alone."""

from __future__ import annotations

import io
import textwrap
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING

import numpy as np

from dpq_ref.kernels.reference import Array, Integers
from dpq_ref.trace.steps import Claim, Step

if TYPE_CHECKING:
    from rich.text import Text

MOST = 24  # entries shown of an array with one axis
AXES = {
    "t": "token",
    "i": "row",
    "j": "group",
    "k": "code",
    "c": "coordinate",
    "l": "coordinate",
    "p": "block",
}


@dataclass(frozen=True)
class Show:
    """How much of an array is shown; all of it is in the file of arrays.

    Attributes
    ----------
    rows, groups, codes : int
        At most so many tokens or rows, groups or blocks, codes or coordinates.
    """

    rows: int = 6
    groups: int = 2
    codes: int = 8

    def __post_init__(self) -> None:
        """Refuse what shows nothing."""
        from dpq_ref import checks

        for name in ("rows", "groups", "codes"):
            checks.positive(name, getattr(self, name))

    def of(self, axis: str) -> int:
        """Most entries along an axis."""
        return {"t": self.rows, "i": self.rows, "j": self.groups, "p": self.groups}.get(axis, self.codes)


@dataclass(frozen=True)
class Grid:
    """What is shown of an array: heads of the columns, and lines of a label, cells and which are marked."""

    heads: list[str]
    lines: list[tuple[str, list[str], list[bool]]]
    left_out: str


def grid(step: Step, show: Show, columns: Callable[[int, int], int] | None = None) -> Grid:
    """Lay out the array of a step: the last axis across, the others down.

    Parameters
    ----------
    step : Step
    show : Show
    columns : callable, optional
        Width of the labels and of a cell -> how many cells fit.

    Examples
    --------
    >>> step = Step("counts", "", np.array([[1, 2, 3], [4, 5, 6]]), axes="ik", labels=("the", "row"))
    >>> grid(step, Show(rows=1, codes=2)).lines
    [('the', ['1', '2'], [False, False])]
    >>> grid(step, Show(rows=1, codes=2)).left_out
    '1 of 2 rows, 2 of 3 codes shown'
    """
    array, axes = step.array, step.axes
    most = [min(n, max(show.of(a), MOST * (array.ndim == 1))) for n, a in zip(array.shape, axes, strict=True)]
    written = number_format(array)
    marks = np.zeros(array.shape, bool)
    if step.picked is not None:
        np.put_along_axis(marks, step.picked[..., None].astype(np.int64), True, axis=-1)
    if not array.ndim:
        return Grid([], [("", [written(array.item())], [False])], "")

    def name(axis: str, n: int) -> str:
        return shortened(step.labels[n]) if axis in "ti" and step.labels else f"{axis}={n}"

    cut = array[tuple(slice(0, n) for n in most)]
    heads = [name(axes[-1], n) for n in range(most[-1])]
    lines = []
    for index in np.ndindex(cut.shape[:-1]):
        shown = ["" if any(index[a + 1 :]) else name(axes[a], n) for a, n in enumerate(index)]
        lines.append((shown, [written(x) for x in cut[index]], marks[index][: most[-1]].tolist()))
    widths = [max((len(shown[a]) for shown, *_ in lines), default=0) for a in range(array.ndim - 1)]
    labelled = [
        (" ".join(s.ljust(w) for s, w in zip(shown, widths, strict=True)), cells, marked)
        for shown, cells, marked in lines
    ]
    if columns is not None:
        cell = max(len(text) for texts in (heads, *(cells for _, cells, _ in lines)) for text in texts)
        most[-1] = min(
            most[-1], max(1, columns(max((len(label) for label, *_ in labelled), default=0), cell))
        )
        heads = heads[: most[-1]]
        labelled = [(label, cells[: most[-1]], marked[: most[-1]]) for label, cells, marked in labelled]
    parts = [f"{m} of {n} {AXES[a]}s" for m, n, a in zip(most, array.shape, axes, strict=True) if m < n]
    return Grid(heads, labelled, f"{', '.join(parts)} shown" if parts else "")


def shortened(label: str, width: int = 12) -> str:
    """Label of at most so many characters."""
    return label if len(label) <= width else f"{label[: width - 1]}…"


def number_format(array: Array | Integers) -> Callable[[float], str]:
    """How the numbers of an array are written, all alike.

    Examples
    --------
    >>> number_format(np.array([0.5, -2.0]))(-2.0), number_format(np.array([1e-7, 2.0]) * 1e-4)(2e-4)
    ('-2.0000', '2.000e-04')
    """
    if array.dtype.kind in "iub" or (
        array.size and np.array_equal(array, np.rint(array)) and abs(array).max() < 1e6
    ):
        return lambda x: f"{x:z.0f}"
    largest = abs(array).max(initial=0.0)
    return (lambda x: f"{x:z.4f}") if 0.01 <= largest < 1e5 else (lambda x: f"{x:z.3e}")


def _shape(step: Step) -> str:
    return " × ".join(map(str, np.shape(step.array))) or "number"


def _phases(steps: Sequence[Step]) -> Iterator[tuple[int, Step, bool]]:
    """Yield each step with its number, and whether a phase begins."""
    for n, step in enumerate(steps):
        yield n + 1, step, n == 0 or step.phase != steps[n - 1].phase


def _verdict(claim: Claim) -> str:
    return (
        f"✓ {claim.text}" if claim.holds else f"✗ {claim.text} ({claim.value:.2g} is above {claim.bound:.2g})"
    )


def legend(steps: Sequence[Step]) -> str:
    """Say what the letters of the formulas count, and what a check is.

    Examples
    --------
    >>> legend([Step("mean", "", np.array([0.5]), axes="k")])
    'Letters: k code.'
    """
    used = {axis for step in steps for axis in step.axes}
    said = f"Letters: {', '.join(f'{a} {name}' for a, name in AXES.items() if a in used)}."
    if any(step.picked is not None for step in steps):
        said += " Marked: the code that is picked."
    if any("differences" in claim.text for step in steps for claim in step.checks):
        said += (
            " ✓ is a check; that of a gradient compares the slope of the loss along a random direction, "
            "by the gradient and by finite differences."
        )
    return said


def summary(steps: Sequence[Step]) -> str:
    """Count the checks that hold.

    Examples
    --------
    >>> summary([Step("a", "", np.zeros(1), "", "c", checks=(Claim("x", 0, 1), Claim("y", 2, 1)))])
    '1 of 2 checks holds'
    """
    held = [claim.holds for step in steps for claim in step.checks]
    return f"{sum(held)} of {len(held)} checks hold{'s' * (sum(held) == 1)}"


# --- Text -------------------------------------------------------------------------------------------------


def text(steps: Sequence[Step], title: str = "", *, show: Show | None = None, width: int = 80) -> Text:
    """Trace as text with styles; `.plain` is that without.

    Parameters
    ----------
    steps : sequence of Step
    title : str
    show : Show, optional
    width : int
        Columns, at least 40.

    Returns
    -------
    rich.text.Text

    Examples
    --------
    >>> step = Step("mean", "mean[k] = …", np.array([0.5, 2.0]), axes="k")
    >>> print(text([step], "A trace").plain)
    A trace
    Letters: k code.
    <BLANKLINE>
    ── forward ─────────────────────────────────────────────────────────────────────
    <BLANKLINE>
     1 mean  (2)
       mean[k] = …
           k=0     k=1
        0.5000  2.0000
    <BLANKLINE>
    0 of 0 checks hold
    """
    from rich.text import Text

    if width < 40:
        raise ValueError(f"width={width}; it takes at least 40")
    show, out = show or Show(), Text()

    def line(content: str = "", style: str = "", indent: str = "   ", first: str | None = None) -> None:
        first = indent if first is None else first
        for piece in textwrap.wrap(content, width, initial_indent=first, subsequent_indent=indent) or [""]:
            out.append(piece, style).append("\n")

    line(title, "bold", "")
    line(legend(steps), indent="")
    for number, step, begins in _phases(steps):
        if begins:
            out.append("\n" * bool(out)).append(f"── {step.phase} ".ljust(width, "─") + "\n", "bold blue")
        out.append(f"\n{number:2} ").append(step.name, "bold").append(f"  ({_shape(step)})\n", "dim")
        for content, style, first in (
            (step.formula, "cyan", "   "),
            (step.note, "", "   "),
            (step.connects, "green", "   connected: "),
            (step.cuts, "red", "   cut: "),
        ):
            if content:
                line(content, style, "     " if first != "   " or content is step.formula else "   ", first)
        g = grid(step, show, lambda label, cell: (width - 4 - label) // (cell + 2))
        label = max((len(line[0]) for line in g.lines), default=0)
        cell = max((len(t) for t in (*g.heads, *(c for _, cells, _ in g.lines for c in cells))), default=0)
        if g.heads:
            out.append(
                " " * (4 + label) + "".join(head.rjust(cell + 2) for head in g.heads).rstrip() + "\n", "dim"
            )
        for name, cells, marked in g.lines:
            out.append("    " + name.ljust(label), "dim")
            for value, mark in zip(cells, marked, strict=True):
                out.append(("*" * mark + value).rjust(cell + 2), "bold yellow" if mark else "")
            out.append("\n")
        if g.left_out:
            line(g.left_out, "dim", "    ")
        for claim in step.checks:
            line(_verdict(claim), "green" if claim.holds else "bold red", "     ", "   ")
    out.append("\n" + summary(steps), "bold")
    return out


# --- HTML -------------------------------------------------------------------------------------------------

STYLE = """
:root { color-scheme: light dark; --dim: #667; --line: #8884; --mark: #fd58; --good: #185; --bad: #c22; }
@media (prefers-color-scheme: dark) { :root { --dim: #99a; --good: #5c8; --bad: #f77; } }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 0 auto; padding: 1rem; }
h2 { border-bottom: 1px solid var(--line); margin-top: 2.5rem; }
h3 { margin: 1.8rem 0 .2rem; } h3 small { color: var(--dim); font-weight: normal; }
h3, code, table { font-family: ui-monospace, "DejaVu Sans Mono", monospace; }
p { margin: .3rem 0; } .formula { overflow-wrap: anywhere; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: .85rem; margin: .4rem 0; }
th { color: var(--dim); font-weight: normal; }
tbody th { text-align: left; white-space: pre; padding-right: 1rem; }
th, td { text-align: right; padding: .05rem .5rem; } td.picked { background: var(--mark); font-weight: bold; }
.left, nav { color: var(--dim); font-size: .85rem; } nav a { margin-right: .8rem; display: inline-block; }
.good, .connects { color: var(--good); } .bad, .cuts { color: var(--bad); }
"""


def html(steps: Sequence[Step], title: str = "", *, show: Show | None = None) -> str:
    r"""Trace as one page that needs nothing else.

    Parameters
    ----------
    steps : sequence of Step
    title : str
    show : Show, optional

    Examples
    --------
    >>> page = html([Step("mean", "a < b", np.array([0.5]), axes="k")], "A trace")
    >>> "<h3 id=\"mean\">" in page and "a &lt; b" in page
    True
    """
    show, body = show or Show(), [f"<h1>{escape(title)}</h1>"]
    links = (f'<a href="#{escape(step.name)}">{escape(step.name)}</a>' for step in steps)
    body.append(f"<p>{escape(legend(steps))}</p>")
    body.append(f"<nav>{' '.join(links)}</nav>")
    for number, step, begins in _phases(steps):
        if begins:
            body.append(f"<h2>{escape(step.phase)}</h2>")
        name = escape(step.name)
        body.append(f'<h3 id="{name}">{number} {name} <small>({_shape(step)})</small></h3>')
        if step.formula:
            body.append(f'<p class="formula"><code>{escape(step.formula)}</code></p>')
        if step.note:
            body.append(f"<p>{escape(step.note)}</p>")
        for kind, said in (("connects", step.connects), ("cuts", step.cuts)):
            if said:
                word = {"connects": "connected", "cuts": "cut"}[kind]
                body.append(f'<p class="{kind}">{word}: {escape(said)}</p>')
        body.append(_table(grid(step, show)))
        for claim in step.checks:
            kind = "good" if claim.holds else "bad"
            body.append(f'<p class="{kind}">{escape(_verdict(claim))}</p>')
    body.append(f"<p><strong>{summary(steps)}</strong></p>")
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n"
        + "\n".join(body)
        + "\n</body>\n</html>\n"
    )


def _table(g: Grid) -> str:
    down = any(label for label, *_ in g.lines)
    head = "".join(f"<th>{escape(h)}</th>" for h in [""] * down + g.heads)
    rows = []
    for label, cells, marked in g.lines:
        tds = "".join(
            f'<td class="picked">{c}</td>' if m else f"<td>{c}</td>"
            for c, m in zip(cells, marked, strict=True)
        )
        rows.append(f"<tr>{f'<th>{escape(label)}</th>' if down else ''}{tds}</tr>")
    head = f"<thead><tr>{head}</tr></thead>" if g.heads else ""
    left = f'<p class="left">{g.left_out}</p>' if g.left_out else ""
    return f'<div class="scroll"><table>{head}<tbody>{"".join(rows)}</tbody></table></div>{left}'


# --- Arrays -----------------------------------------------------------------------------------------------


def npz(steps: Sequence[Step]) -> bytes:
    """Content of an .npz file: all arrays in full, by name.

    Examples
    --------
    >>> np.load(io.BytesIO(npz([Step("mean", "", np.array([0.5]), axes="k")])))["mean"]
    array([0.5])
    """
    file = io.BytesIO()
    np.savez(file, **{step.name: step.array for step in steps})  # type: ignore[arg-type]
    return file.getvalue()
