"""Figures of speed.csv: ratios to peers, times over the floor, memory; a point a size and thread count."""

import csv
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import numpy as np

from figures.style import PAGE, RC, save_figure

Row = dict[str, str]
Point = tuple[float, float | None, str]  # value, goal, threads
LABELS = {"1": "1 thread", "2": "2 threads"}
COLOURS = {"1": "#0072B2", "2": "#D55E00"}
LEAST_MB = 0.1  # that is told from nothing


def draw(table: Path, output: Path) -> list[Path]:
    """Draw what a table of `figures.speed` holds.

    Parameters
    ----------
    table : Path
        speed.csv.
    output : Path

    Returns
    -------
    list of Path
    """
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    with table.open(newline="", encoding="utf8") as file:
        rows = list(csv.DictReader(file))
    written = []
    with pyplot.rc_context(RC):
        written += _strips(
            rows, "ratio", "goal", lambda r: f"{r['name'].replace('_', ' ')}, {r['peer']}",
            "time of the peer over ours, higher is better", output / "ratios", np.less,
        )  # fmt: skip
        written += _strips(
            rows, "over_floor", "floor_goal", lambda r: r["name"].replace("_", " "),
            "our time over the floor, lower is better", output / "floors", np.greater,
        )  # fmt: skip
        written += _memory([row for row in rows if row.get("peer_mb")], output / "memory")
    return written


def _strips(
    rows: list[Row],
    value: str,
    goal: str,
    line_of: Callable[[Row], str],
    label: str,
    stem: Path,
    misses: Callable[[float, float], bool],
) -> list[Path]:
    """One line a kind of work, a point a size, hollow where it misses its goal; a bar at each goal."""
    from matplotlib import pyplot
    from matplotlib.ticker import LogLocator, NullFormatter

    lines: dict[str, list[Point]] = defaultdict(list)
    shown: list[dict[str, Any]] = []
    for row in rows:
        if not row[value]:
            continue
        point = float(row[value]), float(row[goal]) if row[goal] else None, row["threads"]
        if point not in lines[line_of(row)]:  # the floor is the same beside each peer
            lines[line_of(row)].append(point)
            columns = ("name", "shape", "threads", "peer", value, goal)
            shown.append({column: row[column] for column in columns})
    if not lines:
        return []
    figure, axes = pyplot.subplots(figsize=(6.4, 0.9 + 0.24 * len(lines)), layout="constrained")
    threads = sorted({point[2] for points in lines.values() for point in points})
    for y, points in enumerate(lines.values()):
        for i, count in enumerate(threads):
            height = y + 0.18 * (i - (len(threads) - 1) / 2)
            other = f"{count} threads" if count.isdigit() else count  # a device
            name = LABELS.get(count, other) if y == 0 else None
            colour = COLOURS.get(count, "#0072B2")
            for fill, is_short in ((colour, False), ("white", True)):
                x = [v for v, g, t in points if t == count and (g is not None and misses(v, g)) == is_short]
                axes.plot(
                    x, [height] * len(x), "o", ms=4, mew=0.8, color=colour, mfc=fill,
                    label=None if is_short else name,
                )  # fmt: skip
        for target in {g for _, g, _ in points if g is not None}:
            axes.plot([target, target], [y - 0.38, y + 0.38], color="black", lw=1)
    if any(row[goal] for row in rows):
        axes.plot([], [], color="black", lw=1, label="goals, by size")
        axes.plot([], [], "o", ms=4, mew=0.8, color="0.4", mfc="white", label="short of its goal")
    axes.axvline(1, color="black", ls="--", lw=0.8)
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter(lambda x, _: f"{x:g}")
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_yticks(range(len(lines)), list(lines))
    axes.set_ylim(len(lines) - 0.5, -0.5)
    axes.set_xlabel(label)
    figure.legend(*axes.get_legend_handles_labels(), loc="outside upper center", ncols=4)
    return save_figure(figure, stem, shown)


def _memory(rows: list[Row], stem: Path) -> list[Path]:
    """Under a heading a work, a line a peer: the ratio of times, and beside it the memory of both sides."""
    from matplotlib import pyplot
    from matplotlib.ticker import LogLocator, NullFormatter

    if not rows:
        return []
    works: dict[tuple[str, str], dict[str, list[Row]]] = defaultdict(lambda: defaultdict(list))
    for row in rows:
        works[row["name"].replace("_", " "), row["shape"]][row["peer"]].append(row)
    threads = sorted({row["threads"] for row in rows})
    n_lines = sum(1 + len(peers) for peers in works.values())
    figure, panels = pyplot.subplots(
        1, 2, figsize=(PAGE, 0.9 + 0.2 * n_lines), sharey=True, layout="constrained"
    )
    times, memory = panels
    at: dict[int, str] = {}
    top = 0
    for (name, shape), peers in works.items():
        times.text(
            0.01, top + 0.1, f"{name}: {shape}", transform=times.get_yaxis_transform(), va="center",
            fontsize=7.5, in_layout=False, bbox={"color": "white", "pad": 0.5},
        )  # fmt: skip
        for y, (peer, of_peer) in enumerate(peers.items(), top + 1):
            at[y] = peer
            for row in of_peer:
                height = y + 0.22 * (threads.index(row["threads"]) - (len(threads) - 1) / 2)
                style: Any = {"color": COLOURS.get(row["threads"]), "ms": 4, "mew": 0.8}
                ours, theirs = (max(float(row[side]), LEAST_MB) for side in ("ours_mb", "peer_mb"))
                times.plot(float(row["ratio"]), height, "o", **style)
                memory.plot([ours, theirs], [height, height], color=style["color"], lw=0.8)
                memory.plot(theirs, height, "o", mfc="white", **style)
                memory.plot(ours, height, "o", **style)
        top += 1 + len(peers)
    for axes, label in (
        (times, "time of the peer over ours,\nhigher is better"),
        (memory, "peak memory of the call, MB,\nlower is better"),
    ):
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if axes is times else (1,)))
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.set_xlabel(label)
        axes.grid(axis="y", visible=False)
    times.axvline(1, color="black", ls="--", lw=0.8)
    times.xaxis.set_major_formatter("{x:g}")
    memory.xaxis.set_major_formatter(lambda x, _: f"{x:,g}" if x > LEAST_MB else f"≤ {x:g}")
    times.set_yticks([*at], [*at.values()])
    times.set_ylim(n_lines - 0.5, -0.5)
    for count in threads:
        times.plot([], [], "s", ms=4, color=COLOURS.get(count), label=LABELS.get(count, f"{count} threads"))
    for fill, label in (("0.4", "memory of ours"), ("white", "memory of the peer")):
        times.plot([], [], "o", ms=4, mew=0.8, color="0.4", mfc=fill, label=label)
    figure.legend(*times.get_legend_handles_labels(), loc="outside upper center", ncols=4)
    columns = ("name", "shape", "threads", "peer", "ratio", "ours_mb", "peer_mb")
    return save_figure(figure, stem, [{column: row[column] for column in columns} for row in rows])


@click.command()
@click.option(
    "--results",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    default="figures/results/speed",
)
def main(results: Path) -> None:
    """Draw speed.csv of a folder of results, into the same folder."""
    for path in draw(results / "speed.csv", results):
        click.echo(path)


if __name__ == "__main__":
    main()
