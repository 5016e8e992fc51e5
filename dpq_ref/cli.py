"""The command `dpq-ref`. Each subcommand imports what it needs when it runs, so that help comes at once."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click

from dpq_ref import __version__

PROFILES = {"default": "main.toml", "quick": "quick.toml"}


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="dpq-ref")
def main() -> None:
    """Learn, compress and compare embedding tables: DPQ and the classical methods."""


@main.command()
@click.option(
    "--profile",
    type=click.Choice(list(PROFILES)),
    default="default",
    show_default=True,
    help="How much to run: all of it in some minutes, or a sketch of it in one.",
)
@click.option(
    "--grid",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="A grid file of your own (TOML) in place of a profile.",
)
@click.option(
    "--data",
    help="Folder with train and test as .csv or .tsv, label first (.gz and .xz, too). "
    "Default: what the grid says; for the profiles the built-in corpus.",
)
@click.option(
    "--output",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path("results/main"),
    show_default=True,
    help="Folder for the results. An interrupted job there goes on where it was.",
)
@click.option("--jobs", type=click.IntRange(1), help="Processes at a time. Default: the number of cores.")
def compare(profile: str, grid: Path | None, data: str | None, output: Path, jobs: int | None) -> None:
    """Train a text classifier with each embedding, compress, compare and draw.

    Writes OUTPUT/results.csv, the table printed at the end, the figures (.png, .svg and the .csv behind
    each) and runs/*.json with everything about each run.
    """
    from figures.run import GRIDS, read_grid, run_grid

    with _clear_errors():
        cells = read_grid(grid or GRIDS / PROFILES[profile], data)
        records = run_grid(cells, output, jobs=jobs)
    _finish(records, output)


@main.command()
@click.argument("table", type=click.Path(exists=True, dir_okay=False))
@click.option(
    "--frequencies",
    type=click.Path(exists=True, dir_okay=False),
    help="File with a word and its count a line (.gz and .xz, too): the weights of the words.",
)
@click.option(
    "--word-sets",
    type=click.Path(exists=True, file_okay=False),
    help="Folder with similarity sets (*.tsv: word, word, score), questions-words.txt, BLESS.txt, or some.",
)
@click.option(
    "--grid",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Methods, parameters and seeds (TOML). Default: every method at ratios from 4 to 64.",
)
@click.option(
    "--output",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path("results/table"),
    show_default=True,
    help="Folder for the results. An interrupted job there goes on where it was.",
)
@click.option("--seeds", type=click.IntRange(1), help="How many seeds. Default: what the grid says.")
@click.option("--jobs", type=click.IntRange(1), help="Processes at a time. Default: the number of cores.")
def compare_table(
    table: str,
    frequencies: str | None,
    word_sets: str | None,
    grid: Path | None,
    output: Path,
    seeds: int | None,
    jobs: int | None,
) -> None:
    """Compress a TABLE of word vectors by every method, judge what each keeps, and draw.

    TABLE is an .npz with the arrays `words` (n,) and `vectors` (n, d).

    Writes OUTPUT/results.csv, the table printed at the end, the figures (.png, .svg and the .csv behind
    each) and runs/*.json with everything about each run.
    """
    from figures.tables import GRID, Paths, sweep

    with _clear_errors():
        do, runs = sweep(grid or GRID, Paths(table, frequencies, word_sets), seeds)
        records = do(runs, output, jobs=jobs)
    _finish(records, output)


@main.command()
@click.argument("results", type=click.Path(exists=True, file_okay=False, path_type=Path))
def plot(results: Path) -> None:
    """Draw the figures of a folder of RESULTS again, from its runs alone."""
    with _clear_errors():
        _draw(results)


@contextmanager
def _clear_errors() -> Iterator[None]:
    """End with one line for what a user can mend, and say how an interrupted job goes on."""
    try:
        yield
    except KeyboardInterrupt:
        click.echo("interrupted; the same command goes on where it was", err=True)
        raise SystemExit(130) from None
    except (ValueError, OSError) as error:
        raise click.ClickException(str(error)) from error


def _finish(records: list[dict[str, Any]], output: Path) -> None:
    """Draw, and fail if a run has failed."""
    _draw(output)
    failed = [record["name"] for record in records if "error" in record]
    if failed:
        raise click.ClickException(f"{len(failed)} runs failed (see runs/*.json): {', '.join(failed)}")


def _draw(folder: Path) -> None:
    from figures import plot, plot_tables, style

    of_tables = "lookup" in style.read_records(folder)[0]["seconds"]
    paths = (plot_tables if of_tables else plot).draw(folder)
    click.echo((folder / "table.txt").read_text(encoding="utf8"))
    for path in paths:
        click.echo(path)
