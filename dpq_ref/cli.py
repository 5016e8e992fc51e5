"""The command `dpq-ref`. Each subcommand imports what it needs when it runs, so that help comes at once."""

import os
import sys
from pathlib import Path
from typing import Any

import click

from dpq_ref import __version__
from dpq_ref.cli_tables import COMMANDS, backend_option, frequencies_option

PROFILES = {"default": "main.toml", "quick": "quick.toml"}
RESUMED = "run", "compare", "compare-table", "compress-lm", "train"
MEND = ValueError, OSError, FloatingPointError, MemoryError, ModuleNotFoundError  # what a user can


_jobs = click.option(
    "--jobs", type=click.IntRange(1), help="Processes at a time. Default: the number of cores."
)


def _output(default: str) -> Any:
    return click.option(
        "--output",
        type=click.Path(file_okay=False, path_type=Path),
        default=Path(default),
        show_default=True,
        help="Folder for the results. An interrupted job there goes on where it was.",
    )


_FILE = click.Path(dir_okay=False, path_type=Path)


def _grid(text: str) -> Any:
    return click.option("--grid", type=click.Path(exists=True, dir_okay=False, path_type=Path), help=text)


class Commands(click.Group):
    """Commands that end in one line for what a user can mend."""

    def invoke(self, context: click.Context) -> Any:
        """Run a command; --debug lets the traceback through."""
        if context.params["debug"]:
            return super().invoke(context)
        try:
            return super().invoke(context)
        except BrokenPipeError:
            raise  # `| head` has seen enough: click ends without a word
        except (KeyboardInterrupt, ImportError, *MEND) as error:
            if (interrupt := _interrupt(error)) is not None:
                goes_on = context.invoked_subcommand in RESUMED or bool(interrupt.args)
                click.echo("interrupted" + "; the same command goes on where it was" * goes_on, err=True)
                raise SystemExit(130) from None
            if not isinstance(error, MEND):
                raise
            _give_up_output()
            raise click.ClickException(str(error) or "out of memory") from error


def _give_up_output() -> None:
    """Drop what stands in the buffer of an output that is full: Python would try it again, and say so."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _interrupt(error: BaseException | None) -> KeyboardInterrupt | None:
    """Find the interrupt that an error is, or came from; to import a compiled module makes another of it."""
    while error is not None and not isinstance(error, KeyboardInterrupt):
        error = error.__cause__ or error.__context__
    return error


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="dpq-ref")
@click.option("--debug", is_flag=True, help="Show the traceback of an error.")
def main(debug: bool) -> None:
    """Learn, compress and compare embedding tables: DPQ and the classical methods.

    Exit status: 0 done, 1 it could not be done, 2 the command was not understood, 130 interrupted (Ctrl-C).
    """


for _command in COMMANDS:
    main.add_command(_command)


@main.command()
def info() -> None:
    """Print versions, machine, back ends, threads and BLAS.

    Where BLAS is slow, it says what to set.
    """
    from dpq_ref.environment import machine

    for name, value in machine().items():
        click.echo(f"{name:16} {value}")


_texts = click.option(
    "--data",
    help="Folder with train and test as .csv or .tsv, label first (.gz and .xz, too). "
    "Default: what the grid says; for those that come with it the built-in corpus.",
)


@main.command()
@click.argument("grid", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@_texts
@_output("results/run")
@_jobs
@click.option(
    "--cluster",
    help="Address of a Dask scheduler, as dask://host:8786. Its workers must see OUTPUT and DATA.",
)
@backend_option
def run(
    grid: Path, data: str | None, output: Path, jobs: int | None, cluster: str | None, backend: str | None
) -> None:
    """Run a GRID of methods on a text classifier.

    A text classifier is trained with each embedding. GRID is a TOML file of methods, parameters and seeds, as
    those in figures/grids. Writes OUTPUT/runs/*.json, one a run, a failed one with its error.
    `dpq-ref plot OUTPUT` and `dpq-ref report OUTPUT` show them.
    """
    _fail_for(_classified(grid, data, output, jobs, cluster, backend))
    click.echo(f"{output / 'runs'}; next: dpq-ref plot {output}")


def _classified(
    grid: Path, data: str | None, output: Path, jobs: int | None, cluster: str | None, backend: str | None
) -> list[dict[str, Any]]:
    from figures.run import read_grid, run_grid

    _warn_of_slow_blas()
    return run_grid(read_grid(grid, data, backend), output, jobs=jobs, cluster=cluster)


@main.command()
@click.option(
    "--profile",
    type=click.Choice(list(PROFILES)),
    default="default",
    show_default=True,
    help="How much to run: all of it in some minutes, or a sketch of it in one.",
)
@_grid("A grid file of your own (TOML) in place of a profile.")
@_texts
@_output("results/main")
@_jobs
@backend_option
def compare(
    profile: str, grid: Path | None, data: str | None, output: Path, jobs: int | None, backend: str | None
) -> None:
    """Compare all methods on a text classifier, and draw.

    It is trained with each embedding; tables are compressed, and all judged at their bits. Writes
    OUTPUT/results.csv, the table printed at the end, the figures (.png, .svg, .pdf and the .csv behind each)
    and runs/*.json with everything about each run.
    """
    from figures.run import GRIDS

    _finish(_classified(grid or GRIDS / PROFILES[profile], data, output, jobs, None, backend), output)


@main.command()
@click.argument("table", type=click.Path(exists=True, dir_okay=False))
@frequencies_option
@click.option(
    "--word-sets",
    type=click.Path(exists=True, file_okay=False),
    help="Folder with similarity sets (*.tsv: word, word, score), questions-words.txt, BLESS.txt, or some.",
)
@_grid("Methods, parameters and seeds (TOML). Default: every method at ratios from 4 to 64.")
@_output("results/table")
@click.option("--seeds", type=click.IntRange(1), help="How many seeds. Default: what the grid says.")
@_jobs
def compare_table(
    table: str,
    frequencies: str | None,
    word_sets: str | None,
    grid: Path | None,
    output: Path,
    seeds: int | None,
    jobs: int | None,
) -> None:
    """Compare all methods on a TABLE of word vectors, and draw.

    TABLE is as for `dpq-ref compress`.

    Writes OUTPUT/results.csv, the table printed at the end, the figures (.png, .svg, .pdf and the .csv
    behind each) and runs/*.json with everything about each run.
    """
    from figures.tables import GRID, Paths, sweep

    do, runs = sweep(grid or GRID, Paths(table, frequencies, word_sets), seeds)
    records = do(runs, output, jobs=jobs)
    _finish(records, output)


@main.command()
@click.argument("model", type=click.Path(exists=True, file_okay=False))
@click.option("--data", required=True, help="Folder of the corpus that it was trained on.")
@_grid("Methods, parameters and seeds (TOML). Default: those that the paper compares with.")
@_output("results/language")
@_jobs
def compress_lm(model: str, data: str, grid: Path | None, output: Path, jobs: int | None) -> None:
    """Compress a trained language MODEL by every method.

    Each compressed model is judged, and trained on. MODEL is the folder of a finished `dpq-ref train lm`
    with the full embedding. Writes OUTPUT/runs/*.json: perplexity, ratio and bits of each; and
    OUTPUT/compressed.json, a row of each.
    """
    import json

    from dpq_ref.compressed import write_atomically
    from figures.language import GRID, rows, sweep

    do, runs = sweep(grid or GRID, model, data)
    records = do(runs, output, jobs=jobs)
    write_atomically(output / "compressed.json", json.dumps(rows(records), indent=1).encode())
    _fail_for(records)


_results = click.argument("results", nargs=-1, required=True, type=click.Path(exists=True, path_type=Path))


@main.command()
@_results
@click.option(
    "--output",
    type=click.Path(file_okay=False, path_type=Path),
    help="Folder for the figures. Default: RESULTS, where that is one folder, or else results/plot.",
)
def plot(results: tuple[Path, ...], output: Path | None) -> None:
    """Draw the figures of RESULTS.

    RESULTS are folders of runs and CSV files, all of one data set. A CSV has the columns of a results.csv. It
    needs method, metric, value and compression_ratio (or bits, beside other results): so a method from
    elsewhere stands in the same figures, under its name.
    """
    if output is None and (len(results) > 1 or results[0].is_file()):
        output = Path("results/plot")
    _draw(*results, output=output)


@main.command()
@_results
@click.option(
    "--output",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path("results/rank"),
    show_default=True,
    help="Folder for the table and the figure.",
)
def rank(results: tuple[Path, ...], output: Path) -> None:
    """Rank the methods over several data sets.

    RESULTS are folders of runs and CSV files. Ranked are the methods that are on all of them, by each metric
    of quality at equal bits.
    """
    from figures.rank import make

    paths = make(results, output)
    click.echo((output / "ranks.txt").read_text(encoding="utf8"))
    for path in paths:
        click.echo(path)


@main.command()
@click.argument("results", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option(
    "-o",
    "--output",
    type=click.Path(dir_okay=False, path_type=Path),
    default=Path("report.html"),
    show_default=True,
    help="Where to write the page.",
)
def report(results: Path, output: Path) -> None:
    """Make one self-contained page of a folder of RESULTS.

    It has tables that sort, figures, commands and environment. The figures are drawn again, in RESULTS; the
    page needs neither them nor a network.
    """
    from dpq_ref.compressed import write_atomically
    from figures.plot import draw
    from figures.report import report

    output.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(output, report(results, draw(results)).encode())
    click.echo(output)


@main.command()
@click.option(
    "--add",
    multiple=True,
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="Folder of a finished `dpq-ref train --preset`, `compress-lm` or `compare` of DPQ: its result goes "
    "to the others first.",
)
@click.option("--force", is_flag=True, help="--add: replace what is there already.")
@click.option(
    "--results",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path("figures/results/paper"),
    show_default=True,
    help="Folder of the results.",
)
@click.option(
    "--output",
    type=click.Path(file_okay=False, path_type=Path),
    help="Folder for tables and figures. Default: that of the results.",
)
def paper(add: tuple[Path, ...], force: bool, results: Path, output: Path | None) -> None:
    """Set our results beside the paper's tables, and draw them.

    Writes tables.md, tables.txt (printed), a .csv of each table, and the figures (.png, .svg, .pdf and
    the .csv behind each). Rows without a result say so.
    """
    if force and not add:
        raise click.UsageError("--force: it goes with --add")
    from figures import paper, paper_results

    output = output or results
    for folder in add:
        paper_results.add(folder, results, force=force)
    paths = paper.make(results, output)
    click.echo((output / "tables.txt").read_text(encoding="utf8"))
    for path in paths:
        click.echo(path)


@main.command()
@click.argument("trainings", nargs=-1, required=True, type=click.Path(exists=True, file_okay=False))
@click.option("--data", required=True, help="Folder of the data that they were trained on, or 'builtin'.")
@click.option("--word", "words", multiple=True, help="May be repeated. Default: some, from frequent to rare.")
@click.option("-k", type=click.IntRange(1), default=8, show_default=True, help="Neighbours of each.")
@click.option("--output", type=click.Path(dir_okay=False, path_type=Path), help="Write them as JSON, too.")
def neighbours(
    trainings: tuple[str, ...], data: str, words: tuple[str, ...], k: int, output: Path | None
) -> None:
    """Show neighbours and codes of words in TRAININGS.

    TRAININGS are folders of finished `dpq-ref train`, all on the same data: the full embedding and DPQ side
    by side.
    """
    import json

    from dpq_ref.compressed import write_atomically
    from figures.neighbours import neighbours as find
    from figures.paper import words_table

    rows = find(trainings, data, words, k=k)
    if output:
        write_atomically(output, json.dumps(rows, indent=1, ensure_ascii=False).encode())
    click.echo(words_table(rows))


@main.command()
@click.option(
    "--method",
    type=click.Choice(["sx", "vq", "kmeans", "opq", "itq", "group-reduce"]),
    default="sx",
    show_default=True,
    help="DPQ on a batch, forward and backward, or one iteration of a classical method on a table.",
)
@click.option(
    "--tokens",
    help="sx, vq: words of the built-in corpus, or ids as numbers. Default: 'the value of the code'.",
)
@click.option(
    "--rows", type=click.IntRange(1), help="Classical methods: rows of the table. Default: 16 or 24."
)
@click.option("--dim", type=click.IntRange(1), help="Width of the table. Default: 4 or 6.")
@click.option(
    "--n-groups", type=click.IntRange(1), help="sx, vq, kmeans, opq: digits of a code, D. Default: 2."
)
@click.option(
    "--n-codes", type=click.IntRange(2), help="sx, vq, kmeans, opq: values of a digit, K. Default: 4 or 3."
)
@click.option("--shared", is_flag=True, default=None, help="sx, vq: one codebook for all groups.")
@click.option("--additive", is_flag=True, default=None, help="sx, vq: values as wide as the output.")
@click.option("--query-width", type=click.IntRange(1), help="sx: width of a query. Default: that of a value.")
@click.option("--temperature", type=float, help="sx: of the softmax. Default: 1.")
@click.option("--codebook-weight", type=float, help="vq: of the loss that moves keys. Default: 1.")
@click.option("--commitment-weight", type=float, help="vq: of the loss that moves queries. Default: 0.")
@click.option(
    "--no-batch-norm", "batch_norm", flag_value=False, type=bool, default=None, help="sx, vq: of responses."
)
@click.option("--n-bits", type=click.IntRange(1), help="itq: bits of a row. Default: 3.")
@click.option("--n-blocks", type=click.IntRange(1), help="group-reduce: blocks of words. Default: 3.")
@click.option("--ratio", type=float, help="group-reduce: how many times smaller. Default: 2.")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True)
@click.option(
    "--show-rows", "rows_shown", type=click.IntRange(1), default=6, show_default=True, help="Tokens or rows."
)
@click.option("--show-groups", "groups_shown", type=click.IntRange(1), default=2, show_default=True)
@click.option(
    "--show-codes",
    "codes_shown",
    type=click.IntRange(1),
    default=8,
    show_default=True,
    help="Codes, coordinates or blocks.",
)
@click.option("--html", "page", type=_FILE, help="Write one HTML page, and print no steps.")
@click.option("--npz", "arrays", type=_FILE, help="Write all arrays in full by name, and print no steps.")
def trace(
    method: str,
    seed: int,
    rows_shown: int,
    groups_shown: int,
    codes_shown: int,
    page: Path | None,
    arrays: Path | None,
    **options: Any,
) -> None:
    """Follow one step of an algorithm, array by array.

    Beside each array stand the formula that made it, and a check.

    For DPQ a batch of words goes through a layer drawn at random: forward, the loss, then backward, each
    gradient beside finite differences, with what the straight-through step connects and cuts. For the
    classical methods one iteration on a generated table, with the error that no part of it may raise, before
    and after each, and whether what is best is best.

    Shown is the beginning of each array; --npz has all of it.
    """
    from rich.console import Console

    from dpq_ref.compressed import write_atomically
    from dpq_ref.trace import Show, render
    from dpq_ref.trace.examples import example

    given = {name: value for name, value in options.items() if value is not None}
    title, steps = example(method, seed, **given)
    show = Show(rows_shown, groups_shown, codes_shown)
    if page is not None:
        write_atomically(page, render.html(steps, title, show=show).encode())
    if arrays is not None:
        write_atomically(arrays, render.npz(steps))
    if page is None and arrays is None:
        console = Console(highlight=False)
        width = min(max(console.width, 40), 100)
        console.print(render.text(steps, title, show=show, width=width), soft_wrap=True)
    else:
        click.echo(f"{title}\n{render.summary(steps)}")
    for path in filter(None, (page, arrays)):
        click.echo(path)
    if not all(claim.holds for step in steps for claim in step.checks):
        raise click.ClickException(render.summary(steps))


def _options(*options: Any) -> Any:
    """Add several options to a command, in their order."""

    def add(command: Any) -> Any:
        for option in reversed(options):
            command = option(command)
        return command

    return add


_training = _options(
    click.option("--data", help="Folder of the data. Default: the built-in corpus, where the task has one."),
    click.option(
        "--output",
        type=click.Path(file_okay=False, path_type=Path),
        help="Folder of the training. Default: results/ and the name of the preset or task.",
    ),
    click.option("--seed", type=click.IntRange(0), default=0, show_default=True),
    click.option(
        "--max-minutes", type=click.FloatRange(0), help="Stop after so long; the same command goes on."
    ),
    click.option(
        "--patience", type=click.IntRange(1), help="End after so many evaluations without a better one."
    ),
    backend_option,
)
_embedding = _options(
    click.option(
        "--embedding",
        "kind",
        type=click.Choice(["full", "dpq-sx", "dpq-vq", "low-rank"]),
        default="full",
        show_default=True,
    ),
    click.option("--n-groups", type=click.IntRange(1), help="DPQ: digits of a code, D."),
    click.option("--n-codes", type=click.IntRange(2), help="DPQ: values of a digit, K."),
    click.option("--shared", is_flag=True, default=None, help="DPQ: one codebook for all groups."),
    click.option("--additive", is_flag=True, default=None, help="DPQ: values as wide as the output."),
    click.option("--query-width", type=click.IntRange(1), help="DPQ-SX: width of a query."),
    click.option("--temperature", type=float, help="DPQ-SX: of the softmax in the backward."),
    click.option(
        "--no-batch-norm", "batch_norm", flag_value=False, type=bool, default=None, help="DPQ: of responses."
    ),
    click.option("--rank", type=click.IntRange(1), help="Low rank."),
)
_LAYER = ("n_groups", "n_codes", "shared", "additive", "query_width", "temperature", "batch_norm", "rank")


@main.group(invoke_without_command=True)
@click.option("--preset", help="Settings of a row of the paper's tables; 'list' shows them all.")
@_training
@click.pass_context
def train(context: click.Context, preset: str | None, **options: Any) -> None:
    """Train a task with an embedding of any kind.

    A training lives in the folder OUTPUT: stopped at any time, the same command goes on with it. There are
    metrics.jsonl while it runs, and at the end result.json and embedding.safetensors.

    With --preset no command is needed.
    """
    if context.invoked_subcommand:
        return
    from dpq_ref.tasks import recipe

    if preset is None:
        click.echo(context.get_help())
    elif preset == "list":
        for name, settings in recipe.presets().items():
            layer = " ".join(f"{key}={value}" for key, value in settings["embedding"].items())
            click.echo(f"{name:24} {settings['folder']}, {settings.get('model', settings['task'])}: {layer}")
    else:
        made = recipe.preset(preset, seed=options.pop("seed"), backend=options.pop("backend"))
        if options["data"] is None:
            raise click.UsageError(f"--data: the folder of {recipe.presets()[preset]['folder']}")
        _run(made, preset, **options)


@train.command()
@_training
@click.option(
    "--model",
    type=click.Choice(["small", "medium", "large"]),
    default="small",
    show_default=True,
    help="Size of the LSTM.",
)
@_embedding
@click.option(
    "--softmax",
    type=click.Choice(["full", "same", "tied"]),
    default="full",
    show_default=True,
    help="Matrix of the softmax: its own, an embedding like that of the input, or that of the input.",
)
@click.option("--epochs", type=click.IntRange(1), help="Default: what the size says.")
def lm(model: str, softmax: str, epochs: int | None, seed: int, backend: str | None, **options: Any) -> None:
    """Train a language model, judged by perplexity.

    It is an LSTM over words. DATA has a train, a valid and a test file: text as in Penn Treebank or
    WikiText-2.
    """
    from dpq_ref.tasks.recipe import Recipe

    plan = {} if epochs is None else {"epochs": epochs}
    layer = _layer(options)
    output = {"full": None, "same": layer, "tied": "tied"}[softmax]
    recipe = Recipe("lm", layer, model=model, output=output, plan=plan, seed=seed, backend=backend)
    _run(recipe, "lm", **options)


@train.command()
@_training
@_embedding
@click.option("--steps", type=click.IntRange(1), help="Batches of 64 texts. Default: 5,000.")
def classify(steps: int | None, seed: int, backend: str | None, **options: Any) -> None:
    """Train a text classifier, judged by accuracy.

    It is the mean of word vectors and two dense layers. DATA has train and test as .csv or .tsv, label first
    (.gz and .xz, too).
    """
    from dpq_ref.tasks.recipe import Recipe

    plan = {} if steps is None else {"steps": steps}
    recipe = Recipe("classify", _layer(options), plan=plan, seed=seed, backend=backend)
    _run(recipe, "classify", **options)


@train.command()
@_training
@click.option(
    "--direction",
    default="en-vi",
    show_default=True,
    help="Languages from and to, as in the names of the files: train.en, train.vi.",
)
@click.option(
    "--model", type=click.Choice(["attention", "transformer"]), default="attention", show_default=True
)
@_embedding
@click.option("--steps", type=click.IntRange(1), help="Batches of 128 sentences. Default: 12,000.")
def translate(
    direction: str, model: str, steps: int | None, seed: int, backend: str | None, **options: Any
) -> None:
    """Train a translator, judged by BLEU.

    The embedding is that of the source. DATA has train, tst2012 (validation) and tst2013 (test) in both
    languages, and vocab: IWSLT'15.
    """
    from dpq_ref.tasks.recipe import Recipe

    languages = direction.split("-")
    if len(languages) != 2:
        raise click.UsageError(f"--direction {direction}; it takes two languages, as in en-vi")
    if options["data"] is None:
        raise click.UsageError("--data: a folder of sentence pairs; there are none built in")
    plan = {} if steps is None else {"steps": steps}
    layer = _layer(options)
    settings: dict[str, Any] = {"languages": languages, "plan": plan, "seed": seed, "backend": backend}
    recipe = Recipe("translate", layer, model=model, **settings)
    _run(recipe, f"translate-{direction}", **options)


def _layer(options: dict[str, Any]) -> dict[str, Any]:
    """Take the settings of the embedding out of the options."""
    settings = {name: options.pop(name) for name in ("kind", *_LAYER)}
    return {name: value for name, value in settings.items() if value is not None}


def _run(
    recipe: Any,
    name: str,
    data: str | None,
    output: Path | None,
    max_minutes: float | None,
    patience: int | None,
) -> None:
    """Train with a progress bar, and print what came out."""
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    from dpq_ref.tasks.recipe import run

    _warn_of_slow_blas()
    output = output or Path("results") / f"{name}-seed{recipe.seed}"
    columns = TextColumn("step {task.completed} of {task.total}"), BarColumn(), TimeElapsedColumn()
    with Progress(*columns, TextColumn("left"), TimeRemainingColumn(), transient=True) as bar:
        task = bar.add_task("", total=None)
        result = run(
            recipe,
            data or "builtin",
            output,
            max_minutes=max_minutes,
            patience=patience,
            on_start=lambda steps: bar.update(task, total=steps),
            on_step=lambda step: bar.update(task, completed=step),
        )
    if result is None:
        click.echo(f"time is up; the same command goes on with {output}")
        return
    for key, value in result.items():
        if isinstance(value, (int, float)):
            click.echo(f"{key:24} {value:.6g}")
    click.echo(f"{output / 'result.json'}\n{output / 'embedding.safetensors'}")


def _warn_of_slow_blas() -> None:
    """Say before a long run what would make it faster."""
    from dpq_ref.environment import blas_libraries, processor_flags, slow_blas

    if advice := slow_blas(processor_flags(), blas_libraries()):
        click.echo(advice, err=True)


def _finish(records: list[dict[str, Any]], output: Path) -> None:
    """Draw, and fail if a run has failed."""
    _draw(output)
    _fail_for(records)


def _fail_for(records: list[dict[str, Any]]) -> None:
    failed = [record["name"] for record in records if "error" in record]
    if failed:
        raise click.ClickException(f"{len(failed)} runs failed (see runs/*.json): {', '.join(failed)}")


def _draw(*results: Path, output: Path | None = None) -> None:
    from figures.plot import draw

    paths = draw(results, output)
    click.echo((paths[0].parent / "table.txt").read_text(encoding="utf8"))
    for path in paths:
        click.echo(path)
