"""Writing that ends early, by a full disk, no permission, a kill: the old file is whole, or the new one is.

Each script imports once and forks, so that a kill costs milliseconds.
"""

import os
import re
import subprocess
import sys

import numpy as np
import pytest

from dpq_ref.compressed import DenseTable, load, write_atomically
from dpq_ref.tables import read_table, write_table

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="fork, limits and signals")
PART = re.compile(r"\.table\.\w+\.[0-9a-f]{8}\.part")
ENDINGS = [".safetensors", ".txt", ".vec", ".bin", ".npz", ".npy"]

PREAMBLE = """
import errno, os, resource, signal, sys, time
import numpy as np
from dpq_ref.compressed import DenseTable, load
from dpq_ref.tables import read_table, write_table

folder, n = sys.argv[1], 2000
words = [f"w{i}" for i in range(n)]

def write(path, value):
    vectors = np.full((n, 4), value, np.float32)
    if path.endswith(".safetensors"):
        table = DenseTable(vectors)
        table.words = words
        table.save(path)
    else:
        write_table(path, words, vectors)
"""

KILLED = (
    PREAMBLE
    + """
def rows(path):
    if path.endswith(".safetensors"):
        table = load(path)
        assert table.words == words
        return table.reconstruct()
    found = read_table(path)
    assert found.words in (words, None)
    return found.vectors

rng = np.random.default_rng(0)
number, kills = getattr(signal, sys.argv[2]), int(sys.argv[3])
for ending in sys.argv[4:]:
    path, found = f"{folder}/table{ending}", set()
    for kill in range(kills):
        reader, writer = os.pipe()
        child = os.fork()
        if not child:
            try:
                for i in range(100_000):
                    write(path, 1 + i % 2)
                    os.write(writer, b".")
            except KeyboardInterrupt:
                os._exit(130)
            os._exit(3)
        os.close(writer)
        os.read(reader, 1)  # it is at it
        time.sleep(rng.uniform(0, 0.03))
        os.kill(child, number)
        status = os.waitpid(child, 0)[1]
        assert status == (number if number == signal.SIGKILL else 130 << 8), status
        os.close(reader)
        values = set(rows(path).ravel().tolist())
        assert len(values) == 1 and values <= {1, 2}, values
        found |= values
    assert len(found) == 2, found
"""
)


def script(code, *arguments, **options):
    return subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=300,
        **options,
    )


def killed(folder, name, times, *endings):
    done = script(KILLED, folder, name, times, *endings)
    assert done.returncode == 0, done.stderr
    rest = set(os.listdir(folder)) - {f"table{ending}" for ending in endings}
    assert all(PART.fullmatch(other) for other in rest)
    return rest


def test_interrupted_at_any_moment(tmp_path):
    assert not killed(tmp_path, "SIGINT", 20, ".npz")


def test_killed_at_any_moment(tmp_path):
    killed(tmp_path, "SIGKILL", 20, ".safetensors")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["SIGINT", "SIGKILL"])
def test_killed_often(name, tmp_path):
    assert not (killed(tmp_path, name, 200, *ENDINGS) and name == "SIGINT")


FULL = (
    PREAMBLE
    + """
for ending in sys.argv[2:]:
    path = f"{folder}/table{ending}"
    write(path, 0)
    before = open(path, "rb").read()
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) // 2, resource.RLIM_INFINITY))
    try:
        write(path, 1)
    except OSError as error:
        assert path in str(error) and "File too large" in str(error), error
    else:
        raise AssertionError("written")
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    assert open(path, "rb").read() == before
    os.unlink(path)
    assert not os.listdir(folder)
"""
)


def test_no_room(tmp_path):
    done = script(FULL, tmp_path, *ENDINGS)
    assert done.returncode == 0, done.stderr


NOBODY = (
    PREAMBLE
    + """
path = f"{folder}/table.safetensors"
write(path, 0)
os.chmod(folder, 0o555)
if os.getuid() == 0:
    for parent in sys.argv[2:]:
        os.chmod(parent, 0o755)
    os.setuid(65534)
try:
    write(path, 1)
except PermissionError as error:
    assert repr(path) in str(error), error
else:
    raise AssertionError("written")
"""
)


def test_no_permission(tmp_path):
    own = [folder for folder in tmp_path.parents if "pytest" in folder.name]
    done = script(NOBODY, tmp_path, *own)
    assert done.returncode == 0, done.stderr
    assert os.listdir(tmp_path) == ["table.safetensors"]
    assert not load(tmp_path / "table.safetensors").reconstruct().any()


def test_a_path_below_a_file(tmp_path):
    (tmp_path / "file").write_text("x")
    for write in (
        DenseTable(np.ones((2, 2), np.float32)).save,
        lambda path: write_table(path.with_suffix(".npy"), None, np.ones((2, 2))),
    ):
        with pytest.raises(NotADirectoryError, match=r"file/table\.\w+'"):
            write(tmp_path / "file" / "table.safetensors")


def test_a_folder_in_its_place(tmp_path):
    (tmp_path / "table.npy").mkdir()
    with pytest.raises(IsADirectoryError, match=r"table\.npy'"):
        write_table(tmp_path / "table.npy", None, np.ones((2, 2)))
    assert os.listdir(tmp_path) == ["table.npy"]


def test_a_link_stays_one_and_the_umask_holds(tmp_path):
    (tmp_path / "far").mkdir()
    (tmp_path / "near").symlink_to(tmp_path / "far" / "file")
    before = os.umask(0o077)
    try:
        write_atomically(tmp_path / "near", b"1")
    finally:
        os.umask(before)
    assert (tmp_path / "near").is_symlink() and (tmp_path / "far" / "file").read_bytes() == b"1"
    assert (tmp_path / "far" / "file").stat().st_mode & 0o777 == 0o600
    before = os.umask(0o022)
    try:
        DenseTable(np.ones((2, 2), np.float32)).save(tmp_path / "table")
    finally:
        os.umask(before)
    assert (tmp_path / "table").stat().st_mode & 0o777 == 0o644


def test_a_long_name(tmp_path):
    path = tmp_path / ("n" * 240 + ".npy")
    write_table(path, None, np.eye(2))
    assert read_table(path).vectors.shape == (2, 2) and os.listdir(tmp_path) == [path.name]


@pytest.mark.skipif(os.geteuid() != 0, reason="mounts a file system of 64 KiB")
@pytest.mark.parametrize("ending", ENDINGS)
def test_a_full_file_system(ending, tmp_path):
    mount = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "none", tmp_path], capture_output=True)
    if mount.returncode:
        pytest.skip("no right to mount")
    try:
        path = tmp_path / f"table{ending}"
        small, words = np.ones((100, 4), np.float32), [f"w{i}" for i in range(4000)]

        def write(vectors):
            if ending == ".safetensors":
                DenseTable(vectors).save(path)
            else:
                write_table(path, words[: len(vectors)], vectors)

        write(small)
        before = path.read_bytes()
        with pytest.raises(OSError, match=rf"No space left|{path}"):
            write(np.ones((4000, 4), np.float32))
        assert path.read_bytes() == before and os.listdir(tmp_path) == [path.name]
    finally:
        subprocess.run(["umount", tmp_path], check=True)
