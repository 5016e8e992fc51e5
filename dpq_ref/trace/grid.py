"""How an array is laid out in rows and columns, and how much of it is shown."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from dpq_ref import checks
from dpq_ref.kernels.reference import Array, Integers
from dpq_ref.trace.steps import Step

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
        At most so many tokens or rows, groups, and codes, coordinates or blocks.
    """

    rows: int = 6
    groups: int = 2
    codes: int = 8

    def __post_init__(self) -> None:
        """Refuse what shows nothing."""
        for name in ("rows", "groups", "codes"):
            checks.positive(name, getattr(self, name))

    def of(self, axis: str) -> int:
        """Most entries along an axis."""
        return {"t": self.rows, "i": self.rows, "j": self.groups}.get(axis, self.codes)


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
        down = max((len(label) for label, *_ in labelled), default=0)
        most[-1] = min(most[-1], max(1, columns(down, cell)))
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
