"""How commands end, and what shells and other programs see: exit status, signals, JSON, completion."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import click
import numpy as np
import pytest
from click.shell_completion import ShellComplete
from click.testing import CliRunner

from baselines import METHODS
from dpq_ref import load
from dpq_ref.cli import main
from dpq_ref.cli_tables import SHORT
from dpq_ref.compressed import DenseTable
from dpq_ref.tables import write_table

DPQ_REF = [sys.executable, "-c", "from dpq_ref.cli import main; main(prog_name='dpq-ref')"]
RNG = np.random.default_rng(0)
VECTORS = RNG.standard_normal((60, 8)).astype(np.float32)
NAMES = [f"w{i}" for i in range(60)]
PAGE = (Path(__file__).parents[1] / "docs/reference/command_line.md").read_text(encoding="utf8")


def run(*arguments, code=0, **options):
    result = CliRunner().invoke(main, [*map(str, arguments)], **options)
    assert result.exit_code == code, result.output
    return result


@pytest.fixture
def folder(tmp_path, monkeypatch):
    write_table(tmp_path / "t.txt", NAMES, VECTORS)
    table = DenseTable(VECTORS.astype(np.float16))
    table.words = NAMES
    table.save(tmp_path / "t.safetensors")
    monkeypatch.chdir(tmp_path)
    return tmp_path


# --- JSON -------------------------------------------------------------------------------------------------

JSON = {
    "compress": [
        "t.txt",
        "-o",
        "o.safetensors",
        "--method",
        "scalar",
        "--ratio",
        "4",
        "--frequencies",
        "zipf",
    ],
    "inspect": ["t.safetensors"],
    "evaluate": ["t.safetensors", "t.txt"],
    "lookup": ["t.safetensors", "w3", "w5"],
    "similar": ["t.safetensors", "w3", "w5", "-n", "2"],
    "convert": ["t.safetensors", "o.npz"],
    "verify": ["t.safetensors"],
}


def documented(command):
    """Keys that the page has for a command."""
    rows = re.findall(r"^\| (`[^|]*) \| (`[^|]*) \|", PAGE.split("## JSON")[1].split("## ")[0], re.MULTILINE)
    keys = [re.findall(r"`(\w+)`", keys) for commands, keys in rows if f"`{command}`" in commands]
    return [key for row in keys for key in row]


def strictly(text):
    def refuse(constant):
        raise AssertionError(constant)

    return json.loads(text, parse_constant=refuse)


@pytest.mark.parametrize("command", JSON)
def test_json_has_the_keys_of_the_page(command, folder):
    lines = run(command, *JSON[command], "--json").stdout.splitlines()
    assert len(lines) == (2 if command in ("lookup", "similar") else 1)
    optional = {"tried"}
    for line in lines:
        assert set(documented(command)) - optional == set(strictly(line)), command
    assert run(command, *JSON[command]).stdout  # the same for people


def test_json_of_best_says_what_was_tried(folder, monkeypatch):
    monkeypatch.setattr("dpq_ref.cli_tables.METHODS", ["half", "uniform"])
    said = strictly(
        run("compress", "t.txt", "-o", "o.safetensors", "--method", "best", "--ratio", 2, "--json").stdout
    )
    assert set(said) == set(documented("compress")) - {"weighted_relative_error"}
    assert set(said["tried"][0]) == {"method", "compression_ratio", "relative_error", "pareto"}


def test_json_without_numbers_that_are_not_finite(folder):
    DenseTable(np.full((4, 3), np.inf, np.float16)).save(folder / "i.safetensors")
    said = strictly(run("lookup", "i.safetensors", 1, "--json").stdout)
    assert said == {"word": "1", "vector": [None] * 3}


def test_values_of_json(folder):
    said = strictly(run("convert", "t.safetensors", "o.npy", "--json").stdout)
    size = (folder / "o.npy").stat().st_size
    assert said == {"table": "t.safetensors", "file": "o.npy", "file_bytes": size} | {
        "rows": 60,
        "dim": 8,
        "words": False,
    }
    said = strictly(run("verify", "t.safetensors", "--json").stdout)
    assert said == {"file": "t.safetensors", "whole": True, "kind": "dense", "rows": 60, "dim": 8}


# --- Exit status ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["--help"], 0),
        (["verify", "t.safetensors"], 0),
        (["verify", "t.txt"], 1),
        (["inspect", "t.txt"], 1),
        (["lookup", "t.safetensors", "nobody"], 1),
        (["similar", "t.safetensors", "nobody"], 1),
        (["evaluate", "t.safetensors", "w.txt"], 1),
        (["convert", "t.safetensors", "o.csv"], 1),
        (["convert", "t.safetensors", "none/o.npy"], 1),
        (["convert", "t.safetensors", "t.txt/o.npy"], 1),
        (["compress", "t.txt", "-o", "o.safetensors", "--method", "low-rank", "--ratio", "1000"], 1),
        (["compress", "t.txt", "-o", "o.npz"], 2),
        (["compress", "t.txt"], 2),
        (["compress", "none.txt", "-o", "o.safetensors"], 2),
        (["compress", "t.txt", "-o", "o.safetensors", "--frequencies", "zip"], 2),
        (["verify", "none.safetensors"], 2),
        (["verify", "--loud", "t.safetensors"], 2),
        (["similar", "t.safetensors", "w1", "-n", "0"], 2),
        (["squash", "t.txt"], 2),
    ],
)
def test_exit_status(arguments, code, folder):
    (folder / "w.txt").write_text("a 1\nb 2\n")
    result = run(*arguments, code=code)
    if code == 1:
        assert re.fullmatch("Error: [^\n]+\n", result.stderr) and not result.stdout
    if code == 2:
        assert result.stderr.startswith("Usage:") and "Error: " in result.stderr.splitlines()[-1]
    assert not list(folder.glob("o.*")) and not list(folder.glob(".*"))


def test_no_memory_is_one_line(folder, monkeypatch):
    def grow(*_, **__):
        raise MemoryError

    monkeypatch.setattr("dpq_ref.tables.read_table", grow)
    assert run("convert", "t.txt", "o.npy", code=1).stderr == "Error: out of memory\n"


INTERRUPTED = """
import os, signal, sys, threading, time
from dpq_ref import cli_tables
from dpq_ref.cli import main

def interrupt(*_):
    os.kill(os.getpid(), signal.SIGINT)
    time.sleep(60)

cli_tables._fit = interrupt
main()
"""


def test_interrupted_while_it_computes(folder):
    before = (folder / "t.safetensors").read_bytes()
    command = ["compress", "t.txt", "-o", "t.safetensors", "--ratio", "2"]
    done = subprocess.run([sys.executable, "-c", INTERRUPTED, *command], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "interrupted\n")
    assert (folder / "t.safetensors").read_bytes() == before
    assert sorted(os.listdir(folder)) == ["t.safetensors", "t.txt"]


@pytest.mark.slow
def test_interrupted_at_any_moment(folder):
    """Once it is there: before, Python itself is starting."""
    ready = "from dpq_ref.cli import main; print(flush=True); main(prog_name='dpq-ref')"
    write_table(folder / "big.npy", None, RNG.standard_normal((20_000, 64)).astype(np.float32))
    before, waited = (folder / "t.safetensors").read_bytes(), np.random.default_rng(0)
    for _ in range(20):
        command = [
            sys.executable,
            "-c",
            ready,
            "compress",
            "big.npy",
            "-o",
            "t.safetensors",
            "--method",
            "pq",
            "--ratio",
            "8",
        ]
        child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        assert child.stdout.readline()
        time.sleep(waited.uniform(0, 3))
        child.send_signal(signal.SIGINT)
        said, complained = child.communicate(timeout=300)
        if said:  # it was done, and maybe Python was ending
            assert child.returncode in (0, -signal.SIGINT)
            before = (folder / "t.safetensors").read_bytes()
            continue
        assert (child.returncode, complained) == (130, "interrupted\n")
        assert (folder / "t.safetensors").read_bytes() == before
        assert sorted(os.listdir(folder)) == ["big.npy", "t.safetensors", "t.txt"]


@pytest.mark.skipif(sys.platform != "linux", reason="a shell with pipes, and /dev/full")
def test_a_pipe_that_is_closed_and_one_that_is_full(folder):
    big = DenseTable(np.ones((3000, 50), np.float32))
    big.words = [f"w{i}" for i in range(3000)]
    big.save(folder / "big.safetensors")
    write_table(folder / "big.txt", big.words, big.reconstruct())
    asked = "\n".join(big.words)
    for reader, says in (("| head -n 1", ""), ("> /dev/full", "No space left on device")):
        line = f'"$@" lookup big.safetensors {reader}; echo "${{PIPESTATUS[0]}}" >&2'
        done = subprocess.run(
            ["bash", "-c", line, "bash", *DPQ_REF], input=asked, capture_output=True, text=True
        )
        *error, status = done.stderr.splitlines()
        assert status == "1" and len(error) == bool(says) and says in "".join(error), done.stderr


# --- Completion and help ----------------------------------------------------------------------------------


def completed(*words):
    complete = ShellComplete(main, {}, "dpq-ref", "_DPQ_REF_COMPLETE")
    return [(item.value, item.type) for item in complete.get_completions([*words[:-1]], words[-1])]


def test_completion(folder):
    (folder / "sub").mkdir()
    (folder / "sub" / "[a].safetensors").touch()
    plain = [("t.safetensors", "plain")]
    assert ("compress", "plain") in completed("comp") and ("compare", "plain") in completed("comp")
    for command in ("inspect", "verify", "lookup", "similar", "evaluate"):
        assert completed(command, "") == completed(command, "t") == plain
    assert completed("inspect", "sub/") == completed("inspect", "sub/[") == [("sub/[a].safetensors", "plain")]
    assert completed("inspect", "s") == [("s", "file")]  # the shell's own, which knows folders
    assert completed("compress", "") == [("", "file")]
    methods = [value for value, _ in completed("compress", "--method", "")]
    assert methods == ["best", *METHODS, *SHORT]
    assert completed("compress", "--method", "pq", "--parameter", "n_") == [
        ("n_codes=", "plain"),
        ("n_groups=", "plain"),
    ]
    assert ("n_bits=", "plain") in completed("compress", "--method", "scalar", "--parameter", "")
    assert ("n_groups=", "plain") in completed("compress", "--parameter", "n")  # of the default
    assert completed("compress", "--method", "best", "--parameter", "") == []
    assert completed("compress", "--frequencies", "z") == [("zipf", "plain")]
    assert completed("compress", "--frequencies", "") == [("", "file")]


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_script_of_a_shell(shell, monkeypatch):
    monkeypatch.setenv("_DPQ_REF_COMPLETE", f"{shell}_source")
    said = CliRunner().invoke(main, prog_name="dpq-ref", complete_var="_DPQ_REF_COMPLETE")
    assert (
        "_DPQ_REF_COMPLETE" in said.output and f"_DPQ_REF_COMPLETE={shell}_source" in PAGE or shell == "zsh"
    )


def groups(command, path=("dpq-ref",)):
    yield path, command
    for name, child in command.commands.items():
        if isinstance(child, click.Group):
            yield from groups(child, (*path, name))


@pytest.mark.parametrize(("path", "group"), [*groups(main)])
def test_each_command_has_its_line_in_the_list(path, group):
    said = CliRunner().invoke(group, ["--help"], terminal_width=80).output
    listed = said.split("Commands:\n")[1].splitlines()
    assert len(listed) == len(group.commands)
    for line in listed:
        name, _, text = line.strip().partition("  ")
        assert name in group.commands and text.strip().endswith(".") and not text.endswith("...")
        assert len(line) <= 80


def test_frequencies_by_zipf_are_those_of_a_file(folder):
    (folder / "f.txt").write_text("".join(f"{word} {10**17 // (i + 1)}\n" for i, word in enumerate(NAMES)))
    errors = []
    for source in ("zipf", "f.txt"):
        arguments = "compress", "t.txt", "-o", "o.safetensors", "--method", "scalar", "--ratio", 8
        said = strictly(run(*arguments, "--frequencies", source, "--json").stdout)
        errors.append(said["weighted_relative_error"])
    assert errors[0] == pytest.approx(errors[1], rel=1e-12)
    write_table(folder / "t.npy", None, VECTORS)
    run(
        "compress",
        "t.npy",
        "-o",
        "o.safetensors",
        "--ratio",
        8,
        "--method",
        "scalar",
        "--frequencies",
        "zipf",
    )
    assert (
        "'zipf'"
        in run(
            "compress", "t.npy", "-o", "p.safetensors", "--ratio", 8, "--frequencies", "f.txt", code=1
        ).stderr
    )
    assert load("o.safetensors").vocab_size == 60
