"""The documentation and the README: their code runs, their commands exist, their links lead somewhere."""

import doctest
import re
import runpy
import shlex
from pathlib import Path

import click
import numpy as np
import pytest

import baselines
import dpq_ref
from dpq_ref.cli import main
from dpq_ref.compressed import ProductTable
from dpq_ref.compressed.base import KINDS
from dpq_ref.compressed.product import group_columns
from dpq_ref.metrics import METRICS

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
TEXT = {str(page.relative_to(ROOT)): page.read_text(encoding="utf8") for page in PAGES}
PYTHON = re.compile(r"```python\n(.*?)```(?:\n\n```text\n(.*?)```)?", re.DOTALL)
SHELL = re.compile(r"```sh\n(.*?)```", re.DOTALL)
COMMAND = re.compile(r"`(dpq-ref [^`\n]+)`")
LINK = re.compile(r"\]\((?!https?:)([^)#\s]*)(?:#[^)]*)?\)")


@pytest.mark.parametrize("page", [page for page, text in TEXT.items() if "```python" in text])
def test_code_runs_and_prints_what_the_page_says(page, tmp_path, monkeypatch, capsys):
    """The blocks of a page in turn, in one namespace; a block of text right after one is what it prints."""
    monkeypatch.chdir(tmp_path)
    namespace = {"__name__": page}
    for block, expected in PYTHON.findall(TEXT[page]):
        exec(compile(block, page, "exec"), namespace)
        said = capsys.readouterr().out
        if expected:
            flags = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
            assert doctest.OutputChecker().check_output(expected, said, flags), said
        if page == "README.md" and "accuracy" in block:
            assert float(said.split()[-1]) > 0.95


def test_the_training_loop_of_the_readme_is_short():
    loop = next(block for block, _ in PYTHON.findall(TEXT["README.md"]) if "DPQEmbedding" in block)
    assert len([line for line in loop.splitlines() if line.strip()]) <= 25


def commands(text):
    """Command lines of dpq-ref in blocks of shell and in the text."""
    lines = [line for block in SHELL.findall(text) for line in block.replace("\\\n", " ").splitlines()]
    return [line for line in [*lines, *COMMAND.findall(text)] if re.match(r"(\S*/)?dpq-ref\b", line)]


def check_command(command, words):
    """Parse a command line down to the last subcommand, without running it."""
    with click.Context(command, **command.context_settings) as context:
        given, rest, _ = command.make_parser(context).parse_args(list(words))
        for parameter in command.params:
            if isinstance(parameter.type, click.Choice) and given.get(parameter.name) is not None:
                parameter.type.convert(given[parameter.name], parameter, context)
        if isinstance(command, click.Group) and rest:
            name, child, rest = command.resolve_command(context, rest)
            check_command(child, rest)
        else:
            assert not rest, f"{command.name} takes no {rest}"


@pytest.mark.parametrize("page", [page for page, text in TEXT.items() if commands(text)])
def test_commands_exist_with_their_options(page):
    for line in commands(TEXT[page]):
        try:
            check_command(main, shlex.split(line, comments=True)[1:])
        except click.UsageError as error:
            pytest.fail(f"{line}: {error.format_message()}")


@pytest.mark.parametrize("line", ["dpq-ref trace --tokns a", "dpq-ref compere", "dpq-ref trace --method pq"])
def test_a_command_that_is_not_there_is_found(line):
    with pytest.raises(click.UsageError):
        check_command(main, line.split()[1:])


@pytest.mark.parametrize("page", TEXT)
def test_links_lead_somewhere(page):
    here = (ROOT / page).parent
    missing = [link for link in LINK.findall(TEXT[page]) if link and not (here / link).exists()]
    assert not missing


@pytest.mark.parametrize("page", TEXT)
def test_files_and_tests_that_are_named_exist(page):
    for path in re.findall(r"`((?:tests|dpq_ref|baselines|figures)/[^`*]*)`", TEXT[page]):
        assert (ROOT / path).exists(), path
    tests = "".join(path.read_text(encoding="utf8") for path in (ROOT / "tests").rglob("test_*.py"))
    for name in re.findall(r"`(test_[a-z]\w*)`", TEXT[page]):
        assert f"def {name}(" in tests or name in METRICS, name


def test_every_kind_of_table_and_every_method_has_its_place():
    kinds = re.findall(r"^### `(.+)`$", TEXT["docs/reference/file_format.md"], re.MULTILINE)
    assert sorted(kinds) == sorted(KINDS)
    for name in set(baselines.__all__) - {"REGISTRY", "Compressor"}:
        assert f"`{name}`" in TEXT["docs/theory/baselines.md"], name


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("n_codes", [2, 3, 16, 300])
@pytest.mark.parametrize("how", ["apart", "shared", "additive", "additive shared", "ragged"])
def test_the_loader_of_the_documentation_reads_what_we_write(how, n_codes, dtype, tmp_path, rng):
    n, D, s = 50, 5, 3
    books = 1 if "shared" in how else D
    shape = (n_codes, group_columns(13, D).sum()) if how == "ragged" else (books, n_codes, s)
    values = rng.standard_normal(shape).astype(dtype)
    codes = rng.integers(0, n_codes, (n, D))
    table = ProductTable.from_codes(codes, values, additive="additive" in how)
    table.save(tmp_path / "table.safetensors")
    loader = runpy.run_path(str(ROOT / "docs/howto/load_product.py"))["ProductFile"]
    ours, theirs = dpq_ref.load(tmp_path / "table.safetensors"), loader(tmp_path / "table.safetensors")
    for ids in (7, [3, 0, 49, 3], [[1], [2]], np.zeros((0, 2), int), np.arange(n)):
        rows = theirs.lookup(ids)
        assert rows.dtype == dtype
        np.testing.assert_array_equal(rows, ours.lookup(ids))
    for ids in (-1, n):
        with pytest.raises(IndexError):
            theirs.lookup(ids)


def test_the_loader_of_the_documentation_refuses_other_tables(tmp_path):
    dpq_ref.DenseTable(np.ones((2, 3), np.float32)).save(tmp_path / "table.safetensors")
    with pytest.raises(ValueError, match="dense"):
        runpy.run_path(str(ROOT / "docs/howto/load_product.py"))["ProductFile"](
            tmp_path / "table.safetensors"
        )
