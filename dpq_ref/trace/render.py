"""A trace as text for a terminal, as one HTML page, and as arrays; each from the list of its steps alone."""

from __future__ import annotations

import io
import textwrap
from collections.abc import Iterator, Sequence
from html import escape
from typing import TYPE_CHECKING

import numpy as np

from dpq_ref.trace.grid import AXES, Grid, Show, grid
from dpq_ref.trace.steps import Claim, Step

if TYPE_CHECKING:
    from rich.text import Text


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
        said += " Marked: what is picked."
    claims = [claim.text for step in steps for claim in step.checks]
    if claims:
        said += " ✓ is a check."
    if any("slope" in text for text in claims):
        said += (
            " That of a gradient compares the slope of the loss along a random direction, by the gradient "
            "and by finite differences."
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

    def lines(content: str, style: str = "", first: str = "   ", rest: str = "   ") -> None:
        for piece in textwrap.wrap(content, width, initial_indent=first, subsequent_indent=rest):
            out.append(piece, style).append("\n")

    lines(title, "bold", "", "")
    lines(legend(steps), "", "", "")
    for number, step, begins in _phases(steps):
        if begins:
            out.append("\n").append(f"── {step.phase} ".ljust(width, "─"), "bold blue").append("\n")
        out.append(f"\n{number:2} ").append(step.name, "bold").append(f"  ({_shape(step)})\n", "dim")
        lines(step.formula, "cyan", rest="     ")
        lines(step.note)
        if step.connects:
            lines(step.connects, "green", "   connected: ", "     ")
        if step.cuts:
            lines(step.cuts, "red", "   cut: ", "     ")
        _numbers(out, grid(step, show, lambda label, cell: (width - 4 - label) // (cell + 2)))
        for claim in step.checks:
            lines(_verdict(claim), "green" if claim.holds else "bold red", rest="     ")
    return out.append("\n" + summary(steps), "bold")


def _numbers(out: Text, g: Grid) -> None:
    """Append the numbers of an array, its columns as wide as the widest of all."""
    down = 4 + max((len(label) for label, *_ in g.lines), default=0)
    cell = 2 + max(
        (len(text) for texts in (g.heads, *(c for _, c, _ in g.lines)) for text in texts), default=0
    )
    if g.heads:
        out.append(" " * down + "".join(head.rjust(cell) for head in g.heads) + "\n", "dim")
    for label, cells, marked in g.lines:
        out.append(f"    {label}".ljust(down), "dim")
        for value, mark in zip(cells, marked, strict=True):
            out.append(("*" * mark + value).rjust(cell), "bold yellow" if mark else "")
        out.append("\n")
    if g.left_out:
        out.append(f"    {g.left_out}\n", "dim")


# --- HTML -------------------------------------------------------------------------------------------------

STYLE = """
:root { color-scheme: light dark; --dim: #667; --line: #8884; --mark: #fd58; --good: #185; --bad: #c22; }
@media (prefers-color-scheme: dark) { :root { --dim: #99a; --good: #5c8; --bad: #f77; } }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 0 auto; padding: 1rem; }
h1 { font-size: 1.5rem; line-height: 1.3; }
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
