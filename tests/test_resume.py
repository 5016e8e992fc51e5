"""Long work taken up again, and spread over machines: the same, bit by bit."""

import json
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from filelock import FileLock

from baselines import rows
from dpq_ref import cli_tables, load
from dpq_ref.cli import main
from dpq_ref.progress import listening
from dpq_ref.resume import Shared, in_blocks, kept, resuming, stepwise
from dpq_ref.tables import write_table

RNG = np.random.default_rng(0)
VECTORS = (RNG.standard_normal((600, 4)) @ RNG.standard_normal((4, 8))).astype(np.float32)
BLOCKS = [slice(0, 4), slice(4, 8), slice(8, 10)]

# Method and parameters; what learns; what is called for each block.
RESUMED = {
    "pq": (
        ["pq", "--ratio", "8", "--parameter", "rows_per_code=8"],
        "product.KMeans.fit",
        "product._nearest_of",
    ),
    "opq": (["opq", "--ratio", "6"], "product.principal_groups", "product._nearest_of"),
    "scalar": (["scalar", "--ratio", "8"], "scalar.optimal_clips", "scalar._levels_of"),
    "iiq": (["iiq", "--parameter", "n_bits=6"], "itq.itq_rotation", "binary._sides_of"),
}


def square(x):
    return x * x


def rows_of(done):
    def make(block):
        done.append(block.start)
        return np.arange(block.start, block.stop)[:, None] * np.ones((1, 3), np.int32)

    return make


def test_steps_are_told_in_their_order():
    heard = []
    with listening(lambda *step: heard.append(step)):
        assert list(stepwise("squares", square, range(3))) == [0, 1, 4]
    assert heard == [("squares", i, 3) for i in (1, 2, 3)]


@pytest.mark.parametrize("kept_bytes", [0, 11, 12, 13, 23, 24, 30, 99])
def test_blocks_that_are_whole_are_not_made_again(tmp_path, kept_bytes):
    whole = in_blocks("rows", rows_of([]), BLOCKS, 3, np.int32)
    with resuming(tmp_path / "f"):
        first = in_blocks("rows", rows_of([]), BLOCKS, 3, np.int32, np.uint8)
    path = tmp_path / "f" / "rows.rows"
    stored = path.read_bytes()
    assert len(stored) == 30 and first.dtype == np.int32
    path.write_bytes((stored + bytes(69))[:kept_bytes])
    done = []
    with resuming(tmp_path / "f"):
        again = in_blocks("rows", rows_of(done), BLOCKS, 3, np.int32, np.uint8)
    assert done == [b.start for b in BLOCKS if 3 * b.stop > kept_bytes]
    for found in (first, again):
        np.testing.assert_array_equal(found, whole)
    assert path.read_bytes() == stored
    assert in_blocks("none", rows_of([]), [], 3, np.int32).shape == (0, 3)


def test_what_is_learned_is_learned_once(tmp_path):
    for value in (1, 2):
        with resuming(tmp_path):
            assert kept("a", lambda v=value: {"x": np.full(2, v)})["x"].tolist() == [1, 1]
    assert kept("a", lambda: {"x": np.full(2, 3)})["x"].tolist() == [3, 3]  # nowhere
    with resuming(tmp_path), pytest.raises(ZeroDivisionError):
        kept("b", lambda: 1 / 0)
    assert [path.name for path in tmp_path.iterdir()] == ["a.npz"]


def test_a_mapped_array_is_pickled_as_its_place(tmp_path):
    np.save(tmp_path / "x.npy", VECTORS)
    mapped = np.load(tmp_path / "x.npy", mmap_mode="r")
    for array in (mapped, mapped[7:90], np.asarray(mapped)[3:], mapped[5:][2:4]):
        assert Shared(array).in_file and len(pickle.dumps(Shared(array))) < 500
        np.testing.assert_array_equal(pickle.loads(pickle.dumps(Shared(array))).array, array)
    for array in (VECTORS, mapped[:, 1:], mapped[::2], np.array(mapped)):
        assert not Shared(array).in_file
        np.testing.assert_array_equal(pickle.loads(pickle.dumps(Shared(array))).array, array)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    write_table(tmp_path / "t.npy", None, VECTORS)
    monkeypatch.setattr(cli_tables, "LARGE", 1)
    monkeypatch.setattr(rows, "BLOCK", 800)
    return tmp_path


def compress(folder, name, arguments, **options):
    out = folder / f"{name}.safetensors"
    command = ["compress", folder / "t.npy", "-o", out, "--json", "--method", *arguments]
    result = CliRunner().invoke(main, [*map(str, command)], **options)
    return out, result


def patch(monkeypatch, name, change):
    """Put change(f) in place of a function f of the baselines."""
    module, *inner, last = name.split(".")
    home = import_module(f"baselines.{module}")
    for part in inner:
        home = getattr(home, part)
    monkeypatch.setattr(home, last, change(getattr(home, last)))


def interrupted_at(call):
    def change(function):
        calls = []

        def limited(*arguments):
            calls.append(0)
            if len(calls) == call:
                raise KeyboardInterrupt
            return function(*arguments)

        return limited

    return change


def forbidden(function):
    def fail(*arguments, **options):
        raise AssertionError(f"{function.__name__} once more")

    return fail


@pytest.mark.parametrize("method", RESUMED)
def test_an_interrupted_compression_goes_on(folder, method):
    arguments, learns, encodes = RESUMED[method]
    expected, result = compress(folder, "whole", arguments)
    assert result.exit_code == 0, result.output
    for call in (2, 3):  # interrupted twice
        with pytest.MonkeyPatch.context() as patched:
            patch(patched, encodes, interrupted_at(call))
            if call == 3:
                patch(patched, learns, forbidden)
            out, result = compress(folder, "out", arguments)
        assert result.exit_code == 130 and "goes on where it was" in result.output
        assert not out.exists() and out.with_name(f"{out.name}.part").is_dir()
    with pytest.MonkeyPatch.context() as patched:
        patch(patched, learns, forbidden)
        out, result = compress(folder, "out", arguments)
    assert result.exit_code == 0, result.output
    assert out.read_bytes() == expected.read_bytes()
    assert sorted(path.name for path in folder.iterdir()) == [
        "out.safetensors", "t.npy", "whole.safetensors"
    ]  # fmt: skip


def test_another_command_does_not_go_on_with_it(folder, monkeypatch):
    arguments, _, encodes = RESUMED["pq"]
    other = [*arguments, "--seed", "1"]
    expected = compress(folder, "whole", other)[0]
    with pytest.MonkeyPatch.context() as patched:
        patch(patched, encodes, interrupted_at(3))
        compress(folder, "out", arguments)
    out, result = compress(folder, "out", other)
    assert result.exit_code == 0 and out.read_bytes() == expected.read_bytes()
    with pytest.MonkeyPatch.context() as patched:
        patch(patched, encodes, interrupted_at(3))
        compress(folder, "out", arguments)
    write_table(folder / "t.npy", None, 2 * VECTORS)  # nor with another table
    expected, out = (compress(folder, name, arguments)[0] for name in ("whole", "out"))
    assert out.read_bytes() == expected.read_bytes()


def test_one_output_has_one_writer(folder):
    part = folder / "out.safetensors.part"
    part.mkdir()
    with FileLock(part / "lock"):
        _, result = compress(folder, "out", ["half"])
    assert result.exit_code == 1 and "in use" in result.output


KILLED = """
import os, signal, sys
import baselines.rows, baselines.product
from dpq_ref import cli_tables
from dpq_ref.cli import main

cli_tables.LARGE, baselines.rows.BLOCK = 1, 800
find, calls = baselines.product._nearest_of, []

def killed(*arguments):
    calls.append(0)
    if len(calls) == 4:
        os.kill(os.getpid(), signal.SIGKILL)
    return find(*arguments)

baselines.product._nearest_of = killed
main(sys.argv[1:])
"""


def test_a_killed_compression_goes_on(folder, monkeypatch):
    arguments = RESUMED["pq"][0]
    expected, _ = compress(folder, "whole", arguments)
    out = folder / "out.safetensors"
    command = ["compress", folder / "t.npy", "-o", out, "--json", "--method", *arguments]
    ended = subprocess.run([sys.executable, "-c", KILLED, *map(str, command)], capture_output=True)
    assert ended.returncode == -signal.SIGKILL, ended.stderr.decode()
    assert not out.exists() and (folder / "out.safetensors.part/product/codes.rows").stat().st_size
    patch(monkeypatch, "product.KMeans.fit", forbidden)
    _, result = compress(folder, "out", arguments)
    assert result.exit_code == 0 and out.read_bytes() == expected.read_bytes()


@pytest.mark.slow
def test_a_cluster_that_loses_a_worker_gives_the_same(folder, monkeypatch):
    from distributed import LocalCluster

    big = np.tile(VECTORS, (100, 1)) + RNG.standard_normal((60_000, 8)).astype(np.float32)
    monkeypatch.setattr(rows, "BLOCK", 8000)
    write_table(folder / "t.npy", None, big)
    write_table(folder / "t.vec", [f"w{i}" for i in range(60_000)], big)
    arguments = RESUMED["pq"][0]
    expected, alone = compress(folder, "whole", arguments)
    killed = []
    with LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as cluster:
        address = cluster.scheduler_address.replace("tcp", "dask")

        def kill() -> None:
            codes = folder / "out.safetensors.part/product/codes.rows"
            while not (codes.exists() and codes.stat().st_size):
                time.sleep(0.01)
            killed.append(cluster.workers[0].pid)
            os.kill(killed[0], signal.SIGKILL)

        killer = threading.Thread(target=kill)
        killer.start()
        out, result = compress(folder, "out", [*arguments, "--cluster", address])
        killer.join()
        assert result.exit_code == 0, result.output
        assert out.read_bytes() == expected.read_bytes()
        assert json.loads(result.output)["relative_error"] == json.loads(alone.output)["relative_error"]
        said = [
            CliRunner().invoke(main, ["evaluate", str(out), str(folder / table), "--json", *more]).output
            for table, more in (("t.npy", []), ("t.npy", ["--cluster", address]))
        ]
        assert said[0] == said[1] and json.loads(said[0])["metrics"]["relative_error"] < 1
        from_text, result = compress(folder, "text", [*arguments, "--cluster", address])
        assert result.exit_code == 0, result.output
        np.testing.assert_array_equal(load(from_text).packed, load(expected).packed)
    left = sorted(path.name for path in Path(folder).iterdir())
    assert left == ["out.safetensors", "t.npy", "t.vec", "text.safetensors", "whole.safetensors"]


@pytest.mark.parametrize("command", ["compress", "evaluate"])
def test_a_cluster_needs_an_address(folder, command):
    out, result = compress(folder, "out", ["half"])
    rest = (
        [folder / "t.npy", "-o", out, "--method", "half"]
        if command == "compress"
        else [out, folder / "t.npy"]
    )
    result = CliRunner().invoke(main, [command, *map(str, rest), "--cluster", "host:8786"])
    assert result.exit_code == 1 and "dask://host:8786" in result.output
