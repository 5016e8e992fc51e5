"""Commands on embedding tables in files: compress, inspect, evaluate, look up, convert, verify."""

import glob
import json
import os
import re
import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import click
from click.shell_completion import CompletionItem

from baselines import METHODS
from dpq_ref import __version__

DEFAULT = "product"
SHORT = {"pq": "product", "opq": "optimized-product", "rq": "residual", "scalar": "uniform"}
SLOW = {"compositional", "kd-codes", "dpq", "near-lossless", "residual", "additive"}  # not among "best"
UNITS = {"": 1, "k": 10**3, "M": 10**6, "G": 10**9, "Ki": 2**10, "Mi": 2**20, "Gi": 2**30}
WORST = 10  # words that `evaluate` shows
LARGE = 1 << 30  # bytes of a table from which on `compress` learns from samples
SAMPLES = {"rows_per_code": (256, "codebooks"), "max_train_rows": (1 << 17, "rotation")}  # what from them


class Artefact(click.Path):
    """A compressed table; the shell completes .safetensors, and where there is none any path."""

    def shell_complete(self, context: Any, param: Any, incomplete: str) -> list[CompletionItem]:  # noqa: D102
        folder, start = os.path.split(incomplete)
        found = sorted(Path(folder).glob(f"{glob.escape(start)}*.safetensors"))
        items = [CompletionItem(os.path.join(folder, path.name)) for path in found]
        return items or super().shell_complete(context, param, incomplete)


class Frequencies(click.Path):
    """A file of frequencies, or "zipf"."""

    def convert(self, value: Any, param: Any, context: Any) -> Any:  # noqa: D102
        from dpq_ref.datasets.words import ZIPF

        return value if value == ZIPF else super().convert(value, param, context)

    def shell_complete(self, context: Any, param: Any, incomplete: str) -> list[CompletionItem]:  # noqa: D102
        from dpq_ref.datasets.words import ZIPF

        zipf = [CompletionItem(ZIPF)] if incomplete and ZIPF.startswith(incomplete) else []
        return zipf or super().shell_complete(context, param, incomplete)


_FILE = Artefact(exists=True, dir_okay=False)
_INPUT = click.Path(exists=True, dir_okay=False)
_OUTPUT = click.Path(dir_okay=False, path_type=Path)
_json = click.option("--json", "as_json", is_flag=True, help="Print JSON.")
_tensor = click.option(
    "--tensor",
    help="Which tensor of a .safetensors, or array of an .npz. Default: the one named embedding; `vectors`.",
)
_words = click.option(
    "--words", "word_file", type=_INPUT, help="The words of the rows, one a line, where TABLE has none."
)
frequencies_option = click.option(
    "--frequencies",
    type=Frequencies(exists=True, dir_okay=False),
    metavar="FILE|zipf",
    help="The words' weights: a file with a word and its count a line (.gz, .xz and .zst, too), or 'zipf' "
    "for rows in the order of their frequency.",
)

_cluster = click.option(
    "--cluster",
    help="Address of a Dask scheduler, as dask://host:8786. Its workers see both files by the same path.",
)


def _there(context: click.Context, parameter: click.Parameter, name: str | None) -> str | None:
    """Check that the back end asked for can be had."""
    from dpq_ref.backend import get

    try:
        return name and get(name) and name
    except (ImportError, RuntimeError) as error:
        raise click.BadParameter(str(error)) from error


backend_option = click.option(
    "--backend",
    type=click.Choice(["numba", "numpy", "cupy"]),
    callback=_there,
    help="What computes: Numba, NumPy (slow, to compare), or CuPy on a GPU. Default: numba.",
)


class Size(click.ParamType):
    """Bytes, with or without a unit."""

    name = "size"

    def convert(self, value: Any, param: Any, context: Any) -> int:  # noqa: D102
        match = re.fullmatch(r"([0-9.]+) ?(k|M|G|Ki|Mi|Gi|)B?", str(value))
        try:
            return int(float(match[1]) * UNITS[match[2]]) if match else self.fail(f"{value}: as in 5MB")
        except ValueError:
            self.fail(f"{value}: as in 5MB", param, context)


class Parameter(click.ParamType):
    """One parameter of a method, NAME=VALUE."""

    name = "name=value"

    def convert(self, value: Any, param: Any, context: Any) -> tuple[str, Any]:  # noqa: D102
        name, equals, text = value.partition("=")
        if not (name.isidentifier() and equals):
            self.fail(f"{value}: as in n_codes=64", param, context)
        try:
            return name, json.loads(text.lower() if text in ("True", "False") else text)
        except ValueError:
            return name, text

    def shell_complete(self, context: Any, param: Any, incomplete: str) -> list[CompletionItem]:
        """Names of the parameters of the method that stands before."""
        from baselines import REGISTRY

        method = context.params.get("method") or DEFAULT
        names = REGISTRY[SHORT.get(method, method)]().get_params() if method != "best" else {}
        return [CompletionItem(f"{name}=") for name in names if name.startswith(incomplete)]


@click.command()
@click.argument("table", type=_INPUT)
@click.option("-o", "--output", type=_OUTPUT, required=True, help="Where to write it, a .safetensors.")
@click.option(
    "--method",
    type=click.Choice(["best", *METHODS, *SHORT]),
    default=DEFAULT,
    show_default=True,
    metavar="NAME",
    help=f"One of {', '.join(METHODS)}; in short {', '.join(SHORT)}; or best: that of the least error among "
    f"all but the slow ones, {', '.join(sorted(SLOW))}.",
)
@click.option("--ratio", type=float, help="Times smaller than 32 bits an entry.")
@click.option("--bits", type=click.IntRange(1), help="Bits of the whole table.")
@click.option(
    "--budget", type=Size(), help="The same in bytes, as in 5MB or 300KiB. Words and header come on top."
)
@click.option(
    "--parameter",
    "parameters",
    type=Parameter(),
    multiple=True,
    help="A parameter of the method, as in n_codes=64; may be repeated.",
)
@frequencies_option
@_words
@_tensor
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True)
@_cluster
@backend_option
@_json
def compress(
    table: str,
    output: Path,
    method: str,
    ratio: float | None,
    bits: int | None,
    budget: int | None,
    parameters: tuple[tuple[str, Any], ...],
    frequencies: str | None,
    word_file: str | None,
    tensor: str | None,
    seed: int,
    cluster: str | None,
    backend: str | None,
    as_json: bool,
) -> None:
    """Compress a TABLE of embeddings to a size.

    TABLE is text as of GloVe, word2vec or fastText, word2vec's .bin (both .gz, .xz and .zst, too), an .npz
    with the arrays `words` and `vectors`, an .npy, or a .safetensors checkpoint. Of --ratio, --bits and
    --budget it takes one; or the parameters of the method that decide the size. The result is as close to the
    size as it can be without exceeding it.

    An .npy and a float32 tensor stay in their file, and may be larger than memory. From 1 GiB on, product
    quantization learns codebooks from 256 rows a code, and ITQ and IIQ their rotation from 131,072 rows,
    unless --parameter rows_per_code=null or max_train_rows=null says all.

    From 1 GiB on, too, what has been done is kept in OUTPUT.part, and an interrupted command goes on with it
    when it is given again. With --cluster the workers give codes to rows, and measure the error; the result
    is the same, bit by bit.
    """
    if output.suffix != ".safetensors":
        raise click.UsageError(f"--output {output}: it takes a name that ends in .safetensors")
    if not os.access(output.parent, os.W_OK):  # said now, not when all is computed
        raise click.UsageError(f"--output {output}: {output.parent} is no folder that can be written to")
    if sum(size is not None for size in (ratio, bits, budget)) > 1:
        raise click.UsageError("--ratio, --bits and --budget: it takes one of them")
    size = {"ratio": ratio, "bits": 8 * budget if budget is not None else bits}
    given = {name: value for name, value in size.items() if value is not None} | dict(parameters)
    from dpq_ref.resume import on_cluster

    with _bar(), ExitStack() as stack:
        vectors, words, source, weights = _read(table, tensor, word_file, frequencies)
        part = None
        if vectors.nbytes >= LARGE or cluster:
            part = output.with_name(f"{output.name}.part")
            command = {"version": __version__, "tensor": tensor, "parameters": given, "seed": seed}
            command["backend"] = backend
            files = [_identity(path) for path in (table, frequencies) if path is not None]
            stack.enter_context(_taken_up(part, command | {"files": files}))
        if cluster and part:
            stack.enter_context(on_cluster(cluster))
            vectors = _in_a_file(vectors, part)
        if method == "best":
            made, report = _best(vectors, weights, given, seed, part, as_json, backend)
        else:
            made, report = _fit(SHORT.get(method, method), vectors, weights, given, seed, part, backend)
        made.words = words
        made.save(output)
        if part:
            shutil.rmtree(part)
    _say({"table": source, **report, **_contents(made, output)}, as_json)


def _identity(path: str) -> tuple[str, int, int]:
    """Tell a file from another one, and from what it was before."""
    status = Path(path).stat()
    return str(Path(path).resolve()), status.st_size, status.st_mtime_ns


@contextmanager
def _taken_up(part: Path, command: dict[str, Any]) -> Iterator[None]:
    """Hold the folder of what has been done of a command; emptied, if it was another one.

    An interrupt carries it.
    """
    from filelock import FileLock, Timeout

    from dpq_ref.compressed import write_atomically

    part.mkdir(exist_ok=True)
    try:
        with FileLock(part / "lock", timeout=0):
            said, place = json.dumps(command, sort_keys=True).encode(), part / "command.json"
            if not place.exists() or place.read_bytes() != said:
                for path in part.iterdir():
                    if path.is_dir():
                        shutil.rmtree(path)
                    elif path.name != "lock":
                        path.unlink()
                write_atomically(place, said)
            yield
    except KeyboardInterrupt:
        raise KeyboardInterrupt(part) from None  # what has been done is there
    except Timeout:
        raise ValueError(f"{part} is in use: another process writes the same output") from None


def _in_a_file(vectors: Any, folder: Path) -> Any:
    """Put a table that is in memory where the workers of a cluster see it."""
    import numpy as np

    from dpq_ref.resume import Shared

    if Shared(vectors).in_file:
        return vectors
    np.save(folder / "table.npy", vectors)
    return np.load(folder / "table.npy", mmap_mode="r", allow_pickle=False)


@contextmanager
def _bar() -> Iterator[None]:
    """Show how far it is, on a terminal."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn

    from dpq_ref.progress import listening

    console = Console(stderr=True)
    if not console.is_terminal:
        yield
        return
    columns = TextColumn("{task.description:20}"), BarColumn(), TaskProgressColumn(), TimeElapsedColumn()
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task("reading", total=None)
        with listening(
            lambda what, done, steps: bar.update(task, description=what, completed=done, total=steps)
        ):
            yield


def _read(table: str, tensor: str | None, word_file: str | None, frequencies: str | None) -> Any:
    """Vectors, words, where they come from, and weights, of the options."""
    from dpq_ref.datasets.words import weights_for
    from dpq_ref.tables import read_table, read_words

    words, vectors, source = read_table(table, tensor=tensor)
    if word_file is not None:
        words = read_words(word_file)
        if len(words) != len(vectors):
            raise ValueError(f"{word_file} has {len(words)} words, and {table} {len(vectors)} rows")
    weights = None
    if frequencies is not None:
        weights = weights_for(frequencies, words, len(vectors), table)
    return vectors, words, source, weights


def _fit(
    method: str,
    vectors: Any,
    weights: Any,
    parameters: dict[str, Any],
    seed: int,
    part: Path | None,
    backend: str | None,
) -> tuple[Any, Any]:
    """Compressed table of a method, and what to say of it; where there is a part, taken up from there."""
    from baselines import REGISTRY
    from dpq_ref.compressed import load
    from dpq_ref.environment import of_backend
    from dpq_ref.metrics import relative_error
    from dpq_ref.resume import resuming

    try:
        estimator = REGISTRY[method](**parameters)
    except TypeError:
        takes = ", ".join(sorted(REGISTRY[method]().get_params()))
        raise ValueError(f"{method} has no parameter {' or '.join(parameters)}; it takes {takes}") from None
    free = estimator.get_params().keys() - parameters
    if "random_state" in estimator.get_params():
        estimator.set_params(random_state=seed)
    if backend is not None and "backend" in free:  # the others are the host's
        estimator.set_params(backend=backend)
    if vectors.nbytes >= LARGE:
        estimator.set_params(**{name: n for name, (n, _) in SAMPLES.items() if name in free})
    start = time.perf_counter()
    with resuming(part / method) if part else nullcontext():
        estimator.fit(vectors, sample_weight=weights)
    made = estimator.compress()
    seconds = time.perf_counter() - start
    report: dict[str, Any] = {"method": method, "learned_from": _learned_from(estimator, len(vectors))}
    if backend is not None:
        report |= of_backend(backend if "backend" in free else None)
    del estimator  # its codes, which are not packed
    judged = made
    if part:  # mapped, it is small to send
        made.save(part / method / "made.safetensors")
        judged = load(part / method / "made.safetensors")
    report["relative_error"] = relative_error(vectors, judged)
    if weights is not None:
        report["weighted_relative_error"] = relative_error(vectors, judged, weights)
    return made, report | {"fit_seconds": round(seconds, 3)}


def _learned_from(estimator: Any, n: int) -> str:
    """Say which rows a method has learned from."""
    n_train = getattr(estimator, "n_train_rows_", n)
    if n_train == n:
        return "all rows"
    what = next(what for name, (_, what) in SAMPLES.items() if name in estimator.get_params())
    return f"{what}: {n_train:,} of {n:,} rows, at random; all else: all rows"


def _best(
    vectors: Any,
    weights: Any,
    given: dict[str, Any],
    seed: int,
    part: Path | None,
    quiet: bool,
    backend: str | None,
) -> tuple[Any, Any]:
    """Try the methods at one budget; the table of the least error, and what to say of all."""
    if len(given) != 1 or not given.keys() <= {"ratio", "bits"}:
        raise click.UsageError(
            "--method best: it takes one of --ratio, --bits and --budget, and no parameter"
        )
    best, tried = None, []
    for method in METHODS:
        if method in SLOW:
            continue
        try:
            made, report = _fit(method, vectors, weights, given, seed, part, backend)
        except ValueError as error:
            if not quiet:
                click.echo(f"{method:18} {error}", err=True)
            continue
        ratio = round(made.compression_ratio, 3)
        judge = _judge(report)
        errors = {name: error for name, error in report.items() if name.endswith("relative_error")}
        tried.append({"method": method, "compression_ratio": ratio} | errors)
        if not quiet:
            line = f"{ratio:8.1f} times smaller, {judge.replace('_', ' ')} {report[judge]:.4f}"
            click.echo(f"{method:18} {line}, {report['fit_seconds']:.1f} s", err=True)
        if best is None or report[judge] < best[1][judge]:
            best = made, report
    if best is None:
        raise ValueError("no method meets the budget")
    for entry in tried:  # the front: none is both smaller and better
        entry["pareto"] = not any(
            other["compression_ratio"] >= entry["compression_ratio"] and other[judge] < entry[judge]
            for other in tried
        )
    return best[0], best[1] | {"tried": tried}


def _judge(report: dict[str, Any]) -> str:
    """Name of the error that methods are compared by."""
    return next(name for name in ("weighted_relative_error", "relative_error") if name in report)


def _contents(table: Any, path: Path) -> dict[str, Any]:
    """Say what a file holds, for `inspect` and at the end of `compress`."""
    return {
        "file": str(path),
        "file_bytes": path.stat().st_size,
        "kind": table.kind,
        "rows": table.vocab_size,
        "dim": table.dim,
        "bits": table.bits(),
        "compression_ratio": round(table.compression_ratio, 3),
        "words": table.has_words,
        "arrays": {name: f"{a.dtype} {list(a.shape)}" for name, a in table.arrays().items()},
    }


def _as_json(report: dict[str, Any]) -> str:
    """JSON, in which a number that is not finite is null."""
    finite = json.loads(json.dumps(report), parse_constant=lambda _: None)
    return json.dumps(finite, ensure_ascii=False)


def _say(report: dict[str, Any], as_json: bool) -> None:
    """Print a report, as JSON or a line each."""
    if as_json:
        click.echo(_as_json(report))
        return
    for name, value in report.items():
        if name == "tried":
            front = sorted(
                (entry for entry in value if entry["pareto"]), key=lambda e: e["compression_ratio"]
            )
            judge = _judge(front[0])
            what = f"times smaller and {judge.replace('_', ' ')}"
            value = f"{len(value)} methods; on the Pareto front, {what}:" + "".join(
                f"\n{'':20} {e['method']:18} {e['compression_ratio']:6.1f} {e[judge]:8.4f}" for e in front
            )
        elif isinstance(value, dict):
            parts = (f"{key} {v:,}" if isinstance(v, int) else f"{key} {v}" for key, v in value.items())
            value = ", ".join(parts)
        elif isinstance(value, bool):
            value = "yes" if value else "no"
        elif isinstance(value, int):
            value = f"{value:,}"
        elif isinstance(value, float):
            value = f"{value:.6g}"
        click.echo(f"{name.replace('_', ' '):24} {value}")


@click.command()
@click.argument("file", type=_FILE)
@_json
def inspect(file: str, as_json: bool) -> None:
    """Show what a compressed FILE holds.

    Kind, shape, bits by part, arrays. The file is checked as by `dpq-ref verify`.
    """
    from dpq_ref.compressed import load

    table = load(file)
    table.check()
    _say(_contents(table, Path(file)), as_json)


@click.command()
@click.argument("file", type=_FILE)
@_json
def verify(file: str, as_json: bool) -> None:
    """Check all of a compressed FILE against its checksums.

    Exit status 1 if it is damaged.
    """
    from dpq_ref.compressed import load

    table = load(file)
    table.check()
    _say(
        {"file": file, "whole": True, "kind": table.kind, "rows": table.vocab_size, "dim": table.dim}, as_json
    )


@click.command()
@click.argument("file", type=_FILE)
@click.argument("table", type=_INPUT)
@frequencies_option
@click.option(
    "--sets",
    type=click.Path(exists=True, file_okay=False),
    help="Folder of word sets: similarity (*.tsv), questions-words.txt, BLESS.txt.",
)
@_tensor
@_cluster
@backend_option
@_json
def evaluate(
    file: str,
    table: str,
    frequencies: str | None,
    sets: str | None,
    tensor: str | None,
    cluster: str | None,
    backend: str | None,
    as_json: bool,
) -> None:
    """Judge a compressed FILE by the TABLE that it stands for.

    Errors, neighbours kept, spectra; with --sets word similarity and analogies, before and after; and the
    words whose vectors have changed most, by error relative to their length. Where TABLE has no words, they
    are those of FILE.

    From 1 GiB on the decoded rows go through a file beside FILE, as large as the table, which is removed at
    the end. With --cluster the workers measure errors and cosines; all numbers are the same, bit by bit.
    """
    from tempfile import TemporaryDirectory

    import numpy as np

    from dpq_ref.backend import to_numpy
    from dpq_ref.compressed import load
    from dpq_ref.metrics import METRICS, judge
    from dpq_ref.resume import on_cluster
    from figures.tables import Paths, judge_words
    from figures.tables import read as read_words_too

    made = load(file)
    data = read_words_too(Paths(table, frequencies, sets, tensor, named_by=file))
    full, shape = data.vectors, (made.vocab_size, made.dim)
    if shape != full.shape:
        raise ValueError(f"{file} has {shape} entries, and {table} {full.shape}")
    with _bar(), ExitStack() as stack:
        out: Any = None
        if full.nbytes >= LARGE or cluster:
            folder = Path(stack.enter_context(TemporaryDirectory(dir=Path(file).resolve().parent)))
            full = _in_a_file(full, folder)
            out = np.lib.format.open_memmap(folder / "rows.npy", "w+", made.dtype, shape)
        rows = to_numpy(made.on(backend).reconstruct(out=out))
        if cluster:
            stack.enter_context(on_cluster(cluster))
        metrics = judge(full, rows, data.weights)
        before, after = judge_words(data, full), judge_words(data, rows, made)
        loss = _relative_loss(full, rows)
    worst = np.argsort(-loss, kind="stable")[:WORST].tolist()
    names = data.words or range(len(full))
    report = {
        "compression_ratio": made.compression_ratio,
        "metrics": metrics,
        "words": {name: {"before": before.get(name), "after": value} for name, value in after.items()},
        "worst": [{"word": names[i], "relative_loss": float(loss[i])} for i in worst],
    }
    if as_json:
        click.echo(_as_json(report))
        return
    click.echo(f"{'compression ratio':52} {made.compression_ratio:.1f}")
    for name, value in metrics.items():
        click.echo(f"{METRICS[name].axis:52} {value:.5g}")
    for name, value in after.items():
        label = (
            METRICS[name].axis
            if name in METRICS
            else name.replace("_", " ").replace("similarity ", "similarity, ")
        )
        was = f"{before[name]:.4g} -> " if name in before else ""
        click.echo(f"{label:52} {was}{value:.4g}")
    click.echo("largest relative loss: " + ", ".join(f"{names[i]} {loss[i]:.2f}" for i in worst))


def _relative_loss(full: Any, rows: Any) -> Any:
    """Lengths of the differences over those of the rows, (n,)."""
    import numpy as np

    from baselines.rows import blocks

    loss = np.empty(len(full))
    for some in blocks(*full.shape):
        lengths = np.linalg.norm(full[some], axis=1)
        loss[some] = np.linalg.norm(rows[some] - full[some], axis=1) / np.where(lengths > 0, lengths, 1)
    return loss


def _asked(words: tuple[str, ...]) -> list[str]:
    """Words of the command line, or one a line from standard input."""
    return list(words) if words else [line.rstrip("\r\n") for line in sys.stdin]


def _row(table: Any, word: str) -> int:
    """Row of a word, or of an id where the table has no words."""
    try:
        if table.has_words:
            return table.id_of(word)
        row = int(word)
        if 0 <= row < table.vocab_size:
            return row
        raise KeyError(f"no row {row}: there are {table.vocab_size}")
    except KeyError as error:
        near = table.has_words and word.lower() in table
        raise ValueError(error.args[0] + (f"; there is {word.lower()!r}" if near else "")) from None
    except ValueError:
        raise ValueError(f"{word!r}: the table has no words; it takes numbers of rows") from None


@click.command()
@click.argument("file", type=_FILE)
@click.argument("words", nargs=-1)
@_json
def lookup(file: str, words: tuple[str, ...], as_json: bool) -> None:
    """Print the vectors of WORDS from a compressed FILE.

    A word and its numbers make a line. Without WORDS they come from standard input, one a line; for a table
    without words they are row numbers.
    """
    from dpq_ref.compressed import load

    table = load(file)
    for word in _asked(words):
        vector = table.lookup(_row(table, word))
        line = {"word": word, "vector": vector.tolist()}
        click.echo(_as_json(line) if as_json else f"{word} {' '.join(map(str, vector))}")


@click.command()
@click.argument("file", type=_FILE)
@click.argument("words", nargs=-1)
@click.option("-n", type=click.IntRange(1), default=10, show_default=True, help="Neighbours of each.")
@_json
def similar(file: str, words: tuple[str, ...], n: int, as_json: bool) -> None:
    """Print the words of a compressed FILE most like WORDS.

    By cosine, a line for each of WORDS. Without WORDS they come from standard input, one a line; for a table
    without words they are row numbers.
    """
    from dpq_ref.compressed import load

    table = load(file)
    for word in _asked(words):
        row = _row(table, word)
        query = word if table.has_words else table.lookup(row)
        found = [entry for entry in table.most_similar(query, n + 1) if entry[0] != row][:n]
        if as_json:
            click.echo(_as_json({"word": word, "similar": found}))
        else:
            click.echo(f"{word}: " + ", ".join(f"{other} {cosine:.3f}" for other, cosine in found))


@click.command()
@click.argument("table", type=_INPUT)
@click.argument("output", type=_OUTPUT)
@_words
@_tensor
@_json
def convert(table: str, output: Path, word_file: str | None, tensor: str | None, as_json: bool) -> None:
    """Write a TABLE, compressed or not, in another format.

    The format is OUTPUT's ending: .txt as of GloVe, .vec as of word2vec and fastText, .bin as of word2vec,
    .npz with the arrays `words` and `vectors`, or .npy, which leaves the words out. TABLE is as for
    `dpq-ref compress`, or what that has written.
    """
    from dpq_ref.tables import write_table

    vectors, words, source, _ = _read(table, tensor, word_file, None)
    write_table(output, words, vectors)
    kept = words is not None and output.suffix != ".npy"
    rows, dim = vectors.shape
    _say(
        {"table": source, "file": str(output), "file_bytes": output.stat().st_size}
        | {"rows": rows, "dim": dim, "words": kept},
        as_json,
    )


COMMANDS = compress, inspect, evaluate, lookup, similar, convert, verify
